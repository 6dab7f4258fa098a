/* layer_packed.c: a layer whose experts' weights are in few bits (moe_layer_quantize).
 * First everything is packed, then put in place, so that a refusal changes nothing.
 * Formats: moekit/quant.h.
 */
#include "layer/layer.h"

#include "core/memory.h"
#include "experts/experts.h"

#include <moekit/quant.h>

typedef struct packed_pair {
    moe_packed *matrix[MOEI_FFN_MATRICES];
} packed_pair;

static moe_status check_quantize(const moe_layer *layer, const moe_quant_desc *desc) {
    const moei_experts *experts = &layer->experts;
    if (layer->dropped)
        return moe_ctx_fail(
            layer->ctx, MOE_ERR_STATE,
            "moe_layer_quantize: drop_weights has given this layer's weights back; only a new "
            "layer can have others");
    if (!desc) return MOE_OK;
    MOEI_TRY(moei_layer_check_lent(layer, false));
    if (layer->max_tokens >= 0 && layer->mode == MOE_TRAIN)
        return moe_ctx_fail(
            layer->ctx, MOE_ERR_STATE,
            "moe_layer_quantize: the layer is reserved for MOE_TRAIN, and packed weights have "
            "no gradients; reserve it for MOE_INFER");
    if (experts->ops && experts->ops != &moei_expert_ffn)
        return moe_ctx_fail(
            layer->ctx, MOE_ERR_UNSUPPORTED,
            "moe_layer_quantize: experts '%s' are not built-in ffn experts of one width, which "
            "alone can be packed",
            experts->ops->name);
    return MOE_OK;
}

static size_t pair_bytes(const packed_pair *pair) {
    size_t bytes = 0;
    for (int i = 0; i < MOEI_FFN_MATRICES; ++i)
        if (pair->matrix[i]) bytes += moe_packed_bytes(pair->matrix[i]);
    return bytes;
}

/* What an earlier reserve for training left goes with the weights: nobody adds to it again. */
static void drop_grad(moe_layer *layer, moei_layer_param *param) {
    param->experts->ops->bind_grad(param->experts->self, param->index, NULL);
    moei_layer_free_grad(layer, param);
    param->bytes = 0;
}

static void use(moe_layer *layer, moei_experts *experts, const packed_pair *pair, bool drop) {
    if (experts->ops != &moei_expert_ffn) return;
    moei_ffn_use_packed(experts->self, pair->matrix, drop);
    experts->packed_bytes = pair_bytes(pair);
    for (int32_t i = 0; drop && i < layer->n_params; ++i)
        if (layer->param[i].experts == experts && layer->param[i].index < MOEI_FFN_MATRICES)
            drop_grad(layer, &layer->param[i]);
}

static moe_status pack(const moei_experts *experts, const moe_quant_desc *desc, packed_pair *pair) {
    return experts->ops ? moei_ffn_pack(experts->self, desc, pair->matrix) : MOE_OK;
}

moe_status moe_layer_quantize(moe_layer *layer, const moe_quant_desc *given) {
    if (!layer) return MOE_ERR_ARGUMENT;
    moe_quant_desc desc = {.size = sizeof desc};
    packed_pair routed = {{NULL}}, shared = {{NULL}};
    if (given) MOEI_TRY(moei_ctx_desc_read(layer->ctx, &desc, sizeof desc, given, "moe_quant_desc"));
    MOEI_TRY(check_quantize(layer, given));
    if (given) {
        MOEI_TRY(pack(&layer->experts, &desc, &routed));
        const moe_status status = pack(&layer->shared, &desc, &shared);
        for (int i = 0; status != MOE_OK && i < MOEI_FFN_MATRICES; ++i) moe_packed_destroy(routed.matrix[i]);
        if (status != MOE_OK) return status;
    }
    use(layer, &layer->experts, &routed, desc.drop_weights);
    use(layer, &layer->shared, &shared, desc.drop_weights);
    layer->packed = given != NULL;
    layer->dropped = desc.drop_weights;
    return MOE_OK;
}
