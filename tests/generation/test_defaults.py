"""What answers are sampled with where nobody says: a model's own words first, field by field."""

import json

import golden_tokenizers
import pytest
import tiny

import pyllama
from pyllama.checkpoint import open_checkpoint
from pyllama.generation.defaults import CONVERSATION, own_sampling, sampling_defaults


def folder(tmp_path, text=None):
    config = tiny.tiny_config()
    path = tiny.write_huggingface(tmp_path / "m", config, tiny.random_tensors(config))
    if text is not None:
        (path / "generation_config.json").write_text(text)
    return open_checkpoint(path)


def gguf(tmp_path, **keys):
    config = tiny.tiny_config()
    extra = {f"general.sampling.{key}": value for key, value in keys.items()}
    return open_checkpoint(tiny.write_gguf(tmp_path / "m.gguf", config, tiny.random_tensors(config), extra=extra))


def test_a_model_that_says_nothing_gets_ours(tmp_path):
    assert CONVERSATION == {"temperature": 0.7, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
    with folder(tmp_path) as plain, gguf(tmp_path) as also:
        assert sampling_defaults(plain) == sampling_defaults(also) == CONVERSATION
        assert own_sampling(plain) == own_sampling(also) == {}


def test_generation_config_json_comes_first(tmp_path):
    said = {"temperature": 0.6, "top_p": 0.9, "do_sample": True, "eos_token_id": 2, "repetition_penalty": 1.05}
    with folder(tmp_path, json.dumps(said)) as checkpoint:
        own = {"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.05}
        assert own_sampling(checkpoint) == own
        assert sampling_defaults(checkpoint) == {**CONVERSATION, **own}


def test_keys_of_gguf_come_first(tmp_path):
    with gguf(tmp_path, temp=0.5, top_k=20, penalty_repeat=1.25) as checkpoint:
        own = {"temperature": 0.5, "top_k": 20, "repetition_penalty": 1.25}
        assert own_sampling(checkpoint) == own


@pytest.mark.parametrize("wrong", ["hot", -1, 1e9, None, True, [1]])
def test_what_is_out_of_range_is_left_out(tmp_path, wrong):
    with folder(tmp_path, json.dumps({"temperature": wrong, "top_k": 7})) as checkpoint:
        assert own_sampling(checkpoint) == {"top_k": 7}


def test_a_loaded_model_keeps_the_files_words_and_not_its_vocabulary(tmp_path):
    config = tiny.tiny_config()
    said = {"general.sampling.temp": 0.5, **golden_tokenizers.gguf_metadata("smollm.json")}
    config["vocab_size"] = len(said["tokenizer.ggml.tokens"])
    path = tiny.write_gguf(tmp_path / "m.gguf", config, tiny.random_tensors(config), extra=said)
    with pyllama.load(path, context_length=32) as model:
        assert own_sampling(model.checkpoint) == {"temperature": 0.5}
        assert not [key for key in model.checkpoint.metadata if key.startswith("tokenizer.")]
        assert model.tokenizer.decode(model.tokenizer.encode("words")) == "words"
