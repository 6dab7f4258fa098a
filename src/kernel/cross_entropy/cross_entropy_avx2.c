/* cross_entropy_avx2.c: softmax cross-entropy, f32, AVX2 + FMA.
 * Shapes and source: cross_entropy_simd.h, which is the algorithm.
 */
#include "kernel/simd_avx2.h"

#include "kernel/cross_entropy/cross_entropy_simd.h"

void moei_cross_entropy__avx2(const moei_team *team, const moe_cross_entropy_args *args) {
    cross_entropy_rows(team, args);
}
