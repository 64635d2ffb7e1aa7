"""Strings of a tokenizer file to bytes, many at a time: tokens, and merges of two tokens.

Byte-level files write each byte as one printable character (GPT-2's alphabet); SentencePiece ones write text.
Both come out as one byte array and the length of each string.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from pyllama.checkpoint.string_list import StringList
from pyllama.errors import TokenizerError
from pyllama.tokenizer.merges import MergeTable
from pyllama.tokenizer.vocabulary import Spans, Vocabulary, offsets_of

MAX_TOKEN_LENGTH = 4096
MAX_MERGES = 1 << 22
CHUNK = 4096  # strings handled at once: bounds what is alive while loading


class Strings(NamedTuple):
    """Some strings, end to end.

    text     UTF-8
    lengths  (m,) int32, characters of each
    """

    text: bytes
    lengths: np.ndarray

    @classmethod
    def of(cls, strings: list[str], where: str) -> Strings:
        """Pack strings. Raises TokenizerError for what is no string, no Unicode text or too long."""
        for string in strings:
            if not isinstance(string, str):
                raise TokenizerError(f"{where}: {str(string)[:40]!r}, expected a string")
        lengths = np.fromiter(map(len, strings), np.int32, len(strings))
        _check_lengths(lengths, where)
        try:
            return cls("".join(strings).encode(), lengths)
        except UnicodeEncodeError:
            raise TokenizerError(f"{where}: a lone surrogate in a string, expected Unicode text") from None

    @classmethod
    def of_utf8(cls, text: bytes, sizes: np.ndarray, where: str) -> Strings:
        """The same from the strings' bytes, end to end, and the bytes of each; what is no UTF-8 becomes U+FFFD.

        A hundred thousand strings take a tenth of the time that they take one by one.
        """
        begins = (np.frombuffer(text, np.uint8) & 0xC0) != 0x80  # of a character
        ends = np.cumsum(sizes)
        starts = ends - sizes
        try:
            text.decode()
            whole = bool(begins[starts[sizes > 0]].all())
        except UnicodeDecodeError:
            whole = False
        if not whole:
            return cls.of([text[a:b].decode("utf-8", "replace") for a, b in zip(starts.tolist(), ends.tolist())], where)
        lengths = np.diff(offsets_of(begins)[ends], prepend=0).astype(np.int32)
        _check_lengths(lengths, where)
        return cls(text, lengths)

    def code_points(self) -> np.ndarray:
        """All characters, (n,) uint32."""
        return np.frombuffer(self.text.decode().encode("utf-32-le"), "<u4")

    def unpack(self) -> list[str]:
        """The strings again."""
        text, ends = self.text.decode(), np.cumsum(self.lengths).tolist()
        return [text[begin:end] for begin, end in zip([0, *ends], ends)]

    def halves(self, where: str) -> Strings:
        """Merges written "left right" as left, right, left, right, ... Raises TokenizerError."""
        lengths = self.lengths
        starts = np.cumsum(lengths) - lengths
        spaces = np.flatnonzero(self.code_points() == 0x20)
        if not np.array_equal(np.searchsorted(starts, spaces, "right") - 1, np.arange(len(lengths))):
            bad = next((merge for merge in self.unpack() if merge.count(" ") != 1), "")
            raise TokenizerError(f"{where}: merge {bad[:60]!r}, expected two tokens and one space")
        left = spaces - starts
        halves = np.stack([left, lengths - left - 1], axis=1).astype(np.int32)
        return Strings(self.text.replace(b" ", b""), halves.reshape(-1))


def _check_lengths(lengths: np.ndarray, where: str) -> None:
    if len(lengths) and lengths.max() > MAX_TOKEN_LENGTH:
        raise TokenizerError(f"{where}: a string of {lengths.max()} characters, expected at most {MAX_TOKEN_LENGTH}")


def packed(strings: Sequence[Any], limit: int, where: str) -> Iterator[Strings]:
    """Strings in chunks; at most `limit` of them. Those of a file stay as they lie there."""
    if len(strings) > limit:
        raise TokenizerError(f"{where}: more than {limit} strings")
    for first in range(0, len(strings), CHUNK):
        if isinstance(strings, StringList):
            yield Strings.of_utf8(*strings.joined(first, first + CHUNK), where)
        else:
            yield Strings.of([text_of(value) for value in strings[first : first + CHUNK]], where)


def text_of(value: Any) -> str:
    """A string of a file, whether it was decoded or not."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if not isinstance(value, str):
        raise TokenizerError(f"tokenizer: a token is {type(value).__name__}, expected a string")
    return value


def _byte_characters() -> list[str]:
    """GPT-2's alphabet: printable Latin-1 bytes stand for themselves, the others for U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(0x100 + others.index(byte)) for byte in range(256)]


_CHARACTER_OF = dict(enumerate(_byte_characters()))
_BYTE_OF = np.full(0x100 + 68 + 1, -1, np.int16)  # the last entry stands for all characters beyond
_BYTE_OF[list(map(ord, _CHARACTER_OF.values()))] = np.arange(256)


def in_byte_alphabet(token: bytes) -> str:
    """A token's bytes as a byte-level file writes them."""
    return token.decode("latin-1").translate(_CHARACTER_OF)


def _byte_level(codes: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bytes, and bytes of each string; a string with a character outside the alphabet has length -1."""
    mapped = _BYTE_OF[np.minimum(codes, len(_BYTE_OF) - 1)]
    if (mapped < 0).any():
        owner = np.repeat(np.arange(len(lengths)), lengths)
        outside = np.zeros(len(lengths), bool)
        outside[owner[mapped < 0]] = True
        mapped = mapped[~outside[owner]]
        lengths = np.where(outside, -1, lengths)
    return mapped.astype(np.uint8), lengths.astype(np.int64)


def _utf8(codes: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """UTF-8 bytes, and bytes of each string."""
    widths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    ends = offsets_of(widths)[np.cumsum(lengths)]
    text = codes.astype("<u4").tobytes().decode("utf-32-le").encode()
    return np.frombuffer(text, np.uint8), np.diff(ends, prepend=0)


def token_table(chunks: Iterable[Strings], *, in_byte_alphabet: bool) -> tuple[bytes, np.ndarray]:
    """What Vocabulary takes, from the tokens of a file in id order."""
    convert = _byte_level if in_byte_alphabet else _utf8
    blobs, lengths = [b""], [np.zeros(0, np.int64)]
    for chunk in chunks:
        blob, sizes = convert(chunk.code_points(), chunk.lengths)
        blobs.append(blob.tobytes())
        lengths.append(sizes)
    return b"".join(blobs), np.concatenate(lengths)


def _ids_of_merges(
    vocabulary: Vocabulary, halves: Strings, convert: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
) -> np.ndarray:
    """(3, m): left, right, and what they make; -1 for what is not in the vocabulary."""
    blob, sizes = convert(halves.code_points(), halves.lengths)
    outside = sizes < 0
    sizes = np.maximum(sizes, 0)
    starts = np.cumsum(sizes) - sizes
    spans = Spans(blob)
    found = vocabulary.find_spans(spans, starts, sizes)
    found[outside] = -1
    return np.stack([found[::2], found[1::2], vocabulary.find_spans(spans, starts[::2], sizes[::2] + sizes[1::2])])


def merge_table(
    vocabulary: Vocabulary,
    merges: Iterable[Strings],
    forbidden: frozenset[int],
    *,
    in_byte_alphabet: bool,
    where: str,
) -> MergeTable:
    """The table of merges in rank order, each looked up in a vocabulary.

    merges     left, right, left, right, ...; an even number in each chunk
    forbidden  (special) ids that no user text may make: merges that end in one are left out
    """
    parts = [np.zeros((3, 0), np.int32)]
    for chunk in merges:
        triples = _ids_of_merges(vocabulary, chunk, _byte_level if in_byte_alphabet else _utf8)
        bad = (triples < 0).any(axis=0)
        if bad.any():
            index = int(np.argmax(bad))
            merge = "".join(chunk.unpack()[2 * index : 2 * index + 2])
            raise TokenizerError(
                f"{where}: merge {sum(part.shape[1] for part in parts) + index} makes {merge[:60]!r}, which, or a part "
                "of which, is not in the vocabulary"
            )
        parts.append(triples)
    left, right, merged = np.concatenate(parts, axis=1)
    del parts
    rank = np.arange(len(left))
    if forbidden:
        keep = ~np.isin(merged, np.fromiter(forbidden, np.int32, len(forbidden)))
        left, right, merged, rank = left[keep], right[keep], merged[keep], rank[keep]
    return MergeTable(left, right, merged, rank, vocabulary.size)
