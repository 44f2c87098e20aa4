/* Gradients of all pairs' scores.  Nothing is kept from the forward pass: a pair's products and weights are
   computed again, then followed backwards.  Pairs whose score has no gradient are skipped. */
#include <sched.h>

#include "pairs.h"

/* out[j] += sum over the nodes of x[node] a[j][node] */
INLINE void join_some(const int some, int nodes, const vec *x, const float *a, int stride, vec *out) {
    vec sum[JOIN];
    EACH(j, some) sum[j] = out[j * NV];
    for (int i = 0; i < nodes; i++, x += NV) EACH(j, some) sum[j] += *x * a[j * stride + i];
    EACH(j, some) out[j * NV] = sum[j];
}
/* Gradient of the matching vectors -> of the attended products p (replaces dm), of the quadratic forms q (dq, twice)
   and of the Gram entries.  With m = p / (|v| sqrt q), dq = -m dm / (2 q).  |v|^2 is an entry of the nodes' Gram
   matrix, with gradient -m dm / (2 |v|^2). */
static void match_back(const Half *f, vec *x) {
    int nodes = f->nodes, answers = f->answers, stride = f->stride;
    vec *out = f->d_gram;
    FOR(i, nodes) FOR(k, NV) {
        int at = i * NV + k;
        vec pull = f->dm[at] * f->m[at], own = -.5f * pull / (f->norm[at] * f->norm[at]);
        f->dq[at] = -pull * f->over[at];
        f->dm[at] *= f->inverse[at];
        f->d_self[(i * nodes - i * (i - 1) / 2) * NV + k] += only(f->over[at] != 0, own);
    }
    FOR(s, answers) {
        int u = s;
        FOR(i, nodes) FOR(k, NV) x[i * NV + k] = .5f * f->dq[i * NV + k] * f->a[s * stride + i];
        for (; u + JOIN <= answers; u += JOIN, out += JOIN * NV)
            FOR(k, NV) join_some(JOIN, nodes, x + k, f->a + u * stride, stride, out + k);
        for (; u < answers; u++, out += NV)
            FOR(k, NV) join_some(1, nodes, x + k, f->a + u * stride, stride, out + k);
    }
}
/* gradients of p and q -> of the attention, then of the affinities, into f->da */
static void attend_back(const Half *f, const vec *S, float smooth, vec *dot) {
    int count = parts(f->nodes, W);
    ivec real = lanes() < f->nodes - (count - 1) * W;
    FOR(c, count) dot[c] = (vec){0};
    FOR(s, f->answers) FOR(c, count) {
        vec t[W * NV], *a = (vec *)(f->a + s * f->stride) + c;
        EACH(i, W) EACH(k, NV) {
            int n = c * W + i;
            t[i * NV + k] = f->dm[n * NV + k] * S[s * f->answer + n * f->node + k]
                          + f->dq[n * NV + k] * f->y[(s * f->nodes + n) * NV + k];
        }
        vec da = lane_sums(t);
        if (c == count - 1) { da = only(real, da); *a = only(real, *a); }
        ((vec *)(f->da + s * f->stride))[c] = da;
        dot[c] += da * *a;
    }
    FOR(s, f->answers) {
        vec *da = (vec *)(f->da + s * f->stride), *a = (vec *)(f->a + s * f->stride), along = {0};
        vec *raw = (vec *)(f->raw + s * f->stride);
        FOR(c, count) { da[c] = smooth * a[c] * (da[c] - dot[c]); along += da[c] * raw[c]; }
        float norm = f->norms[s], over = 1 / (norm + 1e-8f);
        float pull = norm > 0 ? total(along) * over * over / norm : 0;
        FOR(c, count) da[c] = da[c] * over - raw[c] * pull;
    }
}
/* gradients of the affinities and of p -> of the block products, which replaces S */
static void products_back(const Half *visual, const Half *textual, vec *S, int stride) {
    const vec *dv = visual->dm, *dt = textual->dm;
    FOR(w, textual->nodes) {
        FOR(r, visual->nodes) {
            int at = w * visual->stride + r, other = r * textual->stride + w;
            float d = visual->da[at] + textual->da[other], a = visual->a[at], b = textual->a[other];
            if (!(visual->raw[at] > 0)) d *= .1f;
            FOR(k, NV) S[w * stride + r * NV + k] = d + a * dv[r * NV + k] + b * dt[w * NV + k];
        }
        for (int i = visual->nodes * NV; i < stride; i++) S[w * stride + i] = (vec){0};
    }
}
/* gradient of a panel of regions at `steps` places along d, from all words */
INLINE void regions_back(const int steps, int n, int dim, int k, int t, const vec *S, int stride, const vec *words,
                         vec *out) {
    vec sum[DEPTH_V][ROWS];
    int blocks = parts(n, WORDS);
    EACH(i, steps) EACH(r, ROWS) sum[i][r] = out[i * ROWS + r];
    for (int b = 0, many; b < blocks; b++, words += (int64_t)many * NV * dim) {
        many = part(n, blocks, b);
        const vec *y = words + (int64_t)(k * dim + t) * many;
        for (int w = 0; w < many; w++, S += stride)
            EACH(i, steps) EACH(r, ROWS) sum[i][r] += S[r * NV] * y[i * many + w];
    }
    EACH(i, steps) EACH(r, ROWS) out[i * ROWS + r] = sum[i][r];
}
/* gradient of a block of words at `steps` places along d, from all regions */
INLINE void words_back(const int many, const int steps, int panels, int dim, const vec *S, int stride,
                       const vec *regions, vec *out) {
    vec sum[DEPTH_T][WORDS];
    EACH(i, steps) EACH(w, many) sum[i][w] = out[i * many + w];
    for (int p = 0; p < panels; p++, regions += (int64_t)NV * dim * ROWS)
        for (int r = 0; r < ROWS; r++, S += NV)
            EACH(i, steps) EACH(w, many) sum[i][w] += regions[i * ROWS + r] * S[w * stride];
    EACH(i, steps) EACH(w, many) out[i * many + w] = sum[i][w];
}
/* gradient S of the products -> added to that of the regions and of the words */
INLINE void spread_some(const int steps, const int depth, int R, int n, int dim, int k, int t, const vec *S,
                        int stride, const vec *regions, const vec *words, vec *d_regions, vec *d_words) {
    int panels = parts(R, ROWS), blocks = parts(n, WORDS);
    const int64_t at = k * dim + t, panel = ROWS * NV * (int64_t)dim;
    FOR(p, panels)
        regions_back(steps, n, dim, k, t, S + p * ROWS * NV + k, stride, words, d_regions + p * panel + at * ROWS);
    for (int b = 0, w = 0, many; b < blocks; b++, w += many) {
        many = part(n, blocks, b);
        for (int i = 0; i < steps; i += depth) {
            const vec *s = S + w * stride + k, *x = regions + (at + i) * ROWS;
            vec *out = d_words + (int64_t)w * NV * dim + (at + i) * many;
            switch (many) {
#define CASE(N) case N: words_back(N, depth, panels, dim, s, stride, x, out); break;
                EACH_WORDS(CASE)
#undef CASE
            }
        }
    }
}
static void spread(int R, int n, int dim, const vec *S, int stride, const vec *regions, const vec *words,
                   vec *d_regions, vec *d_words) {
    FOR(k, NV) {
        int t = 0;
        for (; t + DEPTH_V <= dim; t += DEPTH_V)
            spread_some(DEPTH_V, DEPTH_T, R, n, dim, k, t, S, stride, regions, words, d_regions, d_words);
        for (; t < dim; t++) spread_some(1, 1, R, n, dim, k, t, S, stride, regions, words, d_regions, d_words);
    }
}

static void pair(const Job *j, Pair *p, int image, int caption, int slot) {
    const Side *images = &j->sides[0], *captions = &j->sides[1];
    int64_t x = images->packed[image] * KP * j->dim, y = captions->packed[caption] * KP * j->dim;
    int64_t at = image * captions->count + caption;
    match_pair(j, p, image, caption, 1);
    FOR(s, 2) {
        Half *f = &p->half[s];
        score_back(f, j->neighbors, j->d_scores[s][at], j->grads[s].edges, j->grads[s].params + (int64_t)slot * PARAMS);
        match_back(f, p->work);
        attend_back(f, p->S, j->smooth, p->work);
    }
    products_back(&p->half[0], &p->half[1], p->S, p->word);
    spread(p->R, p->n, j->dim, p->S, p->word, (const vec *)(images->data + x), (const vec *)(captions->data + y),
           (vec *)(j->grads[0].data + x), (vec *)(j->grads[1].data + y));
}
static void transpose(const float *w, int rows, int columns, float *out) {
    FOR(i, rows) FOR(c, columns) out[c * rows + i] = w[i * columns + c];
}
/* Images and captions are divided among `slots`, captions in turn; in phase p, slot b of the images meets slot b + p of
   the captions.  So no two threads add to the same gradient, and the order of additions is always the same. */
void backward(Job *j) {
    Pair p;
    lay_out(j, &p, own_memory(j), 1);
    FOR(s, 2) {
        transpose(j->sides[s].params, KP, HP, p.half[s].transposed[0]);
        transpose(j->sides[s].params + OUT1_W, HP, HP, p.half[s].transposed[1]);
    }
    flush();
    int64_t I = j->sides[0].count, C = j->sides[1].count, slots = j->slots, tile = slots * TILE_C;
    for (int64_t t; (t = claim(&j->next)) < slots * slots;) {
        int64_t b = t % slots;
        while (__atomic_load_n(&j->done, __ATOMIC_ACQUIRE) < t - b) sched_yield();   /* the phase before */
        for (int64_t c0 = (b + t / slots) % slots; c0 < C; c0 += tile)
            for (int64_t i = I * b / slots; i < I * (b + 1) / slots; i++)
                for (int64_t c = c0; c < c0 + tile && c < C; c += slots)
                    if (j->d_scores[0][i * C + c] != 0 || j->d_scores[1][i * C + c] != 0) pair(j, &p, i, c, b);
        __atomic_fetch_add(&j->done, 1, __ATOMIC_RELEASE);
    }
}

/* gradient of the panels -> of the rows; the Gram matrices add to it: d x_i += 2 sum over j of dG_ij x_j */
static void finish_side(const Side *s, const Grad *d, int item, int dim, int ragged) {
    int n = s->length[item], count = parts(n, ragged ? WORDS : ROWS);
    const float *x = s->features + s->first[item] * K * dim, *dg = d->grams + s->gram[item] * KP;
    const float *dx = d->data + s->packed[item] * KP * dim;
    float *out = d->features + s->first[item] * K * dim;
    for (int p = 0, i = 0, rows; p < count; p++, i += rows, dx += (int64_t)rows * KP * dim) {
        rows = ragged ? part(n, count, p) : ROWS;
        FOR(r, rows) if (i + r < n) FOR(k, K) FOR(t, dim)
            out[((int64_t)(i + r) * K + k) * dim + t] = dx[(((int64_t)(k / W) * dim + t) * rows + r) * W + k % W];
    }
    FOR(i, n) for (int j = i; j < n; j++, dg += KP) FOR(k, K) {
        const float *xi = x + ((int64_t)i * K + k) * dim, *xj = x + ((int64_t)j * K + k) * dim;
        float *oi = out + ((int64_t)i * K + k) * dim, *oj = out + ((int64_t)j * K + k) * dim;
        FOR(t, dim) oi[t] += 2 * dg[k] * xj[t];
        if (j > i) FOR(t, dim) oj[t] += 2 * dg[k] * xi[t];
    }
}
void finish(Job *j) {
    float *work = (float *)own_memory(j);
    flush();
    for (int64_t i, images = j->sides[0].count; (i = claim(&j->next)) < images + j->sides[1].count;) {
        int side = i >= images, item = side ? i - images : i;
        edges_back(j, side, item, work);
        finish_side(&j->sides[side], &j->grads[side], item, j->dim, side);
    }
}
