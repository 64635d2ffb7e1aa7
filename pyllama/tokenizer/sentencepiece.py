"""SentencePiece-style BPE with ranked merges, as a tokenizer.json has them: text with marked spaces to ids, characters
first, bytes where there is no character. Pieces with scores are run elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from pyllama.tokenizer.bpe import MergedModel
from pyllama.tokenizer.merges import MergeTable
from pyllama.tokenizer.steps import SPACE_MARK, crosses_words
from pyllama.tokenizer.vocabulary import Vocabulary

_REMEMBERED = 1 << 16  # characters


def byte_pieces(vocabulary: Vocabulary) -> list[int] | None:
    """Ids of <0x00> ... <0xFF>, or None where any is missing."""
    ids = [vocabulary.find(b"<0x%02X>" % byte) for byte in range(256)]
    return None if min(ids) < 0 else ids


class SentencePieceModel(MergedModel):
    """Merges characters, spaces among them as SPACE_MARK.

    byte_ids  ids of the 256 byte pieces, or None: then unknown characters are unk_id
    """

    def __init__(
        self, vocabulary: Vocabulary, merges: MergeTable, *, byte_ids: Sequence[int] | None, **options: Any
    ) -> None:
        super().__init__(vocabulary, merges, **options)
        self._byte_ids = byte_ids
        self._symbol = lru_cache(_REMEMBERED)(lambda character: self._find(character.encode()))
        words = re.compile(f"{SPACE_MARK}*[^{SPACE_MARK}]+|{SPACE_MARK}+")
        # Words cannot be merged alone where a piece crosses from one to the next.
        crossing = any(
            crosses_words(vocabulary.bytes_of(token_id).decode("utf-8", "replace"))
            for token_id in range(vocabulary.size)
            if token_id not in self._forbidden
        )
        self._words = None if crossing else words

    def encode(self, piece: str, out: list[int]) -> None:
        """Append the ids of a stretch of text, spaces already marked. TokenizerError for a lone surrogate."""
        if self._words is None or self._ignore_merges:
            self._fused(self._encode(piece), out)
            return
        for word in self._words.findall(piece):
            self._fused(self._ids_of(word), out)

    def _fused(self, ids: list[int], out: list[int]) -> None:
        """Append; an unknown run that a word boundary cut is still one run."""
        if self._fuse_unk and ids and out and ids[0] == self._unk_id == out[-1]:
            ids = ids[1:]
        out += ids

    def _symbols(self, piece: str, data: bytes) -> list[int]:
        symbols: list[int] = []
        for character in piece:
            symbol = self._symbol(character)
            if symbol is not None:
                symbols.append(symbol)
            elif self._byte_ids is not None:
                symbols += [self._byte_ids[byte] for byte in character.encode()]
            elif self._unk_id is not None and not (self._fuse_unk and symbols and symbols[-1] == self._unk_id):
                symbols.append(self._unk_id)
        return symbols
