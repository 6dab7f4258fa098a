/* linear.c: products with a weight matrix, forward and backward, and the sum of two streams.
 * x[rows, in], W[in, out], y[rows, out].
 * Source: a linear layer is a grouped product with a single group (op.h).
 */
#include "model/model.h"

static moe_gemm_rows_args product(const moe_lm *lm, const int64_t offset[2], const void *a, int64_t k,
                                  int64_t n, void *c) {
    return (moe_gemm_rows_args){.dtype = lm->dtype,
                                .n_groups = 1,
                                .offset = offset,
                                .n = n,
                                .k = k,
                                .a = a,
                                .lda = k,
                                .c = c,
                                .ldc = n};
}

moe_status moelm_linear_columns(moe_lm *lm, int64_t rows, const void *x, const moelm_tensor *w, int64_t first,
                                int64_t n, void *y, int64_t ldy) {
    const int64_t offset[2] = {0, rows};
    moe_gemm_rows_args args = product(lm, offset, x, w->dim[0], n, y);
    args.b = moelm_at(lm, w->value, first);
    args.ldb = w->dim[1];
    args.ldc = ldy;
    return moe_gemm_rows(lm->ctx, &args);
}

moe_status moelm_linear(moe_lm *lm, int64_t rows, const void *x, const moelm_tensor *w, void *y) {
    return moelm_linear_columns(lm, rows, x, w, 0, w->dim[1], y, w->dim[1]);
}

static moe_status linear_trans(moe_lm *lm, int64_t rows, const void *dy, const moelm_tensor *w, void *dx,
                               bool wide) {
    const int64_t offset[2] = {0, rows};
    moe_gemm_rows_args args = product(lm, offset, dy, w->dim[1], w->dim[0], dx);
    args.b = w->value;
    args.ldb = w->dim[1];
    args.b_trans = true;
    args.c_wide = wide;
    return moe_gemm_rows(lm->ctx, &args);
}

moe_status moelm_linear_trans(moe_lm *lm, int64_t rows, const void *dy, const moelm_tensor *w, void *dx) {
    return linear_trans(lm, rows, dy, w, dx, false);
}

moe_status moelm_linear_logits(moe_lm *lm, int64_t rows, const void *x, const moelm_tensor *w,
                               float *logits) {
    return linear_trans(lm, rows, x, w, logits, true);
}

moe_status moelm_linear_grad(moe_lm *lm, int64_t rows, const void *x, const void *dy, moelm_tensor *w) {
    const int64_t offset[2] = {0, rows};
    const moe_gemm_outer_args args = {
        .dtype = lm->dtype,
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
        .c_wide = true,
    };
    return moe_gemm_outer(lm->ctx, &args);
}

enum { STREAM_TASK = 1 << 14 }; /* numbers of a task: three streams of it fit a second-level cache */

typedef struct stream {
    int64_t n;
    const void *a, *b;
    void *out;
} stream;

static int64_t end_of(const stream *s, int64_t task) {
    return (task + 1) * STREAM_TASK < s->n ? (task + 1) * STREAM_TASK : s->n;
}

static void add_f32(void *arg, int64_t task, void *scratch) {
    const stream *s = arg;
    const float *a = s->a, *b = s->b;
    float *out = s->out;
    (void)scratch;
    for (int64_t i = task * STREAM_TASK; i < end_of(s, task); ++i) out[i] = a[i] + b[i];
}

static void add_bf16(void *arg, int64_t task, void *scratch) {
    const stream *s = arg;
    const uint16_t *a = s->a, *b = s->b;
    uint16_t *out = s->out;
    (void)scratch;
    for (int64_t i = task * STREAM_TASK; i < end_of(s, task); ++i)
        out[i] = moei_bf16_round(moei_bf16_value(a[i]) + moei_bf16_value(b[i]));
}

static void narrow_task(void *arg, int64_t task, void *scratch) {
    const stream *s = arg;
    const float *a = s->a;
    uint16_t *out = s->out;
    (void)scratch;
    for (int64_t i = task * STREAM_TASK; i < end_of(s, task); ++i) out[i] = moei_bf16_round(a[i]);
}

static void run_stream(moe_lm *lm, moe_task_fn fn, stream *s) {
    moe_parallel(lm->ctx, (s->n + STREAM_TASK - 1) / STREAM_TASK, fn, s);
}

void moelm_add(moe_lm *lm, int64_t n, const void *a, const void *b, void *out) {
    stream s = {n, a, b, out};
    run_stream(lm, lm->dtype == MOE_BF16 ? add_bf16 : add_f32, &s);
}

void moelm_narrow(moe_lm *lm, int64_t n, const float *from, void *to) {
    stream s = {.n = n, .a = from, .out = to};
    if (lm->dtype == MOE_BF16) run_stream(lm, narrow_task, &s);
}
