"""Models without a tokenizer: token ids in and out, text refused with the reason, by the library and every command."""

import json

import numpy as np
import pytest
import tiny

import pyllama
from pyllama.cli import main
from pyllama.errors import TokenizerError
from pyllama.tokenizer.tokenizer import Tokenizer

IDS = [3, 1, 4, 1, 5]


def model(tmp_path, form, **more):
    config = tiny.tiny_config(**more)
    tensors = tiny.random_tensors(config, seed=5)
    if form == "gguf":
        return tiny.write_gguf(tmp_path / "m.gguf", config, tensors)
    write = tiny.write_meta if form == "meta" else tiny.write_huggingface
    return write(tmp_path / form, config, tensors)


@pytest.mark.parametrize("form", ["huggingface", "gguf", "meta"])
def test_token_ids_work_and_text_is_refused(tmp_path, form):
    with pyllama.load(model(tmp_path, form), threads=1, context_length=32) as m:
        logits = m.forward(IDS)
        assert logits.shape == (len(IDS), 101) and np.isfinite(logits).all()
        generation = m.generate(IDS, max_tokens=3, ignore_eos=True)
        assert generation.read() == "" and len(generation.token_ids) == 3
        assert generation.token_ids[0] == logits[-1].argmax()
        assert m.tokenizer.kind == "none" and m.tokenizer.decode(IDS) == ""
        for asked in (
            lambda: m.generate("text"),
            lambda: m.generate([{"role": "user", "content": "text"}]),
            lambda: m.chat(),
            lambda: m.generate(IDS, stop=["x"]),
            lambda: m.tokenizer.encode("text"),
        ):
            with pytest.raises(TokenizerError, match="no tokenizer, so no text, only token ids: .*tokenizer"):
                asked()


def test_it_has_whatever_a_tokenizer_has(tmp_path):
    with pyllama.load(model(tmp_path, "huggingface"), threads=1, context_length=32) as m:
        instance = {"kind", "vocab_size", "special_ids", "bos_token_id", "eos_token_ids"}  # set in __init__
        public = {name for name in vars(Tokenizer) if not name.startswith("_")} - {"chat_template"} | instance
        assert [name for name in public if not hasattr(m.tokenizer, name)] == []
        assert m.tokenizer.template_nbytes == 0


def test_the_ends_of_the_config_end_an_answer(tmp_path):
    with pyllama.load(model(tmp_path, "huggingface"), threads=1, context_length=32) as m:
        first = int(m.forward(IDS)[-1].argmax())
    folder = model(tmp_path / "other", "huggingface", eos_token_id=[first, 5000])
    with pyllama.load(folder, threads=1, context_length=32) as m:
        generation = m.generate(IDS, max_tokens=9)
        generation.read()
        assert (generation.token_ids, generation.finish_reason) == ([first], "stop")


def test_packed_too(tmp_path):
    folder = model(tmp_path, "huggingface")
    assert main(["pack", str(folder), str(tmp_path / "packed"), "--quiet"]) == 0
    with pyllama.load(folder, context_length=32) as one, pyllama.load(tmp_path / "packed", context_length=32) as other:
        assert np.array_equal(one.forward(IDS), other.forward(IDS))


@pytest.mark.parametrize("form", ["huggingface", "gguf"])
@pytest.mark.parametrize(
    "line",
    [["run", "MODEL", "--prompt", "hi"], ["run", "MODEL", "--raw", "--prompt", "hi"], ["chat", "MODEL"],
     ["serve", "MODEL", "--port", "0"], ["info", "MODEL", "--template"]],
)  # fmt: skip
def test_commands_say_it_in_one_line(tmp_path, capsys, form, line):
    path = model(tmp_path, form)
    assert main([str(path) if word == "MODEL" else word for word in line]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("pyllama: no tokenizer, so no text, only token ids: ") and told.err.count("\n") == 1
    assert told.out == ""


def test_info_goes_on_without(tmp_path, capsys):
    path = model(tmp_path, "huggingface")
    assert main(["info", str(path)]) == 0
    assert "tokenizer       none that works: no text, only token ids: " in capsys.readouterr().out
    assert main(["info", "--json", str(path)]) == 0
    assert "no tokenizer" in json.loads(capsys.readouterr().out)["tokenizer"]["error"]


@pytest.mark.parametrize(
    "names, told",
    [(("vocab.json", "merges.txt"), "save_pretrained"), (("tekken.json",), "tekken.json is not read"),
     (("vocab.txt",), "vocab.txt is not read"), (("tokenizer.model.v3",), "tokenizer.model.v3 is one under another"),
     ((), "get one from where the model is from")],
)  # fmt: skip
def test_what_is_there_instead_is_named(tmp_path, names, told):
    folder = model(tmp_path, "huggingface")
    for name in names:
        (folder / name).write_text("{}")
    with pyllama.load(folder, context_length=32) as m, pytest.raises(TokenizerError, match=told):
        m.tokenizer.encode("a")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "data, told",
    [(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Git LFS pointer"), (b"", "empty file"),
     (b"<!DOCTYPE html><html>", "web page")],
)  # fmt: skip
def test_a_tokenizer_that_is_not_one_is_an_error(tmp_path, name, data, told):
    folder = model(tmp_path, "huggingface")
    (folder / name).write_bytes(data)
    with pytest.raises(TokenizerError, match=f"{name}: .*{told}"):
        pyllama.load(folder)


@pytest.mark.parametrize("name", ["none", "no_vocab"])
def test_a_gguf_that_says_none(tmp_path, name):
    config = tiny.tiny_config()
    extra = {"tokenizer.ggml.model": name}
    path = tiny.write_gguf(tmp_path / "m.gguf", config, tiny.random_tensors(config), extra=extra)
    with pyllama.load(path, context_length=32) as m:
        assert m.forward(IDS).shape == (5, 101)


@pytest.mark.parametrize("key", ["tokens", "merges"])
def test_a_damaged_tokenizer_is_still_an_error(tmp_path, key):
    config = tiny.tiny_config()
    found = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.merges": ["a b"],
             "tokenizer.ggml.tokens": [chr(97 + i % 26) * (1 + i // 26) for i in range(101)]}  # fmt: skip
    del found[f"tokenizer.ggml.{key}"]
    path = tiny.write_gguf(tmp_path / "m.gguf", config, tiny.random_tensors(config), extra=found)
    with pytest.raises(TokenizerError, match=f"tokenizer.ggml.{key}: missing"):
        pyllama.load(path)
