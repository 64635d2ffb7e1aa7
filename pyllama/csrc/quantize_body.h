/* Rows of float32 -> rows of blocks. Included once per number of lanes. */
#include "quantize_lanes.h"
#include "quantize_symmetric.h"
#include "quantize_affine.h"
#include "quantize_blocks.h"

static const float ones[BLOCK_COLS] = {[0 ... BLOCK_COLS - 1] = 1.0f};

/* w times sqrt(mean square + x^2): larger weights count more than their error does. Measured on Qwen2.5 0.5B in Q4_0 with
 * importance: w alone left 0.8 to 0.9 of the weighted error that ggml's quantizer, which weighs so, does, and yet 1.08 of
 * its divergence from the source (KL). */
INLINE void weigh_by_size(const vf *x, vf *w, int n, vf mean_square)
{
    for (int j = 0; j < n; j++) w[j] *= v_sqrt(mean_square + x[j] * x[j]);
}
INLINE vf squares_of(const vf *x, int n)
{
    vf s = v_set1(0.0f);
    for (int j = 0; j < n; j++) s += x[j] * x[j];
    return s;
}

/* Blocks of 32 columns, LANES at a time: their runs, and what power of two each was divided by. */
INLINE void load_blocks(const float *x, const float *weights, int blocks, vf *v, vf *w, int *exponent)
{
    float factor[LANES];
    for (int lane = 0; lane < LANES; lane++) {
        exponent[lane] = exponent_of(x + 32 * (lane < blocks ? lane : 0), 32);
        factor[lane] = power_of_two(-exponent[lane]);
    }
    load_runs(x, 32, blocks, factor, v);
    load_runs(weights ? weights : ones, 32, blocks, NULL, w);
    weigh_by_size(v, w, 32, squares_of(v, 32) * (1.0f / 32.0f));
}

/* With a scale each. */
INLINE void symmetric_blocks(pl_dtype dtype, const float *x, const float *weights, int blocks, lattice l, scale_grid grid,
                             uint8_t *out)
{
    const int nbytes = pl_formats[dtype].nbytes;
    int exponent[LANES];
    vf v[MAX_RUN], w[MAX_RUN];
    load_blocks(x, weights, blocks, v, w, exponent);
    vf scale = free_scale(v, w, 32, l, grid, weights != NULL);
    uint16_t bits[LANES];
    for (int lane = 0; lane < LANES; lane++) scale[lane] = stored(scale[lane], exponent[lane], &bits[lane]);
    const vf inverse = v_inverse(scale);
    uint8_t code[LANES][32];
    for (int j = 0; j < 32; j++) {
        vi c = code_of(v[j] * inverse, l);
        for (int lane = 0; lane < LANES; lane++) code[lane][j] = (uint8_t)c[lane];
    }
    for (int b = 0; b < blocks; b++) put_block(dtype, out + b * nbytes, code[b], NULL, NULL, &bits[b]);
}

/* With a scale and a least value each. */
INLINE void affine_blocks(pl_dtype dtype, const float *x, const float *weights, int blocks, float top, uint8_t *out)
{
    const int nbytes = pl_formats[dtype].nbytes;
    int exponent[LANES];
    vf v[MAX_RUN], w[MAX_RUN], scale, least;
    load_blocks(x, weights, blocks, v, w, exponent);
    const affine_run run = run_of(v, w, 32, top, 0);
    free_affine(&run, weights != NULL, &scale, &least);
    uint16_t bits[LANES][2];
    for (int lane = 0; lane < LANES; lane++) {
        scale[lane] = stored(scale[lane], exponent[lane], &bits[lane][0]);
        least[lane] = stored(least[lane], exponent[lane], &bits[lane][1]);
    }
    const vf inverse = v_inverse(scale);
    uint8_t code[LANES][32];
    for (int j = 0; j < 32; j++) {
        vi c = v_int(v_round(v_clamp((v[j] - least) * inverse, 0.0f, top)));
        for (int lane = 0; lane < LANES; lane++) code[lane][j] = (uint8_t)c[lane];
    }
    for (int b = 0; b < blocks; b++) put_block(dtype, out + b * nbytes, code[b], NULL, NULL, bits[b]);
}

/* The runs of one block of 256 columns. */
INLINE int load_block(const float *x, const float *weights, int n, vf (*v)[MAX_RUN], vf (*w)[MAX_RUN])
{
    const int exponent = exponent_of(x, BLOCK_COLS);
    float factor[LANES], squares = 0.0f;
    for (int lane = 0; lane < LANES; lane++) factor[lane] = power_of_two(-exponent);
    for (int g = 0; g < BLOCK_COLS / n / LANES; g++) {
        load_runs(x + g * n * LANES, n, LANES, factor, v[g]);
        load_runs(weights ? weights + g * n * LANES : ones, n, LANES, NULL, w[g]);
        const vf s = squares_of(v[g], n);
        for (int lane = 0; lane < LANES; lane++) squares += s[lane];
    }
    for (int g = 0; g < BLOCK_COLS / n / LANES; g++) weigh_by_size(v[g], w[g], n, v_set1(squares * (1.0f / BLOCK_COLS)));
    return exponent;
}

/* What is nearest in squares is smaller, on the whole: sum of w x x' is less than sum of w x^2, by a percent where levels have
 * three bits and by more where they have two. Errors of single weights cancel out in a product; this does not: q times k and
 * gate times up lose it twice, in every layer. So units are made as much larger. It takes 1% off the perplexity of
 * q3_k_m (docs/quantize.md), and adds a percent or two to the squares. */
typedef struct {
    double all, kept; /* sums of w x^2, and of w x x' */
} block_size;

/* y: x', a run a lane */
INLINE void add_size(block_size *s, const vf *x, const vf *y, const vf *w, int n)
{
    vf all = v_set1(0.0f), kept = all;
    for (int j = 0; j < n; j++) {
        all += w[j] * x[j] * x[j];
        kept += w[j] * x[j] * y[j];
    }
    for (int lane = 0; lane < LANES; lane++) {
        s->all += all[lane];
        s->kept += kept[lane];
    }
}

/* A unit that keeps the size of x; itself for what is no number. */
INLINE uint16_t resized(float unit, block_size s, int exponent, uint16_t bits)
{
    const double gain = s.kept > 0 ? s.all / s.kept : 1;
    if (gain > 0.5 && gain < 2) stored((float)(unit * gain), exponent, &bits);
    return bits;
}

INLINE void symmetric_super(pl_dtype dtype, const float *x, const float *weights, symmetric_format f, uint8_t *out)
{
    vf v[MAX_GROUPS][MAX_RUN], w[MAX_GROUPS][MAX_RUN], scales[MAX_GROUPS];
    uint16_t bits;
    int8_t scale[16];
    uint8_t code[BLOCK_COLS];
    const int exponent = load_block(x, weights, f.n, v, w);
    const float d = symmetric_block(v, w, &f, weights != NULL, exponent, scales, &bits);
    block_size size = {0, 0};
    for (int g = 0; g < f.groups; g++) {
        const vf inverse = v_inverse(scales[g] * d);
        vf y[MAX_RUN];
        for (int lane = 0; lane < LANES; lane++) scale[g * LANES + lane] = (int8_t)scales[g][lane];
        for (int j = 0; j < f.n; j++) {
            vi c = code_of(v[g][j] * inverse, f.l);
            if (f.resize) y[j] = level_of(v[g][j] * inverse, f.l) * (scales[g] * d);
            for (int lane = 0; lane < LANES; lane++) code[(g * LANES + lane) * f.n + j] = (uint8_t)c[lane];
        }
        if (f.resize) add_size(&size, v[g], y, w[g], f.n);
    }
    if (f.resize) bits = resized(d, size, exponent, bits);
    put_block(dtype, out, code, scale, NULL, &bits);
}

INLINE void affine_super(pl_dtype dtype, const float *x, const float *weights, affine_format f, uint8_t *out)
{
    vf v[MAX_GROUPS][MAX_RUN], w[MAX_GROUPS][MAX_RUN];
    affine_pair pairs[MAX_GROUPS];
    uint16_t bits[2];
    float units[2];
    uint8_t scale[16], minimum[16], code[BLOCK_COLS];
    const int exponent = load_block(x, weights, f.n, v, w);
    affine_block(v, w, &f, weights != NULL, exponent, pairs, bits, units);
    block_size size = {0, 0};
    for (int g = 0; g < f.groups; g++) {
        const vf inverse = v_inverse(pairs[g].scale * units[0]), offset = pairs[g].minimum * units[1];
        for (int lane = 0; lane < LANES; lane++) {
            scale[g * LANES + lane] = (uint8_t)pairs[g].scale[lane];
            minimum[g * LANES + lane] = (uint8_t)pairs[g].minimum[lane];
        }
        vf y[MAX_RUN];
        for (int j = 0; j < f.n; j++) {
            vf q = v_round(v_clamp((v[g][j] + offset) * inverse, 0.0f, f.top));
            vi c = v_int(q);
            y[j] = q * (pairs[g].scale * units[0]) - offset;
            for (int lane = 0; lane < LANES; lane++) code[(g * LANES + lane) * f.n + j] = (uint8_t)c[lane];
        }
        if (f.resize) add_size(&size, v[g], y, w[g], f.n);
    }
    if (f.resize)
        for (int i = 0; i < 2; i++) bits[i] = resized(units[i], size, exponent, bits[i]);
    put_block(dtype, out, code, (const int8_t *)scale, minimum, bits);
}

#define WHOLE(lo, hi) ((lattice){lo, hi, NULL})
#define UNEVEN ((lattice){-127.0f, 113.0f, uneven})
#define GRID(steps, span) ((scale_grid){steps, span})

/* `blocks` neighbouring blocks (one of 256 columns, up to LANES of 32); weights NULL: all count alike. */
static void quantize_run(pl_dtype dtype, const float *x, const float *weights, int blocks, const pl_levels *uneven,
                         uint8_t *out)
{
    switch (dtype) {
    case DT_Q4_0: symmetric_blocks(dtype, x, weights, blocks, WHOLE(-8.0f, 7.0f), GRID(9, 0.2f), out); break;
    case DT_Q5_0: symmetric_blocks(dtype, x, weights, blocks, WHOLE(-16.0f, 15.0f), GRID(9, 0.13f), out); break;
    case DT_Q8_0: symmetric_blocks(dtype, x, weights, blocks, WHOLE(-127.0f, 127.0f), GRID(5, 0.02f), out); break;
    case DT_IQ4_NL: symmetric_blocks(dtype, x, weights, blocks, UNEVEN, GRID(9, 0.2f), out); break;
    case DT_Q4_1: affine_blocks(dtype, x, weights, blocks, 15.0f, out); break;
    case DT_Q5_1: affine_blocks(dtype, x, weights, blocks, 31.0f, out); break;
    case DT_Q2_K: affine_super(dtype, x, weights, (affine_format){16, 16 / LANES, 15.0f, 3.0f, 4, 1}, out); break;
    case DT_Q4_K: affine_super(dtype, x, weights, (affine_format){32, 8 / LANES, 63.0f, 15.0f, 1, 0}, out); break;
    case DT_Q5_K: affine_super(dtype, x, weights, (affine_format){32, 8 / LANES, 63.0f, 31.0f, 1, 0}, out); break;
#define SIXTEENS(lo, hi, levels, grid, resize) ((symmetric_format){16, 16 / LANES, lo, hi, levels, grid, resize})
    case DT_Q3_K:
        symmetric_super(dtype, x, weights, SIXTEENS(-32.0f, 31.0f, WHOLE(-4.0f, 3.0f), GRID(9, 0.2f), 1), out);
        break;
    case DT_Q6_K:
        symmetric_super(dtype, x, weights, SIXTEENS(-128.0f, 127.0f, WHOLE(-32.0f, 31.0f), GRID(9, 0.15f), 0), out);
        break;
#undef SIXTEENS
    case DT_IQ4_XS:
        symmetric_super(dtype, x, weights,
                        (symmetric_format){32, 8 / LANES, -32.0f, 31.0f, UNEVEN, GRID(7, 0.15f), 0}, out);
        break;
    default: break;
    }
}

static void quantize_rows(const pl_quantizer *q, int64_t first, int64_t last)
{
    const pl_format *f = &pl_formats[q->dtype];
    const int together = f->cols == BLOCK_COLS ? 1 : LANES;
    for (int64_t r = first; r < last; r++) {
        const int64_t blocks = q->cols / f->cols;
        for (int64_t b = 0; b < blocks; b += together) {
            const int n = blocks - b < together ? (int)(blocks - b) : together;
            quantize_run(q->dtype, q->x + r * q->cols + b * f->cols, q->weights ? q->weights + b * f->cols : NULL, n,
                         &q->uneven, q->out + (size_t)r * q->row_nbytes + (size_t)b * (size_t)f->nbytes);
        }
    }
}
