/* test_entropy.c: entropy and mutual information from counts, against known distributions.
 * count[n], count[rows,cols] -> bits; tables whose answer is a whole number of bits.
 * Source: Miller 1955 for the correction of a finite sample's bias.
 */
#define _XOPEN_SOURCE 700 /* nftw */
#include "unit/format/scratch.h"

#include "train/entropy.h"

#include <math.h>

static void assert_near(double a, double b, double tolerance) {
    if (!(fabs(a - b) <= tolerance)) fail_msg("%.6f is not within %g of %.6f", a, tolerance, b);
}

static void test_known_values(void **state) {
    (void)state;
    const uint64_t even[8] = {1000000, 1000000, 1000000, 1000000, 1000000, 1000000, 1000000, 1000000};
    assert_near(moelm_entropy_bits(even, 8), 3, 1e-5);
    const uint64_t one[4] = {0, 500, 0, 0};
    assert_true(moelm_entropy_bits(one, 4) == 0);
    const uint64_t none[4] = {0};
    assert_true(moelm_entropy_bits(none, 4) == 0 && moelm_mutual_bits(none, 2, 2) == 0);
    /* the column tells the row: all of its two bits */
    const uint64_t tells[16] = {1000000, 0, 0, 0, 0, 1000000, 0, 0, 0, 0, 1000000, 0, 0, 0, 0, 1000000};
    assert_near(moelm_mutual_bits(tells, 4, 4), 2, 1e-5);
}

/* Few draws of independent variables look dependent; the correction takes that back. */
static void test_bias_is_corrected(void **state) {
    (void)state;
    enum { ROWS = 8, COLS = 64, DRAWS = 20000, ROUNDS = 20 };
    uint64_t seed = 7;
    double plain = 0, corrected = 0;
    for (int round = 0; round < ROUNDS; ++round) {
        uint64_t joint[ROWS * COLS] = {0}, row[ROWS] = {0}, col[COLS] = {0};
        for (int i = 0; i < DRAWS; ++i) {
            uint64_t r = scratch_random(&seed) % ROWS, c = scratch_random(&seed) % COLS;
            joint[r * COLS + c]++;
            row[r]++;
            col[c]++;
        }
        for (int i = 0; i < ROWS * COLS; ++i) {
            double p = (double)joint[i] / DRAWS, q = (double)row[i / COLS] * (double)col[i % COLS];
            if (joint[i]) plain += p * log2(p * DRAWS * DRAWS / q) / ROUNDS;
        }
        corrected += moelm_mutual_bits(joint, ROWS, COLS) / ROUNDS;
    }
    assert_true(plain > 0.012);
    assert_true(corrected < 0.002);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_values),
        cmocka_unit_test(test_bias_is_corrected),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
