/* Gradients of all pairs' scores.  Nothing is kept from the forward pass: a pair's products and weights are
   computed again, then followed backwards.  Pairs whose score has no gradient are skipped. */
#include <sched.h>

#include "pairs.h"

/* One side of one pair.  raw, a, da: answers x nodes, rows of `stride` floats */
typedef struct {
    const Side *side;
    int item, nodes, answers, stride;
    int node, answer;               /* vectors of S from one node or answer to the next */
    const vec *gram, *norm;         /* the answers' Gram matrices, the nodes' norms */
    vec *d_gram, *d_self;           /* gradients of the answers' and of the nodes' Gram matrices */
    float *raw, *a, *da, *norms;    /* affinities, attention, gradient of the affinities, their norms */
    vec *y;                         /* y[answer][node]: the answer's row of G times a */
    vec *inverse, *over;            /* 1 / (product of the norms); 1 / (quadratic form), 0 where clamped */
    vec *dq;                        /* twice the gradient of the quadratic forms */
    Layers layers;
} Half;
typedef struct { Half half[2]; vec *S, *work; float *transposed[2][2]; } Memory;

/* ---- the forward pass again, keeping what the backward pass needs ---- */

INLINE void match_some(const int nodes, const Half *f, int i0, const vec *S) {
    int answers = f->answers, stride = f->stride;
    const float *a = f->a + i0;
    FOR(k, NV) {
        vec sum[NODES], square[NODES];
        EACH(i, nodes) square[i] = (vec){0};
        FOR(s, answers) {
            const vec *g = f->gram + s * NV + k;   /* G_us for u < s, then G_ss, then G_su for u > s */
            EACH(i, nodes) sum[i] = (vec){0};
            for (int u = 0; u < s; u++, g += (answers - u) * NV) EACH(i, nodes) sum[i] += *g * a[u * stride + i];
            vec own = *g;
            for (int u = s + 1; u < answers; u++) { g += NV; EACH(i, nodes) sum[i] += *g * a[u * stride + i]; }
            EACH(i, nodes) {
                sum[i] = .5f * sum[i] + own * a[s * stride + i];
                square[i] += sum[i] * a[s * stride + i];
                f->y[(s * f->nodes + i0 + i) * NV + k] = sum[i];
            }
        }
        EACH(i, nodes) sum[i] = (vec){0};
        FOR(s, answers) EACH(i, nodes) sum[i] += S[s * f->answer + (i0 + i) * f->node + k] * a[s * stride + i];
        EACH(i, nodes) {
            int at = (i0 + i) * NV + k;
            vec size = f->norm[at] * root(pick(square[i] < 0, (vec){0}, square[i]));
            ivec small = size < 1e-8f;
            f->inverse[at] = 1 / pick(small, splat(1e-8f), size);
            f->over[at] = only(~small, 1 / square[i]);
            f->layers.m[at] = sum[i] * f->inverse[at];
        }
    }
}
static void match(const Half *f, const vec *S) {
    int count = parts(f->nodes, NODES);
    for (int p = 0, i = 0, size; p < count; p++, i += size) {
        size = part(f->nodes, count, p);
        switch (size) {
#define CASE(N) case N: match_some(N, f, i, S); break;
            EACH_NODES(CASE)
#undef CASE
        }
    }
}

/* ---- node level ---- */

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
        vec pull = f->layers.dm[at] * f->layers.m[at], own = -.5f * pull / (f->norm[at] * f->norm[at]);
        f->dq[at] = -pull * f->over[at];
        f->layers.dm[at] *= f->inverse[at];
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
            t[i * NV + k] = f->layers.dm[n * NV + k] * S[s * f->answer + n * f->node + k]
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
    const vec *dv = visual->layers.dm, *dt = textual->layers.dm;
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

/* ---- all pairs ---- */

static void half(Arena *arena, Half *f, int nodes, int answers) {
    size_t rows = nodes + W, table = (size_t)answers * padded(nodes, W);
    f->stride = padded(nodes, W);
    f->raw = take(arena, table);
    f->a = take(arena, table);
    f->da = take(arena, table);
    f->norms = take(arena, answers);
    f->y = take(arena, (size_t)(answers * nodes + W) * KP);
    f->inverse = take(arena, rows * KP);
    f->over = take(arena, rows * KP);
    f->dq = take(arena, rows * KP);
    f->layers = (Layers){
        .m = take(arena, rows * KP), .z = take(arena, rows * HP), .h = take(arena, rows * HP),
        .u = take(arena, rows * HP), .dh = take(arena, rows * HP), .dm = take(arena, rows * KP),
    };
}
static Memory memory(const Job *j, Arena *arena) {
    int R = longest(&j->images), n = longest(&j->captions);
    Memory k;
    k.S = take(arena, (size_t)(n + W) * (padded(R, ROWS) + W) * KP);   /* attend_back reads past the last word */
    k.work = take(arena, ((R > n ? R : n) + 2 * W) * KP);
    half(arena, &k.half[0], R, n);
    half(arena, &k.half[1], n, R);
    FOR(s, 2) { k.transposed[s][0] = take(arena, KP * HP); k.transposed[s][1] = take(arena, HP * HP); }
    return k;
}
static void aim(Half *f, const Side *own, const Side *other, const Grad *d_own, const Grad *d_other, int item,
                int with) {
    f->side = own;
    f->item = item;
    f->nodes = own->length[item];
    f->answers = other->length[with];
    f->gram = (const vec *)(other->grams + other->gram[with] * KP);
    f->norm = (const vec *)(own->norms + own->packed[item] * KP);
    f->d_gram = (vec *)(d_other->grams + other->gram[with] * KP);
    f->d_self = (vec *)(d_own->grams + own->gram[item] * KP);
}
static void pair(const Job *j, Memory *k, int image, int caption, int slot, float g_visual, float g_textual) {
    const Side *im = &j->images, *ca = &j->captions;
    const Grad *di = &j->d_images, *dc = &j->d_captions;
    Half *f = &k->half[0], *t = &k->half[1];
    int R = im->length[image], n = ca->length[caption], dim = j->dim, word = padded(R, ROWS) * NV;
    int64_t x = im->packed[image] * KP * dim, y = ca->packed[caption] * KP * dim;
    aim(f, im, ca, di, dc, image, caption);
    aim(t, ca, im, dc, di, caption, image);
    f->node = t->answer = NV;
    f->answer = t->node = word;
    const vec *regions = (const vec *)(im->data + x), *words = (const vec *)(ca->data + y);
    products(R, n, dim, regions, words, k->S, word);
    affinities(R, n, k->S, word, f->raw, f->stride, t->raw, t->stride);
    FOR(s, 2) {
        Half *h = &k->half[s];
        memcpy(h->a, h->raw, sizeof(float) * h->answers * h->stride);
        attend(h->a, h->answers, h->nodes, h->stride, j->smooth, h->norms, k->work);
        match(h, k->S);
        score_back(h->side, h->item, j->neighbors, s ? g_textual : g_visual, &h->layers, k->transposed[s],
                   (s ? dc : di)->edges, (s ? dc : di)->params + (int64_t)slot * PARAMS);
        match_back(h, k->work);
        attend_back(h, k->S, j->smooth, k->work);
    }
    products_back(f, t, k->S, word);
    spread(R, n, dim, k->S, word, regions, words, (vec *)(di->data + x), (vec *)(dc->data + y));
}
static void transpose(const float *w, int rows, int columns, float *out) {
    FOR(i, rows) FOR(c, columns) out[c * rows + i] = w[i * columns + c];
}
/* Images and captions are cut into `slots` parts; in phase p, part b of the images meets part b + p of the
   captions.  So no two threads add to the same gradient, and the order of additions is always the same. */
int backward(Job *j) {
    Arena arena = {0};
    memory(j, &arena);
    if (!reserve(&arena)) return 1;
    Memory k = memory(j, &arena);
    FOR(s, 2) {
        const float *params = (s ? j->captions : j->images).params;
        transpose(params, KP, HP, k.transposed[s][0]);
        transpose(params + OUT1_W, HP, HP, k.transposed[s][1]);
    }
    unsigned mode = flush();
    int64_t I = j->images.count, C = j->captions.count, slots = j->slots;
    for (int64_t t; (t = claim(&j->next)) < slots * slots;) {
        int64_t b = t % slots, other = (b + t / slots) % slots;
        while (__atomic_load_n(&j->done, __ATOMIC_ACQUIRE) < t - b) sched_yield();   /* the phase before */
        int64_t last = C * (other + 1) / slots, tile = j->tile_captions;
        for (int64_t c0 = C * other / slots; c0 < last; c0 += tile)
            for (int64_t i = I * b / slots; i < I * (b + 1) / slots; i++)
                for (int64_t c = c0; c < c0 + tile && c < last; c++) {
                    float visual = j->d_visual[i * C + c], textual = j->d_textual[i * C + c];
                    if (visual != 0 || textual != 0) pair(j, &k, i, c, b, visual, textual);
                }
        __atomic_fetch_add(&j->done, 1, __ATOMIC_RELEASE);
    }
    restore(mode);
    free(arena.base);
    return 0;
}

/* gradients that are summed start at 0 */
int clear(Job *j) {
    for (int64_t i; (i = claim(&j->next)) < j->images.count + j->captions.count;) {
        int ragged = i >= j->images.count, item = ragged ? i - j->images.count : i;
        const Side *s = ragged ? &j->captions : &j->images;
        const Grad *d = ragged ? &j->d_captions : &j->d_images;
        int64_t n = s->length[item], rows = padded(n, ragged ? 1 : ROWS), edges = j->neighbors ? n * n : n;
        memset(d->data + s->packed[item] * KP * j->dim, 0, sizeof(float) * rows * KP * j->dim);
        memset(d->grams + s->gram[item] * KP, 0, sizeof(float) * n * (n + 1) / 2 * KP);
        memset(d->edges + s->edge[item] * EW, 0, sizeof(float) * edges * EW);
    }
    return 0;
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
int finish(Job *j) {
    float *work = grab(3 * longest(&j->captions));
    if (!work) return 1;
    unsigned mode = flush();
    for (int64_t i; (i = claim(&j->next)) < j->images.count + j->captions.count;) {
        int ragged = i >= j->images.count, item = ragged ? i - j->images.count : i;
        const Side *s = ragged ? &j->captions : &j->images;
        const Grad *d = ragged ? &j->d_captions : &j->d_images;
        if (ragged) textual_edges_back(s, d, item, j->neighbors, j->smooth, work);
        else visual_edges_back(s, d, item, j->neighbors);
        finish_side(s, d, item, j->dim, ragged);
    }
    restore(mode);
    free(work);
    return 0;
}
