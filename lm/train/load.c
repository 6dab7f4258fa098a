/* load.c: counts of rows per layer and expert.
 * The counts come from the routing that each layer keeps of its last forward, so they cost E additions a
 * layer. Source: the measures are those of moe_stats (moe.h).
 */
#include "train/load.h"

#include "core/status.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

moe_status moelm_load_create(moe_lm *lm, moelm_load *load, moe_error *error) {
    moe_lm_info info = {.size = sizeof info};
    moe_lm_get_info(lm, &info);
    *load = (moelm_load){.n_layers = info.n_layers};
    load->first = calloc((size_t)info.n_layers + 1, sizeof *load->first);
    if (!load->first) return moei_error_set(error, MOE_ERR_MEMORY, "no memory for the counts of the experts");
    for (int32_t l = 0; l < info.n_layers; ++l) {
        const moe_layer *layer = moe_lm_layer(lm, l);
        load->first[l + 1] = load->first[l] + moe_layer_get_desc(layer)->num_experts;
    }
    size_t n = (size_t)load->first[info.n_layers];
    load->kept = calloc(2 * n + 1, sizeof *load->kept);
    if (!load->kept) {
        moelm_load_destroy(load);
        return moei_error_set(error, MOE_ERR_MEMORY, "no memory for the counts of %zu experts", n);
    }
    load->dropped = load->kept + n;
    return MOE_OK;
}

void moelm_load_destroy(moelm_load *load) {
    free(load->kept);
    free(load->first);
    *load = (moelm_load){0};
}

void moelm_load_clear(moelm_load *load) {
    memset(load->kept, 0, 2 * (size_t)load->first[load->n_layers] * sizeof *load->kept);
}

moe_status moelm_load_add_forward(moelm_load *load, moe_lm *lm, moe_error *error) {
    for (int32_t l = 0; l < load->n_layers; ++l) {
        int32_t n_experts = moelm_load_experts(load, l);
        if (n_experts == 0) continue;
        moe_routing_view view = {.size = sizeof view};
        moe_status status = moe_layer_routing(moe_lm_layer(lm, l), &view);
        if (status != MOE_OK)
            return moei_error_set(error, status, "layer %d does not tell what it routed", l);
        for (int32_t e = 0; e < n_experts; ++e) {
            load->kept[load->first[l] + e] += (uint64_t)view.kept[e];
            load->dropped[load->first[l] + e] += (uint64_t)(view.routed[e] - view.kept[e]);
        }
    }
    return MOE_OK;
}

void moelm_load_add(moelm_load *load, const moelm_load *other) {
    int64_t n = load->first[load->n_layers];
    for (int64_t i = 0; i < n; ++i) {
        load->kept[i] += other->kept[i];
        load->dropped[i] += other->dropped[i];
    }
}

moelm_balance moelm_load_balance(const moelm_load *load, int32_t layer) {
    moelm_balance balance = {0};
    int32_t n_experts = moelm_load_experts(load, layer);
    const uint64_t *kept = load->kept + load->first[layer], *dropped = load->dropped + load->first[layer];
    double total = 0, lost = 0;
    for (int32_t e = 0; e < n_experts; ++e) {
        total += (double)(kept[e] + dropped[e]);
        lost += (double)dropped[e];
    }
    if (n_experts == 0) return balance; /* dense */
    if (total == 0) return (moelm_balance){.n_dead = n_experts, .entropy = 1};
    double mean = total / n_experts, square = 0;
    for (int32_t e = 0; e < n_experts; ++e) {
        double rows = (double)(kept[e] + dropped[e]), share = rows / total;
        square += (rows - mean) * (rows - mean);
        if (rows > balance.max * mean) balance.max = rows / mean;
        if (rows > 0) balance.entropy -= share * log(share);
        balance.n_dead += rows == 0;
    }
    balance.cv = sqrt(square / n_experts) / mean;
    balance.entropy = n_experts > 1 ? balance.entropy / log(n_experts) : 1;
    balance.dropped = lost / total;
    return balance;
}
