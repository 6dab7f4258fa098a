/* adamw_neon.c: one AdamW step, f32, AArch64 Advanced SIMD.
 * Shapes and source: adamw_simd.h, which is the algorithm.
 */
#include "kernel/simd_neon.h"

#include "kernel/adamw/adamw_simd.h"

void moei_adamw__neon(const moei_team *team, const moe_adamw_args *args) {
    adamw_update(team, args);
}
