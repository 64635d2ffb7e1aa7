"""What `pyllama plan` says of drafting: who might draft for a model, what each would change, and which is taken."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyllama.drafting import AUTO, LOOKUP, OFF, SELF
from pyllama.errors import BudgetError, UnsupportedError

if TYPE_CHECKING:
    from pyllama.checkpoint import Checkpoint
    from pyllama.checkpoint.outline import Outline
    from pyllama.planning.drafting import Candidate, DrafterPlan
    from pyllama.planning.time import Rates

    Opener = Callable[[str], "Checkpoint | Outline"]

SIBLINGS = 3  # shown at most


def candidates(asked: str, model: "Checkpoint | Outline", tokenizer: Any, opened: "Opener") -> "list[Candidate]":
    """Those that --draft means.

    asked      auto, self, lookup, off or a model
    tokenizer  of the model, or None
    opened     opens a model by its name, or what is known of one that is not here

    Raises UnsupportedError for a drafter with another vocabulary.
    """
    from pyllama.planning.drafting import LOOK_UP

    if asked == OFF:
        return []
    if asked == LOOKUP:
        return [LOOK_UP]
    if asked == SELF:
        copy = _copy(model)
        if copy is None:
            raise UnsupportedError(f"draft: {model.path} has no GGUF form, so no copy of it can be made")
        return [copy]
    if asked == AUTO:
        copy = _copy(model)
        return [*_siblings(model, tokenizer), *([copy] if copy else []), LOOK_UP]
    return [_named(asked, model, tokenizer, opened)]


def _named(name: str, model: "Checkpoint | Outline", tokenizer: Any, opened: "Opener") -> "Candidate":
    from pyllama.drafting.vocabularies import check_same
    from pyllama.planning.drafting import Candidate, kind_of
    from pyllama.tokenizer import load_tokenizer

    other = opened(name)
    if tokenizer is not None:
        check_same(tokenizer, load_tokenizer(other), name)
    shown = Path(name).name if Path(name).exists() else name
    return Candidate(kind_of(model, other), shown, other, Path(other.path))


def _siblings(model: "Checkpoint | Outline", tokenizer: Any) -> "Iterator[Candidate]":
    """The first pulled models that may."""
    from pyllama.drafting.opening import candidate_at
    from pyllama.drafting.siblings import siblings

    if tokenizer is not None:
        for name, path in islice(siblings(model, tokenizer), SIBLINGS):
            yield candidate_at(model, name, path)


def _copy(model: "Checkpoint | Outline") -> "Candidate | None":
    """The model's own copy of few bits, or what it would be; None where GGUF has no name for the model."""
    from pyllama.drafting.copies import TYPE, copy_of
    from pyllama.drafting.opening import candidate_at
    from pyllama.planning.drafting import Candidate
    from pyllama.quantizing.prospect import prospect

    path = copy_of(model.path)
    if path is not None:
        return candidate_at(model, path.name, path)
    try:
        return Candidate("copy", f"a copy in {TYPE}", prospect(model, TYPE))
    except UnsupportedError:
        return None


def weigh(
    asked: str,
    found: "list[Candidate]",
    model: "Checkpoint | Outline",
    budget: int,
    rates: "Rates",
    options: dict[str, Any],
) -> "tuple[dict[str, Any], DrafterPlan | None]":
    """All that fit, each as it would be, and the first that pays: of auto's, of those that are here, as run takes it.

    Returns what --json has, and the plan with the one that drafts, if any does. Raises TooSmallError where the budget
    has no room for one that was asked for.
    """
    from pyllama.planning.drafting import SOURCE, drafter_plan
    from pyllama.planning.memory import make_plan
    from pyllama.streaming.expert_counts import counts_of

    rows: list[dict[str, Any]] = []
    chosen: DrafterPlan | None = None
    taken = None
    counts = counts_of(model, model.path)
    wanted = asked != AUTO or make_plan(model, budget, **options).streamed > 0
    for candidate in found:
        try:
            drafted = drafter_plan(model, candidate, budget, rates, counts=counts, **options)
        except BudgetError:
            if asked != AUTO:
                raise
            rows.append(_described(candidate) | {"fits": False})
            continue
        rows.append(_described(candidate) | {"fits": True} | _drafted(drafted))
        if wanted and chosen is None and drafted.pays and (asked != AUTO or candidate.here):
            chosen, taken = drafted, rows[-1]
    return {"asked": asked, "rates": SOURCE, "chosen": taken, "candidates": rows}, chosen


def _described(candidate: "Candidate") -> dict[str, Any]:
    return {
        "name": candidate.name,
        "kind": candidate.kind,
        "path": None if candidate.path is None else str(candidate.path),
        "here": candidate.here,
    }


def _drafted(drafted: "DrafterPlan") -> dict[str, Any]:
    forecast = drafted.forecast
    return {
        "shape": drafted.shape,
        "nodes": drafted.nodes,
        "drafter": drafted.plan.drafter,
        "branches": drafted.plan.branches,
        "streamed": drafted.plan.streamed,
        "tokens_a_pass": forecast.tokens_a_pass,
        "pass_s": forecast.pass_s,
        "draft_s": forecast.draft_s,
        "load_s": forecast.load_s,
        "token_s": forecast.token_s,
        "bound": forecast.bound,
        "off_s": drafted.off_s,
        "pays": drafted.pays,
    }
