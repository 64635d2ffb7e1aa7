"""A layer as data: what the decoder walks, and what shapes, order, bytes and operations are derived from.

    x = x + mixer(norm(x))
    x = x + mlp(norm(x))

Names are Hugging Face's, within the layer and without `.weight`. Holds no weight and computes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from pyllama.architecture.config import Config, RopeScaling


@dataclass(frozen=True, slots=True)
class Linear:
    """y = x @ w.T + b; w (rows, cols), b (rows,) or none."""

    name: str
    rows: int
    cols: int
    bias: bool = False


@dataclass(frozen=True, slots=True)
class Norm:
    """RMSNorm over `size` elements, with a weight of as many."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Rope:
    """A table of rotary frequencies; layers that have an equal one share it."""

    theta: float
    dim: int
    scaling: RopeScaling | None = None


@dataclass(frozen=True, slots=True)
class Attention:
    """softmax(rope(q) rope(k) * scale) v over the positions a query may see.

    heads, kv_heads  query heads and key/value heads that are computed here
    window           positions a query sees, its own included; None: all before it
    q_norm, k_norm   RMSNorm of each head before the rotation, or None
    """

    heads: int
    kv_heads: int
    head_dim: int
    window: int | None
    scale: float
    rope: Rope
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    q_norm: Norm | None = None
    k_norm: Norm | None = None


@dataclass(frozen=True, slots=True)
class Mlp:
    """down(silu(gate(x)) * up(x))"""

    gate: Linear
    up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class Experts:
    """The sum of weight(x, e) * down_e(silu(gate_e(x)) * up_e(x)) over the experts e that x is routed to.

    router          one row of logits an expert; those with the largest are chosen, equals by lower number
    count, chosen   experts there are, and that a token goes to
    of_chosen       whether the softmax that weighs them is over those chosen, or over all
    gate, up, down  of one expert; their names have {} where its number stands
    """

    router: Linear
    count: int
    chosen: int
    of_chosen: bool
    gate: Linear
    up: Linear
    down: Linear

    def expert(self, number: int) -> Mlp:
        """One of them."""
        one = (replace(of, name=of.name.format(number)) for of in (self.gate, self.up, self.down))
        return Mlp(*one)


@dataclass(frozen=True, slots=True)
class Layer:
    """name is what stands before the names of its tensors: layer_name()."""

    name: str
    mixer_norm: Norm
    mixer: Attention
    mlp_norm: Norm
    mlp: Mlp | Experts


def layer_name(number: int) -> str:
    """What stands before the names of a layer's tensors."""
    return f"model.layers.{number}."


def experts_of(config: Config) -> Experts | None:
    """The experts of a layer that has some, named as Qwen's; None in a model without."""
    mixture, hidden = config.mixture, config.hidden_size
    if mixture is None:
        return None
    inner, count = mixture.moe_intermediate_size, mixture.num_experts
    return Experts(
        Linear("mlp.gate", count, hidden),
        count,
        mixture.num_experts_per_tok,
        mixture.norm_topk_prob,
        Linear("mlp.experts.{}.gate_proj", inner, hidden),
        Linear("mlp.experts.{}.up_proj", inner, hidden),
        Linear("mlp.experts.{}.down_proj", hidden, inner),
    )


def llama_layers(config: Config, *, head_norms: bool = False) -> tuple[Layer, ...]:
    """The layers of Llama (Touvron et al. 2023), and of its kin that differ in numbers only.

    head_norms  whether each head of q and k is normed before it is rotated
    """
    hidden, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
    q, kv = config.num_attention_heads * dim, config.num_key_value_heads * dim
    rope = Rope(config.rope_theta, dim, config.rope_scaling)
    mlp = Mlp(
        Linear("mlp.gate_proj", inner, hidden, config.mlp_bias),
        Linear("mlp.up_proj", inner, hidden, config.mlp_bias),
        Linear("mlp.down_proj", hidden, inner, config.mlp_bias),
    )

    experts = experts_of(config)
    sparse = config.mixture.layers if config.mixture else (False,) * config.num_hidden_layers

    def attention(window: int | None) -> Attention:
        return Attention(
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=dim,
            window=window,
            scale=1 / math.sqrt(dim),  # correctly rounded everywhere, unlike pow
            rope=rope,
            q=Linear("self_attn.q_proj", q, hidden, config.qkv_bias),
            k=Linear("self_attn.k_proj", kv, hidden, config.qkv_bias),
            v=Linear("self_attn.v_proj", kv, hidden, config.qkv_bias),
            o=Linear("self_attn.o_proj", hidden, q, config.o_bias),
            q_norm=Norm("self_attn.q_norm", dim) if head_norms else None,
            k_norm=Norm("self_attn.k_norm", dim) if head_norms else None,
        )

    return tuple(
        Layer(
            layer_name(i),
            Norm("input_layernorm", hidden),
            attention(window),
            Norm("post_attention_layernorm", hidden),
            experts if experts and sparse[i] else mlp,
        )
        for i, window in enumerate(config.layer_windows)
    )
