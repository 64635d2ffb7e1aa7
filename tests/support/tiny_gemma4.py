"""Gemma 4's part of tiny.py: shapes of its tensors, and what llama.cpp's converter makes of config and names."""

from __future__ import annotations

from typing import Any

import numpy as np

_ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 10000.0},
}
_BOTH = {
    "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True,
    "sliding_window": 16, "global_head_dim": 16, "rope_parameters": _ROPES, "rope_theta": None,
}  # fmt: skip
#: What config.json has besides, of a model like E2B and of one like 12B.
OWN: dict[str, dict[str, Any]] = {
    "gemma4_text": {
        **_BOTH,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "use_double_wide_mlp": True,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 101,
        "final_logit_softcapping": 8.0,
    },
    "gemma4_unified_text": {
        **_BOTH,
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention"] * 2 + ["full_attention"],
        "attention_k_eq_v": True,
        "num_global_key_value_heads": 1,
    },
}
#: More of a model like 26B-A4B, for a config of "gemma4_text".
MIXTURE = {
    "enable_moe_block": True, "num_experts": 5, "top_k_experts": 2, "moe_intermediate_size": 24,
    "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "use_double_wide_mlp": False,
}  # fmt: skip
GGUF_OWN_NAMES = {
    "model.embed_tokens_per_layer.": "per_layer_token_embd.",
    "model.per_layer_model_projection.": "per_layer_model_proj.",
    "model.per_layer_projection_norm.": "per_layer_proj_norm.",
    "pre_feedforward_layernorm_2": "pre_ffw_norm_2",
    "post_feedforward_layernorm_1": "post_ffw_norm_1",
    "post_feedforward_layernorm_2": "post_ffw_norm_2",
    "experts.gate_up_proj": "ffn_gate_up_exps.weight",
    "experts.down_proj": "ffn_down_exps.weight",
    "router.proj": "ffn_gate_inp",
    "router.scale": "ffn_gate_inp.scale",
    "router.per_expert_scale": "ffn_down_exps.scale",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "post_per_layer_input_norm": "post_norm",
    "per_layer_input_gate": "inp_gate",
    "per_layer_projection.": "proj.",
    "layer_scalar": "layer_output_scale.weight",
}


def full(config: dict[str, Any], layer: int) -> bool:
    return config["layer_types"][layer] == "full_attention"


def kv_heads(config: dict[str, Any], layer: int) -> int:
    own = full(config, layer) and config.get("attention_k_eq_v") and config.get("num_global_key_value_heads")
    return own or config["num_key_value_heads"]


def inner_size(config: dict[str, Any], layer: int) -> int:
    shared = layer >= config["num_hidden_layers"] - config.get("num_kv_shared_layers", 0)
    return config["intermediate_size"] * (2 if shared and config.get("use_double_wide_mlp") else 1)


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, heads, layers = config["hidden_size"], config["num_attention_heads"], config["num_hidden_layers"]
    vocab, size = config["vocab_size"], config.get("hidden_size_per_layer_input", 0)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    if size:
        shapes["model.embed_tokens_per_layer.weight"] = (vocab, layers * size)
        shapes["model.per_layer_model_projection.weight"] = (layers * size, hidden)
        shapes["model.per_layer_projection_norm.weight"] = (size,)
    for i in range(layers):
        dim = config["global_head_dim"] if full(config, i) else config["head_dim"]
        inner = inner_size(config, i)
        layer: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (hidden,)}
        layer["self_attn.q_proj.weight"] = (heads * dim, hidden)
        if i < layers - config.get("num_kv_shared_layers", 0):
            layer["self_attn.k_proj.weight"] = (kv_heads(config, i) * dim, hidden)
            if not (full(config, i) and config.get("attention_k_eq_v")):
                layer["self_attn.v_proj.weight"] = (kv_heads(config, i) * dim, hidden)
            layer["self_attn.k_norm.weight"] = (dim,)
        layer["self_attn.q_norm.weight"] = (dim,)
        layer["self_attn.o_proj.weight"] = (hidden, heads * dim)
        layer["post_attention_layernorm.weight"] = (hidden,)
        layer["pre_feedforward_layernorm.weight"] = (hidden,)
        layer["mlp.gate_proj.weight"] = layer["mlp.up_proj.weight"] = (inner, hidden)
        layer["mlp.down_proj.weight"] = (hidden, inner)
        layer["post_feedforward_layernorm.weight"] = (hidden,)
        if size:
            layer["per_layer_input_gate.weight"] = (size, hidden)
            layer["per_layer_projection.weight"] = (hidden, size)
            layer["post_per_layer_input_norm.weight"] = (hidden,)
        layer["layer_scalar"] = (1,)
        if config.get("enable_moe_block"):
            count, width = config["num_experts"], config["moe_intermediate_size"]
            for name in ("post_feedforward_layernorm_1", "pre_feedforward_layernorm_2", "post_feedforward_layernorm_2"):
                layer[f"{name}.weight"] = (hidden,)
            layer |= {"router.proj.weight": (count, hidden), "router.scale": (hidden,)}
            layer |= {"router.per_expert_scale": (count,), "experts.gate_up_proj": (count, 2 * width, hidden)}
            layer["experts.down_proj"] = (count, hidden, width)
        if config.get("attention_bias"):
            linears = [name for name in layer if name.startswith("self_attn.") and "_proj" in name]
            layer |= {name.replace(".weight", ".bias"): layer[name][:1] for name in linears}
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    return shapes


def gguf_metadata(config: dict[str, Any]) -> dict[str, Any]:
    """gemma4.* of what the families have in common is otherwise, or more."""
    kinds, layers = config["layer_types"], range(config["num_hidden_layers"])
    ropes, wide = config["rope_parameters"], config["global_head_dim"]
    found: dict[str, Any] = {
        "attention.sliding_window": config["sliding_window"],
        "attention.sliding_window_pattern": [kind == "sliding_attention" for kind in kinds],
        "attention.shared_kv_layers": config.get("num_kv_shared_layers", 0),
        "embedding_length_per_layer_input": config.get("hidden_size_per_layer_input", 0),
        "attention.key_length": wide,
        "attention.value_length": wide,
        "attention.key_length_swa": config["head_dim"],
        "attention.value_length_swa": config["head_dim"],
        "rope.dimension_count": wide,
        "rope.dimension_count_swa": config["head_dim"],
        "rope.freq_base": float(ropes["full_attention"]["rope_theta"]),
        "rope.freq_base_swa": float(ropes["sliding_attention"]["rope_theta"]),
    }
    if config.get("use_double_wide_mlp"):
        found["feed_forward_length"] = [inner_size(config, i) for i in layers]
    if config.get("enable_moe_block"):
        found["expert_count"] = config["num_experts"]
        found["expert_used_count"] = config["top_k_experts"]
        found["expert_feed_forward_length"] = config["moe_intermediate_size"]
    if config.get("num_global_key_value_heads"):
        found["attention.head_count_kv"] = [kv_heads(config, i) for i in layers]
    return {f"gemma4.{key}": value for key, value in found.items()}


def rope_freqs(config: dict[str, Any]) -> np.ndarray:
    """1 for pairs that are turned, 1e30 for the others."""
    pairs = config["global_head_dim"] // 2
    turned = int(config["global_head_dim"] * config["rope_parameters"]["full_attention"]["partial_rotary_factor"] / 2)
    return np.array([1.0] * turned + [1e30] * (pairs - turned), "<f4")
