/* The vector vocabulary with one lane: plain C, the definition the other sets are held to. */
#include <math.h>
#include <string.h>

#define ISA_NAME "scalar"
#define VL 1
#define INLINE static inline __attribute__((always_inline))

typedef float vf;
typedef int32_t vi;

INLINE vf v_load(const float *p) { return *p; }
INLINE void v_store(float *p, vf a) { *p = a; }
INLINE vf v_set1(float a) { return a; }
INLINE vf v_add(vf a, vf b) { return a + b; }
INLINE vf v_sub(vf a, vf b) { return a - b; }
INLINE vf v_mul(vf a, vf b) { return a * b; }
INLINE vf v_div(vf a, vf b) { return a / b; }
INLINE vf v_fma(vf a, vf b, vf c) { return fmaf(a, b, c); }
/* A NaN in b survives both, as on x86 and ARM. */
INLINE vf v_max(vf a, vf b) { return a > b ? a : b; }
INLINE vf v_min(vf a, vf b) { return a < b ? a : b; }
/* b where a >= limit, else 0 */
INLINE vf v_keep_ge(vf a, vf limit, vf b) { return a < limit ? 0.0f : b; }

INLINE vi vi_set1(int32_t a) { return a; }
INLINE vi vi_and(vi a, vi b) { return a & b; }
INLINE vi vi_or(vi a, vi b) { return a | b; }
INLINE vi vi_add(vi a, vi b) { return (vi)((uint32_t)a + (uint32_t)b); }
INLINE vi vi_sub(vi a, vi b) { return (vi)((uint32_t)a - (uint32_t)b); }
INLINE vi vi_shl(vi a, int n) { return (vi)((uint32_t)a << n); }
INLINE vi vi_shr(vi a, int n) { return (vi)((uint32_t)a >> n); }
INLINE vi vi_max(vi a, vi b) { return a > b ? a : b; }
INLINE void vi_store(int32_t *p, vi a) { *p = a; }
INLINE vi v_round(vf a) { return (vi)rintf(a); } /* to the nearest, even; of numbers that fit */
INLINE vi vi_xor(vi a, vi b) { return a ^ b; }
/* Each byte's upper four bits. */
INLINE vi vi_nibbles(vi a) { return vi_and(vi_shr(a, 4), vi_set1(0x0f0f0f0f)); }
/* Bytes of six bits: four of `low`, whose others are 0, and above them the top two of `tops`. */
INLINE vi vi_six(vi low, vi tops) { return vi_or(low, vi_and(vi_shr(tops, 2), vi_set1(0x30303030))); }
INLINE vi vi_byte(vi a, int i) { return (vi)((uint32_t)a >> 8 * i & 255); } /* byte i of each lane */
INLINE vi vi_load(const uint8_t *p) { vi a; memcpy(&a, p, 4); return a; }
INLINE vi vi_load_u16(const uint16_t *p) { return *p; }
INLINE vf vi_float(vi a) { return (float)a; }
INLINE vf vi_as_float(vi a) { vf f; memcpy(&f, &a, 4); return f; }
INLINE vi v_as_int(vf a) { vi i; memcpy(&i, &a, 4); return i; }

INLINE float f16_to_float(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 0x3ff, bits;
    float f;
    if (exponent == 0) { /* zero and subnormals: mantissa * 2^-24 is exact */
        f = (float)mantissa * 0x1p-24f;
        return sign ? -f : f;
    }
    bits = sign | (exponent == 31 ? 0x7f800000 | (mantissa ? 0x400000 : 0) : (exponent + 112) << 23) | mantissa << 13;
    memcpy(&f, &bits, 4);
    return f;
}

/* Round to nearest even. */
INLINE uint16_t float_to_f16(float f)
{
    uint32_t bits, sign, magnitude;
    memcpy(&bits, &f, 4);
    sign = bits >> 16 & 0x8000;
    magnitude = bits & 0x7fffffff;
    if (magnitude >= 0x47800000) /* 65536 and more, infinity, NaN */
        return (uint16_t)(sign | (magnitude > 0x7f800000 ? 0x7e00 | (magnitude >> 13 & 0x3ff) : 0x7c00));
    if (magnitude < 0x38800000) { /* below 2^-14: subnormal; adding 0.5 lets the FPU round at 2^-24 */
        float shifted;
        memcpy(&shifted, &magnitude, 4);
        shifted += 0.5f;
        memcpy(&magnitude, &shifted, 4);
        return (uint16_t)(sign | (magnitude - 0x3f000000));
    }
    magnitude += 0xfff + (magnitude >> 13 & 1);
    return (uint16_t)(sign | (magnitude - 0x38000000) >> 13);
}

INLINE void load16_bf16_pairs(const uint32_t *p, vf *even, vf *odd)
{
    for (int r = 0; r < 16; r++) {
        even[r] = vi_as_float((vi)(p[r] << 16));
        odd[r] = vi_as_float((vi)(p[r] & 0xffff0000u));
    }
}
INLINE void load16_f16_pairs(const uint32_t *p, vf *even, vf *odd)
{
    for (int r = 0; r < 16; r++) {
        even[r] = f16_to_float((uint16_t)p[r]);
        odd[r] = f16_to_float((uint16_t)(p[r] >> 16));
    }
}
INLINE vf v_load_f16(const uint16_t *p) { return f16_to_float(*p); }
INLINE void load16_f16(const uint16_t *p, vf *w)
{
    for (int r = 0; r < 16; r++) w[r] = v_load_f16(p + r);
}
INLINE void v_store_f16(uint16_t *p, vf a) { *p = float_to_f16(a); }
/* A table of 16 bytes, looked up by 4-bit codes. */
typedef const uint8_t *packed_table;
INLINE packed_table load_packed_table(const uint8_t *p) { return p; }
/* Packed bfloat16 (packed.h): low bytes and codes of 32 rows, upper codes for `upper`. */
INLINE void load32_packed(const uint8_t *low, const uint8_t *codes, const int upper, packed_table table, vf *w)
{
    for (int r = 0; r < 32; r++) {
        uint32_t high = table[upper ? codes[r] >> 4 : codes[r] & 15];
        w[r] = vi_as_float((vi)(high << 24 | (uint32_t)low[r] << 16));
    }
}
/* Another float32 for one row of what load32_packed made. */
INLINE void patch32_lanes(vf *w, int row, uint32_t bits) { w[row] = vi_as_float((vi)bits); }
/* To memory in the order of rows, from the one that load32_packed leaves them in. */
INLINE void store32_lanes(float *p, const vf *w) { memcpy(p, w, 32 * sizeof(float)); }
enum { AHEAD = 0 };
/* Ask for a cache line that is needed in a while. */
INLINE void prefetch_l2(const void *p) { (void)p; }
/* Ask for the cache line `ahead` bytes on; as an integer, since no object need be there. */
INLINE void prefetch(const void *p, int ahead) { (void)p, (void)ahead; }

/* out[u * width + r] = row r's 32-bit unit u, for `width` rows */
INLINE void transpose_u32(const uint8_t *rows, size_t stride, int64_t units, uint32_t *out, const int width)
{
    for (int r = 0; r < width; r++)
        for (int64_t u = 0; u < units; u++) memcpy(&out[u * width + r], rows + (size_t)r * stride + 4 * u, 4);
}

/* Four bytes of each lane: the codes of four columns. Shifts may carry bits into the next byte; masks follow. */
typedef uint32_t vb;
INLINE vb vb_load(const uint8_t *p) { vb a; memcpy(&a, p, 4); return a; }
INLINE void vb_store(uint8_t *p, vb a) { memcpy(p, &a, 4); }
INLINE vb vb_set1(int a) { return 0x01010101u * (uint32_t)a; }
INLINE vb vb_and(vb a, vb b) { return a & b; }
INLINE vb vb_or(vb a, vb b) { return a | b; }
INLINE vb vb_shl(vb a, int n) { return a << n; }
INLINE vb vb_shr(vb a, int n) { return a >> n; }
/* The top two bits of each byte of a, below those of b, below those of c. */
INLINE vb vb_tops(vb a, vb b, vb c)
{
    const vb top = vb_set1(0xc0);
    const vb two = vb_or(vb_shr(vb_and(a, top), 2), vb_and(b, top));
    return vb_shr(vb_or(vb_shr(two, 2), vb_and(c, top)), 2);
}
INLINE vb vb_low4(vb a) { return a & 0x0f0f0f0fu; }
INLINE vb vb_high4(vb a) { return a >> 4 & 0x0f0f0f0fu; }
/* Signed codes as products take them, and what they then have to lose. */
enum { SIGNED_BIAS = 0 };
INLINE vb vb_signed(vb a) { return a; }
typedef const uint8_t *vb_table;
INLINE vb_table vb_load_table(const uint8_t *p) { return p; }
INLINE vb vb_lookup(vb_table table, vb codes)
{
    vb out = 0;
    for (int i = 0; i < 32; i += 8) out |= (vb)table[codes >> i & 15] << i;
    return out;
}

/* Sums of products of codes and activations, a row a lane: of 16 columns at x, unit u has the four from 4 * u on. `bits`:
 * how many codes have at most. */
typedef vi dot;
INLINE dot dot_zero(void) { return 0; }
INLINE dot dot_add(dot d, vb codes, const uint8_t *x, int u, const int bits)
{
    (void)bits;
    for (int i = 0; i < 4; i++) {
        int16_t whole;
        memcpy(&whole, x + 2 * (4 * u + i), 2);
        d += (int8_t)(codes >> 8 * i) * whole;
    }
    return d;
}
INLINE vi dot_sum(dot d, const int bits) { (void)bits; return d; }
/* Whole numbers X of 16 columns to where products of that form find them. */
INLINE void put_x(const int32_t *whole, const pl_form form, int64_t tokens, uint8_t *x)
{
    (void)form, (void)tokens;
    for (int i = 0; i < 16; i++) {
        int16_t narrow = (int16_t)whole[i];
        memcpy(x + 2 * i, &narrow, 2);
    }
}

/* One token: vectors of rows at a time, and runs of 32 columns where two come from the same bytes. LOADED_2 and LOADED_4
 * say that vectors are loaded before one is used, where that saves instructions. */
#define LOADED_2(a, b) ((void)0)
#define LOADED_4(a, b, c, d) ((void)0)
enum { ONE_VECTORS = 16, ONE_RUNS = 1 };
/* A few: at most so many at a time, with vectors of rows; up to how many tokens, of codes of so many bits, that is the
 * fastest; and for how many bits X of n tokens is laid out. */
enum { FEW_TOKENS = 1 };
#define FEW_VECTORS(n) 1
#define FEW_LIMIT(bits) 1
#define FEW_BITS(n, bits) (bits)
/* Many, out of a tile of unpacked codes, TILE_UNIT bytes a vector; what bias they still have. */
enum { TILE_UNIT = 4, MANY_VECTORS = 4, MANY_TOKENS = 2 };
#define TILE_BIAS(bias) 0
INLINE void tile_put(uint8_t *tile, vb codes, int bias)
{
    for (int i = 0; i < 4; i++) tile[i] = (uint8_t)((codes >> 8 * i) - (uint32_t)bias);
}
INLINE dot tile_dot(dot d, const uint8_t *tile, const uint8_t *x, int u) { return dot_add(d, vb_load(tile), x, u, 8); }
INLINE vi tile_sum(dot d) { return d; }
