/* exp, RMSNorm, RoPE, SwiGLU and the cache's float16: everything that is not a product. Included by body.h. */
#include <math.h>

/* exp(x) by x = n ln2 + r, |r| <= ln2 / 2, and the Cephes polynomial for e^r (S. Moshier, expf); under 2 ulp.
 * 0 below -86.5, where results would turn subnormal; constant above 88. NaN stays NaN. */
INLINE vf v_exp(vf x)
{
    const vf round = v_set1(12582912.0f); /* 1.5 * 2^23: the sum's low mantissa bits are the nearest integer */
    vf y = v_max(v_set1(-86.5f), v_min(v_set1(88.0f), x));
    vf shifted = v_fma(y, v_set1(1.44269504088896341f), round);
    vf n = v_sub(shifted, round);
    vf r = v_fma(n, v_set1(-0.693359375f), y), p = v_set1(1.9875691500e-4f);
    r = v_fma(n, v_set1(2.12194440e-4f), r);
    p = v_fma(p, r, v_set1(1.3981999507e-3f));
    p = v_fma(p, r, v_set1(8.3334519073e-3f));
    p = v_fma(p, r, v_set1(4.1665795894e-2f));
    p = v_fma(p, r, v_set1(1.6666665459e-1f));
    p = v_fma(p, r, v_set1(5.0000001201e-1f));
    p = v_add(v_fma(p, v_mul(r, r), r), v_set1(1.0f));
    p = vi_as_float(vi_add(v_as_int(p), vi_shl(v_as_int(shifted), 23))); /* the shift drops round's own bits */
    return v_keep_ge(x, v_set1(-86.5f), p);
}

/* The last n < VL elements go through a padded vector, so that they see the same operations. */
INLINE vf load_tail(const float *p, int64_t n)
{
    float a[VL] = {0};
    memcpy(a, p, (size_t)n * sizeof(float));
    return v_load(a);
}
INLINE void store_tail(float *p, int64_t n, vf w)
{
    float a[VL];
    v_store(a, w);
    memcpy(p, a, (size_t)n * sizeof(float));
}
static float exp1(float x)
{
    float y;
    store_tail(&y, 1, v_exp(v_set1(x)));
    return y;
}

static void k_exp(const float *x, float *out, int64_t first, int64_t last)
{
    int64_t i = first;
    for (; i + VL <= last; i += VL) v_store(out + i, v_exp(v_load(x + i)));
    if (i < last) store_tail(out + i, last - i, v_exp(load_tail(x + i, last - i)));
}

INLINE vf v_swiglu(vf gate, vf up)
{
    vf e = v_exp(v_sub(v_set1(0.0f), gate));
    return v_mul(v_div(gate, v_add(v_set1(1.0f), e)), up);
}

static void k_swiglu(const float *gate, const float *up, float *out, int64_t first, int64_t last)
{
    int64_t i = first;
    for (; i + VL <= last; i += VL) v_store(out + i, v_swiglu(v_load(gate + i), v_load(up + i)));
    if (i < last) store_tail(out + i, last - i, v_swiglu(load_tail(gate + i, last - i), load_tail(up + i, last - i)));
}

/* out = g / (1 + exp(-(alpha * g))) * (u + 1) with g = min(gate, limit), u = max(-limit, min(limit, up)). */
INLINE vf v_clamped_swiglu(vf gate, vf up, vf alpha, vf limit)
{
    vf g = v_min(limit, gate), u = v_max(v_sub(v_set1(0.0f), limit), v_min(limit, up)), one = v_set1(1.0f);
    vf e = v_exp(v_sub(v_set1(0.0f), v_mul(alpha, g)));
    return v_mul(v_div(g, v_add(one, e)), v_add(u, one));
}

static void k_clamped_swiglu(const float *gate, const float *up, float alpha, float limit, float *out, int64_t first,
                             int64_t last)
{
    const vf a = v_set1(alpha), l = v_set1(limit);
    int64_t i = first;
    for (; i + VL <= last; i += VL) v_store(out + i, v_clamped_swiglu(v_load(gate + i), v_load(up + i), a, l));
    if (i < last)
        store_tail(out + i, last - i, v_clamped_swiglu(load_tail(gate + i, last - i), load_tail(up + i, last - i), a, l));
}

/* Of one token at a time, each element a chain of fused multiply-adds from 0 over the rows in their order. */
static void k_mix(const float *y, const int32_t *rows, const float *weights, int chosen, int64_t cols, float *out,
                  int64_t first, int64_t last)
{
    for (int64_t t = first; t < last; t++) {
        const int32_t *row = rows + t * chosen;
        const float *weight = weights + t * chosen;
        float *o = out + t * cols;
        int64_t c = 0;
        for (; c + VL <= cols; c += VL) {
            vf acc = v_set1(0.0f);
            for (int i = 0; i < chosen; i++)
                acc = v_fma(v_set1(weight[i]), v_load(y + row[i] * cols + c), acc);
            v_store(o + c, acc);
        }
        for (; c < cols; c++) {
            float acc = 0.0f;
            for (int i = 0; i < chosen; i++) acc = __builtin_fmaf(weight[i], y[row[i] * cols + c], acc);
            o[c] = acc;
        }
    }
}

/* tanh(x): below 0.625 an odd polynomial (S. Moshier, Cephes, tanhf), else 1 - 2 / (exp(2 |x|) + 1) with the sign of x; a
 * few ulp. NaN stays NaN. */
INLINE vf v_tanh(vf x)
{
    const vi sign = vi_and(v_as_int(x), vi_set1(INT32_MIN));
    const vf a = vi_as_float(vi_xor(v_as_int(x), sign)), one = v_set1(1.0f), z = v_mul(x, x);
    vf e = v_exp(v_add(a, a)), p = v_set1(-5.70498872745e-3f);
    p = v_fma(p, z, v_set1(2.06390887954e-2f));
    p = v_fma(p, z, v_set1(-5.37397155531e-2f));
    p = v_fma(p, z, v_set1(1.33314422036e-1f));
    p = v_fma(p, z, v_set1(-3.33332819422e-1f));
    const vf small = v_fma(v_mul(p, z), x, x), large = v_sub(one, v_div(v_set1(2.0f), v_add(e, one)));
    const vi far = v_as_int(v_keep_ge(a, v_set1(0.625f), vi_as_float(vi_set1(-1))));
    return vi_as_float(vi_or(vi_and(far, vi_or(v_as_int(large), sign)), vi_and(vi_xor(far, vi_set1(-1)), v_as_int(small))));
}

INLINE vf v_geglu(vf gate, vf up)
{
    /* tanh(u) = 2 / (1 + exp(-2u)) - 1, so (1 + tanh(u)) / 2 is 1 / (1 + exp(-2u)); 2 sqrt(2 / pi) is 1.5957691... */
    vf twice = v_mul(gate, v_fma(v_mul(gate, gate), v_set1(7.13548162726e-2f), v_set1(1.59576912161f)));
    vf e = v_exp(v_sub(v_set1(0.0f), twice));
    return v_mul(v_div(gate, v_add(v_set1(1.0f), e)), up);
}

static void k_geglu(const float *gate, const float *up, float *out, int64_t first, int64_t last)
{
    int64_t i = first;
    for (; i + VL <= last; i += VL) v_store(out + i, v_geglu(v_load(gate + i), v_load(up + i)));
    if (i < last) store_tail(out + i, last - i, v_geglu(load_tail(gate + i, last - i), load_tail(up + i, last - i)));
}

INLINE vf v_softcap(vf x, vf cap) { return v_mul(cap, v_tanh(v_div(x, cap))); }

static void k_softcap(const float *x, float cap, float *out, int64_t first, int64_t last)
{
    const vf c = v_set1(cap);
    int64_t i = first;
    for (; i + VL <= last; i += VL) v_store(out + i, v_softcap(v_load(x + i), c));
    if (i < last) store_tail(out + i, last - i, v_softcap(load_tail(x + i, last - i), c));
}

/* Sums run in PANEL_ROWS interleaved chains, added up in ascending order at the end. */
INLINE float sum_chains(const float *chains)
{
    float sum = chains[0];
    for (int i = 1; i < PANEL_ROWS; i++) sum += chains[i];
    return sum;
}

static void k_rmsnorm(const float *x, const float *weight, float eps, int64_t cols, float *out, int64_t first,
                      int64_t last)
{
    for (int64_t row = first; row < last; row++) {
        const float *in = x + row * cols;
        float *o = out + row * cols, chains[PANEL_ROWS];
        vf a[PANEL_ROWS / VL];
        int64_t c = 0;
        for (int v = 0; v < PANEL_ROWS / VL; v++) a[v] = v_set1(0.0f);
        for (; c + PANEL_ROWS <= cols; c += PANEL_ROWS)
            for (int v = 0; v < PANEL_ROWS / VL; v++) {
                vf e = v_load(in + c + v * VL);
                a[v] = v_fma(e, e, a[v]);
            }
        for (int v = 0; v < PANEL_ROWS / VL; v++) v_store(chains + v * VL, a[v]);
        for (int64_t i = 0; c + i < cols; i++) chains[i] = fmaf(in[c + i], in[c + i], chains[i]);
        float scale = 1.0f / sqrtf(sum_chains(chains) / (float)cols + eps);
        vf s = v_set1(scale);
        for (c = 0; c + VL <= cols; c += VL) v_store(o + c, v_mul(v_mul(v_load(in + c), s), v_load(weight + c)));
        for (; c < cols; c++) o[c] = in[c] * scale * weight[c];
    }
}

static void rotate(float *low, float *high, const float *cos, const float *sin, int n)
{
    int i = 0;
    for (; i + VL <= n; i += VL) {
        vf a = v_load(low + i), b = v_load(high + i), c = v_load(cos + i), s = v_load(sin + i);
        v_store(low + i, v_sub(v_mul(a, c), v_mul(b, s)));
        v_store(high + i, v_add(v_mul(b, c), v_mul(a, s)));
    }
    for (; i < n; i++) {
        float a = low[i], b = high[i];
        low[i] = a * cos[i] - b * sin[i];
        high[i] = b * cos[i] + a * sin[i];
    }
}

static void k_rope(float *x, const float *cos, const float *sin, int heads, int head_dim, int rotated, int interleaved,
                   int64_t first, int64_t last)
{
    int half = rotated / 2;
    for (int64_t t = first; t < last; t++)
        for (int h = 0; h < heads; h++) {
            float *head = x + ((size_t)t * (size_t)heads + (size_t)h) * (size_t)head_dim;
            if (interleaved) {
                float odd[MAX_HEAD_DIM / 2];
                for (int i = 0; i < half; i++) {
                    odd[i] = head[2 * i + 1];
                    head[i] = head[2 * i]; /* 2i >= i: never overwrites what is still to be read */
                }
                memcpy(head + half, odd, (size_t)half * sizeof(float));
            }
            rotate(head, head + half, cos + t * half, sin + t * half, half);
        }
}

/* float32 -> float16, to nearest even, saturated: an infinity in the cache would poison masked positions. */
static void narrow(const float *x, int64_t n, uint16_t *out)
{
    const vf top = v_set1(65504.0f), bottom = v_set1(-65504.0f);
    int64_t i = 0;
    for (; i + VL <= n; i += VL) v_store_f16(out + i, v_max(bottom, v_min(top, v_load(x + i))));
    if (i < n) {
        uint16_t tail[VL];
        v_store_f16(tail, v_max(bottom, v_min(top, load_tail(x + i, n - i))));
        memcpy(out + i, tail, (size_t)(n - i) * sizeof(uint16_t));
    }
}
