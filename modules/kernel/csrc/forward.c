/* Scores of all pairs of images and captions; pairs.h explains the layout. */
#include "pairs.h"

/* ---- once per image and per caption: panels, Gram matrices, norms ---- */

/* (rows, D) -> [vector][d][row][lane]; rows from `real` on are 0 */
static void pack_rows(const float *x, int rows, int real, int dim, vec *out) {
    FOR(k, NV) FOR(t, dim) FOR(r, rows) {
        vec y = {0};
        FOR(l, W) if (k * W + l < K && r < real) y[l] = x[((int64_t)r * K + k * W + l) * dim + t];
        *out++ = y;
    }
}
/* S of a panel of regions and a block of words: x [d][ROWS], y [d][words] */
INLINE void product(const int words, int dim, const vec *x, const vec *y, vec *out, int stride) {
    vec sum[ROWS][WORDS];
    EACH(r, ROWS) EACH(w, words) sum[r][w] = (vec){0};
    for (int t = 0; t < dim; t++, x += ROWS, y += words) EACH(w, words) EACH(r, ROWS) sum[r][w] += x[r] * y[w];
    EACH(r, ROWS) EACH(w, words) out[w * stride + r * NV] = sum[r][w];
}
static void pack_side(const Side *s, int item, int dim, int ragged) {
    int n = s->length[item], count = parts(n, ragged ? WORDS : ROWS);
    const float *x = s->features + s->first[item] * K * dim;
    vec *out = (vec *)(s->data + s->packed[item] * KP * dim);
    for (int p = 0, i = 0, rows; p < count; p++, i += rows, out += (int64_t)rows * NV * dim) {
        rows = ragged ? part(n, count, p) : ROWS;
        pack_rows(x + (int64_t)i * K * dim, rows, n - i < rows ? n - i : rows, dim, out);
    }
}
/* products of all pairs of nodes of one graph -> grams, norms; work: panels of all n rows */
static void gram_side(const Side *s, int item, int dim, vec *work) {
    int n = s->length[item], size = ROWS * NV * dim;
    const float *x = s->features + s->first[item] * K * dim;
    vec *gram = (vec *)(s->grams + s->gram[item] * KP), *norm = (vec *)(s->norms + s->packed[item] * KP);
    for (int i = 0; i < n; i += ROWS)
        pack_rows(x + (int64_t)i * K * dim, ROWS, n - i < ROWS ? n - i : ROWS, dim, work + i / ROWS * size);
    for (int i0 = 0; i0 < n; i0 += ROWS) for (int j0 = i0; j0 < n; j0 += ROWS) {
        vec out[ROWS * ROWS * NV];
        const vec *a = work + i0 / ROWS * size, *b = work + j0 / ROWS * size;
        FOR(k, NV) product(ROWS, dim, a + k * dim * ROWS, b + k * dim * ROWS, out + k, ROWS * NV);
        FOR(a, ROWS) FOR(b, ROWS) FOR(k, NV) {
            int i = i0 + a, j = j0 + b;
            vec g = out[(b * ROWS + a) * NV + k];
            if (i > j || j >= n) continue;
            gram[(i * n - i * (i - 1) / 2 + j - i) * NV + k] = i == j ? g : 2 * g;
            if (i == j) norm[i * NV + k] = root(g);
        }
    }
}
int prepare(Job *j) {
    int64_t R = longest(&j->images), n = longest(&j->captions);
    float *work = grab((size_t)padded(R > n ? R : n, ROWS) * KP * j->dim);   /* at least 2 n floats */
    if (!work) return 1;
    unsigned mode = flush();
    for (int64_t i; (i = claim(&j->next)) < j->images.count + j->captions.count;) {
        int ragged = i >= j->images.count, item = ragged ? i - j->images.count : i;
        const Side *s = ragged ? &j->captions : &j->images;
        pack_side(s, item, j->dim, ragged);
        gram_side(s, item, j->dim, (vec *)work);
        if (ragged) textual_edges(s, item, j->neighbors, j->smooth, work);
        else visual_edges(s, item, j->neighbors);
    }
    restore(mode);
    free(work);
    return 0;
}

/* ---- node level ---- */

/* S[w][r] = products of the blocks of word w and region r, `stride` vectors from word to word */
void products(int R, int n, int dim, const vec *regions, const vec *words, vec *S, int stride) {
    int blocks = parts(n, WORDS);
    for (int b = 0, w = 0, many; b < blocks; b++, w += many) {
        many = part(n, blocks, b);
        FOR(p, parts(R, ROWS)) FOR(k, NV) {
            const vec *x = regions + ((int64_t)p * NV + k) * dim * ROWS;
            const vec *y = words + ((int64_t)w * NV + k * many) * dim;
            vec *out = S + w * stride + p * ROWS * NV + k;
            switch (many) {
#define CASE(N) case N: product(N, dim, x, y, out, stride); break;
                EACH_WORDS(CASE)
#undef CASE
            }
        }
    }
}
/* leaky sums over the blocks: visual[w][r] and textual[r][w] */
void affinities(int R, int n, const vec *S, int stride, float *visual, int vs, float *textual, int ts) {
    FOR(w, n) for (int r = 0; r < R; r += W) {
        vec x = lane_sums(S + w * stride + r * NV);
        *(vec *)(visual + w * vs + r) = pick(x > 0, x, x * .1f);
    }
    FOR(r, R) FOR(w, n) textual[r * ts + w] = visual[w * vs + r];
}
/* Affinities a[answer][node] -> attention of every node over the answers, in place.  An answer's affinities are first
   divided by their norm over the nodes, which `norms` receives.  work: 2 * stride floats */
void attend(float *a, int answers, int nodes, int stride, float smooth, float *norms, vec *work) {
    int count = parts(nodes, W);
    ivec real = lanes() < nodes - (count - 1) * W;
    vec *best = work, *sum = work + stride / W;
    FOR(c, count) { best[c] = splat(-INFINITY); sum[c] = (vec){0}; }
    FOR(m, answers) {
        vec *row = (vec *)(a + m * stride), square = {0};
        row[count - 1] = only(real, row[count - 1]);
        FOR(c, count) square += row[c] * row[c];
        norms[m] = sqrtf(total(square));
        float scale = smooth / (norms[m] + 1e-8f);
        FOR(c, count) { row[c] *= scale; best[c] = larger(row[c], best[c]); }
    }
    FOR(m, answers) FOR(c, count) {
        vec *x = (vec *)(a + m * stride) + c;
        *x = exponential(*x - best[c]);
        sum[c] += *x;
    }
    FOR(c, count) sum[c] = 1 / sum[c];
    FOR(m, answers) FOR(c, count) ((vec *)(a + m * stride))[c] *= sum[c];
}
/* matching vectors of some nodes: cosines of a node's blocks with those of its context */
INLINE void match_some(const int nodes, int answers, const float *a, int stride, const vec *S, int node,
                       int answer, const vec *gram, const vec *norm, vec *m) {
    FOR(k, NV) {
        vec sum[NODES], square[NODES];
        const vec *g = gram + k;
        EACH(i, nodes) square[i] = (vec){0};
        FOR(s, answers) {
            EACH(i, nodes) sum[i] = (vec){0};
            for (int u = s; u < answers; u++, g += NV) EACH(i, nodes) sum[i] += *g * a[u * stride + i];
            EACH(i, nodes) square[i] += sum[i] * a[s * stride + i];
        }
        EACH(i, nodes) sum[i] = (vec){0};
        FOR(s, answers) EACH(i, nodes) sum[i] += S[s * answer + i * node + k] * a[s * stride + i];
        EACH(i, nodes) {
            vec size = norm[i * NV + k] * root(pick(square[i] < 0, (vec){0}, square[i]));
            m[i * NV + k] = sum[i] / pick(size < 1e-8f, splat(1e-8f), size);
        }
    }
}
/* node, answer: vectors of S from one node or answer to the next */
static void match(int nodes, int answers, const float *a, int stride, const vec *S, int node, int answer,
                  const float *gram, const vec *norm, vec *m) {
    int count = parts(nodes, NODES);
    for (int p = 0, size; p < count; p++, a += size, S += size * node, norm += size * NV, m += size * NV) {
        size = part(nodes, count, p);
        switch (size) {
#define CASE(N) case N: match_some(N, answers, a, stride, S, node, answer, (const vec *)gram, norm, m); break;
            EACH_NODES(CASE)
#undef CASE
        }
    }
}

/* ---- all pairs ---- */

typedef struct { Layers layers; vec *S, *work; float *a, *b, *norms; int as, bs; } Memory;

static Memory memory(const Job *j, Arena *arena) {
    int R = longest(&j->images), n = longest(&j->captions), top = (R > n ? R : n) + W;
    Memory k = {.as = padded(R, W), .bs = padded(n, W)};
    k.S = take(arena, (size_t)n * padded(R, ROWS) * KP + W * KP);   /* affinities read past the last word */
    k.layers = (Layers){.m = take(arena, top * KP), .z = take(arena, top * HP), .h = take(arena, top * HP)};
    k.a = take(arena, n * k.as);
    k.b = take(arena, R * k.bs);
    k.norms = take(arena, top);
    k.work = take(arena, 2 * padded(top, W));
    return k;
}
static void pair(const Job *j, const Memory *k, int image, int caption, float *visual, float *textual) {
    const Side *im = &j->images, *ca = &j->captions;
    int R = im->length[image], n = ca->length[caption], dim = j->dim, word = padded(R, ROWS) * NV;
    const float *regions = im->data + im->packed[image] * KP * dim;
    const float *words = ca->data + ca->packed[caption] * KP * dim;
    const vec *region_norms = (const vec *)(im->norms + im->packed[image] * KP);
    const vec *word_norms = (const vec *)(ca->norms + ca->packed[caption] * KP);
    products(R, n, dim, (const vec *)regions, (const vec *)words, k->S, word);
    affinities(R, n, k->S, word, k->a, k->as, k->b, k->bs);
    attend(k->a, n, R, k->as, j->smooth, k->norms, k->work);
    attend(k->b, R, n, k->bs, j->smooth, k->norms, k->work);
    match(R, n, k->a, k->as, k->S, NV, word, ca->grams + ca->gram[caption] * KP, region_norms, k->layers.m);
    *visual = score(im, image, j->neighbors, &k->layers);
    match(n, R, k->b, k->bs, k->S, word, NV, im->grams + im->gram[image] * KP, word_norms, k->layers.m);
    *textual = score(ca, caption, j->neighbors, &k->layers);
}
int forward(Job *j) {
    Arena arena = {0};
    memory(j, &arena);
    if (!reserve(&arena)) return 1;
    Memory k = memory(j, &arena);
    int64_t I = j->images.count, C = j->captions.count, ti = j->tile_images, tc = j->tile_captions;
    unsigned mode = flush();
    int64_t across = (C + tc - 1) / tc, tiles = (I + ti - 1) / ti * across;
    for (int64_t t; (t = claim(&j->next)) < tiles;)
        for (int64_t c = t % across * tc; c < t % across * tc + tc && c < C; c++)
            for (int64_t i = t / across * ti; i < t / across * ti + ti && i < I; i++)
                pair(j, &k, i, c, j->visual + i * C + c, j->textual + i * C + c);
    restore(mode);
    free(arena.base);
    return 0;
}
/* the constants Python needs to lay out memory */
void constants(int64_t *out) {
    int64_t c[] = {ROWS, KP, TW, HP};
    memcpy(out, c, sizeof c);
}
