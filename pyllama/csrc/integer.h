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

INLINE const uint8_t *codes_of(const pl_d16 *x, int run) { return x[run >> 1].codes[run & 1]; }
INLINE int32_t total_of(const pl_d16 *x, const int narrow, int j) { return narrow ? x[j >> 1].totals[j & 1] : x[j].total; }

/* Sum j of a block, without its codes' bias, as what it stands for but for the weights' scales. */
INLINE vf unscaled(vi sum, const pl_d16 *x, const int narrow, int j, const int bias)
{
    if (bias) sum = vi_sub(sum, vi_set1(total_of(x, narrow, j) * bias));
    return v_mul(vi_float(sum), v_set1(x[narrow ? j >> 1 : j].scale));
}

/* acc[v] = fma(fma(m[j], sum of x[j], ...), -dmin, acc[v]) over the minima of a block of 256. */
INLINE vf add_minima(const block_scales *s, int r, const pl_d16 *x, const int narrow, vf acc)
{
    vf mb = v_set1(0.0f);
    for (int j = 0; j < (narrow ? 16 : 8); j++) mb = v_fma(v_load(s->min[j] + r), v_set1(sum_of(x, narrow, j)), mb);
    return v_fma(mb, v_load(s->dmin + r), acc);
}

/* One token. */

/* Ask for `nbytes` of what lies AHEAD of p. */
INLINE void prefetch_ahead(const uint8_t *p, const int nbytes)
{
    UNROLL
    for (int at = 0; at < nbytes; at += 64) prefetch(p + at, AHEAD);
}

/* Sums of one pair for `nv` vectors of rows: of run A in sa and of run B in sb, or of both in sa. */
INLINE void pair_sums(const pl_dtype t, const uint8_t *p, int part, const int pair, const pl_d16 *x, vb_table levels,
                      const int nv, const int merged, vi *sa, vi *sb)
{
    const uint8_t *xa = codes_of(x, run_a(t, part, pair)), *xb = codes_of(x, run_b(t, part, pair));
    dot da[NG], db[NG];
    for (int v = 0; v < nv; v++) da[v] = db[v] = dot_zero();
    UNROLL
    for (int u = 0; u < units_of(t); u++)
        UNROLL
        for (int v = 0; v < nv; v++) {
            vb ca, cb;
            pair_codes(t, p + 4 * v * VL, part, pair, u, levels, &ca, &cb);
            da[v] = dot_add(da[v], ca, xa + u / 4 * 32, u & 3, pl_form_of(t));
            if (merged) da[v] = dot_add(da[v], cb, xb + u / 4 * 32, u & 3, pl_form_of(t));
            else db[v] = dot_add(db[v], cb, xb + u / 4 * 32, u & 3, pl_form_of(t));
        }
    UNROLL
    for (int v = 0; v < nv; v++) {
        sa[v] = dot_sum(da[v], pl_form_of(t));
        if (!merged) sb[v] = dot_sum(db[v], pl_form_of(t));
    }
}

/* acc[r] += what one block of 32 columns adds. */
INLINE void one_small(const pl_dtype t, const uint8_t *p, const pl_d16 *x, vb_table levels, float *acc)
{
    const int nbytes = block_nbytes(t) * GROUP_ROWS;
    block_scales s;
    for (int g = 0; g < PANEL_ROWS; g += GROUP_ROWS, p += nbytes) {
        scales_of(t, p, g, 0, &s, 0, NULL, NULL);
        prefetch_ahead(p, nbytes);
        UNROLL
        for (int h = 0; h < NG; h += ONE_VECTORS) {
            vi sum[ONE_VECTORS];
            pair_sums(t, p + 4 * h * VL, 0, 0, x, levels, ONE_VECTORS, 1, sum, sum);
            for (int v = 0; v < ONE_VECTORS; v++) {
                const int r = g + (h + v) * VL;
                if (bias_of(t)) sum[v] = vi_sub(sum[v], vi_set1(x->total * bias_of(t)));
                vf a = v_fma(vi_float(sum[v]), v_mul(v_load(s.scale[0] + r), v_set1(x->scale)), v_load(acc + r));
                if (has_minima(t)) a = v_fma(v_load(s.min[0] + r), v_set1(x->sum), a);
                v_store(acc + r, a);
            }
        }
    }
}

/* The same for one of 256. Its sums are scaled in ascending order, so those of run B wait for the A of `waiting` pairs. */
INLINE void one_large(const pl_dtype t, const uint8_t *p, const pl_d16 *x, vb_table levels, float *acc)
{
    enum { MOST = ONE_VECTORS };
    const int nv = pairs_of(t) == 4 && MOST > 2 && VL > 1 ? 2 : MOST; /* runs B that wait take registers */
    const int narrow = scale_cols(t) == 16, per = narrow ? 1 : 2, merged = t == DT_IQ4_XS;
    const int pairs = pairs_of(t), waiting = t == DT_Q6_K ? 4 : pairs == 4 ? 2 : 1;
    const int nbytes = block_nbytes(t) * nv * VL / (parts_of(t) * pairs);
    block_scales s;
    vf mb[PANEL_VECTORS];
    for (int g = 0; g < PANEL_ROWS; g += nv * VL) {
        const uint8_t *q = p + g / GROUP_ROWS * GROUP_ROWS * block_nbytes(t), *rows = q + 4 * (g % GROUP_ROWS);
        vf blk[MOST];
        if (g % GROUP_ROWS == 0) scales_of(t, q, g, 0, &s, 1, x, mb);
        for (int v = 0; v < nv; v++) blk[v] = v_set1(0.0f);
        UNROLL
        for (int part = 0; part < parts_of(t); part++) {
            UNROLL
            for (int first = 0; first < pairs; first += waiting) {
                vi sa[MOST], sb[4][MOST];
                /* What two pairs read alike is read twice: GCC would keep all of it in registers, and then on the stack. */
                __asm__ volatile("" ::: "memory");
                UNROLL
                for (int w = 0; w < waiting; w++) {
                    prefetch_ahead(p + ((g / (nv * VL) * parts_of(t) + part) * pairs + first + w) * nbytes, nbytes);
                    const int j = run_a(t, part, first + w) / per;
                    pair_sums(t, rows, part, first + w, x, levels, nv, merged, sa, sb[w]);
                    UNROLL
                    for (int v = 0; v < nv; v++)
                        blk[v] = v_fma(unscaled(sa[v], x, narrow, j, bias_of(t)), v_load(s.scale[j] + g + v * VL), blk[v]);
                }
                UNROLL
                for (int w = 0; w < waiting && !merged; w++) {
                    const int j = run_b(t, part, first + w) / per;
                    UNROLL
                    for (int v = 0; v < nv; v++)
                        blk[v] = v_fma(unscaled(sb[w][v], x, narrow, j, bias_of(t)), v_load(s.scale[j] + g + v * VL), blk[v]);
                }
            }
        }
        for (int v = 0; v < nv; v++) {
            const int r = g + v * VL;
            vf a = v_fma(blk[v], v_load(s.d + r), v_load(acc + r));
            if (has_minima(t)) a = v_fma(mb[g / VL + v], v_load(s.dmin + r), a);
            v_store(acc + r, a);
        }
    }
}

/* Several tokens. */

/* Up to 256 columns of a panel: a block of 256, or some of 32. */
INLINE void unpack_codes(const pl_dtype t, const uint8_t *p, int64_t cols, uint8_t *tile, block_scales *s)
{
    const vb_table levels = levels_of(t);
    for (int j = 0; j < cols / block_cols(t); j++, p += pl_formats[t].nbytes * PANEL_ROWS) {
        const int group = block_nbytes(t) * GROUP_ROWS;
        for (int g = 0; g < PANEL_ROWS; g += GROUP_ROWS) scales_of(t, p + g / GROUP_ROWS * group, g, j, s, 0, NULL, NULL);
        for (int part = 0; part < parts_of(t); part++)
            UNROLL
            for (int pair = 0; pair < pairs_of(t); pair++) {
                uint8_t *to_a = tile + (8 * j + 4 * run_a(t, part, pair)) * PANEL_VECTORS * TILE_UNIT;
                uint8_t *to_b = tile + (8 * j + 4 * run_b(t, part, pair)) * PANEL_VECTORS * TILE_UNIT;
                UNROLL
                for (int u = 0; u < units_of(t); u++)
                    for (int v = 0; v < PANEL_VECTORS; v++) {
                        vb a, b;
                        pair_codes(t, p + v / NG * group + v % NG * 4 * VL, part, pair, u, levels, &a, &b);
                        tile_put(to_a + (u * PANEL_VECTORS + v) * TILE_UNIT, a, bias_of(t));
                        tile_put(to_b + (u * PANEL_VECTORS + v) * TILE_UNIT, b, bias_of(t));
                    }
            }
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
        from[t] = codes_of(x + t * blocks, j * units / 4);
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
                    if (bias) sums[t][v] = vi_sub(sums[t][v], vi_set1(xt[j].total * bias));
                    a[t][v] = v_fma(vi_float(sums[t][v]), v_mul(scale, v_set1(xt[j].scale)), a[t][v]);
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
    for (int g = 0; g < PANEL_ROWS; g += GROUP_ROWS) scales_of(t, p + g / GROUP_ROWS * group, g, 0, &s, 0, NULL, NULL);
    for (int part = 0; part < parts_of(t); part++)
      UNROLL
      for (int pair = 0; pair < pairs_of(t); pair++)
        UNROLL
        for (int u = 0; u < units_of(t); u++)
            for (int v = 0; v < PANEL_VECTORS; v++) {
                uint8_t codes[2][4 * VL];
                vb a, b;
                pair_codes(t, p + v / NG * group + v % NG * 4 * VL, part, pair, u, levels, &a, &b);
                vb_store(codes[0], a);
                vb_store(codes[1], b);
                for (int k = 0; k < 2; k++)
                    for (int i = 0; i < 4 * VL; i++) {
                        const int r = v * VL + i / 4, c = 16 * (k ? run_b(t, part, pair) : run_a(t, part, pair)) + 4 * u + i % 4;
                        const int j = c / (narrow ? 16 : 32);
                        const int code = (SIGNED_BIAS ? codes[k][i] : (int8_t)codes[k][i]) - bias_of(t);
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
