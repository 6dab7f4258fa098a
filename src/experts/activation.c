/* activation.c: the table of activations, whose rows stand in activation.def.
 * Z[n or 2n] -> A[n]: gate and up stand in halves or interleaved.
 * Source: kernel/act.c; Automodel and Megatron core for the clamped and interleaved ones.
 */
#include "experts/activation.h"

#include "core/desc.h"

#include <string.h>

#define MOEI_ACTIVATION(...) {__VA_ARGS__},
static const moei_activation activations[] = {
#include "experts/activation.def"
};
#undef MOEI_ACTIVATION

#define MOEI_ACTIVATION(name, ...) name,
const char *const moei_activation_names[] = {
#include "experts/activation.def"
    NULL};
#undef MOEI_ACTIVATION

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
