/* sum_squares_simd.h: the sum of squares of n numbers in vectors, f32 or bf16, for gradient norms.
 * x [n]; sums in f64.
 * Blocks and waves: sum_squares_waves.h. Include after simd_avx2.h or simd_avx512.h.
 */
#ifndef MOEI_SUM_SQUARES_SIMD_H
#define MOEI_SUM_SQUARES_SIMD_H

#include "kernel/sum_squares/sum_squares_waves.h"

static void square_block(void *arg, int64_t task, void *scratch) {
    const square_wave *w = arg;
    (void)scratch;
    const bool bf16 = w->dtype == MOE_BF16;
    int64_t i = w->first + task * BLOCK, end = w->n - i < BLOCK ? w->n : i + BLOCK;
    vd s0 = vd_zero(), s1 = s0, s2 = s0, s3 = s0;
    for (; i + 2 * VF_N <= end; i += 2 * VF_N) {
        vf a = vf_get(bf16, w->x, i, VF_N), b = vf_get(bf16, w->x, i + VF_N, VF_N);
        s0 = vd_fma(vd_low(a), vd_low(a), s0);
        s1 = vd_fma(vd_high(a), vd_high(a), s1);
        s2 = vd_fma(vd_low(b), vd_low(b), s2);
        s3 = vd_fma(vd_high(b), vd_high(b), s3);
    }
    double sum = vd_sum(vd_add(vd_add(s0, s1), vd_add(s2, s3)));
    for (; i < end; i += VF_N) {
        vf a = vf_get(bf16, w->x, i, end - i);
        sum += vd_sum(vd_add(vd_mul(vd_low(a), vd_low(a)), vd_mul(vd_high(a), vd_high(a))));
    }
    w->block_sum[task] = sum;
}

static inline double sum_squares(const moei_team *team, moe_dtype dtype, const void *x, int64_t n) {
    return sum_waves(team, dtype, x, n, square_block);
}

#endif
