"""gpt-oss's channels on the command line: `run` shows what is said, `--json` what is thought as well, a chat remembers
the one and not the other."""

import json

import pytest
from harmony_model import answering, write_harmony_model

import pyllama
from pyllama.cli import main

THOUGHT, SAID = "I add.", "It is 4."
ANSWER = f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>{SAID}<|return|>"
CALL = '<|channel|>commentary to=functions.now <|constrain|>json<|message|>{"zone": "CET"}<|call|>'
TOOLS = [{"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_harmony_model(tmp_path_factory.mktemp("models") / "harmony")


@pytest.fixture
def answers(folder, monkeypatch):
    with pyllama.load(folder) as model:
        yield lambda text: answering(monkeypatch, model.tokenizer, text)


def run(folder, *arguments):
    return main(["run", str(folder), "--prompt", "two and two?", "--max-tokens", "200", *map(str, arguments)])


def test_run_shows_what_is_said(folder, answers, capsys):
    with answers(ANSWER):
        assert run(folder) == 0
    assert capsys.readouterr().out == f"{SAID}\n"


def test_run_as_json_has_both(folder, answers, capsys):
    with answers(ANSWER):
        assert run(folder, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["text"], told["reasoning_content"], told["finish_reason"]) == (SAID, THOUGHT, "stop")


def test_run_prints_calls(folder, answers, capsys, tmp_path):
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    with answers(CALL):
        assert run(folder, "--tools", tmp_path / "tools.json") == 0
    assert json.loads(capsys.readouterr().out) == {"name": "now", "arguments": {"zone": "CET"}}


def test_run_of_a_bare_prompt_is_text_as_it_is(folder, answers, capsys):
    with answers("plain <|channel|>text<|return|>"):
        assert run(folder, "--raw") == 0
    assert capsys.readouterr().out == "plain text\n"


def test_a_chat_remembers_what_was_said(folder, answers):
    with pyllama.load(folder) as model, model.chat(max_tokens=200) as chat, answers(ANSWER):
        assert chat.send("two and two?").read() == ANSWER.removesuffix("<|return|>")
        assert chat.messages[-1] == {"role": "assistant", "content": SAID}
        second = chat.send("and three?")
        prompt = model.tokenizer.decode(second.prompt_ids, skip_special_tokens=False)
        assert f"<|channel|>final<|message|>{SAID}<|end|>" in prompt and THOUGHT not in prompt
