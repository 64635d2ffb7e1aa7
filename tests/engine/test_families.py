"""What holds of one family holds of all: the same bits under the smallest budget, in company, after a known beginning,
after a restart, of forks, and with a drafter, good or bad.
"""

import drafters
import numpy as np
import pytest
import tiny

import pyllama
from pyllama.checkpoint import open_checkpoint
from pyllama.checkpoint.digest import model_digest
from pyllama.decoder import Decoder
from pyllama.decoder.page_pool import POSITIONS
from pyllama.engine import Engine
from pyllama.generation import Step
from pyllama.generation.sampler import SamplingParams
from pyllama.packing import pack
from pyllama.streaming import StreamedWeights

VOCAB = 101
CONTEXT = 160
LENGTHS = (3, 33, 64, 70)


def ids(number, length):
    return [(7 * number * number + 3 * number * i + i * i) % VOCAB for i in range(length)]


MIXTURE = "gemma4_mixture"  # of a family that has models without experts too


@pytest.fixture(scope="module", params=[*tiny.FAMILIES, MIXTURE])
def folder(request, tmp_path_factory):
    kind = {"model_type": request.param}
    config = tiny.tiny_config(**(kind if request.param != MIXTURE else tiny.GEMMA4_MIXTURE))
    path = tmp_path_factory.mktemp(request.param)
    return tiny.write_huggingface(path, config, tiny.random_tensors(config, seed=4))


@pytest.fixture(scope="module")
def model(folder):
    with pyllama.load(folder, context_length=CONTEXT, contexts=6) as model:
        yield model


def answer_of(generation):
    generation.read()
    return generation.token_ids, generation.fingerprint.hexdigest()


def solo(model, prompt_ids, **options):
    return answer_of(model.generate(prompt_ids, ignore_eos=True, fingerprint=True, **options))


def run(engine, cases):
    """(token ids, fingerprint, prompt tokens that were known) of each request, all in company."""
    requests = []
    for prompt_ids, options in cases:
        heard = []
        params = SamplingParams(ignore_eos=True, **options)
        requests.append((engine.submit(prompt_ids, params, heard.append, fingerprint=True), heard))
        engine.step()
    while engine.step():
        pass
    for _, heard in requests:
        assert isinstance(heard[-1], Step), heard[-1]
    return [(r.answer.token_ids, r.answer.fingerprint.hexdigest(), r.cached_tokens) for r, _ in requests]


CASES = [(ids(i, length), {"max_tokens": 12, "temperature": 0.8 * (i % 2), "seed": i})
         for i, length in enumerate(LENGTHS)]  # fmt: skip


@pytest.fixture(scope="module")
def expected(model):
    return [solo(model, prompt_ids, **options) for prompt_ids, options in CASES]


def test_the_smallest_ring_gives_the_same_bits(folder, model, tmp_path):
    """Nothing stays, the smallest slots there can be, passes of 7 tokens; packed and not."""
    with model.decoder.new_sequence() as sequence:
        whole = model.decoder.forward([(sequence, ids(1, 70))], "all")
    for path in (folder, pack(folder, tmp_path / "packed")):
        with open_checkpoint(path) as checkpoint:
            weights = StreamedWeights(checkpoint, slots=3, room=1, pinned_nbytes=0, expert_slots=3, expert_room=1)
            config = checkpoint.config.for_context(CONTEXT)
            decoder = Decoder(config, weights, context_length=CONTEXT, max_pass_tokens=7)
            with decoder.new_sequence() as sequence:
                last = decoder.prefill(sequence, ids(1, 70)[:69])
                assert np.array_equal(last, whole[68])
                assert np.array_equal(decoder.forward([(sequence, ids(1, 70)[69:])])[0], whole[69])
            assert weights.nbytes_pinned == 0
            weights.close()


def test_company_and_known_beginnings_change_no_bit(model, expected):
    engine = Engine(model, max_running=3, shared_prefill=16)
    assert [found[:2] for found in run(engine, CASES)] == expected
    again = run(engine, CASES)
    assert [found[:2] for found in again] == expected
    carries = model.decoder.states is not None  # a state is kept of a text's last whole page
    whole = [(length - 1) // POSITIONS * POSITIONS for length in LENGTHS]
    assert [known for *_, known in again] == (whole if carries else [length - 1 for length in LENGTHS])
    longer = [([*prompt_ids, 5, 6], options) for prompt_ids, options in CASES]
    found = run(engine, longer)
    assert [one[:2] for one in found] == [solo(model, prompt_ids, **options) for prompt_ids, options in longer]
    assert all(known >= least for (*_, known), least in zip(found, whole if carries else LENGTHS, strict=True))


def test_a_restart_goes_on_from_kept_pages(folder, expected, tmp_path):
    tmp_path.chmod(0o700)
    for known in (0, 64):  # of the longest; whole pages are kept
        with pyllama.load(folder, context_length=CONTEXT) as model:
            engine = Engine(model, session_dir=str(tmp_path))
            found = run(engine, CASES[3:])
            engine.stop()
        assert found[0][:2] == expected[3]
        assert found[0][2] >= known


def test_forks_are_texts_of_their_own(model):
    decoder = model.decoder
    for length in LENGTHS:
        with decoder.new_sequence() as trunk:
            decoder.forward([(trunk, ids(2, length))])
            with trunk.fork() as a, trunk.fork() as b:
                a.provisional = 2
                out, rows = decoder.extend([(trunk, [5]), (a, [5, 6, 7]), (b, [5, 8])], [1, 3, 2])
                for own, more in zip(rows, ([5], [5, 6, 7], [5, 8]), strict=True):
                    with decoder.new_sequence() as alone:
                        plain = decoder.forward([(alone, [*ids(2, length), *more])], "all")[-len(more) :]
                    assert np.array_equal(out[own], plain)
                a.truncate(length + 1)
                with decoder.new_sequence() as alone:
                    plain = decoder.forward([(alone, [*ids(2, length), 5, 9])])
                assert np.array_equal(decoder.forward([(a, [9])]), plain)


def test_drafters_good_and_bad_change_nothing(model, expected):
    texts = {tuple(prompt_ids): tokens for (prompt_ids, _), (tokens, _) in zip(CASES, expected, strict=True)}
    for drafting in (drafters.seer(texts, 5), drafters.half_seer(texts, 3, VOCAB, nodes=20), drafters.fool(2)):
        model.drafting = drafting
        try:
            assert [solo(model, prompt_ids, **options) for prompt_ids, options in CASES] == expected
        finally:
            model.drafting = None


# --- of LongRoPE ---


@pytest.fixture(scope="module")
def phi3(tmp_path_factory):
    config = tiny.tiny_config(model_type="phi3")
    return tiny.write_huggingface(tmp_path_factory.mktemp("phi3"), config, tiny.random_tensors(config))


def test_pages_of_the_two_sets_of_factors_have_two_names_and_their_logits_two_fingerprints(phi3):
    """Keys that were rotated by the short factors are none of a model with the long ones."""
    names, found = {}, {}
    for context in (32, 64, 65, 100, None):
        with pyllama.load(phi3, context_length=context) as model:
            names[context] = model_digest(model.checkpoint, "f16")
            assert model.decoder.config.rope_scaling.long == (context in (65, 100))
            found[context] = solo(model, [1, 2, 3], max_tokens=4)[1]
    assert names[32] == names[64] == names[None] != names[65] == names[100]
    assert found[32] == found[64] == found[None] != found[65] == found[100]
