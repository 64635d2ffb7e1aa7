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

/* A run and the sums that no choice of q changes. */
typedef struct {
    const vf *x, *w;
    int n;
    float top;
    int below_zero; /* least may not be above 0 */
    vf sum_w, sum_x;
} affine_run;

INLINE affine_run run_of(const vf *x, const vf *w, int n, float top, int below_zero)
{
    affine_run r = {x, w, n, top, below_zero, v_set1(0.0f), v_set1(0.0f)};
    for (int j = 0; j < n; j++) {
        r.sum_w += w[j];
        r.sum_x += w[j] * x[j];
    }
    return r;
}

/* Least squares for the q that were chosen; what it takes off the error is scale * xq + least * x. Where q are all the same
 * the scale is 0. */
INLINE vf least_squares(const affine_run *r, affine_sums s, vf *scale, vf *least)
{
    const vf determinant = r->sum_w * s.qq - s.q * s.q;
    const vf inverse = v_select(determinant > 1e-6f * r->sum_w * s.qq, v_inverse(determinant), v_set1(0.0f));
    vf a = (r->sum_w * s.xq - r->sum_x * s.q) * inverse, b = (s.qq * r->sum_x - s.q * s.xq) * inverse;
    b = v_select(inverse == 0.0f, r->sum_x * v_inverse(r->sum_w), b);
    if (r->below_zero) {
        const vi above = b > 0.0f;
        a = v_select(above, s.xq * v_inverse(s.qq), a);
        b = v_select(above, v_set1(0.0f), b);
    }
    *scale = a;
    *least = b;
    return a * s.xq + b * r->sum_x;
}

typedef struct {
    vf scale, least, gain;
} found_affine;

INLINE void try_affine(const affine_run *r, vf least, vf inverse, found_affine *best)
{
    vf a, b;
    const vf taken = least_squares(r, sums_of(r->x, r->w, r->n, least, inverse, r->top), &a, &b);
    const vi better = taken > best->gain;
    best->gain = v_select(better, taken, best->gain);
    best->scale = v_select(better, a, best->scale);
    best->least = v_select(better, b, best->least);
}

/* Scale and least value of one run: the range of the weights, made longer or cut at either end by up to so many parts of a
 * level; then q chosen anew with the best found, twice. The range itself is among them, which finds weights that were
 * quantized before as they were. Where columns count differently, the ends of the range may be where it does not matter:
 * then some multiples of the weighted deviation around the mean are tried too. */
INLINE void free_affine(const affine_run *r, int weighted, vf *scale, vf *least)
{
    static const float cuts[] = {-0.6f, 0.0f, 0.6f, 1.2f};
    const vf *x = r->x, mean = r->sum_x * v_inverse(r->sum_w);
    vf lowest = x[0], highest = x[0];
    for (int j = 1; j < r->n; j++) {
        lowest = v_min(lowest, x[j]);
        highest = v_max(highest, x[j]);
    }
    found_affine best = {v_set1(0.0f), mean, v_set1(0.0f)};
    if (r->below_zero) {
        lowest = v_min(lowest, v_set1(0.0f));
        best.least = v_min(mean, v_set1(0.0f));
    }
    best.gain = best.least * (r->sum_x + r->sum_x - best.least * r->sum_w);
    const vf level = (highest - lowest) * (1.0f / r->top), per_level = v_inverse(level);
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 4; k++)
            try_affine(r, lowest + level * cuts[i], per_level * (r->top / (r->top - cuts[i] - cuts[k])), &best);
    if (weighted) {
        vf squares = v_set1(0.0f);
        for (int j = 0; j < r->n; j++) squares += r->w[j] * (x[j] - mean) * (x[j] - mean);
        const vf deviation = v_sqrt(squares * v_inverse(r->sum_w));
        for (int i = 0; i < 6; i++) {
            const vf reach = deviation * (1.5f + 0.3f * (float)i);
            const vf start = r->below_zero ? v_min(mean - reach, v_set1(0.0f)) : mean - reach;
            try_affine(r, start, r->top * v_inverse(mean + reach - start), &best);
        }
    }
    for (int i = 0; i < 2; i++) try_affine(r, best.least, v_inverse(best.scale), &best);
    *scale = best.scale;
    *least = best.least;
}

/* A block of runs: x = d * scale * q - dmin * minimum, whole scales and minimums from 0 to `most`. */
typedef struct {
    int n, groups;
    float most, top;
    int starts; /* how many of first_units are tried */
    int resize; /* both units are made larger at last, so that what was lost of the weights' size is none */
} affine_format;

typedef struct {
    vf scale, minimum;
} affine_pair;

/* What a scale t and a minimum u take off the error of the q whose sums are s. */
INLINE vf pair_gain(const affine_run *r, affine_sums s, vf t, vf u)
{
    const vf linear = t * s.xq - u * r->sum_x;
    return linear + linear - (t * t * s.qq - (t + t) * u * s.q + u * u * r->sum_w);
}

/* For the units d and dmin: whole scales near each run's best one, each with the minimum that leaves the run's mean where it
 * is. own[] becomes the runs' best pairs for the q chosen, refit the units that are best for all that was chosen. */
INLINE double fit_pairs(const affine_run *runs, const affine_format *f, float d, float dmin, affine_pair *own,
                        affine_pair *pairs, float *refit)
{
    const vf per_d = v_inverse(v_set1(d)), per_dmin = v_inverse(v_set1(dmin));
    double ss = 0, sm = 0, mm = 0, xs = 0, xm = 0;
    for (int g = 0; g < f->groups; g++) {
        const affine_run *r = &runs[g];
        const vf centre = v_round(v_clamp(own[g].scale * per_d, 0.0f, f->most)), mean = r->sum_x * v_inverse(r->sum_w);
        const vf mean_q = (mean + own[g].minimum) * v_inverse(own[g].scale);
        affine_sums best = {v_set1(0.0f), v_set1(0.0f), v_set1(0.0f)};
        affine_pair chosen = {best.q, best.q};
        vf gain = v_set1(0.0f), a, b;
        for (int i = -2; i <= 2; i++) {
            const vf scale = v_clamp(centre + (float)i, 0.0f, f->most), t = scale * d;
            const vf minimum = v_round(v_clamp((t * mean_q - mean) * per_dmin, 0.0f, f->most)), u = minimum * dmin;
            const affine_sums s = sums_of(r->x, r->w, r->n, -u, v_inverse(t), f->top);
            const vf taken = pair_gain(r, s, t, u);
            const vi better = taken > gain;
            gain = v_select(better, taken, gain);
            chosen.scale = v_select(better, scale, chosen.scale);
            chosen.minimum = v_select(better, minimum, chosen.minimum);
            best.q = v_select(better, s.q, best.q);
            best.qq = v_select(better, s.qq, best.qq);
            best.xq = v_select(better, s.xq, best.xq);
        }
        pairs[g] = chosen;
        least_squares(r, best, &a, &b);
        const vi some = best.qq > 0.0f;
        own[g].scale = v_select(some, a, own[g].scale);
        own[g].minimum = v_select(some, -b, own[g].minimum);
        for (int lane = 0; lane < LANES; lane++) {
            const double s = chosen.scale[lane], m = chosen.minimum[lane];
            ss += s * s * best.qq[lane];
            sm += s * m * best.q[lane];
            mm += m * m * r->sum_w[lane];
            xs += s * best.xq[lane];
            xm += m * r->sum_x[lane];
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

/* What the first units are of those that let the largest scale and minimum be whole numbers. Where scales have few bits, the
 * others gain more from a smaller unit than the largest lose. */
static const float first_units[][2] = {{1.0f, 1.0f}, {0.6f, 1.0f}, {0.8f, 0.85f}, {0.5f, 0.85f}};

/* Pairs of a whole block; the bits of its units, and what these stand for. First each run alone; then, in turns, whole pairs
 * for two units and the units for these. */
INLINE void affine_block(const vf (*x)[MAX_RUN], const vf (*w)[MAX_RUN], const affine_format *f, int weighted, int exponent,
                         affine_pair *pairs, uint16_t *bits, float *units)
{
    affine_run runs[MAX_GROUPS];
    affine_pair alone[MAX_GROUPS], own[MAX_GROUPS], tried[MAX_GROUPS];
    float most[2] = {0.0f, 0.0f};
    double gain = 0;
    for (int g = 0; g < f->groups; g++) {
        vf scale, least;
        pairs[g] = (affine_pair){v_set1(0.0f), v_set1(0.0f)};
        runs[g] = run_of(x[g], w[g], f->n, f->top, 1);
        free_affine(&runs[g], weighted, &scale, &least);
        alone[g] = (affine_pair){scale, -least};
        for (int lane = 0; lane < LANES; lane++) {
            most[0] = scale[lane] > most[0] ? scale[lane] : most[0];
            most[1] = -least[lane] > most[1] ? -least[lane] : most[1];
        }
    }
    bits[0] = bits[1] = 0;
    units[0] = units[1] = 0.0f;
    for (int start = 0; start < f->starts; start++) {
        float next[2];
        for (int i = 0; i < 2; i++) next[i] = first_unit(most[i] / f->most * first_units[start][i], exponent);
        memcpy(own, alone, (size_t)f->groups * sizeof *own);
        for (int turn = 0; turn < 3; turn++) {
            uint16_t h[2];
            const float d = stored(next[0], exponent, &h[0]), dmin = stored(next[1], exponent, &h[1]);
            const double taken = fit_pairs(runs, f, d, dmin, own, tried, next);
            if (taken > gain) {
                gain = taken;
                units[0] = d;
                units[1] = dmin;
                memcpy(bits, h, sizeof h);
                memcpy(pairs, tried, (size_t)f->groups * sizeof *pairs);
            }
        }
    }
}
