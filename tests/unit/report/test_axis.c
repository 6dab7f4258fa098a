/* test_axis.c: ticks are round, in order, inside the axis, and neither too few nor too many.
 * Ranges are drawn over twelve powers of ten, besides those worked out by hand.
 * Source: report/svg.h.
 */
#define _GNU_SOURCE
#include "unit/format/scratch.h"

#include "report/svg.h"

#include <math.h>

static double random_size(uint64_t *seed) {
    return pow(10, (double)(scratch_random(seed) % 12000) / 1000 - 6);
}

static bool is_round(double tick, const double *mantissa, int n) {
    double part = tick / pow(10, floor(log10(fabs(tick)) + 1e-9));
    for (int i = 0; i < n; ++i) {
        if (fabs(fabs(part) - mantissa[i]) < 1e-6) return true;
    }
    return false;
}

static void assert_in_order(const moelm_axis *axis) {
    assert_true(axis->n_ticks <= MOELM_MAX_TICKS);
    for (int i = 0; i < axis->n_ticks; ++i) {
        double place = moelm_axis_place(axis, axis->tick[i]);
        assert_true(place >= -1e-6 && place <= 1 + 1e-6);
        assert_true(i == 0 || axis->tick[i] > axis->tick[i - 1]);
    }
}

static void test_linear(void **state) {
    (void)state;
    static const double steps[] = {1, 2, 5};
    uint64_t seed = 3;
    for (int i = 0; i < 20000; ++i) {
        double low = random_size(&seed) * (i % 3 - 1), high = low + random_size(&seed);
        unsigned flags = (unsigned)(scratch_random(&seed) % 2); /* tight or not */
        moelm_axis axis = moelm_axis_linear(low, high, flags);
        assert_in_order(&axis);
        if (high - low < 1e-6 * fabs(high)) continue; /* the steps drown in rounding */
        if (axis.n_ticks < 2) fail_msg("%d ticks for %.17g .. %.17g", axis.n_ticks, low, high);
        double step = axis.tick[1] - axis.tick[0];
        assert_true(is_round(step, steps, 3));
        assert_true(axis.min <= low + 1e-6 * step && axis.max >= high - 1e-6 * step);
    }
}

static void test_logarithmic(void **state) {
    (void)state;
    static const double mantissas[] = {1, 1.5, 2, 3, 4, 5, 6, 8, 10};
    uint64_t seed = 5;
    for (int i = 0; i < 20000; ++i) {
        double low = random_size(&seed), high = low * (2.5 + random_size(&seed));
        moelm_axis axis = moelm_axis_log(low, high);
        assert_in_order(&axis);
        if (axis.n_ticks < 2) fail_msg("%d ticks for %.17g .. %.17g", axis.n_ticks, low, high);
        for (int t = 0; t < axis.n_ticks; ++t) assert_true(is_round(axis.tick[t], mantissas, 9));
        assert_true(moelm_axis_place(&axis, low) >= 0 && moelm_axis_place(&axis, high) <= 1);
    }
}

/* The number that an end is near to is on the axis: a curve that ends at 2.1 ends by a 2. */
static void test_ends_have_numbers(void **state) {
    (void)state;
    const double end[][4] = {
        {2.1, 6,    2,   6  },
        {2.5, 6,    3,   6  }, /* neither 2 nor 3 is near, and half the picture is not left empty */
        {1.6, 5.6,  1.5, 6  },
        {1.2, 9.5,  1.5, 10 },
        {2.1, 90.0, 2,   100}
    };
    for (size_t i = 0; i < sizeof end / sizeof *end; ++i) {
        const moelm_axis axis = moelm_axis_log(end[i][0], end[i][1]);
        assert_in_order(&axis);
        assert_true(fabs(axis.tick[0] - end[i][2]) < 1e-9);
        assert_true(fabs(axis.tick[axis.n_ticks - 1] - end[i][3]) < 1e-9);
    }
}

static void test_odd_ranges(void **state) {
    (void)state;
    const double range[][2] = {
        {0,        0        },
        {3,        3        },
        {-2,       -2       },
        {NAN,      1        },
        {INFINITY, -INFINITY},
        {1,        1 + 1e-15}
    };
    for (size_t i = 0; i < sizeof range / sizeof *range; ++i) {
        moelm_axis axis = moelm_axis_linear(range[i][0], range[i][1], 0);
        assert_in_order(&axis);
        assert_true(axis.max > axis.min && axis.n_ticks >= 2);
    }
    moelm_axis whole = moelm_axis_linear(0, 1, MOELM_AXIS_WHOLE);
    assert_int_equal(whole.n_ticks, 2);
}

static void test_labels(void **state) {
    (void)state;
    moelm_axis axis = moelm_axis_linear(0, 1, 0);
    assert_string_equal(moelm_tick(&axis, 0).s, "0.0");
    assert_string_equal(moelm_tick(&axis, axis.n_ticks - 1).s, "1.0");
    axis = moelm_axis_linear(0, 0.04, MOELM_AXIS_PERCENT);
    assert_string_equal(moelm_tick(&axis, axis.n_ticks - 1).s, "4\xc2\xa0%");
    axis = moelm_axis_linear(0, 60000, 0);
    assert_string_equal(moelm_tick(&axis, axis.n_ticks - 1).s, "60.0\xc2\xa0k");
    axis = moelm_axis_log(1.4, 9);
    assert_string_equal(moelm_tick(&axis, 0).s, "1.5");
    assert_string_equal(moelm_tick(&axis, 1).s, "2");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linear),
        cmocka_unit_test(test_logarithmic),
        cmocka_unit_test(test_ends_have_numbers),
        cmocka_unit_test(test_odd_ranges),
        cmocka_unit_test(test_labels),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
