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
/* ragged: in blocks of words, else in panels */
static void pack_side(const Side *s, int item, int dim, int ragged, vec *out) {
    int n = s->length[item], count = parts(n, ragged ? WORDS : ROWS);
    const float *x = s->features + s->first[item] * K * dim;
    for (int p = 0, i = 0, rows; p < count; p++, i += rows, out += (int64_t)rows * NV * dim) {
        rows = ragged ? part(n, count, p) : ROWS;
        pack_rows(x + (int64_t)i * K * dim, rows, n - i < rows ? n - i : rows, dim, out);
    }
}
/* products of all pairs of nodes of one graph, packed in panels -> grams, norms */
static void gram_side(const Side *s, int item, int dim, const vec *panels) {
    int n = s->length[item], size = ROWS * NV * dim;
    vec *gram = (vec *)(s->grams + s->gram[item] * KP), *norm = (vec *)(s->norms + s->packed[item] * KP);
    for (int i0 = 0; i0 < n; i0 += ROWS) for (int j0 = i0; j0 < n; j0 += ROWS) {
        vec out[ROWS * ROWS * NV];
        const vec *a = panels + i0 / ROWS * size, *b = panels + j0 / ROWS * size;
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
/* bytes of memory that a thread needs */
int64_t room(const Job *j, int gradients) {
    Pair p;
    char *memory = (char *)64;
    int64_t panels = (int64_t)padded(j->R > j->n ? j->R : j->n, ROWS) * KP * j->dim * sizeof(float);
    int64_t pair = lay_out(j, &p, memory, gradients) - memory;
    return panels > pair ? panels : pair;
}
void prepare(Job *j) {
    float *work = (float *)own_memory(j);
    flush();
    for (int64_t i, images = j->sides[0].count; (i = claim(&j->next)) < images + j->sides[1].count;) {
        int side = i >= images, item = side ? i - images : i;
        const Side *s = &j->sides[side];
        vec *data = (vec *)(s->data + s->packed[item] * KP * j->dim), *panels = side ? (vec *)work : data;
        pack_side(s, item, j->dim, side, data);
        if (side) pack_side(s, item, j->dim, 0, panels);
        gram_side(s, item, j->dim, panels);
        edges(j, side, item, work);
    }
}

/* ---- node level ---- */

/* S[w][r] = products of the blocks of word w and region r, `stride` vectors from word to word */
static void products(int R, int n, int dim, const vec *regions, const vec *words, vec *S, int stride) {
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
/* leaky sums over the blocks, for both sides */
static void affinities(const Half *visual, const Half *textual, const vec *S, int stride) {
    FOR(w, textual->nodes) for (int r = 0; r < visual->nodes; r += W) {
        vec x = lane_sums(S + w * stride + r * NV);
        *(vec *)(visual->raw + w * visual->stride + r) = pick(x > 0, x, x * .1f);
    }
    FOR(r, visual->nodes) FOR(w, textual->nodes)
        textual->raw[r * textual->stride + w] = visual->raw[w * visual->stride + r];
}
/* Affinities -> attention of every node over the answers.  An answer's affinities are first divided by their norm over
   the nodes. */
static void attend(const Half *f, float smooth, vec *work) {
    int count = parts(f->nodes, W);
    ivec real = lanes() < f->nodes - (count - 1) * W;
    vec *best = work, *sum = work + count;
    FOR(c, count) { best[c] = splat(-INFINITY); sum[c] = (vec){0}; }
    FOR(m, f->answers) {
        vec *raw = (vec *)(f->raw + m * f->stride), *a = (vec *)(f->a + m * f->stride), square = {0};
        raw[count - 1] = only(real, raw[count - 1]);
        FOR(c, count) square += raw[c] * raw[c];
        f->norms[m] = sqrtf(total(square));
        float scale = smooth / (f->norms[m] + 1e-8f);
        FOR(c, count) { a[c] = raw[c] * scale; best[c] = larger(a[c], best[c]); }
    }
    FOR(m, f->answers) FOR(c, count) {
        vec *x = (vec *)(f->a + m * f->stride) + c;
        *x = exponential(*x - best[c]);
        sum[c] += *x;
    }
    FOR(c, count) sum[c] = 1 / sum[c];
    FOR(m, f->answers) FOR(c, count) ((vec *)(f->a + m * f->stride))[c] *= sum[c];
}
/* quadratic forms of some nodes' attention with the Gram matrix, from its upper triangle */
INLINE void forms(const int nodes, const Half *f, const float *a, const vec *g, vec *square) {
    FOR(s, f->answers) {
        vec sum[NODES];
        EACH(i, nodes) sum[i] = (vec){0};
        for (int u = s; u < f->answers; u++, g += NV) EACH(i, nodes) sum[i] += *g * a[u * f->stride + i];
        EACH(i, nodes) square[i] += sum[i] * a[s * f->stride + i];
    }
}
/* the same from whole rows of the Gram matrix, which give y: G_us for u < s, then G_ss, then G_su for u > s */
INLINE void forms_and_rows(const int nodes, const Half *f, const float *a, const vec *gram, vec *y, vec *square) {
    int answers = f->answers, stride = f->stride;
    FOR(s, answers) {
        vec sum[NODES];
        const vec *g = gram + s * NV;
        EACH(i, nodes) sum[i] = (vec){0};
        for (int u = 0; u < s; u++, g += (answers - u) * NV) EACH(i, nodes) sum[i] += *g * a[u * stride + i];
        vec own = *g;
        for (int u = s + 1; u < answers; u++) { g += NV; EACH(i, nodes) sum[i] += *g * a[u * stride + i]; }
        EACH(i, nodes) {
            sum[i] = .5f * sum[i] + own * a[s * stride + i];
            square[i] += sum[i] * a[s * stride + i];
            y[(s * f->nodes + i) * NV] = sum[i];
        }
    }
}
/* matching vectors of some nodes: cosines of a node's blocks with those of its context */
INLINE void match_some(const int nodes, const int gradients, const Half *f, int first, const vec *S) {
    const float *a = f->a + first;
    FOR(k, NV) {
        vec sum[NODES], square[NODES];
        EACH(i, nodes) sum[i] = square[i] = (vec){0};
        if (gradients) forms_and_rows(nodes, f, a, f->gram + k, f->y + first * NV + k, square);
        else forms(nodes, f, a, f->gram + k, square);
        FOR(s, f->answers) EACH(i, nodes) sum[i] += S[s * f->answer + (first + i) * f->node + k] * a[s * f->stride + i];
        EACH(i, nodes) {
            int at = (first + i) * NV + k;
            vec size = f->norm[at] * root(pick(square[i] < 0, (vec){0}, square[i]));
            ivec small = size < 1e-8f;
            size = pick(small, splat(1e-8f), size);
            f->m[at] = sum[i] / size;
            if (gradients) { f->inverse[at] = 1 / size; f->over[at] = only(~small, 1 / square[i]); }
        }
    }
}
INLINE void match(const Half *f, const vec *S, const int gradients) {
    int count = parts(f->nodes, NODES);
    for (int p = 0, i = 0, size; p < count; p++, i += size) {
        size = part(f->nodes, count, p);
        switch (size) {
#define CASE(N) case N: match_some(N, gradients, f, i, S); break;
            EACH_NODES(CASE)
#undef CASE
        }
    }
}

/* ---- all pairs ---- */

static void *take(char **memory, int64_t floats) {
    char *piece = *memory;
    *memory += (floats * (int64_t)sizeof(float) + 63) / 64 * 64;
    return piece;
}
/* Hands out a thread's memory from `memory` on; returns the end of what a pair takes. */
char *lay_out(const Job *j, Pair *p, char *memory, int gradients) {
    int64_t R = j->R, n = j->n, most = (R > n ? R : n) + W;
    p->S = take(&memory, (n + W) * (padded(R, ROWS) + W) * KP);   /* attend_back and affinities read past the last word */
    p->work = take(&memory, (most + W) * KP);
    FOR(s, 2) {
        Half *f = &p->half[s];
        int64_t nodes = s ? n : R, answers = s ? R : n, table = answers * padded(nodes, W), rows = nodes + W;
        f->raw = f->a = take(&memory, table);
        f->norms = take(&memory, answers);
        f->m = take(&memory, rows * KP);
        f->z = take(&memory, rows * HP);
        f->h = take(&memory, rows * HP);
        if (!gradients) continue;
        f->a = take(&memory, table);
        f->da = take(&memory, table);
        f->y = take(&memory, (answers * nodes + W) * KP);
        f->inverse = take(&memory, rows * KP);
        f->over = take(&memory, rows * KP);
        f->u = take(&memory, rows * HP);
        f->dh = take(&memory, rows * HP);
        f->dm = take(&memory, rows * KP);
        f->dq = take(&memory, rows * KP);
        f->transposed[0] = take(&memory, KP * HP);
        f->transposed[1] = take(&memory, HP * HP);
    }
    return memory;
}
/* matching vectors of both sides of a pair; gradients: keeps what its gradient needs */
void match_pair(const Job *j, Pair *p, int image, int caption, int gradients) {
    const Side *images = &j->sides[0], *captions = &j->sides[1];
    Half *visual = &p->half[0], *textual = &p->half[1];
    p->R = images->length[image];
    p->n = captions->length[caption];
    p->word = padded(p->R, ROWS) * NV;
    FOR(s, 2) {
        Half *f = &p->half[s];
        const Side *own = &j->sides[s], *other = &j->sides[!s];
        int with = s ? image : caption;
        f->side = own;
        f->item = s ? caption : image;
        f->nodes = s ? p->n : p->R;
        f->answers = s ? p->R : p->n;
        f->stride = padded(f->nodes, W);
        f->node = s ? p->word : NV;
        f->answer = s ? NV : p->word;
        f->gram = (const vec *)(other->grams + other->gram[with] * KP);
        f->norm = (const vec *)(own->norms + own->packed[f->item] * KP);
        if (!gradients) continue;
        f->d_gram = (vec *)(j->grads[!s].grams + other->gram[with] * KP);
        f->d_self = (vec *)(j->grads[s].grams + own->gram[f->item] * KP);
    }
    products(p->R, p->n, j->dim, (const vec *)(images->data + images->packed[image] * KP * j->dim),
             (const vec *)(captions->data + captions->packed[caption] * KP * j->dim), p->S, p->word);
    affinities(visual, textual, p->S, p->word);
    FOR(s, 2) {
        attend(&p->half[s], j->smooth, p->work);
        if (gradients) match(&p->half[s], p->S, 1);
        else match(&p->half[s], p->S, 0);
    }
}
void forward(Job *j) {
    Pair p;
    lay_out(j, &p, own_memory(j), 0);
    flush();
    int64_t I = j->sides[0].count, C = j->sides[1].count, across = parts(C, TILE_C), tiles = parts(I, TILE_I) * across;
    for (int64_t t; (t = claim(&j->next)) < tiles;)
        for (int64_t c = t % across * TILE_C; c < (t % across + 1) * TILE_C && c < C; c++)
            for (int64_t i = t / across * TILE_I; i < (t / across + 1) * TILE_I && i < I; i++) {
                match_pair(j, &p, i, c, 0);
                FOR(s, 2) j->scores[s][i * C + c] = score(&p.half[s], j->neighbors);
            }
}
/* the constants Python needs to lay out memory */
void constants(int64_t *out) {
    int64_t c[] = {ROWS, KP, HP};
    memcpy(out, c, sizeof c);
}
