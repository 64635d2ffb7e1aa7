/* The draw of a token: the largest logit + Gumbel noise, where the noise is a function of (seed, index, token).
 *
 * The same bits on every machine: the hash is integers, the logarithm float64 operations in a stated order, none of them
 * fused (MODEL.md, "Numerics"). Most candidates never need a logarithm: what their hash says of the noise's size is
 * enough to see that they cannot win. */
#include "kernels.h"
#include "parallel.h"

#include <string.h>

/* Output number n of SplitMix64 started at `state` (Steele, Lea, Flood, 2014). */
static inline uint64_t splitmix(uint64_t state, uint64_t n)
{
    uint64_t z = state + (n + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* ln x of a normal x > 0, under 1 ulp: x = 2^e m with m in (sqrt 1/2, sqrt 2], f = m - 1, s = f / (2 + f), and
 * ln m = 2 artanh s = f - s (f - 2 (s^2/3 + s^4/5 + ...)). The first term left out is under 2^-62 of s. */
double pl_natural_log(double x)
{
    static const double c[] = {2.0 / 3, 2.0 / 5, 2.0 / 7, 2.0 / 9, 2.0 / 11, 2.0 / 13, 2.0 / 15, 2.0 / 17, 2.0 / 19,
                               2.0 / 21, 2.0 / 23};
    uint64_t bits;
    memcpy(&bits, &x, 8);
    const uint64_t up = (bits & 0xfffffffffffffu) > 0x6a09e667f3bcdu; /* m above sqrt 2: half of it */
    double e = (double)((int64_t)(bits >> 52) - 1023 + (int64_t)up), m;
    bits = (bits & 0xfffffffffffffu) | (1023 - up) << 52;
    memcpy(&m, &bits, 8);
    double f = m - 1.0, s = f / (2.0 + f), z = s * s, p = c[10];
    for (int i = 9; i >= 0; i--) p = p * z + c[i];
    /* ln 2 in two parts: e times the first is exact */
    return e * 0x1.62e42feep-1 - ((s * (f - z * p) - e * 0x1.a39ef35793c76p-33) - f);
}

/* -ln(-ln u) of u = k 2^-53, k the hash's upper 53 bits, never 0. */
static double noise(uint64_t hash)
{
    uint64_t k = hash >> 11;
    return -pl_natural_log(-pl_natural_log((double)(k ? k : 1) * 0x1p-53));
}

void pl_draw(const int64_t *ids, const float *logits, int64_t n, uint64_t seed, uint64_t index, int64_t count,
             int64_t *best, double *scores)
{
    enum { BLOCK = 256 };
    const uint64_t saved = fp_enter(), key = splitmix(splitmix(seed, 0), index);
    int64_t found = 0;
    float limit = -__builtin_inff(); /* a bound below it is beaten by `count` scores already */
    for (int64_t first = 0; first < n; first += BLOCK) {
        const int block = n - first < BLOCK ? (int)(n - first) : BLOCK;
        uint64_t hashes[BLOCK];
        float bounds[BLOCK];
        for (int i = 0; i < block; i++) hashes[i] = splitmix(key, (uint64_t)ids[first + i]);
        /* -ln u >= 1 - u >= v, its first 31 bits, so the noise is at most -ln v; and log2 v is at least the bits of the
         * float v over 2^23, less its bias, since log2(1 + f) >= f. What rounding adds to it is under 1e-4. */
        int any = 0;
        for (int i = 0; i < block; i++) {
            float v = (float)(int32_t)(~hashes[i] >> 33) * 0x1p-31f;
            int32_t bits;
            memcpy(&bits, &v, 4);
            bounds[i] = logits[first + i] + (127.0f - (float)bits * 0x1p-23f) * 0.6931472f;
            any |= bounds[i] >= limit;
        }
        if (!any) continue;
        for (int i = 0; i < block; i++) {
            if (bounds[i] < limit) continue;
            const int64_t id = ids[first + i];
            const double score = (double)logits[first + i] + noise(hashes[i]);
            int64_t at = found < count ? found++ : count;
            for (; at > 0 && (scores[at - 1] < score || (scores[at - 1] == score && best[at - 1] > id)); at--)
                if (at < count) scores[at] = scores[at - 1], best[at] = best[at - 1];
            if (at < count) scores[at] = score, best[at] = id;
            if (found == count) limit = (float)(scores[count - 1] - 1e-3);
        }
    }
    fp_leave(saved);
}
