/* test_layer_cover.c: the covering set of layers itself: every value of every option is in it, and what it
 * holds for refused is refused on every way.
 * Source: tests/support/cover.c.
 */
#include "support/cover.h"

static void every_pair_is_covered_or_refused(void **state) {
    (void)state;
    cover_set set = cover_make(test_seed());
    const int reasons = cover_print_refused(&set);
    fprintf(stderr,
            "%d descriptors cover %lld of %lld feasible pairs of options (%lld pairs refused, %d reasons)\n",
            set.n_problems, (long long)set.n_covered, (long long)set.n_feasible, (long long)set.n_refused,
            reasons);
    assert_int_equal(set.n_covered, set.n_feasible);
    cover_free(&set);
}

static void no_legal_layer_holds_a_refused_pair(void **state) {
    (void)state;
    cover_set set = cover_make(test_seed());
    for (uint64_t i = 0; i < 4000; ++i) {
        cover_problem p;
        char text[COVER_TEXT];
        if (cover_draw(&set, i, &p, text) > 0) fail_msg("a legal layer has %s", text);
    }
    cover_free(&set);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_pair_is_covered_or_refused),
        cmocka_unit_test(no_legal_layer_holds_a_refused_pair),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
