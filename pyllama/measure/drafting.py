"""How much of what a drafter proposes a model accepts on texts, and what that makes of its seconds a token.

measure() loads the model once, in a process of its own (own_process.py); compared() puts two such runs side by side,
with the drafter and without, under the same budget.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyllama.errors import PyllamaError, RequestError, reason_of
from pyllama.measure.model import CONTEXT

#: What is continued where nobody gives a text: code, data and prose, since drafters do well on some of it only.
TEXTS = (
    "def mean(values):\n    total = 0\n    for value in values:\n        total = total + value\n"
    "    return total / len(values)\n\n\ndef variance(values):\n    total = 0\n    for value in values:\n",
    '[\n  {"name": "Oslo", "country": "Norway", "coast": true},\n'
    '  {"name": "Bern", "country": "Switzerland", "coast": false},\n  {"name": "Lisbon", "country": ',
    "The tide came in slowly that evening. From the window of the lighthouse one could see the boats return, one after"
    " the other, and the keeper counted them as he had done every evening for thirty years. When the last one",
)
_PROMPT = 128  # tokens of a piece that is continued
_PIECES = 3
WITH, WITHOUT = 48, 12  # tokens for each piece; without a drafter every pass takes as long


def pieces(text: str | None, encode: Callable[[str], list[int]]) -> list[list[int]]:
    """Token ids of what is continued: of a text some pieces, as far apart as it allows."""
    if text is None:
        return [encode(one) for one in TEXTS]
    ids = encode(text)
    if not ids:
        raise RequestError("--text: no text in it")
    step = max(1, (len(ids) - _PROMPT) // max(1, _PIECES - 1))
    starts = sorted({min(start, max(0, len(ids) - _PROMPT)) for start in range(0, len(ids), step)})[:_PIECES]
    return [ids[start : start + _PROMPT] for start in starts]


def read_text(path: Path) -> str:
    """Raises RequestError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise RequestError(f"--text {path}: {reason_of(error)}") from None
    except UnicodeDecodeError:
        raise RequestError(f"--text {path}: not UTF-8, expected text") from None


def measure(
    name: str,
    *,
    draft: str,
    memory: int | None = None,
    threads: int | None = None,
    text: str | None = None,
    tokens: int = WITH,
    most_s: float = 60.0,
) -> dict[str, Any]:
    """Pieces of a text continued, greedily and past any end, with one drafter.

    tokens  for each piece
    most_s  no piece begins after it

    Seconds a token are those after a piece's first token, drafting included.
    """
    import pyllama

    with pyllama.load(name, draft=draft, memory=memory, threads=threads, context_length=CONTEXT) as model:
        result: dict[str, Any] = {"name": model.drafting.name if model.drafting else None, "token_ids": []}
        seconds, decoded, written, proposed, accepted = 0.0, 0, 0, 0, 0
        for ids in pieces(text, lambda one: model.tokenizer.encode(one)[: CONTEXT - tokens - 1]):
            if seconds > most_s:
                break
            generation = model.generate(ids, max_tokens=tokens, ignore_eos=True)
            generation.read()
            result["token_ids"].append(generation.token_ids)
            seconds += generation.decode_s
            decoded += generation.completion_tokens - 1
            written += generation.completion_tokens
            proposed += generation.proposed_tokens
            accepted += generation.accepted_tokens
        drafts = model.drafting
        return result | {
            "tokens": written,
            "token_s": seconds / decoded,
            "tokens_a_pass": written / (written - accepted),
            "proposed_tokens": proposed,
            "accepted_tokens": accepted,
            "acceptance": accepted / proposed if proposed else None,
            "draft_s": drafts.draft_s if drafts else 0.0,
            "load_s": drafts.loaded.load_s if drafts else 0.0,
            "nbytes": drafts.loaded.nbytes if drafts else 0,
            "given_up": drafts.given_up if drafts else None,
        }


def compared(run: Callable[..., dict[str, Any]], draft: str, **options: Any) -> dict[str, Any]:
    """With the drafter, and beside it without: `token_s_off`, and how often `gain` it is faster.

    run  measures with such options, in a process of its own

    Raises PyllamaError should the texts differ: they never may.
    """
    drafted = run(draft=draft, **options)
    tokens = min(WITHOUT, options.get("tokens", WITH))
    plain = run(draft="off", **{**options, "tokens": tokens})
    for ours, theirs in zip(drafted.pop("token_ids"), plain["token_ids"], strict=False):
        if ours[: len(theirs)] != theirs:
            raise PyllamaError(
                "bench: the text with a drafter is another than without: this is a bug, please report it"
            )
    return {"draft": draft, **drafted, "token_s_off": plain["token_s"], "gain": plain["token_s"] / drafted["token_s"]}
