"""What is left to compute of an answer, and the three moves of every loop: share out a pass, run it, accept what came.

A Generation makes them for one answer, the engine for many in each pass.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from pyllama.generation.answer import Answer, Step

if TYPE_CHECKING:
    from pyllama.architecture import Config
    from pyllama.decoder.kv_cache import Sequence as CachedSequence
    from pyllama.decoder.passes import Segment


class Runner(Protocol):
    """What the loop asks of a decoder."""

    context_length: int
    max_pass_tokens: int

    @property
    def config(self) -> "Config": ...

    def extend(
        self,
        batch: "Sequence[Segment]",
        wanted: Sequence[int],
        on_layer: Callable[[int], None] | None = None,
        hidden: bool = False,
    ) -> tuple[np.ndarray, list[np.ndarray]]: ...


class Task:
    """An answer in the making, and where its tokens lie.

    answer    prompt, tokens and text so far
    sequence  the positions in the KV cache; None while it has none
    """

    def __init__(self, answer: Answer, sequence: "CachedSequence | None" = None):
        self.answer = answer
        self.sequence = sequence

    @property
    def remaining(self) -> int:
        """Tokens that are known and not in the KV cache: 1 while it writes its answer."""
        return self.answer.length - (self.sequence.length if self.sequence else 0)

    def accept(self, rows: np.ndarray) -> list[Step]:
        """Take the rows of logits that a pass gave; the new steps, none while part of the prompt is left."""
        return self.answer.take(rows)


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


def compute(
    decoder: Runner, parts: Sequence[tuple[Task, int]], on_layer: Callable[[int], None] | None = None
) -> list[np.ndarray]:
    """One pass over the weights for the next tokens of each task; for each its rows of logits, to be accepted.

    parts     tasks that have a sequence, and how many of their tokens to compute; all want logits, or hidden states
    on_layer  called with the number of each layer before it runs; what it raises ends the pass
    """
    segments: list[Segment] = []
    wanted = []
    for task, count in parts:
        sequence = task.sequence
        if sequence is None:
            raise ValueError("compute: a task without a sequence")
        stop = sequence.length + count
        segments.append((sequence, task.answer.tokens(sequence.length, stop)))
        wanted.append(task.answer.rows_wanted(sequence.length, stop))
    logits, rows = decoder.extend(segments, wanted, on_layer, any(task.answer.hidden for task, _ in parts))
    return [logits[indices] for indices in rows]
