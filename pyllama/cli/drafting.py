"""Who drafts for a model and what came of it, for people and for programs."""

import argparse
import shlex
from typing import TYPE_CHECKING, Any

from pyllama.terminal.progress import format_nbytes, format_seconds

if TYPE_CHECKING:
    from pyllama.generation import Generation
    from pyllama.model import Model


def who_drafts(model: "Model", args: argparse.Namespace) -> str:
    """In one line, and why nobody does, or only look-up."""
    name = model.drafting.name if model.drafting else None
    streamed = model.plan is not None and model.plan.streamed > 0
    copy = f"`pyllama quantize {shlex.quote(args.model)} --draft --calibration FILE` makes a copy that can draft for it"
    if args.draft == "off":
        return "draft: nobody, as --draft off says"
    if args.draft == "auto" and not streamed:
        return "draft: nobody: all weights stay in memory; --draft MODEL, self or lookup drafts all the same"
    if name is None:
        return f"draft: nobody: nothing that is here would pay; {copy}"
    if args.draft == "auto" and model.drafting and model.drafting.drafter is None:
        return f"draft: {name}: no model or copy is here that would pay; {copy}"
    return f"draft: {name}"


def drafted(model: "Model", generation: "Generation") -> str | None:
    """What came of an answer's drafts, in one line; None where nobody drafts."""
    drafts = model.drafting
    if drafts is None:
        return None
    loaded = drafts.loaded
    line = (
        f"draft: {generation.proposed_tokens} tokens proposed, {generation.accepted_tokens} accepted,"
        f" {generation.tokens_a_pass:.2f} tokens a pass; {drafts.draft_s:.2f} s spent on it so far"
    )
    if loaded.nbytes:
        line += f", {format_seconds(loaded.load_s)} of them to load {format_nbytes(loaded.nbytes)}"
    return line + (f"; {drafts.given_up} was given up" if drafts.given_up else "")


def as_json(model: "Model", generation: "Generation") -> dict[str, Any]:
    """The same for programs: of the answer, and of the drafter since it was loaded."""
    drafts = model.drafting
    found: dict[str, Any] = {
        "name": drafts.name if drafts else None,
        "proposed_tokens": generation.proposed_tokens,
        "accepted_tokens": generation.accepted_tokens,
        "tokens_a_pass": generation.tokens_a_pass,
    }
    if drafts:
        loaded = drafts.loaded
        found |= {
            "passes": drafts.passes,
            "draft_s": drafts.draft_s,
            "load_s": loaded.load_s,
            "nbytes": loaded.nbytes,
            "bytes_read": loaded.bytes_read,
            "given_up": drafts.given_up,
        }
    return found
