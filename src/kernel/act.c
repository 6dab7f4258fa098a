/* act.c: what the products call the activations, by name and as rules.
 * Source: Shazeer 2020 (gated ones); So et al. 2021 (squared ReLU); Hendrycks & Gimpel 2016 (both forms of
 * GELU).
 */
#include "kernel/act.h"

#include <string.h>

#include "core/status.h"

/* By the numbers of moe_act. */
static const struct {
    const char *name;
    moei_curve curve;
    bool gated;
} acts[] = {
    [MOE_ACT_NONE] = {"none",        MOEI_CURVE_LINEAR,     false},
    [MOE_ACT_RELU] = {"relu",        MOEI_CURVE_RELU,       false},
    [MOE_ACT_GELU] = {"gelu",        MOEI_CURVE_GELU,       false},
    [MOE_ACT_SWIGLU] = {"swiglu",      MOEI_CURVE_SWISH,      true },
    [MOE_ACT_LEAKY_RELU] = {"leaky_relu",  MOEI_CURVE_LEAKY_RELU, false},
    [MOE_ACT_RELU2] = {"relu2",       MOEI_CURVE_RELU2,      false},
    [MOE_ACT_SILU] = {"silu",        MOEI_CURVE_SWISH,      false},
    [MOE_ACT_GELU_TANH] = {"gelu_tanh",   MOEI_CURVE_GELU_TANH,  false},
    [MOE_ACT_REGLU] = {"reglu",       MOEI_CURVE_RELU,       true },
    [MOE_ACT_GEGLU_EXACT] = {"geglu_exact", MOEI_CURVE_GELU,       true },
    [MOE_ACT_GEGLU] = {"geglu",       MOEI_CURVE_GELU_TANH,  true },
};
enum { ACTS = sizeof acts / sizeof *acts };

moe_status moe_act_by_name(const char *name, moe_act *act, moe_error *error) {
    for (int i = MOE_ACT_NONE + 1; name && i < ACTS; ++i)
        if (strcmp(name, acts[i].name) == 0) {
            *act = (moe_act)i;
            return MOE_OK;
        }
    return moei_error_set(error, MOE_ERR_ARGUMENT,
                          "activation: '%s' is not one of: relu, gelu, swiglu, leaky_relu, relu2, silu, "
                          "gelu_tanh, reglu, geglu_exact, geglu",
                          name ? name : "");
}

bool moe_act_gated(moe_act act) {
    return (unsigned)act < ACTS && acts[act].gated;
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
