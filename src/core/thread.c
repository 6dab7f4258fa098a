/* thread.c: a pool of threads that work when there is work and soon sleep when there is none.
 * A job is n_tasks numbers handed out from one counter, so uneven experts balance themselves.
 * Source: the usual monitor; what is ours is that a job closes without waiting for those who never came.
 */
#define _GNU_SOURCE
#include "core/thread.h"

#include "core/machine.h"
#include "core/timing.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <unistd.h>

/* So long a thread that waits stays awake: about what waking it costs on a virtual machine, longer than the
 * gap between two products of a model, and far shorter than a time slice, so that a busy machine loses little
 * to those who wait. */
static const double awake_seconds = 100e-6;
enum { LOOKS = 256 /* at what is waited for, before one at the clock */ };

typedef struct job {
    moei_task_fn fn;
    void *arg;
    int64_t n_tasks;
    atomic_int_fast64_t next;
} job;

typedef struct worker {
    pthread_t thread;
    moei_pool *pool;
    void *scratch;
} worker;

struct moei_pool {
    pid_t owner; /* the process that started it: a child of fork has the memory, but not the threads */
    pthread_mutex_t lock;
    pthread_cond_t has_work, is_done;
    atomic_uint_fast64_t round; /* counts jobs; a change is the call to work */
    atomic_int active;          /* workers inside the job */
    job *open;                  /* NULL: no job may be joined; under lock */
    int32_t sleeping;           /* under lock */
    bool stop;                  /* under lock */
    int32_t n_workers;
    worker worker[];
};

int32_t moei_thread_cores(void) {
    cpu_set_t set;
    const bool listed = sched_getaffinity(0, sizeof set, &set) == 0;
    const long cores = listed ? CPU_COUNT(&set) : sysconf(_SC_NPROCESSORS_ONLN);
    const int32_t n = cores > 0 ? (int32_t)cores : 1, quota = moei_machine_quota("/sys/fs/cgroup");
    return quota > 0 && quota < n ? quota : n;
}

static void run_tasks(job *j, void *scratch) {
    for (;;) {
        int64_t task = atomic_fetch_add_explicit(&j->next, 1, memory_order_relaxed);
        if (task >= j->n_tasks) return;
        j->fn(j->arg, task, scratch);
    }
}

typedef struct waiting {
    double began;
    int looks;
} waiting;

static waiting start_waiting(void) {
    return (waiting){moei_timing_now(), 0};
}

static bool stays_awake(waiting *w) {
    return ++w->looks % LOOKS != 0 || moei_timing_now() - w->began < awake_seconds;
}

/* Waits until the round is not `seen` any more: first awake, then asleep. */
static void wait_for_round(moei_pool *pool, uint_fast64_t seen) {
    for (waiting w = start_waiting(); stays_awake(&w);)
        if (atomic_load_explicit(&pool->round, memory_order_acquire) != seen) return;
    pthread_mutex_lock(&pool->lock);
    ++pool->sleeping;
    while (atomic_load_explicit(&pool->round, memory_order_relaxed) == seen)
        pthread_cond_wait(&pool->has_work, &pool->lock);
    --pool->sleeping;
    pthread_mutex_unlock(&pool->lock);
}

static void *work(void *arg) {
    worker *self = arg;
    moei_pool *pool = self->pool;
    for (uint_fast64_t seen = 0;;) {
        wait_for_round(pool, seen);
        pthread_mutex_lock(&pool->lock);
        seen = atomic_load_explicit(&pool->round, memory_order_relaxed);
        job *joined = pool->open;
        bool stop = pool->stop;
        if (joined) atomic_fetch_add_explicit(&pool->active, 1, memory_order_relaxed);
        pthread_mutex_unlock(&pool->lock);
        if (stop) return NULL;
        if (!joined) continue; /* came too late: the others have done it */
        run_tasks(joined, self->scratch);
        pthread_mutex_lock(&pool->lock);
        if (atomic_fetch_sub_explicit(&pool->active, 1, memory_order_release) == 1)
            pthread_cond_signal(&pool->is_done);
        pthread_mutex_unlock(&pool->lock);
    }
}

static bool is_owner(const moei_pool *pool) {
    return getpid() == pool->owner;
}

/* In a child of fork nobody joins; and who held the lock, or slept, is not there to go on: then false, or
 * nobody is woken. It costs a look at the process only where others have to be waited for or woken anyway. */
static bool open_job(moei_pool *pool, job *j) {
    if (pthread_mutex_trylock(&pool->lock) != 0) {
        if (!is_owner(pool)) return false;
        pthread_mutex_lock(&pool->lock);
    }
    pool->open = j;
    atomic_fetch_add_explicit(&pool->round, 1, memory_order_release);
    if (pool->sleeping > 0 && is_owner(pool)) pthread_cond_broadcast(&pool->has_work);
    pthread_mutex_unlock(&pool->lock);
    return true;
}

/* No one joins from here on; those inside are waited for. */
static void close_job(moei_pool *pool) {
    pthread_mutex_lock(&pool->lock);
    pool->open = NULL;
    pthread_mutex_unlock(&pool->lock);
    for (waiting w = start_waiting(); stays_awake(&w);)
        if (atomic_load_explicit(&pool->active, memory_order_acquire) == 0) return;
    pthread_mutex_lock(&pool->lock);
    while (atomic_load_explicit(&pool->active, memory_order_acquire) > 0)
        pthread_cond_wait(&pool->is_done, &pool->lock);
    pthread_mutex_unlock(&pool->lock);
}

void moei_parallel(const moei_team *team, int64_t n_tasks, moei_task_fn fn, void *arg) {
    job j = {.fn = fn, .arg = arg, .n_tasks = n_tasks};
    const bool shared = team->pool && n_tasks > 1 && open_job(team->pool, &j);
    run_tasks(&j, team->scratch);
    if (shared) close_job(team->pool);
}

typedef struct blocks {
    moei_block_fn fn;
    void *arg;
    int64_t n, block;
} blocks;

static void block_task(void *arg, int64_t task, void *scratch) {
    const blocks *all = arg;
    const int64_t first = task * all->block, left = all->n - first;
    all->fn(all->arg, first, first + (left < all->block ? left : all->block), scratch);
}

void moei_parallel_blocks(const moei_team *team, int64_t n, int64_t block, moei_block_fn fn, void *arg) {
    blocks all = {fn, arg, n, block};
    moei_parallel(team, (n + block - 1) / block, block_task, &all);
}

size_t moei_pool_bytes(int32_t n_threads) {
    return sizeof(moei_pool) + (size_t)n_threads * sizeof(worker);
}

int32_t moei_pool_start(moei_pool *pool, int32_t n_threads, void *scratch) {
    *pool = (moei_pool){.owner = getpid()};
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->has_work, NULL);
    pthread_cond_init(&pool->is_done, NULL);
    for (int32_t i = 0; i < n_threads - 1; ++i) {
        worker *w = &pool->worker[i];
        *w = (worker){.pool = pool, .scratch = (char *)scratch + (size_t)(i + 1) * MOEI_THREAD_SCRATCH};
        if (pthread_create(&w->thread, NULL, work, w) != 0) break;
        ++pool->n_workers;
    }
    return pool->n_workers + 1;
}

void moei_pool_stop(moei_pool *pool) {
    if (!is_owner(pool)) return;
    pthread_mutex_lock(&pool->lock);
    pool->stop = true;
    atomic_fetch_add_explicit(&pool->round, 1, memory_order_release);
    pthread_cond_broadcast(&pool->has_work);
    pthread_mutex_unlock(&pool->lock);
    for (int32_t i = 0; i < pool->n_workers; ++i) pthread_join(pool->worker[i].thread, NULL);
    pthread_cond_destroy(&pool->is_done);
    pthread_cond_destroy(&pool->has_work);
    pthread_mutex_destroy(&pool->lock);
}
