/* act_pass_avx512.c: activations as a pass of their own, AVX-512.
 * Shapes and source: act_pass_simd.h, which is the algorithm.
 */
#include "kernel/simd_avx512.h"

#include "kernel/act_pass/act_pass_simd.h"

void moei_act_pass__avx512(const moei_team *team, const moei_act_pass_args *args) {
    act_pass(team, args, forward_task);
}

void moei_act_pass_grad__avx512(const moei_team *team, const moei_act_pass_args *args) {
    act_pass(team, args, backward_task);
}
