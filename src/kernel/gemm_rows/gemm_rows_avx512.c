/* gemm_rows_avx512.c: grouped product over ragged rows, AVX-512. Shapes and source: gemm_rows_simd.h. */
#include "kernel/simd_avx512.h"

#include "kernel/gemm_rows/gemm_rows_simd.h"

void moei_gemm_rows__avx512(const moei_team *team, const moe_gemm_rows_args *args) {
    run_rows(team, args, run_linear(team, args), rows_task);
}
