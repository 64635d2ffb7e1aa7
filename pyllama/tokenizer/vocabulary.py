"""Token ids and their bytes, as three arrays instead of a hundred thousand Python objects.

Turns a run of token bytes into ids and ids back into bytes. Knows nothing of merges, text or special tokens.
A dict of the 128k tokens of Llama 3 costs about 20 MB; this costs 3.
"""

from __future__ import annotations

from bisect import bisect_left

import numpy as np

from pyllama.errors import TokenizerError

# Largest vocabulary read: four times that of any model of the family, and ids stay far inside 32 bits.
MAX_TOKENS = 1 << 20
_CHUNK = 2048
_BASE = 0x9E3779B97F4A7C15 | 1
_BASE_INVERSE = pow(_BASE, -1, 1 << 64)
_LENGTH_FACTOR = 0xC2B2AE3D27D4EB4F
_MASK = (1 << 64) - 1


def _powers(base: int, count: int) -> np.ndarray:
    powers = np.full(count, base, np.uint64)
    if count:
        powers[0] = 1
    return np.multiply.accumulate(powers, out=powers)  # wraps at 2**64


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """Where things of these lengths begin that lie end to end, and where the last one ends; (n + 1,) int64."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


class Spans:
    """Hashes of any spans of one byte array: sum(b[i] * B**i) mod 2**64, mixed with the length.

    blob  (n,) uint8; costs 24 bytes a byte while it lives
    """

    def __init__(self, blob: np.ndarray) -> None:
        self._down = _powers(_BASE_INVERSE, len(blob) + 1)
        self._sums = np.zeros(len(blob) + 1, np.uint64)
        np.cumsum((blob.astype(np.uint64) + np.uint64(1)) * _powers(_BASE, len(blob)), out=self._sums[1:])

    def hashes(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """(m,) uint64 for (m,) int64 first bytes and lengths."""
        hashes = (self._sums[starts + lengths] - self._sums[starts]) * self._down[starts]
        return hashes + lengths.astype(np.uint64) * np.uint64(_LENGTH_FACTOR)


def _hash_all(blob: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Hashes of spans in ascending order, a few thousand at a time: Spans of a whole vocabulary costs 20 MB."""
    hashes = np.empty(len(starts), np.uint64)
    for first in range(0, len(starts), _CHUNK):
        chunk = slice(first, first + _CHUNK)
        base, stop = starts[chunk][0], starts[chunk][-1] + lengths[chunk][-1]
        hashes[chunk] = Spans(blob[base:stop]).hashes(starts[chunk] - base, lengths[chunk])
    return hashes


def _hash_one(token: bytes) -> int:
    """The same hash of one short byte string, without NumPy's overhead."""
    total, power = len(token) * _LENGTH_FACTOR, 1
    for byte in token:
        total += (byte + 1) * power
        power = power * _BASE & _MASK
    return total & _MASK


def utf8_of(text: str) -> bytes:
    """The bytes of a text that is to become tokens. TokenizerError for a lone surrogate."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise TokenizerError(f"text holds the lone surrogate U+{code:04X}, expected Unicode text") from None


class Vocabulary:
    """Immutable two-way map between ids 0 .. size-1 and byte strings.

    blob     all tokens' bytes, in id order
    lengths  bytes of each token; -1 marks an id that has no token here (an added token may fill it)
    """

    def __init__(self, blob: bytes, lengths: np.ndarray) -> None:
        present = lengths >= 0
        sizes = np.where(present, lengths, 0).astype(np.int64)
        offsets = offsets_of(sizes)
        if offsets[-1] != len(blob):
            raise TokenizerError(f"vocabulary: {len(blob)} bytes, expected {offsets[-1]} from the token lengths")
        self.size = len(sizes)
        self._blob = blob
        ids = np.flatnonzero(present)
        hashes = _hash_all(np.frombuffer(blob, np.uint8), offsets[:-1][ids], sizes[ids])
        order = np.argsort(hashes, kind="stable")
        self._hash_array = hashes[order]
        self._id_array = ids[order].astype(np.int32)
        same = np.flatnonzero(self._hash_array[1:] == self._hash_array[:-1])
        self._offset_array = offsets.astype(np.uint32)
        self._offsets = self._offset_array.data
        self._hashes = self._hash_array.data
        self._ids = self._id_array.data
        if len(same):
            first, second = int(self._ids[same[0]]), int(self._ids[same[0] + 1])
            raise TokenizerError(f"vocabulary: ids {first} and {second} are both {self.bytes_of(first)[:40]!r}")

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes of a token; empty where the id has none."""
        return self._blob[self._offsets[token_id] : self._offsets[token_id + 1]]

    def find(self, token: bytes) -> int:
        """The id of exactly these bytes, or -1."""
        wanted = _hash_one(token)
        at = bisect_left(self._hashes, wanted)
        if at < len(self._hashes) and self._hashes[at] == wanted:
            token_id = self._ids[at]
            if self.bytes_of(token_id) == token:
                return token_id
        return -1

    def holds(self, data: bytes) -> bool:
        """Whether these bytes are anywhere in a token."""
        return data in self._blob

    def between(self, first: bytes, last: bytes) -> np.ndarray:
        """Ids of the tokens that begin with one of the bytes `first` and end with one of `last`; (m,) int64."""
        sizes = np.diff(self._offset_array.astype(np.int64))
        ids = np.flatnonzero(sizes)
        blob = np.frombuffer(self._blob, np.uint8)
        begins, ends = blob[self._offset_array[ids]], blob[self._offset_array[ids + 1] - 1]
        return ids[np.isin(begins, list(first)) & np.isin(ends, list(last))]

    def find_spans(self, spans: Spans, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Ids of many spans of one byte array, -1 where absent; (m,) int32. By 64-bit hash and length."""
        if not len(self._hash_array):
            return np.full(len(starts), -1, np.int32)
        hashes = spans.hashes(starts, lengths)
        at = np.minimum(np.searchsorted(self._hash_array, hashes), len(self._hash_array) - 1)
        ids = self._id_array[at]
        sizes = self._offset_array[ids + 1] - self._offset_array[ids]
        return np.where((self._hash_array[at] == hashes) & (sizes == lengths), ids, -1).astype(np.int32)
