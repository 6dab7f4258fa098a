/* router_stats.h: what one layer's router told about a step, mean over the forwards of the step.
 */
#ifndef MOELM_ROUTER_STATS_H
#define MOELM_ROUTER_STATS_H

#include <moekit/moe.h>

enum { MOELM_OPTIONAL_LOSSES = 7 };

typedef struct moelm_router_stats {
    double aux_loss, z_loss, entropy; /* losses without their coefficients */
    double total; /* coefficient times loss, summed: what training adds to the main loss */
    double optional[MOELM_OPTIONAL_LOSSES]; /* NaN where the layer has no such loss */
} moelm_router_stats;

/* Name of optional[index], as in metrics.jsonl. */
const char *moelm_optional_loss(int32_t index);

void moelm_router_stats_clear(moelm_router_stats *router, const moe_layer_desc *desc);
/* Adds a forward's figures times `share`. */
void moelm_router_stats_add(moelm_router_stats *router, const moe_stats *stats, double share);

#endif
