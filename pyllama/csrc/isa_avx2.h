/* The vector vocabulary on AVX2 with FMA and F16C: eight lanes. */
#include <immintrin.h>
#include <string.h>

#ifdef PL_VNNI
#define ISA_NAME "vnni"
#else
#define ISA_NAME "avx2"
#endif
#define VL 8
#define INLINE static inline __attribute__((always_inline))

typedef __m256 vf;
typedef __m256i vi;

INLINE vf v_load(const float *p) { return _mm256_loadu_ps(p); }
INLINE void v_store(float *p, vf a) { _mm256_storeu_ps(p, a); }
INLINE vf v_set1(float a) { return _mm256_set1_ps(a); }
INLINE vf v_add(vf a, vf b) { return _mm256_add_ps(a, b); }
INLINE vf v_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
INLINE vf v_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
INLINE vf v_div(vf a, vf b) { return _mm256_div_ps(a, b); }
INLINE vf v_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vf v_max(vf a, vf b) { return _mm256_max_ps(a, b); }
INLINE vf v_min(vf a, vf b) { return _mm256_min_ps(a, b); }
INLINE vf v_keep_ge(vf a, vf limit, vf b) { return _mm256_andnot_ps(_mm256_cmp_ps(a, limit, _CMP_LT_OQ), b); }

INLINE vi vi_set1(int32_t a) { return _mm256_set1_epi32(a); }
INLINE vi vi_and(vi a, vi b) { return _mm256_and_si256(a, b); }
INLINE vi vi_or(vi a, vi b) { return _mm256_or_si256(a, b); }
INLINE vi vi_add(vi a, vi b) { return _mm256_add_epi32(a, b); }
INLINE vi vi_sub(vi a, vi b) { return _mm256_sub_epi32(a, b); }
INLINE vi vi_shl(vi a, int n) { return _mm256_slli_epi32(a, n); }
INLINE vi vi_shr(vi a, int n) { return _mm256_srli_epi32(a, n); }
INLINE vi vi_max(vi a, vi b) { return _mm256_max_epi32(a, b); }
INLINE void vi_store(int32_t *p, vi a) { _mm256_storeu_si256((vi *)p, a); }
INLINE vi v_round(vf a) { return _mm256_cvtps_epi32(a); }
INLINE vi vi_xor(vi a, vi b) { return _mm256_xor_si256(a, b); }
/* Each byte's upper four bits. */
INLINE vi vi_nibbles(vi a) { return vi_and(vi_shr(a, 4), vi_set1(0x0f0f0f0f)); }
/* Bytes of six bits: four of `low`, whose others are 0, and above them the top two of `tops`. */
INLINE vi vi_six(vi low, vi tops) { return vi_or(low, vi_and(vi_shr(tops, 2), vi_set1(0x30303030))); }
INLINE vi vi_byte(vi a, const int i)
{
    const __m128i lanes = _mm_setr_epi8((char)i, -1, -1, -1, (char)(4 + i), -1, -1, -1, (char)(8 + i), -1, -1, -1,
                                        (char)(12 + i), -1, -1, -1);
    return _mm256_shuffle_epi8(a, _mm256_broadcastsi128_si256(lanes));
}
INLINE vi vi_load(const uint8_t *p) { return _mm256_loadu_si256((const vi *)p); }
INLINE vi vi_load_u16(const uint16_t *p) { return _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)); }
INLINE vf vi_float(vi a) { return _mm256_cvtepi32_ps(a); }
INLINE vf vi_as_float(vi a) { return _mm256_castsi256_ps(a); }
INLINE vi v_as_int(vf a) { return _mm256_castps_si256(a); }

INLINE void load16_bf16_pairs(const uint32_t *p, vf *even, vf *odd)
{
    const vi high = _mm256_set1_epi32((int)0xffff0000u);
    for (int v = 0; v < 2; v++) {
        vi pair = _mm256_loadu_si256((const vi *)(p + 8 * v));
        even[v] = vi_as_float(_mm256_slli_epi32(pair, 16));
        odd[v] = vi_as_float(_mm256_and_si256(pair, high));
    }
}
INLINE void load16_f16_pairs(const uint32_t *p, vf *even, vf *odd)
{
    for (int v = 0; v < 2; v++) {
        vi pair = _mm256_loadu_si256((const vi *)(p + 8 * v));
        vi packed = _mm256_packus_epi32(_mm256_and_si256(pair, _mm256_set1_epi32(0xffff)), _mm256_srli_epi32(pair, 16));
        packed = _mm256_permute4x64_epi64(packed, 0xd8); /* 8 even columns below, 8 odd above */
        even[v] = _mm256_cvtph_ps(_mm256_castsi256_si128(packed));
        odd[v] = _mm256_cvtph_ps(_mm256_extracti128_si256(packed, 1));
    }
}
INLINE vf v_load_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
INLINE void load16_f16(const uint16_t *p, vf *w)
{
    for (int v = 0; v < 2; v++) w[v] = v_load_f16(p + 8 * v);
}
INLINE void v_store_f16(uint16_t *p, vf a)
{
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
typedef __m256i packed_table;
INLINE packed_table load_packed_table(const uint8_t *p)
{
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p));
}
/* Interleaving bytes works within 128-bit halves, and a shift and a mask part 16-bit words on more ports than an
 * unpack would: vectors 0 and 1 hold the even and the odd rows of 0..7 and 16..23, 2 and 3 those of the others. */
INLINE void load32_packed(const uint8_t *low, const uint8_t *codes, const int upper, packed_table table, vf *w)
{
    vi code = _mm256_loadu_si256((const vi *)codes), bytes = _mm256_loadu_si256((const vi *)low);
    vi high = _mm256_shuffle_epi8(table, _mm256_and_si256(upper ? _mm256_srli_epi16(code, 4) : code, _mm256_set1_epi8(15)));
    vi upper_half = _mm256_set1_epi32((int)0xffff0000u);
    vi a = _mm256_unpacklo_epi8(bytes, high), b = _mm256_unpackhi_epi8(bytes, high);
    w[0] = vi_as_float(_mm256_slli_epi32(a, 16));
    w[1] = vi_as_float(_mm256_and_si256(a, upper_half));
    w[2] = vi_as_float(_mm256_slli_epi32(b, 16));
    w[3] = vi_as_float(_mm256_and_si256(b, upper_half));
}
INLINE void patch32_lanes(vf *w, int row, uint32_t bits)
{
    const vi rows = _mm256_setr_epi32(0, 2, 4, 6, 16, 18, 20, 22), value = _mm256_set1_epi32((int)bits);
    for (int v = 0; v < 4; v++) {
        vi here = _mm256_cmpeq_epi32(rows, _mm256_set1_epi32(row - (v & 1) - (v >> 1) * 8));
        w[v] = _mm256_blendv_ps(w[v], vi_as_float(value), vi_as_float(here));
    }
}
INLINE void store32_lanes(float *p, const vf *w)
{
    for (int v = 0; v < 4; v += 2, p += 8) {
        vf low = _mm256_unpacklo_ps(w[v], w[v + 1]), high = _mm256_unpackhi_ps(w[v], w[v + 1]);
        _mm_storeu_ps(p, _mm256_castps256_ps128(low));
        _mm_storeu_ps(p + 4, _mm256_castps256_ps128(high));
        _mm_storeu_ps(p + 16, _mm256_extractf128_ps(low, 1));
        _mm_storeu_ps(p + 20, _mm256_extractf128_ps(high, 1));
    }
}
/* How far a scan of weights asks ahead. Measured on a Zen 4 at 30 GB/s a core, packed: 0.84 of the read rate without,
 * 0.88 from 4 KB, 0.91 from 5 to 6 KB, 0.90 from 8 KB. */
enum { AHEAD = 6144 };
/* Ask for a cache line that is needed in a while. */
INLINE void prefetch_l2(const void *p) { _mm_prefetch((const char *)p, _MM_HINT_T1); }
/* Ask for the cache line `ahead` bytes on; as an integer, since no object need be there. Into the second-level cache: one core
 * of a Sapphire Rapids then takes Q4_K and bfloat16 at 1.25 to 1.35 times the rate of plain reads, 1.2 to 1.3 with T0; with
 * NTA, which passes that cache by, Q4_K at 0.87, Q8_0 at 0.57, bfloat16 at 0.48. On a Zen 4 NTA was ahead by 0.01 to 0.02. */
INLINE void prefetch(const void *p, int ahead) { _mm_prefetch((const char *)((uintptr_t)p + (uintptr_t)ahead), _MM_HINT_T1); }

INLINE void transpose_8x8(const uint8_t *rows, size_t stride, uint32_t *out, const int width)
{
    __m256 r[8], t[8];
    for (int i = 0; i < 8; i++) r[i] = _mm256_castsi256_ps(_mm256_loadu_si256((const vi *)(rows + (size_t)i * stride)));
    for (int i = 0; i < 4; i++) {
        t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        r[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
        r[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
        r[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
        r[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        _mm256_storeu_ps((float *)(out + i * width), _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
        _mm256_storeu_ps((float *)(out + (i + 4) * width), _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
    }
}
INLINE void transpose_u32(const uint8_t *rows, size_t stride, int64_t units, uint32_t *out, const int width)
{
    int64_t u = 0;
    for (; u + 8 <= units; u += 8)
        for (int r = 0; r < width; r += 8) transpose_8x8(rows + (size_t)r * stride + 4 * u, stride, out + u * width + r, width);
    for (; u < units; u++)
        for (int r = 0; r < width; r++) memcpy(&out[u * width + r], rows + (size_t)r * stride + 4 * u, 4);
}

typedef __m256i vb;
INLINE vb vb_load(const uint8_t *p) { return _mm256_loadu_si256((const vb *)p); }
INLINE void vb_store(uint8_t *p, vb a) { _mm256_storeu_si256((vb *)p, a); }
INLINE vb vb_set1(int a) { return _mm256_set1_epi8((char)a); }
INLINE vb vb_and(vb a, vb b) { return _mm256_and_si256(a, b); }
INLINE vb vb_or(vb a, vb b) { return _mm256_or_si256(a, b); }
INLINE vb vb_shl(vb a, int n) { return _mm256_slli_epi16(a, n); }
INLINE vb vb_shr(vb a, int n) { return _mm256_srli_epi16(a, n); }
INLINE vb vb_tops(vb a, vb b, vb c)
{
    const vb top = vb_set1(0xc0);
    const vb two = vb_or(vb_shr(vb_and(a, top), 2), vb_and(b, top));
    return vb_shr(vb_or(vb_shr(two, 2), vb_and(c, top)), 2);
}
INLINE vb vb_low4(vb a) { return _mm256_and_si256(a, _mm256_set1_epi8(15)); }
INLINE vb vb_high4(vb a) { return _mm256_and_si256(_mm256_srli_epi16(a, 4), _mm256_set1_epi8(15)); }
enum { SIGNED_BIAS = 128 };
INLINE vb vb_signed(vb a) { return _mm256_xor_si256(a, _mm256_set1_epi8((char)128)); }
typedef vb vb_table;
INLINE vb_table vb_load_table(const uint8_t *p)
{
    return vb_signed(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p)));
}
INLINE vb vb_lookup(vb_table table, vb codes) { return _mm256_shuffle_epi8(table, codes); }
INLINE vi broadcast4(const uint8_t *p)
{
    int32_t four;
    memcpy(&four, p, 4);
    return _mm256_set1_epi32(four);
}

/* A sum stays one chain in one register: GCC would add all products of a loop in a tree, and keep them in memory. */
#define KEEP(sum) __asm__("" : "+x"(sum))

#ifdef PL_VNNI
/* d += the products of four unsigned codes and four signed bytes a lane. PL_VNNI_IN_AVX2 spells the instruction out in
 * those that every CPU with AVX2 has: a build for tests, on machines without it. */
#ifdef PL_VNNI_IN_AVX2
INLINE vi dot4(vi d, vb codes, vi x)
{
    const vi low = _mm256_set1_epi16(255);
    vi even = _mm256_madd_epi16(_mm256_and_si256(codes, low), _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8));
    vi odd = _mm256_madd_epi16(_mm256_srli_epi16(codes, 8), _mm256_srai_epi16(x, 8));
    return _mm256_add_epi32(d, _mm256_add_epi32(even, odd));
}
#else
INLINE vi dot4(vi d, vb codes, vi x) { return _mm256_dpbusd_epi32(d, codes, x); }
#endif
#endif

/* Activations in two planes of signed bytes, X = 256 * high + low: 16 columns' low bytes, then their high ones. */
INLINE void put_planes(const int32_t *whole, uint8_t *x)
{
    for (int i = 0; i < 16; i++) {
        x[i] = (uint8_t)whole[i];
        x[16 + i] = (uint8_t)((whole[i] + 128) >> 8);
    }
}
typedef struct {
    vi low, high, sum; /* sums of products with either plane, and of both */
} dot;
INLINE dot dot_zero(void) { return (dot){_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()}; }

#ifdef PL_VNNI
INLINE dot dot_add(dot d, vb codes, const uint8_t *x, int u, const int bits)
{
    (void)bits;
    d.low = dot4(d.low, codes, broadcast4(x + 4 * u));
    d.high = dot4(d.high, codes, broadcast4(x + 16 + 4 * u));
    return d;
}
INLINE vi dot_sum(dot d, const int bits)
{
    (void)bits;
    return _mm256_add_epi32(d.low, _mm256_slli_epi32(d.high, 8));
}
INLINE void put_x(const int32_t *whole, const pl_form form, int64_t tokens, uint8_t *x)
{
    (void)form, (void)tokens;
    put_planes(whole, x);
}
#define LOADED_2(a, b) ((void)0)
#define LOADED_4(a, b, c, d) ((void)0)
enum { ONE_VECTORS = 2, ONE_RUNS = 1, FEW_TOKENS = 3, TILE_UNIT = 32, MANY_VECTORS = 2, MANY_TOKENS = 4 };
#define FEW_VECTORS(n) 2
#define FEW_LIMIT(bits) ((bits) == 5 || (bits) == 6 ? 4 : 8)
#define FEW_BITS(n, bits) (bits)
#define TILE_BIAS(bias) (bias)
INLINE void tile_put(uint8_t *tile, vb codes, int bias) { (void)bias; vb_store(tile, codes); }
INLINE dot tile_dot(dot d, const uint8_t *tile, const uint8_t *x, int u) { return dot_add(d, vb_load(tile), x, u, 8); }
INLINE vi tile_sum(dot d) { return dot_sum(d, 8); }
#else
/* Where more than bytes are needed, activations are 16-bit numbers, in pairs of the columns that a mask or a shift of a
 * lane's codes leaves side by side: the first and third of four, then the second and fourth. */
INLINE dot dot_pairs(dot d, vi even, vi odd, const uint8_t *x)
{
    vi products = _mm256_add_epi32(_mm256_madd_epi16(even, broadcast4(x)), _mm256_madd_epi16(odd, broadcast4(x + 4)));
    d.sum = _mm256_add_epi32(d.sum, products);
    KEEP(d.sum);
    return d;
}
/* Both planes' 16-bit sums, two to a lane. */
INLINE vi planes_sum(dot d)
{
    return _mm256_add_epi32(_mm256_madd_epi16(d.low, _mm256_set1_epi16(1)), _mm256_madd_epi16(d.high, _mm256_set1_epi16(256)));
}
/* One token, codes of up to six bits: products of bytes in 16-bit sums of two columns each, which hold 8 units of codes of
 * four bits, 4 of five, 2 of six: 63 * 128 * 4 < 2^15. */
INLINE dot dot_add(dot d, vb codes, const uint8_t *x, int u, const int bits)
{
    if (bits == 8)
        return dot_pairs(d, _mm256_and_si256(codes, _mm256_set1_epi16(255)), _mm256_srli_epi16(codes, 8), x + 8 * u);
    d.low = _mm256_add_epi16(d.low, _mm256_maddubs_epi16(codes, broadcast4(x + 4 * u)));
    d.high = _mm256_add_epi16(d.high, _mm256_maddubs_epi16(codes, broadcast4(x + 16 + 4 * u)));
    KEEP(d.low);
    KEEP(d.high);
    if (bits == 4 || (bits == 5 && u != 3) || u % 2 == 0) return d;
    const vi sum = _mm256_add_epi32(d.sum, planes_sum(d));
    d = dot_zero();
    d.sum = sum;
    KEEP(d.sum);
    return d;
}
INLINE vi dot_sum(dot d, const int bits) { return bits == 4 ? planes_sum(d) : d.sum; }
INLINE void put_x(const int32_t *whole, const pl_form form, int64_t tokens, uint8_t *x)
{
    if (tokens == 1 && form == FORM_D16_6) {
        put_planes(whole, x);
        return;
    }
    for (int i = 0; i < 16; i += 4) {
        const int16_t four[4] = {(int16_t)whole[i], (int16_t)whole[i + 2], (int16_t)whole[i + 1], (int16_t)whole[i + 3]};
        memcpy(x + 2 * i, four, sizeof four);
    }
}
#define LOADED_2(a, b) ((void)0)
#define LOADED_4(a, b, c, d) ((void)0)
enum { ONE_VECTORS = 2, ONE_RUNS = 1, FEW_TOKENS = 3, TILE_UNIT = 64, MANY_VECTORS = 2, MANY_TOKENS = 3 };
#define FEW_LIMIT(bits) 4
#define FEW_VECTORS(n) ((n) == 2 ? 2 : 1)
#define FEW_BITS(n, bits) ((n) == 1 ? (bits) : 8)
#define TILE_BIAS(bias) 0
INLINE void tile_put(uint8_t *tile, vb codes, int bias)
{
    const vi less = _mm256_set1_epi16((short)bias);
    vb_store(tile, _mm256_sub_epi16(_mm256_and_si256(codes, _mm256_set1_epi16(255)), less));
    vb_store(tile + 32, _mm256_sub_epi16(_mm256_srli_epi16(codes, 8), less));
}
INLINE dot tile_dot(dot d, const uint8_t *tile, const uint8_t *x, int u)
{
    return dot_pairs(d, vb_load(tile), vb_load(tile + 32), x + 8 * u);
}
INLINE vi tile_sum(dot d) { return d.sum; }
#endif
