/* op.h: the compute operations moekit is built from, for custom experts and whole models.
 *
 * Every operation splits its work over the context's threads and gives the same bits for any number of them:
 * each element of a result is summed in one fixed order. The grouped products also give a row the same bits
 * whatever rows stand beside it. f64 runs on the reference kernels.
 *
 * Matrices are row-major; ld* is the number of elements from one row to the next, at most 2^29. There must be
 * fewer than 2^31 rows (tokens, kv_stride * n_seq), and n_groups times b_group or c_group may be at most 2^60
 * elements. More is MOE_ERR_ARGUMENT, and so is data that is not aligned to its elements. Offsets and targets
 * are checked; row indices (a_row, b_row, row_of) are not: one outside its matrix may crash.
 *
 * dtype bf16: tensors are bf16, sums are f32. What is marked "wide" is f32 there, and `dtype` otherwise:
 * routing weights, statistics of a row, losses, and all that accumulates for parameters.
 */
#ifndef MOEKIT_OP_H
#define MOEKIT_OP_H

#include <moekit/moe.h>
#include <moekit/quant.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Runs fn(arg, 0 .. n_tasks-1) on the context's threads, in any order. `scratch` is the running thread's own
 * block of moe_thread_scratch_bytes() bytes. A task must not call operations of this header on the same
 * context: its threads are busy with the loop. */
typedef void (*moe_task_fn)(void *arg, int64_t task, void *scratch);
MOE_API void moe_parallel(moe_ctx *ctx, int64_t n_tasks, moe_task_fn fn, void *arg);
MOE_API size_t moe_thread_scratch_bytes(void);

/* Activations: f(v), or of a gated one, which takes 2n columns, n gates g and then the n ups u they go with,
 *   f(min(g, limit)) * (clamp(u, -limit, limit) + offset)                     (Shazeer 2020)
 * At the limit itself the gradient passes. */
typedef enum moe_act {
    MOE_ACT_NONE = 0,    /* v */
    MOE_ACT_RELU,        /* max(0, v) */
    MOE_ACT_GELU,        /* v times the normal distribution function of v */
    MOE_ACT_SWIGLU,      /* gated by silu */
    MOE_ACT_LEAKY_RELU,  /* v, below zero 0.01 v */
    MOE_ACT_RELU2,       /* max(0, v)^2 */
    MOE_ACT_SILU,        /* v sigmoid(alpha v) */
    MOE_ACT_GELU_TANH,   /* v (1 + tanh(sqrt(2/pi) (v + 0.044715 v^3))) / 2 */
    MOE_ACT_REGLU,       /* gated by relu */
    MOE_ACT_GEGLU_EXACT, /* gated by gelu */
    MOE_ACT_GEGLU        /* gated by gelu_tanh */
} moe_act;
/* Zeros mean an alpha of 1, no limit, and nothing added. An alpha of 0 (v / 2) cannot be expressed, and a
 * limit that is not above 0 is none. Alpha concerns silu and swiglu, the others the gated ones. */
typedef struct moe_act_numbers {
    double alpha, limit, offset;
} moe_act_numbers;
MOE_API moe_status moe_act_by_name(const char *name, moe_act *act, moe_error *error);
MOE_API bool moe_act_gated(moe_act act); /* false of what is no moe_act */

/* Grouped product over ragged rows:
 *   C[r, :] (+)= A[a_row[r], :] B_g (+ bias_g)      for offset[g] <= r < offset[g+1]
 * What follows the product is the epilogue:
 *   STORE     C is stored (or added to, with `accumulate`).
 *   ACT       C is Z, the pre-activation [R, n]; h[R, n'] = act(Z), n' = n/2 if gated. With c NULL
 *             Z is not kept.
 *   ACT_GRAD  the product is dA' [R, n] and is not stored. z[R, n or 2n] is the saved pre-activation,
 *             w[r] the routing weight (row_weight, NULL: 1). Writes dz = w * act'(z) * dA' (may be z
 *             itself), wa[R, n] = w * act(z) and, if dweight is wanted, dweight[r] = <dA', act(z)>. */
typedef enum moe_epilogue { MOE_EPI_STORE = 0, MOE_EPI_ACT, MOE_EPI_ACT_GRAD } moe_epilogue;
typedef struct moe_gemm_rows_args {
    moe_dtype dtype;
    int32_t n_groups;
    const int64_t *offset; /* [n_groups + 1] */
    /* CUDA contexts only, where offset is device memory and the host needs a bound: at least
     * offset[n_groups]. With offset NULL there: the rows of the only group. */
    int64_t n_rows;
    int64_t n, k; /* columns of B, length of the sum */
    const void *a;
    int64_t lda;
    const int32_t *a_row; /* [R]; NULL: row r is r */
    const void *b;        /* group g at b + g * b_group elements: [k, n], or [n, k] where b_trans */
    int64_t ldb, b_group;
    bool b_trans;
    const void *bias; /* [n_groups, n] or NULL; not with ACT_GRAD */
    void *c;
    int64_t ldc;
    bool accumulate; /* STORE only */
    bool c_wide;     /* STORE only: C is wide (logits) */
    moe_epilogue epilogue;
    moe_act act;
    void *h; /* ACT: [R, n'] */
    int64_t ldh;
    const void *z; /* ACT_GRAD */
    void *dz;
    int64_t ldz;            /* of z and dz */
    const void *row_weight; /* wide [R] or NULL */
    void *wa;
    int64_t ldwa;
    void *dweight;      /* wide [R] or NULL */
    void *dweight_part; /* wide scratch [R, moe_dweight_parts(n)], needed with dweight */
    /* Packed B, of the same dtype, n_groups, k and n; with two runs for a gated ACT, else one. Then b, ldb,
     * b_group and b_trans are not read. Not with ACT_GRAD. NULL: b */
    const moe_packed *b_packed;
    moe_act_numbers act_numbers;
} moe_gemm_rows_args;
MOE_API moe_status moe_gemm_rows(moe_ctx *ctx, const moe_gemm_rows_args *args);
MOE_API int64_t moe_dweight_parts(int64_t n); /* columns of dweight_part */

/* Grouped product over a ragged sum (weight gradients):
 *   C_g[m, n] (+)= sum over offset[g] <= r < offset[g+1] of A[a_row[r], m] * B[b_row[r], n],
 * r ascending. A group without rows gives zero (or adds nothing). */
typedef struct moe_gemm_outer_args {
    moe_dtype dtype;
    int32_t n_groups;
    const int64_t *offset;
    int64_t n_rows; /* as of moe_gemm_rows_args */
    int64_t m, n;
    const void *a; /* [*, m] */
    int64_t lda;
    const int32_t *a_row;
    const void *b; /* [*, n] */
    int64_t ldb;
    const int32_t *b_row;
    void *c; /* group g at c + g * c_group: [m, n]; no two overlap */
    int64_t ldc, c_group;
    bool accumulate;
    bool c_wide; /* C is wide (gradients of parameters) */
} moe_gemm_outer_args;
MOE_API moe_status moe_gemm_outer(moe_ctx *ctx, const moe_gemm_outer_args *args);

/* out[t, :] (+)= sum_k weight[t,k] * rows[row_of[t,k], :], k ascending, f32 accumulator (f64 in f64);
 * row_of -1 adds nothing; weight NULL: 1. */
typedef struct moe_gather_sum_args {
    moe_dtype dtype;
    int64_t n_tokens, n; /* n columns */
    int32_t top_k;
    const void *rows;
    int64_t ld_rows;
    const int32_t *row_of; /* [T, K] */
    const void *weight;    /* wide [T, K] or NULL */
    void *out;
    int64_t ld_out;
    bool accumulate;
} moe_gather_sum_args;
MOE_API moe_status moe_gather_sum(moe_ctx *ctx, const moe_gather_sum_args *args);

/* Per-group sums of columns (bias gradients, mean probabilities), summed in f64:
 *   out[g, :] (+)= sum over offset[g] <= r < offset[g+1] of row_weight[r] * a[a_row[r], :]. */
typedef struct moe_colsum_args {
    moe_dtype dtype;
    int32_t n_groups;
    const int64_t *offset;
    int64_t n_rows; /* as of moe_gemm_rows_args */
    int64_t n;
    const void *a;
    int64_t lda;
    const int32_t *a_row;   /* NULL: r */
    const void *row_weight; /* wide; NULL: 1 */
    void *out;              /* wide [n_groups, n] */
    bool accumulate;
} moe_colsum_args;
MOE_API moe_status moe_colsum(moe_ctx *ctx, const moe_colsum_args *args);

/* y = x / sqrt(mean(x^2) + eps) * gain over rows of n, at most 2^18 (Zhang & Sennrich 2019). inv_rms[rows]
 * is kept for backward. Backward overwrites dx, or adds to it with `accumulate`, and adds to dgain; dx may be
 * dy. With `heads` each row has that many parts of n side by side, normed one by one with the same gain. */
typedef struct moe_rmsnorm_args {
    moe_dtype dtype;
    int64_t rows, n;
    float eps;
    const void *x;    /* [rows, heads, n] */
    const void *gain; /* [n] */
    void *y;          /* forward: [rows, heads, n] */
    void *inv_rms;    /* wide [rows, heads] forward writes, backward reads; NULL in inference */
    const void *dy;   /* backward */
    void *dx;
    void *dgain; /* wide */
    bool accumulate;
    int32_t heads; /* 0: 1 */
    int64_t ldx;   /* from a row of x to the next; 0: heads * n */
    int64_t ldy;   /* of y, dy and dx; 0: heads * n */
} moe_rmsnorm_args;
MOE_API moe_status moe_rmsnorm(moe_ctx *ctx, const moe_rmsnorm_args *args);
MOE_API moe_status moe_rmsnorm_backward(moe_ctx *ctx, const moe_rmsnorm_args *args);

/* Rotary embedding (Su et al. 2021) in place on x[rows, heads, head_dim], halves layout: element i of
 * the first half turns with element i of the second by angle position * base^(-2i/head_dim).
 * `inverse` turns back, which is also the gradient. */
typedef struct moe_rope_args {
    moe_dtype dtype;
    int64_t rows;
    int32_t heads, head_dim;
    void *x;
    int64_t ldx;
    const int32_t *position; /* [rows] */
    float base;
    bool inverse;
} moe_rope_args;
MOE_API moe_status moe_rope(moe_ctx *ctx, const moe_rope_args *args);

/* Causal grouped-query attention with an online softmax over key blocks, so memory grows with the context,
 * not with its square (Milakov & Gimelshein 2018; Dao et al. 2022).
 *
 * For each of n_seq sequences, queries q[n_seq*q_len, heads*head_dim] stand at positions kv_len - q_len ..
 * kv_len - 1 of keys and values k, v[n_seq*kv_stride rows, kv_heads*head_dim], of which the first kv_len rows
 * of every sequence are valid. scale 0: 1/sqrt(head_dim). lse[n_seq*q_len, heads] is kept for backward.
 *
 * Sequences of different lengths (forward only): with kv_lens and kv_rows, of n_seq numbers each, sequence s
 * has kv_lens[s] keys, which begin at row kv_rows[s] of k and v; kv_len and kv_stride are not read.
 *
 * Backward needs q_len == kv_len == kv_stride. It recomputes the weights from lse and overwrites dq, dk and
 * dv; `delta` is scratch [n_seq*q_len, heads]. */
typedef struct moe_attention_args {
    moe_dtype dtype;
    int64_t n_seq, q_len, kv_len, kv_stride;
    int32_t heads, kv_heads, head_dim;
    float scale;
    const void *q, *k, *v;
    int64_t ldq, ldkv;
    void *out; /* [n_seq*q_len, heads*head_dim] */
    int64_t ldo;
    void *lse;                        /* wide; NULL in inference */
    const void *dout;                 /* ld: ldo */
    void *dq, *dk, *dv;               /* ld: ldq, ldkv, ldkv */
    void *delta;                      /* wide */
    const int64_t *kv_lens, *kv_rows; /* NULL: kv_len, and multiples of kv_stride */
} moe_attention_args;
MOE_API moe_status moe_attention(moe_ctx *ctx, const moe_attention_args *args);
MOE_API moe_status moe_attention_backward(moe_ctx *ctx, const moe_attention_args *args);

/* Softmax cross-entropy of rows of logits against target[rows] (-1: not counted), in nats. row_loss[rows]
 * gets each row's loss (0 if not counted). With grad_scale != 0 the logits are overwritten by grad_scale *
 * (softmax - onehot). */
typedef struct moe_cross_entropy_args {
    moe_dtype dtype;
    int64_t rows, n;
    void *logits;
    int64_t ld;
    const int32_t *target;
    void *row_loss; /* wide */
    double grad_scale;
} moe_cross_entropy_args;
MOE_API moe_status moe_cross_entropy(moe_ctx *ctx, const moe_cross_entropy_args *args);

/* AdamW (Loshchilov & Hutter 2019) on one tensor, with bias correction for step `step` >= 1. The gradient is
 * first multiplied by grad_scale (for clipping or accumulation; 1: as it is; 0 is refused). In bf16 the step
 * is made on `master`, and `value` becomes its rounded copy, because most steps are smaller than a bf16 value
 * can show. */
typedef struct moe_adamw_args {
    moe_dtype dtype; /* of value */
    int64_t n;
    void *value;
    float *master; /* bf16: needed; NULL with the others */
    void *m, *v;   /* wide */
    const void *grad;
    moe_dtype grad_dtype; /* of grad, as moe_param tells it: wide, or MOE_BF16 where dtype is */
    double lr, beta1, beta2, eps, weight_decay, grad_scale;
    int64_t step;
} moe_adamw_args;
MOE_API moe_status moe_adamw(moe_ctx *ctx, const moe_adamw_args *args);

/* Sum of squares of n numbers in f64, in fixed blocks, so the same for any thread count. */
MOE_API moe_status moe_sum_squares(moe_ctx *ctx, moe_dtype dtype, const void *x, int64_t n, double *sum);

/* Operations per second that registers alone allow: multiply-adds (two each) of the unit that products of
 * this dtype run on, on all threads, for about `seconds`. The best of several measurements is the machine's
 * ceiling. */
MOE_API moe_status moe_peak(moe_ctx *ctx, moe_dtype dtype, double seconds, double *per_second);
/* Bytes of memory of the machine, or of its container if that is less; 0: unknown. */
MOE_API double moe_machine_memory(void);

/* Where a context's time goes. After moe_time_start every operation of this header adds its wall time to the
 * row of its name. The router of a layer with its plan and losses, forward and backward, goes to the row
 * "route" instead, whatever operations it is made of. Starting again counts from zero. Devices other than the
 * CPU are MOE_ERR_UNSUPPORTED. A context that is not asked pays nothing. */
typedef struct moe_time {
    const char *name;
    int64_t calls;
    double seconds;
} moe_time;
MOE_API moe_status moe_time_start(moe_ctx *ctx);
MOE_API void moe_time_stop(moe_ctx *ctx);
/* The rows so far, which belong to the context, until moe_time_stop; none if not started. */
MOE_API const moe_time *moe_time_rows(const moe_ctx *ctx, size_t *count);

/* Philox4x32-10 (Salmon et al. 2011): four words for (seed, purpose, layer, step, index). The same on
 * every device and in any parallel layout. moe_random_normal fills by Box-Muller. */
typedef enum moe_purpose {
    MOE_DRAW_INIT = 1,
    MOE_DRAW_JITTER = 2,
    MOE_DRAW_BATCH = 3,
    MOE_DRAW_SAMPLE = 4,
    MOE_DRAW_TEST = 5,
    MOE_DRAW_EXPERT_DROPOUT = 6,
    MOE_DRAW_NOISE = 7,          /* noisy_top_k */
    MOE_DRAW_FORCED = 8,         /* logits of the random router */
    MOE_DRAW_HASH = 9,           /* hash and balanced routers */
    MOE_DRAW_TOP_K = 10,         /* random K */
    MOE_DRAW_SECOND_POLICY = 11, /* gshard_top2 */
    MOE_DRAW_DROPOUT = 12,       /* hidden activations */
    MOE_DRAW_REVIVE = 13         /* noise of a revived expert */
} moe_purpose;
MOE_API void moe_random(uint64_t seed, moe_purpose purpose, uint32_t layer, uint64_t step, uint64_t index,
                        uint32_t out[4]);
/* x[i] = std * N(0,1), element i of stream (seed, purpose, layer, step); std 0 gives zeros, at the speed of
 * memory. Writes nothing if dtype is not a moe_dtype. */
MOE_API void moe_random_normal(uint64_t seed, moe_purpose purpose, uint32_t layer, uint64_t step,
                               moe_dtype dtype, void *x, int64_t n, double std);

#ifdef __cplusplus
}
#endif
#endif
