"""The engine: the same bits in any company, pages that are counted, shared, kept, saved and given back."""

import asyncio
import gc
import threading
import time
import weakref

import numpy as np
import pytest
import tiny
from company import Listener, changes_no_bit, prompt, result, run, solo, submit

import pyllama
from pyllama.checkpoint.digest import model_digest
from pyllama.engine import AsyncEngine, Engine
from pyllama.engine.page_store import PageStore
from pyllama.engine.prefix_cache import PrefixCache
from pyllama.errors import BudgetError, BusyError, ContextOverflowError, PyllamaError, RequestError
from pyllama.generation import Embedding, Step
from pyllama.generation.sampler import SamplingParams

CONTEXT = 256


@pytest.fixture
def model(chat_folder):
    with pyllama.load(chat_folder, context_length=CONTEXT, contexts=8) as model:
        yield model


def no_pages_lost(engine):
    """Everything that is held is held by the prefix cache alone."""
    assert engine.stats().pages_used == engine.stats().pages_kept
    while engine._prefix_cache.evict():
        pass
    assert engine.stats().pages_used == 0


# --- company ---


def test_company_changes_no_bit(model):
    engine = changes_no_bit(model)
    assert engine.stats().requests == {"length": 7}
    no_pages_lost(engine)


def test_prompts_and_next_tokens_share_passes(model):
    engine = Engine(model, max_running=4)
    submit(engine, prompt(1), max_tokens=10)
    engine.step()
    before = engine.stats().passes
    for i in range(2, 5):
        submit(engine, prompt(i), max_tokens=9)
    run(engine)
    assert engine.stats().passes - before == 9


def test_a_long_prompt_leaves_room_for_the_others(model):
    """One that writes gets a token in every pass, however long the prompts beside it are."""
    engine = Engine(model, max_running=4, shared_prefill=10)
    _, writing = submit(engine, prompt(1, 5), max_tokens=40)
    engine.step()
    long, long_steps = submit(engine, prompt(2, 200), max_tokens=1)
    short, short_steps = submit(engine, prompt(3, 12), max_tokens=1)
    for _ in range(3):
        engine.step()
    assert len(writing) == 4
    assert short_steps and not long_steps, "a short prompt does not wait for a long one"
    run(engine)
    assert len(writing) == 40 and len(long_steps) == 1


def test_a_request_that_fails_fails_alone(model):
    class Broken:
        def allowed(self):
            raise PyllamaError("no")

    engine = Engine(model)
    _, broken = submit(engine, prompt(1), guide=Broken())
    request, good = submit(engine, prompt(2))
    run(engine)
    assert str(broken.end) == "no"
    assert result(request, good) == solo(model, prompt(2), max_tokens=8)
    assert engine.stats().requests == {"error": 1, "length": 1}
    no_pages_lost(engine)


def test_a_pass_that_fails_fails_its_requests_and_no_other(model, monkeypatch):
    engine = Engine(model)
    first = [submit(engine, prompt(i)) for i in range(2)]
    engine.step()
    extend = model.decoder.extend

    def fail(*arguments, **options):
        raise OSError("the disk is gone")

    monkeypatch.setattr(model.decoder, "extend", fail)
    engine.step()
    monkeypatch.setattr(model.decoder, "extend", extend)
    assert [str(listener.end) for _, listener in first] == ["internal error: OSError"] * 2
    later = submit(engine, prompt(0))
    run(engine)
    assert result(*later) == solo(model, prompt(0), max_tokens=8)
    no_pages_lost(engine)


# --- the queue ---


def test_the_queue_is_bounded(model):
    engine = Engine(model, max_running=2, max_waiting=3)
    for i in range(5):
        submit(engine, prompt(i), max_tokens=20)
    with pytest.raises(BusyError, match="the queue is full"):
        submit(engine, prompt(9))
    engine.step()
    assert (engine.stats().running, engine.stats().waiting) == (2, 3)
    with pytest.raises(BusyError):
        submit(engine, prompt(9))
    assert engine.retry_after_s() >= 1
    run(engine)
    submit(engine, prompt(9))
    run(engine)
    assert engine.stats().requests == {"length": 6}


def test_clients_take_turns(model):
    """Whoever sends ten at once does not keep the others waiting for all of them."""
    engine = Engine(model, max_running=2)
    order = []
    for number, client in enumerate(["a", "a", "a", "a", "b", "a", "c"]):
        engine.submit(
            prompt(number),
            SamplingParams(max_tokens=5, ignore_eos=True),
            lambda step, client=client: step.finish_reason and order.append(client),
            client=client,
        )
    requests = list(engine._inbox)
    engine.step()
    assert [engine.place(request) for request in requests] == [0, 1, 2, 3, 0, 4, 0]
    run(engine)
    assert sorted(order[:3]) == ["a", "b", "c"], "c has the place beside, for short prompts of clients who have none"
    assert sorted(order) == ["a"] * 5 + ["b", "c"]


def test_a_short_prompt_does_not_wait_for_clients_who_fill_all_places(model):
    engine = Engine(model, max_running=2, shared_prefill=16)
    for number in range(4):
        engine.submit(prompt(number, 200), SamplingParams(max_tokens=1), lambda step: None, client=f"long {number}")
    engine.step()
    steps = []
    long = engine.submit(prompt(7, 100), SamplingParams(max_tokens=1), lambda step: None, client="long, too")
    short = engine.submit(prompt(8, 5), SamplingParams(max_tokens=1), steps.append, client="short")
    for _ in range(2):
        engine.step()
    assert len(steps) == 1 and short.done and engine.place(long) > 0
    run(engine)
    assert engine.stats().requests == {"length": 6}


def test_who_has_most_of_a_full_queue_makes_room(model):
    engine = Engine(model, max_running=1, max_waiting=6)
    ended = []

    def ask(client, number):
        def told(event):
            ended.append((client, number, event))

        return engine.submit(prompt(number), SamplingParams(max_tokens=1, ignore_eos=True), told, client=client)

    for number in range(7):
        ask("greedy", number)
    ask("modest", 7)
    ask("modest", 8)
    ask("other", 9)
    with pytest.raises(BusyError, match="the queue is full"):
        ask("greedy", 10)
    run(engine)
    lost = [(client, number) for client, number, event in ended if isinstance(event, BusyError)]
    assert sorted(lost) == [("greedy", 4), ("greedy", 5), ("greedy", 6)], "the last of whoever has most"
    assert {(c, n) for c, n, event in ended if not isinstance(event, PyllamaError)} == {
        ("greedy", 0), ("greedy", 1), ("greedy", 2), ("greedy", 3), ("modest", 7), ("modest", 8), ("other", 9)
    }  # fmt: skip


def test_what_does_not_fit_is_refused_at_once(model):
    engine = Engine(model)
    with pytest.raises(ContextOverflowError):
        submit(engine, [1] * (CONTEXT + 1))
    with pytest.raises(RequestError):
        submit(engine, [])
    assert engine.stats().max_pages == 8 * CONTEXT // 32 + 1, "as planned"
    with pytest.raises(BudgetError, match="expected at least"):
        Engine(model, kv_nbytes=1000)
    with pytest.raises(RequestError, match="max_running"):
        Engine(model, max_running=0)


# --- cancelling ---


def test_cancelling_frees_the_slot_within_a_pass(model):
    engine = Engine(model, max_running=1)
    request, listener = submit(engine, prompt(1), max_tokens=100)
    waiting, waiting_steps = submit(engine, prompt(2), max_tokens=2)
    never, never_steps = submit(engine, prompt(3), max_tokens=2)
    engine.step()
    engine.cancel(never)
    engine.cancel(request)
    heard = len(listener)
    engine.step()
    assert waiting_steps and len(listener) == heard and request.done
    run(engine)
    assert not never_steps
    engine.cancel(request)
    engine.cancel(waiting)
    run(engine)
    assert engine.stats().requests == {"cancelled": 2, "length": 1}
    no_pages_lost(engine)


def test_a_pass_that_nobody_wants_ends_between_layers(model):
    engine = Engine(model)
    pair = [submit(engine, prompt(i), max_tokens=5) for i in range(2)]
    layers = []

    def between(layer):
        layers.append(layer)
        if len(layers) == 1:  # one hangs up: the other still wants the pass
            engine.cancel(pair[0][0])
        if len(layers) == model.config.num_hidden_layers + 1:
            engine.cancel(pair[1][0])

    model.decoder.on_layer = between
    engine.step()
    assert len(layers) == model.config.num_hidden_layers and len(pair[1][1]) == 1 and not pair[0][1]
    engine.step()
    assert len(layers) == model.config.num_hidden_layers + 1, "the second pass stopped at its first layer"
    model.decoder.on_layer = None
    assert not engine.step()
    assert engine.stats().requests == {"cancelled": 2}
    later = submit(engine, prompt(1), max_tokens=5)
    run(engine)
    assert result(*later) == solo(model, prompt(1), max_tokens=5)
    no_pages_lost(engine)


def test_a_request_that_has_ended_is_freed_at_once(model):
    """Not by the garbage collector, which may take its time while a table of the vocabulary hangs on each."""

    async def main():
        async with AsyncEngine(model) as engine:
            async with await engine.submit("hello", max_tokens=3) as stream:
                await stream.read()
            return weakref.ref(stream.request), weakref.ref(stream)

    gc.disable()
    try:
        request, stream = asyncio.run(main())
        assert request() is None and stream() is None
    finally:
        gc.enable()


# --- pages ---


def test_too_few_pages_cost_time_and_no_request(model):
    """Room for one context: requests are put off and computed again, all finish, and no bit differs."""
    cases = [dict(prompt_ids=prompt(i, 30 + 9 * i), max_tokens=100, temperature=1.0, seed=i) for i in range(6)]
    expected = [solo(model, **case) for case in cases]
    engine = Engine(model, kv_nbytes=9 * model.decoder.cache.page_nbytes)
    requests = [submit(engine, **case) for case in cases]
    run(engine)
    assert [result(*request) for request in requests] == expected
    assert engine.stats().preemptions > 0
    assert model.decoder.cache.pool.nbytes <= 9 * model.decoder.cache.page_nbytes
    no_pages_lost(engine)


def test_every_cut_of_a_shared_beginning_gives_the_same_bits(model):
    """Texts that leave a known one after 1, 31, 32, 33, ... tokens: what is shared is never written."""
    known = prompt(1, 100)
    engine = Engine(model)
    submit(engine, known, max_tokens=3)
    run(engine)
    for cut in (1, 31, 32, 33, 63, 64, 65, 95, 99, 100):
        ids = known[:cut] + prompt(50 + cut, 30)
        request, listener = submit(engine, ids, max_tokens=4)
        again, again_steps = submit(engine, known, max_tokens=3)
        run(engine)
        assert request.cached_tokens >= cut, "to the token"
        assert result(request, listener) == solo(model, ids, max_tokens=4)
        assert result(again, again_steps) == solo(model, known, max_tokens=3)
        assert again.cached_tokens == 99
    no_pages_lost(engine)


def test_the_next_turn_computes_only_what_is_new(model, monkeypatch):
    engine = Engine(model)
    first, _ = submit(engine, prompt(1, 150), max_tokens=20)
    run(engine)
    turn = first.answer.tokens(0) + prompt(2, 10)
    computed = []
    extend = model.decoder.extend
    monkeypatch.setattr(
        model.decoder, "extend", lambda batch, *a: computed.append(len(batch[0][1])) or extend(batch, *a)
    )
    second, listener = submit(engine, turn, max_tokens=5)
    run(engine)
    assert computed == [11, 1, 1, 1, 1], "the last token of the answer was never fed back"
    assert second.cached_tokens == 169
    assert result(second, listener) == solo(model, turn, max_tokens=5)


def test_requests_share_a_prompt_that_is_being_computed(model):
    """n answers to one prompt, or one system prompt for many: computed once even before the first has finished."""
    engine = Engine(model)
    leader, _ = submit(engine, prompt(1, 100), max_tokens=30)
    followers = [
        submit(engine, prompt(1, 100), max_tokens=10, temperature=1.0, seed=i, leader=leader) for i in range(3)
    ]
    engine.step()
    late = submit(engine, prompt(1, 70) + prompt(2, 10), max_tokens=3)
    run(engine)
    assert [request.cached_tokens for request, _ in followers] == [96] * 3
    assert late[0].cached_tokens == 70
    for i, follower in enumerate(followers):
        assert result(*follower) == solo(model, prompt(1, 100), max_tokens=10, temperature=1.0, seed=i)
    assert result(*late) == solo(model, prompt(1, 70) + prompt(2, 10), max_tokens=3)
    no_pages_lost(engine)


def test_followers_do_not_wait_for_a_leader_that_is_gone(model):
    engine = Engine(model, max_running=1)
    leader, _ = submit(engine, prompt(1), max_tokens=3)
    follower, steps = submit(engine, prompt(1), max_tokens=3, leader=leader)
    engine.cancel(leader)
    run(engine)
    assert steps.end == "length"


def test_the_least_recently_used_text_goes_first(model):
    engine = Engine(model, kv_nbytes=12 * model.decoder.cache.page_nbytes)
    for i in (1, 2, 1, 3, 4):  # 3 pages each; four fit, and the first was used again
        submit(engine, prompt(i, 90), max_tokens=3)
        run(engine)
    cached = {}
    for i in (1, 3, 4):
        request, _ = submit(engine, prompt(i, 90), max_tokens=1)
        run(engine)
        cached[i] = request.cached_tokens
    assert cached == {1: 89, 3: 89, 4: 89}
    submit(engine, prompt(5, 120), max_tokens=1)
    run(engine)
    request, _ = submit(engine, prompt(2, 90), max_tokens=1)
    run(engine)
    assert request.cached_tokens < 89, "2 was used longest ago: its end, at least, is gone"


def test_a_text_that_goes_on_takes_the_place_of_its_end(model):
    cache = model.decoder.cache
    prefixes = PrefixCache(cache)
    with model.new_sequence() as sequence:
        for length in (10, 20, 32, 40):
            model.decoder.forward([(sequence, prompt(1, length)[sequence.length :])])
            prefixes.insert(prompt(1, length), sequence.pages)
            sequence.reserve(sequence.length)
    assert prefixes.pages == 2
    prefixes.insert(prompt(1, 36), [])  # known already, as the middle of a text
    assert prefixes.pages == 2 and prefixes.evictable() == 2
    while prefixes.evict():
        pass
    assert cache.pages.used == 0 and prefixes.pages == 0


# --- restarts ---


def engine_of(folder, directory, **options):
    return Engine(pyllama.load(folder, context_length=CONTEXT, contexts=8), session_dir=str(directory), **options)


def test_what_is_known_survives_a_restart(chat_folder, tmp_path):
    engine = engine_of(chat_folder, tmp_path / "sessions")
    first, listener = submit(engine, prompt(1, 150), max_tokens=20)
    run(engine)
    expected = solo(engine.model, first.answer.tokens(0) + prompt(2, 10), max_tokens=5)
    engine.stop()
    files = list(tmp_path.glob("sessions/*/*.page"))
    assert len(files) == 6 and all(file.stat().st_mode & 0o777 == 0o600 for file in files)
    assert (tmp_path / "sessions").stat().st_mode & 0o777 == 0o700

    engine = engine_of(chat_folder, tmp_path / "sessions")
    assert engine.stats().pages_used == 0, "files are read when they are needed"
    second = submit(engine, first.answer.tokens(0) + prompt(2, 10), max_tokens=5)
    run(engine)
    assert second[0].cached_tokens == 169
    assert result(*second) == expected
    no_pages_lost(engine)


def test_pages_evicted_from_memory_come_back_from_disk(chat_folder, tmp_path):
    engine = engine_of(chat_folder, tmp_path, kv_nbytes=10**9)
    submit(engine, prompt(1, 100), max_tokens=1)
    run(engine)
    while engine._prefix_cache.save_one():
        pass
    while engine._prefix_cache.evict():
        pass
    assert engine.stats().pages_used == 0
    again = submit(engine, prompt(1, 100), max_tokens=4)
    run(engine)
    assert again[0].cached_tokens == 99
    assert result(*again) == solo(engine.model, prompt(1, 100), max_tokens=4)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone", "header", "long"])
def test_a_damaged_file_is_ignored_with_a_warning(chat_folder, tmp_path, caplog, damage):
    engine = engine_of(chat_folder, tmp_path)
    submit(engine, prompt(1, 100), max_tokens=1)
    run(engine)
    engine.stop()
    file = sorted(tmp_path.glob("*/*.page"), key=lambda file: file.stat().st_size)[1]  # the second page's
    raw = bytearray(file.read_bytes())
    if damage == "flip":
        raw[-100] ^= 1
    if damage == "header":
        raw[50] ^= 1
    raw = {"cut": raw[:-1], "empty": b"", "long": raw + b"x"}.get(damage, raw)
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(raw)

    engine = engine_of(chat_folder, tmp_path)
    again = submit(engine, prompt(1, 100), max_tokens=4)
    run(engine)
    assert again[0].cached_tokens == 32
    assert result(*again) == solo(engine.model, prompt(1, 100), max_tokens=4)
    if damage != "gone":
        assert "ignored and removed" in caplog.text
    engine.stop()
    engine = engine_of(chat_folder, tmp_path)
    again, _ = submit(engine, prompt(1, 100), max_tokens=1)
    run(engine)
    assert again.cached_tokens == 99, "what was computed again was saved again"


def test_files_of_another_model_are_not_read(chat_folder, base_folder, tmp_path):
    with pyllama.load(chat_folder) as model:
        f16, f32 = (model_digest(model.checkpoint, dtype) for dtype in ("f16", "f32"))
    assert f16 != f32
    engine = engine_of(chat_folder, tmp_path)
    submit(engine, prompt(1, 100), max_tokens=1)
    run(engine)
    engine.stop()
    other = Engine(pyllama.load(chat_folder, context_length=CONTEXT, kv_dtype="f32"), session_dir=str(tmp_path))
    request, _ = submit(other, prompt(1, 100), max_tokens=1)
    run(other)
    assert request.cached_tokens == 0


def test_the_directory_is_bounded(chat_folder, tmp_path):
    """Other models' files go first, then the least recently used; two texts do not displace each other for ever."""
    engine = engine_of(chat_folder, tmp_path)
    page = engine.stats().page_nbytes
    stranger = tmp_path / "0123" / "4567.page"
    stranger.parent.mkdir()
    stranger.write_bytes(bytes(page))
    limit = 5 * (page + 1000) + (1 << 16)
    engine = engine_of(chat_folder, tmp_path, session_nbytes=limit)
    written = 0
    for i in range(1, 5):
        submit(engine, prompt(i, 64), max_tokens=1)
        run(engine)
        while engine._prefix_cache.save_one():
            written += 1
        assert sum(file.stat().st_size for file in tmp_path.glob("*/*.page")) <= limit
    assert not stranger.exists()
    assert written == 8
    assert not engine._prefix_cache.save_one()
    engine.stop()
    engine = engine_of(chat_folder, tmp_path, session_nbytes=limit)
    cached = []
    for i in (4, 3, 1):
        request, _ = submit(engine, prompt(i, 64), max_tokens=1)
        run(engine)
        cached.append(request.cached_tokens)
    assert cached[0] == 63 and cached[2] == 0


def test_a_directory_that_cannot_be_is_the_users_error(chat_folder, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RequestError, match="session directory"):
        engine_of(chat_folder, tmp_path / "file" / "sessions")


def test_a_full_disk_ends_saving_and_nothing_else(chat_folder, tmp_path, monkeypatch, caplog):
    import os

    engine = engine_of(chat_folder, tmp_path)
    submit(engine, prompt(1, 64), max_tokens=1)
    run(engine)

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert not engine._prefix_cache.save_one()
    assert not engine._prefix_cache.save_one()
    assert caplog.text.count("no space left on device") == 1
    assert not list(tmp_path.glob("*/*.page")) and not list(tmp_path.glob("*/.*"))


def test_half_written_files_are_cleared_away(chat_folder, tmp_path):
    engine = engine_of(chat_folder, tmp_path)
    (folder,) = tmp_path.iterdir()
    (folder / ".x.page.tmp").write_text("half")
    PageStore(tmp_path, folder.name, engine.stats().page_nbytes, 10**9)
    assert not list(folder.iterdir())


# --- threads ---


def test_many_threads_share_an_engine(model):
    expected = [solo(model, prompt(i, 10 + i), max_tokens=10) for i in range(12)]
    engine = Engine(model, max_running=4)
    engine.start()
    with pytest.raises(PyllamaError, match="started twice"):
        engine.start()
    results: dict[int, tuple] = {}

    def client(i):
        ended = threading.Event()
        listener = Listener()

        def deliver(event):
            listener.append(event)
            if not isinstance(event, Step) or event.finish_reason:
                ended.set()

        params = SamplingParams(max_tokens=10, ignore_eos=True)
        request = engine.submit(prompt(i, 10 + i), params, deliver, fingerprint=True)
        assert ended.wait(60)
        results[i] = result(request, listener)

    threads = [threading.Thread(target=client, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.stop()
    assert [results[i] for i in range(12)] == expected
    with pytest.raises(BusyError, match="stopping"):
        submit(engine, prompt(1))


def test_stop_lets_what_runs_finish_and_ends_the_rest(model):
    engine = Engine(model, max_running=1)
    engine.start()
    first = threading.Event()
    running, waiting = Listener(), Listener()
    params = SamplingParams(max_tokens=20, ignore_eos=True)

    def deliver(event):
        running.append(event)
        first.set()
        while not engine._stopping:
            time.sleep(0.001)

    engine.submit(prompt(1), params, deliver)
    engine.submit(prompt(2), params, waiting.append)
    assert first.wait(60)
    engine.stop(60)
    assert running.end == "length"
    assert isinstance(waiting.end, BusyError)


def test_stop_ends_what_takes_too_long(model):
    engine = Engine(model, max_running=1)
    engine.start()
    first = threading.Event()
    listener = Listener()
    params = SamplingParams(max_tokens=200, ignore_eos=True)
    extend = model.decoder.extend
    model.decoder.extend = lambda *args: (time.sleep(0.05), extend(*args))[1]
    engine.submit(prompt(1), params, lambda event: (listener.append(event), first.set()))
    assert first.wait(60)
    engine.stop(0)
    assert isinstance(listener.end, BusyError)


def test_asyncio_programs(model):
    async def main():
        async with AsyncEngine(model, max_running=4) as engine:
            streams = [await engine.submit(f"hello {i}", max_tokens=6, ignore_eos=True) for i in range(6)]
            texts = await asyncio.gather(*(stream.read() for stream in streams))
            assert all(stream.place() == 0 for stream in streams)
            async with await engine.submit([{"role": "user", "content": "x"}], max_tokens=100, ignore_eos=True) as chat:
                async for step in chat:
                    break
            with pytest.raises(RequestError):
                await engine.submit("x", temperature=-1)
            while engine.stats().running:
                await asyncio.sleep(0.01)
            return texts, engine.stats()

    texts, stats = asyncio.run(main())
    assert texts == [model.generate(f"hello {i}", max_tokens=6, ignore_eos=True).read() for i in range(6)]
    assert stats.requests == {"length": 6, "cancelled": 1}


def test_an_embedding_is_the_mean_of_what_the_head_would_multiply(model):
    """In any company, cut into passes or not: so the head makes of it the mean of the logits."""
    engine = Engine(model, max_running=3, shared_prefill=4)
    heard: list[Step] = []
    texts = [prompt(1), prompt(2)[:1], prompt(3)]
    requests = [engine.submit(ids, SamplingParams(), heard.append, kind=Embedding) for ids in texts]
    engine.submit(prompt(4), SamplingParams(max_tokens=6), lambda step: None)
    while engine.step():
        pass
    engine.stop()
    assert [(step.token_id, step.text, step.finish_reason) for step in heard] == [(-1, "", "stop")] * 3
    head = tiny.random_tensors(tiny.tiny_config(vocab_size=model.config.vocab_size), seed=1)["lm_head.weight"]
    for ids, request in zip(texts, requests):
        logits = model.forward(ids).astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(head @ request.answer.vector, logits, rtol=1e-4, atol=1e-5)
