/* rope_avx2.c: rotary position embedding, f32, AVX2 + FMA.
 * Shapes and source: rope_simd.h, which is the algorithm.
 */
#include "kernel/simd_avx2.h"

#include "kernel/rope/rope_simd.h"

void moei_rope__avx2(const moei_team *team, const moe_rope_args *args) {
    rope_turn(team, args);
}
