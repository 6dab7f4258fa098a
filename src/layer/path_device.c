/* path_device.c: routing, losses and the router's way back by kernels of the layer's device.
 * logits[T,E] by the product of route/gate.c, then one kernel each for the router, the plan and their
 * gradients; nothing waits and nothing is copied, but for stats, which the twin counts.
 * Source: the same formulas as route/, dispatch/ and loss/, for the settings moei_path_device_serves lists.
 */
#include "core/desc.h"
#include "kernel/kernel.h"
#include "layer/layer_desc.h"
#include "layer/layer_path.h"

#include <math.h>

enum { MOST_EXPERTS = 4096, MOST_GROUPS = 64 };

/* The kernels' name of a score; false: they have none. */
static bool score_serves(moei_score score, moei_router_score *theirs) {
    switch (score) {
    case MOEI_SOFTMAX:
        *theirs = MOEI_ROUTER_SOFTMAX;
        return true;
    case MOEI_SIGMOID:
        *theirs = MOEI_ROUTER_SIGMOID;
        return true;
    case MOEI_SQRTSOFTPLUS:
        *theirs = MOEI_ROUTER_SQRTSOFTPLUS;
        return true;
    }
    return false;
}

static bool router_serves(const moe_layer *layer) {
    const moe_layer_desc *d = &layer->desc;
    moei_router_score score;
    return score_serves(layer->router.score, &score) && layer->router.type == MOEI_ROUTER_TOP_K &&
           layer->router.unit == MOEI_UNIT_TOKEN && d->input_jitter_eps <= 0 && d->expert_dropout <= 0 &&
           d->top_k_min == 0 && d->token_rounding == 0 && d->num_groups <= MOST_GROUPS && !*d->expert_kinds &&
           d->num_experts <= MOST_EXPERTS;
}

static bool losses_serve(const moe_layer_desc *d) {
    return d->seq_aux_loss_coeff <= 0 && d->global_aux_loss_coeff <= 0 && d->gshard_loss_coeff <= 0 &&
           d->second_place_loss_coeff <= 0 && d->importance_loss_coeff <= 0 && d->load_loss_coeff <= 0 &&
           d->entropy_loss_coeff <= 0 && !moei_aux_plain(d);
}

bool moei_path_device_serves(const moe_layer *layer) {
    const moei_kernels *kernels = layer->ctx->kernels[layer->desc.dtype];
    return kernels->router && layer->router.dtype == MOE_F32 && !layer->capacity.by_sequence &&
           router_serves(layer) && losses_serve(&layer->desc);
}

static moei_router_args router_args(const moe_layer *layer, const moei_scratch *s) {
    const moei_router *router = &layer->router;
    const moei_routing *routing = &layer->routing;
    const int32_t best[] = {[MOEI_GROUP_MAX] = 1,
                            [MOEI_GROUP_TOP2_SUM] = 2,
                            [MOEI_GROUP_TOPN_SUM] =
                                router->top_k / (layer->desc.group_top_k > 0 ? layer->desc.group_top_k : 1)};
    moei_router_score score = MOEI_ROUTER_SOFTMAX;
    score_serves(router->score, &score); /* it does: moei_path_device_serves */
    return (moei_router_args){.n_tokens = routing->n_tokens,
                              .n_experts = router->n_experts,
                              .top_k = router->top_k,
                              .score = score,
                              .score_before_topk = router->score_before_topk,
                              .norm_topk_prob = router->norm_topk_prob,
                              .rank_logits = router->rank_logits,
                              .bias_in_weights = layer->desc.selection_bias_in_weights,
                              .normalise_prob = moei_router_normalises(router),
                              .norm_eps = router->norm_eps,
                              .scale = router->scale,
                              .n_groups = layer->desc.num_groups,
                              .group_top_k = layer->desc.group_top_k,
                              .group_best = best[router->group_score],
                              .layer = layer->desc.layer_index,
                              .mask = layer->batch.mask,
                              .selection_bias = layer->gate.selection_bias,
                              .replay_expert = layer->batch.replay_expert,
                              .replay_weight = layer->batch.replay_weight,
                              .dtype = layer->batch.x.dtype,
                              .d = layer->batch.x.cols,
                              .ldx = layer->batch.x.stride,
                              .x = layer->batch.x.data,
                              .gate = layer->gate.weight,
                              .logits = routing->logits,
                              .prob = routing->prob,
                              .lse = routing->lse,
                              .expert = routing->expert,
                              .weight = routing->weight,
                              .entropy = s->route.entropy,
                              .fault = layer->ctx->fault};
}

static moei_plan_args plan_args(const moe_layer *layer, const moei_scratch *s, bool counted) {
    const moei_plan *plan = &layer->plan;
    const moei_capacity *capacity = &layer->capacity;
    const bool limited = capacity->factor[layer->batch.mode] > 0;
    return (moei_plan_args){.n_tokens = plan->n_tokens,
                            .n_rows = plan->n_rows,
                            .n_experts = plan->n_experts,
                            .top_k = plan->top_k,
                            .rank_major = capacity->drop == MOEI_DROP_RANK_MAJOR,
                            .keep_heaviest = capacity->drop == MOEI_DROP_PROBS,
                            .pad = limited && capacity->pad,
                            .mask = layer->batch.mask,
                            .capacity_of = limited ? layer->device.capacity_of[layer->batch.mode] : NULL,
                            .expert = layer->routing.expert,
                            .weight = layer->routing.weight,
                            .n_valid = layer->device.n_valid,
                            .capacity = plan->capacity,
                            .offset = plan->offset,
                            .routed = plan->routed,
                            .kept = plan->kept,
                            .row_token = plan->row_token,
                            .row_slot = plan->row_slot,
                            .row_of = plan->row_of,
                            .row_weight = plan->row_weight,
                            .tile_count = s->tile_count,
                            .counted = counted,
                            .step_rows = layer->batch.mode == MOE_TRAIN ? layer->device.step_rows : NULL};
}

static void open_plan(moe_layer *layer, const moei_scratch *s) {
    moei_plan *plan = &layer->plan;
    const bool limited = layer->capacity.factor[layer->batch.mode] > 0;
    plan->n_tokens = layer->batch.x.rows;
    plan->n_groups = 1;
    const moei_extent extent = {plan->n_tokens, 1, layer->batch.mode};
    plan->n_rows =
        moei_plan_max_rows(limited ? &layer->capacity : NULL, extent, plan->top_k, plan->n_experts);
    moei_layer_plan_rows(layer, s);
}

static void build_plan(const moe_layer *layer, const moei_scratch *s, bool counted) {
    const moei_plan_args args = plan_args(layer, s, counted);
    layer->ctx->kernels[layer->desc.dtype]->plan(&layer->ctx->team, &args);
}

/* By now the router's counts may be written over, and the caller's mask be gone: without capacities a plan
 * only counts real tokens by it, for losses, which inference has not. */
static void build_due_plan(const moe_layer *layer, const moei_scratch *s) {
    moei_plan_args args = plan_args(layer, s, false);
    args.mask = NULL;
    layer->ctx->kernels[layer->desc.dtype]->plan(&layer->ctx->team, &args);
}

static moe_status index_rows(moe_layer *layer, const moei_scratch *s) {
    moei_layer_plan_rows(layer, s);
    const moei_plan_args args = plan_args(layer, s, false);
    layer->ctx->kernels[layer->desc.dtype]->plan_index(&layer->ctx->team, &args);
    return MOE_OK;
}

/* Logits, scores and choices by one kernel, where the device has one for this router. */
static bool route_in_one(const moe_layer *layer, const moei_scratch *s) {
    const moei_kernels *kernels = layer->ctx->kernels[layer->desc.dtype];
    if (!kernels->route || layer->gate.bias || layer->router.keeps_logits) return false;
    moei_router_args args = router_args(layer, s);
    args.logits = NULL; /* nobody asks */
    args.tile_count = moei_layer_takes_few(layer, s) ? NULL : s->tile_count;
    return kernels->route(&layer->ctx->team, &args);
}

static moe_status route(moe_layer *layer, const moei_scratch *s) {
    layer->routing.n_tokens = layer->batch.x.rows;
    if (layer->batch.replay_weight && !layer->batch.replay_expert)
        return moe_ctx_fail(layer->ctx, MOE_ERR_ARGUMENT,
                            "replay_weight without replay_expert: whose weights?");
    moei_routing_open(&layer->router, &s->route, layer->batch.mode, &layer->routing);
    const bool fused = route_in_one(layer, s);
    if (!fused) {
        const moei_route_job job = moei_layer_route_job(layer, s);
        moei_route_logits(&job);
        const moei_router_args args = router_args(layer, s);
        layer->ctx->kernels[layer->desc.dtype]->router(&layer->ctx->team, &args);
    }
    open_plan(layer, s);
    layer->plan_due = moei_layer_takes_few(layer, s);
    if (!layer->plan_due) build_plan(layer, s, fused);
    return MOE_OK;
}

/* H of the scores, which of softmax are all that it takes. */
static void fill_entropy(const moei_routing *routing, float *entropy) {
    for (int64_t t = 0; t < routing->n_tokens; ++t) {
        const float *prob = (const float *)routing->prob + t * routing->n_experts;
        double sum = 0;
        for (int32_t e = 0; e < routing->n_experts; ++e)
            if (prob[e] > 0) sum -= (double)prob[e] * log((double)prob[e]);
        entropy[t] = (float)sum;
    }
}

/* The twin counts what the kernels wrote; what the step counts is the device's own. */
static moe_status measure(moe_layer *layer, const moei_scratch *s, moe_stats *stats) {
    moe_layer *twin = layer->twin;
    if (!stats) return MOE_OK;
    if (layer->plan_due) build_due_plan(layer, s);
    layer->plan_due = false;
    MOEI_TRY(layer->ctx->device->wait(layer->ctx));
    MOEI_TRY(moei_twin_fetch_routing(layer));
    const moei_scratch ours = moei_layer_scratch(twin);
    if (layer->routing.softmax)
        fill_entropy(&twin->routing, ours.route.entropy);
    else
        MOEI_TRY(moei_memory_copy(layer->ctx, ours.route.entropy, s->route.entropy,
                                  (size_t)layer->batch.x.rows * sizeof(float)));
    stats->n_tokens = twin->batch.n_valid;
    return moei_path_cpu.measure(twin, &ours, stats);
}

static bool has_losses(const moe_layer_desc *d) {
    return d->aux_loss_coeff > 0 || d->z_loss_coeff > 0;
}

/* What the gate's way back by the device's kernel is told; scratch NULL: there is none for this router. */
static moei_gate_grad_args gate_grad_args(const moe_layer *layer, const moei_scratch *s, moe_mat dx) {
    const moe_mat x = layer->batch.x;
    return (moei_gate_grad_args){.dtype = x.dtype,
                                 .n_tokens = x.rows,
                                 .d = x.cols,
                                 .n_experts = layer->router.n_experts,
                                 .x = x.data,
                                 .gate = layer->gate.weight,
                                 .ldx = x.stride,
                                 .dgate = layer->gate_grad.weight,
                                 .dx = dx.data,
                                 .ld_dx = dx.stride,
                                 .scratch = s->gate_grad};
}

/* dlogits[T,E] f32, or as pairs where there is room for them; of the choices alone by row too. */
static void queue_dlogits(const moe_layer *layer, const moei_scratch *s, void *pairs, float *row_factor) {
    const moe_layer_desc *d = &layer->desc;
    const moei_kernels *kernels = layer->ctx->kernels[d->dtype];
    moei_router_args args = router_args(layer, s);
    args.row_of = layer->plan.row_of;
    args.drow_weight = s->drow_weight;
    args.dlogits = s->route.logits;
    args.dlogits_pairs = pairs;
    args.row_factor = row_factor;
    if (has_losses(d)) {
        const moei_balance_args balance = {.n_experts = d->num_experts,
                                           .routed = layer->plan.routed,
                                           .n_valid = layer->device.n_valid,
                                           .aux = layer->loss_scale * moei_number(d->aux_loss_coeff, 0),
                                           .z = layer->loss_scale * moei_number(d->z_loss_coeff, 0),
                                           .aux_grad = s->aux_grad,
                                           .z_grad = s->aux_grad + d->num_experts};
        kernels->balance_grad(&layer->ctx->team, &balance);
        args.aux_grad = balance.aux_grad;
        args.z_grad = balance.z_grad;
    }
    kernels->router_grad(&layer->ctx->team, &args);
}

/* dlogits[t] gate is the sum over a token's choices k of dlogit[k] gate[expert of k], where no other expert
 * has one; and where those add up to 0, so is it of the gate less any vector. So it can be added to the
 * choices' rows as these are made. Each choice needs a row. */
static moei_rows_plus rides_on_rows(const moe_layer *layer, const moei_scratch *s) {
    const moei_router_args args = router_args(layer, s);
    const moei_gate_grad_scratch at =
        moei_gate_grad_carve(args.n_tokens, args.n_experts, layer->batch.x.cols);
    if (!layer->ctx->kernels[layer->desc.dtype]->gemm_rows_plus || has_losses(&layer->desc) ||
        !moei_router_chosen_only(&args) || layer->capacity.factor[layer->batch.mode] > 0)
        return (moei_rows_plus){0};
    char *scratch = s->gate_grad;
    return (moei_rows_plus){(float *)(void *)(scratch + at.dlogits), (float *)(void *)(scratch + at.part)};
}

/* rows_to_come: the product of the rows' gradients is still to be queued. */
static bool begin_route_backward(moe_layer *layer, const moei_scratch *s, moe_mat dx, bool rows_to_come,
                                 moei_router_rides *rides) {
    moei_gate_grad_args args = gate_grad_args(layer, s, dx);
    if (!moei_gate_grad_takes(&args)) return false;
    rides->rows = dx.data && rows_to_come ? rides_on_rows(layer, s) : (moei_rows_plus){0};
    args.vector = (float *)(uintptr_t)rides->rows.vector;
    queue_dlogits(layer, s, args.scratch, (float *)(uintptr_t)rides->rows.factor);
    layer->ctx->kernels[layer->desc.dtype]->gate_grad(&layer->ctx->team, &args, &rides->product);
    return true;
}

static bool route_backward_first(moe_layer *layer, const moei_scratch *s, moe_mat dx,
                                 moei_router_rides *rides) {
    return begin_route_backward(layer, s, dx, true, rides);
}

static void route_backward_sum(moe_layer *layer, const moei_scratch *s, moe_mat drows, moe_mat dx,
                               bool accumulate, bool in_rows) {
    moei_gate_grad_args args = gate_grad_args(layer, s, dx);
    args.top_k = drows.data ? layer->plan.top_k : 0;
    args.rows = drows.data;
    args.ld_rows = drows.stride;
    args.row_of = layer->plan.row_of;
    args.accumulate = accumulate;
    args.in_rows = in_rows;
    layer->ctx->kernels[layer->desc.dtype]->gate_grad_sum(&layer->ctx->team, &args);
}

static void route_backward_end(moe_layer *layer, const moei_scratch *s) {
    const moei_gate_grad_args args = gate_grad_args(layer, s, (moe_mat){0});
    layer->ctx->kernels[layer->desc.dtype]->gate_grad_end(&layer->ctx->team, &args);
}

static moe_status route_backward(moe_layer *layer, const moei_scratch *s, moe_mat dx) {
    moei_router_rides rides;
    if (begin_route_backward(layer, s, dx, false, &rides)) {
        if (dx.data) route_backward_sum(layer, s, (moe_mat){0}, dx, true, false);
        MOEI_TRY(moe_gemm_outer(layer->ctx, &rides.product));
        route_backward_end(layer, s);
        return MOE_OK;
    }
    queue_dlogits(layer, s, NULL, NULL);
    const moei_route_job job = moei_layer_route_job(layer, s);
    moei_route_logits_backward(&job, &layer->gate_grad, dx);
    return MOE_OK;
}

const moei_layer_path moei_path_device = {
    "device",          route,          build_due_plan,       measure,
    index_rows,        route_backward, route_backward_first, route_backward_sum,
    route_backward_end};
