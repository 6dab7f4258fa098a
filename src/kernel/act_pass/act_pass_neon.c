/* act_pass_neon.c: activations as a pass of their own, AArch64 Advanced SIMD.
 * Shapes and source: act_pass_simd.h, which is the algorithm.
 */
#include "kernel/simd_neon.h"

#include "kernel/act_pass/act_pass_simd.h"

void moei_act_pass__neon(const moei_team *team, const moei_act_pass_args *args) {
    act_pass(team, args, forward_task);
}

void moei_act_pass_grad__neon(const moei_team *team, const moei_act_pass_args *args) {
    act_pass(team, args, backward_task);
}
