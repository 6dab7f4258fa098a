/* gemm_outer_neon.c: grouped product over a ragged sum, AArch64 Advanced SIMD. Shapes and source:
 * gemm_outer_simd.h. */
#include "kernel/simd_neon.h"

#include "kernel/gemm_outer/gemm_outer_simd.h"

void moei_gemm_outer__neon(const moei_team *team, const moe_gemm_outer_args *args) {
    run_outer(team, args, outer_task);
}
