/* sum_squares_simd.h: the sum of squares of n numbers in vectors, f32 or bf16, for gradient norms.
 * x [n]; sums in f64.
 * Blocks and waves as in sum_squares_ref.c. Include after simd_avx2.h or simd_avx512.h.
 */
#ifndef MOEI_SUM_SQUARES_SIMD_H
#define MOEI_SUM_SQUARES_SIMD_H

#include "kernel/kernel_list.h"

enum { BLOCK = 16384 };

typedef struct square_wave {
    bool bf16;
    const void *x;
    int64_t first, n; /* elements first .. n-1 are still to do */
    double *block_sum;
} square_wave;

static void square_block(void *arg, int64_t task, void *scratch) {
    const square_wave *w = arg;
    (void)scratch;
    int64_t i = w->first + task * BLOCK, end = w->n - i < BLOCK ? w->n : i + BLOCK;
    vd s0 = vd_zero(), s1 = s0, s2 = s0, s3 = s0;
    for (; i + 2 * VF_N <= end; i += 2 * VF_N) {
        vf a = vf_get(w->bf16, w->x, i, VF_N), b = vf_get(w->bf16, w->x, i + VF_N, VF_N);
        s0 = vd_fma(vd_low(a), vd_low(a), s0);
        s1 = vd_fma(vd_high(a), vd_high(a), s1);
        s2 = vd_fma(vd_low(b), vd_low(b), s2);
        s3 = vd_fma(vd_high(b), vd_high(b), s3);
    }
    double sum = vd_sum(vd_add(vd_add(s0, s1), vd_add(s2, s3)));
    for (; i < end; i += VF_N) {
        vf a = vf_get(w->bf16, w->x, i, end - i);
        sum += vd_sum(vd_add(vd_mul(vd_low(a), vd_low(a)), vd_mul(vd_high(a), vd_high(a))));
    }
    w->block_sum[task] = sum;
}

/* The block sums of one wave fill the first thread's scratch, which no task of ours uses otherwise. */
static inline double sum_squares(const moei_team *team, moe_dtype dtype, const void *x, int64_t n) {
    const int64_t most = MOEI_THREAD_SCRATCH / (int64_t)sizeof(double);
    double sum = 0.0;
    square_wave w = {dtype == MOE_BF16, x, 0, n, team->scratch};
    for (; w.first < n; w.first += most * BLOCK) {
        int64_t left = (n - w.first + BLOCK - 1) / BLOCK, blocks = left < most ? left : most;
        moei_parallel(team, blocks, square_block, &w);
        for (int64_t i = 0; i < blocks; ++i) sum += w.block_sum[i];
    }
    return sum;
}

#endif
