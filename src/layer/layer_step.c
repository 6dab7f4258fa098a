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
    layer->history.ended = true;
}

void moei_layer_count_step(moe_layer *layer) {
    const int32_t E = layer->desc.num_experts;
    for (int32_t e = 0; e < E; ++e) layer->step.rows[e] += layer->plan.kept[e];
    if (!layer->routing.quantile || layer->batch.n_valid == 0 || layer->batch.replay_expert) return;
    for (int32_t e = 0; e < E; ++e) layer->step.quantile[e] += layer->routing.quantile[e];
    ++layer->step.n_quantile;
}

static bool moves_selection_bias(const moe_layer_desc *d) {
    return d->num_experts > 0 && d->selection_bias && d->selection_bias_update_rate > 0;
}

static moe_status check_counts(const moe_layer *layer, const int64_t *counts) {
    if (counts && !moves_selection_bias(&layer->desc))
        return moe_ctx_fail(layer->ctx, MOE_ERR_ARGUMENT,
                            "counts: only an update of the selection bias reads them; this layer has none "
                            "(selection_bias with selection_bias_update_rate), so give NULL");
    MOEI_TRY(moei_ctx_whole(layer->ctx, "moe_layer_end_step", "counts", counts, sizeof *counts));
    const int32_t E = layer->desc.num_experts;
    const int64_t most = E > 0 ? INT64_MAX / E : 0; /* their sum, and E times one, have 63 bits */
    for (int32_t e = 0; counts && e < E; ++e)
        if (counts[e] < 0 || counts[e] > most)
            return moe_ctx_fail(layer->ctx, MOE_ERR_ARGUMENT,
                                "counts: expert %d has %lld rows; it must lie in 0 .. %lld", e,
                                (long long)counts[e], (long long)most);
    return MOE_OK;
}

moe_status moe_layer_end_step(moe_layer *layer, const int64_t *counts) {
    if (!layer) return MOE_ERR_ARGUMENT;
    const moe_layer_desc *d = &layer->desc;
    MOEI_TRY(check_counts(layer, counts));
    if (d->num_experts == 0) return MOE_OK;
    MOEI_TRY(moei_layer_check_lent(layer, false));
    if (layer->twin) return moei_twin_end_step(layer, counts);
    const moe_dtype dtype = moei_gate_dtype(&layer->router, true);
    if (moves_selection_bias(d))
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
