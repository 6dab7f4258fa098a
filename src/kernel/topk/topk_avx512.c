/* topk_avx512.c: scores, the K best experts of every token, and their gradient, AVX-512. Shapes and source:
 * topk_simd.h. */
#include "kernel/simd_avx512.h"

#include "kernel/topk/topk_simd.h"

void moei_topk__avx512(const moei_team *team, const moei_topk_args *args) {
    topk_simd(team, args);
}

void moei_topk_grad__avx512(const moei_team *team, const moei_topk_grad_args *args) {
    topk_grad_simd(team, args);
}
