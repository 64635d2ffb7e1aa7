/* Activations -> 16-bit integers and one scale for 32 columns (MODEL.md, "Numerics", D16). Included by body.h. */

/* X of 32 columns, their scale and sums. The largest magnitude is found among bit patterns, where a NaN is larger than
 * all numbers: converted to an integer it would be another on each machine. */
INLINE void d16_of(const float *x, int32_t *whole, pl_d16 *out)
{
    enum { N = D16_COLS / VL };
    int32_t largest[VL], top = 0;
    vi most = vi_set1(0);
    for (int v = 0; v < N; v++) most = vi_max(most, vi_and(v_as_int(v_load(x + v * VL)), vi_set1(0x7fffffff)));
    vi_store(largest, most);
    for (int i = 0; i < VL; i++) top = largest[i] > top ? largest[i] : top;
    float a, scale = 0.0f;
    memcpy(&a, &top, sizeof a);
    if (top >= 0x7f800000 || a < 0x1p-90f) { /* infinity times 0 would be a NaN */
        if (top >= 0x7f800000) scale = __builtin_nanf("");
        memset(whole, 0, D16_COLS * sizeof *whole);
        *out = (pl_d16){.scale = scale, .sum = scale, .half_sums = {scale, scale}};
        return;
    }
    scale = a / (float)D16_TOP;
    const vf inverse = v_set1((float)D16_TOP / a);
    vi sums[2] = {vi_set1(0), vi_set1(0)};
    for (int v = 0; v < N; v++) {
        vi rounded = v_round(v_mul(v_load(x + v * VL), inverse));
        vi_store(whole + v * VL, rounded);
        sums[v * VL / 16] = vi_add(sums[v * VL / 16], rounded);
    }
    for (int h = 0; h < 2; h++) {
        int32_t each[VL];
        vi_store(each, sums[h]);
        out->totals[h] = 0;
        for (int i = 0; i < VL; i++) out->totals[h] += each[i];
        out->half_sums[h] = (float)out->totals[h] * scale;
    }
    out->scale = scale;
    out->total = out->totals[0] + out->totals[1];
    out->sum = (float)out->total * scale;
    out->unused = 0;
}

static void k_make_d16(const float *x, pl_form form, int64_t tokens, pl_d16 *out, int64_t first, int64_t last)
{
    for (int64_t b = first; b < last; b++) {
        int32_t whole[D16_COLS];
        d16_of(x + b * D16_COLS, whole, &out[b]);
        for (int h = 0; h < 2; h++) put_x(whole + 16 * h, form, tokens, out[b].codes[h]);
    }
}
