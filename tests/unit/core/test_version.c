/* test_version.c: what the library says of itself: its version in both forms, a name of its own for each
 * status, sizes of number types. Source: moekit/moe.h.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <moekit/moe.h>

#include <stdio.h>
#include <string.h>

static void a_version_is_its_parts(void **state) {
    (void)state;
    char text[40];
    snprintf(text, sizeof text, "%d.%d.%d", MOE_VERSION_MAJOR, MOE_VERSION_MINOR, MOE_VERSION_PATCH);
    assert_string_equal(moe_version_string(), text);
    assert_int_equal(moe_version(), MOE_VERSION_NUMBER);
}

/* Exit codes of the command too, so what has no meaning yet must say so. */
static void every_status_has_a_name_of_its_own(void **state) {
    (void)state;
    static const moe_status statuses[] = {
        MOE_OK,          MOE_ERR_IO,       MOE_ERR_ARGUMENT,   MOE_ERR_INPUT,       MOE_ERR_MEMORY,
        MOE_ERR_NUMERIC, MOE_ERR_COMM,     MOE_ERR_ALARM,      MOE_ERR_UNSUPPORTED, MOE_ERR_STATE,
        MOE_ERR_DEVICE,  MOE_ERR_INTERNAL, MOE_ERR_INTERRUPTED};
    enum { COUNT = sizeof statuses / sizeof *statuses };
    for (int i = 0; i < COUNT; ++i) {
        const char *name = moe_status_name(statuses[i]);
        assert_string_not_equal(name, "unknown");
        assert_int_equal(strspn(name, "abcdefghijklmnopqrstuvwxyz"), strlen(name));
        for (int j = 0; j < i; ++j) assert_string_not_equal(name, moe_status_name(statuses[j]));
    }
    assert_string_equal(moe_status_name((moe_status)12), "unknown");
    assert_string_equal(moe_status_name((moe_status)-1), "unknown");
}

static void number_types_have_their_sizes(void **state) {
    (void)state;
    assert_int_equal(moe_dtype_bytes(MOE_F32), 4);
    assert_int_equal(moe_dtype_bytes(MOE_F64), 8);
    assert_int_equal(moe_dtype_bytes(MOE_BF16), 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_version_is_its_parts),
        cmocka_unit_test(every_status_has_a_name_of_its_own),
        cmocka_unit_test(number_types_have_their_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
