/* rmsnorm_neon.c: RMS normalisation, f32, AArch64 Advanced SIMD.
 * Shapes and source: rmsnorm_simd.h, which is the algorithm.
 */
#include "kernel/simd_neon.h"

#include "kernel/rmsnorm/rmsnorm_simd.h"

void moei_rmsnorm__neon(const moei_team *team, const moe_rmsnorm_args *args) {
    rmsnorm_forward(team, args);
}

void moei_rmsnorm_backward__neon(const moei_team *team, const moe_rmsnorm_args *args) {
    rmsnorm_backward(team, args);
}
