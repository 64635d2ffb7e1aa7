"""What is left to compute of an answer, and the moves of every loop: share out a pass, draft, run it, accept what came.

A Generation makes them for one answer, the engine for many in each pass. A drafter may propose what follows; the pass
then computes the proposals as well, as branches of the text, and the answer takes its tokens from the model's own
logits as if nobody had proposed anything: a proposal only saves the pass in which its token would have been computed.
"""

import time
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

import numpy as np

from pyllama.generation.answer import Answer, Step
from pyllama.generation.tree import ROOT, Tree

if TYPE_CHECKING:
    from pyllama.decoder.extending import Extender
    from pyllama.decoder.kv_cache import CachedSequence
    from pyllama.decoder.passes import Segment

OnLayer = Callable[[int], None]


class Branch(NamedTuple):
    """One path of a tree in a pass.

    sequence  the text and the path in the KV cache
    ids       the proposed token ids of the path
    rows      indices of its rows of logits: those after the known tokens, and one more for each proposed
    """

    sequence: "CachedSequence"
    ids: Sequence[int]
    rows: np.ndarray


class Found(NamedTuple):
    """What a pass computed for one task: logits, (rows, vocab_size), and at least one branch."""

    logits: np.ndarray
    branches: list[Branch]


class Task:
    """An answer in the making, and where its tokens lie.

    answer    prompt, tokens and text so far
    sequence  the positions in the KV cache; None while it has none
    tree      what the next pass is to compute beside what is known, or None
    proposed  nodes that passes computed for it; accepted of them became part of the answer
    """

    def __init__(self, answer: Answer, sequence: "CachedSequence | None" = None):
        self.answer = answer
        self.sequence = sequence
        self.tree: Tree | None = None
        self.proposed = 0
        self.accepted = 0

    @property
    def remaining(self) -> int:
        """Tokens that are known and not in the KV cache: 1 while it writes its answer."""
        return self.answer.length - (self.sequence.length if self.sequence else 0)

    def branch_pages(self, count: int) -> int:
        """Pages beyond the text's own that the branches of its tree take in a pass that takes `count` known tokens."""
        if not self.tree or self.sequence is None:
            return 0
        from pyllama.decoder.page_pool import POSITIONS  # loads the decoder, which is there by now

        start = self.sequence.length
        own = -(-(start + count) // POSITIONS)
        held = [-(-(start + count + len(ids)) // POSITIONS) - start // POSITIONS for ids in self.tree.branches()]
        return sum(held) - (own - start // POSITIONS)

    def accept(self, found: Found) -> Generator[Step]:
        """Take what a pass computed, a step at a time; none while part of the prompt is left.

        Follows the branches as far as they propose what the answer takes, and keeps the one that went furthest. Whoever
        wants no more of it closes the iterator: the answer is then what was taken, as if there had been no drafter.
        """
        tree, self.tree = self.tree, None
        branches, taken = found.branches, 0
        try:
            first = branches[0]
            steps = self.answer.take(found.logits[first.rows[: len(first.rows) - len(first.ids)]])
            self.proposed += len(tree or ())
            while True:
                yield from steps
                if not steps or steps[-1].finish_reason is not None:
                    return
                going = [b for b in branches if len(b.ids) > taken and b.ids[taken] == steps[-1].token_id]
                if not going:
                    return
                branches, taken = going, taken + 1
                self.accepted += 1
                row = going[0].rows[taken - 1 - len(going[0].ids)]
                steps = self.answer.take(found.logits[row : row + 1])
        finally:
            self._keep(found, branches[0], taken)

    def _keep(self, found: Found, kept: Branch, taken: int) -> None:
        """The text goes on as this branch does, with so many of its proposed tokens."""
        sequence = self.sequence
        if sequence is not None and kept.sequence is not sequence:
            sequence.commit(kept.sequence)
        for branch in found.branches:
            if branch.sequence is not sequence:
                branch.sequence.close()
        if sequence is not None and len(kept.ids) > taken:
            sequence.truncate(sequence.length - (len(kept.ids) - taken))

    def discard(self, found: Found) -> None:
        """Nobody wants what the pass computed: the branches are given back, the known tokens stay."""
        self.tree = None
        self._keep(found, found.branches[0], 0)


T = TypeVar("T", bound=Task)


def share_out(tasks: Sequence[T], max_pass_tokens: int, shared_prefill: int | None = None) -> list[tuple[T, int]]:
    """How many tokens of each task the next pass takes, in order; those that get none are left out.

    Every answer gets its next token, and what the pass has left goes to prompts, in equal shares: no more than
    shared_prefill tokens if others wait for their next one.
    """
    counts = {task: 1 for task in tasks if task.remaining == 1}
    left = max_pass_tokens - len(counts)
    if counts and shared_prefill is not None:
        left = min(left, shared_prefill)
    prompts = sorted((task for task in tasks if task.remaining > 1), key=lambda task: task.remaining)
    rows: int | None = None  # that are left for prompts that are scored, all of them together
    for index, task in enumerate(prompts):  # shortest first: what it does not need is the others'
        most, limit = task.remaining, task.answer.most_tokens
        if limit is not None:
            rows = limit if rows is None else rows
            most = min(most, rows)
        counts[task] = min(most, max(1, left // (len(prompts) - index))) if left > 0 else 0
        left -= counts[task]
        if limit is not None and rows is not None:
            rows -= counts[task]
    return [(task, counts[task]) for task in tasks if counts.get(task)]


class Room(Protocol):
    """Who has the pages of a KV cache that several texts share."""

    def spare_pages(self) -> int | None:
        """Pages that branches may take for a pass; None: no limit."""
        ...

    def make_room(self, pages: int) -> None:
        """Have so many of them free."""
        ...


class Drafting(Protocol):
    """Proposes what may follow, and watches whether that pays. One for a model, shared by all tasks.

    name          who proposes, for people
    draft_s       seconds spent on it so far
    branch_pages  pages of the KV cache that branches may take in a pass; None: no limit
    """

    draft_s: float
    branch_pages: int | None

    @property
    def name(self) -> str: ...

    def propose(self, tasks: Sequence[Task], room: int, on_layer: OnLayer | None = None) -> list[Tree]:
        """A tree for each task, `room` nodes in all at most. Any tokens will do, in any number: what is not a token
        or leads nowhere is left out.

        on_layer  called now and then, with the number of a drafter's layer; what it raises ends the proposals
        """
        ...

    def passed(self, tasks: Sequence[Task], tokens: int, seconds: float, steps: int) -> None:
        """A pass over `tokens` tokens, proposed ones included, took so long, and gave the tasks so many steps."""
        ...

    def forget(self, task: Task) -> None:
        """The task has ended."""
        ...


def draft(
    drafting: Drafting,
    parts: Sequence[tuple[Task, int]],
    max_pass_tokens: int,
    room: Room | None = None,
    on_layer: OnLayer | None = None,
) -> None:
    """Give the tasks of a pass their trees, as far as tokens and pages go.

    parts  tasks and how many of their known tokens the pass takes
    room   who has the pages; None: nobody else wants any
    """
    from pyllama.decoder.page_pool import POSITIONS

    for task, _ in parts:
        task.tree = None
    wanting = {task: count for task, count in parts if count == task.remaining and task.answer.most_proposed > 0}
    nodes = max_pass_tokens - sum(count for _, count in parts)
    if not wanting or nodes <= 0:
        return
    limits = (drafting.branch_pages, room.spare_pages() if room else None)
    spare = min((pages for pages in limits if pages is not None), default=None)
    needed = 0
    for task, proposed in zip(wanting, drafting.propose(list(wanting), nodes, on_layer), strict=True):
        task.tree = _sound(task.answer, proposed).first(nodes)
        if task.remaining > POSITIONS:  # every branch would have pages of its own for all of them
            task.tree = task.tree.best_branch()
        count = wanting[task]
        while spare is not None and task.tree and needed + task.branch_pages(count) > spare:
            # The worst node goes until there are leaves few enough; a chain costs a page now and then.
            task.tree = task.tree.first(len(task.tree) - 1)
        needed += task.branch_pages(count)
        nodes -= len(task.tree)
    if room and needed:
        room.make_room(needed)


def _sound(answer: Answer, proposed: Tree) -> Tree:
    """The tree without what cannot come: ids that are none, nodes too deep, what a guide forbids."""
    tree, numbers = Tree(), {ROOT: (ROOT, 0)}  # node of the proposal -> its node here, and its depth
    most = answer.most_proposed
    for node, (token, parent) in enumerate(zip(proposed.tokens, proposed.parents, strict=True)):
        if parent not in numbers or not answer.may_follow(token):
            continue
        at, depth = numbers[parent]
        if depth < most:
            numbers[node] = tree.add(at, token, proposed.probabilities[node]), depth + 1
    return answer.fitting(tree)


def compute(decoder: "Extender", parts: Sequence[tuple[Task, int]], on_layer: OnLayer | None = None) -> list[Found]:
    """One pass over the weights for the next tokens of each task, and its tree; for each what is to be accepted.

    parts     tasks that have a sequence, and how many of their tokens to compute; all want logits, or hidden states
    on_layer  called with the number of each layer before it runs; what it raises ends the pass
    """
    segments: list[Segment] = []
    wanted: list[int] = []
    shares: list[tuple[int, list[list[int]]]] = []  # of each task: its first segment, and its branches
    try:
        for task, count in parts:
            sequence = task.sequence
            if sequence is None:
                raise ValueError("compute: a task without a sequence")
            stop = sequence.length + count
            known = task.answer.tokens(sequence.length, stop)
            rows = task.answer.rows_wanted(sequence.length, stop)
            branches = list(task.tree.branches()) if task.tree else [[]]
            shares.append((len(segments), branches))
            # The text itself goes last: by then nobody else holds its page, and it need not be copied.
            forks = [sequence.fork() for _ in branches[1:]]
            for branch, ids in zip([*forks, sequence], [*branches[1:], branches[0]], strict=True):
                branch.provisional = len(ids)
                segments.append((branch, known + ids))
                wanted.append(rows + len(ids))
        logits, indices = decoder.extend(segments, wanted, on_layer, any(task.answer.hidden for task, _ in parts))
    except BaseException:
        own = {id(task.sequence) for task, _ in parts}
        for sequence, _ in segments:
            if id(sequence) not in own:
                sequence.close()
        raise
    found = []
    for first, branches in shares:
        last = first + len(branches) - 1
        order = [last, *range(first, last)]
        found.append(
            Found(logits, [Branch(segments[i][0], ids, indices[i]) for i, ids in zip(order, branches, strict=True)])
        )
    return found


class Passed(NamedTuple):
    """A pass over so many tokens, in seconds; what it computed, for each task. Drafting is not in its seconds."""

    found: list[Found]
    tokens: int
    seconds: float


def run_pass(
    decoder: "Extender",
    parts: Sequence[tuple[Task, int]],
    drafting: Drafting | None,
    room: Room | None = None,
    on_layer: OnLayer | None = None,
) -> Passed:
    """Draft and compute: compute(), with trees where there is a drafter. The drafting is to be told what came of it."""
    if drafting is not None:
        draft(drafting, parts, decoder.max_pass_tokens, room, on_layer)
    start = time.perf_counter()
    found = compute(decoder, parts, on_layer)
    tokens = sum(count + len(task.tree or ()) for task, count in parts)
    return Passed(found, tokens, time.perf_counter() - start)
