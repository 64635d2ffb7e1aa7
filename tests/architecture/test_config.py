"""config.json, GGUF metadata and params.json into Config: what is read, what is refused, and by which name."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import tiny
from golden import CASES, load_case

from pyllama.architecture import layers_of
from pyllama.architecture.config import LIMITS, RopeScaling
from pyllama.architecture.layer import Norm, main_rope
from pyllama.architecture.rope import frequencies
from pyllama.architecture.tensors import HEAD
from pyllama.checkpoint.gguf_config import gguf_config
from pyllama.checkpoint.huggingface_config import huggingface_config, huggingface_dtype
from pyllama.checkpoint.meta_config import meta_config
from pyllama.checkpoint.outline import outline
from pyllama.errors import CheckpointError, PyllamaError, UnsupportedError
from pyllama.planning.memory import default_context
from pyllama.quantizing.gguf_metadata import of_config
from pyllama.quantizing.gguf_writer import plain


def huggingface(**overrides):
    return huggingface_config(tiny.tiny_config(**overrides))


def gguf(config=None, drop=(), names=(HEAD,), **changes):
    metadata = tiny.gguf_metadata(config or tiny.tiny_config())
    metadata.update({key.replace("__", "."): value for key, value in changes.items()})
    for key in drop:
        del metadata[key]
    return gguf_config(metadata, names, vocab_size=101)


def test_transformers_4_and_5_spell_the_same_config():
    old = tiny.tiny_config(
        rope_theta=500000.0,
        rope_scaling={
            "type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        torch_dtype="bfloat16",
    )
    new = dict(old, dtype="bfloat16")
    new["rope_parameters"] = dict(old["rope_scaling"], rope_theta=500000.0, rope_type="llama3")
    for key in ("rope_theta", "rope_scaling", "torch_dtype"):
        del new[key]
    del new["rope_parameters"]["type"]
    assert huggingface_config(old) == huggingface_config(new)
    assert huggingface_config(new).rope_theta == 500000.0
    assert huggingface_dtype(old) == huggingface_dtype(new) == "BF16"


def test_defaults_are_those_of_the_transformers_classes():
    bare = {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 30,
        "num_attention_heads": 6,
        "vocab_size": 101,
    }
    llama = huggingface_config(bare | {"model_type": "llama"})
    assert (llama.num_key_value_heads, llama.head_dim, llama.max_position_embeddings) == (6, 8, 2048)
    assert (llama.rms_norm_eps, llama.rope_theta, llama.tie_word_embeddings) == (1e-6, 10000.0, False)
    assert not (llama.qkv_bias or llama.o_bias or llama.mlp_bias or layers_of(llama)[0].mixer.q_norm)
    wide = bare | {"num_attention_heads": 32, "hidden_size": 256}
    mistral = huggingface_config(wide | {"model_type": "mistral"})
    assert (mistral.num_key_value_heads, mistral.max_position_embeddings) == (8, 131072)
    assert mistral.layer_windows == (4096,) * 30
    qwen2 = huggingface_config(wide | {"model_type": "qwen2"})
    assert (qwen2.num_key_value_heads, qwen2.head_dim, qwen2.qkv_bias, qwen2.o_bias) == (32, 8, True, False)
    qwen3 = huggingface_config(wide | {"model_type": "qwen3"})
    assert (qwen3.head_dim, qwen3.qkv_bias) == (128, False)
    assert layers_of(qwen3)[0].mixer.q_norm == Norm("self_attn.q_norm", 128)
    assert qwen3.layer_windows == (None,) * 30


PUBLISHED = {
    "SmolLM2-135M": ({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False,
        "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": 576, "intermediate_size": 1536,
        "initializer_range": 0.041666666666666664, "is_llama_config": True, "max_position_embeddings": 8192,
        "mlp_bias": False, "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
        "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-5, "rope_interleaved": False,
        "rope_scaling": None, "rope_theta": 100000, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "use_cache": True, "vocab_size": 49152, "bos_token_id": 1, "eos_token_id": 2,
    }, {"head_dim": 64, "rope_theta": 100000.0, "rope_scaling": None, "tie_word_embeddings": True}),
    "Llama-3.1-8B-Instruct": ({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "hidden_act": "silu",
        "intermediate_size": 14336, "max_position_embeddings": 131072, "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": 128256, "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009],
    }, {"rope_scaling": RopeScaling("llama3", 8.0, 1.0, 4.0, 8192), "eos_token_ids": (128001, 128008, 128009)}),
    "Qwen2.5-0.5B": ({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 896, "hidden_act": "silu",
        "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24,
        "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True, "use_mrope": False,
        "torch_dtype": "bfloat16", "use_sliding_window": False, "vocab_size": 151936,
        "bos_token_id": 151643, "eos_token_id": 151643,
    }, {"head_dim": 64, "qkv_bias": True, "layer_windows": (None,) * 24}),
    "Mistral-7B-v0.1": ({
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": 4096,
        "hidden_act": "silu", "intermediate_size": 14336, "max_position_embeddings": 32768,
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False, "vocab_size": 32000,
        "bos_token_id": 1, "eos_token_id": 2,
    }, {"head_dim": 128, "layer_windows": (4096,) * 32}),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs(name):
    given, expected = PUBLISHED[name]
    config = huggingface_config(given)
    assert {key: getattr(config, key) for key in expected} == expected


def test_null_key_value_heads_means_as_many_as_heads():
    config = tiny.tiny_config() | {"num_key_value_heads": None, "head_dim": None}
    assert huggingface_config(config).num_key_value_heads == 6
    assert huggingface_config(config).head_dim == 8


def test_sliding_windows_follow_each_class():
    assert huggingface(sliding_window=7).layer_windows == (None, None)  # llama ignores the key
    assert huggingface(model_type="mistral", sliding_window=7).layer_windows == (7, 7)
    assert huggingface(model_type="mistral", sliding_window=None).layer_windows == (None, None)
    qwen = {"model_type": "qwen2", "sliding_window": 7}
    assert huggingface(**qwen, max_window_layers=0).layer_windows == (None, None)
    assert huggingface(**qwen, use_sliding_window=True, max_window_layers=1).layer_windows == (None, 7)
    assert huggingface(**qwen, use_sliding_window=True).layer_windows == (None, None)  # from layer 28 on
    kinds = ["sliding_attention", "full_attention"]
    assert huggingface(**qwen, use_sliding_window=True, layer_types=kinds).layer_windows == (7, None)
    for model_type in ("llama", "mistral", "qwen2"):
        with pytest.raises(UnsupportedError, match="layer_types"):
            huggingface(model_type=model_type, layer_types=kinds)
    with pytest.raises(UnsupportedError, match="chunked_attention"):
        huggingface(**qwen, layer_types=["full_attention", "chunked_attention"])
    with pytest.raises(CheckpointError, match="layer_types"):
        huggingface(**qwen, layer_types=["full_attention"])


def test_biases_by_architecture():
    llama = huggingface(attention_bias=True, mlp_bias=True)
    assert (llama.qkv_bias, llama.o_bias, llama.mlp_bias) == (True, True, True)
    qwen3 = huggingface(model_type="qwen3", attention_bias=True, mlp_bias=True)
    assert (qwen3.qkv_bias, qwen3.o_bias, qwen3.mlp_bias) == (True, True, False)
    qwen2 = huggingface(model_type="qwen2", attention_bias=True)
    assert (qwen2.qkv_bias, qwen2.o_bias) == (True, False)


@pytest.mark.parametrize(
    "scaling, expected",
    [
        (None, None),
        ({"rope_type": "default"}, None),
        ({"type": "linear", "factor": 4}, RopeScaling("linear", factor=4.0)),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
            RopeScaling(
                "yarn",
                factor=4.0,
                original_max_position_embeddings=128,
                attention_factor=0.1 * math.log(4.0) + 1.0,
            ),
        ),
        (
            {"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.5, "beta_fast": 16, "truncate": False},
            RopeScaling(
                "yarn",
                factor=4.0,
                original_max_position_embeddings=512,
                attention_factor=0.5,
                beta_fast=16.0,
                truncate=False,
            ),
        ),
        (
            {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 0.9},
            RopeScaling(
                "yarn",
                factor=4.0,
                original_max_position_embeddings=512,
                attention_factor=(0.1 * 0.7 * math.log(4) + 1) / (0.1 * 0.9 * math.log(4) + 1),
                mscale=0.7,
                mscale_all_dim=0.9,
            ),
        ),
    ],
)
def test_rope_scaling(scaling, expected):
    assert huggingface(rope_scaling=scaling).rope_scaling == expected


def test_original_length_outside_the_rope_object_wins():
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    config = huggingface(rope_scaling=scaling, original_max_position_embeddings=256)
    assert config.rope_scaling.original_max_position_embeddings == 256


def test_rope_parameters_per_layer_type():
    one = {"rope_type": "default", "rope_theta": 20000.0}
    same = {"full_attention": one, "sliding_attention": one}
    windows = {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 1}
    kinds = ["full_attention", "sliding_attention"]
    assert huggingface(**windows, layer_types=kinds, rope_parameters=same).rope_theta == 20000.0
    differ = same | {"sliding_attention": dict(one, rope_theta=10000.0)}
    with pytest.raises(UnsupportedError, match="per layer type"):
        huggingface(**windows, layer_types=kinds, rope_parameters=differ)
    # An entry no layer uses does not matter.
    assert huggingface(rope_parameters=differ).rope_theta == 20000.0


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "su", "ntk", "proportional"])
def test_unknown_rope_types_are_refused_by_name(kind):
    with pytest.raises(UnsupportedError, match=kind):
        huggingface(rope_scaling={"rope_type": kind, "factor": 2.0})


@pytest.mark.parametrize("name", ["gemma", "gemma3n", "phi", "qwen2_moe", "phimoe", "deepseek_v3", "gpt2", "llama4"])
def test_other_models_are_refused_by_name(name):
    with pytest.raises(UnsupportedError, match=f"'{name}'"):
        huggingface_config(tiny.tiny_config() | {"model_type": name, "architectures": ["X"]})
    with pytest.raises(UnsupportedError, match=f"'{name}'"):
        gguf_config({"general.architecture": name}, (), vocab_size=1)


@pytest.mark.parametrize(
    "change, named",
    [
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ({"quantization_config": {}, "compression_config": {"x": 1}}, "compression_config"),
        ({"num_local_experts": 8}, "num_local_experts"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        ({"use_mrope": True}, "use_mrope"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}}, "partial"),
    ],
)
def test_features_are_refused_by_name(change, named):
    with pytest.raises(UnsupportedError, match=named):
        huggingface(**change)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 0},
        {"hidden_size": -48},
        {"hidden_size": 2**31},
        {"hidden_size": 48.0},
        {"hidden_size": "48"},
        {"hidden_size": True},
        {"hidden_size": 10**400},
        {"hidden_size": 50, "head_dim": None},
        {"head_dim": 7},
        {"head_dim": 2048},
        {"num_attention_heads": 7},
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 0},
        {"num_hidden_layers": LIMITS["num_hidden_layers"][1] + 1},
        {"num_hidden_layers": [2]},
        {"vocab_size": {}},
        {"vocab_size": 2**40},
        {"rms_norm_eps": -1e-5},
        {"rms_norm_eps": float("nan")},
        {"rms_norm_eps": float("inf")},
        {"rope_theta": 0.0},
        {"rope_theta": 10**400},
        {"rope_theta": "10000"},
        {"max_position_embeddings": 0},
        {"tie_word_embeddings": 1},
        {"eos_token_id": "2"},
        {"eos_token_id": [1.5]},
        {"eos_token_id": list(range(100))},
        {"rope_scaling": [1]},
        {"rope_scaling": {"rope_type": "linear"}},
        {"rope_scaling": {"rope_type": "linear", "factor": 0}},
        {"rope_scaling": {"rope_type": "linear", "factor": float("nan")}},
        {"rope_scaling": {"rope_type": 3}},
        {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8,
                "low_freq_factor": 4,
                "high_freq_factor": 1,
                "original_max_position_embeddings": 64,
            }
        },
        {"model_type": "mistral", "sliding_window": 0},
        {"architectures": {"LlamaForCausalLM": 1}},
        {"hidden_act": 3},
        {"model_type": "qwen2", "use_sliding_window": "yes"},
    ],
)
def test_numbers_out_of_range_are_refused(change):
    config = tiny.tiny_config()
    config.update(change)
    with pytest.raises(PyllamaError) as error:
        huggingface_config(config)
    message = str(error.value)
    assert "\n" not in message and len(message) < 300


@pytest.mark.parametrize(
    "key", ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"]
)
def test_sizes_without_a_sensible_default_must_be_there(key):
    config = tiny.tiny_config()
    del config[key]
    with pytest.raises(CheckpointError, match=key):
        huggingface_config(config)


def test_end_ids_come_from_both_files():
    config = tiny.tiny_config(eos_token_id=5)
    assert huggingface_config(config, {"eos_token_id": [7, 5]}).eos_token_ids == (7, 5)
    assert huggingface_config(config, {}).eos_token_ids == (5,)
    del config["eos_token_id"], config["bos_token_id"]
    both = huggingface_config(config, {"eos_token_id": 9, "bos_token_id": 8})
    assert (both.bos_token_id, both.eos_token_ids) == (8, (9,))
    assert huggingface_config(config).eos_token_ids == ()


@pytest.mark.parametrize("model_type", sorted(tiny.ARCHITECTURES))
def test_gguf_metadata_gives_the_config_of_config_json(model_type):
    config = tiny.tiny_config(model_type=model_type)
    ours = huggingface_config(config)
    # A mistral is stored under the architecture of llama; float32 numbers come back as the decimals they were.
    metadata = {k: np.float32(v).item() if isinstance(v, float) else np.array(v) if isinstance(v, list) else v
                for k, v in tiny.gguf_metadata(config).items()}  # fmt: skip
    bias = ["model.layers.0.self_attn.q_proj.bias"] if model_type == "qwen2" else []
    scaling, factors = ours.rope_scaling, {}
    if scaling and scaling.kind == "longrope":
        factors = {"rope_factors": scaling.factors, "long_factors": scaling.long_factors}
    if scaling and scaling.kind == "proportional":
        factors = {"rope_factors": tuple(min(factor, 1e30) for factor in scaling.factors)}
        if not ours.full_attention.values_are_keys:
            bias.append("model.layers.1.self_attn.v_proj.weight")
    theirs = gguf_config(metadata, bias if ours.tie_word_embeddings else [HEAD, *bias], vocab_size=101, **factors)
    written_as = {
        "mistral": "llama",
        "olmo3": "olmo2",
        "gemma4_unified_text": "gemma4_text",
        "granitemoehybrid": "granite",
    }
    assert theirs.model_type == written_as.get(model_type, model_type)
    # Norms have their 1 added there; what YaRN's factor is made of is not told apart from what it is.
    if ours.delta_rule:
        ours = replace(ours, delta_rule=ours.delta_rule._replace(tiled=True))
    same = [f for f in ours.__slots__ if f not in ("model_type", "architecture", "norm_plus_one", "rope_scaling")]
    assert {f: getattr(ours, f) for f in same} == {f: getattr(theirs, f) for f in same}
    assert not theirs.norm_plus_one
    scalings = [scaling and scaling._replace(mscale=None, mscale_all_dim=None)
                for scaling in (ours.rope_scaling, theirs.rope_scaling)]  # fmt: skip
    assert scalings[0] == scalings[1]
    assert theirs.rms_norm_eps == 1e-5


def test_gguf_rope():
    assert gguf(llama__rope__scaling__type="none").rope_scaling is None
    linear = gguf(llama__rope__scaling__type="linear", llama__rope__scaling__factor=4.0)
    assert linear.rope_scaling == RopeScaling("linear", factor=4.0)
    yarn = gguf(llama__rope__scaling__type="yarn", llama__rope__scaling__factor=4.0,
                llama__rope__scaling__original_context_length=128)  # fmt: skip
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    assert yarn.rope_scaling == huggingface(rope_scaling=scaling).rope_scaling
    metadata = tiny.gguf_metadata(tiny.tiny_config())
    factors = gguf_config(metadata, (), vocab_size=101, rope_factors=(1.0, 1.0, 2.0, 8.0))
    assert factors.rope_scaling == RopeScaling("factors", factors=(1.0, 1.0, 2.0, 8.0))
    with pytest.raises(CheckpointError, match="rotary factors: got 1"):
        gguf_config(metadata, (), vocab_size=101, rope_factors=(1.0,))
    with pytest.raises(UnsupportedError, match="longrope"):
        gguf(llama__rope__scaling__type="longrope")
    with pytest.raises(UnsupportedError, match="rope.dimension_count"):
        gguf(llama__rope__dimension_count=4)


def test_gguf_refusals():
    with pytest.raises(CheckpointError, match="expert_used_count: got nothing"):
        gguf(llama__expert_count=8)
    with pytest.raises(UnsupportedError, match="expert_shared_count"):
        gguf(llama__expert_count=8, llama__expert_used_count=2, llama__expert_shared_count=1)
    with pytest.raises(UnsupportedError, match="logit_scale"):
        gguf(llama__logit_scale=0.5)
    with pytest.raises(UnsupportedError, match="value_length"):
        gguf(llama__attention__value_length=4)
    with pytest.raises(CheckpointError, match="head_count"):
        gguf(llama__attention__head_count=np.array([6, 3], np.uint32))
    with pytest.raises(UnsupportedError, match="expert_count"):
        gguf(llama__expert_count=np.array([0, 3], np.uint32))
    assert gguf(llama__attention__head_count=np.array([6, 6], np.uint32)).num_attention_heads == 6
    with pytest.raises(CheckpointError, match="layer_norm_rms_epsilon"):
        gguf(drop=["llama.attention.layer_norm_rms_epsilon"])
    with pytest.raises(CheckpointError, match="general.architecture"):
        gguf(drop=["general.architecture"])


def test_gguf_end_ids():
    config = gguf(tokenizer__ggml__eos_token_id=3, tokenizer__ggml__eot_token_id=9)
    assert config.eos_token_ids == (3, 9)


def meta(vocab_size=32000, **changes):
    params = {"dim": 64, "n_layers": 2, "n_heads": 4, "norm_eps": 1e-5, "vocab_size": -1} | changes
    return meta_config(params, vocab_size=vocab_size, intermediate_size=172, tie_word_embeddings=False)


def test_meta_families():
    llama2 = meta()
    assert (llama2.max_position_embeddings, llama2.bos_token_id, llama2.eos_token_ids) == (4096, 1, (2,))
    assert (llama2.num_key_value_heads, llama2.rope_theta, llama2.rope_scaling) == (4, 10000.0, None)
    assert meta(norm_eps=1e-6).max_position_embeddings == 2048
    assert meta(vocab_size=32016, rope_theta=1e6).max_position_embeddings == 16384
    llama3 = meta(vocab_size=128256, rope_theta=500000.0, n_kv_heads=2)
    assert (llama3.max_position_embeddings, llama3.bos_token_id) == (8192, 128000)
    assert 128009 in llama3.eos_token_ids
    scaled = meta(vocab_size=128256, rope_theta=500000.0, use_scaled_rope=True)
    assert scaled.max_position_embeddings == 131072
    assert scaled.rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
    small = meta(vocab_size=128256, dim=2048, n_layers=16, n_heads=32, use_scaled_rope=True)
    assert small.rope_scaling.factor == 32.0  # Llama 3.2 1B
    mistral = meta(sliding_window=4096, hidden_dim=172, head_dim=16)
    assert (mistral.layer_windows, mistral.max_position_embeddings) == ((4096, 4096), 32768)
    with pytest.raises(CheckpointError, match="hidden_dim"):
        meta(hidden_dim=171)
    with pytest.raises(UnsupportedError, match="moe_args"):
        meta(moe_args={"num_experts": 16})
    with pytest.raises(CheckpointError, match="n_heads"):
        meta(n_heads="4")


def test_longrope_takes_its_long_factors_only_for_a_context_that_was_asked_for():
    config = huggingface_config(tiny.tiny_config(model_type="phi3"))
    assert (config.usual_positions, config.max_position_embeddings) == (64, 512)
    assert config.for_context(None) is config and config.for_context(64) is config
    long = config.for_context(65)
    assert (long.usual_positions, long.rope_scaling.long) == (512, True)
    assert long == replace(config, rope_scaling=config.rope_scaling._replace(long=True))
    short_inv, short_scale = frequencies(main_rope(config))
    long_inv, long_scale = frequencies(main_rope(long))
    assert (short_inv[1:] > long_inv[1:]).all()
    assert short_scale == long_scale == pytest.approx(math.sqrt(1 + math.log(8) / math.log(64)))
    assert default_context(config, 1 << 40, "f16", 4096) == 64
    for kind in ("llama", "gemma3_text"):
        other = huggingface_config(tiny.tiny_config(model_type=kind))
        assert other.for_context(500) is other


def test_the_text_model_of_one_that_sees_is_read():
    text = tiny.tiny_config(model_type="gemma3_text")
    whole = {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}
    del text["architectures"]
    assert huggingface_config(whole) == huggingface_config(tiny.tiny_config(model_type="gemma3_text"))
    with pytest.raises(CheckpointError, match="text_config"):
        huggingface_config({"model_type": "gemma3"})
    with pytest.raises(UnsupportedError, match="Gemma3ForSequenceClassification"):
        huggingface_config(whole | {"architectures": ["Gemma3ForSequenceClassification"]})


def test_a_text_model_that_its_wrapper_does_not_have_is_refused_by_name():
    text = tiny.tiny_config()
    for wrapper in ("gemma3", "gemma4", "mistral3", "qwen3_5"):
        with pytest.raises(UnsupportedError, match=f"model_type: 'llama' within '{wrapper}'"):
            huggingface_config({"model_type": wrapper, "text_config": text})
    unnamed = {key: value for key, value in text.items() if key not in ("model_type", "architectures")}
    named = huggingface_config({"model_type": "mistral3", "text_config": unnamed | {"sliding_window": None}})
    assert named.model_type == "mistral"  # as transformers has it


def test_granite_without_rotation_in_both_forms():
    """llama.cpp says it in Granite's files by rope.scaling.finetuned, which means nothing of the kind elsewhere."""
    config = tiny.tiny_config(model_type="granitemoehybrid", position_embedding_type="nope")
    ours = huggingface_config(config)
    assert ours.unrotated_layers == (0, 1)
    assert huggingface_config({k: v for k, v in config.items() if k != "position_embedding_type"}) == ours
    written = of_config(ours, "x")
    assert written["granite.rope.scaling.finetuned"] is False
    for metadata in (tiny.gguf_metadata(config), plain(written)):
        assert gguf_config(metadata, [HEAD], vocab_size=101).unrotated_layers == (0, 1)
    rotated = gguf_config(tiny.gguf_metadata(config | {"position_embedding_type": "rope"}), [HEAD], vocab_size=101)
    assert rotated.unrotated_layers == ()


@pytest.mark.parametrize(
    "kind, change, named",
    [
        ("gemma3_text", {"hidden_activation": "gelu"}, "hidden_activation: 'gelu'"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("granite", {"num_local_experts": 8}, "num_local_experts: a mixture of experts"),
        ("granitemoehybrid", {"num_local_experts": 1}, "num_local_experts: a mixture of experts"),
        ("granitemoehybrid", {"layer_types": ["mamba", "attention"]}, "layer_types: 'mamba'"),
        ("granitemoehybrid", {"layer_types": None}, "layer_types: Mamba in every layer"),
        ("granitemoehybrid", {"position_embedding_type": "alibi"}, "position_embedding_type: 'alibi'"),
        ("phi3", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rotary scaling 'linear'"),
        ("smollm3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)
def test_what_a_family_does_not_have_is_refused_by_name(kind, change, named):
    with pytest.raises(UnsupportedError, match=named):
        huggingface_config(tiny.tiny_config(model_type=kind) | change)


def places(value, path=()):
    """The path of everything in a config."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(inner, (dict, list)):
            yield from places(inner, (*path, key))
        yield (*path, key)


@pytest.mark.parametrize("name", CASES)
def test_anything_in_the_place_of_anything_is_read_or_refused_in_a_line(name):
    whole = load_case(name).huggingface
    for path in places(whole):
        for other in ("x", [], {"a": 1}, 3.5, float("inf")):
            config = json.loads(json.dumps(whole))
            at = config
            for key in path[:-1]:
                at = at[key]
            at[path[-1]] = other
            try:
                huggingface_dtype(config)
                outline(huggingface_config(config), "BF16")
            except PyllamaError as error:
                assert "\n" not in str(error)
