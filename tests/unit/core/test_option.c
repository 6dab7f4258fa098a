/* test_option.c: the option engine: finding, parsing, limits, printing back, nearest keys.
 * Fields of every type in a small struct of the test's own.
 */
#include "support/layer_fixture.h"

#include "core/option.h"

#include <locale.h>

typedef struct settings {
    bool flag;
    int32_t small;
    int64_t large;
    float single;
    double wide;
    const char *choice;
    char text[8];
} settings;

static const char *const colours[] = {"red", "green", NULL};
static const moe_option rows[] = {
    {"a.flag",   "",         MOE_OPT_BOOL,   offsetof(settings, flag),   "true", 0,  0,    NULL,    ""},
    {"a.small",  "tiny wee", MOE_OPT_INT,    offsetof(settings, small),  "3",    -5, 10,   NULL,    ""},
    {"a.large",  "",         MOE_OPT_INT64,  offsetof(settings, large),  "0",    0,  9e15, NULL,    ""},
    {"b.single", "",         MOE_OPT_FLOAT,  offsetof(settings, single), "0.1",  0,  1,    NULL,    ""},
    {"b.wide",   "",         MOE_OPT_DOUBLE, offsetof(settings, wide),   "1e-8", 0,  1,    NULL,    ""},
    {"b.choice", "colour",   MOE_OPT_CHOICE, offsetof(settings, choice), "red",  0,  0,    colours, ""},
    {"b.text",   "",         MOE_OPT_TEXT,   offsetof(settings, text),   "",     0,  8,    NULL,    ""},
};
static const moei_option_table table = {rows, sizeof rows / sizeof *rows};

static void keys_parts_and_aliases_are_found(void **state) {
    (void)state;
    assert_ptr_equal(moei_option_find(table, "a.small"), &rows[1]);
    assert_ptr_equal(moei_option_find(table, "small"), &rows[1]);
    assert_ptr_equal(moei_option_find(table, "tiny"), &rows[1]);
    assert_ptr_equal(moei_option_find(table, "wee"), &rows[1]);
    assert_ptr_equal(moei_option_find(table, "colour"), &rows[5]);
    assert_null(moei_option_find(table, "we"));
    assert_null(moei_option_find(table, ""));
    assert_null(moei_option_find(table, "tiny wee"));
}

static void values_are_parsed_and_bounded(void **state) {
    (void)state;
    settings s = {0};
    moe_error error;
    assert_int_equal(moei_option_defaults(table, &s, &error), MOE_OK);
    assert_true(s.flag && s.small == 3 && s.single == 0.1f && s.wide == 1e-8);
    assert_string_equal(s.choice, "red");
    static const struct {
        const char *key, *value;
        bool good;
    } cases[] = {
        {"flag",   "off",                  true },
        {"flag",   "TRUE",                 true },
        {"flag",   "2",                    false},
        {"flag",   "",                     false},
        {"small",  "-5",                   true },
        {"small",  "11",                   false},
        {"small",  "1.5",                  false},
        {"small",  "",                     false},
        {"small",  "7x",                   false},
        {"large",  "123456789012",         true },
        {"large",  "99999999999999999999", false},
        {"single", "1",                    true },
        {"single", "1.1",                  false},
        {"single", "inf",                  false},
        {"single", "0x1p-1",               false},
        {"wide",   "nan",                  false},
        {"choice", "green",                true },
        {"choice", "gren",                 false},
        {"text",   "1234567",              true },
        {"text",   "12345678",             false}
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
        moe_status status =
            moei_option_set(moei_option_find(table, cases[i].key), &s, cases[i].value, &error);
        if ((status == MOE_OK) != cases[i].good) fail_msg("%s = '%s'", cases[i].key, cases[i].value);
        if (!cases[i].good) assert_non_null(strstr(error.text, cases[i].key));
    }
    assert_int_equal(moei_option_set(&rows[2], &s, "-1", &error), MOE_ERR_ARGUMENT);
    assert_string_equal(error.text, "a.large: -1 is outside 0 .. 9000000000000000"); /* as one can write it */
    assert_true(s.flag && s.small == -5);
    assert_int_equal(s.large, 123456789012);
    assert_string_equal(s.choice, "green");
    assert_string_equal(s.text, "1234567");
}

/* What is printed reads back to the same value, for awkward numbers too. */
static void printing_round_trips(void **state) {
    (void)state;
    for (uint64_t i = 0; i < 2000; ++i) {
        uint32_t word[4];
        moe_random(test_seed(), MOE_DRAW_TEST, 0, 0, i, word);
        settings s = {.single = (float)word[0] / 4294967296.0f,
                      .wide = (double)word[1] / 4294967296.0 / 3.0,
                      .large = word[2],
                      .small = (int32_t)(word[3] % 16) - 5,
                      .flag = word[3] & 16,
                      .choice = "green"};
        settings back = {0};
        for (size_t r = 0; r < table.count; ++r) {
            char text[64];
            moei_option_get(&rows[r], &s, text, sizeof text);
            assert_int_equal(moei_option_set(&rows[r], &back, text, NULL), MOE_OK);
        }
        assert_true(back.single == s.single && back.wide == s.wide && back.large == s.large);
        assert_true(back.small == s.small && back.flag == s.flag);
        assert_string_equal(back.choice, "green");
    }
}

static void the_nearest_key_is_offered(void **state) {
    (void)state;
    size_t distance;
    assert_ptr_equal(moei_option_nearest(table, "smal", &distance), &rows[1]);
    assert_int_equal(distance, 1);
    assert_ptr_equal(moei_option_nearest(table, "b.choise", &distance), &rows[5]);
    assert_ptr_equal(moei_option_nearest(table, "B.CHOICE", &distance), &rows[5]);
    assert_int_equal(distance, 0);                                              /* case aside */
    assert_ptr_equal(moei_option_nearest(table, "color", &distance), &rows[5]); /* its alias */
    assert_int_equal(distance, 1);
    assert_null(moei_option_nearest((moei_option_table){rows, 0}, "color", &distance));
    static const moe_option sitting = {.key = "sitting", .aliases = ""};
    assert_int_equal(moe_option_distance(&sitting, "kitten"), 3);
    assert_int_equal(moe_option_distance(&sitting, ""), 7);
    assert_true(moe_option_is_near("kitten", 2) &&
                !moe_option_is_near("kitten", 3)); /* a third of its letters */
    assert_true(moe_option_is_near("ab", 1) && !moe_option_is_near("", 1));
    assert_false(moe_option_is_near(NULL, 0));
}

static void unknown_keys_are_told_with_what_was_meant(void **state) {
    (void)state;
    static const struct {
        const char *key, *text;
    } cases[] = {
        {"a.smal",  "unknown word 'a.smal'; the nearest is 'a.small'"    },
        {"a.green", "unknown word 'a.green'; it is a value of 'b.choice'"},
        {"red",     "unknown word 'red'; it is a value of 'b.choice'"    },
        {"x.y.z",   "unknown word 'x.y.z'; the table lists all"          },
        {"",        "unknown word ''; the table lists all"               },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
        moe_error error;
        assert_int_equal(moei_option_unknown(table, "word", cases[i].key, "the table", &error),
                         MOE_ERR_ARGUMENT);
        assert_string_equal(error.text, cases[i].text);
    }
}

/* The layer's own table: keys are unique, defaults parse, aliases are not keys. */
static void the_layer_table_is_sound(void **state) {
    (void)state;
    const moe_option *row;
    moe_layer_desc desc = {.size = sizeof desc};
    for (size_t i = 0; (row = moe_layer_option_at(i)); ++i) {
        assert_int_equal(moei_option_set(row, &desc, row->initial, NULL), MOE_OK);
        assert_ptr_equal(moe_layer_option_find(row->key), row);
        assert_true(strlen(row->help) > 10);
        char aliases[256], *rest = aliases;
        snprintf(aliases, sizeof aliases, "%s", row->aliases);
        for (char *word; (word = strtok_r(rest, " ", &rest));)
            assert_ptr_equal(moe_layer_option_find(word), row);
    }
    assert_ptr_equal(moe_layer_option_find("moe.n_routed_experts"), moe_layer_option_find("num_experts"));
    assert_null(moe_layer_option_find("moe.no_such_option"));
}

/* A default that does not parse is told, and not left as whatever the memory held. */
static void a_broken_default_is_told(void **state) {
    (void)state;
    moe_option broken = rows[1];
    broken.initial = "three";
    settings s = {0};
    moe_error error;
    assert_int_equal(moei_option_defaults((moei_option_table){&broken, 1}, &s, &error), MOE_ERR_ARGUMENT);
    assert_non_null(strstr(error.text, "a.small: 'three'"));
}

/* Where the program's locale writes 0,1 the tables still say 0.1. The test makes such a locale. */
static void numbers_do_not_follow_the_locale(void **state) {
    (void)state;
    char folder[] = "/tmp/moekit-locale-XXXXXX", command[300];
    assert_non_null(mkdtemp(folder));
    snprintf(command, sizeof command, "localedef -i de_DE -f UTF-8 %s/de_DE.UTF-8 >/dev/null 2>&1", folder);
    int made = system(command);
    setenv("LOCPATH", folder, 1);
    bool set = made != -1 && setlocale(LC_ALL, "de_DE.UTF-8") != NULL;
    char text[64] = "";
    if (set) {
        settings s = {0};
        moe_error error;
        snprintf(text, sizeof text, "%g", 0.5);
        assert_string_equal(text, "0,5");
        assert_int_equal(moei_option_defaults(table, &s, &error), MOE_OK);
        assert_true(s.single == 0.1f && s.wide == 1e-8);
        moei_option_get(&rows[3], &s, text, sizeof text);
        assert_string_equal(text, "0.1");
        assert_int_equal(moei_option_set(&rows[3], &s, "0,5", &error), MOE_ERR_ARGUMENT);
        setlocale(LC_ALL, "C");
    }
    snprintf(command, sizeof command, "rm -rf %s", folder);
    assert_int_equal(system(command), 0);
    if (!set) {
        print_message("skipped: no localedef and no de_DE to make a locale from\n");
        skip();
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keys_parts_and_aliases_are_found),
        cmocka_unit_test(values_are_parsed_and_bounded),
        cmocka_unit_test(printing_round_trips),
        cmocka_unit_test(the_nearest_key_is_offered),
        cmocka_unit_test(unknown_keys_are_told_with_what_was_meant),
        cmocka_unit_test(the_layer_table_is_sound),
        cmocka_unit_test(a_broken_default_is_told),
        cmocka_unit_test(numbers_do_not_follow_the_locale),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
