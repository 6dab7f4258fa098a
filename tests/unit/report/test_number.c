/* test_number.c: numbers as text: known texts, what is no number, and reading back what was written.
 * Doubles are drawn by their bits, so all sizes are met.
 * Source: report/html.h.
 */
#define _GNU_SOURCE
#include "unit/format/scratch.h"

#include "report/html.h"

#include <math.h>

static void test_known_texts(void **state) {
    (void)state;
    assert_string_equal(moelm_fixed(1.5, 2).s, "1.50");
    assert_string_equal(moelm_fixed(-0.004, 2).s, "0.00"); /* never a minus before zero */
    assert_string_equal(moelm_fixed(-2.346, 2).s, "\xe2\x88\x92"
                                                  "2.35");
    assert_string_equal(moelm_fixed(0.95, 0).s, "1");
    assert_string_equal(moelm_coord(-0.04).s, "0");
    assert_string_equal(moelm_coord(-1.25).s, "-1.3");
    assert_string_equal(moelm_coord(12).s, "12");
    assert_string_equal(moelm_digits(0.01234, 3).s, "0.0123");
    assert_string_equal(moelm_digits(0.9996, 3).s, "1.00");
    assert_string_equal(moelm_digits(0.9994, 3).s, "0.999");
    assert_string_equal(moelm_digits(123456, 3).s, "123,456");
    assert_string_equal(moelm_digits(1.2e-5, 2).s, "1.2e\xe2\x88\x92"
                                                   "5");
    assert_string_equal(moelm_digits(5e-324, 1).s, "5e\xe2\x88\x92"
                                                   "324");
    assert_string_equal(moelm_short(1638400).s, "1.64\xc2\xa0M");
    assert_string_equal(moelm_short(999.9e3).s, "1.00\xc2\xa0M");
    assert_string_equal(moelm_short(312).s, "312");
    assert_string_equal(moelm_count(-1234567).s, "-1,234,567");
    assert_string_equal(moelm_count(INT64_MIN).s, "-9,223,372,036,854,775,808");
    assert_string_equal(moelm_percent(0.125, 1).s, "12.5\xc2\xa0%");
    assert_string_equal(moelm_duration(59.6).s, "1\xc2\xa0min 0\xc2\xa0s");
    assert_string_equal(moelm_duration(7260).s, "2\xc2\xa0h 1\xc2\xa0min");
}

static void test_what_is_no_number(void **state) {
    (void)state;
    const double odd[] = {NAN, INFINITY, -INFINITY, 1e300};
    for (size_t i = 0; i < sizeof odd / sizeof *odd; ++i) {
        assert_string_equal(moelm_fixed(odd[i], 2).s, "\xe2\x80\x93");
        assert_string_equal(moelm_digits(odd[i], 3).s, "\xe2\x80\x93");
    }
    assert_string_equal(moelm_duration(-1).s, "\xe2\x80\x93");
    assert_string_equal(moelm_coord(NAN).s, "0");
}

/* What is written reads back within half a unit of its last place. */
static void test_reads_back(void **state) {
    (void)state;
    uint64_t seed = 11;
    for (int i = 0; i < 100000; ++i) {
        double value = ldexp((double)(int64_t)scratch_random(&seed), -63) *
                       pow(10, (int)(scratch_random(&seed) % 12) - 3);
        int decimals = (int)(scratch_random(&seed) % 6);
        moelm_report_text text = moelm_fixed(value, decimals);
        const char *digits = text.s;
        if ((unsigned char)digits[0] == 0xe2) digits += 3;
        double back = strtod(digits, NULL) * (digits == text.s ? 1 : -1);
        if (fabs(back - value) > 0.5001 * pow(10, -decimals) + 1e-14 * fabs(value))
            fail_msg("%.17g became %s", value, text.s);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_texts),
        cmocka_unit_test(test_what_is_no_number),
        cmocka_unit_test(test_reads_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
