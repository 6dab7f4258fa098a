/* adamw_avx2.c: one AdamW step, f32, AVX2 + FMA.
 * Shapes and source: adamw_simd.h, which is the algorithm.
 */
#include "kernel/simd_avx2.h"

#include "kernel/adamw/adamw_simd.h"

void moei_adamw__avx2(const moei_team *team, const moe_adamw_args *args) {
    adamw_update(team, args);
}
