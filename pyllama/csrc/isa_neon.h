/* The vector vocabulary on ARMv8.0 NEON: four lanes, nothing beyond the baseline. */
#include <arm_neon.h>
#include <string.h>

#define ISA_NAME "neon"
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
#define vi_shl(a, n) vshlq_n_s32(a, n)
/* USHR takes 1 to 32; the formats also ask for 0. */
#define vi_shr(a, n) \
    ((n) == 0 ? (a) : vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(a), (n) == 0 ? 1 : (n))))
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
INLINE void load16_f16(const uint16_t *p, vf *w)
{
    for (int v = 0; v < 4; v += 2) {
        float16x8_t h = vreinterpretq_f16_u16(vld1q_u16(p + 4 * v));
        w[v] = vcvt_f32_f16(vget_low_f16(h));
        w[v + 1] = vcvt_high_f32_f16(h);
    }
}
INLINE void load16_u8(const uint8_t *p, vi *w)
{
    uint8x16_t b = vld1q_u8(p);
    uint16x8_t low = vmovl_u8(vget_low_u8(b)), high = vmovl_high_u8(b);
    w[0] = vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(low)));
    w[1] = vreinterpretq_s32_u32(vmovl_high_u16(low));
    w[2] = vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(high)));
    w[3] = vreinterpretq_s32_u32(vmovl_high_u16(high));
}
INLINE void spread16_i8(int8x16_t b, vi *w)
{
    int16x8_t low = vmovl_s8(vget_low_s8(b)), high = vmovl_high_s8(b);
    w[0] = vmovl_s16(vget_low_s16(low));
    w[1] = vmovl_high_s16(low);
    w[2] = vmovl_s16(vget_low_s16(high));
    w[3] = vmovl_high_s16(high);
}
INLINE void load16_i8(const uint8_t *p, vi *w) { spread16_i8(vreinterpretq_s8_u8(vld1q_u8(p)), w); }
INLINE void v_store_f16(uint16_t *p, vf a) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(a))); }
typedef uint8x16_t packed_table;
INLINE packed_table load_packed_table(const uint8_t *p) { return vld1q_u8(p); }
INLINE void load16_levels(const uint8_t *p, const int upper, packed_table table, vi *w)
{
    uint8x16_t code = vld1q_u8(p);
    code = upper ? vshrq_n_u8(code, 4) : vandq_u8(code, vdupq_n_u8(15));
    spread16_i8(vreinterpretq_s8_u8(vqtbl1q_u8(table, code)), w);
}
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

INLINE void transpose_4x4(const uint8_t *rows, size_t stride, uint32_t *out)
{
    uint32x4_t r[4];
    for (int i = 0; i < 4; i++) r[i] = vreinterpretq_u32_u8(vld1q_u8(rows + (size_t)i * stride));
    uint32x4_t a = vtrn1q_u32(r[0], r[1]), b = vtrn2q_u32(r[0], r[1]);
    uint32x4_t c = vtrn1q_u32(r[2], r[3]), d = vtrn2q_u32(r[2], r[3]);
#define LOW(x, y) vcombine_u32(vget_low_u32(x), vget_low_u32(y))
#define HIGH(x, y) vcombine_u32(vget_high_u32(x), vget_high_u32(y))
    vst1q_u32(out, LOW(a, c));
    vst1q_u32(out + PANEL_ROWS, LOW(b, d));
    vst1q_u32(out + 2 * PANEL_ROWS, HIGH(a, c));
    vst1q_u32(out + 3 * PANEL_ROWS, HIGH(b, d));
#undef LOW
#undef HIGH
}
INLINE void transpose_u32(const uint8_t *rows, size_t stride, int64_t units, uint32_t *out)
{
    int64_t u = 0;
    for (; u + 4 <= units; u += 4)
        for (int r = 0; r < PANEL_ROWS; r += 4) transpose_4x4(rows + (size_t)r * stride + 4 * u, stride, out + u * PANEL_ROWS + r);
    for (; u < units; u++)
        for (int r = 0; r < PANEL_ROWS; r++) memcpy(&out[u * PANEL_ROWS + r], rows + (size_t)r * stride + 4 * u, 4);
}
