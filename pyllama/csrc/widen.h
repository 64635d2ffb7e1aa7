/* Stored weights -> float32, exactly as each format defines them. Included by body.h, once per isa.
 *
 * Everything reads panels: 32 rows side by side, so a field of 16 rows is one vector load and no lane ever
 * moves. The output is a tile, tile[c * PANEL_ROWS + r]. Products of a scale and a quant are exact in
 * float32 (11 + 8 bits at most, 25 for Q6_K, which rounds once as ggml does), so fma and mul-add agree.
 */
#define NG (GROUP_ROWS / VL)  /* vectors in a group of rows */
#define EACH for (int v = 0; v < NG; v++)

/* Row r of field run starting `bytes` into the block, for the group of rows starting at `g`. */
#define U8(bytes) (p + (size_t)(bytes) * PANEL_ROWS + g)
#define F16(bytes) ((const uint16_t *)(p + (size_t)(bytes) * PANEL_ROWS) + g)

INLINE void put(float *tile, int c, int g, const vf *w) { EACH v_store(tile + (size_t)c * PANEL_ROWS + g + v * VL, w[v]); }

/* w[r] = scale[r] * (q[r] - bias) */
INLINE void put_scaled(float *tile, int c, int g, const vi *q, int bias, const vf *scale)
{
    vf w[NG];
    EACH w[v] = v_mul(vi_float(vi_sub(q[v], vi_set1(bias))), scale[v]);
    put(tile, c, g, w);
}
/* w[r] = scale[r] * q[r] + offset[r] */
INLINE void put_affine(float *tile, int c, int g, const vi *q, const vf *scale, const vf *offset)
{
    vf w[NG];
    EACH w[v] = v_fma(vi_float(q[v]), scale[v], offset[v]);
    put(tile, c, g, w);
}
INLINE void low4(const vi *b, vi *q) { EACH q[v] = vi_and(b[v], vi_set1(15)); }
INLINE void high4(const vi *b, vi *q) { EACH q[v] = vi_shr(b[v], 4); }
/* q |= 1 << 4 where bit `bit` of b is set; bit is a constant */
#define FIFTH_BIT(b, bit, q) EACH q[v] = vi_or(q[v], vi_and(vi_shr(vi_shl(b[v], 8), (bit) + 4), vi_set1(16)))

static void widen_q4_0(const uint8_t *p, float *tile)
{
    for (int g = 0; g < PANEL_ROWS; g += GROUP_ROWS) {
        vf d[NG];
        vi b[NG], q[NG];
        load16_f16(F16(0), d);
        for (int i = 0; i < 16; i++) {
            load16_u8(U8(2 + i), b);
            low4(b, q);
            put_scaled(tile, i, g, q, 8, d);
            high4(b, q);
            put_scaled(tile, i + 16, g, q, 8, d);
        }
    }
}

static void widen_q4_1(const uint8_t *p, float *tile)
{
    for (int g = 0; g < PANEL_ROWS; g += GROUP_ROWS) {
        vf d[NG], m[NG];
        vi b[NG], q[NG];
        load16_f16(F16(0), d);
        load16_f16(F16(2), m);
        for (int i = 0; i < 16; i++) {
            load16_u8(U8(4 + i), b);
            low4(b, q);
            put_affine(tile, i, g, q, d, m);
            high4(b, q);
            put_affine(tile, i + 16, g, q, d, m);
        }
    }
}

/* Eight columns i..i+7 of the low half and their fifth bits; HALF 1: the high half. */
#define Q5_COLUMNS(QH, QS, PUT)                                                   \
    for (int half = 0; half < 2; half++)                                          \
        for (int i = 0; i < 16; i += 8) {                                         \
            load16_u8(U8((QH) + 2 * half + i / 8), h);                            \
            Q5_COLUMN(QS, 0, PUT) Q5_COLUMN(QS, 1, PUT) Q5_COLUMN(QS, 2, PUT)     \
            Q5_COLUMN(QS, 3, PUT) Q5_COLUMN(QS, 4, PUT) Q5_COLUMN(QS, 5, PUT)     \
            Q5_COLUMN(QS, 6, PUT) Q5_COLUMN(QS, 7, PUT)                           \
        }
#define Q5_COLUMN(QS, j, PUT)                                                     \
    load16_u8(U8((QS) + i + j), b);                                               \
    if (half) high4(b, q);                                                        \
    else low4(b, q);                                                              \
    FIFTH_BIT(h, j, q);                                                           \
    PUT(i + j + 16 * half);

static void widen_q5_0(const uint8_t *p, float *tile)
{
#define PUT(c) put_scaled(tile, c, g, q, 16, d)
    for (int g = 0; g < PANEL_ROWS; g += GROUP_ROWS) {
        vf d[NG];
        vi b[NG], q[NG], h[NG];
        load16_f16(F16(0), d);
        Q5_COLUMNS(2, 6, PUT)
    }
#undef PUT
}

static void widen_q5_1(const uint8_t *p, float *tile)
{
#define PUT(c) put_affine(tile, c, g, q, d, m)
    for (int g = 0; g < PANEL_ROWS; g += GROUP_ROWS) {
        vf d[NG], m[NG];
        vi b[NG], q[NG], h[NG];
        load16_f16(F16(0), d);
        load16_f16(F16(2), m);
        Q5_COLUMNS(4, 8, PUT)
    }
#undef PUT
}
#undef Q5_COLUMNS
#undef Q5_COLUMN

static void widen_q8_0(const uint8_t *p, float *tile)
{
    for (int g = 0; g < PANEL_ROWS; g += GROUP_ROWS) {
        vf d[NG];
        vi q[NG];
        load16_f16(F16(0), d);
        for (int i = 0; i < 32; i++) {
            load16_i8(U8(2 + i), q);
            put_scaled(tile, i, g, q, 0, d);
        }
    }
}

/* Two-bit quants: column l of a run of 16 at bit `shift` of qs[first + l]. */
#define TWO_BITS(first, shift)                                      \
    load16_u8(U8((first) + l), b);                                  \
    EACH q[v] = vi_and(vi_shr(b[v], shift), vi_set1(3));

static void widen_q2_k(const uint8_t *p, float *tile, int half)
{
    for (int g = 0; g < PANEL_ROWS; g += GROUP_ROWS) {
        vf d[NG], dmin[NG], scale[NG], offset[NG];
        vi b[NG], q[NG];
        load16_f16(F16(80), d);
        load16_f16(F16(82), dmin);
#define RUN(k, shift)                                                                                  \
    load16_u8(U8(8 * half + (k)), b);                                                                  \
    low4(b, q);                                                                                        \
    EACH scale[v] = v_mul(d[v], vi_float(q[v]));                                                       \
    high4(b, q);                                                                                       \
    EACH offset[v] = v_sub(v_set1(0.0f), v_mul(dmin[v], vi_float(q[v])));                              \
    for (int l = 0; l < 16; l++) {                                                                     \
        TWO_BITS(16 + 32 * half + 16 * ((k) & 1), shift)                                               \
        put_affine(tile, 16 * (k) + l, g, q, scale, offset);                                           \
    }
        RUN(0, 0) RUN(1, 0) RUN(2, 2) RUN(3, 2) RUN(4, 4) RUN(5, 4) RUN(6, 6) RUN(7, 6)
#undef RUN
    }
}

static void widen_q3_k(const uint8_t *p, float *tile, int half)
{
    for (int g = 0; g < PANEL_ROWS; g += GROUP_ROWS) {
        vf d[NG], scale[NG];
        vi b[NG], q[NG], s[NG], h[NG];
        load16_f16(F16(108), d);
        /* scale k of this half: 4 low bits in scales[k], 2 high bits in scales[8 + k % 4]; the second half's
         * lie in the upper bits of the same bytes */
#define RUN(k, shift)                                                                                          \
    load16_u8(U8(96 + (k)), b);                                                                                \
    load16_u8(U8(104 + ((k) & 3)), h);                                                                         \
    if (half) {                                                                                                \
        EACH s[v] = vi_or(vi_shr(b[v], 4), vi_shl(vi_and(vi_shr(h[v], 4 + 2 * ((k) / 4)), vi_set1(3)), 4));    \
    } else {                                                                                                   \
        EACH s[v] = vi_or(vi_and(b[v], vi_set1(15)), vi_shl(vi_and(vi_shr(h[v], 2 * ((k) / 4)), vi_set1(3)), 4)); \
    }                                                                                                          \
    EACH scale[v] = v_mul(d[v], vi_float(vi_sub(s[v], vi_set1(32))));                                          \
    for (int l = 0; l < 16; l++) {                                                                             \
        TWO_BITS(32 + 32 * half + 16 * ((k) & 1), shift)                                                       \
        load16_u8(U8(16 * ((k) & 1) + l), h);                                                                  \
        if (half) {                                                                                            \
            EACH q[v] = vi_or(q[v], vi_and(vi_shr(h[v], 2 + (shift) / 2), vi_set1(4)));                        \
        } else {                                                                                               \
            EACH q[v] = vi_or(q[v], vi_and(vi_shr(vi_shl(h[v], 2), (shift) / 2), vi_set1(4)));                 \
        }                                                                                                      \
        put_scaled(tile, 16 * (k) + l, g, q, 4, scale);                                                        \
    }
        RUN(0, 0) RUN(1, 0) RUN(2, 2) RUN(3, 2) RUN(4, 4) RUN(5, 4) RUN(6, 6) RUN(7, 6)
#undef RUN
    }
}
#undef TWO_BITS

/* The 6-bit scale and minimum of sub-block j (0..7) of Q4_K and Q5_K, packed in 12 bytes from `at`. */
#define SCALE_MIN(at, j)                                                                             \
    if ((j) < 4) {                                                                                   \
        load16_u8(U8((at) + (j)), b);                                                                \
        EACH scale[v] = v_mul(d[v], vi_float(vi_and(b[v], vi_set1(63))));                            \
        load16_u8(U8((at) + (j) + 4), b);                                                            \
        EACH offset[v] = v_mul(dmin[v], vi_float(vi_and(b[v], vi_set1(63))));                        \
    } else {                                                                                         \
        load16_u8(U8((at) + (j) + 4), b);                                                            \
        load16_u8(U8((at) + (j) - 4), h);                                                            \
        EACH scale[v] = v_mul(d[v], vi_float(vi_or(vi_and(b[v], vi_set1(15)), vi_shl(vi_shr(h[v], 6), 4)))); \
        load16_u8(U8((at) + (j)), h);                                                                \
        EACH offset[v] = v_mul(dmin[v], vi_float(vi_or(vi_shr(b[v], 4), vi_shl(vi_shr(h[v], 6), 4)))); \
    }                                                                                                \
    EACH offset[v] = v_sub(v_set1(0.0f), offset[v]);

static void widen_q4_k(const uint8_t *p, float *tile, int half)
{
    for (int g = 0; g < PANEL_ROWS; g += GROUP_ROWS) {
        vf d[NG], dmin[NG], scale[NG], offset[NG];
        vi b[NG], q[NG], h[NG];
        load16_f16(F16(0), d);
        load16_f16(F16(2), dmin);
        for (int k = 2 * half; k < 2 * half + 2; k++) { /* 64 columns each */
            float *out = tile + (size_t)(64 * (k & 1)) * PANEL_ROWS;
            SCALE_MIN(4, 2 * k)
            for (int l = 0; l < 32; l++) {
                load16_u8(U8(16 + 32 * k + l), b);
                low4(b, q);
                put_affine(out, l, g, q, scale, offset);
            }
            SCALE_MIN(4, 2 * k + 1)
            for (int l = 0; l < 32; l++) {
                load16_u8(U8(16 + 32 * k + l), b);
                high4(b, q);
                put_affine(out, 32 + l, g, q, scale, offset);
            }
        }
    }
}

static void widen_q5_k(const uint8_t *p, float *tile, int half)
{
    for (int g = 0; g < PANEL_ROWS; g += GROUP_ROWS) {
        vf d[NG], dmin[NG], scale[NG], offset[NG];
        vi b[NG], q[NG], h[NG];
        load16_f16(F16(0), d);
        load16_f16(F16(2), dmin);
#define RUN(k)                                                                          \
    SCALE_MIN(4, 2 * (k))                                                               \
    for (int l = 0; l < 32; l++) {                                                      \
        load16_u8(U8(48 + 32 * (k) + l), b);                                            \
        load16_u8(U8(16 + l), h);                                                       \
        low4(b, q);                                                                     \
        FIFTH_BIT(h, 2 * (k), q);                                                       \
        put_affine(tile, 64 * ((k) & 1) + l, g, q, scale, offset);                      \
    }                                                                                   \
    SCALE_MIN(4, 2 * (k) + 1)                                                           \
    for (int l = 0; l < 32; l++) {                                                      \
        load16_u8(U8(48 + 32 * (k) + l), b);                                            \
        load16_u8(U8(16 + l), h);                                                       \
        high4(b, q);                                                                    \
        FIFTH_BIT(h, 2 * (k) + 1, q);                                                   \
        put_affine(tile, 64 * ((k) & 1) + 32 + l, g, q, scale, offset);                 \
    }
        if (half) { RUN(2) RUN(3) } else { RUN(0) RUN(1) }
#undef RUN
    }
}
#undef SCALE_MIN

static void widen_q6_k(const uint8_t *p, float *tile, int half)
{
    for (int g = 0; g < PANEL_ROWS; g += GROUP_ROWS) {
        vf d[NG], scale[NG];
        vi b[NG], q[NG], h[NG];
        load16_f16(F16(208), d);
        /* quarter k: 32 columns, nibbles of ql[32 * (k & 1)...], bits 2k of qh, two scales */
#define RUN(k, NIBBLE)                                                                                      \
    for (int i = 0; i < 2; i++) {                                                                           \
        load16_i8(U8(192 + 8 * half + 2 * (k) + i), q);                                                     \
        EACH scale[v] = v_mul(d[v], vi_float(q[v]));                                                        \
        for (int l = 16 * i; l < 16 * i + 16; l++) {                                                        \
            load16_u8(U8(64 * half + 32 * ((k) & 1) + l), b);                                               \
            load16_u8(U8(128 + 32 * half + l), h);                                                          \
            NIBBLE(b, q);                                                                                   \
            EACH q[v] = vi_or(q[v], vi_shl(vi_and(vi_shr(h[v], 2 * (k)), vi_set1(3)), 4));                  \
            put_scaled(tile, 32 * (k) + l, g, q, 32, scale);                                                \
        }                                                                                                   \
    }
        RUN(0, low4) RUN(1, low4) RUN(2, high4) RUN(3, high4)
#undef RUN
    }
}

/* Four-bit codes of unevenly spaced levels: ggml's kvalues_iq4nl, each as a byte in two's complement. */
static const uint8_t iq4_levels[16] = {129, 152, 173, 191, 207, 221, 234, 246, 1, 13, 25, 38, 53, 69, 89, 113};

static void widen_iq4_nl(const uint8_t *p, float *tile)
{
    const packed_table levels = load_packed_table(iq4_levels);
    for (int g = 0; g < PANEL_ROWS; g += GROUP_ROWS) {
        vf d[NG];
        vi q[NG];
        load16_f16(F16(0), d);
        for (int i = 0; i < 16; i++) {
            load16_levels(U8(2 + i), 0, levels, q);
            put_scaled(tile, i, g, q, 0, d);
            load16_levels(U8(2 + i), 1, levels, q);
            put_scaled(tile, i + 16, g, q, 0, d);
        }
    }
}

static void widen_iq4_xs(const uint8_t *p, float *tile, int half)
{
    const packed_table levels = load_packed_table(iq4_levels);
    for (int g = 0; g < PANEL_ROWS; g += GROUP_ROWS) {
        vf d[NG], scale[NG];
        vi b[NG], q[NG], s[NG], h[NG];
        load16_f16(F16(0), d);
        load16_u8(U8(2 + half), h);
        /* sub-block k of this half, 32 columns: 4 low bits of its scale in the nibbles from byte 4 on, 2 high bits here */
#define RUN(k, NIBBLE)                                                                          \
    load16_u8(U8(4 + 2 * half + (k) / 2), b);                                                   \
    NIBBLE(b, s);                                                                               \
    EACH s[v] = vi_or(s[v], vi_shl(vi_and(vi_shr(h[v], 2 * (k)), vi_set1(3)), 4));              \
    EACH scale[v] = v_mul(d[v], vi_float(vi_sub(s[v], vi_set1(32))));                           \
    for (int i = 0; i < 16; i++) {                                                              \
        load16_levels(U8(8 + 64 * half + 16 * (k) + i), 0, levels, q);                          \
        put_scaled(tile, 32 * (k) + i, g, q, 0, scale);                                         \
        load16_levels(U8(8 + 64 * half + 16 * (k) + i), 1, levels, q);                          \
        put_scaled(tile, 32 * (k) + 16 + i, g, q, 0, scale);                                    \
    }
        RUN(0, low4) RUN(1, high4) RUN(2, low4) RUN(3, high4)
#undef RUN
    }
}

static void widen_pairs(pl_dtype dtype, const uint8_t *p, int64_t cols, float *tile)
{
    const uint32_t *pairs = (const uint32_t *)p;
    for (int64_t c = 0; c < cols; c += 2, pairs += PANEL_ROWS)
        for (int g = 0; g < PANEL_ROWS; g += GROUP_ROWS) {
            vf even[NG], odd[NG];
            if (dtype == DT_BF16) load16_bf16_pairs(pairs + g, even, odd);
            else load16_f16_pairs(pairs + g, even, odd);
            put(tile, (int)c, g, even);
            put(tile, (int)c + 1, g, odd);
        }
}

/* `cols` columns from panel blocks at p into tile; a segment begins on a multiple of SEGMENT_COLS, `half`
 * says which half of a 256-column block. F32 panels are tiles already. */
static const float *widen_segment(pl_dtype dtype, const uint8_t *p, int half, int64_t cols, float *tile)
{
    size_t step = (size_t)pl_formats[dtype].nbytes * PANEL_ROWS;
    switch (dtype) {
    case DT_F32: return (const float *)p;
    case DT_F16:
    case DT_BF16: widen_pairs(dtype, p, cols, tile); return tile;
#define SMALL(name, f) \
    case name: for (int64_t c = 0; c < cols; c += 32, p += step) f(p, tile + c * PANEL_ROWS); return tile;
    SMALL(DT_Q4_0, widen_q4_0)
    SMALL(DT_Q4_1, widen_q4_1)
    SMALL(DT_Q5_0, widen_q5_0)
    SMALL(DT_Q5_1, widen_q5_1)
    SMALL(DT_Q8_0, widen_q8_0)
    SMALL(DT_IQ4_NL, widen_iq4_nl)
#undef SMALL
    case DT_Q2_K: widen_q2_k(p, tile, half); return tile;
    case DT_Q3_K: widen_q3_k(p, tile, half); return tile;
    case DT_Q4_K: widen_q4_k(p, tile, half); return tile;
    case DT_Q5_K: widen_q5_k(p, tile, half); return tile;
    case DT_Q6_K: widen_q6_k(p, tile, half); return tile;
    case DT_IQ4_XS: widen_iq4_xs(p, tile, half); return tile;
    case DT_COUNT: break;
    }
    return tile;
}
#undef U8
#undef F16
