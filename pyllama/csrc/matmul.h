/* out = x @ w.T for floating-point weights: one chain of fused multiply-adds per element over ascending columns.
 *
 * Rows of w lie across the lanes. For one token, 16-bit panels are widened in registers; everything else is
 * widened a segment of columns at a time into a tile that stays in the first-level cache and is multiplied
 * with all tokens before the next one. Included by body.h.
 */

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
        const float *tile = widen_segment(w->dtype, p, n, scratch);
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
    if (w->layout == LAYOUT_PACKED) {
        product_packed(w, panel, x, tokens, acc, lda);
        return;
    }
    if (w->layout == LAYOUT_PANELS) {
        product_columns(w, w->data + (size_t)panel * panel_stride(w), 0, w->cols, x, tokens, acc, lda);
        return;
    }
    for (int64_t c = 0; c < w->cols; c += BLOCK_COLS) {
        int64_t n = w->cols - c < BLOCK_COLS ? w->cols - c : BLOCK_COLS;
        transpose_blocks(w, panel, c, n, blocks);
        product_columns(w, blocks, c, n, x, tokens, acc, lda);
    }
}

/* The same in the form that w's format takes, from token `t` on. */
static void input_panel(const pl_matrix *w, int64_t panel, const pl_input *input, int64_t t, int64_t tokens, float *acc,
                        size_t lda)
{
    if (input->form != FORM_F32)
        integer_panel(w, panel, (const pl_d16 *)input->data + t * (w->cols / D16_COLS), input->tokens, tokens, acc, lda);
    else product_panel(w, panel, (const float *)input->data + t * w->cols, tokens, acc, lda);
}

static void k_matmul(const pl_matrix *w, const pl_input *input, float *out, size_t ldo, int64_t row, int64_t first,
                     int64_t last)
{
    int64_t tokens = input->tokens;
    for (int64_t p = first; p < last; p++) {
        int64_t rows = w->rows - p * PANEL_ROWS;
        float *o = out + row + p * PANEL_ROWS;
        if (rows >= PANEL_ROWS) {
            input_panel(w, p, input, 0, tokens, o, ldo);
            continue;
        }
        for (int64_t t = 0, n; t < tokens; t += n) { /* the last panel has fewer rows than the registers */
            float acc[TOKEN_TILE * PANEL_ROWS];
            n = tokens - t < TOKEN_TILE ? tokens - t : TOKEN_TILE; /* tiles of tile_tokens() */
            if (input->form != FORM_F32) n = piece_of(tokens - t, TOKEN_TILE);
            input_panel(w, p, input, t, n, acc, PANEL_ROWS);
            for (int64_t i = 0; i < n; i++)
                memcpy(o + (size_t)(t + i) * ldo, acc + i * PANEL_ROWS, (size_t)rows * sizeof(float));
        }
    }
}

static void k_tile_tokens(const float *x, int64_t tokens, int64_t cols, float *packed, int64_t first, int64_t last)
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
    if (pl_form_of(rows->dtype) != FORM_F32) {
        widen_quantized(rows, out, first, last);
        return;
    }
    uint8_t blocks[SEGMENT_COLS * PANEL_ROWS * 4] __attribute__((aligned(64)));
    float scratch[SEGMENT_COLS * PANEL_ROWS] __attribute__((aligned(64)));
    for (int64_t row = first; row < last; row += PANEL_ROWS) {
        pl_matrix part = *rows;
        int64_t n = last - row < PANEL_ROWS ? last - row : PANEL_ROWS;
        part.data += (size_t)row * rows->row_nbytes;
        part.rows = n;
        for (int64_t c = 0; c < rows->cols; c += SEGMENT_COLS) {
            int64_t m = rows->cols - c < SEGMENT_COLS ? rows->cols - c : SEGMENT_COLS;
            transpose_blocks(&part, 0, c, m, blocks);
            const float *tile = widen_segment(rows->dtype, blocks, m, scratch);
            for (int64_t r = 0; r < n; r++)
                for (int64_t i = 0; i < m; i++) out[(row + r) * rows->cols + c + i] = tile[i * PANEL_ROWS + r];
        }
    }
}
