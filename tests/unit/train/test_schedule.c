/* test_schedule.c: the learning rate over a run, by steps and by the clock.
 * 1000 steps of which 100 warm up; half-way values worked out by hand.
 * Source: Loshchilov and Hutter 2017 for the cosine.
 */
#define _XOPEN_SOURCE 700 /* nftw */
#include "unit/format/scratch.h"

#include "train/schedule.h"

#include <math.h>

static const moelm_train_config plan = {.steps = 1000, .warmup_steps = 100, .lr = 0.5, .min_lr_ratio = 0.1};

static void assert_near(double a, double b) {
    if (!(fabs(a - b) <= 1e-12)) fail_msg("%.17g is not %.17g", a, b);
}

static void test_shape(void **state) {
    (void)state;
    assert_near(moelm_schedule_lr(&plan, 1, 0), 0.5 / 100);
    assert_near(moelm_schedule_lr(&plan, 50, 0), 0.25);
    assert_near(moelm_schedule_lr(&plan, 100, 0), 0.5);
    assert_near(moelm_schedule_lr(&plan, 550, 0), 0.5 * (0.1 + 0.9 * 0.5)); /* half of the cosine */
    assert_near(moelm_schedule_lr(&plan, 1000, 0), 0.05);
    for (int64_t step = 2; step <= 1000; ++step) {
        double before = moelm_schedule_lr(&plan, step - 1, 0), now = moelm_schedule_lr(&plan, step, 0);
        assert_true(step <= 100 ? now > before : now < before);
    }
}

static void test_without_warmup(void **state) {
    (void)state;
    moelm_train_config train = plan;
    train.warmup_steps = 0;
    assert_near(moelm_schedule_lr(&train, 500, 0), 0.5 * (0.1 + 0.9 * 0.5));
    train.warmup_steps = 5000; /* longer than the run: only ever rises */
    assert_near(moelm_schedule_lr(&train, 1000, 0), 0.5 * 1000 / 5000);
}

/* Without max_seconds the time that passes means nothing. */
static void test_clock_is_off(void **state) {
    (void)state;
    for (int64_t step = 1; step <= 1000; step += 7)
        assert_true(moelm_schedule_lr(&plan, step, 1e9) == moelm_schedule_lr(&plan, step, 0));
}

static void test_clock_runs_ahead(void **state) {
    (void)state;
    moelm_train_config train = plan;
    train.max_seconds = 10;
    assert_near(moelm_schedule_progress(&train, 100, 5), 0.5);
    assert_near(moelm_schedule_progress(&train, 800, 5), 0.8);
    assert_near(moelm_schedule_progress(&train, 10, 11), 1);
    assert_near(moelm_schedule_lr(&train, 200, 10), 0.05);
    assert_near(moelm_schedule_lr(&train, 200, 1), moelm_schedule_lr(&plan, 200, 0));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shape),
        cmocka_unit_test(test_without_warmup),
        cmocka_unit_test(test_clock_is_off),
        cmocka_unit_test(test_clock_runs_ahead),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
