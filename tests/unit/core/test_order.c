/* test_order.c: the n-th largest is what sorting finds, ties or not, at every rank.
 * v[n], rank -> number; the seed is printed.
 */
#include "support/layer_fixture.h"

#include "core/order.h"

enum { MOST = 40 };

static int falling(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

static void it_is_what_sorting_finds(void **state) {
    (void)state;
    for (uint64_t i = 0; i < 400; ++i) {
        double drawn[MOST], sorted[MOST], v[MOST];
        uint32_t word[4];
        const int64_t n = 1 + (int64_t)(i % MOST);
        const uint32_t kinds = i % 3 == 0 ? 3 : 1u << 30; /* few different numbers: many ties */
        for (int64_t j = 0; j < n; ++j) {
            moe_random(test_seed(), MOE_DRAW_TEST, 960, i, (uint64_t)j, word);
            drawn[j] = (double)(word[0] % kinds) - (double)(kinds / 2);
        }
        memcpy(sorted, drawn, sizeof sorted);
        qsort(sorted, (size_t)n, sizeof *sorted, falling);
        for (int64_t rank = 0; rank < n; ++rank) {
            memcpy(v, drawn, sizeof v);
            assert_true(moei_nth_largest(v, n, rank) == sorted[rank]);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_is_what_sorting_finds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
