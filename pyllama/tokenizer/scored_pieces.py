"""Pieces with scores, BPE and Unigram, run by the `sentencepiece` library.

The library is handed a model made here of pieces, scores and types, whatever file they are from, and nothing of the
file itself: what it would abort the process on, or refuse in words of its own, is refused before. It gets stretches of
text that are normalized already, spaces marked. It is imported where such a model is loaded and nowhere else: that
costs 2 MB.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from pyllama.errors import TokenizerError
from pyllama.machine import malloc
from pyllama.tokenizer.piece_types import BPE, BYTE, CONTROL, NORMAL, UNIGRAM, UNKNOWN, UNUSED
from pyllama.tokenizer.sentencepiece_model import Pieces
from pyllama.tokenizer.steps import SPACE_MARK, crosses_words
from pyllama.tokenizer.vocabulary import utf8_of

MAX_LENGTH = 1024
MAX_NBYTES = 1 << 24  # of all pieces; Gemma's 262,144 have 2.4 million
# Scores are sums of log probabilities in Unigram models: far from where sums of them are infinite.
_MAX_SCORE = 1e9
# Nothing of this size has a text of its own: what no text is to become gets such a name.
_NONCHARACTER = "\ufdd0".encode()
_TAIL = np.dtype([("score_key", "u1"), ("score", "<f4"), ("type_key", "u1"), ("type", "u1")])  # fields 2 and 3
_CHUNK = 8192
# The library takes 45 bytes for each byte of a text. Where no merge crosses it, a long text is cut before a space.
_CUT_LENGTH = 1 << 16
_CUT = re.compile(f"(?<!{SPACE_MARK}){SPACE_MARK}")


class ScoredPieces:
    """Turns text into the ids of pieces.

    pieces    user-defined ones are cut out of the text before; without unk_id unknown characters vanish
    byte_ids  ids of the 256 byte pieces, or None: then runs of unknown characters are one unk_id

    Raises TokenizerError. Several threads may encode at once.
    """

    def __init__(self, pieces: Pieces, *, byte_ids: list[int] | None, where: str) -> None:
        crossing = _check(pieces, where)
        types, self._vocabulary, self._scores = pieces.types, pieces.vocabulary, pieces.scores
        self._algorithm, self._where = pieces.algorithm, where
        # The library's own types: control pieces are those that no text becomes.
        self._types = np.where((types == NORMAL) | (types == UNUSED), types, CONTROL).astype(np.uint8)
        if byte_ids is not None:
            self._types[byte_ids] = BYTE
        self._bytes = byte_ids is not None
        mark = self._vocabulary.find(SPACE_MARK.encode())
        # Path scores of a Unigram model are rounded to what went before, so it gets all of a text.
        self._may_cut = self._algorithm == BPE and not crossing and mark >= 0 and self._types[mark] == NORMAL
        self._unknown = [] if pieces.unk_id is None else [pieces.unk_id]
        self._processor = self._load()

    def _load(self) -> Any:
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError as error:
            raise TokenizerError(
                f"{self._where}: SentencePiece pieces need the package sentencepiece, which is not here "
                f"({str(error)[:80]}); pip install sentencepiece"
            ) from None
        processor = SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(self._model())
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - which classes it raises differs from version to version
            reason = " ".join(str(error).split())
            raise TokenizerError(f"{self._where}: sentencepiece does not take these pieces: {reason[:120]}") from None
        malloc.trim()  # below the library's: 5 of 60 MB with 262,144 pieces
        return processor

    def _model(self) -> bytes:
        """A ModelProto. Its one unknown piece is added at the end, as files have none, or several, or another type."""
        trainer = b"\x18%c\x20%s\x98\x02%c\xc0\x02%s" % (
            self._algorithm,
            _varint(self._vocabulary.size + 1),
            self._bytes,
            _varint(self._vocabulary.size),
        )
        # No prefix, no collapsing, no marking of spaces.
        identity = message(1, b"identity") + b"\x18\x00\x20\x00\x28\x00"
        return b"".join([message(2, trainer), message(3, identity), *self._pieces()])

    def _pieces(self) -> Iterator[bytes]:
        vocabulary, types = self._vocabulary, self._types
        prefix = _NONCHARACTER
        while vocabulary.holds(prefix):
            prefix += _NONCHARACTER
        width = _TAIL.itemsize
        heads = [
            b"\x0a%s\x0a%s" % (_varint(1 + len(_varint(size)) + size + width), _varint(size))
            for size in range(MAX_LENGTH + 1)
        ]
        for first in range(0, vocabulary.size, _CHUNK):
            ids = range(first, min(first + _CHUNK, vocabulary.size))
            kinds = types[first : ids.stop]
            named = (kinds != CONTROL).tolist()
            names = [vocabulary.bytes_of(i) if own else b"%s%d" % (prefix, i) for i, own in zip(ids, named)]
            tails = _tails(self._scores[first : ids.stop], kinds)
            ends = range(0, len(tails), width)
            yield b"".join(heads[len(name)] + name + tails[at : at + width] for name, at in zip(names, ends))
        name = b"%s%d" % (prefix, vocabulary.size)
        yield heads[len(name)] + name + _tails(np.zeros(1, np.float32), np.array([UNKNOWN]))

    def makes(self, ids: np.ndarray) -> np.ndarray:
        """Which of the ids a text becomes, (m,) bool for (m,) ids: if any does, the piece's own does."""
        made = np.zeros(len(ids), bool)
        for index in np.flatnonzero(self._types[ids] == NORMAL).tolist():
            token_id = int(ids[index])
            out: list[int] = []
            self.encode(self._vocabulary.bytes_of(token_id).decode(), out)
            made[index] = out == [token_id]
        return made

    def forbid(self, ids: frozenset[int]) -> None:
        """From now on no text turns into these. Not while others encode."""
        inside = np.array([token_id for token_id in ids if token_id < self._vocabulary.size], np.int64)
        made = inside[np.isin(self._types[inside], (NORMAL, UNUSED))]
        if len(made):
            self._types[made] = CONTROL
            self._processor = None  # before there are two
            self._processor = self._load()

    def encode(self, piece: str, out: list[int]) -> None:
        """Append the ids of a stretch of text, spaces already marked. TokenizerError for a lone surrogate."""
        start = 0
        while self._may_cut and len(piece) - start > _CUT_LENGTH:
            cut = _CUT.search(piece, start + _CUT_LENGTH)
            if cut is None:
                break
            self._encode(piece[start : cut.start()], out)
            start = cut.start()
        self._encode(piece[start:] if start else piece, out)

    def _encode(self, piece: str, out: list[int]) -> None:
        ids = self._processor.encode(utf8_of(piece), out_type=int)
        if not self._bytes:
            beyond = self._vocabulary.size
            ids = [own for token_id in ids for own in (self._unknown if token_id == beyond else (token_id,))]
        out += ids


def _check(pieces: Pieces, where: str) -> bool:
    """Whether a space mark follows another character in any piece.

    Raises TokenizerError for what the library does not bear. That no two pieces are equal, Vocabulary sees to.
    """
    vocabulary, types, scores = pieces.vocabulary, pieces.types, pieces.scores
    crossing = False
    if not np.isfinite(scores).all():
        raise TokenizerError(f"{where}: a score that is no number")
    nbytes = 0
    for first in range(0, vocabulary.size, _CHUNK):
        kinds = types[first : first + _CHUNK]
        for token_id in (first + np.flatnonzero((kinds == NORMAL) | (kinds == UNUSED))).tolist():
            data = vocabulary.bytes_of(token_id)
            nbytes += len(data)
            if len(data) > MAX_LENGTH or nbytes > MAX_NBYTES:
                raise TokenizerError(
                    f"{where}: a token of {len(data)} bytes, {nbytes} bytes so far; expected at most {MAX_LENGTH} "
                    f"and {MAX_NBYTES}"
                )
            try:
                text = data.decode()
            except UnicodeDecodeError:
                raise TokenizerError(f"{where}: piece {token_id} is no UTF-8 text: {data[:40]!r}") from None
            crossing = crossing or crosses_words(text)
            if not data:
                raise TokenizerError(f"{where}: piece {token_id} is empty, expected text")
            if pieces.algorithm == UNIGRAM and (0 in data or abs(scores[token_id]) > _MAX_SCORE):
                raise TokenizerError(
                    f"{where}: piece {token_id} is {data[:40]!r} with score {scores[token_id]:g}, expected no zero "
                    f"byte and a score within {_MAX_SCORE:g} of 0"
                )
    return crossing


def _tails(scores: np.ndarray, types: np.ndarray) -> bytes:
    """What follows the text in each piece's message."""
    tails = np.empty(len(scores), _TAIL)
    tails["score_key"], tails["type_key"] = 2 << 3 | 5, 3 << 3
    tails["score"], tails["type"] = scores, types
    return tails.tobytes()


def message(number: int, data: bytes) -> bytes:
    """A field below 16 of a protobuf message, with what is in it."""
    return b"%c%s%s" % (number << 3 | 2, _varint(len(data)), data)


def _varint(value: int) -> bytes:
    """A number as protobuf writes it."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
