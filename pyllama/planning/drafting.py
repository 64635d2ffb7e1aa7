"""A drafter weighed: its bytes against weights that could stay, its seconds against passes that are saved.

While weights stream, a pass has time for more tokens than one. A drafter proposes them, as a tree or a chain, and a
pass verifies all. How many of them become text is borrowed from what was measured on one pair of models
(TOKENS_A_PASS); everything else follows from the models' headers and a machine's rates. Loads nothing.

Sources of the ideas: Y. Leviathan et al., "Fast inference from transformers via speculative decoding", 2023, for the
chain; X. Miao et al., "SpecInfer", 2024, for the tree.
"""

import itertools
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pyllama.checkpoint.outline import Described
from pyllama.decoder import Shape
from pyllama.decoder.page_pool import POSITIONS, cache_nbytes
from pyllama.decoder.state_pool import journal_nbytes
from pyllama.planning.memory import Plan, make_plan
from pyllama.planning.time import OF_DISK, Rates, pass_seconds

#: Nodes of a tree at most, and tokens of a chain where nothing is streamed.
MOST_NODES = 64
MOST_CHAIN = 8
#: Nodes of a tree whose successors a drafter looks for in one pass of its own.
GROUP = 6
#: Tokens of a drafter's longest pass: it reads prompts, too.
DRAFTER_PASS_TOKENS = 128
_NODES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_UNLIMITED = 1 << 50  # bytes


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Tokens that a pass gives, the model's own included, by tokens proposed: (proposed, tokens), rising.

    chain  one path
    tree   best first, at most 16 deep
    """

    chain: tuple[tuple[int, float], ...]
    tree: tuple[tuple[int, float], ...]

    def tokens(self, shape: str, nodes: int) -> float:
        """With so many nodes; between the figures a straight line over the logarithm, beyond the last no more."""
        points = ((0, 1.0), *(self.tree if shape == "tree" else self.chain))
        for (low, fewer), (high, more) in itertools.pairwise(points):
            if nodes <= high:
                share = math.log2((1 + nodes) / (1 + low)) / math.log2((1 + high) / (1 + low))
                return fewer + share * (more - fewer)
        return points[-1][1]


_LOOKUP = ((8, 1.1),)
#: By kind of drafter: Qwen2.5-Coder-1.5B drafted by the 0.5B, by a copy of itself in 3.44 bits (importance-weighted,
#: its tree by probabilities raised to 1.5) and by look-up; 12 chat prompts of different kinds, greedy (docs/plan.md). A
#: tree has nodes only where they are worth their time: where 64 were allowed, the sibling's had 25 in the mean and the
#: copy's 10, and both gave 7.9 tokens. The small trees and the chains are of a fixed size.
TOKENS_A_PASS = {
    "sibling": Acceptance(
        chain=((1, 1.8), (4, 3.2), (8, 4.0), (16, 4.5)), tree=((1, 1.8), (4, 3.2), (16, 5.7), (32, 6.8), (64, 7.9))
    ),
    "copy": Acceptance(
        chain=((1, 1.92), (4, 4.2), (8, 6.2), (16, 8.5)), tree=((1, 1.92), (4, 4.2), (16, 7.7), (32, 7.8), (64, 7.9))
    ),
    "lookup": Acceptance(chain=_LOOKUP, tree=_LOOKUP),
}
SOURCE = "borrowed: measured on Qwen2.5-Coder-1.5B and 0.5B, greedy, 12 prompts of different kinds; other models differ"


@dataclass(frozen=True, slots=True)
class Candidate:
    """What might draft.

    kind   "sibling", "copy" or "lookup"
    name   for people
    model  its headers; None for look-up
    path   of its files; None for look-up, and for a copy that was not made
    """

    kind: str
    name: str
    model: Described | None = None
    path: Path | None = None

    @property
    def here(self) -> bool:
        return self.path is not None or self.model is None


LOOK_UP = Candidate("lookup", "look-up")


@dataclass(frozen=True, slots=True)
class DrafterForecast:
    """Seconds, and the tokens among which they are divided.

    token_s        a token of the text, on average
    pass_s         the model's pass over the text's last token and all nodes; `bound` names what decides it
    draft_s        the drafter's passes for one tree or chain
    tokens_a_pass  of the text
    load_s         reading the drafter's weights, once
    """

    token_s: float
    pass_s: float
    draft_s: float
    tokens_a_pass: float
    bound: str
    load_s: float = 0.0


@dataclass(frozen=True, slots=True)
class DrafterPlan:
    """A drafter with all that is decided for it.

    shape     "tree", or "chain" where nothing is streamed
    nodes     tokens proposed for a pass
    plan      of the model: plan.drafter and plan.branches are this drafter's
    division  of plan.drafter; None for look-up, which takes nothing
    forecast  with it
    off_s     seconds a token without
    """

    drafter: Candidate
    shape: str
    nodes: int
    plan: Plan
    division: Plan | None
    forecast: DrafterForecast
    off_s: float

    @property
    def streamed_without(self) -> int:
        """Bytes that a pass reads where weights have the drafter's memory."""
        plan = self.plan
        return replace(plan, pinned=min(plan.weights, plan.pinned + plan.drafter)).streamed

    @property
    def pays(self) -> bool:
        return self.forecast.token_s < self.off_s


def kind_of(model: Described, drafter: Described) -> str:
    """ "copy" of a drafter with the model's own layers, "sibling" of any other."""
    ours, theirs = (Shape.whole(of.config)._replace(vocab_size=0) for of in (model, drafter))
    return "copy" if ours == theirs else "sibling"


def drafter_division(
    drafter: Described, *, context_length: int, kv_dtype: str = "f16", contexts: int = 1, nodes: int = MOST_NODES
) -> Plan:
    """How a drafter divides what it takes: all its weights stay, or it would be of no use.

    Its `budget` is what it takes in all: Plan.drafter of the model it drafts for. Each node that it looks beyond has a
    page of its own, and of a group of them the logits are kept.
    """
    config = drafter.config
    shape = Shape.whole(config)
    options: dict[str, Any] = {
        "context_length": min(context_length, config.max_position_embeddings),
        "kv_dtype": kv_dtype,
        "contexts": contexts,
        "interpreter": 0,
        "max_pass_tokens": DRAFTER_PASS_TOKENS,
        "branches": nodes * cache_nbytes(shape, 1, kv_dtype)
        + (GROUP - 1) * 4 * config.vocab_size
        + journal_nbytes(shape, 2 * nodes),
    }
    roomy = make_plan(drafter, _UNLIMITED, **options)
    return replace(roomy, budget=roomy.besides + roomy.weights)


def leaves(nodes: int) -> int:
    """Of a tree of so many nodes, about: 5 of 16, 9 of 32; 16 at most."""
    return min(16, nodes, nodes // 4 + 1)


def branch_pages(shape: str, nodes: int) -> int:
    """Pages that branches have of their own: the text's last one again, and half of them another."""
    paths = leaves(nodes) if shape == "tree" else 1
    return paths + paths // 2


def branches_nbytes(model: Described, shape: str, nodes: int, kv_dtype: str = "f16") -> int:
    """What proposed tokens take of a model's memory: pages of branches, and rows of logits beyond the text's one."""
    whole = Shape.whole(model.config)
    pages = branch_pages(shape, nodes) * cache_nbytes(whole, POSITIONS, kv_dtype)
    # Those of a pass are noted while those of the one before are walked again.
    return pages + 4 * whole.vocab_size * nodes + journal_nbytes(whole, 2 * nodes)


def free_tokens(model: Described, plan: Plan, rates: Rates) -> int:
    """Tokens that a pass computes, logits and all, while the disk reads what it needs: T_free; 0 if nothing is read."""
    disk_s, bound = pass_seconds(model, plan, rates, 0, plan.half, rows=0)
    if not plan.streamed or bound != "disk":
        return 0
    computing = replace(rates, disk_gb_s=math.inf, dram_gb_s=math.inf)
    one_s, _ = pass_seconds(model, plan, computing, 1, plan.half)
    return int(disk_s / one_s)


def forecast_drafted(
    model: Described,
    plan: Plan,
    rates: Rates,
    drafter: Candidate,
    *,
    shape: str,
    nodes: int,
    division: Plan | None = None,
    kv_dtype: str = "f16",
    tokens_a_pass: float | None = None,
    counts: np.ndarray | None = None,
    drafter_rates: Rates | None = None,
) -> DrafterForecast:
    """What a token takes where each pass verifies so many nodes; tokens_a_pass in place of the borrowed rate.

    counts         of a mixture's experts, as of time.demand()
    drafter_rates  of the machine with the drafter, where several have the model
    """
    own_rates = drafter_rates or rates
    half = plan.half
    cache = cache_nbytes(Shape.whole(model.config), half, kv_dtype)
    pass_s, bound = pass_seconds(model, plan, rates, 1 + nodes, half, cache=cache, rows=1 + nodes, counts=counts)
    draft_s = load_s = 0.0
    if drafter.model is not None and division is not None:
        own = cache_nbytes(Shape.whole(drafter.model.config), half, kv_dtype)
        load_s = division.stored / (own_rates.disk_gb_s * 1e9 * OF_DISK)
        # One pass reads what became text, and tells what may follow; then node after node of a chain, or by groups.
        group, more = (GROUP, nodes // GROUP) if shape == "tree" else (1, max(0, nodes - 1))
        for passes, count in ((1, 2), (more, group)):
            seconds, _ = pass_seconds(drafter.model, division, own_rates, count, half, cache=own, rows=count)
            draft_s += passes * seconds
    tokens = TOKENS_A_PASS[drafter.kind].tokens(shape, nodes) if tokens_a_pass is None else tokens_a_pass
    return DrafterForecast((pass_s + draft_s) / tokens, pass_s, draft_s, tokens, bound, load_s)


def drafter_plan(
    model: Described,
    drafter: Candidate,
    budget: int,
    rates: Rates,
    *,
    least_nodes: int = 1,
    counts: np.ndarray | None = None,
    drafter_rates: Rates | None = None,
    **options: Any,
) -> DrafterPlan:
    """The best that a drafter can do for a model within a budget; whether that pays is the result's to say.

    least_nodes    of a tree, for which there is to be room even if the disk seems to leave no time for them
    counts         how often each of a mixture's experts was chosen so far; None: all alike
    drafter_rates  of the machine with the drafter, where several have the model
    options        as of make_plan(); context_length among them

    A tree has as many nodes as the disk leaves time for, or fewer where their branches take more than they give; where
    nothing is streamed, a chain. Raises BudgetError where model and drafter do not fit together.
    """
    kv_dtype = options.get("kv_dtype", "f16")
    without = make_plan(model, budget, **options)
    own_cache = cache_nbytes(Shape.whole(model.config), without.half, kv_dtype)
    off_s, _ = pass_seconds(model, without, rates, 1, without.half, cache=own_cache, counts=counts)

    def divided(nodes: int) -> Plan | None:
        if drafter.model is None:
            return None
        of_model = {name: options[name] for name in ("context_length", "kv_dtype", "contexts") if name in options}
        return drafter_division(drafter.model, nodes=nodes, **of_model)

    def reserved(shape: str, nodes: int) -> dict[str, Any]:
        division = divided(nodes)
        branches = branches_nbytes(model, shape, nodes, kv_dtype)
        return {"drafter": division.budget if division else 0, "branches": branches}

    def predicted(plan: Plan, nodes: int) -> DrafterForecast:
        return forecast_drafted(
            model,
            plan,
            rates,
            drafter,
            shape=shape,
            nodes=nodes,
            division=divided(nodes),
            kv_dtype=kv_dtype,
            counts=counts,
            drafter_rates=drafter_rates,
        )

    least = make_plan(model, budget, **reserved("chain", 1), **options)
    shape = "tree" if least.streamed else "chain"
    most = min(MOST_NODES, free_tokens(model, least, rates) - 1) if shape == "tree" else MOST_CHAIN
    fewest = max(1, least_nodes) if shape == "tree" else 1
    most = min(max(fewest, most), least.max_pass_tokens - 1)  # none in the tightest of budgets, whose passes are of one
    best_s, best = math.inf, min(1, most)
    for nodes in sorted({most, *(n for n in _NODES if fewest <= n < most)}):
        more = reserved(shape, nodes)
        left = budget - replace(least, **more).besides
        if (
            left >= 0
            and (token_s := predicted(replace(least, pinned=min(least.weights, left)), nodes).token_s) < best_s
        ):
            best_s, best = token_s, nodes
    plan = make_plan(model, budget, **reserved(shape, best), **options)
    return DrafterPlan(drafter, shape, best, plan, divided(best), predicted(plan, best), off_s)
