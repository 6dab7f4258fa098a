/* colsum_avx2.c: weighted sums of the columns of every group, AVX2. Shapes and source: colsum_simd.h. */
#include "kernel/simd_avx2.h"

#include "kernel/colsum/colsum_simd.h"

void moei_colsum__avx2(const moei_team *team, const moe_colsum_args *args) {
    colsum_simd(team, args);
}
