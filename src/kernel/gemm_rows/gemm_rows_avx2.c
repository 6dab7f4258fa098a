/* gemm_rows_avx2.c: grouped product over ragged rows, AVX2. Shapes and source: gemm_rows_simd.h. */
#include "kernel/simd_avx2.h"

#include "kernel/gemm_rows/gemm_rows_simd.h"

void moei_gemm_rows__avx2(const moei_team *team, const moe_gemm_rows_args *args) {
    run_rows(team, args, run_linear(team, args), rows_task);
}
