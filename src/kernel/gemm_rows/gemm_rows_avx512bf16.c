/* gemm_rows_avx512bf16.c: grouped product over ragged rows of bf16, AVX-512 with BF16 dot products. Shapes
 * and source: gemm_rows_pairs.h. */
#include "kernel/simd_avx512.h"

#include "kernel/gemm_tile_dp.h"

#include "kernel/gemm_rows/gemm_rows_pairs.h"

void moei_gemm_rows__avx512bf16(const moei_team *team, const moe_gemm_rows_args *args) {
    run_rows(team, args, rows_task);
}
