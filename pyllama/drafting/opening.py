"""`--draft` in, a drafter out: who is meant, whether it may draft for this model and fits beside it.

lookup   look-up in the text alone, which takes nothing
self     the copy of few bits that `pyllama quantize MODEL --draft` made
auto     a pulled model with the same tokenizer, else a copy that was made, else look-up: the first that pays, and
         nothing is made
MODEL    a path or a name: a model with the same tokenizer

Whoever asks for nobody (off), or for auto where no weights are streamed, need not come here.
"""

import os
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyllama.checkpoint import Checkpoint, open_checkpoint
from pyllama.checkpoint.outline import Described
from pyllama.decoder.exclusive import ExclusiveDecoder
from pyllama.drafting import AUTO, LOOKUP, SELF
from pyllama.drafting.copies import copy_of
from pyllama.drafting.model_drafter import ModelDrafter
from pyllama.drafting.rates import quick_rates
from pyllama.drafting.siblings import siblings
from pyllama.drafting.vocabularies import check_same
from pyllama.errors import BudgetError, RequestError, UnsupportedError
from pyllama.hub import resolve
from pyllama.planning.drafting import DRAFTER_PASS_TOKENS, LOOK_UP, Candidate, DrafterPlan, drafter_plan, kind_of
from pyllama.streaming import StreamedWeights
from pyllama.streaming.expert_counts import counts_of
from pyllama.tokenizer import load_tokenizer

#: To what probabilities of copies of few bits are raised: these are less sure than they are right.
COPY_POWER = 1.5
#: Nodes of a tree that there is memory for, whatever the rates: these were measured in passing. How many of them are
#: used is found while running.
LEAST_NODES = 16


def choose_drafter(
    draft: str | os.PathLike[str],
    checkpoint: Checkpoint,
    tokenizer: Any,
    budget: int,
    *,
    boards: int = 1,
    **options: Any,
) -> DrafterPlan | None:
    """Who drafts for a model; None: nobody, where auto finds none that pays.

    boards   that have the model together, each as fast as this one; the drafter is on this one alone
    options  of the model's plan (make_plan()), interpreter and context_length among them

    Raises UnsupportedError for a model with another vocabulary, RequestError for `self` without a copy, BudgetError
    where what was asked for by name does not fit, and what open_checkpoint() raises.
    """
    draft = os.fspath(draft)
    here = quick_rates(checkpoint)
    options |= {"least_nodes": LEAST_NODES, "counts": counts_of(checkpoint, checkpoint.path), "drafter_rates": here}
    rates = here.times(boards)
    if draft != AUTO:
        return drafter_plan(checkpoint, _named(draft, checkpoint, tokenizer), budget, rates, **options)
    for candidate in _candidates(checkpoint, tokenizer):
        with suppress(BudgetError):  # no room for this one
            drafted = drafter_plan(checkpoint, candidate, budget, rates, **options)
            if drafted.pays:
                return drafted
    return None


def _named(draft: str, checkpoint: Checkpoint, tokenizer: Any) -> Candidate:
    if draft == LOOKUP:
        return LOOK_UP
    if draft == SELF:
        copy = copy_of(checkpoint.path)
        if copy is None:
            name = shlex.quote(os.fspath(checkpoint.path))
            raise RequestError(
                f"draft: {checkpoint.path.name} has no copy that could draft for it; make one, once:"
                f" pyllama quantize {name} --draft --calibration TEXT"
            )
        return candidate_at(checkpoint, copy.name, copy)
    path = resolve(draft)
    with open_checkpoint(path) as other:
        theirs = load_tokenizer(other)
        if "none" in (theirs.kind, tokenizer.kind):
            raise UnsupportedError(f"draft: {draft} cannot be compared: a tokenizer is missing, in it or in the model")
        check_same(tokenizer, theirs, draft)
    return candidate_at(checkpoint, Path(draft).name if os.sep in draft else draft, path)


def _candidates(checkpoint: Checkpoint, tokenizer: Any) -> Iterator[Candidate]:
    """Of `auto`, in order: the first that pays is taken."""
    for name, path in siblings(checkpoint, tokenizer):
        yield candidate_at(checkpoint, name, path)
    copy = copy_of(checkpoint.path)
    if copy is not None:
        yield candidate_at(checkpoint, copy.name, copy)
    yield LOOK_UP


def candidate_at(model: Described, name: str, path: Path) -> Candidate:
    """What lies at a path, as a drafter for a model. With headers alone: it is open no longer than that takes."""
    with open_checkpoint(path) as other:
        return Candidate(kind_of(model, other), name, other, path)


def open_drafter(drafted: DrafterPlan, *, context_length: int) -> ModelDrafter | None:
    """The drafter, None for look-up. Its weights are read by its first pass, and stay."""
    drafter, division = drafted.drafter, drafted.division
    if drafter.path is None or division is None:
        return None
    checkpoint = open_checkpoint(drafter.path)
    checkpoint.forget_vocabulary()  # the model's is the same
    try:
        weights = StreamedWeights(checkpoint, slots=division.slots, room=division.room)
        decoder = ExclusiveDecoder(
            checkpoint.config,
            weights,
            context_length=min(context_length, checkpoint.config.max_position_embeddings),
            max_pass_tokens=DRAFTER_PASS_TOKENS,
            rope_interleaved=checkpoint.rope_interleaved,
        )
        pages = (division.cache + division.branches) // decoder.cache.page_nbytes
        decoder.cache.limit(pages, division.state_slots)

        def close() -> None:
            weights.close()
            checkpoint.close()

        power = COPY_POWER if drafter.kind == "copy" else 1.0
        return ModelDrafter(drafter.name, decoder, close, kept=lambda: weights.nbytes_pinned, power=power)
    except BaseException:
        checkpoint.close()
        raise
