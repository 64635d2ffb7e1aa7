"""Anthropic's API against a tiny model: by itself, and through the official client where it is installed."""

import json

import pytest
from conftest import write_model
from running_server import MESSAGES, TOOL_TEMPLATE, running

from pyllama.generation.thinking import ThinkingSplit, begins_in_thought
from pyllama.server.anthropic.translation import conversation_of
from pyllama.server.errors import ApiError
from pyllama.server.service import Settings

ASKED = {"model": "claude-x", "max_tokens": 6, "messages": MESSAGES, "temperature": 0}
TOOL = {
    "name": "weather",
    "input_schema": {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]},
}
KEY = "correct-horse"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = write_model(tmp_path_factory.mktemp("models") / "tiny-tools", template=TOOL_TEMPLATE)
    with running(folder, names=("tiny", "claude-*")) as server:
        yield server


def events(server, body):
    status, raw, _ = server.request("POST", "/v1/messages", body | {"stream": True})
    assert status == 200, raw
    found = []
    for block in raw.decode().strip().split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def test_a_message_is_a_chat_completion_in_other_words(server):
    chat = server.post("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 6, "temperature": 0})
    message = server.post("/v1/messages", ASKED)
    text = chat["choices"][0]["message"]["content"]
    assert message["content"] == [{"type": "text", "text": text}]
    assert (message["stop_reason"], message["stop_sequence"]) == ("max_tokens", None)
    usage = message["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == chat["usage"]["prompt_tokens"]
    assert usage["output_tokens"] == 6
    count = server.post("/v1/messages/count_tokens", {"messages": MESSAGES})
    assert count == {"input_tokens": chat["usage"]["prompt_tokens"]}
    streamed = events(server, ASKED)
    assert [event["type"] for event in streamed if event["type"] != "content_block_delta"] == [
        "message_start", "ping", "content_block_start", "content_block_stop", "message_delta", "message_stop",
    ]  # fmt: skip
    assert "".join(event["delta"]["text"] for event in streamed if event["type"] == "content_block_delta") == text
    assert streamed[-2]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}


def test_a_stop_sequence_is_told_and_an_answer_that_was_begun_goes_on(server):
    text = server.post("/v1/messages", ASKED)["content"][0]["text"]
    message = server.post("/v1/messages", ASKED | {"stop_sequences": ["~", text[2:4]]})
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", text[2:4])
    begun = [*MESSAGES, {"role": "assistant", "content": "so "}]
    chat = {"messages": begun, "continue_final_message": True, "max_tokens": 6, "temperature": 0}
    expected = server.post("/v1/chat/completions", chat)["choices"][0]["message"]["content"]
    assert server.post("/v1/messages", ASKED | {"messages": begun})["content"][0]["text"] == expected


def test_a_tool_is_called(server):
    pytest.importorskip("llguidance")
    body = ASKED | {"max_tokens": 200, "tools": [TOOL], "tool_choice": {"type": "tool", "name": "weather"}}
    message = server.post("/v1/messages", body)
    (call,) = message["content"]
    assert (call["type"], call["name"], message["stop_reason"]) == ("tool_use", "weather", "tool_use")
    assert call["input"]["city"] in ("Rome", "Oslo")
    streamed = events(server, body)
    deltas = [event["delta"] for event in streamed if event["type"] == "content_block_delta"]
    assert json.loads("".join(delta["partial_json"] for delta in deltas)) == call["input"]


def test_what_a_conversation_becomes():
    call = {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Rome"}}
    result = {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "sunny"}]}
    body = {
        "max_tokens": 5,
        "system": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        "messages": [
            {"role": "user", "content": "hi"},
            {
                "role": "assistant",
                "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "so"}, call],
            },
            {"role": "user", "content": [result, {"type": "text", "text": "and?"}]},
        ],
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "tools": [TOOL, {"type": "web_search_20250305", "name": "web_search"}],
        "metadata": {"user_id": "u"},
    }
    found = conversation_of(body)
    assert found["messages"] == [
        {"role": "system", "content": "a\n\nb"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "so", "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}]},
        {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "sunny"},
        {"role": "user", "content": "and?"},
    ]  # fmt: skip
    assert found["chat_template_kwargs"] == {"enable_thinking": True} and found["user"] == "u"
    assert [tool["type"] for tool in found["tools"]] == ["function", "web_search_20250305"]
    image = [{"role": "user", "content": [{"type": "image", "source": {}}]}]
    with pytest.raises(ApiError, match=r"messages\[0\].content\[0\]: a block of type 'image', expected text"):
        conversation_of({"messages": image})


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize(
    "begun, text, expected",
    [
        (False, "<think>\nhm, so\n</think>\n\nYes.", ("hm, so", "Yes.")),
        (False, "Yes <think>no</think>", ("", "Yes <think>no</think>")),
        (False, "\n <thin", ("", "\n <thin")),
        (True, "hm\n</think>Yes", ("hm", "Yes")),
        (True, "hm </thin king", ("hm </thin king", "")),
        (False, "<think></think>\n", ("", "")),
    ],
)
def test_thinking_is_told_from_text_however_it_comes(size, begun, text, expected):
    split = ThinkingSplit(begun=begun)
    parts = [part for i in range(0, len(text), size) for part in split.push(text[i : i + size])] + split.finish()
    assert tuple("".join(text for thought, text in parts if thought is kind) for kind in (True, False)) == expected
    assert begins_in_thought("<|im_start|>assistant\n<think>\n") and not begins_in_thought("<think></think>\n")


def test_a_models_thinking_is_a_block_of_its_own(tmp_path):
    """Begun by the template, and never ended by a tiny model."""
    template = TOOL_TEMPLATE.replace(
        "assistant\n{% endif %}", "assistant\n{% if enable_thinking %}<think>{% endif %}{% endif %}"
    )
    with running(write_model(tmp_path / "thinks", template=template)) as server:
        asked = ASKED | {"model": "tiny", "max_tokens": 8}
        assert [block["type"] for block in server.post("/v1/messages", asked)["content"]] == ["text"]
        asked |= {"thinking": {"type": "enabled", "budget_tokens": 1024}}
        (block,) = server.post("/v1/messages", asked)["content"]
        assert block["type"] == "thinking" and block["thinking"]
        assert "thinking_delta" in [event.get("delta", {}).get("type") for event in events(server, asked)]
        chat = {"model": "tiny", "messages": MESSAGES, "stream": False, "think": True, "options": {"num_predict": 8}}
        assert server.post("/api/chat", chat)["message"]["thinking"]
        response = server.post(
            "/v1/responses", {"input": "hi", "reasoning": {"effort": "high"}, "max_output_tokens": 8}
        )
        assert response["output"][0]["type"] == "reasoning"
        assert response["usage"]["output_tokens_details"]["reasoning_tokens"] == 8


def test_a_key_may_be_sent_as_anthropics_clients_do(chat_folder):
    with running(chat_folder, Settings(api_key=KEY)) as server:
        body = {"max_tokens": 1, "messages": MESSAGES}
        assert server.request("POST", "/v1/messages", body, {"x-api-key": KEY})[0] == 200
        status, answer, _ = server.request("POST", "/v1/messages", body, {"x-api-key": "wrong"})
        assert (status, answer["type"], answer["error"]["type"]) == (401, "error", "authentication_error")


def test_the_official_client(server):
    anthropic = pytest.importorskip("anthropic")
    client = anthropic.Anthropic(base_url=f"http://127.0.0.1:{server.port}", api_key="none", max_retries=0)
    asked = {"model": "claude-x", "max_tokens": 6, "messages": MESSAGES}
    message = client.messages.create(**asked, extra_body={"temperature": 0})
    assert message.content[0].text and message.usage.output_tokens == 6
    with client.messages.stream(**asked, extra_body={"temperature": 0}) as stream:
        text = "".join(stream.text_stream)
        assert (text, stream.get_final_message().stop_reason) == (message.content[0].text, "max_tokens")
    assert client.messages.count_tokens(model="claude-x", messages=MESSAGES).input_tokens > 5
    assert [model.id for model in client.models.list()] == ["tiny"]
    for change, kind in (
        ({"model": "other"}, anthropic.NotFoundError),
        ({"max_tokens": 0}, anthropic.BadRequestError),
        ({"messages": [{"role": "user", "content": "x" * 3000}]}, anthropic.BadRequestError),
    ):
        with pytest.raises(kind) as error:
            client.messages.create(**asked | change)
        assert error.value.body["type"] == "error"
    if not _installed("llguidance"):
        return
    tools = {"tools": [TOOL], "tool_choice": {"type": "any"}, "max_tokens": 200}
    with client.messages.stream(**asked | tools) as stream:
        (call,) = [block for block in stream.get_final_message().content if block.type == "tool_use"][:1]
        assert call.input["city"] in ("Rome", "Oslo")


def _installed(name):
    import importlib.util

    return importlib.util.find_spec(name) is not None
