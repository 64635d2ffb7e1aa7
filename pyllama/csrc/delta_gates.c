/* How much of its state a head of the delta rule keeps, and how much it takes in: on one thread, two numbers a head. */
#include "kernels.h"
#include "parallel.h"

void pl_delta_gates(const pl_kernels *k, const float *a, const float *b, const float *rate, const float *bias,
                    int64_t tokens, int64_t heads, float *decay, float *beta)
{
    const uint64_t saved = fp_enter();
    for (int64_t i = 0; i < tokens * heads; i++) {
        const float t = a[i] + bias[i % heads];
        decay[i] = t < 0 ? t : -t;
        beta[i] = -b[i];
    }
    k->exp(decay, decay, 0, tokens * heads);
    k->exp(beta, beta, 0, tokens * heads);
    for (int64_t i = 0; i < tokens * heads; i++) {
        const float t = a[i] + bias[i % heads], above = t < 0 ? 0.0f : t;
        /* softplus(t) = max(t, 0) + ln(1 + exp(-|t|)), the logarithm in float64 */
        const float softplus = above + (decay[i] == decay[i] ? (float)pl_natural_log(1.0 + (double)decay[i]) : decay[i]);
        decay[i] = rate[i % heads] * softplus;
        beta[i] = 1.0f / (1.0f + beta[i]);
    }
    k->exp(decay, decay, 0, tokens * heads);
    fp_leave(saved);
}
