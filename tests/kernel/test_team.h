/* test_team.h: teams of threads for kernel tests. Threads and scratch of a size live as long as the program:
 * starting them for every case would take most of a sanitizer's time. Scratch is of that size exactly, so
 * that an address sanitizer sees its end.
 */
#ifndef TEST_TEAM_H
#define TEST_TEAM_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "core/thread.h"

enum { TEST_THREADS = 4 };

/* A team whose scratch is full of NaN. It is nobody's to free; the next one of its size takes it over. */
static inline moei_team test_team(int32_t n_threads) {
    static moei_team teams[TEST_THREADS + 1];
    assert_in_range(n_threads, 1, TEST_THREADS);
    moei_team *team = &teams[n_threads];
    const size_t bytes = (size_t)n_threads * MOEI_THREAD_SCRATCH;
    if (!team->pool) {
        team->n_threads = n_threads;
        team->scratch = aligned_alloc(64, bytes);
        assert_non_null(team->scratch);
        team->pool = malloc(moei_pool_bytes(n_threads));
        assert_non_null(team->pool);
        assert_int_equal(moei_pool_start(team->pool, n_threads, team->scratch), n_threads);
    }
    memset(team->scratch, 0xff, bytes);
    return *team;
}

#endif
