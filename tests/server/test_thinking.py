"""What a model thinks between <think> and </think> is told apart from what it says in chat completions, streamed or
not, with tools, begun by the prompt, gone on with, and under a grammar, where nothing is thought."""

import json

import pytest
from conftest import write_model
from harmony_model import answering
from running_server import MESSAGES, TOOL_TEMPLATE, WEATHER, running

TEMPLATE = TOOL_TEMPLATE.replace(
    "assistant\n{% endif %}", "assistant\n{% if enable_thinking %}<think>\n{% endif %}{% endif %}"
)
THOUGHT, SAID = "I add 2\nand 2.", "It is <b>4</b>."
ANSWER = f"<think>\n{THOUGHT}\n</think>\n\n{SAID}<|im_end|>"
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>'
ON = {"chat_template_kwargs": {"enable_thinking": True}}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(write_model(tmp_path_factory.mktemp("thinking") / "thinks", template=TEMPLATE)) as server:
        yield server


def asked(server, monkeypatch, text, **more):
    """(content, thought, names of calls) of an answer that is this text; the same streamed."""
    body = {"messages": MESSAGES, "max_tokens": 300, **more}
    with answering(monkeypatch, server.model.tokenizer, text):
        [choice] = server.post("/v1/chat/completions", body)["choices"]
        events = server.events("/v1/chat/completions", body)
    message = choice["message"]
    deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
    content, thought = ("".join(d.get(key) or "" for d in deltas) for key in ("content", "reasoning_content"))
    assert (content, thought) == (message["content"] or "", message.get("reasoning_content", ""))
    calls = [call["function"]["name"] for call in message.get("tool_calls", [])]
    assert calls == [call["function"]["name"] for d in deltas for call in d.get("tool_calls", [])]
    return content, thought, calls


def test_thoughts_are_not_content(server, monkeypatch):
    assert asked(server, monkeypatch, ANSWER) == (SAID, THOUGHT, [])
    assert asked(server, monkeypatch, ANSWER.removeprefix("<think>\n"), **ON) == (SAID, THOUGHT, [])
    assert asked(server, monkeypatch, f"{SAID}<|im_end|>") == (SAID, "", [])
    assert asked(server, monkeypatch, ANSWER, max_tokens=12) == ("", "I ad", [])  # cut in the midst of it
    body = {"messages": MESSAGES, "max_tokens": 300}
    with answering(monkeypatch, server.model.tokenizer, f"{SAID}<|im_end|>"):
        message = server.post("/v1/chat/completions", body)["choices"][0]["message"]
    assert "reasoning_content" not in message


def test_thoughts_before_a_call(server, monkeypatch):
    thought = f"<think>\n{THOUGHT}\n</think>\n\n"
    assert asked(server, monkeypatch, thought + CALL, tools=[WEATHER]) == ("", THOUGHT, ["weather"])
    assert asked(server, monkeypatch, f"{thought}Well.\n{CALL}", tools=[WEATHER]) == ("Well.\n", THOUGHT, ["weather"])


def test_an_answer_goes_on_where_its_message_stops(server, monkeypatch):
    for begun, text, expected in (
        ("<think>\nI add", " 2.\n</think>\n\nFour.<|im_end|>", ("Four.", "2.", [])),
        ("<think>\nI add.\n</think>\n\nIt", " is.<|im_end|>", (" is.", "", [])),
    ):
        messages = [*MESSAGES, {"role": "assistant", "content": begun}]
        assert asked(server, monkeypatch, text, messages=messages, continue_final_message=True) == expected


def test_what_a_grammar_holds_is_content(server, monkeypatch):
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    form = {"type": "json_schema", "json_schema": {"schema": schema, "name": "n"}}
    content, thought, _ = asked(server, monkeypatch, '{"n": 4}<|im_end|>', response_format=form, **ON)
    assert json.loads(content) == {"n": 4} and not thought
