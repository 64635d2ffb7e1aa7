"""Which pulled models may draft: those with the same tokens under the same ids, and of them the right size first."""

import json

import conftest
import pytest
from hub_server import own_caches

from pyllama.checkpoint import open_checkpoint
from pyllama.drafting import siblings as module
from pyllama.drafting.siblings import siblings
from pyllama.hub.cache import hub_cache
from pyllama.quantizing import quantize
from pyllama.tokenizer import load_tokenizer

COMMIT = "0" * 40
TARGET = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    own_caches(tmp_path, monkeypatch)


@pytest.fixture
def target(tmp_path):
    (tmp_path / "target").mkdir()
    return conftest.write_model(tmp_path / "target", **TARGET)


def snapshot(name):
    """The folder of a pulled model's files."""
    folder = hub_cache() / f"models--acme--{name}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    return folder / "snapshots" / COMMIT


def pulled(name, **config):
    return conftest.write_model(snapshot(name), **config)


def found(path):
    with open_checkpoint(path) as checkpoint:
        return [name for name, _ in siblings(checkpoint, load_tokenizer(checkpoint))]


def edit_tokenizer(folder, change):
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    change(tokenizer)
    path.write_text(json.dumps(tokenizer))


def test_the_smallest_that_is_large_enough_comes_first(target, monkeypatch):
    assert found(target) == []
    for name, size in (("tiny", 16), ("small", 64), ("middle", 128)):
        pulled(name, hidden_size=size, intermediate_size=4 * size)
    pulled("same", **TARGET)  # as large as the model itself: it would save nothing
    nbytes = {model.name: model.nbytes for model in module.installed()}
    monkeypatch.setattr(module, "LEAST", nbytes["acme/small"] / nbytes["acme/same"])
    assert found(target) == ["acme/small", "acme/middle", "acme/tiny"]
    monkeypatch.setattr(module, "LEAST", 1.0)
    assert found(target) == ["acme/middle", "acme/small", "acme/tiny"]


def test_padding_and_added_tokens_make_no_difference(target):
    vocab_size = json.loads((target / "config.json").read_text())["vocab_size"]
    padded = pulled("padded", hidden_size=64, vocab_size=vocab_size + 20)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    edit_tokenizer(padded, lambda t: t["added_tokens"].append({"id": 265, "content": "<|image|>", **flags}))
    assert found(target) == ["acme/padded"]


def test_another_vocabulary_is_none(target):
    def swap(tokenizer):
        vocab = tokenizer["model"]["vocab"]
        vocab["!"], vocab["#"] = vocab["#"], vocab["!"]

    edit_tokenizer(pulled("swapped", hidden_size=64), swap)
    pulled("larger", hidden_size=64, vocab_size=600)  # far more than padding
    broken = pulled("broken", hidden_size=64)
    (broken / "tokenizer.json").write_text("{")
    (pulled("unknown", hidden_size=64) / "config.json").write_text('{"model_type": "acme"}')
    without = pulled("without", hidden_size=64)
    (without / "tokenizer.json").unlink()
    assert found(target) == []
    pulled("right", hidden_size=64)
    assert found(target) == ["acme/right"]


@pytest.mark.filterwarnings("ignore::pyllama.quantizing.warning.QuantizeWarning")
def test_the_form_of_the_files_makes_no_difference(target, tmp_path):
    small = conftest.write_model(tmp_path, hidden_size=64)
    quantize(small, snapshot("gguf") / "gguf-Q8_0.gguf", "q8_0")
    assert found(target) == ["acme/gguf"]
    as_gguf = quantize(target, tmp_path / "target.gguf", "bf16")
    assert found(as_gguf) == ["acme/gguf"]
    edited = conftest.write_model(snapshot("edited"), hidden_size=64)
    edit_tokenizer(edited, lambda t: t["added_tokens"][0].update(content="<|start|>"))
    edit_tokenizer(edited, lambda t: t["model"]["vocab"].update({"<|start|>": t["model"]["vocab"].pop("<|begin|>")}))
    settings = json.loads((edited / "tokenizer_config.json").read_text()) | {"bos_token": "<|start|>"}
    (edited / "tokenizer_config.json").write_text(json.dumps(settings))
    quantize(edited, snapshot("other") / "other-Q8_0.gguf", "q8_0")
    assert found(target) == found(as_gguf) == ["acme/gguf"]


def test_no_more_candidates_are_read_than_are_wanted(target, monkeypatch):
    for name in ("a", "b", "c"):
        pulled(name, hidden_size=64)
    opened = []
    monkeypatch.setattr(module, "open_checkpoint", lambda path: opened.append(path) or open_checkpoint(path))
    with open_checkpoint(target) as checkpoint:
        next(siblings(checkpoint, load_tokenizer(checkpoint)))
    assert len(opened) == 1
