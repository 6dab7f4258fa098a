/* sum_squares_ref.c: the oracle of the sum of squares of n numbers, for gradient norms.
 * x [n], any dtype; sums in f64.
 * Blocks and waves: sum_squares_waves.h.
 */
#include "kernel/sum_squares/sum_squares_waves.h"

#include "core/real.h"

static void square_block(void *arg, int64_t task, void *scratch) {
    const square_wave *w = arg;
    (void)scratch;
    int64_t first = w->first + task * BLOCK, end = w->n < first + BLOCK ? w->n : first + BLOCK;
    double sum = 0.0;
    for (int64_t i = first; i < end; ++i) {
        double x = moei_real_load(w->dtype, w->x, i);
        sum += x * x;
    }
    w->block_sum[task] = sum;
}

double moei_sum_squares__ref(const moei_team *team, moe_dtype dtype, const void *x, int64_t n) {
    return sum_waves(team, dtype, x, n, square_block);
}
