/* layer_step.c: what happens once an optimizer step instead of once a batch.
 * rows[E], quantile[E] added up over training forwards -> selection and quantile biases.
 * Source: route/bias_update.c has the rules.
 */
#include "layer/layer_path.h"

#include <string.h>

void moei_layer_clear_step(moe_layer *layer) {
    const size_t E = (size_t)layer->desc.num_experts;
    memset(layer->step.rows, 0, E * sizeof *layer->step.rows);
    memset(layer->step.quantile, 0, E * sizeof *layer->step.quantile);
    layer->step.n_quantile = 0;
    moei_loss_history_clear(&layer->history, layer->desc.num_experts);
}

void moei_layer_count_step(moe_layer *layer) {
    const int32_t E = layer->desc.num_experts;
    for (int32_t e = 0; e < E; ++e) layer->step.rows[e] += layer->plan.kept[e];
    if (!layer->routing.quantile || layer->batch.n_valid == 0 || layer->batch.replay_expert) return;
    for (int32_t e = 0; e < E; ++e) layer->step.quantile[e] += layer->routing.quantile[e];
    ++layer->step.n_quantile;
}

moe_status moe_layer_end_step(moe_layer *layer, const int64_t *counts) {
    const moe_layer_desc *d = &layer->desc;
    if (d->num_experts == 0) return MOE_OK;
    if (layer->twin) return moei_twin_end_step(layer, counts);
    const moe_dtype dtype = moei_gate_dtype(&layer->router, true);
    if (d->selection_bias && d->selection_bias_update_rate > 0)
        moei_selection_bias_update(dtype, d->num_experts, counts ? counts : layer->step.rows,
                                   (double)d->selection_bias_update_rate, d->selection_bias_recenter,
                                   layer->gate.selection_bias);
    if (layer->step.n_quantile > 0) {
        for (int32_t e = 0; e < d->num_experts; ++e)
            layer->step.quantile[e] /= (double)layer->step.n_quantile;
        moei_quantile_bias_update(dtype, d->num_experts, layer->step.quantile, (double)d->quantile_ema,
                                  layer->gate.quantile_bias);
    }
    moei_layer_clear_step(layer);
    return MOE_OK;
}
