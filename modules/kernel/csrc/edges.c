/* Edge weights, once per image and per caption, and their gradients (docs/method.md, section 2.4). */
#include "pairs.h"

/* ---- visual graphs: Gaussian kernels over polar coordinates; lanes: the 8 kernels, repeated ---- */

static const float TURN = 6.28318531f;

/* For one vector of kernels: a pair's distance minus the mean distance, the angle between theirs (0 to pi), and the
   derivative of this angle by the mean angle, 1 or -1 */
typedef struct { vec near, turn, way; } Place;

static inline void polar(const float *a, const float *b, float *rho, float *theta) {
    float dx = (a[0] + a[2]) / 2 - (b[0] + b[2]) / 2, dy = (a[1] + a[3]) / 2 - (b[1] + b[3]) / 2;
    *rho = sqrtf(dx * dx + dy * dy);
    *theta = atan2f(dx, dy);
}
INLINE Place place(const vec *kernels, int c, float rho, float theta) {
    vec delta = theta - kernels[2 * EV + c], one = splat(1);
    Place p = {.near = rho - kernels[c], .turn = pick(delta < 0, -delta, delta)};
    p.way = pick(delta < 0, one, -one);                                /* d turn / d mean */
    vec other = TURN - p.turn, far = pick(other < 0, -other, other);   /* the other way round, where it is shorter */
    ivec round = far < p.turn;
    p.way = pick(round, pick(other < 0, p.way, -p.way), p.way);
    p.turn = pick(round, far, p.turn);
    return p;
}
INLINE float all_kernels(const vec *x) {
    vec sum = x[0];
    for (int c = 1; c < EV; c++) sum += x[c];
    return total(sum) * EW / TW;
}
/* The 8 weights of one pair of regions.  They add up to 1, or are all 0 where every kernel underflows. */
INLINE void weigh(const vec *kernels, const Place *p, vec *w) {
    EACH(c, EV) {
        vec q = kernels[EV + c] * p[c].near * p[c].near + kernels[3 * EV + c] * p[c].turn * p[c].turn, scale;
        ivec alive = q > -103.97f;                     /* e^q is 0 in float32 below this; a NaN counts as 0 too */
        vec e = exp_parts(only(alive, q) + 40.f, &scale);
        w[c] = only(alive, scale * e + scale);         /* times e^40, against denormal numbers; the sum cancels it */
    }
    float sum = all_kernels(w);
    EACH(c, EV) w[c] = sum > 0 ? w[c] / sum : splat(0);
}
/* a row for every pair of regions or, with propagation "self", the sum of a region's rows */
void visual_edges(const Side *s, int item, int neighbors) {
    int R = s->length[item];
    const vec *kernels = (const vec *)s->kernels;
    const float *boxes = s->boxes + (int64_t)item * R * 4;
    float *out = s->edges + s->edge[item] * EW;
    FOR(a, R) {
        vec sum[EV] = {{0}}, w[EV];
        FOR(b, R) {
            float rho, theta;
            Place p[EV];
            polar(boxes + 4 * a, boxes + 4 * b, &rho, &theta);
            EACH(c, EV) p[c] = place(kernels, c, rho, theta);
            weigh(kernels, p, w);
            EACH(c, EV) sum[c] += w[c];
            if (neighbors) memcpy(out, w, 4 * EW), out += EW;
        }
        if (!neighbors) memcpy(out, sum, 4 * EW), out += EW;
    }
}
/* gradient of the rows -> of the kernels, into d->kernels */
void visual_edges_back(const Side *s, const Grad *d, int item, int neighbors) {
    int R = s->length[item];
    const vec *kernels = (const vec *)s->kernels;
    const float *in = d->edges + s->edge[item] * EW;
    const float *boxes = s->boxes + (int64_t)item * R * 4;
    vec sum[4][EV] = {{{0}}};
    FOR(a, R) FOR(b, R) {
        float rho, theta;
        Place p[EV];
        vec w[EV], g[EV], gw[EV];
        polar(boxes + 4 * a, boxes + 4 * b, &rho, &theta);
        EACH(c, EV) p[c] = place(kernels, c, rho, theta);
        weigh(kernels, p, w);
        EACH(c, EV) g[c] = edge(in + (neighbors ? a * R + b : a) * EW, c);
        EACH(c, EV) gw[c] = g[c] * w[c];
        float along = all_kernels(gw);
        EACH(c, EV) {
            vec dq = w[c] * (g[c] - along);
            sum[0][c] -= 2 * dq * kernels[EV + c] * p[c].near;
            sum[1][c] += dq * p[c].near * p[c].near;
            sum[2][c] += 2 * dq * kernels[3 * EV + c] * p[c].turn * p[c].way;
            sum[3][c] += dq * p[c].turn * p[c].turn;
        }
    }
    memcpy(d->kernels + (int64_t)item * 4 * TW, sum, sizeof sum);
}

/* ---- textual graphs: softmax of the words' affinities, dense or along dependencies; all kernels alike ---- */

/* row of the entry (i, j) of a symmetric matrix, of which the upper triangle is stored */
static inline int entry(int n, int i, int j) {
    int a = i < j ? i : j, b = i < j ? j : i;
    return a * n - a * (a - 1) / 2 + b - a;
}
static inline float linked(const Side *s, int item, int i, int j) {
    return s->links ? s->links[s->gram[item] + entry(s->length[item], i, j)] : 1;
}
/* Edge weights of word i.  soft: softmax over j of smooth T_i T_j.  weight: soft times the adjacency, divided by its
   sum, and times the adjacency again (docs/method.md, section 2.4.2).  Returns the sum. */
static float relate(const Side *s, int item, int i, float smooth, float *soft, float *weight) {
    int n = s->length[item];
    const float *grams = s->grams + s->gram[item] * KP;
    float most = -INFINITY, sum = 0, total_weight = 0;
    FOR(j, n) {
        const vec *g = (const vec *)(grams + entry(n, i, j) * KP);   /* twice T_i T_j where i and j differ */
        vec x = g[0];
        for (int k = 1; k < NV; k++) x += g[k];
        soft[j] = smooth * total(x) * (i == j ? 1 : .5f);
        if (soft[j] > most) most = soft[j];
    }
    FOR(j, n) sum += soft[j] = expf(soft[j] - most);
    FOR(j, n) { soft[j] /= sum; total_weight += weight[j] = linked(s, item, i, j) * soft[j]; }
    if (total_weight == 0) total_weight = 1;
    FOR(j, n) weight[j] *= linked(s, item, i, j) / total_weight;
    return total_weight;
}
/* a row for every pair of words or, with propagation "self", the sum of a word's rows; work: 2 n floats */
void textual_edges(const Side *s, int item, int neighbors, float smooth, float *work) {
    int n = s->length[item];
    float *weight = work + n;
    float *out = s->edges + s->edge[item] * EW;
    if (!neighbors && !s->links) {
        FOR(i, n * EW) out[i] = 1;
        return;
    }
    FOR(i, n) {
        float sum = 0;
        relate(s, item, i, smooth, work, weight);
        FOR(j, n) {
            sum += weight[j];
            if (neighbors) FOR(k, EW) *out++ = weight[j];
        }
        if (!neighbors) FOR(k, EW) *out++ = sum;
    }
}
/* gradient of the rows -> added to that of the Gram matrices; work: 3 n floats */
void textual_edges_back(const Side *s, const Grad *d, int item, int neighbors, float smooth, float *work) {
    int n = s->length[item];
    float *weight = work + n, *dw = weight + n;
    const float *in = d->edges + s->edge[item] * EW;
    if (!neighbors && !s->links) return;
    FOR(i, n) {
        float sum = relate(s, item, i, smooth, work, weight), along = 0, dot = 0;
        FOR(j, n) {
            const float *g = in + (neighbors ? i * n + j : i) * EW;
            dw[j] = 0;
            FOR(k, EW) dw[j] += g[k];
            along += weight[j] * dw[j];
        }
        FOR(j, n) {
            float a = linked(s, item, i, j);
            dot += work[j] * (dw[j] = a * (a * dw[j] - along) / sum);
        }
        FOR(j, n) {
            vec *dg = (vec *)(d->grams + (s->gram[item] + entry(n, i, j)) * KP);
            EACH(k, NV) dg[k] += (i == j ? 1 : .5f) * smooth * work[j] * (dw[j] - dot);
        }
    }
}
