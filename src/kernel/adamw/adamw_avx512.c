/* adamw_avx512.c: one AdamW step, f32, AVX-512.
 * Shapes and source: adamw_simd.h, which is the algorithm.
 */
#include "kernel/simd_avx512.h"

#include "kernel/adamw/adamw_simd.h"

void moei_adamw__avx512(const moei_team *team, const moe_adamw_args *args) {
    adamw_update(team, args);
}
