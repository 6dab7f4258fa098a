/* layer_param.c: the layer's parameters by number and by name, and their gradients.
 * A gradient has the shape of its value, is of the wide type and is allocated when the layer is reserved for
 * training. Source: moekit/moe.h section 6.
 */
#include "layer/layer.h"

#include "core/real.h"

#include <stdio.h>
#include <string.h>

moei_layer_param *moei_layer_new_param(moe_layer *layer) {
    if (layer->n_params == layer->n_params_max) {
        const int32_t more = layer->n_params_max > 0 ? 2 * layer->n_params_max : 16;
        moei_layer_param *list = moe_ctx_alloc(layer->ctx, (size_t)more * sizeof *list);
        if (!list) return NULL;
        if (layer->param) memcpy(list, layer->param, (size_t)layer->n_params * sizeof *list);
        moe_ctx_free(layer->ctx, layer->param, (size_t)layer->n_params_max * sizeof *list);
        layer->param = list;
        layer->n_params_max = more;
    }
    return &layer->param[layer->n_params];
}

void moei_layer_count_param(moei_layer_param *entry, const moe_param *shape) {
    size_t numbers = 1;
    for (int32_t i = 0; i < shape->n_dim; ++i) numbers *= (size_t)shape->dim[i];
    entry->bytes = numbers * moe_dtype_bytes(shape->dtype);
    entry->grad_bytes = numbers * moe_dtype_bytes(moei_wide(shape->dtype));
}

moe_status moei_layer_add_param(moe_layer *layer, const moe_param *shape, void **value, void **grad) {
    moei_layer_param *place = moei_layer_new_param(layer);
    if (!place) return MOE_ERR_MEMORY;
    moei_layer_param entry = {.own = *shape, .grad_slot = grad};
    moei_layer_count_param(&entry, shape);
    entry.own.value = moei_memory_alloc(layer->ctx, entry.bytes);
    if (!entry.own.value) return MOE_ERR_MEMORY;
    const moe_status cleared = moei_memory_clear(layer->ctx, entry.own.value, entry.bytes);
    if (cleared != MOE_OK) {
        moei_memory_free(layer->ctx, entry.own.value, entry.bytes);
        return cleared;
    }
    snprintf(entry.name, sizeof entry.name, "%s", shape->name);
    *value = entry.own.value;
    *place = entry;
    ++layer->n_params;
    return MOE_OK;
}

int32_t moe_layer_param_count(const moe_layer *layer) {
    return layer->n_params;
}

moe_status moe_layer_param(const moe_layer *layer, int32_t index, moe_param *param) {
    if (index < 0 || index >= layer->n_params)
        return moe_ctx_fail(layer->ctx, MOE_ERR_ARGUMENT, "parameter %d: this layer has 0 .. %d", index,
                            layer->n_params - 1);
    const moei_layer_param *entry = &layer->param[index];
    moe_param found = {.size = sizeof found};
    if (entry->experts)
        MOEI_TRY(entry->experts->ops->param(entry->experts->self, entry->index, &found));
    else
        found = entry->own;
    found.name = entry->name;
    found.grad = entry->grad;
    found.grad_dtype = moei_wide(found.dtype);
    return moei_ctx_desc_write(layer->ctx, param, &found, sizeof found, "moe_param");
}

moe_status moe_layer_param_by_name(const moe_layer *layer, const char *name, moe_param *param) {
    for (int32_t i = 0; i < layer->n_params; ++i)
        if (strcmp(layer->param[i].name, name) == 0) return moe_layer_param(layer, i, param);
    return moe_ctx_fail(layer->ctx, MOE_ERR_ARGUMENT, "this layer has no parameter '%s'; its first is '%s'",
                        name, layer->param[0].name);
}

void moe_layer_zero_grad(moe_layer *layer) {
    for (int32_t i = 0; i < layer->n_params; ++i)
        if (layer->param[i].grad)
            moei_memory_clear(layer->ctx, layer->param[i].grad, layer->param[i].grad_bytes);
}
