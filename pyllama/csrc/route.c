/* Which experts a token goes to, and how much each of them counts: on one thread, since it is a few numbers a token. */
#include "kernels.h"

#include <math.h>

/* The untaken expert with the largest logit, equals by lower id; a NaN is smaller than every number. */
static int best_left(const float *logits, const uint8_t *taken, int experts)
{
    int best = 0;
    while (taken[best]) best++;
    for (int e = best + 1; e < experts; e++)
        if (!taken[e] && (logits[e] > logits[best] || (logits[best] != logits[best] && logits[e] == logits[e]))) best = e;
    return best;
}

void pl_route(const pl_kernels *k, const float *logits, int64_t tokens, int experts, int chosen, int of_chosen,
              int32_t *ids, float *weights)
{
    for (int64_t t = 0; t < tokens; t++, logits += experts, ids += chosen, weights += chosen) {
        uint8_t taken[MAX_EXPERTS] = {0};
        float e[MAX_EXPERTS], largest = 0, sum = 0;
        for (int i = 0; i < chosen; i++) {
            int best = best_left(logits, taken, experts);
            taken[best] = 1;
            if (i == 0) largest = logits[best];
        }
        for (int i = 0; i < experts; i++) e[i] = logits[i] - largest;
        k->exp(e, e, 0, experts);
        for (int i = 0, n = 0; i < experts; i++) {
            if (taken[i]) ids[n] = i, weights[n++] = e[i];
            if (taken[i] || !of_chosen) sum += e[i];
        }
        for (int n = 0; n < chosen; n++) weights[n] /= sum;
    }
}

void pl_route_sigmoid(const pl_kernels *k, const float *logits, const float *bias, int64_t tokens, int experts, int chosen,
                      int of_chosen, float scale, int32_t *ids, float *weights)
{
    for (int64_t t = 0; t < tokens; t++, logits += experts, ids += chosen, weights += chosen) {
        uint8_t taken[MAX_EXPERTS] = {0};
        float s[MAX_EXPERTS], score[MAX_EXPERTS], sum = 0;
        for (int i = 0; i < experts; i++) s[i] = -logits[i];
        k->exp(s, s, 0, experts);
        for (int i = 0; i < experts; i++) {
            s[i] = 1 / (1 + s[i]);
            score[i] = bias ? s[i] + bias[i] : s[i];
        }
        for (int i = 0; i < chosen; i++) taken[best_left(score, taken, experts)] = 1;
        for (int i = 0, n = 0; i < experts; i++) {
            if (!taken[i]) continue;
            ids[n] = i, weights[n++] = s[i];
            sum += s[i];
        }
        for (int n = 0; n < chosen; n++) {
            if (of_chosen) weights[n] /= sum + 1e-6f;
            weights[n] *= scale;
        }
    }
}
