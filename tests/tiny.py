"""Tiny random models and their writers in every form pyllama reads: NumPy and the standard library only.

`tiny_config` and `random_tensors` make a model; `write_huggingface`, `write_gguf` and `write_meta` store
the same weights in the three forms, as the original tools do: the GGUF and Meta writers put the rows of
q and k in interleaved rotary order. `quantize` and `dequantize` are plain references of the ggml formats,
written for reading and not for speed.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


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
    if model_type == "mistral":
        config["sliding_window"] = 16
    config.update(overrides)
    return {key: value for key, value in config.items() if value is not None or key == "sliding_window"}


def _sizes(config: dict[str, Any]) -> tuple[int, int, int, int, int]:
    """hidden, inner, heads, kv_heads, head_dim."""
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    kv_heads = config.get("num_key_value_heads") or heads
    return config["hidden_size"], config["intermediate_size"], heads, kv_heads, head_dim


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """name -> shape of the model that `config` describes, written down apart from pyllama's own list."""
    hidden, inner, heads, kv_heads, head_dim = _sizes(config)
    kind = config["model_type"]
    attention_bias = config.get("attention_bias", False)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for i in range(config["num_hidden_layers"]):
        layer = {
            "input_layernorm.weight": (hidden,),
            "self_attn.q_proj.weight": (heads * head_dim, hidden),
            "self_attn.k_proj.weight": (kv_heads * head_dim, hidden),
            "self_attn.v_proj.weight": (kv_heads * head_dim, hidden),
            "self_attn.o_proj.weight": (hidden, heads * head_dim),
            "post_attention_layernorm.weight": (hidden,),
            "mlp.gate_proj.weight": (inner, hidden),
            "mlp.up_proj.weight": (inner, hidden),
            "mlp.down_proj.weight": (hidden, inner),
        }
        if kind == "qwen2" or attention_bias:
            layer["self_attn.q_proj.bias"] = (heads * head_dim,)
            layer["self_attn.k_proj.bias"] = (kv_heads * head_dim,)
            layer["self_attn.v_proj.bias"] = (kv_heads * head_dim,)
        if kind in ("llama", "qwen3") and attention_bias:
            layer["self_attn.o_proj.bias"] = (hidden,)
        if kind == "llama" and config.get("mlp_bias"):
            layer["mlp.gate_proj.bias"] = (inner,)
            layer["mlp.up_proj.bias"] = (inner,)
            layer["mlp.down_proj.bias"] = (hidden,)
        if kind == "qwen3":
            layer["self_attn.q_norm.weight"] = (head_dim,)
            layer["self_attn.k_norm.weight"] = (head_dim,)
        shapes.update({f"model.layers.{i}.{name}": shape for name, shape in layer.items()})
    shapes["model.norm.weight"] = (hidden,)
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def random_tensors(config: dict[str, Any], seed: int = 0, dtype: str = "BF16") -> dict[str, np.ndarray]:
    """name -> float32 array whose values `dtype` ("F32", "F16", "BF16") holds exactly.

    Matrices are scaled so that activations keep their size from layer to layer and the logits differ
    clearly; norms are around 1.
    """
    random = np.random.default_rng(seed)
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        values = random.standard_normal(shape)
        if name.endswith("norm.weight"):
            values = 1.0 + 0.2 * values
        elif name.endswith(".bias"):
            values = 0.3 * values
        else:
            values = values / np.sqrt(shape[1]) * (3.0 if "embed" in name or "lm_head" in name else 1.0)
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
        blob = encode_plain(dtype, values)
        header[name] = {
            "dtype": dtype,
            "shape": list(values.shape),
            "data_offsets": [position, position + len(blob)],
        }
        position += len(blob)
        blobs.append(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


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
    index = {"metadata": {"total_size": sum(t.size for t in tensors.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return folder
