/* rope_avx512.c: rotary position embedding, f32, AVX-512.
 * Shapes and source: rope_simd.h, which is the algorithm.
 */
#include "kernel/simd_avx512.h"

#include "kernel/rope/rope_simd.h"

void moei_rope__avx512(const moei_team *team, const moe_rope_args *args) {
    rope_turn(team, args);
}
