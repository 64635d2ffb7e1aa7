"""What every drafter is: a source of trees."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pyllama.generation.task import OnLayer, Task
from pyllama.generation.tree import ROOT, Tree


@dataclass(frozen=True, slots=True)
class Wanted:
    """How much to propose.

    nodes       of a task's tree, at most
    chain       whether it is to be one path: the most probable token of each place
    least       guess at a node's probability below which it is not worth its time
    free        nodes that a pass computes in no more time: those beyond are worth theirs from `beyond` on
    """

    nodes: int
    chain: bool = False
    least: float = 0.0
    free: int = 0
    beyond: float = 0.0


@dataclass(frozen=True, slots=True)
class Loaded:
    """What having a drafter takes.

    nbytes      of its weights, which stay in memory
    bytes_read  from its files
    load_s      seconds of its first pass, which reads them: a part of the seconds spent on drafting
    """

    nbytes: int = 0
    bytes_read: int = 0
    load_s: float = 0.0


class Drafter(Protocol):
    """Proposes what may follow texts.

    name    for people
    loaded  what having it takes so far
    """

    name: str

    @property
    def loaded(self) -> Loaded: ...

    def trees(self, tasks: Sequence[Task], wanted: Wanted, on_layer: OnLayer | None = None) -> list[Tree]:
        """A tree for each task; an empty one where nothing comes to mind."""
        ...

    def forget(self, task: Task) -> None: ...

    def close(self) -> None: ...


def merged(first: Tree, second: Tree, nodes: int) -> Tree:
    """Both trees as one, the most probable nodes of them."""
    ways: dict[tuple[int, ...], float] = {}
    for tree in (first, second):
        for node, probability in enumerate(tree.probabilities):
            way = tuple(tree.path(node))
            ways[way] = max(probability, ways.get(way, 0.0))
    # A node is never more probable than the one above it, and shorter ways go first where they are equally so.
    out = Tree()
    numbers: dict[tuple[int, ...], int] = {(): ROOT}
    for way in sorted(ways, key=lambda way: (-ways[way], len(way))):
        if way[:-1] in numbers and len(out) < nodes:
            numbers[way] = out.add(numbers[way[:-1]], way[-1], ways[way])
    return out
