/* cross_entropy_neon.c: softmax cross-entropy, f32, AArch64 Advanced SIMD.
 * Shapes and source: cross_entropy_simd.h, which is the algorithm.
 */
#include "kernel/simd_neon.h"

#include "kernel/cross_entropy/cross_entropy_simd.h"

void moei_cross_entropy__neon(const moei_team *team, const moe_cross_entropy_args *args) {
    cross_entropy_rows(team, args);
}
