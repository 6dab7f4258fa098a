/* act_exact.cuh: the activations of kernel/act.h, value and derivatives, to the accuracy of f32: for f32
 * products and for few rows. The epilogues of bf16 use the coarser ones of act_fast.cuh. Formulas:
 * moekit/op.h.
 */
#ifndef MOEI_ACT_EXACT_CUH
#define MOEI_ACT_EXACT_CUH

#include "kernel/cuda/portable.cuh"

namespace moei {

/* An activation of the products, in f32 (kernel/act.h has them in f64): limit is infinite where there is
 * none.
 */
struct ActRule {
    moei_curve curve;
    bool gated;
    float alpha, limit, offset;
};
static inline ActRule act_rule_of(moe_act act, moe_act_numbers numbers) {
    const moei_act_rule rule = moei_act_rule_for(act, numbers);
    return {rule.curve, rule.gated, (float)rule.alpha, rule.limit > 0 ? (float)rule.limit : INFINITY,
            (float)rule.offset};
}

/* v within `low` and `high`; NaN is NaN, which fminf and fmaxf would make a number. */
__device__ __forceinline__ float clamped(float v, float low, float high) {
    float above, within;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(above) : "f"(v), "f"(low));
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(within) : "f"(above), "f"(high));
    return within;
}

/* x sigmoid(y(x)) and its slope, `rise` being that of y. Past +-100 a sigmoid is 0 or 1 in f32. */
__device__ __forceinline__ float2 times_sigmoid(float x, float y, float rise) {
    const float s = 1.f / (1.f + expf(-clamped(y, -100.f, 100.f)));
    const float bend = fabsf(y) >= 100.f ? 0.f : x * s * (1.f - s) * rise;
    return make_float2(x * s, s + bend);
}
/* Value and slope of a curve. */
__device__ __forceinline__ float2 curve_at(moei_curve curve, float v, float alpha) {
    switch (curve) {
    case MOEI_CURVE_LINEAR:
        return make_float2(v, 1.f);
    case MOEI_CURVE_RELU:
        return make_float2(v <= 0.f ? 0.f : v, v > 0.f ? 1.f : 0.f);
    case MOEI_CURVE_LEAKY_RELU:
        return make_float2(v > 0.f ? v : 0.01f * v, v > 0.f ? 1.f : 0.01f);
    case MOEI_CURVE_RELU2: {
        const float half = v <= 0.f ? 0.f : v;
        return make_float2(half * half, half + half);
    }
    case MOEI_CURVE_GELU: {
        const float cdf = 0.5f * erfcf(-v * 0.70710678f), density = 0.39894228f * expf(-0.5f * v * v);
        return make_float2(v * cdf, density > 0.f ? fmaf(v, density, cdf) : cdf);
    }
    case MOEI_CURVE_GELU_TANH: { /* (1 + tanh(y)) / 2 is sigmoid(2 y) */
        const float c = 1.59576912f, cubic = 0.044715f, square = fminf(v * v, 1e4f);
        return times_sigmoid(v, c * v * fmaf(cubic, square, 1.f), c * fmaf(3.f * cubic, square, 1.f));
    }
    case MOEI_CURVE_SWISH:
        break;
    }
    return times_sigmoid(v, alpha * v, alpha);
}

struct ActPoint {
    float value, d_gate, d_up;
};
__device__ __forceinline__ ActPoint act_point(const ActRule &rule, float gate, float up) {
    if (!rule.gated) {
        const float2 f = curve_at(rule.curve, gate, rule.alpha);
        return {f.x, f.y, 0.f};
    }
    const float v = clamped(gate, -INFINITY, rule.limit), u = clamped(up, -rule.limit, rule.limit);
    const float2 f = curve_at(rule.curve, v, rule.alpha);
    const float factor = u + rule.offset;
    return {f.x * factor, gate > rule.limit ? 0.f : f.y * factor, fabsf(up) > rule.limit ? 0.f : f.x};
}

} // namespace moei

#endif
