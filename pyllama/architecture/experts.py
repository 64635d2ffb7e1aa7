"""Mixtures as config.json and GGUF's key/values tell them: shared by the families that have some."""

from __future__ import annotations

from pyllama.architecture.config import Mixture
from pyllama.architecture.fields import Fields

SOFTMAX, SIGMOID = 1, 2  # expert_gating_func of GGUF


#: Ours, with {} for an expert's number.
GATE_UP = ("mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj")
DOWN = "mlp.experts.{}.down_proj"


def stacks(experts: str) -> dict[str, str | tuple[str, ...]]:
    """The names of all experts of a layer in one, as classes of transformers 5 hold them."""
    return {f"{experts}.gate_up_proj": GATE_UP, f"{experts}.down_proj": DOWN}


def num_experts(f: Fields, default: int | None = None) -> int:
    """`num_experts` or `num_local_experts`: transformers writes either."""
    key = "num_experts" if f.has("num_experts") else "num_local_experts"
    return f.size("num_experts", key, default)


def mixture_in_every_layer(
    f: Fields, layers: int, experts: int = 8, chosen: int = 2, inner: int | None = None
) -> Mixture:
    """Defaults as Mixtral's classes have them.

    experts, chosen  how many there are, and for a token, where nothing is said
    inner            the size of one; default: `intermediate_size`
    """
    return Mixture(
        num_experts=num_experts(f, experts),
        num_experts_per_tok=f.size("num_experts_per_tok", default=chosen),
        moe_intermediate_size=f.size("intermediate_size") if inner is None else inner,
        norm_topk_prob=True,
        layers=(True,) * layers,
    )


def gguf_mixture(f: Fields, layers: int, inner: int | None = None, *, gating: int = SOFTMAX, dense: int = 0) -> Mixture:
    """Experts, the weights of those chosen adding up to 1, as llama.cpp has them unless told.

    inner   the size of one; default: expert_feed_forward_length
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
        moe_intermediate_size=f.size("moe_intermediate_size", "expert_feed_forward_length") if inner is None else inner,
        norm_topk_prob=True,
        layers=tuple(i >= dense for i in range(layers)),
    )
