/* simd_math.h: edges of arrays, and functions of real numbers, in the vocabulary of simd_avx2.h and
 * simd_avx512.h, which include it last. Same bits on both. Polynomial of exp: our minimax fit (Remez), error
 * 4.4e-9; normal distribution: Abramowitz & Stegun 7.1.26, error 7.5e-8.
 */
#ifndef MOEI_SIMD_MATH_H
#define MOEI_SIMD_MATH_H

#include <stdbool.h>

#include "core/integer.h"
#include "kernel/hint.h"

/* Full vectors take the plain instruction: masked stores are slow on many AVX2 machines. */
static inline vf vf_load_upto(const float *p, int64_t n) {
    return n >= VF_N ? vf_load(p) : vf_load_n(p, n);
}
static inline void vf_store_upto(float *p, vf a, int64_t n) {
    if (n >= VF_N)
        vf_store(p, a);
    else
        vf_store_n(p, a, n);
}

/* Up to a vector of numbers from element i on, in memory f32 or bf16; n > 0 of them exist. */
static inline vf vf_get(bool bf16, const void *p, int64_t i, int64_t n) {
    if (!bf16) return vf_load_upto((const float *)p + i, n);
    const uint16_t *at = (const uint16_t *)p + i;
    return n >= VF_N ? vf_load_bf16(at) : vf_load_bf16_n(at, n);
}
static inline void vf_put(bool bf16, void *p, int64_t i, vf a, int64_t n) {
    if (!bf16)
        vf_store_upto((float *)p + i, a, n);
    else if (n >= VF_N)
        vf_store_bf16((uint16_t *)p + i, a);
    else
        vf_store_bf16_n((uint16_t *)p + i, a, n);
}

/* e^x to 2 ulp for -105 <= x <= 90.
 * x = n ln 2 + r with |r| <= ln(2)/2; ln 2 in two parts, the first exact when multiplied by n. */
static inline vf vf_exp_of(vf x) {
    vf n = vf_round(vf_mul(x, vf_set1(1.44269504f)));
    vf r = vf_fnma(n, vf_set1(0.693145752f), x);
    r = vf_fnma(n, vf_set1(1.42860677e-6f), r);
    vf p = vf_set1(0.0013814467238f);
    p = vf_fma(p, r, vf_set1(0.0083687808365f));
    p = vf_fma(p, r, vf_set1(0.0416683927178f));
    p = vf_fma(p, r, vf_set1(0.1666651964188f));
    p = vf_fma(p, r, vf_set1(0.4999999403954f));
    p = vf_fma(vf_mul(r, r), p, r);
    return vf_scale2(vf_add(p, vf_set1(1.0f)), n);
}

/* e^x for every float: 0 below -104, infinity above 88.73, NaN for NaN. */
static inline vf vf_exp(vf x) {
    return vf_exp_of(vf_min(vf_set1(90.0f), vf_max(vf_set1(-105.0f), x)));
}

/* Exactly 0 below -88.73, where the exponential is infinite, and 1 above 17: so that x * sigmoid(x) is right
 * for every finite x. Denormal only between there and -87.33: such numbers take many processors a hundred
 * cycles. */
static inline vf vf_sigmoid(vf x) {
    const vf one = vf_set1(1.0f);
    vf e = vf_exp_of(vf_min(vf_set1(90.0f), vf_max(vf_set1(-87.0f), vf_neg(x))));
    return vf_div(one, vf_add(one, e));
}

/* Distribution function of the normal law, and its density in *density: gelu(x) = x * cdf(x) and
 * gelu'(x) = cdf(x) + x * density(x). The error is absolute: in a far tail it is large beside the value, but
 * the value is next to nothing there; both are 0 where e^(-x^2/2) is below e^-87, whatever x they are
 * multiplied by. */
static inline vf vf_normal_cdf(vf x, vf *density) {
    const vf one = vf_set1(1.0f), end = vf_set1(87.0f);
    vf z = vf_mul(vf_abs(x), vf_set1(0.707106781f)), square = vf_mul(z, z);
    vf e = vf_select(vf_lt(end, square), vf_zero(), vf_exp_of(vf_neg(vf_min(end, square))));
    vf t = vf_div(one, vf_fma(z, vf_set1(0.3275911f), one));
    vf p = vf_set1(1.061405429f);
    p = vf_fma(p, t, vf_set1(-1.453152027f));
    p = vf_fma(p, t, vf_set1(1.421413741f));
    p = vf_fma(p, t, vf_set1(-0.284496736f));
    p = vf_fma(p, t, vf_set1(0.254829592f));
    vf tail = vf_mul(vf_mul(vf_mul(p, t), vf_set1(0.5f)), e);
    *density = vf_mul(e, vf_set1(0.398942280f));
    return vf_select(vf_lt(x, vf_zero()), tail, vf_sub(one, tail));
}

#endif
