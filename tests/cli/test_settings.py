"""Options from variables and from config.toml, completions and doctor: all of it follows from the parsers."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from pyllama.cli import build_parser, main, settings
from pyllama.cli.completion import SHELLS, script
from pyllama.cli.doctor import unknown_variables
from pyllama.cli.hints import commands_of
from pyllama.cli.known_words import PRE_TOKENIZERS, TYPES
from pyllama.quantizing import types
from pyllama.tokenizer import pre_tokenizers


@pytest.fixture
def config(tmp_path, monkeypatch):
    path = tmp_path / "config.toml"
    monkeypatch.setenv("PYLLAMA_CONFIG", str(path))
    return path


def options(*words):
    parser = build_parser()
    settings.apply(parser, words[0])
    return parser.parse_args(words)


def test_the_nearer_word_counts(config, monkeypatch):
    config.write_text(
        'memory = "1G"\ntemperature = 0.1\ntop-k = 5\nquiet = true\n[chat]\ntemperature = 0.2\nstop = ["a"]'
    )
    chat, run = options("chat", "m"), options("run", "m")
    assert (run.memory, run.temperature, run.top_k, run.quiet, run.stop) == ("1G", 0.1, 5, True, None)
    assert (chat.memory, chat.temperature, chat.top_k, chat.stop) == ("1G", 0.2, 5, ["a"])
    monkeypatch.setenv("PYLLAMA_TEMPERATURE", "0.3")
    assert options("run", "m").temperature == options("chat", "m").temperature == 0.3
    monkeypatch.setenv("PYLLAMA_CHAT_TEMPERATURE", "0.4")
    monkeypatch.setenv("PYLLAMA_QUIET", "no")
    assert (options("run", "m").temperature, options("chat", "m").temperature) == (0.3, 0.4)
    assert options("chat", "m", "--temp", "0.5").temperature == 0.5
    assert options("run", "m").quiet is False


def test_who_drafts_is_not_whether_a_copy_is_made(config, monkeypatch):
    config.write_text('draft = "lookup"')
    assert options("plan", "m").draft == "lookup"
    assert options("quantize", "a", "b", "--type", "q8_0").draft_copy is False
    monkeypatch.setenv("PYLLAMA_DRAFT", "self")
    assert options("plan", "m").draft == "self"
    assert options("quantize", "a", "--draft").draft_copy is True


def test_every_option_of_every_command_can_be_set(config, monkeypatch):
    config.write_text("")
    words = {"run": ["m"], "service": ["status"], "perplexity": ["m", "f"], "quantize": ["a", "b"], "pack": ["a", "b"],
             "unpack": ["a", "b"], "completion": ["bash"], "ps": [], "list": [], "doctor": []}  # fmt: skip
    for name, parser in commands_of(build_parser()).items():
        for option, action in settings.settable(parser).items():
            value = (action.choices or ("1",))[0] if action.nargs != 0 else "true"
            monkeypatch.setenv(f"PYLLAMA_{name.upper()}_{option.upper()}", str(value))
            got = getattr(options(name, *words.get(name, ["m"])), action.dest)
            expected = True if action.nargs == 0 else (action.type or str)(value)
            assert got in (expected, [expected]), (name, option)


@pytest.mark.parametrize(
    "text, message",
    [
        ("temprature = 1", "temprature: no such option, did you mean temperature?"),
        ("num_ctx = 1", "num_ctx: no such option, did you mean context?"),
        ("[chat]\nport = 1", "[chat]: port: no such option"),
        ("[char]\nport = 1", "[char]: no such command, expected one of run, chat"),
        ("top_k = 'many'", "top_k: got 'many', expected K"),
        ("kv-dtype = 'f8'", "kv-dtype: got 'f8', expected f16 or f32"),
        ("quiet = 'perhaps'", "quiet: got 'perhaps', expected true or false"),
        ("memory = [1]", "memory: got [1], expected SIZE"),
        ("memory = ", "config.toml: "),
        ("replace = true", "replace: no such option"),
    ],
)
def test_what_makes_no_sense_is_told_by_file_and_key(config, capsys, text, message):
    config.write_text(text)
    assert main(["run", "m", "x"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"pyllama: {config.parent}") and message in error and error.count("\n") == 1


def test_a_wrong_variable_is_told_by_its_name(config, monkeypatch, capsys):
    config.write_text("")
    monkeypatch.setenv("PYLLAMA_THREADS", "all")
    assert main(["run", "m", "x"]) == 2
    assert capsys.readouterr().err == "pyllama: PYLLAMA_THREADS: got 'all', expected N\n"
    monkeypatch.setenv("PYLLAMA_CONFIG", "/no/such/file")
    assert main(["run", "m", "x"]) == 2
    assert "PYLLAMA_CONFIG: /no/such/file: no such file" in capsys.readouterr().err


def test_it_reaches_the_model(config, base_folder, capsys):
    config.write_text("[run]\nmax-tokens = 3\njson = true")
    assert main(["run", str(base_folder), "-p", "hello", "--ignore-eos"]) == 0
    assert json.loads(capsys.readouterr().out)["completion_tokens"] == 3


# --- completions ---


def completed(shell, line, tmp_path):
    """What a shell offers for the last word of a line."""
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"no {shell}")
    source = tmp_path / shell
    source.write_text(script(build_parser(), shell))
    words = line.split(" ")
    code = {
        "bash": f"source {source}; COMP_WORDS=({' '.join(w or chr(39) * 2 for w in words)});"
        f" COMP_CWORD={len(words) - 1}; _pyllama; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        "fish": f"source {source}; complete -C '{line}'",
    }[shell]
    names = tmp_path / "bin/pyllama"
    names.parent.mkdir(exist_ok=True)
    names.write_text("#!/bin/sh\necho org/name:Q4_K_M\n")
    names.chmod(0o755)
    environment = os.environ | {"PATH": f"{names.parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    done = subprocess.run([program, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path / "bin")
    assert done.returncode == 0, done.stderr
    return [offer.split("\t")[0] for offer in done.stdout.split("\n")]


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_shells_complete_commands_options_values_and_models(shell, tmp_path):
    assert {"chat", "completion"} == {
        *completed(shell, "pyllama ch", tmp_path),
        *completed(shell, "pyllama comp", tmp_path),
    } - {""}
    assert "--kv-dtype" in completed(shell, "pyllama run --kv", tmp_path)
    assert {"f16", "f32"} <= set(completed(shell, "pyllama run --kv-dtype ", tmp_path))
    assert "org/name:Q4_K_M" in completed(shell, "pyllama run ", tmp_path)
    assert "uninstall" in completed(shell, "pyllama service ", tmp_path)
    assert {"q4_k_m", "iq4_xs", "q3_k"} <= set(completed(shell, "pyllama quantize --type ", tmp_path))
    assert "qwen2" in completed(shell, "pyllama run --pre-tokenizer ", tmp_path)
    assert "org/name:Q4_K_M" in completed(shell, "pyllama perplexity --against ", tmp_path)
    assert {"auto", "self", "lookup", "off", "org/name:Q4_K_M"} <= set(
        completed(shell, "pyllama run --draft ", tmp_path)
    )


def test_the_words_that_completions_know_are_those_that_options_take():
    assert (TYPES, PRE_TOKENIZERS) == (tuple(types.NAMES), tuple(pre_tokenizers.NAMES))


@pytest.mark.parametrize("shell", SHELLS)
def test_shells_can_read_it(shell, tmp_path, capsys):
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in commands_of(build_parser()))
    if program := shutil.which(shell):
        (tmp_path / "script").write_text(text)
        done = subprocess.run([program, "-n", tmp_path / "script"], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


# --- doctor ---


def test_doctor_tells_what_is_so(capsys):
    code = main(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert code == (2 if report["problems"] else 0)
    assert report["python"] == ".".join(map(str, sys.version_info[:3])) and report["threads"] >= 1
    assert main(["doctor"]) == code
    assert capsys.readouterr().out.startswith("pyllama ")


def test_doctor_finds_variables_that_nobody_reads():
    names = ["PYLLAMA_MEMORY", "PYLLAMA_SERVE_PORT", "PYLLAMA_TEMPRATURE", "PYLLAMA_ISA", "PYLLAMA_CHAT_PORT", "HOME"]
    assert unknown_variables(build_parser(), names) == ["PYLLAMA_CHAT_PORT", "PYLLAMA_TEMPRATURE"]


def test_doctor_says_which_variable_was_meant(monkeypatch, capsys):
    monkeypatch.setenv("PYLLAMA_MEMRY", "1G")
    assert main(["doctor"]) == 2
    assert "unset PYLLAMA_MEMRY; did you mean PYLLAMA_MEMORY?" in capsys.readouterr().out
