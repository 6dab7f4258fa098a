/* colsum_avx512.c: weighted sums of the columns of every group, AVX-512. Shapes and source: colsum_simd.h. */
#include "kernel/simd_avx512.h"

#include "kernel/colsum/colsum_simd.h"

void moei_colsum__avx512(const moei_team *team, const moe_colsum_args *args) {
    colsum_simd(team, args);
}
