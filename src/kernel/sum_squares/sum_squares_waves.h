/* sum_squares_waves.h: the loop of both sums of squares: blocks of BLOCK numbers are summed apart and then
 * added in order, so any number of threads agrees.
 * x[n], any dtype -> one sum in f64. Include from sum_squares_ref.c or sum_squares_simd.h, which say a block.
 */
#ifndef MOEI_SUM_SQUARES_WAVES_H
#define MOEI_SUM_SQUARES_WAVES_H

#include "kernel/kernel_list.h"

enum { BLOCK = 16384 };

/* Blocks whose sums fit together. */
typedef struct square_wave {
    moe_dtype dtype;
    const void *x;
    int64_t first, n; /* elements first .. n-1 are still to do */
    double *block_sum;
} square_wave;

/* The block sums of one wave fill the first thread's scratch, which no task of ours uses otherwise. */
static inline double sum_waves(const moei_team *team, moe_dtype dtype, const void *x, int64_t n,
                               moei_task_fn block) {
    const int64_t most = MOEI_THREAD_SCRATCH / (int64_t)sizeof(double);
    double sum = 0.0;
    square_wave w = {dtype, x, 0, n, team->scratch};
    for (; w.first < n; w.first += most * BLOCK) {
        const int64_t left = (n - w.first + BLOCK - 1) / BLOCK, blocks = left < most ? left : most;
        moei_parallel(team, blocks, block, &w);
        for (int64_t i = 0; i < blocks; ++i) sum += w.block_sum[i];
    }
    return sum;
}

#endif
