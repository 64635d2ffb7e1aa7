"""Gemma 4 in NumPy float64, beside reference.py, whose pieces it is made of: its layers are of two kinds.

Shapes as there; L layers, P hidden_size_per_layer_input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import reference
from reference import Array, float64, gelu, linear, rmsnorm, softcapped

#: What forward() can leave out or take otherwise, for tests that each of them is seen.
PIECES = (
    "v_norm",
    "raw_values",
    "last_source",
    "scalar",
    "projection",
    "own_rows",
    "own_norm",
    "own_gate",
    "interleaved",
    "router_scale",
    "router_residual",
    "expert_scale",
    "expert_gelu",
)


def per_layer_inputs(
    config: Any, tensors: Mapping[str, Array], x: Array, token_ids: Sequence[int], without: str = ""
) -> Array:
    """(rmsnorm(x W^T / sqrt(hidden)) + embedding_per_layer[token] * sqrt(P)) / sqrt(2), (T, L, P)."""
    size, layers = config.hidden_size_per_layer_input, config.num_hidden_layers
    projected = linear(x, tensors["model.per_layer_model_projection.weight"]) / math.sqrt(config.hidden_size)
    projected = rmsnorm(
        projected.reshape(-1, layers, size), tensors["model.per_layer_projection_norm.weight"], config.rms_norm_eps
    )
    own = float64(tensors["model.embed_tokens_per_layer.weight"])[np.asarray(token_ids)] * math.sqrt(size)
    rows = own.reshape(-1, layers, size)
    if without == "projection":
        projected = np.zeros_like(projected)
    if without == "own_rows":
        rows = np.zeros_like(rows)
    if without == "interleaved":  # a layer's elements apart, and not together
        rows = own.reshape(-1, size, layers).swapaxes(1, 2)
    return (projected + rows) / math.sqrt(2)


def beside(config: Any, tensors: Mapping[str, Array], prefix: str, x: Array, normed: Array, without: str = "") -> Array:
    """The sum over the chosen experts of weight * per_expert_scale * down(gelu(gate(h)) * up(h)), h normed.

    The router gets x normed by its root mean square alone, * scale / sqrt(hidden).
    """
    mixture, hidden = config.mixture, config.hidden_size
    scale = np.ones(hidden) if without == "router_scale" else float64(tensors[f"{prefix}router.scale"])
    routed = rmsnorm(x, scale, config.rms_norm_eps) / math.sqrt(hidden)
    if without == "router_residual":
        routed = normed * scale / math.sqrt(hidden)
    logits = linear(routed, tensors[f"{prefix}router.proj.weight"])
    ids, weights = reference.route(logits, mixture.num_experts_per_tok, True)
    if without != "expert_scale":
        weights = weights * float64(tensors[f"{prefix}router.per_expert_scale"])[ids]
    gate_up, down = (tensors[f"{prefix}experts.{name}_proj"] for name in ("gate_up", "down"))
    out = np.zeros_like(x)
    for t, row in enumerate(normed):
        for e, factor in zip(ids[t], weights[t], strict=True):
            gate, up = np.split(linear(row, gate_up[e]), 2)
            inner = reference.swiglu(gate, up) if without == "expert_gelu" else gelu(gate) * up
            out[t] += factor * linear(inner, down[e])
    return out


def forward(
    config: Any, tensors: Mapping[str, Array], token_ids: Sequence[int], interleaved: bool = False, without: str = ""
) -> Array:
    """Logits (T, V) of every token of one sequence that starts at position 0.

    without  one of PIECES
    """
    eps, windows, full = config.rms_norm_eps, config.layer_windows, config.full_attention
    heads, positions = config.num_attention_heads, np.arange(len(token_ids))
    embedding = float64(tensors["model.embed_tokens.weight"])
    hidden = embedding[np.asarray(token_ids)] * config.embedding_scale
    own = per_layer_inputs(config, tensors, hidden, token_ids, without) if config.hidden_size_per_layer_input else None
    kept: dict[bool, tuple[Array, Array]] = {}  # sees everything -> keys and values of the last such layer

    for layer, window in enumerate(windows):
        prefix = f"model.layers.{layer}."

        def weight(name: str, prefix: str = prefix) -> Array:
            return float64(tensors[f"{prefix}{name}.weight"])

        def norm(x: Array, name: str) -> Array:
            return rmsnorm(x, weight(name), eps)

        head_dim = config.head_dim if window else full.head_dim
        theta, scaling = (config.sliding_rope or (config.rope_theta, config.rope_scaling)) if window else (
            config.rope_theta, config.rope_scaling
        )  # fmt: skip
        frequencies = reference.inv_freq(head_dim, theta, scaling)
        x = norm(hidden, "input_layernorm")
        q = norm(linear(x, weight("self_attn.q_proj")).reshape(-1, heads, head_dim), "self_attn.q_norm")
        q = reference.rope(q, positions, frequencies, interleaved=interleaved)
        if layer < config.num_hidden_layers - config.num_kv_shared_layers:
            k = linear(x, weight("self_attn.k_proj")).reshape(len(x), -1, head_dim)
            same = full.values_are_keys and not window
            v = k if same else linear(x, weight("self_attn.v_proj")).reshape(len(x), -1, head_dim)
            k = reference.rope(norm(k, "self_attn.k_norm"), positions, frequencies, interleaved=interleaved)
            if same and without == "raw_values":
                v = k
            mine = k, v if without == "v_norm" else rmsnorm(v, np.ones(head_dim), eps)
            if without != "last_source" or (window is None) not in kept:
                kept[window is None] = mine
        else:
            mine = kept[window is None]
        k, v = mine
        mixed = reference.attention(q, k, v, positions, window, config.attention_scale)
        out = linear(mixed.reshape(len(x), -1), weight("self_attn.o_proj"))
        hidden = hidden + norm(out, "post_attention_layernorm")

        x = norm(hidden, "pre_feedforward_layernorm")
        inner = gelu(linear(x, weight("mlp.gate_proj"))) * linear(x, weight("mlp.up_proj"))
        out = linear(inner, weight("mlp.down_proj"))
        if config.mixture:
            out = norm(out, "post_feedforward_layernorm_1")
            experts = beside(config, tensors, prefix, hidden, norm(hidden, "pre_feedforward_layernorm_2"), without)
            out = out + norm(experts, "post_feedforward_layernorm_2")
        hidden = hidden + norm(out, "post_feedforward_layernorm")
        if own is not None:
            inner = gelu(linear(hidden, weight("per_layer_input_gate"))) * own[:, layer]
            inner = own[:, layer] if without == "own_gate" else inner
            out = linear(inner, weight("per_layer_projection"))
            hidden = hidden + (out if without == "own_norm" else norm(out, "post_per_layer_input_norm"))
        if without != "scalar":
            name = f"{prefix}layer_scalar"  # as in files; pyllama's own name has .weight, as all have
            hidden = hidden * float64(tensors[name] if name in tensors else tensors[f"{name}.weight"])

    hidden = rmsnorm(hidden, tensors["model.norm.weight"], eps)
    return softcapped(linear(hidden, embedding), config.logits_softcap)


def tensor_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Every tensor under its name in transformers 5."""
    hidden, layers, size = config.hidden_size, config.num_hidden_layers, config.hidden_size_per_layer_input
    heads, full = config.num_attention_heads, config.full_attention
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if size:
        shapes["model.embed_tokens_per_layer.weight"] = (config.vocab_size, layers * size)
        shapes["model.per_layer_model_projection.weight"] = (layers * size, hidden)
        shapes["model.per_layer_projection_norm.weight"] = (size,)
    for layer, window in enumerate(config.layer_windows):
        own = layer < layers - config.num_kv_shared_layers
        dim = config.head_dim if window else full.head_dim
        kv_rows = dim * (config.num_key_value_heads if window else full.num_key_value_heads)
        inner = config.intermediate_size if own else config.shared_intermediate_size or config.intermediate_size
        found: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj.weight": (heads * dim, hidden),
            "self_attn.o_proj.weight": (hidden, heads * dim),
            "self_attn.q_norm.weight": (dim,),
            "mlp.gate_proj.weight": (inner, hidden),
            "mlp.up_proj.weight": (inner, hidden),
            "mlp.down_proj.weight": (hidden, inner),
            "layer_scalar": (1,),
        }
        norms = (
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        )
        found |= {f"{name}.weight": (hidden,) for name in norms}
        if config.mixture:
            count, width = config.mixture.num_experts, config.mixture.moe_intermediate_size
            names = ("pre_feedforward_layernorm_2", "post_feedforward_layernorm_1", "post_feedforward_layernorm_2")
            found |= {f"{name}.weight": (hidden,) for name in names}
            found["router.proj.weight"] = (count, hidden)
            found["router.scale"] = (hidden,)
            found["router.per_expert_scale"] = (count,)
            found["experts.gate_up_proj"] = (count, 2 * width, hidden)
            found["experts.down_proj"] = (count, hidden, width)
        if own:
            found |= {"self_attn.k_proj.weight": (kv_rows, hidden), "self_attn.k_norm.weight": (dim,)}
            if window or not full.values_are_keys:
                found["self_attn.v_proj.weight"] = (kv_rows, hidden)
        if size:
            found["per_layer_input_gate.weight"] = (size, hidden)
            found["per_layer_projection.weight"] = (hidden, size)
            found["post_per_layer_input_norm.weight"] = (hidden,)
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in found.items()}
    return shapes
