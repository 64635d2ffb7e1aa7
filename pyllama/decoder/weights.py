"""What the decoder asks of a weight store: matrices, whole or in row blocks, small vectors, embedding rows.

What is read when, and how much of it stays in memory, is all that an implementation may decide: never a bit of the
result. There is one, pyllama/streaming.
"""

from collections.abc import Iterable
from typing import Protocol

import numpy as np

from pyllama import _kernels


class Weights(Protocol):
    """Names are Hugging Face's; a tied head is asked for as HEAD. bytes_read counts from the beginning."""

    @property
    def bytes_read(self) -> int: ...

    def blocks(self, name: str) -> Iterable[tuple[int, "_kernels.Matrix"]]:
        """(first row, block) covering the matrix's rows, ascending; each valid until the next is asked for.

        A pass asks for every matrix once, in execution order.
        """
        ...

    def resident(self, *names: str) -> "_kernels.Blocks | None":
        """These matrices, a stack each, instead of the blocks of each: once the whole model is in memory.

        That may become so between two passes, never within one, and stays so.
        """
        ...

    def vector(self, name: str) -> np.ndarray:
        """A norm's weight or a bias, float32 (n,). Kept by the caller."""
        ...

    def embedding(self, token_ids: np.ndarray, out: np.ndarray) -> None:
        """out[t] = the embedding of token_ids[t]; out (T, hidden_size) float32."""
        ...
