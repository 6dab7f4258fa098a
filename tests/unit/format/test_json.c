/* test_json.c: JSON is refused with its place, fields with what they must be.
 * Texts broken by hand, each with the words of its refusal.
 * Source: format/json.h; RFC 8259.
 */
#define _GNU_SOURCE
#include "unit/format/scratch.h"

#include "format/file.h"
#include "format/json.h"

#include <math.h>

static json_t *parse(const char *text) {
    json_t *root = NULL;
    moe_error error;
    assert_ok(moelm_json_parse("config.json", text, strlen(text), &root, &error), &error);
    return root;
}

static void test_malformed(void **state) {
    (void)state;
    static const struct {
        const char *text, *words;
    } rows[] = {
        {"",                                "config.json:1:0:"          },
        {"{\"a\": 1",                       "config.json:1:7:"          },
        {"{\n  \"a\": tru\n}",              "config.json:2:10:"         },
        {"{\n \"a\": 1,\n \"a\": 2}",       "config.json:3:"            },
        {"{\"a\": 1, \"a\": 2}",            "duplicate object key"      },
        {"{\"a\": \"\\u0000\"}",            "u0000"                     },
        {"{\"a\": \"\xff\"}",               "unable to decode byte 0xff"},
        {"{\"a\": 99999999999999999999-1}", "near '-1'"                 },
        {"{\"a\": 1e999}",                  "real number overflow"      },
        {"{\"a\": NaN}",                    "invalid token"             },
        {"{} {}",                           "end of file expected"      },
        {"3",                               "config.json:1:1:"          },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        json_t *root = NULL;
        moe_error error;
        assert_fails(moelm_json_parse("config.json", rows[i].text, strlen(rows[i].text), &root, &error),
                     MOE_ERR_INPUT, &error, rows[i].words);
        assert_null(root);
    }
}

/* What save_pretrained writes for a text of any length is nobody's number; read, it is told. */
static void test_beyond_64_bits(void **state) {
    (void)state;
    json_t *root =
        parse("{\"model_max_length\": 1000000000000000019884624838656, \"low\": -9223372036854775809,"
              " \"last\": 9223372036854775807, \"text\": \"\\\"99999999999999999999\","
              " \"real\": 99999999999999999999.5, \"list\": [18446744073709551616,7]}");
    const char *where = "config.json", *text = NULL;
    moe_error error;
    int64_t integer = 3;
    double real = 0;
    assert_fails(moelm_json_opt_int(root, where, "model_max_length", 0, 9, &integer, &error), MOE_ERR_INPUT,
                 &error,
                 "config.json: model_max_length must be an integer, not a number too large for 64 bits");
    assert_fails(moelm_json_get_int(root, where, "low", 0, 9, &integer, &error), MOE_ERR_INPUT, &error,
                 "not a number too large for 64 bits");
    assert_int_equal(integer, 3);
    assert_ok(moelm_json_get_int(root, where, "last", 0, INT64_MAX, &integer, &error), &error);
    assert_true(integer == INT64_MAX);
    assert_ok(moelm_json_get_string(root, where, "text", &text, &error), &error);
    assert_string_equal(text, "\"99999999999999999999");
    assert_ok(moelm_json_get_real(root, where, "model_max_length", &real, &error), &error);
    assert_true(fabs(real / 1e30 - 1) < 1e-15);
    assert_ok(moelm_json_get_real(root, where, "real", &real, &error), &error);
    assert_true(real == 1e20);
    assert_true(json_integer_value(json_array_get(json_object_get(root, "list"), 1)) == 7);
    json_decref(root);

    char digits[500];
    memset(digits, '9', sizeof digits);
    digits[0] = '[', digits[sizeof digits - 1] = ']';
    root = NULL;
    assert_fails(moelm_json_parse("config.json", digits, sizeof digits, &root, &error), MOE_ERR_INPUT, &error,
                 "real number overflow");
    assert_null(root);
}

static void test_deep_nesting(void **state) {
    (void)state;
    enum { DEPTH = 100000 };
    char *text = malloc(DEPTH);
    assert_non_null(text);
    memset(text, '[', DEPTH);
    json_t *root;
    moe_error error;
    assert_fails(moelm_json_parse("config.json", text, DEPTH, &root, &error), MOE_ERR_INPUT, &error, "depth");
    free(text);
}

static void test_load_refuses(void **state) {
    char *path = scratch_path(state, "config.json");
    json_t *root;
    moe_error error;
    assert_fails(moelm_json_load(path, &root, &error), MOE_ERR_INPUT, &error, "No such file");
    scratch_put(path, "", 0);
    assert_fails(moelm_json_load(path, &root, &error), MOE_ERR_INPUT, &error, "is empty");
    assert_int_equal(truncate(path, (off_t)MOELM_JSON_MAX_BYTES + 1), 0); /* sparse: takes no room */
    assert_fails(moelm_json_load(path, &root, &error), MOE_ERR_INPUT, &error, "at most 104857600");
    free(path);
}

static void test_save_and_load(void **state) {
    char *path = scratch_path(state, "config.json"), *below = scratch_path(state, "config.json/x");
    json_t *root = parse("{\"z\": 0.1, \"a\": [1, \"\\u00e9\"], \"n\": null}"), *again;
    moe_error error;
    assert_ok(moelm_json_save(path, root, &error), &error);
    assert_ok(moelm_json_load(path, &again, &error), &error);
    assert_true(json_equal(root, again));
    char *text;
    size_t bytes;
    assert_ok(moelm_file_read(path, 1, 1000, &text, &bytes, &error), &error);
    assert_non_null(strstr(text, "\"z\": 0.1,")); /* no digit more than brings it back */
    free(text);
    assert_fails(moelm_json_save(below, root, &error), MOE_ERR_IO, &error, "Not a directory");
    json_decref(root);
    json_decref(again);
    free(path);
    free(below);
}

static void test_required(void **state) {
    (void)state;
    json_t *root =
        parse("{\"i\": 7, \"r\": 0.5, \"b\": true, \"s\": \"x\", \"o\": {}, \"l\": [], \"n\": null}");
    const char *where = "config.json";
    moe_error error;
    int64_t integer = -1;
    double real = -1;
    bool flag = false;
    const char *string = NULL;
    json_t *value = NULL;
    assert_ok(moelm_json_get_int(root, where, "i", 1, 7, &integer, &error), &error);
    assert_int_equal(integer, 7);
    assert_ok(moelm_json_get_real(root, where, "r", &real, &error), &error);
    assert_true(real == 0.5);
    assert_ok(moelm_json_get_real(root, where, "i", &real, &error), &error);
    assert_true(real == 7);
    assert_ok(moelm_json_get_bool(root, where, "b", &flag, &error), &error);
    assert_true(flag);
    assert_ok(moelm_json_get_string(root, where, "s", &string, &error), &error);
    assert_string_equal(string, "x");
    assert_ok(moelm_json_get_object(root, where, "o", &value, &error), &error);
    assert_ok(moelm_json_get_array(root, where, "l", &value, &error), &error);

    assert_fails(moelm_json_get_int(root, where, "s", 0, 9, &integer, &error), MOE_ERR_INPUT, &error,
                 "config.json: s must be an integer, not a string");
    assert_fails(moelm_json_get_int(root, where, "r", 0, 9, &integer, &error), MOE_ERR_INPUT, &error,
                 "not a number with a fraction");
    assert_fails(moelm_json_get_int(root, where, "i", 8, 9, &integer, &error), MOE_ERR_INPUT, &error,
                 "i must be between 8 and 9, not 7");
    assert_fails(moelm_json_get_int(root, where, "x", 8, 9, &integer, &error), MOE_ERR_INPUT, &error,
                 "x is missing, it must be an integer");
    assert_fails(moelm_json_get_real(root, where, "n", &real, &error), MOE_ERR_INPUT, &error, "n is missing");
    assert_fails(moelm_json_get_bool(root, where, "l", &flag, &error), MOE_ERR_INPUT, &error,
                 "l must be true or false, not an array");
    assert_fails(moelm_json_get_string(root, where, "b", &string, &error), MOE_ERR_INPUT, &error, "not true");
    assert_fails(moelm_json_get_object(root, where, "l", &value, &error), MOE_ERR_INPUT, &error,
                 "must be an object, not an array");
    assert_fails(moelm_json_get_array(root, where, "o", &value, &error), MOE_ERR_INPUT, &error,
                 "not an object");
    assert_fails(moelm_json_get_int(value, where, "i", 0, 9, &integer, &error), MOE_ERR_INPUT, &error,
                 "must be an object with the key i");
    assert_int_equal(integer, 7); /* failures leave it alone */
    json_decref(root);
}

static void test_optional(void **state) {
    (void)state;
    json_t *root = parse("{\"i\": 7, \"n\": null, \"s\": \"x\", \"f\": false, \"r\": 2.5, \"o\": {}}");
    const char *where = "config.json", *string = "kept";
    moe_error error;
    int64_t integer = 3;
    double real = 1.5;
    bool flag = true;
    json_t *value = NULL;
    assert_ok(moelm_json_opt_int(root, where, "n", 8, 9, &integer, &error), &error);
    assert_ok(moelm_json_opt_int(root, where, "x", 8, 9, &integer, &error), &error);
    assert_int_equal(integer, 3);
    assert_ok(moelm_json_opt_int(root, where, "i", 0, 9, &integer, &error), &error);
    assert_int_equal(integer, 7);
    assert_fails(moelm_json_opt_int(root, where, "i", 8, 9, &integer, &error), MOE_ERR_INPUT, &error,
                 "between");
    assert_ok(moelm_json_opt_real(root, where, "n", &real, &error), &error);
    assert_true(real == 1.5);
    assert_ok(moelm_json_opt_real(root, where, "r", &real, &error), &error);
    assert_true(real == 2.5);
    assert_fails(moelm_json_opt_real(root, where, "s", &real, &error), MOE_ERR_INPUT, &error,
                 "must be a number");
    assert_ok(moelm_json_opt_bool(root, where, "x", &flag, &error), &error);
    assert_true(flag);
    assert_ok(moelm_json_opt_bool(root, where, "f", &flag, &error), &error);
    assert_false(flag);
    assert_ok(moelm_json_opt_string(root, where, "n", &string, &error), &error);
    assert_string_equal(string, "kept");
    assert_ok(moelm_json_opt_string(root, where, "s", &string, &error), &error);
    assert_string_equal(string, "x");
    assert_ok(moelm_json_opt_object(root, where, "n", &value, &error), &error);
    assert_null(value);
    assert_ok(moelm_json_opt_object(root, where, "o", &value, &error), &error);
    assert_non_null(value);
    json_decref(root);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_malformed),
        cmocka_unit_test(test_beyond_64_bits),
        cmocka_unit_test(test_deep_nesting),
        cmocka_unit_test_setup_teardown(test_load_refuses, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_save_and_load, scratch_setup, scratch_teardown),
        cmocka_unit_test(test_required),
        cmocka_unit_test(test_optional),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
