/* Runs one kernel on one thread so that its instructions can be counted from outside (count_instructions.py).
 *
 * usage: count_kernels KERNEL TOKENS...      two calls for each number of tokens, with mark() before, between and after;
 *                                            prints the units of work of one call, a line each
 */
#include "kernels.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 64, COLS = 512, HEADS = 4, KV_HEADS = 2, HEAD_DIM = 64, POSITIONS = 256, PAGES = POSITIONS / PANEL_ROWS };

static uint64_t state = 1;

static uint32_t next(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}

static void *allocate(size_t nbytes)
{
    void *p = aligned_alloc(64, (nbytes + 127) / 64 * 64);
    if (p == NULL) exit(3);
    memset(p, 0, nbytes);
    return p;
}

static float *floats(size_t n)
{
    float *p = allocate(n * sizeof(float));
    for (size_t i = 0; i < n; i++) p[i] = (float)(int32_t)next() * 0x1p-31f;
    return p;
}

/* Weights as trained ones are: 16-bit floats of a few exponents, anything in the blocks of the other formats. */
static pl_matrix weights(const pl_kernels *k, const char *name, pl_layout layout)
{
    pl_matrix rows = {.layout = LAYOUT_ROWS, .rows = ROWS, .cols = COLS}, out;
    while (rows.dtype < DT_COUNT && strcmp(pl_formats[rows.dtype].name, name)) rows.dtype++;
    if (rows.dtype == DT_COUNT) exit(2);
    const pl_format *f = &pl_formats[rows.dtype];
    rows.row_nbytes = rows.dtype == DT_F32 ? COLS * 4 : f->nbytes == 4 ? COLS * 2 : (size_t)(COLS / f->cols * f->nbytes);
    size_t nbytes = rows.row_nbytes * ROWS;
    uint8_t *data = allocate(nbytes), *stored = allocate(2 * nbytes + 4096);
    for (size_t i = 0; i < nbytes; i++) data[i] = (uint8_t)next();
    if (rows.dtype == DT_BF16)
        for (size_t i = 1; i < nbytes; i += 2) data[i] = (uint8_t)((next() & 0x80) | (0x38 + next() % 6));
    rows.data = data;
    out = rows;
    out.layout = layout;
    out.data = stored;
    if (layout == LAYOUT_PANELS) pl_to_panels(k, 1, &rows, stored);
    else if (pl_pack(k, 1, &rows, stored, 2 * nbytes + 4096) <= 0) exit(4);
    return out;
}

/* Found in the trace by its name. */
__attribute__((noinline)) void mark(void);
void mark(void) { __asm__ volatile("" ::: "memory"); }

#define TWICE for (int call = (mark(), 0); call < 2; call++, mark())

static int run(const pl_kernels *k, const char *what, int64_t tokens)
{
    int64_t units = tokens * COLS; /* elements, unless told otherwise */
    float *x = floats((size_t)tokens * COLS), *y = floats((size_t)tokens * COLS), *out = floats((size_t)tokens * COLS);
    float *packed = allocate(pl_input_nbytes(FORM_F32, tokens, COLS) + pl_input_nbytes(FORM_D16_6, tokens, COLS));

    if (!strncmp(what, "matmul_", 7)) { /* units: weights times tokens */
        pl_layout layout = strcmp(what, "matmul_bf12") ? LAYOUT_PANELS : LAYOUT_PACKED;
        char name[16];
        snprintf(name, sizeof name, "%s", layout == LAYOUT_PACKED ? "BF16" : what + 7);
        static pl_matrix w;
        if (w.data == NULL) w = weights(k, name, layout);
        pl_input inputs[FORM_COUNT];
        const pl_form form = pl_form_of(w.dtype);
        pl_make_input(k, 1, form, x, tokens, COLS, packed, &inputs[form]);
        units *= ROWS;
        TWICE pl_matmul(k, 1, &w, &(pl_out){1, out, ROWS}, 1, inputs);
    } else if (!strcmp(what, "make_d16")) {
        pl_input input;
        TWICE pl_make_input(k, 1, FORM_D16_6, x, tokens, COLS, packed, &input);
    } else if (!strcmp(what, "rmsnorm")) {
        TWICE pl_rmsnorm(k, 1, x, y, 1e-5f, tokens, COLS, out);
    } else if (!strcmp(what, "swiglu")) {
        TWICE pl_swiglu(k, 1, x, y, out, tokens * COLS);
    } else if (!strcmp(what, "rope")) {
        TWICE pl_rope(k, 1, x, y, out, tokens, COLS / HEAD_DIM, HEAD_DIM, HEAD_DIM, 0);
    } else if (!strcmp(what, "attention_f16") || !strcmp(what, "attention_f32")) { /* positions x heads x head_dim */
        int f16 = what[11] == '1';
        size_t half = (size_t)PANEL_ROWS * KV_HEADS * HEAD_DIM * (f16 ? 2 : 4);
        uint64_t *pool = allocate(PAGES * sizeof *pool);
        int32_t *pages = allocate(PAGES * sizeof *pages);
        int64_t *positions = allocate((size_t)tokens * sizeof *positions);
        int32_t *sequences = allocate((size_t)tokens * sizeof *sequences);
        for (int i = 0; i < PAGES; i++) pages[i] = i, pool[i] = (uint64_t)(uintptr_t)allocate(2 * half);
        for (int64_t t = 0; t < tokens; t++) positions[t] = POSITIONS - tokens + t;
        pl_batch batch = {.tokens = tokens, .pool = pool, .pages = pages, .max_pages = PAGES,
                          .positions = positions, .sequences = sequences};
        pl_attention a = {.heads = HEADS, .kv_heads = KV_HEADS, .head_dim = HEAD_DIM, .f16 = f16, .scale = 0.125f,
                          .v_offset = half, .batch = &batch};
        units = tokens * POSITIONS * HEADS * HEAD_DIM;
        TWICE if (pl_attend(k, 1, &a, x, out)) return 3;
    } else {
        return 2;
    }
    printf("%lld\n", (long long)units);
    return 0;
}

int main(int argc, char **argv)
{
    const pl_kernels *k = pl_isa(0);
    if (argc < 3 || k == NULL || (strcmp(k->isa, "neon") && strcmp(k->isa, "dotprod"))) return 2;
    for (int i = 2; i < argc; i++) {
        int status = run(k, argv[1], atoll(argv[i]));
        if (status) return status;
    }
    return 0;
}
