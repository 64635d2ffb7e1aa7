"""Byte-pair merging: a run of symbol ids into the run a merge table leaves.

The table is three flat arrays ordered by (left, right), entered through an index by left symbol: 4 bytes a field
instead of a dict entry of 150. Knows nothing of bytes or text: symbols are numbers.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from heapq import heapify, heappop, heappush

import numpy as np

# Up to this many symbols, looking for the lowest rank again after each merge beats keeping a heap.
_SHORT = 48


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
        starts = np.zeros(symbols + 1, np.int64)
        np.cumsum(np.bincount(left[order], minlength=symbols), out=starts[1:])
        self._starts = starts.astype(np.uint32).data
        self._rights = right[order].astype(np.uint32).data
        self._ranks = rank[order].astype(np.uint32).data
        self._merged = merged[order].astype(np.uint32).data

    def __len__(self) -> int:
        return len(self._rights)

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
        kept = np.concatenate([[0], np.cumsum(keep)])  # entries kept before each
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
        if len(symbols) < 2:
            return symbols
        return self._merge_short(symbols) if len(symbols) <= _SHORT else self._merge_long(symbols)

    def _merge_short(self, symbols: list[int]) -> list[int]:
        find, ranks, merged = self._find, self._ranks, self._merged
        never = 1 << 32
        symbols = list(symbols)
        entries = [find(left, right) for left, right in itertools.pairwise(symbols)]
        order = [ranks[entry] if entry >= 0 else never for entry in entries]
        while order:
            lowest = min(order)
            if lowest == never:
                break
            at = order.index(lowest)
            symbol = symbols[at] = merged[entries[at]]
            del symbols[at + 1], entries[at], order[at]
            if at < len(order):
                entry = entries[at] = find(symbol, symbols[at + 1])
                order[at] = ranks[entry] if entry >= 0 else never
            if at:
                entry = entries[at - 1] = find(symbols[at - 1], symbol)
                order[at - 1] = ranks[entry] if entry >= 0 else never
        return symbols

    def _merge_long(self, symbols: list[int]) -> list[int]:
        find, ranks, merged = self._find, self._ranks, self._merged
        count = len(symbols)
        symbols = list(symbols)
        after = list(range(1, count + 1))
        before = list(range(-1, count - 1))
        # One integer per candidate, rank above position, so that the heap compares machine words.
        entries = [-1] * count
        heap = []
        for at in range(count - 1):
            entry = entries[at] = find(symbols[at], symbols[at + 1])
            if entry >= 0:
                heap.append(ranks[entry] << 32 | at)
        heapify(heap)
        while heap:
            candidate = heappop(heap)
            at = candidate & 0xFFFFFFFF
            entry = entries[at]
            if entry < 0 or ranks[entry] != candidate >> 32:
                continue  # one of the two symbols has merged with another since
            symbol = symbols[at] = merged[entry]
            gone = after[at]
            entries[gone] = -1
            following = after[at] = after[gone]
            symbols[gone] = -1
            if following < count:
                before[following] = at
                entry = entries[at] = find(symbol, symbols[following])
                if entry >= 0:
                    heappush(heap, ranks[entry] << 32 | at)
            else:
                entries[at] = -1
            previous = before[at]
            if previous >= 0:
                entry = entries[previous] = find(symbols[previous], symbol)
                if entry >= 0:
                    heappush(heap, ranks[entry] << 32 | previous)
        return [symbol for symbol in symbols if symbol >= 0]
