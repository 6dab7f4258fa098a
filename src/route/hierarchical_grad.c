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
    double v[2] = {0, 0}, share[2];
    moei_shares(s, choice, 2, moei_level_eps, share);
    b->douter[slot] = 0;
    for (int32_t j = 0; j < 2; ++j) {
        const int32_t e = routing->expert[2 * slot + j];
        if (e < 0 || b->job->batch->replay_weight) continue; /* those are constants */
        const double dw = b->job->router->scale * (moei_real_load(routing->dtype, b->dweight, 2 * slot + j) +
                                                   (b->loss->weight ? b->loss->weight[e] : 0));
        v[j] = dw * outer;
        b->douter[slot] += dw * share[j];
    }
    moei_shares_backward(s, choice, 2, moei_level_eps, v, ds);
}

static void inner_task(void *arg, int64_t segment, void *scratch) {
    const back_job *b = arg;
    const moei_routing *routing = b->job->routing;
    const moei_levels *levels = &routing->levels;
    const moei_level_sizes size = moei_level_sizes_of(b->job);
    const double *asked = b->loss->inner ? b->loss->inner + segment * size.Ei : NULL;
    double *s = scratch, *ds = s + size.Ei;
    for (int64_t row = levels->segment[segment]; row < levels->segment[segment + 1]; ++row) {
        moei_load_row(routing->dtype, levels->inner_prob, row * size.Ei, size.Ei, s);
        for (int32_t e = 0; e < size.Ei; ++e) ds[e] = asked && levels->clear_first[row] ? asked[e] : 0;
        inner_row_backward(b, row, s, ds);
        through_softmax(routing->dtype, s, ds, 0, size.Ei, ds + size.Ei, b->job->scratch.inner,
                        row * size.Ei);
    }
}

static void outer_task(void *arg, int64_t g, void *scratch) {
    const back_job *b = arg;
    const moei_routing *routing = b->job->routing;
    const moei_levels *levels = &routing->levels;
    const moei_level_sizes size = moei_level_sizes_of(b->job);
    const double *asked = b->loss->outer ? b->loss->outer + g * size.Eo : NULL;
    double *s = scratch, *ds = s + size.Eo;
    for (int64_t t = g * size.group_tokens; t < (g + 1) * size.group_tokens; ++t) {
        const int32_t *choice = levels->outer + 2 * t, *row_of = levels->row_of + 2 * t;
        const double v[2] = {row_of[0] < 0 ? 0 : b->douter[2 * t], row_of[1] < 0 ? 0 : b->douter[2 * t + 1]};
        const double lse = moei_real_load(routing->dtype, routing->lse, t);
        moei_load_row(routing->dtype, levels->outer_prob, t * size.Eo, size.Eo, s);
        for (int32_t e = 0; e < size.Eo; ++e) ds[e] = asked ? asked[e] : 0;
        moei_shares_backward(s, choice, 2, moei_level_eps, v, ds);
        through_softmax(routing->dtype, s, ds, b->loss->z * lse, size.Eo, ds + size.Eo,
                        b->job->scratch.logits, t * size.Eo);
    }
}

static moe_mat outer_gradient(const moei_route_job *job) {
    const int32_t Eo = moei_level_sizes_of(job).Eo;
    return (moe_mat){job->scratch.logits, job->batch->x.rows, Eo, Eo, job->routing->dtype};
}

static void gate_gradients(const moei_route_job *job, const moei_gate *grad) {
    const moei_level_sizes size = moei_level_sizes_of(job);
    const moe_mat x = job->batch->x;
    const int64_t d = job->router->d_model;
    const moe_gemm_outer_args inner = {.dtype = x.dtype,
                                       .n_groups = size.Eo,
                                       .offset = job->routing->levels.offset,
                                       .m = size.Ei,
                                       .n = d,
                                       .a = job->scratch.inner,
                                       .lda = size.Ei,
                                       .b = x.data,
                                       .ldb = x.stride,
                                       .b_row = job->routing->levels.row_token,
                                       .c = grad->inner,
                                       .ldc = d,
                                       .c_group = size.Ei * d,
                                       .accumulate = true};
    if (grad->weight) moei_product_weight(job->ctx, outer_gradient(job), x, grad->weight);
    if (grad->inner) job->ctx->kernels[x.dtype]->gemm_outer(&job->ctx->team, &inner);
}

/* dx += dlogits of the outer gate through it, and the rows' own, gathered back to their tokens. */
static void input_gradient(const moei_route_job *job, moe_mat dx) {
    const moei_level_sizes size = moei_level_sizes_of(job);
    const moei_kernels *kernels = job->ctx->kernels[job->routing->dtype];
    const int64_t d = job->router->d_model;
    moei_product(job->ctx, outer_gradient(job), job->gate->weight, false, dx, true);
    kernels->gemm_rows(&job->ctx->team, &(moe_gemm_rows_args){.dtype = job->routing->dtype,
                                                              .n_groups = size.Eo,
                                                              .offset = job->routing->levels.offset,
                                                              .n = d,
                                                              .k = size.Ei,
                                                              .a = job->scratch.inner,
                                                              .lda = size.Ei,
                                                              .b = job->gate->inner,
                                                              .ldb = d,
                                                              .b_group = size.Ei * d,
                                                              .c = job->scratch.in,
                                                              .ldc = d});
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
    const moei_level_sizes size = moei_level_sizes_of(job);
    back_job b = {job, dweight, loss, job->scratch.work};
    moei_parallel(&job->ctx->team, size.Eo * size.n_groups, inner_task, &b);
    moei_parallel(&job->ctx->team, size.n_groups, outer_task, &b);
    gate_gradients(job, grad);
    if (dx.data) input_gradient(job, dx);
}
