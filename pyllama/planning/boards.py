"""Boards, their rates and shares, and a link between them -> seconds a token of a model that they share.

A pass goes as fast as its slowest board, and talks between its steps, which comes on top: a step needs what the one
before has gathered. Measures nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pyllama.architecture import layers_of
from pyllama.checkpoint.outline import Described
from pyllama.decoder import Shape
from pyllama.decoder.page_pool import cache_nbytes
from pyllama.planning.memory import Plan, make_plan
from pyllama.planning.time import OF_DISK, OF_DRAM, Rates, pass_seconds

GATHERS = 4  # a layer: attention's output, o_proj, the gated product, down_proj
AROUND = 2  # a pass: embeddings, logits


@dataclass(frozen=True, slots=True)
class Link:
    """Between boards: seconds of a small message, 1e9 bytes a second of large ones."""

    latency_s: float
    gb_s: float
    source: str = ""


#: Two boards on a switch: 1 Gbit/s less its frames. A model, nothing measured.
GIGABIT = Link(0.0002, 0.117, "1 Gbit/s and 0.2 ms, not measured")


@dataclass(frozen=True, slots=True)
class OnBoard:
    """A board's part of a token: how its memory is spent, seconds of its rows, and what they wait for."""

    plan: Plan
    token_s: float
    bound: str


@dataclass(frozen=True, slots=True)
class Together:
    """Seconds a token, of which talk_s in gathers, and each board's own."""

    token_s: float
    talk_s: float
    boards: tuple[OnBoard, ...]


def together(
    parts: Sequence[Described],
    shapes: Sequence[Shape],
    budgets: Sequence[int],
    rates: Sequence[Rates],
    link: Link,
    **options,
) -> Together:
    """What boards with these parts of a model take for a token; options as of make_plan(). Raises BudgetError."""
    boards = []
    for part, shape, budget, rate in zip(parts, shapes, budgets, rates, strict=True):
        plan = make_plan(part, budget, shape=shape, **options)
        token_s, bound = _seconds(part, plan, shape, rate, options)
        boards.append(OnBoard(plan, token_s, bound))
    talk_s = talk_seconds(parts[0], len(parts), link)
    return Together(max(board.token_s for board in boards) + talk_s, talk_s, tuple(boards))


def _seconds(part: Described, plan: Plan, shape: Shape, rates: Rates, options: dict) -> tuple[float, str]:
    cache = cache_nbytes(shape, plan.half, options.get("kv_dtype", "f16")) if shape.kv_size else 0
    share = shape.intermediate_size / max(1, Shape.whole(part.config).intermediate_size)
    return pass_seconds(part, plan, rates, 1, plan.half, cache=cache, share=share)


def talk_seconds(model: Described, boards: int, link: Link) -> float:
    """Gathers of a token: each board sends its piece of every vector to all others; the pieces are alike in size."""
    if boards == 1:
        return 0.0
    shape, layers = Shape.whole(model.config), len(layers_of(model.config))
    floats = layers * (shape.q_size + 2 * shape.hidden_size + shape.intermediate_size) + shape.hidden_size
    nbytes = 4 * (floats + shape.vocab_size) * (boards - 1) / boards
    return (GATHERS * layers + AROUND) * link.latency_s + nbytes / (link.gb_s * 1e9)


def propose(
    nbytes: int, flop_all: float, budgets: Sequence[int], rates: Sequence[Rates], dtype_gflop_s: Sequence[float]
) -> list[float]:
    """Shares with which all boards take as long, the largest one 1.

    nbytes         of all weights that a pass needs, stored or kept, which are taken as alike
    budgets        bytes that each board has for weights
    dtype_gflop_s  of products of this model's weights, on each
    """

    def most(place: int, seconds: float) -> float:
        """Of the model that a board can do in so many seconds."""
        rate = rates[place]
        dram, disk = rate.dram_gb_s * 1e9 * OF_DRAM, rate.disk_gb_s * 1e9 * OF_DISK
        kept = min(budgets[place], seconds * dram)
        # Beyond what is kept, each byte comes from disk and crosses the bus twice.
        streamed = max(0.0, min(seconds * disk, (seconds * dram - kept) / 2)) if kept >= budgets[place] else 0.0
        return min((kept + streamed) / nbytes, seconds * dtype_gflop_s[place] * 1e9 / flop_all)

    low, high = 0.0, 1.0
    while sum(most(place, high) for place in range(len(rates))) < 1:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        if sum(most(place, middle) for place in range(len(rates))) < 1:
            low = middle
        else:
            high = middle
    found = [most(place, high) for place in range(len(rates))]
    return [max(0.01, round(share / max(found), 2)) for share in found]
