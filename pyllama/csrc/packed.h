/* bfloat16 weights in 12 bits, losslessly, multiplied without being written back. Included by body.h.
 *
 * The exponents of trained weights carry under 3 bits of information: 8 values of their upper seven bits cover
 * all but about one weight in 10,000. A block of rows is
 *
 *     16 bytes   table: the high byte (sign, upper seven exponent bits) of each 4-bit code; from 8 on, those of the
 *                first 8 with the sign set
 *     4 bytes    n, the number of escapes; 44 bytes of zeros
 *     panels     of PANEL_ROWS rows: 96 bytes for each pair of columns, being the low bytes (last exponent bit,
 *                mantissa) of the first column, those of the second, and the codes, second column in the upper
 *                four bits
 *     uint32     first[panels + 1]: where a panel's escapes begin
 *     uint32     key[n], ascending within a panel: pair << 6 | column of the pair << 5 | row
 *     uint8      high[n]: the true high byte, where the table has none
 *
 * all little-endian, from a 4-byte boundary. The low byte is stored verbatim, so nothing is ever lost.
 */

_Static_assert(SEGMENT_COLS % 2 == 0, "a segment is whole pairs");

INLINE size_t packed_panel_nbytes(const pl_matrix *w) { return (size_t)((w->cols + 1) / 2) * PAIR_NBYTES; }

typedef struct {
    const uint8_t *pairs;
    const uint32_t *key, *end; /* this panel's escapes */
    const uint8_t *high;
} packed_panel;

static packed_panel open_packed(const pl_matrix *w, int64_t panel)
{
    int64_t panels = panels_of(w);
    const uint8_t *data = w->data + PACKED_HEADER;
    const uint32_t *first = (const uint32_t *)(data + (size_t)panels * packed_panel_nbytes(w));
    const uint32_t *keys = first + panels + 1;
    const uint8_t *highs = (const uint8_t *)(keys + first[panels]);
    return (packed_panel){data + (size_t)panel * packed_panel_nbytes(w), keys + first[panel], keys + first[panel + 1],
                          highs + first[panel]};
}

/* `pairs` pairs from `first` on as float32: a column's rows side by side; *key goes on to the first escape after them. */
INLINE void widen_packed(const packed_panel *p, int64_t first, int64_t pairs, packed_table table, const uint32_t **key,
                        float *out)
{
    const uint8_t *in = p->pairs + first * PAIR_NBYTES;
    vf column[PANEL_ROWS / VL];
    for (int64_t i = 0; i < pairs; i++) {
        const uint8_t *pair = in + i * PAIR_NBYTES;
        load32_packed(pair, pair + 64, 0, table, column);
        store32_lanes(out + 2 * i * PANEL_ROWS, column);
        load32_packed(pair + 32, pair + 64, 1, table, column);
        store32_lanes(out + (2 * i + 1) * PANEL_ROWS, column);
    }
    for (; *key < p->end && **key >> 6 < first + pairs; ++*key) {
        int64_t place = **key - (first << 6); /* a key counts columns and rows as out does */
        uint32_t low = in[place / 64 * PAIR_NBYTES + place % 64], bits = low << 16 | (uint32_t)p->high[*key - p->key] << 24;
        memcpy(&out[place], &bits, sizeof bits);
    }
}

/* One column of a pair that may have escapes; *key goes on behind them. */
INLINE void load32_escaped(const packed_panel *p, int64_t pair, const int upper, packed_table table,
                           const uint32_t **key, vf *column)
{
    const uint8_t *codes = p->pairs + pair * PAIR_NBYTES + 64, *low = codes - 64 + 32 * upper;
    const uint32_t first = (uint32_t)pair << 6 | (uint32_t)upper << 5;
    load32_packed(low, codes, upper, table, column);
    for (; *key < p->end && **key - first < PANEL_ROWS; ++*key) {
        uint32_t row = **key - first;
        patch32_lanes(column, (int)row, (uint32_t)low[row] << 16 | (uint32_t)p->high[*key - p->key] << 24);
    }
}

INLINE void fma32(const vf *column, float x, vf *acc)
{
    for (int v = 0; v < PANEL_ROWS / VL; v++) acc[v] = v_fma(column[v], v_set1(x), acc[v]);
}

/* acc[r] += sum_c w[r, c] * x[c] over pairs that have no escapes. */
INLINE void product_pairs_packed(const uint8_t *in, int64_t pairs, packed_table table, const float *x, vf *acc)
{
    /* A copy, for the loop's registers: with escapes around it, GCC 12 keeps acc in memory as well. */
    vf a[PANEL_ROWS / VL], column[PANEL_ROWS / VL];
    for (int v = 0; v < PANEL_ROWS / VL; v++) a[v] = acc[v];
    for (; pairs > 0; pairs--, in += PAIR_NBYTES, x += 2) {
        prefetch(in, AHEAD);
        prefetch(in, AHEAD + 64);
        load32_packed(in, in + 64, 0, table, column);
        fma32(column, x[0], a);
        load32_packed(in + 32, in + 64, 1, table, column);
        fma32(column, x[1], a);
    }
    for (int v = 0; v < PANEL_ROWS / VL; v++) acc[v] = a[v];
}

/* The same over the first `cols` columns of a pair that may have some; *key goes on behind them. */
INLINE void product_escapes(const packed_panel *p, int64_t pair, int cols, packed_table table, const uint32_t **key,
                            const float *x, vf *acc)
{
    vf column[PANEL_ROWS / VL];
    load32_escaped(p, pair, 0, table, key, column);
    fma32(column, x[2 * pair], acc);
    if (cols == 2) {
        load32_escaped(p, pair, 1, table, key, column);
        fma32(column, x[2 * pair + 1], acc);
    }
}

/* acc[r] = sum_c w[r, c] * x[c], from one pair with escapes to the next. */
INLINE void product_packed_one(const pl_matrix *w, const packed_panel *p, const float *x, float *acc)
{
    const packed_table table = load_packed_table(w->data);
    const uint32_t *key = p->key;
    int64_t pairs = w->cols / 2, pair = 0;
    vf a[PANEL_ROWS / VL];
    for (int v = 0; v < PANEL_ROWS / VL; v++) a[v] = v_set1(0.0f);
    for (;; pair++) {
        int64_t stop = key < p->end && *key >> 6 < pairs ? *key >> 6 : pairs;
        product_pairs_packed(p->pairs + pair * PAIR_NBYTES, stop - pair, table, x + 2 * pair, a);
        pair = stop;
        if (pair == pairs) break;
        product_escapes(p, pair, 2, table, &key, x, a);
    }
    if (w->cols & 1) product_escapes(p, pairs, 1, table, &key, x, a); /* padding stays out of the chain */
    store32_lanes(acc, a);
}

static void product_packed(const pl_matrix *w, int64_t panel, const float *x, int64_t tokens, float *acc, size_t lda)
{
    packed_panel p = open_packed(w, panel);
    if (tokens == 1) {
        product_packed_one(w, &p, x, acc);
        return;
    }
    const packed_table table = load_packed_table(w->data);
    const uint32_t *key = p.key;
    for (int64_t c = 0; c < w->cols; c += SEGMENT_COLS) {
        float tile[SEGMENT_COLS * PANEL_ROWS] __attribute__((aligned(64)));
        int64_t n = w->cols - c < SEGMENT_COLS ? w->cols - c : SEGMENT_COLS;
        widen_packed(&p, c / 2, (n + 1) / 2, table, &key, tile);
        for (int64_t t = 0; t < tokens; t += TOKEN_TILE) {
            int m = tokens - t < TOKEN_TILE ? (int)(tokens - t) : TOKEN_TILE;
            product(tile, n, x + t * w->cols + c * m, m, acc + (size_t)t * lda, lda, c == 0);
        }
    }
}

static void k_unpack(const pl_matrix *w, uint8_t *out, int64_t first, int64_t last)
{
    const packed_table table = load_packed_table(w->data);
    for (int64_t panel = first; panel < last; panel++) {
        packed_panel p = open_packed(w, panel);
        const uint32_t *key = p.key;
        int64_t left = w->rows - panel * PANEL_ROWS, rows = left < PANEL_ROWS ? left : PANEL_ROWS;
        for (int64_t c = 0; c < w->cols; c += SEGMENT_COLS) {
            float tile[SEGMENT_COLS * PANEL_ROWS] __attribute__((aligned(64)));
            int64_t n = w->cols - c < SEGMENT_COLS ? w->cols - c : SEGMENT_COLS;
            widen_packed(&p, c / 2, (n + 1) / 2, table, &key, tile);
            for (int64_t r = 0; r < rows; r++) {
                uint8_t *row = out + (size_t)(panel * PANEL_ROWS + r) * w->row_nbytes + 2 * (size_t)c;
                for (int64_t i = 0; i < n; i++) memcpy(row + 2 * i, (const uint8_t *)&tile[i * PANEL_ROWS + r] + 2, 2);
            }
        }
    }
}

static void k_count_exponents(const pl_matrix *rows, int64_t p, uint32_t *counts)
{
    uint32_t local[4][128] = {{0}}; /* neighbours mostly share a value: four sets spare the wait for it */
    int64_t first = p * PANEL_ROWS, last = first + PANEL_ROWS < rows->rows ? first + PANEL_ROWS : rows->rows;
    for (int64_t r = first; r < last; r += PACKED_SAMPLE) {
        const uint8_t *high = rows->data + (size_t)r * rows->row_nbytes + 1;
        for (int64_t c = 0; c < rows->cols; c++) local[c & 3][high[2 * c] & 127]++;
    }
    for (int i = 0; i < 128; i++) counts[i] = local[0][i] + local[1][i] + local[2][i] + local[3][i];
}

/* Exponents that training leaves are neighbours, so that a subtraction finds the code; else a table does. */
INLINE int lowest_of_eight(const uint8_t *table) { return table[7] - table[0] == 7 ? table[0] : -1; }

static uint32_t k_count_escapes(const pl_matrix *rows, int64_t p, const uint8_t *table, const uint8_t *codes)
{
    int64_t first = p * PANEL_ROWS, last = first + PANEL_ROWS < rows->rows ? first + PANEL_ROWS : rows->rows;
    const int lowest = lowest_of_eight(table);
    uint32_t n = 0;
    for (int64_t r = first; r < last; r++) {
        const uint8_t *in = rows->data + (size_t)r * rows->row_nbytes;
        uint32_t of_row = 0;
        if (lowest >= 0)
            for (int64_t c = 0; c < rows->cols; c++) of_row += (uint8_t)((in[2 * c + 1] & 127) - lowest) > 7;
        else
            for (int64_t c = 0; c < rows->cols; c++) of_row += codes[in[2 * c + 1]] == PACKED_ESCAPE;
        n += of_row;
    }
    return n;
}

static void k_compress_panel(const pl_matrix *rows, int64_t p, const uint8_t *table, const uint8_t *codes, uint8_t *out,
                         uint32_t *keys, uint8_t *highs)
{
    uint32_t units[SEGMENT_COLS / 2 * PANEL_ROWS] __attribute__((aligned(64)));
    int64_t left = rows->rows - p * PANEL_ROWS;
    uint32_t valid = left < PANEL_ROWS ? (uint32_t)left : PANEL_ROWS;
    const int lowest = lowest_of_eight(table);
    for (int64_t c = 0; c < rows->cols; c += SEGMENT_COLS) {
        int64_t n = rows->cols - c < SEGMENT_COLS ? rows->cols - c : SEGMENT_COLS;
        transpose_blocks(rows, p, c, n, (uint8_t *)units);
        for (int64_t i = 0; i < (n + 1) / 2; i++, out += PAIR_NBYTES) {
            const uint32_t *u = units + i * PANEL_ROWS;
            uint8_t code[2 * PANEL_ROWS], escaped = 0;
            for (int r = 0; r < PANEL_ROWS; r++) {
                out[r] = (uint8_t)u[r];
                out[32 + r] = (uint8_t)(u[r] >> 16);
                code[r] = (uint8_t)(u[r] >> 8);
                code[32 + r] = (uint8_t)(u[r] >> 24);
            }
            for (int r = 0; r < 2 * PANEL_ROWS; r++) {
                uint8_t high = code[r], offset = (uint8_t)((high & 127) - lowest);
                if (lowest >= 0) code[r] = offset > 7 ? PACKED_ESCAPE : (uint8_t)(offset | (high >> 4 & 8));
                else code[r] = codes[high];
                escaped |= code[r];
            }
            for (int r = 0; r < PANEL_ROWS; r++) out[64 + r] = (uint8_t)((code[r] & 15) | code[32 + r] << 4);
            if (!(escaped & PACKED_ESCAPE)) continue;
            for (int column = 0; column < 2 && 2 * i + column < n; column++)
                for (uint32_t r = 0; r < valid; r++)
                    if (code[32 * column + (int)r] == PACKED_ESCAPE) {
                        *keys++ = (uint32_t)((c / 2 + i) << 6) | (uint32_t)column << 5 | r;
                        *highs++ = (uint8_t)(u[r] >> (16 * column + 8));
                    }
        }
    }
}
