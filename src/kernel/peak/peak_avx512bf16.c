/* peak_avx512bf16.c: bf16 dot products in registers, AVX-512: 32 multiply-adds an instruction.
 * Twelve independent chains hide the latency of two units. Source: peak_simd.h.
 */
#include "kernel/simd_avx512.h"

#include "kernel/kernel_list.h"

enum { CHAINS = 12 };

static void peak_task(void *arg, int64_t task, void *scratch) {
    const int64_t rounds = *(const int64_t *)arg;
    const __m512bh x = (__m512bh)_mm512_set1_epi16(0x3f7f), y = (__m512bh)_mm512_set1_epi16((int16_t)task);
    vf chain[CHAINS];
    for (int c = 0; c < CHAINS; ++c) chain[c] = vf_set1((float)c);
    for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
        for (int c = 0; c < CHAINS; ++c) chain[c] = _mm512_dpbf16_ps(chain[c], x, y);
    }
    for (int c = 0; c < CHAINS; ++c) vf_store((float *)scratch + c * VF_N, chain[c]);
}

double moei_peak__avx512bf16(const moei_team *team, int64_t rounds) {
    moei_parallel(team, team->n_threads, peak_task, &rounds);
    return 2.0 * CHAINS * 32 * (double)rounds * team->n_threads;
}
