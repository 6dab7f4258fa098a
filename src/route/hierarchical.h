/* hierarchical.h: what the two halves of the hierarchical router share.
 * Eo outer experts with Ei inner ones each; rows: (token, outer slot) pairs that reached an inner gate.
 */
#ifndef MOEI_HIERARCHICAL_H
#define MOEI_HIERARCHICAL_H

#include "route/select.h"

static const double moei_level_eps = 1e-9; /* beside the sum of two weights */

typedef struct moei_level_sizes {
    int32_t Eo, Ei;
    int64_t n_groups, group_tokens; /* of capacities and losses */
} moei_level_sizes;
moei_level_sizes moei_level_sizes_of(const moei_route_job *job);

/* to[n] = the numbers from `at`. */
static inline void moei_load_row(moe_dtype dtype, const void *from, int64_t at, int32_t n, double *to) {
    for (int32_t i = 0; i < n; ++i) to[i] = moei_real_load(dtype, from, at + i);
}

#endif
