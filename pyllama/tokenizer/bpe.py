"""Byte-pair encoding by ranked merges: a piece of text to token ids.

Merges what a piece begins as, its bytes here (byte-level BPE), its characters in sentencepiece.py; remembers the pieces
seen last, since text repeats its words. Knows nothing of patterns, special tokens or files.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Any

import numpy as np

from pyllama.tokenizer.merges import MergeTable
from pyllama.tokenizer.vocabulary import Vocabulary, utf8_of

_REMEMBERED, _REMEMBERED_LENGTH = 8192, 64  # pieces, and characters of each


class MergedModel(ABC):
    """Merges symbols.

    vocabulary     ids and bytes
    merges         ranked pairs
    ignore_merges  a piece that is a token as a whole is that token, whatever the merges say (Llama 3)
    unk_id         stands for what has no token of its own; without it that vanishes, as in tokenizers
    fuse_unk       neighbouring unknown symbols become one unk_id
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
        self._remembered = lru_cache(_REMEMBERED)(self._encode)

    def makes(self, ids: np.ndarray) -> np.ndarray:
        """Which of the ids merges result in; (m,) bool for (m,) ids."""
        return self._merges.makes()[ids]

    def forbid(self, ids: frozenset[int]) -> None:
        """From now on no text turns into these."""
        self._forbidden |= ids
        self._merges.forbid(ids)

    def encode(self, piece: str, out: list[int]) -> None:
        """Append the ids of one piece to `out`. Raises TokenizerError for a lone surrogate."""
        out += self._ids_of(piece)

    def _ids_of(self, piece: str) -> list[int]:
        return self._remembered(piece) if len(piece) <= _REMEMBERED_LENGTH else self._encode(piece)

    def _encode(self, piece: str) -> list[int]:
        data = utf8_of(piece)
        if self._ignore_merges and (whole := self._find(data)) is not None:
            return [whole]
        return self._merges.merge(self._symbols(piece, data))

    def _find(self, data: bytes) -> int | None:
        """The token of these bytes that text may turn into."""
        found = self._vocabulary.find(data)
        return found if found >= 0 and found not in self._forbidden else None

    @abstractmethod
    def _symbols(self, piece: str, data: bytes) -> list[int]:
        """What a piece begins as. data: its UTF-8 bytes"""


class ByteLevelModel(MergedModel):
    """Merges bytes."""

    def __init__(self, vocabulary: Vocabulary, merges: MergeTable, **options: Any) -> None:
        super().__init__(vocabulary, merges, **options)
        self._byte_ids = [vocabulary.find(bytes([byte])) for byte in range(256)]

    def _symbols(self, piece: str, data: bytes) -> list[int]:
        symbols: list[int] = []
        after_unknown = False
        for byte in data:
            symbol = self._byte_ids[byte]
            if symbol >= 0:
                symbols.append(symbol)
            elif self._unk_id is not None and not (self._fuse_unk and after_unknown):
                symbols.append(self._unk_id)
            after_unknown = symbol < 0
        return symbols
