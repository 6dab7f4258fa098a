/* act.c: what the products call the activations, by name and as rules.
 * Source: Shazeer 2020 (gated ones); So et al. 2021 (squared ReLU); Hendrycks & Gimpel 2016 (both forms of
 * GELU).
 */
#include "kernel/act.h"

#include <string.h>

#include "core/option.h"
#include "core/status.h"

/* In the order of moe_act. */
static const struct {
    const char *name;
    moei_curve curve;
    bool gated;
} acts[] = {
    {"none",        MOEI_CURVE_LINEAR,     false},
    {"relu",        MOEI_CURVE_RELU,       false},
    {"gelu",        MOEI_CURVE_GELU,       false},
    {"swiglu",      MOEI_CURVE_SWISH,      true },
    {"leaky_relu",  MOEI_CURVE_LEAKY_RELU, false},
    {"relu2",       MOEI_CURVE_RELU2,      false},
    {"silu",        MOEI_CURVE_SWISH,      false},
    {"gelu_tanh",   MOEI_CURVE_GELU_TANH,  false},
    {"reglu",       MOEI_CURVE_RELU,       true },
    {"geglu_exact", MOEI_CURVE_GELU,       true },
    {"geglu",       MOEI_CURVE_GELU_TANH,  true },
};
_Static_assert(sizeof acts / sizeof *acts == MOEI_ACTS, "a row for every moe_act");

moe_status moe_act_by_name(const char *name, moe_act *act, moe_error *error) {
    MOEI_TRY(moei_error_need(error, "moe_act_by_name", "name", name));
    MOEI_TRY(moei_error_need(error, "moe_act_by_name", "act", act));
    for (int i = MOE_ACT_NONE + 1; i < MOEI_ACTS; ++i)
        if (strcmp(name, acts[i].name) == 0) {
            *act = (moe_act)i;
            return MOE_OK;
        }
    char list[256] = "";
    for (int i = MOE_ACT_NONE + 1; i < MOEI_ACTS; ++i) moei_list_add(list, sizeof list, acts[i].name);
    return moei_error_set(error, MOE_ERR_ARGUMENT, "activation: '%s' is not one of: %s", name, list);
}

bool moe_act_gated(moe_act act) {
    return (unsigned)act < MOEI_ACTS && acts[act].gated;
}

moei_act_rule moei_act_rule_for(moe_act act, moe_act_numbers numbers) {
    return (moei_act_rule){.curve = acts[act].curve,
                           .gated = acts[act].gated,
                           .alpha = numbers.alpha != 0 ? numbers.alpha : 1,
                           .limit = numbers.limit,
                           .offset = numbers.offset};
}

moei_act_point moei_act_at(const moei_act_rule *rule, double gate, double up) {
    return moei_act_rule_at(rule, gate, up);
}
