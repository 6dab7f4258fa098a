/* act_simd.h: the activations in vectors, value and derivatives in f32: act.h, which says the formulas.
 * Include after the header of a vector vocabulary.
 */
#ifndef MOEI_ACT_SIMD_H
#define MOEI_ACT_SIMD_H

#include <math.h>

#include "kernel/stage.h"

typedef struct vec_slope {
    vf value, slope;
} vec_slope;

/* Beyond 100 sigmoid is 0 or 1 and its slope 0, which no factor that overflowed shall turn into NaN. */
MOEI_INLINE vf vec_bounded(vf x) {
    return vf_min(vf_set1(100.0f), vf_max(vf_set1(-100.0f), x));
}

MOEI_INLINE vec_slope vec_swish(vf v, float alpha) {
    const vf one = vf_set1(1.0f);
    vf x = vec_bounded(vf_mul(vf_set1(alpha), v)), s = vf_sigmoid(x);
    vf rest = vf_fma(x, vf_sub(one, s), one);
    return (vec_slope){vf_mul(v, s), vf_mul(s, rest)};
}

/* With t = tanh(y): (1 + t) / 2 is sigmoid(2 y), and (1 - t^2) / 2 is twice it times its complement. */
MOEI_INLINE vec_slope vec_gelu_tanh(vf v) {
    const float c = 0.797884561f, cubic = 0.044715f; /* sqrt(2 / pi) */
    const vf one = vf_set1(1.0f);
    vf x = vec_bounded(v), square = vf_mul(x, x);
    vf s = vf_sigmoid(vf_mul(vf_mul(x, vf_set1(2 * c)), vf_fma(square, vf_set1(cubic), one)));
    vf inner = vf_mul(vf_fma(square, vf_set1(3 * cubic), one), vf_set1(2 * c));
    return (vec_slope){vf_mul(v, s), vf_fma(vf_mul(x, inner), vf_mul(s, vf_sub(one, s)), s)};
}

MOEI_INLINE vec_slope vec_curve(moei_curve curve, vf v, float alpha) {
    const vf zero = vf_zero(), one = vf_set1(1.0f), leak = vf_set1(0.01f);
    const vm positive = vf_lt(zero, v);
    switch (curve) {
    case MOEI_CURVE_LINEAR:
        return (vec_slope){v, one};
    case MOEI_CURVE_RELU:
        return (vec_slope){vf_max(zero, v), vf_select(positive, one, zero)};
    case MOEI_CURVE_LEAKY_RELU:
        return (vec_slope){vf_select(positive, v, vf_mul(leak, v)), vf_select(positive, one, leak)};
    case MOEI_CURVE_RELU2: {
        vf half = vf_max(zero, v);
        return (vec_slope){vf_mul(half, half), vf_add(half, half)};
    }
    case MOEI_CURVE_GELU: {
        vf density, cdf = vf_normal_cdf(v, &density);
        return (vec_slope){vf_mul(v, cdf), vf_fma(v, density, cdf)};
    }
    case MOEI_CURVE_GELU_TANH:
        return vec_gelu_tanh(v);
    case MOEI_CURVE_SWISH:
        break;
    }
    return vec_swish(v, alpha);
}

typedef struct vec_point {
    vf value, d_gate, d_up;
} vec_point;

/* At the limit itself the gradient passes. */
MOEI_INLINE vec_point vec_rule(const moei_act_rule *rule, vf gate, vf up) {
    const vf zero = vf_zero();
    if (!rule->gated) {
        vec_slope f = vec_curve(rule->curve, gate, (float)rule->alpha);
        return (vec_point){f.value, f.slope, zero};
    }
    const vf limit = vf_set1(rule->limit > 0 ? (float)rule->limit : INFINITY), low = vf_neg(limit);
    const vm gate_over = vf_lt(limit, gate), up_over = vf_lt(limit, up), up_under = vf_lt(up, low);
    vec_slope f = vec_curve(rule->curve, vf_select(gate_over, limit, gate), (float)rule->alpha);
    vf clamped = vf_select(up_under, low, vf_select(up_over, limit, up));
    vf factor = vf_add(clamped, vf_set1((float)rule->offset));
    return (vec_point){vf_mul(f.value, factor), vf_select(gate_over, zero, vf_mul(f.slope, factor)),
                       vf_select(up_over, zero, vf_select(up_under, zero, f.value))};
}

#endif
