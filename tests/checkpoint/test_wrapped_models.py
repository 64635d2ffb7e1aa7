"""Checkpoints that a wrapper has saved, or that are named otherwise, and are the plain model: the same logits."""

import json

import numpy as np
import pytest
import tiny

import pyllama
from pyllama.checkpoint import open_checkpoint
from pyllama.checkpoint.huggingface_outline import outline_huggingface
from pyllama.checkpoint.wrapped_names import plain_names
from pyllama.errors import CheckpointError, UnsupportedError

IDS = [3, 1, 4, 1, 5]


def logits(folder):
    with pyllama.load(folder, threads=1, context_length=32) as model:
        return model.forward(IDS)


def write(folder, rename=lambda name: name, shards=1, drop=(), **changes):
    config = tiny.tiny_config(**{k: v for k, v in changes.items() if k in ("model_type", "tie_word_embeddings")})
    tensors = {rename(name): values for name, values in tiny.random_tensors(config, seed=5).items()}
    tiny.write_huggingface(folder, config, tensors, shards=shards)
    changed = {k: v for k, v in (config | changes).items() if k not in drop}
    (folder / "config.json").write_text(json.dumps(changed))
    return folder


@pytest.mark.parametrize("model_type", sorted(tiny.ARCHITECTURES))
@pytest.mark.parametrize(
    "names",
    [
        "FSDP{}ForCausalLM",
        "DDP{}ForCausalLM",
        "FSDPFSDP{}ForCausalLM",
        "{}Model",
        "FSDP{}Model",
        "Unsloth{}ForCausalLM",
        "PeftModelForCausalLM",
        "OptimizedModule",
    ],
)
def test_class_names_that_change_nothing(tmp_path, model_type, names):
    family = tiny.ARCHITECTURES[model_type].removesuffix("ForCausalLM")
    expected = logits(write(tmp_path / "plain", model_type=model_type))
    got = write(tmp_path / "named", model_type=model_type, architectures=[names.format(family)])
    assert np.array_equal(logits(got), expected)


@pytest.mark.parametrize(
    "changes",
    [{"architectures": None}, {"architectures": []}, {"architectures": "LlamaForCausalLM"}, {"rope_scaling": None},
     {"rope_scaling": {"type": "default"}}, {"rope_scaling": {"rope_type": "default"}}, {"torch_dtype": None},
     {"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}, {"quantization_config": None}, {"is_causal": True},
     {"pad_token_id": -1}, {"transformers_version": None}, {"pretraining_tp": 2}, {"use_cache": "no"}],
)  # fmt: skip
def test_what_people_have_in_config_json(tmp_path, changes):
    assert np.array_equal(logits(write(tmp_path / "odd", **changes)), logits(write(tmp_path / "plain")))


@pytest.mark.parametrize("key", ["architectures", "torch_dtype", "model_type", "rope_scaling", "tie_word_embeddings"])
def test_keys_that_may_be_missing(tmp_path, key):
    assert np.array_equal(logits(write(tmp_path / "less", drop=[key])), logits(write(tmp_path / "plain")))


def test_a_byte_order_mark_in_config_json(tmp_path):
    folder = write(tmp_path / "m")
    expected = logits(folder)
    (folder / "config.json").write_bytes(b"\xef\xbb\xbf" + (folder / "config.json").read_bytes())
    assert np.array_equal(logits(folder), expected)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "rename",
    [lambda n: n.removeprefix("model."), lambda n: f"module.{n}", lambda n: f"_orig_mod.{n}",
     lambda n: f"base_model.model.{n}", lambda n: f"module._orig_mod.{n}",
     lambda n: f"_orig_mod.{n.removeprefix('model.')}",
     lambda n: n.replace("layers.0.", "layers.0._fsdp_wrapped_module."),
     lambda n: n.replace("layers.1.", "layers.1._checkpoint_wrapped_module.")],
)  # fmt: skip
@pytest.mark.parametrize("shards", [1, 3])
def test_names_of_tensors_as_wrappers_leave_them(tmp_path, rename, tied, shards):
    expected = logits(write(tmp_path / "plain", tie_word_embeddings=tied))
    folder = write(tmp_path / "wrapped", rename, shards, tie_word_embeddings=tied)
    assert np.array_equal(logits(folder), expected)
    if shards > 1:
        with open_checkpoint(folder) as checkpoint:
            assert list(outline_huggingface(folder).tensors) == list(checkpoint.tensors)


def test_names_that_would_fall_together_stay_as_they_are():
    assert plain_names(["model.norm.weight", "module.model.norm.weight"]) == {}
    assert plain_names(["model.norm.weight", "norm.weight"]) == {}
    lora = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert plain_names([lora, "base_model.model.lm_head.weight"]) == {}


def test_a_value_head_beside_the_model_is_not_used(tmp_path):
    config = tiny.tiny_config()
    tensors = tiny.random_tensors(config, seed=5)
    expected = logits(tiny.write_huggingface(tmp_path / "plain", config, tensors))
    more = {"v_head.summary.weight": np.ones((1, 48), np.float32), "v_head.summary.bias": np.ones(1, np.float32)}
    assert np.array_equal(logits(tiny.write_huggingface(tmp_path / "more", config, tensors | more)), expected)


@pytest.mark.parametrize(
    "name, kind",
    [("LlamaForSequenceClassification", "classifier or reward model"), ("LlamaBiModel", "encoder"),
     ("LlamaEncoderModel", "encoder"), ("LlamaForTokenClassification", "classifier of tokens"),
     ("MistralForCausalLM", ""), ("MixtralForCausalLM", ""), ("FSDPMistralForCausalLM", ""),
     ("LlamaForCausalLMEagle3", "drafter"), ("FSDP", "")],
)  # fmt: skip
def test_other_classes_are_refused_by_name(tmp_path, name, kind):
    with pytest.raises(UnsupportedError, match=f"architectures: '{name}'.*{kind}.*expected LlamaForCausalLM"):
        open_checkpoint(write(tmp_path / "m", architectures=[name]))


@pytest.mark.parametrize("change", [{"is_causal": False}, {"use_bidirectional_attention": True}])
def test_attention_to_what_comes_is_refused(tmp_path, change):
    with pytest.raises(UnsupportedError, match=next(iter(change))):
        open_checkpoint(write(tmp_path / "m", **change))


def test_without_model_type_the_classes_must_agree(tmp_path):
    for names in (["LlamaForCausalLM", "Qwen2ForCausalLM"], ["PeftModel"], [], [3]):
        with pytest.raises(CheckpointError, match="model_type: got nothing"):
            open_checkpoint(write(tmp_path / f"m{len(str(names))}", drop=["model_type"], architectures=names))


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
@pytest.mark.parametrize("kind, wrapper, name", [
    ("gemma3_text", "gemma3", "Gemma3ForConditionalGeneration"),
    ("ministral3", "mistral3", "Mistral3ForConditionalGeneration"),
    ("mistral", "mistral3", "Mistral3ForConditionalGeneration"),
])  # fmt: skip
def test_the_text_model_of_one_that_sees(tmp_path, kind, wrapper, name, prefix):
    """Its tensors as transformers 4 and 5 name them there; the towers' are left alone."""
    config = tiny.tiny_config(model_type=kind, tie_word_embeddings=kind == "gemma3_text")
    tensors = tiny.random_tensors(config, seed=5)
    expected = logits(tiny.write_huggingface(tmp_path / "plain", config, tensors))
    head = "lm_head." if prefix.startswith("model.") else "language_model.lm_head."
    renamed = {
        old.replace("model.", prefix, 1) if old.startswith("model.") else old.replace("lm_head.", head): values
        for old, values in tensors.items()
    }
    renamed["vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"] = np.ones((4, 4), np.float32)
    renamed["multi_modal_projector.linear_1.weight"] = np.ones((4, 4), np.float32)
    whole = {"model_type": wrapper, "architectures": [name], "text_config": config, "vision_config": {}}
    assert np.array_equal(logits(tiny.write_huggingface(tmp_path / "whole", whole, renamed)), expected)
    assert outline_huggingface(tmp_path / "whole", 1 << 30).config == outline_huggingface(tmp_path / "plain").config


@pytest.mark.parametrize("kind", ["qwen3_5_text", "qwen3_5_moe_text"])
def test_layers_that_guess_tokens_are_left_alone(tmp_path, kind):
    """mtp.*, as published beside the model: a layer of its own and what joins it to the others."""
    config = tiny.tiny_config(model_type=kind)
    tensors = tiny.random_tensors(config, seed=5)
    plain = tiny.write_huggingface(tmp_path / "plain", config, tensors)
    last = f"model.layers.{config['num_hidden_layers'] - 1}."
    more = {name.replace(last, "mtp.layers.0."): values for name, values in tensors.items() if name.startswith(last)}
    more |= dict.fromkeys(("mtp.norm.weight", "mtp.pre_fc_norm_embedding.weight"), np.ones(48, np.float32))
    more["mtp.fc.weight"] = np.ones((48, 96), np.float32)
    with_more = config | {"mtp_num_hidden_layers": 1}
    assert np.array_equal(logits(tiny.write_huggingface(tmp_path / "m", with_more, tensors | more)), logits(plain))
