/* float32 rows -> the block formats of GGUF files: which scales, minimums and quants stand for a row best.
 *
 * "Best" is the least sum of w s (x - x')^2 over a block, x' being what its stored form widens to (widen.h), w the column's
 * importance, or 1, and s = sqrt(mean of x^2 + x^2): what a large weight loses a model feels more than the square of it
 * says (weigh_by_size). What a quantizer may choose is found by search (quantize_symmetric.h, quantize_affine.h), with the
 * scales as they will be stored, so rounding them to float16 or to six bits is part of what is searched. Blocks of Q2_K and
 * Q3_K are then made as large as their weights (quantize_body.h).
 *
 * Lanes are blocks side by side (quantize_lanes.h) and every lane is computed as if it were alone, without fused
 * multiply-adds: the bytes depend neither on the instruction set nor on threads.
 */
#ifndef PYLLAMA_QUANTIZE_H
#define PYLLAMA_QUANTIZE_H

#include "kernels.h"

/* IQ4's unevenly spaced levels: which of them is nearest to each half number from -128 to 127.5. The middles between two
 * levels are such, so the one nearest to any number is that of the half number below, but for a tie, where either does. */
typedef struct {
    float level[512];
    uint8_t code[512];
} pl_levels;

/* What every row of a matrix shares. */
typedef struct {
    pl_dtype dtype;
    int64_t cols;
    const float *x;       /* (rows, cols) */
    const float *weights; /* as pl_quantize_weights leaves them; NULL: every column counts alike */
    uint8_t *out;
    size_t row_nbytes;
    pl_levels uneven;
} pl_quantizer;

void pl_quantize_levels(pl_levels *l);

/* Rows [first, last) of q. Quants are in range and memory is safe whatever x and the weights are, NaN included. */
void pl_quantize_rows_portable(const pl_quantizer *q, int64_t first, int64_t last);

/* (cols,) importance >= 0 -> weights in the same order, each block of `block` columns scaled so that its largest is 1.
 * A block that does not matter at all is one whose columns count alike. */
void pl_quantize_weights(const float *importance, int64_t cols, int block, float *weights);

/* parallel.c: all rows, on `threads` threads; importance (cols,) or NULL. 0, or -1 when out of memory. */
int pl_quantize(int threads, pl_dtype dtype, const float *x, const float *importance, int64_t rows, int64_t cols,
                uint8_t *out);

#endif
