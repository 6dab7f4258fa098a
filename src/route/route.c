/* route.c: gate product, scores and top-k, and their gradient.
 * logits[T,E] = x[T,d] gate[E,d]^T -> prob, expert, weight; dlogits -> dgate[E,d], dx[T,d].
 * Source: Shazeer et al. 2017 (top-k gating); Fedus et al. 2021; Jiang et al., Mixtral, 2024.
 */
#include "route/route.h"

#include "kernel/kernel.h"

static bool has_jitter(const moei_router *router, const moei_batch *batch) {
    return router->jitter_eps > 0 && batch->mode == MOE_TRAIN;
}

/* What the gate multiplies: the tokens, or their jittered copy. */
static moe_mat gate_input(moe_ctx *ctx, const moei_router *router, const moei_batch *batch, void *jittered) {
    if (!has_jitter(router, batch)) return batch->x;
    moei_jitter(ctx, router, batch, jittered);
    return (moe_mat){jittered, batch->x.rows, router->d_model, router->d_model, batch->x.dtype};
}

moe_status moei_route_forward(moe_ctx *ctx, const moei_router *router, const moei_batch *batch,
                              const void *gate, void *jittered, void *entropy, moei_routing *routing) {
    const moei_kernels *kernels = ctx->kernels[batch->x.dtype];
    const int64_t offset[2] = {0, batch->x.rows};
    const moe_mat in = gate_input(ctx, router, batch, jittered);
    kernels->gemm_rows(&ctx->team, &(moe_gemm_rows_args){.dtype = in.dtype,
                                                         .n_groups = 1,
                                                         .offset = offset,
                                                         .n = router->n_experts,
                                                         .k = router->d_model,
                                                         .a = in.data,
                                                         .lda = in.stride,
                                                         .b = gate,
                                                         .ldb = router->d_model,
                                                         .b_trans = true,
                                                         .c = routing->logits,
                                                         .ldc = router->n_experts});
    int64_t first_bad = -1;
    kernels->topk(&ctx->team, &(moei_topk_args){.dtype = in.dtype,
                                                .n_tokens = batch->x.rows,
                                                .n_experts = router->n_experts,
                                                .top_k = router->top_k,
                                                .mask = batch->mask,
                                                .score_before_topk = router->score_before_topk,
                                                .norm_topk_prob = router->norm_topk_prob,
                                                .scale = router->scale,
                                                .logits = routing->logits,
                                                .prob = routing->prob,
                                                .lse = routing->lse,
                                                .expert = routing->expert,
                                                .weight = routing->weight,
                                                .entropy = entropy,
                                                .first_bad = &first_bad});
    if (first_bad >= 0)
        return moe_ctx_fail(
            ctx, MOE_ERR_NUMERIC,
            "router of layer %u: token %lld has a NaN or infinite logit; look for NaN or infinity in "
            "the layer's input or in gate.weight",
            router->layer_index, (long long)first_bad);
    return MOE_OK;
}

/* dgate[E,d] += dlogits^T in */
static void gate_weight_gradient(moe_ctx *ctx, const moei_router *router, moe_mat in, const void *dlogits,
                                 void *dgate) {
    const int64_t offset[2] = {0, in.rows};
    ctx->kernels[in.dtype]->gemm_outer(&ctx->team, &(moe_gemm_outer_args){.dtype = in.dtype,
                                                                          .n_groups = 1,
                                                                          .offset = offset,
                                                                          .m = router->n_experts,
                                                                          .n = router->d_model,
                                                                          .a = dlogits,
                                                                          .lda = router->n_experts,
                                                                          .b = in.data,
                                                                          .ldb = in.stride,
                                                                          .c = dgate,
                                                                          .ldc = router->d_model,
                                                                          .accumulate = true});
}

/* out (+)= dlogits gate */
static void gate_input_gradient(moe_ctx *ctx, const moei_router *router, const void *gate,
                                const void *dlogits, moe_mat out, bool accumulate) {
    const int64_t offset[2] = {0, out.rows};
    ctx->kernels[out.dtype]->gemm_rows(&ctx->team, &(moe_gemm_rows_args){.dtype = out.dtype,
                                                                         .n_groups = 1,
                                                                         .offset = offset,
                                                                         .n = router->d_model,
                                                                         .k = router->n_experts,
                                                                         .a = dlogits,
                                                                         .lda = router->n_experts,
                                                                         .b = gate,
                                                                         .ldb = router->d_model,
                                                                         .c = out.data,
                                                                         .ldc = out.stride,
                                                                         .accumulate = accumulate});
}

void moei_route_backward(moe_ctx *ctx, const moei_router *router, const moei_batch *batch, const void *gate,
                         void *jittered, const moei_routing *routing, const void *dweight,
                         moei_route_loss_grad loss, void *dlogits, void *dgate, moe_mat dx) {
    ctx->kernels[routing->dtype]->topk_grad(
        &ctx->team, &(moei_topk_grad_args){.dtype = routing->dtype,
                                           .n_tokens = routing->n_tokens,
                                           .n_experts = router->n_experts,
                                           .top_k = router->top_k,
                                           .mask = batch->mask,
                                           .score_before_topk = router->score_before_topk,
                                           .norm_topk_prob = router->norm_topk_prob,
                                           .scale = router->scale,
                                           .prob = routing->prob,
                                           .lse = routing->lse,
                                           .expert = routing->expert,
                                           .weight = routing->weight,
                                           .dweight = dweight,
                                           .aux_grad = loss.prob,
                                           .z_grad = loss.z,
                                           .dlogits = dlogits});
    gate_weight_gradient(ctx, router, gate_input(ctx, router, batch, jittered), dlogits, dgate);
    if (!dx.data) return;
    if (!has_jitter(router, batch)) {
        gate_input_gradient(ctx, router, gate, dlogits, dx, true);
        return;
    }
    /* The jittered copy has done its work: its memory now holds the gradient of the jittered input. */
    moe_mat djittered = {jittered, dx.rows, router->d_model, router->d_model, dx.dtype};
    gate_input_gradient(ctx, router, gate, dlogits, djittered, false);
    moei_jitter_backward(ctx, router, batch, jittered, dx);
}
