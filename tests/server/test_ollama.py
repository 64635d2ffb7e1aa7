"""Ollama's API against a tiny model: by itself, and through the official client where it is installed."""

import json

import pytest
from conftest import write_model
from running_server import MESSAGES, TOOL_TEMPLATE, WEATHER, running

from pyllama.server.ollama.translation import conversation_of
from pyllama.server.service import Settings

OPTIONS = {"temperature": 0, "num_predict": 6}
ASKED = {"model": "tiny", "messages": MESSAGES, "options": OPTIONS}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = write_model(tmp_path_factory.mktemp("models") / "tiny-tools", template=TOOL_TEMPLATE)
    with running(folder, Settings(embeddings=True)) as server:
        yield server


def lines(server, path, body):
    status, raw, headers = server.request("POST", path, body)
    assert (status, headers["content-type"]) == (200, "application/x-ndjson"), raw
    return [json.loads(line) for line in raw.decode().splitlines()]


def test_a_chat_is_a_chat_completion_in_other_words(server):
    chat = server.post("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 6, "temperature": 0})
    text = chat["choices"][0]["message"]["content"]
    whole = server.post("/api/chat", ASKED | {"stream": False, "model": "tiny:latest"})
    assert whole["message"] == {"role": "assistant", "content": text}
    assert (whole["done"], whole["done_reason"], whole["eval_count"]) == (True, "length", 6)
    assert whole["prompt_eval_count"] == chat["usage"]["prompt_tokens"] and whole["total_duration"] > 0
    came = lines(server, "/api/chat", ASKED)
    assert "".join(line["message"]["content"] for line in came) == text
    assert [line["done"] for line in came] == [False] * (len(came) - 1) + [True]
    generated = server.post("/api/generate", {"model": "tiny", "prompt": MESSAGES[0]["content"], "options": OPTIONS,
                                              "stream": False})  # fmt: skip
    assert generated["response"] == text


def test_raw_text_goes_on_and_no_prompt_is_a_model_that_is_there(server):
    raw = {"model": "tiny", "prompt": "hello and", "raw": True, "options": OPTIONS}
    text = "".join(line["response"] for line in lines(server, "/api/generate", raw))
    expected = server.post("/v1/completions", {"prompt": "hello and", "max_tokens": 6, "temperature": 0})
    assert text == expected["choices"][0]["text"]
    assert server.post("/api/generate", {"model": "tiny"})["done_reason"] == "load"
    assert server.post("/api/chat", {"model": "tiny", "messages": []})["done_reason"] == "load"


def test_a_program_may_leave_the_content_type_out_and_a_page_may_not(server):
    """litellm does. No page can: a browser says where it comes from."""
    body = {"model": "tiny", "messages": []}
    for path, headers, status in (
        ("/api/chat", {}, 200),
        ("/api/chat", {"origin": f"http://127.0.0.1:{server.port}"}, 415),
        ("/api/chat", {"sec-fetch-site": "none"}, 415),
        ("/api/chat", {"content-type": "text/plain"}, 415),
        ("/v1/chat/completions", {}, 415),
    ):
        assert server.request("POST", path, body, {"content-type": ""} | headers)[0] == status


def test_tools_are_called_and_formats_kept(server):
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"city": {"enum": ["Rome"]}}, "required": ["city"],
              "additionalProperties": False}  # fmt: skip
    answer = server.post("/api/chat", ASKED | {"format": schema, "stream": False, "options": {"num_predict": 60}})
    assert json.loads(answer["message"]["content"]) == {"city": "Rome"}
    refused = server.request("POST", "/api/chat", ASKED | {"format": "xml"})
    assert refused[:2] == (400, {"error": "format: got 'xml', expected 'json' or a schema"})


def test_results_find_their_calls():
    calls = [{"function": {"name": name, "arguments": {"n": 1}}} for name in ("a", "b")]
    results = [{"role": "tool", "tool_name": "b", "content": "2"}, {"role": "tool", "content": "1"}]
    messages = conversation_of({}, [{"role": "assistant", "tool_calls": calls}, *results])["messages"]
    assert [call["function"]["arguments"] for call in messages[0]["tool_calls"]] == ['{"n": 1}'] * 2
    assert [(message["name"], message["tool_call_id"]) for message in messages[1:]] == [
        ("b", "call_0_1"),
        ("a", "call_0_0"),
    ]


def test_embeddings_have_length_one_and_do_not_depend_on_company(server):
    (alone,) = server.post("/v1/embeddings", {"input": "hello"})["data"]
    many = server.post("/v1/embeddings", {"input": ["and", "hello", "x" * 300] * 4})
    assert [one["index"] for one in many["data"]] == list(range(12))
    assert many["data"][1]["embedding"] == many["data"][10]["embedding"] == alone["embedding"]
    assert abs(sum(x * x for x in alone["embedding"]) - 1) < 1e-5
    assert server.post("/api/embed", {"model": "tiny", "input": ["hello"]})["embeddings"] == [alone["embedding"]]
    assert server.post("/api/embeddings", {"model": "tiny", "prompt": "hello"})["embedding"] == alone["embedding"]
    assert server.refuse("/v1/embeddings", {"input": "x" * 600})["code"] == "context_length_exceeded"
    assert server.refuse("/v1/embeddings", {"input": ["x", ""]})["param"] == "input"
    assert server.refuse("/v1/embeddings", {"input": [[1, 99999]]})["param"] == "input"
    assert server.refuse("/v1/embeddings", {"input": "x", "dimensions": 7})["param"] == "dimensions"
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none")
    assert client.embeddings.create(model="tiny", input="hello").data[0].embedding == pytest.approx(alone["embedding"])


def test_gaps_are_filled_only_by_models_that_know_how(server):
    error = server.refuse("/v1/completions", {"prompt": "a", "suffix": "b"})
    assert error["param"] == "suffix" and "no tokens for filling a gap" in error["message"]
    assert server.refuse("/infill", {"input_prefix": "a", "input_suffix": "b"})["param"] == "input_suffix"
    status, answer, _ = server.request("POST", "/api/generate", {"model": "tiny", "prompt": "a", "suffix": "b"})
    assert status == 400 and "suffix" in answer["error"]


def test_templates_and_properties(server):
    prompt = server.post("/apply-template", {"messages": MESSAGES})["prompt"]
    assert prompt == "<|im_start|>user\nhello and hello<|im_end|>\n<|im_start|>assistant\n"
    props = server.request("GET", "/props")[1]
    assert props["default_generation_settings"]["n_ctx"] == 512 and props["chat_template"] == TOOL_TEMPLATE


def test_the_official_client(server):
    ollama = pytest.importorskip("ollama")
    client = ollama.Client(host=f"http://127.0.0.1:{server.port}")
    assert [model.model for model in client.list().models] == ["tiny"]
    assert client.ps().models[0].context_length == 512
    shown = client.show("tiny")
    assert shown.capabilities == ["completion", "tools", "embedding"] and shown.modelinfo["llama.block_count"] > 0
    whole = client.chat("tiny", MESSAGES, options=OPTIONS).message.content
    assert (
        "".join(part.message.content for part in client.chat("tiny", MESSAGES, stream=True, options=OPTIONS)) == whole
    )
    assert client.generate("tiny", MESSAGES[0]["content"], options=OPTIONS).response == whole
    assert client.chat("tiny", MESSAGES, tools=[WEATHER], options=OPTIONS).message.role == "assistant"
    assert len(client.embed("tiny", ["a", "b"]).embeddings) == 2
    for wrong, status in (
        (lambda: client.chat("other", MESSAGES), 404),
        (lambda: client.chat("tiny", MESSAGES, options={"temperature": 9}), 400),
        (lambda: client.generate("tiny", "x", images=[b"x"]), 400),
        (lambda: client.pull("tiny"), 404),
    ):
        with pytest.raises(ollama.ResponseError) as error:
            wrong()
        assert error.value.status_code == status and "\n" not in error.value.error


def test_an_alias_that_repeats_the_models_name_is_listed_once(chat_folder):
    with running(chat_folder, names=("tiny", "tiny", "house", "gpt-*")) as server:
        _, tags, _ = server.request("GET", "/api/tags")
        _, models, _ = server.request("GET", "/v1/models")
    assert [model["name"] for model in tags["models"]] == ["tiny", "house"]
    assert [model["id"] for model in models["data"]] == ["tiny", "house"]
