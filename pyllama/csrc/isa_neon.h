/* The vector vocabulary on NEON: four lanes, nothing beyond ARMv8.0 but, where PL_DOTPROD is defined, products of bytes. */
#include <arm_neon.h>
#include <string.h>

#ifdef PL_DOTPROD
#define ISA_NAME "dotprod"
#else
#define ISA_NAME "neon"
#endif
#define VL 4
#define INLINE static inline __attribute__((always_inline))

typedef float32x4_t vf;
typedef int32x4_t vi;

INLINE vf v_load(const float *p) { return vld1q_f32(p); }
INLINE void v_store(float *p, vf a) { vst1q_f32(p, a); }
INLINE vf v_set1(float a) { return vdupq_n_f32(a); }
INLINE vf v_add(vf a, vf b) { return vaddq_f32(a, b); }
INLINE vf v_sub(vf a, vf b) { return vsubq_f32(a, b); }
INLINE vf v_mul(vf a, vf b) { return vmulq_f32(a, b); }
INLINE vf v_div(vf a, vf b) { return vdivq_f32(a, b); }
INLINE vf v_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
INLINE vf v_max(vf a, vf b) { return vmaxq_f32(a, b); }
INLINE vf v_min(vf a, vf b) { return vminq_f32(a, b); }
INLINE vf v_keep_ge(vf a, vf limit, vf b)
{
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(b), vcltq_f32(a, limit)));
}

INLINE vi vi_set1(int32_t a) { return vdupq_n_s32(a); }
INLINE vi vi_and(vi a, vi b) { return vandq_s32(a, b); }
INLINE vi vi_or(vi a, vi b) { return vorrq_s32(a, b); }
INLINE vi vi_add(vi a, vi b) { return vaddq_s32(a, b); }
INLINE vi vi_sub(vi a, vi b) { return vsubq_s32(a, b); }
INLINE vi vi_shl(vi a, int n) { return (vi)((uint32x4_t)a << n); }
INLINE vi vi_shr(vi a, int n) { return (vi)((uint32x4_t)a >> n); }
INLINE vi vi_max(vi a, vi b) { return vmaxq_s32(a, b); }
INLINE void vi_store(int32_t *p, vi a) { vst1q_s32(p, a); }
INLINE vi v_round(vf a) { return vcvtnq_s32_f32(a); }
INLINE vi vi_xor(vi a, vi b) { return veorq_s32(a, b); }
/* Each byte's upper four bits. */
INLINE vi vi_nibbles(vi a) { return vreinterpretq_s32_u8(vshrq_n_u8(vreinterpretq_u8_s32(a), 4)); }
/* Bytes of six bits: four of `low`, whose others are 0, and above them the top two of `tops`. */
INLINE vi vi_six(vi low, vi tops)
{
    const uint8x16_t two = vshrq_n_u8(vreinterpretq_u8_s32(tops), 6);
    return vreinterpretq_s32_u8(vsliq_n_u8(vreinterpretq_u8_s32(low), two, 4));
}
INLINE vi vi_byte(vi a, const int i)
{
    if (i == 3) return vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(a), 24));
    const uint8_t b = (uint8_t)i;
    const uint8x16_t lanes = {b, 255, 255, 255, (uint8_t)(4 + b), 255, 255, 255, (uint8_t)(8 + b), 255, 255, 255,
                              (uint8_t)(12 + b), 255, 255, 255};
    return vreinterpretq_s32_u8(vqtbl1q_u8(vreinterpretq_u8_s32(a), lanes));
}
INLINE vi vi_load(const uint8_t *p) { return vreinterpretq_s32_u8(vld1q_u8(p)); }
INLINE vi vi_load_u16(const uint16_t *p) { return vreinterpretq_s32_u32(vmovl_u16(vld1_u16(p))); }
INLINE vf vi_float(vi a) { return vcvtq_f32_s32(a); }
INLINE vf vi_as_float(vi a) { return vreinterpretq_f32_s32(a); }
INLINE vi v_as_int(vf a) { return vreinterpretq_s32_f32(a); }

/* SHL and BIC-like AND: one operation each, where ZIP costs three on the Cortex-A72. */
INLINE void load16_bf16_pairs(const uint32_t *p, vf *even, vf *odd)
{
    const uint32x4_t high = vdupq_n_u32(0xffff0000u);
    for (int v = 0; v < 4; v++) {
        uint32x4_t pair = vld1q_u32(p + 4 * v);
        even[v] = vreinterpretq_f32_u32(vshlq_n_u32(pair, 16));
        odd[v] = vreinterpretq_f32_u32(vandq_u32(pair, high));
    }
}
INLINE void load16_f16_pairs(const uint32_t *p, vf *even, vf *odd)
{
    for (int v = 0; v < 4; v += 2) {
        uint16x8_t a = vld1q_u16((const uint16_t *)(p + 4 * v)), b = vld1q_u16((const uint16_t *)(p + 4 * v + 4));
        float16x8_t e = vreinterpretq_f16_u16(vuzp1q_u16(a, b)), o = vreinterpretq_f16_u16(vuzp2q_u16(a, b));
        even[v] = vcvt_f32_f16(vget_low_f16(e));
        even[v + 1] = vcvt_high_f32_f16(e);
        odd[v] = vcvt_f32_f16(vget_low_f16(o));
        odd[v + 1] = vcvt_high_f32_f16(o);
    }
}
INLINE vf v_load_f16(const uint16_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
INLINE void load16_f16(const uint16_t *p, vf *w)
{
    for (int v = 0; v < 4; v += 2) {
        float16x8_t h = vreinterpretq_f16_u16(vld1q_u16(p + 4 * v));
        w[v] = vcvt_f32_f16(vget_low_f16(h));
        w[v + 1] = vcvt_high_f32_f16(h);
    }
}
INLINE void v_store_f16(uint16_t *p, vf a) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(a))); }
typedef uint8x16_t packed_table;
INLINE packed_table load_packed_table(const uint8_t *p) { return vld1q_u8(p); }
/* Low and high bytes are interleaved to bfloat16, and those with zeros to float32: six ZIPs for 16 weights. Moving
 * bytes up by shifts takes 14, which one of the A76's two vector pipes would do alone; the A72, where a ZIP is three
 * operations, has the time (docs/arm.md). */
INLINE void load32_packed(const uint8_t *low, const uint8_t *codes, const int upper, packed_table table, vf *w)
{
    const uint16x8_t zero = vdupq_n_u16(0);
    for (int g = 0; g < 2; g++) {
        uint8x16_t code = vld1q_u8(codes + 16 * g), bytes = vld1q_u8(low + 16 * g);
        code = upper ? vshrq_n_u8(code, 4) : vandq_u8(code, vdupq_n_u8(15));
        uint8x16_t high = vqtbl1q_u8(table, code);
        uint16x8_t a = vreinterpretq_u16_u8(vzip1q_u8(bytes, high)), b = vreinterpretq_u16_u8(vzip2q_u8(bytes, high));
        w[4 * g] = vreinterpretq_f32_u16(vzip1q_u16(zero, a));
        w[4 * g + 1] = vreinterpretq_f32_u16(vzip2q_u16(zero, a));
        w[4 * g + 2] = vreinterpretq_f32_u16(vzip1q_u16(zero, b));
        w[4 * g + 3] = vreinterpretq_f32_u16(vzip2q_u16(zero, b));
    }
}
INLINE void patch32_lanes(vf *w, int row, uint32_t bits)
{
    const int32x4_t rows = {0, 1, 2, 3};
    const vf value = vreinterpretq_f32_u32(vdupq_n_u32(bits));
    for (int v = 0; v < 8; v++) w[v] = vbslq_f32(vceqq_s32(rows, vdupq_n_s32(row - 4 * v)), value, w[v]);
}
INLINE void store32_lanes(float *p, const vf *w)
{
    vst1q_f32(p, w[0]), vst1q_f32(p + 4, w[1]), vst1q_f32(p + 8, w[2]), vst1q_f32(p + 12, w[3]);
    vst1q_f32(p + 16, w[4]), vst1q_f32(p + 20, w[5]), vst1q_f32(p + 24, w[6]), vst1q_f32(p + 28, w[7]);
}
/* How far a scan of weights asks ahead. An estimate: 130 ns of latency at the 12 GB/s one core of a Pi 5 may reach. */
enum { AHEAD = 2048 };
/* Ask for a cache line that is needed in a while. */
INLINE void prefetch_l2(const void *p) { __builtin_prefetch(p, 0, 2); }
/* Ask for the cache line `ahead` bytes on; as an integer, since no object need be there. */
INLINE void prefetch(const void *p, int ahead) { __builtin_prefetch((const void *)((uintptr_t)p + (uintptr_t)ahead)); }

INLINE void transpose_4x4(const uint8_t *rows, size_t stride, uint32_t *out, const int width)
{
    uint32x4_t r[4];
    for (int i = 0; i < 4; i++) r[i] = vreinterpretq_u32_u8(vld1q_u8(rows + (size_t)i * stride));
    uint32x4_t a = vtrn1q_u32(r[0], r[1]), b = vtrn2q_u32(r[0], r[1]);
    uint32x4_t c = vtrn1q_u32(r[2], r[3]), d = vtrn2q_u32(r[2], r[3]);
#define LOW(x, y) vcombine_u32(vget_low_u32(x), vget_low_u32(y))
#define HIGH(x, y) vcombine_u32(vget_high_u32(x), vget_high_u32(y))
    vst1q_u32(out, LOW(a, c));
    vst1q_u32(out + width, LOW(b, d));
    vst1q_u32(out + 2 * width, HIGH(a, c));
    vst1q_u32(out + 3 * width, HIGH(b, d));
#undef LOW
#undef HIGH
}
INLINE void transpose_u32(const uint8_t *rows, size_t stride, int64_t units, uint32_t *out, const int width)
{
    int64_t u = 0;
    for (; u + 4 <= units; u += 4)
        for (int r = 0; r < width; r += 4) transpose_4x4(rows + (size_t)r * stride + 4 * u, stride, out + u * width + r, width);
    for (; u < units; u++)
        for (int r = 0; r < width; r++) memcpy(&out[u * width + r], rows + (size_t)r * stride + 4 * u, 4);
}

typedef uint8x16_t vb;
INLINE vb vb_load(const uint8_t *p) { return vld1q_u8(p); }
INLINE void vb_store(uint8_t *p, vb a) { vst1q_u8(p, a); }
INLINE vb vb_set1(int a) { return vdupq_n_u8((uint8_t)a); }
INLINE vb vb_and(vb a, vb b) { return vandq_u8(a, b); }
INLINE vb vb_or(vb a, vb b) { return vorrq_u8(a, b); }
INLINE vb vb_shl(vb a, int n) { return a << (uint8_t)n; }
INLINE vb vb_shr(vb a, int n) { return a >> (uint8_t)n; }
/* The top two bits of each byte of a, below those of b, below those of c. */
INLINE vb vb_tops(vb a, vb b, vb c) { return vsriq_n_u8(vsriq_n_u8(vshrq_n_u8(c, 2), b, 4), a, 6); }
INLINE vb vb_low4(vb a) { return vandq_u8(a, vdupq_n_u8(15)); }
INLINE vb vb_high4(vb a) { return vshrq_n_u8(a, 4); }
enum { SIGNED_BIAS = 0 };
INLINE vb vb_signed(vb a) { return a; }
typedef uint8x16_t vb_table;
INLINE vb_table vb_load_table(const uint8_t *p) { return vld1q_u8(p); }
INLINE vb vb_lookup(vb_table table, vb codes) { return vqtbl1q_u8(table, codes); }

/* A sum stays one chain in one register: GCC would add all products of a loop in a tree, and keep them in memory. */
#define KEEP(sum) __asm__("" : "+w"(sum))

/* Two planes of signed bytes, X = 256 * high + low: 16 columns' low bytes, then their high ones. */
INLINE void put_planes(const int32_t *whole, uint8_t *x)
{
    for (int i = 0; i < 16; i++) {
        x[i] = (uint8_t)whole[i];
        x[16 + i] = (uint8_t)((whole[i] + 128) >> 8);
    }
}

#ifdef PL_DOTPROD
typedef struct {
    int32x4_t low, high;
} dot;
INLINE dot dot_zero(void) { return (dot){vdupq_n_s32(0), vdupq_n_s32(0)}; }
INLINE int32x4_t dot4(int32x4_t d, int8x16_t codes, int8x16_t x, const int u)
{
    switch (u) {
    case 0: return vdotq_laneq_s32(d, codes, x, 0);
    case 1: return vdotq_laneq_s32(d, codes, x, 1);
    case 2: return vdotq_laneq_s32(d, codes, x, 2);
    default: return vdotq_laneq_s32(d, codes, x, 3);
    }
}
INLINE dot dot_add(dot d, vb codes, const uint8_t *x, const int u, const int bits)
{
    (void)bits;
    d.low = dot4(d.low, vreinterpretq_s8_u8(codes), vreinterpretq_s8_u8(vld1q_u8(x)), u);
    d.high = dot4(d.high, vreinterpretq_s8_u8(codes), vreinterpretq_s8_u8(vld1q_u8(x + 16)), u);
    return d;
}
/* Sums of two times 32 columns, whose codes are the low and the high nibbles of the same 8 units, 64 bytes from one to the
 * next, the first `at` after `codes`, of two vectors of rows; x: of the first 32 columns, `next` bytes before that of the others. In assembly, for of the
 * intrinsics GCC 12 moves sums from register to register and loads singly: a tenth more instructions. */
#define NIBBLE_SUMS 1
#define NIBBLE_UNIT(at, lane)                                                                                          \
    "ldp %q[p], %q[q], [%[codes], %[at] + " #at "]\n\t"                                                                        \
    "and %[r].16b, %[p].16b, %[fours].16b\n\tushr %[p].16b, %[p].16b, 4\n\t"                                           \
    "sdot %[a].4s, %[r].16b, %[k].4b[" #lane "]\n\tsdot %[b].4s, %[r].16b, %[l].4b[" #lane "]\n\t"                     \
    "sdot %[e].4s, %[p].16b, %[m].4b[" #lane "]\n\tsdot %[f].4s, %[p].16b, %[n].4b[" #lane "]\n\t"                     \
    "and %[r].16b, %[q].16b, %[fours].16b\n\tushr %[q].16b, %[q].16b, 4\n\t"                                           \
    "sdot %[c].4s, %[r].16b, %[k].4b[" #lane "]\n\tsdot %[d].4s, %[r].16b, %[l].4b[" #lane "]\n\t"                     \
    "sdot %[g].4s, %[q].16b, %[m].4b[" #lane "]\n\tsdot %[h].4s, %[q].16b, %[n].4b[" #lane "]\n\t"
#define NIBBLE_X(at) "ldp %q[k], %q[l], [%[x], " #at "]\n\tldp %q[m], %q[n], [%[y], " #at "]\n\t"
INLINE void nibble_sums(const uint8_t *codes, const int at, const uint8_t *x, size_t next, vi *first, vi *second)
{
    int32x4_t a = vdupq_n_s32(0), b = a, c = a, d = a, e = a, f = a, g = a, h = a;
    uint8x16_t k, l, m, n, p, q, r;
    __asm__(NIBBLE_X(0) NIBBLE_UNIT(0, 0) NIBBLE_UNIT(64, 1) NIBBLE_UNIT(128, 2) NIBBLE_UNIT(192, 3)
            NIBBLE_X(32) NIBBLE_UNIT(256, 0) NIBBLE_UNIT(320, 1) NIBBLE_UNIT(384, 2) NIBBLE_UNIT(448, 3)
            : [a] "+w"(a), [b] "+w"(b), [c] "+w"(c), [d] "+w"(d), [e] "+w"(e), [f] "+w"(f), [g] "+w"(g), [h] "+w"(h),
              [k] "=&w"(k), [l] "=&w"(l), [m] "=&w"(m), [n] "=&w"(n), [p] "=&w"(p), [q] "=&w"(q), [r] "=&w"(r)
            : [codes] "r"(codes), [at] "i"(at), [x] "r"(x), [y] "r"(x + next), [fours] "w"(vdupq_n_u8(15))
            : "memory");
    first[0] = vmlaq_n_s32(a, b, 256);
    first[1] = vmlaq_n_s32(c, d, 256);
    second[0] = vmlaq_n_s32(e, f, 256);
    second[1] = vmlaq_n_s32(g, h, 256);
}
#undef NIBBLE_UNIT
#undef NIBBLE_X
INLINE vi dot_sum(dot d, const int bits) { (void)bits; return vmlaq_n_s32(d.low, d.high, 256); }
INLINE void put_x(const int32_t *whole, const pl_form form, int64_t tokens, uint8_t *x)
{
    (void)form, (void)tokens;
    put_planes(whole, x);
}
/* All are loaded before the first is used: GCC then loads two at once. */
#define LOADED_2(a, b) __asm__("" : "+w"(a), "+w"(b))
#define LOADED_4(a, b, c, d) __asm__("" : "+w"(a), "+w"(b), "+w"(c), "+w"(d))
enum { ONE_VECTORS = 4, ONE_RUNS = 2, FEW_TOKENS = 3, TILE_UNIT = 16, MANY_VECTORS = 2, MANY_TOKENS = 3 };
#define FEW_LIMIT(bits) 4
#define FEW_VECTORS(n) 2
#define FEW_BITS(n, bits) (bits)
#define TILE_BIAS(bias) 0
INLINE void tile_put(uint8_t *tile, vb codes, int bias) { vb_store(tile, vsubq_u8(codes, vdupq_n_u8((uint8_t)bias))); }
INLINE dot tile_dot(dot d, const uint8_t *tile, const uint8_t *x, const int u) { return dot_add(d, vb_load(tile), x, u, 8); }
INLINE vi tile_sum(dot d) { return dot_sum(d, 8); }
#else
/* One token: products of bytes in 16-bit sums, which hold 8 of codes up to 31 and 4 up to 63: those of rows 0, 1 and of
 * rows 2, 3 with the low plane, then with the high one. Of codes of eight bits they could not hold two, so these are
 * widened: a row's four columns a vector. */
typedef struct {
    int32x4_t r[4];
} dot;
INLINE dot dot_zero(void) { return (dot){{vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)}}; }
/* sums[0] += codes of rows 0 and 1 times unit u of 16 bytes, sums[1] those of rows 2 and 3. */
INLINE void add_products(int32x4_t *sums, int8x16_t codes, const uint8_t *bytes, const int u)
{
    const int32x4_t all = vreinterpretq_s32_u8(vld1q_u8(bytes));
    int8x16_t x;
    switch (u) {
    case 0: x = vreinterpretq_s8_s32(vdupq_laneq_s32(all, 0)); break;
    case 1: x = vreinterpretq_s8_s32(vdupq_laneq_s32(all, 1)); break;
    case 2: x = vreinterpretq_s8_s32(vdupq_laneq_s32(all, 2)); break;
    default: x = vreinterpretq_s8_s32(vdupq_laneq_s32(all, 3));
    }
    sums[0] = vreinterpretq_s32_s16(vmlal_s8(vreinterpretq_s16_s32(sums[0]), vget_low_s8(codes), vget_low_s8(x)));
    sums[1] = vreinterpretq_s32_s16(vmlal_high_s8(vreinterpretq_s16_s32(sums[1]), codes, x));
}
INLINE dot dot_add(dot d, vb codes, const uint8_t *x, const int u, const int bits)
{
    const int8x16_t w = vreinterpretq_s8_u8(codes);
    if (bits == 8) {
        const int16x8_t whole = vreinterpretq_s16_s64(vld1q_dup_s64((const int64_t *)(x + 8 * u)));
        const int16x8_t a = vmovl_s8(vget_low_s8(w)), b = vmovl_high_s8(w);
        d.r[0] = vmlal_s16(d.r[0], vget_low_s16(a), vget_low_s16(whole));
        d.r[1] = vmlal_high_s16(d.r[1], a, whole);
        d.r[2] = vmlal_s16(d.r[2], vget_low_s16(b), vget_low_s16(whole));
        d.r[3] = vmlal_high_s16(d.r[3], b, whole);
    } else {
        add_products(d.r, w, x, u);
        add_products(d.r + 2, w, x + 16, u);
    }
    return d;
}
/* The four rows' sums of 16-bit products: of codes of four bits, two fit one of these. */
INLINE int32x4_t pair_up(const int32x4_t *sums, const int bits)
{
    const int16x8_t a = vreinterpretq_s16_s32(sums[0]), b = vreinterpretq_s16_s32(sums[1]);
    return bits == 4 ? vpaddlq_s16(vpaddq_s16(a, b)) : vpaddq_s32(vpaddlq_s16(a), vpaddlq_s16(b));
}
INLINE vi dot_sum(dot d, const int bits)
{
    if (bits == 8) return vpaddq_s32(vpaddq_s32(d.r[0], d.r[1]), vpaddq_s32(d.r[2], d.r[3]));
    return vmlaq_n_s32(pair_up(d.r, bits), pair_up(d.r + 2, bits), 256);
}
enum { ONE_VECTORS = 2, ONE_RUNS = 2, FEW_TOKENS = 1 };
#define FEW_VECTORS(n) 1
#define FEW_LIMIT(bits) 1
#define FEW_BITS(n, bits) (bits)
/* Many tokens: columns of 16-bit codes, four rows a vector, times one of 16 columns of 16-bit activations. */
INLINE void put_x(const int32_t *whole, const pl_form form, int64_t tokens, uint8_t *x)
{
    if (tokens == 1 && form != FORM_D16_8) {
        put_planes(whole, x);
        return;
    }
    for (int i = 0; i < 16; i++) {
        const int16_t narrow = (int16_t)whole[i];
        memcpy(x + 2 * i, &narrow, 2);
    }
}
#define LOADED_2(a, b) ((void)0)
#define LOADED_4(a, b, c, d) ((void)0)
enum { TILE_UNIT = 32, MANY_VECTORS = 2, MANY_TOKENS = 4 };
#define TILE_BIAS(bias) 0
INLINE void tile_put(uint8_t *tile, vb codes, int bias)
{
    const uint8x16_t turned = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    const int8x16_t w = vreinterpretq_s8_u8(vsubq_u8(vqtbl1q_u8(codes, turned), vdupq_n_u8((uint8_t)bias)));
    vst1q_s16((int16_t *)tile, vmovl_s8(vget_low_s8(w)));
    vst1q_s16((int16_t *)(tile + 16), vmovl_high_s8(w));
}
INLINE dot tile_dot(dot d, const uint8_t *tile, const uint8_t *x, const int u)
{
    const int16x8_t a = vld1q_s16((const int16_t *)tile), b = vld1q_s16((const int16_t *)(tile + 16));
    const int16x8_t eight = vld1q_s16((const int16_t *)(x + u / 2 * 16));
    const int16x4_t four = u & 1 ? vget_high_s16(eight) : vget_low_s16(eight);
    d.r[0] = vmlal_lane_s16(d.r[0], vget_low_s16(a), four, 0);
    d.r[0] = vmlal_high_lane_s16(d.r[0], a, four, 1);
    d.r[0] = vmlal_lane_s16(d.r[0], vget_low_s16(b), four, 2);
    d.r[0] = vmlal_high_lane_s16(d.r[0], b, four, 3);
    KEEP(d.r[0]);
    return d;
}
INLINE vi tile_sum(dot d) { return d.r[0]; }
#endif
