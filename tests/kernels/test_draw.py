"""The draw: noise and choice to the bit as MODEL.md has them, a logarithm as good as it says, noise that is noise."""

import math
from decimal import Decimal, localcontext

import gumbel
import numpy as np
import pytest

from pyllama import _kernels as kernels
from pyllama.errors import PyllamaError

SEEDS = (0, 1, 2**64 - 1)


def draw(ids, logits, seed, index, count=1):
    best, scores = np.full(count, -1, np.int64), np.full(count, np.nan)
    kernels.draw(ids, logits, seed, index, best, scores)
    return best, scores


def noise(ids, seed=5, index=0):
    """What the kernel adds to a logit of 0."""
    return np.array([draw(np.array([i], np.int64), np.zeros(1, np.float32), seed, index)[1][0] for i in ids])


def same(got, expected):
    return (got[0] == expected[0]).all() and (got[1].view(np.uint64) == expected[1].view(np.uint64)).all()


def token_of(hashed, seed, index):
    """The id whose hash this is: SplitMix64 undone."""

    def unshift(z, bits):
        x = z
        for _ in range(64 // bits):
            x = z ^ (x >> bits)
        return x

    z = unshift(hashed, 31) * pow(0x94D049BB133111EB, -1, 2**64) & gumbel.MASK
    z = unshift(z, 27) * pow(0xBF58476D1CE4E5B9, -1, 2**64) & gumbel.MASK
    state = unshift(z, 30)
    token = ((state - gumbel.key(seed, index)) * pow(gumbel.GOLDEN, -1, 2**64) - 1) & gumbel.MASK
    assert int(gumbel.splitmix(gumbel.key(seed, index), token)[0]) == hashed
    return np.array([token], np.uint64).view(np.int64)[0]


# --- the definition ---


def test_the_hash_is_splitmix64():
    # The first outputs for seed 1234567 as published with the reference implementation.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert gumbel.splitmix(1234567, np.arange(4)).tolist() == expected


@pytest.mark.parametrize("n", [1, 2, 255, 256, 257, 3000])
@pytest.mark.parametrize("scale", [0.0, 0.01, 3.0, 1e30])
def test_draws_are_the_definition(n, scale):
    rng = np.random.default_rng(n)
    for seed in SEEDS:
        ids = rng.permutation(10 * n)[:n].astype(np.int64)
        logits = (rng.standard_normal(n) * scale).astype(np.float32)
        for order in (np.argsort(ids), np.argsort(logits), np.argsort(-logits), np.arange(n)):
            for index, count in ((0, 1), (1, min(n, 7)), (2**40, n)):
                expected = [part[:count] for part in gumbel.ranked(ids, logits, seed, index)]
                assert same(draw(ids[order], logits[order], seed, index, count), expected)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 10.0])
def test_draws_among_150_000(scale):
    ids = np.arange(150_000, dtype=np.int64)
    logits = np.minimum(np.random.default_rng(1).standard_normal(len(ids)) * scale, 0).astype(np.float32)
    for index in range(5):
        expected = gumbel.ranked(ids, logits, 3, index)
        for count in (1, 50):
            assert same(draw(ids, logits, 3, index, count), [part[:count] for part in expected])


def test_the_largest_and_smallest_hashes():
    """u is never 0 or 1, and its logarithm right around the root of 1/2, where the exponent changes."""
    middle = math.isqrt(2**105)
    uniforms = [0, 1, 2, 2**52, *range(middle - 2, middle + 3), 2**53 - 2, 2**53 - 1]
    for seed in SEEDS:
        for k in uniforms:
            for low in (0, 2**11 - 1):
                token = token_of(k << 11 | low, seed, 9)
                expected = gumbel.noise(seed, 9, np.array([token]).view(np.uint64))
                got = noise([token], seed, 9)
                assert same((got, got), (expected, expected))
                assert -3.61 < got[0] < 36.74
    tokens = [token_of(hashed, 0, 0) for hashed in (0, 2**64 - 1)]
    assert noise(tokens, 0, 0) == pytest.approx([-math.log(53 * math.log(2)), 53 * math.log(2)], abs=1e-12)


def test_the_largest_noise_beats_any_order():
    """A candidate that wins by its noise alone is found wherever it stands."""
    winner = token_of(2**64 - 1, 4, 4)
    for place in (0, 255, 256, 999):
        ids, logits = np.arange(1000, dtype=np.int64), np.zeros(1000, np.float32)
        ids[place], logits[place] = winner, -20.0
        assert draw(ids, logits, 4, 4)[0][0] == winner


def test_ties_go_to_the_lower_id():
    """Beside 1e30 no noise is left."""
    ids = np.array([9, 3, 700, 5, 4], np.int64)
    assert draw(ids, np.full(5, 1e30, np.float32), 1, 1, 5)[0].tolist() == [3, 4, 5, 9, 700]


def test_arrays_that_may_not_be_written():
    ids, logits = np.arange(5, dtype=np.int64), np.zeros(5, np.float32)
    expected = draw(ids, logits, 1, 1)
    ids.flags.writeable = logits.flags.writeable = False
    assert same(draw(ids, logits, 1, 1), expected)


@pytest.mark.parametrize(
    "n, logits, best, scores", [(0, 0, 0, 0), (3, 2, 1, 1), (3, 3, 4, 4), (3, 3, 0, 0), (3, 3, 1, 2)]
)
def test_shapes_that_do_not_fit(n, logits, best, scores):
    with pytest.raises(PyllamaError, match=f"draw: {n} ids, {logits} logits, best {best}, scores {scores}"):
        kernels.draw(np.arange(n), np.zeros(logits, np.float32), 0, 0, np.zeros(best, np.int64), np.zeros(scores))


# --- how good it is ---


def test_the_logarithm_is_right_within_an_ulp():
    rng = np.random.default_rng(0)
    near_1 = 1 - 2.0**-53 * rng.integers(1, 2**40, 2000)
    values = [rng.random(2000), near_1, np.linspace(0.69, 0.72, 2000), np.exp(rng.uniform(-37, 4, 2000)), 1 / near_1]
    values = np.concatenate([*values, [1.0, 2.0, 0.5, 2.0**-53, 2.0**0.5, 0.5**0.5]])
    with localcontext(prec=40):
        for x, got in zip(values, gumbel.log(values)):
            exact = Decimal(float(x)).ln()
            assert abs(Decimal(float(got)) - exact) < Decimal(math.ulp(got))


def test_the_noise_is_right_within_two_roundings():
    ids = np.arange(2000)
    uniforms = gumbel.uniform(gumbel.splitmix(gumbel.key(5, 0), ids))
    with localcontext(prec=40):
        for u, got in zip(uniforms, noise(ids)):
            exact = -(-Decimal(float(u)).ln()).ln()
            assert abs(Decimal(float(got)) - exact) < Decimal(2) ** -52 * (1 + abs(exact))


def test_the_noise_is_gumbel_whichever_of_seed_index_and_token_moves():
    """Moments, and no correlation between neighbours, over 2^18 numbers of a grid."""
    ids = np.arange(64)
    g = np.array([[gumbel.noise(seed, index, ids) for index in range(64)] for seed in range(64)])
    root = math.sqrt(g.size)
    deviation = math.pi / math.sqrt(6)
    assert abs(g.mean() - np.euler_gamma) < 4 * deviation / root
    z = (g - np.euler_gamma) / deviation
    assert abs((z**2).mean() - 1) < 4 * math.sqrt(4.4) / root  # the kurtosis is 5.4
    for axis in range(3):
        for step in (1, 2, 7, 32):
            assert abs((z * np.roll(z, step, axis)).mean()) < 4 / root
    assert abs((z * z.transpose(1, 0, 2)).mean() - 1 / 64) < 8 / root  # seed and index are not one number
    assert len(np.unique(g)) == g.size


def test_the_hash_fills_every_bit():
    hashes = gumbel.splitmix(gumbel.key(1, 1), np.arange(1 << 16))
    ones = np.array([((hashes >> np.uint64(bit)) & np.uint64(1)).sum() for bit in range(64)], np.int64)
    assert (abs(ones - (1 << 15)) < 4.5 * (1 << 7)).all()
