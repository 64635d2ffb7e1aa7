/* The kernels, one line of mathematics each, and the table every instruction set fills in.
 *
 * Shapes: T tokens, R rows (outputs), C columns (inputs), H query heads, K key/value heads, D head_dim.
 * All activations are float32, row-major. Nothing here allocates for the caller, knows Python, or starts
 * a thread: parallel.c cuts the work, the functions of the table do one cut on the calling thread.
 *
 * Every function follows the canonical order of MODEL.md ("Numerics"), so its bits depend neither on the
 * instruction set nor on how the work was cut.
 */
#ifndef PYLLAMA_KERNELS_H
#define PYLLAMA_KERNELS_H

#include <stddef.h>
#include <stdint.h>

enum {
    PANEL_ROWS = 32,     /* rows of a weight panel, and positions of a cache page */
    GROUP_ROWS = 16,     /* rows one register block covers */
    TOKEN_TILE = 6,      /* tokens one register block covers: 12 accumulators of 8, or 24 of 4 */
    SEGMENT_COLS = 128,  /* columns widened at a time: 16 KB of float32, half a first-level cache */
    BLOCK_COLS = 256,    /* columns of the largest quantized block */
    QUERY_TILE = 24,     /* queries that share one widened cache page */
    CHUNK_POSITIONS = 256, /* positions of one softmax chunk: part of the canonical order */
    PACKED_HEADER = 64,  /* a packed block's table and count of escapes */
    PAIR_NBYTES = 96,    /* two packed columns of a panel */
    PACKED_ESCAPE = 16,  /* the code of a high byte that the table lacks */
    PACKED_SAMPLE = 8,   /* rows of a panel from one that is counted to the next: the first of four tells enough */
    MAX_EXPERTS = 1024,  /* of a layer */
    MAX_HEAD_DIM = 1024
};

/* Storage formats. Numbers are ours, in this order; names are GGUF's.
 *
 * A block of a row: `cols` weights in `nbytes` bytes, made of runs of 4-, 2- or 1-byte fields: from byte `at` on, so wide, so
 * many. In a panel each field is stored for 32 rows side by side, or for 16 where blocks are quantized, so that a row is a
 * vector lane, and runs come in the order in which a product uses them; of some formats bits are rearranged (panels.h). */
#define PL_FORMATS(EACH)                            \
    EACH(F32, 1, 4, {0, 4, 1})                    \
    EACH(F16, 2, 4, {0, 4, 1})                    \
    EACH(BF16, 2, 4, {0, 4, 1})                   \
    EACH(Q4_0, 32, 18, {0, 2, 1}, {2, 4, 4})      \
    EACH(Q4_1, 32, 20, {0, 2, 2}, {4, 4, 4})      \
    EACH(Q5_0, 32, 22, {0, 2, 1}, {2, 4, 5})      \
    EACH(Q5_1, 32, 24, {0, 2, 2}, {4, 4, 5})      \
    EACH(Q8_0, 32, 34, {0, 2, 1}, {2, 4, 8})      \
    EACH(Q2_K, 256, 84, {80, 2, 2}, {0, 4, 20})   \
    EACH(Q3_K, 256, 110, {108, 2, 1}, {96, 4, 3}, {0, 4, 24}) \
    EACH(Q4_K, 256, 144, {0, 2, 2}, {4, 4, 35})   \
    EACH(Q5_K, 256, 176, {0, 2, 2}, {4, 4, 43})   \
    EACH(Q6_K, 256, 210, {208, 2, 1}, {192, 4, 4}, {0, 4, 16}, {128, 4, 8}, {64, 4, 16}, {160, 4, 8}) \
    EACH(IQ4_NL, 32, 18, {0, 2, 1}, {2, 4, 4})    \
    EACH(IQ4_XS, 256, 136, {0, 2, 2}, {4, 4, 33}) \
    EACH(MXFP4, 32, 17, {0, 1, 1}, {1, 4, 4})

#define PL_NUMBER(name, ...) DT_##name,
typedef enum { PL_FORMATS(PL_NUMBER) DT_COUNT } pl_dtype;
#undef PL_NUMBER

typedef struct {
    const char *name;
    int cols, nbytes;
    struct { uint8_t at, width, count; } runs[6];
} pl_format;

extern const pl_format pl_formats[DT_COUNT];

/* Forms in which a product takes its activations. Which one depends on the weights' format alone, never on T, the
 * instruction set or the number of threads. */
typedef enum {
    FORM_F32, /* float32 as they come */
    FORM_D16_6, FORM_D16_8, /* 16-bit integers, scaled by the largest of 32 columns: pl_d16. They are the same numbers, laid
                             * out for codes of at most so many bits */
    FORM_COUNT
} pl_form;

static inline pl_form pl_form_of(pl_dtype dtype)
{
    switch (dtype) {
    case DT_Q4_0: case DT_Q4_1: case DT_Q5_0: case DT_Q5_1: case DT_Q2_K: case DT_Q3_K: case DT_Q4_K: case DT_Q5_K:
    case DT_Q6_K: return FORM_D16_6;
    case DT_Q8_0: case DT_IQ4_NL: case DT_IQ4_XS: case DT_MXFP4: return FORM_D16_8;
    default: return FORM_F32;
    }
}

/* 32 columns of a token: x = scale * X, X whole and at most D16_TOP (MODEL.md, "Numerics"). */
typedef struct {
    uint8_t codes[2][32];  /* X of 16 columns each, laid out as an instruction set's products want it */
    float scale, sum;      /* sum: that of X, times scale */
    float half_sums[2];    /* the same for 16 columns each */
    int32_t total, totals[2]; /* sums of X: of all, of 16 columns each */
    int32_t unused;
} pl_d16;

enum { D16_COLS = 32, D16_TOP = 32639 };

/* Activations x (T, C) in one form, made once for all the matrices that multiply them. */
typedef struct {
    pl_form form;
    int64_t tokens, cols;
    const void *data; /* FORM_F32: x itself for T == 1, else tiles of TOKEN_TILE tokens, (tile, c, t);
                       * others: pl_d16 (T, C / 32) */
} pl_input;

typedef enum {
    LAYOUT_ROWS,   /* plain rows of `row_nbytes`, as in the file */
    LAYOUT_PANELS, /* PANEL_ROWS rows at a time, blocks ascending, fields transposed, the last panel and an odd
                    * last column padded with zero bytes */
    LAYOUT_PACKED  /* bfloat16 in 12 bits, losslessly: packed.h */
} pl_layout;

/* R x C weights. */
typedef struct {
    pl_dtype dtype;
    pl_layout layout;
    int64_t rows, cols;
    size_t row_nbytes;
    const uint8_t *data;
} pl_matrix;

/* Where the rows of the next `blocks` matrices go, one below the other: from p on, `stride` floats a token. */
typedef struct {
    int64_t blocks;
    float *p;
    size_t stride;
} pl_out;

/* Panels of w, the last of which may have fewer rows. */
static inline int64_t panels_of(const pl_matrix *w) { return (w->rows + PANEL_ROWS - 1) / PANEL_ROWS; }

/* Where the keys and values of a token are put: several times if several sequences go on from it. */
typedef struct {
    int32_t token, page;
} pl_write;

/* Which tokens a pass holds: whose they are, where they stand, and which pages their sequences have. */
typedef struct {
    int64_t tokens, max_pages;
    const uint64_t *pool;     /* addresses of pages of PANEL_ROWS positions, by number */
    const int32_t *pages;     /* (sequences, max_pages) their numbers */
    const int64_t *positions; /* (T) */
    const int32_t *sequences; /* (T) row of `pages` */
    const pl_write *writes;
    int64_t write_count;
} pl_batch;

/* What attention needs besides q: what a layer's is like, and who asks. */
typedef struct {
    int heads, kv_heads, head_dim; /* H, K, D */
    int f16;                       /* pages hold float16 (saturated) or float32 */
    int64_t window;                /* positions a query sees, itself included; 0: all */
    float scale;                   /* multiplies q.k */
    float softcap;                 /* scores become softcap * tanh(score / softcap); 0: stay */
    const float *sinks;            /* (H) scores that take part in each head's softmax and have no value; NULL: none */
    size_t k_offset, v_offset;     /* bytes from a page's start to this layer's keys, values */
    const pl_batch *batch;
} pl_attention;

/* T consecutive tokens of one sequence times the query heads of one key/value head. */
typedef struct {
    int64_t token;
    int tokens;
    int kv_head, head, heads;
} pl_attention_item;

/* The steps of the texts of a pass through a layer with a state. A slot has the states of all such layers of one text. */
typedef struct {
    int32_t step, slot;
} pl_store;

typedef struct {
    int64_t texts;
    const uint64_t *slots;       /* addresses by number */
    const int32_t *sources;      /* (texts) the slot with the state before the first step; -1: all zero */
    const int32_t *starts;       /* (texts + 1) where the steps of each begin */
    const int32_t *steps;        /* rows of the layer's input, in order; several texts may have the same */
    const int32_t *store_starts; /* (texts + 1) where the stores of each begin */
    const pl_store *stores;      /* after which of `steps` the state goes into which slot, ascending */
} pl_walk;

/* A causal convolution of each channel by itself. State: the last `width` - 1 inputs, oldest first. */
typedef struct {
    int64_t channels;          /* C, some of the input's */
    int width, silu;           /* K; whether the result goes through silu */
    const float *x;            /* from the first of these channels on */
    int64_t stride_x;          /* floats between rows of x */
    const float *weight, *bias; /* (K, C), oldest input first; (C) or NULL */
    size_t offset;             /* floats from a slot's start to the first of these channels */
    int64_t stride;            /* floats between inputs there */
    float *out;                /* (rows, C) */
} pl_conv;

enum { MAX_CONV = 16, CONV_CHANNELS = 64 };

/* The gated delta rule (Yang, Kautz, Hatamizadeh 2024, arXiv 2412.06464, equation 10), token by token. State: of each value
 * head, PANEL_ROWS columns at a time, (key_dim, PANEL_ROWS), the last columns padded. */
typedef struct {
    int key_heads, value_heads, key_dim, value_dim;
    int tiled;                     /* value head h has the keys of head h % key_heads, else of h / (value_heads / key_heads) */
    const float *q, *k, *v;        /* (rows, key_heads, key_dim) twice, (rows, value_heads, value_dim) */
    const float *decay, *beta;     /* (rows, value_heads) */
    size_t offset;                 /* floats from a slot's start */
    float *out;                    /* (rows, value_heads, value_dim) */
} pl_delta;

typedef struct {
    const char *isa;
    /* out[t, row + r] = sum_c w[r, c] * x[t, c], for the panels [first, last) of w.
     * x in the form of w's format; ldo: floats between rows of out. */
    void (*matmul)(const pl_matrix *w, const pl_input *x, float *out, size_t ldo, int64_t row, int64_t first,
                   int64_t last);
    /* packed[(tile, c, t)] = x[t, c], tiles of TOKEN_TILE tokens, [first, last) of them. */
    void (*tile_tokens)(const float *x, int64_t tokens, int64_t cols, float *packed, int64_t first, int64_t last);
    /* The blocks [first, last) of 32 columns, counted through all of x (T, C), in one of the D16 forms; T decides how it is laid out. */
    void (*make_d16)(const float *x, pl_form form, int64_t tokens, pl_d16 *out, int64_t first, int64_t last);
    /* Row-major rows -> panels [first, last) of out: the same bits, transposed. */
    void (*to_panels)(const pl_matrix *rows, uint8_t *out, int64_t first, int64_t last);
    /* Packed panels [first, last) -> row-major bfloat16 rows: what they were packed from. */
    void (*unpack)(const pl_matrix *w, uint8_t *out, int64_t first, int64_t last);
    /* counts[128] of the upper seven exponent bits in every PACKED_SAMPLE-th row of panel p. */
    void (*count_exponents)(const pl_matrix *rows, int64_t p, uint32_t *counts);
    /* How many weights of panel p have an exponent that is not in the table; codes[high byte]: its code. */
    uint32_t (*count_escapes)(const pl_matrix *rows, int64_t p, const uint8_t *table, const uint8_t *codes);
    /* One panel in 12 bits a weight: pairs to out, escapes' keys and high bytes to keys and highs, as many as counted. */
    void (*compress_panel)(const pl_matrix *rows, int64_t p, const uint8_t *table, const uint8_t *codes, uint8_t *out,
                       uint32_t *keys, uint8_t *highs);
    /* out[i, c] = float(w[i, c]) for the rows [first, last) of a row-major matrix. */
    void (*widen)(const pl_matrix *rows, float *out, int64_t first, int64_t last);
    /* out = x / sqrt(mean(x^2) + eps) * weight, for the rows [first, last) of (T, C). */
    void (*rmsnorm)(const float *x, const float *weight, float eps, int64_t cols, float *out,
                    int64_t first, int64_t last);
    /* Rotate pairs (i, i + N/2) of the first N = `rotated` of each head's D elements of token t by (cos, sin)[t, i];
     * interleaved: pairs (2i, 2i+1) are read and stored half-split, so that both layouts give the same bits from here on. */
    void (*rope)(float *x, const float *cos, const float *sin, int heads, int head_dim, int rotated, int interleaved,
                 int64_t first, int64_t last);
    /* out = gate / (1 + exp(-gate)) * up, elementwise over [first, last). */
    void (*swiglu)(const float *gate, const float *up, float *out, int64_t first, int64_t last);
    /* out = g / (1 + exp(-alpha g)) * (u + 1), g = min(gate, limit), u = up within -limit to limit: gpt-oss's experts. */
    void (*clamped_swiglu)(const float *gate, const float *up, float alpha, float limit, float *out, int64_t first,
                           int64_t last);
    /* out = gelu(gate) * up, gelu in its tanh form: z / (1 + exp(-2 sqrt(2 / pi) (z + 0.044715 z^3))). */
    void (*geglu)(const float *gate, const float *up, float *out, int64_t first, int64_t last);
    /* out = cap * tanh(x / cap), elementwise over [first, last). */
    void (*softcap)(const float *x, float cap, float *out, int64_t first, int64_t last);
    /* out[t] = sum_i weights[t, i] * y[rows[t, i]], i ascending from `chosen` of them, for the tokens [first, last). */
    void (*mix)(const float *y, const int32_t *rows, const float *weights, int chosen, int64_t cols, float *out,
                int64_t first, int64_t last);
    /* out = exp(x), elementwise over [first, last); exactly 0 below -86.5. */
    void (*exp)(const float *x, float *out, int64_t first, int64_t last);
    /* Put k, v (T, K, D) into pages, for the writes [first, last). */
    void (*cache_append)(const pl_attention *a, const float *k, const float *v, int64_t first, int64_t last);
    /* out[t, h] = softmax(q[t, h] . keys * scale) . values, for one item. */
    void (*attend)(const pl_attention *a, const pl_attention_item *item, const float *q, float *out, float *scratch);
    /* out[row, c] = sum_j weight[j, c] * x[the row j - (K - 1) steps on, c], + bias, through silu, for the channels
     * [first, last), at most CONV_CHANNELS of them. */
    void (*conv)(const pl_walk *w, const pl_conv *c, int64_t first, int64_t last);
    /* out = x / (1 + exp(-gate)), elementwise over [first, last). */
    void (*sigmoid_gate)(const float *x, const float *gate, float *out, int64_t first, int64_t last);
    /* Along a text: S = decay S, S += k (beta (v - k S)), out = q S; for the items [first, last), each PANEL_ROWS columns of
     * a value head. scratch: key_dim * PANEL_ROWS floats. */
    void (*delta)(const pl_walk *w, const pl_delta *d, float *scratch, int64_t first, int64_t last);
    /* Multiply-adds in registers, for the machine's peak: returns the floating-point operations done. */
    int64_t (*spin)(int64_t rounds, float *sink);
} pl_kernels;

/* The one list of instruction sets, best first: ISA(name, what the CPU must say it has). kernels_<name>.c has each. */
#ifdef PL_VNNI_IN_AVX2 /* a build for tests on CPUs without it: isa_avx2.h */
#define PL_VNNI_NEEDS "avx2", "fma", "f16c"
#else
#define PL_VNNI_NEEDS "avx2", "fma", "f16c", "avx512vl", "avx512vnni"
#endif
#define PL_ISAS(ISA)                 \
    ISA(vnni, PL_VNNI_NEEDS)         \
    ISA(avx2, "avx2", "fma", "f16c") \
    ISA(dotprod, "dotprod")          \
    ISA(neon, NULL)                  \
    ISA(scalar, NULL)

/* The table of each, NULL where it is of another architecture. Whether this CPU can run it is isas.c's question. */
#define PL_DECLARE(name, ...) const pl_kernels *pl_kernels_##name(void);
PL_ISAS(PL_DECLARE)
#undef PL_DECLARE

/* isas.c: number `index` of those that this binary and this CPU have, best first; NULL after the last. */
const pl_kernels *pl_isa(int index);

/* Floats of scratch that attend() needs. */
static inline size_t pl_attend_scratch(int head_dim)
{
    size_t dims = (size_t)(head_dim + PANEL_ROWS - 1) / PANEL_ROWS * PANEL_ROWS;
    /* packed queries, one widened page, scores (query-major and packed), chunk output, running output */
    return QUERY_TILE * (size_t)head_dim + PANEL_ROWS * dims + 2 * QUERY_TILE * CHUNK_POSITIONS + 2 * QUERY_TILE * dims;
}

/* parallel.c: the same, over all rows / tokens / heads, on `threads` threads. 0, or -1 when out of memory. */

/* Bytes that an input of one form takes besides x, and the making of it there. */
size_t pl_input_nbytes(pl_form form, int64_t tokens, int64_t cols);
void pl_make_input(const pl_kernels *k, int threads, pl_form form, const float *x, int64_t tokens, int64_t cols,
                   void *memory, pl_input *out);
/* Matrices of as many columns, times the same x, into `outs` places: see pl_out. x[form], for each that w needs. */
void pl_matmul(const pl_kernels *k, int threads, const pl_matrix *w, const pl_out *out, int outs, const pl_input *x);
void pl_to_panels(const pl_kernels *k, int threads, const pl_matrix *rows, uint8_t *out);
/* Bytes of the panels of a packed block, without its header and its escapes. */
size_t pl_packed_panels_nbytes(int64_t rows, int64_t cols);
/* Bytes of `rows` packed, written to out if they fit `capacity`; 0 where they would not, -1 without memory. */
int64_t pl_pack(const pl_kernels *k, int threads, const pl_matrix *rows, uint8_t *out, size_t capacity);
void pl_unpack(const pl_kernels *k, int threads, const pl_matrix *w, uint8_t *out);
/* Whether `nbytes` at w->data are a well-formed packed block of w's shape: nothing will be read outside it. */
int pl_packed_valid(const pl_matrix *w, size_t nbytes);
void pl_widen(const pl_kernels *k, int threads, const pl_matrix *rows, float *out);
void pl_rmsnorm(const pl_kernels *k, int threads, const float *x, const float *weight, float eps, int64_t rows,
                int64_t cols, float *out);
void pl_rope(const pl_kernels *k, int threads, float *x, const float *cos, const float *sin, int64_t tokens, int heads,
             int head_dim, int rotated, int interleaved);
/* out = x + factor * y, the product rounded; y (rows, cols), or one row if `broadcast`. */
void pl_add(int threads, const float *x, const float *y, float factor, int broadcast, int64_t rows, int64_t cols,
            float *out);
/* out = x * factors[row], or * factors[0] if `broadcast`. */
void pl_scale(int threads, const float *x, const float *factors, int broadcast, int64_t rows, int64_t cols, float *out);
void pl_swiglu(const pl_kernels *k, int threads, const float *gate, const float *up, float *out, int64_t n);
void pl_mix(const pl_kernels *k, int threads, const float *y, const int32_t *rows, const float *weights, int64_t tokens,
            int chosen, int64_t cols, float *out);
void pl_clamped_swiglu(const pl_kernels *k, int threads, const float *gate, const float *up, float alpha, float limit,
                       float *out, int64_t n);
void pl_geglu(const pl_kernels *k, int threads, const float *gate, const float *up, float *out, int64_t n);
void pl_softcap(const pl_kernels *k, int threads, const float *x, float cap, float *out, int64_t n);
/* q, k_new, v_new: of the batch's tokens, all of them. */
void pl_cache_append(const pl_kernels *k, int threads, const pl_attention *a, const float *k_new, const float *v_new);
int pl_attend(const pl_kernels *k, int threads, const pl_attention *a, const float *q, float *out);
void pl_conv_walk(const pl_kernels *k, int threads, const pl_walk *w, const pl_conv *c);
void pl_sigmoid_gate(const pl_kernels *k, int threads, const float *x, const float *gate, float *out, int64_t n);
int pl_delta_walk(const pl_kernels *k, int threads, const pl_walk *w, const pl_delta *d);
double pl_spin(const pl_kernels *k, int threads, int64_t rounds);
uint64_t pl_read_memory(int threads, const uint8_t *data, size_t nbytes);
int pl_openmp(void);

/* calls.c: a call of a kernel, as data. What a pass does again and again is kept as a list of them and made without asking
 * Python, whose own data the weights have driven out of the caches by then. */
enum { MAX_STACKS = 4 }; /* places that one product writes to */
typedef struct {
    const float *x;
    void *memory;
    pl_input *out;
    int64_t tokens, cols;
    pl_form form;
} pl_call_input;
typedef struct {
    const pl_matrix *w;
    const pl_input *x;
    pl_out out[MAX_STACKS];
    int outs;
} pl_call_matmul;
typedef struct {
    const float *x, *weight;
    float *out;
    int64_t rows, cols;
    float eps;
} pl_call_rmsnorm;
typedef struct {
    float *x;
    const float *cos, *sin;
    int64_t tokens;
    int heads, head_dim, rotated, interleaved;
} pl_call_rope;
typedef struct {
    const float *x, *y; /* or factors */
    float *out;
    int64_t rows, cols;
    float factor;
    int broadcast;
} pl_call_add;
typedef struct {
    const float *gate, *up;
    float *out;
    int64_t n;
} pl_call_glu;
typedef struct { /* its batch is that of whoever makes the call */
    pl_attention *a;
    const float *q, *k, *v;
    float *out;
} pl_call_attention;
typedef struct {
    enum { CALL_INPUT, CALL_MATMUL, CALL_RMSNORM, CALL_ROPE, CALL_ADD, CALL_SCALE, CALL_SWIGLU, CALL_GEGLU, CALL_APPEND, CALL_ATTEND } what;
    union {
        pl_call_input input;
        pl_call_matmul matmul;
        pl_call_rmsnorm rmsnorm;
        pl_call_rope rope;
        pl_call_add add;
        pl_call_glu glu;
        pl_call_attention attention;
    };
} pl_call;

/* All of them, one after the other. 0, or -1 when out of memory: then some have not been made. */
int pl_make_calls(const pl_kernels *k, int threads, const pl_call *calls, int64_t n, const pl_batch *batch);

/* cpu_features.c, the one place that asks the CPU: name number `index` of what it has; NULL after the last. */
const char *pl_cpu_feature(int index);

/* rope_table.c: cos and sin of positions[t] * inv_freq[i], scaled, computed in float64 and rounded. */
void pl_rope_table(const int64_t *positions, int64_t tokens, const double *inv_freq, int64_t half, double scale,
                   float *cos, float *sin);

/* mxfp4.c: rows of MXFP4 whose codes (16 bytes for 32 weights, two neighbours a byte, the first in its low half) and scales
 * (a byte each) lie apart, so many bytes from row to row -> its blocks of 17 bytes, one row behind the other. */
void pl_join_mxfp4(const uint8_t *codes, int64_t codes_stride, const uint8_t *scales, int64_t scales_stride, int64_t rows,
                   int64_t blocks, uint8_t *out);

/* route.c: ids[t] (chosen) of the largest logits[t] (experts), equals by lower id, in ascending order, and their weights:
 * exp(logit - largest) over the sum of that, in ascending order, of those chosen or of all. */
void pl_route(const pl_kernels *k, const float *logits, int64_t tokens, int experts, int chosen, int of_chosen,
              int32_t *ids, float *weights);

/* route.c: the same of s = 1 / (1 + exp(-logit)): those with the largest s + bias (experts), or s where bias is NULL, weighed
 * by s, over the sum of that and 1e-6 if of_chosen, times scale. */
void pl_route_sigmoid(const pl_kernels *k, const float *logits, const float *bias, int64_t tokens, int experts, int chosen,
                      int of_chosen, float scale, int32_t *ids, float *weights);

/* delta_gates.c: decay = exp(rate * softplus(a + bias)), beta = 1 / (1 + exp(-b)); a, b (tokens, heads), rate, bias (heads). */
void pl_delta_gates(const pl_kernels *k, const float *a, const float *b, const float *rate, const float *bias,
                    int64_t tokens, int64_t heads, float *decay, float *beta);

/* gumbel.c: ln x of a normal x > 0, under 1 ulp, the same bits on every machine. */
double pl_natural_log(double x);

/* gumbel.c: the `count` <= n largest logits[i] + noise(seed, index, ids[i]), largest first, equals by lower id, in whatever
 * order the candidates come. */
void pl_draw(const int64_t *ids, const float *logits, int64_t n, uint64_t seed, uint64_t index, int64_t count,
             int64_t *best, double *scores);

#endif
