/* gather_sum_avx512.c: weighted sum of the rows of every token, AVX-512. Shapes and source:
 * gather_sum_simd.h. */
#include "kernel/simd_avx512.h"

#include "kernel/gather_sum/gather_sum_simd.h"

void moei_gather_sum__avx512(const moei_team *team, const moe_gather_sum_args *args) {
    gather_sum_simd(team, args);
}
