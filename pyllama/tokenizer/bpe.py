"""Byte-level BPE: a piece of text to token ids.

Turns one pre-tokenizer piece into ids by merging its UTF-8 bytes; remembers the pieces seen last, since text
repeats its words. Knows nothing of patterns, special tokens or files.
"""

from __future__ import annotations

import numpy as np

from pyllama.errors import TokenizerError
from pyllama.tokenizer.merges import MergeTable
from pyllama.tokenizer.vocabulary import Vocabulary

_CACHE_PIECES = 8192
_CACHE_PIECE_LENGTH = 64


class ByteLevelModel:
    """Merges bytes.

    vocabulary     ids and bytes
    merges         ranked pairs
    ignore_merges  a piece that is a token as a whole is that token, whatever the merges say (Llama 3)
    unk_id         stands for bytes that have no token of their own; without it they vanish, as in tokenizers
    fuse_unk       neighbouring unknown bytes become one unk_id
    forbidden      ids that no text may turn into
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        merges: MergeTable,
        *,
        ignore_merges: bool = False,
        unk_id: int | None = None,
        fuse_unk: bool = False,
        forbidden: frozenset[int] = frozenset(),
    ) -> None:
        self._vocabulary, self._merges = vocabulary, merges
        self._ignore_merges, self._unk_id, self._fuse_unk = ignore_merges, unk_id, fuse_unk
        self._forbidden = forbidden
        self._byte_ids = [vocabulary.find(bytes([byte])) for byte in range(256)]
        self._complete = min(self._byte_ids) >= 0
        self._cache: dict[str, list[int]] = {}

    def makes(self, ids: np.ndarray) -> np.ndarray:
        """Which of the ids merges result in; (m,) bool for (m,) ids."""
        return self._merges.makes()[ids]

    def forbid(self, ids: frozenset[int]) -> None:
        """From now on no text turns into these."""
        self._forbidden |= ids
        self._merges.forbid(ids)

    def encode(self, piece: str, out: list[int]) -> None:
        """Append the ids of one piece to `out`. Raises TokenizerError for a lone surrogate."""
        ids = self._cache.get(piece)
        if ids is None:
            ids = self._encode(piece)
            if len(piece) <= _CACHE_PIECE_LENGTH:
                if len(self._cache) >= _CACHE_PIECES:
                    self._cache.clear()
                self._cache[piece] = ids
        out += ids

    def _encode(self, piece: str) -> list[int]:
        try:
            data = piece.encode()
        except UnicodeEncodeError as error:
            code = ord(piece[error.start])
            raise TokenizerError(f"text holds the lone surrogate U+{code:04X}, expected Unicode text") from None
        if self._ignore_merges:
            whole = self._vocabulary.find(data)
            if whole >= 0 and whole not in self._forbidden:
                return [whole]
        if self._complete:
            return self._merges.merge([self._byte_ids[byte] for byte in data])
        symbols: list[int] = []
        after_unknown = False
        for byte in data:
            symbol = self._byte_ids[byte]
            if symbol >= 0:
                symbols.append(symbol)
            elif self._unk_id is not None and not (self._fuse_unk and after_unknown):
                symbols.append(self._unk_id)
            after_unknown = symbol < 0
        return self._merges.merge(symbols)
