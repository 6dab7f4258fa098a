/* combine.c: gather and sum, forward and backward.
 * rows[R,d] -> y[T,d]: each token reads its K rows in order, so there are no atomics and no second result.
 * Source: SonicMoE (Guo et al. 2025), "gather-and-sum"; 17-20 % faster there than a scatter.
 */
#include "combine/combine.h"

#include "kernel/kernel.h"

void moei_combine(moe_ctx *ctx, const moei_plan *plan, const void *weight, moe_mat rows, moe_mat y,
                  bool accumulate) {
    ctx->kernels[y.dtype]->gather_sum(&ctx->team, &(moe_gather_sum_args){.dtype = y.dtype,
                                                                         .n_tokens = plan->n_tokens,
                                                                         .n = y.cols,
                                                                         .top_k = plan->top_k,
                                                                         .rows = rows.data,
                                                                         .ld_rows = rows.stride,
                                                                         .row_of = plan->row_of,
                                                                         .weight = weight,
                                                                         .out = y.data,
                                                                         .ld_out = y.stride,
                                                                         .accumulate = accumulate});
}

void moei_combine_backward(moe_ctx *ctx, const moei_plan *plan, moe_mat drows, moe_mat dx, bool accumulate) {
    moei_combine(ctx, plan, NULL, drows, dx, accumulate);
}
