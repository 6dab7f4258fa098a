/* thread.h: a team of threads and the one loop that uses it. Tasks are numbered, run in any order, and
 * own what they write; so results do not depend on the number of threads. OpenMP underneath, or a
 * plain loop where the compiler has none.
 */
#ifndef MOEI_THREAD_H
#define MOEI_THREAD_H

#include <stddef.h>
#include <stdint.h>

/* Scratch of one thread: room for the packed blocks of a matrix product. */
enum { MOEI_THREAD_SCRATCH = 2 << 20 };

typedef struct moei_team {
    int32_t n_threads;
    void *scratch; /* [n_threads * MOEI_THREAD_SCRATCH], 64-byte aligned */
} moei_team;

typedef void (*moei_task_fn)(void *arg, int64_t task, void *scratch);
void moei_parallel(const moei_team *team, int64_t n_tasks, moei_task_fn fn, void *arg);

/* Threads of this machine: cores in the process's affinity mask. */
int32_t moei_thread_cores(void);

#endif
