/* cuda_kernel.h: the CUDA kernels' launchers: one argument struct and one function an operation.
 * All pointers are device memory; matrices are bf16 unless said otherwise, row-major, 16-byte aligned, with
 * widths and strides that are multiples of 8. A launcher queues on `stream`, allocates nothing, and
 * returns 0 or the CUDA error. Operations as in moekit/op.h and kernel/kernel.h.
 */
#ifndef MOEI_CUDA_KERNEL_H
#define MOEI_CUDA_KERNEL_H

#include <moekit/op.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct CUstream_st *moei_stream;

/* Groups a grouped product can have. */
enum { MOEI_CUDA_GROUPS_MAX = 512 };

/* Tile schedules. 0 lets the launcher choose by shape. */
typedef enum moei_schedule {
    MOEI_SCHEDULE_AUTO = 0,
    MOEI_SCHEDULE_COOPERATIVE, /* 128 x 256: two warpgroups share a tile */
    MOEI_SCHEDULE_PINGPONG     /* 128 x 192 (ACT, ACT_GRAD: 128 x 128): one stores while the other computes */
} moei_schedule;

/* Grouped product over ragged rows, moe_gemm_rows: C[r] = A[a_row[r]] B_g, then the epilogue.
 * A row holds k values. n: columns of C, and of H where gated ACT makes B 2n wide (gate first).
 *   STORE     c [R, n], `accumulate` adds to it
 *   ACT       z [R, n or 2n] or NULL, h [R, n]
 *   ACT_GRAD  z -> dz (may be z), h = weight * A, dweight_part [R, moei_cuda_dweight_parts(n)] */
typedef struct moei_cuda_gemm_rows_args {
    int32_t n_groups;
    const int32_t *offset; /* [n_groups + 1] */
    int64_t max_rows;      /* rows that a (without a_row) has at least */
    int64_t n, k;
    const void *a;
    int64_t lda;
    const int32_t *a_row; /* NULL: r */
    const void *b;        /* group g: [k, columns], or [columns, k] where b_trans; dense */
    bool b_trans;
    moe_epilogue epilogue;
    moe_act act;
    moei_schedule schedule;
    void *c;
    int64_t ldc;
    bool accumulate;
    void *z, *dz;
    int64_t ldz;
    void *h;
    int64_t ldh;
    const float *row_weight; /* [R]; NULL: 1 */
    float *dweight_part;     /* NULL: not wanted */
} moei_cuda_gemm_rows_args;
int moei_cuda_gemm_rows(const moei_cuda_gemm_rows_args *args, moei_stream stream);
int64_t moei_cuda_dweight_parts(int64_t n);

/* Grouped product over a ragged sum: C_g[m, n] (+)= sum over the group's rows r of A[a_row[r], m] B[r, n].
 * c_trans: C_g is stored as [n, m]. */
typedef struct moei_cuda_gemm_outer_args {
    int32_t n_groups;
    const int32_t *offset;
    int64_t max_rows; /* rows that b has */
    int64_t m, n;
    const void *a;
    int64_t lda;
    const int32_t *a_row;
    const void *b;
    int64_t ldb;
    void *c; /* [n_groups, m, n] or [n_groups, n, m] */
    bool c_trans, accumulate;
    int32_t free_sms; /* multiprocessors left to other streams */
} moei_cuda_gemm_outer_args;
int moei_cuda_gemm_outer(const moei_cuda_gemm_outer_args *args, moei_stream stream);

/* out[t] = sum_k weight[t,k] * rows[row_of[t,k]], k ascending in f32; weight NULL: 1; row_of -1: nothing. */
typedef struct moei_cuda_gather_sum_args {
    int64_t n_tokens, n;
    int32_t top_k;
    const void *rows; /* [R, n] */
    const int32_t *row_of;
    const float *weight;
    void *out; /* [T, n] */
    bool accumulate;
} moei_cuda_gather_sum_args;
int moei_cuda_gather_sum(const moei_cuda_gather_sum_args *args, moei_stream stream);

/* Router: logits = x gate^T, top-k with exact order, weights, rows per expert of each tile of tokens. */
enum { MOEI_CUDA_ROUTE_TILE = 128 };
typedef struct moei_cuda_route_args {
    int64_t n_tokens, d;
    int32_t n_experts, top_k; /* n_experts at most 256, top_k at most 32 */
    const void *x;            /* [T, d] */
    const void *gate;         /* [E, d] */
    bool score_before_topk, norm_topk_prob;
    float scale;
    float *logits;       /* [T, E] or NULL */
    float *lse;          /* [T] */
    int32_t *expert;     /* [T, K] */
    float *weight;       /* [T, K] */
    uint8_t *tile_count; /* [tiles, E rounded up to 4] */
    int32_t *first_bad;  /* lowest token with a NaN or infinite logit; the caller sets INT32_MAX before */
} moei_cuda_route_args;
int moei_cuda_route(const moei_cuda_route_args *args, moei_stream stream);

/* The same for up to MOEI_CUDA_DECODE_TOKENS tokens, sooner; tile_count is not written. */
int moei_cuda_route_few(const moei_cuda_route_args *args, moei_stream stream);

/* Where each routed row stands, rows of an expert by ascending token. */
typedef struct moei_cuda_plan_args {
    int64_t n_tokens;
    int32_t n_experts, top_k;
    const int32_t *expert;     /* [T, K] */
    const float *weight;       /* [T, K] */
    const uint8_t *tile_count; /* of moei_cuda_route */
    int32_t *offset;           /* [E + 1] */
    int32_t *row_token;        /* [R] */
    int32_t *row_of;           /* [T, K] */
    float *row_weight;         /* [R] */
} moei_cuda_plan_args;
int moei_cuda_plan(const moei_cuda_plan_args *args, moei_stream stream);

/* The experts of few tokens, forward only, without a plan: y[t] = sum_k weight[t,k] f_expert[t,k](x[t]).
 * expert -1: nothing. Sooner than the general kernels up to 4 tokens. x must be complete when the kernel just
 * ahead in the stream (the router) starts. */
enum { MOEI_CUDA_DECODE_TOKENS = 8, MOEI_CUDA_DECODE_CHOICES = 128 };
typedef struct moei_cuda_decode_args {
    int64_t n_tokens, d, n; /* n_tokens at most 8, n_tokens * top_k at most 128 */
    int32_t n_experts, top_k;
    const void *x;  /* [T, d] */
    const void *w1; /* [E, d, n], gated [E, d, 2n], gate first */
    const void *w2; /* [E, n, d] */
    moe_act act;
    const int32_t *expert; /* [T, K] */
    const float *weight;   /* [T, K] */
    float *h;              /* scratch [T * K, n] */
    void *y;               /* [T, d] */
} moei_cuda_decode_args;
int moei_cuda_decode(const moei_cuda_decode_args *args, moei_stream stream);

#ifdef __cplusplus
}
#endif
#endif
