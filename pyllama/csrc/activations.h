/* Activations -> 16-bit integers and one scale for 32 columns (MODEL.md, "Numerics", D16). Included by body.h. */

/* X of 32 columns, their scale and sums. The largest magnitude is found among bit patterns, where a NaN is larger than
 * all numbers: converted to an integer it would be another on each machine. */
INLINE void d16_of(const float *x, int32_t *whole, pl_d16 *out)
{
    int32_t bits[D16_COLS], top = 0;
    memcpy(bits, x, sizeof bits);
    for (int c = 0; c < D16_COLS; c++) {
        int32_t magnitude = bits[c] & 0x7fffffff;
        top = magnitude > top ? magnitude : top;
    }
    float largest, scale = 0.0f, inverse = 0.0f;
    memcpy(&largest, &top, sizeof largest);
    const int number = top < 0x7f800000, counts = number && largest >= 0x1p-90f;
    if (counts) {
        scale = largest / (float)D16_TOP;
        inverse = (float)D16_TOP / largest;
    }
    for (int c = 0; c < D16_COLS; c++) {
        float kept = counts ? x[c] : 0.0f; /* infinity times 0 would be a NaN */
        whole[c] = (int32_t)rintf(kept * inverse);
    }
    int32_t totals[2] = {0, 0};
    for (int c = 0; c < 16; c++) {
        totals[0] += whole[c];
        totals[1] += whole[16 + c];
    }
    if (!number) scale = __builtin_nanf("");
    out->scale = scale;
    out->total = totals[0] + totals[1];
    out->sum = (float)out->total * scale;
    for (int h = 0; h < 2; h++) {
        out->totals[h] = totals[h];
        out->half_sums[h] = (float)totals[h] * scale;
    }
    out->unused = 0;
}

static void k_make_d16(const float *x, int64_t tokens, pl_d16 *out, int64_t first, int64_t last)
{
    for (int64_t b = first; b < last; b++) {
        int32_t whole[D16_COLS];
        d16_of(x + b * D16_COLS, whole, &out[b]);
        for (int h = 0; h < 2; h++) put_x(whole + 16 * h, tokens, out[b].codes[h]);
    }
}
