"""OpenAI's Responses API against a tiny model: by itself, and through the official client where it is installed."""

import pytest
from conftest import write_model
from running_server import TOOL_TEMPLATE, WEATHER, running

from pyllama.server.openai.response_items import messages_of
from pyllama.server.openai.response_store import ResponseStore, new_id
from pyllama.server.service import Settings

ASKED = {"input": "hello and hello", "max_output_tokens": 6, "temperature": 0}
TOOL = {"type": "function", **WEATHER["function"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "tiny-tools", template=TOOL_TEMPLATE)


@pytest.fixture(scope="module")
def server(folder):
    with running(folder) as server:
        yield server


def text_of(response):
    return response["output"][0]["content"][0]["text"]


def test_a_response_is_a_chat_completion_in_other_words(server):
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello and hello"}]
    chat = server.post("/v1/chat/completions", {"messages": messages, "max_tokens": 6, "temperature": 0})
    response = server.post("/v1/responses", ASKED | {"instructions": "be brief"})
    assert text_of(response) == chat["choices"][0]["message"]["content"]
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert response["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"]


@pytest.mark.parametrize("kept", ["memory", "files"])
def test_a_response_goes_on_after_another(folder, tmp_path, kept):
    settings = Settings(session_dir=str(tmp_path / "sessions") if kept == "files" else None)
    with running(folder, settings) as server:
        first = server.post("/v1/responses", ASKED | {"instructions": "not carried on"})
        passing = server.post("/v1/responses", ASKED | {"store": False})
        assert server.request("GET", f"/v1/responses/{passing['id']}")[0] == 404
    with running(folder, settings) as server:
        after = ASKED | {"input": "and?", "previous_response_id": first["id"]}
        if kept == "memory":
            assert server.refuse("/v1/responses", after)["code"] == "previous_response_not_found"
            first = server.post("/v1/responses", ASKED)
            after["previous_response_id"] = first["id"]
        second = server.post("/v1/responses", after)
        turns = [("user", "hello and hello"), ("assistant", text_of(first)), ("user", "and?")]
        chat = {"messages": [{"role": role, "content": content} for role, content in turns], "max_tokens": 6,
                "temperature": 0}  # fmt: skip
        expected = server.post("/v1/chat/completions", chat)
        assert text_of(second) == expected["choices"][0]["message"]["content"]
        assert second["usage"]["input_tokens"] == expected["usage"]["prompt_tokens"]
        path = f"/v1/responses/{second['id']}"
        assert server.request("GET", path)[1] == second
        assert server.request("DELETE", path)[1] == {"id": second["id"], "object": "response", "deleted": True}
        assert [server.request(method, path)[0] for method in ("GET", "DELETE")] == [404, 404]


def test_kept_responses_are_bounded_and_files_belong_to_the_user(tmp_path, monkeypatch):
    from pyllama.server.openai import response_store

    for name in ("MEMORY_NBYTES", "FILES_NBYTES"):
        monkeypatch.setattr(response_store, name, 10_000)
    for store in (ResponseStore(None), ResponseStore(str(tmp_path / "sessions"))):
        ids = [new_id() for _ in range(20)]
        for response_id in ids:
            store.put(response_id, {"messages": [], "response": {"text": "x" * 1000}})
        assert store.get(ids[-1]) and store.get(ids[0]) is None
        assert store.get("resp_../../x") is None and not store.delete("x")
    files = list((tmp_path / "sessions/responses").iterdir())
    assert files and all(file.stat().st_mode & 0o777 == 0o600 for file in files)
    files[0].write_text("{")
    assert store.get(files[0].stem) is None


def test_items_become_messages():
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "reasoning", "summary": []},
        call,
        call | {"call_id": "d"},
        {"type": "function_call_output", "call_id": "d", "output": "2"},
    ]
    calls = [{"id": name, "type": "function", "function": {"name": "f", "arguments": "{}"}} for name in "cd"]
    assert messages_of(items) == [
        {"role": "user", "content": "ab"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "d", "content": "2", "name": "f"},
    ]


@pytest.mark.parametrize(
    "change, param",
    [
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"tool_choice": "required"}, "tool_choice"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(server, change, param):
    assert server.refuse("/v1/responses", ASKED | change)["param"] == param


def test_the_official_client(server):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0)
    asked = {"model": "tiny", "input": "hello and hello", "max_output_tokens": 6, "temperature": 0}
    response = client.responses.create(**asked)
    with client.responses.stream(**asked) as stream:
        events = list(stream)
    assert events[-1].response.output_text == response.output_text != ""
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events if event.type != "response.output_text.delta"]
    assert kinds == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.done", "content_part.done",
        "output_item.done", "incomplete",
    ]  # fmt: skip
    assert client.responses.retrieve(response.id).output_text == response.output_text
    for change, kind in (({"model": "other"}, openai.NotFoundError), ({"input": []}, openai.BadRequestError),
                         ({"previous_response_id": new_id()}, openai.BadRequestError)):  # fmt: skip
        with pytest.raises(kind):
            client.responses.create(**asked | change)
    pytest.importorskip("llguidance")
    called = client.responses.create(**asked | {"tools": [TOOL], "tool_choice": "required", "max_output_tokens": 200})
    assert called.output[0].type == "function_call" and called.output[0].name == "weather"
    schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False}
    form = {"format": {"type": "json_schema", "name": "x", "schema": schema, "strict": True}}
    assert client.responses.create(**asked | {"text": form, "max_output_tokens": 60}).output_text == '{"a": 1}'
