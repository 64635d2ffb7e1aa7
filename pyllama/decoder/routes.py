"""A router's logits -> which expert computes which tokens, and how their sums are put together again.

Integers and weights only: what an expert makes of a token goes to a row of its own, those of one expert together.
"""

from typing import NamedTuple

import numpy as np

from pyllama import _kernels as kernels
from pyllama.architecture.layer import Experts


class Routes(NamedTuple):
    """Of T tokens that go to k experts each.

    experts  (E,) those that some token goes to, ascending
    counts   (E,) how many go to each
    tokens   (T * k,) int64, tokens by ascending expert, then ascending
    starts   (E + 1,) where each expert's begin among them
    rows     (T, k) int32, for each token and its experts in ascending order the place among them
    weights  (T, k) float32
    """

    experts: list[int]
    counts: list[int]
    tokens: np.ndarray
    starts: list[int]
    rows: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(
        cls,
        logits: kernels.Floats,
        experts: Experts,
        *,
        scales: np.ndarray | None = None,
        bias: np.ndarray | None = None,
    ) -> "Routes":
        """Those with the largest logits, (T, experts), as the layer chooses and weighs them.

        scales  (experts,) float32, what each one's weight is multiplied by after that, or None
        bias    (experts,) float32, what Experts.bias names, or None
        """
        count, chosen = logits.rows, experts.chosen
        ids = np.empty((count, chosen), np.int32)
        weights = np.empty((count, chosen), np.float32)
        if experts.sigmoid:
            kernels.route_sigmoid(logits, bias, ids, weights, experts.of_chosen, experts.scale)
        else:
            kernels.route(logits, ids, weights, experts.of_chosen)
        if scales is not None:
            weights *= scales[ids]
        if count == 1:
            mine = ids[0].tolist()
            rows = np.arange(chosen, dtype=np.int32).reshape(1, -1)
            return cls(mine, [1] * chosen, np.zeros(chosen, np.int64), list(range(chosen + 1)), rows, weights)
        flat = ids.reshape(-1)
        order = np.argsort(flat, kind="stable")  # ascending tokens within an expert
        places = np.empty(flat.size, np.int32)
        places[order] = np.arange(flat.size, dtype=np.int32)
        experts_found, starts = np.unique(flat[order], return_index=True)
        ends = np.append(starts, flat.size)
        return cls(
            experts_found.tolist(),
            np.diff(ends).tolist(),
            order // chosen,
            ends.tolist(),
            places.reshape(count, chosen),
            weights,
        )

    def of_expert(self, expert: int) -> tuple[np.ndarray, slice]:
        """The tokens that go to an expert, and the rows that what it makes of them has."""
        at = self.experts.index(expert)
        rows = slice(self.starts[at], self.starts[at + 1])
        return self.tokens[rows], rows
