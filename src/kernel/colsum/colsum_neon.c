/* colsum_neon.c: weighted sums of the columns of every group, AArch64 Advanced SIMD. Shapes and source:
 * colsum_simd.h. */
#include "kernel/simd_neon.h"

#include "kernel/colsum/colsum_simd.h"

void moei_colsum__neon(const moei_team *team, const moe_colsum_args *args) {
    colsum_simd(team, args);
}
