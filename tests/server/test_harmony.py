"""gpt-oss's channels in every API: what is thought, what is said, calls; streamed or not; and the history put back."""

import json

import pytest
from harmony_model import answering, write_harmony_model
from running_server import MESSAGES, WEATHER, running

THOUGHT, SAID = "I add 2 and 2.", "It is 4."
ANSWER = f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>{SAID}<|return|>"
CALL = (
    f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>commentary to=functions.weather "
    '<|constrain|>json<|message|>{"city": "Rome"}<|call|>'
)
ROME = {"city": "Rome"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(write_harmony_model(tmp_path_factory.mktemp("models") / "harmony")) as server:
        yield server


@pytest.fixture
def answers(server, monkeypatch):
    return lambda text: answering(monkeypatch, server.model.tokenizer, text)


def joined(deltas, key):
    return "".join(delta.get(key) or "" for delta in deltas)


def test_chat_completions(server, answers):
    body = {"messages": MESSAGES, "max_tokens": 300}
    with answers(ANSWER):
        [choice] = server.post("/v1/chat/completions", body)["choices"]
        events = server.events("/v1/chat/completions", body)
    assert choice["message"]["content"] == SAID and choice["message"]["reasoning_content"] == THOUGHT
    assert choice["finish_reason"] == "stop" and "tool_calls" not in choice["message"]
    deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
    assert (joined(deltas, "content"), joined(deltas, "reasoning_content")) == (SAID, THOUGHT)
    assert sum(bool(delta.get("content")) for delta in deltas) > 3  # as it comes


def test_chat_completions_with_a_call(server, answers):
    body = {"messages": MESSAGES, "max_tokens": 300, "tools": [WEATHER]}
    with answers(CALL):
        [choice] = server.post("/v1/chat/completions", body)["choices"]
        events = server.events("/v1/chat/completions", body)
        forced = server.post("/v1/chat/completions", body | {"tool_choice": "required"})["choices"][0]
    for one in (choice, forced):
        assert one["finish_reason"] == "tool_calls" and one["message"]["content"] is None
        assert one["message"]["reasoning_content"] == THOUGHT
        [call] = one["message"]["tool_calls"]
        assert call["function"]["name"] == "weather" and json.loads(call["function"]["arguments"]) == ROME
    deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
    [call] = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert json.loads(call["function"]["arguments"]) == ROME and joined(deltas, "reasoning_content") == THOUGHT


def test_a_call_of_what_is_not_offered_and_one_that_is_cut_are_text(server, answers):
    with answers(CALL):
        [choice] = server.post("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 300})["choices"]
        assert choice["message"]["content"] == '{"city": "Rome"}' and choice["finish_reason"] == "stop"
        tokens = len(server.model.tokenizer.encode(CALL, add_special_tokens=False, parse_special=True))
        body = {"messages": MESSAGES, "max_tokens": tokens - 3, "tools": [WEATHER]}
        [choice] = server.post("/v1/chat/completions", body)["choices"]
        assert choice["message"]["content"] == '{"city": "Rome' and choice["finish_reason"] == "length"


def test_json_of_a_schema_comes_in_the_final_channel(server, answers):
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    form = {"type": "json_schema", "json_schema": {"schema": schema, "name": "n"}}
    text = ANSWER.replace(SAID, '{"n": 4}')
    with answers(text):
        body = {"messages": MESSAGES, "max_tokens": 300, "response_format": form}
        [choice] = server.post("/v1/chat/completions", body)["choices"]
    assert json.loads(choice["message"]["content"]) == {"n": 4} and choice["message"]["reasoning_content"] == THOUGHT
    free = server.post(
        "/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 40, "response_format": form, "n": 2}
    )
    for choice in free["choices"]:  # whatever the model would: it cannot leave the form
        content = choice["message"]["content"]
        assert choice["finish_reason"] == "length" or json.loads(content)["n"] is not None
        assert "<|" not in content


def test_responses(server, answers):
    with answers(CALL):
        answer = server.post(
            "/v1/responses", {"input": "hello", "tools": [{"type": "function", **WEATHER["function"]}]}
        )
    kinds = [item["type"] for item in answer["output"]]
    assert kinds == ["reasoning", "function_call"]
    assert answer["output"][0]["content"][0]["text"] == THOUGHT
    assert json.loads(answer["output"][1]["arguments"]) == ROME
    assert answer["usage"]["output_tokens_details"]["reasoning_tokens"] > 5
    with answers(ANSWER):
        answer = server.post("/v1/responses", {"input": "hello", "reasoning": {"effort": "high"}})
    assert [item["type"] for item in answer["output"]] == ["reasoning", "message"]
    assert answer["output"][1]["content"][0]["text"] == SAID


def test_messages(server, answers):
    tool = {"name": "weather", "input_schema": WEATHER["function"]["parameters"]}
    body = {"model": "tiny", "max_tokens": 300, "messages": MESSAGES}
    with answers(CALL):
        answer = server.post("/v1/messages", body | {"tools": [tool]})
    thinking, call = answer["content"]
    assert (thinking["type"], thinking["thinking"]) == ("thinking", THOUGHT) and answer["stop_reason"] == "tool_use"
    assert (call["type"], call["name"], call["input"]) == ("tool_use", "weather", ROME)
    with answers(ANSWER):
        answer = server.post("/v1/messages", body)
    assert [block.get("text", block.get("thinking")) for block in answer["content"]] == [THOUGHT, SAID]


def test_ollama(server, answers):
    body = {"model": "tiny", "messages": MESSAGES}
    with answers(CALL):
        message = server.post("/api/chat", body | {"stream": False, "tools": [WEATHER]})["message"]
    assert message["thinking"] == THOUGHT and message["tool_calls"][0]["function"]["arguments"] == ROME
    with answers(ANSWER):
        status, raw, _ = server.request("POST", "/api/chat", body)
    lines = [json.loads(line)["message"] for line in raw.decode().splitlines()]
    assert status == 200 and (joined(lines, "content"), joined(lines, "thinking")) == (SAID, THOUGHT)
    assert "thinking" in server.post("/api/show", {"model": "tiny"})["capabilities"]


def prompt(server, messages, **more):
    answer = server.post("/apply-template", {"messages": messages, **more})
    return answer["prompt"]


def test_history_is_put_back_as_the_template_wants_it(server):
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    text = prompt(
        server,
        [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": None, "reasoning_content": THOUGHT, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "warm"},
        ],
    )
    assert (
        f"<|start|>assistant<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant to=functions.weather"
        '<|channel|>commentary json<|message|>{"city": "Rome"}<|call|>'
        '<|start|>functions.weather to=assistant<|channel|>commentary<|message|>"warm"<|end|><|start|>assistant'
    ) in text
    assert "Reasoning: medium" in text


def test_several_calls_are_put_back_one_by_one(server):
    calls = [
        {"id": f"c{i}", "type": "function", "function": {"name": "weather", "arguments": json.dumps({"city": city})}}
        for i, city in enumerate(("Rome", "Oslo"))
    ]
    results = [{"role": "tool", "tool_call_id": f"c{i}", "content": f"w{i}"} for i in range(2)]
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": calls}, *results]
    text = prompt(server, messages)
    at = [text.index(word) for word in ('"Rome"', '"w0"', '"Oslo"', '"w1"')]
    assert at == sorted(at)
