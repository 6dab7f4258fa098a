/* activation.h: the activations of experts by name, value and derivative.
 * An ungated one reads v; a gated one reads gate g and up u; kernel/act.h computes them.
 */
#ifndef MOEI_ACTIVATION_H
#define MOEI_ACTIVATION_H

#include "core/ctx.h"

#include <moekit/expert.h>

#include "kernel/kernel.h"

/* One row of the table. The numbers are what the activation has unless the descriptor says otherwise. */
typedef struct moei_activation {
    const char *name;
    moe_act act;                 /* what the products call it */
    bool interleaved;            /* even columns gate, odd columns up; else halves */
    double alpha, limit, offset; /* alpha 0: it takes none; limit 0: no clamp */
} moei_activation;

/* NULL-terminated; the order is that of the table. */
extern const char *const moei_activation_names[];
/* NULL: no such activation. */
const moei_activation *moei_activation_find(const char *name);

/* The rule of an activation with a descriptor's numbers filled in. */
moei_act_rule moei_act_rule_of(const moei_activation *kind, const moe_expert_desc *desc);

/* Whether the products can compute the rule: gates and ups in halves, and an alpha. */
bool moei_act_fuses(const moei_act_rule *rule);

#endif
