/* peak_avx512.c: multiply-add in registers, f32, AVX-512.
 * Shapes and source: peak_simd.h, which is the algorithm.
 */
#include "kernel/simd_avx512.h"

#include "kernel/peak/peak_simd.h"

double moei_peak__avx512(const moei_team *team, int64_t rounds) {
    return peak(team, rounds);
}
