"""Captures tests/golden/ from transformers: tiny models of every architecture, and SmolLM2 from a GGUF file.

    python tests/make_golden.py [CASE ...]           tiny models, seconds each; all of them without arguments
    python tests/make_golden.py --smollm2 FILE.gguf  greedy tokens of the real model, dequantized to float32

Needs torch, transformers (5.x) and, for the GGUF, gguf. Nothing of pyllama takes part: the names and shapes
of a model's tensors come from transformers, their values from `reference.random_tensor`. Of a tiny model two
files are kept. CASE.json: the config as transformers 5 writes it and as transformers 4 wrote it, the seed of
the weights, the prompt and 64 greedy tokens. CASE.npz: of each row of logits (prompt, then one per greedy
token but the last) a sample of columns that moves from row to row, the largest magnitude, and two rows whole.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent / "support"))

import mxfp4_folder
import reference
import tiny
from golden import FOLDER, sampled_columns

PROMPT_TOKENS = 24
GREEDY_TOKENS = 64
#: A step's best logit must lead by this much of the largest: ten times what two correct runs may differ by.
SMALLEST_GAP = 1e-3
FEWEST_DISTINCT = 24


def case(
    model_type: str,
    heads: int,
    kv_heads: int | None,
    head_dim: int,
    *,
    hidden: int | None = None,
    inner: int = 77,
    layers: int = 2,
    vocab: int = 307,
    theta: float | None = 10000.0,
    eps: float = 1e-5,
    tied: bool = False,
    explicit_head_dim: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """A config.json in transformers 4's words; head_dim if hidden_size does not imply it, or on request."""
    architecture = {
        "llama": "LlamaForCausalLM",
        "mistral": "MistralForCausalLM",
        "qwen2": "Qwen2ForCausalLM",
        "qwen3": "Qwen3ForCausalLM",
        "qwen3_moe": "Qwen3MoeForCausalLM",
        "mixtral": "MixtralForCausalLM",
        "gpt_oss": "GptOssForCausalLM",
        "gemma2": "Gemma2ForCausalLM",
        "gemma3_text": "Gemma3ForCausalLM",
        "gemma4_text": "Gemma4ForCausalLM",
        "gemma4_unified_text": "Gemma4UnifiedForCausalLM",
        "smollm3": "SmolLM3ForCausalLM",
        "olmo2": "Olmo2ForCausalLM",
        "olmo3": "Olmo3ForCausalLM",
        "granite": "GraniteForCausalLM",
        "granitemoe": "GraniteMoeForCausalLM",
        "granitemoehybrid": "GraniteMoeHybridForCausalLM",
        "ministral3": "Ministral3ForCausalLM",
        "phi3": "Phi3ForCausalLM",
        "lfm2": "Lfm2ForCausalLM",
        "qwen3_5_text": "Qwen3_5ForCausalLM",
        "lfm2_moe": "Lfm2MoeForCausalLM",
        "qwen3_5_moe_text": "Qwen3_5MoeForCausalLM",
    }[model_type]
    config: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_act": "silu",
        "hidden_size": hidden or heads * head_dim,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "rms_norm_eps": eps,
        "rope_theta": theta,
        "max_position_embeddings": 128,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }
    if kv_heads is None:
        del config["num_key_value_heads"]
    if theta is None:  # said in rope_parameters
        del config["rope_theta"]
    if explicit_head_dim or config["hidden_size"] != heads * head_dim:
        config["head_dim"] = head_dim
    return config | more


LLAMA31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
GEMMA = {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "tied": True, "eps": 1e-6}
#: Never written by transformers 4: the same in both forms.
GEMMA4 = GEMMA | {
    "theta": None,
    "explicit_head_dim": True,
    "pad_token_id": 0,
    "sliding_window": 11,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 1000.0},
    },
}
QWEN_WINDOW = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}

PHI4 = {"max_position_embeddings": 512, "sliding_window": 262144, "pad_token_id": 0}


def longrope(pairs: int, original: int) -> dict[str, Any]:
    """Rotary factors of Phi's kind: near 1 for short contexts, growing with the wavelength for long ones."""
    scaling = {
        "type": "longrope",
        "short_factor": [1.0 + 0.25 * i for i in range(pairs)],
        "long_factor": [1.2 + 0.9 * i for i in range(pairs)],
    }
    return {"rope_scaling": scaling, "original_max_position_embeddings": original}


CASES = {
    # Llama 1: no grouped heads, no such key in the config.
    "llama1": case("llama", 7, None, 6, layers=3, inner=50, eps=1e-6),
    "llama2": case("llama", 5, 1, 10, inner=83, rope_scaling=None),
    "llama_bias": case("llama", 3, 3, 16, hidden=45, attention_bias=True, mlp_bias=True),
    "llama31": case("llama", 15, 5, 16, hidden=60, theta=500000.0, rope_scaling=LLAMA31, eos_token_id=[2, 3, 4]),
    "llama32": case(
        "llama",
        3,
        1,
        24,
        tied=True,
        theta=500000.0,
        explicit_head_dim=True,
        rope_scaling=LLAMA31 | {"factor": 32.0, "original_max_position_embeddings": 16},
    ),
    "llama_linear": case("llama", 7, 7, 10, rope_scaling={"type": "linear", "factor": 2.5}),
    "llama_yarn_factor": case(
        "llama",
        5,
        5,
        24,
        hidden=65,
        rope_scaling={
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            "attention_factor": 0.8,
            "beta_fast": 16,
            "beta_slow": 2,
        },
    ),
    # No original_max_position_embeddings: max_position_embeddings stands in.
    "llama_yarn_mscale": case(
        "llama",
        3,
        1,
        40,
        hidden=51,
        rope_scaling={"rope_type": "yarn", "factor": 8.0, "mscale": 1.3, "mscale_all_dim": 0.7},
    ),
    "llama_yarn_exact": case(
        "llama",
        7,
        1,
        16,
        hidden=84,
        rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "truncate": False},
    ),
    "mistral_window": case("mistral", 10, 5, 16, hidden=70, layers=3, sliding_window=11, inner=100),
    "mistral_full": case("mistral", 5, 1, 40, hidden=90, sliding_window=None, theta=1000000.0),
    "qwen2": case(
        "qwen2",
        7,
        1,
        16,
        tied=True,
        eps=1e-6,
        theta=1000000.0,
        use_sliding_window=False,
        sliding_window=8,
        max_window_layers=1,
        layers=3,
    ),
    "qwen2_window": case("qwen2", 5, 5, 10, layers=3, eps=1e-6, **QWEN_WINDOW),
    # Qwen2.5 beyond 32k: YaRN as its model card says to write it.
    "qwen25_yarn": case(
        "qwen2",
        3,
        1,
        24,
        eps=1e-6,
        theta=1000000.0,
        rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    ),
    "qwen3": case("qwen3", 5, 1, 64, hidden=70, eps=1e-6, theta=1000000.0, attention_bias=False, vocab=131),
    "qwen3_window": case(
        "qwen3", 7, 7, 10, hidden=49, layers=3, eps=1e-6, tied=True, attention_bias=True, **QWEN_WINDOW
    ),
    # Weights over all experts, and a layer without; then over those chosen, as the published models have it.
    "qwen3_moe": case(
        "qwen3_moe",
        5,
        1,
        16,
        hidden=70,
        eps=1e-6,
        theta=1000000.0,
        layers=3,
        attention_bias=False,
        num_experts=9,
        num_experts_per_tok=3,
        moe_intermediate_size=41,
        norm_topk_prob=False,
        mlp_only_layers=[1],
        decoder_sparse_step=1,
    ),
    "qwen3_moe_norm": case(
        "qwen3_moe",
        6,
        3,
        12,
        hidden=49,
        eps=1e-6,
        tied=True,
        attention_bias=True,
        num_experts=16,
        num_experts_per_tok=4,
        moe_intermediate_size=30,
        norm_topk_prob=True,
        use_sliding_window=True,
        sliding_window=9,
    ),
    "gpt_oss": case(
        "gpt_oss",
        6,
        2,
        16,
        hidden=48,
        inner=53,
        layers=3,
        theta=10000.0,
        num_local_experts=6,
        num_experts_per_tok=2,
        sliding_window=9,
        swiglu_limit=7.0,
        swiglu_alpha=1.702,
        attention_bias=True,
        tie_word_embeddings=False,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_scaling={
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
        },
    ),
    # As published: read by transformers from a folder of MXFP4, and widened there.
    "gpt_oss_mxfp4": case(
        "gpt_oss",
        6,
        2,
        16,
        hidden=64,
        inner=96,
        layers=3,
        num_local_experts=5,
        num_experts_per_tok=2,
        sliding_window=9,
        swiglu_limit=7.0,
        attention_bias=True,
        tie_word_embeddings=False,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "truncate": False},
        quantization_config=mxfp4_folder.QUANTIZATION,
    ),
    "mixtral": case(
        "mixtral", 6, 2, 12, theta=1000000.0, num_local_experts=5, num_experts_per_tok=2, sliding_window=None
    ),
    "smollm2": case("llama", 9, 3, 10, layers=3, theta=100000.0, tied=True, attention_bias=False),
    "gemma2": case(
        "gemma2",
        6,
        3,
        10,
        hidden=54,
        layers=3,
        query_pre_attn_scalar=14,
        sliding_window=9,
        attn_logit_softcapping=6.0,
        final_logit_softcapping=90.0,
        **GEMMA,
    ),
    # Two full layers among seven, rotated by another theta and scaled; no caps, which the class has as null.
    "gemma3": case(
        "gemma3_text",
        4,
        1,
        18,
        hidden=68,
        layers=4,
        theta=1000000.0,
        rope_local_base_freq=10000.0,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
        query_pre_attn_scalar=25,
        sliding_window=11,
        sliding_window_pattern=3,
        **GEMMA,
    ),
    # E2B and E4B: embeddings for each layer, layers that read the keys of others and have a wider mlp.
    "gemma4_e2b": case(
        "gemma4_text",
        6,
        2,
        10,
        hidden=66,
        layers=6,
        global_head_dim=18,
        layer_types=["sliding_attention", "full_attention"] * 3,
        num_kv_shared_layers=2,
        use_double_wide_mlp=True,
        hidden_size_per_layer_input=14,
        vocab_size_per_layer_input=307,
        final_logit_softcapping=40.0,
        **GEMMA4,
    ),
    # 31B, and the 12B without towers: values that are keys, fewer heads for them.
    "gemma4_31b": case(
        "gemma4_text",
        6,
        3,
        14,
        hidden=60,
        layers=4,
        global_head_dim=22,
        attention_k_eq_v=True,
        num_global_key_value_heads=1,
        hidden_size_per_layer_input=0,
        layer_types=["sliding_attention", "full_attention"] * 2,
        final_logit_softcapping=50.0,
        **GEMMA4,
    ),
    # 26B-A4B: experts beside the mlp of each layer.
    "gemma4_26b": case(
        "gemma4_text",
        6,
        3,
        12,
        hidden=54,
        layers=3,
        inner=43,
        global_head_dim=20,
        attention_k_eq_v=True,
        num_global_key_value_heads=2,
        hidden_size_per_layer_input=0,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        enable_moe_block=True,
        num_experts=7,
        top_k_experts=3,
        moe_intermediate_size=29,
        final_logit_softcapping=60.0,
        **GEMMA4,
    ),
    "gemma4_12b": case(
        "gemma4_unified_text",
        4,
        2,
        12,
        hidden=70,
        layers=3,
        global_head_dim=20,
        attention_k_eq_v=True,
        num_global_key_value_heads=2,
        use_bidirectional_attention="vision",
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        **GEMMA4,
    ),
    "phi3": case("phi3", 5, 1, 14, sliding_window=13, original_max_position_embeddings=128, pad_token_id=0),
    # Phi-4-mini: three quarters of a head are rotated. Texts shorter than the original context, and longer ones.
    "phi3_short": case("phi3", 6, 2, 16, tied=True, partial_rotary_factor=0.75, **longrope(6, 128), **PHI4),
    "phi3_long": case("phi3", 5, 5, 16, layers=3, partial_rotary_factor=0.75, **longrope(6, 16), **PHI4),
    "smollm3": case("smollm3", 6, 2, 10, layers=5, theta=2000000.0, tied=True, pad_token_id=0),
    "smollm3_window": case(
        "smollm3",
        5,
        5,
        12,
        layers=3,
        no_rope_layers=[1, 0, 1],
        pad_token_id=0,
        attention_bias=True,
        mlp_bias=True,
        use_sliding_window=True,
        sliding_window=9,
    ),
    "olmo2": case("olmo2", 5, 1, 14, layers=3, theta=500000.0),
    "olmo3": case(
        "olmo3",
        4,
        2,
        14,
        layers=5,
        theta=500000.0,
        sliding_window=10,
        rope_scaling={
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 64,
            "beta_fast": 32,
            "beta_slow": 1,
            "attention_factor": 1.2079441541679836,
        },
    ),
    "granite": case(
        "granite",
        6,
        2,
        10,
        layers=3,
        embedding_multiplier=3.0,
        attention_multiplier=0.21,
        residual_multiplier=0.4,
        logits_scaling=5.0,
        attention_bias=False,
        mlp_bias=False,
    ),
    "granitemoe": case(
        "granitemoe",
        6,
        2,
        10,
        layers=3,
        inner=39,
        num_local_experts=7,
        num_experts_per_tok=3,
        embedding_multiplier=3.0,
        attention_multiplier=0.21,
        residual_multiplier=0.4,
        logits_scaling=5.0,
        attention_bias=False,
    ),
    # Granite 4's dense models, under the class of its hybrids; and one that rotates nothing.
    "granite4": case(
        "granitemoehybrid",
        6,
        2,
        10,
        layers=3,
        inner=50,
        shared_intermediate_size=77,
        num_local_experts=0,
        num_experts_per_tok=0,
        layer_types=["attention"] * 3,
        position_embedding_type="rope",
        mamba_n_heads=8,
        tied=True,
        embedding_multiplier=0.6,
        attention_multiplier=0.21,
        residual_multiplier=0.8,
        logits_scaling=5.0,
        attention_bias=False,
    ),
    "granite4_nope": case(
        "granitemoehybrid",
        5,
        1,
        14,
        inner=50,
        shared_intermediate_size=61,
        num_local_experts=0,
        num_experts_per_tok=0,
        layer_types=["attention"] * 2,
        position_embedding_type="nope",
        mamba_n_heads=4,
        embedding_multiplier=3.0,
        attention_multiplier=0.21,
        residual_multiplier=0.6,
        logits_scaling=5.0,
        attention_bias=False,
    ),
    "ministral3": case(
        "ministral3",
        6,
        2,
        16,
        hidden=66,
        layers=2,
        theta=100.0,
        sliding_window=None,
        rope_scaling={
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.7,
        },
    ),
    # Two short convolutions before each attention; the width is derived, as in the published files.
    "lfm2": case(
        "lfm2",
        6,
        2,
        12,
        hidden=66,
        inner=90,
        layers=5,
        eps=1e-5,
        tied=True,
        theta=1000000.0,
        norm_eps=3e-5,
        block_ff_dim=90,
        block_auto_adjust_ff_dim=True,
        block_ffn_dim_multiplier=1.0,
        block_multiple_of=7,
        conv_L_cache=3,
        conv_bias=False,
        full_attn_idxs=[2, 4],
        pad_token_id=0,
    ),
    "lfm2_bias": case(
        "lfm2",
        5,
        5,
        14,
        hidden=70,
        inner=61,
        layers=4,
        theta=10000.0,
        norm_eps=1e-5,
        block_auto_adjust_ff_dim=False,
        conv_L_cache=5,
        conv_bias=True,
        layer_types=["conv", "full_attention", "conv", "conv"],
        pad_token_id=0,
    ),
    # Two value heads for each key head, of another size; a quarter of a head is rotated.
    "qwen35": case(
        "qwen3_5_text",
        4,
        2,
        24,
        hidden=66,
        layers=4,
        eps=1e-6,
        theta=1000000.0,
        partial_rotary_factor=0.25,
        attention_bias=False,
        linear_conv_kernel_dim=4,
        linear_key_head_dim=20,
        linear_value_head_dim=36,
        linear_num_key_heads=3,
        linear_num_value_heads=6,
        full_attention_interval=4,
    ),
    "qwen35_tied": case(
        "qwen3_5_text",
        3,
        1,
        16,
        hidden=50,
        layers=3,
        eps=1e-6,
        tied=True,
        theta=10000.0,
        partial_rotary_factor=0.5,
        attention_bias=False,
        linear_conv_kernel_dim=3,
        linear_key_head_dim=32,
        linear_value_head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
    ),
    # Experts chosen by a sigmoid and a number of their own, in all layers but the first; and weighed as they come.
    "lfm2_moe": case(
        "lfm2_moe",
        6,
        2,
        12,
        hidden=66,
        inner=90,
        layers=4,
        tied=True,
        theta=1000000.0,
        norm_eps=3e-5,
        conv_L_cache=3,
        conv_bias=False,
        layer_types=["conv", "conv", "full_attention", "conv"],
        num_dense_layers=1,
        num_experts=9,
        num_experts_per_tok=3,
        moe_intermediate_size=37,
        norm_topk_prob=True,
        use_expert_bias=True,
        routed_scaling_factor=1.0,
        pad_token_id=0,
    ),
    "lfm2_moe_scaled": case(
        "lfm2_moe",
        5,
        5,
        14,
        hidden=70,
        inner=61,
        layers=3,
        tied=True,
        theta=10000.0,
        norm_eps=1e-5,
        conv_L_cache=4,
        conv_bias=True,
        layer_types=["conv", "full_attention", "conv"],
        num_dense_layers=0,
        num_experts=6,
        num_experts_per_tok=2,
        moe_intermediate_size=30,
        norm_topk_prob=False,
        use_expert_bias=False,
        routed_scaling_factor=1.5,
        pad_token_id=0,
    ),
    # Qwen3.5's layers, each with experts and an mlp that all tokens go through, by a gate.
    "qwen35_moe": case(
        "qwen3_5_moe_text",
        4,
        2,
        24,
        hidden=66,
        layers=4,
        eps=1e-6,
        theta=1000000.0,
        partial_rotary_factor=0.25,
        attention_bias=False,
        linear_conv_kernel_dim=4,
        linear_key_head_dim=20,
        linear_value_head_dim=36,
        linear_num_key_heads=3,
        linear_num_value_heads=6,
        full_attention_interval=4,
        num_experts=9,
        num_experts_per_tok=3,
        moe_intermediate_size=41,
        shared_expert_intermediate_size=53,
    ),
    "tinyllama": case("llama", 12, 3, 6, inner=100, pretraining_tp=1, rope_scaling=None, vocab=259),
}


def prompt_of(name: str, vocab_size: int, count: int) -> list[int]:
    """Seeded token ids; BOS first, as a tokenizer would."""
    noise = reference.random_tensor("prompt.bias", (count - 1,), sum(name.encode()))
    return [1] + (3 + np.abs(noise * 1e4).astype(np.int64) % (vocab_size - 3)).tolist()


def transformers_model(config: dict[str, Any], tensors_of: Any) -> Any:
    """A transformers model in float32 with eager attention; tensors_of(name, shape) -> float32 array."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = AutoConfig.for_model(**json.loads(json.dumps(config)))
    model = AutoModelForCausalLM.from_config(
        settings, attn_implementation="eager", experts_implementation="eager", dtype=torch.float32
    )
    tied = "lm_head.weight" if config["tie_word_embeddings"] else None
    with torch.no_grad():
        for name, parameter in model.state_dict().items():
            if name != tied:
                values = np.array(tensors_of(name, tuple(parameter.shape)), dtype=np.float32)
                parameter.copy_(torch.from_numpy(values))
    return model.eval()


def from_folder(config: dict[str, Any], seed: int) -> Any:
    """The same of gpt-oss, read by transformers from a folder such as the published one."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, Mxfp4Config

    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.for_model(**json.loads(json.dumps(plain))))
    shapes = {name: tuple(parameter.shape) for name, parameter in empty.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        tiny.write_huggingface(Path(folder), config, mxfp4_folder.stored_weights(shapes, seed))
        return AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            experts_implementation="eager",
            quantization_config=Mxfp4Config(dequantize=True),
        ).eval()


def oracle_logits(model: Any, token_ids: list[int]) -> np.ndarray:
    """Float32 logits (T, V) of one pass without a cache, on one thread."""
    import torch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    with torch.no_grad():
        return model(torch.tensor([token_ids]), use_cache=False).logits[0].numpy()


def oracle_greedy(model: Any, token_ids: list[int], count: int) -> tuple[list[int], np.ndarray]:
    """count greedy tokens, by transformers' own loop and cache, and the logits each was chosen from."""
    import torch

    torch.set_num_threads(1)
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        ids = torch.tensor([token_ids])
        result = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=count,
            output_logits=True,
            return_dict_in_generate=True,
        )
    greedy = result.sequences[0, len(token_ids) :].tolist()
    return greedy, torch.cat(result.logits).numpy()


def gaps(logits: np.ndarray) -> np.ndarray:
    """Best minus second best logit of each row."""
    best = np.partition(logits, -2, axis=-1)
    return best[:, -1] - best[:, -2]


def capture(name: str, config: dict[str, Any]) -> str:
    """Finds a seed whose greedy path is clear and lively, writes both files, returns a line about them."""
    import transformers

    vocab_size = config["vocab_size"]
    prompt = prompt_of(name, vocab_size, PROMPT_TOKENS)
    for seed in range(200):
        if "quantization_config" in config:
            model = from_folder(config, seed)
        else:
            model = transformers_model(config, partial(reference.random_tensor, seed=seed))
        greedy, chosen_from = oracle_greedy(model, prompt, GREEDY_TOKENS)
        clear = gaps(chosen_from) / np.abs(chosen_from).max(axis=-1)
        if clear.min() >= SMALLEST_GAP and len(set(greedy)) >= FEWEST_DISTINCT:
            break
    else:
        raise SystemExit(f"{name}: no seed below 200 gives a clear and lively continuation")

    logits = oracle_logits(model, prompt + greedy[:-1])
    if logits[len(prompt) - 1 :].argmax(axis=-1).tolist() != greedy:
        raise SystemExit(f"{name}: transformers disagrees with itself with and without its cache")
    whole = [len(prompt) - 1, len(logits) - 1]
    np.savez_compressed(
        FOLDER / f"{name}.npz",
        sampled=np.stack([row[sampled_columns(t, vocab_size)] for t, row in enumerate(logits)]),
        largest=np.abs(logits).max(axis=-1),
        whole_rows=np.array(whole),
        whole=logits[whole],
    )
    version5 = json.loads(model.config.to_json_string())
    version5 |= {"architectures": config["architectures"], "dtype": config["torch_dtype"]}
    if "quantization_config" in config:  # widened, the model has none any more
        version5["quantization_config"] = config["quantization_config"]
    record = {
        "made_with": f"transformers {transformers.__version__}",
        "seed": seed,
        "prompt": prompt,
        "greedy": greedy,
        "smallest_gap": float(f"{clear.min():.3e}"),
        "config_v4": config,
        "config": version5,
    }
    write_json(FOLDER / f"{name}.json", record)
    return (
        f"{name}: seed {seed}, {len(set(greedy))} different tokens, smallest gap {clear.min():.1e} of the largest logit"
    )


def write_json(path: Path, record: dict[str, Any]) -> None:
    """A key a line, so that a change of one thing shows as one line."""
    lines = (f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in record.items())
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


# ------------------------------------------------------------------------------------------------- SmolLM2

SMOLLM2_PROMPTS = (
    ("raw", "Once upon a time"),
    ("raw", "The three laws of thermodynamics are:\n1."),
    ("raw", 'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n'),
    ("chat", "What is the capital of France, and what is it famous for?"),
    ("chat", "Explain in two sentences why the sky is blue."),
    ("chat", "Écris une phrase en français sur la mer, puis « 1 + 1 = ? » 🙂"),
)


def gguf_tensors(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A llama GGUF file as a transformers config and float32 tensors, q/k rows put in half-split order."""
    from gguf import GGUFReader, dequantize

    reader = GGUFReader(path)
    meta = {key: field.contents() for key, field in reader.fields.items()}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": meta["llama.embedding_length"],
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": meta["llama.attention.head_count"],
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "vocab_size": len(meta["tokenizer.ggml.tokens"]),
        "rope_theta": meta["llama.rope.freq_base"],
        "rms_norm_eps": meta["llama.attention.layer_norm_rms_epsilon"],
        "max_position_embeddings": meta["llama.context_length"],
    }
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    parts = {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    heads_of = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    tensors = {}
    for tensor in reader.tensors:
        stem = tensor.name.removesuffix(".weight")
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if stem.startswith("blk."):
            _, layer, part = stem.split(".")
            if part in heads_of:
                values = split_rows(values, heads_of[part])
            stem = f"model.layers.{layer}.{parts[part]}"
        else:
            stem = names[stem]
        tensors[stem + ".weight"] = values
    config["tie_word_embeddings"] = "lm_head.weight" not in tensors
    return config, tensors


def split_rows(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a q or k projection from interleaved to half-split order: undoes reference.interleave_rows."""
    return weight.reshape(heads, weight.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def capture_smollm2(path: Path) -> None:
    """Greedy tokens of SMOLLM2_PROMPTS and the gap between the two best logits of each step, in one file."""
    import transformers

    config, tensors = gguf_tensors(path)
    model = transformers_model(config, lambda name, shape: tensors.pop(name).reshape(shape))
    if tensors:
        raise SystemExit(f"{path}: tensors the model has no place for: {sorted(tensors)}")
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    record: dict[str, Any] = {
        "made_with": f"transformers {transformers.__version__}",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "prompts": [],
    }
    for kind, text in SMOLLM2_PROMPTS:
        if kind == "chat":
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
            )
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        greedy, chosen_from = oracle_greedy(model, ids, GREEDY_TOKENS)
        step_gaps = [float(f"{gap:.4g}") for gap in gaps(chosen_from)]
        record["prompts"].append(
            {
                "prompt": text,
                "prompt_ids": ids,
                "greedy": greedy,
                "gaps": step_gaps,
                "continuation": tokenizer.decode(greedy),
            }
        )
        print(f"{text[-50:]!r}: {len(ids)} tokens, smallest gap {min(step_gaps):.2g}\n    {tokenizer.decode(greedy)!r}")
    prompts = record.pop("prompts")
    head = "".join(f"  {json.dumps(key)}: {json.dumps(value)},\n" for key, value in record.items())
    body = ",\n".join("    " + json.dumps(prompt, ensure_ascii=False) for prompt in prompts)
    text = "{\n" + head + '  "prompts": [\n' + body + "\n  ]\n}\n"
    (FOLDER / "smollm2_gguf.json").write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="capture golden vectors with transformers")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument("--smollm2", type=Path, metavar="FILE.gguf", help="capture the real model instead")
    arguments = parser.parse_args()
    if arguments.smollm2:
        capture_smollm2(arguments.smollm2)
        return
    unknown = [name for name in arguments.cases if name not in CASES]
    if unknown:
        sys.exit(f"make_golden: no such case: {', '.join(unknown)}; expected {', '.join(CASES)}")
    for name in arguments.cases or CASES:
        print(capture(name, CASES[name]), flush=True)


if __name__ == "__main__":
    main()
