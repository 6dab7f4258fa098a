/* peer_gemm.c: an MoE layer as one builds it on a library of matrix products: rows gathered expert by expert,
 * a product an expert, the activation in between, the weighted sum of rows at the end; R = T*K rows by
 * expert, xr[R, d] -> z[R, 2n] = xr W1 -> h[R, n] = silu(gate) * up -> yr[R, d] = h W2 -> y[T, d], and back.
 * What is not a product runs on all threads and in vectors, so that the library is not blamed for it.
 */
#include "peer_gemm.h"
#include "peer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct peer {
    peer_problem problem;
    size_t number;   /* bytes of one */
    int64_t *offset; /* [E + 1] */
    int32_t *token;  /* [R] of a row */
    int32_t *row_of; /* [T, K] */
    float *weight;   /* [R] */
    void **w1, **w2; /* [E], as run takes them */
    void *xr, *z, *h, *yr;
    void *dyr, *dh, *dz, *dxr;
    void *dw1, *dw2;
    const char *error;
};

static const char *refusal = "";

PEER_API const char *peer_error(const peer *p) {
    return p ? p->error : refusal;
}

PEER_API void peer_about(char *text, size_t size) {
    peer_gemm.about(text, size);
}

/* 1. Numbers of the layer's dtype, a row at a time. */

static void load(const peer *p, float *restrict to, const void *from, int64_t at, int64_t n) {
    if (!p->problem.bf16) {
        memcpy(to, (const float *)from + at, (size_t)n * sizeof *to);
        return;
    }
    const uint16_t *half = (const uint16_t *)from + at;
    for (int64_t i = 0; i < n; ++i) {
        const uint32_t bits = (uint32_t)half[i] << 16;
        memcpy(&to[i], &bits, sizeof bits);
    }
}

static void store(const peer *p, const float *restrict from, void *to, int64_t at, int64_t n) {
    if (!p->problem.bf16) {
        memcpy((float *)to + at, from, (size_t)n * sizeof *from);
        return;
    }
    uint16_t *half = (uint16_t *)to + at;
    for (int64_t i = 0; i < n; ++i) {
        uint32_t bits;
        memcpy(&bits, &from[i], sizeof bits);
        half[i] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16); /* to nearest, ties to even */
    }
}

/* 2. Rows. */

static void plan(peer *p, const peer_batch *batch) {
    const int32_t E = p->problem.n_experts, K = p->problem.top_k;
    const int64_t R = batch->n_tokens * K;
    memset(p->offset, 0, (size_t)(E + 1) * sizeof *p->offset);
    for (int64_t i = 0; i < R; ++i) ++p->offset[batch->expert[i] + 1];
    for (int32_t e = 0; e < E; ++e) p->offset[e + 1] += p->offset[e];
    for (int64_t i = 0; i < R; ++i) { /* offset[e] runs to where e + 1 begins */
        const int64_t row = p->offset[batch->expert[i]]++;
        p->row_of[i] = (int32_t)row;
        p->token[row] = (int32_t)(i / K);
        p->weight[row] = batch->weight[i];
    }
    for (int32_t e = E; e > 0; --e) p->offset[e] = p->offset[e - 1];
    p->offset[0] = 0;
}

/* rows[r] = from[token of r], times its weight where `weighted`. */
static void gather(const peer *p, const void *from, void *rows, bool weighted) {
    const int64_t d = p->problem.d_model, R = p->offset[p->problem.n_experts];
#pragma omp parallel for
    for (int64_t r = 0; r < R; ++r) {
        float row[d];
        load(p, row, from, p->token[r] * d, d);
        for (int64_t i = 0; i < d; ++i) row[i] *= weighted ? p->weight[r] : 1.0F;
        store(p, row, rows, r * d, d);
    }
}

/* out[t] = sum of its rows, weighted or not. */
static void combine(const peer *p, int64_t n_tokens, const void *rows, void *out, bool weighted) {
    const int64_t d = p->problem.d_model, K = p->problem.top_k;
#pragma omp parallel for
    for (int64_t t = 0; t < n_tokens; ++t) {
        float sum[d], row[d];
        memset(sum, 0, sizeof sum);
        for (int64_t k = 0; k < K; ++k) {
            const int64_t r = p->row_of[t * K + k];
            const float weight = weighted ? p->weight[r] : 1.0F;
            load(p, row, rows, r * d, d);
            for (int64_t i = 0; i < d; ++i) sum[i] += weight * row[i];
        }
        store(p, sum, out, t * d, d);
    }
}

static void activate(const peer *p) {
    const int64_t n = p->problem.hidden, R = p->offset[p->problem.n_experts];
#pragma omp parallel for
    for (int64_t r = 0; r < R; ++r) {
        float z[2 * n], h[n];
        load(p, z, p->z, r * 2 * n, 2 * n);
        for (int64_t i = 0; i < n; ++i) h[i] = z[i] / (1.0F + expf(-z[i])) * z[n + i];
        store(p, h, p->h, r * n, n);
    }
}

/* dz from dh and z. */
static void activate_back(const peer *p) {
    const int64_t n = p->problem.hidden, R = p->offset[p->problem.n_experts];
#pragma omp parallel for
    for (int64_t r = 0; r < R; ++r) {
        float z[2 * n], dh[n], dz[2 * n];
        load(p, z, p->z, r * 2 * n, 2 * n);
        load(p, dh, p->dh, r * n, n);
        for (int64_t i = 0; i < n; ++i) {
            const float s = 1.0F / (1.0F + expf(-z[i]));
            dz[i] = dh[i] * z[n + i] * s * (1.0F + z[i] * (1.0F - s));
            dz[n + i] = dh[i] * z[i] * s;
        }
        store(p, dz, p->dz, r * 2 * n, 2 * n);
    }
}

/* 3. Products, an expert after the other. */

static void *row(const peer *p, void *rows, int64_t r, int64_t cols) {
    return (char *)rows + (size_t)(r * cols) * p->number;
}

/* Weights that stay as they are may lie as the library likes it. */
static bool packs(const peer *p) {
    return peer_gemm.pack && !p->problem.training;
}

/* c = a b of every expert's rows: [rows, k] by [k, n]. */
static int multiply(peer *p, void *a, void **b, void *c, int64_t k, int64_t n, bool b_trans) {
    for (int32_t e = 0; e < p->problem.n_experts; ++e) {
        const int64_t first = p->offset[e], m = p->offset[e + 1] - first;
        const gemm g = {.m = m,
                        .n = n,
                        .k = k,
                        .a = row(p, a, first, k),
                        .b = b[e],
                        .c = row(p, c, first, n),
                        .b_trans = b_trans,
                        .bf16 = p->problem.bf16,
                        .packed = packs(p)};
        if (m > 0 && (p->error = peer_gemm.run(&g))) return 1;
    }
    return 0;
}

/* c[e] = a^T b over every expert's rows: [m, rows] by [rows, n]. */
static int multiply_outer(peer *p, void *a, void *b, void *c, int64_t m, int64_t n) {
    for (int32_t e = 0; e < p->problem.n_experts; ++e) {
        const int64_t first = p->offset[e], rows = p->offset[e + 1] - first;
        const gemm g = {.m = m,
                        .n = n,
                        .k = rows,
                        .a = row(p, a, first, m),
                        .b = row(p, b, first, n),
                        .c = row(p, c, e * m, n),
                        .a_trans = true,
                        .bf16 = p->problem.bf16};
        if (rows == 0) memset(g.c, 0, (size_t)(m * n) * p->number);
        if (rows > 0 && (p->error = peer_gemm.run(&g))) return 1;
    }
    return 0;
}

PEER_API int peer_forward(peer *p, const peer_batch *batch) {
    const int64_t d = p->problem.d_model, n = p->problem.hidden;
    plan(p, batch);
    gather(p, batch->x, p->xr, false);
    if (multiply(p, p->xr, p->w1, p->z, d, 2 * n, false)) return 1;
    activate(p);
    if (multiply(p, p->h, p->w2, p->yr, n, d, false)) return 1;
    combine(p, batch->n_tokens, p->yr, batch->y, true);
    return 0;
}

PEER_API int peer_step(peer *p, const peer_batch *batch) {
    const int64_t d = p->problem.d_model, n = p->problem.hidden;
    if (peer_forward(p, batch)) return 1;
    gather(p, batch->dy, p->dyr, true);
    if (multiply_outer(p, p->h, p->dyr, p->dw2, n, d)) return 1;
    if (multiply(p, p->dyr, p->w2, p->dh, d, n, true)) return 1;
    activate_back(p);
    if (multiply_outer(p, p->xr, p->dz, p->dw1, d, 2 * n)) return 1;
    if (multiply(p, p->dz, p->w1, p->dxr, 2 * n, d, true)) return 1;
    combine(p, batch->n_tokens, p->dxr, batch->dx, false);
    return 0;
}

PEER_API void peer_gradients(const peer *p, const void **dw1, const void **dw2) {
    *dw1 = p->dw1;
    *dw2 = p->dw2;
}

/* 4. Making one. */

static bool take(void *place, int64_t count, size_t bytes) {
    void *memory = malloc((size_t)count * bytes);
    memcpy(place, &memory, sizeof memory);
    if (memory) memset(memory, 0, (size_t)count * bytes); /* its pages are met now, not in the first run */
    return memory;
}

static bool take_all(peer *p) {
    const peer_problem *s = &p->problem;
    const int64_t E = s->n_experts, d = s->d_model, n = s->hidden, TK = s->n_tokens * s->top_k;
    bool fits = take(&p->offset, E + 1, sizeof *p->offset) && take(&p->token, TK, sizeof *p->token) &&
                take(&p->row_of, TK, sizeof *p->row_of) && take(&p->weight, TK, sizeof *p->weight) &&
                take(&p->w1, E, sizeof *p->w1) && take(&p->w2, E, sizeof *p->w2) &&
                take(&p->xr, TK * d, p->number) && take(&p->z, TK * 2 * n, p->number) &&
                take(&p->h, TK * n, p->number) && take(&p->yr, TK * d, p->number);
    if (fits && s->training)
        fits = take(&p->dyr, TK * d, p->number) && take(&p->dh, TK * n, p->number) &&
               take(&p->dz, TK * 2 * n, p->number) && take(&p->dxr, TK * d, p->number) &&
               take(&p->dw1, E * d * 2 * n, p->number) && take(&p->dw2, E * n * d, p->number);
    return fits;
}

/* Fills place[E] with the matrices [k, n] as the products take them. */
static bool set_weights(const peer *p, void *from, void **place, int64_t k, int64_t n) {
    const peer_problem *s = &p->problem;
    const int64_t mean = s->n_tokens * s->top_k / s->n_experts;
    for (int32_t e = 0; e < s->n_experts; ++e) {
        const gemm g = {
            .m = mean > 0 ? mean : 1, .n = n, .k = k, .b = row(p, from, e * k, n), .bf16 = s->bf16};
        place[e] = packs(p) ? peer_gemm.pack(&g) : g.b;
        if (!place[e]) return false;
    }
    return true;
}

PEER_API peer *peer_create(const peer_problem *problem) {
    refusal = "this library has no products of bf16";
    if (problem->bf16 && !peer_gemm.has_bf16) return NULL;
    refusal = "the problem does not fit in memory";
    peer *p = calloc(1, sizeof *p);
    if (!p) return NULL;
    p->problem = *problem;
    p->number = problem->bf16 ? sizeof(uint16_t) : sizeof(float);
    p->error = "";
    const int64_t d = problem->d_model, n = problem->hidden;
    if (take_all(p) && set_weights(p, problem->w1, p->w1, d, 2 * n) &&
        set_weights(p, problem->w2, p->w2, n, d))
        return p;
    peer_destroy(p);
    return NULL;
}

PEER_API void peer_destroy(peer *p) {
    if (!p) return;
    for (int32_t e = 0; packs(p) && p->w1 && p->w2 && e < p->problem.n_experts; ++e) {
        peer_gemm.unpack(p->w1[e]);
        peer_gemm.unpack(p->w2[e]);
    }
    void *const blocks[] = {p->offset, p->token, p->row_of, p->weight, p->w1, p->w2,  p->xr,  p->z,
                            p->h,      p->yr,    p->dyr,    p->dh,     p->dz, p->dxr, p->dw1, p->dw2};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; ++i) free(blocks[i]);
    free(p);
}
