/* load_stats.c: how evenly the experts were used.
 * routed[E], kept[E], entropy[T] -> counts, coefficient of variation, largest share, entropies.
 * Source: the metrics of NeMo Automodel (load_balance_metrics), with the population deviation.
 */
#include "core/real.h"
#include "loss/loss.h"

#include <math.h>

static double normalised_entropy(const int64_t *count, int32_t n, double total) {
    if (total <= 0 || n < 2) return 1;
    double entropy = 0;
    for (int32_t e = 0; e < n; ++e) {
        double share = (double)count[e] / total;
        if (share > 0) entropy -= share * log(share);
    }
    return entropy / log((double)n);
}

static double mean_entropy(const moei_batch *batch, const moei_routing *routing, const void *entropy) {
    double sum = 0;
    for (int64_t t = 0; t < routing->n_tokens; ++t) sum += moei_real_load(routing->dtype, entropy, t);
    return batch->n_valid > 0 ? sum / (double)batch->n_valid : 0;
}

void moei_load_stats(const moei_batch *batch, const moei_routing *routing, const moei_plan *plan,
                     const void *entropy, moe_stats *stats) {
    const int32_t E = plan->n_experts;
    int64_t asked = 0;
    stats->n_kept = 0;
    for (int32_t e = 0; e < E; ++e) {
        asked += plan->routed[e];
        stats->n_kept += plan->kept[e];
    }
    stats->n_routed = asked + routing->n_dropped;
    stats->n_dropped = stats->n_routed - stats->n_kept;
    double mean = (double)asked / E, variance = 0, largest = 0;
    stats->n_dead = 0;
    for (int32_t e = 0; e < E; ++e) {
        double load = (double)plan->routed[e];
        stats->n_dead += plan->routed[e] == 0;
        variance += (load - mean) * (load - mean) / E;
        if (load > largest) largest = load;
    }
    stats->load_cv = mean > 0 ? sqrt(variance) / mean : 0;
    stats->load_max = mean > 0 ? largest / mean : 0;
    stats->load_entropy = normalised_entropy(plan->routed, E, (double)asked);
    stats->router_entropy = mean_entropy(batch, routing, entropy);
}
