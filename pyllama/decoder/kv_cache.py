"""Whose positions lie in which pages: sequences that grow, shrink, branch and share one pool.

A sequence costs memory as it grows, and truncation drops whole pages. Sequences that begin with the same tokens may
hold the same pages: of each it is known how many hold it, and one that is held twice is copied before a position is
written into it. Copies are noted, for the next pass to make (or for read() and write(), which need them): pages are
numbers here, and their memory may lie elsewhere as well. Knows nothing of tokens or weights.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from pyllama.closing import Closing
from pyllama.decoder.page_pool import POSITIONS
from pyllama.decoder.states import History, Numbers, States
from pyllama.errors import ContextOverflowError, RequestError

#: Positions between states that are kept of a long prompt.
SPARSE = 32 * POSITIONS


class Memory(Protocol):
    """Of pages or states, by their numbers: here (PagePool, StatePool), or with ranks (cluster/front.py)."""

    def read(self, number: int, /) -> np.ndarray: ...

    def write(self, number: int, data: np.ndarray, /) -> None: ...


class Pages(Memory, Protocol):
    dtype: str
    page_nbytes: int

    def copy(self, source: int, target: int) -> None: ...


class Slots(Memory, Protocol):
    slot_nbytes: int


class KVCache:
    """Who holds which pages of a pool.

    pool            their memory
    context_length  positions a sequence can hold at most
    dtype           "f16" or "f32"
    page_nbytes     bytes of a page
    pages           who holds which: one held by several must not be written. What is in one that was taken does not
                    matter, since positions that were not written weigh 0. Pages given back are reused, not freed
    states          who holds which states, in a model with layers that carry one from token to token; else None
    state_pool      their memory, or None
    """

    def __init__(self, pool: Pages, context_length: int, state_pool: Slots | None = None):
        self.pool = pool
        self.state_pool = state_pool
        self.states = States() if state_pool else None
        self.context_length = context_length
        self.dtype = pool.dtype
        self.page_nbytes = pool.page_nbytes
        self.pages = Numbers("pages", "kv cache")
        self._copies: list[tuple[int, int]] = []

    def limit(self, pages: int, states: int | None = None) -> None:
        """There are to be no more pages from now on, nor states where layers carry one."""
        self.pages.limit = pages
        if self.states is not None:
            self.states.slots.limit = states

    def keep_states(self, enough: int) -> None:
        """States beyond so many are not kept for texts to come."""
        if self.states is not None:
            self.states.slots.enough = enough

    def reclaim_states(self, reclaim: Callable[[], bool]) -> None:
        """Ask there for a state when none is left; False: it has none to give."""
        if self.states is not None:
            self.states.slots.reclaim = reclaim

    def new_sequence(self) -> "CachedSequence":
        return CachedSequence(self)

    def copy(self, source: int, target: int) -> None:
        """Let `target` hold what `source` holds now, by the time either is read or written."""
        self._copies.append((source, target))

    def take_copies(self) -> list[tuple[int, int]]:
        """The copies to be made, in order, (source, target) each; whoever takes them makes them."""
        copies, self._copies = self._copies, []
        return copies

    def read(self, page: int) -> np.ndarray:
        """The bytes of a page, (page_nbytes,) uint8, between passes; not the caller's to keep."""
        self._make_copies()
        return self.pool.read(page)

    def write(self, page: int, data: np.ndarray) -> None:
        """Have a page hold what read() gave, of this one or another."""
        self._make_copies()
        self.pool.write(page, data)

    def _make_copies(self) -> None:
        for source, target in self.take_copies():
            self.pool.copy(source, target)


class _Text:
    """Positions that forks have in common: who holds the same one and is as long has the same text."""

    __slots__ = ("length",)

    def __init__(self, length: int):
        self.length = length


class CachedSequence(Closing):
    """The positions of one text. `length` of them are filled; `table` (1, max_pages) int32 has the pages' numbers.

    history      its state, in a model with layers that carry one; else None
    provisional  how many of the last tokens of its next pass may be taken back: truncate() then goes back to any of
                 them, whatever the model
    """

    def __init__(self, cache: KVCache):
        self._cache = cache
        self._pages: list[int] = []
        self._text: _Text | None = None
        self.history = History(cache.states) if cache.states else None
        self.provisional = 0
        self.length = 0
        self.table = np.full((1, max(1, -(-cache.context_length // POSITIONS))), -1, np.int32)

    @property
    def pages(self) -> Sequence[int]:
        """The pages of its positions, in order. Whoever keeps one counts itself among its holders."""
        return self._pages

    @property
    def text(self) -> object | None:
        """The same object for forks of the same text, until one of them grows, and again when it shrinks back."""
        return self._text if self._text is not None and self._text.length == self.length else None

    def adopt(self, pages: Sequence[int], length: int, state: int | None = None) -> None:
        """Begin with the first `length` positions of these pages, held together with whoever holds them.

        state  the slot with the state of these positions, in a model whose layers carry one
        """
        if self.history is not None and length and state is None:
            raise RequestError(f"adopt: {length} positions without their state")
        if self._pages or not 0 <= length <= len(pages) * POSITIONS:
            raise RequestError(f"adopt: {length} positions of {len(pages)} pages, by a sequence of {self.length}")
        self._adopt(pages, length)
        if self.history is not None and length:
            self.history.begin(length, state)

    def _adopt(self, pages: Sequence[int], length: int) -> None:
        for page in pages[: -(-length // POSITIONS)]:
            self._cache.pages.hold(page)
            self._append(page)
        self.length = length

    def _another(self) -> "CachedSequence":
        """An empty sequence of the same kind."""
        return CachedSequence(self._cache)

    def fork(self) -> "CachedSequence":
        """Another sequence of the same text, from which either may go on its own way.

        They hold the same pages. The one that is written is copied then, so a branch costs a page; forks that go on
        with the same tokens in one pass have these computed once.
        """
        branch = self._another()
        branch._adopt(self._pages, self.length)
        if branch.history is not None and self.history is not None:
            branch.history.fork_of(self.history)
        if self.text is None:
            self._text = _Text(self.length)
        branch._text = self._text
        return branch

    def commit(self, branch: "CachedSequence") -> None:
        """Become the branch: its positions are this sequence's, whose own are given back; the branch is empty then."""
        if branch is self or branch._cache is not self._cache:
            raise RequestError("commit: expected a branch of this sequence")
        if self.history is not None and branch.history is not None:
            self.history.become(branch.history)
        self._drop(0)
        self._pages, branch._pages = branch._pages, []
        self._text, branch._text = branch._text, None
        self.table, branch.table = branch.table, self.table
        self.length, branch.length = branch.length, 0

    def restorable(self, length: int) -> int:
        """The most positions up to so many that truncate() can leave: all of them, unless layers carry a state."""
        length = min(length, self.length)
        return length if self.history is None else self.history.restorable(length)

    def mark(self, length: int, exactly: bool = False, common: int = 0) -> None:
        """Keep states on the way to a prompt's end, where layers carry one and there is room.

        That of its last whole page and, sparsely, of those before; exactly: that before its last token as well.

        common  tokens that other texts began with as well

        A text that goes on from one of them need not be computed anew.
        """
        if self.history is None:
            return
        end = (length - 1) // POSITIONS * POSITIONS
        marks = {end, common // POSITIONS * POSITIONS, *range(SPARSE, end, SPARSE), *([length - 1] if exactly else [])}
        self.history.marks = {mark for mark in marks if mark > self.length}

    def take_states(self) -> dict[int, int]:
        """Position -> slot, of the states there are of this text; to be given back. None where layers carry none."""
        return self.history.take_kept() if self.history is not None else {}

    def give_states_back(self, states: dict[int, int]) -> None:
        if self._cache.states is not None:
            for slot in states.values():
                self._cache.states.slots.give_back(slot)

    def pages_needed(self, length: int) -> int:
        """Pages that reserve(length) would take."""
        grown = max(0, -(-length // POSITIONS) - len(self._pages))
        return grown + (length > self.length and self._writes_into_shared_page())

    def _writes_into_shared_page(self) -> bool:
        at = self.length // POSITIONS
        return at < len(self._pages) and self._cache.pages.holders(self._pages[at]) > 1

    def _append(self, page: int) -> None:
        self.table[0, len(self._pages)] = page
        self._pages.append(page)

    def reserve(self, length: int) -> None:
        """Have pages for `length` positions. Raises ContextOverflowError beyond the context.

        Cost: the copy of a page, if the next position lies in one that others hold too.
        """
        if length > self._cache.context_length:
            raise ContextOverflowError(
                f"context: {length} positions asked for, {self._cache.context_length} held; "
                "load the model with a larger context_length or shorten the text"
            )
        if length > self.length and self._writes_into_shared_page():
            at = self.length // POSITIONS
            shared, page = self._pages[at], self._cache.pages.take()
            self._cache.copy(shared, page)
            self._pages[at] = page
            self.table[0, at] = page
            self._cache.pages.give_back(shared)
        while len(self._pages) * POSITIONS < length:
            self._append(self._cache.pages.take())

    def truncate(self, length: int) -> None:
        """Forget the positions from `length` on. Raises RequestError where restorable() has another length."""
        if not 0 <= length <= self.length:
            raise RequestError(f"truncate: got {length}, expected 0 to {self.length}")
        if self.history is not None:
            self.history.truncate(length)
        self._drop(length)

    def _drop(self, length: int) -> None:
        self.length = length
        if self._text is not None and length < self._text.length:
            self._text = None
        self.release_unused()

    def release_unused(self) -> None:
        """Give back pages beyond `length`, as after a pass that failed."""
        self.provisional = 0
        if self.history is not None:
            self.history.undo()
        while (len(self._pages) - 1) * POSITIONS >= self.length and self._pages:
            self._cache.pages.give_back(self._pages.pop())
            self.table[0, len(self._pages)] = -1

    def advance(self, count: int) -> None:
        """A pass over so many of its tokens was made."""
        self.length += count
        self.provisional = 0
        if self.history is not None:
            self.history.advance()

    def close(self) -> None:
        """Give all pages back; the sequence is empty then and may be used anew."""
        self.truncate(0)
        if self.history is not None:
            self.history.clear()
