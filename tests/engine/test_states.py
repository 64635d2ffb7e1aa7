"""Models whose layers carry a state, in the engine: the same bits in company, states found again by their tokens."""

import pytest
import tiny
from company import changes_no_bit, prompt, result, run, solo, submit
from conftest import write_model

import pyllama
from pyllama.engine import Engine

CONTEXT = 256


@pytest.fixture(scope="module", params=tiny.RECURRENT)
def folder(request, tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / request.param, model_type=request.param)


@pytest.fixture
def model(folder):
    with pyllama.load(folder, context_length=CONTEXT, contexts=8) as model:
        yield model


def nothing_lost(engine, model):
    """All that is held is the prefix cache's, which gives it back."""
    while engine._prefix_cache.evict():
        pass
    states = model.decoder.cache.states
    assert (engine.stats().pages_used, states.slots.used, states.rows.used) == (0, 0, 0)


def test_company_changes_no_bit(model):
    engine = changes_no_bit(model)
    nothing_lost(engine, model)


def asked(engine, ids, expected, **options):
    request, listener = submit(engine, ids, **options)
    run(engine)
    assert result(request, listener) == expected
    return request.cached_tokens


def test_a_text_goes_on_from_the_last_state_known_of_it(model):
    first = prompt(1, 100)
    answer = solo(model, first, max_tokens=12)
    later = [*first, *answer[0], *prompt(3, 20)]
    others = [[*first[:70], *prompt(number, 30)] for number in (5, 6)]
    expected = [solo(model, ids, max_tokens=12) for ids in (later, *others)]
    engine = Engine(model)
    assert asked(engine, first, answer, max_tokens=12) == 0
    assert asked(engine, first, answer, max_tokens=12) == 96, "of its last whole page"
    assert asked(engine, later, expected[0], max_tokens=12) == 111, "of its end, but for the last token"
    assert asked(engine, others[0], expected[1], max_tokens=12) == 0, "there is no state of where it parts"
    assert asked(engine, others[1], expected[2], max_tokens=12) == 64, "from now on there is"
    nothing_lost(engine, model)


def test_states_go_for_what_runs_and_with_their_pages(model):
    expected = [solo(model, prompt(number, 100), max_tokens=3) for number in range(6)]
    engine = Engine(model, max_running=2)
    states = model.decoder.cache.states
    states.slots.limit = 6
    for number in (0, 1, 2, 3, 4, 5):
        assert asked(engine, prompt(number, 100), expected[number], max_tokens=3) == 0
        assert states.slots.used <= 6
    assert asked(engine, prompt(5, 100), expected[5], max_tokens=3) == 96
    assert asked(engine, prompt(0, 100), expected[0], max_tokens=3) == 0, "its states were those used longest ago"
    requests = [submit(engine, prompt(number, 100), max_tokens=3) for number in (1, 2, 3)]
    run(engine)
    assert [result(*request) for request in requests] == expected[1:4]
    nothing_lost(engine, model)


def test_a_request_that_gave_its_pages_up_goes_on_from_its_state(model):
    page = model.decoder.cache.page_nbytes
    cases = [dict(prompt_ids=prompt(number, 90), max_tokens=100) for number in range(3)]
    expected = [solo(model, **case) for case in cases]
    engine = Engine(model, max_running=3, kv_nbytes=11 * page)
    requests = [submit(engine, **case) for case in cases]
    run(engine)
    assert engine.stats().preemptions > 0
    assert [result(*request) for request in requests] == expected
    nothing_lost(engine, model)


def test_states_survive_a_restart(folder, tmp_path, caplog):
    sessions, ids = tmp_path / "sessions", prompt(1, 100)
    options = {"context_length": CONTEXT, "contexts": 4}
    with pyllama.load(folder, **options) as model:
        answer = solo(model, ids, max_tokens=12)
        later = [*ids, *answer[0], *prompt(3, 20)]
        expected = solo(model, later, max_tokens=12)
        engine = Engine(model, session_dir=str(sessions))
        assert asked(engine, ids, answer, max_tokens=12) == 0
        engine.stop()
    files = sorted(sessions.rglob("*.state"))
    assert len(files) == 2, "of the prompt's last whole page and of the end"
    for number in range(2):
        with pyllama.load(folder, **options) as model:
            engine = Engine(model, session_dir=str(sessions))
            assert asked(engine, later, expected, max_tokens=12) == (0 if number else 111)
            nothing_lost(engine, model)
        for file in files:  # what a disk does to a file
            if file.exists():
                data = bytearray(file.read_bytes())
                data[-5] ^= 1
                file.write_bytes(data)
    assert "checksum does not match; ignored and removed" in caplog.text


def test_states_on_disk_have_as_much_room_as_is_allowed(folder, tmp_path):
    with pyllama.load(folder, context_length=CONTEXT, contexts=4) as model:
        state, page = model.decoder.cache.state_pool.slot_nbytes, model.decoder.cache.page_nbytes
        room = 2 * state + 12 * page + (1 << 18)
        engine = Engine(model, session_dir=str(tmp_path / "s"), session_nbytes=room)
        for number in range(6):
            asked(engine, prompt(number, 100), solo(model, prompt(number, 100), max_tokens=3), max_tokens=3)
            while engine._prefix_cache.save_one() or engine._prefix_cache.save_state():
                pass
            assert sum(file.stat().st_size for file in (tmp_path / "s").rglob("*.*")) <= room
        engine.stop()
        nothing_lost(engine, model)


def test_one_at_a_time_where_memory_is_for_one(folder):
    with pyllama.load(folder, context_length=CONTEXT) as model:
        model.plan = None  # as a model made without one
        engine = Engine(model, max_running=1)
        assert model.decoder.cache.states.slots.limit == 12 and engine._scheduler._places == 2
        expected = [solo(model, prompt(number), max_tokens=9) for number in range(3)]
        model.decoder.cache.states.slots.limit = 2
        engine._scheduler._places = engine._scheduler._max_running = 1
        requests = [submit(engine, prompt(number), max_tokens=9) for number in range(3)]
        run(engine)
        assert [result(*request) for request in requests] == expected


def test_a_chat_goes_on_from_its_last_turn(folder):
    with pyllama.load(folder, context_length=CONTEXT) as model, model.chat(max_tokens=9) as chat:
        turns = [chat.send(text) for text in ("hello",)]
        turns[0].read()
        second = chat.send("and again")
        second.read()
        assert second.cached_tokens >= turns[0].prompt_tokens - 1
        assert chat.undo() == "and again"
        again = chat.send("and again")
        again.read()
        assert again.token_ids == second.token_ids and again.cached_tokens > 0
