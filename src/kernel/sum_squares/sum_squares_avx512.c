/* sum_squares_avx512.c: sum of squares, f32, AVX-512.
 * Shapes and source: sum_squares_simd.h, which is the algorithm.
 */
#include "kernel/simd_avx512.h"

#include "kernel/sum_squares/sum_squares_simd.h"

double moei_sum_squares__avx512(const moei_team *team, moe_dtype dtype, const void *x, int64_t n) {
    return sum_squares(team, dtype, x, n);
}
