"""Sampling: every step against a plain statement of it, the draws against their definition, exact ties."""

import hashlib
import math

import gumbel
import numpy as np
import pytest

from pyllama import _kernels as kernels
from pyllama.errors import PyllamaError, RequestError
from pyllama.generation.sampler import Candidates, Sampler, SamplingParams, largest

VOCAB = 57


def noise(seed, size=VOCAB, scale=3.0):
    return (np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float32)


def left(logits, **options):
    """The candidates that the chain of these options leaves, in its order."""
    sampler = Sampler(SamplingParams(**{"temperature": 1.0, **options}), len(logits))
    state = Candidates(np.arange(len(logits)), logits)
    for step in sampler._chain:
        state = step(state)
    return state


def candidates(logits, **options):
    return left(logits, **options).ids.tolist()


def softmax(logits):
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def descending(values):
    """Indices by falling value, equals by rising index."""
    return sorted(range(len(values)), key=lambda i: (-float(values[i]), i))


def sample(logits, index=0, prompt=(), output=None, **options):
    output = [0] * index if output is None else output
    return Sampler(SamplingParams(**options), len(logits))(logits, prompt, output)


# --- the draws ---


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.1}, {"temperature": 90.0}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1}, {"top_k": 1}]
    + [{"temperature": 2.0, "top_k": 20, "top_p": 0.9, "min_p": 0.01}],
)
def test_the_largest_logit_and_noise_is_the_token(options):
    """Whatever the order in which the chain leaves candidates."""
    for seed in range(20):
        logits = noise(seed)
        kept = left(logits, **options)
        expected, scores = gumbel.ranked(kept.ids, kept.logits, seed, 3)
        sampler = Sampler(SamplingParams(**{"temperature": 1.0, "seed": seed, **options}), VOCAB)
        assert sampler(logits, (), [0, 1, 2]).token_id == expected[0]
        ids, found = sampler.best(logits, (), [0, 1, 2], count=8)
        assert ids.tolist() == expected[:8].tolist()
        assert found.tolist() == scores[:8].tolist()


def test_the_best_of_a_greedy_sampler_are_the_largest():
    logits = np.round(noise(1))  # with ties
    for count in (1, 2, VOCAB, 2 * VOCAB):
        ids, scores = Sampler(SamplingParams(), VOCAB).best(logits, (), (), count=count)
        assert ids.tolist() == descending(logits)[:count]
        assert scores.tolist() == logits[ids].tolist()


def test_the_best_are_among_those_allowed():
    logits, allowed = noise(2), np.array([4, 20, 21, 50])
    for temperature in (0.0, 1.0):
        sampler = Sampler(SamplingParams(temperature=temperature, seed=1, logit_bias={21: 100}), VOCAB)
        ids, _ = sampler.best(logits, (), (), allowed, count=10)
        assert sorted(ids.tolist()) == allowed.tolist() and ids[0] == 21


def test_a_drafter_with_the_same_noise_guesses_the_draw():
    """Its draw is the model's at least as often as (1 - d) / (1 + d), d the total variation of the two softmaxes
    (M. Daliri, C. Musco, A. Suresh, arXiv 2408.07978); with noise of its own both hit the same token by chance."""
    model = noise(1, 40, 2.0)
    drafter = model + noise(2, 40, 0.5)
    p, q = softmax(model), softmax(drafter)
    distance = abs(p - q).sum() / 2
    draws = 3000

    def agreement(seed):
        ours = Sampler(SamplingParams(temperature=1.0, seed=1), 40)
        theirs = Sampler(SamplingParams(temperature=1.0, seed=seed), 40)
        return sum(ours(model, (), range(i)) == theirs(drafter, (), range(i)) for i in range(draws)) / draws

    slack = 3 / (2 * math.sqrt(draws))
    assert (1 - distance) / (1 + distance) - slack < agreement(1) < 1 - distance + slack
    assert abs(agreement(2) - (p * q).sum()) < slack


def test_any_position_can_be_drawn_again():
    logits, sampler = noise(3), Sampler(SamplingParams(temperature=3.0, seed=1), VOCAB)
    once = [sampler(logits, (), range(i)).token_id for i in range(50)]
    assert [sampler(logits, (), range(i)).token_id for i in reversed(range(50))] == once[::-1]
    assert len(set(once)) > 10


def test_negative_seeds_are_seeds_too():
    logits = noise(0)

    def text(seed):
        return tuple(sample(logits, i, temperature=9.0, seed=seed).token_id for i in range(30))

    assert len({text(seed) for seed in (-1, 1, 2)}) == 3


@pytest.mark.parametrize("isa", kernels.supported_isas())
def test_draws_are_the_same_on_every_machine(isa):
    """A recorded text of 1000 tokens: a change of these ids is a change of every seeded text ever written."""
    logits = [noise_exact(i) for i in range(10)]
    sampler = Sampler(SamplingParams(temperature=0.7, top_k=40, top_p=0.95, min_p=0.01, seed=42), VOCAB)
    before = kernels.isa()
    kernels.set_isa(isa)
    try:
        ids = [sampler(logits[i % 10], (), range(i)).token_id for i in range(1000)]
    finally:
        kernels.set_isa(before)
    digest = hashlib.sha256(bytes(ids)).hexdigest()
    assert digest == RECORDED


def noise_exact(seed):
    """Integers over 8 from our own generator: exact floats, the same under every NumPy."""
    return ((gumbel.splitmix(seed, np.arange(VOCAB)) >> np.uint64(57)).astype(np.float32)) / 8


RECORDED = "97fd70112712c236c51becadea509ec57c5a7194afb79c562004c44bd6a1f421"


# --- greedy and ties ---


def test_greedy_takes_the_largest():
    for seed in range(20):
        logits = noise(seed)
        assert sample(logits).token_id == descending(logits)[0]


def test_greedy_ties_go_to_the_lower_id():
    logits = np.zeros(VOCAB, np.float32)
    assert sample(logits).token_id == 0
    logits[[7, 30, 56]] = 4
    assert sample(logits).token_id == 7


def test_top_k_ties_go_to_the_lower_ids():
    logits = np.zeros(VOCAB, np.float32)
    logits[50] = 1
    assert candidates(logits, top_k=4) == [50, 0, 1, 2]


@pytest.mark.parametrize("size", [1, 2, 31, 1000])
def test_largest_is_a_sort(size):
    for seed in range(5):
        values = np.round(noise(seed, size)).astype(np.float32)  # many ties, zeros of both signs
        for count in {1, 2, size // 2, size, size + 5} - {0}:
            assert largest(values, count).tolist() == descending(values)[:count]


def test_largest_knows_that_minus_zero_is_zero():
    assert largest(np.array([-0.0, 0.0, -0.0], np.float32), 2).tolist() == [0, 1]


def test_largest_of_extremes():
    values = np.array([0, -3.4e38, 3.4e38, 1e-45, -1e-45, 1e-30], np.float32)
    assert largest(values, 6).tolist() == descending(values)


# --- the steps ---


@pytest.mark.parametrize("top_k", [1, 2, 10, VOCAB, 1000])
def test_top_k(top_k):
    logits = noise(1)
    assert candidates(logits, top_k=top_k) == descending(logits)[:top_k]


@pytest.mark.parametrize("top_p", [1e-9, 0.1, 0.5, 0.9, 0.99, 0.999999])
def test_top_p_is_the_shortest_run_that_reaches_it(top_p):
    for seed in range(10):
        logits = noise(seed)
        probabilities, order = softmax(logits), descending(logits)
        mass, expected = 0.0, []
        for i in order:
            if mass >= top_p:
                break
            expected.append(i)
            mass += probabilities[i]
        assert candidates(logits, top_p=top_p) == expected


def test_top_p_over_equal_tokens():
    logits = np.zeros(10, np.float32)
    assert candidates(logits, top_p=0.5) == [0, 1, 2, 3, 4]
    assert candidates(logits, top_p=0.51) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("min_p", [0.001, 0.05, 0.5, 1.0])
def test_min_p(min_p):
    logits = noise(2)
    probabilities = softmax(logits)
    expected = [i for i in range(VOCAB) if probabilities[i] >= min_p * probabilities.max()]
    assert candidates(logits, min_p=min_p) == expected


def test_the_temperature_comes_before_top_p():
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    assert candidates(logits, top_p=0.75) == [0, 1]
    assert candidates(logits, top_p=0.75, temperature=0.25) == [0]  # 0.86 of the mass after sharpening
    assert candidates(logits, top_p=0.75, temperature=50.0) == [0, 1, 2]


def test_top_p_sees_what_top_k_left():
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    assert candidates(logits, top_p=0.55) == [0, 1]
    assert candidates(logits, top_p=0.55, top_k=2) == [0]  # 0.4 / 0.7


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-6])
def test_the_smallest_temperatures_are_greedy(temperature):
    logits = noise(3) * np.float32(1e30)
    assert sample(logits, temperature=temperature, seed=1).token_id == descending(logits)[0]


def test_logits_that_differ_by_more_than_float32_can_hold():
    logits = np.array([-3e38, 3e38, 0], np.float32)
    assert sample(logits, temperature=1.0, seed=1, logprobs=3).token_id == 1


def chi_square(counts, probabilities):
    expected = counts.sum() * probabilities
    return ((counts - expected) ** 2 / expected).sum()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 3.0},
        {"temperature": 100.0},
        {"top_k": 5},
        {"top_p": 0.8},
        {"min_p": 0.1},
    ]
    + [{"temperature": 2.0, "top_k": 20, "top_p": 0.9}, {"temperature": 2.0, "min_p": 0.05, "top_p": 0.95}],
)
@pytest.mark.parametrize("seed", [7, 8])
def test_draws_follow_the_probabilities(options, seed):
    """Chi-square over 4,000 draws: deterministic, since the seed is given."""
    logits = noise(4, 30, 1.5)
    options = {"temperature": 1.0, **options}
    kept = candidates(logits, **options)
    probabilities = softmax(logits[kept] / np.float32(options["temperature"]))
    sampler, draws = Sampler(SamplingParams(seed=seed, **options), 30), 4_000
    counts = np.zeros(30)
    for index in range(draws):
        counts[sampler(logits, (), range(index)).token_id] += 1
    assert counts.sum() == counts[kept].sum() == draws
    freedom = len(kept) - 1
    assert chi_square(counts[kept], probabilities) < freedom + 4 * math.sqrt(2 * freedom)


def test_draws_over_seeds_follow_the_probabilities_too():
    logits = noise(5, 12, 1.5)
    counts = np.zeros(12)
    for seed in range(4_000):
        counts[sample(logits, 2, temperature=1.0, seed=seed).token_id] += 1
    assert chi_square(counts, softmax(logits)) < 11 + 4 * math.sqrt(22)


def test_draws_from_150_000_tokens_follow_the_probabilities():
    """Of which some are far more probable than others: counted in 50 groups."""
    logits = noise(6, 150_000, 2.0)
    groups = np.argsort(np.random.default_rng(1).random(150_000)) % 50
    probabilities = np.bincount(groups, softmax(logits))
    sampler = Sampler(SamplingParams(temperature=1.0, seed=3), 150_000)
    ids = [sampler(logits, (), range(index)).token_id for index in range(1_500)]
    assert chi_square(np.bincount(groups[ids], minlength=50), probabilities) < 49 + 4 * math.sqrt(98)


def test_one_candidate_is_drawn_whatever_its_noise():
    for index in range(50):
        assert sample(np.array([-5.0], np.float32), index, temperature=1.0, seed=1).token_id == 0
        assert sample(noise(1), index, temperature=50.0, top_k=1, seed=1).token_id == descending(noise(1))[0]


# --- penalties ---


def test_repetition_penalty_over_prompt_and_answer_as_transformers_defines_it():
    logits = np.array([2.0, -2.0, 1.9, 1.0], np.float32)
    assert sample(logits, repetition_penalty=1.5).token_id == 0
    assert sample(logits, prompt=[0, 0], repetition_penalty=1.5).token_id == 2  # 2 / 1.5 once, however often
    assert sample(logits, output=[0], repetition_penalty=1.05).token_id == 0
    only_negative = np.array([-1.0, -1.2], np.float32)
    assert sample(only_negative, prompt=[0], repetition_penalty=1.5).token_id == 1  # multiplied: -1.5


def test_presence_and_frequency_penalties_over_the_answer_only():
    logits = np.array([2.0, 1.0, 0.5], np.float32)
    assert sample(logits, prompt=[0] * 9, presence_penalty=2.0, frequency_penalty=2.0).token_id == 0
    assert sample(logits, output=[0, 0, 0], presence_penalty=0.9).token_id == 0  # once: 1.1
    assert sample(logits, output=[0, 0, 0], frequency_penalty=0.9).token_id == 1  # three times: -0.7
    assert sample(logits, output=[0], frequency_penalty=0.9).token_id == 0
    assert sample(logits, output=[1, 2, 2], presence_penalty=-1.5).token_id == 1  # negative: encouraged


def test_penalties_leave_the_row_alone():
    logits = noise(5)
    before = logits.copy()
    options = {"repetition_penalty": 2.0, "presence_penalty": 1.0, "temperature": 1.0, "top_p": 0.5}
    sample(logits, prompt=[1, 2], output=[3], **options)
    assert np.array_equal(logits, before)


# --- log-probabilities ---


def test_logprobs_are_the_log_softmax_of_the_unmodified_logits():
    logits = noise(6)
    expected = np.log(softmax(logits))
    for options in ({}, {"temperature": 5.0, "seed": 3, "presence_penalty": 10.0, "top_k": 3}):
        result = sample(logits, output=[1, 2], logprobs=5, **options)
        assert abs(result.logprob - expected[result.token_id]) < 1e-6
        assert [i for i, _ in result.top] == descending(logits)[:5]
        assert max(abs(value - expected[i]) for i, value in result.top) < 1e-6


def test_no_logprobs_unless_asked_for():
    assert sample(noise(6)).logprob is None
    assert sample(noise(6)).top == ()


def test_more_logprobs_than_tokens():
    assert len(sample(noise(6, 5), logprobs=20).top) == 5


# --- what is refused ---


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite(bad, temperature):
    logits = noise(7)
    logits[13] = bad
    with pytest.raises(PyllamaError, match="token 13 has .*at position 3"):
        sample(logits, prompt=[1, 2], output=[3], temperature=temperature)


@pytest.mark.parametrize(
    "field, value",
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("presence_penalty", 1000),
        ("frequency_penalty", math.nan),
        ("seed", 2**64),
        ("seed", 1.0),
        ("max_tokens", 0),
        ("max_tokens", True),
        ("stop", [""]),
        ("stop", ""),
        ("stop", [1]),
        ("stop", 5),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", ["a"]),
        ("stop_token_ids", 3),
        ("logprobs", -1),
        ("ignore_eos", 1),
    ],
)
def test_parameters_out_of_range_are_named(field, value):
    with pytest.raises(RequestError, match=f"^{field}: .*expected"):
        SamplingParams(**{field: value})


def test_an_unknown_option_is_named():
    with pytest.raises(RequestError, match="^temprature: no such sampling option, did you mean temperature\\?"):
        SamplingParams.from_options(temprature=1.0)
    with pytest.raises(RequestError, match="^colour: no such sampling option, expected one of temp"):
        SamplingParams.from_options(colour=1.0)


@pytest.mark.parametrize(
    "given, ours",
    [("max_new_tokens", "max_tokens"), ("n_predict", "max_tokens"), ("max_completion_tokens", "max_tokens"),
     ("temp", "temperature"), ("topp", "top_p"), ("repeat_penalty", "repetition_penalty"),
     ("stop_sequences", "stop"), ("eos_token_id", "stop_token_ids"), ("random_seed", "seed")],
)  # fmt: skip
def test_the_words_of_others_are_known(given, ours):
    with pytest.raises(RequestError, match=rf"^{given}: no such sampling option, did you mean {ours}\?$"):
        SamplingParams.from_options(**{given: 1})


def test_options_that_are_none_keep_their_default():
    assert SamplingParams.from_options(temperature=None, seed=None, top_k=3) == SamplingParams(top_k=3)


def test_a_stop_string_may_stand_alone():
    assert SamplingParams(stop="a").stop == ("a",)


def test_numpy_numbers_are_numbers():
    params = SamplingParams(temperature=np.float32(0.5), top_k=np.int64(3), stop_token_ids=(np.int32(2),))
    assert params == SamplingParams(temperature=0.5, top_k=3, stop_token_ids=(2,))


def test_only_allowed_tokens_are_chosen():
    row = np.arange(50, dtype=np.float32)
    allowed = np.array([3, 7, 20])
    assert Sampler(SamplingParams(), 50)(row, [], [], allowed).token_id == 20
    sampler = Sampler(SamplingParams(temperature=20.0, seed=1, top_p=0.99), 50)
    assert {sampler(row, [], [0] * i, allowed).token_id for i in range(60)} == {3, 7, 20}


def test_logit_bias_bans_and_forces():
    row = np.arange(50, dtype=np.float32)
    before = row.copy()
    assert Sampler(SamplingParams(logit_bias={49: -100, 47: 2.0}), 50)(row, [], []).token_id == 47
    assert Sampler(SamplingParams(logit_bias={0: 100}), 50)(row, [], []).token_id == 0
    assert (row == before).all()
    for wrong in ({-1: 1.0}, {1: 101}, {1: float("nan")}, {1: "x"}, {"1": 1}):
        with pytest.raises(RequestError, match="logit_bias"):
            SamplingParams(logit_bias=wrong)
    with pytest.raises(RequestError, match="logit_bias: token id 50"):
        Sampler(SamplingParams(logit_bias={50: 1}), 50)


@pytest.mark.parametrize("penalty", [1e-320, 1e-40, 1e-3, 100.0])
def test_no_penalty_is_too_much(penalty):
    """Found by schemathesis: a penalty that is 0 in float32 made logits infinite."""
    row = np.array([3e38, -3e38, 0.0, 1.0], np.float32)
    for temperature in (0.0, 1.0):
        params = SamplingParams(repetition_penalty=penalty, temperature=temperature, seed=1, logprobs=1)
        with np.errstate(all="raise", under="ignore"):
            assert Sampler(params, 4)(row, [0, 1, 2, 3], []).token_id in range(4)
