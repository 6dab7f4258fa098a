/* peak_neon.c: multiply-add in registers, f32, AArch64 Advanced SIMD.
 * Shapes and source: peak_simd.h, which is the algorithm.
 */
#include "kernel/simd_neon.h"

#include "kernel/peak/peak_simd.h"

double moei_peak__neon(const moei_team *team, int64_t rounds) {
    return peak(team, rounds);
}
