/* layer_param.c: the layer's parameters by number and by name, and their gradients.
 * A gradient has the shape of its value, is of the wide type (of experts' matrices also bf16) and is
 * allocated when the layer is reserved for training. Source: moekit/moe.h section 6.
 */
#include "layer/layer.h"

#include "core/real.h"
#include "experts/experts.h"

#include <moekit/option.h>

#include <stdio.h>
#include <string.h>

enum { LENT_ALIGN = 64 }; /* what moe_memory_alloc gives at least */

static moe_status check_index(const moe_layer *layer, int32_t index) {
    if (index >= 0 && index < layer->n_params) return MOE_OK;
    return moe_ctx_fail(layer->ctx, MOE_ERR_ARGUMENT, "parameter %d: this layer has 0 .. %d", index,
                        layer->n_params - 1);
}

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

/* bf16 only where its owner says so. */
static moe_dtype grad_dtype_of(const moe_param *shape) {
    return shape->dtype == MOE_BF16 && shape->grad_dtype == MOE_BF16 ? MOE_BF16 : moei_wide(shape->dtype);
}

static size_t numbers_of(const moe_param *shape) {
    size_t numbers = 1;
    for (int32_t i = 0; i < shape->n_dim; ++i) numbers *= (size_t)shape->dim[i];
    return numbers;
}

void moei_layer_count_param(moei_layer_param *entry, const moe_param *shape) {
    entry->bytes = numbers_of(shape) * moe_dtype_bytes(shape->dtype);
    entry->grad_bytes = numbers_of(shape) * moe_dtype_bytes(grad_dtype_of(shape));
}

static moe_status keep_param(moe_layer *layer, moei_layer_param *place, const moei_layer_param *entry) {
    *entry->value_slot = entry->own.value;
    *place = *entry;
    ++layer->n_params;
    return MOE_OK;
}

moe_status moei_layer_add_param(moe_layer *layer, const moe_param *shape, void **value, void **grad) {
    moei_layer_param *place = moei_layer_new_param(layer);
    if (!place) return moei_ctx_no_memory(layer->ctx, "list of parameters");
    moei_layer_param entry = {.own = *shape, .value_slot = value, .grad_slot = grad};
    moei_layer_count_param(&entry, shape);
    snprintf(entry.name, sizeof entry.name, "%s", shape->name);
    if (layer->desc.unowned) return keep_param(layer, place, &entry);
    entry.own.value = moei_memory_alloc(layer->ctx, entry.bytes);
    if (!entry.own.value) return moei_ctx_no_memory(layer->ctx, "%s", shape->name);
    const moe_status cleared = moei_memory_clear(layer->ctx, entry.own.value, entry.bytes);
    if (cleared != MOE_OK) {
        moei_memory_free(layer->ctx, entry.own.value, entry.bytes);
        return cleared;
    }
    return keep_param(layer, place, &entry);
}

bool moei_layer_is_trained(const moei_layer_param *param) {
    return param->experts ? !param->frozen : !param->own.buffer && param->grad_slot;
}

static moe_status check_bind(const moe_layer *layer, int32_t index, const void *value, const void *grad) {
    MOEI_TRY(check_index(layer, index));
    const moei_layer_param *entry = &layer->param[index];
    if (!layer->desc.unowned)
        return moe_ctx_fail(
            layer->ctx, MOE_ERR_STATE,
            "%s: this layer has memory of its own; describe it with moe_layer_desc.unowned to lend it "
            "other",
            entry->name);
    if (entry->bytes == 0)
        return moe_ctx_fail(layer->ctx, MOE_ERR_STATE,
                            "%s: moe_layer_quantize with drop_weights does without it", entry->name);
    if (grad && !moei_layer_is_trained(entry))
        return moe_ctx_fail(layer->ctx, MOE_ERR_ARGUMENT,
                            "%s: it is not trained and has no gradient; give NULL", entry->name);
    if ((uintptr_t)value % LENT_ALIGN || (uintptr_t)grad % LENT_ALIGN)
        return moe_ctx_fail(layer->ctx, MOE_ERR_ARGUMENT,
                            "%s: its %s is at %p; lent memory is %d-byte aligned", entry->name,
                            (uintptr_t)value % LENT_ALIGN ? "value" : "gradient",
                            (uintptr_t)value % LENT_ALIGN ? value : grad, LENT_ALIGN);
    return MOE_OK;
}

bool moei_layer_has_grads(const moe_layer *layer) {
    for (int32_t i = 0; i < layer->n_params; ++i)
        if (layer->param[i].grad) return true;
    return false;
}

/* NULL: experts compute none. */
static void bind_experts_grad(const moei_layer_param *entry) {
    entry->experts->ops->bind_grad(entry->experts->self, entry->index, entry->frozen ? NULL : entry->grad);
}

moe_status moe_layer_bind_param(moe_layer *layer, int32_t index, void *value, void *grad) {
    if (!layer) return MOE_ERR_ARGUMENT;
    MOEI_TRY(check_bind(layer, index, value, grad));
    moei_layer_param *entry = &layer->param[index];
    if (value) entry->own.value = value;
    if (grad) entry->grad = grad;
    if (entry->experts) {
        moei_expert_bind_value(entry->experts->ops, entry->experts->self, entry->index, entry->own.value);
        bind_experts_grad(entry);
        return MOE_OK;
    }
    *entry->value_slot = entry->own.value;
    if (entry->grad_slot) *entry->grad_slot = entry->grad;
    return MOE_OK;
}

moe_status moei_layer_check_lent(const moe_layer *layer, bool grads) {
    for (int32_t i = 0; i < layer->n_params && layer->desc.unowned; ++i) {
        const moei_layer_param *entry = &layer->param[i];
        if (entry->bytes == 0 ||
            (grads ? entry->grad || !moei_layer_is_trained(entry) : entry->own.value != NULL))
            continue;
        return moe_ctx_fail(layer->ctx, MOE_ERR_STATE,
                            "%s: nobody has lent this layer its %s (moe_layer_bind_param)", entry->name,
                            grads ? "gradient" : "value");
    }
    return MOE_OK;
}

static bool is_plain_ffn(const moei_experts *experts) {
    return !experts->ops || experts->ops == &moei_expert_ffn;
}

moe_status moe_layer_set_grad_dtype(moe_layer *layer, moe_dtype dtype) {
    if (!layer) return MOE_ERR_ARGUMENT;
    if (layer->desc.dtype != MOE_BF16 || (dtype != MOE_BF16 && dtype != MOE_F32))
        return moe_ctx_fail(
            layer->ctx, MOE_ERR_ARGUMENT,
            "grad_dtype: %s of a layer of %s; it may be MOE_BF16 or MOE_F32, of a layer of MOE_BF16",
            moei_dtype_name(dtype), moei_dtype_name(layer->desc.dtype));
    if (!is_plain_ffn(&layer->experts) || !is_plain_ffn(&layer->shared))
        return moe_ctx_fail(
            layer->ctx, MOE_ERR_UNSUPPORTED,
            "grad_dtype: needs expert ffn without expert_kinds; other kinds have f32 gradients");
    if (moei_layer_has_grads(layer))
        return moe_ctx_fail(layer->ctx, MOE_ERR_STATE,
                            "grad_dtype: the gradients are there already; say it before the first reserve "
                            "for MOE_TRAIN");
    moei_experts *const groups[] = {&layer->experts, &layer->shared};
    for (int g = 0; g < 2; ++g)
        if (groups[g]->ops) moei_ffn_set_grad_dtype(groups[g]->self, dtype);
    for (int32_t i = 0; i < layer->n_params; ++i) {
        moei_layer_param *entry = &layer->param[i];
        moe_param shape = {.size = sizeof shape};
        if (!entry->experts) continue;
        MOEI_TRY(entry->experts->ops->param(entry->experts->self, entry->index, &shape));
        entry->grad_bytes = numbers_of(&shape) * moe_dtype_bytes(grad_dtype_of(&shape));
    }
    return MOE_OK;
}

moe_status moe_layer_freeze(moe_layer *layer, int32_t index, bool frozen) {
    if (!layer) return MOE_ERR_ARGUMENT;
    MOEI_TRY(check_index(layer, index));
    moei_layer_param *entry = &layer->param[index];
    if (!entry->experts || entry->experts->ops != &moei_expert_ffn)
        return moe_ctx_fail(
            layer->ctx, MOE_ERR_UNSUPPORTED,
            "%s: only parameters of ffn experts without expert_kinds are frozen one by one; the "
            "router is by router_frozen",
            entry->name);
    const bool was_made = layer->mode == MOE_TRAIN || moei_layer_has_grads(layer);
    if (!frozen && !entry->grad && was_made && !layer->desc.unowned)
        return moe_ctx_fail(
            layer->ctx, MOE_ERR_STATE,
            "%s: this layer was reserved for MOE_TRAIN without its gradient, as it was frozen; "
            "call moe_layer_freeze with false before the first such reserve, or make a new "
            "layer",
            entry->name);
    entry->frozen = frozen;
    bind_experts_grad(entry);
    return MOE_OK;
}

int32_t moe_layer_param_count(const moe_layer *layer) {
    return layer ? layer->n_params : 0;
}

moe_status moe_layer_param(const moe_layer *layer, int32_t index, moe_param *param) {
    if (!layer) return MOE_ERR_ARGUMENT;
    MOEI_TRY(check_index(layer, index));
    const moei_layer_param *entry = &layer->param[index];
    moe_param found = {.size = sizeof found};
    if (entry->experts)
        MOEI_TRY(entry->experts->ops->param(entry->experts->self, entry->index, &found));
    else
        found = entry->own;
    found.name = entry->name;
    found.grad = entry->grad;
    found.frozen = !found.buffer && !moei_layer_is_trained(entry);
    found.grad_dtype = grad_dtype_of(&found);
    return moei_ctx_desc_write(layer->ctx, param, &found, sizeof found, "moe_param");
}

moe_status moe_layer_param_by_name(const moe_layer *layer, const char *name, moe_param *param) {
    if (!layer) return MOE_ERR_ARGUMENT;
    MOEI_TRY(moei_ctx_need(layer->ctx, "moe_layer_param_by_name", "name", name));
    size_t least = SIZE_MAX;
    int32_t nearest = 0;
    for (int32_t i = 0; i < layer->n_params; ++i) {
        if (strcmp(layer->param[i].name, name) == 0) return moe_layer_param(layer, i, param);
        const moe_option row = {.key = layer->param[i].name, .aliases = ""};
        const size_t distance = moe_option_distance(&row, name);
        if (distance < least) least = distance, nearest = i;
    }
    return moe_ctx_fail(layer->ctx, MOE_ERR_ARGUMENT, "this layer has no parameter '%s'; the nearest is '%s'",
                        name, layer->param[nearest].name);
}

static void clear_grad(moe_layer *layer, const moei_layer_param *param) {
    if (param->grad) moei_memory_clear(layer->ctx, param->grad, param->grad_bytes);
}

void moe_layer_zero_grad(moe_layer *layer) {
    if (!layer) return;
    for (int32_t i = 0; i < layer->n_params; ++i) clear_grad(layer, &layer->param[i]);
}

static bool is_overwritten(const moei_layer_param *param) {
    const moei_experts *owner = param->experts;
    if (!owner) return false;
    if (owner->ops == &moei_expert_mixed) return moei_expert_mixed_overwrites(owner->self, param->index);
    return owner->ops->overwrites;
}

void moei_layer_open_grads(moe_layer *layer) {
    for (int32_t i = 0; i < layer->n_params; ++i)
        if (!is_overwritten(&layer->param[i]) && moei_layer_is_trained(&layer->param[i]))
            clear_grad(layer, &layer->param[i]);
}
