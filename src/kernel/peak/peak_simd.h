/* peak_simd.h: multiply-add in registers as fast as it goes: the ceiling that products are held against.
 * CHAINS independent chains hide the latency of two units. Include after simd_avx2.h or simd_avx512.h.
 * Source: the usual bound of a matrix kernel's inner loop, without its loads.
 */
#ifndef MOEI_PEAK_SIMD_H
#define MOEI_PEAK_SIMD_H

#include "kernel/kernel_list.h"

enum { CHAINS = 12 };

typedef struct peak_job {
    int64_t rounds;
    float seed; /* read at run time, so that nothing of it is known to the compiler */
} peak_job;

static void peak_task(void *arg, int64_t task, void *scratch) {
    const peak_job *job = arg;
    const vf x = vf_set1(job->seed), y = vf_set1(1e-7F * (float)(task + 1));
    vf chain[CHAINS];
    for (int c = 0; c < CHAINS; ++c) chain[c] = vf_set1((float)c);
    for (int64_t i = 0; i < job->rounds; ++i) {
#pragma GCC unroll 12
        for (int c = 0; c < CHAINS; ++c) chain[c] = vf_fma(chain[c], x, y);
    }
    for (int c = 0; c < CHAINS; ++c) vf_store((float *)scratch + c * VF_N, chain[c]);
}

static inline double peak(const moei_team *team, int64_t rounds) {
    peak_job job = {rounds, 0.999999F};
    moei_parallel(team, team->n_threads, peak_task, &job);
    return 2.0 * CHAINS * VF_N * (double)rounds * team->n_threads;
}

#endif
