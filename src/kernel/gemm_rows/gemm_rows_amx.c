/* gemm_rows_amx.c: grouped product over ragged rows of bf16, AMX. Shapes and source: gemm_rows_pairs.h. */
#include "kernel/simd_avx512.h"

#include "kernel/gemm_tile_amx.h"

#include "kernel/gemm_rows/gemm_packed_amx.h"
#include "kernel/gemm_rows/gemm_rows_pairs.h"

void moei_gemm_rows__amx(const moei_team *team, const moe_gemm_rows_args *args) {
    run_rows(team, args, 0, rows_task);
}
