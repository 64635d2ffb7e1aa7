/* Row-major rows -> 32-row panels: the same bits, each field of 32 rows side by side; of quantized formats, of 16 rows and
 * then of the other 16, so that one token reads them in the order in which they lie. Included by body.h. */

/* Bytes from one panel to the next. */
INLINE size_t panel_stride(const pl_matrix *w)
{
    const pl_format *f = &pl_formats[w->dtype];
    return (size_t)((w->cols + f->cols - 1) / f->cols) * (size_t)f->nbytes * PANEL_ROWS;
}

INLINE void copy_field(uint8_t *out, const uint8_t *in, size_t width)
{
    if (width == 4) memcpy(out, in, 4);
    else if (width == 2) memcpy(out, in, 2);
    else *out = *in;
}

/* One quantized block of `rows` rows, at most GROUP_ROWS, `stride` bytes apart: the fields of each run side by side. */
static void transpose_fields(const pl_format *f, const uint8_t *in, size_t stride, int rows, uint8_t *out)
{
    for (int i = 0; i < 6 && f->runs[i].count; i++) {
        const size_t at = f->runs[i].at, width = f->runs[i].width, count = f->runs[i].count;
        if (width == 4 && rows == GROUP_ROWS) transpose_u32(in + at, stride, (int64_t)count, (uint32_t *)out, GROUP_ROWS);
        else
            for (int r = 0; r < rows; r++) {
                const uint8_t *field = in + (size_t)r * stride + at;
                for (size_t e = 0; e < count; e++)
                    copy_field(out + (e * GROUP_ROWS + (size_t)r) * width, field + e * width, width);
            }
        out += width * count * GROUP_ROWS;
    }
}

/* Every second bit, from the lowest on, to the lower half of each lane, the others to the upper one. */
INLINE vi unshuffle_bits(vi x)
{
    static const int32_t middle[4] = {0x22222222, 0x0c0c0c0c, 0x00f000f0, 0x0000ff00};
    for (int i = 0, n = 1; i < 4; i++, n *= 2) {
        const vi moved = vi_and(vi_xor(x, vi_shr(x, n)), vi_set1(middle[i]));
        x = vi_xor(x, vi_xor(moved, vi_shl(moved, n)));
    }
    return x;
}

/* Bits of transposed fields to where products find them with less work, GROUP_ROWS rows at out. Q5_0, Q5_1: bit 4 * u + i of
 * the fifth bits becomes bit u of byte i. Q6_K: of 128 columns' four codes from the same bytes, three get a byte each; the
 * top bits of these have the fourth. */
static void recode_block(pl_dtype t, uint8_t *out)
{
    if (t == DT_Q5_0 || t == DT_Q5_1)
        for (int r = 0; r < GROUP_ROWS; r += VL) {
            uint8_t *bits = out + (t == DT_Q5_0 ? 2 : 4) * GROUP_ROWS + 4 * r;
            vi_store((int32_t *)bits, unshuffle_bits(unshuffle_bits(vi_load(bits))));
        }
    if (t != DT_Q6_K) return;
    for (int half = 0; half < 2; half++)
        for (int at = 0; at < 8 * 4 * GROUP_ROWS; at += 4 * VL) {
            uint8_t *p = out + (18 + 96 * half) * GROUP_ROWS + at;
            vb code[4];
            const vb q[2] = {vb_load(p), vb_load(p + 8 * 4 * GROUP_ROWS)}, h = vb_load(p + 16 * 4 * GROUP_ROWS);
            code[0] = vb_or(vb_low4(q[0]), vb_and(vb_shl(h, 4), vb_set1(0x30)));
            code[1] = vb_or(vb_low4(q[1]), vb_and(vb_shl(h, 2), vb_set1(0x30)));
            code[2] = vb_or(vb_high4(q[0]), vb_and(h, vb_set1(0x30)));
            code[3] = vb_or(vb_high4(q[1]), vb_and(vb_shr(h, 2), vb_set1(0x30)));
            for (int i = 0; i < 3; i++)
                vb_store(p + 8 * i * 4 * GROUP_ROWS, vb_or(code[i], vb_and(vb_shl(code[3], 6 - 2 * i), vb_set1(0xc0))));
        }
}

/* The blocks that hold the columns [col, col + cols) of one panel's rows, transposed into out. */
static void transpose_blocks(const pl_matrix *w, int64_t panel, int64_t col, int64_t cols, uint8_t *out)
{
    const pl_format *f = &pl_formats[w->dtype];
    int64_t left = w->rows - panel * PANEL_ROWS, blocks = (cols + f->cols - 1) / f->cols;
    int rows = left < PANEL_ROWS ? (int)left : PANEL_ROWS;
    int sixteen_bit = w->dtype == DT_F16 || w->dtype == DT_BF16;
    const uint8_t *in = w->data + (size_t)(panel * PANEL_ROWS) * w->row_nbytes + (size_t)(col / f->cols) * (size_t)f->nbytes;
    if (rows < PANEL_ROWS) memset(out, 0, (size_t)blocks * (size_t)f->nbytes * PANEL_ROWS);
    if (f->nbytes == 4) { /* one 32-bit field: a float32 or a pair of 16-bit floats */
        uint32_t *units = (uint32_t *)out;
        int64_t whole = sixteen_bit ? cols / 2 : cols;
        if (rows == PANEL_ROWS) transpose_u32(in, w->row_nbytes, whole, units, PANEL_ROWS);
        else
            for (int r = 0; r < rows; r++)
                for (int64_t u = 0; u < whole; u++)
                    memcpy(&units[u * PANEL_ROWS + r], in + (size_t)r * w->row_nbytes + 4 * (size_t)u, 4);
        if (whole < blocks) /* an odd last column: its partner is zero, and never multiplied */
            for (int r = 0; r < rows; r++) {
                uint16_t last;
                memcpy(&last, in + (size_t)r * w->row_nbytes + 4 * (size_t)whole, 2);
                units[whole * PANEL_ROWS + r] = last;
            }
        return;
    }
    for (int64_t b = 0; b < blocks; b++, in += f->nbytes)
        for (int g = 0; g < PANEL_ROWS; g += GROUP_ROWS) {
            int here = rows - g < GROUP_ROWS ? rows - g : GROUP_ROWS;
            transpose_fields(f, in + (size_t)g * w->row_nbytes, w->row_nbytes, here, out);
            recode_block(w->dtype, out);
            out += f->nbytes * GROUP_ROWS;
        }
}

static void k_to_panels(const pl_matrix *rows, uint8_t *out, int64_t first, int64_t last)
{
    for (int64_t p = first; p < last; p++) transpose_blocks(rows, p, 0, rows->cols, out + (size_t)p * panel_stride(rows));
}
