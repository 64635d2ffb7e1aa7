/* out = x @ w.T in the canonical order: one chain of fused multiply-adds per element over ascending columns.
 *
 * Rows of w lie across the lanes. For one token, 16-bit panels are widened in registers; everything else is
 * widened a segment of columns at a time into a tile that stays in the first-level cache and is multiplied
 * with all tokens before the next one. Included by body.h.
 */

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
        prefetch(pairs + 8 * PANEL_ROWS);
        prefetch(pairs + 8 * PANEL_ROWS + GROUP_ROWS);
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

/* Columns [col, col + cols) of a panel, given as panel blocks, times all tokens. */
static void product_columns(const pl_matrix *w, const uint8_t *blocks, int64_t col, int64_t cols, const float *x,
                            int64_t tokens, float *acc, size_t lda)
{
    const pl_format *f = &pl_formats[w->dtype];
    if (tokens == 1 && w->dtype == DT_BF16) { product_bf16(blocks, cols, x + col, acc, col == 0); return; }
    if (tokens == 1 && w->dtype == DT_F16) { product_f16(blocks, cols, x + col, acc, col == 0); return; }
    for (int64_t done = 0; done < cols; done += SEGMENT_COLS) {
        float scratch[SEGMENT_COLS * PANEL_ROWS] __attribute__((aligned(64)));
        int64_t c = col + done, n = cols - done < SEGMENT_COLS ? cols - done : SEGMENT_COLS;
        const uint8_t *p = blocks + (size_t)(done / f->cols) * (size_t)f->nbytes * PANEL_ROWS;
        const float *tile = widen_segment(w->dtype, p, (int)(c / SEGMENT_COLS & 1), n, scratch);
        for (int64_t t = 0; t < tokens; t += TOKEN_TILE) {
            int m = tokens - t < TOKEN_TILE ? (int)(tokens - t) : TOKEN_TILE;
            product(tile, n, x + t * w->cols + c * m, m, acc + (size_t)t * lda, lda, c == 0);
        }
    }
}

/* One panel of w times `tokens` tokens; acc has room for PANEL_ROWS floats per token. */
static void product_panel(const pl_matrix *w, int64_t panel, const float *x, int64_t tokens, float *acc, size_t lda)
{
    uint8_t blocks[BLOCK_COLS * PANEL_ROWS * 4] __attribute__((aligned(64)));
    if (w->panels) {
        product_columns(w, w->data + (size_t)panel * panel_stride(w), 0, w->cols, x, tokens, acc, lda);
        return;
    }
    for (int64_t c = 0; c < w->cols; c += BLOCK_COLS) {
        int64_t n = w->cols - c < BLOCK_COLS ? w->cols - c : BLOCK_COLS;
        transpose_blocks(w, panel, c, n, blocks);
        product_columns(w, blocks, c, n, x, tokens, acc, lda);
    }
}

static void k_matmul(const pl_matrix *w, const float *x, int64_t tokens, float *out, size_t ldo, int64_t row,
                     int64_t first, int64_t last)
{
    for (int64_t p = first; p < last; p++) {
        int64_t rows = w->rows - p * PANEL_ROWS;
        float *o = out + row + p * PANEL_ROWS;
        if (rows >= PANEL_ROWS) {
            product_panel(w, p, x, tokens, o, ldo);
            continue;
        }
        for (int64_t t = 0; t < tokens; t += TOKEN_TILE) { /* the last panel has fewer rows than the registers */
            float acc[TOKEN_TILE * PANEL_ROWS];
            int64_t n = tokens - t < TOKEN_TILE ? tokens - t : TOKEN_TILE;
            product_panel(w, p, x + t * w->cols, n, acc, PANEL_ROWS);
            for (int64_t i = 0; i < n; i++)
                memcpy(o + (size_t)(t + i) * ldo, acc + i * PANEL_ROWS, (size_t)rows * sizeof(float));
        }
    }
}

static void k_pack_tokens(const float *x, int64_t tokens, int64_t cols, float *packed, int64_t first, int64_t last)
{
    for (int64_t tile = first; tile < last; tile++) {
        int64_t t0 = tile * TOKEN_TILE, n = tokens - t0 < TOKEN_TILE ? tokens - t0 : TOKEN_TILE;
        float *p = packed + t0 * cols;
        for (int64_t c = 0; c < cols; c++)
            for (int64_t t = 0; t < n; t++) p[c * n + t] = x[(t0 + t) * cols + c];
    }
}

/* Rows -> panel -> tile -> rows: the one widening there is, also for the few rows of an embedding. */
static void k_widen(const pl_matrix *rows, float *out, int64_t first, int64_t last)
{
    uint8_t blocks[BLOCK_COLS * PANEL_ROWS * 4] __attribute__((aligned(64)));
    float scratch[SEGMENT_COLS * PANEL_ROWS] __attribute__((aligned(64)));
    const pl_format *f = &pl_formats[rows->dtype];
    for (int64_t row = first; row < last; row += PANEL_ROWS) {
        pl_matrix part = *rows;
        int64_t n = last - row < PANEL_ROWS ? last - row : PANEL_ROWS;
        part.data += (size_t)row * rows->row_nbytes;
        part.rows = n;
        for (int64_t c = 0; c < rows->cols; c += SEGMENT_COLS) {
            int64_t m = rows->cols - c < SEGMENT_COLS ? rows->cols - c : SEGMENT_COLS;
            int half = (int)(c / SEGMENT_COLS & 1);
            const uint8_t *p = blocks;
            if (f->cols < BLOCK_COLS || !half) transpose_blocks(&part, 0, c, f->cols < BLOCK_COLS ? m : BLOCK_COLS, blocks);
            const float *tile = widen_segment(rows->dtype, p, half, m, scratch);
            for (int64_t r = 0; r < n; r++)
                for (int64_t i = 0; i < m; i++) out[(row + r) * rows->cols + c + i] = tile[i * PANEL_ROWS + r];
        }
    }
}
