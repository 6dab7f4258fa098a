/* attention_neon.c: causal grouped-query attention, f32, AArch64 Advanced SIMD.
 * Shapes and source: attention_simd.h, which is the algorithm.
 */
#include "kernel/simd_neon.h"

#include "kernel/attention/attention_simd.h"

void moei_attention__neon(const moei_team *team, const moe_attention_args *args) {
    attention_forward(team, args);
}

void moei_attention_backward__neon(const moei_team *team, const moe_attention_args *args) {
    attention_backward(team, args);
}
