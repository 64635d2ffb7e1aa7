"""Tiny random models and their writers in every form pyllama reads: NumPy and the standard library only.

`tiny_config` and `random_tensors` make a model; `write_huggingface`, `write_gguf` and `write_meta` store
the same weights in the three forms, as the original tools do: the GGUF and Meta writers put the rows of
q and k in interleaved rotary order. `quantize` and `dequantize` are plain references of the ggml formats,
written for reading and not for speed.
"""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import tiny_gemma4

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "granite": "GraniteForCausalLM",
    "granitemoe": "GraniteMoeForCausalLM",
    "granitemoehybrid": "GraniteMoeHybridForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "olmo3": "Olmo3ForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gemma4_text": "Gemma4ForCausalLM",
    "gemma4_unified_text": "Gemma4UnifiedForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "lfm2": "Lfm2ForCausalLM",
    "qwen3_5_text": "Qwen3_5ForCausalLM",
    "lfm2_moe": "Lfm2MoeForCausalLM",
    "qwen3_5_moe_text": "Qwen3_5MoeForCausalLM",
}
#: model_type of every family that has tiny models.
FAMILIES = tuple(ARCHITECTURES)

_GEMMA = {
    "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 16,
    "tie_word_embeddings": True,
}  # fmt: skip
_DELTA = {
    "num_hidden_layers": 4, "full_attention_interval": 2, "partial_rotary_factor": 0.25,
    "linear_num_key_heads": 2, "linear_num_value_heads": 6, "linear_key_head_dim": 8, "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
}  # fmt: skip
#: What a family's config.json has besides, and as many layers as show each kind of them; all of it has a name in GGUF.
OWN: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 16},
    "smollm3": {"num_hidden_layers": 4},
    "granite": {
        "embedding_multiplier": 3.0, "attention_multiplier": 0.25, "residual_multiplier": 0.5, "logits_scaling": 4.0,
    },
    "granitemoe": {
        "embedding_multiplier": 3.0, "attention_multiplier": 0.25, "residual_multiplier": 0.5, "logits_scaling": 4.0,
        "num_local_experts": 6, "num_experts_per_tok": 2,
    },
    "granitemoehybrid": {
        "embedding_multiplier": 3.0, "attention_multiplier": 0.25, "residual_multiplier": 0.5, "logits_scaling": 4.0,
        "num_local_experts": 0, "intermediate_size": 99, "shared_intermediate_size": 80,
        "layer_types": ["attention"] * 2, "position_embedding_type": "rope",
    },
    "olmo3": {"num_hidden_layers": 4, "sliding_window": 16},
    "ministral3": {
        "rope_scaling": {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "mscale": 1.0,
            "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.5,
        },
    },
    "phi3": {"partial_rotary_factor": 0.75, "sliding_window": 262144, "original_max_position_embeddings": 64},
    "gemma2": {**_GEMMA, "attn_logit_softcapping": 4.0, "final_logit_softcapping": 8.0},
    "gemma3_text": {**_GEMMA, "num_hidden_layers": 6, "rope_local_base_freq": 500.0},
    "qwen3_moe": {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 56, "norm_topk_prob": True},
    "mixtral": {"num_local_experts": 5, "num_experts_per_tok": 2},
    "lfm2": {
        "num_hidden_layers": 4, "norm_eps": 1e-5, "block_auto_adjust_ff_dim": False, "conv_L_cache": 3,
        "full_attn_idxs": [1, 3],
    },
    "qwen3_5_text": _DELTA,
    "lfm2_moe": {
        "num_hidden_layers": 4, "norm_eps": 1e-5, "conv_L_cache": 3, "num_dense_layers": 1, "num_experts": 7,
        "num_experts_per_tok": 3, "moe_intermediate_size": 56,
        "full_attn_idxs": [1, 3],
    },
    "qwen3_5_moe_text": {
        **_DELTA, "num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 56,
        "shared_expert_intermediate_size": 40,
    },
    **tiny_gemma4.OWN,
}  # fmt: skip
MIXTURES = ("qwen3_moe", "mixtral", "granitemoe", "lfm2_moe", "qwen3_5_moe_text")
GEMMAS = ("gemma2", "gemma3_text")
GEMMA4 = tuple(tiny_gemma4.OWN)
GEMMA4_MIXTURE: dict[str, Any] = {"model_type": "gemma4_text", **tiny_gemma4.MIXTURE}
_OLMOS = ("olmo2", "olmo3")
#: Families whose norms are stored as what is added to 1.
_DELTAS = ("qwen3_5_text", "qwen3_5_moe_text")
_LFM2 = ("lfm2", "lfm2_moe")
PLUS_ONE = (*GEMMAS, *_DELTAS)
#: Families with layers that carry a state from token to token.
RECURRENT = (*_LFM2, *_DELTAS)
_HEAD_NORMS = ("qwen3", "qwen3_moe", "gemma3_text", *RECURRENT)
#: Families whose files have the rows of q and k in interleaved rotary order in GGUF, as the converter puts them.
INTERLEAVED = ("llama", "mistral", "mixtral", "ministral3", "smollm3", "granite", "granitemoe", "granitemoehybrid")


def tiny_config(**overrides: Any) -> dict[str, Any]:
    """A config.json: a llama of awkward sizes unless told otherwise. An override of None drops the key."""
    model_type = overrides.get("model_type", "llama")
    config = {
        "architectures": [ARCHITECTURES[model_type]],
        "model_type": model_type,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 8,
        "vocab_size": 101,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 512,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }
    config |= OWN.get(model_type, {})
    config.update(overrides)
    if model_type == "phi3":
        pairs = np.arange(int(config["head_dim"] * config["partial_rotary_factor"]) // 2)
        factors = {"short_factor": (1 + 0.25 * pairs).tolist(), "long_factor": (1 + 1.5 * pairs).tolist()}
        config.setdefault("rope_scaling", {"type": "longrope", **factors})
    if model_type in GEMMAS:
        config.setdefault("query_pre_attn_scalar", config["head_dim"])  # as every GGUF file has it
    return {key: value for key, value in config.items() if value is not None or key == "sliding_window"}


def _sizes(config: dict[str, Any]) -> tuple[int, int, int, int, int]:
    """hidden, inner, heads, kv_heads, head_dim."""
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    kv_heads = config.get("num_key_value_heads") or heads
    inner = config["shared_intermediate_size" if config["model_type"] == "granitemoehybrid" else "intermediate_size"]
    return config["hidden_size"], inner, heads, kv_heads, head_dim


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """name -> shape of the model that `config` describes, written down apart from pyllama's own list."""
    if config["model_type"] in GEMMA4:
        return tiny_gemma4.tensor_shapes(config)
    hidden, inner, heads, kv_heads, head_dim = _sizes(config)
    kind = config["model_type"]
    attention_bias = config.get("attention_bias", False)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for i in range(config["num_hidden_layers"]):
        norms = _norms(kind)
        layer = {
            f"{norms[0]}.weight": (hidden,),
            "self_attn.q_proj.weight": (heads * head_dim, hidden),
            "self_attn.k_proj.weight": (kv_heads * head_dim, hidden),
            "self_attn.v_proj.weight": (kv_heads * head_dim, hidden),
            "self_attn.o_proj.weight": (hidden, heads * head_dim),
            f"{norms[1]}.weight": (hidden,),
            f"{norms[2]}.weight": (hidden,),
            "mlp.gate_proj.weight": (inner, hidden),
            "mlp.up_proj.weight": (inner, hidden),
            "mlp.down_proj.weight": (hidden, inner),
            f"{norms[3]}.weight": (hidden,),
        }
        layer.pop(".weight", None)
        if has_experts(config, i):
            for name in ("gate", "up", "down"):
                del layer[f"mlp.{name}_proj.weight"]
            count, width = expert_sizes(config)
            layer["mlp.gate.weight"] = (count, hidden)
            if kind == "lfm2_moe":
                layer["mlp.expert_bias"] = (count,)
            if kind == "qwen3_5_moe_text":
                shared = config["shared_expert_intermediate_size"]
                for name, shape in (("gate", (shared, hidden)), ("up", (shared, hidden)), ("down", (hidden, shared))):
                    layer[f"mlp.shared_expert.{name}_proj.weight"] = shape
                layer["mlp.shared_expert_gate.weight"] = (1, hidden)
            for j in range(count):
                layer[f"mlp.experts.{j}.gate_proj.weight"] = (width, hidden)
                layer[f"mlp.experts.{j}.up_proj.weight"] = (width, hidden)
                layer[f"mlp.experts.{j}.down_proj.weight"] = (hidden, width)
        if kind == "qwen2" or (kind not in ("mistral", "ministral3", "mixtral", "phi3") and attention_bias):
            layer["self_attn.q_proj.bias"] = (heads * head_dim,)
            layer["self_attn.k_proj.bias"] = (kv_heads * head_dim,)
            layer["self_attn.v_proj.bias"] = (kv_heads * head_dim,)
        if kind not in ("qwen2", "mistral", "ministral3", "mixtral", "phi3") and attention_bias:
            layer["self_attn.o_proj.bias"] = (hidden,)
        if kind in ("llama", "smollm3", "granite") and config.get("mlp_bias"):
            layer["mlp.gate_proj.bias"] = (inner,)
            layer["mlp.up_proj.bias"] = (inner,)
            layer["mlp.down_proj.bias"] = (hidden,)
        if kind in _HEAD_NORMS + _OLMOS:
            layer["self_attn.q_norm.weight"] = (heads * head_dim if kind in _OLMOS else head_dim,)
            layer["self_attn.k_norm.weight"] = (kv_heads * head_dim if kind in _OLMOS else head_dim,)
        if kind == "phi3":
            rows = [layer.pop(f"self_attn.{name}_proj.weight")[0] for name in "qkv"]
            inners = [layer.pop(f"mlp.{name}_proj.weight")[0] for name in ("gate", "up")]
            layer["self_attn.qkv_proj.weight"] = (sum(rows), hidden)
            layer["mlp.gate_up_proj.weight"] = (sum(inners), hidden)
        if kind == "granitemoehybrid":
            layer = {name: shape for name, shape in layer.items() if not name.startswith("mlp.")}
            layer["shared_mlp.input_linear.weight"] = (2 * inner, hidden)
            layer["shared_mlp.output_linear.weight"] = (hidden, inner)
        if kind in RECURRENT:
            layer = {name: of for name, of in _of_recurrent(config, i, layer).items() if _has(config, name)}
        shapes.update({f"model.layers.{i}.{name}": shape for name, shape in layer.items()})
    shapes["model.embedding_norm.weight" if kind in _LFM2 else "model.norm.weight"] = (hidden,)
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def carries(config: dict[str, Any], layer: int) -> bool:
    """Whether a layer carries a state from token to token."""
    if config["model_type"] in _LFM2:
        kinds = config.get("layer_types")
        return kinds[layer] == "conv" if kinds else layer not in config["full_attn_idxs"]
    return config["model_type"] in _DELTAS and bool((layer + 1) % config["full_attention_interval"])


def _has(config: dict[str, Any], name: str) -> bool:
    """Whether a family with a state has a bias of that name."""
    return not name.endswith(".bias") or config["model_type"] in _DELTAS


_LFM2_NAMES = {
    "input_layernorm": "operator_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "self_attn.q_layernorm", "self_attn.k_norm": "self_attn.k_layernorm",
    "self_attn.o_proj": "self_attn.out_proj",
    "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3", "mlp.down_proj": "feed_forward.w2",
    "mlp.gate": "feed_forward.gate",
}  # fmt: skip
_LFM2_PARTS = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


def _as_lfm2(name: str) -> str:
    """LFM2's name, without what stands before it and without .weight, of what others call so."""
    head, dot, part = name.rpartition(".")
    if head.startswith("mlp.experts."):
        return f"feed_forward{head.removeprefix('mlp')}.{_LFM2_PARTS[part]}"
    return _LFM2_NAMES.get(name, name)


def _of_recurrent(config: dict[str, Any], i: int, layer: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The tensors of a layer of LFM2 or Qwen3.5, of those that Qwen3's would have."""
    hidden, lfm2 = config["hidden_size"], config["model_type"] in _LFM2
    rest = {name: shape for name, shape in layer.items() if not (carries(config, i) and "self_attn" in name)}
    if lfm2:
        if carries(config, i):
            rest["conv.in_proj.weight"], rest["conv.out_proj.weight"] = (3 * hidden, hidden), (hidden, hidden)
            rest["conv.conv.weight"] = (hidden, 1, config["conv_L_cache"])
        renamed = {}
        for name, shape in rest.items():
            stem, dot, kind = name.rpartition(".")
            whole = "feed_forward.expert_bias" if name == "mlp.expert_bias" else _as_lfm2(stem) + dot + kind
            renamed[whole] = shape
        return renamed
    if not carries(config, i):
        q = {name: (2 * shape[0], *shape[1:]) for name, shape in rest.items() if "q_proj" in name}
        return rest | q
    key_heads, heads, key_dim, dim = delta_sizes(config)
    mixed = 2 * key_heads * key_dim + heads * dim
    return {
        **rest,
        "linear_attn.in_proj_qkv.weight": (mixed, hidden),
        "linear_attn.in_proj_z.weight": (heads * dim, hidden),
        "linear_attn.in_proj_b.weight": (heads, hidden),
        "linear_attn.in_proj_a.weight": (heads, hidden),
        "linear_attn.conv1d.weight": (mixed, 1, config["linear_conv_kernel_dim"]),
        "linear_attn.dt_bias": (heads,),
        "linear_attn.A_log": (heads,),
        "linear_attn.norm.weight": (dim,),
        "linear_attn.out_proj.weight": (hidden, heads * dim),
    }


def as_read(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """LFM2's and Qwen3.5's tensors under the names and in the shapes that pyllama has for them."""
    theirs = {new: old for old, new in _LFM2_NAMES.items()} if config["model_type"] in _LFM2 else {}
    parts = {new: old for old, new in _LFM2_PARTS.items()}
    found = {}
    for name, values in tensors.items():
        stem, _, kind = name.rpartition(".")
        head, _, inner = stem.partition(".layers.")
        number, _, inner = inner.partition(".")
        if config["model_type"] in RECURRENT and kind in ("A_log", "dt_bias"):
            name = f"{stem}.{'a_log' if kind == 'A_log' else 'dt'}.weight"
        elif kind == "expert_bias":
            name = f"{head}.layers.{number}.mlp.expert_bias.weight"
        elif inner.startswith("feed_forward.experts."):
            of, _, part = inner.rpartition(".")
            name = f"{head}.layers.{number}.mlp{of.removeprefix('feed_forward')}.{parts[part]}.{kind}"
        elif inner in theirs:
            name = f"{head}.layers.{number}.{theirs[inner]}.{kind}"
        found[name.replace("embedding_norm", "norm")] = values.reshape(-1) if values.ndim == 3 else values
    return found


def delta_sizes(config: dict[str, Any]) -> tuple[int, int, int, int]:
    """Key heads, value heads, and the width of each."""
    heads = config["linear_num_key_heads"], config["linear_num_value_heads"]
    return *heads, config["linear_key_head_dim"], config["linear_value_head_dim"]


def expert_sizes(config: dict[str, Any]) -> tuple[int, int]:
    """Experts of a layer, rows of an expert's gate."""
    count = config.get("num_experts") or config["num_local_experts"]
    return count, config.get("moe_intermediate_size") or config["intermediate_size"]


def has_experts(config: dict[str, Any], layer: int) -> bool:
    if config["model_type"] not in MIXTURES or layer < config.get("num_dense_layers", 0):
        return False
    sparse = (layer + 1) % config.get("decoder_sparse_step", 1) == 0
    return sparse and layer not in config.get("mlp_only_layers", ())


#: What the three matrices of an expert are called.
_PARTS = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))


def as_stacks(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The experts of a layer in one tensor each, gate above up, as transformers 5 holds them."""
    found: dict[str, np.ndarray] = {}
    for name, values in tensors.items():
        last = next((parts for parts in _PARTS if parts[2] in name), None)
        if ".experts." not in name:
            found[name] = values
        elif last and f".experts.0.{last[2]}." in name:
            prefix = name.split(f".0.{last[2]}")[0]
            count = sum(other.startswith(f"{prefix}.") and f".{last[2]}." in other for other in tensors)
            gate, up, down = (np.stack([tensors[f"{prefix}.{j}.{part}.weight"] for j in range(count)]) for part in last)
            found[f"{prefix}.gate_up_proj"] = np.concatenate([gate, up], axis=1)
            found[f"{prefix}.down_proj"] = down
    return found


def as_experts(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The reverse: an expert's matrices a tensor each, as published files have them."""
    found: dict[str, np.ndarray] = {}
    for name, values in tensors.items():
        if name.endswith(".experts.gate_up_proj"):
            half = values.shape[1] // 2
            for j, both in enumerate(values):
                found[f"{name.removesuffix('gate_up_proj')}{j}.gate_proj.weight"] = both[:half]
                found[f"{name.removesuffix('gate_up_proj')}{j}.up_proj.weight"] = both[half:]
        elif name.endswith(".experts.down_proj"):
            for j, one in enumerate(values):
                found[f"{name.removesuffix('down_proj')}{j}.down_proj.weight"] = one
        else:
            found[name] = values
    return found


def as_mixtral(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Under the names of Mixtral's published files."""
    parts = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
    found = {}
    for name, values in tensors.items():
        words = name.split(".")
        if ".mlp." in name:
            words = [parts.get(word, "block_sparse_moe" if word == "mlp" else word) for word in words]
        found[".".join(words)] = values
    return found


def as_granitemoe(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Under the names of Granite's published files: all experts of a layer in one tensor."""
    names = {
        "mlp.gate.": "block_sparse_moe.router.layer.",
        "mlp.experts.gate_up_proj": "block_sparse_moe.input_linear.weight",
        "mlp.experts.down_proj": "block_sparse_moe.output_linear.weight",
    }
    found = {}
    for name, values in as_stacks(tensors).items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        found[name] = values
    return found


def _norms(kind: str) -> tuple[str, ...]:
    """A layer's norms: before and after attention, before and after the mlp; "" where there is none."""
    if kind in GEMMAS:
        after = ("post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
        return ("input_layernorm", *after)
    if kind in _OLMOS:
        return "", "post_attention_layernorm", "", "post_feedforward_layernorm"
    return "input_layernorm", "", "post_attention_layernorm", ""


def separated(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors as pyllama calls them, one for each matrix: what phi3 and Granite 4 store as one, cut by rows."""
    _, inner, heads, kv_heads, head_dim = _sizes(config)
    found = {}
    for name, values in tensors.items():
        if "qkv_proj" in name:
            q = heads * head_dim
            parts = zip("qkv", np.split(values, (q, q + kv_heads * head_dim)), strict=True)
            found |= {name.replace("qkv_proj", f"{part}_proj"): rows for part, rows in parts}
        elif "gate_up_proj" in name:
            parts = zip(("gate", "up"), np.split(values, (inner,)), strict=True)
            found |= {name.replace("gate_up_proj", f"{part}_proj"): rows for part, rows in parts}
        elif "shared_mlp.input_linear" in name:
            parts = zip(("gate", "up"), np.split(values, (inner,)), strict=True)
            found |= {name.replace("shared_mlp.input_linear", f"mlp.{part}_proj"): rows for part, rows in parts}
        elif name.endswith("layer_scalar"):
            found[f"{name}.weight"] = values
        else:
            found[name.replace("shared_mlp.output_linear", "mlp.down_proj")] = values
    return found


def random_tensors(config: dict[str, Any], seed: int = 0, dtype: str = "BF16") -> dict[str, np.ndarray]:
    """name -> float32 array whose values `dtype` ("F32", "F16", "BF16") holds exactly.

    Matrices are scaled so that activations keep their size from layer to layer and the logits differ
    clearly; norms are around 1.
    """
    random = np.random.default_rng(seed)
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        values = random.standard_normal(shape)
        if name.endswith(
            ("norm.weight", "layer_scalar", "layernorm_1.weight", "layernorm_2.weight", "_scale", ".scale")
        ):
            added = config["model_type"] in PLUS_ONE and "linear_attn" not in name  # the model adds 1 itself
            values = (0.0 if added else 1.0) + 0.2 * values
        elif len(shape) == 1 or name.endswith(".bias"):
            values = 0.3 * values
        elif len(shape) == 3:
            values = values / np.sqrt(shape[2])
        else:
            values = values / np.sqrt(shape[-1]) * (3.0 if "embed" in name or "lm_head" in name else 1.0)
        tensors[name] = decode_plain(dtype, encode_plain(dtype, values.astype(np.float32))).reshape(shape)
    return tensors


# --- plain formats ----------------------------------------------------------------------------------


def bf16_bits(values: np.ndarray) -> np.ndarray:
    """float32 -> bfloat16 bit patterns (uint16), rounded to nearest even; finite values only."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)).astype(np.uint16)


def encode_plain(dtype: str, values: np.ndarray) -> bytes:
    if dtype == "F32":
        return np.ascontiguousarray(values, "<f4").tobytes()
    if dtype == "F16":
        return np.ascontiguousarray(values, "<f2").tobytes()
    if dtype == "BF16":
        return bf16_bits(values).astype("<u2").tobytes()
    raise ValueError(f"{dtype} is not a plain format")


def decode_plain(dtype: str, raw: bytes) -> np.ndarray:
    if dtype == "F32":
        return np.frombuffer(raw, "<f4").astype(np.float32)
    if dtype == "F16":
        return np.frombuffer(raw, "<f2").astype(np.float32)
    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    raise ValueError(f"{dtype} is not a plain format")


# --- Hugging Face -----------------------------------------------------------------------------------


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], dtype: str = "BF16") -> None:
    """Like safetensors' save_file: header padded with spaces to 8 bytes, data without gaps."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blobs = []
    position = 0
    for name, values in tensors.items():
        stored_as = "U8" if values.dtype == np.uint8 else dtype
        blob = values.tobytes() if stored_as == "U8" else encode_plain(dtype, values)
        header[name] = {
            "dtype": stored_as,
            "shape": list(values.shape),
            "data_offsets": [position, position + len(blob)],
        }
        position += len(blob)
        blobs.append(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def write_random(folder: Path, seed: int = 0, **overrides: Any) -> Path:
    """A Hugging Face folder of random weights."""
    config = tiny_config(**overrides)
    return write_huggingface(folder, config, random_tensors(config, seed=seed))


def write_huggingface(
    folder: Path,
    config: dict[str, Any],
    tensors: dict[str, np.ndarray],
    dtype: str = "BF16",
    shards: int = 1,
) -> Path:
    """config.json with model.safetensors, or `shards` files and their index. Returns the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, dtype)
        return folder
    names = list(tensors)
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        mine = names[i * len(names) // shards : (i + 1) * len(names) // shards]
        write_safetensors(folder / file, {name: tensors[name] for name in mine}, dtype)
        weight_map.update(dict.fromkeys(mine, file))
    total = {"F32": 4}.get(dtype, 2) * sum(tensor.size for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return folder


# --- GGUF -------------------------------------------------------------------------------------------

GGML_NUMBERS = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11,
    "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "IQ4_NL": 20, "IQ4_XS": 23, "MXFP4": 39, "BF16": 30,
}  # fmt: skip
GGUF_NAMES = {
    "model.embed_tokens.": "token_embd.", "model.norm.": "output_norm.", "lm_head.": "output.",
    "model.layers.": "blk.", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "mlp.gate.": "ffn_gate_inp.",
    "mlp.experts.gate_proj": "ffn_gate_exps", "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps", "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp", "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
}  # fmt: skip


#: Where a family's converter has another name.
GGUF_OWN_NAMES = {
    kind: {
        "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    } for kind in GEMMAS + _OLMOS
}  # fmt: skip


GGUF_OWN_NAMES["lfm2"] = {
    "model.embedding_norm.": "token_embd_norm.", ".operator_norm": ".attn_norm", "ffn_norm": "ffn_norm",
    "self_attn.q_layernorm": "attn_q_norm", "self_attn.k_layernorm": "attn_k_norm", "self_attn.out_proj": "attn_output",
    "feed_forward.w1": "ffn_gate", "feed_forward.w3": "ffn_up", "feed_forward.w2": "ffn_down",
    ".conv.": ".shortconv.",
}  # fmt: skip
GGUF_OWN_NAMES["lfm2_moe"] = {
    "feed_forward.gate.": "ffn_gate_inp.", "feed_forward.expert_bias": "exp_probs_b.bias",
    "feed_forward.experts.gate_proj": "ffn_gate_exps", "feed_forward.experts.up_proj": "ffn_up_exps",
    "feed_forward.experts.down_proj": "ffn_down_exps", "feed_forward.experts.w1": "ffn_gate_exps",
    "feed_forward.experts.w3": "ffn_up_exps", "feed_forward.experts.w2": "ffn_down_exps",
    **GGUF_OWN_NAMES["lfm2"],
}  # fmt: skip
GGUF_OWN_NAMES["qwen3_5_text"] = {
    "post_attention_layernorm": "post_attention_norm",
    "linear_attn.in_proj_qkv": "attn_qkv", "linear_attn.in_proj_z": "attn_gate",
    "linear_attn.in_proj_b": "ssm_beta", "linear_attn.in_proj_a": "ssm_alpha", "linear_attn.conv1d": "ssm_conv1d",
    "linear_attn.dt_bias": "ssm_dt.bias", "linear_attn.A_log": "ssm_a", "linear_attn.norm": "ssm_norm",
    "linear_attn.out_proj": "ssm_out",
}  # fmt: skip
GGUF_OWN_NAMES["qwen3_5_moe_text"] = GGUF_OWN_NAMES["qwen3_5_text"]
GGUF_OWN_NAMES |= dict.fromkeys(GEMMA4, tiny_gemma4.GGUF_OWN_NAMES)
GGUF_OWN_NAMES["phi3"] = {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"}


def interleave(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k (or their bias) from half-split to interleaved rotary order.

    In each head, row i and row i + D / 2 of the half-split form become rows 2 i and 2 i + 1.
    """
    head_dim = values.shape[0] // heads
    halves = values.reshape(heads, 2, head_dim // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)


def _interleaved(config: dict[str, Any], name: str, values: np.ndarray) -> np.ndarray:
    _, _, heads, kv_heads, _ = _sizes(config)
    if "self_attn.q_proj" in name:
        return interleave(values, heads)
    if "self_attn.k_proj" in name:
        return interleave(values, kv_heads)
    return values


def gguf_name(name: str, kind: str = "llama") -> str:
    for ours, theirs in {**GGUF_OWN_NAMES.get(kind, {}), **GGUF_NAMES, **GGUF_OWN_NAMES.get(kind, {})}.items():
        name = name.replace(ours, theirs)
    return name


def gguf_value(value: Any) -> bytes:
    """A typed GGUF value: bool, int (u32, or i32 below 0), float (f32), str, array of one of them."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value) if value >= 0 else struct.pack("<Ii", 5, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _gguf_text(value)
    if isinstance(value, np.ndarray):
        kind = {"f4": 6, "i4": 5, "u4": 4}[value.dtype.str[1:]]
        return struct.pack("<IIQ", 9, kind, value.size) + value.tobytes()
    entries = [gguf_value(v) for v in value]
    kind = entries[0][:4] if entries else struct.pack("<I", 8)
    return struct.pack("<I", 9) + kind + struct.pack("<Q", len(entries)) + b"".join(e[4:] for e in entries)


def _gguf_text(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def gguf_bytes(
    metadata: dict[str, Any],
    tensors: list[tuple[str, str, tuple[int, ...], bytes]],
    *,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """The bytes of a GGUF file; tensors are (name, dtype, shape as in Hugging Face, stored bytes)."""
    out = [b"GGUF", struct.pack("<IQQ", version, len(tensors), len(metadata))]
    out += [_gguf_text(key) + gguf_value(value) for key, value in metadata.items()]
    position = 0
    for name, dtype, shape, data in tensors:
        out.append(_gguf_text(name) + struct.pack("<I", len(shape)))
        out += [struct.pack("<Q", n) for n in reversed(shape)]
        out.append(struct.pack("<IQ", GGML_NUMBERS[dtype], position))
        position += -(-len(data) // alignment) * alignment
    head = b"".join(out)
    blobs = [head + bytes(-len(head) % alignment)]
    blobs += [data + bytes(-len(data) % alignment) for _, _, _, data in tensors]
    return b"".join(blobs)


def gguf_metadata(config: dict[str, Any]) -> dict[str, Any]:
    """The hyperparameters as the converter of llama.cpp writes them (mistral goes as llama)."""
    hidden, inner, heads, kv_heads, head_dim = _sizes(config)
    kind = config["model_type"]
    arch = {
        "mistral": "llama", "mixtral": "llama", "ministral3": "mistral3", "olmo3": "olmo2", "gemma3_text": "gemma3",
        "qwen3_moe": "qwen3moe", "gpt_oss": "gpt-oss", "gemma4_text": "gemma4", "gemma4_unified_text": "gemma4",
        "qwen3_5_text": "qwen35", "lfm2_moe": "lfm2moe", "qwen3_5_moe_text": "qwen35moe",
        "granitemoehybrid": "granite",
    }.get(kind, kind)  # fmt: skip
    found: dict[str, Any] = {
        "general.architecture": arch,
        "general.type": "model",
        f"{arch}.block_count": config["num_hidden_layers"],
        f"{arch}.context_length": config["max_position_embeddings"],
        f"{arch}.embedding_length": hidden,
        f"{arch}.feed_forward_length": inner,
        f"{arch}.attention.head_count": heads,
        f"{arch}.attention.head_count_kv": kv_heads,
        f"{arch}.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        f"{arch}.rope.freq_base": float(config.get("rope_theta", 0)),
        f"{arch}.rope.dimension_count": int(head_dim * config.get("partial_rotary_factor", 1.0)),
        f"{arch}.attention.key_length": head_dim,
        f"{arch}.attention.value_length": head_dim,
        f"{arch}.vocab_size": config["vocab_size"],
    }
    if kind in ("mistral", "olmo3", "phi3", *GEMMAS) and config.get("sliding_window"):
        found[f"{arch}.attention.sliding_window"] = config["sliding_window"]
    if kind == "gpt_oss":
        found[f"{arch}.attention.sliding_window"] = config["sliding_window"]
    if kind in MIXTURES or kind == "gpt_oss":
        found[f"{arch}.expert_count"], width = expert_sizes(config)
        found[f"{arch}.expert_used_count"] = config["num_experts_per_tok"]
        if arch != "llama":
            found[f"{arch}.expert_feed_forward_length"] = width
    if kind in _LFM2:
        heads_of = [0 if carries(config, i) else kv_heads for i in range(config["num_hidden_layers"])]
        found[f"{arch}.attention.head_count_kv"] = np.array(heads_of, "<i4")
        found[f"{arch}.attention.layer_norm_rms_epsilon"] = float(config["norm_eps"])
        found[f"{arch}.shortconv.l_cache"] = config["conv_L_cache"]
    if kind == "lfm2_moe":
        found[f"{arch}.expert_gating_func"] = 2
        found[f"{arch}.leading_dense_block_count"] = config["num_dense_layers"]
    if kind == "qwen3_5_moe_text":
        del found[f"{arch}.feed_forward_length"]
        found[f"{arch}.expert_shared_feed_forward_length"] = config["shared_expert_intermediate_size"]
    if kind in _DELTAS:
        key_heads, value_heads, key_dim, value_dim = delta_sizes(config)
        found |= {
            f"{arch}.ssm.conv_kernel": config["linear_conv_kernel_dim"],
            f"{arch}.ssm.state_size": key_dim,
            f"{arch}.ssm.group_count": key_heads,
            f"{arch}.ssm.time_step_rank": value_heads,
            f"{arch}.ssm.inner_size": value_heads * value_dim,
            f"{arch}.full_attention_interval": config["full_attention_interval"],
            f"{arch}.rope.dimension_sections": np.array([1, 0, 0, 0], "<i4"),
        }
    if kind in ("granite", "granitemoe", "granitemoehybrid"):
        for ours, theirs in (("embedding_multiplier", "embedding_scale"), ("attention_multiplier", "attention.scale"),
                             ("residual_multiplier", "residual_scale"), ("logits_scaling", "logit_scale")):  # fmt: skip
            found[f"{arch}.{theirs}"] = float(config[ours])
    if config.get("position_embedding_type") == "nope":
        found[f"{arch}.rope.scaling.finetuned"] = False
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if config.get(key):
            found[f"{arch}.{key}"] = float(config[key])
    if "rope_local_base_freq" in config:
        found[f"{arch}.rope.freq_base_swa"] = float(config["rope_local_base_freq"])
    scaling = config.get("rope_scaling") or {}
    if scaling.get("llama_4_scaling_beta"):
        found[f"{arch}.attention.temperature_scale"] = float(scaling["llama_4_scaling_beta"])
        found[f"{arch}.rope.scaling.yarn_log_multiplier"] = float(scaling["mscale_all_dim"])
    scaled = scaling.get("rope_type", scaling.get("type", "default"))
    if scaled in ("linear", "yarn"):
        found[f"{arch}.rope.scaling.type"] = scaled
        found[f"{arch}.rope.scaling.factor"] = float(scaling["factor"])
    if scaled == "longrope":
        original = config["original_max_position_embeddings"]
        factor = config["max_position_embeddings"] / original
        found[f"{arch}.rope.scaling.attn_factor"] = float(np.sqrt(1 + np.log(factor) / np.log(original)))
        found[f"{arch}.rope.scaling.original_context_length"] = original
    if scaled == "yarn":
        original = scaling["original_max_position_embeddings"]
        found[f"{arch}.rope.scaling.original_context_length"] = original
    if kind in GEMMA4:
        found |= tiny_gemma4.gguf_metadata(config)
    for key in ("bos_token_id", "eos_token_id"):
        if isinstance(config.get(key), int):
            found[f"tokenizer.ggml.{key}"] = config[key]
    return found


def llama3_factors(config: dict[str, Any]) -> np.ndarray:
    """rope_freqs.weight of a llama3-scaled model: the original frequency over the scaled one, float32."""
    head_dim = _sizes(config)[4]
    scaling = config["rope_scaling"]
    factor, original = scaling["factor"], scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    frequencies = config["rope_theta"] ** -(np.arange(0, head_dim, 2) / head_dim)
    rotations = original * frequencies / (2 * np.pi)
    smooth = (rotations - low) / (high - low)
    blend = 1 / ((1 - smooth) / factor + smooth)
    return np.where(rotations > high, 1.0, np.where(rotations < low, factor, blend)).astype("<f4")


def gguf_tensors(
    config: dict[str, Any], tensors: dict[str, np.ndarray], dtype: str
) -> list[tuple[str, str, tuple[int, ...], bytes]]:
    """The tensors as the converter stores them: vectors in F32, q and k of the llama family interleaved."""
    stored = []
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type", scaling.get("type")) == "llama3":
        factors = llama3_factors(config)
        stored.append(("rope_freqs.weight", "F32", factors.shape, factors.tobytes()))
    for which in ("long", "short") if "long_factor" in scaling else ():
        factors = np.array(scaling[f"{which}_factor"], "<f4")
        stored.append((f"rope_factors_{which}.weight", "F32", factors.shape, factors.tobytes()))
    if config["model_type"] in GEMMA4:
        factors = tiny_gemma4.rope_freqs(config)
        stored.append(("rope_freqs.weight", "F32", factors.shape, factors.tobytes()))
    if config["model_type"] == "gpt_oss":
        return stored + _gpt_oss_gguf(tensors, dtype)
    if config["model_type"] == "granitemoehybrid":
        tensors = separated(config, tensors)
    for name, values in (tensors if config["model_type"] in GEMMA4 else _gguf_stacks(tensors)).items():
        if config["model_type"] in INTERLEAVED:
            values = _interleaved(config, name, values)
        if config["model_type"] in PLUS_ONE and name.endswith("norm.weight") and "linear_attn" not in name:
            values = values + np.float32(1)
        if config["model_type"] in RECURRENT:
            values = recurrent_gguf(config, name, values)
        if "shared_expert_gate" in name:
            values = values[0]
        theirs = gguf_name(name, config["model_type"])
        plain = any(part in theirs for part in ("shortconv.conv", "conv1d", "ffn_gate_inp"))
        kind = "F32" if values.ndim == 1 or plain else dtype
        stored.append((theirs, kind, values.shape, quantize(kind, values)))
    return stored


def recurrent_gguf(config: dict[str, Any], name: str, values: np.ndarray) -> np.ndarray:
    """A tensor of LFM2 or Qwen3.5 as the converter stores it: convolutions as matrices, the decay's rate itself, and
    value heads so that the first of every key head come first."""
    if values.ndim == 3 and ".experts." not in name:
        values = values[:, 0]
    if name.endswith("A_log"):
        values = -np.exp(values)
    if "linear_attn" not in name or name.endswith("norm.weight"):
        return values
    key_heads, heads, key_dim, dim = delta_sizes(config)
    order = np.arange(heads).reshape(key_heads, -1).T.reshape(-1)  # h of key head h // (heads / key_heads)
    if any(part in name for part in ("in_proj_a", "in_proj_b", "A_log", "dt_bias")):
        return values[order]
    rows = (order[:, None] * dim + np.arange(dim)).reshape(-1)
    if "out_proj" in name:
        return np.ascontiguousarray(values[:, rows])
    keys = 0 if "in_proj_z" in name else 2 * key_heads * key_dim
    return np.concatenate([values[:keys], values[keys:][rows]])


def _gpt_oss_gguf(tensors: dict[str, np.ndarray], dtype: str) -> list[tuple[str, str, tuple[int, ...], bytes]]:
    """From the names and shapes of the class in transformers: experts are turned, and gate and up taken apart."""
    found: dict[str, np.ndarray] = {}
    for name, values in tensors.items():
        stem, _, last = name.partition(".mlp.experts.")
        if last == "gate_up_proj":
            found[f"{stem}.ffn_gate_exps.weight"] = values[:, :, 0::2].transpose(0, 2, 1)
            found[f"{stem}.ffn_up_exps.weight"] = values[:, :, 1::2].transpose(0, 2, 1)
        elif last == "gate_up_proj_bias":
            found[f"{stem}.ffn_gate_exps.bias"] = values[:, 0::2]
            found[f"{stem}.ffn_up_exps.bias"] = values[:, 1::2]
        elif last == "down_proj":
            found[f"{stem}.ffn_down_exps.weight"] = values.transpose(0, 2, 1)
        elif last == "down_proj_bias":
            found[f"{stem}.ffn_down_exps.bias"] = values
        else:
            name = name.replace("self_attn.sinks", "attn_sinks.weight").replace("mlp.router", "ffn_gate_inp")
            found[name.replace("post_attention_layernorm", "post_attention_norm")] = values
    stored = []
    for name, values in found.items():
        kind = "F32" if values.ndim == 1 or name.endswith(".bias") or "ffn_gate_inp" in name else dtype
        stored.append((gguf_name(name), kind, values.shape, quantize(kind, np.ascontiguousarray(values))))
    return stored


def _gguf_stacks(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Gate, up and down of a layer's experts in one tensor each."""
    found: dict[str, np.ndarray] = {}
    of_granite = (("block_sparse_moe.router.", "mlp.gate."), ("block_sparse_moe.experts.", "mlp.experts."))
    for theirs, ours in of_granite:
        tensors = {name.replace(theirs, ours): values for name, values in tensors.items()}
    for name, values in as_experts(tensors).items():
        if ".experts." not in name:
            found[name] = values
            continue
        prefix, rest = name.split(".experts.")
        key = f"{prefix}.experts.{rest.split('.')[1]}.weight"
        one = values[None]
        found[key] = np.concatenate([found[key], one]) if key in found else one
    return found


def write_gguf(
    path: Path,
    config: dict[str, Any],
    tensors: dict[str, np.ndarray],
    dtype: str = "BF16",
    split: int = 1,
    extra: dict[str, Any] | None = None,
    alignment: int = 32,
) -> Path:
    """A GGUF file, or `split` files named NAME-00001-of-0000N.gguf. Returns the (first) file.

    extra: more key/values, such as a tokenizer's.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = gguf_metadata(config) | (extra or {})
    if alignment != 32:
        metadata["general.alignment"] = alignment
    stored = gguf_tensors(config, tensors, dtype)
    if split == 1:
        path.write_bytes(gguf_bytes(metadata, stored, alignment=alignment))
        return path
    names = []
    for i in range(split):
        mine = stored[i * len(stored) // split : (i + 1) * len(stored) // split]
        more = {"split.no": i, "split.count": split, "split.tensors.count": len(stored)}
        if i and alignment != 32:
            more["general.alignment"] = alignment
        names.append(path.with_name(f"{path.stem}-{i + 1:05}-of-{split:05}.gguf"))
        names[-1].write_bytes(gguf_bytes(metadata | more if i == 0 else more, mine, alignment=alignment))
    return names[0]


# --- quantized blocks -------------------------------------------------------------------------------
#
# The block structures of the ggml formats. `dequantize` computes in float32, in the order the format
# defines: scale first (d * sc), then times the integer, then minus or plus the minimum.

BLOCKS = {
    "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q8_0": (32, 34),
    "Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210),
    "IQ4_NL": (32, 18), "IQ4_XS": (256, 136), "MXFP4": (32, 17),
}  # fmt: skip


def dequantize(dtype: str, raw: bytes | np.ndarray) -> np.ndarray:
    """Stored bytes of whole blocks -> float32 (n,), for every storage format."""
    data = np.frombuffer(raw, np.uint8) if isinstance(raw, bytes) else np.ascontiguousarray(raw, np.uint8)
    if dtype not in BLOCKS:
        return decode_plain(dtype, data.tobytes())
    cols, nbytes = BLOCKS[dtype]
    blocks = data.reshape(-1, nbytes)
    return _DEQUANTIZE[dtype](blocks).astype(np.float32).reshape(-1)


def quantize(dtype: str, values: np.ndarray) -> bytes:
    """float32 -> stored bytes. A straightforward rounding, coarser than llama.cpp's search for scales."""
    if dtype not in BLOCKS:
        return encode_plain(dtype, values)
    cols, nbytes = BLOCKS[dtype]
    if values.shape[-1] % cols:
        raise ValueError(f"{dtype} needs rows of a multiple of {cols}, got {values.shape}")
    blocks = _QUANTIZE[dtype](np.ascontiguousarray(values, np.float32).reshape(-1, cols))
    assert blocks.dtype == np.uint8 and blocks.shape[1] == nbytes
    return blocks.tobytes()


def _f16(column: np.ndarray) -> np.ndarray:
    """(n, 2) bytes -> (n, 1) float32."""
    return np.ascontiguousarray(column).view("<f2").astype(np.float32)


def _bytes16(values: np.ndarray) -> np.ndarray:
    """(n,) -> (n, 2) bytes of float16."""
    return values.astype("<f2").reshape(-1, 1).view(np.uint8)


def _nibbles(qs: np.ndarray) -> np.ndarray:
    """(n, 16) -> (n, 32): the low nibbles, then the high ones."""
    return np.concatenate([qs & 15, qs >> 4], axis=1)


def _bits32(qh: np.ndarray) -> np.ndarray:
    """(n, 4) -> (n, 32) bits, least significant first."""
    return np.unpackbits(np.ascontiguousarray(qh), axis=1, bitorder="little")


def _scales4(s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, 12) -> 6-bit scales and minimums, (n, 8) each, of Q4_K and Q5_K."""
    scale = np.concatenate([s[:, :4] & 63, (s[:, 8:] & 15) | (s[:, :4] >> 6 << 4)], axis=1)
    least = np.concatenate([s[:, 4:8] & 63, (s[:, 8:] >> 4) | (s[:, 4:8] >> 6 << 4)], axis=1)
    return scale.astype(np.float32), least.astype(np.float32)


def _pack_scales4(scale: np.ndarray, least: np.ndarray) -> np.ndarray:
    first = scale[:, :4] | (scale[:, 4:] >> 4 << 6)
    second = least[:, :4] | (least[:, 4:] >> 4 << 6)
    third = (scale[:, 4:] & 15) | ((least[:, 4:] & 15) << 4)
    return np.concatenate([first, second, third], axis=1)


def _scales3(s: np.ndarray) -> np.ndarray:
    """(n, 12) -> (n, 16) signed 6-bit scales of Q3_K: 4 low bits first, then 2 high bits of each."""
    low = np.concatenate([s[:, :8] & 15, s[:, :8] >> 4], axis=1)
    high = np.concatenate([(s[:, 8:] >> 2 * i) & 3 for i in range(4)], axis=1)
    return (low | (high << 4)).astype(np.float32) - np.float32(32)


def _pairs(qs: np.ndarray) -> np.ndarray:
    """(n, 64) -> (n, 16, 16) 2-bit fields in order of the weights: halves of 128, shifts, groups of 16."""
    fields = qs.reshape(-1, 2, 1, 2, 16) >> np.array([0, 2, 4, 6], np.uint8).reshape(4, 1, 1) & 3
    return fields.reshape(-1, 16, 16)


def _pack_pairs(q: np.ndarray) -> np.ndarray:
    """The inverse of _pairs: (n, 256) -> (n, 64)."""
    fields = q.reshape(-1, 2, 4, 2, 16) << np.array([0, 2, 4, 6], np.uint8).reshape(4, 1, 1)
    return np.bitwise_or.reduce(fields, axis=2).reshape(-1, 64)


def _halves(qs: np.ndarray) -> np.ndarray:
    """(n, 128) -> (n, 8, 32) nibbles: 32 bytes hold the weights of two groups."""
    pairs = qs.reshape(-1, 4, 1, 32)
    return np.concatenate([pairs & 15, pairs >> 4], axis=2).reshape(-1, 8, 32)


def _pack_halves(q: np.ndarray) -> np.ndarray:
    q = q.reshape(-1, 4, 2, 32)
    return (q[:, :, 0] | (q[:, :, 1] << 4)).reshape(-1, 128)


def _de_q2_k(b: np.ndarray) -> np.ndarray:
    scale, q = b[:, :16], _pairs(b[:, 16:80]).astype(np.float32)
    d, dmin = _f16(b[:, 80:82]), _f16(b[:, 82:84])
    return (d * (scale & 15))[:, :, None] * q - (dmin * (scale >> 4))[:, :, None]


def _de_q3_k(b: np.ndarray) -> np.ndarray:
    # Bit 4 * half + shift / 2 of hmask[i] belongs to the weight whose 2 low bits are there.
    high = np.unpackbits(np.ascontiguousarray(b[:, :32]), axis=1, bitorder="little").reshape(-1, 2, 16, 8)
    high = high.transpose(0, 3, 1, 2).reshape(-1, 16, 16)
    q = _pairs(b[:, 32:96]).astype(np.float32) - np.where(high, 0, 4).astype(np.float32)
    return (_f16(b[:, 108:110]) * _scales3(b[:, 96:108]))[:, :, None] * q


def _de_q4_k(b: np.ndarray) -> np.ndarray:
    d, dmin = _f16(b[:, 0:2]), _f16(b[:, 2:4])
    scale, least = _scales4(b[:, 4:16])
    return (d * scale)[:, :, None] * _halves(b[:, 16:]).astype(np.float32) - (dmin * least)[:, :, None]


def _de_q5_k(b: np.ndarray) -> np.ndarray:
    d, dmin = _f16(b[:, 0:2]), _f16(b[:, 2:4])
    scale, least = _scales4(b[:, 4:16])
    high = b[:, None, 16:48] >> np.arange(8, dtype=np.uint8).reshape(8, 1) & 1
    q = (_halves(b[:, 48:]) | (high << 4)).astype(np.float32)
    return (d * scale)[:, :, None] * q - (dmin * least)[:, :, None]


def _de_q6_k(b: np.ndarray) -> np.ndarray:
    low = b[:, :128].reshape(-1, 2, 1, 64)
    low = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    high = b[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(4, 1) & 3
    q = (low | (high << 4)).astype(np.float32).reshape(-1, 16, 16) - np.float32(32)
    scale = np.ascontiguousarray(b[:, 192:208]).view(np.int8).astype(np.float32)
    return (_f16(b[:, 208:210]) * scale)[:, :, None] * q


#: The values of OCP's E2M1, doubled, as ggml counts them.
E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
LEVELS4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


def _de_iq4_xs(b: np.ndarray) -> np.ndarray:
    high = np.ascontiguousarray(b[:, 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    low = np.stack([b[:, 4:8] & 15, b[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    scale = (low | (high << 4)).astype(np.float32) - np.float32(32)
    q = LEVELS4[_nibbles(b[:, 8:].reshape(-1, 16))].reshape(-1, 8, 32)
    return (_f16(b[:, :2]) * scale)[:, :, None] * q


_DEQUANTIZE = {
    "Q4_0": lambda b: _f16(b[:, :2]) * (_nibbles(b[:, 2:]).astype(np.float32) - np.float32(8)),
    "Q4_1": lambda b: _f16(b[:, :2]) * _nibbles(b[:, 4:]).astype(np.float32) + _f16(b[:, 2:4]),
    "Q5_0": lambda b: (
        _f16(b[:, :2]) * ((_nibbles(b[:, 6:]) | (_bits32(b[:, 2:6]) << 4)).astype(np.float32) - np.float32(16))
    ),
    "Q5_1": lambda b: (
        _f16(b[:, :2]) * (_nibbles(b[:, 8:]) | (_bits32(b[:, 4:8]) << 4)).astype(np.float32) + _f16(b[:, 2:4])
    ),
    "Q8_0": lambda b: _f16(b[:, :2]) * np.ascontiguousarray(b[:, 2:]).view(np.int8).astype(np.float32),
    "Q2_K": _de_q2_k,
    "Q3_K": _de_q3_k,
    "Q4_K": _de_q4_k,
    "Q5_K": _de_q5_k,
    "Q6_K": _de_q6_k,
    "IQ4_NL": lambda b: _f16(b[:, :2]) * LEVELS4[_nibbles(b[:, 2:])],
    "IQ4_XS": _de_iq4_xs,
    "MXFP4": lambda b: np.ldexp(np.float32(1), b[:, :1].astype(int) - 128) * E2M1[_nibbles(b[:, 1:])],
}


def _levels(x: np.ndarray, scale: np.ndarray, least: int, most: int, offset: Any = 0) -> np.ndarray:
    """round((x + offset) / scale) clipped to [least, most]; 0 where the scale is 0. int64."""
    inverse = np.divide(1.0, scale, out=np.zeros_like(scale, dtype=np.float64), where=scale != 0)
    return np.clip(np.rint((x + offset) * inverse), least, most).astype(np.int64)


def _stored(values: np.ndarray) -> np.ndarray:
    """The value a float16 scale has once stored."""
    return values.astype("<f2").astype(np.float64)


def _qu_signed(x: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale (n,) and unsigned levels (n, 32) of a symmetric block, zero at 2 ** (bits - 1)."""
    half = 1 << (bits - 1)
    d = _stored(np.abs(x).max(axis=1) / (half - 1))
    return d, (_levels(x, d[:, None], -half, half - 1) + half).astype(np.uint8)


def _qu_range(x: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scale, minimum (n,) and levels (n, 32) of an asymmetric block."""
    top = (1 << bits) - 1
    least = _stored(x.min(axis=1))
    d = _stored((x.max(axis=1) - least) / top)
    return d, least, _levels(x, d[:, None], 0, top, -least[:, None]).astype(np.uint8)


def _pack_nibbles(q: np.ndarray) -> np.ndarray:
    return (q[:, :16] & 15) | ((q[:, 16:] & 15) << 4)


def _pack_bits32(q: np.ndarray) -> np.ndarray:
    return np.packbits(q >> 4 & 1, axis=1, bitorder="little")


def _qu_q4_0(x: np.ndarray) -> np.ndarray:
    d, q = _qu_signed(x, 4)
    return np.concatenate([_bytes16(d), _pack_nibbles(q)], axis=1)


def _qu_q4_1(x: np.ndarray) -> np.ndarray:
    d, least, q = _qu_range(x, 4)
    return np.concatenate([_bytes16(d), _bytes16(least), _pack_nibbles(q)], axis=1)


def _qu_q5_0(x: np.ndarray) -> np.ndarray:
    d, q = _qu_signed(x, 5)
    return np.concatenate([_bytes16(d), _pack_bits32(q), _pack_nibbles(q)], axis=1)


def _qu_q5_1(x: np.ndarray) -> np.ndarray:
    d, least, q = _qu_range(x, 5)
    return np.concatenate([_bytes16(d), _bytes16(least), _pack_bits32(q), _pack_nibbles(q)], axis=1)


def _qu_q8_0(x: np.ndarray) -> np.ndarray:
    d = _stored(np.abs(x).max(axis=1) / 127)
    q = _levels(x, d[:, None], -127, 127).astype(np.int8)
    return np.concatenate([_bytes16(d), q.view(np.uint8)], axis=1)


def _qu_groups(x: np.ndarray, groups: int, bits: int, scale_bits: int) -> tuple[np.ndarray, ...]:
    """An asymmetric super-block: d, dmin (n,), scales, minimums (n, groups) and levels (n, groups, -1)."""
    x = x.reshape(len(x), groups, -1).astype(np.float64)
    top, most = (1 << bits) - 1, (1 << scale_bits) - 1
    least = np.maximum(-x.min(axis=2), 0)
    step = (x.max(axis=2) + least) / top
    d, dmin = _stored(step.max(axis=1) / most), _stored(least.max(axis=1) / most)
    scale, minimum = _levels(step, d[:, None], 0, most), _levels(least, dmin[:, None], 0, most)
    q = _levels(x, (d[:, None] * scale)[:, :, None], 0, top, (dmin[:, None] * minimum)[:, :, None])
    return d, dmin, scale.astype(np.uint8), minimum.astype(np.uint8), q.astype(np.uint8)


def _qu_signed_groups(x: np.ndarray, bits: int, scale_bits: int) -> tuple[np.ndarray, ...]:
    """A symmetric super-block of 16 groups: d (n,), signed scales (n, 16), levels (n, 16, 16) from 0."""
    x = x.reshape(len(x), 16, 16).astype(np.float64)
    half, most = 1 << (bits - 1), (1 << (scale_bits - 1)) - 1
    step = np.abs(x).max(axis=2) / (half - 1)
    d = _stored(step.max(axis=1) / most)
    scale = _levels(step, d[:, None], -most, most)
    q = _levels(x, (d[:, None] * scale)[:, :, None], -half, half - 1) + half
    return d, scale, q.astype(np.uint8)


def _qu_q2_k(x: np.ndarray) -> np.ndarray:
    d, dmin, scale, minimum, q = _qu_groups(x, 16, 2, 4)
    return np.concatenate([scale | (minimum << 4), _pack_pairs(q), _bytes16(d), _bytes16(dmin)], axis=1)


def _qu_q3_k(x: np.ndarray) -> np.ndarray:
    d, scale, q = _qu_signed_groups(x, 3, 6)
    high = (q >> 2).reshape(-1, 8, 2, 16).transpose(0, 2, 3, 1).reshape(-1, 256)
    s = (scale + 32).astype(np.uint8)
    packed = (s[:, :8] & 15) | ((s[:, 8:] & 15) << 4)
    tops = np.bitwise_or.reduce([s[:, 4 * i : 4 * i + 4] >> 4 << 2 * i for i in range(4)], axis=0)
    return np.concatenate(
        [np.packbits(high, axis=1, bitorder="little"), _pack_pairs(q & 3), packed, tops, _bytes16(d)], axis=1
    )


def _qu_q4_k(x: np.ndarray) -> np.ndarray:
    d, dmin, scale, minimum, q = _qu_groups(x, 8, 4, 6)
    return np.concatenate([_bytes16(d), _bytes16(dmin), _pack_scales4(scale, minimum), _pack_halves(q)], axis=1)


def _qu_q5_k(x: np.ndarray) -> np.ndarray:
    d, dmin, scale, minimum, q = _qu_groups(x, 8, 5, 6)
    high = np.bitwise_or.reduce([(q[:, i] >> 4) << i for i in range(8)], axis=0)
    return np.concatenate(
        [_bytes16(d), _bytes16(dmin), _pack_scales4(scale, minimum), high, _pack_halves(q & 15)], axis=1
    )


def _qu_q6_k(x: np.ndarray) -> np.ndarray:
    d, scale, q = _qu_signed_groups(x, 6, 8)
    q = q.reshape(-1, 2, 4, 32)
    low = (q & 15).reshape(-1, 2, 2, 64)
    low = (low[:, :, 0] | (low[:, :, 1] << 4)).reshape(-1, 128)
    high = np.bitwise_or.reduce([(q[:, :, i] >> 4) << 2 * i for i in range(4)], axis=0).reshape(-1, 64)
    return np.concatenate([low, high, scale.astype(np.int8).view(np.uint8), _bytes16(d)], axis=1)


def _codes4(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The nearest of the 16 levels, times the scale; any where the scale is 0. uint8."""
    q = np.divide(x, scale, out=np.zeros_like(x), where=scale != 0)
    return np.abs(q[..., None] - LEVELS4.astype(np.float64)).argmin(axis=-1).astype(np.uint8)


def _qu_iq4_nl(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    d = _stored(np.abs(x).max(axis=1) / 113)
    return np.concatenate([_bytes16(d), _pack_nibbles(_codes4(x, d[:, None]))], axis=1)


def _qu_iq4_xs(x: np.ndarray) -> np.ndarray:
    x = x.reshape(len(x), 8, 32).astype(np.float64)
    step = np.abs(x).max(axis=2) / 113
    d = _stored(step.max(axis=1) / 31)
    scale = _levels(step, d[:, None], -32, 31)
    codes = _codes4(x, (d[:, None] * scale)[:, :, None])
    s = (scale + 32).astype(np.uint16)
    high = np.bitwise_or.reduce(s >> 4 << np.arange(0, 16, 2, dtype=np.uint16), axis=1)
    low = (s[:, ::2] & 15 | (s[:, 1::2] & 15) << 4).astype(np.uint8)
    packed = _pack_nibbles(codes.reshape(-1, 32)).reshape(-1, 128)
    return np.concatenate([_bytes16(d), high.astype("<u2").reshape(-1, 1).view(np.uint8), low, packed], axis=1)


def _qu_mxfp4(x: np.ndarray) -> np.ndarray:
    largest = np.abs(x).max(axis=1)
    exponent = np.where(largest > 0, np.floor(np.log2(np.maximum(largest, 1e-30))) - 2 + 127, 0).astype(np.int64)
    scaled = x / np.ldexp(np.float64(1), exponent - 128)[:, None]
    codes = np.abs(scaled[..., None] - E2M1.astype(np.float64)).argmin(axis=-1).astype(np.uint8)
    return np.concatenate([exponent.astype(np.uint8)[:, None], _pack_nibbles(codes)], axis=1)


_QUANTIZE = {
    "Q4_0": _qu_q4_0, "Q4_1": _qu_q4_1, "Q5_0": _qu_q5_0, "Q5_1": _qu_q5_1, "Q8_0": _qu_q8_0,
    "Q2_K": _qu_q2_k, "Q3_K": _qu_q3_k, "Q4_K": _qu_q4_k, "Q5_K": _qu_q5_k, "Q6_K": _qu_q6_k,
    "IQ4_NL": _qu_iq4_nl, "IQ4_XS": _qu_iq4_xs, "MXFP4": _qu_mxfp4,
}  # fmt: skip


# --- Meta -------------------------------------------------------------------------------------------

META_NAMES = {
    "model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output",
    "model.layers.": "layers.",
    "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv", "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2", "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
TORCH_STORAGES = {"F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage"}


def meta_params(config: dict[str, Any]) -> dict[str, Any]:
    """params.json of a llama config: Llama 3's keys, which are a superset of Llama 1's and 2's."""
    params = {
        "dim": config["hidden_size"],
        "n_layers": config["num_hidden_layers"],
        "n_heads": config["num_attention_heads"],
        "n_kv_heads": config["num_key_value_heads"],
        "vocab_size": config["vocab_size"],
        "multiple_of": 16,
        "norm_eps": config["rms_norm_eps"],
        "rope_theta": config["rope_theta"],
    }
    if config.get("rope_scaling"):
        params["use_scaled_rope"] = True
    return params


def meta_shard(
    config: dict[str, Any],
    tensors: dict[str, np.ndarray],
    shard: int,
    shards: int,
    embedding: str = "columns",
) -> dict[str, np.ndarray]:
    """What consolidated.<shard>.pth holds, under Meta's names. embedding: "columns" or "rows"."""
    mine = {}
    for name, values in tensors.items():
        values = _interleaved(config, name, values)
        if values.ndim == 2:
            by_columns = any(key in name for key in ("o_proj", "down_proj"))
            by_columns |= "embed_tokens" in name and embedding == "columns"
            values = np.split(values, shards, axis=1 if by_columns else 0)[shard]
        for ours, theirs in META_NAMES.items():
            name = name.replace(ours, theirs)
        mine[name] = values
    head_dim = _sizes(config)[4]
    mine["rope.freqs"] = (config["rope_theta"] ** -(np.arange(0, head_dim, 2) / head_dim)).astype(np.float32)
    return mine


def _pickle_text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def _pickle_int(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def _pickle_ints(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(_pickle_int, values)) + b"t"


def torch_pickle(records: list[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """data.pkl of a dict of tensors (name, dtype, shape), tensor i in storage i: protocol 2, as torch's."""
    out = [b"\x80\x02}q\x00("]
    for key, (name, dtype, shape) in enumerate(records):
        count = int(np.prod(shape))
        strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
        out.append(_pickle_text(name))
        out.append(b"ctorch._utils\n_rebuild_tensor_v2\n(")
        out.append(b"(" + _pickle_text("storage") + f"ctorch\n{TORCH_STORAGES[dtype]}\n".encode())
        out.append(_pickle_text(str(key)) + _pickle_text("cpu") + _pickle_int(count) + b"tQ")
        out.append(_pickle_int(0) + _pickle_ints(shape) + _pickle_ints(strides) + b"\x89")
        out.append(b"ccollections\nOrderedDict\n)RtR")
    out.append(b"u.")
    return b"".join(out)


def write_torch_archive(path: Path, program: bytes, storages: list[bytes]) -> None:
    """A zip of stored entries like torch.save's: data.pkl, byteorder, data/0.., version; data 64-aligned."""
    entries = [(f"{path.stem}/data.pkl", program), (f"{path.stem}/byteorder", b"little")]
    entries += [(f"{path.stem}/data/{i}", blob) for i, blob in enumerate(storages)]
    entries.append((f"{path.stem}/version", b"3\n"))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, blob in entries:
            info = zipfile.ZipInfo(name)
            start = archive.fp.tell() + 30 + len(name) + 4
            info.extra = struct.pack("<2sH", b"FB", -start % 64) + b"Z" * (-start % 64)
            archive.writestr(info, blob)


def write_meta(
    folder: Path,
    config: dict[str, Any],
    tensors: dict[str, np.ndarray],
    dtype: str = "BF16",
    shards: int = 1,
    embedding: str = "columns",
) -> Path:
    """params.json and consolidated.NN.pth, cut as Meta cut 13B (2 shards) and 70B (8). Returns the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(meta_params(config)))
    for shard in range(shards):
        mine = meta_shard(config, tensors, shard, shards, embedding)
        kinds = {name: "F32" if name == "rope.freqs" else dtype for name in mine}
        program = torch_pickle([(name, kinds[name], values.shape) for name, values in mine.items()])
        storages = [encode_plain(kinds[name], values) for name, values in mine.items()]
        write_torch_archive(folder / f"consolidated.{shard:02}.pth", program, storages)
    return folder
