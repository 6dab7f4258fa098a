/* peak_avx2.c: multiply-add in registers, f32, AVX2.
 * Shapes and source: peak_simd.h, which is the algorithm.
 */
#include "kernel/simd_avx2.h"

#include "kernel/peak/peak_simd.h"

double moei_peak__avx2(const moei_team *team, int64_t rounds) {
    return peak(team, rounds);
}
