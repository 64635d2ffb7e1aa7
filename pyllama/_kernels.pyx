# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""NumPy arrays in, the C kernels of csrc/kernels.h out.

This file checks shapes, releases the GIL and picks the instruction set; the
mathematics and its canonical order are in csrc. Knows nothing of models.
"""

import os

from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

from .errors import PyllamaError


cdef extern from "kernels.h" nogil:
    enum:
        PANEL_ROWS
        DT_COUNT
    ctypedef int pl_dtype
    ctypedef struct pl_format:
        const char *name
        int cols
        int nbytes
    const pl_format pl_formats[]
    ctypedef struct pl_matrix:
        pl_dtype dtype
        int panels
        int64_t rows
        int64_t cols
        size_t row_nbytes
        const uint8_t *data
    ctypedef struct pl_attention:
        int heads
        int kv_heads
        int head_dim
        int f16
        int64_t window
        float scale
        size_t k_offset
        size_t v_offset
        const uint64_t *pages
        int64_t max_pages
        const int64_t *positions
        const int32_t *sequences
    ctypedef struct pl_kernels:
        const char *isa
        void (*exp)(const float *x, float *out, int64_t first, int64_t last) nogil
    const pl_kernels *pl_kernels_scalar()
    const pl_kernels *pl_kernels_avx2()
    const pl_kernels *pl_kernels_neon()
    int pl_matmul(const pl_kernels *k, int threads, const pl_matrix *w, const float *x, int64_t tokens, float *out,
                  size_t ldo, int64_t row)
    void pl_pack_panels(const pl_kernels *k, int threads, const pl_matrix *rows, uint8_t *out)
    void pl_widen(const pl_kernels *k, int threads, const pl_matrix *rows, float *out)
    void pl_rmsnorm(const pl_kernels *k, int threads, const float *x, const float *weight, float eps, int64_t rows,
                    int64_t cols, float *out)
    void pl_rope(const pl_kernels *k, int threads, float *x, const float *cos, const float *sin, int64_t tokens,
                 int heads, int head_dim, int interleaved)
    void pl_swiglu(const pl_kernels *k, int threads, const float *gate, const float *up, float *out, int64_t n)
    void pl_cache_append(const pl_kernels *k, int threads, const pl_attention *a, const float *k_new,
                         const float *v_new, int64_t tokens)
    int pl_attend(const pl_kernels *k, int threads, const pl_attention *a, const float *q, int64_t tokens, float *out)
    double pl_spin(const pl_kernels *k, int threads, int64_t rounds)
    uint64_t pl_read_memory(int threads, const uint8_t *data, size_t nbytes)
    int pl_openmp()
    void pl_rope_table(const int64_t *positions, int64_t tokens, const double *inv_freq, int64_t half, double scale,
                       float *cos, float *sin)


PANEL = PANEL_ROWS
MAX_HEAD_DIM = 1024
DTYPES = tuple((<bytes>pl_formats[i].name).decode() for i in range(DT_COUNT))

cdef dict _dtype_index = {name: i for i, name in enumerate(DTYPES)}
cdef const pl_kernels *_kernels = NULL
cdef int _threads = 1


cdef const pl_kernels *_find(str name) except? NULL:
    if name == "scalar":
        return pl_kernels_scalar()
    if name == "avx2":
        return pl_kernels_avx2()
    if name == "neon":
        return pl_kernels_neon()
    return NULL


def supported_isas():
    """The instruction sets this build and this CPU have, best first."""
    return tuple(name for name in ("avx2", "neon", "scalar") if _find(name) != NULL)


def isa():
    """The instruction set in use: "scalar", "avx2" or "neon"."""
    return (<bytes>_kernels.isa).decode()


def set_isa(str name):
    """Use one of supported_isas(); the bits stay the same. Raises PyllamaError for any other name."""
    global _kernels
    cdef const pl_kernels *found = _find(name)
    if found == NULL:
        raise PyllamaError(f"isa {name!r} is not available here, expected one of {', '.join(supported_isas())}")
    _kernels = found


def num_threads():
    """Threads a kernel runs on."""
    return _threads


def set_num_threads(int n):
    """Run kernels on n threads, n >= 1 (1 in a build without OpenMP); the bits stay the same."""
    global _threads
    if n < 1 or n > 1024:
        raise PyllamaError(f"threads: got {n}, expected 1 to 1024")
    _threads = n if pl_openmp() else 1


def openmp():
    """Whether this build has OpenMP."""
    return bool(pl_openmp())


set_isa(os.environ.get("PYLLAMA_ISA") or supported_isas()[0])


def row_nbytes(str dtype, int64_t cols):
    """Bytes of one stored row of `cols` weights."""
    cdef const pl_format *f = _format(dtype)
    if f.nbytes == 4:
        return cols * (4 if f.cols == 1 else 2)
    if cols % f.cols:
        raise PyllamaError(f"{dtype}: rows of {cols} weights, expected a multiple of {f.cols}")
    return cols // f.cols * f.nbytes


def panels_nbytes(str dtype, int64_t rows, int64_t cols):
    """Bytes of a matrix in panel layout: whole panels of 32 rows, 16-bit columns in pairs."""
    cdef const pl_format *f = _format(dtype)
    return (rows + PANEL_ROWS - 1) // PANEL_ROWS * PANEL_ROWS * ((cols + f.cols - 1) // f.cols * f.nbytes)


cdef const pl_format *_format(str dtype) except NULL:
    if dtype not in _dtype_index:
        raise PyllamaError(f"dtype {dtype!r} has no kernel, expected one of {', '.join(DTYPES)}")
    return &pl_formats[<int>_dtype_index[dtype]]


cdef class Matrix:
    """A block of weights, rows x cols, where it lies in memory.

    dtype   one of DTYPES
    data    bytes, 1-D uint8: row_nbytes(dtype, cols) a row, as in the checkpoint ("rows"), or the same
            bytes with 32 rows side by side, from pack_panels ("panels", panels_nbytes in all). Kept alive
            and not copied; must not change while in use.
    """
    cdef pl_matrix c
    cdef readonly object data
    cdef readonly str dtype
    cdef readonly str layout

    def __init__(self, str dtype, int64_t rows, int64_t cols, data, str layout="rows"):
        cdef const uint8_t[::1] view = data
        if rows < 1 or cols < 1:
            raise PyllamaError(f"matrix of {rows} x {cols}, expected at least 1 x 1")
        if layout not in ("rows", "panels"):
            raise PyllamaError(f"layout {layout!r}, expected 'rows' or 'panels'")
        self.c.row_nbytes = row_nbytes(dtype, cols)
        expected = panels_nbytes(dtype, rows, cols) if layout == "panels" else rows * self.c.row_nbytes
        if view.shape[0] != expected:
            raise PyllamaError(f"{dtype} matrix of {rows} x {cols} in {layout}: {view.shape[0]} bytes, expected {expected}")
        self.c.dtype = _dtype_index[dtype]
        self.c.panels = layout == "panels"
        self.c.rows = rows
        self.c.cols = cols
        self.c.data = &view[0]
        self.data = data
        self.dtype = dtype
        self.layout = layout

    @property
    def rows(self):
        return self.c.rows

    @property
    def cols(self):
        return self.c.cols

    @property
    def nbytes(self):
        return self.data.nbytes


def matmul(Matrix w, const float[:, ::1] x, float[:, ::1] out, int64_t row=0):
    """out[:, row : row + w.rows] = x @ w.T, float32 activations and accumulation.

    w    (rows, cols) in any dtype and layout
    x    (T, cols)  float32
    out  (T, at least row + rows)  float32; must not overlap x

    Sums in the canonical order (MODEL.md, "Numerics"): the bits depend on nothing but w and x. Reads
    w once, whatever T is.
    """
    cdef int64_t tokens = x.shape[0]
    cdef int failed
    if x.shape[1] != w.c.cols or out.shape[0] != tokens or row < 0 or row + w.c.rows > out.shape[1]:
        raise PyllamaError(f"matmul: x ({x.shape[0]}, {x.shape[1]}) by w ({w.c.rows}, {w.c.cols}) "
                           f"into out ({out.shape[0]}, {out.shape[1]}) at row {row}")
    if tokens == 0:
        return
    with nogil:
        failed = pl_matmul(_kernels, _threads, &w.c, &x[0, 0], tokens, &out[0, 0], out.shape[1], row)
    if failed:
        raise MemoryError("matmul: no memory for the packed activations")


def pack_panels(Matrix w, uint8_t[::1] out):
    """The rows of w as panels: the same bytes, 32 rows side by side. out has panels_nbytes(...) bytes."""
    if w.c.panels or out.shape[0] != panels_nbytes(w.dtype, w.c.rows, w.c.cols):
        raise PyllamaError(f"pack_panels: {w.layout} of {w.c.rows} x {w.c.cols} into {out.shape[0]} bytes")
    with nogil:
        pl_pack_panels(_kernels, _threads, &w.c, &out[0])


def widen(Matrix w, float[:, ::1] out):
    """out = the weights as float32, exactly as the format defines them. w in rows; out (rows, cols)."""
    if w.c.panels or out.shape[0] != w.c.rows or out.shape[1] != w.c.cols:
        raise PyllamaError(f"widen: {w.layout} of {w.c.rows} x {w.c.cols} into ({out.shape[0]}, {out.shape[1]})")
    with nogil:
        pl_widen(_kernels, _threads, &w.c, &out[0, 0])


def rmsnorm(const float[:, ::1] x, const float[::1] weight, float eps, float[:, ::1] out):
    """out = x / sqrt(mean(x**2, axis=1) + eps) * weight. x, out (T, n); weight (n,); out may be x."""
    if x.shape[1] != weight.shape[0] or out.shape[0] != x.shape[0] or out.shape[1] != x.shape[1]:
        raise PyllamaError(f"rmsnorm: x ({x.shape[0]}, {x.shape[1]}), weight ({weight.shape[0]},), "
                           f"out ({out.shape[0]}, {out.shape[1]})")
    if x.shape[0] == 0 or x.shape[1] == 0:
        return
    with nogil:
        pl_rmsnorm(_kernels, _threads, &x[0, 0], &weight[0], eps, x.shape[0], x.shape[1], &out[0, 0])


def rope_table(const int64_t[::1] positions, const double[::1] inv_freq, double scale, float[:, ::1] cos,
               float[:, ::1] sin):
    """cos, sin (T, D/2) of positions (T,) * inv_freq (D/2,), times scale: in float64, then rounded once."""
    cdef int64_t tokens = positions.shape[0], half = inv_freq.shape[0]
    if cos.shape[0] != tokens or sin.shape[0] != tokens or cos.shape[1] != half or sin.shape[1] != half:
        raise PyllamaError(f"rope_table: {tokens} positions, {half} frequencies, cos ({cos.shape[0]}, {cos.shape[1]})")
    if tokens and half:
        with nogil:
            pl_rope_table(&positions[0], tokens, &inv_freq[0], half, scale, &cos[0, 0], &sin[0, 0])


def rope(float[:, ::1] x, const float[:, ::1] cos, const float[:, ::1] sin, int heads, bint interleaved=False):
    """Rotate, in place, each head of x (T, heads * D) by the angles of cos, sin (T, D/2).

    Pairs are (i, i + D/2). interleaved: pairs (2i, 2i + 1) are read, as in Meta's and GGUF's layout, and
    stored half-split, so that both layouts give the same bits from here on.
    """
    cdef int64_t tokens = x.shape[0]
    cdef int head_dim = 2 * <int>cos.shape[1]
    if (heads < 1 or x.shape[1] != heads * head_dim or cos.shape[0] != tokens or sin.shape[0] != tokens
            or sin.shape[1] != cos.shape[1] or head_dim > MAX_HEAD_DIM):
        raise PyllamaError(f"rope: x ({tokens}, {x.shape[1]}), {heads} heads, cos ({cos.shape[0]}, {cos.shape[1]})")
    if tokens == 0 or head_dim == 0:
        return
    with nogil:
        pl_rope(_kernels, _threads, &x[0, 0], &cos[0, 0], &sin[0, 0], tokens, heads, head_dim, interleaved)


def swiglu(const float[:, ::1] gate, const float[:, ::1] up, float[:, ::1] out):
    """out = gate / (1 + exp(-gate)) * up, elementwise, (T, n); out may be gate or up."""
    cdef int64_t n = gate.shape[0] * gate.shape[1]
    if up.shape[0] * up.shape[1] != n or out.shape[0] * out.shape[1] != n:
        raise PyllamaError(f"swiglu: gate {gate.shape[0]} x {gate.shape[1]}, up {up.shape[0]} x {up.shape[1]}, "
                           f"out {out.shape[0]} x {out.shape[1]}")
    if n == 0:
        return
    with nogil:
        pl_swiglu(_kernels, _threads, &gate[0, 0], &up[0, 0], &out[0, 0], n)


def exp(const float[::1] x, float[::1] out):
    """out = exp(x) in float32, under 2 ulp, the same bits on every machine; 0 below -86.5."""
    if x.shape[0] != out.shape[0]:
        raise PyllamaError(f"exp: x ({x.shape[0]},), out ({out.shape[0]},)")
    if x.shape[0]:
        with nogil:
            _kernels.exp(&x[0], &out[0], 0, x.shape[0])


cdef class AttentionSpec:
    """What attention of one layer needs besides q, k and v.

    heads, kv_heads, head_dim
    f16                  pages hold float16 (saturated) rather than float32
    window               positions a query sees, itself included; 0: all of them
    scale                multiplies q . k
    k_offset, v_offset   bytes from a page's start to this layer's keys and values
    """
    cdef pl_attention c

    def __init__(self, int heads, int kv_heads, int head_dim, *, bint f16, int64_t window, float scale,
                 size_t k_offset, size_t v_offset):
        if heads < 1 or kv_heads < 1 or heads % kv_heads or head_dim < 1 or head_dim > MAX_HEAD_DIM or window < 0:
            raise PyllamaError(f"attention: {heads} heads, {kv_heads} key/value heads, head_dim {head_dim}, window {window}")
        self.c.heads = heads
        self.c.kv_heads = kv_heads
        self.c.head_dim = head_dim
        self.c.f16 = f16
        self.c.window = window
        self.c.scale = scale
        self.c.k_offset = k_offset
        self.c.v_offset = v_offset


cdef pl_attention _attention(AttentionSpec spec, const uint64_t[:, ::1] pages, const int64_t[::1] positions,
                             const int32_t[::1] sequences, int64_t tokens) except *:
    cdef pl_attention a = spec.c
    cdef int64_t t
    if positions.shape[0] != tokens or sequences.shape[0] != tokens:
        raise PyllamaError(f"attention: {tokens} tokens, {positions.shape[0]} positions, {sequences.shape[0]} sequences")
    for t in range(tokens):
        if (sequences[t] < 0 or sequences[t] >= pages.shape[0]
                or positions[t] < 0 or positions[t] >= pages.shape[1] * PANEL_ROWS):
            raise PyllamaError(f"attention: token {t} at position {positions[t]} of sequence {sequences[t]}, "
                               f"pages ({pages.shape[0]}, {pages.shape[1]})")
    a.pages = &pages[0, 0]
    a.max_pages = pages.shape[1]
    a.positions = &positions[0]
    a.sequences = &sequences[0]
    return a


def cache_append(AttentionSpec spec, const float[:, ::1] k, const float[:, ::1] v, const uint64_t[:, ::1] pages,
                 const int64_t[::1] positions, const int32_t[::1] sequences):
    """Put k, v (T, kv_heads * head_dim) at `positions` of their sequences' pages.

    pages  (sequences, max_pages)  addresses of pages of 32 positions, laid out as kv_cache.py says; the
           caller keeps them alive and zeroed them once
    """
    cdef int64_t tokens = k.shape[0]
    cdef int64_t width = spec.c.kv_heads * spec.c.head_dim
    if k.shape[1] != width or v.shape[1] != width or v.shape[0] != tokens:
        raise PyllamaError(f"cache_append: k ({tokens}, {k.shape[1]}), v ({v.shape[0]}, {v.shape[1]}), expected {width} columns")
    if tokens == 0:
        return
    cdef pl_attention a = _attention(spec, pages, positions, sequences, tokens)
    with nogil:
        pl_cache_append(_kernels, _threads, &a, &k[0, 0], &v[0, 0], tokens)


def attention(AttentionSpec spec, const float[:, ::1] q, const uint64_t[:, ::1] pages,
              const int64_t[::1] positions, const int32_t[::1] sequences, float[:, ::1] out):
    """out[t, h] = softmax(q[t, h] . keys * scale) . values over the positions up to that of t, in its window.

    q, out (T, heads * head_dim); the rest as for cache_append. Each token's bits depend on its own
    sequence alone (MODEL.md, "Numerics"). Reads each page once per 24 queries.
    """
    cdef int64_t tokens = q.shape[0]
    cdef int64_t width = spec.c.heads * spec.c.head_dim
    cdef int failed
    if q.shape[1] != width or out.shape[0] != tokens or out.shape[1] != width:
        raise PyllamaError(f"attention: q ({tokens}, {q.shape[1]}), out ({out.shape[0]}, {out.shape[1]}), expected {width} columns")
    if tokens == 0:
        return
    cdef pl_attention a = _attention(spec, pages, positions, sequences, tokens)
    with nogil:
        failed = pl_attend(_kernels, _threads, &a, &q[0, 0], tokens, &out[0, 0])
    if failed:
        raise MemoryError("attention: no memory for scratch")


def read_memory(const uint8_t[::1] data):
    """Read `data` once on all threads (whole MiB) and return a checksum: the DRAM ceiling of bench."""
    cdef uint64_t total
    with nogil:
        total = pl_read_memory(_threads, &data[0], data.shape[0])
    return total


def spin(int64_t rounds):
    """Floating-point operations a second of float32 multiply-adds in registers, on all threads: the peak."""
    cdef double rate
    with nogil:
        rate = pl_spin(_kernels, _threads, rounds)
    return rate
