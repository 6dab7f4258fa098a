/* hierarchical_grad.c: the way back through two levels: both gates of the product, and both losses.
 * dweight[T,4] -> dlogits of the inner gates [rows,Ei] and of the outer one [T,Eo] -> dgate, dgate_inner, dx.
 * Source: derivative of hierarchical.c. Choices, places and what counts as a clear first choice carry none.
 */
#include "kernel/kernel.h"
#include "route/hierarchical.h"

#include <string.h>

typedef struct back_job {
    const moei_route_job *job;
    const void *dweight;
    const moei_route_loss_grad *loss;
    double *douter; /* [T, 2] gradient of the outer weights */
} back_job;

/* ds of two weights g / (g1 + g2 + eps) of scores s[choice]; choice -1: that one is no part of it. Returns
 * nothing for the rest. */
static void through_pair(const double *s, const int32_t choice[2], const double v[2], double *ds) {
    double sum = moei_level_eps, mean = 0;
    for (int32_t j = 0; j < 2; ++j) {
        if (choice[j] < 0) continue;
        sum += s[choice[j]];
        mean += v[j] * s[choice[j]];
    }
    for (int32_t j = 0; j < 2; ++j)
        if (choice[j] >= 0) ds[choice[j]] += v[j] / sum - mean / (sum * sum);
}

/* dlogits[n] from ds[n] through the softmax s[n], and z times the gradient of its lse; dl[n] is room. */
static void through_softmax(moe_dtype dtype, const double *s, const double *ds, double z, int32_t n,
                            double *dl, void *dlogits, int64_t at) {
    memset(dl, 0, (size_t)n * sizeof *dl);
    moei_softmax_backward(s, ds, z, n, dl);
    for (int32_t e = 0; e < n; ++e) moei_real_store(dtype, dlogits, at + e, dl[e]);
}

/* One row: v[2] of its inner weights; its share of the outer weight's gradient. */
static void inner_row_backward(const back_job *b, int64_t row, const double *s, double *ds) {
    const moei_routing *routing = b->job->routing;
    const moei_levels *levels = &routing->levels;
    const int64_t slot = levels->row_slot[row];
    const int32_t *choice = levels->inner + 2 * row;
    const double outer = moei_real_load(routing->dtype, levels->outer_weight, slot);
    double v[2] = {0, 0}, sum = moei_level_eps;
    for (int32_t j = 0; j < 2; ++j) sum += choice[j] < 0 ? 0 : s[choice[j]];
    b->douter[slot] = 0;
    for (int32_t j = 0; j < 2; ++j) {
        const int32_t e = routing->expert[2 * slot + j];
        if (e < 0 || b->job->batch->replay_weight) continue; /* those are constants */
        const double dw = b->job->router->scale * (moei_real_load(routing->dtype, b->dweight, 2 * slot + j) +
                                                   (b->loss->weight ? b->loss->weight[e] : 0));
        v[j] = dw * outer;
        b->douter[slot] += dw * s[choice[j]] / sum;
    }
    through_pair(s, choice, v, ds);
}

static void inner_task(void *arg, int64_t segment, void *scratch) {
    const back_job *b = arg;
    const moei_routing *routing = b->job->routing;
    const moei_levels *levels = &routing->levels;
    const moei_level_sizes z = moei_level_sizes_of(b->job);
    const double *asked = b->loss->inner ? b->loss->inner + segment * z.Ei : NULL;
    double *s = scratch, *ds = s + z.Ei;
    for (int64_t row = levels->segment[segment]; row < levels->segment[segment + 1]; ++row) {
        moei_load_row(routing->dtype, levels->inner_prob, row * z.Ei, z.Ei, s);
        for (int32_t e = 0; e < z.Ei; ++e) ds[e] = asked && levels->clear_first[row] ? asked[e] : 0;
        inner_row_backward(b, row, s, ds);
        through_softmax(routing->dtype, s, ds, 0, z.Ei, ds + z.Ei, b->job->scratch.inner, row * z.Ei);
    }
}

static void outer_task(void *arg, int64_t g, void *scratch) {
    const back_job *b = arg;
    const moei_routing *routing = b->job->routing;
    const moei_levels *levels = &routing->levels;
    const moei_level_sizes z = moei_level_sizes_of(b->job);
    const double *asked = b->loss->outer ? b->loss->outer + g * z.Eo : NULL;
    double *s = scratch, *ds = s + z.Eo;
    for (int64_t t = g * z.group_tokens; t < (g + 1) * z.group_tokens; ++t) {
        const int32_t *choice = levels->outer + 2 * t, *row_of = levels->row_of + 2 * t;
        const double v[2] = {row_of[0] < 0 ? 0 : b->douter[2 * t], row_of[1] < 0 ? 0 : b->douter[2 * t + 1]};
        const double lse = moei_real_load(routing->dtype, routing->lse, t);
        moei_load_row(routing->dtype, levels->outer_prob, t * z.Eo, z.Eo, s);
        for (int32_t e = 0; e < z.Eo; ++e) ds[e] = asked ? asked[e] : 0;
        through_pair(s, choice, v, ds);
        through_softmax(routing->dtype, s, ds, b->loss->z * lse, z.Eo, ds + z.Eo, b->job->scratch.logits,
                        t * z.Eo);
    }
}

static void gate_gradients(const moei_route_job *job, const moei_gate *grad) {
    const moei_level_sizes z = moei_level_sizes_of(job);
    const moe_mat x = job->batch->x;
    const int64_t d = job->router->d_model, all[2] = {0, x.rows};
    const moe_gemm_outer_args outer = {.dtype = x.dtype,
                                       .n_groups = 1,
                                       .offset = all,
                                       .m = z.Eo,
                                       .n = d,
                                       .a = job->scratch.logits,
                                       .lda = z.Eo,
                                       .b = x.data,
                                       .ldb = x.stride,
                                       .c = grad->weight,
                                       .ldc = d,
                                       .accumulate = true};
    moe_gemm_outer_args inner = outer;
    inner.n_groups = z.Eo;
    inner.offset = job->routing->levels.offset;
    inner.m = inner.lda = z.Ei;
    inner.a = job->scratch.inner;
    inner.b_row = job->routing->levels.row_token;
    inner.c = grad->inner;
    inner.c_group = z.Ei * d;
    if (grad->weight) job->ctx->kernels[x.dtype]->gemm_outer(&job->ctx->team, &outer);
    if (grad->inner) job->ctx->kernels[x.dtype]->gemm_outer(&job->ctx->team, &inner);
}

/* dx += dlogits of the outer gate through it, and the rows' own, gathered back to their tokens. */
static void input_gradient(const moei_route_job *job, moe_mat dx) {
    const moei_level_sizes z = moei_level_sizes_of(job);
    const moei_kernels *kernels = job->ctx->kernels[job->routing->dtype];
    const int64_t d = job->router->d_model, all[2] = {0, dx.rows};
    const moe_gemm_rows_args outer = {.dtype = job->routing->dtype,
                                      .n_groups = 1,
                                      .offset = all,
                                      .n = d,
                                      .k = z.Eo,
                                      .a = job->scratch.logits,
                                      .lda = z.Eo,
                                      .b = job->gate->weight,
                                      .ldb = d,
                                      .c = dx.data,
                                      .ldc = dx.stride,
                                      .accumulate = true};
    moe_gemm_rows_args inner = outer;
    inner.n_groups = z.Eo;
    inner.offset = job->routing->levels.offset;
    inner.k = inner.lda = z.Ei;
    inner.a = job->scratch.inner;
    inner.b = job->gate->inner;
    inner.b_group = z.Ei * d;
    inner.c = job->scratch.in;
    inner.ldc = d;
    inner.accumulate = false;
    kernels->gemm_rows(&job->ctx->team, &outer);
    kernels->gemm_rows(&job->ctx->team, &inner);
    kernels->gather_sum(&job->ctx->team, &(moe_gather_sum_args){.dtype = job->routing->dtype,
                                                                .n_tokens = dx.rows,
                                                                .n = d,
                                                                .top_k = 2,
                                                                .rows = job->scratch.in,
                                                                .ld_rows = d,
                                                                .row_of = job->routing->levels.row_of,
                                                                .out = dx.data,
                                                                .ld_out = dx.stride,
                                                                .accumulate = true});
}

void moei_levels_backward(const moei_route_job *job, const void *dweight, const moei_route_loss_grad *loss,
                          const moei_gate *grad, moe_mat dx) {
    const moei_level_sizes z = moei_level_sizes_of(job);
    back_job b = {job, dweight, loss, job->scratch.work};
    moei_parallel(&job->ctx->team, z.Eo * z.n_groups, inner_task, &b);
    moei_parallel(&job->ctx->team, z.n_groups, outer_task, &b);
    gate_gradients(job, grad);
    if (dx.data) input_gradient(job, dx);
}
