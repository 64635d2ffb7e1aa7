"""The kernels alone, on a matrix larger than the caches: one token in GB/s, many in GFLOP/s, attention in GB/s."""

import time
from collections.abc import Callable
from statistics import median

import numpy as np

from pyllama import _kernels
from pyllama.decoder.page_pool import POSITIONS, PagePool, View
from pyllama.decoder.shape import Heads, Shape
from pyllama.measure.ceilings import ones
from pyllama.streaming.memory import huge_empty

COLS = 4096
TOKENS = 64
HEADS, HEAD_DIM = 32, 128
QUANTIZED = ("Q4_0", "Q8_0", "Q4_K", "Q6_K")  # what most files hold


def bfloat16_rows(rows: int, cols: int) -> np.ndarray:
    """Weights as training leaves them, near enough: normal, deviation 0.02, so that exponents pack. uint8."""
    random = np.random.default_rng(1)
    out = huge_empty(2 * rows * cols)
    view = out.view(np.uint16).reshape(rows, cols)
    for row in range(0, rows, 256):
        count = min(256, rows - row)
        normal = random.standard_normal((count, cols), np.float32) * np.float32(0.02)
        view[row : row + count] = normal.view(np.uint32) >> 16
    return out


def matrices(nbytes: int, cols: int = COLS) -> dict[str, "_kernels.Matrix"]:
    """layout -> the same bfloat16 matrix of about `nbytes`."""
    rows = max(_kernels.PANEL, nbytes // (2 * cols) // _kernels.PANEL * _kernels.PANEL)
    plain = _kernels.Matrix("BF16", rows, cols, bfloat16_rows(rows, cols))
    panels = huge_empty(_kernels.panels_nbytes("BF16", rows, cols))
    _kernels.to_panels(plain, panels)
    made = {"rows": plain, "panels": _kernels.Matrix("BF16", rows, cols, panels, "panels")}
    packed = huge_empty(int(_kernels.packed_nbytes(rows, cols) * 1.05) + 4096)
    if size := _kernels.pack(plain, packed):
        made["packed"] = _kernels.Matrix("BF16", rows, cols, packed[:size], "packed")
    return made


def quantized(plain: "_kernels.Matrix", dtype: str) -> "_kernels.Matrix":
    """The weights of a matrix in another format, in panels; of their bytes a pattern, which no rate depends on."""
    rows, cols = plain.rows, plain.cols
    data = huge_empty(_kernels.panels_nbytes(dtype, rows, cols))
    data[:] = np.resize(np.arange(1, 120, dtype=np.uint8), len(data))
    return _kernels.Matrix(dtype, rows, cols, data, "panels")


def product_s(matrix: "_kernels.Matrix", tokens: int, seconds: float = 0.3) -> float:
    """Seconds of one product with `tokens` tokens."""
    x, out = ones(tokens, matrix.cols), np.empty((tokens, matrix.rows), np.float32)
    made = _kernels.Input(tokens, matrix.cols)
    return _median_s(lambda: _kernels.matmul(matrix, made.take(x), out), seconds)


def many_gflop_s(matrix: "_kernels.Matrix", seconds: float) -> float:
    return 2e-9 * matrix.rows * matrix.cols * TOKENS / product_s(matrix, TOKENS, seconds)


def attention_s(positions: int, seconds: float = 0.3) -> tuple[float, int]:
    """Seconds of a token's attention over so many positions of a layer, and the bytes of cache it reads."""
    size = HEADS * HEAD_DIM
    shape = Shape(size, (Heads(HEADS, HEADS, HEAD_DIM, 0),), intermediate_size=1, vocab_size=1)
    pool = PagePool(shape, [View(None, HEAD_DIM**-0.5)])
    (attention,) = pool.attention
    assert attention is not None  # there are heads
    pages = np.arange(-(-positions // POSITIONS), dtype=np.int32)[None]
    for page in pages[0]:  # pages never written to would all be one page of zeros
        pool.read(page).view(np.float16)[:] = 0.5
    last = np.array([positions - 1], np.int64)
    where = _kernels.Batch(pool.addresses, pages, last, np.zeros(1, np.int32), np.zeros((0, 2), np.int32))
    query, out = ones(1, size), np.empty((1, size), np.float32)
    taken = _median_s(lambda: attention.attend(where, query, out), seconds)
    return taken, pool.nbytes


def measure(threads: int, nbytes: int, *, positions: int = 2048, seconds: float = 0.3) -> list[dict]:
    """name, value, unit and which ceiling it stands beside ("read" or "peak"), of each kernel."""
    _kernels.set_num_threads(threads)
    found = []

    def add(name: str, rate: float, unit: str) -> None:
        beside = "read" if unit == "GB/s" else "peak"
        found.append({"name": name, "value": rate, "unit": unit, "beside": beside})

    def one(name: str, matrix: "_kernels.Matrix") -> None:
        add(f"product of 1 token, {name}", matrix.nbytes / 1e9 / product_s(matrix, 1, seconds), "GB/s")

    def many(name: str, matrix: "_kernels.Matrix") -> None:
        add(f"product of {TOKENS} tokens, {name}", many_gflop_s(matrix, seconds), "GFLOP/s")

    made = matrices(nbytes)
    for layout, matrix in made.items():
        one(f"bf16 {layout}", matrix)
    for dtype in QUANTIZED:
        matrix = quantized(made["rows"], dtype)
        one(dtype, matrix)
        many(dtype, matrix)
    for layout in ("panels", "packed"):
        if layout in made:
            many(f"bf16 {layout}", made[layout])
    taken, read = attention_s(positions, seconds)
    add(f"attention over {positions} positions", read / 1e9 / taken, "GB/s")
    return found


def quick(threads: int, nbytes: int, seconds: float) -> tuple[float, float, float]:
    """GFLOP/s of products of 64 tokens, bfloat16 and Q4_K, and GB/s of packing bfloat16."""
    _kernels.set_num_threads(threads)
    made = matrices(nbytes)
    matrix, plain = made["panels"], made["rows"]
    rate, whole = many_gflop_s(matrix, seconds), many_gflop_s(quantized(plain, "Q4_K"), seconds)
    packed = huge_empty(int(_kernels.packed_nbytes(plain.rows, plain.cols) * 1.05) + 4096)
    return rate, whole, plain.nbytes / 1e9 / _median_s(lambda: _kernels.pack(plain, packed), seconds)


def _median_s(call: Callable[[], object], seconds: float) -> float:
    call()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return median(times)
