"""A checkpoint's index into what a pass over it costs: bytes of weights read, floating-point operations.

The same numbers for every engine: what the mathematics needs, not what an engine happens to do. Reads no weight.
"""

from ..checkpoint.outline import Described
from ..decoder.weights import EMBEDDING, HEAD


def decode_nbytes(model: Described) -> int:
    """Bytes of weights a decoded token reads, as stored: all but the embedding table (one row of it).

    A tied table is read whole, as the output matrix. The cache is left out: a few positions only.
    """
    untied = HEAD in model.tensors
    return sum(t.nbytes for t in model.tensors.values() if not (untied and t.name == EMBEDDING))


def prefill_flop(model: Described, tokens: int) -> int:
    """Operations of a prompt from an empty cache, logits of its last token only; a multiply-add is two.

    Matrices 2 * rows * cols a token, attention 4 * head_dim a head and pair of positions in causal order.
    Norms, rotations and activations are left out.
    """
    config = model.config
    layers = sum(t.rows * t.cols for t in model.tensors.values() if "_proj.weight" in t.name)
    pairs = tokens * (tokens + 1) // 2
    attention = 4 * config.num_attention_heads * config.head_dim * pairs * config.num_hidden_layers
    return 2 * layers * tokens + 2 * config.hidden_size * config.vocab_size + attention
