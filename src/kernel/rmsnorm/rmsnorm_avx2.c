/* rmsnorm_avx2.c: RMS normalisation, f32, AVX2 + FMA.
 * Shapes and source: rmsnorm_simd.h, which is the algorithm.
 */
#include "kernel/simd_avx2.h"

#include "kernel/rmsnorm/rmsnorm_simd.h"

void moei_rmsnorm__avx2(const moei_team *team, const moe_rmsnorm_args *args) {
    rmsnorm_forward(team, args);
}

void moei_rmsnorm_backward__avx2(const moei_team *team, const moe_rmsnorm_args *args) {
    rmsnorm_backward(team, args);
}
