/* peak_ref.c: multiply and add in scalar registers, f64: the ceiling of the reference kernels.
 * Source: peak_simd.h, one number at a time.
 */
#include "kernel/kernel_list.h"

enum { CHAINS = 12 };

typedef struct peak_job {
    int64_t rounds;
    double seed; /* read at run time, so that nothing of it is known to the compiler */
} peak_job;

static void peak_task(void *arg, int64_t task, void *scratch) {
    const peak_job *job = arg;
    const double x = job->seed, y = 1e-7 * (double)(task + 1);
    double chain[CHAINS];
    for (int c = 0; c < CHAINS; ++c) chain[c] = c;
    for (int64_t i = 0; i < job->rounds; ++i)
        for (int c = 0; c < CHAINS; ++c) chain[c] = chain[c] * x + y;
    for (int c = 0; c < CHAINS; ++c) ((double *)scratch)[c] = chain[c];
}

double moei_peak__ref(const moei_team *team, int64_t rounds) {
    peak_job job = {rounds, 0.999999};
    moei_parallel(team, team->n_threads, peak_task, &job);
    return 2.0 * CHAINS * (double)rounds * team->n_threads;
}
