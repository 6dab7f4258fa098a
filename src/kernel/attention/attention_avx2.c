/* attention_avx2.c: causal grouped-query attention, f32, AVX2 + FMA.
 * Shapes and source: attention_simd.h, which is the algorithm.
 */
#include "kernel/simd_avx2.h"

#include "kernel/attention/attention_simd.h"

void moei_attention__avx2(const moei_team *team, const moe_attention_args *args) {
    attention_forward(team, args);
}

void moei_attention_backward__avx2(const moei_team *team, const moe_attention_args *args) {
    attention_backward(team, args);
}
