"""tokenizer.ggml.pre: every name gives the ids of llama.cpp; what is missing or unknown is told, and can be named."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from pyllama.errors import RequestError, TokenizerError
from pyllama.tokenizer import load_tokenizer, pre_tokenizers, steps

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


def test_names_are_told_apart_by_the_golden_texts():
    """Else a name could have another's steps and nobody would see it."""
    assert len(GOLDEN["ids"]) >= 20
