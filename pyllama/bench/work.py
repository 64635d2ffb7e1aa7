"""A checkpoint's index into what a pass over it costs: bytes of weights read, floating-point operations.

The same numbers for every engine: what the mathematics needs, not what an engine happens to do. Reads no weight.
"""

from ..architecture.tensors import EMBEDDING, HEAD, flop
from ..checkpoint.outline import Described


def decode_nbytes(model: Described) -> int:
    """Bytes of weights a decoded token reads, as stored: all but the embedding table (one row of it).

    A tied table is read whole, as the output matrix. The cache is left out: a few positions only.
    """
    untied = HEAD in model.tensors
    return sum(t.nbytes for t in model.tensors.values() if not (untied and t.name == EMBEDDING))


def prefill_flop(model: Described, tokens: int) -> int:
    """Operations of a prompt from an empty cache, logits of its last token only; a multiply-add is two.

    A token sees (tokens + 1) / 2 positions on average, its own included.
    """
    return round(flop(model.config, tokens, (tokens + 1) / 2))
