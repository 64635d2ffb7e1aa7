"""LFM2's and Qwen3.5's mixtures: published shapes, what is made of them and said of them in GGUF, what is refused."""

import math

import numpy as np
import pytest
import tiny

from pyllama.architecture import layers_of
from pyllama.architecture.layer import Experts, GatedDelta, Mlp, Shared, ShortConv
from pyllama.architecture.tensors import flop, model_tensors, tensor_shapes
from pyllama.checkpoint import open_checkpoint
from pyllama.checkpoint.huggingface_config import huggingface_config
from pyllama.checkpoint.outline import outline
from pyllama.decoder import Shape
from pyllama.errors import CheckpointError, PyllamaError, UnsupportedError
from pyllama.planning.memory import make_plan
from pyllama.quantizing import quantize

LFM2_8B = {
    "architectures": ["Lfm2MoeForCausalLM"], "model_type": "lfm2_moe", "bos_token_id": 1, "conv_L_cache": 3,
    "conv_bias": False, "dtype": "bfloat16", "eos_token_id": 7, "hidden_size": 2048, "intermediate_size": 7168,
    "layer_types": ["full_attention" if i in (2, 6, 10, 14, 18, 21) else "conv" for i in range(24)],
    "max_position_embeddings": 128000, "moe_intermediate_size": 1792, "norm_eps": 1e-05, "norm_topk_prob": True,
    "num_attention_heads": 32, "num_dense_layers": 2, "num_experts": 32, "num_experts_per_tok": 4,
    "num_hidden_layers": 24, "num_key_value_heads": 8, "pad_token_id": 0, "rope_theta": 1000000.0,
    "routed_scaling_factor": 1.0, "use_expert_bias": True, "vocab_size": 65536,
}  # fmt: skip
QWEN35_35B = {
    "architectures": ["Qwen3_5MoeForConditionalGeneration"], "model_type": "qwen3_5_moe", "tie_word_embeddings": False,
    "vision_config": {"depth": 27},
    "text_config": {
        "attn_output_gate": True, "dtype": "bfloat16", "eos_token_id": 248044, "full_attention_interval": 4,
        "head_dim": 256, "hidden_act": "silu", "hidden_size": 2048, "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
        "linear_value_head_dim": 128, "max_position_embeddings": 262144, "model_type": "qwen3_5_moe_text",
        "moe_intermediate_size": 512, "mtp_num_hidden_layers": 1, "num_attention_heads": 16, "num_experts": 256,
        "num_experts_per_tok": 8, "num_hidden_layers": 40, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
        "shared_expert_intermediate_size": 512, "vocab_size": 248320,
        "rope_parameters": {
            "mrope_interleaved": True, "mrope_section": [11, 11, 10], "rope_type": "default", "rope_theta": 10000000,
            "partial_rotary_factor": 0.25,
        },
    },
}  # fmt: skip


def weights(config, counted=lambda tensor: True):
    return sum(math.prod(tensor.shape) for tensor in model_tensors(config) if counted(tensor))


def test_lfm2():
    config = huggingface_config(LFM2_8B)
    assert 8.3e9 < weights(config) < 8.4e9
    assert (config.intermediate_size, config.rms_norm_eps, config.tie_word_embeddings) == (7168, 1e-5, True)
    layers = layers_of(config)
    assert [isinstance(layer.mlp, Mlp) for layer in layers] == [True] * 2 + [False] * 22
    assert sum(isinstance(layer.mixer, ShortConv) for layer in layers) == 18
    experts = layers[2].experts
    assert isinstance(experts, Experts) and experts.sigmoid and experts.of_chosen and experts.scale == 1
    assert tensor_shapes(config)["model.layers.2.mlp.expert_bias.weight"] == (32,)
    assert "model.layers.1.mlp.expert_bias.weight" not in tensor_shapes(config)
    assert 2.9e9 < flop(config, 1, 0) < 3.2e9, "1.5 billion weights for a token"
    shape = Shape.whole(config)
    assert (shape.experts, shape.chosen, shape.expert_size, shape.beside) == (32, 4, 1792, False)


def test_qwen35():
    config = huggingface_config(QWEN35_35B)
    assert 34.5e9 < weights(config) < 35e9
    assert 5.5e9 < flop(config, 1, 0) < 6.5e9, "three billion weights for a token"
    layers = layers_of(config)
    assert all(isinstance(layer.beside, Shared) and isinstance(layer.mlp, Mlp) for layer in layers)
    assert sum(isinstance(layer.mixer, GatedDelta) for layer in layers) == 30
    assert config.intermediate_size == layers[0].mlp.gate.rows == 512
    shapes = tensor_shapes(config)
    assert shapes["model.layers.0.mlp.shared_expert_gate.weight"] == (1, 2048)
    text = {**QWEN35_35B["text_config"], "architectures": ["Qwen3_5MoeForCausalLM"], "tie_word_embeddings": False}
    assert huggingface_config(text) == config


@pytest.mark.parametrize("described", [LFM2_8B, QWEN35_35B])
def test_a_plan_needs_nothing_but_the_config(described):
    model = outline(huggingface_config(described), "BF16")
    for budget in (1 << 30, 4 << 30, 16 << 30):
        plan = make_plan(model, budget, context_length=4096)
        assert plan.besides + plan.pinned <= budget and plan.expert_slots > 0
        assert 0 <= plan.experts_share < 1 or budget == 16 << 30
    assert make_plan(model, 100 << 30, context_length=4096).experts_share == 1


@pytest.mark.parametrize(
    "kind, change, message",
    [
        ("lfm2_moe", {"num_dense_layers": 4}, "num_dense_layers"),
        ("lfm2_moe", {"num_dense_layers": -1}, "num_dense_layers"),
        ("lfm2_moe", {"num_experts": 0}, "num_experts"),
        ("lfm2_moe", {"num_experts_per_tok": 8}, "num_experts_per_tok: got 8, expected at most num_experts 7"),
        ("lfm2_moe", {"routed_scaling_factor": 0}, "routed_scaling_factor"),
        ("lfm2_moe", {"use_expert_bias": 1}, "use_expert_bias"),
        ("lfm2_moe", {"norm_topk_prob": "yes"}, "norm_topk_prob"),
        ("qwen3_5_moe_text", {"shared_expert_intermediate_size": 0}, "shared_expert_intermediate_size"),
        ("qwen3_5_moe_text", {"moe_intermediate_size": None}, None),
        ("qwen3_5_moe_text", {"num_experts": 5000}, "num_experts"),
        ("qwen3_5_moe_text", {"attn_output_gate": False}, "attn_output_gate"),
    ],
)
def test_what_is_not_such_a_model_is_refused(kind, change, message):
    described = tiny.tiny_config(model_type=kind) | change
    if message is None:  # the class's own
        assert huggingface_config(described).mixture.moe_intermediate_size == 512
        return
    with pytest.raises((CheckpointError, UnsupportedError), match=message):
        huggingface_config(described)


def gguf(tmp_path, kind, **changes):
    config = tiny.tiny_config(model_type=kind)
    tensors = tiny.random_tensors(config, 3)
    return tiny.write_gguf(tmp_path / "m.gguf", config, tensors, extra=changes)


@pytest.mark.parametrize(
    "kind, key, value, message",
    [
        ("lfm2_moe", "lfm2moe.expert_gating_func", 1, "expert_gating_func: 1 is not supported"),
        ("lfm2_moe", "lfm2moe.leading_dense_block_count", 4, "leading_dense_block_count"),
        ("lfm2_moe", "lfm2moe.leading_dense_block_count", 2, "mlp"),
        ("lfm2_moe", "lfm2moe.expert_weights_scale", 2.5, "expert_weights_scale"),
        ("lfm2_moe", "lfm2moe.expert_weights_norm", False, "expert_weights_norm"),
        ("qwen3_5_moe_text", "qwen35moe.expert_shared_feed_forward_length", 48, "shared_expert"),
        ("qwen3_5_moe_text", "qwen35moe.expert_count", 6, "expert"),
        ("qwen3_5_moe_text", "qwen35moe.expert_gating_func", 2, "expert_gating_func: 2 is not supported"),
    ],
)
def test_metadata_that_says_otherwise_is_refused(tmp_path, kind, key, value, message):
    with pytest.raises(PyllamaError, match=message) as caught:
        open_checkpoint(gguf(tmp_path, kind, **{key: value}))
    assert "\n" not in str(caught.value)


def test_the_gate_of_one_row_is_a_vector_in_gguf(tmp_path):
    with open_checkpoint(gguf(tmp_path, "qwen3_5_moe_text")) as checkpoint:
        tensor = checkpoint.tensors["model.layers.0.mlp.shared_expert_gate.weight"]
        assert (tensor.shape, tensor.dtype) == ((1, 48), "F32")


@pytest.mark.filterwarnings("ignore::pyllama.quantizing.warning.QuantizeWarning")
@pytest.mark.parametrize(
    "change", [{"norm_topk_prob": False}, {"routed_scaling_factor": 2.0}, {"use_expert_bias": False}]
)
def test_what_gguf_has_no_word_for_is_refused(tmp_path, change):
    config = tiny.tiny_config(model_type="lfm2_moe") | change
    tensors = tiny.random_tensors(config, 3)
    if "use_expert_bias" in change:
        tensors = {name: values for name, values in tensors.items() if not name.endswith("expert_bias")}
    source = tiny.write_huggingface(tmp_path / "m", config, tensors)
    with pytest.raises(UnsupportedError, match="mixture: .* in a GGUF file"):
        quantize(source, tmp_path / "m.gguf", "q8_0")


@pytest.mark.filterwarnings("ignore::pyllama.quantizing.warning.QuantizeWarning")
def test_quantized_routers_stay_whole(tmp_path):
    config = tiny.tiny_config(model_type="qwen3_5_moe_text", hidden_size=64, moe_intermediate_size=64)
    source = tiny.write_huggingface(tmp_path / "m", config, tiny.random_tensors(config, 3))
    with open_checkpoint(quantize(source, tmp_path / "m.gguf", "q4_0")) as made:
        kinds = {name.split(".", 3)[-1]: tensor.dtype for name, tensor in made.tensors.items()}
    assert kinds["mlp.gate.weight"] == kinds["mlp.shared_expert_gate.weight"] == "F32"
    assert kinds["mlp.experts.3.up_proj.weight"] == kinds["mlp.shared_expert.up_proj.weight"] == "Q4_0"
    assert np.all([kinds[f"mlp.experts.{j}.down_proj.weight"] == "Q4_0" for j in range(7)])
