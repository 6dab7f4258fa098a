/* gather_sum_neon.c: weighted sum of the rows of every token, AArch64 Advanced SIMD. Shapes and source:
 * gather_sum_simd.h. */
#include "kernel/simd_neon.h"

#include "kernel/gather_sum/gather_sum_simd.h"

void moei_gather_sum__neon(const moei_team *team, const moe_gather_sum_args *args) {
    gather_sum_simd(team, args);
}
