/* act_fast.cuh: the activations in the epilogues of bf16 products, on any GPU and on Hopper: value and
 * derivatives in f32, accurate enough for bf16. There are two paths, not one for each activation: the common
 * one, and one for all others by their coefficients. Formulas: moekit/op.h.
 */
#ifndef MOEI_ACT_FAST_CUH
#define MOEI_ACT_FAST_CUH

#include "kernel/cuda/act_exact.cuh"

#include <float.h>
#include <type_traits>

namespace moei {

/* f(v) = v sigmoid(x (p0 + p1 x^2 + p2 x^4)), x being v within +-bound; or of pieces,
 * v > 0 ? v (line + square v) : leak v. */
struct Curve {
    bool smooth;
    float p0, p1, p2, bound;
    float line, square, leak;
};

/* By the numbers of moei_curve. The normal distribution function is a sigmoid of that form to 2e-5 (fitted on
 * 0 .. 7), tanh.approx gives 2e-4 anyway. */
/* clang-format off */
static const Curve curves[] = {
    {false, 0, 0, 0, 0, 1, 0, 1}, /* linear */
    {false, 0, 0, 0, 0, 1, 0, 0}, /* relu */
    {false, 0, 0, 0, 0, 1, 0, 0.01f}, /* leaky_relu */
    {false, 0, 0, 0, 0, 0, 1, 0}, /* relu2 */
    {true, 1, 0, 0, 100, 0, 0, 0}, /* swish, of alpha 1 */
    {true, 1.59543567f, 0.0735965125f, -6.31614155e-4f, 7, 0, 0, 0}, /* gelu */
    {true, 1.59576912f, 0.0713548162f, 0, 10, 0, 0, 0}, /* gelu_tanh */
};
/* clang-format on */
static_assert(sizeof curves / sizeof *curves == MOEI_CURVE_GELU_TANH + 1, "a row for every moei_curve");

/* An activation of an epilogue. Common: swiglu without numbers of its own; ungated, one of pieces. */
struct FastAct {
    bool common;
    Curve curve;
    float limit, offset;
};

static inline FastAct fast_act_of(moe_act which, moe_act_numbers numbers) {
    const ActRule rule = act_rule_of(which, numbers);
    FastAct act = {false, curves[rule.curve], rule.limit, rule.offset};
    if (rule.curve == MOEI_CURVE_SWISH) {
        act.curve.p0 = rule.alpha;
        act.curve.bound = fminf(act.curve.bound / fabsf(rule.alpha), 1e9f); /* whose fourth power is finite */
    }
    act.common = rule.gated ? rule.curve == MOEI_CURVE_SWISH && rule.alpha == 1.f && rule.limit == INFINITY &&
                                  rule.offset == 0.f
                            : !act.curve.smooth;
    return act;
}

__device__ __forceinline__ float sigmoid(float x) {
    float t;
    asm("tanh.approx.f32 %0, %1;" : "=f"(t) : "f"(0.5f * x));
    return fmaf(0.5f, t, 0.5f);
}

/* f(v) and its slope. */
__device__ __forceinline__ float2 smooth_at(const Curve &c, float v) {
    const float x = clamped(v, -c.bound, c.bound), q = x * x;
    const float s = sigmoid(x * fmaf(q, fmaf(q, c.p2, c.p1), c.p0));
    const float rise = fmaf(q, fmaf(q, 5.f * c.p2, 3.f * c.p1), c.p0);
    return make_float2(v * s, fmaf(x * s, (1.f - s) * rise, s));
}
__device__ __forceinline__ float2 pieces_at(const Curve &c, float v) {
    const float squared = c.square * fminf(v, FLT_MAX), across = squared + c.line; /* 0 * Inf is no number */
    const float below = c.leak == 0.f ? 0.f : c.leak * v;
    return make_float2(v <= 0.f ? below : v * across, v <= 0.f ? c.leak : squared + across);
}

template <bool GATED, bool COMMON>
__device__ __forceinline__ ActPoint fast_point(const FastAct &act, float gate, float up) {
    if (GATED && COMMON) {
        const float s = sigmoid(gate), silu = gate * s;
        return {silu * up, up * fmaf(silu, 1.f - s, s), silu};
    }
    if (!GATED) {
        const float2 f = COMMON ? pieces_at(act.curve, gate) : smooth_at(act.curve, gate);
        return {f.x, f.y, 0.f};
    }
    const float v = clamped(gate, -INFINITY, act.limit), u = clamped(up, -act.limit, act.limit);
    const float2 f = act.curve.smooth ? smooth_at(act.curve, v) : pieces_at(act.curve, v);
    const float factor = u + act.offset;
    return {f.x * factor, gate > act.limit ? 0.f : f.y * factor, fabsf(up) > act.limit ? 0.f : f.x};
}

/* Calls `run` with whether the common path will do, as a constant: one branch around many numbers. */
template <class Run> __device__ __forceinline__ void by_path(const FastAct &act, const Run &run) {
    if (act.common)
        run(std::true_type());
    else
        run(std::false_type());
}

} // namespace moei

#endif
