/* layer_backward.c: one backward call, the stages in reverse: combine -> experts -> dispatch -> route.
 * dy[T,d] -> dx[T,d]; parameters' gradients are added to. Reads x, Z and the routing, nothing else.
 * Source: DESIGN section 2; SonicMoE (Guo et al. 2025) for what need not be kept.
 */
#include "combine/combine.h"
#include "layer/layer.h"

static moe_status check_backward(const moe_layer *layer, moe_mat x, moe_mat dy, moe_mat dx) {
    if (!layer->can_backward)
        return moe_ctx_fail(layer->ctx, MOE_ERR_STATE,
                            "backward without a MOE_TRAIN forward before it; one backward a forward");
    const int64_t rows = layer->batch.x.rows;
    MOEI_TRY(moei_layer_check_mat(layer, "x", x, rows));
    MOEI_TRY(moei_layer_check_mat(layer, "dy", dy, rows));
    if (!dx.data) return MOE_OK;
    MOEI_TRY(moei_layer_check_mat(layer, "dx", dx, rows));
    if (rows > 0 && (dx.data == dy.data || dx.data == x.data))
        return moe_ctx_fail(layer->ctx, MOE_ERR_ARGUMENT, "dx is x or dy: both are read after dx is begun");
    return MOE_OK;
}

static moe_status shared_backward(moe_layer *layer, const moei_scratch *s, moe_mat dy, moe_mat dx) {
    s->shared_offset[0] = 0;
    s->shared_offset[1] = dy.rows;
    const moe_expert_io io = {.size = sizeof io,
                              .mode = MOE_TRAIN,
                              .n_experts = 1,
                              .n_rows = dy.rows,
                              .offset = s->shared_offset,
                              .in = layer->batch.x,
                              .saved = layer->saved.shared_rows,
                              .scratch = s->shared,
                              .dout = dy,
                              .din = dx};
    return layer->shared.ops->backward(layer->shared.self, &io);
}

/* Experts that work on contiguous rows get weight * dy gathered; their dweight is <dy, Y>. */
static void make_contiguous(moe_layer *layer, const moei_scratch *s, moe_mat dy, moe_expert_io *io) {
    const moei_plan *plan = &layer->plan;
    const moe_mat rows = {NULL, plan->n_rows, layer->desc.d_model, layer->desc.d_model, layer->desc.dtype};
    io->row_token = NULL;
    io->drow_weight = NULL;
    io->in = rows;
    io->in.data = s->in_rows;
    io->dout = rows;
    io->dout.data = s->dout_rows;
    moei_rows_gather(layer->ctx, plan, layer->batch.x, NULL, io->in);
    moei_rows_gather(layer->ctx, plan, dy, plan->row_weight, io->dout);
    moe_mat out_rows = rows;
    out_rows.data = layer->saved.out_rows;
    moei_rows_weight_gradient(layer->ctx, plan, dy, out_rows, s->drow_weight);
}

static moe_status experts_backward(moe_layer *layer, const moei_scratch *s, moe_mat dy, moe_mat drows) {
    const moei_plan *plan = &layer->plan;
    moe_expert_io io = {.size = sizeof io,
                        .mode = MOE_TRAIN,
                        .n_experts = plan->n_experts,
                        .n_rows = plan->n_rows,
                        .offset = plan->offset,
                        .row_token = plan->row_token,
                        .row_weight = plan->row_weight,
                        .in = layer->batch.x,
                        .saved = layer->saved.expert_rows,
                        .scratch = s->experts,
                        .dout = dy,
                        .din = drows,
                        .drow_weight = s->drow_weight};
    if (layer->experts.ops->contiguous) make_contiguous(layer, s, dy, &io);
    return layer->experts.ops->backward(layer->experts.self, &io);
}

/* What the losses ask of the router, in the router's terms. */
static moei_route_loss_grad losses_backward(const moe_layer *layer, const moei_scratch *s) {
    moei_loss_job job = moei_layer_loss_job(layer, s);
    moei_loss_count(&job);
    const moei_loss_grad grad = moei_loss_gradient(&job, (double)layer->loss_scale);
    return (moei_route_loss_grad){.prob = grad.prob,
                                  .group_tokens = layer->batch.x.rows / grad.n_groups,
                                  .z = grad.z,
                                  .weight = grad.weight,
                                  .load = grad.load,
                                  .usage = grad.usage,
                                  .levels = grad.levels};
}

static void route_backward(moe_layer *layer, const moei_scratch *s, moe_mat dx) {
    const moei_route_loss_grad loss = losses_backward(layer, s);
    moei_rows_to_slots(&layer->plan, layer->desc.dtype, s->drow_weight, s->dweight);
    const moei_route_job job = moei_layer_route_job(layer, s);
    moei_route_backward(&job, s->dweight, &loss, &layer->gate_grad, dx);
}

moe_status moe_layer_backward(moe_layer *layer, moe_mat x, moe_mat dy, moe_mat dx) {
    MOEI_TRY(check_backward(layer, x, dy, dx));
    layer->can_backward = false;
    layer->batch.x = moei_with_stride(x);
    dy = moei_with_stride(dy);
    dx = moei_with_stride(dx);
    const moei_scratch s = moei_layer_scratch(layer, x.rows, MOE_TRAIN);

    if (layer->shared.ops) MOEI_TRY(shared_backward(layer, &s, dy, dx));
    if (!layer->experts.ops) return MOE_OK;
    moe_mat drows = {dx.data ? s.rows : NULL, layer->plan.n_rows, layer->desc.d_model, layer->desc.d_model,
                     layer->desc.dtype};
    MOEI_TRY(experts_backward(layer, &s, dy, drows));
    if (dx.data) moei_combine_backward(layer->ctx, &layer->plan, drows, dx, layer->shared.ops != NULL);
    route_backward(layer, &s, dx);
    return MOE_OK;
}
