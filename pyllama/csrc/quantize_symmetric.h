/* x = scale * level, levels on both sides of 0: the search for a run's scale, and for those of a block of runs. */

/* What the levels are: whole numbers from lo to hi, or those of a table. */
typedef struct {
    float lo, hi;
    const pl_levels *uneven; /* NULL: whole numbers */
} lattice;

INLINE vi half_numbers(vf a) { return v_int((v_clamp(a, -128.0f, 127.0f) + 128.0f) * 2.0f); }

/* The level nearest to a. */
INLINE vf level_of(vf a, lattice l)
{
    if (!l.uneven) return v_round(v_clamp(a, l.lo, l.hi));
    const vi index = half_numbers(a);
    vf level;
    for (int lane = 0; lane < LANES; lane++) level[lane] = l.uneven->level[index[lane]];
    return level;
}

/* Its code, from 0. */
INLINE vi code_of(vf a, lattice l)
{
    if (!l.uneven) return v_int(v_round(v_clamp(a, l.lo, l.hi)) - l.lo);
    const vi index = half_numbers(a);
    vi code;
    for (int lane = 0; lane < LANES; lane++) code[lane] = l.uneven->code[index[lane]];
    return code;
}

/* With levels nearest to x * inverse: the sums of w x level and of w level^2. */
INLINE void level_sums(const vf *x, const vf *w, int n, vf inverse, lattice l, vf *xl, vf *ll)
{
    *xl = *ll = v_set1(0.0f);
    for (int j = 0; j < n; j++) {
        vf level = level_of(x[j] * inverse, l), weighted = w[j] * level;
        *xl += weighted * x[j];
        *ll += weighted * level;
    }
}

/* The best scale so far and what it takes off the error. */
typedef struct {
    vf scale, gain;
} found_scale;

/* With the levels fixed the best scale is xl / ll, and takes xl^2 / ll off. */
INLINE void try_scale(const vf *x, const vf *w, int n, vf inverse, lattice l, found_scale *best)
{
    vf xl, ll;
    level_sums(x, w, n, inverse, l, &xl, &ll);
    const vf fit = xl * v_inverse(ll), taken = fit * xl;
    const vi better = taken > best->gain;
    best->gain = v_select(better, taken, best->gain);
    best->scale = v_select(better, fit, best->scale);
}

/* How far to either side of "the largest weight is the last level" free_scale looks, in how many steps. An odd number has
 * that scale itself among them, which finds weights that were quantized before as they were. */
typedef struct {
    int steps;
    float span;
} scale_grid;

/* The scale of one run: inverse scales on a grid, for either sign (the two ends of the levels are not alike), then the
 * levels chosen anew with the best of them, twice. Where columns count differently, the largest weight may be in one that
 * does not matter: then scales for some multiples of the weighted root mean square are tried too. */
INLINE vf free_scale(const vf *x, const vf *w, int n, lattice l, scale_grid grid, int weighted)
{
    vf most = x[0];
    found_scale best = {v_set1(0.0f), v_set1(0.0f)};
    for (int j = 1; j < n; j++) most = v_select(v_abs(x[j]) > v_abs(most), x[j], most);
    const vf unit = v_inverse(most);
    for (int side = 0; side < 2; side++)
        for (int i = 0; i < grid.steps; i++) {
            const float reach = 1.0f + grid.span * (float)(2 * i - grid.steps + 1) / (float)(grid.steps - 1);
            try_scale(x, w, n, unit * ((side ? l.hi : l.lo) * reach), l, &best);
        }
    if (weighted) {
        vf sum_w = v_set1(0.0f), squares = sum_w;
        for (int j = 0; j < n; j++) {
            sum_w += w[j];
            squares += w[j] * x[j] * x[j];
        }
        const vf per_rms = v_inverse(v_sqrt(squares * v_inverse(sum_w)));
        for (int side = 0; side < 2; side++)
            for (int i = 0; i < 6; i++)
                try_scale(x, w, n, per_rms * ((side ? l.hi : l.lo) / (1.5f + 0.3f * (float)i)), l, &best);
    }
    for (int i = 0; i < 2; i++) try_scale(x, w, n, v_inverse(best.scale), l, &best);
    return best.scale;
}

/* A block of runs, each with a whole scale in [scale_lo, scale_hi] of a common unit. */
enum { MAX_GROUPS = 16 / LANES };
typedef struct {
    int n, groups; /* columns of a run; runs / LANES */
    float scale_lo, scale_hi;
    lattice l;
    scale_grid grid;
    int resize; /* the unit is made larger at last, so that what was lost of the weights' size is none */
} symmetric_format;

/* For the unit d: the whole scales best for each run out of those near best[], and what they take off the error. best[]
 * becomes the runs' own best scales for the levels chosen, *refit the unit that is best for all levels and scales. */
INLINE double fit_scales(const vf (*x)[MAX_RUN], const vf (*w)[MAX_RUN], const symmetric_format *f, float d, vf *best,
                         vf *scales, float *refit)
{
    double up = 0, down = 0;
    const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
    for (int g = 0; g < f->groups; g++) {
        const vf centre = v_round(v_clamp(best[g] * inverse, f->scale_lo, f->scale_hi));
        vf gain = v_set1(0.0f), scale = gain, xl = gain, ll = gain;
        for (int i = -2; i <= 2; i++) {
            vf tried = v_clamp(centre + (float)i, f->scale_lo, f->scale_hi), t = tried * d, a, b;
            level_sums(x[g], w[g], f->n, v_inverse(t), f->l, &a, &b);
            vf taken = t * (a + a - t * b);
            vi better = taken > gain;
            gain = v_select(better, taken, gain);
            scale = v_select(better, tried, scale);
            xl = v_select(better, a, xl);
            ll = v_select(better, b, ll);
        }
        scales[g] = scale;
        best[g] = v_select(scale != 0.0f, xl * v_inverse(ll), best[g]);
        for (int lane = 0; lane < LANES; lane++) {
            up += (double)scale[lane] * xl[lane];
            down += (double)scale[lane] * scale[lane] * ll[lane];
        }
    }
    *refit = down > 0 ? (float)(up / down) : 0.0f;
    return d * (2 * up - d * down);
}

/* Scales of a whole block; the bits of its unit, and what these stand for. First each run's scale alone; then, in turns,
 * whole scales for a unit and the unit for these. */
INLINE float symmetric_block(const vf (*x)[MAX_RUN], const vf (*w)[MAX_RUN], const symmetric_format *f, int weighted,
                             int exponent, vf *scales, uint16_t *bits)
{
    vf own[MAX_GROUPS], tried[MAX_GROUPS];
    float most = 0.0f, best = 0.0f, next;
    double gain = 0;
    *bits = 0;
    for (int g = 0; g < f->groups; g++) {
        scales[g] = v_set1(0.0f);
        own[g] = free_scale(x[g], w[g], f->n, f->l, f->grid, weighted);
        for (int lane = 0; lane < LANES; lane++)
            if (own[g][lane] * own[g][lane] > most * most) most = own[g][lane];
    }
    next = first_unit(most / f->scale_lo, exponent);
    for (int turn = 0; turn < 3; turn++) {
        uint16_t h;
        const float d = stored(next, exponent, &h);
        const double taken = fit_scales(x, w, f, d, own, tried, &next);
        if (taken > gain) {
            gain = taken;
            best = d;
            *bits = h;
            memcpy(scales, tried, (size_t)f->groups * sizeof *scales);
        }
    }
    return best;
}
