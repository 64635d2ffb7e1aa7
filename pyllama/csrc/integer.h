/* out = x @ w.T for quantized weights and D16 activations: whole numbers are summed exactly, in whatever order is fastest,
 * and only what a block adds up to is rounded (MODEL.md, "Numerics"). Included by body.h.
 *
 * One token: codes go from memory into the products. Several: the codes of 256 columns are unpacked once, into a tile
 * that stays in the first-level cache, and multiplied with all tokens before the next ones.
 */

enum {
    PANEL_VECTORS = PANEL_ROWS / VL,
    TILE_NBYTES = BLOCK_COLS / 4 * PANEL_VECTORS * TILE_UNIT /* codes of a panel, BLOCK_COLS wide, unpacked */
};

INLINE int32_t total_of(const pl_d16 *x, const int narrow, int j) { return narrow ? x[j >> 1].totals[j & 1] : x[j].total; }

/* Sum of X over what sum j of a block is over, as what it stands for. */
INLINE float sum_of(const pl_d16 *x, const int narrow, int j) { return narrow ? x[j >> 1].half_sums[j & 1] : x[j].sum; }

/* float(sum j of a block), without its codes' bias. */
INLINE vf unbiased(vi sum, const pl_d16 *x, const int narrow, int j, const int bias)
{
    return vi_float(bias ? vi_sub(sum, vi_shl(vi_set1(total_of(x, narrow, j)), __builtin_ctz((unsigned)bias))) : sum);
}

/* The same as what it stands for, but for the weights' scales. */
INLINE vf unscaled(vi sum, const pl_d16 *x, const int narrow, int j, const int bias)
{
    return v_mul(unbiased(sum, x, narrow, j, bias), v_set1(x[narrow ? j >> 1 : j].scale));
}

/* One token. */

/* Ask for share j of n of `nbytes` that lie AHEAD of p. */
INLINE void prefetch_share(const uint8_t *p, const int nbytes, const int j, const int n)
{
    const int lines = (nbytes + 63) / 64;
    UNROLL
    for (int line = lines * j / n; line < lines * (j + 1) / n; line++) prefetch(p + 64 * line, AHEAD);
}

/* Sums over `units` units, from u on, of columns [32 * b, 32 * b + 32), x of these, for ONE_VECTORS vectors of rows, p being
 * 4 bytes on for each row before them; and of the next 32 columns, where `runs` is 2 and they come from the same bytes. */
INLINE void one_sums(const pl_dtype t, const uint8_t *p, const int b, const int u, const int units, const pl_d16 *x,
                     vb_table levels, const int runs, vi sums[][ONE_VECTORS])
{
    dot d[2][ONE_VECTORS];
    for (int k = 0; k < runs; k++)
        for (int v = 0; v < ONE_VECTORS; v++) d[k][v] = dot_zero();
    UNROLL
    for (int i = u; i < u + units; i++) {
        unit_fields f[ONE_VECTORS];
        UNROLL
        for (int v = 0; v < ONE_VECTORS; v++) f[v] = load_unit(t, p, v * VL, b, i);
        if (code_bits(t) != 5) LOADED(f[0].q, f[1 % ONE_VECTORS].q, f[2 % ONE_VECTORS].q, f[3 % ONE_VECTORS].q);
        UNROLL
        for (int k = 0; k < runs; k++)
            UNROLL
            for (int v = 0; v < ONE_VECTORS; v++)
                d[k][v] = dot_add(d[k][v], unit_codes(t, f[v], b + k, i, levels), x[k].codes[i >> 2], i & 3, code_bits(t));
    }
    UNROLL
    for (int k = 0; k < runs; k++)
        UNROLL
        for (int v = 0; v < ONE_VECTORS; v++) sums[k][v] = dot_sum(d[k][v], code_bits(t));
}

/* acc[r] += what one block of 32 columns adds. */
INLINE void one_small(const pl_dtype t, const uint8_t *p, const pl_d16 *x, vb_table levels, float *acc)
{
    const int nbytes = block_nbytes(t) * GROUP_ROWS;
    for (int g = 0; g < PANEL_ROWS; g += GROUP_ROWS, p += nbytes) {
        prefetch_share(p, nbytes, 0, 1);
        UNROLL
        for (int h = 0; h < NG; h += ONE_VECTORS) {
            vi sums[1][ONE_VECTORS];
            one_sums(t, p + 4 * h * VL, 0, 0, 8, x, levels, 1, sums);
            for (int v = 0; v < ONE_VECTORS; v++) {
                const int r = (h + v) * VL;
                const vf scale = v_mul(block_scale(t, p, r), v_set1(x->scale));
                vf a = v_fma(unbiased(sums[0][v], x, 0, 0, bias_of(t)), scale, v_load(acc + g + r));
                if (has_minima(t)) a = v_fma(v_load_f16(HALF_FIELD(2)), v_set1(x->sum), a);
                v_store(acc + g + r, a);
            }
        }
    }
}

/* The same for one of 256. */
INLINE void one_large(const pl_dtype t, const uint8_t *p, const pl_d16 *x, vb_table levels, float *acc)
{
    enum { ROWS = ONE_VECTORS * VL };
    const int narrow = scale_cols(t) == 16, scales = narrow ? 16 : 8, nbytes = block_nbytes(t) * ROWS;
    const int runs = ONE_RUNS == 2 && (t == DT_Q4_K || t == DT_Q5_K) ? 2 : 1;
    const uint8_t *ahead = p;
    for (int g = 0; g < PANEL_ROWS; g += ROWS, ahead += nbytes) {
        const int r = g % GROUP_ROWS;
        vf blk[ONE_VECTORS];
        for (int v = 0; v < ONE_VECTORS; v++) blk[v] = v_set1(0.0f);
        UNROLL
        for (int n = 0; n < scales / 4; n++) {
            vi bytes[ONE_VECTORS], sums[2][ONE_VECTORS];
            for (int v = 0; v < ONE_VECTORS; v++) bytes[v] = scale_bytes(t, p, r + v * VL, n);
            UNROLL
            for (int i = 0; i < 4; i++) {
                const int j = 4 * n + i, b = narrow ? j >> 1 : j;
                /* What other runs of columns read too is read again: GCC would keep it in registers, and then on the stack. */
                __asm__ volatile("" ::: "memory");
                prefetch_share(ahead, nbytes, j, scales);
                if (i % runs == 0)
                    one_sums(t, p + 4 * r, b, narrow ? 4 * (j & 1) : 0, narrow ? 4 : 8, x + b, levels, runs, sums);
                UNROLL
                for (int v = 0; v < ONE_VECTORS; v++)
                    blk[v] = v_fma(unscaled(sums[i % runs][v], x, narrow, j, bias_of(t)), byte_float(bytes[v], i, scale_bias(t)), blk[v]);
            }
        }
        UNROLL
        for (int v = 0; v < ONE_VECTORS; v++) {
            const int at = r + v * VL;
            vf a = v_fma(blk[v], super_scale(p, at), v_load(acc + g + v * VL));
            if (has_minima(t)) {
                vf mb = v_set1(0.0f);
                UNROLL
                for (int j = 0; j < scales; j++)
                    mb = v_fma(byte_float(min_bytes(t, p, at, j / 4), j % 4, 0), v_set1(sum_of(x, narrow, j)), mb);
                a = v_fma(mb, super_min(p, at), a);
            }
            v_store(acc + g + v * VL, a);
        }
        if (r + ROWS == GROUP_ROWS) p += block_nbytes(t) * GROUP_ROWS;
    }
}

/* Several tokens. */

/* A block's codes for the vector of rows at p; codes that come from the same bytes are made one after the other: units u and
 * u + 4 of 32 columns, or units u of four times 32. */
INLINE void unpack_vector(const pl_dtype t, const uint8_t *p, vb_table levels, uint8_t *tile)
{
    const int four = block_cols(t) == 256 && t != DT_IQ4_XS, units = four ? 8 : 4, alike = four ? 4 : 2;
    UNROLL
    for (int b = 0; b < block_cols(t) / 32; b += four ? 4 : 1)
        UNROLL
        for (int u = 0; u < units; u++) {
            vb codes[4];
            UNROLL
            for (int i = 0; i < alike; i++) {
                const int cols = four ? b + i : b, unit = four ? u : u + 4 * i;
                codes[i] = unit_codes(t, load_unit(t, p, 0, cols, unit), cols, unit, levels);
            }
            UNROLL
            for (int i = 0; i < alike; i++)
                tile_put(tile + (8 * b + u + (four ? 8 : 4) * i) * PANEL_VECTORS * TILE_UNIT, codes[i], bias_of(t));
        }
}

/* Up to 256 columns of a panel: a block of 256, or some of 32. */
INLINE void unpack_codes(const pl_dtype t, const uint8_t *p, int64_t cols, uint8_t *tile, block_scales *s)
{
    const int group = block_nbytes(t) * GROUP_ROWS;
    const vb_table levels = levels_of(t);
    for (int block = 0; block < cols / block_cols(t); block++, p += 2 * group, tile += 8 * PANEL_VECTORS * TILE_UNIT) {
        for (int g = 0; g < PANEL_ROWS; g += GROUP_ROWS) scales_of(t, p + g / GROUP_ROWS * group, g, block, s);
#define VECTOR unpack_vector(t, p + v / NG * group + v % NG * 4 * VL, levels, tile + v * TILE_UNIT);
        if (block_cols(t) == 256)
            for (int v = 0; v < PANEL_VECTORS; v++) VECTOR
        else
            UNROLL
            for (int v = 0; v < PANEL_VECTORS; v++) VECTOR
#undef VECTOR
    }
}

/* Sum j of `n` tokens and MANY_VECTORS vectors of rows, from the tile. */
INLINE void tile_sums(const int n, const int narrow, const uint8_t *tile, int j, const pl_d16 *x, int64_t blocks,
                      vi sums[][MANY_VECTORS])
{
    const int units = narrow ? 4 : 8;
    dot d[MANY_TOKENS][MANY_VECTORS];
    const uint8_t *from[MANY_TOKENS];
    for (int t = 0; t < n; t++) {
        from[t] = x[t * blocks + j * units / 8].codes[j * units / 4 & 1];
        for (int v = 0; v < MANY_VECTORS; v++) d[t][v] = dot_zero();
    }
    tile += (size_t)(j * units) * PANEL_VECTORS * TILE_UNIT;
    UNROLL
    for (int u = 0; u < units; u++)
        UNROLL
        for (int t = 0; t < n; t++)
            UNROLL
            for (int v = 0; v < MANY_VECTORS; v++)
                d[t][v] = tile_dot(d[t][v], tile + (u * PANEL_VECTORS + v) * TILE_UNIT, from[t] + u / 4 * 32, u & 3);
    for (int t = 0; t < n; t++)
        for (int v = 0; v < MANY_VECTORS; v++) sums[t][v] = tile_sum(d[t][v]);
}

/* acc[v] = fma(fma(m[j], sum of x[j], ...), -dmin, acc[v]) over the minima of a block of 256. */
INLINE vf add_minima(const block_scales *s, int r, const pl_d16 *x, const int narrow, vf acc)
{
    vf mb = v_set1(0.0f);
    for (int j = 0; j < (narrow ? 16 : 8); j++) mb = v_fma(v_load(s->min[j] + r), v_set1(sum_of(x, narrow, j)), mb);
    return v_fma(mb, v_load(s->dmin + r), acc);
}

/* acc[t][r] += what a tile of `cols` columns adds, for n tokens; blocks: those of x from one token to the next. */
INLINE void tile_tokens(const int n, const int large, const int narrow, const int minima, int bias, const uint8_t *tile,
                        const block_scales *s, int64_t cols, const pl_d16 *x, int64_t blocks, float *acc, size_t lda)
{
    const int count = (int)(cols / (narrow ? 16 : 32));
    bias = TILE_BIAS(bias);
    for (int g = 0; g < PANEL_VECTORS; g += MANY_VECTORS, tile += MANY_VECTORS * TILE_UNIT) {
        vf a[MANY_TOKENS][MANY_VECTORS];
        for (int t = 0; t < n; t++)
            for (int v = 0; v < MANY_VECTORS; v++)
                a[t][v] = large ? v_set1(0.0f) : v_load(acc + (size_t)t * lda + (g + v) * VL);
        for (int j = 0; j < count; j++) {
            vi sums[MANY_TOKENS][MANY_VECTORS];
            tile_sums(n, narrow, tile, j, x, blocks, sums);
            for (int t = 0; t < n; t++)
                for (int v = 0; v < MANY_VECTORS; v++) {
                    const pl_d16 *xt = x + t * blocks;
                    vf scale = v_load(s->scale[j] + (g + v) * VL);
                    if (large) {
                        a[t][v] = v_fma(unscaled(sums[t][v], xt, narrow, j, bias), scale, a[t][v]);
                        continue;
                    }
                    a[t][v] = v_fma(unbiased(sums[t][v], xt, 0, j, bias), v_mul(scale, v_set1(xt[j].scale)), a[t][v]);
                    if (minima) a[t][v] = v_fma(v_load(s->min[j] + (g + v) * VL), v_set1(xt[j].sum), a[t][v]);
                }
        }
        for (int t = 0; t < n; t++)
            for (int v = 0; v < MANY_VECTORS; v++) {
                float *to = acc + (size_t)t * lda + (g + v) * VL;
                if (large) {
                    a[t][v] = v_fma(a[t][v], v_load(s->d + (g + v) * VL), v_load(to));
                    if (minima) a[t][v] = add_minima(s, (g + v) * VL, x + t * blocks, narrow, a[t][v]);
                }
                v_store(to, a[t][v]);
            }
    }
}

/* All tokens, by kinds of formats: what else sets formats apart is gone from a tile. */
#define TILE_PRODUCT(name, large, narrow, minima)                                                                     \
    static void name(int bias, const uint8_t *tile, const block_scales *s, int64_t cols, const pl_d16 *x,             \
                     int64_t blocks, int64_t tokens, float *acc, size_t lda)                                          \
    {                                                                                                                 \
        int64_t t = 0;                                                                                                \
        for (; t + MANY_TOKENS <= tokens; t += MANY_TOKENS)                                                           \
            tile_tokens(MANY_TOKENS, large, narrow, minima, bias, tile, s, cols, x + t * blocks, blocks,              \
                        acc + (size_t)t * lda, lda);                                                                  \
        for (; t < tokens; t++)                                                                                       \
            tile_tokens(1, large, narrow, minima, bias, tile, s, cols, x + t * blocks, blocks, acc + (size_t)t * lda, \
                        lda);                                                                                         \
    }
TILE_PRODUCT(tile_small, 0, 0, 0)
TILE_PRODUCT(tile_small_minima, 0, 0, 1)
TILE_PRODUCT(tile_large, 1, 0, 0)
TILE_PRODUCT(tile_large_minima, 1, 0, 1)
TILE_PRODUCT(tile_large_narrow, 1, 1, 0)
TILE_PRODUCT(tile_large_narrow_minima, 1, 1, 1)
#undef TILE_PRODUCT

/* Formats, one function each. */

/* acc[t][r] += panel blocks at p, `cols` columns, times x; blocks: those of x from one token to the next; one: x was made
 * of one token, and is laid out for that. */
typedef void integer_product(const uint8_t *p, int64_t cols, const pl_d16 *x, int one, int64_t blocks, int64_t tokens,
                             float *acc, size_t lda);

#define FORMAT(t, one, many)                                                                                      \
    static void integer_##t(const uint8_t *p, int64_t cols, const pl_d16 *x, int alone, int64_t blocks, int64_t tokens,  \
                            float *acc, size_t lda)                                                               \
    {                                                                                                             \
        const int64_t step = pl_formats[t].nbytes * PANEL_ROWS;                                                   \
        if (alone) {                                                                                              \
            const vb_table levels = levels_of(t);                                                                 \
            for (int64_t c = 0; c < cols; c += block_cols(t), p += step) one(t, p, x + c / D16_COLS, levels, acc); \
            return;                                                                                               \
        }                                                                                                         \
        uint8_t tile[TILE_NBYTES] __attribute__((aligned(64)));                                                   \
        block_scales s;                                                                                           \
        for (int64_t c = 0; c < cols; c += BLOCK_COLS, p += BLOCK_COLS / block_cols(t) * step) {                  \
            int64_t n = cols - c < BLOCK_COLS ? cols - c : BLOCK_COLS;                                            \
            unpack_codes(t, p, n, tile, &s);                                                                      \
            many(bias_of(t), tile, &s, n, x + c / D16_COLS, blocks, tokens, acc, lda);                            \
        }                                                                                                         \
    }
FORMAT(DT_Q4_0, one_small, tile_small)
FORMAT(DT_Q4_1, one_small, tile_small_minima)
FORMAT(DT_Q5_0, one_small, tile_small)
FORMAT(DT_Q5_1, one_small, tile_small_minima)
FORMAT(DT_Q8_0, one_small, tile_small)
FORMAT(DT_Q2_K, one_large, tile_large_narrow_minima)
FORMAT(DT_Q3_K, one_large, tile_large_narrow)
FORMAT(DT_Q4_K, one_large, tile_large_minima)
FORMAT(DT_Q5_K, one_large, tile_large_minima)
FORMAT(DT_Q6_K, one_large, tile_large_narrow)
FORMAT(DT_IQ4_NL, one_small, tile_small)
FORMAT(DT_IQ4_XS, one_large, tile_large)
FORMAT(DT_MXFP4, one_small, tile_small)
#undef FORMAT

static integer_product *const integer_products[DT_COUNT] = {
    [DT_Q4_0] = integer_DT_Q4_0, [DT_Q4_1] = integer_DT_Q4_1, [DT_Q5_0] = integer_DT_Q5_0, [DT_Q5_1] = integer_DT_Q5_1,
    [DT_Q8_0] = integer_DT_Q8_0, [DT_Q2_K] = integer_DT_Q2_K, [DT_Q3_K] = integer_DT_Q3_K, [DT_Q4_K] = integer_DT_Q4_K,
    [DT_Q5_K] = integer_DT_Q5_K, [DT_Q6_K] = integer_DT_Q6_K, [DT_IQ4_NL] = integer_DT_IQ4_NL,
    [DT_IQ4_XS] = integer_DT_IQ4_XS, [DT_MXFP4] = integer_DT_MXFP4,
};

/* One panel of w times `tokens` tokens; acc has room for PANEL_ROWS floats per token. */
static void integer_panel(const pl_matrix *w, int64_t panel, const pl_d16 *x, int one, int64_t tokens, float *acc,
                          size_t lda)
{
    integer_product *product = integer_products[w->dtype];
    const int64_t blocks = w->cols / D16_COLS;
    for (int64_t t = 0; t < tokens; t++) memset(acc + (size_t)t * lda, 0, PANEL_ROWS * sizeof(float));
    if (w->layout == LAYOUT_PANELS) {
        product(w->data + (size_t)panel * panel_stride(w), w->cols, x, one, blocks, tokens, acc, lda);
        return;
    }
    uint8_t rows[BLOCK_COLS * PANEL_ROWS * 2] __attribute__((aligned(64)));
    for (int64_t c = 0; c < w->cols; c += BLOCK_COLS) {
        int64_t n = w->cols - c < BLOCK_COLS ? w->cols - c : BLOCK_COLS;
        transpose_blocks(w, panel, c, n, rows);
        product(rows, n, x + c / D16_COLS, one, blocks, tokens, acc, lda);
    }
}

/* Quantized rows as float32, exactly as their format defines them: rows -> panel -> codes -> rows. */

/* One block of panel rows: out[r][c] of the first `rows` rows, `ldo` floats apart. */
INLINE void widen_block(const pl_dtype t, const uint8_t *p, int64_t rows, float *out, int64_t ldo)
{
    const vb_table levels = levels_of(t);
    const int narrow = scale_cols(t) == 16;
    const int group = block_nbytes(t) * GROUP_ROWS;
    block_scales s;
    for (int g = 0; g < PANEL_ROWS; g += GROUP_ROWS) scales_of(t, p + g / GROUP_ROWS * group, g, 0, &s);
    UNROLL
    for (int b = 0; b < block_cols(t) / 32; b++)
        UNROLL
        for (int u = 0; u < 8; u++)
            for (int v = 0; v < PANEL_VECTORS; v++) {
                uint8_t codes[4 * VL];
                vb_store(codes, unit_codes(t, load_unit(t, p + v / NG * group, v % NG * VL, b, u), b, u, levels));
                for (int i = 0; i < 4 * VL; i++) {
                    const int r = v * VL + i / 4, c = 32 * b + 4 * u + i % 4, j = c / (narrow ? 16 : 32);
                    const int code = (SIGNED_BIAS ? codes[i] : (int8_t)codes[i]) - bias_of(t);
                    float scale = s.scale[j][r], offset = s.min[j][r];
                    if (r >= rows) continue;
                    if (block_cols(t) == BLOCK_COLS) {
                        scale *= s.d[r];
                        if (has_minima(t)) offset *= s.dmin[r];
                    }
                    out[r * ldo + c] = has_minima(t) ? fmaf((float)code, scale, offset) : scale * (float)code;
                }
            }
}

static void widen_quantized(const pl_matrix *rows, float *out, int64_t first, int64_t last)
{
    uint8_t block[BLOCK_COLS * PANEL_ROWS * 2] __attribute__((aligned(64)));
    const pl_format *f = &pl_formats[rows->dtype];
    for (int64_t row = first; row < last; row += PANEL_ROWS) {
        pl_matrix part = *rows;
        part.data += (size_t)row * rows->row_nbytes;
        part.rows = last - row < PANEL_ROWS ? last - row : PANEL_ROWS;
        for (int64_t c = 0; c < rows->cols; c += f->cols) {
            float *to = out + row * rows->cols + c;
            transpose_blocks(&part, 0, c, f->cols, block);
            switch (rows->dtype) {
#define WIDEN(t) case t: widen_block(t, block, part.rows, to, rows->cols); break;
            WIDEN(DT_Q4_0) WIDEN(DT_Q4_1) WIDEN(DT_Q5_0) WIDEN(DT_Q5_1) WIDEN(DT_Q8_0) WIDEN(DT_Q2_K) WIDEN(DT_Q3_K)
            WIDEN(DT_Q4_K) WIDEN(DT_Q5_K) WIDEN(DT_Q6_K) WIDEN(DT_IQ4_NL) WIDEN(DT_IQ4_XS) WIDEN(DT_MXFP4)
#undef WIDEN
            default: break;
            }
        }
    }
}
