"""A small model as drafter: it reads the same tokens, and its trees are built best first.

The best node that has not been looked at yet is added to the tree and computed, in groups, since several tokens cost a
drafter little more than one; its likely successors are what may be added next. Branches are forks of a sequence in the
drafter's own KV cache, and of those that were computed the one that came true is kept for the next tree.
"""

import heapq
import itertools
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pyllama.drafting.proposals import Loaded, Wanted
from pyllama.errors import BudgetError
from pyllama.generation.task import OnLayer, Task
from pyllama.generation.tree import ROOT, Tree
from pyllama.planning.drafting import GROUP, MOST_CHAIN

if TYPE_CHECKING:
    from pyllama.decoder.decoder import Decoder
    from pyllama.decoder.kv_cache import Sequence as CachedSequence

DEPTH = 16
CHAIN_LEAST = 0.4
_SUCCESSORS = 6


class _State:
    """A task's text in the drafter's cache, and the branches computed for its last tree.

    sequence  of the text
    length    tokens of the text when the tree was built
    branches  by node of that tree, sequences that end with it
    """

    def __init__(self, sequence: "CachedSequence"):
        self.sequence = sequence
        self.length = 0
        self.tree = Tree()
        self.branches: dict[int, CachedSequence] = {}

    def close_branches(self) -> None:
        for branch in self.branches.values():
            branch.close()
        self.branches = {}
        self.tree = Tree()

    def follow(self, task: Task) -> None:
        """Keep what was computed of what the answer became."""
        node, kept = ROOT, None
        for token_id in task.answer.tokens(self.length)[:-1]:  # the last one's logits are needed
            child = self.tree.child(node, token_id)
            if child is None or child not in self.branches:
                break
            node = kept = child
        if kept is not None:
            self.sequence.commit(self.branches.pop(kept))
        self.close_branches()
        if self.sequence.length >= task.answer.length:  # the last pass came to nothing
            self.sequence.truncate(self.sequence.restorable(task.answer.length - 1))


class ModelDrafter:
    """A drafter that is a model.

    name     of the model, for people
    decoder  the model, loaded; it is this drafter's from now on
    close    called once, when it is no longer used
    kept     bytes of its weights that are in memory
    power    probabilities are raised to it: copies of few bits are less sure than they are right
    """

    def __init__(
        self,
        name: str,
        decoder: "Decoder",
        close: Callable[[], None],
        *,
        kept: Callable[[], int] = lambda: 0,
        power: float = 1.0,
    ):
        self.name = name
        self.decoder = decoder
        self._close = close
        self._kept = kept
        self._power = power
        self._states: dict[Task, _State] = {}
        self._load_s: float | None = None

    @property
    def loaded(self) -> Loaded:
        return Loaded(self._kept(), self.decoder.weights.bytes_read, self._load_s or 0.0)

    def trees(self, tasks: Sequence[Task], wanted: Wanted, on_layer: OnLayer | None = None) -> list[Tree]:
        try:
            return self._trees(tasks, wanted, on_layer)
        except BudgetError:
            # Its cache is full, of texts of others who wait: what it has of them is computed again.
            self._forget_all()
            try:
                return self._trees(tasks, wanted, on_layer)
            except BudgetError:
                self._forget_all()
                return [Tree() for _ in tasks]

    def _trees(self, tasks: Sequence[Task], wanted: Wanted, on_layer: OnLayer | None) -> list[Tree]:
        reaches = {task: self._reach(task) for task in tasks}
        growing = {task: _Growing(task, wanted, reach, self._power) for task, reach in reaches.items() if reach > 0}
        self._read(list(growing.values()), on_layer)
        while True:
            group: list[tuple[_Growing, int]] = []
            share = max(1, GROUP // max(1, len(growing)))
            for tree in growing.values():
                group += [(tree, node) for node in tree.grow(1 if wanted.chain else share)]
            if not group:
                break
            self._compute(group, on_layer)
        return [growing[task].tree if task in growing else Tree() for task in tasks]

    def _reach(self, task: Task) -> int:
        """How far its context goes beyond the text."""
        return self.decoder.context_length - task.answer.length

    def _read(self, growing: "list[_Growing]", on_layer: OnLayer | None) -> None:
        """Bring the texts up to date; the successors of their last tokens."""
        for tree in growing:
            state = self._states.get(tree.task)
            if state is None:
                state = self._states[tree.task] = _State(self.decoder.new_sequence())
            state.follow(tree.task)
            tree.state = state
        left = {tree: tree.task.answer.tokens(tree.state.sequence.length) for tree in growing}
        while left:
            room, parts = self.decoder.max_pass_tokens, []
            for tree, ids in left.items():
                piece = ids[:room]
                room -= len(piece)
                if piece:
                    parts.append((tree, piece))
            wanted = [len(piece) == len(left[tree]) for tree, piece in parts]
            start = time.perf_counter()
            logits, rows = self.decoder.extend(
                [(tree.state.sequence, piece) for tree, piece in parts], [int(last) for last in wanted], on_layer
            )
            if self._load_s is None:
                self._load_s = time.perf_counter() - start
            for (tree, piece), last, row in zip(parts, wanted, rows, strict=True):
                if last:
                    tree.state.length = tree.task.answer.length
                    tree.state.tree = tree.tree
                    tree.successors(ROOT, logits[row[0]])
                    del left[tree]
                else:
                    left[tree] = left[tree][len(piece) :]

    def _compute(self, group: "list[tuple[_Growing, int]]", on_layer: OnLayer | None) -> None:
        segments = []
        for tree, node in group:
            parent = tree.tree.parents[node]
            above = tree.state.sequence if parent == ROOT else tree.state.branches[parent]
            tree.state.branches[node] = branch = above.fork()
            branch.provisional = 1
            segments.append((branch, [tree.tree.tokens[node]]))
        # Forks of one text meet in the pass as branches do, so the bits are those of a plain sequence.
        logits, rows = self.decoder.extend(segments, [1] * len(segments), on_layer)
        for (tree, node), row in zip(group, rows, strict=True):
            tree.successors(node, logits[row[0]])

    def forget(self, task: Task) -> None:
        state = self._states.pop(task, None)
        if state is not None:
            state.close_branches()
            state.sequence.close()

    def _forget_all(self) -> None:
        for task in list(self._states):
            self.forget(task)

    def close(self) -> None:
        self._forget_all()
        self._close()


class _Growing:
    """A tree in the making, at most `reach` deep. `state` is set before it grows."""

    state: _State

    def __init__(self, task: Task, wanted: Wanted, reach: int, power: float):
        self.task = task
        self.tree = Tree()
        self._wanted = wanted
        self._power = power
        self._least = max(wanted.least, CHAIN_LEAST) if wanted.chain else wanted.least
        self._beyond = max(wanted.beyond, self._least)
        self._nodes = min(wanted.nodes, MOST_CHAIN) if wanted.chain else wanted.nodes
        self._depths: list[int] = []
        self._most = min(DEPTH, reach, task.answer.most_proposed)
        self._order = itertools.count()
        # (-probability, order, parent, token id) of nodes that may be added; each at most as probable as its parent.
        self._open: list[tuple[float, int, int, int]] = []

    def successors(self, node: int, logits: "object") -> None:
        """What may follow a node that was computed, by the drafter's logits (vocab_size,)."""
        count = 1 if self._wanted.chain else _SUCCESSORS
        ids, guesses = self.task.answer.likely(logits, self.tree.path(node), count)  # type: ignore[arg-type]
        above = 1.0 if node == ROOT else self.tree.probabilities[node]
        if self._power != 1:
            guesses = guesses**self._power
            guesses /= max(1.0, guesses.sum())
        for token_id, guess in zip(ids.tolist(), guesses.tolist(), strict=True):
            if above * guess >= self._least and self.task.answer.may_follow(token_id):
                heapq.heappush(self._open, (-above * guess, next(self._order), node, token_id))

    def grow(self, count: int) -> list[int]:
        """Add nodes, best first; up to `count` of them, whose successors are wanted. None: the tree is done."""
        grown: list[int] = []
        while self._open and len(self.tree) < self._nodes and len(grown) < count:
            probability, _, parent, token_id = heapq.heappop(self._open)
            if len(self.tree) >= self._wanted.free and -probability < self._beyond:
                self._open.clear()  # the rest is less probable still
                break
            node = self.tree.add(parent, token_id, -probability)
            depth = 1 if parent == ROOT else self._depths[parent] + 1
            self._depths.append(depth)
            if depth < self._most:
                grown.append(node)
        if len(self.tree) >= self._nodes:
            return []  # nothing may be added after them
        return grown
