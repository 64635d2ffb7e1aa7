"""What the decoder asks of those it shares a model with: whose rows are whose, and pieces put together to wholes.

Every rank computes some rows of each matrix and has all of the residual stream. What it has computed is gathered, never
summed, so that the bits are those of one process. How it travels is not known here (pyllama/cluster).
"""

from typing import NamedTuple, Protocol

import numpy as np

from pyllama import _kernels
from pyllama.decoder.weights import Weights


class Share(NamedTuple):
    """Which rows a rank computes, of every layer's matrices.

    heads, kv_heads  of q_proj, and of k_proj and v_proj: whole heads, each query head with its key/value head, as many
                     of the former for each of the latter; a key/value head may be several ranks'
    hidden           rows of o_proj and down_proj
    inner            rows of gate_proj and up_proj
    vocab            rows of the embedding and of lm_head
    """

    heads: range
    kv_heads: range
    hidden: range
    inner: range
    vocab: range


class Ranks(Protocol):
    """The ranks of a cluster, this one among them. All of them make the same calls in the same order.

    shares  of each rank
    rank    this one's number
    """

    shares: tuple[Share, ...]
    rank: int

    @property
    def share(self) -> Share:
        """This one's."""
        ...

    def embed(self, weights: Weights, token_ids: np.ndarray, x: "_kernels.Floats") -> None:
        """x = the embeddings of the tokens, (T, hidden_size), each from the rank that has its row."""
        ...

    def gather(self, ranges: "list[range]", piece: "_kernels.Floats", whole: "_kernels.Floats") -> None:
        """whole[:, ranges[r]] = piece of rank r, for every rank r: on each of them.

        piece  (T, columns of this rank's range), whole (T, columns of all)
        """
        ...

    def collect(self, ranges: "list[range]", piece: np.ndarray, whole: np.ndarray | None) -> None:
        """The same on rank 0 alone; elsewhere whole is None."""
        ...
