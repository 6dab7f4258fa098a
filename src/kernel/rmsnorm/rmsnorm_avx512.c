/* rmsnorm_avx512.c: RMS normalisation, f32, AVX-512.
 * Shapes and source: rmsnorm_simd.h, which is the algorithm.
 */
#include "kernel/simd_avx512.h"

#include "kernel/rmsnorm/rmsnorm_simd.h"

void moei_rmsnorm__avx512(const moei_team *team, const moe_rmsnorm_args *args) {
    rmsnorm_forward(team, args);
}

void moei_rmsnorm_backward__avx512(const moei_team *team, const moe_rmsnorm_args *args) {
    rmsnorm_backward(team, args);
}
