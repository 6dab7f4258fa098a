/* gemm_outer_avx2.c: grouped product over a ragged sum, AVX2. Shapes and source: gemm_outer_simd.h. */
#include "kernel/simd_avx2.h"

#include "kernel/gemm_outer/gemm_outer_simd.h"

void moei_gemm_outer__avx2(const moei_team *team, const moe_gemm_outer_args *args) {
    run_outer(team, args, outer_task);
}
