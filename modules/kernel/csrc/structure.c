/* The structure level: a pair's scores and their gradients (docs/method.md, section 2.4). */
#include "pairs.h"

/* out = x w, x (nodes, width), w (width, vectors); here and below LINES rows at once */
INLINE void linear_some(const int nodes, const int vectors, int width, const float *x, const vec *w, vec *out) {
    vec sum[LINES][HV > NV ? HV : NV];
    EACH(i, nodes) EACH(c, vectors) sum[i][c] = (vec){0};
    for (int k = 0; k < width; k++, w += vectors) EACH(i, nodes) EACH(c, vectors) sum[i][c] += w[c] * x[i * width + k];
    EACH(i, nodes) EACH(c, vectors) out[i * vectors + c] = sum[i][c];
}
INLINE void linear(const int vectors, int nodes, int width, const vec *x, const float *w, vec *out) {
    const float *rows = (const float *)x;
    int i = 0;
    for (; i + LINES <= nodes; i += LINES)
        linear_some(LINES, vectors, width, rows + i * width, (const vec *)w, out + i * vectors);
    for (; i < nodes; i++) linear_some(1, vectors, width, rows + i * width, (const vec *)w, out + i * vectors);
}
/* out (width, HP) += x^T y, x (nodes, width), y (nodes, HP) */
INLINE void outer_some(const int some, int nodes, int width, const float *x, const vec *y, vec *out) {
    vec sum[LINES][HV];
    EACH(i, some) EACH(h, HV) sum[i][h] = out[i * HV + h];
    for (int n = 0; n < nodes; n++, x += width, y += HV) EACH(i, some) EACH(h, HV) sum[i][h] += y[h] * x[i];
    EACH(i, some) EACH(h, HV) out[i * HV + h] = sum[i][h];
}
static void outer(int nodes, int width, const vec *x, const vec *y, float *out) {
    const float *rows = (const float *)x;
    int i = 0;
    for (; i + LINES <= width; i += LINES) outer_some(LINES, nodes, width, rows + i, y, (vec *)out + i * HV);
    for (; i < width; i++) outer_some(1, nodes, width, rows + i, y, (vec *)out + i * HV);
}
/* out[i] = the sum over k of the edge from i to k times x[k]; down, across: rows of e from one i and from one k to the
   next */
INLINE void mix_some(const int some, int nodes, const float *e, int down, int across, const vec *x, vec *out) {
    vec sum[LINES][HV];
    EACH(i, some) EACH(h, HV) sum[i][h] = (vec){0};
    for (int k = 0; k < nodes; k++, e += across * EW, x += HV)
        EACH(i, some) EACH(h, HV) sum[i][h] += edge(e + i * down * EW, h % EV) * x[h];
    EACH(i, some) EACH(h, HV) out[i * HV + h] = sum[i][h];
}
static void mix(int nodes, const float *e, int down, int across, const vec *x, vec *out) {
    int i = 0;
    for (; i + LINES <= nodes; i += LINES) mix_some(LINES, nodes, e + i * down * EW, down, across, x, out + i * HV);
    for (; i < nodes; i++) mix_some(1, nodes, e + i * down * EW, down, across, x, out + i * HV);
}

/* matching vectors m -> z = W m and the convolution's output h; out_1's output without bias, into out */
static void layers(const Half *f, int neighbors, vec *out) {
    const float *e = f->side->edges + f->side->edge[f->item] * EW, *params = f->side->params;
    const vec *bias = (const vec *)(params + CONV_B);
    linear(HV, f->nodes, KP, f->m, params, f->z);
    if (neighbors) {
        mix(f->nodes, e, f->nodes, 1, f->z, f->h);
        FOR(i, f->nodes) EACH(c, HV) f->h[i * HV + c] = tangent(f->h[i * HV + c] + bias[c]);
    } else FOR(i, f->nodes) EACH(c, HV) f->h[i * HV + c] = f->z[i * HV + c] * edge(e + i * EW, c % EV) + bias[c];
    linear(HV, f->nodes, HP, f->h, params + OUT1_W, out);
}
/* matching vectors -> the side's score of the pair, without out_2's bias */
float score(const Half *f, int neighbors) {
    const vec *bias = (const vec *)(f->side->params + OUT1_B), *last = (const vec *)(f->side->params + OUT2_W);
    vec sum = {0};
    layers(f, neighbors, f->z);
    FOR(i, f->nodes) EACH(c, HV) sum += tangent(f->z[i * HV + c] + bias[c]) * last[c];
    return total(sum) / f->nodes;
}

/* gradient dh of the convolution's output -> of z = W m, into u, and added to the edges and the bias */
static void convolve_back(const Half *f, int neighbors, float *d_edges, vec *d_bias) {
    int nodes = f->nodes;
    const float *e = f->side->edges + f->side->edge[f->item] * EW;
    float *de = d_edges + f->side->edge[f->item] * EW;
    const vec *z = f->z, *h = f->h;
    vec *dh = f->dh;
    if (neighbors) FOR(i, nodes * HV) dh[i] *= 1 - h[i] * h[i];
    FOR(i, nodes) EACH(c, HV) d_bias[c] += dh[i * HV + c];
    if (!neighbors) {
        FOR(i, nodes) EACH(c, HV) add_edge(de + i * EW, c % EV, dh[i * HV + c] * z[i * HV + c]);
        FOR(i, nodes) EACH(c, HV) f->u[i * HV + c] = dh[i * HV + c] * edge(e + i * EW, c % EV);
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
    mix(nodes, e, 1, nodes, dh, f->u);
}
/* gradient g of the side's score -> of m, into dm, and added to d (of the parameters) and d_edges */
void score_back(const Half *f, int neighbors, float g, float *d_edges, float *d) {
    const vec *bias = (const vec *)(f->side->params + OUT1_B), *last = (const vec *)(f->side->params + OUT2_W);
    vec *d_bias = (vec *)(d + OUT1_B), *d_last = (vec *)(d + OUT2_W), *u = f->u;
    layers(f, neighbors, u);
    g /= f->nodes;
    FOR(i, f->nodes) EACH(c, HV) {
        vec t = tangent(u[i * HV + c] + bias[c]), du = g * last[c] * (1 - t * t);
        d_last[c] += g * t;
        d_bias[c] += du;
        u[i * HV + c] = du;
    }
    outer(f->nodes, HP, f->h, u, d + OUT1_W);
    linear(HV, f->nodes, HP, u, f->transposed[1], f->dh);
    convolve_back(f, neighbors, d_edges, (vec *)(d + CONV_B));
    outer(f->nodes, KP, f->m, u, d);
    linear(NV, f->nodes, HP, u, f->transposed[0], f->dm);
}
