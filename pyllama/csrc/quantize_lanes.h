/* Blocks side by side, a lane each: LANES runs of n columns as n vectors. Plain C over the compiler's vectors: every
 * lane is rounded for itself, so the number of lanes changes no bit. */
#include "quantize.h"

#include <math.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#ifndef LANES
#define LANES 4
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));

enum { MAX_RUN = 32 }; /* columns of the longest run */

INLINE vf v_set1(float a) { return a - (vf){0}; }
INLINE vf v_select(vi mask, vf a, vf b) { return (vf)(((vi)a & mask) | ((vi)b & ~mask)); }

/* Of a NaN and b, b: what is clamped is a number. */
#if defined(__x86_64__) && LANES == 4
INLINE vf v_min(vf a, vf b) { return (vf)_mm_min_ps((__m128)a, (__m128)b); }
INLINE vf v_max(vf a, vf b) { return (vf)_mm_max_ps((__m128)a, (__m128)b); }
#elif defined(__AVX__) && LANES == 8
INLINE vf v_min(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
INLINE vf v_max(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
#elif defined(__aarch64__) && LANES == 4
INLINE vf v_min(vf a, vf b) { return (vf)vminnmq_f32((float32x4_t)a, (float32x4_t)b); }
INLINE vf v_max(vf a, vf b) { return (vf)vmaxnmq_f32((float32x4_t)a, (float32x4_t)b); }
#else
INLINE vf v_min(vf a, vf b) { return v_select(a < b, a, b); }
INLINE vf v_max(vf a, vf b) { return v_select(a > b, a, b); }
#endif

INLINE vf v_clamp(vf a, float lo, float hi) { return v_max(v_min(a, v_set1(hi)), v_set1(lo)); }
INLINE vf v_abs(vf a) { return (vf)((vi)a & 0x7fffffff); }
/* To the nearest whole number, ties to even, for |a| < 2^22. */
INLINE vf v_round(vf a) { return (a + 12582912.0f) - 12582912.0f; }
/* 1 / a, and 0 where a is 0 (or so small that there is no such float). */
INLINE vf v_inverse(vf a)
{
    vf inverse = 1.0f / a;
    return v_select(v_abs(inverse) < 3e38f, inverse, v_set1(0.0f));
}
INLINE vf v_sqrt(vf a)
{
    for (int lane = 0; lane < LANES; lane++) a[lane] = sqrtf(a[lane]);
    return a;
}
INLINE vi v_int(vf a) { return __builtin_convertvector(a, vi); }

/* out[j][lane] = p[lane * n + j] * factor[lane], factors of 1 for NULL; lanes from `runs` on as the first one */
INLINE void load_runs(const float *p, int n, int runs, const float *factor, vf *out)
{
    for (int lane = 0; lane < LANES; lane++) {
        const float *run = p + (lane < runs ? lane : 0) * n, by = factor ? factor[lane] : 1.0f;
        for (int j = 0; j < n; j++) out[j][lane] = run[j] * by;
    }
}

static inline uint32_t float_bits(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return bits;
}
static inline float bits_float(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

/* float16, to nearest even, as bits; the largest finite one for what is more, 0 for NaN. */
static inline uint16_t f16_bits(float f)
{
    uint32_t sign = float_bits(f) >> 16 & 0x8000, magnitude = float_bits(f) & 0x7fffffff;
    if (magnitude > 0x7f800000) return 0;
    if (magnitude >= 0x477fe000) return (uint16_t)(sign | 0x7bff);
    if (magnitude < 0x38800000) /* below 2^-14: the sum is rounded to multiples of 2^-24 */
        return (uint16_t)(sign | (float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000));
    magnitude += 0xfff + (magnitude >> 13 & 1);
    return (uint16_t)(sign | (magnitude - 0x38000000) >> 13);
}
static inline float f16_value(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, magnitude = h & 0x7fff;
    if (magnitude < 0x400) return bits_float(float_bits((float)magnitude * 0x1p-24f) | sign);
    return bits_float(sign | ((magnitude << 13) + 0x38000000));
}

/* Blocks are searched with their largest weight in [1, 2), so that no square overflows: times 2^-exponent, exactly.
 * Below 2^-26 every float16 scale is 0, and the exponent stays there. */
static inline int exponent_of(const float *p, int n)
{
    uint32_t largest = 0;
    for (int j = 0; j < n; j++) {
        uint32_t magnitude = float_bits(p[j]) & 0x7fffffff;
        largest = magnitude > largest ? magnitude : largest;
    }
    int exponent = (int)(largest >> 23) - 127;
    return exponent < -26 ? -26 : exponent > 127 ? 127 : exponent;
}
static inline float power_of_two(int exponent) /* -127 to 127 */
{
    return exponent == -127 ? 0x1p-127f : bits_float((uint32_t)(exponent + 127) << 23);
}

/* A scale as it is stored in a block with this exponent, and what it then is in the searched block's units. */
static inline float stored(float scale, int exponent, uint16_t *bits)
{
    *bits = f16_bits(scale * power_of_two(exponent));
    return f16_value(*bits) * power_of_two(-exponent);
}

/* Where float16 has few digits left, the next larger one: whole scales of it reach as far as they have to, though fewer of
 * them; a unit rounded down, or to 0, would leave the largest weights out. */
INLINE float first_unit(float unit, int exponent)
{
    const float least = bits_float(float_bits(unit) & 0x7fffffff) * power_of_two(exponent);
    if (!(least > 0.0f) || least >= 0x1p-14f) return unit;
    const float up = (float)(int)(least * 0x1p24f + 0.999f) * 0x1p-24f * power_of_two(-exponent);
    return unit < 0.0f ? -up : up;
}
