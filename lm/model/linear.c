/* linear.c: products with a weight matrix, forward and backward, and the sum of two streams.
 * x[rows, in], W[in, out], y[rows, out].
 * Source: a linear layer is a grouped product with a single group (op.h).
 */
#include "model/model.h"

static moe_gemm_rows_args product(const int64_t offset[2], const float *a, int64_t k, int64_t n, float *c) {
    return (moe_gemm_rows_args){
        .n_groups = 1, .offset = offset, .n = n, .k = k, .a = a, .lda = k, .c = c, .ldc = n};
}

moe_status moelm_linear(moe_lm *lm, int64_t rows, const float *x, const moelm_tensor *w, float *y) {
    const int64_t offset[2] = {0, rows};
    moe_gemm_rows_args args = product(offset, x, w->dim[0], w->dim[1], y);
    args.b = w->value;
    args.ldb = w->dim[1];
    return moe_gemm_rows(lm->ctx, &args);
}

moe_status moelm_linear_trans(moe_lm *lm, int64_t rows, const float *dy, const moelm_tensor *w, float *dx) {
    const int64_t offset[2] = {0, rows};
    moe_gemm_rows_args args = product(offset, dy, w->dim[1], w->dim[0], dx);
    args.b = w->value;
    args.ldb = w->dim[1];
    args.b_trans = true;
    return moe_gemm_rows(lm->ctx, &args);
}

moe_status moelm_linear_grad(moe_lm *lm, int64_t rows, const float *x, const float *dy, moelm_tensor *w) {
    const int64_t offset[2] = {0, rows};
    const moe_gemm_outer_args args = {
        .n_groups = 1,
        .offset = offset,
        .m = w->dim[0],
        .n = w->dim[1],
        .a = x,
        .lda = w->dim[0],
        .b = dy,
        .ldb = w->dim[1],
        .c = w->grad,
        .ldc = w->dim[1],
        .accumulate = true,
    };
    return moe_gemm_outer(lm->ctx, &args);
}

enum { ADD_TASK = 1 << 14 }; /* numbers a task adds: three streams of it fit a second-level cache */

typedef struct add_args {
    int64_t n;
    const float *a, *b;
    float *out;
} add_args;

static void add_task(void *arg, int64_t task, void *scratch) {
    const add_args *s = arg;
    (void)scratch;
    int64_t end = (task + 1) * ADD_TASK < s->n ? (task + 1) * ADD_TASK : s->n;
    for (int64_t i = task * ADD_TASK; i < end; ++i) s->out[i] = s->a[i] + s->b[i];
}

void moelm_add(moe_lm *lm, int64_t n, const float *a, const float *b, float *out) {
    add_args args = {n, a, b, out};
    moe_parallel(lm->ctx, (n + ADD_TASK - 1) / ADD_TASK, add_task, &args);
}
