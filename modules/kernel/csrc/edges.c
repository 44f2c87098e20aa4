/* Edge weights, once per image and per caption, and their gradients (docs/method.md, section 2.4). */
#include "pairs.h"

/* Visual graphs: Gaussian kernels over polar coordinates */
typedef struct {
    float w[TW] __attribute__((aligned(64)));   /* the weights of one pair of regions, and padding */
    float near[EW];   /* the regions' distance minus a kernel's mean distance */
    float turn[EW];   /* the angle from a kernel's mean angle, the shorter way round */
    float way[EW];    /* its derivative by the mean angle, 1 or -1 */
} Place;

/* The weights add up to 1, or are all 0 where every kernel underflows. */
static void weigh(const Side *s, int item, int from, int to, Place *p) {
    const float PI = M_PI, *a = s->boxes + (item * s->length[item] + from) * 4, *b = a + (to - from) * 4;
    float dx = (a[0] + a[2]) / 2 - (b[0] + b[2]) / 2, dy = (a[1] + a[3]) / 2 - (b[1] + b[3]) / 2, sum = 0;
    float rho = sqrtf(dx * dx + dy * dy), theta = atan2f(dx, dy);
    FOR(k, EW) {
        float delta = theta - s->kernels[2 * EW + k], around = PI - fabsf(delta);
        p->near[k] = rho - s->kernels[k];
        p->turn[k] = PI - fabsf(around);
        p->way[k] = (delta < 0) == (around < 0) ? -1 : 1;
        p->w[k] = s->kernels[EW + k] * p->near[k] * p->near[k] + s->kernels[3 * EW + k] * p->turn[k] * p->turn[k];
    }
    FOR(c, EV) {
        vec *w = (vec *)p->w + c, scale;
        ivec alive = *w > -103.97f;                    /* e^w is 0 in float32 below this; a NaN counts as 0 too */
        vec e = exp_parts(only(alive, *w) + 40.f, &scale);
        *w = only(alive, scale * e + scale);           /* times e^40, against denormal numbers; the sum cancels it */
    }
    FOR(k, EW) sum += p->w[k];
    if (sum > 0) FOR(k, EW) p->w[k] /= sum;
}
/* gradient g of a pair's weights -> added to that of the kernels */
static void weigh_back(const Side *s, const Place *p, const float *g, float *d) {
    float along = 0;
    FOR(k, EW) along += g[k] * p->w[k];
    FOR(k, EW) {
        float dq = p->w[k] * (g[k] - along);
        d[k] -= 2 * dq * s->kernels[EW + k] * p->near[k];
        d[EW + k] += dq * p->near[k] * p->near[k];
        d[2 * EW + k] += 2 * dq * s->kernels[3 * EW + k] * p->turn[k] * p->way[k];
        d[3 * EW + k] += dq * p->turn[k] * p->turn[k];
    }
}

/* Textual graphs: softmax of the words' affinities, dense or along dependencies; all kernels alike */

/* row of the entry (i, j) of a symmetric matrix, of which the upper triangle is stored */
static inline int entry(int n, int i, int j) {
    int a = i < j ? i : j, b = i < j ? j : i;
    return a * n - a * (a - 1) / 2 + b - a;
}
static inline float linked(const Job *j, int item, int from, int to) {
    const float *links = j->sides[1].links;
    return links ? links[(item * j->n + from) * j->n + to] : 1;
}
/* Edge weights of word i.  soft: softmax of smooth T_i T_k over k.  weight: soft times the adjacency, divided by its
   sum, and times the adjacency again (docs/method.md, section 2.4.2).  Returns the sum. */
static float relate(const Job *j, int item, int i, float *soft, float *weight) {
    const Side *s = &j->sides[1];
    int n = s->length[item];
    float most = -INFINITY, sum = 0, all = 0;
    FOR(k, n) {
        const vec *g = (const vec *)(s->grams + (s->gram[item] + entry(n, i, k)) * KP);   /* twice T_i T_k for k != i */
        vec x = g[0];
        for (int v = 1; v < NV; v++) x += g[v];
        soft[k] = j->smooth * total(x) * (i == k ? 1 : .5f);
        if (soft[k] > most) most = soft[k];
    }
    FOR(k, n) sum += soft[k] = expf(soft[k] - most);
    FOR(k, n) { soft[k] /= sum; all += weight[k] = linked(j, item, i, k) * soft[k]; }
    if (all == 0) all = 1;
    FOR(k, n) weight[k] *= linked(j, item, i, k) / all;
    return all;
}
/* gradients dw of the weights of word i -> added to that of the Gram matrices */
static void relate_back(const Job *j, int item, int i, float *soft, float *weight, float *dw) {
    const Side *s = &j->sides[1];
    int n = s->length[item];
    float sum = relate(j, item, i, soft, weight), along = 0, dot = 0;
    FOR(k, n) along += weight[k] * dw[k];
    FOR(k, n) {
        float a = linked(j, item, i, k);
        dot += soft[k] * (dw[k] = a * (a * dw[k] - along) / sum);
    }
    FOR(k, n) {
        vec *dg = (vec *)(j->grads[1].grams + (s->gram[item] + entry(n, i, k)) * KP);
        EACH(v, NV) dg[v] += (i == k ? 1 : .5f) * (float)j->smooth * soft[k] * (dw[k] - dot);
    }
}

/* "self" in a dense graph of words: the weights of a word add up to 1, whatever they are */
static int constant(const Job *j, int side) { return side && !j->neighbors && !j->sides[1].links; }

/* a row for every pair of nodes or, with propagation "self", the sum of a node's rows; work: 3 n floats */
void edges(const Job *j, int side, int item, float *work) {
    const Side *s = &j->sides[side];
    int n = s->length[item];
    float *out = s->edges + s->edge[item] * EW, *weight = work + n;
    if (constant(j, side)) {
        FOR(i, n * EW) out[i] = 1;
        return;
    }
    FOR(i, n) {
        float sum[EW] = {0};
        if (side) relate(j, item, i, work, weight);
        FOR(k, n) {
            Place p;
            if (side) FOR(e, EW) p.w[e] = weight[k];
            else weigh(s, item, i, k, &p);
            FOR(e, EW) sum[e] += p.w[e];
            if (j->neighbors) { memcpy(out, p.w, sizeof sum); out += EW; }
        }
        if (!j->neighbors) { memcpy(out, sum, sizeof sum); out += EW; }
    }
}
void edges_back(const Job *j, int side, int item, float *work) {
    const Side *s = &j->sides[side];
    int n = s->length[item];
    const float *in = j->grads[side].edges + s->edge[item] * EW;
    float *dw = work + 2 * n, d[4 * EW] = {0};
    if (constant(j, side)) return;
    FOR(i, n) {
        FOR(k, n) {
            const float *g = in + (j->neighbors ? i * n + k : i) * EW;
            Place p;
            dw[k] = 0;
            if (side) FOR(e, EW) dw[k] += g[e];
            else { weigh(s, item, i, k, &p); weigh_back(s, &p, g, d); }
        }
        if (side) relate_back(j, item, i, work, work + n, dw);
    }
    if (!side) memcpy(j->grads[0].kernels + item * sizeof d / 4, d, sizeof d);
}
