"""Requests that fit what the server publishes, at the edges of it, are answered or refused by name: never a 5xx."""

import json
import random

import pytest
from openapi_values import edges
from running_server import MESSAGES, TOOL_TEMPLATE, running

pytest.importorskip("starlette")

from conftest import write_model

from pyllama.server.app import ENDPOINTS
from pyllama.server.description import openapi

CHAT = {"messages": MESSAGES, "max_tokens": 1}
BODIES = {
    path: operations["post"]["requestBody"]["content"]["application/json"]["schema"]
    for path, operations in openapi(ENDPOINTS, False)["paths"].items()
    if "requestBody" in operations.get("post", {})
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = write_model(tmp_path_factory.mktemp("models") / "tiny-tools", template=TOOL_TEMPLATE)
    with running(folder, context_length=64) as server:
        yield server


LIMITS = {"/v1/responses": {"max_output_tokens": 2}, "/infill": {"n_predict": 2}, "/v1/embeddings": {},
          "/api/chat": {"options": {"num_predict": 2}}, "/api/generate": {"options": {"num_predict": 2}}}  # fmt: skip


def is_refusal(path, status, answer):
    """In one line, in the shape of the path's API."""
    error = answer["error"]
    if path.startswith("/api/"):
        message = error
    else:
        keys = {"message", "type"} | (set() if path.startswith("/v1/messages") else {"param", "code"})
        message = error["message"] if set(error) == keys else ""
    return 400 <= status < 500 and message and "\n" not in message


@pytest.mark.parametrize("path", BODIES)
def test_what_fits_the_description_is_no_error_of_the_servers(server, path):
    rng = random.Random(path)
    bodies = edges(BODIES[path], rng)
    assert len(bodies) > (20 if path in ("/detokenize", "/api/show") or "embed" in path else 100)
    rng.shuffle(bodies)
    for body in bodies[: 400 if "completions" in path else 150]:
        body = LIMITS.get(path, {"max_tokens": 2}) | body
        status, answer, _ = server.request("POST", path, body | {"stream": False})
        assert status == 200 or is_refusal(path, status, answer), (status, answer, json.dumps(body)[:2000])
    server.post("/v1/chat/completions", CHAT)


# --- integers ---

INTEGERS = [
    (path, name, field)
    for path, schema in BODIES.items()
    if "completions" in path or "tokenize" in path
    for name, field in schema["properties"].items()
    if "integer" in field.get("type", ())
]


def base(path):
    return CHAT if "chat" in path else {"prompt": "x", "max_tokens": 1}


@pytest.mark.parametrize("path, name, field", INTEGERS)
def test_a_whole_number_is_an_integer_however_it_is_written(server, path, name, field):
    more = {"logprobs": True} if name == "top_logprobs" else {"n": 2} if name == "best_of" else {}
    value = 2
    expected = server.post(path, base(path) | more | {name: value, "seed": 3} | ({"seed": 2} if name == "seed" else {}))
    written = json.dumps(base(path) | more | {"seed": 3} | {name: 0})
    for text in ("2.0", "2e0", "20E-1", "0.2e1"):
        body = written.replace(f'"{name}": 0', f'"{name}": {text}')
        assert json.loads(body)[name] == 2
        got = server.post(path, body)
        assert [got["choices"], got["usage"]["completion_tokens"]] == [
            expected["choices"],
            expected["usage"]["completion_tokens"],
        ]
    for text in (
        "2.5",
        '"2"',
        "true",
        "[2]",
        "{}",
        "1e300",
        "-1e300",
        str(10**40),
        str(-(10**40)),
        str(10**4000),
        "2.0000001",
    ):
        error = server.refuse(path, written.replace(f'"{name}": 0', f'"{name}": {text}'))
        assert error["param"] == name and error["message"].startswith(name) and len(error["message"]) < 300
    for text in ("1e400", "NaN", "-Infinity", "9" * 5000, "2.", ".2", "0x2", "02", "+2"):
        assert "body" in server.refuse(path, written.replace(f'"{name}": 0', f'"{name}": {text}'))["message"]


def test_whole_numbers_in_lists_and_objects(server):
    expected = server.post("/v1/completions", {"prompt": [104, 105], "max_tokens": 3, "temperature": 0})
    for prompt in ("[104.0, 105]", "[[104, 1.05e2]]", "[104.0, 105.0]"):
        got = server.post("/v1/completions", f'{{"prompt": {prompt}, "max_tokens": 3.0, "temperature": 0.0}}')
        assert got["choices"] == expected["choices"]
    assert server.post("/detokenize", '{"tokens": [104.0, 105]}') == {"prompt": "hi"}
    stopped = server.post("/v1/completions", '{"prompt": "x", "stop_token_ids": [3.0, 4], "logit_bias": {"65": 3}}')
    assert stopped["choices"]
    for prompt in ("[104.5]", "[104, true]", '[104, "105"]', "[-1]", "[1e300]", "[[104], 105]", "[null]"):
        assert server.refuse("/v1/completions", f'{{"prompt": {prompt}}}')["param"].startswith("prompt")


def test_numbers_of_others_stay_as_they_were_written(tool_free):
    """What a schema or a template is given is the client's: 4.0 may be meant."""
    from pyllama.server.schemas import CHAT as schema
    from pyllama.server.validate import check

    body = tool_free | {"max_tokens": 4.0, "temperature": 1, "chat_template_kwargs": {"x": 4.0}, "unknown": 4.0}
    body["response_format"] = {"type": "json_schema", "json_schema": {"schema": {"maximum": 4.0}}}
    body["logit_bias"] = {"65": 3.0}
    check(body, schema)
    assert (body["max_tokens"], type(body["max_tokens"])) == (4, int)
    for value in (
        body["chat_template_kwargs"]["x"],
        body["unknown"],
        body["logit_bias"]["65"],
        body["response_format"]["json_schema"]["schema"]["maximum"],
    ):
        assert type(value) is float


@pytest.fixture
def tool_free():
    return {"messages": MESSAGES}


# --- empty, repeated, unknown ---


def test_an_empty_stop_is_none(server):
    body = {"prompt": "hello", "max_tokens": 6, "seed": 1, "ignore_eos": True}
    expected = server.post("/v1/completions", body)["choices"]
    for stop in ("", [], [""], ["", ""], None):
        assert server.post("/v1/completions", body | {"stop": stop})["choices"] == expected
    text = expected[0]["text"]
    for stop in (text[2], ["", text[2]]):
        assert (
            server.post("/v1/completions", body | {"stop": stop})["choices"][0]["text"] == text[: text.index(text[2])]
        )


def test_of_a_key_given_twice_the_last_one_counts(server):
    answer = server.post("/v1/completions", '{"prompt": "a", "max_tokens": 9, "prompt": "b", "max_tokens": 1}')
    assert answer["usage"]["completion_tokens"] == 1


HARMLESS = {
    "store": True,
    "metadata": {"a": "b"},
    "service_tier": "flex",
    "reasoning_effort": "low",
    "modalities": ["text"],
    "prediction": {"type": "content", "content": "x"},
    "safety_identifier": "x",
    "verbosity": "low",
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "user": "u",
    "audio": None,
    "functions": [],
    "function_call": "auto",
    "web_search_options": None,
    "parallel_tool_calls": True,
    "best": 3,
    "logit_bias": {},
    "stream_options": None,
    "moderation": {},
    "extra_body": {},
}


@pytest.mark.parametrize("name", HARMLESS)
def test_fields_that_change_no_answer_are_passed_over(server, name):
    expected = server.post("/v1/chat/completions", CHAT | {"seed": 1})["choices"]
    assert server.post("/v1/chat/completions", CHAT | {"seed": 1, name: HARMLESS[name]})["choices"] == expected


def test_obfuscation_is_an_option_of_streams(server):
    body = CHAT | {"stream_options": {"include_obfuscation": False, "include_usage": True}}
    assert server.events("/v1/chat/completions", body)[-1]["usage"]["completion_tokens"] == 1


@pytest.mark.parametrize(
    "name, value",
    [
        ("functions", [{"name": "f", "parameters": {}}]),
        ("function_call", {"name": "f"}),
        ("modalities", ["text", "audio"]),
        ("modalities", ["audio"]),
        ("modalities", "audio"),
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("web_search_options", {"search_context_size": "low"}),
    ],
)
def test_fields_that_would_change_it_are_refused(server, name, value):
    error = server.refuse("/v1/chat/completions", CHAT | {name: value})
    assert (error["param"], error["code"]) == (name, "unsupported") and error["message"].startswith(name)


@pytest.mark.parametrize(
    "name",
    [
        "self",
        "messages",
        "tools",
        "parse_special",
        "__class__",
        "range",
        "namespace",
        "cls",
        "raise_exception",
        "loop",
        "environment",
        "context",
        "",
        "a b",
        "\0",
        "kwargs",
        "variables",
    ],
)
@pytest.mark.parametrize("value", [1, None, "x", [], {"a": [1]}, 10**300])
def test_whatever_a_variable_of_the_template_is_called(server, name, value):
    status, answer, _ = server.request("POST", "/v1/chat/completions", CHAT | {"chat_template_kwargs": {name: value}})
    assert status == 200 or (is_refusal("", status, answer) and answer["error"]["param"])


# --- too long ---


def test_a_prompt_that_is_too_long_is_told_in_words_that_clients_know(server):
    long = "x" * 200
    for path, body, param in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": long}]}, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}] * 60}, "messages"),
        ("/v1/completions", {"prompt": long}, "prompt"),
        ("/v1/completions", {"prompt": ["x", long]}, "prompt"),
        ("/v1/completions", {"prompt": [65] * 65}, "prompt"),
        ("/v1/completions", {"prompt": [[65], [65] * 65], "echo": True, "logprobs": 1, "max_tokens": 0}, "prompt"),
    ):
        for stream in (False, True):
            error = server.refuse(path, body | {"stream": stream, "max_tokens": body.get("max_tokens", 5)})
            assert (error["code"], error["param"]) == ("context_length_exceeded", param)
            assert "prompt is too long" in error["message"]  # langchain-openai, Anthropic's clients
            assert "this model's maximum context length is 64 tokens" in error["message"]  # litellm
    assert "prompt is too long" in server.refuse("/v1/completions", {"prompt": "x" * 400_000}, 413)["message"]
    # More tokens than the context has left are no error: the answer ends where it is full.
    answer = server.post("/v1/completions", {"prompt": [65] * 60, "max_tokens": 100_000, "ignore_eos": True})
    assert (answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", 5)
    assert server.post("/v1/completions", {"prompt": [65] * 64, "max_tokens": 9})["usage"]["completion_tokens"] == 1
