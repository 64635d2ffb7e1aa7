/* Quantized blocks as whole numbers: the codes of four columns in a row's four bytes, and float32 scales and minima.
 * Included by body.h.
 *
 * Everything reads panels. A 4-byte field of VL rows is one vector, and what nibbles or bits it holds are codes of
 * columns that lie a fixed distance apart. Columns are counted by 32: unit u of those is four of them.
 *
 * Codes are unsigned, the format's bias still in them; those of signed formats as vb_signed() makes them.
 */

/* Loops of units, scales and vectors, whose arrays are meant for registers: but for scalar code, which has too few, and
 * a build with sanitizers (setup.py), whose checks would be repeated as well. */
#if VL > 1 && !defined(PL_NO_UNROLL)
#define UNROLL _Pragma("GCC unroll 16")
#else
#define UNROLL
#endif

/* pl_formats, where the compiler sees it. */
#define COLS(name, cols, ...) cols,
#define NBYTES(name, cols, nbytes, ...) nbytes,
INLINE int block_cols(const pl_dtype t)
{
    static const int cols[] = {PL_FORMATS(COLS)};
    return cols[t];
}
INLINE int block_nbytes(const pl_dtype t)
{
    static const int nbytes[] = {PL_FORMATS(NBYTES)};
    return nbytes[t];
}
#undef COLS
#undef NBYTES

/* Bits of a code. */
INLINE int code_bits(const pl_dtype t)
{
    switch (t) {
    case DT_Q5_0: case DT_Q5_1: case DT_Q5_K: return 5;
    case DT_Q6_K: return 6;
    default: return pl_form_of(t) == FORM_D16_8 ? 8 : 4;
    }
}

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

/* Four-bit codes of unevenly spaced levels: ggml's kvalues_iq4nl, and the values of OCP's E2M1 doubled; each as a byte in
 * two's complement. */
static const uint8_t iq4_levels[16] = {129, 152, 173, 191, 207, 221, 234, 246, 1, 13, 25, 38, 53, 69, 89, 113};
static const uint8_t mxfp4_levels[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, 255, 254, 253, 252, 250, 248, 244};

INLINE vb_table levels_of(const pl_dtype t)
{
    return vb_load_table(t == DT_MXFP4 ? mxfp4_levels : iq4_levels);
}

/* Fields of a block of GROUP_ROWS rows at p, for those from r on: the 4-byte one number n, or the 2-byte one, of the run
 * that begins at byte `at` of a row's block. */
#define FIELD(at, n) (p + (size_t)(at) * GROUP_ROWS + (size_t)(n) * 4 * GROUP_ROWS + 4 * r)
#define HALF_FIELD(at) ((const uint16_t *)(p + (size_t)(at) * GROUP_ROWS) + r)

/* Bits [from, from + width) of each byte of a, moved to begin at bit `to`. */
INLINE vb bits_to(vb a, const int from, const int width, const int to)
{
    return vb_and(from < to ? vb_shl(a, to - from) : vb_shr(a, from - to), vb_set1(((1 << width) - 1) << to));
}

/* The fields that codes of one unit are made of: q has most of their bits, h the highest. */
typedef struct {
    vb q, h;
} unit_fields;

/* Those of unit u of columns [32 * b, 32 * b + 32). */
INLINE unit_fields load_unit(const pl_dtype t, const uint8_t *p, int r, const int b, const int u)
{
    const int half = b >> 2; /* of a block of 256 */
    unit_fields f = {vb_set1(0), vb_set1(0)};
    switch (t) {
    case DT_Q4_0: case DT_Q4_1: case DT_IQ4_NL: case DT_MXFP4: f.q = vb_load(FIELD(block_nbytes(t) - 16, u & 3)); break;
    case DT_Q5_0: case DT_Q5_1: /* bit u of h's bytes is unit u's: recode_block() */
        f.q = vb_load(FIELD(block_nbytes(t) - 16, u & 3));
        f.h = vb_load(FIELD(block_nbytes(t) - 20, 0));
        break;
    case DT_Q8_0: f.q = vb_load(FIELD(2, u)); break;
    case DT_Q4_K: f.q = vb_load(FIELD(16, 8 * (b >> 1) + u)); break;
    case DT_Q5_K:
        f.q = vb_load(FIELD(48, 8 * (b >> 1) + u));
        f.h = vb_load(FIELD(16, u));
        break;
    case DT_Q6_K: /* three of four codes have bytes of their own, in whose top bits the fourth is: recode_block() */
        f.q = vb_load(FIELD(18 + 96 * half, 8 * (b & 3) % 24 + u));
        if ((b & 3) == 3) f.q = vb_tops(f.q, vb_load(FIELD(18 + 96 * half, 8 + u)), vb_load(FIELD(18 + 96 * half, 16 + u)));
        break;
    case DT_Q2_K: f.q = vb_load(FIELD(20, 8 * half + u)); break;
    case DT_Q3_K:
        f.q = vb_load(FIELD(46, 8 * half + u));
        f.h = vb_load(FIELD(14, u));
        break;
    case DT_IQ4_XS: f.q = vb_load(FIELD(8, 4 * b + (u & 3))); break;
    default: break;
    }
    return f;
}
INLINE vb unit_codes(const pl_dtype t, unit_fields f, const int b, const int u, vb_table levels)
{
    const int quarter = b & 3; /* of 128 columns */
    (void)levels;
    switch (t) {
    case DT_Q4_0: case DT_Q4_1: return u & 4 ? vb_high4(f.q) : vb_low4(f.q);
    case DT_Q5_0: case DT_Q5_1: return vb_or(u & 4 ? vb_high4(f.q) : vb_low4(f.q), bits_to(f.h, u, 1, 4));
    case DT_IQ4_NL: case DT_IQ4_XS: case DT_MXFP4: return vb_lookup(levels, u & 4 ? vb_high4(f.q) : vb_low4(f.q));
    case DT_Q8_0: return vb_signed(f.q);
    case DT_Q4_K: return b & 1 ? vb_high4(f.q) : vb_low4(f.q);
    case DT_Q5_K: return vb_or(b & 1 ? vb_high4(f.q) : vb_low4(f.q), bits_to(f.h, b, 1, 4));
    case DT_Q6_K: return quarter == 3 ? f.q : vb_and(f.q, vb_set1(63));
    case DT_Q2_K: return bits_to(f.q, 2 * quarter, 2, 0);
    case DT_Q3_K: return vb_or(bits_to(f.q, 2 * quarter, 2, 0), bits_to(f.h, b, 1, 2));
    default: return f.q;
    }
}

/* The scale of a block of 32. */
INLINE vf block_scale(const pl_dtype t, const uint8_t *p, int r)
{
    if (t != DT_MXFP4) return v_load_f16(HALF_FIELD(0));
    float scale[VL];
    for (int i = 0; i < VL; i++) { /* 2^(e - 128), for the levels are doubled; that of 0 and 1 is subnormal */
        const int e = p[r + i];
        const uint32_t bits = e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23;
        memcpy(&scale[i], &bits, sizeof bits);
    }
    return v_load(scale);
}

/* Of a block of 256: what scales and minima are multiplied by. */
INLINE vf super_scale(const uint8_t *p, int r) { return v_load_f16(HALF_FIELD(0)); }
INLINE vf super_min(const uint8_t *p, int r) { return v_sub(v_set1(0.0f), v_load_f16(HALF_FIELD(2))); } /* negated */

/* Its scales 4 * n to 4 * n + 3, a byte each, and what these still have to lose. */
INLINE int scale_bias(const pl_dtype t) { return t == DT_Q6_K ? 128 : t == DT_Q3_K || t == DT_IQ4_XS ? 32 : 0; }
INLINE vi scale_bytes(const pl_dtype t, const uint8_t *p, int r, const int n)
{
    const vi fours = vi_set1(0x0f0f0f0f), twos = vi_set1(0x03030303);
    vi low, high;
    switch (t) {
    case DT_Q2_K: return vi_and(vi_load(FIELD(4, n)), fours); /* four bits of scale, four of minimum */
    case DT_Q3_K: /* 16 of 6 bits: the low 4 in 8 bytes' nibbles, the high 2 in the fours of 4 bytes */
        low = vi_and(vi_shr(vi_load(FIELD(2, n & 1)), n & 2 ? 4 : 0), fours);
        return vi_or(low, vi_shl(vi_and(vi_shr(vi_load(FIELD(2, 2)), 2 * n), twos), 4));
    case DT_Q4_K: case DT_Q5_K: /* 8, and 8 minima, of 6 bits in 12 bytes */
        low = vi_load(FIELD(4, 0));
        if (n == 0) return vi_and(low, vi_set1(0x3f3f3f3f));
        return vi_six(vi_and(vi_load(FIELD(4, 2)), fours), low);
    case DT_Q6_K: return vi_xor(vi_load(FIELD(2, n)), vi_set1((int32_t)0x80808080)); /* 16 signed bytes */
    case DT_IQ4_XS: /* 8 of 6 bits: the low 4 in 8 nibbles, the high 2 in the twos of a 16-bit field */
        low = vi_and(vi_shr(vi_load(FIELD(4, 0)), 16 * n), vi_set1(0xffff));
        low = vi_and(vi_or(low, vi_shl(low, 8)), vi_set1(0x00ff00ff));
        high = vi_and(vi_shr(vi_load_u16(HALF_FIELD(2)), 8 * n), vi_set1(0xff));
        high = vi_and(vi_or(high, vi_shl(high, 12)), vi_set1(0x000f000f));
        high = vi_and(vi_or(high, vi_shl(high, 6)), twos);
        return vi_or(vi_and(vi_or(low, vi_shl(low, 4)), fours), vi_shl(high, 4));
    default: return fours;
    }
}
/* Its minima, likewise. */
INLINE vi min_bytes(const pl_dtype t, const uint8_t *p, int r, const int n)
{
    if (t == DT_Q2_K) return vi_nibbles(vi_load(FIELD(4, n)));
    const vi b = vi_load(FIELD(4, 1));
    if (n == 0) return vi_and(b, vi_set1(0x3f3f3f3f));
    return vi_six(vi_nibbles(vi_load(FIELD(4, 2))), b);
}
/* Byte i of each lane, less `bias`. */
INLINE vf byte_float(vi bytes, const int i, const int bias)
{
    const vi byte = vi_byte(bytes, i);
    return vi_float(bias ? vi_sub(byte, vi_set1(bias)) : byte);
}

/* Scales and minima of a panel's rows over up to 256 columns. */
typedef struct {
    float d[PANEL_ROWS], dmin[PANEL_ROWS]; /* of a block of 256; dmin negated */
    float scale[16][PANEL_ROWS], min[16][PANEL_ROWS];
} block_scales;

/* Those of a block of the group of rows at p, which begins at row g: number j of several of 32 columns, or the one of 256. */
INLINE void scales_of(const pl_dtype t, const uint8_t *p, const int g, int j, block_scales *s)
{
    for (int r = 0; r < GROUP_ROWS; r += VL) {
        if (block_cols(t) == 32) {
            v_store(s->scale[j] + g + r, block_scale(t, p, r));
            if (has_minima(t)) v_store(s->min[j] + g + r, v_load_f16(HALF_FIELD(2)));
            continue;
        }
        v_store(s->d + g + r, super_scale(p, r));
        if (has_minima(t)) v_store(s->dmin + g + r, super_min(p, r));
        UNROLL
        for (int n = 0; n < BLOCK_COLS / 4 / scale_cols(t); n++) {
            const vi bytes = scale_bytes(t, p, r, n), least = has_minima(t) ? min_bytes(t, p, r, n) : bytes;
            UNROLL
            for (int i = 0; i < 4; i++) {
                v_store(s->scale[4 * n + i] + g + r, byte_float(bytes, i, scale_bias(t)));
                if (has_minima(t)) v_store(s->min[4 * n + i] + g + r, byte_float(least, i, 0));
            }
        }
    }
}
