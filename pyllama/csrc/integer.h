/* out = x @ w.T for quantized weights and D16 activations: whole numbers are summed exactly, in whatever order is fastest,
 * and only what a block adds up to is rounded (MODEL.md, "Numerics"). Included by body.h.
 *
 * Few tokens: codes go from memory into the products, in registers. Many: the codes of 256 columns are unpacked once, into
 * a tile that stays in the first-level cache, and multiplied with all tokens before the next ones.
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

/* Tokens up to which no tile is made. */
INLINE int few_limit(const pl_dtype t)
{
    (void)t; /* where all formats have the same */
    return FEW_LIMIT(code_bits(t));
}

/* Few tokens: n of them, at most FEW_TOKENS, and nv vectors of rows at a time. `blocks`: those of x from one token to the
 * next. */

/* Vectors of rows at a time, so that sums of n tokens stay in registers. */
INLINE int few_vectors(const int n) { return n == 1 ? ONE_VECTORS : FEW_VECTORS(n); }
enum { MOST_VECTORS = ONE_VECTORS > 2 ? ONE_VECTORS : 2 };

/* Ask for share j of n of `nbytes` that lie AHEAD of p. */
INLINE void prefetch_share(const uint8_t *p, const int nbytes, const int j, const int n)
{
    const int lines = (nbytes + 63) / 64;
    UNROLL
    for (int line = lines * j / n; line < lines * (j + 1) / n; line++) prefetch(p + 64 * line, AHEAD);
}

/* Sums over `units` units, from u on, of columns [32 * b, 32 * b + 32), x of these, p being 4 bytes on for each row before
 * the vectors'; and of the next 32 columns, where `runs` is 2 and they come from the same bytes. */
INLINE void few_sums(const pl_dtype t, const int n, const int nv, const uint8_t *p, const int b, const int u, const int units,
                     const pl_d16 *x, int64_t blocks, vb_table levels, const int runs, vi sums[][FEW_TOKENS][MOST_VECTORS])
{
#ifdef NIBBLE_SUMS
    if (t == DT_Q4_K && n == 1 && runs == 2 && nv == 2) {
        /* All but the first are within reach of one base, as the first is of p: a load of two vectors reaches 1008 bytes. */
        const int at = (16 + 32 * (b >> 1)) * GROUP_ROWS, middle = b < 2 ? 0 : 80 * GROUP_ROWS;
        nibble_sums(p + middle, at - middle, x[0].codes[0], sizeof *x, sums[0][0], sums[1][0]);
        return;
    }
#endif
    const int bits = FEW_BITS(n, code_bits(t));
    /* A base near these columns' fields: of NEON, a load of two vectors reaches 1008 bytes. */
    const int near = block_cols(t) == 256 ? block_nbytes(t) * GROUP_ROWS / 8 * b & ~15 : 0;
    const uint8_t *base = p + near;
    __asm__("" : "+r"(base));
    dot d[2][FEW_TOKENS][MOST_VECTORS];
    for (int k = 0; k < runs; k++)
        for (int s = 0; s < n; s++)
            for (int v = 0; v < nv; v++) d[k][s][v] = dot_zero();
    UNROLL
    for (int i = u; i < u + units; i++) {
        unit_fields f[MOST_VECTORS];
        UNROLL
        for (int v = 0; v < nv; v++) f[v] = load_unit(t, base - near, v * VL, b, i);
        if (code_bits(t) != 5 && nv == 4) LOADED_4(f[0].q, f[1].q, f[2 % MOST_VECTORS].q, f[3 % MOST_VECTORS].q);
        if (code_bits(t) != 5 && nv == 2) LOADED_2(f[0].q, f[1].q);
        UNROLL
        for (int k = 0; k < runs; k++)
            UNROLL
            for (int v = 0; v < nv; v++) {
                const vb codes = unit_codes(t, f[v], b + k, i, levels);
                UNROLL
                for (int s = 0; s < n; s++)
                    d[k][s][v] = dot_add(d[k][s][v], codes, x[s * blocks + k].codes[i >> 2], i & 3, bits);
            }
    }
    UNROLL
    for (int k = 0; k < runs; k++)
        UNROLL
        for (int s = 0; s < n; s++)
            UNROLL
            for (int v = 0; v < nv; v++) sums[k][s][v] = dot_sum(d[k][s][v], bits);
}

/* acc[s][r] += what one block of 32 columns adds for token s. */
INLINE void few_small(const pl_dtype t, const int n, const uint8_t *p, const pl_d16 *x, int64_t blocks,
                      vb_table levels, float *acc, size_t lda)
{
    const int nbytes = block_nbytes(t) * GROUP_ROWS, nv = few_vectors(n);
    for (int g = 0; g < PANEL_ROWS; g += GROUP_ROWS, p += nbytes) {
        prefetch_share(p, nbytes, 0, 1);
        UNROLL
        for (int h = 0; h < NG; h += nv) {
            vi sums[1][FEW_TOKENS][MOST_VECTORS];
            few_sums(t, n, nv, p + 4 * h * VL, 0, 0, 8, x, blocks, levels, 1, sums);
            UNROLL
            for (int v = 0; v < nv; v++) {
                const int r = (h + v) * VL;
                const vf d = block_scale(t, p, r);
                UNROLL
                for (int s = 0; s < n; s++) {
                    const pl_d16 *xs = x + s * blocks;
                    float *to = acc + (size_t)s * lda + g + r;
                    vf a = v_fma(unbiased(sums[0][s][v], xs, 0, 0, bias_of(t)), v_mul(d, v_set1(xs->scale)), v_load(to));
                    if (has_minima(t)) a = v_fma(v_load_f16(HALF_FIELD(2)), v_set1(xs->sum), a);
                    v_store(to, a);
                }
            }
        }
    }
}

/* The same for one of 256. */
INLINE void few_large(const pl_dtype t, const int n, const uint8_t *p, const pl_d16 *x, int64_t blocks,
                      vb_table levels, float *acc, size_t lda)
{
    const int runs = n == 1 && ONE_RUNS == 2 && (t == DT_Q4_K || t == DT_Q5_K) ? 2 : 1;
    const int nv = runs == 2 ? 2 : few_vectors(n), rows = nv * VL;
    const int narrow = scale_cols(t) == 16, scales = narrow ? 16 : 8, nbytes = block_nbytes(t) * rows;
    const uint8_t *later = p;
    for (int g = 0; g < PANEL_ROWS; g += rows, later += nbytes) {
        const int r = g % GROUP_ROWS;
        const uint8_t *codes = p + 4 * r;
        /* One base for all fields: GCC would make a register of each one's distance from p, and keep them on the stack. */
        __asm__("" : "+r"(codes));
        /* Fields of 4 bytes a row are counted from there too; IQ4_XS has some of 2 among them. */
        const uint8_t *fields = t == DT_IQ4_XS ? p : codes;
        const int first = t == DT_IQ4_XS ? r : 0;
        vf blk[FEW_TOKENS][MOST_VECTORS];
        for (int s = 0; s < n; s++)
            for (int v = 0; v < nv; v++) blk[s][v] = v_set1(0.0f);
        UNROLL
        for (int m = 0; m < scales / 4; m++) {
            vi bytes[MOST_VECTORS], sums[2][FEW_TOKENS][MOST_VECTORS];
            for (int v = 0; v < nv; v++) bytes[v] = scale_bytes(t, fields, first + v * VL, m);
            UNROLL
            for (int i = 0; i < 4; i++) {
                const int j = 4 * m + i, b = narrow ? j >> 1 : j;
                /* What other runs of columns read too is read again: GCC would keep it in registers, and then on the stack. */
                __asm__ volatile("" ::: "memory");
                prefetch_share(later, nbytes, j, scales);
                if (i % runs == 0)
                    few_sums(t, n, nv, codes, b, narrow ? 4 * (j & 1) : 0, narrow ? 4 : 8, x + b, blocks, levels, runs, sums);
                UNROLL
                for (int v = 0; v < nv; v++) {
                    const vf scale = byte_float(bytes[v], i, scale_bias(t));
                    UNROLL
                    for (int s = 0; s < n; s++)
                        blk[s][v] = v_fma(unscaled(sums[i % runs][s][v], x + s * blocks, narrow, j, bias_of(t)), scale, blk[s][v]);
                }
            }
        }
        vf mb[FEW_TOKENS][MOST_VECTORS];
        if (has_minima(t)) {
            for (int s = 0; s < n; s++)
                for (int v = 0; v < nv; v++) mb[s][v] = v_set1(0.0f);
            UNROLL
            for (int j = 0; j < scales; j++)
                UNROLL
                for (int v = 0; v < nv; v++) {
                    const vf least = byte_float(min_bytes(t, fields, first + v * VL, j / 4), j % 4, 0);
                    UNROLL
                    for (int s = 0; s < n; s++) mb[s][v] = v_fma(least, v_set1(sum_of(x + s * blocks, narrow, j)), mb[s][v]);
                }
        }
        UNROLL
        for (int v = 0; v < nv; v++) {
            const int at = r + v * VL;
            UNROLL
            for (int s = 0; s < n; s++) {
                float *to = acc + (size_t)s * lda + g + v * VL;
                vf a = v_fma(blk[s][v], super_scale(p, at), v_load(to));
                if (has_minima(t)) a = v_fma(mb[s][v], super_min(p, at), a);
                v_store(to, a);
            }
        }
        if (r + rows == GROUP_ROWS) p += block_nbytes(t) * GROUP_ROWS;
    }
}

/* Many tokens. */

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
#define VECTOR                                                     \
    prefetch_share(p + v * group / NG, group / NG, 0, 1);          \
    unpack_vector(t, p + v / NG * group + v % NG * 4 * VL, levels, tile + v * TILE_UNIT);
        if (block_cols(t) == 256)
            for (int v = 0; v < PANEL_VECTORS; v++) {
                VECTOR
            }
        else
            UNROLL
            for (int v = 0; v < PANEL_VECTORS; v++) {
                VECTOR
            }
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

/* How many of `left` tokens come next, at most `most`: pieces alike, for a single one at the end would unpack for itself. */
INLINE int piece_of(int64_t left, const int most)
{
    const int64_t pieces = (left + most - 1) / most;
    return (int)((left + pieces - 1) / pieces);
}

/* All tokens, by kinds of formats: what else sets formats apart is gone from a tile. */
#define TILE_TOKENS(n, large, narrow, minima)                                                                         \
    case n:                                                                                                           \
        if (n <= MANY_TOKENS) tile_tokens(n, large, narrow, minima, bias, tile, s, cols, x, blocks, acc, lda);        \
        break;
#define TILE_PRODUCT(name, large, narrow, minima)                                                                     \
    static void name(int bias, const uint8_t *tile, const block_scales *s, int64_t cols, const pl_d16 *x,             \
                     int64_t blocks, int64_t tokens, float *acc, size_t lda)                                          \
    {                                                                                                                 \
        for (int n; tokens; tokens -= n, x += n * blocks, acc += (size_t)n * lda)                                     \
            switch (n = piece_of(tokens, MANY_TOKENS)) {                                                              \
                TILE_TOKENS(1, large, narrow, minima)                                                                 \
                TILE_TOKENS(2, large, narrow, minima)                                                                 \
                TILE_TOKENS(3, large, narrow, minima)                                                                 \
                TILE_TOKENS(4, large, narrow, minima)                                                                 \
            }                                                                                                         \
    }
TILE_PRODUCT(tile_small, 0, 0, 0)
TILE_PRODUCT(tile_small_minima, 0, 0, 1)
TILE_PRODUCT(tile_large, 1, 0, 0)
TILE_PRODUCT(tile_large_minima, 1, 0, 1)
TILE_PRODUCT(tile_large_narrow, 1, 1, 0)
TILE_PRODUCT(tile_large_narrow_minima, 1, 1, 1)
#undef TILE_PRODUCT
#undef TILE_TOKENS

/* Formats, functions for each. */

/* The quantized formats, each with its product of few tokens and its product of a tile with many: all that there is once a
 * format is made of this list. */
#define QUANTIZED(EACH) \
    EACH(DT_Q4_0, few_small, tile_small) \
    EACH(DT_Q4_1, few_small, tile_small_minima) \
    EACH(DT_Q5_0, few_small, tile_small) \
    EACH(DT_Q5_1, few_small, tile_small_minima) \
    EACH(DT_Q8_0, few_small, tile_small) \
    EACH(DT_Q2_K, few_large, tile_large_narrow_minima) \
    EACH(DT_Q3_K, few_large, tile_large_narrow) \
    EACH(DT_Q4_K, few_large, tile_large_minima) \
    EACH(DT_Q5_K, few_large, tile_large_minima) \
    EACH(DT_Q6_K, few_large, tile_large_narrow) \
    EACH(DT_IQ4_NL, few_small, tile_small) \
    EACH(DT_IQ4_XS, few_large, tile_large) \
    EACH(DT_MXFP4, few_small, tile_small)
#define ONE(...) +1
_Static_assert(0 QUANTIZED(ONE) == DT_COUNT - DT_Q4_0, "a quantized format has no products");
#undef ONE

/* acc[s][r] += panel blocks at p, `cols` columns, times x of one to three tokens, s; blocks: those of x from one token to the
 * next. */
typedef void few_product(const uint8_t *p, int64_t cols, const pl_d16 *x, int64_t blocks, float *acc, size_t lda);
/* The same of `tokens`, with a tile. */
typedef void many_product(const uint8_t *p, int64_t cols, const pl_d16 *x, int64_t blocks, int64_t tokens, float *acc,
                          size_t lda);

#define FEW(t, n, few)                                                                                               \
    static void integer_##t##_few_##n(const uint8_t *p, int64_t cols, const pl_d16 *x, int64_t blocks, float *acc, size_t lda) \
    {                                                                                                                \
        if (n > FEW_TOKENS) return;                                                                                  \
        const vb_table levels = levels_of(t);                                                                        \
        for (int64_t c = 0; c < cols; c += block_cols(t), p += block_nbytes(t) * PANEL_ROWS)                         \
            few(t, n, p, x + c / D16_COLS, blocks, levels, acc, lda);                                                \
    }
#define PRODUCTS(t, few, many)                                                                                       \
    FEW(t, 1, few)                                                                                                   \
    FEW(t, 2, few)                                                                                                   \
    FEW(t, 3, few)                                                                                                   \
    static void integer_##t##_many(const uint8_t *p, int64_t cols, const pl_d16 *x, int64_t blocks, int64_t tokens, float *acc, \
                         size_t lda)                                                                                 \
    {                                                                                                                \
        uint8_t tile[TILE_NBYTES] __attribute__((aligned(64)));                                                      \
        block_scales s;                                                                                              \
        for (int64_t c = 0; c < cols; c += BLOCK_COLS) {                                                             \
            const int64_t n = cols - c < BLOCK_COLS ? cols - c : BLOCK_COLS;                                         \
            unpack_codes(t, p, n, tile, &s);                                                                         \
            many(bias_of(t), tile, &s, n, x + c / D16_COLS, blocks, tokens, acc, lda);                               \
            p += BLOCK_COLS / block_cols(t) * block_nbytes(t) * PANEL_ROWS;                                          \
        }                                                                                                            \
    }
QUANTIZED(PRODUCTS)
#undef PRODUCTS
#undef FEW

static const struct {
    few_product *few[3];
    many_product *many;
} integer_products[DT_COUNT] = {
#define PLACE(t, few, many) [t] = {{integer_##t##_few_1, integer_##t##_few_2, integer_##t##_few_3}, integer_##t##_many},
    QUANTIZED(PLACE)
#undef PLACE
};

/* acc[t][r] += panel blocks at p, `cols` columns, times `tokens` tokens, out of an input of `of`, which says how x is laid
 * out. Few tokens share the codes in registers, piece by piece while a block is in the first-level cache. */
static void integer_columns(pl_dtype t, const uint8_t *p, int64_t cols, const pl_d16 *x, int64_t of, int64_t blocks,
                            int64_t tokens, float *acc, size_t lda)
{
    if (of > few_limit(t)) {
        integer_products[t].many(p, cols, x, blocks, tokens, acc, lda);
        return;
    }
    const int64_t step = tokens <= FEW_TOKENS ? cols : BLOCK_COLS;
    for (int64_t c = 0; c < cols; c += step) {
        const int64_t here = cols - c < step ? cols - c : step;
        for (int64_t s = 0, n; s < tokens; s += n) {
            n = piece_of(tokens - s, FEW_TOKENS);
            integer_products[t].few[n - 1](p, here, x + s * blocks + c / D16_COLS, blocks, acc + (size_t)s * lda, lda);
        }
        p += here / block_cols(t) * block_nbytes(t) * PANEL_ROWS;
    }
}

/* One panel of w times `tokens` tokens of an input of `of`; acc has room for PANEL_ROWS floats per token. */
static void integer_panel(const pl_matrix *w, int64_t panel, const pl_d16 *x, int64_t of, int64_t tokens, float *acc,
                          size_t lda)
{
    const int64_t blocks = w->cols / D16_COLS;
    for (int64_t t = 0; t < tokens; t++) memset(acc + (size_t)t * lda, 0, PANEL_ROWS * sizeof(float));
    if (w->layout == LAYOUT_PANELS) {
        const uint8_t *p = w->data + (size_t)panel * panel_stride(w);
        integer_columns(w->dtype, p, w->cols, x, of, blocks, tokens, acc, lda);
        return;
    }
    uint8_t rows[BLOCK_COLS * PANEL_ROWS * 2] __attribute__((aligned(64)));
    for (int64_t c = 0; c < w->cols; c += BLOCK_COLS) {
        int64_t n = w->cols - c < BLOCK_COLS ? w->cols - c : BLOCK_COLS;
        transpose_blocks(w, panel, c, n, rows);
        integer_columns(w->dtype, rows, n, x + c / D16_COLS, of, blocks, tokens, acc, lda);
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
#define WIDEN(t, few, many) case t: widen_block(t, block, part.rows, to, rows->cols); break;
            QUANTIZED(WIDEN)
#undef WIDEN
            default: __builtin_trap(); /* called for quantized rows alone */
            }
        }
    }
}
