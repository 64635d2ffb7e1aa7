"""The kernels: right on whole numbers to the bit, near float64 on others, and the same bits however they are run."""

import ctypes
import gc
import itertools
import platform
from pathlib import Path

import integer_products
import numpy as np
import pytest
import reference
import tiny
from ways import WAYS, as_before, every_way

from pyllama import _kernels as kernels
from pyllama.errors import PyllamaError

BLOCK = {"F32": 1, "F16": 1, "BF16": 1, "Q2_K": 256, "Q3_K": 256, "Q4_K": 256, "Q5_K": 256, "Q6_K": 256, "IQ4_XS": 256}
# Odd sizes: one row, a panel less one, more than a panel; columns around the segment and the pair.
SHAPES = [(1, 1), (31, 7), (33, 129), (75, 256), (96, 300)]
TOKENS = (1, 2, 3, 5, 6, 7, 13)


@pytest.fixture(params=WAYS, ids=lambda p: f"{p[0]}-{p[1]}")
def run(request):
    """Each instruction set of this machine, with one thread and with three."""
    with as_before():
        kernels.set_isa(request.param[0])
        kernels.set_num_threads(request.param[1])
        yield request.param


def nans(*shape):
    return np.full(shape, np.nan, np.float32)


def bits(x):
    return np.ascontiguousarray(x).view(np.uint32)


def same_bits(a, b):
    return a.shape == b.shape and bool((bits(a) == bits(b)).all())


def encode(dtype, values):
    """Row-major values (rows, cols) -> the stored bytes."""
    raw = tiny.encode_plain(dtype, values) if dtype in ("F32", "F16", "BF16") else tiny.quantize(dtype, values)
    return np.frombuffer(raw, np.uint8)


def decode(dtype, raw, shape):
    plain = dtype in ("F32", "F16", "BF16")
    values = tiny.decode_plain(dtype, raw.tobytes()) if plain else tiny.dequantize(dtype, raw)
    return np.asarray(values, np.float32).reshape(shape)


def panels(matrix):
    out = np.full(kernels.panels_nbytes(matrix.dtype, matrix.rows, matrix.cols), 255, np.uint8)
    kernels.to_panels(matrix, out)
    return kernels.Matrix(matrix.dtype, matrix.rows, matrix.cols, out, "panels")


def product(w, x):
    out = nans(len(x), int(np.sum(w.rows)))
    kernels.matmul(w, x, out)
    return out


def matrix_of(dtype, rows, cols, seed=0):
    """A random matrix in its stored form, and what it stands for."""
    cols = -(-cols // BLOCK.get(dtype, 32)) * BLOCK.get(dtype, 32)
    values = np.random.default_rng(seed).standard_normal((rows, cols)).astype(np.float32)
    raw = encode(dtype, values)
    return kernels.Matrix(dtype, rows, cols, raw), decode(dtype, raw, (rows, cols))


# ---------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("dtype", kernels.DTYPES)
def test_widen_is_what_the_format_defines(run, dtype):
    for rows, cols in SHAPES:
        w, values = matrix_of(dtype, rows, cols)
        out = nans(w.rows, w.cols)
        kernels.widen(w, out)
        assert same_bits(out, values)


@pytest.mark.parametrize("dtype", [d for d in kernels.DTYPES if d not in ("F32", "F16", "BF16")])
def test_widen_of_random_blocks(run, dtype):
    """Every field takes every value, unlike in what a quantizer writes; infinite scales aside."""
    rng = np.random.default_rng(5)
    rows, cols = 40, 512
    raw = rng.integers(0, 256, rows * kernels.row_nbytes(dtype, cols), dtype=np.uint8)
    with np.errstate(invalid="ignore", over="ignore"):
        expected = decode(dtype, raw, (rows, cols))
    out = nans(rows, cols)
    kernels.widen(kernels.Matrix(dtype, rows, cols, raw), out)
    finite = np.isfinite(expected)
    assert finite.mean() > 0.8
    assert (out[finite] == expected[finite]).all()


@pytest.mark.parametrize("dtype", [d for d in kernels.DTYPES if d not in ("F32", "F16", "BF16")])
def test_widen_is_what_ggml_makes_of_the_same_blocks(run, dtype):
    with np.load(Path(__file__).parents[1] / "golden" / "quantized" / "golden.npz") as golden:
        stored, values = golden[f"{dtype}_stored"], golden[f"{dtype}_values"]
    out = nans(*values.shape)
    kernels.widen(kernels.Matrix(dtype, *values.shape, stored.reshape(-1)), out)
    assert (out == values).all()  # and not their bits: where both of Q2_K's terms are 0, the zero may be negative


def test_widen_of_all_16_bit_patterns(run):
    patterns = np.arange(65536, dtype=np.uint16)
    for dtype, expected in (
        ("F16", patterns.view(np.float16).astype(np.float32)),
        ("BF16", (patterns.astype(np.uint32) << 16).view(np.float32)),
    ):
        out = nans(64, 1024)
        kernels.widen(kernels.Matrix(dtype, 64, 1024, patterns.view(np.uint8)), out)
        out, number = out.reshape(-1), ~np.isnan(expected)
        assert (bits(out)[number] == bits(expected)[number]).all()
        assert np.isnan(out[~number]).all()


# ----------------------------------------------------------------------------------------------------- matmul


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_matmul_of_small_whole_numbers_is_exact(run, dtype):
    rng = np.random.default_rng(1)
    for rows, cols in SHAPES:
        values = rng.integers(1, 4, (rows, cols)) * rng.choice([-1.0, 1.0], (rows, cols))
        w = kernels.Matrix(dtype, rows, cols, encode(dtype, values.astype(np.float32)))
        for tokens in TOKENS:
            x = (rng.integers(1, 4, (tokens, cols)) * rng.choice([-1, 1], (tokens, cols))).astype(np.float32)
            assert (product(w, x) == x @ values.T).all()
            assert (product(panels(w), x) == x @ values.T).all()


@pytest.mark.parametrize("dtype", kernels.DTYPES)
def test_matmul_is_near_float64(run, dtype):
    rng = np.random.default_rng(2)
    for rows, cols in [(33, 129), (75, 768)]:
        w, values = matrix_of(dtype, rows, cols)
        x = rng.standard_normal((7, w.cols)).astype(np.float32)
        bound = 4 * np.sqrt(w.cols) * 2.0**-24 * (np.abs(x).astype(float) @ np.abs(values.T).astype(float))
        if dtype not in ("F32", "F16", "BF16"):  # half a unit of the activations' 16 bits, at worst all of one sign
            unit = np.abs(x.reshape(7, -1, 32)).max(2) / integer_products.TOP
            bound += 0.51 * unit.repeat(32, 1) @ np.abs(values.T).astype(float)
        assert (np.abs(product(w, x) - x.astype(float) @ values.T.astype(float)) <= bound).all()


@pytest.mark.parametrize("dtype", kernels.DTYPES)
def test_matmul_has_the_same_bits_every_way(dtype):
    """Across instruction sets, threads, tokens per call, layout, and cuts by rows."""
    w, _ = matrix_of(dtype, 203, 520, seed=3)
    x = np.random.default_rng(4).standard_normal((13, w.cols)).astype(np.float32)
    expected = None
    for way in every_way():
        packed = panels(w)
        got = product(packed, x)
        expected = got if expected is None else expected
        assert same_bits(got, expected), way
        assert same_bits(product(w, x), expected), way
        assert same_bits(np.concatenate([product(packed, x[t : t + 1]) for t in range(len(x))]), expected), way
        assert same_bits(np.concatenate([product(w, x[t : t + 1]) for t in range(len(x))]), expected), way
        assert same_bits(np.concatenate([product(packed, x[:2]), product(w, x[2:])]), expected), way
        out, cut = nans(13, 203), []
        for row, n in ((0, 1), (1, 40), (41, 32), (73, 130)):
            data = w.data[row * w.data.size // 203 : (row + n) * w.data.size // 203]
            cut.append(kernels.Matrix(dtype, n, w.cols, data))
            kernels.matmul(cut[-1], x, out, row)
        assert same_bits(out, expected), way
        blocks = kernels.Blocks([cut[0], panels(cut[1]), cut[2], panels(cut[3])])
        for t in TOKENS:
            assert same_bits(product(blocks, x[:t]), expected[:t]), (way, t)


def test_blocks_are_cut_over_threads_wherever_they_end():
    """With so many panels, a thread's piece begins in one block and ends in another."""
    rng = np.random.default_rng(5)
    ends = np.append(np.sort(rng.choice(np.arange(1, 12800), 40, replace=False)), 12800)
    w, _ = matrix_of("BF16", 12800, 16)
    x = rng.standard_normal((7, w.cols)).astype(np.float32)
    expected = product(w, x)
    for way in every_way():
        cut = (
            kernels.Matrix("BF16", end - row, w.cols, w.data[row * 2 * w.cols : end * 2 * w.cols].copy())
            for row, end in itertools.pairwise((0, *ends))
        )
        blocks = kernels.Blocks(cut)  # it alone holds the matrices and their bytes
        gc.collect()
        assert (blocks.rows, blocks.cols) == ((12800,), w.cols)
        for t in (1, 7):
            out = nans(t, 12900)
            kernels.matmul(blocks, x[:t], out, 4)
            assert same_bits(out[:, 4:12804], expected[:t]), (way, t)
            assert np.isnan(out[:, :4]).all() and np.isnan(out[:, 12804:]).all()


def test_stacks_have_the_bits_of_their_matrices_one_by_one():
    """In one call, each in its own output: cut wherever a thread's pieces happen to end."""
    x = np.random.default_rng(7).standard_normal((13, 520)).astype(np.float32)
    kinds = (("BF16", 203), ("F16", 1), ("BF16", 64), ("F32", 95))
    made = [matrix_of(dtype, rows, 520, seed=rows)[0] for dtype, rows in kinds]
    expected = [product(w, x) for w in made]
    for way in every_way():
        for stacks in ([[made[0]]], [[made[0]], [made[1]]], [[made[0], made[3]], [panels(made[2])], [made[1]], made]):
            blocks = kernels.Blocks(*stacks)
            wanted = [
                np.concatenate([expected[made.index(w)] if w in made else expected[2] for w in stack], axis=1)
                for stack in stacks
            ]
            assert blocks.rows == tuple(want.shape[1] for want in wanted)
            for t in TOKENS:
                outs = tuple(nans(t, 400 + i) for i in range(len(stacks)))
                kernels.matmul(blocks, x[:t], outs, 7)
                for out, want in zip(outs, wanted, strict=True):
                    assert same_bits(out[:, 7 : 7 + want.shape[1]], want[:t]), (way, t)
                    assert np.isnan(out[:, :7]).all() and np.isnan(out[:, 7 + want.shape[1] :]).all()


def test_blocks_are_of_matrices_alone():
    w, _ = matrix_of("BF16", 33, 64)
    for other in (None, 5, kernels.Blocks([w])):
        with pytest.raises(TypeError):
            kernels.Blocks([w, other])
    for stack in (None, w):
        with pytest.raises(TypeError):
            kernels.Blocks([w], stack)


def test_matmul_is_one_chain_of_fused_multiply_adds(run):
    """The canonical order itself, against exact arithmetic rounded step by step (MODEL.md, "Numerics")."""
    rng = np.random.default_rng(6)
    w = rng.standard_normal((3, 40)).astype(np.float32)
    x = rng.standard_normal((2, 40)).astype(np.float32)
    got = product(kernels.Matrix("F32", 3, 40, w.reshape(-1).view(np.uint8)), x)
    for t in range(2):
        for r in range(3):
            acc = np.float32(0)
            for c in range(40):
                # A product of two float32 and a float32 fit float64's 53 bits but for far exponents; these do.
                acc = np.float32(np.float64(w[r, c]) * np.float64(x[t, c]) + np.float64(acc))
            assert got[t, r] == acc


@pytest.fixture
def subnormals_off():
    """As after loading a library built with -ffast-math: flush-to-zero set in this thread's control register."""
    libc = ctypes.CDLL(None)
    saved, changed = (ctypes.c_uint32 * 8)(), (ctypes.c_uint32 * 8)()
    libc.fegetenv(saved)
    ctypes.memmove(changed, saved, 32)
    if platform.machine() == "x86_64":
        changed[7] |= 0x8040  # glibc's and musl's fenv_t ends with MXCSR: FTZ and DAZ
    else:
        changed[0] |= 1 << 24  # FPCR.FZ
    libc.fesetenv(changed)
    yield
    libc.fesetenv(saved)


def test_subnormals_count_even_where_a_library_turned_them_off(run, subnormals_off):
    w = kernels.Matrix("F32", 1, 1, np.array([1 << 19], np.uint32).view(np.uint8))  # 2**-130
    out = np.zeros((1, 1), np.float32)
    kernels.matmul(w, np.ones((1, 1), np.float32), out)
    assert bits(out)[0, 0] == 1 << 19


def test_matmul_writes_only_its_rows(run):
    w, values = matrix_of("BF16", 33, 64)
    out = nans(2, 100)
    kernels.matmul(w, np.ones((2, 64), np.float32), out, 40)
    assert np.isnan(out[:, :40]).all() and np.isnan(out[:, 73:]).all()
    assert not np.isnan(out[:, 40:73]).any()


@pytest.mark.parametrize("tokens", [0, 1, 2, 7, 13])
def test_an_input_taken_once_serves_many_matrices(run, tokens):
    """Alone and in stacks, and with other activations after that: the bits are those of arrays."""
    rng = np.random.default_rng(5)
    ws = [matrix_of(dtype, rows, 64)[0] for dtype, rows in (("BF16", 33), ("F32", 40), ("Q8_0", 96))]
    made = kernels.Input(13, 70)
    for _ in range(2):
        x = rng.standard_normal((tokens, 64)).astype(np.float32)
        expected = [nans(tokens, w.rows) for w in ws]
        for w, out in zip(ws, expected):
            kernels.matmul(w, x, out)
        made.take(kernels.Floats(x))
        single, stacked = ([nans(tokens, w.rows) for w in ws] for _ in range(2))
        for w, out in zip(ws, single):
            kernels.matmul(w, made, out)
        kernels.matmul(kernels.Blocks(*([w] for w in ws)), made, tuple(stacked))
        for outs in (single, stacked):
            assert all((bits(a) == bits(b)).all() for a, b in zip(outs, expected))
    assert not np.isnan(np.concatenate(expected, 1)).any()


def batch(pool=(0,), pages=((0,),), positions=(0,), sequences=(0,), writes=((0, 0),)):
    """One token, unless told otherwise."""
    return kernels.Batch(
        np.array(pool, np.uint64), np.array(pages, np.int32), np.array(positions, np.int64),
        np.array(sequences, np.int32), np.array(writes, np.int32)
    )  # fmt: skip


def test_what_does_not_fit_is_refused():
    w, _ = matrix_of("BF16", 33, 64)
    x = np.ones((2, 64), np.float32)
    batch()
    for bad in (
        lambda: kernels.matmul(w, x[:, :63].copy(), nans(2, 33)),
        lambda: kernels.matmul(w, x, nans(3, 33)),
        lambda: kernels.matmul(w, x, nans(2, 33), 1),
        lambda: kernels.matmul(w, x, nans(2, 33), -1),
        lambda: kernels.matmul(w, x, nans(2, 33), 2**63 - 1),
        lambda: kernels.Matrix("BF16", 33, 64, w.data[:-1]),
        lambda: kernels.Matrix("BF16", 0, 64, w.data),
        lambda: kernels.Matrix("Q4_0", 1, 33, w.data[:18]),
        lambda: kernels.Matrix("IQ1_S", 1, 32, w.data[:18]),
        lambda: kernels.Blocks([]),
        lambda: kernels.Blocks([w, kernels.Matrix("BF16", 1, 63, w.data[:126])]),
        lambda: kernels.Blocks(),
        lambda: kernels.Blocks([w], []),
        lambda: kernels.Blocks([w], [w], [w], [w], [w]),
        lambda: kernels.Blocks([w], [kernels.Matrix("BF16", 1, 63, w.data[:126])]),
        lambda: kernels.matmul(kernels.Blocks([w, w]), x, nans(2, 65)),
        lambda: kernels.matmul(kernels.Blocks([w], [w]), x, nans(2, 66)),
        lambda: kernels.matmul(kernels.Blocks([w], [w]), x, (nans(2, 33),)),
        lambda: kernels.matmul(kernels.Blocks([w], [w]), x, (nans(2, 33), nans(2, 32))),
        lambda: kernels.matmul(kernels.Blocks([w], [w]), x, (nans(2, 33), nans(3, 33))),
        lambda: kernels.matmul(w, x, (nans(2, 33), nans(2, 33))),
        lambda: kernels.set_num_threads(0),
        lambda: kernels.set_isa("mmx"),
        lambda: kernels.rmsnorm(x, np.ones(63, np.float32), 1e-5, nans(2, 64)),
        lambda: kernels.swiglu(x, x, nans(1, 64)),
        lambda: kernels.geglu(x, x, nans(1, 64)),
        lambda: kernels.softcap(x, 30.0, nans(1, 64)),
        lambda: kernels.softcap(x, 0.0, nans(2, 64)),
        lambda: kernels.scale(x, np.ones((3, 1), np.float32), nans(2, 64)),
        lambda: kernels.Attention(
            2, 1, 8, f16=False, window=0, scale=1, k_offset=0, v_offset=0, sinks=np.ones(1, np.float32)
        ),
        lambda: kernels.rope(x, nans(2, 4), nans(2, 4), 7),
        lambda: kernels.Input(2, 63).take(x),
        lambda: kernels.Input(1, 64).take(x),
        lambda: kernels.Input(2, 0),
        lambda: kernels.matmul(w, kernels.Input(2, 64), nans(2, 33)),
        lambda: kernels.matmul(w, kernels.Input(2, 64).take(x[:, :63].copy()), nans(2, 33)),
        lambda: batch(positions=[32]),
        lambda: batch(positions=[-1]),
        lambda: batch(positions=[0, 1]),
        lambda: batch(sequences=[1]),
        lambda: batch(pages=[[1]]),
        lambda: batch(pages=[[-1]]),
        lambda: batch(pages=[[-1, 0]], positions=[32]),
        lambda: batch(writes=[[1, 0]]),
        lambda: batch(writes=[[-1, 0]]),
        lambda: batch(writes=[[0, 1]]),
        lambda: batch(writes=[[0, -1]]),
        lambda: batch(writes=[[0, 0, 0]]),
    ):
        with pytest.raises(PyllamaError):
            bad()


# ------------------------------------------------------------------------------------------------ elementwise


def test_exp_is_within_two_ulp(run):
    x = np.linspace(-86.5, 88, 200_001).astype(np.float32)
    out = nans(x.size)
    kernels.exp(x, out)
    exact = np.exp(x.astype(np.float64))
    assert (np.abs(out - exact) <= 2 * np.spacing(exact.astype(np.float32))).all()


def test_exp_at_the_ends(run):
    x = np.array([-np.inf, -1e30, -86.51, 0.0, -0.0, np.nan, 1e-30], np.float32)
    out = nans(x.size)
    kernels.exp(x, out)
    assert list(out[:5]) == [0, 0, 0, 1, 1] and np.isnan(out[5]) and out[6] == 1


def test_exp_swiglu_rmsnorm_have_the_same_bits_every_way():
    rng = np.random.default_rng(7)
    x, y = rng.standard_normal((2, 40, 531)).astype(np.float32) * 9
    weight = rng.standard_normal(531).astype(np.float32)
    head = rng.standard_normal(59).astype(np.float32)
    expected = None
    for way in every_way():
        got = [nans(40, 531) for _ in range(6)]
        kernels.exp(x, got[0])
        kernels.swiglu(x, y, got[1])
        kernels.rmsnorm(x, weight, 1e-5, got[2])
        kernels.rmsnorm(x, head, 1e-6, got[3], 59)
        kernels.geglu(x, y, got[4])
        kernels.softcap(x, 7.0, got[5])
        expected = got if expected is None else expected
        assert all(same_bits(a, b) for a, b in zip(got, expected, strict=True)), way


def test_rmsnorm_is_near_float64(run):
    rng = np.random.default_rng(8)
    for cols in (1, 31, 32, 100, 577):
        x, weight = rng.standard_normal((5, cols)).astype(np.float32), rng.standard_normal(cols).astype(np.float32)
        out = nans(5, cols)
        kernels.rmsnorm(x, weight, 1e-5, out)
        expected = reference.rmsnorm(x, weight, 1e-5)
        assert (np.abs(out - expected) <= 4 * np.sqrt(cols) * 2.0**-24 * np.abs(expected)).all()


def test_rmsnorm_of_whole_numbers_is_exact(run):
    x = np.full((2, 100), 3, np.float32)
    out = nans(2, 100)
    kernels.rmsnorm(x, np.arange(100, dtype=np.float32), 0.0, out)
    # 1/3 rounded, times 3, is 1 in float32
    assert (out == np.arange(100)).all()


def test_swiglu_is_near_float64(run):
    x = np.linspace(-100, 100, 1001).astype(np.float32)[None]
    up = np.full_like(x, 3)
    out = nans(*x.shape)
    kernels.swiglu(x, up, out)
    expected = reference.swiglu(x, up)
    assert (np.abs(out - expected) <= 8 * 2.0**-24 * np.abs(expected) + 1e-35).all()


def test_geglu_is_near_float64(run):
    x = np.linspace(-12, 12, 4001).astype(np.float32)[None]
    up = np.full_like(x, 3)
    out = nans(*x.shape)
    kernels.geglu(x, up, out)
    expected = reference.gelu(x) * 3
    # The rounding of exp's argument counts by its size: far to the left it is large, and gelu next to nothing.
    assert (np.abs(out - expected) <= 2.0**-20 * np.abs(expected) + 1e-6 * np.minimum(1, np.abs(x))).all()
    right = x > -2
    assert (np.abs(out - expected)[right] <= 2.0**-20 * np.abs(expected)[right]).all()


def test_softcap_is_near_float64(run):
    x = np.concatenate([np.linspace(-200, 200, 40001), np.geomspace(1e-30, 300, 2000)]).astype(np.float32)
    for cap in (1.0, 30.0, 50.0):
        out = nans(x.size)
        kernels.softcap(x, cap, out)
        expected = cap * np.tanh(x.astype(np.float64) / cap)
        assert (np.abs(out - expected) <= 4 * 2.0**-23 * np.abs(expected)).all()
        assert (np.abs(out) <= cap).all()
        opposite = nans(x.size)
        kernels.softcap(-x, cap, opposite)
        assert (-opposite == out).all()
    out = nans(3)
    kernels.softcap(np.array([np.nan, np.inf, -np.inf], np.float32), 2.0, out)
    assert np.isnan(out[0]) and list(out[1:]) == [2, -2]


def test_scaling_and_adding_a_multiple_round_once_each(run):
    rng = np.random.default_rng(9)
    x, y = rng.standard_normal((2, 50, 501)).astype(np.float32)
    each = rng.standard_normal((50, 1)).astype(np.float32)
    out = nans(50, 501)
    kernels.scale(x, each, out)
    assert same_bits(out, x * each)
    kernels.scale(x, each[:1], out)
    assert same_bits(out, x * each[0, 0])
    kernels.add(x, y, out, 0.22)
    assert same_bits(out, x + y * np.float32(0.22))


def test_add_and_its_one_row_form(run):
    rng = np.random.default_rng(9)
    x, y = rng.standard_normal((2, 50, 501)).astype(np.float32)
    for other in (y, y[0].copy()):
        out = nans(50, 501)
        kernels.add(x, other, out)
        assert same_bits(out, x + other)


# ------------------------------------------------------------------------------------------------------- rope


def test_rope_table_is_rounded_once_from_float64():
    positions = np.array([0, 1, 2, 100, 4095, 131071, 1_000_000], np.int64)
    freq = reference.inv_freq(64, 10000.0)
    cos, sin = nans(7, 32), nans(7, 32)
    kernels.rope_table(positions, freq, 1.0, cos, sin)
    angle = positions[:, None] * freq
    for got, exact in ((cos, np.cos(angle)), (sin, np.sin(angle))):
        # half an ulp of rounding, and what a float64 sine may be off at a million radians
        assert (np.abs(got - exact) <= 0.5001 * np.spacing(np.abs(exact).astype(np.float32)) + 1e-15).all()


def test_rope_is_near_float64_in_both_layouts(run):
    rng = np.random.default_rng(10)
    for heads, dim, tokens in ((1, 2, 1), (3, 6, 2), (5, 40, 7), (8, 64, 40)):
        x = rng.standard_normal((tokens, heads, dim)).astype(np.float32)
        positions = np.arange(50, 50 + tokens, dtype=np.int64)
        freq = reference.inv_freq(dim, 10000.0)
        cos, sin = nans(tokens, dim // 2), nans(tokens, dim // 2)
        kernels.rope_table(positions, freq, 1.0, cos, sin)
        out = x.reshape(tokens, -1).copy()
        kernels.rope(out, cos, sin, heads)
        expected = reference.rope(x, positions, freq)
        assert np.abs(out.reshape(x.shape) - expected).max() <= 4 * 2.0**-24 * np.abs(x).max() * 2
        pairs = np.stack([x[..., : dim // 2], x[..., dim // 2 :]], -1).reshape(tokens, -1).copy()
        kernels.rope(pairs, cos, sin, heads, True)
        assert same_bits(pairs, out)


def test_rope_of_a_part_of_each_head_leaves_the_rest(run):
    x = np.random.default_rng(10).standard_normal((7, 5, 40)).astype(np.float32)
    positions = np.arange(50, 57, dtype=np.int64)
    freq = reference.inv_freq(22, 10000.0)
    cos, sin = nans(7, 11), nans(7, 11)
    kernels.rope_table(positions, freq, 1.0, cos, sin)
    out = x.reshape(7, -1).copy()
    kernels.rope(out, cos, sin, 5)
    out = out.reshape(x.shape)
    assert np.abs(out - reference.rope(x, positions, freq)).max() <= 8 * 2.0**-24 * np.abs(x).max()
    assert same_bits(out[..., 22:].copy(), x[..., 22:].copy())
    pairs = x.copy()
    pairs[..., :22] = np.stack([x[..., :11], x[..., 11:22]], -1).reshape(7, 5, 22)
    pairs = pairs.reshape(7, -1)
    kernels.rope(pairs, cos, sin, 5, True)
    assert same_bits(pairs.reshape(x.shape), out)


# -------------------------------------------------------------------------------------------------- attention


class Cache:
    """Pages for one layer and some sequences, as decoder/page_pool.py lays them out."""

    def __init__(self, heads, kv_heads, dim, f16=False, window=0, positions=320, sequences=1, **options):
        element, padded = (2 if f16 else 4), -(-dim // 32) * 32
        keys = kv_heads * dim * 32 * element
        page = keys + kv_heads * padded * 32 * element
        per_sequence = -(-positions // 32)
        self.memory = np.zeros((sequences, per_sequence, page), np.uint8)
        # Numbers run against addresses, so that whoever takes one for the other is found out.
        self.pool = self.memory.ctypes.data + page * np.arange(sequences * per_sequence, dtype=np.uint64)[::-1]
        self.pages = np.arange(len(self.pool), dtype=np.int32).reshape(sequences, per_sequence)
        options = {"scale": dim**-0.5} | options
        self.kernel = kernels.Attention(
            heads, kv_heads, dim, f16=f16, window=window, k_offset=0, v_offset=keys, **options
        )

    def __call__(self, q, k, v, positions, sequences=None):
        tokens = len(positions)
        owners = np.zeros(tokens, np.int32) if sequences is None else np.asarray(sequences, np.int32)
        positions = np.asarray(positions, np.int64)
        writes = np.stack([np.arange(tokens), self.pages[owners, positions // 32]], 1).astype(np.int32)
        batch = kernels.Batch(self.pool, self.pages, positions, owners, writes)
        self.kernel.append(batch, k.reshape(tokens, -1), v.reshape(tokens, -1))
        out = nans(tokens, q.shape[1] * q.shape[2])
        self.kernel.attend(batch, np.ascontiguousarray(q).reshape(tokens, -1), out)
        return out.reshape(q.shape)


def qkv(tokens, heads, kv_heads, dim, seed=11):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((tokens, n, dim)).astype(np.float32) for n in (heads, kv_heads, kv_heads))


CASES = [(1, 1, 2, 0), (6, 3, 10, 0), (5, 1, 40, 7), (7, 7, 64, 50), (30, 1, 6, 0), (4, 2, 128, 300)]


@pytest.mark.parametrize("heads, kv_heads, dim, window", CASES)
def test_attention_is_near_float64(run, heads, kv_heads, dim, window):
    tokens = 290  # more than one chunk
    q, k, v = qkv(tokens, heads, kv_heads, dim)
    got = Cache(heads, kv_heads, dim, window=window)(q, k, v, range(tokens))
    expected = reference.attention(q, k, v, range(tokens), window or None)
    assert np.abs(got - expected).max() <= 64 * 2.0**-24 * np.abs(v).max()


@pytest.mark.parametrize("f16", [False, True])
@pytest.mark.parametrize("heads, kv_heads, dim, window", CASES)
def test_attention_has_the_same_bits_every_way(heads, kv_heads, dim, window, f16):
    """Across instruction sets, threads, and however the tokens are cut into passes."""
    tokens = 290
    q, k, v = qkv(tokens, heads, kv_heads, dim)
    expected = None
    for way in every_way():
        for cuts in ([tokens], [1, 6, 25, 33, 1, 224], [285, 1, 1, 1, 1, 1]):
            cache, start, parts = Cache(heads, kv_heads, dim, f16, window), 0, []
            for n in cuts:
                at = slice(start, start + n)
                parts.append(cache(q[at], k[at], v[at], range(start, start + n)))
                start += n
            got = np.concatenate(parts)
            expected = got if expected is None else expected
            assert same_bits(got, expected), (way, cuts)


def sinks_of(heads):
    return np.linspace(-2, 3, heads).astype(np.float32)


@pytest.mark.parametrize("softcap, sinking", [(1.5, False), (0.0, True), (1.5, True)])
@pytest.mark.parametrize("heads, kv_heads, dim, window", CASES)
def test_bounded_scores_and_sinks_are_near_float64(run, heads, kv_heads, dim, window, softcap, sinking):
    tokens = 290
    q, k, v = qkv(tokens, heads, kv_heads, dim)
    sinks = sinks_of(heads) if sinking else None
    got = Cache(heads, kv_heads, dim, window=window, softcap=softcap, sinks=sinks, scale=0.7)(q, k, v, range(tokens))
    expected = reference.attention(q, k, v, range(tokens), window or None, 0.7, softcap, sinks)
    assert np.abs(got - expected).max() <= 128 * 2.0**-24 * np.abs(v).max()
    plain = reference.attention(q, k, v, range(tokens), window or None, 0.7)
    assert np.abs(got - plain).max() > 1e-2


@pytest.mark.parametrize("heads, kv_heads, dim, window", CASES)
def test_bounded_scores_and_sinks_have_the_same_bits_every_way(heads, kv_heads, dim, window):
    tokens = 290
    q, k, v = qkv(tokens, heads, kv_heads, dim)
    expected = None
    for way in every_way():
        for cuts in ([tokens], [1, 6, 25, 33, 1, 224]):
            cache = Cache(heads, kv_heads, dim, True, window, softcap=1.5, sinks=sinks_of(heads))
            ends = np.cumsum(cuts)
            at = [slice(end - n, end) for end, n in zip(ends, cuts, strict=True)]
            got = np.concatenate([cache(q[s], k[s], v[s], range(s.start, s.stop)) for s in at])
            expected = got if expected is None else expected
            assert same_bits(got, expected), (way, cuts)


def test_attention_is_blind_to_who_shares_the_pass(run):
    q, k, v = qkv(60, 6, 3, 24)
    alone = Cache(6, 3, 24)(q[:20], k[:20], v[:20], range(20))
    shared = Cache(6, 3, 24, sequences=2)(q, k, v, [*range(20), *range(40)], [0] * 20 + [1] * 40)
    assert same_bits(shared[:20], alone)


def test_what_a_truncated_sequence_left_behind_is_not_seen(run):
    q, k, v = qkv(300, 4, 2, 16)
    cache = Cache(4, 2, 16, f16=True)
    cache(q, k * 100, v * 100, range(300))
    assert same_bits(cache(q[:5], k[:5], v[:5], range(5)), Cache(4, 2, 16, f16=True)(q[:5], k[:5], v[:5], range(5)))


def test_float16_cache_rounds_to_nearest_even_and_saturates(run):
    """One position: attention gives its value back, as the cache holds it."""
    values = np.concatenate(
        [
            np.random.default_rng(12).standard_normal(900).astype(np.float32) * 10.0 ** np.linspace(-9, 5, 900),
            [
                1e30,
                -np.inf,
                65519,
                65520,
                65535,
                2**-24,
                2**-25,
                3 * 2**-25,
                2**-14 * 0.9999,
                1 + 2**-11,
                1 + 3 * 2**-11,
            ],
        ]
    ).astype(np.float32)
    for at in range(0, len(values) - len(values) % 16, 16):
        v = values[at : at + 16].reshape(1, 1, 16)
        got = Cache(1, 1, 16, f16=True)(np.zeros_like(v), np.zeros_like(v), v, [0])
        with np.errstate(over="ignore"):
            assert (got == np.clip(v.astype(np.float16).astype(np.float32), -65504, 65504)).all()


# -------------------------------------------------------------------------------------------------- the floor


def test_the_read_ceiling_reads_everything():
    data = np.full(3 << 20, 1, np.uint8)
    for _ in every_way():
        assert kernels.read_memory(data) == (3 << 17) * 0x0101010101010101 % 2**64


def test_the_arithmetic_ceiling_is_a_rate():
    assert kernels.spin(1000) > 0


def test_floats_can_be_read_back():
    buffer = kernels.Floats(np.arange(6, dtype=np.float32).reshape(3, 2))
    buffer.rows = 2
    assert (buffer.array == [[0, 1], [2, 3]]).all() and buffer.cols == 2 and buffer.capacity == 3
    with pytest.raises(PyllamaError):
        buffer.rows = 4


# ----------------------------------------------------------------------------------------------------- packed


def bf16_rows(bits16):
    rows, cols = bits16.shape
    return kernels.Matrix("BF16", rows, cols, np.ascontiguousarray(bits16).view(np.uint8).reshape(-1))


def pack(w, escapes=None):
    escapes = w.rows * w.cols if escapes is None else escapes
    out = np.full(kernels.packed_nbytes(w.rows, w.cols) + 5 * escapes, 99, np.uint8)
    nbytes = kernels.pack(w, out)
    return kernels.Matrix("BF16", w.rows, w.cols, out[:nbytes], "packed") if nbytes else None


def unpacked(packed):
    out = np.full(packed.rows * packed.cols * 2, 77, np.uint8)
    kernels.unpack(packed, out)
    return out


def trained_bits(rows, cols, seed=0, odd_ones=0):
    """Weights as training leaves them, and a few that no table covers."""
    rng = np.random.default_rng(seed)
    bits16 = (rng.standard_normal((rows, cols)).astype(np.float32) * 0.02).view(np.uint32) >> 16
    if odd_ones:
        bits16.reshape(-1)[rng.choice(bits16.size, odd_ones, replace=False)] = rng.integers(0x4000, 0x7E00, odd_ones)
    return bits16.astype(np.uint16)


def test_packing_loses_no_bit_pattern(run):
    patterns = np.arange(65536, dtype=np.uint16)
    for bits16 in (patterns.reshape(256, 256), np.random.default_rng(0).permutation(patterns).reshape(64, 1024)):
        w = bf16_rows(bits16)
        assert (unpacked(pack(w)) == w.data).all()


def test_packed_size_is_12_bits_and_5_bytes_an_escape(run):
    w = bf16_rows(trained_bits(96, 512))
    packed = pack(w)
    escapes = packed.data[16:20].view(np.uint32)[0]
    assert packed.nbytes == 64 + 96 * 512 * 12 // 8 + 4 * 4 + 5 * escapes
    assert escapes < 0.001 * 96 * 512
    if escapes:
        assert pack(w, escapes - 1) is None
    assert pack(w, escapes) is not None


@pytest.mark.parametrize("odd_ones", [0, 1, 300])
def test_packed_products_have_the_bits_of_plain_ones(odd_ones):
    for rows, cols in [(1, 1), (33, 7), (75, 300), (64, 129), (203, 512)]:
        w = bf16_rows(trained_bits(rows, cols, seed=rows, odd_ones=min(odd_ones, rows * cols // 2)))
        x = np.random.default_rng(1).standard_normal((13, cols)).astype(np.float32)
        expected = product(w, x)
        for way in every_way():
            packed = pack(w)
            assert (unpacked(packed) == w.data).all(), way
            for t in TOKENS:
                assert same_bits(product(packed, x[:t]), expected[:t]), (way, rows, cols, t)
            twice = product(kernels.Blocks((packed, w)), x)
            assert same_bits(twice, np.concatenate([expected, expected], axis=1)), (way, rows, cols)


@pytest.mark.parametrize("odd", [0x4000, 0xC0FF, 0x7F80, 0xFF80])
def test_an_escape_counts_wherever_it_is(odd):
    """In each place of a pair, in all of them, and in an odd last column: what the kernel puts right for one token."""
    rng = np.random.default_rng(2)
    bits16 = rng.integers(0x3800, 0x4000, (32, 1001)).astype(np.uint16)  # eight exponents, which fill the table
    for place in range(64):
        bits16[place % 32, 2 * place + place // 32] = odd
    bits16[:, 2 * 64 : 2 * 64 + 2] = odd
    bits16[::3, -1] = odd
    w = bf16_rows(bits16)
    x = rng.standard_normal((1, w.cols)).astype(np.float32)
    for way in every_way():
        packed = pack(w)
        assert packed.data[16:20].view(np.uint32)[0] == 64 + 64 + 11
        assert same_bits(product(packed, x), product(w, x)), way


def test_packing_gives_the_same_bytes_every_way():
    w = bf16_rows(trained_bits(203, 515, odd_ones=50))
    expected = None
    for way in every_way():
        got = pack(w).data
        expected = got if expected is None else expected
        assert got.size == expected.size and (got == expected).all(), way


def test_a_damaged_packed_block_is_refused_or_harmless():
    w = bf16_rows(trained_bits(70, 130, odd_ones=40))
    good = pack(w).data.copy()
    x = np.ones((2, 130), np.float32)
    rng = np.random.default_rng(3)
    body = 64 + 3 * 96 * 65
    escapes = int(good[16:20].view(np.uint32)[0])
    assert escapes >= 40
    words = np.frombuffer(good[body : body + 4 * (4 + escapes)].tobytes(), np.uint32)
    for word, value in (
        (0, 1),
        (1, 2**31),
        (1, words[2] + 1),
        (3, escapes - 1),
        (3, 0),
        (4, 65 << 6),
        (5, 0xFFFFFFFF),
        (5, words[4]),
        (4 + int(words[1]) - 1, 0),
    ):
        bad = good.copy()
        bad[body + 4 * word : body + 4 * word + 4] = np.array([value], np.uint32).view(np.uint8)
        with pytest.raises(PyllamaError, match="damaged"):
            kernels.Matrix("BF16", 70, 130, bad, "packed")
    for at in [*range(16, 20), *rng.integers(0, good.size, 200), *rng.integers(body, good.size, 400)]:
        bad = good.copy()
        bad[at] ^= rng.integers(1, 256)
        try:
            damaged = kernels.Matrix("BF16", 70, 130, bad, "packed")
        except PyllamaError:
            continue
        product(damaged, x)
        product(damaged, x[:1])
        unpacked(damaged)
    for n in (0, 10, 64, good.size - 1):
        with pytest.raises(PyllamaError):
            kernels.Matrix("BF16", 70, 130, good[:n], "packed")
    with pytest.raises(PyllamaError):
        kernels.Matrix("F16", 70, 130, good, "packed")
