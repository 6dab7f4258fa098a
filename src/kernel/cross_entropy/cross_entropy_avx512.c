/* cross_entropy_avx512.c: softmax cross-entropy, f32, AVX-512.
 * Shapes and source: cross_entropy_simd.h, which is the algorithm.
 */
#include "kernel/simd_avx512.h"

#include "kernel/cross_entropy/cross_entropy_simd.h"

void moei_cross_entropy__avx512(const moei_team *team, const moe_cross_entropy_args *args) {
    cross_entropy_rows(team, args);
}
