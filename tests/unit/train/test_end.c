/* test_end.c: where a run ends, what it says of that, and which step its held-out figure is of.
 * Source: docs/run-directory.md.
 */
#include "unit/train/train_fixture.h"

#include <math.h>

/* The last step is its own word; what was over before is said to be. */
static void test_end_is_told(void **state) {
    train_result result = train_run(state, &(train_setup){.dir = "a"});
    train_must(&result);
    assert_string_equal(result.over, "");
    result = train_run(state, &(train_setup){.dir = "a", .resume = true});
    train_must(&result);
    assert_non_null(strstr(result.over, "over; there is nothing to resume"));
}

/* Steps that evaluate: 4, 8 and 12. */
static void test_step_of_evaluation(void **state) {
    train_result result = train_run(state, &(train_setup){.dir = "a", .stop_after = 7});
    train_must_fail(&result, MOE_ERR_INTERRUPTED, "");
    assert_int_equal(result.last.eval_step, 4);
    result = train_run(state, &(train_setup){.dir = "a", .resume = true, .stop_after = 7});
    train_must_fail(&result, MOE_ERR_INTERRUPTED, "");
    assert_int_equal(result.n_steps, 0);
    assert_int_equal(result.last.eval_step, 4);
    result = train_run(state, &(train_setup){.dir = "a", .resume = true});
    train_must(&result);
    assert_int_equal(result.last.eval_step, 12);
}

static void test_clock_ends_a_run(void **state) {
    const char *timed[] = {"train.steps", "1000000000", "train.max_seconds", "1", "train.save_every",
                           "0",           NULL};
    train_result result = train_run(state, &(train_setup){.dir = "a", .pairs = timed});
    train_must(&result);
    assert_true(result.last.elapsed_s >= 1 && result.last.elapsed_s < 5);
    assert_int_equal(result.n_checkpoints, 1);
    assert_true(result.last.lr < 0.01 * 0.2);
    size_t bytes;
    char *metrics = train_read(state, "a/metrics.jsonl", &bytes);
    assert_non_null(strstr(metrics, "\"finished\":true"));
    free(metrics);
    assert_string_equal(result.over, "over, as its time (train.max_seconds 1) has passed");
    assert_int_equal(result.last.eval_step, result.last.step);
    result = train_run(state, &(train_setup){.dir = "a", .pairs = timed, .resume = true});
    train_must(&result);
    assert_int_equal(result.n_steps, 0);
    assert_non_null(
        strstr(result.over, "its time (train.max_seconds 1) has passed; there is nothing to resume"));
    assert_non_null(strstr(result.over, "train.from="));
    assert_true(isnan(result.last.loss)); /* no step was made */
    assert_int_equal(result.last.eval_step, result.last.step);
    timed[3] = "9";
    result = train_run(state, &(train_setup){.dir = "a", .pairs = timed, .resume = true});
    train_must_fail(&result, MOE_ERR_ARGUMENT, "train.from=");
}

#define IN_SCRATCH(test) cmocka_unit_test_setup_teardown(test, scratch_setup, scratch_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        IN_SCRATCH(test_end_is_told),
        IN_SCRATCH(test_step_of_evaluation),
        IN_SCRATCH(test_clock_ends_a_run),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
