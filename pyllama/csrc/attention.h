/* Grouped-query attention over a paged cache. Included by body.h.
 *
 * A page holds PANEL_ROWS positions. Keys lie as a weight panel, (D, 32 positions); values as panels of 32
 * dimensions, (ceil(D / 32), 32 positions, 32 dimensions): so both products are those of product.h, with
 * queries for tokens, and a page is widened once for all the queries that share it, in registers for one alone.
 *
 * Canonical order: each aligned chunk of CHUNK_POSITIONS positions has its own softmax (scores scaled, the
 * maximum subtracted, sums in PANEL_ROWS chains) and its own product with the values; chunks are merged in
 * ascending order. A sink is a chunk before all others, of one position without a value. Which queries share a tile changes nothing: a position outside a query's range weighs 0.
 */

INLINE int padded(int head_dim) { return (head_dim + PANEL_ROWS - 1) / PANEL_ROWS * PANEL_ROWS; }

INLINE uint8_t *page_of(const pl_batch *b, int64_t token, int64_t position)
{
    return (uint8_t *)(uintptr_t)b->pool[b->pages[b->sequences[token] * b->max_pages + position / PANEL_ROWS]];
}

static void k_cache_append(const pl_attention *a, const float *k, const float *v, int64_t first, int64_t last)
{
    int D = a->head_dim, P = padded(D);
    for (int64_t w = first; w < last; w++) {
        int64_t t = a->batch->writes[w].token, slot = a->batch->positions[t] % PANEL_ROWS;
        uint8_t *page = (uint8_t *)(uintptr_t)a->batch->pool[a->batch->writes[w].page];
        for (int h = 0; h < a->kv_heads; h++) {
            const float *key = k + (t * a->kv_heads + h) * D, *value = v + (t * a->kv_heads + h) * D;
            size_t at_k = (size_t)h * (size_t)D * PANEL_ROWS + (size_t)slot, at_v = (size_t)h * (size_t)P * PANEL_ROWS;
            if (a->f16) {
                uint16_t half[MAX_HEAD_DIM], *kp = (uint16_t *)(page + a->k_offset) + at_k;
                uint16_t *vp = (uint16_t *)(page + a->v_offset) + at_v;
                narrow(key, D, half);
                for (int d = 0; d < D; d++) kp[d * PANEL_ROWS] = half[d];
                narrow(value, D, half);
                for (int d = 0; d < D; d += PANEL_ROWS)
                    memcpy(vp + (d + slot) * PANEL_ROWS, half + d, sizeof(uint16_t) * (size_t)(D - d < PANEL_ROWS ? D - d : PANEL_ROWS));
            } else {
                float *kp = (float *)(page + a->k_offset) + at_k, *vp = (float *)(page + a->v_offset) + at_v;
                for (int d = 0; d < D; d++) kp[d * PANEL_ROWS] = key[d];
                for (int d = 0; d < D; d += PANEL_ROWS)
                    memcpy(vp + (d + slot) * PANEL_ROWS, value + d, sizeof(float) * (size_t)(D - d < PANEL_ROWS ? D - d : PANEL_ROWS));
            }
        }
    }
}

/* This head's keys of a page, (D, 32 positions), and its values, (P / 32, 32 positions, 32 dimensions). */
INLINE const uint8_t *keys_at(const pl_attention *a, const pl_attention_item *item, int64_t position)
{
    size_t element = (size_t)item->kv_head * (size_t)a->head_dim * PANEL_ROWS;
    return page_of(a->batch, item->token, position) + a->k_offset + element * (a->f16 ? 2 : 4);
}
INLINE const uint8_t *values_at(const pl_attention *a, const pl_attention_item *item, int64_t position)
{
    size_t element = (size_t)item->kv_head * (size_t)padded(a->head_dim) * PANEL_ROWS;
    return page_of(a->batch, item->token, position) + a->v_offset + element * (a->f16 ? 2 : 4);
}

/* acc[i][r] (+)= sum_c p[c][r] * x[i][first + c], over (cols, PANEL_ROWS) numbers of the cache; x holds n queries of
 * ldx columns, packed as tokens are. float16 is widened into tile, unless there is one query, and as many bytes of `next`,
 * which lies where no hardware looks ahead, are asked for meanwhile. */
static void product_cache(int f16, const uint8_t *p, const uint8_t *next, int cols, const float *x, int ldx, int first,
                          int n, float *acc, int lda, int fresh, float *tile)
{
    if (f16 && n == 1) {
        product_halves((const uint16_t *)p, cols, x + first, acc, fresh, (const uint16_t *)next);
        return;
    }
    if (f16) {
        const uint16_t *from = (const uint16_t *)p, *end = from + cols * PANEL_ROWS;
        for (float *to = tile; from < end; from += PANEL_ROWS, to += PANEL_ROWS, next += 2 * PANEL_ROWS) {
            vf w[2][NG];
            prefetch_l2(next);
            for (int g = 0; g < 2; g++) load16_f16(from + g * GROUP_ROWS, w[g]);
            for (int g = 0; g < 2; g++) EACH v_store(to + g * GROUP_ROWS + v * VL, w[g][v]);
        }
    }
    for (int i = 0; i < n; i += TOKEN_TILE) {
        int width = n - i < TOKEN_TILE ? n - i : TOKEN_TILE;
        product(f16 ? tile : (const float *)p, cols, x + i * ldx + first * width, width, acc + i * lda, (size_t)lda, fresh);
    }
}

/* Scores of one query over [from, to) of a chunk -> weights, in place; outside [low, high) they are 0.
 * Returns the weights' sum and the maximum. */
static float softmax_chunk(float *s, int from, int to, int low, int high, float scale, float softcap, float *maximum)
{
    if (softcap != 0.0f) { /* first: a position that is not seen is -infinity, which has a tanh */
        for (int j = from; j < to; j += VL)
            v_store(s + j, v_softcap(v_mul(v_load(s + j), v_set1(scale)), v_set1(softcap)));
        scale = 1.0f;
    }
    const vf factor = v_set1(scale);
    float m = -INFINITY, lanes[VL], chains[PANEL_ROWS];
    vf top = v_set1(-INFINITY), sums[PANEL_ROWS / VL];
    for (int j = from; j < low; j++) s[j] = -INFINITY;
    for (int j = high; j < to; j++) s[j] = -INFINITY;
    for (int j = from; j < to; j += VL) {
        vf e = v_mul(v_load(s + j), factor);
        v_store(s + j, e);
        top = v_max(top, e);
    }
    v_store(lanes, top);
    for (int i = 0; i < VL; i++) m = lanes[i] > m ? lanes[i] : m;
    for (int v = 0; v < PANEL_ROWS / VL; v++) sums[v] = v_set1(0.0f);
    for (int j = from; j < to; j += PANEL_ROWS)
        for (int v = 0; v < PANEL_ROWS / VL; v++) {
            vf e = v_exp(v_sub(v_load(s + j + v * VL), v_set1(m)));
            v_store(s + j + v * VL, e);
            sums[v] = v_add(sums[v], e);
        }
    for (int v = 0; v < PANEL_ROWS / VL; v++) v_store(chains + v * VL, sums[v]);
    *maximum = m;
    return sum_chains(chains);
}

static void k_attend(const pl_attention *a, const pl_attention_item *item, const float *q, float *out, float *scratch)
{
    int D = a->head_dim, P = padded(D), n = item->tokens * item->heads;
    float *packed = scratch, *tile = packed + QUERY_TILE * D, *scores = tile + PANEL_ROWS * P;
    float *weights = scores + QUERY_TILE * CHUNK_POSITIONS, *part = weights + QUERY_TILE * CHUNK_POSITIONS;
    float *sum = part + QUERY_TILE * P;
    float maximum[QUERY_TILE], total[QUERY_TILE], part_maximum[QUERY_TILE], part_total[QUERY_TILE];
    int64_t position[QUERY_TILE], start[QUERY_TILE], begin = INT64_MAX, end = 0;

    for (int i = 0; i < n; i++) {
        int64_t t = item->token + i / item->heads;
        const float *in = q + (t * a->heads + item->head + i % item->heads) * D;
        int i0 = i / TOKEN_TILE * TOKEN_TILE, width = n - i0 < TOKEN_TILE ? n - i0 : TOKEN_TILE;
        for (int d = 0; d < D; d++) packed[i0 * D + d * width + i - i0] = in[d];
        position[i] = a->batch->positions[t];
        start[i] = a->window && position[i] >= a->window ? position[i] - a->window + 1 : 0;
        if (start[i] < begin) begin = start[i];
        if (position[i] >= end) end = position[i] + 1;
        total[i] = a->sinks ? 1.0f : 0.0f;
        maximum[i] = a->sinks ? a->sinks[item->head + i % item->heads] : -INFINITY;
        if (a->sinks) memset(sum + i * P, 0, (size_t)P * sizeof(float));
    }
    for (int64_t chunk = begin / CHUNK_POSITIONS * CHUNK_POSITIONS; chunk < end; chunk += CHUNK_POSITIONS) {
        int from = (int)(begin > chunk ? begin - chunk : 0) / PANEL_ROWS * PANEL_ROWS;
        int to = end - chunk < CHUNK_POSITIONS ? (int)(end - chunk + PANEL_ROWS - 1) / PANEL_ROWS * PANEL_ROWS : CHUNK_POSITIONS;
        for (int j = from; j < to; j += PANEL_ROWS) {
            int64_t at = chunk + j, after = at + PANEL_ROWS;
            const uint8_t *next = j + PANEL_ROWS < to ? keys_at(a, item, after) : values_at(a, item, chunk + from);
            product_cache(a->f16, keys_at(a, item, at), next, D, packed, D, 0, n, scores + j, CHUNK_POSITIONS, 1, tile);
        }
        for (int i = 0; i < n; i++) {
            int low = start[i] > chunk + from ? (int)(start[i] - chunk < to ? start[i] - chunk : to) : from;
            int high = position[i] + 1 < chunk + to ? (int)(position[i] + 1 > chunk + from ? position[i] + 1 - chunk : from) : to;
            int i0 = i / TOKEN_TILE * TOKEN_TILE, width = n - i0 < TOKEN_TILE ? n - i0 : TOKEN_TILE;
            float *s = scores + i * CHUNK_POSITIONS;
            if (low < high) part_total[i] = softmax_chunk(s, from, to, low, high, a->scale, a->softcap, &part_maximum[i]);
            else { /* none of this query's positions are here */
                part_total[i] = 0.0f;
                memset(s + from, 0, (size_t)(to - from) * sizeof(float));
            }
            for (int j = from; j < to; j++) weights[i0 * CHUNK_POSITIONS + j * width + i - i0] = s[j];
        }
        for (int j = from; j < to; j += PANEL_ROWS) {
            int64_t at = chunk + j, after = at + PANEL_ROWS;
            const uint8_t *values = values_at(a, item, at), *next = values;
            if (j + PANEL_ROWS < to) next = values_at(a, item, after);
            else if (after < end) next = keys_at(a, item, after);
            for (int d = 0; d < P; d += PANEL_ROWS) {
                int skip = d * PANEL_ROWS * (a->f16 ? 2 : 4);
                product_cache(a->f16, values + skip, next + skip, PANEL_ROWS, weights, CHUNK_POSITIONS, j, n, part + d, P,
                              j == from, tile);
            }
        }
        for (int i = 0; i < n; i++) {
            float *s = sum + i * P, *o = part + i * P;
            if (part_total[i] == 0.0f) continue;
            if (total[i] == 0.0f) {
                memcpy(s, o, (size_t)P * sizeof(float));
                maximum[i] = part_maximum[i];
                total[i] = part_total[i];
                continue;
            }
            float m = maximum[i] > part_maximum[i] ? maximum[i] : part_maximum[i];
            float old = exp1(maximum[i] - m), new = exp1(part_maximum[i] - m);
            for (int d = 0; d < P; d += VL)
                v_store(s + d, v_fma(v_load(s + d), v_set1(old), v_mul(v_load(o + d), v_set1(new))));
            total[i] = fmaf(total[i], old, part_total[i] * new);
            maximum[i] = m;
        }
    }
    for (int i = 0; i < n; i++) { /* + 0.0: whether a zero is negative depends on who shared the tile */
        int64_t t = item->token + i / item->heads;
        float *o = out + (t * a->heads + item->head + i % item->heads) * D;
        for (int d = 0; d < P; d += VL) {
            vf y = v_add(v_div(v_load(sum + i * P + d), v_set1(total[i])), v_set1(0.0f));
            if (d + VL <= D) v_store(o + d, y);
            else if (d < D) store_tail(o + d, D - d, y);
        }
    }
}
