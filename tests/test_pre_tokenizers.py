"""tokenizer.ggml.pre: every name gives the ids of llama.cpp; what is missing or unknown is told, and can be named."""

import json
import re
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny

import pyllama
from pyllama.cli import main
from pyllama.errors import RequestError, TokenizerError
from pyllama.tokenizer import load_tokenizer, pre_tokenizers

GOLDEN = json.loads(
    (Path(__file__).parent / "golden" / "tokenizer" / "pre_tokenizers.json").read_text(encoding="utf-8")
)


def metadata(pre, **more):
    found = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": GOLDEN["tokens"],
        "tokenizer.ggml.merges": GOLDEN["merges"],
    } | more
    return {key: value for key, value in found.items() if value is not None}


def load(data, pre_tokenizer=None):
    config = SimpleNamespace(vocab_size=None)
    checkpoint = SimpleNamespace(path="model.gguf", format="gguf", metadata=data, config=config)
    return load_tokenizer(checkpoint, pre_tokenizer)


@pytest.mark.parametrize("name", GOLDEN["names"])
def test_every_name_gives_the_ids_of_llama_cpp(name):
    tokenizer = load(metadata(name))
    for text, expected in zip(GOLDEN["texts"], GOLDEN["ids"][GOLDEN["names"][name]], strict=True):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert [tokenizer.decode([i]) for i in ids] == [tokenizer.decode([i]) for i in expected], repr(text)
        assert ids == expected, repr(text)


def test_no_name_is_left_out():
    assert set(pre_tokenizers.NAMES) - set(GOLDEN["names"]) == {"gpt2"}  # an older name of gpt-2


def test_docs_have_all_names():
    text = (Path(__file__).parents[1] / "docs" / "tokenizers.md").read_text(encoding="utf-8")
    section = text[text.index("The names:") : text.index("Where a name's")]
    assert re.findall(r"`([^`]+)`", section) == sorted(pre_tokenizers.NAMES)


@pytest.mark.parametrize(
    "name",
    "afmoe cohere2moe gemma4 granite-embed-multi-311m kimi-k2 sarvam-moe tiny_aya whitespace youtu unheard-of".split(),
)
def test_other_names_are_refused(name):
    with pytest.raises(TokenizerError, match=f"pre-tokenizer '{name}' is not supported.*--pre-tokenizer.*model.gguf"):
        load(metadata(name))
    with pytest.raises(TokenizerError, match=f"pre-tokenizer '{name}' is not supported"):
        load(metadata("qwen2"), name)
    assert load(metadata(name), "qwen2").encode("12") == load(metadata("qwen2")).encode("12")


@pytest.mark.parametrize("pre", [None, "", "default"])
def test_a_missing_name_is_told_and_can_be_given(pre):
    with pytest.raises(TokenizerError) as caught:
        load(metadata(pre))
    says = "is 'default', which is no model's" if pre else "is missing"
    assert f"tokenizer.ggml.pre {says}" in str(caught.value)
    assert "--pre-tokenizer" in str(caught.value) and "\n" not in str(caught.value)
    for name in ("qwen2", "gpt-2", "llama-bpe"):
        given, stored = load(metadata(pre), name), load(metadata(name))
        for text in GOLDEN["texts"]:
            assert given.encode(text) == stored.encode(text)


def test_a_name_prevails_over_the_file():
    text = "Sum 31 and x_2:\nok"
    assert load(metadata("gpt-2"), "qwen2").encode(text) == load(metadata("qwen2")).encode(text)
    assert load(metadata("gpt-2"), "qwen2").encode(text) != load(metadata("gpt-2")).encode(text)


def test_a_name_where_none_is_used_is_refused(tmp_path):
    pieces = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "a"],
        "tokenizer.ggml.scores": np.zeros(2, "<f4"),
    }
    with pytest.raises(RequestError, match="pre_tokenizer: 'qwen2', expected none: a SentencePiece"):
        load(pieces, "qwen2")
    folder = SimpleNamespace(path=tmp_path, format="huggingface", metadata={}, config=SimpleNamespace(vocab_size=None))
    with pytest.raises(RequestError, match="pre_tokenizer: 'qwen2', expected none: only GGUF"):
        load_tokenizer(folder, "qwen2")
    for wrong in ("", 5):
        with pytest.raises(RequestError, match="pre_tokenizer"):
            load(metadata("qwen2"), wrong)


def test_the_name_reaches_every_front_end(tmp_path, capsys):
    """From a GGUF file without one, as it is and packed."""
    data = metadata(None) | {"tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.add_bos_token": False}
    config = tiny.tiny_config(vocab_size=len(GOLDEN["tokens"]))
    path = tiny.write_gguf(tmp_path / "model.gguf", config, tiny.random_tensors(config), extra=data)
    assert main(["pack", str(path), str(tmp_path / "packed"), "--quiet"]) == 0
    text = GOLDEN["texts"][0]
    expected = load(metadata("qwen2")).encode(text)
    for model in (path, tmp_path / "packed"):
        capsys.readouterr()
        run = ["run", str(model), "--prompt", text, "--max-tokens", "1", "--quiet", "--json"]
        assert main(run) == 2
        assert "tokenizer.ggml.pre is missing" in capsys.readouterr().err
        assert main([*run, "--pre-tokenizer", "qwen2"]) == 0
        assert json.loads(capsys.readouterr().out)["prompt_tokens"] == len(expected)
        assert main(["info", str(model), "--json"]) == 0
        assert "--pre-tokenizer" in json.loads(capsys.readouterr().out)["tokenizer"]["error"]
        assert main(["info", str(model), "--json", "--pre-tokenizer", "qwen2"]) == 0
        assert json.loads(capsys.readouterr().out)["tokenizer"]["kind"] == "bpe"
        with pyllama.load(model, pre_tokenizer="qwen2") as loaded:
            assert loaded.encode_prompt(text) == expected


RUNS = ("a", "aB", " ", "  \n", "\n", "1", "1 ", ".", " .", "\u4e00", "\u3000", "e\u0301", "\u0301", "a ", "'s")


@pytest.mark.parametrize("name", sorted(entry.names.split()[0] for entry in pre_tokenizers._ALL))
def test_long_runs_take_linear_time(name):
    _, split = pre_tokenizers.pre_tokenizer(name, "test").steps("test")
    for run in RUNS:
        times = []
        for count in (500, 8000):
            text = run * count + "5x"
            split([run], True)
            started = time.process_time()
            pieces = split([text], True)
            times.append(time.process_time() - started)
            assert "".join(pieces) == text
        assert times[1] < 80 * max(times[0], 0.002), f"{run!r}: {times}"


def test_names_are_told_apart_by_the_golden_texts():
    """Else a name could have another's steps and nobody would see it."""
    assert len(GOLDEN["ids"]) >= 20
