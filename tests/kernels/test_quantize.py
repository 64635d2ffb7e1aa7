"""The quantizer: blocks as every reader reads them, no worse than ggml's, the same bytes on any threads."""

import json
from pathlib import Path

import heavy_tails
import numpy as np
import pytest
import tiny

from pyllama import _kernels as kernels
from pyllama.errors import PyllamaError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "quantizer" / "errors.json").read_text())
TYPES = tuple(GOLDEN["errors"])
BLOCK = {dtype: 256 if dtype.endswith(("_K", "XS")) else 32 for dtype in TYPES}


def quantize(dtype, x, importance=None):
    """The stored bytes; and that nothing is left unwritten."""
    nbytes = len(x) * kernels.row_nbytes(dtype, x.shape[1])
    found = []
    for fill in (0, 255):
        out = np.full(nbytes, fill, np.uint8)
        kernels.quantize(dtype, np.ascontiguousarray(x, np.float32), importance, out)
        found.append(out)
    assert (found[0] == found[1]).all()
    return found[0]


def widen(dtype, raw, shape):
    out = np.full(shape, np.nan, np.float32)
    kernels.widen(kernels.Matrix(dtype, *shape, raw), out)
    return out


def round_trip(dtype, x, importance=None):
    return widen(dtype, quantize(dtype, x, importance), x.shape)


@pytest.fixture
def threads():
    before = kernels.num_threads()
    yield kernels.set_num_threads
    kernels.set_num_threads(before)


@pytest.mark.parametrize("kind", heavy_tails.KINDS)
@pytest.mark.parametrize("dtype", TYPES)
def test_error_is_no_worse_than_ggmls(dtype, kind):
    x = heavy_tails.weights(kind, GOLDEN["rows"], GOLDEN["cols"], GOLDEN["seed"])
    weights = None, heavy_tails.importance(GOLDEN["cols"], GOLDEN["seed"])
    for weight, theirs in zip(weights, GOLDEN["errors"][dtype][kind], strict=True):
        assert heavy_tails.squared_error(x, round_trip(dtype, x, weight), weight) <= 1.005 * theirs


@pytest.mark.parametrize("kind", heavy_tails.KINDS)
@pytest.mark.parametrize("dtype", ["Q2_K", "Q3_K"])
def test_blocks_of_few_bits_are_as_large_as_their_weights(dtype, kind):
    """Least squares make them smaller, and sums over columns do not take that back: it cost q3_k_m of a 1.5B 1%.

    sum of w x x' = sum of w x^2, but for what float16 rounds the block's units by, half of 2^-10 of what each brings,
    and what float32 rounds: some 20 operations on each product, 16 columns summed.
    """
    x = heavy_tails.weights(kind, 16, 512, 7)
    importance = heavy_tails.importance(512, 7)
    for weight in (None, importance):
        raw = quantize(dtype, x, weight)
        y = widen(dtype, raw, x.shape).astype(np.float64).reshape(-1, 256)
        least = np.zeros_like(y)
        if dtype == "Q2_K":
            codes = raw.reshape(-1, 84).copy()
            codes[:, 16:80] = 0
            least = widen(dtype, codes.reshape(-1), x.shape).astype(np.float64).reshape(-1, 256)
        v = x.astype(np.float64).reshape(-1, 256)
        w = np.sqrt((v * v).mean(1, keepdims=True) + v * v)
        if weight is not None:
            w *= np.tile(weight.astype(np.float64).reshape(-1, 256), (16, 1))
        brought = (w * np.abs(v) * (np.abs(y - least) + np.abs(least))).sum(1)
        lost = (w * v * v).sum(1) - (w * v * y).sum(1)
        assert (np.abs(lost) <= (2.0**-11 + 36 * 2.0**-24) * brought).all()


@pytest.mark.parametrize("dtype", TYPES)
def test_blocks_are_what_others_read(dtype):
    """The plain reference of the format, and the gguf package where it is installed."""
    x = heavy_tails.weights("student", 5, 768, 1)
    raw = quantize(dtype, x)
    values = widen(dtype, raw, x.shape)
    assert (values == tiny.dequantize(dtype, raw).reshape(x.shape)).all()
    gguf = pytest.importorskip("gguf")
    assert (values == gguf.quants.dequantize(raw.reshape(5, -1), gguf.GGMLQuantizationType[dtype])).all()


@pytest.mark.parametrize("dtype", TYPES)
def test_bytes_of_a_row_are_its_own(dtype, threads):
    """Whatever the threads, the rows beside it and the length of the row after it."""
    cols = 3 * 256 if BLOCK[dtype] == 256 else 256 + 3 * 32
    x = heavy_tails.weights("student", 37, cols, 2)
    weight = heavy_tails.importance(cols, 3)
    for importance in (None, weight):
        threads(1)
        alone = np.concatenate([quantize(dtype, x[r : r + 1], importance) for r in range(len(x))])
        for n in (1, 2, 3):
            threads(n)
            assert (quantize(dtype, x, importance) == alone).all()
        short = np.ascontiguousarray(x[:, : BLOCK[dtype]])
        first = quantize(dtype, short, None if importance is None else importance[: BLOCK[dtype]])
        assert (first.reshape(37, -1) == alone.reshape(37, -1)[:, : first.size // 37]).all()


@pytest.mark.parametrize("dtype", TYPES)
def test_what_a_format_holds_comes_back(dtype):
    """Zeros, and a block whose weights all lie on the format's levels."""
    zeros = np.zeros((2, 256), np.float32)
    assert (round_trip(dtype, zeros) == 0).all()
    sign = np.where(np.arange(256) % 3, 1, -1).astype(np.float32)[None]
    top = {"Q2_K": 1, "Q3_K": 1}.get(dtype, 113)
    assert np.abs(round_trip(dtype, sign * top) - sign * top).max() <= 0.1 * top


@pytest.mark.parametrize("dtype", TYPES)
def test_error_is_within_a_step_at_any_magnitude(dtype):
    """From float16's smallest scale to where its largest is not enough: then weights come out as large as they can."""
    x = heavy_tails.weights("gauss", 4, 256, 4) / np.float32(0.08)
    x = np.clip(x, -1, 1)
    for exponent in range(-13, 13):
        factor = np.float32(2.0**exponent)
        y = round_trip(dtype, x * factor)
        assert np.isfinite(y).all()
        assert np.sqrt(np.mean((y - x * factor) ** 2)) < (0.2 if dtype in ("Q2_K", "Q3_K") else 0.06) * factor
    for exponent in (-149, -126, -60, -30, 20, 60, 100, 127):
        y = round_trip(dtype, np.ldexp(x, exponent).astype(np.float32))
        assert np.isfinite(y).all()
        if exponent < -30:
            assert (y == 0).all()
        if exponent > 40:
            assert np.abs(y).max() > 2e5
            assert (y * x >= 0).mean() > 0.7


@pytest.mark.parametrize("dtype", TYPES)
def test_constant_rows(dtype):
    for value in (1.0, -1.0, 0.05, -0.3, 1000.0):
        x = np.full((3, 512), value, np.float32)
        assert np.abs(round_trip(dtype, x) - x).max() <= abs(value) * 2e-3 + 6e-8


@pytest.mark.parametrize("dtype", TYPES)
def test_importance_says_which_columns_to_get_right(dtype):
    x = heavy_tails.weights("student", 16, 512, 5)
    important = np.zeros(512, np.float32)
    important[::8] = 1
    plain, weighed = round_trip(dtype, x), round_trip(dtype, x, important)
    assert heavy_tails.squared_error(x, weighed, important) < 0.8 * heavy_tails.squared_error(x, plain, important)
    # Its scale does not matter, and columns of which none matters are alike.
    assert (quantize(dtype, x, important) == quantize(dtype, x, important * np.float32(2.0**70))).all()
    assert (quantize(dtype, x, np.ones(512, np.float32)) == quantize(dtype, x, np.zeros(512, np.float32))).all()


@pytest.mark.parametrize("dtype", TYPES)
def test_garbage_is_survived(dtype):
    """The caller refuses it; no field leaves its range all the same, and the other rows are right."""
    x = heavy_tails.weights("student", 6, 512, 6)
    clean = quantize(dtype, x).reshape(6, -1)
    x[0] = np.nan
    x[1, ::2] = np.inf
    x[2, 5] = np.nan
    x[3, 300] = -np.inf
    for weight in (None, np.full(512, np.nan, np.float32), np.full(512, np.inf, np.float32)):
        out = np.zeros(6 * kernels.row_nbytes(dtype, 512), np.uint8)
        kernels.quantize(dtype, x, weight, out)
        assert not np.isinf(widen(dtype, out, x.shape)).any()
        if weight is None:
            assert (out.reshape(6, -1)[4:] == clean[4:]).all()


def test_floats_of_16_bits_are_rounded_to_nearest_even():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2**32, (64, 1000), dtype=np.uint32).view(np.float32)
    x[0, :6] = 65504, 65519.99, 65520, 1e30, -1e30, 2.0**-25
    x = np.where(np.isnan(x), np.float32(1), x)
    for dtype in ("F16", "BF16"):
        y = round_trip(dtype, x)
        with np.errstate(over="ignore"):
            if dtype == "F16":
                expected = np.clip(x, -65504, 65504).astype(np.float16).astype(np.float32)
            else:
                expected = tiny.decode_plain("BF16", tiny.encode_plain("BF16", x)).astype(np.float32).reshape(x.shape)
        assert (y.view(np.uint32) == expected.view(np.uint32)).all()
        assert np.isnan(round_trip(dtype, np.full((1, 3), np.nan, np.float32))).all()


def test_refusals():
    x, out = np.zeros((2, 64), np.float32), np.zeros(2 * 36, np.uint8)
    for dtype, importance, room, words in (
        ("Q4_0", None, out[1:], "into 71 bytes"),
        ("Q4_0", np.zeros(63, np.float32), out, "importance of 63"),
        ("Q4_K", None, out, "multiple of 256"),
        ("F32", None, np.zeros(512, np.uint8), "F32"),
        ("MXFP5", None, out, "MXFP5"),
    ):
        with pytest.raises(PyllamaError, match=words):
            kernels.quantize(dtype, x, importance, room)
    kernels.quantize("Q4_0", x[:0], None, out[:0])
