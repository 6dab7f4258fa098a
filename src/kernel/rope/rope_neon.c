/* rope_neon.c: rotary position embedding, f32, AArch64 Advanced SIMD.
 * Shapes and source: rope_simd.h, which is the algorithm.
 */
#include "kernel/simd_neon.h"

#include "kernel/rope/rope_simd.h"

void moei_rope__neon(const moei_team *team, const moe_rope_args *args) {
    rope_turn(team, args);
}
