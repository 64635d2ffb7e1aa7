"""Kernels of layers that carry a state: right on whole numbers, near float64, the same bits however they are run."""

import itertools

import numpy as np
import pytest
import reference
from ways import WAYS, as_before

from pyllama import _kernels as kernels
from pyllama.errors import PyllamaError


@pytest.fixture(params=WAYS, ids=lambda p: f"{p[0]}-{p[1]}")
def run(request):
    """Each instruction set of this machine, with one thread and with three."""
    with as_before():
        kernels.set_isa(request.param[0])
        kernels.set_num_threads(request.param[1])
        yield request.param


class Slots:
    """Slots of so many floats, and walks over them."""

    def __init__(self, count, floats):
        self.memory = [np.full(floats, np.nan, np.float32) for _ in range(count)]
        self.addresses = np.array([slot.ctypes.data for slot in self.memory], np.uint64)
        self.nbytes = 4 * floats

    def walk(self, *texts):
        """texts: (source, rows, [(step of the text, slot)])"""
        starts = np.cumsum([0, *(len(rows) for _, rows, _ in texts)]).astype(np.int32)
        stores = [
            (start + step, slot) for start, (_, _, made) in zip(starts, texts, strict=False) for step, slot in made
        ]
        return kernels.Walk(
            self.addresses,
            self.nbytes,
            np.array([source for source, _, _ in texts], np.int32),
            starts,
            np.array([row for _, rows, _ in texts for row in rows], np.int32),
            np.cumsum([0, *(len(made) for _, _, made in texts)]).astype(np.int32),
            np.array(stores, np.int32).reshape(-1, 2),
        )


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("channels, width", [(1, 2), (70, 3), (131, 4), (64, 16)])
def test_convolution(run, channels, width):
    for silu, biased, whole in itertools.product((False, True), (False, True), (False, True)):
        x, weight, bias = noise(9, channels + 5), noise(width, channels, seed=1), noise(channels, seed=2)
        if whole:
            x, weight, bias = (np.round(4 * of) for of in (x, weight, bias))
        slots, out = Slots(1, (width - 1) * (channels + 5) + 7), np.full((9, channels), np.nan, np.float32)
        walk = slots.walk((-1, range(9), []))
        kernels.conv(x, 3, weight, bias if biased else None, silu, walk, 7, out)
        expected = reference.causal_conv(x[:, 3 : 3 + channels], weight.T[:, None, :], bias if biased else None)
        if silu:
            expected = reference.silu(expected)
        elif whole:
            assert np.array_equal(out, expected)
        bound = 4 * np.sqrt(width + 4) * 2.0**-24 * (np.abs(expected).max() + 8)
        np.testing.assert_allclose(out, expected, rtol=0, atol=bound)


def delta_inputs(tokens, key_heads, heads, key_dim, dim, seed=0):
    q, k = noise(tokens, key_heads * key_dim, seed=seed), noise(tokens, key_heads * key_dim, seed=seed + 1)
    for of in (q, k):
        rows = of.reshape(-1, key_dim)
        rows /= np.sqrt((rows * rows).sum(-1, keepdims=True))
    v = noise(tokens, heads * dim, seed=seed + 2)
    decay = np.exp(-np.abs(noise(tokens, heads, seed=seed + 3)))
    return q, k, v, decay, 1 / (1 + np.exp(-noise(tokens, heads, seed=seed + 4)))


SHAPES = [(1, 1, 1, 1), (2, 6, 20, 36), (3, 3, 33, 32), (1, 4, 128, 128)]


@pytest.mark.parametrize("key_heads, heads, key_dim, dim", SHAPES)
@pytest.mark.parametrize("tiled", [False, True])
def test_delta_rule(run, key_heads, heads, key_dim, dim, tiled):
    tokens = 7
    q, k, v, decay, beta = delta_inputs(tokens, key_heads, heads, key_dim, dim)
    slots = Slots(1, kernels.delta_floats(heads, key_dim, dim) + 3)
    out = np.full((tokens, heads * dim), np.nan, np.float32)
    kernels.delta(q, k, v, decay, beta, key_heads, tiled, slots.walk((-1, range(tokens), [])), 3, out)
    of = [h % key_heads if tiled else h // (heads // key_heads) for h in range(heads)]
    q, k = (y.reshape(tokens, key_heads, key_dim)[:, of].astype(np.float64) for y in (q, k))
    expected = reference.delta_rule(q, k, v.reshape(tokens, heads, dim), decay, beta).reshape(tokens, -1)
    np.testing.assert_allclose(out, expected, rtol=0, atol=2e-6 * max(1.0, np.abs(expected).max()))


def test_every_way_gives_the_same_bits():
    found = []
    for isa, threads in WAYS:
        with as_before():
            kernels.set_isa(isa)
            kernels.set_num_threads(threads)
            mine = []
            x, weight = noise(40, 200), noise(4, 150, seed=5)
            slots = Slots(2, 3 * 200)
            out = np.zeros((40, 150), np.float32)
            kernels.conv(x, 20, weight, None, True, slots.walk((-1, range(40), [(11, 1)])), 0, out)
            mine += [out, slots.memory[1].reshape(3, 200)[:, 20:170]]
            for key_heads, heads, key_dim, dim in SHAPES:
                inputs = delta_inputs(40, key_heads, heads, key_dim, dim)
                slots, out = (
                    Slots(2, kernels.delta_floats(heads, key_dim, dim)),
                    np.zeros((40, heads * dim), np.float32),
                )
                kernels.delta(*inputs, key_heads, False, slots.walk((-1, range(40), [(20, 0), (39, 1)])), 0, out)
                mine += [out, *slots.memory]
            decay, beta = np.zeros((30, 11), np.float32), np.zeros((30, 11), np.float32)
            a, b = 30 * noise(30, 11), 30 * noise(30, 11, seed=1)
            kernels.delta_gates(a, b, -np.exp(noise(11, seed=2)), noise(11, seed=3), decay, beta)
            gated = np.zeros((30, 11), np.float32)
            kernels.sigmoid_gate(a, b, gated)
            found.append([*mine, decay, beta, gated])
    for other in found[1:]:
        assert all(np.array_equal(a.view(np.uint32), b.view(np.uint32)) for a, b in zip(found[0], other, strict=True))


def test_gates(run):
    a, b, rate, bias = 20 * noise(50, 7), 20 * noise(50, 7, seed=1), -np.exp(noise(7, seed=2)), noise(7, seed=3)
    decay, beta = np.zeros((50, 7), np.float32), np.zeros((50, 7), np.float32)
    kernels.delta_gates(a, b, rate, bias, decay, beta)
    expected = np.exp(rate.astype(np.float64) * np.logaddexp(0, (a + bias).astype(np.float64)))
    np.testing.assert_allclose(decay, expected, rtol=3e-5, atol=1e-37)
    np.testing.assert_allclose(beta, 1 / (1 + np.exp(-b.astype(np.float64))), rtol=1e-6)
    gated = np.zeros_like(a)
    kernels.sigmoid_gate(a, b, gated)
    np.testing.assert_allclose(gated, a / (1 + np.exp(-b.astype(np.float64))), rtol=1e-6)


def test_a_text_cut_anywhere_goes_on_with_the_same_bits():
    """From a slot that a walk stored into, with another text in between, and with rows in another order."""
    q, k, v, decay, beta = delta_inputs(12, 2, 4, 9, 40)
    x, weight = noise(12, 33), noise(4, 33, seed=9)
    floats = kernels.delta_floats(4, 9, 40)
    slots = Slots(4, floats + 3 * 33)
    out, mixed = np.zeros((12, 160), np.float32), np.zeros((12, 33), np.float32)

    def both(walk, rows):
        kernels.delta(*(of[rows] for of in (q, k, v, decay, beta)), 2, False, walk, 0, out)
        kernels.conv(x[rows], 0, weight, None, False, walk, floats, mixed)
        return out.copy(), mixed.copy()

    order = list(range(12))
    whole = both(slots.walk((-1, order, [(4, 0), (11, 1)])), order)
    rest = both(slots.walk((0, range(5, 12), [(6, 2)])), order)
    assert all(np.array_equal(a[5:], b[5:]) for a, b in zip(whole, rest, strict=True))
    assert np.array_equal(slots.memory[1], slots.memory[2])
    backwards = order[::-1]
    turned = both(slots.walk((-1, backwards, []), (0, backwards[5:], [(6, 3)])), backwards)
    assert all(np.array_equal(a, b[::-1]) for a, b in zip(whole, turned, strict=True))
    assert np.array_equal(slots.memory[1], slots.memory[3])


def test_what_does_not_fit_is_refused():
    slots = Slots(1, 100)
    for bad in ((1, [0], []), (-2, [0], []), (-1, [-1], []), (-1, [0], [(1, 0)]), (-1, [0], [(0, 1)])):
        with pytest.raises(PyllamaError, match="walk"):
            slots.walk(bad)
    with pytest.raises(PyllamaError, match="walk"):
        slots.walk((-1, [0, 1], [(1, 0), (0, 0)]))
    walk, x, out = slots.walk((-1, [0, 1], [])), noise(2, 8), np.zeros((2, 8), np.float32)
    for weight, first, offset, to in (
        (noise(1, 8), 0, 0, out), (noise(17, 8), 0, 0, out), (noise(3, 8), 1, 0, out), (noise(3, 8), 0, 90, out),
        (noise(3, 7), 0, 0, out), (noise(3, 8), 0, 0, out[:1]), (noise(3, 8), 0, -1, out),
    ):  # fmt: skip
        with pytest.raises(PyllamaError, match="conv"):
            kernels.conv(x, first, weight, None, False, walk, offset, to)
    with pytest.raises(PyllamaError, match="conv"):
        kernels.conv(x[:1].copy(), 0, noise(3, 8), None, False, walk, 0, out[:1].copy())
    q, k, v, decay, beta = delta_inputs(2, 1, 1, 2, 3)
    for arguments in (
        (q, k, v, decay, beta, 2, False, walk, 0), (q[:1], k, v, decay, beta, 1, False, walk, 0),
        (q, k[:, :1], v, decay, beta, 1, False, walk, 0), (q, k, v, decay, beta, 1, False, walk, 40),
    ):  # fmt: skip
        with pytest.raises(PyllamaError, match="delta"):
            kernels.delta(*map(np.ascontiguousarray, arguments[:5]), *arguments[5:], np.zeros_like(v))
    with pytest.raises(PyllamaError, match="sigmoid_gate"):
        kernels.sigmoid_gate(x, x[:1], out)
    with pytest.raises(PyllamaError, match="delta_gates"):
        kernels.delta_gates(x, x, x[0], x[0, :3], out, out)
