/* thread.h: a team of threads and the one loop that uses it. Tasks are numbered, run in any order, and
 * own what they write; so results do not depend on the number of threads. A thread that is not there in
 * time (the machine is busy) is not waited for: the others do its tasks.
 */
#ifndef MOEI_THREAD_H
#define MOEI_THREAD_H

#include <stddef.h>
#include <stdint.h>

/* Scratch of one thread: room for the packed blocks of a matrix product. */
enum { MOEI_THREAD_SCRATCH = 2 << 20 };

typedef struct moei_pool moei_pool;

typedef struct moei_team {
    int32_t n_threads;
    void *scratch;   /* [n_threads * MOEI_THREAD_SCRATCH], 64-byte aligned */
    moei_pool *pool; /* the other n_threads - 1; NULL: none */
    void *stream;    /* what the kernels of another device queue on; NULL on the CPU */
    /* Of its large kernels where smaller ones are queued beside them: multiprocessors that they leave to
     * those, and their launch priority, which the caller's stream may not have. */
    int32_t spare, urgency;
    void *encode; /* of a CUDA GPU: the driver's cuTensorMapEncodeTiled; NULL: it has none */
} moei_team;

typedef void (*moei_task_fn)(void *arg, int64_t task, void *scratch);
/* Runs fn(arg, 0 .. n_tasks-1, scratch of the thread); returns when all have run. Not from inside a task. */
void moei_parallel(const moei_team *team, int64_t n_tasks, moei_task_fn fn, void *arg);

/* The same where a number is too little work for a task: fn takes numbers first .. end-1, up to `block` of
 * 0 .. n-1 and beginning at a multiple of it. */
typedef void (*moei_block_fn)(void *arg, int64_t first, int64_t end, void *scratch);
void moei_parallel_blocks(const moei_team *team, int64_t n, int64_t block, moei_block_fn fn, void *arg);

/* Threads that this machine lets the process run at once: cores in its affinity mask, and no more than the
 * time that its container leaves it (the control group at /sys/fs/cgroup; one further down, as of a service
 * of systemd, is not looked for). */
int32_t moei_thread_cores(void);

size_t moei_pool_bytes(int32_t n_threads);
/* Starts n_threads - 1 threads in `memory` (moei_pool_bytes). The system may refuse some: returns how many
 * threads the team has, the caller's included. */
int32_t moei_pool_start(moei_pool *memory, int32_t n_threads, void *scratch);
/* In a child of fork, which has none of the threads, it does nothing. */
void moei_pool_stop(moei_pool *pool);

#endif
