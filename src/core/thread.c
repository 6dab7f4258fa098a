/* thread.c: the one parallel loop of the library.
 * Tasks are handed out one at a time, so uneven experts balance themselves.
 * Source: OpenMP 4.5; without it the loop runs on the calling thread.
 */
#define _GNU_SOURCE
#include "core/thread.h"

#include <sched.h>
#include <unistd.h>

int32_t moei_thread_cores(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return (int32_t)CPU_COUNT(&set);
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int32_t)n : 1;
}

static void run_slice(const moei_team *team, int64_t n_tasks, moei_task_fn fn, void *arg, int64_t *next,
                      int32_t thread) {
    char *scratch = (char *)team->scratch + (size_t)thread * MOEI_THREAD_SCRATCH;
    for (;;) {
        int64_t task = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
        if (task >= n_tasks) return;
        fn(arg, task, scratch);
    }
}

void moei_parallel(const moei_team *team, int64_t n_tasks, moei_task_fn fn, void *arg) {
    int64_t next = 0;
    int32_t threads = n_tasks < team->n_threads ? (int32_t)n_tasks : team->n_threads;
    if (threads <= 1) {
        run_slice(team, n_tasks, fn, arg, &next, 0);
        return;
    }
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int32_t thread = 0; thread < threads; ++thread) run_slice(team, n_tasks, fn, arg, &next, thread);
}
