"""Strings of a tokenizer file to bytes, many at a time: tokens, and merges of two tokens.

Byte-level files write each byte as one printable character (GPT-2's alphabet); SentencePiece ones write text.
Both come out as one byte array and the length of each string.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np

from pyllama.errors import TokenizerError
from pyllama.tokenizer.merges import MergeTable
from pyllama.tokenizer.vocabulary import MAX_TOKENS, Spans, Vocabulary

MAX_TOKEN_LENGTH = 4096
MAX_MERGES = 1 << 22
_CHUNK = 32768  # strings handled at once: bounds the Python objects alive while loading


def _byte_characters() -> list[str]:
    """GPT-2's alphabet: printable Latin-1 bytes stand for themselves, the others for U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    characters = [""] * 256
    for byte in printable:
        characters[byte] = chr(byte)
    others = [byte for byte in range(256) if not characters[byte]]
    for index, byte in enumerate(others):
        characters[byte] = chr(0x100 + index)
    return characters


BYTE_CHARACTERS = _byte_characters()
_BYTE_OF = np.full(0x100 + 68 + 1, -1, np.int16)  # the last entry stands for all characters beyond
for _byte, _character in enumerate(BYTE_CHARACTERS):
    _BYTE_OF[ord(_character)] = _byte


def _code_points(strings: Sequence[str], where: str) -> tuple[np.ndarray, np.ndarray]:
    """All characters (n,) uint32 and characters of each string (m,) int64."""
    for string in strings:
        if not isinstance(string, str):
            raise TokenizerError(f"{where}: {type(string).__name__} {str(string)[:40]!r}, expected a string")
    lengths = np.fromiter(map(len, strings), np.int64, len(strings))
    if len(lengths) and lengths.max() > MAX_TOKEN_LENGTH:
        raise TokenizerError(
            f"{where}: a string of {lengths.max()} characters, expected at most {MAX_TOKEN_LENGTH}"
        )
    return np.frombuffer("".join(strings).encode("utf-32-le", "surrogatepass"), "<u4"), lengths


def _utf8(strings: Sequence[str], where: str) -> tuple[np.ndarray, np.ndarray]:
    _code_points(strings, where)
    try:
        encoded = [string.encode() for string in strings]
    except UnicodeEncodeError:
        raise TokenizerError(f"{where}: a lone surrogate in a string, expected Unicode text") from None
    return np.frombuffer(b"".join(encoded), np.uint8), np.fromiter(map(len, encoded), np.int64, len(encoded))


def byte_level(strings: Sequence[str], where: str) -> tuple[np.ndarray, np.ndarray]:
    """Bytes and lengths of strings in the byte alphabet; a string with any other character has length -1."""
    codes, lengths = _code_points(strings, where)
    mapped = _BYTE_OF[np.minimum(codes, len(_BYTE_OF) - 1)]
    if (mapped < 0).any():
        owner = np.repeat(np.arange(len(lengths)), lengths)
        outside = np.zeros(len(lengths), bool)
        outside[owner[mapped < 0]] = True
        mapped = mapped[~outside[owner]]
        lengths[outside] = -1
    return mapped.astype(np.uint8), lengths


def text(strings: Sequence[str], where: str) -> tuple[np.ndarray, np.ndarray]:
    """UTF-8 bytes and lengths."""
    return _utf8(strings, where)


def _chunks(strings: Iterable[str], limit: int, where: str) -> Iterator[list[str]]:
    iterator, count = iter(strings), 0
    while chunk := list(islice(iterator, _CHUNK)):
        count += len(chunk)
        if count > limit:
            raise TokenizerError(f"{where}: more than {limit} strings")
        yield chunk


def read_tokens(strings: Iterable[str], *, in_byte_alphabet: bool, where: str) -> tuple[bytes, np.ndarray]:
    """What Vocabulary takes, from the strings of a file in id order."""
    blobs, lengths = [b""], [np.zeros(0, np.int64)]
    convert = byte_level if in_byte_alphabet else text
    for chunk in _chunks(strings, MAX_TOKENS, where):
        blob, sizes = convert(chunk, where)
        blobs.append(blob.tobytes())
        lengths.append(sizes)
    return b"".join(blobs), np.concatenate(lengths)


class MergeReader:
    """Collects merges "left right" in rank order, each looked up in a vocabulary, into a MergeTable."""

    def __init__(self, vocabulary: Vocabulary, *, in_byte_alphabet: bool, where: str) -> None:
        self._vocabulary, self._bytes_level, self._where = vocabulary, in_byte_alphabet, where
        self._parts: list[np.ndarray] = []
        self._count = 0

    def add_all(self, merges: Iterable[str]) -> None:
        """Strings of two tokens with one space between."""
        for chunk in _chunks(merges, MAX_MERGES, self._where):
            codes, lengths = _code_points(chunk, self._where)
            starts = np.cumsum(lengths) - lengths
            at = np.flatnonzero(codes == 0x20)
            owner = np.searchsorted(starts, at, "right") - 1
            if len(at) != len(chunk) or not np.array_equal(owner, np.arange(len(chunk))):
                bad = next(merge for merge in chunk if merge.count(" ") != 1)
                raise TokenizerError(f"{self._where}: merge {bad[:60]!r}, expected two tokens and one space")
            self._add([string for merge in chunk for string in merge.split(" ")])

    def add_pairs(self, halves: list[str]) -> None:
        """left, right, left, right, ..."""
        self._add(halves)

    def _add(self, halves: list[str]) -> None:
        convert = byte_level if self._bytes_level else text
        blob, lengths = convert(halves, self._where)
        if len(halves) // 2 + self._count > MAX_MERGES:
            raise TokenizerError(f"{self._where}: more than {MAX_MERGES} merges")
        if (lengths < 0).any():
            self._unknown(halves, int(np.argmax(lengths < 0)) // 2)
        starts = np.cumsum(lengths) - lengths
        spans = Spans(blob)
        found = self._vocabulary.find_spans(spans, starts, lengths)
        merged = self._vocabulary.find_spans(spans, starts[::2], lengths[::2] + lengths[1::2])
        triples = np.stack([found[::2], found[1::2], merged])  # (3, m)
        if (triples < 0).any():
            self._unknown(halves, int(np.argmax((triples < 0).any(axis=0))))
        self._parts.append(triples)
        self._count += len(halves) // 2

    def _unknown(self, halves: list[str], index: int) -> None:
        left, right = halves[2 * index : 2 * index + 2]
        for token in (left, right, left + right):
            convert = byte_level if self._bytes_level else text
            blob, lengths = convert([token], self._where)
            if lengths[0] < 0 or self._vocabulary.find(blob.tobytes()) < 0:
                break
        raise TokenizerError(
            f"{self._where}: merge {self._count + index} names {token[:40]!r}, which is not in the vocabulary"
        )

    def table(self, forbidden: set[int]) -> MergeTable:
        """The table, without the merges that end in a forbidden (special) id: user text must never make one."""
        left, right, merged = np.concatenate([np.zeros((3, 0), np.int32), *self._parts], axis=1)
        rank = np.arange(len(left))
        if forbidden:
            keep = ~np.isin(merged, np.fromiter(forbidden, np.int32, len(forbidden)))
            left, right, merged, rank = left[keep], right[keep], merged[keep], rank[keep]
        return MergeTable(left, right, merged, rank, self._vocabulary.size)
