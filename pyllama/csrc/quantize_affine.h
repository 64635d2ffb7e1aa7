/* x = scale * q + least, q from 0 to `top`: the search for a run's scale and least value, and for those of a block. */

typedef struct {
    vf q, qq, xq; /* sums of w q, w q^2, w x q */
} affine_sums;

/* With q nearest to (x - least) * inverse. */
INLINE affine_sums sums_of(const vf *x, const vf *w, int n, vf least, vf inverse, float top)
{
    affine_sums s = {v_set1(0.0f), v_set1(0.0f), v_set1(0.0f)};
    for (int j = 0; j < n; j++) {
        vf q = v_round(v_clamp((x[j] - least) * inverse, 0.0f, top)), weighted = w[j] * q;
        s.q += weighted;
        s.qq += weighted * q;
        s.xq += weighted * x[j];
    }
    return s;
}

/* Least squares for the q that were chosen; what it takes off the error is scale * xq + least * x. Where q are all the same
 * the scale is 0. below_zero: least may not be above 0. */
INLINE vf least_squares(affine_sums s, vf sum_w, vf sum_x, int below_zero, vf *scale, vf *least)
{
    vf determinant = sum_w * s.qq - s.q * s.q;
    vf inverse = v_select(determinant > 1e-6f * sum_w * s.qq, v_inverse(determinant), v_set1(0.0f));
    vi none = inverse == 0.0f;
    vf a = (sum_w * s.xq - sum_x * s.q) * inverse, b = v_select(none, sum_x * v_inverse(sum_w), (s.qq * sum_x - s.q * s.xq) * inverse);
    if (below_zero) {
        vi above = b > 0.0f;
        a = v_select(above, s.xq * v_inverse(s.qq), a);
        b = v_select(above, v_set1(0.0f), b);
    }
    *scale = a;
    *least = b;
    return a * s.xq + b * sum_x;
}

/* Both of one run: the range of the weights, cut at either end by the steps of a grid, `cut` of a level each; then refined. */
INLINE void free_affine(const vf *x, const vf *w, int n, float top, int below_zero, int steps, float cut, int refinements,
                        vf sum_w, vf sum_x, vf *scale, vf *least)
{
    vf lowest = x[0], highest = x[0], a, b;
    for (int j = 1; j < n; j++) {
        lowest = v_min(lowest, x[j]);
        highest = v_max(highest, x[j]);
    }
    if (below_zero) lowest = v_min(lowest, v_set1(0.0f));
    const vf range = v_max(highest - lowest, v_set1(1e-20f));
    *scale = v_set1(0.0f);
    *least = sum_x * v_inverse(sum_w);
    if (below_zero) *least = v_min(*least, v_set1(0.0f));
    vf gain = *least * (sum_x + sum_x - *least * sum_w);
    for (int i = 0; i < steps; i++)
        for (int k = 0; k < steps; k++) {
            const float below = (cut * (float)i - 0.3f) / top, above = (cut * (float)k - 0.3f) / top;
            vf start = lowest + range * below, inverse = v_set1(top) / (range * (1.0f - below - above));
            affine_sums s = sums_of(x, w, n, start, inverse, top);
            vf taken = least_squares(s, sum_w, sum_x, below_zero, &a, &b);
            vi better = taken > gain;
            gain = v_select(better, taken, gain);
            *scale = v_select(better, a, *scale);
            *least = v_select(better, b, *least);
        }
    for (int i = 0; i < refinements; i++) {
        affine_sums s = sums_of(x, w, n, *least, v_inverse(*scale), top);
        vf taken = least_squares(s, sum_w, sum_x, below_zero, &a, &b);
        vi better = taken > gain;
        gain = v_select(better, taken, gain);
        *scale = v_select(better, a, *scale);
        *least = v_select(better, b, *least);
    }
}

/* A block of runs: x = d * scale * q - dmin * minimum, whole scales and minimums from 0 to `most`. */
typedef struct {
    int n, groups;
    float most, top;
} affine_format;

typedef struct {
    vf scale, minimum;
} affine_pair;

/* What a pair takes off the error of the q whose sums are s. */
INLINE vf pair_gain(affine_sums s, vf sum_w, vf sum_x, vf t, vf u)
{
    vf linear = t * s.xq - u * sum_x;
    return linear + linear - (t * t * s.qq - (t + t) * u * s.q + u * u * sum_w);
}

/* For the units d and dmin: start from each run's best pair, choose q, then the best whole pair for these q, and so on;
 * own[] becomes the runs' best for the q chosen, refit the best units for all that was chosen. */
INLINE double fit_pairs(const vf (*x)[MAX_RUN], const vf (*w)[MAX_RUN], const affine_format *f, const vf *sum_w,
                        const vf *sum_x, float d, float dmin, affine_pair *own, affine_pair *pairs, float *refit)
{
    const vf per_d = v_inverse(v_set1(d)), per_dmin = v_inverse(v_set1(dmin));
    double ss = 0, sm = 0, mm = 0, xs = 0, xm = 0;
    for (int g = 0; g < f->groups; g++) {
        const vf centre = v_round(own[g].scale * per_d);
        affine_sums best = {v_set1(0.0f), v_set1(0.0f), v_set1(0.0f)};
        affine_pair chosen = {best.q, best.q};
        vf gain = v_set1(0.0f);
        for (int i = -1; i <= 1; i++) {
            vf scale = v_clamp(centre + (float)i, 0.0f, f->most);
            vf minimum = v_clamp(v_round(own[g].minimum * per_dmin), 0.0f, f->most);
            for (int again = 0; again < 2; again++) {
                vf t = scale * d, u = minimum * dmin;
                affine_sums s = sums_of(x[g], w[g], f->n, -u, v_inverse(t), f->top);
                vf taken = pair_gain(s, sum_w[g], sum_x[g], t, u);
                vi better = taken > gain;
                gain = v_select(better, taken, gain);
                chosen.scale = v_select(better, scale, chosen.scale);
                chosen.minimum = v_select(better, minimum, chosen.minimum);
                best.q = v_select(better, s.q, best.q);
                best.qq = v_select(better, s.qq, best.qq);
                best.xq = v_select(better, s.xq, best.xq);
                /* the best minimum for these q and this scale */
                minimum = v_clamp(v_round((t * s.q - sum_x[g]) * v_inverse(sum_w[g]) * per_dmin), 0.0f, f->most);
            }
        }
        pairs[g] = chosen;
        vf a, b;
        least_squares(best, sum_w[g], sum_x[g], 1, &a, &b);
        vi some = best.qq > 0.0f;
        own[g].scale = v_select(some, a, own[g].scale);
        own[g].minimum = v_select(some, -b, own[g].minimum);
        for (int lane = 0; lane < LANES; lane++) {
            double s = chosen.scale[lane], m = chosen.minimum[lane];
            ss += s * s * best.qq[lane];
            sm += s * m * best.q[lane];
            mm += m * m * sum_w[g][lane];
            xs += s * best.xq[lane];
            xm += m * sum_x[g][lane];
        }
    }
    const double determinant = ss * mm - sm * sm;
    refit[0] = d;
    refit[1] = dmin;
    if (determinant > 1e-9 * ss * mm) {
        const double scale = (xs * mm - xm * sm) / determinant, minimum = (xs * sm - xm * ss) / determinant;
        if (scale > 0) refit[0] = (float)scale;
        if (minimum > 0) refit[1] = (float)minimum;
    } else if (ss > 0 && xs + dmin * sm > 0) {
        refit[0] = (float)((xs + dmin * sm) / ss);
    }
    return 2 * (d * xs - dmin * xm) - (d * (double)d * ss - 2 * (double)d * dmin * sm + dmin * (double)dmin * mm);
}

INLINE void affine_block(const vf (*x)[MAX_RUN], const vf (*w)[MAX_RUN], const affine_format *f, int exponent,
                         affine_pair *pairs, uint16_t *bits, float *units)
{
    affine_pair own[MAX_GROUPS], tried[MAX_GROUPS];
    vf sum_w[MAX_GROUPS], sum_x[MAX_GROUPS];
    float most[2] = {0.0f, 0.0f}, next[2];
    double gain = 0;
    for (int g = 0; g < f->groups; g++) {
        pairs[g] = (affine_pair){v_set1(0.0f), v_set1(0.0f)};
        sum_w[g] = sum_x[g] = v_set1(0.0f);
        for (int j = 0; j < f->n; j++) {
            sum_w[g] += w[g][j];
            sum_x[g] += w[g][j] * x[g][j];
        }
        free_affine(x[g], w[g], f->n, f->top, 1, 4, 0.6f, 2, sum_w[g], sum_x[g], &own[g].scale, &own[g].minimum);
        own[g].minimum = -own[g].minimum;
        for (int lane = 0; lane < LANES; lane++) {
            most[0] = own[g].scale[lane] > most[0] ? own[g].scale[lane] : most[0];
            most[1] = own[g].minimum[lane] > most[1] ? own[g].minimum[lane] : most[1];
        }
    }
    bits[0] = bits[1] = 0;
    units[0] = units[1] = 0.0f;
    next[0] = first_unit(most[0] / f->most, exponent);
    next[1] = first_unit(most[1] / f->most, exponent);
    for (int round = 0; round < 3; round++) {
        uint16_t h[2];
        float d = stored(next[0], exponent, &h[0]), dmin = stored(next[1], exponent, &h[1]);
        double taken = fit_pairs(x, w, f, sum_w, sum_x, d, dmin, own, tried, next);
        if (taken > gain) {
            gain = taken;
            units[0] = d;
            units[1] = dmin;
            memcpy(bits, h, sizeof h);
            memcpy(pairs, tried, (size_t)f->groups * sizeof *pairs);
        }
    }
}
