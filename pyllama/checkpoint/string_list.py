"""A long list of strings kept as the bytes of the file: a vocabulary costs its text and 4 bytes a word.

A list of str for the 128,000 tokens and 280,000 merges of a Llama 3 file would cost 30 MB.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np

PREFIX = 8  # the u64 length before each string, as GGUF stores them


class StringList(Sequence[str]):
    """An immutable sequence of str, decoded at each access; `raw(i)` gives the bytes.

    blob    the strings as stored, each after its u64 length
    starts  (n + 1,) uint32: where in `blob` each string's text begins; the last is len(blob) + PREFIX
    """

    __slots__ = ("_blob", "_starts")

    def __init__(self, blob: bytes, starts: np.ndarray):
        self._blob = blob
        self._starts = starts

    def __len__(self) -> int:
        return len(self._starts) - 1

    def raw(self, index: int) -> bytes:
        """The bytes of string `index`, which need not be valid UTF-8."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return self._blob[int(self._starts[index]) : int(self._starts[index + 1]) - PREFIX]

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.raw(index).decode("utf-8", "replace")

    def joined(self, first: int, stop: int) -> tuple[bytes, np.ndarray]:
        """The bytes of strings first .. stop - 1 end to end, and the bytes of each, (m,) int64; as slices are cut."""
        starts, after = self._starts[:-1][first:stop].astype(np.int64), self._starts[1:][first:stop].astype(np.int64)
        if not len(starts):
            return b"", starts
        stored = np.frombuffer(self._blob, np.uint8)[starts[0] : after[-1] - PREFIX]
        is_text = np.ones(len(stored), bool)
        is_text[((starts[1:] - PREFIX - starts[0])[:, None] + np.arange(PREFIX)).ravel()] = False
        return stored[is_text].tobytes(), after - PREFIX - starts

    def __iter__(self) -> Iterator[str]:
        blob, starts = self._blob, self._starts.tolist()
        for begin, after in itertools.pairwise(starts):
            yield blob[begin : after - PREFIX].decode("utf-8", "replace")

    def __repr__(self) -> str:
        return f"<{len(self)} strings, {len(self._blob)} bytes>"
