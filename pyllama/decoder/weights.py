"""What the decoder asks of a weight store: matrices, whole or in row blocks, small vectors, embedding rows.

What is read when, and how much of it stays in memory, is all that an implementation may decide: never a bit of the
result. There is one, StreamedWeights (pyllama/streaming). Of those that ranks hold, the front end has what may be
watched, and no more: RemoteWeights (cluster/front.py).
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from pyllama import _kernels

#: Which matrices of an expert these are rows of.
GATE, UP, DOWN, GATE_UP = range(4)
#: Some of an expert: (which, first row, rows); GATE_UP has the whole of both.
ExpertRows = tuple[int, int, "_kernels.Matrix | _kernels.Blocks"]


class Watched(Protocol):
    """What whoever has a model asks of its weights, whoever holds them.

    bytes_read       from the beginning
    nbytes_streamed  that every pass from now on has to read
    waited_s         for reads
    expert_counters  what became of the experts asked for; None for a model without, or where they are not counted
    """

    @property
    def bytes_read(self) -> int: ...

    @property
    def nbytes_streamed(self) -> int: ...

    @property
    def waited_s(self) -> float: ...

    @property
    def expert_counters(self) -> Any: ...

    def pin_more(self, nbytes: int) -> None:
        """So much more memory may be kept."""
        ...

    def close(self) -> None: ...


class Weights(Watched, Protocol):
    """Names are Hugging Face's; a tied head is asked for as HEAD."""

    def blocks(self, name: str) -> Iterable[tuple[int, "_kernels.Matrix"]]:
        """(first row, block) covering the matrix's rows, ascending; each valid until the next is asked for.

        A pass asks for every matrix once, in execution order. One that wants no logits ends before the head: the next
        one begins anew, and what was read ahead of the head is lost, which is less than the head is.
        """
        ...

    def resident(self, *names: str) -> "_kernels.Blocks | None":
        """These matrices, a stack each, instead of the blocks of each: once all but experts' ones are in memory.

        That may become so between two passes, never within one, and stays so.
        """
        ...

    def experts(
        self, layer: int, wanted: Sequence[int], tokens: Sequence[int], which: int | None = None
    ) -> Iterable[tuple[int, "Iterable[ExpertRows]"]]:
        """(expert, its rows) of each wanted one, in any order; they cover gate, then up, or both in one, then down.

        wanted, tokens  numbers of experts, ascending, and how many tokens go to each
        which           None: all three; of a rank, GATE_UP alone, and then, of the same experts, DOWN. An expert may
                        come twice then, with some of its rows each
        """
        ...

    @property
    def guesses_help(self) -> bool:
        """Whether guess() is worth calling."""
        ...

    def pinned(self, name: str) -> "_kernels.Blocks | None":
        """A matrix, if all of it is in memory for good."""
        ...

    def guess(self, layer: int, experts: Sequence[int]) -> None:
        """The layer will perhaps need these, the likeliest first."""
        ...

    def vector(self, name: str) -> np.ndarray:
        """A norm's weight or a bias, float32 (n,). Kept by the caller."""
        ...

    def embedding(self, name: str, token_ids: np.ndarray, out: np.ndarray) -> None:
        """out[t] = row token_ids[t] of a matrix of which nothing else is kept; out (T, cols) float32."""
        ...
