"""LFM2 and Qwen3.5: published configs as they are, what is made of them, and what is refused."""

import math
from pathlib import Path

import numpy as np
import pytest
import tiny

from pyllama.architecture import layers_of
from pyllama.architecture.config import DeltaRule, ShortConvs
from pyllama.architecture.layer import Attention
from pyllama.architecture.tensors import tensor_shapes
from pyllama.checkpoint.gguf_config import gguf_config
from pyllama.checkpoint.huggingface_config import huggingface_config
from pyllama.checkpoint.index import Part, Tensor
from pyllama.checkpoint.outline import NOWHERE, Outline
from pyllama.decoder import Shape
from pyllama.errors import CheckpointError, PyllamaError, UnsupportedError
from pyllama.planning.memory import TooSmallError, make_plan

LFM2_1_2B = {
    "architectures": ["Lfm2ForCausalLM"], "model_type": "lfm2", "block_auto_adjust_ff_dim": True, "block_dim": 2048,
    "block_ff_dim": 12288, "block_ffn_dim_multiplier": 1.0, "block_multiple_of": 256, "block_norm_eps": 1e-05,
    "block_use_swiglu": True, "bos_token_id": 1, "conv_L_cache": 3, "conv_bias": False, "conv_dim": 2048,
    "eos_token_id": 7, "full_attn_idxs": [2, 5, 8, 10, 12, 14], "hidden_size": 2048, "max_position_embeddings": 128000,
    "norm_eps": 1e-05, "num_attention_heads": 32, "num_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
    "pad_token_id": 0, "rope_theta": 1000000.0, "torch_dtype": "bfloat16", "use_pos_enc": True, "vocab_size": 65536,
}  # fmt: skip
QWEN35_9B = {
    "architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5", "tie_word_embeddings": False,
    "vision_config": {"depth": 27},
    "text_config": {
        "attn_output_gate": True, "dtype": "bfloat16", "eos_token_id": 248044, "full_attention_interval": 4,
        "head_dim": 256, "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 12288,
        "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_num_key_heads": 16,
        "linear_num_value_heads": 32, "linear_value_head_dim": 128, "max_position_embeddings": 262144,
        "model_type": "qwen3_5_text", "mtp_num_hidden_layers": 1, "num_attention_heads": 16, "num_hidden_layers": 32,
        "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "vocab_size": 248320,
        "rope_parameters": {
            "mrope_interleaved": True, "mrope_section": [11, 11, 10], "rope_type": "default", "rope_theta": 10000000,
            "partial_rotary_factor": 0.25,
        },
    },
}  # fmt: skip


def outline_of(config):
    tensors = {
        name: Tensor(name, "BF16", shape, (Part(NOWHERE, 0, 0, math.prod(shape[:-1]), 0, shape[-1]),))
        for name, shape in tensor_shapes(config).items()
    }
    return Outline(Path("model"), "huggingface", config, tensors)


def test_lfm2():
    config = huggingface_config(LFM2_1_2B)
    assert sum(math.prod(shape) for shape in tensor_shapes(config).values()) == 1_170_340_608
    assert (config.intermediate_size, config.rms_norm_eps, config.tie_word_embeddings) == (8192, 1e-5, True)
    assert config.short_convs == ShortConvs(3, False, tuple(i not in (2, 5, 8, 10, 12, 14) for i in range(16)))
    shape = Shape.whole(config)
    assert (shape.layers, shape.state_floats, shape.input_floats) == (6, 10 * 2 * 2048, 10 * 2048)


def test_qwen35():
    config = huggingface_config(QWEN35_9B)
    assert 8.9e9 < sum(math.prod(shape) for shape in tensor_shapes(config).values()) < 9e9
    assert (config.rotary_dim, config.rope_theta, config.norm_plus_one) == (64, 1e7, True)
    linear = tuple((i + 1) % 4 != 0 for i in range(32))
    assert config.delta_rule == DeltaRule(16, 32, 128, 128, 4, linear)
    gated = [layer.mixer.gated for layer in layers_of(config) if isinstance(layer.mixer, Attention)]
    assert gated == [True] * 8
    shape = Shape.whole(config)
    assert 4 * shape.state_floats == 24 * 4 * (3 * 8192 + 32 * 128 * 128) == 52_690_944
    text = {**QWEN35_9B["text_config"], "architectures": ["Qwen3_5ForCausalLM"], "tie_word_embeddings": False}
    assert huggingface_config(text) == config
    del text["rope_parameters"]
    assert huggingface_config({**text, "rope_theta": 1e7}).rotary_dim == 64, "a quarter, where nothing says so"


@pytest.mark.parametrize("contexts", [1, 8])
def test_states_are_planned(contexts):
    model = outline_of(huggingface_config(QWEN35_9B))
    for budget in (1 << 30, 2 << 30, 8 << 30):
        plan = make_plan(model, budget, context_length=4096, contexts=contexts)
        assert plan.states == plan.state_slots * 52_690_944 and plan.state_slots >= 2
        assert plan.besides + plan.pinned <= budget and plan.states <= budget // 8 + budget // 16 + plan.state_slots
    with pytest.raises(TooSmallError, match=r"this model needs at least [0-9]+ MB .*, states 106\)"):
        make_plan(model, 200 << 20, context_length=4096)
    assert make_plan(outline_of(huggingface_config(tiny.tiny_config())), 1 << 30, context_length=64).state_slots == 0


@pytest.mark.parametrize(
    "kind, change, message",
    [
        ("lfm2", {"full_attn_idxs": []}, "layer_types: 4 of 4 layers carry a state"),
        ("lfm2", {"full_attn_idxs": [0, 1, 2, 3, 4]}, "full_attn_idxs"),
        ("lfm2", {"full_attn_idxs": ["0"]}, "full_attn_idxs"),
        ("lfm2", {"conv_L_cache": 1}, "conv_L_cache"),
        ("lfm2", {"conv_L_cache": 17}, "conv_L_cache"),
        ("lfm2", {"layer_types": ["conv"] * 3 + ["linear_attention"]}, "layer_types: 'linear_attention'"),
        ("lfm2", {"block_auto_adjust_ff_dim": 3}, "block_auto_adjust_ff_dim"),
        ("lfm2", {"block_auto_adjust_ff_dim": True, "block_multiple_of": 0}, "block_multiple_of"),
        ("lfm2", {"num_experts": 8}, "num_experts: a mixture"),
        ("llama", {"layer_types": ["conv", "full_attention"]}, "layer_types: 'conv'"),
        ("qwen3_5_text", {"layer_types": ["linear_attention"] * 4}, "4 of 4 layers carry a state"),
        ("qwen3_5_text", {"attn_output_gate": False}, "attn_output_gate: false is not supported"),
        ("qwen3_5_text", {"linear_num_value_heads": 5}, "linear_num_value_heads: got 5, expected a multiple"),
        ("qwen3_5_text", {"linear_num_key_heads": 0}, "linear_num_key_heads"),
        ("qwen3_5_text", {"linear_key_head_dim": 1025}, "linear_key_head_dim"),
        ("qwen3_5_text", {"linear_conv_kernel_dim": 1}, "linear_conv_kernel_dim"),
        ("qwen3_5_text", {"full_attention_interval": 0}, "full_attention_interval"),
        ("qwen3_5_text", {"partial_rotary_factor": 0.01}, "rotary_dim"),
    ],
)
def test_what_is_not_such_a_model_is_refused(kind, change, message):
    with pytest.raises((CheckpointError, UnsupportedError), match=message):
        huggingface_config(tiny.tiny_config(model_type=kind) | change)


@pytest.mark.parametrize(
    "kind, key, value",
    [
        ("lfm2", "attention.head_count_kv", [0, 3, 0]),
        ("lfm2", "attention.head_count_kv", [0, 3, 2, 0]),
        ("lfm2", "attention.head_count_kv", [0, 0, 0, 0]),
        ("lfm2", "shortconv.l_cache", 99),
        ("lfm2", "shortconv.l_cache", None),
        ("qwen3_5_text", "ssm.inner_size", 97),
        ("qwen3_5_text", "ssm.group_count", 4),
        ("qwen3_5_text", "ssm.state_size", None),
        ("qwen3_5_text", "ssm.conv_kernel", 1),
        ("qwen3_5_text", "full_attention_interval", 5),
    ],
)
def test_metadata_that_is_not_such_a_models_is_refused(kind, key, value):
    metadata = tiny.gguf_metadata(tiny.tiny_config(model_type=kind))
    prefix = metadata["general.architecture"]
    given = np.array(value, np.int32) if isinstance(value, list) else value
    metadata = {k: v for k, v in (metadata | {f"{prefix}.{key}": given}).items() if v is not None}
    with pytest.raises(PyllamaError):
        gguf_config(metadata, (), vocab_size=101)
