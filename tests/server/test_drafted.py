"""Behind the server as well a drafter changes nothing but time: texts, calls, JSON, log-probabilities, fingerprints."""

import json

import pytest

pytest.importorskip("llguidance")

import drafters
from conftest import write_model
from running_server import MESSAGES, TOOL_TEMPLATE, WEATHER, running

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "of": {"enum": ["red", "blue", "green"]},
                   "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "of", "n"],
    "additionalProperties": False,
}  # fmt: skip
BODIES = {
    "a text": {"max_tokens": 24, "ignore_eos": True},
    "a stop string": {"max_tokens": 40, "stop": ["e", "~"], "ignore_eos": True},
    "log-probabilities": {"max_tokens": 12, "logprobs": True, "top_logprobs": 2},
    "penalties": {"max_tokens": 20, "presence_penalty": 0.5, "repetition_penalty": 1.2, "top_k": 30},
    "a schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
    "any JSON": {"response_format": {"type": "json_object"}, "max_tokens": 24},
    "a forced call": {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 80},
    "a named call": {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
    "calls or a schema": {"tools": [WEATHER], "response_format": {"type": "json_object"}, "max_tokens": 24},
    "tools": {"tools": [WEATHER], "max_tokens": 24},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = write_model(tmp_path_factory.mktemp("models") / "tiny-tools", template=TOOL_TEMPLATE)
    with running(folder) as server:
        yield server


def told(answer):
    """What does not depend on chance or time; ids of calls are drawn."""
    choices = json.loads(json.dumps(answer["choices"]))
    for choice in choices:
        for call in choice["message"].get("tool_calls") or []:
            del call["id"]
    return choices, answer["usage"]["completion_tokens"], answer["pyllama"]["logits_fingerprints"]


def streamed(server, body):
    """The events' texts and ends, by choice."""
    found = {}
    for event in server.events("/v1/chat/completions", body):
        for choice in event["choices"]:
            text, calls, ends = found.setdefault(choice["index"], ["", [], []])
            delta = choice["delta"]
            text += delta.get("content") or ""
            calls += [call["function"] for call in delta.get("tool_calls") or []]
            ends += [choice["finish_reason"]] if choice["finish_reason"] else []
            found[choice["index"]] = [text, calls, ends]
    return found


def with_drafting(server, drafting, work):
    server.engine.engine._drafting = drafting
    try:
        return work()
    finally:
        server.engine.engine._drafting = None


def token_ids(server, body):
    """Of each answer, by the engine's own requests, as far as a seer must know them: any of those that are possible."""
    known = []
    submit = server.engine.submit_ids

    def watched(prompt_ids, params, **options):
        stream = submit(prompt_ids, params, **options)
        known.append(stream.request)
        return stream

    server.engine.submit_ids = watched
    try:
        answer = server.post("/v1/chat/completions", body)
    finally:
        del server.engine.submit_ids
    return answer, [
        (tuple(request.answer.prompt_ids), request.answer.seed, request.answer.token_ids) for request in known
    ]


def seer_of(known):
    """Of several answers to one prompt: which it is, its seed says."""
    texts = {(prompt, seed): ids for prompt, seed, ids in known}

    def tree_of(task, room):
        ids = texts[tuple(task.answer.prompt_ids), task.answer.seed][len(task.answer.token_ids) :]
        tree = drafters.chain(ids[: min(room, 12)])
        tree.add(-1, 5, 0.1)
        return tree

    return drafters.Scripted(tree_of)


@pytest.mark.parametrize("name", BODIES)
def test_answers_are_those_of_no_drafter(server, name):
    body = {"messages": MESSAGES, "temperature": 0.9, "seed": 4, "n": 2, "logits_fingerprint": True, **BODIES[name]}
    plain, known = token_ids(server, body)
    events = streamed(server, body)
    ends = server.model.tokenizer.eos_token_ids
    for drafting in (seer_of(known), drafters.fool(1), drafters.fool(2)):
        assert told(with_drafting(server, drafting, lambda: server.post("/v1/chat/completions", body))) == told(plain)
        assert with_drafting(server, drafting, lambda: streamed(server, body)) == events
        assert drafting.told
    seer = seer_of(known)
    drafted = with_drafting(server, seer, lambda: server.post("/v1/chat/completions", body | {"n": 1}))
    longest = [token_id for token_id in known[0][2] if token_id not in ends]
    assert drafted["pyllama"]["passes"] < max(3, len(longest) / 2)  # so grammars let the truth be proposed
