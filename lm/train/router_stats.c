/* router_stats.c: a step's router losses, gathered from its forwards.
 * A table row names an optional loss and where its coefficient and its figure stand.
 * Source: moe_layer_desc and moe_stats (moe.h).
 */
#include "train/router_stats.h"

#include <math.h>
#include <stddef.h>

/* clang-format off */
static const struct {
    const char *name;
    size_t coeff, stat;
} losses[MOELM_OPTIONAL_LOSSES] = {
    {"seq_aux_loss", offsetof(moe_layer_desc, seq_aux_loss_coeff), offsetof(moe_stats, seq_aux_loss)},
    {"global_aux_loss", offsetof(moe_layer_desc, global_aux_loss_coeff),
     offsetof(moe_stats, global_aux_loss)},
    {"gshard_loss", offsetof(moe_layer_desc, gshard_loss_coeff), offsetof(moe_stats, gshard_loss)},
    {"second_place_loss", offsetof(moe_layer_desc, second_place_loss_coeff),
     offsetof(moe_stats, second_place_loss)},
    {"importance_loss", offsetof(moe_layer_desc, importance_loss_coeff),
     offsetof(moe_stats, importance_loss)},
    {"load_loss", offsetof(moe_layer_desc, load_loss_coeff), offsetof(moe_stats, load_loss)},
    {"entropy_loss", offsetof(moe_layer_desc, entropy_loss_coeff), offsetof(moe_stats, entropy_loss)},
};
/* clang-format on */

const char *moelm_optional_loss(int32_t index) {
    return losses[index].name;
}

void moelm_router_stats_clear(moelm_router_stats *router, const moe_layer_desc *desc) {
    *router = (moelm_router_stats){0};
    for (int32_t i = 0; i < MOELM_OPTIONAL_LOSSES; ++i) {
        float coeff = *(const float *)(const void *)((const char *)desc + losses[i].coeff);
        if (coeff == 0) router->optional[i] = (double)NAN;
    }
}

void moelm_router_stats_add(moelm_router_stats *router, const moe_stats *stats, double share) {
    router->aux_loss += share * stats->aux_loss;
    router->z_loss += share * stats->z_loss;
    router->entropy += share * stats->router_entropy;
    router->total += share * stats->loss;
    for (int32_t i = 0; i < MOELM_OPTIONAL_LOSSES; ++i)
        router->optional[i] += share * *(const double *)(const void *)((const char *)stats + losses[i].stat);
}
