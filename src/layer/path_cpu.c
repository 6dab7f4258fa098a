/* path_cpu.c: routing, losses and the router's way back where the layer is on the CPU (or is a CPU twin).
 * batch -> routing -> plan; drow_weight[R], losses -> gate gradients, dx[T,d].
 * Source: docs/architecture.md, "the tour of one call".
 */
#include "core/timing.h"
#include "layer/layer_path.h"

static moe_status route(moe_layer *layer, const moei_scratch *s) {
    layer->routing.n_tokens = layer->batch.x.rows;
    const moei_route_job job = moei_layer_route_job(layer, s);
    moei_timing_enter_route(layer->ctx);
    const moe_status status = moei_route_forward(&job);
    moei_layer_plan_rows(layer, s);
    /* Two levels have filled their capacities while they routed. */
    if (status == MOE_OK)
        moei_plan_build(&layer->ctx->team, &layer->plan, &layer->batch, &layer->routing,
                        layer->desc.num_groups_outer > 0 ? NULL : &layer->capacity);
    moei_timing_leave_route(layer->ctx);
    return status;
}

static moe_status measure(moe_layer *layer, const moei_scratch *s, moe_stats *stats) {
    moei_loss_job job = moei_layer_loss_job(layer, s);
    if (!stats && layer->batch.mode != MOE_TRAIN) return MOE_OK;
    moei_timing_enter_route(layer->ctx);
    moei_loss_count(&job);
    if (layer->batch.mode == MOE_TRAIN) {
        moei_loss_history_add(&job, &layer->history);
        moei_layer_count_step(layer);
    }
    if (stats) {
        moei_load_stats(&layer->batch, &layer->routing, &layer->plan, s->route.entropy, stats);
        moei_loss_values(&job, stats);
    }
    moei_timing_leave_route(layer->ctx);
    return MOE_OK;
}

static moe_status index_rows(moe_layer *layer, const moei_scratch *s) {
    moei_layer_plan_rows(layer, s);
    moei_plan_index(&layer->ctx->team, &layer->plan, &layer->routing);
    return MOE_OK;
}

/* What the losses ask of the router, in the router's terms. */
static moei_route_loss_grad losses_backward(const moe_layer *layer, const moei_scratch *s) {
    moei_loss_job job = moei_layer_loss_job(layer, s);
    moei_loss_count(&job);
    const moei_loss_grad grad = moei_loss_gradient(&job, layer->loss_scale);
    return (moei_route_loss_grad){.prob = grad.prob,
                                  .group_tokens = layer->batch.x.rows / grad.n_groups,
                                  .second = grad.second,
                                  .z = grad.z,
                                  .weight = grad.weight,
                                  .load = grad.load,
                                  .usage = grad.usage,
                                  .outer = grad.outer,
                                  .inner = grad.inner};
}

static moe_status route_backward(moe_layer *layer, const moei_scratch *s, moe_mat dx) {
    moei_timing_enter_route(layer->ctx);
    const moei_route_loss_grad loss = losses_backward(layer, s);
    moei_rows_to_slots(&layer->ctx->team, &layer->plan, s->drow_weight, layer->routing.dtype, s->dweight);
    const moei_route_job job = moei_layer_route_job(layer, s);
    moei_route_backward(&job, s->dweight, &loss, &layer->gate_grad, dx);
    moei_timing_leave_route(layer->ctx);
    return MOE_OK;
}

const moei_layer_path moei_path_cpu = {"cpu",          route, NULL, measure, index_rows,
                                       route_backward, NULL,  NULL, NULL};
