/* gemm_outer_avx512bf16.c: grouped product over a ragged sum of bf16, AVX-512 with BF16 dot products. Shapes
 * and source: gemm_outer_pairs.h. */
#include "kernel/simd_avx512.h"

#include "kernel/gemm_tile_dp.h"

#include "kernel/gemm_outer/gemm_outer_pairs.h"

void moei_gemm_outer__avx512bf16(const moei_team *team, const moe_gemm_outer_args *args) {
    run_outer(team, args, outer_task);
}
