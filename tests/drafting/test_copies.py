"""The copy that drafts for a model: where it is made, that it is found there, and that it stands in nobody's way."""

import json
import os
import warnings
from pathlib import Path

import conftest
import pytest
from hub_server import own_caches

from pyllama.checkpoint import open_checkpoint
from pyllama.cli import main
from pyllama.drafting.copies import copy_destination, copy_of
from pyllama.hub.cache import hub_cache
from pyllama.planning.drafting import kind_of
from pyllama.quantizing import quantize
from pyllama.quantizing.warning import QuantizeWarning

WIDE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    own_caches(tmp_path, monkeypatch)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    return conftest.write_model(tmp_path / "models" / "tiny", **WIDE)


@pytest.mark.parametrize("name", ["X.gguf", "X", "X-00001-of-00003.gguf", "a b.c"])
def test_a_copy_lies_beside_the_model(tmp_path, name):
    model = tmp_path / name
    place = copy_destination(model)
    assert place == tmp_path / (name.removesuffix(".gguf") + ".draft.gguf")
    assert copy_of(model) is None
    place.write_bytes(b"GGUF")
    assert copy_of(model) == place == copy_of(Path(os.path.relpath(model)))


def test_where_the_folder_is_no_place_for_it_the_cache_is(tmp_path, monkeypatch):
    cached = hub_cache() / "models--acme--x" / "snapshots" / ("0" * 40) / "x.gguf"
    cached.parent.mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda path, mode: "sealed" not in str(path))
    places = [copy_destination(model) for model in (cached, tmp_path / "sealed" / "x.gguf", tmp_path / "sealed" / "x")]
    assert all(place.parent == tmp_path / "xdg" / "pyllama" / "drafts" and place.parent.is_dir() for place in places)
    assert len({place.name for place in places}) == 3
    places[0].write_bytes(b"GGUF")
    assert copy_of(cached) == places[0] and copy_of(tmp_path / "sealed" / "x.gguf") is None


def test_the_command_makes_it_and_says_where(folder, capsys):
    assert main(["quantize", str(folder), "--draft", "--quiet"]) == 0
    place = folder.with_name("tiny.draft.gguf")
    assert capsys.readouterr().out == f"{place}\n"
    with open_checkpoint(folder) as model, open_checkpoint(place) as copy:
        assert copy_of(model.path) == place
        assert kind_of(model, copy) == "copy" and copy.dtype == "Q3_K" and copy.nbytes < model.nbytes / 3
    assert main(["quantize", str(folder), "--draft", "--quiet"]) == 2
    assert "already there" in capsys.readouterr().err


def test_info_shows_it(folder, capsys):
    assert main(["info", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["draft_copy"] is None
    place = copy_destination(folder)
    place.write_bytes(b"GGUF")
    assert main(["info", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["draft_copy"] == {"path": str(place), "nbytes": 4}
    assert main(["info", str(folder)]) == 0
    assert f"draft copy      {place}  4 B" in capsys.readouterr().out.splitlines()


def test_a_copy_goes_with_the_model_that_is_removed(capsys):
    kept, gone = (hub_cache() / f"models--acme--{name}" for name in ("kept", "gone"))
    places = []
    for repository in (kept, gone):
        snapshot = repository / "snapshots" / ("0" * 40)
        (repository / "refs").mkdir(parents=True)
        snapshot.mkdir(parents=True)
        (repository / "refs" / "main").write_text("0" * 40)
        (snapshot / "m-Q8_0.gguf").write_bytes(b"GGUF" * 10)
        places.append(copy_destination(snapshot / "m-Q8_0.gguf"))
        places[-1].write_bytes(b"GGUF" * 100)
        places[-1].with_name(places[-1].name + ".imatrix.gguf").write_bytes(b"GGUF")
    assert main(["rm", "acme/gone"]) == 0
    assert capsys.readouterr().out == "acme/gone: removed, 484 B free\n"  # and a reference of 40
    assert sorted(places[0].parent.iterdir()) == sorted([places[0], Path(f"{places[0]}.imatrix.gguf")])


def test_a_text_makes_it_better_and_goes_with_it(folder, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("hello and hello, and the 12 words. " * 60)
    assert main(["quantize", str(folder), "--draft", "--calibration", str(text), "--quiet"]) == 0
    assert sorted(path.name for path in folder.parent.iterdir()) == [
        "tiny", "tiny.draft.gguf", "tiny.draft.gguf.imatrix.gguf"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "words, message",
    [
        (["--draft", "dst.gguf"], "DST: given together with --draft"),
        (["--draft", "--type", "q8_0"], "--type: given together with --draft"),
        (["--type", "q8_0"], "the following arguments are required: DST"),
        (["dst.gguf"], "--type: missing, expected a type such as q4_k_m (or --draft"),
    ],
)
def test_what_the_command_lacks_is_one_line(folder, capsys, words, message):
    assert main(["quantize", str(folder), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"pyllama: {message}") and error.count("\n") == 1


def test_a_folder_with_one_model_stays_one(folder, tmp_path):
    """A GGUF file's folder may be named in its place, whatever pyllama has written beside it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", QuantizeWarning)
        (tmp_path / "ggufs").mkdir()
        path = quantize(folder, tmp_path / "ggufs" / "m.gguf", "q8_0")
        quantize(path, copy_destination(path), "q3_k_s")
    (tmp_path / "ggufs" / "m.draft.gguf.imatrix.gguf").write_bytes(b"GGUF")
    with open_checkpoint(tmp_path / "ggufs") as checkpoint:
        assert checkpoint.path == path and copy_of(checkpoint.path) == tmp_path / "ggufs" / "m.draft.gguf"
