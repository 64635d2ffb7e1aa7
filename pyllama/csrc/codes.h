/* Quantized blocks as whole numbers: the codes of four columns in a row's four bytes, and float32 scales and minima.
 * Included by body.h.
 *
 * Everything reads panels. A 4-byte field of VL rows is one vector, and what nibbles or bits it holds are codes of
 * columns that lie a fixed distance apart: so a vector gives one of two runs of columns, A and B, at once. A `pair` is
 * such two runs of 16 or 32 columns; a unit is four columns of each.
 *
 * Codes are unsigned, the format's bias still in them; those of signed formats as vb_signed() makes them.
 */

/* Loops of units, pairs and vectors, whose arrays are meant for registers: but for scalar code, which has too few. */
#if VL > 1
#define UNROLL _Pragma("GCC unroll 8")
#else
#define UNROLL
#endif

/* A block's pairs: so many parts of it have `pairs_of` each, alike but for where they lie. Loops over parts run, loops
 * over pairs and units are unrolled. */
INLINE int block_cols(const pl_dtype t)
{
    return t == DT_Q2_K || t == DT_Q3_K || t == DT_Q4_K || t == DT_Q5_K || t == DT_Q6_K || t == DT_IQ4_XS ? 256 : 32;
}
/* Of pl_formats, where the compiler sees them. */
INLINE int block_nbytes(const pl_dtype t)
{
    static const int nbytes[DT_COUNT] = {
        [DT_Q4_0] = 18, [DT_Q4_1] = 20, [DT_Q5_0] = 22, [DT_Q5_1] = 24, [DT_Q8_0] = 34, [DT_Q2_K] = 84, [DT_Q3_K] = 110,
        [DT_Q4_K] = 144, [DT_Q5_K] = 176, [DT_Q6_K] = 210, [DT_IQ4_NL] = 18, [DT_IQ4_XS] = 136, [DT_MXFP4] = 17,
    };
    return nbytes[t];
}
INLINE int parts_of(const pl_dtype t)
{
    if (block_cols(t) == 32) return 1;
    return t == DT_IQ4_XS ? 8 : t == DT_Q4_K || t == DT_Q5_K ? 4 : 2;
}
INLINE int pairs_of(const pl_dtype t) { return t == DT_Q2_K || t == DT_Q3_K || t == DT_Q6_K ? 4 : 1; }
INLINE int units_of(const pl_dtype t) { return t == DT_Q4_K || t == DT_Q5_K ? 8 : 4; }

/* Columns that have one scale. */
INLINE int scale_cols(const pl_dtype t) { return t == DT_Q2_K || t == DT_Q3_K || t == DT_Q6_K ? 16 : 32; }
INLINE int has_minima(const pl_dtype t)
{
    return t == DT_Q4_1 || t == DT_Q5_1 || t == DT_Q2_K || t == DT_Q4_K || t == DT_Q5_K;
}
INLINE int bias_of(const pl_dtype t)
{
    switch (t) {
    case DT_Q3_K: return 4;
    case DT_Q4_0: return 8;
    case DT_Q5_0: return 16;
    case DT_Q6_K: return 32;
    case DT_Q8_0: case DT_IQ4_NL: case DT_IQ4_XS: case DT_MXFP4: return SIGNED_BIAS;
    default: return 0;
    }
}

/* Where the runs of a pair begin, in 16 columns. */
INLINE int run_a(const pl_dtype t, int part, const int pair)
{
    switch (t) {
    case DT_Q4_K: case DT_Q5_K: return 4 * part;
    case DT_Q6_K: return 8 * part + pair;                                    /* quarters 0 and 1 of a half */
    case DT_Q2_K: case DT_Q3_K: return 8 * part + 4 * (pair >> 1) + (pair & 1); /* quarters 0 or 2 */
    default: return 2 * part;
    }
}
INLINE int run_b(const pl_dtype t, int part, const int pair)
{
    switch (t) {
    case DT_Q6_K: return run_a(t, part, pair) + 4;
    case DT_Q2_K: case DT_Q3_K: case DT_Q4_K: case DT_Q5_K: return run_a(t, part, pair) + 2;
    default: return run_a(t, part, pair) + 1;
    }
}

/* Four-bit codes of unevenly spaced levels: ggml's kvalues_iq4nl, and the values of OCP's E2M1 doubled; each as a byte in
 * two's complement. */
static const uint8_t iq4_levels[16] = {129, 152, 173, 191, 207, 221, 234, 246, 1, 13, 25, 38, 53, 69, 89, 113};
static const uint8_t mxfp4_levels[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, 255, 254, 253, 252, 250, 248, 244};

INLINE vb_table levels_of(const pl_dtype t)
{
    return vb_load_table(t == DT_MXFP4 ? mxfp4_levels : iq4_levels);
}

/* The 4-byte field number n of the run that begins at byte `at` of a block, for the rows from p on. */
#define FIELD(at, n) (p + (size_t)(at) * GROUP_ROWS + (size_t)(n) * 4 * GROUP_ROWS)

/* Unit u of a pair's two runs; p is the block of a group of rows, 4 bytes on for each row that is left out. */
INLINE void pair_codes(const pl_dtype t, const uint8_t *p, int part, const int pair, const int u, vb_table levels, vb *a,
                       vb *b)
{
    vb q, h;
    (void)levels;
    switch (t) {
    case DT_Q4_0: case DT_Q4_1: case DT_Q4_K:
        q = vb_load(t == DT_Q4_0 ? FIELD(2, u) : t == DT_Q4_1 ? FIELD(4, u) : FIELD(16, 8 * part + u));
        *a = vb_low4(q);
        *b = vb_high4(q);
        return;
    case DT_Q5_0: case DT_Q5_1:
        q = vb_load(t == DT_Q5_0 ? FIELD(6, u) : FIELD(8, u));
        h = vb_load(t == DT_Q5_0 ? FIELD(2, 0) : FIELD(4, 0));
        *a = vb_or(vb_low4(q), vb_and(vb_bits(h, u), vb_set1(16)));
        *b = vb_or(vb_high4(q), vb_and(vb_bits(h, 4 + u), vb_set1(16)));
        return;
    case DT_Q5_K:
        q = vb_load(FIELD(48, 8 * part + u));
        h = vb_shr_by(vb_load(FIELD(16, u)), 2 * part); /* bit 2 * part + i of a byte is now its bit i */
        *a = vb_or(vb_low4(q), vb_and(vb_shl(h, 4), vb_set1(16)));
        *b = vb_or(vb_high4(q), vb_and(vb_shl(h, 3), vb_set1(16)));
        return;
    case DT_Q8_0:
        *a = vb_signed(vb_load(FIELD(2, u)));
        *b = vb_signed(vb_load(FIELD(2, 4 + u)));
        return;
    case DT_Q6_K: /* a half: 16 fields of ql, then 8 of qh */
        q = vb_load(FIELD(18 + 96 * part, 4 * pair + u));
        h = vb_load(FIELD(18 + 96 * part + 64, 4 * (pair & 1) + u));
        if (pair & 2) { /* quarters 1 and 3 */
            *a = vb_or(vb_low4(q), vb_and(vb_shl(h, 2), vb_set1(48)));
            *b = vb_or(vb_high4(q), vb_and(vb_shr(h, 2), vb_set1(48)));
        } else {
            *a = vb_or(vb_low4(q), vb_and(vb_shl(h, 4), vb_set1(48)));
            *b = vb_or(vb_high4(q), vb_and(h, vb_set1(48)));
        }
        return;
    case DT_Q2_K:
        q = vb_load(FIELD(20, 8 * part + 4 * (pair & 1) + u));
        if (pair & 2) q = vb_shr(q, 4); /* quarters 2 and 3 */
        *a = vb_and(q, vb_set1(3));
        *b = vb_and(vb_shr(q, 2), vb_set1(3));
        return;
    case DT_Q3_K:
        q = vb_load(FIELD(46, 8 * part + 4 * (pair & 1) + u));
        if (pair & 2) q = vb_shr(q, 4);
        h = vb_shr_by(vb_load(FIELD(14, 4 * (pair & 1) + u)), 4 * part + (pair & 2));
        *a = vb_or(vb_and(q, vb_set1(3)), vb_and(vb_shl(h, 2), vb_set1(4)));
        *b = vb_or(vb_and(vb_shr(q, 2), vb_set1(3)), vb_and(vb_shl(h, 1), vb_set1(4)));
        return;
    case DT_IQ4_NL: case DT_IQ4_XS: case DT_MXFP4:
        q = vb_load(t == DT_IQ4_NL ? FIELD(2, u) : t == DT_IQ4_XS ? FIELD(8, 4 * part + u) : FIELD(1, u));
        *a = vb_lookup(levels, vb_low4(q));
        *b = vb_lookup(levels, vb_high4(q));
        return;
    default: return;
    }
}

/* Scales and minima of a panel's rows over up to 256 columns. */
typedef struct {
    float d[PANEL_ROWS], dmin[PANEL_ROWS]; /* of a block of 256; dmin negated */
    float scale[16][PANEL_ROWS], min[16][PANEL_ROWS];
} block_scales;

#define HALF_FIELD(at) ((const uint16_t *)(p + (size_t)(at) * GROUP_ROWS))
INLINE void halves(const uint16_t *p, float *out)
{
    vf d[NG];
    load16_f16(p, d);
    EACH v_store(out + v * VL, d[v]);
}
/* Bytes 0 to 3 of VL rows' four bytes, less `bias`, as scales `first`, `first + step`, ... */
INLINE void put_scales(vi fields, const int bias, block_scales *s, int first, const int step, int r)
{
    UNROLL
    for (int i = 0; i < 4; i++) {
        vi byte = vi_byte(fields, i);
        v_store(s->scale[first + i * step] + r, vi_float(bias ? vi_sub(byte, vi_set1(bias)) : byte));
    }
}

/* Sum j of x's block, as what it stands for. */
INLINE float sum_of(const pl_d16 *x, const int narrow, int j) { return narrow ? x[j >> 1].half_sums[j & 1] : x[j].sum; }

/* Minimum number j of a block of 256: kept, or with one token multiplied and added at once. */
INLINE void take_min(vi value, int r, const int narrow, int j, block_scales *s, const int one, const pl_d16 *x, vf *mb)
{
    if (!one) v_store(s->min[j] + r, vi_float(value));
    else mb[r / VL] = v_fma(vi_float(value), v_set1(sum_of(x, narrow, j)), j ? mb[r / VL] : v_set1(0.0f));
}

/* Of a group of rows of one block, those from g on: number j of several of 32 columns, or the one of 256. For `one` token minima of the latter are not kept
 * but, times x, summed up in mb. */
INLINE void scales_of(const pl_dtype t, const uint8_t *p, const int g, int j, block_scales *s, const int one,
                      const pl_d16 *x, vf *mb)
{
    const vi fours = vi_set1(0x0f0f0f0f);
#define FOUR_BYTES(at, n) vi_load(FIELD(at, n) + 4 * v * VL)
    switch (t) {
    case DT_Q4_0: case DT_Q5_0: case DT_Q8_0: case DT_IQ4_NL: halves(HALF_FIELD(0), s->scale[j] + g); return;
    case DT_Q4_1: case DT_Q5_1:
        halves(HALF_FIELD(0), s->scale[j] + g);
        halves(HALF_FIELD(2), s->min[j] + g);
        return;
    case DT_MXFP4: /* 2^(e - 128), for the levels are doubled; that of 0 and 1 is subnormal */
        for (int r = 0; r < GROUP_ROWS; r++) {
            uint32_t bits = p[r] < 2 ? 0x00200000u << p[r] : (uint32_t)(p[r] - 1) << 23;
            memcpy(&s->scale[j][g + r], &bits, sizeof bits);
        }
        return;
    case DT_Q2_K: /* four bits of scale, four of minimum */
        halves(HALF_FIELD(0), s->d + g);
        halves(HALF_FIELD(2), s->dmin + g);
        EACH {
            UNROLL
            for (int n = 0; n < 4; n++) {
                const vi bytes = FOUR_BYTES(4, n), low = vi_and(bytes, fours), high = vi_and(vi_shr(bytes, 4), fours);
                put_scales(low, 0, s, 4 * n, 1, g + v * VL);
                UNROLL
                for (int i = 0; i < 4; i++) take_min(vi_byte(high, i), g + v * VL, 1, 4 * n + i, s, one, x, mb);
            }
        }
        break;
    case DT_Q3_K: /* 16 scales of 6 bits: the low 4 in 8 bytes' nibbles, the high 2 in the fours of 4 bytes, biased by 32 */
        halves(HALF_FIELD(0), s->d + g);
        EACH {
            const vi bytes[2] = {FOUR_BYTES(2, 0), FOUR_BYTES(2, 1)}, top = FOUR_BYTES(2, 2);
            UNROLL
            for (int n = 0; n < 4; n++) {
                const vi low = vi_and(n < 2 ? bytes[n & 1] : vi_shr(bytes[n & 1], 4), fours);
                const vi high = vi_shl(vi_and(vi_shr_by(top, 2 * n), vi_set1(0x03030303)), 4);
                put_scales(vi_or(low, high), 32, s, 4 * n, 1, g + v * VL);
            }
        }
        return;
    case DT_Q4_K: case DT_Q5_K: /* 8 scales and 8 minima of 6 bits in 12 bytes */
        halves(HALF_FIELD(0), s->d + g);
        halves(HALF_FIELD(2), s->dmin + g);
        EACH {
            const vi six = vi_set1(0x3f3f3f3f), two = vi_set1(0x30303030);
            const vi a = FOUR_BYTES(4, 0), b = FOUR_BYTES(4, 1), c = FOUR_BYTES(4, 2);
            const vi low = vi_and(b, six), high = vi_or(vi_and(vi_shr(c, 4), fours), vi_and(vi_shr(b, 2), two));
            put_scales(vi_and(a, six), 0, s, 0, 1, g + v * VL);
            put_scales(vi_or(vi_and(c, fours), vi_and(vi_shr(a, 2), two)), 0, s, 4, 1, g + v * VL);
            UNROLL
            for (int i = 0; i < 8; i++) take_min(vi_byte(i < 4 ? low : high, i & 3), g + v * VL, 0, i, s, one, x, mb);
        }
        break;
    case DT_Q6_K: /* 16 signed bytes */
        halves(HALF_FIELD(0), s->d + g);
        EACH {
            UNROLL
            for (int n = 0; n < 4; n++)
                put_scales(vi_xor(FOUR_BYTES(2, n), vi_set1((int32_t)0x80808080)), 128, s, 4 * n, 1, g + v * VL);
        }
        return;
    case DT_IQ4_XS: /* 8 scales of 6 bits, biased by 32: the low 4 in nibbles, the high 2 in a 16-bit field */
        halves(HALF_FIELD(0), s->d + g);
        EACH {
            const vi bytes = FOUR_BYTES(4, 0);
            put_scales(vi_and(bytes, fours), 32, s, 0, 2, g + v * VL);
            put_scales(vi_and(vi_shr(bytes, 4), fours), 32, s, 1, 2, g + v * VL);
        }
        for (int n = 0; n < 8; n++)
            for (int r = 0; r < GROUP_ROWS; r++) s->scale[n][g + r] += (float)((HALF_FIELD(2)[r] >> 2 * n & 3) << 4);
        return;
    default: return;
    }
    EACH v_store(s->dmin + g + v * VL, v_sub(v_set1(0.0f), v_load(s->dmin + g + v * VL)));
#undef FOUR_BYTES
}
