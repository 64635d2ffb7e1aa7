/* Cuts each kernel's work over threads: rows of weights, tokens, heads. The only arithmetic here is sums and products of
 * single elements, and the choice of packing's codes. */
#include "kernels.h"
#include "parallel.h"
#include "quantize.h"

#ifdef _OPENMP
#include <pthread.h>
#endif
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define ROW(name, cols, nbytes, ...) {#name, cols, nbytes, {__VA_ARGS__}},
const pl_format pl_formats[DT_COUNT] = {PL_FORMATS(ROW)};
#undef ROW

/* Below this many multiply-adds, waking the threads costs more than they save. */
enum { SERIAL_BELOW = 1 << 14 };

/* Per-thread scratch that only grows; a malloc per call would fault its pages in anew each time. */
static float *scratch(size_t floats)
{
    static _Thread_local float *buffer;
    static _Thread_local size_t size;
    if (floats > size) {
        float *grown = aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64);
        if (!grown) return NULL;
        free(buffer);
        buffer = grown;
        size = floats;
    }
    return buffer;
}

/* libgomp's threads belong to the thread that called for them, and a fork takes along the caller only: the next call in
 * the child would wait for them for ever. So a thread that had a team and was forked goes on alone, with the same bits;
 * threads that the child starts have teams of their own. */
#ifdef _OPENMP
static _Thread_local int had_team, alone;

static void forked(void)
{
    if (had_team) alone = 1;
}

__attribute__((constructor)) static void watch_forks(void)
{
    pthread_atfork(NULL, NULL, forked);
}

static int team(int threads)
{
    if (threads == 1 || alone) return 1;
    had_team = 1;
    return threads;
}
#else
static int team(int threads)
{
    (void)threads;
    return 1;
}
#endif

int pl_openmp(void)
{
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

/* A loop over n pieces of work, cut over threads; small ones stay on the calling thread, uncut. */
#define SHARE(WORK, SCHEDULE, FIRST, LAST, N, STEP, CALL)                  \
    {                                                                      \
        const int shared_by = (WORK) < SERIAL_BELOW ? 1 : team(threads);   \
        if (shared_by == 1) {                                              \
            const int64_t FIRST = 0, LAST = (N);                           \
            uint64_t saved = fp_enter();                                   \
            CALL;                                                          \
            fp_leave(saved);                                               \
        } else {                                                           \
            OMP(parallel num_threads(shared_by))                           \
            {                                                              \
                uint64_t saved = fp_enter();                               \
                OMP(for schedule(SCHEDULE))                                \
                for (int64_t FIRST = 0; FIRST < (N); FIRST += (STEP)) {    \
                    const int64_t LAST = FIRST + (STEP) < (N) ? FIRST + (STEP) : (N); \
                    CALL;                                                  \
                }                                                          \
                fp_leave(saved);                                           \
            }                                                              \
        }                                                                  \
    }

/* The next piece of [0, n), for whichever thread comes for it: slow cores take fewer, and the bits do not care. Large
 * ones first, one `divisor`-th of what is left; single ones last, for at the end the others wait for one piece. */
static int take(int64_t *next, int64_t n, int64_t divisor, int64_t *first, int64_t *last)
{
    *first = __atomic_load_n(next, __ATOMIC_RELAXED);
    do {
        if (*first >= n) return 0;
        int64_t share = (n - *first) / divisor;
        *last = *first + (share > 1 ? share : 1);
    } while (!__atomic_compare_exchange_n(next, first, *last, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return 1;
}

/* Panels [first, last), counted through all blocks of all outs. */
static void matmul_blocks(const pl_kernels *k, const pl_matrix *block, const pl_out *out, const pl_input *x,
                          int64_t first, int64_t last)
{
    for (;; out++) {
        int64_t row = 0;
        for (int64_t b = 0; b < out->blocks; b++, block++) {
            int64_t panels = panels_of(block), end = last < panels ? last : panels;
            if (first < end) {
                k->matmul(block, &x[pl_form_of(block->dtype)], out->p, out->stride, row, first, end);
                if (end == last) return;
                first = end;
            }
            first -= panels;
            last -= panels;
            row += block->rows;
        }
    }
}

size_t pl_input_nbytes(pl_form form, int64_t tokens, int64_t cols)
{
    if (form != FORM_F32) return (size_t)tokens * (size_t)((cols + D16_COLS - 1) / D16_COLS) * sizeof(pl_d16);
    return tokens > 1 ? (size_t)tokens * (size_t)cols * sizeof(float) : 0;
}

void pl_make_input(const pl_kernels *k, int threads, pl_form form, const float *x, int64_t tokens, int64_t cols,
                   void *memory, pl_input *out)
{
    if (form != FORM_F32) {
        int64_t blocks = tokens * cols / D16_COLS;
        *out = (pl_input){.form = form, .tokens = tokens, .cols = cols, .data = memory};
        SHARE(tokens * cols, static, first, last, blocks, 64, k->make_d16(x, form, tokens, memory, first, last))
        return;
    }
    int64_t tiles = (tokens + TOKEN_TILE - 1) / TOKEN_TILE;
    *out = (pl_input){.form = form, .tokens = tokens, .cols = cols, .data = tokens > 1 ? memory : x};
    if (tokens > 1) {
        SHARE(tokens * cols, static, first, last, tiles, 1, k->tile_tokens(x, tokens, cols, memory, first, last))
    }
}

void pl_matmul(const pl_kernels *k, int threads, const pl_matrix *w, const pl_out *out, int outs, const pl_input *x)
{
    int64_t blocks = 0, panels = 0, rows = 0;
    const int64_t tokens = x[pl_form_of(w->dtype)].tokens;
    for (int i = 0; i < outs; i++) blocks += out[i].blocks;
    for (int64_t b = 0; b < blocks; b++) {
        panels += panels_of(&w[b]);
        rows += w[b].rows;
    }
    threads = rows * w->cols * tokens < SERIAL_BELOW ? 1 : team(threads);
    /* One token waits for memory: where a piece ends a core has read ahead in vain, and a quarter of these pieces cost a
     * 1.1B 8% of its rate. Several wait for arithmetic, of which a slow core may do a quarter of a fast one's. */
    const int64_t divisor = (int64_t)threads * (tokens == 1 ? 2 : 8);
    int64_t next = 0;
    OMP(parallel num_threads(threads) if (threads > 1))
    {
        int64_t first, last;
        uint64_t saved = fp_enter();
        while (take(&next, panels, divisor, &first, &last)) matmul_blocks(k, w, out, x, first, last);
        fp_leave(saved);
    }
}

void pl_to_panels(const pl_kernels *k, int threads, const pl_matrix *rows, uint8_t *out)
{
    int64_t panels = panels_of(rows);
    SHARE(rows->rows * rows->cols, dynamic, first, last, panels, 1, k->to_panels(rows, out, first, last))
}

size_t pl_packed_panels_nbytes(int64_t rows, int64_t cols)
{
    return (size_t)((rows + PANEL_ROWS - 1) / PANEL_ROWS) * (size_t)((cols + 1) / 2) * PAIR_NBYTES;
}

/* table: the 8 most common exponents of the block, ascending, then the same with the sign; codes: its inverse. 127
 * holds Inf and NaN, which no table needs: padding would decode to them. */
static void choose_codes(const uint32_t *counts, int64_t panels, uint8_t *table, uint8_t *codes)
{
    uint64_t total[128] = {0};
    uint8_t chosen[128] = {0};
    for (int64_t p = 0; p < panels; p++)
        for (int i = 0; i < 127; i++) total[i] += counts[p * 128 + i];
    for (int n = 0; n < 8; n++) {
        int best = -1;
        for (int i = 0; i < 127; i++)
            if (!chosen[i] && (best < 0 || total[i] > total[best])) best = i;
        chosen[best] = 1;
    }
    memset(codes, PACKED_ESCAPE, 256);
    for (int i = 0, code = 0; i < 127; i++)
        if (chosen[i]) {
            table[code] = (uint8_t)i;
            table[code + 8] = (uint8_t)(i | 128);
            codes[i] = (uint8_t)code;
            codes[i | 128] = (uint8_t)(code + 8);
            code++;
        }
}

int64_t pl_pack(const pl_kernels *k, int threads, const pl_matrix *rows, uint8_t *out, size_t capacity)
{
    int64_t panels = panels_of(rows), work = rows->rows * rows->cols;
    size_t body = pl_packed_panels_nbytes(rows->rows, rows->cols), panel = body / (size_t)panels;
    size_t fixed = PACKED_HEADER + body + ((size_t)panels + 1) * 4;
    uint8_t codes[256], *table = out;
    if (capacity < fixed) return 0;
    uint32_t n = 0, *starts = (uint32_t *)(out + PACKED_HEADER + body);
    uint32_t *counts = malloc((size_t)panels * 128 * sizeof *counts);
    if (!counts) return -1;
    SHARE(work, dynamic, first, last, panels, 1,
          for (int64_t p = first; p < last; p++) k->count_exponents(rows, p, counts + p * 128))
    memset(out, 0, PACKED_HEADER);
    choose_codes(counts, panels, table, codes);
    free(counts);
    SHARE(work, dynamic, first, last, panels, 1,
          for (int64_t p = first; p < last; p++) starts[p] = k->count_escapes(rows, p, table, codes))
    for (int64_t p = 0; p < panels; p++) {
        uint32_t count = starts[p];
        starts[p] = n;
        n += count;
    }
    starts[panels] = n;
    memcpy(out + 16, &n, 4);
    size_t nbytes = fixed + (size_t)n * 5;
    if (nbytes > capacity) return 0;
    uint32_t *keys = starts + panels + 1;
    uint8_t *highs = (uint8_t *)(keys + n);
    SHARE(work, dynamic, first, last, panels, 1,
          for (int64_t p = first; p < last; p++)
              k->compress_panel(rows, p, table, codes, out + PACKED_HEADER + (size_t)p * panel, keys + starts[p],
                            highs + starts[p]))
    return (int64_t)nbytes;
}

void pl_unpack(const pl_kernels *k, int threads, const pl_matrix *w, uint8_t *out)
{
    int64_t panels = panels_of(w);
    SHARE(w->rows * w->cols, dynamic, first, last, panels, 1, k->unpack(w, out, first, last))
}

int pl_packed_valid(const pl_matrix *w, size_t nbytes)
{
    int64_t panels = panels_of(w), pairs = (w->cols + 1) / 2;
    size_t body = pl_packed_panels_nbytes(w->rows, w->cols), fixed = PACKED_HEADER + body + ((size_t)panels + 1) * 4;
    uint32_t n;
    if ((uintptr_t)w->data % 4 || nbytes < fixed) return 0;
    memcpy(&n, w->data + 16, 4);
    if (nbytes != fixed + (size_t)n * 5) return 0;
    const uint32_t *starts = (const uint32_t *)(w->data + PACKED_HEADER + body), *keys = starts + panels + 1;
    if (starts[0] != 0 || starts[panels] != n) return 0;
    for (int64_t p = 0; p < panels; p++) {
        if (starts[p] > starts[p + 1] || starts[p + 1] > n) return 0;
        for (uint32_t i = starts[p]; i < starts[p + 1]; i++)
            if (keys[i] >> 6 >= (uint64_t)pairs || (i > starts[p] && keys[i] <= keys[i - 1])) return 0;
    }
    return 1;
}

void pl_widen(const pl_kernels *k, int threads, const pl_matrix *rows, float *out)
{
    SHARE(rows->rows * rows->cols, dynamic, first, last, rows->rows, PANEL_ROWS, k->widen(rows, out, first, last))
}

int pl_quantize(int threads, pl_dtype dtype, const float *x, const float *importance, int64_t rows, int64_t cols,
                uint8_t *out)
{
    const pl_format *f = &pl_formats[dtype];
    pl_quantizer q = {.dtype = dtype, .cols = cols, .x = x, .out = out};
    float *weights = NULL;
    pl_quantize_levels(&q.uneven);
    q.row_nbytes = f->nbytes == 4 ? 2 * (size_t)cols : (size_t)(cols / f->cols) * (size_t)f->nbytes;
    if (importance && f->nbytes != 4) {
        weights = malloc((size_t)cols * sizeof *weights);
        if (!weights) return -1;
        pl_quantize_weights(importance, cols, f->cols, weights);
    }
    q.weights = weights;
    SHARE(rows * cols * 64, dynamic, first, last, rows, 1, pl_quantize_rows_portable(&q, first, last))
    free(weights);
    return 0;
}

void pl_rmsnorm(const pl_kernels *k, int threads, const float *x, const float *weight, float eps, int64_t rows,
                int64_t cols, float *out)
{
    SHARE(rows * cols, static, first, last, rows, 1, k->rmsnorm(x, weight, eps, cols, out, first, last))
}

void pl_rope(const pl_kernels *k, int threads, float *x, const float *cos, const float *sin, int64_t tokens, int heads,
             int head_dim, int rotated, int interleaved)
{
    SHARE(tokens * heads * rotated, static, first, last, tokens, 1,
          k->rope(x, cos, sin, heads, head_dim, rotated, interleaved, first, last))
}

/* Plain IEEE additions and products: the compiler may vectorize them as it likes. A factor of 1 changes no bit. */
static void add_rows(const float *x, const float *y, float factor, int broadcast, int64_t cols, float *out, int64_t first,
                     int64_t last)
{
    for (int64_t r = first; r < last; r++) {
        const float *a = x + r * cols, *b = broadcast ? y : y + r * cols;
        float *o = out + r * cols;
        for (int64_t c = 0; c < cols; c++) o[c] = a[c] + b[c] * factor;
    }
}

void pl_add(int threads, const float *x, const float *y, float factor, int broadcast, int64_t rows, int64_t cols,
            float *out)
{
    SHARE(rows * cols, static, first, last, rows, 1, add_rows(x, y, factor, broadcast, cols, out, first, last))
}

static void scale_rows(const float *x, const float *factors, int broadcast, int64_t cols, float *out, int64_t first,
                       int64_t last)
{
    for (int64_t r = first; r < last; r++) {
        const float *a = x + r * cols, factor = factors[broadcast ? 0 : r];
        float *o = out + r * cols;
        for (int64_t c = 0; c < cols; c++) o[c] = a[c] * factor;
    }
}

void pl_scale(int threads, const float *x, const float *factors, int broadcast, int64_t rows, int64_t cols, float *out)
{
    SHARE(rows * cols, static, first, last, rows, 1, scale_rows(x, factors, broadcast, cols, out, first, last))
}

void pl_swiglu(const pl_kernels *k, int threads, const float *gate, const float *up, float *out, int64_t n)
{
    SHARE(n, static, first, last, n, 4096, k->swiglu(gate, up, out, first, last))
}

void pl_mix(const pl_kernels *k, int threads, const float *y, const int32_t *rows, const float *weights, int64_t tokens,
            int chosen, int64_t cols, float *out)
{
    SHARE(tokens * cols * chosen, static, first, last, tokens, 1,
          k->mix(y, rows, weights, chosen, cols, out, first, last))
}

void pl_clamped_swiglu(const pl_kernels *k, int threads, const float *gate, const float *up, float alpha, float limit,
                       float *out, int64_t n)
{
    SHARE(n, static, first, last, n, 4096, k->clamped_swiglu(gate, up, alpha, limit, out, first, last))
}

void pl_geglu(const pl_kernels *k, int threads, const float *gate, const float *up, float *out, int64_t n)
{
    SHARE(n, static, first, last, n, 4096, k->geglu(gate, up, out, first, last))
}

void pl_softcap(const pl_kernels *k, int threads, const float *x, float cap, float *out, int64_t n)
{
    SHARE(n, static, first, last, n, 4096, k->softcap(x, cap, out, first, last))
}

void pl_cache_append(const pl_kernels *k, int threads, const pl_attention *a, const float *k_new, const float *v_new)
{
    const int64_t writes = a->batch->write_count;
    SHARE(writes * a->kv_heads * a->head_dim, static, first, last, writes, 1,
          k->cache_append(a, k_new, v_new, first, last))
}

/* Tiles of at most QUERY_TILE queries: heads of one group first, then neighbouring tokens of the sequence. */
static int64_t attention_items(const pl_attention *a, pl_attention_item *items)
{
    const int64_t tokens = a->batch->tokens;
    const int32_t *sequences = a->batch->sequences;
    int group = a->heads / a->kv_heads;
    int heads = group < QUERY_TILE ? group : QUERY_TILE, width = QUERY_TILE / heads;
    int64_t n = 0;
    for (int64_t t = 0, next; t < tokens; t = next) {
        for (next = t + 1; next < tokens && next < t + width && sequences[next] == sequences[t];) next++;
        for (int kv = 0; kv < a->kv_heads; kv++)
            for (int h = 0; h < group; h += heads, n++)
                if (items)
                    items[n] = (pl_attention_item){t, (int)(next - t), kv, kv * group + h, group - h < heads ? group - h : heads};
    }
    return n;
}

static int attend_items(const pl_kernels *k, const pl_attention *a, const pl_attention_item *items, const float *q,
                        float *out, int64_t first, int64_t last)
{
    float *own = scratch(pl_attend_scratch(a->head_dim));
    for (int64_t i = first; own && i < last; i++) k->attend(a, &items[i], q, out, own);
    return own == NULL;
}

int pl_attend(const pl_kernels *k, int threads, const pl_attention *a, const float *q, float *out)
{
    pl_attention_item few[64], *items = few;
    int64_t n = attention_items(a, NULL), work = 0;
    int failed = 0;
    if (n > 64 && !(items = malloc((size_t)n * sizeof *items))) return -1;
    attention_items(a, items);
    for (int64_t t = 0; t < a->batch->tokens; t++) work += (a->batch->positions[t] + 1) * a->heads * a->head_dim;
    SHARE(work, dynamic, first, last, n, 1, if (attend_items(k, a, items, q, out, first, last)) failed = 1)
    if (items != few) free(items);
    return failed ? -1 : 0;
}

void pl_conv_walk(const pl_kernels *k, int threads, const pl_walk *w, const pl_conv *c)
{
    SHARE(w->starts[w->texts] * c->channels * c->width, static, first, last, c->channels, CONV_CHANNELS,
          for (int64_t at = first; at < last; at += CONV_CHANNELS)
              k->conv(w, c, at, at + CONV_CHANNELS < last ? at + CONV_CHANNELS : last))
}

void pl_sigmoid_gate(const pl_kernels *k, int threads, const float *x, const float *gate, float *out, int64_t n)
{
    SHARE(n, static, first, last, n, 4096, k->sigmoid_gate(x, gate, out, first, last))
}

static int delta_items(const pl_kernels *k, const pl_walk *w, const pl_delta *d, int64_t first, int64_t last)
{
    float *own = scratch((size_t)d->key_dim * PANEL_ROWS);
    if (own) k->delta(w, d, own, first, last);
    return own == NULL;
}

int pl_delta_walk(const pl_kernels *k, int threads, const pl_walk *w, const pl_delta *d)
{
    const int64_t items = (int64_t)d->value_heads * ((d->value_dim + PANEL_ROWS - 1) / PANEL_ROWS);
    int failed = 0;
    SHARE(w->starts[w->texts] * items * d->key_dim * PANEL_ROWS, dynamic, first, last, items, 1,
          if (delta_items(k, w, d, first, last)) failed = 1)
    return failed ? -1 : 0;
}

/* Floating-point operations per second of multiply-adds in registers. */
double pl_spin(const pl_kernels *k, int threads, int64_t rounds)
{
    threads = team(threads);
    struct timespec a, b;
    int64_t done = 0;
    float sink = 0.0f;
    clock_gettime(CLOCK_MONOTONIC, &a);
    OMP(parallel num_threads(threads) reduction(+ : done, sink))
    {
        float own;
        done += k->spin(rounds, &own);
        sink += own;
    }
    clock_gettime(CLOCK_MONOTONIC, &b);
    double seconds = (double)(b.tv_sec - a.tv_sec) + 1e-9 * (double)(b.tv_nsec - a.tv_nsec);
    return sink != sink ? 0.0 : (double)done / seconds;
}

/* Read all of data once, as fast as this machine can; the sum keeps the compiler honest. */
uint64_t pl_read_memory(int threads, const uint8_t *data, size_t nbytes)
{
    threads = team(threads);
    (void)threads; /* without OpenMP */
    typedef uint64_t pair __attribute__((vector_size(16), aligned(8)));
    const int64_t block = 1 << 20;
    int64_t blocks = (int64_t)(nbytes / (size_t)block);
    uint64_t sum = 0;
    OMP(parallel for num_threads(threads) schedule(static) reduction(+ : sum))
    for (int64_t b = 0; b < blocks; b++) {
        const pair *p = (const pair *)(data + b * block);
        pair s[8] = {{0}};
        for (int64_t i = 0; i < block / 16; i += 8)
            for (int j = 0; j < 8; j++) s[j] += p[i + j];
        for (int j = 0; j < 8; j++) sum += s[j][0] + s[j][1];
    }
    return sum;
}
