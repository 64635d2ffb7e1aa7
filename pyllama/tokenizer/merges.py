"""Byte-pair merging: a run of symbol ids into the run a merge table leaves.

The table is three flat arrays ordered by (left, right), entered through an index by left symbol: 4 bytes a field
instead of a dict entry of 150. Knows nothing of bytes or text: symbols are numbers.
"""

from __future__ import annotations

from bisect import bisect_left
from heapq import heappop, heappush

import numpy as np

from pyllama.tokenizer.vocabulary import offsets_of


class MergeTable:
    """(left, right) -> (rank, merged symbol); the lowest rank merges first, leftmost among equals.

    left, right, merged, rank  (m,) integer arrays; of two entries for one pair the later one counts
    symbols                    number of symbol ids
    """

    def __init__(self, left: np.ndarray, right: np.ndarray, merged: np.ndarray, rank: np.ndarray, symbols: int) -> None:
        keys = left.astype(np.int64) * symbols + right
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        last = np.ones(len(keys), bool)
        last[:-1] = keys[1:] != keys[:-1]
        order = order[last]
        self._starts = offsets_of(np.bincount(left[order], minlength=symbols)).astype(np.uint32).data
        self._rights = right[order].astype(np.uint32).data
        self._ranks = rank[order].astype(np.uint32).data
        self._merged = merged[order].astype(np.uint32).data

    def makes(self) -> np.ndarray:
        """Which symbols a merge results in; (symbols,) bool."""
        made = np.zeros(len(self._starts) - 1, bool)
        made[np.asarray(self._merged)] = True
        return made

    def forbid(self, symbols: frozenset[int]) -> None:
        """Drops the merges that result in one of these."""
        keep = ~np.isin(self._merged, np.fromiter(symbols, np.int64, len(symbols)))
        if keep.all():
            return
        kept = offsets_of(keep)  # entries kept before each
        self._starts = kept[np.asarray(self._starts)].astype(np.uint32).data
        self._rights, self._ranks, self._merged = (
            np.asarray(field)[keep].data for field in (self._rights, self._ranks, self._merged)
        )

    def _find(self, left: int, right: int) -> int:
        """Index of the entry for a pair, or -1."""
        stop = self._starts[left + 1]
        at = bisect_left(self._rights, right, self._starts[left], stop)
        return at if at < stop and self._rights[at] == right else -1

    def merge(self, symbols: list[int]) -> list[int]:
        """The symbols left when no pair of neighbours is in the table; O(n log n)."""
        find, ranks, merged = self._find, self._ranks, self._merged
        count = len(symbols)
        symbols = list(symbols)
        after = list(range(1, count + 1))
        before = list(range(-1, count - 1))
        entries = [-1] * count  # in the table, of each symbol with the one after it
        # One integer per candidate, rank above position, so that the heap compares machine words.
        heap: list[int] = []

        def enter(at: int) -> None:
            """What is there and what is after it are neighbours now."""
            entry = entries[at] = find(symbols[at], symbols[after[at]])
            if entry >= 0:
                heappush(heap, ranks[entry] << 32 | at)

        for at in range(count - 1):
            enter(at)
        while heap:
            candidate = heappop(heap)
            at = candidate & 0xFFFFFFFF
            entry = entries[at]
            if entry < 0 or ranks[entry] != candidate >> 32:
                continue  # one of the two symbols has merged with another since
            gone = after[at]
            symbols[at], symbols[gone] = merged[entry], -1
            entries[at] = entries[gone] = -1
            following = after[at] = after[gone]
            if following < count:
                before[following] = at
                enter(at)
            if before[at] >= 0:
                enter(before[at])
        return [symbol for symbol in symbols if symbol >= 0]
