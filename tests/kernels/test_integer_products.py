"""Quantized weights times D16 activations: each instruction set gives the definition's bits."""

import integer_products
import numpy as np
import pytest
from ways import every_way

from pyllama import _kernels as kernels

QUANTIZED = [d for d in kernels.DTYPES if d not in ("F32", "F16", "BF16")]
TOKENS = tuple(range(1, 18))  # those that share codes in registers, those of a tile, and pieces of either


def panels(matrix):
    out = np.full(kernels.panels_nbytes(matrix.dtype, matrix.rows, matrix.cols), 255, np.uint8)
    kernels.to_panels(matrix, out)
    return kernels.Matrix(matrix.dtype, matrix.rows, matrix.cols, out, "panels")


def product(w, x):
    out = np.full((len(x), w.rows), np.nan, np.float32)
    kernels.matmul(w, x, out)
    return out


def same(a, b):
    """Equal bits, but for what a NaN carries: that is the machine's."""
    return bool(((a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))).all())


def random_blocks(dtype, rows, cols, rng, finite=True):
    """Every field takes every value; scales are finite unless told otherwise."""
    block, width = kernels.row_nbytes(dtype, 256), 32 if dtype in integer_products.SMALL else 256
    raw = rng.integers(0, 256, rows * kernels.row_nbytes(dtype, cols), dtype=np.uint8)
    if finite:
        raw = raw.reshape(-1, block * width // 256)
        for at in {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "MXFP4": ()}.get(dtype, (0, 2)):
            if at == 0 or dtype in ("Q2_K", "Q3_K", "Q6_K", "Q4_1", "Q5_1", "Q4_K", "Q5_K"):
                raw[:, at + 1] &= 0xBF  # an exponent under 16: no infinity, nothing huge
    return np.ascontiguousarray(raw.reshape(-1))


def hostile(tokens, cols, rng):
    """A block of each kind that could go wrong."""
    x = (
        rng.standard_normal((tokens, cols)) * np.exp2(rng.integers(-20, 20, (tokens, cols // 32)).repeat(32, 1))
    ).astype(np.float32)
    for block, value in enumerate(
        (np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 2.0**-90, 2.0**-91, -(2.0**-90), 3.4e38, 1e38)
    ):
        t, b = block % tokens, block * 7 % (cols // 32)
        x[t, 32 * b : 32 * b + 32] *= 0 if abs(value) < 1e-20 else 1
        x[t, 32 * b + block % 32] = value
    return x


@pytest.mark.parametrize("dtype", QUANTIZED)
def test_products_are_the_definition_to_the_bit(dtype):
    rng = np.random.default_rng(1)
    for rows, cols in ((1, 256), (37, 768), (75, 288 if dtype in integer_products.SMALL else 512)):
        raw = random_blocks(dtype, rows, cols, rng)
        x = rng.standard_normal((max(TOKENS), cols)).astype(np.float32)
        x[0, :32] = np.where(x[0, :32] < 0, -1, 1) * 3.0  # all at the ends of the integers
        expected = integer_products.product(dtype, raw, rows, cols, x)
        w = kernels.Matrix(dtype, rows, cols, raw)
        for way in every_way():
            for matrix in (w, panels(w)):
                for t in TOKENS:
                    assert same(product(matrix, x[:t]), expected[:t]), (way, matrix.layout, t)


@pytest.mark.parametrize("dtype", QUANTIZED)
def test_the_largest_codes_times_the_largest_activations(dtype):
    """Where narrower sums would overflow: all codes alike, all activations at the ends."""
    rng = np.random.default_rng(2)
    rows, cols = 32, 512
    for fill in (0x00, 0x7F, 0x80, 0xFF, 0x0F, 0xF0):
        raw = random_blocks(dtype, rows, cols, rng)
        template = random_blocks(dtype, rows, cols, rng)
        raw[:] = fill
        width = 32 if dtype in integer_products.SMALL else 256
        blocks, kept = (r.reshape(-1, kernels.row_nbytes(dtype, width)) for r in (raw, template))
        for at in {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "MXFP4": ()}.get(
            dtype, (0, 2) if dtype[-1] in "1K" else (0,)
        ):
            blocks[:, at : at + 2] = kept[:, at : at + 2]
        x = np.ones((max(TOKENS), cols), np.float32)
        x[1::3] = -1
        x[2::3, ::2] = -1
        expected = integer_products.product(dtype, raw, rows, cols, x)
        w = kernels.Matrix(dtype, rows, cols, raw)
        for way in every_way():
            for t in (1, 2, 3, max(TOKENS)):
                assert same(product(panels(w), x[:t]), expected[:t]), (way, fill, t)
            assert same(product(panels(w), x[2:3]), expected[2:3]), (way, fill)


@pytest.mark.parametrize("dtype", QUANTIZED)
def test_activations_and_scales_that_are_no_numbers(dtype):
    rng = np.random.default_rng(3)
    rows, cols = 33, 768
    x = hostile(13, cols, rng)
    for finite in (True, False):
        raw = random_blocks(dtype, rows, cols, rng, finite)
        expected = integer_products.product(dtype, raw, rows, cols, x)
        assert np.isnan(expected).any() and (not finite or np.isfinite(expected).any())
        w = kernels.Matrix(dtype, rows, cols, raw)
        for way in every_way():
            for t in (2, 3, len(x)):
                assert same(product(panels(w), x[:t]), expected[:t]), (way, t)
            assert same(np.concatenate([product(w, x[t : t + 1]) for t in range(len(x))]), expected), way


def test_the_reference_rounds_once():
    """A sum whose rounding in float64 first would go the wrong way."""
    one, tiny = np.float32(1 + 2.0**-23), np.float32(2.0**-60)
    assert integer_products.fma(one, np.float32(1 + 2.0**-12), tiny) != np.float32(0)
    half_ulp = np.float32(2.0**-24)
    assert integer_products.fma(half_ulp, np.float32(1), np.float32(1)) == np.float32(1)
    assert integer_products.fma(half_ulp, np.float32(1 + 2.0**-23), np.float32(1)) == np.float32(1 + 2.0**-23)
