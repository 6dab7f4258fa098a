/* activation.c: the table of activations.
 * Z[n or 2n] -> A[n]: gate and up stand in halves or interleaved.
 * Source: kernel/act.c; Automodel and Megatron core for the clamped and interleaved ones.
 */
#include "experts/activation.h"

#include "core/desc.h"

#include <string.h>

static const moei_activation activations[] = {
    {"swiglu",      MOE_ACT_SWIGLU,      false, 0,     0, 0},
    {"geglu",       MOE_ACT_GEGLU,       false, 0,     0, 0},
    {"geglu_exact", MOE_ACT_GEGLU_EXACT, false, 0,     0, 0},
    {"reglu",       MOE_ACT_REGLU,       false, 0,     0, 0},
    {"quick_geglu", MOE_ACT_SWIGLU,      true,  1.702, 7, 1},
    {"swigluoai",   MOE_ACT_SWIGLU,      false, 1.702, 7, 1},
    {"relu",        MOE_ACT_RELU,        false, 0,     0, 0},
    {"leaky_relu",  MOE_ACT_LEAKY_RELU,  false, 0,     0, 0},
    {"relu2",       MOE_ACT_RELU2,       false, 0,     0, 0},
    {"silu",        MOE_ACT_SILU,        false, 0,     0, 0},
    {"gelu",        MOE_ACT_GELU,        false, 0,     0, 0},
    {"gelu_tanh",   MOE_ACT_GELU_TANH,   false, 0,     0, 0},
    {"quick_gelu",  MOE_ACT_SILU,        false, 1.702, 0, 0}
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
    moei_act_rule rule = moei_act_rule_for(kind->act, (moe_act_numbers){0});
    if (kind->alpha > 0) rule.alpha = moei_number(desc->activation_alpha, kind->alpha);
    if (!rule.gated) return rule;
    rule.interleaved = kind->interleaved;
    if (desc->glu_layout && strcmp(desc->glu_layout, "auto") != 0)
        rule.interleaved = strcmp(desc->glu_layout, "interleaved") == 0;
    rule.limit = moei_number(desc->activation_limit, kind->limit);
    rule.offset = moei_number(desc->glu_linear_offset, kind->offset);
    return rule;
}

bool moei_act_fuses(const moei_act_rule *rule) {
    return !rule->interleaved && rule->alpha != 0;
}
