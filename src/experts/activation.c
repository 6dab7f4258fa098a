/* activation.c: the table of activations.
 * Z[n or 2n] -> A[n]: gate and up stand in halves or interleaved.
 * Source: Shazeer 2020 (GLU variants); So et al. 2021 (squared ReLU); Automodel and Megatron core for the
 * clamped and interleaved ones; Hendrycks & Gimpel 2016 (both forms of GELU).
 */
#include "experts/activation.h"

#include "core/desc.h"

#include <string.h>

static const moei_activation activations[] = {
    {"swiglu",      MOEI_CURVE_SWISH,      true,  false, 0,     0, 0, MOE_ACT_SWIGLU},
    {"geglu",       MOEI_CURVE_GELU_TANH,  true,  false, 0,     0, 0, MOE_ACT_NONE  },
    {"geglu_exact", MOEI_CURVE_GELU,       true,  false, 0,     0, 0, MOE_ACT_NONE  },
    {"reglu",       MOEI_CURVE_RELU,       true,  false, 0,     0, 0, MOE_ACT_NONE  },
    {"quick_geglu", MOEI_CURVE_SWISH,      true,  true,  1.702, 7, 1, MOE_ACT_NONE  },
    {"swigluoai",   MOEI_CURVE_SWISH,      true,  false, 1.702, 7, 1, MOE_ACT_NONE  },
    {"relu",        MOEI_CURVE_RELU,       false, false, 0,     0, 0, MOE_ACT_RELU  },
    {"leaky_relu",  MOEI_CURVE_LEAKY_RELU, false, false, 0,     0, 0, MOE_ACT_NONE  },
    {"relu2",       MOEI_CURVE_RELU2,      false, false, 0,     0, 0, MOE_ACT_NONE  },
    {"silu",        MOEI_CURVE_SWISH,      false, false, 0,     0, 0, MOE_ACT_NONE  },
    {"gelu",        MOEI_CURVE_GELU,       false, false, 0,     0, 0, MOE_ACT_GELU  },
    {"gelu_tanh",   MOEI_CURVE_GELU_TANH,  false, false, 0,     0, 0, MOE_ACT_NONE  },
    {"quick_gelu",  MOEI_CURVE_SWISH,      false, false, 1.702, 0, 0, MOE_ACT_NONE  }
};

const char *const moei_activation_names[] = {"swiglu",    "geglu",     "geglu_exact", "reglu", "quick_geglu",
                                             "swigluoai", "relu",      "leaky_relu",  "relu2", "silu",
                                             "gelu",      "gelu_tanh", "quick_gelu",  NULL};

const moei_activation *moei_activation_find(const char *name) {
    for (size_t i = 0; i < sizeof activations / sizeof *activations; ++i)
        if (strcmp(activations[i].name, name) == 0) return &activations[i];
    return NULL;
}

moei_act_rule moei_act_rule_of(const moei_activation *kind, const moe_expert_desc *desc) {
    moei_act_rule rule = {kind->curve, kind->gated, kind->interleaved, 1, kind->limit, kind->offset};
    if (kind->alpha > 0) rule.alpha = moei_number(desc->activation_alpha, kind->alpha);
    if (!kind->gated) return rule;
    if (desc->glu_layout && strcmp(desc->glu_layout, "auto") != 0)
        rule.interleaved = strcmp(desc->glu_layout, "interleaved") == 0;
    rule.limit = moei_number(desc->activation_limit, kind->limit);
    rule.offset = moei_number(desc->glu_linear_offset, kind->offset);
    return rule;
}

moe_act moei_act_fused(const moei_activation *kind, const moei_act_rule *rule) {
    const bool plain = !rule->interleaved && rule->limit == 0 && rule->offset == 0;
    return plain ? kind->fused : MOE_ACT_NONE;
}
