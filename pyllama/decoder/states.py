"""Which state is whose, in layers that carry one from token to token; what may be taken back; what a pass has to walk.

The state after a token is a slot's: it cannot be cut back as keys and values are. So of tokens that may be taken back
(a drafter's), a row of a journal each keeps what the state depends on: what the layers' matrices made of the token, not
what became of the state. The next pass walks those that were taken again, from the state before them, which costs their
convolutions and updates and no product, and gives the bits of one pass over all of them. Branches of a text have the
state before them in common, and a row for each node.

A pass never writes into the slot it reads: one that fails has changed nothing. Numbers only, as in kv_cache.py.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pyllama.errors import BudgetError, RequestError


class Numbers:
    """Things that are held by their numbers, by several at a time perhaps, and free again when nobody does.

    of, what  in words: whose they are, what they are
    limit    there are to be at most so many, or None
    enough   what is more than that, nobody needs to keep; None: the limit
    reclaim  asked for one when none is left; False: it has none to give
    """

    def __init__(self, what: str, of: str = "states") -> None:
        self._what, self._of = what, of
        self._holders: list[int] = []
        self._free: list[int] = []
        self.limit: int | None = None
        self.enough: int | None = None
        self.reclaim: Callable[[], bool] = lambda: False

    def __len__(self) -> int:
        """Those there are, held or free."""
        return len(self._holders)

    @property
    def used(self) -> int:
        return len(self._holders) - len(self._free)

    @property
    def spare(self) -> int | None:
        """How many may be taken besides what a pass needs; None: no limit."""
        most = self.limit if self.enough is None else self.enough
        return None if most is None else most - self.used

    def take(self) -> int:
        """One that nobody holds; its taker does. Raises BudgetError where there is none."""
        while not self._free and self.limit is not None and len(self._holders) >= self.limit:
            if not self.reclaim():
                raise BudgetError(f"{self._of}: all of the {self.limit} {self._what} are in use")
        if self._free:
            number = self._free.pop()
        else:
            number = len(self._holders)
            self._holders.append(0)
        self._holders[number] = 1
        return number

    def hold(self, number: int) -> None:
        self._holders[number] += 1

    def give_back(self, number: int) -> None:
        self._holders[number] -= 1
        if not self._holders[number]:
            self._free.append(number)

    def holders(self, number: int) -> int:
        return self._holders[number]


class States:
    """The slots and the journal's rows of a model's texts."""

    def __init__(self) -> None:
        self.slots = Numbers("states of texts")
        self.rows = Numbers("tokens that may be taken back")


@dataclass(slots=True)
class _Next:
    """What a history becomes if the pass under way succeeds; all of it held."""

    at: int
    slot: int | None
    pending: list[int]
    kept: dict[int, int]


class History:
    """The state of one text.

    at       positions that the state in `slot` is of; None is the state of none
    pending  rows of the journal, of the positions after it
    kept     position -> slot, of states from before
    same     positions that it has in common with the one it was forked from
    marks    positions whose states are to be kept when a pass comes by, if there is room
    """

    def __init__(self, states: States):
        self._states = states
        self.at = 0
        self.slot: int | None = None
        self.pending: list[int] = []
        self.kept: dict[int, int] = {}
        self.same = 0
        self.marks: set[int] = set()
        self._next: _Next | None = None

    @property
    def length(self) -> int:
        return self.at + len(self.pending)

    def begin(self, length: int, slot: int | None) -> None:
        """Of an empty one: become the state of so many positions that is in this slot, held by others as well."""
        if slot is not None:
            self._states.slots.hold(slot)
        self.at, self.slot = length, slot

    def fork_of(self, other: "History") -> None:
        """Of an empty one: become another's, of the same text."""
        self.begin(other.at, other.slot)
        for row in other.pending:
            self._states.rows.hold(row)
        self.pending = list(other.pending)
        self.same = other.length

    def become(self, branch: "History") -> None:
        """Take over a branch's, which is empty then."""
        kept, self.kept = self.kept, {}
        self.clear()
        for position, slot in kept.items():
            if position <= branch.same and position not in branch.kept:
                branch.kept[position] = slot
            else:
                self._states.slots.give_back(slot)
        self.at, self.slot, self.pending, self.kept = branch.at, branch.slot, branch.pending, branch.kept
        branch.at, branch.slot, branch.pending, branch.kept = 0, None, [], {}

    def restorable(self, length: int) -> int:
        """The most positions up to so many that truncate() can leave."""
        if length >= self.at:
            return min(length, self.length)
        return max((position for position in self.kept if position <= length), default=0)

    def truncate(self, length: int) -> None:
        """Forget the positions from `length` on. Raises RequestError where no state of that position is kept."""
        if self.restorable(length) != length:
            raise RequestError(
                f"truncate: got {length}, expected a position whose state is kept, such as {self.restorable(length)}"
            )
        self.same = min(self.same, length)
        while length < self.length and self.pending:
            self._states.rows.give_back(self.pending.pop())
        if length < self.at:
            if self.slot is not None:
                self._states.slots.give_back(self.slot)
            self.at, self.slot = length, self.kept.get(length)
            if self.slot is not None:
                self._states.slots.hold(self.slot)
        for position in [position for position in self.kept if position > length]:
            self._states.slots.give_back(self.kept.pop(position))

    def clear(self) -> None:
        """The state of no position."""
        self.undo()
        self.truncate(0)
        for position in list(self.kept):
            self._states.slots.give_back(self.kept.pop(position))

    def keep(self, position: int, slot: int) -> None:
        """Keep a state of the text, held by the caller until now."""
        if position in self.kept:
            self._states.slots.give_back(slot)
        else:
            self.kept[position] = slot

    def drop_oldest(self) -> None:
        """Keep one state less."""
        if self.kept:
            self._states.slots.give_back(self.kept.pop(min(self.kept)))

    def take_kept(self) -> dict[int, int]:
        """What is kept, the state itself included: position -> slot; each to be given back by the caller."""
        kept, self.kept = self.kept, {}
        if self.slot is not None and self.at not in kept:
            self._states.slots.hold(self.slot)
            kept[self.at] = self.slot
        return kept

    # --- a pass ---

    def plan(self, at: int, slot: int | None, pending: list[int]) -> None:
        """What it becomes if the pass succeeds; all of it held for it."""
        self._next = _Next(at, slot, pending, {})

    def will_keep(self, position: int, slot: int) -> None:
        """Besides, if the pass succeeds, it keeps this state."""
        if self._next is not None:
            self._next.kept[position] = slot

    def undo(self) -> None:
        """The pass failed, or there was none."""
        planned, self._next = self._next, None
        if planned is not None:
            self._give_back(planned.slot, planned.pending)
            for slot in planned.kept.values():
                self._states.slots.give_back(slot)

    def advance(self) -> None:
        """The pass succeeded."""
        planned, self._next = self._next, None
        if planned is not None:
            self._give_back(self.slot, self.pending)
            self.at, self.slot, self.pending = planned.at, planned.slot, planned.pending
            self.marks = {mark for mark in self.marks if mark > self.at}
            for position, slot in planned.kept.items():
                self.keep(position, slot)

    def _give_back(self, slot: int | None, rows: Iterable[int]) -> None:
        if slot is not None:
            self._states.slots.give_back(slot)
        for row in rows:
            self._states.rows.give_back(row)


@dataclass(frozen=True, slots=True, eq=False)
class StateSteps:
    """What layers with a state do in a pass: integers only, as the pass is.

    gathered      (G,) int32, rows of the journal that are walked again: they come after the pass's T tokens
    sources       (S,) int32, the slot with the state before each text's first step; -1: the state of no position
    starts        (S + 1,) int32, where each text's steps begin
    steps         (N,) int32, tokens of the pass and, from T on, gathered rows
    store_starts  (S + 1,) int32, where each text's stores begin
    stores        (M, 2) int32, the step after which the state goes into a slot
    journal       (J, 2) int32, a token and the row that keeps what its state depends on
    slot_count    slots that there must be, and row_count rows: whoever runs the pass adds what is missing
    """

    gathered: np.ndarray
    sources: np.ndarray
    starts: np.ndarray
    steps: np.ndarray
    store_starts: np.ndarray
    stores: np.ndarray
    journal: np.ndarray
    slot_count: int
    row_count: int


def steps_of(states: States, texts: Iterable[tuple[History, Sequence[int], int]], tokens: int) -> StateSteps:
    """The steps of a pass of so many tokens, and what each history becomes.

    texts  (history, the numbers of its tokens in the pass, how many of the last of these may be taken back)

    Raises BudgetError where there is no slot left; then no history has changed.
    """
    walks = _Walks(states, tokens)
    texts = list(texts)
    try:
        for history, path, provisional in texts:
            walks.add(history, path, len(path) - min(provisional, len(path)))
        for text, (history, path, provisional) in enumerate(texts):  # last: these are luxuries
            walks.mark(text, history, len(path) - min(provisional, len(path)))
    except BaseException:
        for history, _, _ in texts:
            history.undo()
        raise
    return walks.steps([history.slot for history, _, _ in texts])


class _Walks:
    """The steps of a pass in the making."""

    def __init__(self, states: States, tokens: int):
        self._states, self._tokens = states, tokens
        self._gathered: dict[int, int] = {}  # a row of the journal and its place behind the pass's tokens
        self._stored: dict[int, int] = {}  # a token after which the state is in this slot
        self._noted: dict[int, int] = {}  # a token and its row
        self._walks: list[list[int]] = []
        self._stores: list[list[tuple[int, int]]] = []  # (step of the walk, slot)

    def add(self, history: History, path: Sequence[int], sure: int) -> None:
        rows = self._states.rows
        before = [self._gathered.setdefault(row, self._tokens + len(self._gathered)) for row in history.pending]
        self._walks.append([*before, *path])
        self._stores.append([])
        pending: list[int] = []
        history.plan(history.at, None, pending)
        if sure:
            slot = self._slot_after(len(self._walks) - 1, len(before) + sure - 1)
            history.plan(history.length + sure, slot, pending)
        else:
            if history.slot is not None:
                self._states.slots.hold(history.slot)
            history.plan(history.at, history.slot, pending)
            for row in history.pending:
                rows.hold(row)
                pending.append(row)
        for token in path[sure:]:
            if token in self._noted:
                rows.hold(self._noted[token])
            else:
                self._noted[token] = rows.take()
            pending.append(self._noted[token])

    def mark(self, text: int, history: History, sure: int) -> None:
        """Have the states of a history's marks kept that lie on the way, if there is room."""
        for mark in sorted(history.marks):
            if history.length < mark <= history.length + sure and mark not in history.kept and self._room(history):
                step = len(history.pending) + mark - history.length - 1
                history.will_keep(mark, self._slot_after(text, step))

    def _room(self, history: History) -> bool:
        """Whether there is a slot for one more state from before: the oldest of them goes for a new one."""
        slots = self._states.slots
        if slots.spare is not None and slots.spare < 1 and not slots.reclaim():
            history.drop_oldest()
        return slots.spare is None or slots.spare > 0

    def _slot_after(self, text: int, step: int) -> int:
        """A slot for the state after a step, held for whoever asks."""
        slots, token = self._states.slots, self._walks[text][step]
        if token in self._stored:  # a branch of the same text has it as well
            slots.hold(self._stored[token])
        else:
            self._stored[token] = slots.take()
            self._stores[text].append((step, self._stored[token]))
        return self._stored[token]

    def steps(self, sources: list[int | None]) -> StateSteps:
        starts = np.cumsum([0, *map(len, self._walks)])
        placed = [(int(start) + step, slot) for start, of in zip(starts, self._stores) for step, slot in sorted(of)]
        return StateSteps(
            gathered=np.array(list(self._gathered), np.int32),
            sources=np.array([-1 if slot is None else slot for slot in sources], np.int32),
            starts=starts.astype(np.int32),
            steps=np.array([step for walk in self._walks for step in walk], np.int32),
            store_starts=np.cumsum([0, *map(len, self._stores)]).astype(np.int32),
            stores=np.array(placed, np.int32).reshape(-1, 2),
            journal=np.array(list(self._noted.items()), np.int32).reshape(-1, 2),
            slot_count=len(self._states.slots),
            row_count=len(self._states.rows),
        )
