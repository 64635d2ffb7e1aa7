"""One model, one budget, one process: prompts and decoding timed, memory and disk watched.

measure() is meant for a process of its own (own_process.py), so that its peak resident set is the model's and nothing
else's. Token ids are random, the cache starts empty, and sampling is no part of it; only the last token's logits are
asked for, as in llama-bench.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from pyllama.checkpoint.outline import Described
from pyllama.errors import BudgetError
from pyllama.machine.memory import interpreter_nbytes, peak_resident_nbytes
from pyllama.measure.watch import Watch
from pyllama.planning.memory import make_plan
from pyllama.planning.time import enough

CONTEXT = 1024


def random_ids(vocab_size: int) -> Callable[[int], list[int]]:
    """Gives so many token ids, the same ones in every run."""
    random = np.random.default_rng(1)
    return lambda count: random.integers(0, vocab_size, count).tolist()


def time_prefill(model, ids: list[int]) -> float:
    """Seconds from token ids to the logits of the last."""
    with model.new_sequence() as sequence:
        started = time.perf_counter()
        model.decoder.prefill(sequence, ids)
        return time.perf_counter() - started


def time_decode(model, ids: list[int], watch: Watch | None = None, most_s: float = float("inf")) -> list[float]:
    """Seconds of each pass of one token, from an empty cache; at least two, and no more than most_s in all."""
    times: list[float] = []
    with model.new_sequence() as sequence:
        for token_id in ids:
            started = time.perf_counter()
            model.decoder.forward([(sequence, [token_id])])
            times.append(time.perf_counter() - started)
            if watch:
                watch.mark("token")
            if len(times) > 1 and sum(times) > most_s:
                break
    return times


def time_model(
    model,
    ids: Callable[[int], list[int]],
    say: Callable[[str], None],
    *,
    prompts: tuple[int, ...],
    most_s: float,
    read: Callable[[], int] | None = None,
) -> dict[str, Any]:
    """Seconds of the first pass, and of prompts; then a token, so that decoding can begin.

    ids      so many token ids
    say      told what begins
    prompts  lengths; one that would take longer than most_s, as far as the last one tells, is left out
    read     bytes read so far, to tell those of each prompt
    """
    say("first pass")
    (first_s,) = time_decode(model, ids(1))
    found: dict[str, Any] = {"first_pass_s": first_s, "prefill": {}}
    # A pass takes about as long for 64 tokens as for one while the disk is what it waits for.
    likely_s = first_s
    for length in prompts:
        if length > model.context_length or likely_s > most_s:
            continue
        say(f"prompt of {length}")
        before = read() if read else 0
        seconds = time_prefill(model, ids(length))
        likely_s = seconds * max(prompts) / length
        found["prefill"][str(length)] = {"seconds": seconds, "tok_s": length / seconds}
        if read:
            found["prefill"][str(length)]["bytes_read"] = read() - before
    say("decoding")
    time_decode(model, ids(1))
    return found


def decoded(times: list[float]) -> dict[str, Any]:
    """What seconds of tokens make."""
    return {"tokens": len(times), "seconds": sum(times), "tok_s": len(times) / sum(times)}


def budget_to_keep(model: Described, keep: float, **options) -> int:
    """A budget that keeps about this share of the weights, at most; options as of make_plan().

    Raises BudgetError where the smallest budget that works keeps more.
    """
    low, high, best = 0, enough(model, **options), 0
    while high - low > 1 << 16:
        budget = (low + high) // 2
        try:
            plan = make_plan(model, budget, **options)
        except BudgetError:
            low = budget
            continue
        if plan.pinned <= keep * plan.weights:
            low = best = budget
        else:
            high = budget
    if not best:
        raise BudgetError(f"too small to stream: the smallest budget that works keeps more than {keep:.0%} of it")
    return best


def measure(
    name: str,
    *,
    memory: int | None = None,
    keep: float | None = None,
    threads: int | None = None,
    context_length: int = CONTEXT,
    prompts: tuple[int, ...] = (64, 512),
    decode: int = 16,
    most_s: float = 60.0,
    series: bool = True,
) -> dict[str, Any]:
    """Everything measured of a model under a budget.

    memory   the budget; default: what is available
    keep     instead: a budget that keeps this share of the weights and streams the rest
    prompts  as of time_model()
    decode   tokens, fewer if they take longer than most_s
    """
    import pyllama
    from pyllama import _kernels
    from pyllama.checkpoint import open_checkpoint
    from pyllama.hub import resolve
    from pyllama.tokenizer import load_tokenizer

    started = time.perf_counter()
    with open_checkpoint(resolve(name)) as checkpoint:
        context_length = min(context_length, checkpoint.config.max_position_embeddings)
        if keep is not None:
            tokenizer = load_tokenizer(checkpoint)
            memory = budget_to_keep(
                checkpoint, keep, context_length=context_length, interpreter=interpreter_nbytes(tokenizer)
            )
            del tokenizer
    with Watch() as watch:  # noqa: SIM117 - what it watches is said inside
        with pyllama.load(name, memory=memory, threads=threads, context_length=context_length, draft="off") as model:
            weights: Any = model.decoder.weights
            watch.bytes_read = lambda: weights.bytes_read
            load_s = time.perf_counter() - started
            ids = random_ids(model.config.vocab_size)
            timed = time_model(model, ids, watch.mark, prompts=prompts, most_s=most_s, read=lambda: weights.bytes_read)
            assert model.plan is not None  # load() makes one
            result: dict[str, Any] = {
                "budget": model.plan.budget,
                "context_length": model.context_length,
                "isa": _kernels.isa(),
                "threads": _kernels.num_threads(),
                "load_s": load_s,
                "pinned_nbytes": weights.nbytes_pinned,
                "streamed_nbytes": weights.nbytes_streamed,
                **timed,
            }
            before, counted = weights.bytes_read, weights.expert_counters
            times = time_decode(model, ids(max(2, min(decode, model.context_length))), watch, most_s)
            result["decode"] = decoded(times) | {"bytes_read": weights.bytes_read - before}
            after = weights.expert_counters
            result["decode"]["experts"] = after and after.as_dict(counted)
            result["bytes_read"] = weights.bytes_read
            result["passes"] = model.passes
    result["peak_rss_bytes"] = peak_resident_nbytes()
    if series:
        result["series"] = watch.series()
    return result
