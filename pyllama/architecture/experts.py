"""Mixtures as config.json and GGUF's key/values tell them: shared by the families that have some."""

from __future__ import annotations

from pyllama.architecture.config import Mixture
from pyllama.architecture.fields import Fields

SOFTMAX, SIGMOID = 1, 2  # expert_gating_func of GGUF


def num_experts(f: Fields, default: int | None = None) -> int:
    """`num_experts` or `num_local_experts`: transformers writes either."""
    key = "num_experts" if f.has("num_experts") else "num_local_experts"
    return f.size("num_experts", key, default)


def mixture_in_every_layer(f: Fields, layers: int) -> Mixture:
    """As Mixtral's classes have it: the size of an expert is `intermediate_size`, eight of them, two for a token."""
    return Mixture(
        num_experts=num_experts(f, 8),
        num_experts_per_tok=f.size("num_experts_per_tok", default=2),
        moe_intermediate_size=f.size("intermediate_size"),
        norm_topk_prob=True,
        layers=(True,) * layers,
    )


def gguf_mixture(
    f: Fields, layers: int, moe_intermediate_size: int, *, gating: int = SOFTMAX, dense: int = 0
) -> Mixture:
    """Experts, the weights of those chosen adding up to 1, as llama.cpp has them unless told.

    gating  what expert_gating_func must say, if it says anything
    dense   of the first layers, how many have none
    """
    if f.get("expert_weights_norm") not in (None, True):
        raise f.unsupported("expert_weights_norm", str(f.get("expert_weights_norm")))
    for key, neutral in (("expert_shared_count", 0), ("expert_weights_scale", 1.0), ("expert_gating_func", gating),
                         ("expert_group_count", 0), ("leading_dense_block_count", dense)):  # fmt: skip
        if f.get(key) not in (None, 0, neutral):
            raise f.unsupported(key, str(f.get(key)))
    return Mixture(
        num_experts=f.size("num_experts", "expert_count"),
        num_experts_per_tok=f.size("num_experts_per_tok", "expert_used_count"),
        moe_intermediate_size=moe_intermediate_size,
        norm_topk_prob=True,
        layers=tuple(i >= dense for i in range(layers)),
    )
