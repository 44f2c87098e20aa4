/* The structure level: a pair's scores and their gradients (docs/method.md, section 2.4). */
#include "pairs.h"

/* ---- scores ---- */

INLINE void linear_some(const int nodes, int width, const float *x, const vec *w, vec *out) {
    vec sum[LINES][HV];
    EACH(i, nodes) EACH(h, HV) sum[i][h] = (vec){0};
    for (int k = 0; k < width; k++, w += HV) EACH(i, nodes) EACH(h, HV) sum[i][h] += w[h] * x[i * width + k];
    EACH(i, nodes) EACH(h, HV) out[i * HV + h] = sum[i][h];
}
/* (nodes, width) (width, HP) -> (nodes, HP) */
static void linear(int nodes, int width, const float *x, const float *w, vec *out) {
    int i = 0;
    for (; i + LINES <= nodes; i += LINES) linear_some(LINES, width, x + i * width, (const vec *)w, out + i * HV);
    for (; i < nodes; i++) linear_some(1, width, x + i * width, (const vec *)w, out + i * HV);
}
INLINE void gather_some(const int some, int nodes, const float *e, const vec *z, vec *out) {
    vec sum[LINES][HV];
    EACH(i, some) EACH(h, HV) sum[i][h] = (vec){0};
    for (int j = 0; j < nodes; j++, z += HV)
        EACH(i, some) EACH(h, HV) sum[i][h] += edge(e + (i * nodes + j) * EW, h % EV) * z[h];
    EACH(i, some) EACH(h, HV) out[i * HV + h] = sum[i][h];
}
/* matching vectors m -> z = W m and the convolution's output h */
static void convolve(const Side *s, int item, int neighbors, const vec *m, vec *z, vec *h) {
    int nodes = s->length[item], i = 0;
    const float *e = s->edges + s->edge[item] * EW;
    const vec *bias = (const vec *)(s->params + CONV_B);
    linear(nodes, KP, (const float *)m, s->params, z);
    if (!neighbors) {
        FOR(i, nodes) EACH(c, HV) h[i * HV + c] = z[i * HV + c] * edge(e + i * EW, c % EV) + bias[c];
        return;
    }
    for (; i + LINES <= nodes; i += LINES) gather_some(LINES, nodes, e + i * nodes * EW, z, h + i * HV);
    for (; i < nodes; i++) gather_some(1, nodes, e + i * nodes * EW, z, h + i * HV);
    FOR(i, nodes) EACH(c, HV) h[i * HV + c] = tangent(h[i * HV + c] + bias[c]);
}
/* matching vectors -> the side's score of the pair, without out_2's bias */
float score(const Side *s, int item, int neighbors, const Layers *l) {
    int nodes = s->length[item];
    vec *z = l->z;
    const vec *bias = (const vec *)(s->params + OUT1_B), *last = (const vec *)(s->params + OUT2_W);
    vec sum = {0};
    convolve(s, item, neighbors, l->m, z, l->h);
    linear(nodes, HP, (const float *)l->h, s->params + OUT1_W, z);
    FOR(i, nodes) EACH(c, HV) sum += tangent(z[i * HV + c] + bias[c]) * last[c];
    return total(sum) / nodes;
}

/* ---- their gradients ---- */

/* out (width, HP) += x^T y, x (nodes, width), y (nodes, HP) */
INLINE void outer_some(const int some, int nodes, int width, const float *x, const vec *y, vec *out) {
    vec sum[LINES][HV];
    EACH(i, some) EACH(h, HV) sum[i][h] = out[i * HV + h];
    for (int n = 0; n < nodes; n++, x += width, y += HV) EACH(i, some) EACH(h, HV) sum[i][h] += y[h] * x[i];
    EACH(i, some) EACH(h, HV) out[i * HV + h] = sum[i][h];
}
static void outer(int nodes, int width, const float *x, const vec *y, vec *out) {
    int i = 0;
    for (; i + LINES <= width; i += LINES) outer_some(LINES, nodes, width, x + i, y, out + i * HV);
    for (; i < width; i++) outer_some(1, nodes, width, x + i, y, out + i * HV);
}
/* (nodes, HP) (HP, vectors) -> (nodes, vectors); four nodes at once, the last one repeated to fill up */
INLINE void back(const int vectors, int nodes, const float *x, const vec *w, vec *out) {
    for (int n = 0; n < nodes; n += 4) {
        vec sum[4][HV > NV ? HV : NV];
        const float *row[4];
        EACH(i, 4) row[i] = x + (n + i < nodes ? n + i : nodes - 1) * HP;
        EACH(i, 4) EACH(c, vectors) sum[i][c] = (vec){0};
        FOR(h, HP) EACH(i, 4) EACH(c, vectors) sum[i][c] += w[h * vectors + c] * row[i][h];
        FOR(i, 4) if (n + i < nodes) EACH(c, vectors) out[(n + i) * vectors + c] = sum[i][c];
    }
}
/* u = transposed edges times dh, some rows of it */
INLINE void scatter_some(const int some, int nodes, const float *e, const vec *dh, vec *u) {
    vec sum[LINES][HV];
    EACH(j, some) EACH(c, HV) sum[j][c] = (vec){0};
    for (int i = 0; i < nodes; i++, e += nodes * EW, dh += HV)
        EACH(j, some) EACH(c, HV) sum[j][c] += edge(e + j * EW, c % EV) * dh[c];
    EACH(j, some) EACH(c, HV) u[j * HV + c] = sum[j][c];
}
/* gradient dh of the convolution's output -> of z = W m, into u, and added to the edges and the bias */
static void convolve_back(const Side *s, int item, int neighbors, const Layers *l, float *d_edges, vec *d_bias) {
    int nodes = s->length[item], j = 0;
    const float *e = s->edges + s->edge[item] * EW;
    const vec *z = l->z, *h = l->h;
    float *de = d_edges + s->edge[item] * EW;
    vec *dh = l->dh, *u = l->u;
    if (neighbors) FOR(i, nodes * HV) dh[i] *= 1 - h[i] * h[i];
    FOR(i, nodes) EACH(c, HV) d_bias[c] += dh[i * HV + c];
    if (!neighbors) {
        FOR(i, nodes) EACH(c, HV) add_edge(de + i * EW, c % EV, dh[i * HV + c] * z[i * HV + c]);
        FOR(i, nodes) EACH(c, HV) u[i * HV + c] = dh[i * HV + c] * edge(e + i * EW, c % EV);
        return;
    }
    FOR(i, nodes) {
        vec own[HV];
        EACH(c, HV) own[c] = dh[i * HV + c];
        FOR(j, nodes) {
            vec sum[EV] = {{0}};
            EACH(c, HV) sum[c % EV] += own[c] * z[j * HV + c];
            EACH(c, EV) add_edge(de + (i * nodes + j) * EW, c, sum[c]);
        }
    }
    for (; j + LINES <= nodes; j += LINES) scatter_some(LINES, nodes, e + j * EW, dh, u + j * HV);
    for (; j < nodes; j++) scatter_some(1, nodes, e + j * EW, dh, u + j * HV);
}
/* gradient g of the side's score -> of m, into dm, and added to d (of the parameters) and d_edges.
   transposed: the weights of the convolution and of out_1 */
void score_back(const Side *s, int item, int neighbors, float g, const Layers *l, float *const *transposed,
                float *d_edges, float *d) {
    int nodes = s->length[item];
    const vec *bias = (const vec *)(s->params + OUT1_B), *last = (const vec *)(s->params + OUT2_W);
    vec *d_bias = (vec *)(d + OUT1_B), *d_last = (vec *)(d + OUT2_W), *u = l->u;
    convolve(s, item, neighbors, l->m, l->z, l->h);
    linear(nodes, HP, (const float *)l->h, s->params + OUT1_W, u);
    g /= nodes;
    FOR(i, nodes) EACH(c, HV) {
        vec t = tangent(u[i * HV + c] + bias[c]), du = g * last[c] * (1 - t * t);
        d_last[c] += g * t;
        d_bias[c] += du;
        u[i * HV + c] = du;
    }
    outer(nodes, HP, (const float *)l->h, u, (vec *)(d + OUT1_W));
    back(HV, nodes, (const float *)u, (const vec *)transposed[1], l->dh);
    convolve_back(s, item, neighbors, l, d_edges, (vec *)(d + CONV_B));
    outer(nodes, KP, (const float *)l->m, u, (vec *)d);
    back(NV, nodes, (const float *)u, (const vec *)transposed[0], l->dm);
}
