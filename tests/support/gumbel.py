"""The noise of a draw as MODEL.md defines it ("Numerics", Sampling), in NumPy: what kernels.draw gives to the bit."""

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1
LN2_HIGH, LN2_LOW = float.fromhex("0x1.62e42feep-1"), float.fromhex("0x1.a39ef35793c76p-33")


def splitmix(state, n):
    """Output number n (an array of uint64, or an integer) of SplitMix64 started at `state`."""
    z = np.uint64(state & MASK) + (np.atleast_1d(np.asarray(n, np.uint64)) + np.uint64(1)) * np.uint64(GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def key(seed, index):
    return int(splitmix(int(splitmix(seed, 0)[0]), index)[0])


def uniform(hashes):
    return np.maximum(hashes >> np.uint64(11), np.uint64(1)).astype(np.float64) * 2.0**-53


def log(x):
    """ln of positive normal float64: no operation here but is rounded once, in this order."""
    m, e = np.frexp(np.asarray(x, np.float64))
    low = m <= np.float64(2**0.5) / 2  # m in [1/2, 1)
    m, e = np.where(low, 2 * m, m), np.where(low, e - 1, e).astype(np.float64)
    f = m - 1
    s = f / (2 + f)
    z = s * s
    p = np.full_like(f, 2 / 23)
    for divisor in range(21, 1, -2):
        p = p * z + 2 / divisor
    return e * LN2_HIGH - ((s * (f - z * p) - e * LN2_LOW) - f)


def noise(seed, index, ids):
    return -log(-log(uniform(splitmix(key(seed, index), ids))))


def ranked(ids, logits, seed, index):
    """(ids, scores) of all candidates, the largest score first, equals by lower id."""
    scores = logits.astype(np.float64) + noise(seed, index, ids)
    order = np.lexsort((ids, -scores))
    return ids[order], scores[order]
