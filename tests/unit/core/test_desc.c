/* test_desc.c: descriptors that are older or newer than the library.
 * The struct of the test stands for any that begins with its size.
 */
#include "support/layer_fixture.h"

#include "core/desc.h"

#include <moekit/expert.h>
#include <moekit/quant.h>

typedef struct sized {
    size_t size;
    int32_t a, b;
} sized;

typedef struct newer {
    size_t size;
    int32_t a, b, c, d;
} newer;

static void older_callers_get_defaults(void **state) {
    (void)state;
    sized ours = {99, 99, 99};
    const sized given = {offsetof(sized, b), 7, 12345};
    assert_int_equal(moei_desc_read(&ours, sizeof ours, &given, "sized", NULL), MOE_OK);
    assert_true(ours.size == sizeof ours && ours.a == 7 && ours.b == 0);
}

static void newer_callers_are_served_while_they_ask_nothing_new(void **state) {
    (void)state;
    sized ours;
    moe_error error;
    newer given = {sizeof given, 1, 2, 0, 0};
    assert_int_equal(moei_desc_read(&ours, sizeof ours, &given, "sized", &error), MOE_OK);
    assert_true(ours.size == sizeof ours && ours.a == 1 && ours.b == 2);
    given.d = 1;
    assert_int_equal(moei_desc_read(&ours, sizeof ours, &given, "sized", &error), MOE_ERR_UNSUPPORTED);
    assert_non_null(strstr(error.text, "older"));
}

static void senseless_sizes_are_refused(void **state) {
    (void)state;
    static const size_t sizes[] = {0, 1, 3, sizeof(size_t), 1 << 20, SIZE_MAX};
    sized ours = {5, 6, 7};
    moe_error error;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; ++i) {
        const sized given = {sizes[i], 1, 2};
        assert_int_equal(moei_desc_read(&ours, sizeof ours, &given, "sized", &error), MOE_ERR_ARGUMENT);
        assert_non_null(strstr(error.text, "sizeof(sized)"));
    }
    assert_int_equal(moei_desc_read(&ours, sizeof ours, NULL, "sized", &error), MOE_ERR_ARGUMENT);
    assert_true(ours.size == 5 && ours.a == 6 && ours.b == 7);
}

static void outputs_end_where_their_owner_says(void **state) {
    (void)state;
    const sized ours = {0, 7, 8};
    const sized before = {offsetof(sized, b), 1, 12345};
    sized older = before;
    newer larger = {sizeof larger, 1, 2, 3, 4};
    assert_int_equal(moei_desc_write(&older, &ours, sizeof ours, "sized", NULL), MOE_OK);
    assert_true(older.size == before.size && older.a == 7 && older.b == before.b);
    assert_int_equal(moei_desc_write(&larger, &ours, sizeof ours, "sized", NULL), MOE_OK);
    assert_true(larger.size == sizeof larger && larger.a == 7 && larger.b == 8);
    assert_true(larger.c == 0 && larger.d == 0); /* unknown here: never what stood there before */
}

static void outputs_without_a_size_are_refused_untouched(void **state) {
    (void)state;
    const sized ours = {0, 7, 8};
    sized out = {0, 1, 2};
    moe_error error;
    assert_int_equal(moei_desc_check_out(&out, sizeof ours, "sized", &error), MOE_ERR_ARGUMENT);
    assert_int_equal(moei_desc_write(&out, &ours, sizeof ours, "sized", &error), MOE_ERR_ARGUMENT);
    assert_string_equal(error.text, "sized.size is 0; set it to sizeof(sized) = 16");
    assert_true(out.size == 0 && out.a == 1 && out.b == 2);
    assert_int_equal(moei_desc_check_out(NULL, sizeof ours, "sized", &error), MOE_ERR_ARGUMENT);
    assert_string_equal(error.text, "sized: the pointer is NULL");
}

static void reserved_bytes_are_looked_at(void **state) {
    (void)state;
    static const struct {
        const char *name;
        size_t size, begin;
    } kinds[] = {
        {"moe_ctx_desc",    sizeof(moe_ctx_desc),    offsetof(moe_ctx_desc,    reserved)},
        {"moe_layer_desc",  sizeof(moe_layer_desc),  offsetof(moe_layer_desc,  reserved)},
        {"moe_call",        sizeof(moe_call),        offsetof(moe_call,        reserved)},
        {"moe_expert_ops",  sizeof(moe_expert_ops),  offsetof(moe_expert_ops,  reserved)},
        {"moe_quant_desc",  sizeof(moe_quant_desc),  offsetof(moe_quant_desc,  reserved)},
        {"moe_packed_desc", sizeof(moe_packed_desc), offsetof(moe_packed_desc, reserved)}
    };
    unsigned char given[sizeof(moe_layer_desc)], ours[sizeof given];
    moe_error error;
    char expected[64];
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; ++k)
        for (size_t at = kinds[k].begin; at < kinds[k].size; ++at) {
            memset(given, 0, sizeof given);
            memcpy(given, &kinds[k].size, sizeof kinds[k].size);
            assert_int_equal(moei_desc_read(ours, kinds[k].size, given, kinds[k].name, &error), MOE_OK);
            given[at] = 9;
            assert_int_equal(moei_desc_read(ours, kinds[k].size, given, kinds[k].name, &error),
                             MOE_ERR_UNSUPPORTED);
            snprintf(expected, sizeof expected, "%s.reserved[%zu] is 9", kinds[k].name, at - kinds[k].begin);
            assert_non_null(strstr(error.text, expected));
            memcpy(given, &at, sizeof at); /* an older caller's struct ends before the byte */
            assert_int_equal(moei_desc_read(ours, kinds[k].size, given, kinds[k].name, &error), MOE_OK);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(older_callers_get_defaults),
        cmocka_unit_test(newer_callers_are_served_while_they_ask_nothing_new),
        cmocka_unit_test(senseless_sizes_are_refused),
        cmocka_unit_test(reserved_bytes_are_looked_at),
        cmocka_unit_test(outputs_end_where_their_owner_says),
        cmocka_unit_test(outputs_without_a_size_are_refused_untouched),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
