/* topk_neon.c: scores, the K best experts of every token, and their gradient, AArch64 Advanced SIMD. Shapes
 * and source: topk_simd.h. */
#include "kernel/simd_neon.h"

#include "kernel/topk/topk_simd.h"

void moei_topk__neon(const moei_team *team, const moei_topk_args *args) {
    topk_simd(team, args);
}

void moei_topk_grad__neon(const moei_team *team, const moei_topk_grad_args *args) {
    topk_grad_simd(team, args);
}
