/* activation.c: the table of activations, and one number of any of them.
 * Z[n or 2n] -> A[n]: gate and up stand in halves or interleaved; only this file and act_pass.c know which.
 * Source: Shazeer 2020 (GLU variants); So et al. 2021 (squared ReLU); Automodel and Megatron core for the
 * clamped and interleaved ones; Hendrycks & Gimpel 2016 (both forms of GELU).
 */
#include "experts/activation.h"

#include "core/desc.h"

#include <math.h>
#include <string.h>

static moei_slope relu(double v, double alpha) {
    (void)alpha;
    return v > 0 ? (moei_slope){v, 1} : (moei_slope){0, 0};
}

static moei_slope leaky_relu(double v, double alpha) {
    (void)alpha;
    return v > 0 ? (moei_slope){v, 1} : (moei_slope){0.01 * v, 0.01};
}

static moei_slope relu2(double v, double alpha) {
    (void)alpha;
    return v > 0 ? (moei_slope){v * v, 2 * v} : (moei_slope){0, 0};
}

/* v * sigmoid(alpha v): silu where alpha is 1, the quick approximation of gelu where it is 1.702. */
static moei_slope swish(double v, double alpha) {
    const double s = 1 / (1 + exp(-alpha * v));
    return (moei_slope){v * s, s * (1 + alpha * v * (1 - s))};
}

static moei_slope silu(double v, double alpha) {
    (void)alpha;
    return swish(v, 1);
}

static moei_slope gelu(double v, double alpha) {
    (void)alpha;
    const double cdf = 0.5 * erfc(-v * 0.70710678118654752);
    return (moei_slope){v * cdf, cdf + v * 0.39894228040143268 * exp(-0.5 * v * v)};
}

static moei_slope gelu_tanh(double v, double alpha) {
    (void)alpha;
    const double c = 0.79788456080286536, cubic = 0.044715; /* sqrt(2 / pi) */
    const double t = tanh(c * (v + cubic * v * v * v));
    return (moei_slope){0.5 * v * (1 + t),
                        0.5 * (1 + t) + 0.5 * v * (1 - t * t) * c * (1 + 3 * cubic * v * v)};
}

static const moei_activation activations[] = {
    {"swiglu",      silu,       true,  false, 0,     0, 0, MOE_ACT_SWIGLU},
    {"geglu",       gelu_tanh,  true,  false, 0,     0, 0, MOE_ACT_NONE  },
    {"geglu_exact", gelu,       true,  false, 0,     0, 0, MOE_ACT_NONE  },
    {"reglu",       relu,       true,  false, 0,     0, 0, MOE_ACT_NONE  },
    {"quick_geglu", swish,      true,  true,  1.702, 7, 1, MOE_ACT_NONE  },
    {"swigluoai",   swish,      true,  false, 1.702, 7, 1, MOE_ACT_NONE  },
    {"relu",        relu,       false, false, 0,     0, 0, MOE_ACT_RELU  },
    {"leaky_relu",  leaky_relu, false, false, 0,     0, 0, MOE_ACT_NONE  },
    {"relu2",       relu2,      false, false, 0,     0, 0, MOE_ACT_NONE  },
    {"silu",        silu,       false, false, 0,     0, 0, MOE_ACT_NONE  },
    {"gelu",        gelu,       false, false, 0,     0, 0, MOE_ACT_GELU  },
    {"gelu_tanh",   gelu_tanh,  false, false, 0,     0, 0, MOE_ACT_NONE  },
    {"quick_gelu",  swish,      false, false, 1.702, 0, 0, MOE_ACT_NONE  }
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
    moei_act_rule rule = {kind, kind->interleaved, moei_number(desc->activation_alpha, kind->alpha),
                          kind->limit, kind->offset};
    if (!kind->gated) return rule;
    if (desc->glu_layout && strcmp(desc->glu_layout, "auto") != 0)
        rule.interleaved = strcmp(desc->glu_layout, "interleaved") == 0;
    rule.limit = moei_number(desc->activation_limit, kind->limit);
    rule.offset = moei_number(desc->glu_linear_offset, kind->offset);
    return rule;
}

moe_act moei_act_fused(const moei_act_rule *rule) {
    const bool plain = !rule->interleaved && rule->limit == 0 && rule->offset == 0;
    return plain ? rule->kind->fused : MOE_ACT_NONE;
}

moei_act_point moei_act_at(const moei_act_rule *rule, double gate, double up) {
    if (!rule->kind->gated) {
        const moei_slope f = rule->kind->curve(gate, rule->alpha);
        return (moei_act_point){.value = f.value, .d_gate = f.slope};
    }
    /* At the limit itself the gradient passes. */
    const double limit = rule->limit > 0 ? rule->limit : INFINITY;
    const bool gate_free = gate <= limit, up_free = up >= -limit && up <= limit;
    const moei_slope f = rule->kind->curve(gate_free ? gate : limit, rule->alpha);
    const double factor = (up_free ? up : copysign(limit, up)) + rule->offset;
    return (moei_act_point){
        .value = f.value * factor, .d_gate = gate_free ? f.slope * factor : 0, .d_up = up_free ? f.value : 0};
}
