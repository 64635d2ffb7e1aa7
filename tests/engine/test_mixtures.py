"""A mixture whose experts do not fit its pool, behind the engine: the bits are those of each text alone in a roomy one,
whoever shares a pass, whatever is known of a text, with and without a drafter."""

import pytest
import tiny

import pyllama
from pyllama.engine import Engine
from pyllama.generation import Step
from pyllama.generation.sampler import SamplingParams
from pyllama.streaming.experts import LEAST_SLOTS

CONTEXT = 256


@pytest.fixture(scope="module", params=tiny.MIXTURES)
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixtures") / request.param
    config = tiny.tiny_config(model_type=request.param, num_hidden_layers=3)
    return tiny.write_huggingface(folder, config, tiny.random_tensors(config, seed=4))


def opened(folder, slots=None):
    """slots: of the pool of experts; None: as many as there are."""
    model = pyllama.load(folder, context_length=CONTEXT, contexts=8)
    if slots is not None:
        model.decoder.weights._experts.slots = slots
    return model


@pytest.fixture
def model(folder):
    with opened(folder, LEAST_SLOTS) as model:
        yield model


@pytest.fixture(scope="module")
def alone(folder):
    with opened(folder) as model:

        def answer(ids, **options):
            generation = model.generate(ids, ignore_eos=True, fingerprint=True, **options)
            generation.read()
            return generation.token_ids, generation.fingerprint.hexdigest()

        yield answer


def knows(request, tokens, model):
    """Whether so many tokens were known; of a model with a state, of which snapshots are, test_states.py asks that."""
    return model.decoder.states is not None or request.cached_tokens >= tokens


def prompt(number, length):
    return [(7 * number * number + 3 * number * i + i * i) % 101 for i in range(length)]


def submit(engine, ids, **sampling):
    steps = []
    params = SamplingParams(ignore_eos=True, **sampling)
    return engine.submit(ids, params, lambda event: steps.append(event), fingerprint=True), steps


def result(request, steps):
    assert all(isinstance(step, Step) for step in steps)
    return request.answer.token_ids, request.answer.fingerprint.hexdigest()


def run(engine):
    while engine.step():
        pass


def test_company_changes_no_bit(model, alone):
    cases = [
        dict(ids=prompt(i, length), max_tokens=tokens, temperature=temperature, seed=i)
        for i, (length, tokens, temperature) in enumerate([(3, 12, 0.0), (70, 5, 1.0), (33, 9, 0.7), (1, 1, 0.0)])
    ]
    engine = Engine(model, max_running=3, shared_prefill=16)
    requests = []
    for case in cases:
        requests.append(submit(engine, **case))
        engine.step()
    run(engine)
    assert [result(*request) for request in requests] == [alone(**case) for case in cases]
    assert model.decoder.weights.expert_counters.nbytes > 0


def test_a_beginning_that_is_known_gives_the_same_bits(model, alone):
    known = prompt(1, 100)
    engine = Engine(model)
    submit(engine, known, max_tokens=3)
    run(engine)
    for cut in (1, 33, 64, 99):
        ids = known[:cut] + prompt(50 + cut, 20)
        request = submit(engine, ids, max_tokens=3)
        run(engine)
        assert knows(request[0], cut, model)
        assert result(*request) == alone(ids, max_tokens=3)


def test_what_is_known_survives_a_restart(folder, alone, tmp_path):
    ids = prompt(2, 90)
    for cached in (0, 89):
        with opened(folder, LEAST_SLOTS) as model:
            engine = Engine(model, session_dir=tmp_path / "sessions")
            request = submit(engine, ids, max_tokens=4)
            run(engine)
            assert knows(request[0], cached, model)
            assert result(*request) == alone(ids, max_tokens=4)
            engine.stop()


def test_a_prompt_that_needs_all_experts_and_one_that_needs_few(model, alone):
    engine = Engine(model)
    many, few = submit(engine, prompt(3, 200), max_tokens=2), submit(engine, [5], max_tokens=2)
    run(engine)
    assert result(*many) == alone(prompt(3, 200), max_tokens=2)
    assert result(*few) == alone([5], max_tokens=2)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_drafter_changes_no_bit(folder, alone, temperature):
    ids = prompt(4, 12) * 3  # look-up has something to find
    with pyllama.load(folder, context_length=CONTEXT, draft="lookup") as model:
        model.decoder.weights._experts.slots = LEAST_SLOTS
        generation = model.generate(
            ids, ignore_eos=True, fingerprint=True, max_tokens=30, temperature=temperature, seed=3
        )
        generation.read()
        drafted = generation.token_ids, generation.fingerprint.hexdigest()
    assert drafted == alone(ids, max_tokens=30, temperature=temperature, seed=3)
