/* sum_squares_avx2.c: sum of squares, f32, AVX2 + FMA.
 * Shapes and source: sum_squares_simd.h, which is the algorithm.
 */
#include "kernel/simd_avx2.h"

#include "kernel/sum_squares/sum_squares_simd.h"

double moei_sum_squares__avx2(const moei_team *team, moe_dtype dtype, const void *x, int64_t n) {
    return sum_squares(team, dtype, x, n);
}
