/* sum_squares_ref.c: the oracle of the sum of squares of n numbers, for gradient norms.
 * x [n], any dtype; sums in f64.
 * Blocks of 16384 are summed apart and then added in order, so any number of threads agrees.
 */
#include "core/real.h"
#include "kernel/kernel_list.h"

enum { BLOCK = 16384 };

typedef struct wave {
    moe_dtype dtype;
    const void *x;
    int64_t first, n; /* elements first .. n-1 are still to do */
    double *block_sum;
} wave;

static void square_block(void *arg, int64_t task, void *scratch) {
    const wave *w = arg;
    (void)scratch;
    int64_t first = w->first + task * BLOCK, end = w->n < first + BLOCK ? w->n : first + BLOCK;
    double sum = 0.0;
    for (int64_t i = first; i < end; ++i) {
        double x = moei_real_load(w->dtype, w->x, i);
        sum += x * x;
    }
    w->block_sum[task] = sum;
}

/* The block sums of one wave fill the first thread's scratch, which no task of ours uses otherwise. */
double moei_sum_squares__ref(const moei_team *team, moe_dtype dtype, const void *x, int64_t n) {
    const int64_t most = MOEI_THREAD_SCRATCH / (int64_t)sizeof(double);
    double sum = 0.0;
    wave w = {dtype, x, 0, n, team->scratch};
    for (; w.first < n; w.first += most * BLOCK) {
        int64_t left = (n - w.first + BLOCK - 1) / BLOCK, blocks = left < most ? left : most;
        moei_parallel(team, blocks, square_block, &w);
        for (int64_t i = 0; i < blocks; ++i) sum += w.block_sum[i];
    }
    return sum;
}
