/* act.h: the activations in double, value and derivatives, for the reference kernels and
 * (kernel/cuda/both.cuh) the passes on a GPU. A gated one reads gate and up, the others gate alone. swiglu =
 * silu(gate) * up (Shazeer 2020, eq. 5); gelu(x) = x * normal distribution function (Hendrycks & Gimpel
 * 2016). The value of NaN is NaN in all of them: a run that has diverged is to show it.
 */
#ifndef MOEI_ACT_H
#define MOEI_ACT_H

#include <math.h>

#include <moekit/op.h>

#include "kernel/stage.h"

/* One of the functions inside the activations: its value and slope at v. */
typedef struct moei_slope {
    double value, slope;
} moei_slope;

/* v * sigmoid(alpha v): silu where alpha is 1, the quick approximation of gelu where it is 1.702. */
static inline moei_slope moei_swish(double v, double alpha) {
    const double s = 1 / (1 + exp(-alpha * v));
    return (moei_slope){v * s, s * (1 + alpha * v * (1 - s))};
}

static inline moei_slope moei_gelu_tanh(double v) {
    const double c = 0.79788456080286536, cubic = 0.044715; /* sqrt(2 / pi) */
    const double t = tanh(c * (v + cubic * v * v * v));
    return (moei_slope){0.5 * v * (1 + t),
                        0.5 * (1 + t) + 0.5 * v * (1 - t * t) * c * (1 + 3 * cubic * v * v)};
}

static inline moei_slope moei_curve_at(moei_curve curve, double v, double alpha) {
    switch (curve) {
    case MOEI_CURVE_LINEAR:
        return (moei_slope){v, 1};
    case MOEI_CURVE_RELU:
        return (moei_slope){v <= 0 ? 0 : v, v > 0 ? 1.0 : 0.0};
    case MOEI_CURVE_LEAKY_RELU:
        return v > 0 ? (moei_slope){v, 1} : (moei_slope){0.01 * v, 0.01};
    case MOEI_CURVE_RELU2:
        return v <= 0 ? (moei_slope){0, 0} : (moei_slope){v * v, 2 * v};
    case MOEI_CURVE_GELU: {
        const double cdf = 0.5 * erfc(-v * 0.70710678118654752);
        return (moei_slope){v * cdf, cdf + v * 0.39894228040143268 * exp(-0.5 * v * v)};
    }
    case MOEI_CURVE_GELU_TANH:
        return moei_gelu_tanh(v);
    case MOEI_CURVE_SWISH:
        break;
    }
    return moei_swish(v, alpha);
}

static inline moei_act_point moei_act_rule_at(const moei_act_rule *rule, double gate, double up) {
    if (!rule->gated) {
        const moei_slope f = moei_curve_at(rule->curve, gate, rule->alpha);
        return (moei_act_point){f.value, f.slope, 0};
    }
    /* At the limit itself the gradient passes; NaN is within every limit. */
    const double limit = rule->limit > 0 ? rule->limit : HUGE_VAL;
    const bool gate_free = !(gate > limit), up_free = !(fabs(up) > limit);
    const moei_slope f = moei_curve_at(rule->curve, gate_free ? gate : limit, rule->alpha);
    const double factor = (up_free ? up : copysign(limit, up)) + rule->offset;
    return (moei_act_point){f.value * factor, gate_free ? f.slope * factor : 0, up_free ? f.value : 0};
}

#endif
