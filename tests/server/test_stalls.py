"""One client's costly grammars, texts and bodies do not hold up the others, and what he left is ended."""

import asyncio
import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
llguidance = pytest.importorskip("llguidance")

from conftest import write_model
from running_server import JSON, MESSAGES, running, wait_until

import pyllama
from pyllama.engine.turns import Turns
from pyllama.errors import BusyError, RequestError
from pyllama.server import grammar, grammar_process, service
from pyllama.server.errors import ApiError
from pyllama.server.grammar import Grammars, json_grammar
from pyllama.server.grammar_process import Grammar

CHAT = "/v1/chat/completions"
SHORT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
LETTERS = "abcdefghijklmnopqrstuvwxyz"
# Each took seconds, or hundreds of MB, in the server itself.
HOSTILE = {
    "emptiness": {"type": "string", "pattern": "^(" + "|".join(f".*{c}.*" for c in LETTERS) + ")$",
                  "allOf": [{"pattern": f".*{c}.*"} for c in LETTERS[:16]]},
    "repeats": {"type": "string", "pattern": "^(a{1000}){1000}$"},
    "many repeats": {"anyOf": [{"type": "string", "pattern": f"^({c}{{999}}){{999}}$"} for c in LETTERS]},
    "references": {"$defs": {f"a{i}": {"allOf": [{"anyOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2}] * 2}
                             for i in range(14)} | {"a14": {"type": "object"}}, "$ref": "#/$defs/a0"},
    "properties": {"type": "object", "properties": {f"p{i}": {"type": "string", "pattern": f"^.*{i}.*$"}
                                                    for i in range(4000)}},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder):
    with pyllama.load(folder, context_length=512) as model:
        yield model


@pytest.fixture(scope="module")
def grammars(model):
    return Grammars(model)


def children(of=None):
    """Processes below this one, or below another."""
    found = []
    try:
        for task in Path(f"/proc/{of or os.getpid()}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *children(int(child))]
    except FileNotFoundError:  # a thread or process that has just ended
        pass
    return found


def resident_nbytes(pid):
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


# --- turns ---


def test_clients_take_turns_and_each_is_served_in_order():
    async def main():
        turns, served = Turns(1, 100, "work"), []

        async def work(name):
            async with turns.turn(name[0]):
                served.append(name)
                await asyncio.sleep(0)

        names = [f"a{i}" for i in range(6)] + ["b0", "b1", "c0"]
        await asyncio.gather(*map(work, names))
        assert served[:5] == ["a0", "b0", "c0", "a1", "b1"]
        assert served[5:] == ["a2", "a3", "a4", "a5"]
        assert turns._free == 1 and not turns._running and not turns._served

    asyncio.run(main())


def test_who_leaves_the_queue_or_fails_keeps_no_turn():
    async def main():
        turns = Turns(2, 3, "work")

        async def work(seconds, error=None):
            async with turns.turn("a"):
                await asyncio.sleep(seconds)
                if error:
                    raise error

        tasks = [asyncio.create_task(work(30)) for _ in range(5)]
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="too many requests wait for their turn to work: 3"):
            await turns.take("b")
        for task in (tasks[3], tasks[0], tasks[1], tasks[2], tasks[4]):
            task.cancel()
            await asyncio.sleep(0)
        await asyncio.gather(*tasks, return_exceptions=True)
        for _ in range(5):
            with pytest.raises(ValueError):
                await work(0, ValueError())
        # Let in and cancelled at the same moment.
        first = asyncio.create_task(work(0.01))
        second = asyncio.create_task(work(0.01))
        third = asyncio.create_task(work(30))
        await asyncio.sleep(0.05)
        third.cancel()
        await asyncio.gather(first, second, third, return_exceptions=True)
        assert turns._free == 2 and not turns._waiting

    asyncio.run(main())


# --- grammars ---


def in_process(model, source):
    """llguidance as it is, in this process: the reference, for a schema or a grammar in Lark."""

    tokenizer = model.tokenizer

    class Wrapped:
        eos_token_id = tokenizer.eos_token_ids[0]
        bos_token_id = tokenizer.bos_token_id
        tokens = [tokenizer.token_bytes(i) if i < tokenizer.vocab_size else b"" for i in range(model.config.vocab_size)]
        special_token_ids = sorted(tokenizer.special_ids)

        def __call__(self, text):
            return tokenizer.encode(text.decode() if isinstance(text, bytes) else text, add_special_tokens=False)

    prepared = llguidance.LLTokenizer(
        llguidance.TokenizerWrapper(Wrapped()), n_vocab=model.config.vocab_size,
        eos_token=list(model.tokenizer.eos_token_ids),
    )  # fmt: skip
    make = llguidance.LLMatcher
    style = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    if isinstance(source, str):
        return make(prepared, make.grammar_from_lark(source), log_level=0)
    return make(prepared, make.grammar_from_json_schema(json.dumps(source), overrides=style), log_level=0)


@pytest.mark.parametrize(
    "source",
    [
        {"type": "object"},
        {"type": "object", "properties": {"name": {"const": "hello there"}, "n": {"type": "integer"}},
         "required": ["name", "n"], "additionalProperties": False},
        {"enum": ["hello", "help", "é漢", "\U0001f600"]},
        {"type": "array", "items": {"type": "string", "format": "date"}, "minItems": 2},
        'start: "hello" " "* /[0-9]+/ | <|im_start|> "x"',
    ],
)  # fmt: skip
def test_masks_are_those_of_the_library_in_this_process(model, grammars, source):
    reference = in_process(model, source)
    assert not reference.is_error(), reference.get_error()
    given = Grammar(source, "x") if isinstance(source, str) else json_grammar(source, "x")
    guide = asyncio.run(grammars.guide(given))
    chooser = np.random.default_rng(1)
    for _ in range(40):
        mask = np.unpackbits(np.frombuffer(reference.compute_bitmask(), np.uint8), bitorder="little")
        allowed = guide.allowed()
        assert np.array_equal(allowed, np.flatnonzero(mask[: model.config.vocab_size]))
        token = int(chooser.choice(allowed))
        assert reference.consume_token(token)
        if guide.accept(token):
            assert reference.is_stopped()
            break
        assert not reference.is_stopped()


def test_copies_go_their_own_ways(grammars):
    guide = asyncio.run(grammars.guide(json_grammar({"enum": ["aa", "bb", "cc"]}, "x"), answers=3))
    guides = [guide, guide.copy(), guide.copy()]
    for one in guides:
        assert len(one.allowed())
        one.accept(int(one.allowed()[0]))
    ways = [int(one.allowed()[-1 if i else 0]) for i, one in enumerate(guides)]
    assert len({one.tobytes() for one in (g.allowed() for g in guides)}) == 1
    for one, token in zip(guides, ways):
        one.accept(token)
    for one in guides[::-1]:
        assert len(one.allowed())


@pytest.mark.parametrize("name", HOSTILE)
def test_a_costly_grammar_is_refused_with_the_limit_or_followed_within_it(grammars, name, monkeypatch):
    monkeypatch.setattr(grammar, "LONG_S", 2.0)
    mine = resident_nbytes(os.getpid())
    started = time.monotonic()
    try:
        guide = asyncio.run(grammars.guide(json_grammar(HOSTILE[name], "response_format")))
        for _ in range(20):
            if guide.accept(int(guide.allowed()[0])):
                break
    except (ApiError, RequestError) as error:
        message = error.message if isinstance(error, ApiError) else str(error)
        assert message.startswith("response_format: ") and "\n" not in message
    assert time.monotonic() - started < 30
    assert resident_nbytes(os.getpid()) - mine < 20_000_000
    for child in children():
        assert resident_nbytes(child) < grammar_process.NBYTES + 150_000_000


def test_limits_are_told(grammars, monkeypatch):
    monkeypatch.setattr(grammar, "SHORT_S", 0.1)
    monkeypatch.setattr(grammar, "LONG_S", 0.3)
    with pytest.raises(ApiError, match="response_format: it takes more than 0.3 s to compile, expected less"):
        asyncio.run(grammars.guide(json_grammar(HOSTILE["emptiness"], "response_format")))
    monkeypatch.setattr(grammar, "LONG_S", 20.0)
    monkeypatch.setattr(grammar_process, "NBYTES", 8 << 20)
    with pytest.raises(ApiError, match="tools: it takes more than 8 MB to compile"):
        asyncio.run(grammars.guide(json_grammar(HOSTILE["emptiness"], "tools")))


def test_a_token_that_takes_too_long_ends_its_answer_alone(grammars, monkeypatch):
    guide = asyncio.run(grammars.guide(json_grammar({"type": "object"}, "x")))
    before = set(children())
    monkeypatch.setattr(grammar_process, "_WAIT_S", 0.5)
    slow = asyncio.run(grammars.guide(json_grammar({"type": "object"}, "tools")))
    (child,) = set(children()) - before
    os.kill(child, signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(RequestError, match="tools: it takes more than 0.5 s or 96 MB to find the next token"):
        slow.accept(int(slow.allowed()[0]))
    assert time.monotonic() - started < 5
    os.kill(child, signal.SIGCONT)
    assert not guide.accept(int(guide.allowed()[0]))


def test_the_process_is_made_anew_if_it_was_ended(grammars):
    asyncio.run(grammars.guide(json_grammar({"type": "object"}, "x")))
    for child in children():
        os.kill(child, 9)
    assert len(asyncio.run(grammars.guide(json_grammar({"type": "object"}, "x"))).allowed())


def test_processes_end_with_their_answers(model):
    before = set(children())
    grammars = Grammars(model)
    guides = [asyncio.run(grammars.guide(json_grammar({"type": "object"}, "x"))) for _ in range(5)]
    assert len(set(children()) - before) == 6
    del guides
    wait_until(lambda: len([c for c in set(children()) - before if resident_nbytes(c)]) == 1, 10)
    del grammars
    wait_until(lambda: set(children()) <= before, 10)


def test_compiling_ends_when_the_client_hangs_up(folder, monkeypatch):
    monkeypatch.setattr(grammar, "SHORT_S", 60.0)
    form = {"type": "json_schema", "json_schema": {"schema": HOSTILE["emptiness"]}}
    with running(folder) as server:
        server.post(CHAT, SHORT | {"response_format": {"type": "json_object"}})
        idle = [child for child in children() if resident_nbytes(child)]
        connections = [server.open(CHAT, SHORT | {"response_format": form}) for _ in range(4)]
        wait_until(lambda: len([child for child in children() if resident_nbytes(child)]) > len(idle), 20)
        for connection in connections:
            connection.close()
        wait_until(lambda: len([child for child in children() if resident_nbytes(child)]) <= len(idle), 5)
        assert server.server.app.state.service.grammars._short._free == 2


# --- the server ---


def attack(server, path, bodies):
    """The bodies, each from a client of its own that does not wait for the others; the statuses they end with."""
    ended = []

    def send(body):
        ended.append(server.request("POST", path, body)[0])

    threads = [threading.Thread(target=send, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    return threads, ended


def seconds_of(server, body=SHORT):
    started = time.monotonic()
    assert server.request("POST", CHAT, body)[0] == 200
    return time.monotonic() - started


@pytest.mark.parametrize("name", ["emptiness", "repeats", "properties"])
def test_short_questions_go_on_while_others_compile(folder, name, monkeypatch):
    monkeypatch.setattr(grammar, "LONG_S", 1.5)
    form = {"type": "json_schema", "json_schema": {"schema": HOSTILE[name]}}
    with running(folder, context_length=4096) as server:
        server.post(CHAT, SHORT | {"response_format": {"type": "json_object"}})
        threads, ended = attack(server, CHAT, [SHORT | {"response_format": form, "max_tokens": 3}] * 6)
        assert max(seconds_of(server) for _ in range(5)) < 5
        # A short grammar of another client is not behind the long ones either.
        assert seconds_of(server, SHORT | {"response_format": {"type": "json_object"}, "user": "other"}) < 10
        for thread in threads:
            thread.join(90)
        assert set(ended) <= {200, 400, 429}, ended


LONG = "Some words, and 12345 more.\n" * 9000
TEXTS = {
    "one text": {"prompt": LONG},
    "one word": {"prompt": "a" * 250_000},
    "spaces": {"prompt": " " * 250_000 + "x"},
    "messages": {"messages": [{"role": "user", "content": "x"}] * 6000},
    "marks": {"prompt": "\u0301\u0316" * 15_000},
}


@pytest.mark.parametrize("name", TEXTS)
def test_short_questions_go_on_while_others_tokenize(folder, name):
    with running(folder) as server:
        threads, ended = attack(server, "/tokenize", [TEXTS[name]] * 8)
        assert max(seconds_of(server) for _ in range(5)) < 5
        for thread in threads:
            thread.join(90)
        assert ended == [200] * 8


def test_large_bodies_take_turns_and_slow_senders_hold_up_large_ones_alone(folder, monkeypatch):
    most = 0
    checked = service._checked

    def counting(raw, schema):
        nonlocal most
        most = max(most, service.LARGE_BODIES - turns._free)
        return checked(raw, schema)

    monkeypatch.setattr(service, "_checked", counting)
    with running(folder, context_length=2048) as server:
        turns = server.server.app.state.service._large_bodies
        body = {"prompt": [[1] * 20] * 64, "padding": ["[]"] * 20_000}
        threads, ended = attack(server, "/v1/completions", [body] * 24)
        for thread in threads:
            thread.join(90)
        assert set(ended) <= {200, 429} and 1 <= most <= service.LARGE_BODIES
        slow = [server.open("/tokenize", {"prompt": "x" * 100_000}) for _ in range(3)]
        for connection in slow:
            connection.close()
        raw = b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\n" + JSON + b"content-length: 200000\r\n\r\n{"
        import socket

        slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(10)]
        for connection in slow:
            connection.sendall(raw)
        wait_until(lambda: turns._free == 0)
        assert seconds_of(server) < 5
        for connection in slow:
            connection.close()
        wait_until(lambda: turns._free == service.LARGE_BODIES and not turns._waiting)


def test_many_choices_stops_and_biases_do_not_hold_up_the_others(folder):
    body = {
        "messages": MESSAGES, "n": 16, "max_tokens": 200, "logprobs": True, "top_logprobs": 20, "ignore_eos": True,
        "stop": ["x" * 5000 + str(i) for i in range(16)], "logit_bias": {str(i): -1 for i in range(250)},
    }  # fmt: skip
    with running(folder, context_length=2048) as server:
        threads, ended = attack(server, CHAT, [body] * 6)
        assert max(seconds_of(server, SHORT | {"user": f"{i}"}) for i in range(3)) < 10
        for thread in threads:
            thread.join(120)
        assert set(ended) <= {200, 429}


def test_a_grammar_changes_no_other_answer(folder, model):
    expected = model.generate(MESSAGES, temperature=0, max_tokens=12).read()
    with running(folder) as server:
        form = {"type": "json_object"}
        threads, _ = attack(server, CHAT, [SHORT | {"max_tokens": 30, "response_format": form}] * 4)
        answer = server.post(CHAT, {"messages": MESSAGES, "temperature": 0, "max_tokens": 12})
        assert answer["choices"][0]["message"]["content"] == expected
        for thread in threads:
            thread.join(60)
        json.dumps(answer)
