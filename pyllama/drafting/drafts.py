"""Drafts for a model: which drafter proposes how much, whether that pays, and what came of it.

Nothing here can change a text: the model's own logits decide every token. What is decided here is time.
"""

import logging
import time
from collections.abc import Callable, Sequence

from pyllama.drafting.account import Account
from pyllama.drafting.lookup import LookUp
from pyllama.drafting.pace import Pace
from pyllama.drafting.proposals import Drafter, Loaded, Wanted, merged
from pyllama.errors import BusyError, PyllamaError
from pyllama.generation.task import OnLayer, Task
from pyllama.generation.tree import Tree
from pyllama.planning.drafting import MOST_CHAIN, MOST_NODES

FIRST_NODES = 16  # before passes were measured
FIRST_CHAIN = 2
LEAST = 0.01  # no node is worth its time below this, whatever the figures say
_SMOOTH = 0.2

_log = logging.getLogger("pyllama")


class AdaptiveDrafting:
    """Proposes for all tasks of one model (the protocol is Drafting, generation/task.py).

    drafter       a model that drafts, or None: look-up alone
    streamed      whether the model's weights are read in every pass: then trees, else chains
    waited        seconds that passes have waited for the disk so far
    on_drop       called when the drafter has been given up and closed: its memory is free
    most_nodes    proposed for a pass in all, at most
    without       the share of what a pass reads that it would read if the drafter's memory held weights
    branch_pages  pages of the KV cache that branches may take in a pass; None: no limit

    proposed, accepted, passes   nodes, tokens, and passes with proposals, since the start
    draft_s                      seconds spent on drafting
    given_up                     name of a drafter that did not pay or failed, or None
    """

    def __init__(
        self,
        drafter: Drafter | None,
        *,
        streamed: Callable[[], bool],
        waited: Callable[[], float] = lambda: 0.0,
        on_drop: Callable[[], None] | None = None,
        branch_pages: int | None = None,
        most_nodes: int = MOST_NODES,
        without: float = 1.0,
    ):
        self.drafter = drafter
        self.branch_pages = branch_pages
        self.most_nodes = most_nodes
        self._without = without
        self.proposed = self.accepted = self.passes = 0
        self.draft_s = 0.0
        self.given_up: str | None = None
        self._gone = Loaded()  # of that one
        self._streamed, self._waited = streamed, waited
        self._on_drop = on_drop
        self._lookup = LookUp()
        self._pace = Pace()
        self._accounts: dict[int, Account] = {}
        self._asked: list[Drafter] = []  # for the pass that comes
        self._draft_s = 0.0  # of it
        self._nodes = 0
        self._chain = FIRST_CHAIN  # nodes of one, where nothing is streamed
        self._before: dict[Task, tuple[int, int]] = {}
        self._waited_s = 0.0
        self._passes = 0
        self._draft_node_s: float | None = None
        self._token_s: float | None = None

    @property
    def name(self) -> str:
        """Who proposes, for people."""
        return self.drafter.name if self.drafter else self._lookup.name

    @property
    def loaded(self) -> Loaded:
        """What the drafter takes, or took until it was given up."""
        return self.drafter.loaded if self.drafter else self._gone

    @property
    def _drafters(self) -> list[Drafter]:
        return [self.drafter, self._lookup] if self.drafter else [self._lookup]

    # --- before a pass ---

    def propose(self, tasks: Sequence[Task], room: int, on_layer: OnLayer | None = None) -> list[Tree]:
        self._asked, self._draft_s, self._nodes = [], 0.0, 0
        self._before = {task: (task.proposed, task.accepted) for task in tasks}
        trees = [Tree() for _ in tasks]
        wanted = self._wanted(len(tasks), room)
        start = time.perf_counter()
        if wanted is None:
            if self.drafter is not None and not self._passes:
                # What it reads, its weights and the prompt, comes with what the model reads, and in no token's time.
                self._trees(self.drafter, tasks, Wanted(1, chain=True), on_layer)
                self.draft_s += time.perf_counter() - start
            return trees
        for drafter in self._drafters:
            if not self._account(drafter).open:
                continue
            more = self._trees(drafter, tasks, wanted, on_layer)
            if any(more) or drafter is self.drafter:  # a model's time is spent also where it knows nothing
                self._asked.append(drafter)
                trees = [self._better(one, other, wanted) for one, other in zip(trees, more, strict=True)]
        trees = _shared_out(trees, room)
        self._nodes = sum(map(len, trees))
        self._draft_s = time.perf_counter() - start
        self.draft_s += self._draft_s
        return trees

    def _wanted(self, tasks: int, room: int) -> Wanted | None:
        streamed, base_s = self._streamed(), self._pace.base_s()
        if not streamed and base_s is None:
            return None  # what drafting is compared with must be known first
        free = min(self.most_nodes, self._pace.free() if self._passes > 1 else FIRST_NODES)
        token_s = self._token_s or base_s or 0.0
        draft_s = self._draft_node_s or 0.0

        def worth(cost: float) -> float:
            return min(0.9, max(LEAST, cost / token_s)) if token_s else LEAST

        each = max(1, min(self.most_nodes, room) // tasks)
        if streamed:
            return Wanted(
                each, least=worth(draft_s), free=max(1, free // tasks), beyond=worth(draft_s + self._pace.node_s)
            )
        return Wanted(min(each, self._chain), chain=True, least=worth(draft_s + self._pace.node_s))

    def _trees(self, drafter: Drafter, tasks: Sequence[Task], wanted: Wanted, on_layer: OnLayer | None) -> list[Tree]:
        try:
            return drafter.trees(tasks, wanted, on_layer)
        except BusyError:
            raise
        except PyllamaError as error:
            _log.warning("draft: %s is given up: %s", drafter.name, error)
            self._give_up(drafter)
            return [Tree() for _ in tasks]

    @staticmethod
    def _better(one: Tree, other: Tree, wanted: Wanted) -> Tree:
        if not one or not other:
            return one or other
        if wanted.chain:
            return max(one, other, key=lambda tree: sum(tree.probabilities))
        return merged(one, other, wanted.nodes)

    # --- after it ---

    def passed(self, tasks: Sequence[Task], tokens: int, seconds: float, steps: int) -> None:
        self._passes += 1
        waited_s, self._waited_s = self._waited() - self._waited_s, self._waited()
        if self._passes > 1:  # the first one reads, and packs, what stays
            self._pace.passed(tokens, seconds, waited_s)
        before, self._before = self._before, {}
        drafted = came_true = 0
        for task, (proposed, accepted) in before.items():
            drafted += task.proposed - proposed
            came_true += task.accepted - accepted
        self.proposed += drafted
        self.accepted += came_true
        if drafted:  # a chain is as long as the last ones were right
            self._chain = min(MOST_CHAIN, 2 * self._chain) if came_true == drafted else max(1, came_true // len(before))
        self.passes += bool(drafted)
        if before and steps:
            self._token_s = _smooth(self._token_s, (seconds + self._draft_s) * len(before) / steps)
        if self._nodes:
            self._draft_node_s = _smooth(self._draft_node_s, self._draft_s / self._nodes)
        if self._passes > 1:
            self._book(seconds + self._draft_s, steps / max(1, len(before)))

    def _book(self, seconds: float, passes: float) -> None:
        for drafter in self._drafters:
            account = self._account(drafter)
            if drafter in self._asked[:1]:  # the first one is whose time it was
                share = self._without if drafter is self.drafter else 1.0
                account.book(seconds, passes, self._pace.base_s(share), self._streamed())
            elif drafter not in self._asked:
                account.skipped()
            if account.hopeless and drafter is self.drafter:
                _log.info("draft: %s does not pay here and is given up", drafter.name)
                self._give_up(drafter)
        self._asked = []

    def _account(self, drafter: Drafter) -> Account:
        return self._accounts.setdefault(id(drafter), Account())

    def _give_up(self, drafter: Drafter) -> None:
        if drafter is not self.drafter:
            return
        self.drafter, self.given_up = None, drafter.name
        self._gone = drafter.loaded
        drafter.close()
        if self._on_drop:
            self._on_drop()

    def forget(self, task: Task) -> None:
        for drafter in self._drafters:
            drafter.forget(task)

    def close(self) -> None:
        for drafter in self._drafters:
            drafter.close()


def _shared_out(trees: list[Tree], room: int) -> list[Tree]:
    """So many nodes in all: the first of each, which are the best."""
    if sum(map(len, trees)) <= room:
        return trees
    each = room // len(trees)
    return [tree.first(each) for tree in trees]


def _smooth(mean: float | None, value: float) -> float:
    return value if mean is None else mean + _SMOOTH * (value - mean)
