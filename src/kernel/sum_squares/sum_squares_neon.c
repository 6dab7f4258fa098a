/* sum_squares_neon.c: sum of squares, f32, AArch64 Advanced SIMD.
 * Shapes and source: sum_squares_simd.h, which is the algorithm.
 */
#include "kernel/simd_neon.h"

#include "kernel/sum_squares/sum_squares_simd.h"

double moei_sum_squares__neon(const moei_team *team, moe_dtype dtype, const void *x, int64_t n) {
    return sum_squares(team, dtype, x, n);
}
