"""Behind the server as well a drafter changes nothing but time: texts, calls, JSON, log-probabilities, fingerprints."""

import json

import pytest

pytest.importorskip("llguidance")

import drafters
from conftest import write_model
from running_server import MESSAGES, TOOL_TEMPLATE, WEATHER, Running, running

import pyllama
from pyllama.drafting.account import Account
from pyllama.drafting.drafts import AdaptiveDrafting

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


# --- what is told of it ---


class _Open(Account):
    def book(self, *booked):
        pass


@pytest.fixture(scope="module")
def looking_up(chat_folder):
    """A server that always drafts, by look-up, however fast its passes are."""

    class Always(AdaptiveDrafting):
        def _account(self, drafter):
            return _Open()

    with pyllama.load(chat_folder, context_length=512, contexts=8) as model:
        model.drafting = Always(None, streamed=lambda: True)
        server = Running(model)
        try:
            yield server
        finally:
            server.stop()


NONE = {"accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0}
EDIT = {"messages": MESSAGES, "max_tokens": 40, "temperature": 0, "ignore_eos": True}


def test_usage_counts_nothing_where_nobody_drafts(server):
    body = {"messages": MESSAGES, "max_tokens": 3}
    assert server.post("/v1/chat/completions", body)["usage"]["completion_tokens_details"] == NONE
    asked = body | {"prediction": {"type": "content", "content": "hello"}}
    assert server.post("/v1/chat/completions", asked)["usage"]["completion_tokens_details"] == NONE
    done = server.post("/v1/completions", {"prompt": "a", "max_tokens": 0})
    assert done["usage"]["completion_tokens_details"] == NONE
    draft = server.request("GET", "/health")[1]["draft"]
    assert draft["name"] is None and draft["tokens_a_pass"] >= 1
    assert server.request("GET", "/props")[1]["draft"] is None


def test_usage_counts_what_was_accepted_and_what_was_not(server):
    body = EDIT | {"n": 2, "seed": 1, "temperature": 0.8}
    plain, known = token_ids(server, body)
    before = server.stats
    drafted = with_drafting(server, seer_of(known), lambda: server.post("/v1/chat/completions", body))
    details, total = drafted["usage"]["completion_tokens_details"], drafted["usage"]["completion_tokens"]
    # A tree of twelve true tokens and one that is not, nearly always.
    assert details["accepted_prediction_tokens"] >= total * 3 // 4
    assert 1 <= details["rejected_prediction_tokens"] <= total // 4
    assert drafted["usage"]["total_tokens"] == plain["usage"]["total_tokens"]
    stats = server.stats
    assert stats.accepted_tokens - before.accepted_tokens == details["accepted_prediction_tokens"]
    assert stats.proposed_tokens - before.proposed_tokens == sum(details.values())
    assert 1 <= stats.drafted_passes - before.drafted_passes <= stats.passes - before.passes
    usage = {"stream_options": {"include_usage": True}}
    events = with_drafting(server, seer_of(known), lambda: server.events("/v1/chat/completions", body | usage))
    assert set(events[-1]["usage"]["completion_tokens_details"]) == set(NONE)
    assert events[-1]["usage"]["completion_tokens_details"]["accepted_prediction_tokens"] >= total * 3 // 4


def test_completions_count_them_too(server):
    body = {"prompt": "hello", "max_tokens": 20, "seed": 2, "ignore_eos": True}
    known = {}

    def tree_of(task, room):
        ids = known.get(task.answer.seed, [])[len(task.answer.token_ids) :]
        return drafters.chain(ids[: min(room, 9)])

    drafting = drafters.Scripted(tree_of)
    plain = server.post("/v1/completions", body)
    known[2] = server.model.tokenizer.encode(plain["choices"][0]["text"], add_special_tokens=False)
    drafted = with_drafting(server, drafting, lambda: server.post("/v1/completions", body))
    assert drafted["choices"] == plain["choices"]
    assert sum(drafted["usage"]["completion_tokens_details"].values()) > 0


#: Written in ASCII, whose tokens a text of it has again.
OBJECT = EDIT | {"max_tokens": 100, "response_format": BODIES["a schema"]["response_format"]}


def test_a_prediction_saves_passes_and_changes_nothing(looking_up):
    plain = looking_up.post("/v1/chat/completions", OBJECT)
    text = plain["choices"][0]["message"]["content"]
    assert set(json.loads(text)) == {"name", "of", "n"}
    for content in (text, [{"type": "text", "text": text[:9]}, {"type": "text", "text": text[9:]}]):
        asked = OBJECT | {"prediction": {"type": "content", "content": content}}
        answer = looking_up.post("/v1/chat/completions", asked)
        assert answer["choices"] == plain["choices"]
        accepted = answer["usage"]["completion_tokens_details"]["accepted_prediction_tokens"]
        assert accepted >= answer["usage"]["completion_tokens"] // 2
        assert answer["pyllama"]["passes"] == answer["usage"]["completion_tokens"] - accepted
    wrong = OBJECT | {"prediction": {"type": "content", "content": '{"name": "of nothing' * 9}}
    answer = looking_up.post("/v1/chat/completions", wrong)
    assert answer["choices"] == plain["choices"]
    assert answer["usage"]["completion_tokens_details"]["rejected_prediction_tokens"] > 0
    for nothing in ("", []):
        asked = OBJECT | {"prediction": {"type": "content", "content": nothing}}
        assert looking_up.post("/v1/chat/completions", asked)["choices"] == plain["choices"]


@pytest.mark.parametrize(
    "prediction, param",
    [
        ("text", "prediction"),
        ({"type": "content"}, "prediction.content"),
        ({"content": "x"}, "prediction.type"),
        ({"type": "other", "content": "x"}, "prediction.type"),
        ({"type": "content", "content": 7}, "prediction.content"),
        ({"type": "content", "content": [{"type": "image_url"}]}, "prediction.content[0]"),
        ({"type": "content", "content": [{"text": "x"}]}, "prediction.content"),
    ],
)
def test_a_prediction_that_is_none_is_refused_by_name(looking_up, server, prediction, param):
    for one in (looking_up, server):
        error = one.refuse("/v1/chat/completions", EDIT | {"prediction": prediction})
        assert error["param"].startswith(param)


def test_predictions_of_the_official_client(looking_up):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{looking_up.port}/v1", api_key="none", max_retries=0)
    text = looking_up.post("/v1/chat/completions", OBJECT)["choices"][0]["message"]["content"]
    asked = {name: OBJECT[name] for name in ("messages", "max_tokens", "temperature", "response_format")}
    asked |= {"model": "tiny", "prediction": {"type": "content", "content": text}}
    answer = client.chat.completions.create(**asked)
    assert answer.choices[0].message.content == text
    assert answer.usage.completion_tokens_details.accepted_prediction_tokens > 0
    *_, last = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    assert last.usage.completion_tokens_details.accepted_prediction_tokens > 0
    assert last.usage.completion_tokens_details.rejected_prediction_tokens >= 0


def test_metrics_name_the_drafter_and_count(looking_up):
    looking_up.post("/v1/chat/completions", EDIT | {"prediction": {"type": "content", "content": "hello " * 20}})
    _, raw, _ = looking_up.request("GET", "/metrics")
    lines = dict(line.rsplit(" ", 1) for line in raw.decode().splitlines() if not line.startswith("#"))
    stats = looking_up.stats
    assert lines['pyllama_drafter_info{name="look-up"}'] == "1.0"
    assert float(lines["pyllama_draft_proposed_tokens_total"]) == stats.proposed_tokens > 0
    assert float(lines["pyllama_draft_accepted_tokens_total"]) == stats.accepted_tokens
    assert float(lines["pyllama_draft_passes_total"]) == stats.drafted_passes > 0
    assert float(lines["pyllama_draft_seconds_total"]) > 0
    assert float(lines["pyllama_tokens_a_pass"]) == stats.tokens_a_pass >= 1
    draft = looking_up.request("GET", "/health")[1]["draft"]
    assert (draft["name"], draft["proposed"]) == ("look-up", stats.proposed_tokens)
    assert looking_up.request("GET", "/props")[1]["draft"] == "look-up"


def test_a_gap_tells_what_was_drafted_as_llama_cpp_does(server, monkeypatch):
    marks = {"<|fim_prefix|>": 5, "<|fim_suffix|>": 6, "<|fim_middle|>": 7}
    monkeypatch.setattr(server.model.tokenizer, "id_of", marks.get)
    body = {"input_prefix": "abc", "input_suffix": "d", "n_predict": 12, "temperature": 0, "ignore_eos": True}
    plain = server.post("/infill", body)
    assert plain["timings"]["predicted_n"] == plain["tokens_predicted"] > 0
    assert "draft_n" not in plain["timings"]
    drafting = drafters.Scripted(lambda task, room: drafters.chain([20, 21, 22][:room]))
    drafted = with_drafting(server, drafting, lambda: server.post("/infill", body))
    assert drafted["content"] == plain["content"]
    assert 0 <= drafted["timings"]["draft_n_accepted"] <= drafted["timings"]["draft_n"] > 0
