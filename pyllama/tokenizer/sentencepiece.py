"""SentencePiece-style BPE with ranked merges, as a tokenizer.json has them: text with marked spaces to ids, characters
first, bytes where there is no character. Pieces with scores are run elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from pyllama.errors import TokenizerError
from pyllama.tokenizer.merges import MergeTable
from pyllama.tokenizer.steps import SPACE_MARK
from pyllama.tokenizer.vocabulary import Vocabulary

_CACHE_PIECES = 8192
_CACHE_PIECE_LENGTH = 64
_BYTE_PIECE = re.compile(rb"<0x([0-9A-F]{2})>")


def byte_pieces(vocabulary: Vocabulary) -> list[int] | None:
    """Ids of <0x00> ... <0xFF>, or None where any is missing."""
    ids = [vocabulary.find(b"<0x%02X>" % byte) for byte in range(256)]
    return None if min(ids) < 0 else ids


class SentencePieceModel:
    """Merges characters.

    vocabulary     ids and UTF-8 bytes of pieces, spaces as SPACE_MARK
    merges         ranked pairs of symbols
    text_ids       which ids a single character may be, (size,) bool
    byte_ids       ids of the 256 byte pieces, or None: then unknown characters are unk_id
    fuse_unk       neighbouring unknown characters become one unk_id
    ignore_merges  a piece of text that is a token as a whole is that token
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        merges: MergeTable,
        text_ids: np.ndarray,
        *,
        byte_ids: Sequence[int] | None,
        unk_id: int | None,
        fuse_unk: bool = True,
        ignore_merges: bool = False,
    ) -> None:
        self._vocabulary, self._merges, self._text_ids = vocabulary, merges, text_ids
        self._byte_ids, self._unk_id, self._fuse_unk = byte_ids, unk_id, fuse_unk
        self._ignore_merges = ignore_merges
        self._symbols: dict[str, int | None] = {}
        self._words = (
            None if self._piece_crosses_words() else re.compile(f"{SPACE_MARK}*[^{SPACE_MARK}]+|{SPACE_MARK}+")
        )
        self._cache: dict[str, list[int]] = {}

    def _piece_crosses_words(self) -> bool:
        """Whether a space mark follows another character in any piece: then words cannot be merged alone."""
        mark = SPACE_MARK.encode()
        for token_id in np.flatnonzero(self._text_ids).tolist():
            data = self._vocabulary.bytes_of(token_id)
            if mark in data.lstrip(mark) if data.startswith(mark) else data.find(mark) > 0:
                return True
        return False

    def makes(self, ids: np.ndarray) -> np.ndarray:
        """Which of the ids merges result in; (m,) bool for (m,) ids."""
        return self._merges.makes()[ids]

    def forbid(self, ids: frozenset[int]) -> None:
        """From now on no text turns into these."""
        self._text_ids[list(ids & frozenset(range(len(self._text_ids))))] = False
        self._merges.forbid(ids)

    def encode(self, piece: str, out: list[int]) -> None:
        """Append the ids of a stretch of text, spaces already marked. TokenizerError for a lone surrogate."""
        if self._words is None or self._ignore_merges:
            self._fused(self._encode(piece), out)
            return
        for word in self._words.findall(piece):
            ids = self._cache.get(word)
            if ids is None:
                ids = self._encode(word)
                if len(word) <= _CACHE_PIECE_LENGTH:
                    if len(self._cache) >= _CACHE_PIECES:
                        self._cache.clear()
                    self._cache[word] = ids
            self._fused(ids, out)

    def _fused(self, ids: list[int], out: list[int]) -> None:
        """Append; an unknown run that a word boundary cut is still one run."""
        if self._fuse_unk and ids and out and ids[0] == self._unk_id == out[-1]:
            ids = ids[1:]
        out += ids

    def _symbol(self, character: str) -> int | None:
        """The symbol of a character, None if it has none; remembered."""
        try:
            data = character.encode()
        except UnicodeEncodeError:
            raise TokenizerError(
                f"text holds the lone surrogate U+{ord(character):04X}, expected Unicode text"
            ) from None
        found = self._vocabulary.find(data)
        symbol = found if found >= 0 and self._text_ids[found] else None
        if len(self._symbols) < 1 << 16:
            self._symbols[character] = symbol
        return symbol

    def _encode(self, piece: str) -> list[int]:
        if self._ignore_merges:
            whole = self._vocabulary.find(piece.encode("utf-8", "surrogatepass"))
            if whole >= 0 and self._text_ids[whole]:
                return [whole]
        symbols: list[int] = []
        known = self._symbols
        for character in piece:
            symbol = known[character] if character in known else self._symbol(character)
            if symbol is not None:
                symbols.append(symbol)
            else:
                self._append_unknown(character, symbols)
        return self._merges.merge(symbols)

    def _append_unknown(self, character: str, out: list[int]) -> None:
        if self._byte_ids is not None:
            out += [self._byte_ids[byte] for byte in character.encode()]
        elif self._unk_id is not None and not (self._fuse_unk and out and out[-1] == self._unk_id):
            out.append(self._unk_id)
