# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""NumPy arrays in, the C kernels of csrc/kernels.h out.

This file checks shapes, releases the GIL and picks the instruction set; the
mathematics and its canonical order are in csrc. Knows nothing of models.
"""

import os

from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc, realloc

from .errors import PyllamaError


cdef extern from "kernels.h" nogil:
    enum:
        PANEL_ROWS, PACKED_HEADER, PAIR_NBYTES
        DT_COUNT
        LAYOUT_ROWS
        LAYOUT_PANELS
        LAYOUT_PACKED
        FORM_COUNT
        MAX_EXPERTS
        LARGEST_HEAD "MAX_HEAD_DIM"
    ctypedef int pl_dtype
    ctypedef int pl_layout
    ctypedef int pl_form
    pl_form pl_form_of(pl_dtype dtype)
    ctypedef struct pl_input:
        int64_t tokens
    ctypedef struct pl_write:
        int32_t token
        int32_t page
    ctypedef struct pl_format:
        const char *name
        int cols
        int nbytes
    const pl_format pl_formats[]
    ctypedef struct pl_matrix:
        pl_dtype dtype
        pl_layout layout
        int64_t rows
        int64_t cols
        size_t row_nbytes
        const uint8_t *data
    ctypedef struct pl_out:
        int64_t blocks
        float *p
        size_t stride
    ctypedef struct pl_batch:
        int64_t tokens
        int64_t max_pages
        const uint64_t *pool
        const int32_t *pages
        const int64_t *positions
        const int32_t *sequences
        const pl_write *writes
        int64_t write_count
    ctypedef struct pl_attention:
        int heads
        int kv_heads
        int head_dim
        int f16
        int64_t window
        float scale
        float softcap
        const float *sinks
        size_t k_offset
        size_t v_offset
    enum:
        MAX_CONV
    ctypedef struct pl_store:
        int32_t step
        int32_t slot
    ctypedef struct pl_walk:
        int64_t texts
        const uint64_t *slots
        const int32_t *sources
        const int32_t *starts
        const int32_t *steps
        const int32_t *store_starts
        const pl_store *stores
    ctypedef struct pl_conv:
        int64_t channels
        int width
        int silu
        const float *x
        int64_t stride_x
        const float *weight
        const float *bias
        size_t offset
        int64_t stride
        float *out
    ctypedef struct pl_delta:
        int key_heads
        int value_heads
        int key_dim
        int value_dim
        int tiled
        const float *q
        const float *k
        const float *v
        const float *decay
        const float *beta
        size_t offset
        float *out
    ctypedef struct pl_kernels:
        const char *isa
        void (*exp)(const float *x, float *out, int64_t first, int64_t last) nogil
    const pl_kernels *pl_isa(int index)
    enum:
        MAX_STACKS
        CALL_INPUT, CALL_MATMUL, CALL_RMSNORM, CALL_ROPE, CALL_ADD, CALL_SCALE, CALL_SWIGLU, CALL_GEGLU, CALL_APPEND
        CALL_ATTEND
    ctypedef struct pl_call_input:
        const float *x
        void *memory
        pl_input *out
        int64_t tokens
        int64_t cols
        pl_form form
    ctypedef struct pl_call_matmul:
        const pl_matrix *w
        const pl_input *x
        pl_out *out
        int outs
    ctypedef struct pl_call_rmsnorm:
        const float *x
        const float *weight
        float *out
        int64_t rows
        int64_t cols
        float eps
    ctypedef struct pl_call_rope:
        float *x
        const float *cos
        const float *sin
        int64_t tokens
        int heads
        int head_dim
        int rotated
        int interleaved
    ctypedef struct pl_call_add:
        const float *x
        const float *y
        float *out
        int64_t rows
        int64_t cols
        float factor
        int broadcast
    ctypedef struct pl_call_glu:
        const float *gate
        const float *up
        float *out
        int64_t n
    ctypedef struct pl_call_attention:
        pl_attention *a
        const float *q
        const float *k
        const float *v
        float *out
    ctypedef struct pl_call:
        int what
        pl_call_input input
        pl_call_matmul matmul
        pl_call_rmsnorm rmsnorm
        pl_call_rope rope
        pl_call_add add
        pl_call_glu glu
        pl_call_attention attention
    int pl_make_calls(const pl_kernels *k, int threads, const pl_call *calls, int64_t n, const pl_batch *batch)
    size_t pl_input_nbytes(pl_form form, int64_t tokens, int64_t cols)
    void pl_to_panels(const pl_kernels *k, int threads, const pl_matrix *rows, uint8_t *out)
    size_t pl_packed_panels_nbytes(int64_t rows, int64_t cols)
    int64_t pl_pack(const pl_kernels *k, int threads, const pl_matrix *rows, uint8_t *out, size_t capacity)
    void pl_unpack(const pl_kernels *k, int threads, const pl_matrix *w, uint8_t *out)
    int pl_packed_valid(const pl_matrix *w, size_t nbytes)
    void pl_widen(const pl_kernels *k, int threads, const pl_matrix *rows, float *out)
    void pl_mix(const pl_kernels *k, int threads, const float *y, const int32_t *rows, const float *weights,
                int64_t tokens, int chosen, int64_t cols, float *out)
    void pl_join_mxfp4(const uint8_t *codes, int64_t codes_stride, const uint8_t *scales, int64_t scales_stride,
                       int64_t rows, int64_t blocks, uint8_t *out)
    void pl_route_sigmoid(const pl_kernels *k, const float *logits, const float *bias, int64_t tokens, int experts,
                          int chosen, int of_chosen, float scale, int32_t *ids, float *weights)
    void pl_route(const pl_kernels *k, const float *logits, int64_t tokens, int experts, int chosen, int of_chosen,
                  int32_t *ids, float *weights)
    void pl_clamped_swiglu(const pl_kernels *k, int threads, const float *gate, const float *up, float alpha,
                           float limit, float *out, int64_t n)
    void pl_softcap(const pl_kernels *k, int threads, const float *x, float cap, float *out, int64_t n)
    void pl_conv_walk(const pl_kernels *k, int threads, const pl_walk *w, const pl_conv *c)
    void pl_sigmoid_gate(const pl_kernels *k, int threads, const float *x, const float *gate, float *out, int64_t n)
    int pl_delta_walk(const pl_kernels *k, int threads, const pl_walk *w, const pl_delta *d)
    void pl_delta_gates(const pl_kernels *k, const float *a, const float *b, const float *rate, const float *bias,
                        int64_t tokens, int64_t heads, float *decay, float *beta)
    double pl_spin(const pl_kernels *k, int threads, int64_t rounds)
    uint64_t pl_read_memory(int threads, const uint8_t *data, size_t nbytes)
    int pl_openmp()
    const char *pl_cpu_feature(int index)
    void pl_rope_table(const int64_t *positions, int64_t tokens, const double *inv_freq, int64_t half, double scale,
                       float *cos, float *sin)
    void pl_draw(const int64_t *ids, const float *logits, int64_t n, uint64_t seed, uint64_t index, int64_t count,
                 int64_t *best, double *scores)

cdef extern from "quantize.h" nogil:
    int pl_quantize(int threads, pl_dtype dtype, const float *x, const float *importance, int64_t rows, int64_t cols,
                    uint8_t *out)

cdef extern from "stdlib.h" nogil:
    void *aligned_alloc(size_t alignment, size_t nbytes)


PANEL = PANEL_ROWS
PACKED_TABLE = PACKED_HEADER  # bytes before the panels of a packed block
PACKED_PAIR = PAIR_NBYTES  # of two packed columns of a panel
MAX_HEAD_DIM = LARGEST_HEAD
MAX_ROUTED = MAX_EXPERTS  # experts of a layer
DTYPES = {(<bytes>pl_formats[i].name).decode(): (pl_formats[i].cols, pl_formats[i].nbytes) for i in range(DT_COUNT)}

cdef dict _layout_index = {"rows": LAYOUT_ROWS, "panels": LAYOUT_PANELS, "packed": LAYOUT_PACKED}
cdef dict _dtype_index = {name: i for i, name in enumerate(DTYPES)}
cdef const pl_kernels *_table = NULL
cdef int _threads = 1


cdef list _names(const char *(*name_of)(int) noexcept):
    """Those of numbers 0, 1, ... up to the first without a name."""
    cdef list found = []
    cdef const char *name = name_of(0)
    while name != NULL:
        found.append((<bytes>name).decode())
        name = name_of(<int>len(found))
    return found


cdef const char *_isa_name(int index) noexcept:
    cdef const pl_kernels *found = pl_isa(index)
    return found.isa if found != NULL else NULL


cdef const char *_cpu_feature(int index) noexcept:
    return pl_cpu_feature(index)


def supported_isas():
    """The instruction sets this build and this CPU have, best first."""
    return tuple(_names(_isa_name))


def isa():
    """The instruction set in use, one of supported_isas()."""
    return (<bytes>_table.isa).decode()


def set_isa(str name):
    """Use one of supported_isas(); the bits stay the same. Raises PyllamaError for any other name."""
    global _table
    cdef tuple names = supported_isas()
    if name not in names:
        raise PyllamaError(f"isa {name!r} is not available here, expected one of {', '.join(names)}")
    _table = pl_isa(<int>names.index(name))


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


def cpu_features():
    """Names of the vector extensions this CPU has, used or not, as Linux calls them."""
    return tuple(_names(_cpu_feature))


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
    data    bytes, 1-D uint8: row_nbytes(dtype, cols) a row, as in the checkpoint ("rows"); the same bytes
            with 32 rows side by side, from to_panels ("panels", panels_nbytes in all); or a 12-bit block
            from pack ("packed", BF16 only, on a 4-byte boundary). Kept alive and not copied; must not
            change while in use.

    Raises PyllamaError for sizes that do not agree and for a packed block that is not well-formed.
    """
    cdef pl_matrix c
    cdef readonly object data
    cdef readonly str dtype
    cdef readonly str layout

    def __cinit__(self, str dtype, int64_t rows, int64_t cols, data, str layout="rows"):
        cdef const uint8_t[::1] view = data
        if rows < 1 or cols < 1:
            raise PyllamaError(f"matrix of {rows} x {cols}, expected at least 1 x 1")
        if layout not in _layout_index or (layout == "packed" and dtype != "BF16"):
            raise PyllamaError(f"layout {layout!r} of {dtype}, expected 'rows' or 'panels', or 'packed' for BF16")
        self.c.row_nbytes = row_nbytes(dtype, cols)
        self.c.dtype = _dtype_index[dtype]
        self.c.layout = _layout_index[layout]
        self.c.rows = rows
        self.c.cols = cols
        self.c.data = &view[0] if view.shape[0] else NULL
        if layout == "packed":
            if not pl_packed_valid(&self.c, view.shape[0]):
                raise PyllamaError(f"packed matrix of {rows} x {cols}: the {view.shape[0]} bytes are damaged")
        else:
            expected = panels_nbytes(dtype, rows, cols) if layout == "panels" else rows * self.c.row_nbytes
            if view.shape[0] != expected:
                raise PyllamaError(f"{dtype} matrix of {rows} x {cols} in {layout}: {view.shape[0]} bytes, "
                                   f"expected {expected}")
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


cdef class Blocks:
    """Stacks of matrices, all of as many columns: what matmul takes for one.

    A stack's matrices lie one below the other in its own output. What many matrices, in many blocks each, then cost the
    threads is one meeting, not one a block.

    rows  of each stack
    """
    cdef pl_matrix *c
    cdef int64_t blocks[MAX_STACKS]  # of each stack
    cdef int stacks
    cdef unsigned forms  # a bit for each that their formats take
    cdef tuple matrices  # kept alive
    cdef readonly tuple rows
    cdef readonly int64_t cols

    def __cinit__(self, *stacks):
        cdef Matrix each
        cdef int64_t n
        cdef list lists = [tuple(stack) for stack in stacks]
        if not 1 <= len(lists) <= MAX_STACKS or not all(lists):
            raise PyllamaError(f"blocks: {[len(stack) for stack in lists]} matrices, expected 1 to {MAX_STACKS} stacks of some")
        self.matrices = sum(lists, ())
        self.c = <pl_matrix *>malloc(len(self.matrices) * sizeof(pl_matrix))
        if self.c == NULL:
            raise MemoryError("blocks: no memory for the list")
        for n, matrix in enumerate(self.matrices):
            each = <Matrix?>matrix
            if n and each.c.cols != self.cols:
                raise PyllamaError(f"blocks: {each.c.cols} columns beside {self.cols}")
            self.c[n] = each.c
            self.cols = each.c.cols
            self.forms |= 1u << pl_form_of(each.c.dtype)
        for stack in lists:
            self.blocks[self.stacks] = len(stack)
            self.stacks += 1
        self.rows = tuple(sum(matrix.rows for matrix in stack) for stack in lists)

    def __dealloc__(self):
        free(self.c)


cdef class Floats:
    """A float32 matrix (rows, cols) whose address is known: what kernels take without asking NumPy again.

    array  C-contiguous float32, 1-D (one row) or 2-D; kept alive and not copied. `rows` may be set to any
           number up to the array's own, so that one buffer serves passes of any size.

    Every kernel takes a Floats or a NumPy array; the latter costs half a microsecond a call.
    """
    cdef float *p
    cdef int64_t n
    cdef readonly int64_t cols
    cdef readonly int64_t capacity
    cdef readonly object base

    def __init__(self, array):
        cdef float[:, ::1] view = array if array.ndim == 2 else array[None]
        self._hold(array, <float *>&view[0, 0] if view.shape[0] and view.shape[1] else NULL, view.shape[0], view.shape[1])

    cdef _hold(self, object array, float *p, int64_t rows, int64_t cols):
        self.base = array
        self.p = p
        self.n = self.capacity = rows
        self.cols = cols

    @property
    def rows(self):
        return self.n

    @rows.setter
    def rows(self, int64_t rows):
        if rows < 0 or rows > self.capacity:
            raise PyllamaError(f"rows: got {rows}, expected 0 to {self.capacity}")
        self.n = rows

    @property
    def array(self):
        """The rows in use, as a NumPy view."""
        return self.base[: self.n] if self.base.ndim == 2 else self.base[None]


cdef Floats _output(object x):
    return <Floats>x if type(x) is Floats else Floats(x)


cdef Floats _input(object x):
    """A read-only array is welcome here."""
    cdef const float[:, ::1] view
    cdef Floats made
    if type(x) is Floats:
        return <Floats>x
    view = x if x.ndim == 2 else x[None]
    made = Floats.__new__(Floats)
    made._hold(x, <float *>&view[0, 0] if view.shape[0] and view.shape[1] else NULL, view.shape[0], view.shape[1])
    return made


cdef str _shape(Floats x):
    return f"({x.n}, {x.cols})"


def input_nbytes(int64_t tokens, int64_t cols, dtypes):
    """Bytes that an Input with room for x (tokens, cols) takes once weights of these dtypes have multiplied it."""
    cdef int form
    forms = {pl_form_of(<pl_dtype>_dtype_index[dtype]) for dtype in dtypes}
    return sum([pl_input_nbytes(form, tokens, cols) for form in forms])


cdef dict _recordings = {}  # of each thread that records


cdef int _make(const pl_call *call, const pl_batch *batch, object one, object other, object third) except -1:
    """Make a call, and record it where this thread records; the objects are what its addresses belong to."""
    cdef int failed
    with nogil:
        failed = pl_make_calls(_table, _threads, call, 1, batch)
    if failed:
        raise MemoryError("attend: no memory for scratch")
    if _recordings:
        recording = _recordings.get(PyThread_get_thread_ident())
        if recording is not None:
            (<Recording>recording).add(call, batch, (one, other, third))
    return 0


cdef int _unrecorded(str name) except -1:
    """For kernels whose calls no recording can hold."""
    if _recordings and PyThread_get_thread_ident() in _recordings:
        raise PyllamaError(f"{name}: cannot be recorded")
    return 0


cdef class Recording:
    """The calls of kernels that a `with` block makes, to be made again without asking Python.

    A pass asks for every weight once, and a model's weights drive all else out of a CPU's caches: Python's own data, too.
    Making the calls of a 1.5B anew took 0.65 ms a token, asking for each of them 2.4 ms, where it was measured. CUDA
    calls the like a graph.

    Arrays are kept alive and used where they lie; what is in them may have changed, and the batch may be another of as
    many tokens. Holds products, rmsnorm, rope, add, scale, swiglu, geglu and attention; other kernels raise PyllamaError
    while a thread records. Nothing is left of a block that raises.
    """
    cdef pl_call *calls
    cdef int64_t count
    cdef int64_t room
    cdef int64_t tokens  # of the batch
    cdef list kept

    def __cinit__(self):
        self.tokens = -1
        self.kept = []

    def __dealloc__(self):
        free(self.calls)

    def __len__(self):
        return self.count

    def __enter__(self):
        cdef unsigned long thread = PyThread_get_thread_ident()
        if thread in _recordings or self.count:
            raise PyllamaError("recording: one at a time, and each once")
        _recordings[thread] = self
        return self

    def __exit__(self, kind, error, trace):
        del _recordings[PyThread_get_thread_ident()]
        if kind is not None:
            self.count = 0
            self.kept = []

    cdef int add(self, const pl_call *call, const pl_batch *batch, tuple of) except -1:
        cdef pl_call *grown
        cdef int64_t room
        if self.count == self.room:
            room = 2 * self.room or 16
            grown = <pl_call *>realloc(self.calls, room * sizeof(pl_call))
            if grown == NULL:
                raise MemoryError(f"recording: no memory for {room} calls")
            self.calls, self.room = grown, room
        if batch != NULL:
            self.tokens = batch.tokens
        self.calls[self.count] = call[0]
        self.count += 1
        self.kept.append(of)
        return 0

    def replay(self, Batch batch not None):
        """Make all calls again, for the tokens of a batch, as many as were recorded."""
        cdef int failed
        if self.tokens not in (-1, batch.c.tokens):
            raise PyllamaError(f"replay: a batch of {batch.c.tokens} tokens, recorded were {self.tokens}")
        with nogil:
            failed = pl_make_calls(_table, _threads, self.calls, self.count, &batch.c)
        if failed:
            raise MemoryError("attend: no memory for scratch")


cdef class Input:
    """What products multiply: activations x (T, cols), in each form that the formats of the weights take.

    A form is made when a matrix first needs it, and shared by all that follow, until other activations are taken.

    tokens, cols  the largest x there is room for
    """
    cdef readonly int64_t tokens
    cdef readonly int64_t cols
    cdef Floats x
    cdef unsigned made
    cdef pl_input forms[FORM_COUNT]
    cdef void *memory[FORM_COUNT]

    def __cinit__(self, int64_t tokens, int64_t cols):
        if tokens < 0 or cols < 1:
            raise PyllamaError(f"input: {tokens} tokens of {cols} columns, expected at least 0 of 1")
        self.tokens = tokens
        self.cols = cols

    def __dealloc__(self):
        cdef int form
        for form in range(FORM_COUNT):
            free(self.memory[form])

    def take(self, x):
        """Multiply x (T, cols) from now on; it must not change while it is multiplied. Returns self."""
        cdef Floats a = _input(x)
        if a.n > self.tokens or a.cols > self.cols:
            raise PyllamaError(f"input: x {_shape(a)}, there is room for ({self.tokens}, {self.cols})")
        self.x = a
        self.made = 0
        return self

    cdef int make(self, unsigned wanted) except -1:
        cdef int form
        cdef size_t nbytes
        cdef pl_call call
        for form in range(FORM_COUNT):
            if not (wanted & ~self.made) >> form & 1:
                continue
            if self.memory[form] == NULL and pl_input_nbytes(form, self.x.n, self.x.cols):
                nbytes = (pl_input_nbytes(form, self.tokens, self.cols) + 63) // 64 * 64
                self.memory[form] = aligned_alloc(64, nbytes)
                if self.memory[form] == NULL:
                    raise MemoryError(f"input: no memory for {nbytes} bytes")
            call.what = CALL_INPUT
            call.input.form = form
            call.input.x, call.input.tokens, call.input.cols = self.x.p, self.x.n, self.x.cols
            call.input.memory, call.input.out = self.memory[form], &self.forms[form]
            _make(&call, NULL, self, self.x, None)
            self.made |= 1u << form
        return 0


def matmul(w, x, out, int64_t row=0):
    """out[:, row : row + w.rows] = x @ w.T, float32 accumulation.

    w    (rows, cols) in any dtype and layout: a Matrix, or Blocks
    x    (T, cols)  float32, or an Input that has taken it
    out  (T, at least row + rows)  float32; must not overlap x. For Blocks of several stacks a tuple, one a stack

    Sums in the canonical order (MODEL.md, "Numerics"): the bits depend on nothing but w and x. Reads
    w once, whatever T is.
    """
    cdef Input input
    cdef Floats a, o
    cdef tuple outs = out if type(out) is tuple else (out,), rows
    cdef pl_call call
    cdef pl_out *to = call.matmul.out
    cdef const pl_matrix *matrices
    cdef int64_t cols
    cdef int i, stacks
    cdef unsigned forms
    if type(x) is Input:
        input, a = <Input>x, (<Input>x).x
        if a is None:
            raise PyllamaError("matmul: an input that has taken no activations")
    else:
        a = _input(x)
        input = Input(a.n, max(a.cols, 1)).take(a)
    if type(w) is Blocks:
        matrices, stacks, rows, cols = (<Blocks>w).c, (<Blocks>w).stacks, (<Blocks>w).rows, (<Blocks>w).cols
        forms = (<Blocks>w).forms
        for i in range(stacks):
            to[i].blocks = (<Blocks>w).blocks[i]
    else:
        matrices, stacks, to[0].blocks = &(<Matrix?>w).c, 1, 1
        rows, cols = (matrices.rows,), matrices.cols
        forms = 1u << pl_form_of(matrices.dtype)
    if len(outs) != stacks:
        raise PyllamaError(f"matmul: {len(outs)} outputs, expected {stacks}")
    for i in range(stacks):
        o = _output(outs[i])
        if a.cols != cols or o.n != a.n or row < 0 or row > o.cols - <int64_t>rows[i]:
            raise PyllamaError(f"matmul: x {_shape(a)} by w ({rows[i]}, {cols}) into out {_shape(o)} at row {row}")
        to[i].p = o.p + row
        to[i].stride = o.cols
    if a.n == 0:
        return
    input.make(forms)
    call.what = CALL_MATMUL
    call.matmul.w, call.matmul.outs, call.matmul.x = matrices, stacks, input.forms
    _make(&call, NULL, w, input, outs)


def to_panels(Matrix w not None, uint8_t[::1] out, int threads=0):
    """The rows of w as panels: the same bits, 32 rows side by side. out has panels_nbytes(...) bytes.

    threads  0: as many as products take
    """
    if w.c.layout != LAYOUT_ROWS or out.shape[0] != panels_nbytes(w.dtype, w.c.rows, w.c.cols):
        raise PyllamaError(f"to_panels: {w.layout} of {w.c.rows} x {w.c.cols} into {out.shape[0]} bytes")
    with nogil:
        pl_to_panels(_table, threads if threads > 0 else _threads, &w.c, &out[0])


def join_mxfp4(const uint8_t[:, :] codes, const uint8_t[:, :] scales, uint8_t[:, ::1] out):
    """Rows of MXFP4 whose codes and scales lie apart, as OpenAI's folders have them -> rows as all else has them.

    codes   (rows, 16 * blocks)  two weights a byte, the first in its low half; each row contiguous
    scales  (rows, blocks)       each row contiguous
    out     (rows, 17 * blocks)  overwritten

    Raises PyllamaError for sizes that do not agree.
    """
    cdef int64_t rows = scales.shape[0], blocks = scales.shape[1]
    if rows < 1 or blocks < 1 or codes.shape[0] != rows or codes.shape[1] != 16 * blocks \
            or out.shape[0] != rows or out.shape[1] != 17 * blocks or codes.strides[1] != 1 or scales.strides[1] != 1:
        raise PyllamaError(f"join_mxfp4: codes ({codes.shape[0]}, {codes.shape[1]}), scales ({rows}, {blocks}) into "
                           f"({out.shape[0]}, {out.shape[1]})")
    with nogil:
        pl_join_mxfp4(&codes[0, 0], codes.strides[0], &scales[0, 0], scales.strides[0], rows, blocks, &out[0, 0])


def packed_nbytes(int64_t rows, int64_t cols):
    """Bytes of a packed matrix without escapes: what pack needs at least (5 more for each escape)."""
    return PACKED_HEADER + pl_packed_panels_nbytes(rows, cols) + ((rows + PANEL_ROWS - 1) // PANEL_ROWS + 1) * 4


def pack(Matrix w not None, uint8_t[::1] out):
    """The rows of w (BF16) in 12 bits a weight, losslessly; returns the bytes written, 0 if out is too small.

    How small a matrix gets depends on its exponents: offer as much as packing would be worth. The form is
    described in csrc/packed.h; unpack gives back the very bytes.
    """
    cdef int64_t nbytes
    if w.c.layout != LAYOUT_ROWS or w.dtype != "BF16":
        raise PyllamaError(f"pack: {w.dtype} in {w.layout}, expected BF16 in rows")
    if out.shape[0] == 0 or <size_t>&out[0] % 4:
        raise PyllamaError("pack: out is empty or not on a 4-byte boundary")
    with nogil:
        nbytes = pl_pack(_table, _threads, &w.c, &out[0], out.shape[0])
    if nbytes < 0:
        raise MemoryError("pack: no memory for the counts")
    return nbytes


def unpack(Matrix w not None, uint8_t[::1] out):
    """The bfloat16 rows, row-major, that a packed matrix was made from: rows * cols * 2 bytes."""
    if w.c.layout != LAYOUT_PACKED or out.shape[0] != w.c.rows * <int64_t>w.c.row_nbytes:
        raise PyllamaError(f"unpack: {w.layout} of {w.c.rows} x {w.c.cols} into {out.shape[0]} bytes")
    with nogil:
        pl_unpack(_table, _threads, &w.c, &out[0])


def widen(Matrix w not None, out):
    """out = the weights as float32, exactly as the format defines them. w in rows; out (rows, cols)."""
    _unrecorded("widen")
    cdef Floats o = _output(out)
    if w.c.layout != LAYOUT_ROWS or o.n != w.c.rows or o.cols != w.c.cols:
        raise PyllamaError(f"widen: {w.layout} of {w.c.rows} x {w.c.cols} into {_shape(o)}")
    with nogil:
        pl_widen(_table, _threads, &w.c, o.p)


def add(x, y, out, float factor=1.0):
    """out = x + factor * y, elementwise, the product rounded; x, out (T, n), y (T, n) or one row for each; out may be x."""
    cdef Floats a = _input(x), b = _input(y), o = _output(out)
    if a.cols != b.cols or o.cols != a.cols or o.n != a.n or (b.n != a.n and b.n != 1):
        raise PyllamaError(f"add: x {_shape(a)}, y {_shape(b)}, out {_shape(o)}")
    cdef pl_call call
    if a.n and a.cols:
        call.what = CALL_ADD
        call.add.x, call.add.y, call.add.out, call.add.rows, call.add.cols = a.p, b.p, o.p, a.n, a.cols
        call.add.factor, call.add.broadcast = factor, b.n == 1
        _make(&call, NULL, a, b, o)


def scale(x, factors, out):
    """out = x * factors, elementwise; x, out (T, n), factors (T, 1), one a row, or (1, 1); out may be x."""
    cdef Floats a = _input(x), f = _input(factors), o = _output(out)
    if o.n != a.n or o.cols != a.cols or f.n * f.cols not in (1, a.n):
        raise PyllamaError(f"scale: x {_shape(a)}, factors {_shape(f)}, out {_shape(o)}")
    cdef pl_call call
    if a.n and a.cols:
        call.what = CALL_SCALE
        call.add.x, call.add.y, call.add.out, call.add.rows, call.add.cols = a.p, f.p, o.p, a.n, a.cols
        call.add.broadcast = f.n * f.cols == 1
        _make(&call, NULL, a, f, o)


def rmsnorm(x, weight, float eps, out, int64_t cols=0):
    """out = x / sqrt(mean(x**2) + eps) * weight, each row of x; out may be x.

    x, out (T, n); weight (n,). cols, if given, divides n: each run of so many columns is a row of its own,
    with a weight of that length (the heads of Qwen3's q and k).
    """
    cdef Floats a = _input(x), w = _input(weight), o = _output(out)
    cdef int64_t width = cols or a.cols
    if width < 1 or a.cols % width or w.n * w.cols != width or o.n != a.n or o.cols != a.cols:
        raise PyllamaError(f"rmsnorm: x {_shape(a)} in rows of {width}, weight {_shape(w)}, out {_shape(o)}")
    cdef pl_call call
    if a.n:
        call.what = CALL_RMSNORM
        call.rmsnorm.x, call.rmsnorm.weight, call.rmsnorm.out, call.rmsnorm.eps = a.p, w.p, o.p, eps
        call.rmsnorm.rows, call.rmsnorm.cols = a.n * (a.cols // width), width
        _make(&call, NULL, a, w, o)


def rope_table(const int64_t[::1] positions, const double[::1] inv_freq, double scale, cos, sin):
    """cos, sin (T, D/2) of positions (T,) * inv_freq (D/2,), times scale: in float64, then rounded once."""
    _unrecorded("rope_table")
    cdef Floats c = _output(cos), s = _output(sin)
    cdef int64_t tokens = positions.shape[0], half = inv_freq.shape[0]
    if c.n != tokens or s.n != tokens or c.cols != half or s.cols != half:
        raise PyllamaError(f"rope_table: {tokens} positions, {half} frequencies, cos {_shape(c)}, sin {_shape(s)}")
    if tokens and half:
        with nogil:
            pl_rope_table(&positions[0], tokens, &inv_freq[0], half, scale, c.p, s.p)


def rope(x, cos, sin, int heads, bint interleaved=False):
    """Rotate, in place, the first N elements of each head of x (T, heads * D) by the angles of cos, sin (T, N/2).

    Pairs are (i, i + N/2); what is beyond N, if anything, stays. interleaved: pairs (2i, 2i + 1) are read, as in Meta's and GGUF's layout, and
    stored half-split, so that both layouts give the same bits from here on.
    """
    cdef Floats a = _output(x), c = _input(cos), s = _input(sin)
    cdef int64_t rotated = 2 * c.cols, head_dim = a.cols // heads if heads > 0 else 0
    if (heads < 1 or a.cols != heads * head_dim or rotated > head_dim or c.n != a.n or s.n != a.n or s.cols != c.cols
            or head_dim > LARGEST_HEAD):
        raise PyllamaError(f"rope: x {_shape(a)}, {heads} heads, cos {_shape(c)}, sin {_shape(s)}")
    cdef pl_call call
    if a.n and rotated:
        call.what = CALL_ROPE
        call.rope.x, call.rope.cos, call.rope.sin, call.rope.tokens = a.p, c.p, s.p, a.n
        call.rope.heads, call.rope.head_dim, call.rope.rotated = heads, <int>head_dim, <int>rotated
        call.rope.interleaved = interleaved
        _make(&call, NULL, a, c, s)


def swiglu(gate, up, out):
    """out = gate / (1 + exp(-gate)) * up, elementwise, (T, n); out may be gate or up."""
    _glu("swiglu", CALL_SWIGLU, gate, up, out)


def geglu(gate, up, out):
    """out = gelu(gate) * up in gelu's tanh form, elementwise, (T, n); out may be gate or up."""
    _glu("geglu", CALL_GEGLU, gate, up, out)


cdef int _glu(str name, int what, object gate, object up, object out) except -1:
    cdef Floats g = _input(gate), u = _input(up), o = _output(out)
    cdef pl_call call
    if u.n != g.n or u.cols != g.cols or o.n != g.n or o.cols != g.cols:
        raise PyllamaError(f"{name}: gate {_shape(g)}, up {_shape(u)}, out {_shape(o)}")
    if g.n and g.cols:
        call.what = what
        call.glu.gate, call.glu.up, call.glu.out, call.glu.n = g.p, u.p, o.p, g.n * g.cols
        _make(&call, NULL, g, u, o)
    return 0


def route(logits, int32_t[:, ::1] ids, float[:, ::1] weights, bint of_chosen):
    """ids[t] = the experts with the largest logits[t], equals by lower id, in ascending order; weights[t] = their softmax,
    over those chosen if of_chosen, else over all.

    logits   (T, E)  float32, E at most 1024
    ids      (T, k)  int32, written; 1 <= k <= E
    weights  (T, k)  float32, written

    A NaN is chosen after every number, and makes all weights of its token NaN where it is among what they are divided by.
    """
    _unrecorded("route")
    cdef Floats a = _input(logits)
    cdef int64_t tokens = ids.shape[0], chosen = ids.shape[1]
    if (a.n != tokens or weights.shape[0] != tokens or weights.shape[1] != chosen or not 1 <= chosen <= a.cols
            or a.cols > MAX_EXPERTS):
        raise PyllamaError(f"route: logits {_shape(a)}, ids ({tokens}, {chosen}), weights "
                           f"({weights.shape[0]}, {weights.shape[1]}); at most {MAX_EXPERTS} experts")
    if tokens:
        with nogil:
            pl_route(_table, a.p, tokens, <int>a.cols, <int>chosen, of_chosen, &ids[0, 0], &weights[0, 0])


def route_sigmoid(logits, bias, int32_t[:, ::1] ids, float[:, ::1] weights, bint of_chosen, float scale):
    """ids[t] = the experts with the largest s = 1 / (1 + exp(-logits[t])) + bias, equals by lower id, in ascending order;
    weights[t] = their s without the bias, over the sum of these and 1e-6 if of_chosen, times scale.

    logits, ids, weights  as for route()
    bias                  (E,)  float32, or None

    A NaN is chosen after every number.
    """
    cdef Floats a = _input(logits)
    cdef const float[::1] b = bias
    cdef int64_t tokens = ids.shape[0], chosen = ids.shape[1]
    if (a.n != tokens or weights.shape[0] != tokens or weights.shape[1] != chosen or not 1 <= chosen <= a.cols
            or a.cols > MAX_EXPERTS or (b is not None and b.shape[0] != a.cols)):
        raise PyllamaError(f"route_sigmoid: logits {_shape(a)}, ids ({tokens}, {chosen}), weights ({weights.shape[0]}, "
                           f"{weights.shape[1]}), bias {None if b is None else b.shape[0]}; at most {MAX_EXPERTS} experts")
    cdef const float *bias_or_null = NULL
    if b is not None:
        bias_or_null = &b[0]
    if tokens:
        with nogil:
            pl_route_sigmoid(_table, a.p, bias_or_null, tokens, <int>a.cols, <int>chosen, of_chosen, scale, &ids[0, 0],
                             &weights[0, 0])


def mix(y, const int32_t[:, ::1] rows, const float[:, ::1] weights, out):
    """out[t] = sum of weights[t, i] * y[rows[t, i]], a chain of fused multiply-adds from 0 over ascending i.

    y        (R, n)  float32
    rows     (T, k)  int32, each below R
    weights  (T, k)  float32
    out      (T, n)  float32, overwritten; must not overlap y
    """
    _unrecorded("mix")
    cdef Floats a = _input(y), o = _output(out)
    cdef int64_t tokens = rows.shape[0], chosen = rows.shape[1], t, i
    if weights.shape[0] != tokens or weights.shape[1] != chosen or o.n != tokens or o.cols != a.cols or chosen < 1:
        raise PyllamaError(f"mix: y {_shape(a)}, rows ({tokens}, {chosen}), weights ({weights.shape[0]}, "
                           f"{weights.shape[1]}), out {_shape(o)}")
    for t in range(tokens):
        for i in range(chosen):
            if not 0 <= rows[t, i] < a.n:
                raise PyllamaError(f"mix: row {rows[t, i]} of y {_shape(a)}")
    if tokens and a.cols:
        with nogil:
            pl_mix(_table, _threads, a.p, &rows[0, 0], &weights[0, 0], tokens, <int>chosen, a.cols, o.p)


def clamped_swiglu(gate, up, float alpha, float limit, out):
    """out = g / (1 + exp(-(alpha * g))) * (u + 1), elementwise, (T, n), with g = min(gate, limit) and u = up within
    -limit to limit; out may be gate or up."""
    _unrecorded("clamped_swiglu")
    cdef Floats g = _input(gate), u = _input(up), o = _output(out)
    if u.n != g.n or u.cols != g.cols or o.n != g.n or o.cols != g.cols:
        raise PyllamaError(f"clamped_swiglu: gate {_shape(g)}, up {_shape(u)}, out {_shape(o)}")
    if g.n and g.cols:
        with nogil:
            pl_clamped_swiglu(_table, _threads, g.p, u.p, alpha, limit, o.p, g.n * g.cols)


def softcap(x, float cap, out):
    """out = cap * tanh(x / cap), elementwise; cap > 0; out may be x."""
    _unrecorded("softcap")
    cdef Floats a = _input(x), o = _output(out)
    if a.n != o.n or a.cols != o.cols or not cap > 0:
        raise PyllamaError(f"softcap: x {_shape(a)}, cap {cap:g}, out {_shape(o)}")
    if a.n and a.cols:
        with nogil:
            pl_softcap(_table, _threads, a.p, cap, o.p, a.n * a.cols)


def exp(x, out):
    """out = exp(x) in float32, under 2 ulp, the same bits on every machine; 0 below -86.5."""
    _unrecorded("exp")
    cdef Floats a = _input(x), o = _output(out)
    if a.n != o.n or a.cols != o.cols:
        raise PyllamaError(f"exp: x {_shape(a)}, out {_shape(o)}")
    if a.n and a.cols:
        with nogil:
            _table.exp(a.p, o.p, 0, a.n * a.cols)


def draw(const int64_t[::1] ids, const float[::1] logits, uint64_t seed, uint64_t index, int64_t[::1] best,
         double[::1] scores):
    """The candidates with the largest logit + Gumbel noise, largest first, equals by lower id: best[0] is a draw from
    softmax(logits). The noise is a function of (seed, index, id) alone (MODEL.md, "Numerics").

    ids     (n,) int64
    logits  (n,) float32, finite
    best    (count,) int64, written: ids
    scores  (count,) float64, written: their logits + noise

    1 <= count <= n, or PyllamaError. On one thread; the bits are the same on every machine.
    """
    cdef int64_t n = ids.shape[0], count = best.shape[0]
    if logits.shape[0] != n or scores.shape[0] != count or not 1 <= count <= n:
        raise PyllamaError(f"draw: {n} ids, {logits.shape[0]} logits, best {count}, scores {scores.shape[0]}")
    with nogil:
        pl_draw(&ids[0], &logits[0], n, seed, index, count, &best[0], &scores[0])


cdef class Batch:
    """Which tokens a pass holds: whose they are, where they stand, and which pages their sequences have.

    pool       (n,) uint64  addresses of pages of 32 positions by number, laid out as decoder/page_pool.py says; the
               caller keeps them alive, and zeroed them once
    pages      (sequences, max_pages) int32  numbers in the pool; read as far as there are positions
    positions  (T,) int64, ascending within a sequence
    sequences  (T,) int32  row of `pages`
    writes     (W, 2) int32  a token and a page that its keys and values are put into, at its position's place

    Raises PyllamaError where a token has no page.
    """
    cdef const uint64_t[::1] pool
    cdef const int32_t[:, ::1] pages
    cdef const int64_t[::1] positions
    cdef const int32_t[::1] sequences
    cdef const int32_t[:, ::1] writes
    cdef pl_batch c

    def __init__(self, const uint64_t[::1] pool, const int32_t[:, ::1] pages, const int64_t[::1] positions,
                 const int32_t[::1] sequences, const int32_t[:, ::1] writes):
        cdef int64_t t, w, page, checked = 0, tokens = positions.shape[0], owner = -1
        if sequences.shape[0] != tokens or writes.shape[1] != 2:
            raise PyllamaError(f"batch: {tokens} positions, {sequences.shape[0]} sequences, "
                               f"writes of {writes.shape[1]}, expected 2")
        for t in range(tokens):
            if (sequences[t] < 0 or sequences[t] >= pages.shape[0]
                    or positions[t] < 0 or positions[t] >= pages.shape[1] * PANEL_ROWS):
                raise PyllamaError(f"batch: token {t} at position {positions[t]} of sequence {sequences[t]}, "
                                   f"pages ({pages.shape[0]}, {pages.shape[1]})")
            if sequences[t] != owner:
                owner, checked = sequences[t], 0
            while checked <= positions[t] // PANEL_ROWS:
                page = pages[owner, checked]
                if page < 0 or page >= pool.shape[0]:
                    raise PyllamaError(f"batch: page {page} of sequence {owner}, expected 0 to {pool.shape[0] - 1}")
                checked += 1
        for w in range(writes.shape[0]):
            if writes[w, 0] < 0 or writes[w, 0] >= tokens or writes[w, 1] < 0 or writes[w, 1] >= pool.shape[0]:
                raise PyllamaError(f"batch: token {writes[w, 0]} written to page {writes[w, 1]}, "
                                   f"expected one of {tokens} tokens and {pool.shape[0]} pages")
        self.pool = pool
        self.pages = pages
        self.positions = positions
        self.sequences = sequences
        self.writes = writes
        self.c.tokens, self.c.max_pages, self.c.write_count = tokens, pages.shape[1], writes.shape[0]
        if tokens:
            self.c.pool, self.c.pages = &pool[0], &pages[0, 0]
            self.c.positions, self.c.sequences = &positions[0], &sequences[0]
        if writes.shape[0]:
            self.c.writes = <const pl_write *>&writes[0, 0]


cdef class Attention:
    """Attention of one layer over a paged cache of keys and values.

    heads, kv_heads, head_dim
    f16                  pages hold float16 (saturated) rather than float32
    window               positions a query sees, itself included; 0: all of them
    scale                multiplies q . k
    softcap              scores become softcap * tanh(score / softcap); 0: they stay
    sinks                (heads,) float32, scores that take part in each head's softmax without a value, or None
    k_offset, v_offset   bytes from a page's start to this layer's keys and values
    """
    cdef pl_attention c
    cdef Floats sinks

    def __init__(self, int heads, int kv_heads, int head_dim, *, bint f16, int64_t window, float scale,
                 size_t k_offset, size_t v_offset, float softcap=0.0, sinks=None):
        if heads < 1 or kv_heads < 1 or heads % kv_heads or head_dim < 1 or head_dim > LARGEST_HEAD or window < 0:
            raise PyllamaError(f"attention: {heads} heads, {kv_heads} key/value heads, head_dim {head_dim}, window {window}")
        self.c.heads = heads
        self.c.kv_heads = kv_heads
        self.c.head_dim = head_dim
        self.c.f16 = f16
        self.c.window = window
        self.c.scale = scale
        self.c.softcap = softcap
        self.c.sinks = NULL
        if sinks is not None:
            self.sinks = _input(sinks)
            if self.sinks.n * self.sinks.cols != heads:
                raise PyllamaError(f"attention: sinks {_shape(self.sinks)}, expected one for each of {heads} heads")
            self.c.sinks = self.sinks.p
        self.c.k_offset = k_offset
        self.c.v_offset = v_offset

    cdef int _call(self, int what, Batch batch, Floats k, Floats v, Floats q, Floats out) except -1:
        """Of q and out, or k and v, as many rows as there are tokens in the batch; the others None."""
        cdef pl_call call
        cdef int64_t tokens = (k if q is None else q).n
        if batch.c.tokens != tokens:
            raise PyllamaError(f"attention: {tokens} tokens, expected {batch.c.tokens} as in the batch")
        call.what = what
        call.attention.a = &self.c
        if q is None:
            call.attention.k, call.attention.v = k.p, v.p
            return _make(&call, &batch.c, self, k, v)
        call.attention.q, call.attention.out = q.p, out.p
        return _make(&call, &batch.c, self, q, out)

    def append(self, Batch batch not None, k, v):
        """Put k, v (T, kv_heads * head_dim) where the batch's writes say."""
        cdef Floats key = _input(k), value = _input(v)
        cdef int64_t width = self.c.kv_heads * self.c.head_dim
        if key.cols != width or value.cols != width or value.n != key.n:
            raise PyllamaError(f"append: k {_shape(key)}, v {_shape(value)}, expected {width} columns")
        if key.n:
            self._call(CALL_APPEND, batch, key, value, None, None)

    def attend(self, Batch batch not None, q, out):
        """out[t, h] = softmax(q[t, h] . keys * scale) . values over positions up to that of t, in its window.

        q, out (T, heads * head_dim). The bits of a token depend on its own sequence alone (MODEL.md,
        "Numerics"). Reads each page once per 24 queries.
        """
        cdef Floats a = _input(q), o = _output(out)
        cdef int64_t width = self.c.heads * self.c.head_dim
        if a.cols != width or o.cols != width or o.n != a.n:
            raise PyllamaError(f"attend: q {_shape(a)}, out {_shape(o)}, expected {width} columns")
        if a.n:
            self._call(CALL_ATTEND, batch, None, None, a, o)


cdef class Walk:
    """The steps of the texts of a pass through layers that carry a state from token to token.

    slots         (n,) uint64  addresses of slots by number; the caller keeps them alive
    nbytes        of a slot
    sources       (S,) int32  the slot with the state before each text's first step; -1: all zero
    starts        (S + 1,) int32  where the steps of each text begin in `steps`
    steps         (N,) int32  rows of the layers' input, in order; several texts may have the same
    store_starts  (S + 1,) int32  where the stores of each begin in `stores`
    stores        (M, 2) int32  after which of `steps` the state goes into which slot: one of the text's, ascending

    Raises PyllamaError for what is out of range. A slot that is stored into must be none that is read.
    """
    cdef pl_walk c
    cdef readonly int64_t rows
    cdef readonly size_t nbytes
    cdef tuple kept

    def __init__(self, const uint64_t[::1] slots, size_t nbytes, const int32_t[::1] sources, const int32_t[::1] starts,
                 const int32_t[::1] steps, const int32_t[::1] store_starts, const int32_t[:, ::1] stores):
        cdef int64_t texts = sources.shape[0], i, text, count = slots.shape[0]
        if (starts.shape[0] != texts + 1 or store_starts.shape[0] != texts + 1 or stores.shape[1] != 2 or texts < 1
                or starts[0] != 0 or starts[texts] != steps.shape[0]
                or store_starts[0] != 0 or store_starts[texts] != stores.shape[0]):
            raise PyllamaError(f"walk: {texts} texts, {steps.shape[0]} steps, {stores.shape[0]} stores")
        self.rows = 0
        for i in range(steps.shape[0]):
            if steps[i] < 0:
                raise PyllamaError(f"walk: row {steps[i]}")
            self.rows = max(self.rows, steps[i] + 1)
        for text in range(texts):
            if (starts[text] > starts[text + 1] or store_starts[text] > store_starts[text + 1]
                    or not -1 <= sources[text] < count):
                raise PyllamaError(f"walk: text {text} from slot {sources[text]} of {count}")
            for i in range(store_starts[text], store_starts[text + 1]):
                if (not starts[text] <= stores[i, 0] < starts[text + 1] or not 0 <= stores[i, 1] < count
                        or (i > store_starts[text] and stores[i, 0] < stores[i - 1, 0])):
                    raise PyllamaError(f"walk: step {stores[i, 0]} of text {text} stored into slot {stores[i, 1]}")
        self.kept = (slots, sources, starts, steps, store_starts, stores)
        self.nbytes = nbytes
        self.c.texts = texts
        self.c.slots = &slots[0] if count else NULL
        self.c.sources = &sources[0]
        self.c.starts = &starts[0]
        self.c.steps = &steps[0] if steps.shape[0] else NULL
        self.c.store_starts = &store_starts[0]
        self.c.stores = <const pl_store *>&stores[0, 0] if stores.shape[0] else NULL


def conv(x, int64_t first, weight, bias, bint silu, Walk walk not None, int64_t offset, out):
    """out[row, c] = sum over j of weight[j, c] * x[row K - 1 - j steps before, first + c], + bias[c]; through silu if so.

    x       (N, W)  float32, the input of all channels; out takes C of them
    weight  (K, C)  float32, that of the oldest input first; 2 <= K <= 16
    bias    (C,) float32, or None
    offset  floats from a slot's start to the state of all W channels: the last K - 1 inputs, (K - 1, W), oldest first
    out     (N, C)  float32, overwritten in the rows that are walked; must not overlap x

    A chain of fused multiply-adds over ascending j, from 0.
    """
    _unrecorded("conv")
    cdef Floats a = _input(x), w = _input(weight), o = _output(out), b = None
    cdef pl_conv c
    if bias is not None:
        b = _input(bias)
    if (not 2 <= w.n <= MAX_CONV or o.cols != w.cols or o.n != a.n or first < 0 or first + w.cols > a.cols
            or walk.rows > a.n or offset < 0 or 4 * <size_t>(offset + (w.n - 1) * a.cols) > walk.nbytes
            or (b is not None and b.n * b.cols != w.cols)):
        raise PyllamaError(f"conv: x {_shape(a)} from {first}, weight {_shape(w)}, {walk.rows} rows, out {_shape(o)}")
    c.channels, c.width, c.silu = w.cols, <int>w.n, silu
    c.x, c.stride_x, c.weight = a.p + first, a.cols, w.p
    c.bias = b.p if b is not None else NULL
    c.offset, c.stride, c.out = offset + first, a.cols, o.p
    if walk.rows:
        with nogil:
            pl_conv_walk(_table, _threads, &walk.c, &c)


def sigmoid_gate(x, gate, out):
    """out = x / (1 + exp(-gate)), elementwise, (T, n); out may be x or gate."""
    _unrecorded("sigmoid_gate")
    cdef Floats a = _input(x), g = _input(gate), o = _output(out)
    if g.n != a.n or g.cols != a.cols or o.n != a.n or o.cols != a.cols:
        raise PyllamaError(f"sigmoid_gate: x {_shape(a)}, gate {_shape(g)}, out {_shape(o)}")
    if a.n and a.cols:
        with nogil:
            pl_sigmoid_gate(_table, _threads, a.p, g.p, o.p, a.n * a.cols)


def delta_gates(a, b, rate, bias, decay, beta):
    """decay = exp(rate * softplus(a + bias)), beta = 1 / (1 + exp(-b)); all (T, H), rate and bias (H,).

    softplus(t) = max(t, 0) + ln(1 + exp(-|t|)).
    """
    _unrecorded("delta_gates")
    cdef Floats x = _input(a), y = _input(b), r = _input(rate), s = _input(bias), d = _output(decay), e = _output(beta)
    if (y.n != x.n or y.cols != x.cols or d.n != x.n or d.cols != x.cols or e.n != x.n or e.cols != x.cols
            or r.n * r.cols != x.cols or s.n * s.cols != x.cols):
        raise PyllamaError(f"delta_gates: a {_shape(x)}, b {_shape(y)}, rate {_shape(r)}, decay {_shape(d)}")
    if x.n and x.cols:
        with nogil:
            pl_delta_gates(_table, x.p, y.p, r.p, s.p, x.n, x.cols, d.p, e.p)


def delta(q, k, v, decay, beta, int key_heads, bint tiled, Walk walk not None, int64_t offset, out):
    """Along each text, of each value head: S = decay * S; S += k (beta * (v - k S)); out = q S.

    q, k         (N, key_heads * A)  float32
    v, out       (N, value_heads * B)  float32; out is overwritten in the rows that are walked, and must not overlap
    decay, beta  (N, value_heads)  float32
    tiled        value head h has key head h % key_heads, else h // (value_heads / key_heads)
    offset       floats from a slot's start to the states (A, B) of all value heads; see delta_floats()

    Sums over the rows of S are chains of fused multiply-adds in ascending order, from 0.
    """
    _unrecorded("delta")
    cdef Floats query = _input(q), key = _input(k), value = _input(v), d = _input(decay), e = _input(beta)
    cdef Floats o = _output(out)
    cdef pl_delta c
    cdef int64_t heads = d.cols
    cdef int failed
    if (key_heads < 1 or heads < 1 or heads % key_heads or query.cols % key_heads or key.cols != query.cols
            or value.cols % heads or o.cols != value.cols or e.cols != heads or query.cols // key_heads > LARGEST_HEAD
            or value.cols // heads > LARGEST_HEAD
            or any(one.n < walk.rows for one in (query, key, value, d, e, o)) or offset < 0
            or 4 * <size_t>(offset + delta_floats(heads, query.cols // key_heads, value.cols // heads)) > walk.nbytes):
        raise PyllamaError(f"delta: q {_shape(query)}, v {_shape(value)}, {key_heads} key heads, decay {_shape(d)}, "
                           f"{walk.rows} rows")
    c.key_heads, c.value_heads = key_heads, <int>heads
    c.key_dim, c.value_dim, c.tiled = <int>(query.cols // key_heads), <int>(value.cols // heads), tiled
    c.q, c.k, c.v, c.decay, c.beta = query.p, key.p, value.p, d.p, e.p
    c.offset, c.out = offset, o.p
    if walk.rows:
        with nogil:
            failed = pl_delta_walk(_table, _threads, &walk.c, &c)
        if failed:
            raise MemoryError("delta: no memory for scratch")


def delta_floats(int64_t heads, int64_t key_dim, int64_t value_dim):
    """Floats of the states of so many value heads in a slot."""
    return heads * key_dim * ((value_dim + PANEL_ROWS - 1) // PANEL_ROWS * PANEL_ROWS)


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
        rate = pl_spin(_table, _threads, rounds)
    return rate


def quantize(str dtype, const float[:, ::1] x, const float[::1] importance, uint8_t[::1] out):
    """out = the blocks of `dtype` nearest to x: least sum of importance * size * (x - what out widens to)^2.

    size is sqrt(mean of x^2 + x^2), the mean over the block (csrc/quantize.h says why).

    dtype       one of DTYPES, F32 aside; F16 and BF16 are rounded to nearest even
    x           (rows, cols) float32, finite; cols a multiple of the format's block
    importance  (cols,) float32, finite, >= 0: what a column's squared error counts; None: alike. Only what it is to
                the others of its block (32 or 256 columns) matters.
    out         rows * row_nbytes(dtype, cols) bytes, uint8, as they lie in a GGUF file

    A float16 that x is too large for becomes the largest there is. The bytes do not depend on threads or isa.
    """
    cdef int64_t rows = x.shape[0], cols = x.shape[1], expected = rows * row_nbytes(dtype, cols)
    cdef pl_dtype number = _dtype_index[dtype]
    cdef const float *columns = NULL
    cdef int failed
    if dtype == "F32":
        raise PyllamaError("quantize: F32 is not quantized")
    if importance is not None:
        if importance.shape[0] != cols:
            raise PyllamaError(f"quantize: importance of {importance.shape[0]} columns, expected {cols}")
        columns = &importance[0] if cols else NULL
    if out.shape[0] != expected:
        raise PyllamaError(f"quantize: {dtype} of {rows} x {cols} into {out.shape[0]} bytes, expected {expected}")
    if not expected:
        return
    with nogil:
        failed = pl_quantize(_threads, number, &x[0, 0], columns, rows, cols, &out[0])
    if failed:
        raise MemoryError("quantize: no memory for the weights of columns")
