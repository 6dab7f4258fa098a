/* desc.h: reading and writing structs of a caller who may be older or newer than this library. */
#ifndef MOEI_DESC_H
#define MOEI_DESC_H

#include "core/status.h"

/* Copies the caller's struct, whose first field is its size, into `ours` of `our_size` bytes. A smaller one
 * comes from an older header: what it lacks is zero, the default. A larger one comes from a newer header and
 * is taken while all that we do not know is zero. `name` is the type's, for the text. */
moe_status moei_desc_read(void *ours, size_t our_size, const void *given, const char *name, moe_error *error);

/* The number a field means: `otherwise` where it is 0, 0 itself where it is MOE_ZERO. */
static inline double moei_number(float field, double otherwise) {
    if (field == MOE_ZERO) return 0;
    return field == 0 ? otherwise : (double)field;
}

/* Whether experts may be full outside training; of two levels, the inner ones too. */
static inline bool moei_desc_limited(const moe_layer_desc *filled) {
    const bool inner = filled->num_groups_outer > 0 && filled->capacity_factor_inner > 0;
    return inner || filled->capacity_factor_eval > 0 ||
           (filled->capacity_factor > 0 && filled->capacity_factor_eval != MOE_ZERO);
}

/* Whether an output struct says its size, so that a call can refuse it before it works. */
moe_status moei_desc_check_out(const void *out, size_t our_size, const char *name, moe_error *error);
/* Copies `ours` into the caller's output struct, whose first field is its size and stays: no more than that
 * many bytes are written; those of a larger one that we do not know become zero. */
moe_status moei_desc_write(void *out, const void *ours, size_t our_size, const char *name, moe_error *error);

#endif
