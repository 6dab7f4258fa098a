/* act.h: the activations in double, value and derivatives, for the reference kernels.
 * A gated one reads gate and up, the others gate alone. swiglu = silu(gate) * up (Shazeer 2020, eq. 5);
 * gelu(x) = x * normal distribution function (Hendrycks & Gimpel 2016).
 */
#ifndef MOEI_ACT_H
#define MOEI_ACT_H

#include <math.h>

#include <moekit/op.h>

typedef struct moei_act_value {
    double value, d_gate, d_up;
} moei_act_value;

static inline moei_act_value moei_act_eval(moe_act act, double gate, double up) {
    switch (act) {
    case MOE_ACT_RELU:
        return (moei_act_value){.value = gate > 0 ? gate : 0, .d_gate = gate > 0 ? 1 : 0};
    case MOE_ACT_GELU: {
        double cdf = 0.5 * erfc(-gate * 0.70710678118654752);
        double density = 0.39894228040143268 * exp(-0.5 * gate * gate);
        return (moei_act_value){.value = gate * cdf, .d_gate = cdf + gate * density};
    }
    case MOE_ACT_SWIGLU: {
        double s = 1 / (1 + exp(-gate));
        return (moei_act_value){
            .value = gate * s * up, .d_gate = up * s * (1 + gate * (1 - s)), .d_up = gate * s};
    }
    case MOE_ACT_NONE:
        break;
    }
    return (moei_act_value){.value = gate, .d_gate = 1};
}

#endif
