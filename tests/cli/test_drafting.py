"""--draft of run, chat, serve and service: who drafts, what is told of it, and that the text does not depend on it."""

import argparse
import json
from types import SimpleNamespace

import pytest
import tiny
from conftest import write_model

from pyllama.cli import build_parser, main
from pyllama.cli.drafting import who_drafts

PROMPT = ["--prompt", "hello hello hello hello", "--ignore-eos", "-n", "30"]


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A smaller model with the same tokenizer."""
    return write_model(tmp_path_factory.mktemp("models") / "small", template=None, num_hidden_layers=1)


def answer(capsys, folder, *options):
    assert main(["run", str(folder), *PROMPT, "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_text_does_not_depend_on_who_drafts(base_folder, other, capsys):
    plain = answer(capsys, base_folder, "--draft", "off")
    nothing = {"name": None, "proposed_tokens": 0, "accepted_tokens": 0, "tokens_a_pass": 1.0}
    assert plain["draft"] == nothing == answer(capsys, base_folder)["draft"]  # auto: all weights stay
    for draft, name in (("lookup", "look-up"), (str(other), "small"), (str(base_folder), base_folder.name)):
        drafted = answer(capsys, base_folder, "--draft", draft)
        assert [drafted[key] for key in ("token_ids", "text", "fingerprint")] == [
            plain[key] for key in ("token_ids", "text", "fingerprint")
        ]
        told = drafted["draft"]
        assert name in (told["name"], told["given_up"])
        assert 0 <= told["accepted_tokens"] <= told["proposed_tokens"]
        assert drafted["passes"] == drafted["completion_tokens"] - told["accepted_tokens"]
        assert told["tokens_a_pass"] == pytest.approx(30 / (30 - told["accepted_tokens"]))
        if draft != "lookup":
            assert 0 < told["load_s"] <= told["draft_s"]
            assert min(told["nbytes"], told["bytes_read"]) > 0


def test_a_variable_and_the_file_say_it_too(base_folder, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PYLLAMA_DRAFT", "lookup")
    assert answer(capsys, base_folder)["draft"]["name"] == "look-up"
    assert answer(capsys, base_folder, "--draft", "off")["draft"]["name"] is None
    # The --draft of quantize is another one: that of one call.
    assert main(["quantize", "nowhere", "x.gguf", "--type", "q8_0", "--quiet"]) == 2
    assert "PYLLAMA_DRAFT" not in capsys.readouterr().err
    monkeypatch.delenv("PYLLAMA_DRAFT")
    monkeypatch.setenv("PYLLAMA_CONFIG", str(tmp_path / "config.toml"))
    (tmp_path / "config.toml").write_text('draft = "lookup"\n')
    assert answer(capsys, base_folder)["draft"]["name"] == "look-up"


def test_what_cannot_draft_is_told_in_a_line(base_folder, tmp_path, capsys):
    config = tiny.tiny_config(vocab_size=290, bos_token_id=1, eos_token_id=2)
    tiny.write_huggingface(tmp_path / "foreign", config, tiny.random_tensors(config, seed=3))
    for draft, words in (
        (str(tmp_path / "nowhere"), "no such"),
        ("self", "has no copy that could draft for it; make one, once: pyllama quantize"),
        (str(tmp_path / "foreign"), "foreign cannot be compared: a tokenizer is missing"),
    ):
        assert main(["run", str(base_folder), *PROMPT, "--draft", draft]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.startswith("pyllama: ") and captured.err.count("\n") == 1
        assert words in captured.err


def test_verbose_says_who_drafts_and_what_came_of_it(base_folder, other, capsys):
    run = ["run", str(base_folder), *PROMPT, "--verbose", "--quiet"]
    assert main([*run, "--draft", str(other)]) == 0
    error = capsys.readouterr().err
    assert "draft: small\n" in error or "draft: look-up\n" in error
    assert "tokens proposed" in error and "tokens a pass" in error
    assert main(run) == 0
    assert "draft: nobody: all weights stay in memory" in capsys.readouterr().err
    assert main([*run, "--draft", "off"]) == 0
    assert "draft: nobody, as --draft off says" in capsys.readouterr().err


def test_why_nobody_drafts_while_weights_are_streamed():
    def told(draft, drafting, streamed=1):
        model = SimpleNamespace(drafting=drafting, plan=SimpleNamespace(streamed=streamed))
        return who_drafts(model, argparse.Namespace(draft=draft, model="my model"))

    makes = "`pyllama quantize 'my model' --draft --calibration FILE` makes a copy"
    lookup, sibling = SimpleNamespace(name="look-up", drafter=None), SimpleNamespace(name="small", drafter=object())
    assert makes in told("auto", None) and "nobody" in told("auto", None)
    assert makes in told("auto", lookup) and "look-up" in told("auto", lookup)
    assert told("auto", sibling) == told("small", sibling) == "draft: small"
    assert told("lookup", lookup) == "draft: look-up"
    assert told("auto", None, streamed=0).startswith("draft: nobody: all weights stay")


def test_a_conversation_tells_it_too(chat_folder, monkeypatch, capsys):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n/stats\n"))
    options = ["--draft", "lookup", "--verbose", "--quiet", "-n", "12", "--ignore-eos", "--temperature", "0"]
    assert main(["chat", str(chat_folder), *options]) == 0
    captured = capsys.readouterr()
    assert "draft: look-up" in captured.err and "tokens a pass" in captured.err
    assert "tokens a pass" in captured.out


def test_the_server_and_the_service_take_it(chat_folder, other, capsys, tmp_path, monkeypatch):
    assert build_parser().parse_args(["serve", "m"]).draft == "auto"
    assert build_parser().parse_args(["serve", "m", "--draft", "lookup"]).draft == "lookup"
    monkeypatch.chdir(other.parent)

    def unit(*options):
        assert main(["service", "install", str(chat_folder), "--user", "--dry-run", *options]) == 0
        return capsys.readouterr().out

    assert "--draft" not in unit()
    assert "--draft=off" in unit("--draft", "off") and "--draft=lookup" in unit("--draft", "lookup")
    assert f"--draft={other}" in unit("--draft", "small")  # a path becomes absolute
    assert main(["service", "install", str(chat_folder), "--user", "--dry-run", "--draft", "self"]) == 2
    assert "--draft self: no copy is here" in capsys.readouterr().err
