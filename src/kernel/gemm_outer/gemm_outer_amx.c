/* gemm_outer_amx.c: grouped product over a ragged sum of bf16, AMX. Shapes and source: gemm_outer_pairs.h. */
#include "kernel/simd_avx512.h"

#include "kernel/gemm_tile_amx.h"

#include "kernel/gemm_outer/gemm_outer_pairs.h"

void moei_gemm_outer__amx(const moei_team *team, const moe_gemm_outer_args *args) {
    run_outer(team, args, outer_task);
}
