"""One model, many threads, forked children: right logits or a PyllamaError, never wrong ones, and no hang."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from conftest import write_model

import pyllama
from pyllama.engine import Engine
from pyllama.errors import BusyError, PyllamaError, RequestError
from pyllama.generation.sampler import SamplingParams
from pyllama.machine import forked

IDS = [7 * i % 200 for i in range(40)]
DEADLINE_S = 60


@pytest.fixture
def model(chat_folder):
    with pyllama.load(chat_folder, threads=1, context_length=256) as model:
        yield model


@contextmanager
def held(model, work):
    """Another thread does `work` and stays in its first pass while the block runs; yields what becomes of it."""
    inside, go_on, outcome = threading.Event(), threading.Event(), []

    def wait(layer):
        if threading.current_thread() is thread and not inside.is_set():
            inside.set()
            assert go_on.wait(DEADLINE_S)

    def run():
        try:
            outcome.append(work())
        except Exception as error:
            outcome.append(error)

    model.decoder.on_layer = wait
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert inside.wait(DEADLINE_S)
    try:
        yield outcome
    finally:
        go_on.set()
        thread.join(DEADLINE_S)
        model.decoder.on_layer = None
    assert not thread.is_alive()


def same(a, b):
    return np.array_equal(a.view(np.uint32), b.view(np.uint32))


# --- threads ---


def ask(model):
    return model.generate(IDS, max_tokens=4, ignore_eos=True).read()


@pytest.mark.parametrize(
    "entry",
    [
        lambda model: model.forward(IDS),
        lambda model: next(model.generate(IDS)),
        lambda model: model.chat().send("hello").read(),
        lambda model: model.decoder.prefill(model.new_sequence(), IDS),
        lambda model: model.decoder.forward([(model.new_sequence(), IDS)], logits="all"),
        lambda model: asyncio.run(asyncio.to_thread(model.forward, IDS)),
        lambda model: model.close(),
        lambda model: model.__exit__(None, None, None),
    ],
    ids=["forward", "generate", "chat", "prefill", "decoder", "asyncio", "close", "with"],
)
def test_whoever_comes_second_is_refused_and_the_first_is_right(model, entry):
    expected = model.forward(IDS)
    with held(model, lambda: model.forward(IDS)) as outcome:
        with pytest.raises(BusyError, match="another thread computes with this model|close: another thread"):
            entry(model)
    assert same(outcome[0], expected)
    assert same(model.forward(IDS), expected)


@pytest.mark.parametrize("what", ["forward", "generate", "chat"])
def test_threads_that_race_get_the_right_answer_or_an_error(model, what):
    def work():
        if what == "forward":
            return model.forward(IDS).tobytes()
        if what == "generate":
            return ask(model)
        with model.chat(max_tokens=4, ignore_eos=True) as chat:
            return chat.send("hello").read()

    expected, seen = work(), []

    def loop():
        for _ in range(20):
            try:
                seen.append("right" if work() == expected else "wrong")
            except PyllamaError:
                seen.append("refused")
            except Exception as error:
                seen.append(repr(error))

    threads = [threading.Thread(target=loop) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(seen) <= {"right", "refused"} and "right" in seen and len(seen) == 60
    assert work() == expected
    assert model.decoder.cache.pages.used == 0


def test_threads_may_take_turns(model):
    expected, got = model.forward(IDS), []
    for _ in range(3):
        thread = threading.Thread(target=lambda: got.append((model.forward(IDS), ask(model))))
        thread.start()
        thread.join()
    assert len(got) == 3 and all(same(logits, expected) and text == got[0][1] for logits, text in got)


def test_one_generation_goes_from_thread_to_thread(model):
    expected = ask(model)
    generation = model.generate(IDS, max_tokens=4, ignore_eos=True)
    for _ in range(4):
        thread = threading.Thread(target=lambda: next(generation))
        thread.start()
        thread.join()
    assert generation.text == expected


def test_two_models_in_two_threads_do_not_meet(chat_folder, model):
    expected, got = model.forward(IDS), []
    with pyllama.load(chat_folder, threads=2, context_length=256) as other:
        threads = [threading.Thread(target=lambda m=m: got.extend(m.forward(IDS) for _ in range(10)))
                   for m in (model, other)]  # fmt: skip
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(got) == 20 and all(same(logits, expected) for logits in got)


def test_an_iterator_shared_by_two_threads_refuses_the_second_and_goes_on(model):
    expected = ask(model)
    generation = model.generate(IDS, max_tokens=4, ignore_eos=True)
    with held(model, lambda: next(generation)) as outcome:
        with pytest.raises(BusyError, match="generation: its next step is being computed already"):
            next(generation)
    assert outcome[0].token_id == generation.token_ids[0]
    assert generation.read() == expected


def test_a_generation_closed_from_elsewhere_ends_with_the_step_under_way(model):
    generation = model.generate(IDS, max_tokens=4, ignore_eos=True)
    with held(model, lambda: next(generation)) as outcome:
        generation.close()
        assert model.decoder.cache.pages.used > 0  # the pass still writes into them
    assert outcome[0].token_id == generation.token_ids[0]
    assert list(generation) == [] and model.decoder.cache.pages.used == 0


def test_a_conversation_is_not_changed_under_an_answer(model):
    with model.chat(max_tokens=4, ignore_eos=True) as chat:
        expected = chat.send("hello").read()
    with model.chat(max_tokens=4, ignore_eos=True) as chat:
        generation = chat.send("hello")
        with held(model, lambda: next(generation)):
            for change in (lambda: chat.send("other"), chat.reset, chat.close):
                with pytest.raises(BusyError, match="chat: the last answer is still being computed"):
                    change()
        chat.reset()
        assert chat.send("hello").read() == expected


def test_a_sequence_in_a_pass_is_not_cut(model):
    with model.new_sequence() as sequence:
        expected = model.decoder.prefill(sequence, IDS)
        sequence.truncate(0)
        with held(model, lambda: model.decoder.prefill(sequence, IDS)) as outcome:
            for cut in (sequence.close, lambda: sequence.truncate(0), lambda: sequence.adopt([], 0)):
                with pytest.raises(BusyError, match="a pass computes with this sequence"):
                    cut()
        assert same(outcome[0], expected) and sequence.length == len(IDS)


def test_another_sequence_may_be_closed_meanwhile(model):
    other = model.new_sequence()
    model.decoder.prefill(other, IDS)
    with held(model, lambda: model.forward(IDS)):
        other.close()
    assert model.decoder.cache.pages.used == 0


def test_a_sequence_of_another_model_is_refused(chat_folder, model):
    with pyllama.load(chat_folder, kv_dtype="f32", context_length=256) as other, other.new_sequence() as sequence:
        with pytest.raises(RequestError, match="a sequence of another model"):
            model.decoder.forward([(sequence, IDS)])
        with pytest.raises(RequestError, match="a sequence of another model"):
            model.decoder.forward([(model.decoder.cache.new_sequence(), IDS)])
        assert sequence.length == 0


def test_an_engine_and_a_generation_do_not_mix(model):
    expected = ask(model)
    engine = Engine(model)
    steps = []
    engine.submit(IDS, SamplingParams.from_options(max_tokens=4, ignore_eos=True), steps.append)
    with held(model, lambda: ask(model)) as outcome:
        engine.step()  # refused, and so is the request in it
    assert isinstance(steps[0], BusyError) and outcome == [expected]
    steps.clear()
    engine.submit(IDS, SamplingParams.from_options(max_tokens=4, ignore_eos=True), steps.append)
    while engine.step():
        pass
    assert "".join(step.text for step in steps) == expected


# --- the same thread again ---


def test_a_callback_cannot_begin_a_pass_within_a_pass(model):
    expected, errors = model.forward(IDS), []

    def again(layer):
        for entry in (lambda: model.forward(IDS), lambda: ask(model), model.close):
            with pytest.raises(BusyError, match="in the midst of a pass, by a callback or a signal handler") as caught:
                entry()
            errors.append(caught.value)

    model.decoder.on_layer = again
    assert same(model.forward(IDS), expected)
    assert len(errors) == 3 * model.config.num_hidden_layers


def test_a_signal_handler_cannot_either_but_may_close_a_generation(model):
    expected, errors = ask(model), []
    generation = model.generate(IDS, max_tokens=4, ignore_eos=True)

    def handler(number, frame):
        for entry in (lambda: model.forward(IDS), lambda: next(generation)):
            try:
                entry()
            except BusyError as error:
                errors.append(error)
        generation.close()

    before = signal.signal(signal.SIGUSR1, handler)
    model.decoder.on_layer = lambda layer: signal.raise_signal(signal.SIGUSR1)
    try:
        step = next(generation)
    finally:
        signal.signal(signal.SIGUSR1, before)
        model.decoder.on_layer = None
    assert len(errors) == 2 * model.config.num_hidden_layers
    assert expected.startswith(step.text) and list(generation) == []
    assert ask(model) == expected


def test_an_interrupted_pass_leaves_the_model_free(model):
    expected = model.forward(IDS)

    def interrupt(layer):
        raise KeyboardInterrupt

    for entry in (lambda: model.forward(IDS), lambda: ask(model), lambda: model.chat().send("a").read()):
        model.decoder.on_layer = interrupt
        with pytest.raises(KeyboardInterrupt):
            entry()
        model.decoder.on_layer = None
        assert same(model.forward(IDS), expected)


def test_a_closed_model_says_so(chat_folder):
    model = pyllama.load(chat_folder, context_length=256)
    generation, sequence = model.generate(IDS), model.new_sequence()
    next(generation)
    model.close()
    model.close()
    passes = lambda: next(generation), lambda: model.decoder.forward([(sequence, IDS)]), lambda: model.forward(IDS)
    for entry in passes:
        with pytest.raises(PyllamaError, match="model: closed, load it again"):
            entry()


# --- forks ---

FORKING = """
import os, sys, threading, time
import numpy as np
import pyllama
from pyllama.errors import PyllamaError

folder, threads, memory, case = sys.argv[1], int(sys.argv[2]), sys.argv[3] or None, sys.argv[4]
IDS = [7 * i % 200 for i in range(40)]

def load():
    return pyllama.load(folder, threads=threads, memory=memory, context_length=256)

model = load()
def work(model=model):
    return model.forward(IDS)
def text(model=model):
    return model.generate(IDS, max_tokens=4, ignore_eos=True).read()

def right(result):
    return np.array_equal(result.view(np.uint32), want.view(np.uint32))

def outcome(work):
    try: return "right" if right(work()) else "wrong"
    except PyllamaError as error: return f"refused: {error}"
    except BaseException as error: return f"{type(error).__name__}: {error}"

def in_child(work):
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(write, outcome(work).encode()[:400]); os._exit(0)
    os.close(write)
    end = time.monotonic() + 40
    while time.monotonic() < end:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return os.read(read, 400).decode() or "died"
        time.sleep(0.02)
    os.kill(pid, 9); os.waitpid(pid, 0)
    return "hangs"

if case != "before":
    want = work()
    work()  # the second pass of a streamed model has its readers ahead
if case == "after":
    print(in_child(work)); print(in_child(lambda: (text(), work())[1]))
elif case == "before":
    got = in_child(lambda: (globals().update(want=work()), work())[1])
    print(got); want = work()
elif case == "loads":
    print(in_child(lambda: work(load())))
elif case == "thread":
    def in_thread():
        got = []
        t = threading.Thread(target=lambda: got.append(work())); t.start(); t.join(); return got[0]
    print(in_child(in_thread))
elif case == "grandchild":
    print(in_child(lambda: want if in_child(work) == "right" and right(work()) else want + 1))
elif case == "busy":  # forks while another thread computes
    stop = threading.Event()
    results = []
    def loop():
        while not stop.is_set(): results.append(right(work()))
    t = threading.Thread(target=loop); t.start()
    for _ in range(8): print(in_child(work))
    stop.set(); t.join()
    assert all(results), "the parent's pass was harmed"
elif case == "generation":
    whole = text()
    generation = model.generate(IDS, max_tokens=4, ignore_eos=True)
    next(generation)
    print(in_child(lambda: want if generation.read() == whole else want + 1))
    assert generation.read() == whole
elif case == "callback":  # the child goes on in the midst of its own pass
    got = []
    def fork(layer):
        if layer == 1 and not got:
            got.append(os.fork())
    model.decoder.on_layer = fork
    state = outcome(work)
    model.decoder.on_layer = None
    if not got[0]:
        second = outcome(work)
        ok = (state == "right" or state.startswith("refused: weights: the process was forked")) and second == "right"
        os._exit(0 if ok else 3)
    print("right" if state == "right" and os.waitpid(got[0], 0)[1] == 0 else "wrong")
elif case == "pool":
    import multiprocessing
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for got in [pool.apply_async(text) for _ in range(4)]:
            print("right" if got.get(40) == text() else "wrong")
elif case == "subprocess":
    import subprocess
    for options in ({}, {"preexec_fn": os.getpid}, {"start_new_session": True}):
        assert subprocess.run(["true"], **options).returncode == 0
        print("right" if right(work()) else "wrong")
elif case == "closes":
    def close_and_load():
        model.close()
        return work(load())
    print(in_child(close_and_load))
print("parent", outcome(work))
"""

CASES = ["after", "before", "loads", "thread", "grandchild", "busy", "generation", "callback", "pool", "subprocess",
         "closes"]  # fmt: skip


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory):
    """Large enough that kernels are shared by threads and that its weights do not fit a small budget."""
    return write_model(tmp_path_factory.mktemp("models") / "wide", hidden_size=256, intermediate_size=512,
                       num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=64,
                       max_position_embeddings=256)  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("threads, streamed", [(2, False), (2, True), (1, True)])
def test_a_forked_child_is_right_or_refused_and_the_parent_unharmed(wide_folder, least, case, threads, streamed):
    command = [sys.executable, "-W", "ignore", "-c", FORKING, wide_folder, threads, least if streamed else "", case]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    *children, parent = done.stdout.splitlines()
    assert parent == "parent right"
    assert children and all(child == "right" or child.startswith("refused: ") for child in children), children
    if case != "callback":
        assert set(children) == {"right"}


@pytest.fixture(scope="module")
def least(wide_folder):
    """A budget in which the weights do not stay."""
    code = (
        "import pyllama, sys; m = pyllama.load(sys.argv[1], context_length=256); p = m.plan; m.forward([1] * 40);"
        "print(p.process + p.cache + p.activations + p.ring + p.weights // 4)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(wide_folder)], capture_output=True, text=True, check=True)
    return str(int(done.stdout))


def test_nothing_is_read_while_a_process_forks_not_even_by_a_ring_made_meanwhile(wide_folder, monkeypatch):
    from pyllama.streaming.direct import DirectFile

    read, under_way, seen = DirectFile.read, [], []

    def slow(self, span, memory):
        under_way.append(1)
        time.sleep(0.005)
        try:
            return read(self, span, memory)
        finally:
            under_way.pop()

    monkeypatch.setattr(DirectFile, "read", slow)
    with pyllama.load(wide_folder, context_length=256) as model:
        plan = model.plan
    memory = plan.process + plan.cache + plan.activations + plan.ring + plan.weights // 4 + (8 << 20)
    with pyllama.load(wide_folder, memory=memory, context_length=256) as model:
        done = threading.Event()

        def fork():
            while not done.is_set():
                forked._before()
                seen.append(len(under_way))
                time.sleep(0.01)
                seen.append(len(under_way))
                forked._in_parent()
                time.sleep(0.02)  # or the readers never find the moment between two

        thread = threading.Thread(target=fork)
        thread.start()
        try:
            model.forward(IDS)
        finally:
            done.set()
            thread.join()
    assert len(seen) > 2 and set(seen) == {0}
