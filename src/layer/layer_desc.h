/* layer_desc.h: from what the caller wrote to a complete, checked descriptor. */
#ifndef MOEI_LAYER_DESC_H
#define MOEI_LAYER_DESC_H

#include "core/option.h"

#include <string.h>

/* Whether init_std draws anything: the gate, experts, the latent projections or the shared experts' gate. */
bool moei_draws_by_std(const moe_layer_desc *desc);
moe_status moei_layer_desc_fill(const moe_layer_desc *given, moe_layer_desc *filled, moe_error *error);

moei_option_table moei_layer_option_table(void);
/* The caller's struct, which may be of an older or a newer header, as ours, to be changed and given back.
 * What was set that the caller's does not have is refused, and leaves it as it is. */
moe_status moei_layer_desc_open(const moe_layer_desc *given, moe_layer_desc *ours, moe_error *error);
moe_status moei_layer_desc_close(moe_layer_desc *given, const moe_layer_desc *ours, moe_error *error);
/* Sets the field of a row of that table as nobody's word: it yields to what was or will be said. */
moe_status moei_layer_desc_imply(moe_layer_desc *desc, const moe_option *row, const char *value,
                                 moe_error *error);

/* Whether the settings of a complete descriptor go together and each has a use; else the reason. */
moe_status moei_layer_desc_check(const moe_layer_desc *desc, moe_error *error);

/* Whether all routed experts are identity or zero: kinds without a hidden layer. */
bool moei_experts_plain(const moe_layer_desc *desc);

static inline bool moei_is(const char *value, const char *choice) {
    return strcmp(value, choice) == 0;
}

/* Widths on both sides of the routed experts: those of the layer, or the latent one. */
static inline int32_t moei_expert_in(const moe_layer_desc *desc) {
    return desc->latent_size > 0 ? desc->latent_size : desc->d_model;
}
static inline int32_t moei_expert_out(const moe_layer_desc *desc) {
    return desc->latent_size > 0 ? desc->latent_size : desc->output_size;
}

#endif
