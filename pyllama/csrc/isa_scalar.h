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
#define vi_shl(a, n) ((vi)((uint32_t)(a) << (n)))
#define vi_shr(a, n) ((vi)((uint32_t)(a) >> (n)))
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
INLINE void load16_f16(const uint16_t *p, vf *w)
{
    for (int r = 0; r < 16; r++) w[r] = f16_to_float(p[r]);
}
INLINE void load16_u8(const uint8_t *p, vi *w)
{
    for (int r = 0; r < 16; r++) w[r] = p[r];
}
INLINE void load16_i8(const uint8_t *p, vi *w)
{
    for (int r = 0; r < 16; r++) w[r] = (int8_t)p[r];
}
INLINE void v_store_f16(uint16_t *p, vf a) { *p = float_to_f16(a); }
/* A table of 16 bytes, looked up by 4-bit codes. */
typedef const uint8_t *packed_table;
INLINE packed_table load_packed_table(const uint8_t *p) { return p; }
/* The table's bytes, signed, for the lower or the upper codes of 16 bytes; `upper` is a constant. */
INLINE void load16_levels(const uint8_t *p, const int upper, packed_table table, vi *w)
{
    for (int r = 0; r < 16; r++) w[r] = (int8_t)table[upper ? p[r] >> 4 : p[r] & 15];
}
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

/* out[u * 32 + r] = row r's 32-bit unit u, for one row block of PANEL_ROWS rows */
INLINE void transpose_u32(const uint8_t *rows, size_t stride, int64_t units, uint32_t *out)
{
    for (int r = 0; r < PANEL_ROWS; r++)
        for (int64_t u = 0; u < units; u++) memcpy(&out[u * PANEL_ROWS + r], rows + (size_t)r * stride + 4 * u, 4);
}
