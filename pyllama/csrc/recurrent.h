/* Layers that carry a state from token to token: short convolutions and the gated delta rule. Included by body.h.
 *
 * A pass walks each text's steps in order, from the state before it; after the steps that the walk names, the state is put
 * into slots. Texts that share steps walk them each by themselves: from equal states and inputs come equal bits. */

INLINE vf load_some(const float *p, int64_t n) { return n >= VL ? v_load(p) : load_tail(p, n); }
INLINE void store_some(float *p, int64_t n, vf a)
{
    if (n >= VL) v_store(p, a);
    else store_tail(p, n, a);
}

static void k_conv(const pl_walk *w, const pl_conv *c, int64_t first, int64_t last)
{
    const int before = c->width - 1;
    const int64_t n = last - first;
    const float *weight = c->weight + first;
    float past[MAX_CONV - 1][CONV_CHANNELS] = {{0}}; /* the inputs before, of which `oldest` is the first */
    for (int64_t text = 0; text < w->texts; text++) {
        const int32_t source = w->sources[text];
        int32_t store = w->store_starts[text];
        int oldest = 0;
        for (int j = 0; j < before; j++) {
            if (source < 0) memset(past[j], 0, sizeof past[j]);
            else memcpy(past[j], (const float *)w->slots[source] + c->offset + j * c->stride + first, (size_t)n * sizeof(float));
        }
        for (int32_t i = w->starts[text]; i < w->starts[text + 1]; i++) {
            const float *in = c->x + w->steps[i] * c->stride_x + first;
            float *out = c->out + w->steps[i] * c->channels + first;
            for (int64_t v = 0; v < n; v += VL) {
                vf acc = v_set1(0.0f);
                for (int j = 0; j < before; j++) {
                    const int at = oldest + j < before ? oldest + j : oldest + j - before;
                    acc = v_fma(load_some(weight + j * c->channels + v, n - v), v_load(past[at] + v), acc);
                }
                acc = v_fma(load_some(weight + before * c->channels + v, n - v), load_some(in + v, n - v), acc);
                if (c->bias) acc = v_add(acc, load_some(c->bias + first + v, n - v));
                if (c->silu) acc = v_div(acc, v_add(v_set1(1.0f), v_exp(v_sub(v_set1(0.0f), acc))));
                store_some(out + v, n - v, acc);
            }
            memcpy(past[oldest], in, (size_t)n * sizeof(float));
            oldest = oldest + 1 < before ? oldest + 1 : 0;
            for (; store < w->store_starts[text + 1] && w->stores[store].step == i; store++)
                for (int j = 0; j < before; j++) {
                    const int at = oldest + j < before ? oldest + j : oldest + j - before;
                    memcpy((float *)w->slots[w->stores[store].slot] + c->offset + j * c->stride + first, past[at],
                           (size_t)n * sizeof(float));
                }
        }
    }
}

/* out = x / (1 + exp(-gate)), elementwise over [first, last). */
INLINE vf v_sigmoid_gate(vf x, vf gate)
{
    return v_div(x, v_add(v_set1(1.0f), v_exp(v_sub(v_set1(0.0f), gate))));
}

static void k_sigmoid_gate(const float *x, const float *gate, float *out, int64_t first, int64_t last)
{
    int64_t i = first;
    for (; i + VL <= last; i += VL) v_store(out + i, v_sigmoid_gate(v_load(x + i), v_load(gate + i)));
    if (i < last) store_tail(out + i, last - i, v_sigmoid_gate(load_tail(x + i, last - i), load_tail(gate + i, last - i)));
}

/* One token and PANEL_ROWS value columns: S = decay S; S += k (beta (v - k S)); out = q S. Every column is two chains of
 * fused multiply-adds over ascending rows of S, from 0. */
INLINE void delta_step(float *s, int rows, const float *q, const float *k, const float *v, float decay, float beta, float *out)
{
    enum { NV = PANEL_ROWS / VL };
    const vf kept = v_set1(decay), rate = v_set1(beta);
    vf acc[NV], delta[NV];
    for (int i = 0; i < NV; i++) acc[i] = v_set1(0.0f);
    for (int r = 0; r < rows; r++) {
        const vf key = v_set1(k[r]);
        float *row = s + r * PANEL_ROWS;
        for (int i = 0; i < NV; i++) {
            const vf x = v_mul(v_load(row + i * VL), kept);
            v_store(row + i * VL, x);
            acc[i] = v_fma(key, x, acc[i]);
        }
    }
    for (int i = 0; i < NV; i++) {
        delta[i] = v_mul(rate, v_sub(v_load(v + i * VL), acc[i]));
        acc[i] = v_set1(0.0f);
    }
    for (int r = 0; r < rows; r++) {
        const vf key = v_set1(k[r]), query = v_set1(q[r]);
        float *row = s + r * PANEL_ROWS;
        for (int i = 0; i < NV; i++) {
            const vf x = v_fma(key, delta[i], v_load(row + i * VL));
            v_store(row + i * VL, x);
            acc[i] = v_fma(query, x, acc[i]);
        }
    }
    for (int i = 0; i < NV; i++) v_store(out + i * VL, acc[i]);
}

static void k_delta(const pl_walk *w, const pl_delta *d, float *s, int64_t first, int64_t last)
{
    const int64_t blocks = (d->value_dim + PANEL_ROWS - 1) / PANEL_ROWS, size = (int64_t)d->key_dim * PANEL_ROWS;
    for (int64_t item = first; item < last; item++) {
        const int64_t head = item / blocks, column = item % blocks * PANEL_ROWS;
        const int64_t key_head = d->tiled ? head % d->key_heads : head / (d->value_heads / d->key_heads);
        const int64_t columns = d->value_dim - column < PANEL_ROWS ? d->value_dim - column : PANEL_ROWS;
        for (int64_t text = 0; text < w->texts; text++) {
            const int32_t source = w->sources[text];
            int32_t store = w->store_starts[text];
            if (source < 0) memset(s, 0, (size_t)size * sizeof(float));
            else memcpy(s, (const float *)w->slots[source] + d->offset + item * size, (size_t)size * sizeof(float));
            for (int32_t i = w->starts[text]; i < w->starts[text + 1]; i++) {
                const int64_t row = w->steps[i], at = (row * d->value_heads + head) * d->value_dim + column;
                const int64_t key = (row * d->key_heads + key_head) * d->key_dim, gate = row * d->value_heads + head;
                float v[PANEL_ROWS] = {0}, out[PANEL_ROWS];
                memcpy(v, d->v + at, (size_t)columns * sizeof(float));
                delta_step(s, d->key_dim, d->q + key, d->k + key, v, d->decay[gate], d->beta[gate], out);
                memcpy(d->out + at, out, (size_t)columns * sizeof(float));
                for (; store < w->store_starts[text + 1] && w->stores[store].step == i; store++)
                    memcpy((float *)w->slots[w->stores[store].slot] + d->offset + item * size, s, (size_t)size * sizeof(float));
            }
        }
    }
}
