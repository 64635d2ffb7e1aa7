/* cos and sin for RoPE, in float64 with our own polynomials: libm's differ between machines in the last bit. */
#include "kernels.h"

/* Taylor terms up to x^17: on |x| <= pi/4 the first one left out is under 1e-19. Horner in plain
 * multiplications and additions; -ffp-contract=off keeps them apart on every machine. */
static double sine(double x)
{
    static const double c[] = {-1.0 / 6, 1.0 / 120, -1.0 / 5040, 1.0 / 362880, -1.0 / 39916800, 1.0 / 6227020800,
                               -1.0 / 1307674368000, 1.0 / 355687428096000};
    double z = x * x, p = c[7];
    for (int i = 6; i >= 0; i--) p = p * z + c[i];
    return x + x * z * p;
}

static double cosine(double x)
{
    static const double c[] = {-1.0 / 2, 1.0 / 24, -1.0 / 720, 1.0 / 40320, -1.0 / 3628800, 1.0 / 479001600,
                               -1.0 / 87178291200, 1.0 / 20922789888000};
    double z = x * x, p = c[7];
    for (int i = 6; i >= 0; i--) p = p * z + c[i];
    return 1.0 + z * p;
}

/* cos and sin of x >= 0. pi/2 in three parts of 33 bits (W. Cody and W. Waite, 1980): quarter * part is exact
 * for quarter < 2^20, a million radians and more. */
static void cos_sin(double x, double *cos, double *sin)
{
    int64_t quarter = (int64_t)(x * 0.63661977236758134308 + 0.5);
    double q = (double)quarter;
    double r = x - q * 1.57079632673412561417e+00;
    r -= q * 6.07710050630396597660e-11;
    r -= q * 2.02226624879595063154e-21;
    double s = sine(r), c = cosine(r);
    switch (quarter & 3) {
    case 0: *cos = c; *sin = s; break;
    case 1: *cos = -s; *sin = c; break;
    case 2: *cos = -c; *sin = -s; break;
    default: *cos = s; *sin = -c; break;
    }
}

void pl_rope_table(const int64_t *positions, int64_t tokens, const double *inv_freq, int64_t half, double scale,
                   float *cos, float *sin)
{
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t i = 0; i < half; i++) {
            double c, s;
            cos_sin((double)positions[t] * inv_freq[i], &c, &s);
            cos[t * half + i] = (float)(c * scale);
            sin[t * half + i] = (float)(s * scale);
        }
}
