"""A plan and a machine's rates -> predicted seconds. The model behind it, and what it leaves out, is in docs/plan.md.

Three things bound a pass over the weights: the disk, the memory, the arithmetic. They overlap, so the slowest
decides. Measures nothing.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pyllama import _kernels
from pyllama.architecture.tensors import HEAD, flop
from pyllama.checkpoint.dtypes import PLAIN, row_nbytes
from pyllama.checkpoint.index import NOWHERE, StoredBlock, Tensor
from pyllama.checkpoint.outline import Described, Outline
from pyllama.decoder import Shape
from pyllama.decoder.page_pool import cache_nbytes
from pyllama.errors import BudgetError
from pyllama.planning.memory import Plan, make_plan
from pyllama.streaming.blocks import matrices
from pyllama.streaming.pinned import packed_nbytes

#: What streaming reaches of the rate of plain direct reads, and a product of one token of the rate memory is read at.
OF_DISK = 0.95
OF_DRAM = 0.85
#: Share of the experts that are not in memory which guesses bring in time: about half of them are foreseen, and half of
#: these find the disk idle for long enough.
GUESSED = 0.25
PROMPTS = (64, 512)
_BLOCK = 4 << 20  # bytes of a packed block, about


@dataclass(frozen=True, slots=True)
class Rates:
    """What a machine can do; 1e9 a second each. source tells, for each, measured on what or taken from where."""

    disk_gb_s: float
    dram_gb_s: float
    gflop_s: float
    pack_gb_s: float  # bfloat16 into 12 bits, when weights come to stay
    source: dict[str, str] = dataclasses.field(default_factory=dict)
    quantized_gflop_s: float | None = None  # products of quantized weights, as whole numbers; None: as gflop_s

    def times(self, boards: float) -> "Rates":
        """Of so many machines like this one."""
        quantized = self.quantized_gflop_s
        return dataclasses.replace(
            self,
            disk_gb_s=boards * self.disk_gb_s,
            dram_gb_s=boards * self.dram_gb_s,
            gflop_s=boards * self.gflop_s,
            pack_gb_s=boards * self.pack_gb_s,
            quantized_gflop_s=None if quantized is None else boards * quantized,
        )


def _board(
    name: str, disk: str, disk_gb_s: float, dram_gb_s: float, gflop_s: float, pack_gb_s: float, quantized: float
) -> Rates:
    """A board as the design reckons with it: a model of one, nothing measured here."""
    figure = f"the design's figure for a {name}, not measured"
    source = {"disk": f"{disk}, {figure}", "dram": figure, "compute": figure}
    return Rates(disk_gb_s, dram_gb_s, gflop_s, pack_gb_s, source, quantized * gflop_s)


#: GFLOP/s are about half of cores * clock * operations a cycle: what float32 products of 64 tokens get. The last figure
#: is how those of quantized weights compare: as the counted instructions do (docs/arm.md, six tokens), 0.55 of BF16 to
#: 0.32 of Q4_K with SDOT; without it, 0.50, but multiplied in one pipe of a Cortex-A72 where float32 has two.
BOARDS = {
    "pi5": _board("Raspberry Pi 5", "NVMe Gen3 x1", 0.85, 10.5, 75, 2, 1.7),
    "pi4": _board("Raspberry Pi 4", "USB3 SSD", 0.35, 4.4, 25, 1, 0.6),
    "rk3588": _board("board with RK3588", "NVMe Gen3 x4", 2.6, 20, 80, 2.5, 1.7),
    "orion-o6": _board("Orion O6", "NVMe Gen4 x4", 5, 39, 160, 5, 1.7),
}
DISKS = (("SD card", 0.09), ("USB3 SSD", 0.40), ("NVMe Gen2 x1", 0.45), ("NVMe Gen3 x1", 0.85))


@dataclass(frozen=True, slots=True)
class HitRate:
    """Seconds a token where so many of the experts it goes to are in memory; name: why that many."""

    name: str
    hits: float
    token_s: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds; `bound` names what decides each: "disk", "memory", "compute" or "packing".

    token_s     a token, with the context half full; of a mixture, where tokens go to all experts alike
    first_s     the first pass, of one token: all weights come from disk
    prompt_s    tokens of a prompt -> seconds, once the weights that stay are there
    """

    token_s: float
    first_s: float
    prompt_s: dict[int, float]
    bound: dict[str, str]
    by_hit_rate: tuple[HitRate, ...] = ()


#: Hit rates that are asked "what if" of a mixture that is not all in memory.
HIT_RATES = (0.5, 0.8, 0.95)


def forecast(
    model: Described, plan: Plan, rates: Rates, *, kv_dtype: str = "f16", counted: float | None = None
) -> Forecast:
    """What a pass, and the passes of a prompt, take at least.

    counted  share of what tokens were routed to so far that the pool's experts, those chosen most, would have hit
    """
    half = plan.half
    cache = cache_nbytes(Shape.whole(model.config), half, kv_dtype)
    token = pass_seconds(model, plan, rates, 1, half, cache=cache)
    first = _first_pass(model, plan, rates)
    prompts, bounds = {}, {"token": token[1], "first": first[1]}
    for tokens in PROMPTS:
        seconds = 0.0
        done = 0
        while done < tokens:
            count = min(plan.max_pass_tokens, tokens - done)
            cost, bound = pass_seconds(model, plan, rates, count, done + count // 2)
            seconds, done = seconds + cost, done + count
            bounds[f"prompt_{tokens}"] = bound
        prompts[tokens] = seconds
    cases = [("uniform routing", plan.experts_share)] if plan.experts_stored else []
    if plan.experts_share < 1:
        cases += [("as counted so far", counted)] if counted is not None else []
        cases += [(f"{rate:.0%} of them here", rate) for rate in HIT_RATES if rate > plan.experts_share]
    hit_rates = []
    for name, hits in cases:
        token_s, _ = pass_seconds(model, plan, rates, 1, half, cache=cache, hits=hits)
        hit_rates.append(HitRate(name, hits, token_s))
    return Forecast(token[0], first[0], prompts, bounds, tuple(hit_rates))


class Demand(NamedTuple):
    """Bytes of the experts that a pass goes to, each once, and of those of them that are not in memory."""

    needed: float
    missed: float


def demand(
    model: Described, plan: Plan, tokens: int, *, hits: float | None = None, counts: np.ndarray | None = None
) -> Demand:
    """What a pass of so many tokens is expected to need: a tree of proposed tokens goes to more experts than one token.

    hits    share of them that is in memory; None: as many as the pool holds
    counts  how often each expert was chosen so far, (layers, experts): a token goes to expert e of a layer with the
            chance p(e) that they tell, so a pass needs it with 1 - (1 - p(e))^tokens, and the pool holds those chosen
            most. None: to all alike
    """
    if not plan.experts_stored:
        return Demand(0.0, 0.0)
    shape = Shape.whole(model.config)
    if counts is None or not counts.sum():
        needed = plan.experts_stored * (1 - (1 - shape.chosen / shape.experts) ** tokens)
        return Demand(needed, needed * (1 - (plan.experts_share if hits is None else hits)))
    chances = np.minimum(shape.chosen * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), 1.0)
    wanted = 1 - (1 - chances) ** tokens
    here = np.zeros(counts.size, bool)
    if plan.experts_share:
        here[np.argsort(-counts.ravel(), kind="stable")[: plan.expert_slots]] = True
    each = plan.experts_stored / counts.size
    needed = each * float(wanted.sum())
    return Demand(needed, each * float(wanted.ravel()[~here].sum()) if hits is None else needed * (1 - hits))


def pass_seconds(
    model: Described,
    plan: Plan,
    rates: Rates,
    tokens: int,
    positions: int,
    *,
    cache: int = 0,
    read: int | None = None,
    rows: int = 1,
    hits: float | None = None,
    counts: np.ndarray | None = None,
    share: float = 1.0,
) -> tuple[float, str]:
    """Seconds of a pass, and what bounds it: "disk", "memory" or "compute".

    tokens     computed in it
    positions  that each of them sees
    cache      bytes of keys and values that are read
    read       bytes from disk; None: what the plan streams
    rows       tokens whose logits are wanted
    hits       share of a mixture's experts that are in memory; None: as many as the pool holds
    counts     as of demand()
    share      of the model's operations that is done here; the plan is of the part that is here
    """
    experts, missed = demand(model, plan, tokens, hits=hits, counts=counts)
    of_all = plan.streamed if read is None else read
    from_disk = of_all + missed
    dram = rates.dram_gb_s * 1e9 * OF_DRAM
    reading = from_disk / (rates.disk_gb_s * 1e9 * OF_DISK)
    times = {
        "disk": reading,
        # What comes from disk crosses the memory bus twice: once in, once to the cores.
        "memory": (plan.pinned + experts - missed + 2 * from_disk + cache) / dram,
        "compute": share * flop(model.config, tokens, positions, rows) / (gflop_s(model, rates) * 1e9),
    }
    if missed and read is None:
        from pyllama.streaming.experts import GUESSING  # which most models have no use for

        # Which experts a layer needs is known once what stands before them is computed: the disk waits for that, but
        # for what guesses give it to read; and for the head, after which the next token is known, it has not even
        # these. And where most layers lack nothing, their products wait in turn for the few that do: in such a layer
        # only its own experts that are here are computed meanwhile.
        shape = Shape.whole(model.config)
        guessing = plan.expert_slots >= GUESSING * shape.chosen
        kept = plan.pinned / dram
        head = kept * _head_share(model)
        idle = head + max(0.0, kept - head - guessing * GUESSED * reading)
        lacking = 1 - (1 - missed / experts) ** (experts / plan.experts_stored * shape.experts)  # share of the layers
        waiting = max(0.0, (1 - GUESSED) * reading - lacking * (experts - missed) / dram)
        times["disk"] = max(reading + idle, kept + (experts + cache) / dram + waiting)
    bound = max(times, key=lambda name: times[name])
    return times[bound], bound


def _head_share(model: Described) -> float:
    """Of the bytes that every pass needs, the head's."""
    nbytes = {name: tensor.nbytes for name, tensor in matrices(model)}
    return nbytes.get(HEAD, 0) / max(1, sum(nbytes.values()))


def gflop_s(model: Described, rates: Rates) -> float:
    """Of products of this model's weights: by the share of them that is quantized."""
    if rates.quantized_gflop_s is None:
        return rates.gflop_s
    weights = {True: 0, False: 0}
    for tensor in model.tensors.values():
        if len(tensor.shape) > 1:
            weights[tensor.dtype not in PLAIN] += math.prod(tensor.shape)
    share = weights[True] / max(1, sum(weights.values()))
    return 1 / (share / rates.quantized_gflop_s + (1 - share) / rates.gflop_s)


def _first_pass(model: Described, plan: Plan, rates: Rates) -> tuple[float, str]:
    """A pass of one token that reads everything and packs, between products, what stays and can be packed."""
    seconds, bound = pass_seconds(model, plan, rates, 1, 1, read=plan.stored, hits=0.0)
    share = plan.pinned / plan.weights
    packing = share * sum(t.nbytes for _, t in matrices(model) if _packs(t)) / (rates.pack_gb_s * 1e9)
    computing = packing + plan.stored / (rates.dram_gb_s * 1e9 * OF_DRAM)
    return (computing, "packing") if computing > seconds else (seconds, bound)


@dataclass(frozen=True, slots=True)
class WhatIf:
    """Seconds a token by budget, for each disk; None where a budget is too small."""

    budgets: tuple[int, ...]
    disks: tuple[tuple[str, float], ...]  # name, GB/s
    token_s: tuple[tuple[float | None, ...], ...]  # (disk, budget)


def enough(model: Described, **options) -> int:
    """The budget from which on nothing is read after the first pass."""
    plan = make_plan(model, 1 << 50, **options)
    return plan.besides + plan.weights


def what_if(model: Described, budget: int, rates: Rates, **options) -> WhatIf:
    """More memory (twice, four times, all) and other disks; options as of make_plan()."""
    most = enough(model, **options)
    budgets = tuple(b for b in (budget, 2 * budget, 4 * budget) if b < most or b == budget)
    budgets += (most,) if most > budgets[0] else ()
    disks = (("this disk", rates.disk_gb_s), *DISKS)
    plans: list[Plan | None] = []
    for amount in budgets:
        try:
            plans.append(make_plan(model, amount, **options))
        except BudgetError:
            plans.append(None)
    kv_dtype = options.get("kv_dtype", "f16")
    rows = []
    for _, disk_gb_s in disks:
        faster = dataclasses.replace(rates, disk_gb_s=disk_gb_s)
        rows.append(tuple(None if p is None else forecast(model, p, faster, kv_dtype=kv_dtype).token_s for p in plans))
    return WhatIf(budgets, disks, tuple(rows))


def packed(model: Described) -> Outline | None:
    """The same model as `pyllama pack` would write it, about: bfloat16 matrices in 12 bits and a thousandth.

    None where there is nothing to pack.
    """
    tensors = {
        name: tensor._replace(parts=(), blocks=_packed_blocks(tensor)) if _packs(tensor) else tensor
        for name, tensor in model.tensors.items()
    }
    if not any(_packs(tensor) for tensor in model.tensors.values()):
        return None
    return Outline(NOWHERE, "huggingface", model.config, tensors)


def _packs(tensor: Tensor) -> bool:
    return tensor.dtype == "BF16" and len(tensor.shape) == 2 and not tensor.blocks


def _packed_blocks(tensor: Tensor) -> tuple[StoredBlock, ...]:
    panel = _kernels.PANEL
    step = max(1, _BLOCK // (panel * row_nbytes("BF16", tensor.cols) * 3 // 4)) * panel
    blocks = []
    for row in range(0, tensor.rows, step):
        rows = min(step, tensor.rows - row)
        nbytes = packed_nbytes(rows, tensor.cols)
        blocks.append(StoredBlock(NOWHERE, 0, nbytes, row, rows, "packed", 0))
    return tuple(blocks)
