/* layer_param.c: the layer's parameters by number and by name, and their gradients.
 * A gradient has the shape of its value and is allocated when the layer is reserved for training.
 * Source: moekit/moe.h section 6.
 */
#include "layer/layer.h"

#include <string.h>

int32_t moe_layer_param_count(const moe_layer *layer) {
    return layer->n_params;
}

moe_status moe_layer_param(const moe_layer *layer, int32_t index, moe_param *param) {
    if (index < 0 || index >= layer->n_params)
        return moe_ctx_fail(layer->ctx, MOE_ERR_ARGUMENT, "parameter %d: this layer has 0 .. %d", index,
                            layer->n_params - 1);
    const moei_layer_param *entry = &layer->param[index];
    moe_param found;
    if (entry->experts)
        MOEI_TRY(entry->experts->ops->param(entry->experts->self, entry->index, &found));
    else
        found = (moe_param){
            .dtype = layer->desc.dtype,
            .n_dim = 2,
            .dim = {layer->desc.num_experts, layer->desc.d_model, 1},
            .value = layer->gate
        };
    found.name = entry->name;
    found.grad = entry->grad;
    *param = found;
    return MOE_OK;
}

moe_status moe_layer_param_by_name(const moe_layer *layer, const char *name, moe_param *param) {
    for (int32_t i = 0; i < layer->n_params; ++i)
        if (strcmp(layer->param[i].name, name) == 0) return moe_layer_param(layer, i, param);
    return moe_ctx_fail(layer->ctx, MOE_ERR_ARGUMENT, "this layer has no parameter '%s'; its first is '%s'",
                        name, layer->param[0].name);
}

void moe_layer_zero_grad(moe_layer *layer) {
    for (int32_t i = 0; i < layer->n_params; ++i)
        if (layer->param[i].grad) memset(layer->param[i].grad, 0, layer->param[i].bytes);
}
