"""The form of an answer on the command line: schemas, grammars, calls of tools, log-probabilities."""

import json

import pytest

import pyllama
from pyllama.cli import main

SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


def run(capsys, *words):
    assert main(["run", *map(str, words)]) == 0
    return capsys.readouterr().out


@pytest.fixture
def server_parts():
    for name in ("starlette", "llguidance"):
        pytest.importorskip(name)


def test_json_that_fits_a_schema(server_parts, base_folder, tmp_path, capsys):
    (tmp_path / "schema").write_text(json.dumps(SCHEMA))
    for seed in range(3):
        out = run(capsys, base_folder, "hello", "--json-schema", tmp_path / "schema", "--temp", 2, "-s", seed)
        assert json.loads(out)["ok"] in (True, False)


def test_text_of_a_grammar(server_parts, base_folder, tmp_path, capsys):
    (tmp_path / "grammar").write_text('start: "yes" | "no"\n')
    assert run(capsys, base_folder, "hello", "--grammar", tmp_path / "grammar") in ("yes\n", "no\n")
    (tmp_path / "grammar").write_text('# as llama.cpp has them\nroot ::= answer\nanswer ::= "yes" | "no"\n')
    assert run(capsys, base_folder, "hello", "--grammar", tmp_path / "grammar") in ("yes\n", "no\n")


def test_tools_reach_the_template_and_calls_are_lines(server_parts, tmp_path, capsys, monkeypatch):
    from conftest import write_model
    from running_server import TOOL_TEMPLATE

    from pyllama.server.tools import ToolParser
    from pyllama.server.tools.forms import ToolCall

    folder = write_model(tmp_path / "tools", template=TOOL_TEMPLATE)
    (tmp_path / "file").write_text(json.dumps(TOOLS))
    plain = json.loads(run(capsys, folder, "hello", "-n", 3, "--json"))
    words = [folder, "hello", "-n", 3, "--tools", tmp_path / "file"]
    told = json.loads(run(capsys, *words, "--json"))
    assert told["prompt_tokens"] > plain["prompt_tokens"] and told["tool_calls"] == []
    # A random model calls nothing: whatever it writes ends in a call.
    call = ToolCall("id", "weather", '{"city": "Oslo"}')
    monkeypatch.setattr(ToolParser, "finish", lambda self, cut=False: ("", [call]))
    assert run(capsys, *words).splitlines()[-1] == '{"name": "weather", "arguments": {"city": "Oslo"}}'
    assert json.loads(run(capsys, *words, "--json"))["tool_calls"] == [call.as_openai()]


def test_logprobs_are_those_of_the_library(base_folder, capsys):
    out = json.loads(run(capsys, base_folder, "hello", "-n", 3, "--logprobs", 2, "--json"))
    with pyllama.load(base_folder) as model:
        steps = list(model.generate("hello", max_tokens=3, logprobs=2))
    assert [one["logprob"] for one in out["logprobs"]] == [step.logprob for step in steps]
    assert [[top["token_id"] for top in one["top"]] for one in out["logprobs"]] == [
        [token_id for token_id, _ in step.top_logprobs] for step in steps
    ]
    lines = run(capsys, base_folder, "hello", "-n", 3, "--logprobs", 2).splitlines()
    assert len(lines) == 3 and all(f"{s.logprob:.4f}" in line for s, line in zip(steps, lines, strict=True))


@pytest.mark.parametrize(
    "option, text, message",
    [
        ("--json-schema", "{", "Expecting property name"),
        ("--json-schema", "[]", "expected a JSON object"),
        ("--json-schema", '{"type": "thing"}', "--json-schema: "),
        ("--grammar", "start: missing", "--grammar: "),
        ("--grammar", "root ::= missing", "--grammar: Rule 'missing' not found"),
        ("--grammar", 'root ::= ( "a"', "--grammar: Expected ')'"),
        ("--tools", "{}", "expected a JSON array of tools"),
        ("--tools", "[{}]", "tools[0]"),
    ],
)
def test_what_cannot_be_is_one_line(server_parts, chat_folder, tmp_path, capsys, option, text, message):
    (tmp_path / "file").write_text(text)
    assert main(["run", str(chat_folder), "hello", option, str(tmp_path / "file")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("pyllama: ") and message in error and error.count("\n") == 1
