/* bench_products.c: moekit bench gemm: the grouped products of an expert stage alone, with the rows where the
 * layer's routing puts them.
 */
#include "bench/bench.h"

#include <moekit/expert.h>
#include <moekit/op.h>

/* One operation of op.h, to be timed. */
typedef struct operation {
    moe_ctx *ctx;
    moe_gemm_rows_args rows;
    moe_gemm_outer_args outer;
} operation;

static moe_status run_rows(void *arg, double *seconds) {
    (void)seconds;
    const operation *op = arg;
    return moe_gemm_rows(op->ctx, &op->rows);
}

static moe_status run_outer(void *arg, double *seconds) {
    (void)seconds;
    const operation *op = arg;
    return moe_gemm_outer(op->ctx, &op->outer);
}

/* Where the layer's router sends the rows: offset[E+1] and, for every row, its token. */
static moe_status copy_routing(const bench *b, int64_t *offset, int32_t *row_token) {
    moe_routing_view view = {.size = sizeof view};
    moe_status status = moe_layer_routing(b->layer, &view);
    if (status != MOE_OK) return status;
    offset[0] = 0;
    for (int32_t e = 0; e < view.n_experts; ++e) offset[e + 1] = offset[e] + view.kept[e];
    for (int64_t i = 0; i < view.n_tokens * view.top_k; ++i)
        if (view.row_of[i] >= 0) row_token[view.row_of[i]] = (int32_t)(i / view.top_k);
    return MOE_OK;
}

/* Operands of the products of one expert stage: W1[E,d,wide] W2[E,n,d] Z[R,wide] H[R,n] rows[R,d]. */
typedef struct stage {
    int64_t *offset;    /* [E + 1] */
    int32_t *row_token; /* [R] */
    int64_t wide;
    moe_act act;
    void *w1, *w2, *z, *h, *rows;
} stage;

/* Forward: up with gather and activation, then down. */
static void fill_forward(const bench *b, const stage *s, operation *up, operation *down) {
    const bench_problem *p = &b->problem;
    const int64_t d = p->d_model, n = p->hidden;
    up->rows = (moe_gemm_rows_args){.dtype = p->dtype,
                                    .n_groups = p->n_experts,
                                    .offset = s->offset,
                                    .n = s->wide,
                                    .k = d,
                                    .a = b->x.data,
                                    .lda = d,
                                    .a_row = s->row_token,
                                    .b = s->w1,
                                    .ldb = s->wide,
                                    .b_group = d * s->wide,
                                    .c = s->z,
                                    .ldc = s->wide,
                                    .epilogue = MOE_EPI_ACT,
                                    .act = s->act,
                                    .h = s->h,
                                    .ldh = n};
    down->rows = (moe_gemm_rows_args){.dtype = p->dtype,
                                      .n_groups = p->n_experts,
                                      .offset = s->offset,
                                      .n = d,
                                      .k = n,
                                      .a = s->h,
                                      .lda = n,
                                      .b = s->w2,
                                      .ldb = d,
                                      .b_group = n * d,
                                      .c = s->rows,
                                      .ldc = d};
}

/* The gradients of both weights. */
static void fill_gradients(const bench *b, const stage *s, operation *up, operation *down) {
    const bench_problem *p = &b->problem;
    const int64_t d = p->d_model, n = p->hidden;
    up->outer = (moe_gemm_outer_args){.dtype = p->dtype,
                                      .n_groups = p->n_experts,
                                      .offset = s->offset,
                                      .m = d,
                                      .n = s->wide,
                                      .a = b->x.data,
                                      .lda = d,
                                      .a_row = s->row_token,
                                      .b = s->z,
                                      .ldb = s->wide,
                                      .c = s->w1,
                                      .ldc = s->wide,
                                      .c_group = d * s->wide};
    down->outer = (moe_gemm_outer_args){.dtype = p->dtype,
                                        .n_groups = p->n_experts,
                                        .offset = s->offset,
                                        .m = n,
                                        .n = d,
                                        .a = s->h,
                                        .lda = n,
                                        .b = b->dy.data,
                                        .ldb = d,
                                        .b_row = s->row_token,
                                        .c = s->w2,
                                        .ldc = d,
                                        .c_group = n * d};
}

static moe_status time_products(bench *b, const stage *s, const moe_stats *stats) {
    const bench_problem *p = &b->problem;
    const double pairs = 2.0 * (double)(p->n_tokens * p->top_k) * p->d_model; /* flop of one column */
    operation op[4] = {{.ctx = b->ctx}, {.ctx = b->ctx}, {.ctx = b->ctx}, {.ctx = b->ctx}};
    bench_line lines[4] = {
        {.what = "up, gather, activate", .run = run_rows,  .flop = pairs * (double)s->wide},
        {.what = "down",                 .run = run_rows,  .flop = pairs * p->hidden      },
        {.what = "gradient of up",       .run = run_outer, .flop = pairs * (double)s->wide},
        {.what = "gradient of down",     .run = run_outer, .flop = pairs * p->hidden      }
    };
    for (int i = 0; i < 4; ++i) lines[i].arg = &op[i];
    fill_forward(b, s, &op[0], &op[1]);
    fill_gradients(b, s, &op[2], &op[3]);
    moe_status status = bench_measure(b, lines, b->inference ? 2 : 4);
    if (status != MOE_OK) return status;
    bench_print_head(b, "gemm", stats);
    for (int i = 0; i < (b->inference ? 2 : 4); ++i) bench_print_line(b, &lines[i]);
    if (b->args->json) printf("]}\n");
    return MOE_OK;
}

moe_status bench_products(bench *b) {
    const bench_problem *p = &b->problem;
    const int64_t E = p->n_experts, R = p->n_tokens * p->top_k, d = p->d_model, n = p->hidden;
    moe_stats stats = {.size = sizeof stats};
    moe_error error;
    stage s = {.wide = n};
    moe_status status = moe_act_by_name(p->activation, &s.act, &error);
    if (status != MOE_OK) return moe_ctx_fail(b->ctx, status, "bench gemm: %s", error.text);
    status = bench_forward(b, MOE_INFER, &stats);
    if (status != MOE_OK) return status;
    if (moe_act_gated(s.act)) s.wide = 2 * n;
    s.offset = bench_take(b, (size_t)(E + 1) * sizeof *s.offset);
    s.row_token = bench_take(b, (size_t)R * sizeof *s.row_token);
    s.w1 = bench_numbers(b, E * d * s.wide);
    s.w2 = bench_numbers(b, E * n * d);
    s.z = bench_numbers(b, R * s.wide);
    s.h = bench_numbers(b, R * n);
    s.rows = bench_numbers(b, R * d);
    if (!s.offset || !s.row_token || !s.w1 || !s.w2 || !s.z || !s.h || !s.rows) return MOE_ERR_MEMORY;
    status = copy_routing(b, s.offset, s.row_token);
    return status == MOE_OK ? time_products(b, &s, &stats) : status;
}
