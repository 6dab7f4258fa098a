/* test_thread.c: the parallel loop: every task once, own scratch, any number of threads, contexts of tasks;
 * what a fork leaves of it. Counts are exact; no timing.
 * Source: moekit/expert.h; core/thread.h.
 */
#define _GNU_SOURCE
#include "support/layer_fixture.h"

#include <sys/wait.h>
#include <unistd.h>

typedef struct job {
    int32_t ran[1000];
    size_t scratch_bytes;
} job;

static void count_task(void *arg, int64_t task, void *scratch) {
    job *j = arg;
    ++j->ran[task]; /* a task that ran twice at once would race; the thread sanitizer watches */
    unsigned char *mine = scratch; /* a byte a page, to its last one */
    for (size_t i = 4095; i < j->scratch_bytes; i += 4096) mine[i] = (unsigned char)task;
    for (size_t i = 4095; i < j->scratch_bytes; i += 4096)
        if (mine[i] != (unsigned char)task) j->ran[task] = -1000; /* somebody else's too */
}

static void every_task_runs_once(void **state) {
    (void)state;
    static const int64_t counts[] = {0, 1, 2, 3, 999, 1000};
    for (int32_t threads = 1; threads <= 5; ++threads) {
        moe_ctx *ctx = test_ctx(NULL, threads);
        assert_int_equal(moe_ctx_threads(ctx), threads);
        for (size_t c = 0; c < sizeof counts / sizeof *counts; ++c) {
            job j = {.scratch_bytes = moe_thread_scratch_bytes()};
            moe_parallel(ctx, counts[c], count_task, &j);
            for (int64_t t = 0; t < 1000; ++t) assert_int_equal(j.ran[t], t < counts[c]);
        }
        moe_ctx_destroy(ctx);
    }
}

/* A task may have a context of its own, and loops there; what it counted stands in the outer job. */
static void loop_in_a_task(void *arg, int64_t task, void *scratch) {
    (void)scratch;
    job *outer = arg, inner = {.scratch_bytes = 4096};
    const moe_ctx_desc desc = {.size = sizeof desc, .n_threads = 1 + (int32_t)(task % 3)};
    moe_ctx *ctx = NULL;
    if (moe_ctx_create(&desc, &ctx, NULL) != MOE_OK) return;
    moe_parallel(ctx, 100, count_task, &inner);
    for (int t = 0; t < 100; ++t) outer->ran[task] += inner.ran[t];
    moe_ctx_destroy(ctx);
}

static void tasks_may_have_contexts(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 3);
    job j = {.scratch_bytes = 0};
    moe_parallel(ctx, 12, loop_in_a_task, &j);
    for (int t = 0; t < 12; ++t) assert_int_equal(j.ran[t], 100);
    moe_ctx_destroy(ctx);
}

static void the_environment_is_read(void **state) {
    (void)state;
    moe_ctx *ctx = NULL;
    moe_error error;
    moe_ctx_desc desc = {.size = sizeof desc};
    setenv("MOEKIT_NUM_THREADS", "3", 1);
    setenv("MOEKIT_ISA", "ref", 1);
    assert_int_equal(moe_ctx_create(&desc, &ctx, &error), MOE_OK);
    assert_int_equal(moe_ctx_threads(ctx), 3);
    assert_string_equal(moe_ctx_isa(ctx), "ref");
    assert_string_equal(moe_ctx_kernel(ctx, "gemm_rows"), "gemm_rows__ref");
    assert_null(moe_ctx_kernel(ctx, "gemm_columns"));
    moe_ctx_destroy(ctx);
    desc.n_threads = 2; /* the descriptor wins */
    assert_int_equal(moe_ctx_create(&desc, &ctx, &error), MOE_OK);
    assert_int_equal(moe_ctx_threads(ctx), 2);
    moe_ctx_destroy(ctx);
    desc.n_threads = 0;
    setenv("MOEKIT_NUM_THREADS", "many", 1);
    assert_int_equal(moe_ctx_create(&desc, &ctx, &error), MOE_ERR_ARGUMENT);
    assert_non_null(strstr(error.text, "MOEKIT_NUM_THREADS"));
    unsetenv("MOEKIT_NUM_THREADS");
    setenv("MOEKIT_ISA", "sse9", 1);
    assert_int_equal(moe_ctx_create(&desc, &ctx, &error), MOE_ERR_ARGUMENT);
    unsetenv("MOEKIT_ISA");
}

/* --- a child of fork has the memory of a team, but only one of its threads --- */

static int64_t sum_of(moe_ctx *ctx) {
    static job j;
    int64_t ran = 0;
    memset(&j, 0, sizeof j);
    moe_parallel(ctx, 1000, count_task, &j);
    for (int64_t t = 0; t < 1000; ++t) ran += j.ran[t];
    return ran;
}

static int child(moe_ctx *ctx) {
    alarm(20); /* a child that waits for threads that are not there */
    for (int i = 0; i < 20; ++i)
        if (sum_of(ctx) != 1000) return 1;
    moe_ctx_destroy(ctx);
    return 0;
}

static void a_child_of_fork_goes_on_alone(void **state) {
    (void)state;
    static const useconds_t pauses[] = {0, 0, 10, 2000}; /* the others are awake, half asleep, asleep */
    moe_ctx *ctx = test_ctx(NULL, 4);
    for (size_t i = 0; i < sizeof pauses / sizeof *pauses; ++i) {
        int status = -1;
        assert_int_equal(sum_of(ctx), 1000);
        if (pauses[i] > 0) usleep(pauses[i]);
        const pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) _exit(child(ctx));
        assert_int_equal(waitpid(pid, &status, 0), pid);
        if (status != 0) fail_msg("the child ended with signal %d, exit code %d", status & 127, status >> 8);
    }
    assert_int_equal(sum_of(ctx), 1000);
    moe_ctx_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_task_runs_once),
        cmocka_unit_test(tasks_may_have_contexts),
        cmocka_unit_test(the_environment_is_read),
        cmocka_unit_test(a_child_of_fork_goes_on_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
