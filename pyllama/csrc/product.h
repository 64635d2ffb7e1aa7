/* The innermost products, rows across the lanes: a tile of widened weights times a few tokens, and 16-bit numbers as
 * they lie in memory times one. Included by body.h. */

/* acc[t][r] (+)= sum_c tile[c][r] * x[c][t], for n tokens, `rows` rows at a time. */
INLINE void product_block(const int n, const int rows, const float *tile, int64_t cols, const float *x, float *acc,
                          size_t lda, int fresh)
{
    const int nv = rows / VL;
    for (int r = 0; r < PANEL_ROWS; r += rows) {
        vf a[TOKEN_TILE][PANEL_ROWS / VL];
        for (int t = 0; t < n; t++)
            for (int v = 0; v < nv; v++) a[t][v] = fresh ? v_set1(0.0f) : v_load(acc + (size_t)t * lda + r + v * VL);
        for (int64_t c = 0; c < cols; c++) {
            vf w[PANEL_ROWS / VL];
            for (int v = 0; v < nv; v++) w[v] = v_load(tile + c * PANEL_ROWS + r + v * VL);
            for (int t = 0; t < n; t++) {
                vf xt = v_set1(x[c * n + t]);
                for (int v = 0; v < nv; v++) a[t][v] = v_fma(w[v], xt, a[t][v]);
            }
        }
        for (int t = 0; t < n; t++)
            for (int v = 0; v < nv; v++) v_store(acc + (size_t)t * lda + r + v * VL, a[t][v]);
    }
}

static void product(const float *tile, int64_t cols, const float *x, int n, float *acc, size_t lda, int fresh)
{
    switch (n) {
    case 1: product_block(1, PANEL_ROWS, tile, cols, x, acc, lda, fresh); break;
    case 2: product_block(2, PANEL_ROWS, tile, cols, x, acc, lda, fresh); break;
    case 3: product_block(3, GROUP_ROWS, tile, cols, x, acc, lda, fresh); break;
    case 4: product_block(4, GROUP_ROWS, tile, cols, x, acc, lda, fresh); break;
    case 5: product_block(5, GROUP_ROWS, tile, cols, x, acc, lda, fresh); break;
    default: product_block(TOKEN_TILE, GROUP_ROWS, tile, cols, x, acc, lda, fresh); break;
    }
}

/* acc[r] (+)= sum_c w[c][r] * x[c] for one token, 16-bit pairs widened on the way. */
INLINE void product_pairs(pl_dtype dtype, const uint8_t *p, int64_t cols, const float *x, float *acc, int fresh)
{
    vf a[2][NG];
    const uint32_t *pairs = (const uint32_t *)p;
    for (int g = 0; g < 2; g++)
        EACH a[g][v] = fresh ? v_set1(0.0f) : v_load(acc + g * GROUP_ROWS + v * VL);
    for (int64_t c = 0; c < cols; c += 2, pairs += PANEL_ROWS) {
        vf even[2][NG], odd[2][NG], xc = v_set1(x[c]);
        prefetch(pairs, AHEAD);
        prefetch(pairs, AHEAD + 64);
        for (int g = 0; g < 2; g++) {
            if (dtype == DT_BF16) load16_bf16_pairs(pairs + g * GROUP_ROWS, even[g], odd[g]);
            else load16_f16_pairs(pairs + g * GROUP_ROWS, even[g], odd[g]);
            EACH a[g][v] = v_fma(even[g][v], xc, a[g][v]);
        }
        if (c + 1 < cols) { /* the padding beside an odd last column stays out of the chain */
            xc = v_set1(x[c + 1]);
            for (int g = 0; g < 2; g++) EACH a[g][v] = v_fma(odd[g][v], xc, a[g][v]);
        }
    }
    for (int g = 0; g < 2; g++) EACH v_store(acc + g * GROUP_ROWS + v * VL, a[g][v]);
}

static void product_bf16(const uint8_t *p, int64_t cols, const float *x, float *acc, int fresh)
{
    product_pairs(DT_BF16, p, cols, x, acc, fresh);
}
static void product_f16(const uint8_t *p, int64_t cols, const float *x, float *acc, int fresh)
{
    product_pairs(DT_F16, p, cols, x, acc, fresh);
}

/* acc[r] (+)= sum_c half[c][r] * x[c] for one token, float16 widened on the way. What comes next lies elsewhere,
 * where no hardware looks ahead: as much of it as is read here is asked for. */
static void product_halves(const uint16_t *half, int64_t cols, const float *x, float *acc, int fresh, const uint16_t *next)
{
    vf a[2][NG], w[NG];
    for (int g = 0; g < 2; g++)
        EACH a[g][v] = fresh ? v_set1(0.0f) : v_load(acc + g * GROUP_ROWS + v * VL);
    for (int64_t c = 0; c < cols; c++) {
        vf xc = v_set1(x[c]);
        prefetch_l2(next + c * PANEL_ROWS);
        for (int g = 0; g < 2; g++) {
            load16_f16(half + c * PANEL_ROWS + g * GROUP_ROWS, w);
            EACH a[g][v] = v_fma(w[v], xc, a[g][v]);
        }
    }
    for (int g = 0; g < 2; g++) EACH v_store(acc + g * GROUP_ROWS + v * VL, a[g][v]);
}
