/* gemm_rows_neon.c: grouped product over ragged rows, AArch64 Advanced SIMD. Shapes and source:
 * gemm_rows_simd.h. */
#include "kernel/simd_neon.h"

#include "kernel/gemm_rows/gemm_rows_simd.h"

void moei_gemm_rows__neon(const moei_team *team, const moe_gemm_rows_args *args) {
    run_rows(team, args, run_linear(team, args), rows_task);
}
