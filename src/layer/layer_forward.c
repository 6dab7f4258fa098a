/* layer_forward.c: one forward call: route -> dispatch -> experts -> combine -> loss.
 * x[T,d] -> y[T,d] = sum_k weight[t,k] expert(x)[t] + shared(x).
 * Source: docs/architecture.md, "the tour of one call".
 */
#include "core/desc.h"
#include "core/real.h"
#include "kernel/kernel.h"
#include "layer/layer_experts.h"
#include "layer/layer_path.h"

#include <math.h>

moe_status moei_layer_check_mat(const moe_layer *layer, const char *name, moe_mat mat, int64_t rows,
                                int64_t cols) {
    if (mat.rows != rows || mat.cols != cols)
        return moe_ctx_fail(layer->ctx, MOE_ERR_ARGUMENT, "%s: [%lld, %lld]; this call needs [%lld, %lld]",
                            name, (long long)mat.rows, (long long)mat.cols, (long long)rows, (long long)cols);
    if (mat.dtype != layer->desc.dtype)
        return moe_ctx_fail(layer->ctx, MOE_ERR_ARGUMENT, "%s: dtype is %s; this layer computes in %s", name,
                            moei_dtype_name(mat.dtype), moei_dtype_name(layer->desc.dtype));
    if (mat.stride != 0 && mat.stride < cols)
        return moe_ctx_fail(layer->ctx, MOE_ERR_ARGUMENT, "%s: stride %lld is below its %lld columns", name,
                            (long long)mat.stride, (long long)cols);
    if (mat.stride > MOEI_LD_MAX)
        return moe_ctx_fail(layer->ctx, MOE_ERR_ARGUMENT, "%s: stride %lld; rows may lie %d elements apart",
                            name, (long long)mat.stride, MOEI_LD_MAX);
    if (!mat.data && rows > 0)
        return moe_ctx_fail(layer->ctx, MOE_ERR_ARGUMENT, "%s: data is NULL for %lld rows", name,
                            (long long)rows);
    return moei_ctx_whole(layer->ctx, name, "data", mat.data, moe_dtype_bytes(mat.dtype));
}

static moe_status check_forward(const moe_layer *layer, moe_mat x, moe_mat y, const moe_call *call) {
    if (call->sequence_length < 0 || (call->sequence_length > 0 && x.rows % call->sequence_length))
        return moe_ctx_fail(layer->ctx, MOE_ERR_ARGUMENT,
                            "sequence_length: %lld does not divide the %lld tokens of the call",
                            (long long)call->sequence_length, (long long)x.rows);
    if (x.rows < 0) return moe_ctx_fail(layer->ctx, MOE_ERR_ARGUMENT, "x: %lld rows", (long long)x.rows);
    if (layer->max_tokens < 0 || x.rows > layer->max_tokens)
        return moe_ctx_fail(layer->ctx, MOE_ERR_STATE,
                            "forward of %lld tokens, but %lld are reserved; call moe_layer_reserve first",
                            (long long)x.rows, (long long)(layer->max_tokens < 0 ? 0 : layer->max_tokens));
    const int64_t sequences = call->sequence_length > 0 ? x.rows / call->sequence_length : 1;
    if (sequences > layer->reserved_sequences && moei_layer_by_sequence(layer))
        return moe_ctx_fail(layer->ctx, MOE_ERR_STATE,
                            "forward of %lld sequences, but %lld are reserved; reserve again after "
                            "moe_layer_limit_sequences of as many",
                            (long long)sequences, (long long)layer->reserved_sequences);
    if (call->mode != MOE_INFER && call->mode != MOE_TRAIN)
        return moe_ctx_fail(layer->ctx, MOE_ERR_ARGUMENT,
                            "moe_call.mode: %d is neither MOE_INFER nor MOE_TRAIN", (int)call->mode);
    if (!isfinite(call->loss_scale) || (call->loss_scale < 0 && call->loss_scale != MOE_ZERO))
        return moe_ctx_fail(layer->ctx, MOE_ERR_ARGUMENT,
                            "moe_call.loss_scale: %g is not a finite number of at least 0; 0 means 1, and "
                            "MOE_ZERO (%d) means 0",
                            (double)call->loss_scale, MOE_ZERO);
    if (call->mode == MOE_TRAIN && layer->mode != MOE_TRAIN)
        return moe_ctx_fail(layer->ctx, MOE_ERR_STATE,
                            "MOE_TRAIN forward of a layer reserved for MOE_INFER; reserve it for MOE_TRAIN");
    MOEI_TRY(moei_layer_check_lent(layer, false));
    MOEI_TRY(moei_layer_check_mat(layer, "x", x, x.rows, layer->desc.d_model));
    MOEI_TRY(moei_layer_check_mat(layer, "y", y, x.rows, layer->desc.output_size));
    if (x.data == y.data && x.rows > 0)
        return moe_ctx_fail(layer->ctx, MOE_ERR_ARGUMENT,
                            "y is x: forward cannot run in place, experts read x");
    return MOE_OK;
}

/* The call and its table of draws as this library knows them; NULL is all defaults. */
static moe_status read_call(moe_layer *layer, const moe_call *given, moe_call *call, moe_draws *draws) {
    *call = (moe_call){.size = sizeof *call};
    if (!given) return MOE_OK;
    MOEI_TRY(moei_ctx_desc_read(layer->ctx, call, sizeof *call, given, "moe_call"));
    if (!call->draws) return MOE_OK;
    MOEI_TRY(moei_ctx_desc_read(layer->ctx, draws, sizeof *draws, call->draws, "moe_draws"));
    call->draws = &layer->draws;
    return MOE_OK;
}

/* Where the mask is in a device's memory, only the device counts its tokens. */
static moei_batch batch_of(moe_mat x, const moe_call *call, bool on_host) {
    moei_batch batch = {.x = moei_with_stride(x), .mode = MOE_INFER};
    batch.n_sequences = 1;
    batch.sequence_length = x.rows;
    if (call->sequence_length > 0) {
        batch.sequence_length = call->sequence_length;
        batch.n_sequences = x.rows / call->sequence_length;
    }
    batch.task = call->task;
    batch.token_id = call->token_id;
    batch.replay_expert = call->replay_expert;
    batch.replay_weight = call->replay_weight;
    batch.draws = call->draws;
    batch.mode = call->mode;
    batch.step = call->step;
    batch.mask = call->token_mask;
    batch.n_valid = on_host ? moei_real_tokens(&batch, 0, x.rows) : x.rows;
    return batch;
}

moei_route_job moei_layer_route_job(moe_layer *layer, const moei_scratch *s) {
    return (moei_route_job){.ctx = layer->ctx,
                            .router = &layer->router,
                            .gate = &layer->gate,
                            .batch = &layer->batch,
                            .routing = &layer->routing,
                            .scratch = s->route};
}

moe_status moe_layer_forward(moe_layer *layer, moe_mat x, moe_mat y, const moe_call *given,
                             moe_stats *stats) {
    if (!layer) return MOE_ERR_ARGUMENT;
    moe_call call;
    moe_draws draws;
    MOEI_TRY(read_call(layer, given, &call, &draws));
    if (stats) MOEI_TRY(moei_ctx_desc_check_out(layer->ctx, stats, sizeof *stats, "moe_stats"));
    MOEI_TRY(check_forward(layer, x, y, &call));
    MOEI_TRY(moei_layer_call_check(layer, &call, call.draws ? &draws : NULL));
    if (call.draws) layer->draws = draws; /* kept: backward reads them again */
    layer->batch = batch_of(x, &call, layer->twin == NULL);
    layer->loss_scale = moei_number(call.loss_scale, 1);
    layer->overwrite_grad = call.overwrite_grad;
    layer->has_routing = layer->can_backward = false;
    y = moei_with_stride(y);
    const moei_scratch s = moei_layer_scratch(layer);
    moe_stats measured = {.n_tokens = layer->batch.n_valid};

    MOEI_TRY(layer->ctx->device->check(layer->ctx));
    if (layer->experts.ops) MOEI_TRY(layer->path->route(layer, &s));
    MOEI_TRY(moei_layer_experts_forward(layer, &s, y));
    if (layer->experts.ops) MOEI_TRY(layer->path->measure(layer, &s, stats ? &measured : NULL));
    MOEI_TRY(layer->ctx->device->check(layer->ctx));
    layer->has_routing = true;
    layer->can_backward = layer->batch.mode == MOE_TRAIN;
    return stats ? moei_ctx_desc_write(layer->ctx, stats, &measured, sizeof measured, "moe_stats") : MOE_OK;
}

/* [*n] capacities of the groups: the plan's, or of two levels those of the inner experts. */
static const int64_t *group_capacities(const moe_layer *layer, int64_t *n) {
    const bool levels = moei_has_levels(&layer->routing);
    *n = levels ? layer->routing.levels.n_groups : layer->plan.n_groups;
    return levels ? layer->routing.levels.capacity : layer->plan.capacity;
}

/* The largest capacity of a group, -1: dropless; where the device's kernels plan, they know it. */
static moe_status largest_capacity(const moe_layer *layer, int64_t *largest) {
    int64_t n;
    const int64_t *capacity = group_capacities(layer->twin ? layer->twin : layer, &n);
    if (layer->path == &moei_path_device)
        return moei_memory_copy(layer->ctx, largest, layer->plan.capacity, sizeof *largest);
    *largest = -1;
    for (int64_t g = 0; g < n; ++g)
        if (capacity[g] > *largest) *largest = capacity[g];
    return MOE_OK;
}

moe_status moe_layer_routing(const moe_layer *layer, moe_routing_view *view) {
    if (!layer) return MOE_ERR_ARGUMENT;
    if (!layer->experts.ops)
        return moe_ctx_fail(layer->ctx, MOE_ERR_UNSUPPORTED, "routing: this layer has no routed experts");
    if (!layer->has_routing)
        return moe_ctx_fail(layer->ctx, MOE_ERR_STATE, "routing: no forward has succeeded since the reserve");
    if (layer->plan_due) {
        const moei_scratch s = moei_layer_scratch(layer);
        layer->path->plan(layer, &s);
    }
    int64_t capacity, n_groups;
    const int64_t *group_capacity = group_capacities(layer, &n_groups);
    MOEI_TRY(largest_capacity(layer, &capacity));
    const moe_routing_view seen =
        (moe_routing_view){.n_tokens = layer->routing.n_tokens,
                           .n_experts = layer->routing.n_experts,
                           .top_k = layer->routing.top_k,
                           .dtype = layer->routing.dtype,
                           .expert = layer->routing.expert,
                           .selection = layer->router.kind.ranks_plans ? layer->routing.selection : NULL,
                           .capacity = capacity,
                           .weight = layer->routing.weight,
                           .row_of = layer->plan.row_of,
                           .routed = layer->plan.routed,
                           .kept = layer->plan.kept,
                           .n_groups = n_groups,
                           .group_capacity = group_capacity};
    return moei_ctx_desc_write(layer->ctx, view, &seen, sizeof seen, "moe_routing_view");
}
