/* layer_backward.c: one backward call, the stages in reverse: combine -> experts -> dispatch -> route.
 * dy[T,d] -> dx[T,d]; parameters' gradients are added to, or stored (overwrite_grad). Reads x, Z and the
 * routing, nothing else. Source: docs/architecture.md; SonicMoE (Guo et al. 2025) for what need not be kept.
 */
#include "layer/layer_experts.h"
#include "layer/layer_path.h"

static moe_status check_backward(const moe_layer *layer, moe_mat x, moe_mat dy, moe_mat dx) {
    if (!layer->can_backward)
        return moe_ctx_fail(layer->ctx, MOE_ERR_STATE,
                            "backward without a MOE_TRAIN forward before it; one backward a forward");
    const int64_t rows = layer->batch.x.rows;
    MOEI_TRY(moei_layer_check_lent(layer, true));
    MOEI_TRY(moei_layer_check_mat(layer, "x", x, rows, layer->desc.d_model));
    MOEI_TRY(moei_layer_check_mat(layer, "dy", dy, rows, layer->desc.output_size));
    if (!dx.data) return MOE_OK;
    MOEI_TRY(moei_layer_check_mat(layer, "dx", dx, rows, layer->desc.d_model));
    if (rows > 0 && (dx.data == dy.data || dx.data == x.data))
        return moe_ctx_fail(layer->ctx, MOE_ERR_ARGUMENT, "dx is x or dy: both are read after dx is begun");
    return MOE_OK;
}

moe_status moe_layer_backward(moe_layer *layer, moe_mat x, moe_mat dy, moe_mat dx) {
    if (!layer) return MOE_ERR_ARGUMENT;
    MOEI_TRY(check_backward(layer, x, dy, dx));
    layer->can_backward = false;
    layer->batch.x = moei_with_stride(x);
    dy = moei_with_stride(dy);
    dx = moei_with_stride(dx);
    const moei_scratch s = moei_layer_scratch(layer);

    if (layer->overwrite_grad) moei_layer_open_grads(layer);
    layer->router_done = false;
    if (layer->experts.ops && (layer->scratch_owner || layer->lends_scratch))
        MOEI_TRY(layer->path->index(layer, &s));
    MOEI_TRY(moei_layer_experts_backward(layer, &s, dy, dx));
    if (layer->experts.ops && !layer->router_done) MOEI_TRY(layer->path->route_backward(layer, &s, dx));
    return layer->ctx->device->check(layer->ctx);
}
