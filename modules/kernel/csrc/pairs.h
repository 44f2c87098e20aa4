/* All-pairs GSMN similarity on a CPU: what forward.c and backward.c share.

   Compiled with -DK= (blocks) and -DH= (hidden width).  The lanes of a vector are the K blocks of the
   embedding: one multiply-add works on all blocks at once.  The K products of a pair of nodes are one vector, and so
   are a node's attended products and quadratic forms (docs/method.md, section 7; docs/performance.md).

   Letters: R regions, n words, d = D / K; W lanes of a vector, NV vectors for K blocks, HV for H hidden units;
   `nodes` attend to `answers`, the nodes of the other graph.  Hidden unit c of kernel k stands at 8 c + k. */
#ifndef PAIRS_H
#define PAIRS_H
#if defined(__AVX512F__)
#include <immintrin.h>
#endif
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* W lanes; panels of ROWS regions, blocks of up to WORDS words, NODES nodes and LINES rows of a product at
   once, JOIN Gram entries, steps of DEPTH_V and DEPTH_T along d: as many as the registers hold */
#if defined(__AVX512F__)
enum { W = 16, ROWS = 4, WORDS = 6, NODES = 12, LINES = 8, JOIN = 8, DEPTH_V = 4, DEPTH_T = 4 };
#define EACH_WORDS(F) F(1) F(2) F(3) F(4) F(5) F(6)
#define EACH_NODES(F) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11) F(12)
#else
#if defined(__AVX__)
enum { W = 8 };
#else
enum { W = 4 };
#endif
enum { ROWS = 3, WORDS = 4, NODES = 6, LINES = 3, JOIN = 6, DEPTH_V = 4, DEPTH_T = 2 };
#define EACH_WORDS(F) F(1) F(2) F(3) F(4)
#define EACH_NODES(F) F(1) F(2) F(3) F(4) F(5) F(6)
#endif

enum {
    NV = (K + W - 1) / W, KP = NV * W,            /* blocks, padded */
    EW = 8, EV = W > 8 ? 1 : EW / W, TW = EV * W, /* an edge's 8 kernels, in EV vectors; repeated where W is 16 */
    HP = (H + TW - 1) / TW * TW, HV = HP / W,     /* hidden units, padded */
    CONV_B = KP * HP, OUT1_W = CONV_B + HP, OUT1_B = OUT1_W + HP * HP, OUT2_W = OUT1_B + HP,
    PARAMS = OUT2_W + HP,                         /* one side's parameters, one after the other */
    TILE_I = 4, TILE_C = 8                        /* images and captions a thread takes at once: they fit its cache */
};

typedef float vec __attribute__((vector_size(W * 4)));
typedef int32_t ivec __attribute__((vector_size(W * 4)));
#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif
#define FOR(i, count) for (int i = 0; i < (count); i++)
#define EACH(i, count) UNROLL FOR(i, count)       /* a constant count: sums stay in registers */

/* One side of all pairs: images with their regions, or captions with their words */
typedef struct {
    int64_t count;           /* items */
    const int64_t *length;   /* nodes of each */
    const int64_t *first;    /* row of `features` where each begins */
    const int64_t *packed;   /* row of `data` and `norms` */
    const int64_t *gram;     /* row of `grams` */
    const int64_t *edge;     /* row of `edges` */
    const float *features;   /* rows of D */
    float *data;             /* the same in panels [vector][d][row][lane] */
    float *grams;            /* rows of KP: G_ij for j >= i, twice where j > i */
    float *norms;            /* rows of KP: norms of a node's blocks */
    float *edges;            /* rows of EW: one a node ("self"), or one a pair of nodes ("neighbors") */
    const float *params;
    const float *boxes;      /* images: (count, R, 4), x1 y1 x2 y2 */
    const float *kernels;    /* images: (4, EW), mean and -1 / (2 variance) of rho, then of theta */
    const float *links;      /* captions: adjacency (count, n, n); NULL for the dense graph */
} Side;

/* The gradient of one side.  The caller clears data, grams, edges and params. */
typedef struct {
    float *data, *grams, *edges;   /* laid out like Side's */
    float *params;                 /* slots rows of PARAMS, to be added up */
    float *features;
    float *kernels;                /* images: (count, 4, EW), to be added up */
} Grad;

typedef struct {
    Side sides[2];                 /* images, captions */
    Grad grads[2];
    int64_t R, n, dim, neighbors;  /* the most regions and words; d; 1 for propagation "neighbors" */
    double smooth;                 /* lambda */
    float *scores[2];              /* visual and textual, images x captions */
    const float *d_scores[2];
    int64_t slots;                 /* parts of the images and of the captions, for the gradient */
    char *memory;                  /* `room` bytes for each thread */
    int64_t room;
    int64_t threads, next, done;   /* counters the threads share, 0 at first */
} Job;

/* One side of one pair: its nodes attend to the answers, the nodes of the other side.  raw, a, da: answers x nodes, in
   rows of `stride` floats */
typedef struct {
    const Side *side;
    int item, nodes, answers, stride;
    int node, answer;               /* vectors of S from one node or answer to the next */
    const vec *gram, *norm;         /* the answers' Gram matrices, the nodes' norms */
    float *raw, *a, *norms;         /* affinities, attention, norms of an answer's affinities */
    vec *m, *z, *h;                 /* node by node: matching vectors, z = W m, the convolution's output */
    /* for the gradient only */
    vec *y;                         /* y[answer][node]: the answer's row of G times a */
    vec *inverse, *over;            /* 1 / (product of the norms); 1 / (quadratic form), 0 where clamped */
    float *da;                      /* gradient of the affinities */
    vec *u, *dh, *dm;               /* of out_1's output and then of z; of h; of m and then of the attended products */
    vec *dq;                        /* of the quadratic forms, twice */
    vec *d_gram, *d_self;           /* of the answers' and of the nodes' Gram matrices */
    float *transposed[2];           /* weights of the convolution and of out_1 */
} Half;
typedef struct { Half half[2]; vec *S, *work; int R, n, word; } Pair;   /* word: vectors of S from word to word */

char *lay_out(const Job *j, Pair *p, char *memory, int gradients);
void match_pair(const Job *j, Pair *p, int image, int caption, int gradients);
void edges(const Job *j, int side, int item, float *work);
void edges_back(const Job *j, int side, int item, float *work);
float score(const Half *f, int neighbors);
void score_back(const Half *f, int neighbors, float g, float *d_edges, float *d);

static inline int parts(int n, int most) { return (n + most - 1) / most; }
static inline int part(int n, int count, int i) { return n / count + (i < n % count); }   /* even parts */
static inline int padded(int n, int unit) { return parts(n, unit) * unit; }
static inline int64_t claim(int64_t *counter) { return __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED); }
static inline char *own_memory(Job *j) { return j->memory + claim(&j->threads) * j->room; }

/* Makes numbers below 1e-38 count as 0 in this thread: a processor is many times slower with them, and Gaussian edge
   weights are full of them. */
static inline void flush(void) {
#if defined(__SSE__)
    __builtin_ia32_ldmxcsr(__builtin_ia32_stmxcsr() | 0x8040);
#endif
}

/* ---- vectors ---- */

INLINE vec splat(float x) { return x - (vec){0}; }
INLINE vec pick(ivec mask, vec a, vec b) { return (vec)((mask & (ivec)a) | (~mask & (ivec)b)); }
INLINE vec only(ivec mask, vec a) { return (vec)(mask & (ivec)a); }
INLINE vec larger(vec a, vec b) { return pick(b > a, b, a); }   /* a NaN in a stays */
INLINE vec root(vec x) { vec y; EACH(i, W) y[i] = __builtin_sqrtf(x[i]); return y; }
INLINE ivec lanes(void) { ivec l; EACH(i, W) l[i] = i; return l; }
INLINE vec shuffle(vec a, vec b, ivec index) {
#if defined(__clang__)
    vec y;
    EACH(i, W) y[i] = index[i] < W ? a[index[i]] : b[index[i] - W];
    return y;
#else
    return __builtin_shuffle(a, b, index);
#endif
}
INLINE vec fold(vec a, vec b, int step) {
    ivec low = (lanes() & ~step) + (lanes() & step) / step * W;
    return shuffle(a, b, low) + shuffle(a, b, low + step);
}
/* lane i = sum over the lanes of x[i * NV] ... x[i * NV + NV - 1] */
INLINE vec lane_sums(const vec *x) {
    vec t[W];
    EACH(i, W) { t[i] = x[i * NV]; for (int k = 1; k < NV; k++) t[i] += x[i * NV + k]; }
    UNROLL for (int step = 1; step < W; step *= 2) EACH(i, W / 2 / step) t[i] = fold(t[2 * i], t[2 * i + 1], step);
    return t[0];
}
/* vector c of an edge's 8 kernels; add_edge adds to it */
INLINE vec edge(const float *e, int c) {
#if defined(__AVX512F__)
    return (vec)_mm512_broadcast_f64x4(_mm256_loadu_pd((const double *)e));
#else
    return ((const vec *)e)[c];
#endif
}
INLINE void add_edge(float *e, int c, vec x) {
#if defined(__AVX512F__)
    x += shuffle(x, x, lanes() ^ 8);
    _mm256_storeu_ps(e, _mm256_loadu_ps(e) + _mm512_castps512_ps256((__m512)x));
#else
    ((vec *)e)[c] += x;
#endif
}
INLINE float total(vec x) {
    UNROLL for (int step = W / 2; step; step /= 2) x += shuffle(x, x, lanes() ^ step);
    return x[0];
}
/* e^x = scale * (1 + result), to float32 rounding; |x| < 87 */
INLINE vec exp_parts(vec x, vec *scale) {
    vec n = x * 1.44269504f + 12582912.f;   /* 1.5 * 2^23: the integer nearest x / ln 2 in the low bits */
    *scale = (vec)(((ivec)n << 23) + 0x3f800000);
    n -= 12582912.f;
    vec r = x - n * 0.693145752f - n * 1.42860677e-6f, p = splat(1 / 5040.f);
    p = p * r + 1 / 720.f;
    p = p * r + 1 / 120.f;
    p = p * r + 1 / 24.f;
    p = p * r + 1 / 6.f;
    p = p * r + .5f;
    return p * r * r + r;
}
/* e^x for x <= 0; e^-60 for x below -60, since a softmax adds it to 1 and loses it anyway */
INLINE vec exponential(vec x) {
    vec scale, p = exp_parts(pick(x < -60.f, splat(-60.f), x), &scale);
    return scale * p + scale;
}
/* tanh x = E / (E + 2) with E = e^2x - 1, to float32 rounding also near 0 */
INLINE vec tangent(vec x) {
    vec scale;
    x = pick(x > 9.f, splat(9.f), x);
    x = pick(x < -9.f, splat(-9.f), x);
    vec p = exp_parts(x + x, &scale), e = scale * p + (scale - 1.f);
    return e / (e + 2.f);
}
#endif
