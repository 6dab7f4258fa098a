/* test_yaml.c: YAML becomes dotted pairs, what is not wanted is refused with its place, and pairs
 * written are the pairs read. Texts by hand, and pairs at random.
 * Source: format/yaml.h; YAML 1.1 as libyaml reads it.
 */
#define _GNU_SOURCE
#include "unit/format/scratch.h"

#include "format/yaml.h"

#include <inttypes.h>
#include <time.h>

/* Pairs as "key=value@line:column\n". */
typedef struct text {
    char data[8192];
    size_t length;
} text;

static moe_status collect(void *user, const char *key, const char *value, int line, int column) {
    text *into = user;
    int n = snprintf(into->data + into->length, sizeof into->data - into->length, "%s=%s@%d:%d\n", key, value,
                     line, column);
    assert_true(n > 0 && (size_t)n < sizeof into->data - into->length);
    into->length += (size_t)n;
    return MOE_OK;
}

static void test_flattens(void **state) {
    (void)state;
    /* clang-format off */
    static const struct {
        const char *yaml, *pairs;
    } rows[] = {
        {"", ""},
        {"# nothing\n", ""},
        {"---\n", ""},
        {"---\n...\n", ""},
        {"\xEF\xBB\xBF"
         "a: 1\n",
         "a=1@1:5\n"},
        {"a: 1\nb: x y\n", "a=1@1:4\nb=x y@2:4\n"},
        {"moe:\n  top_k: 2\n  gate:\n    bias: true\nseed: 7\n",
         "moe.top_k=2@2:10\nmoe.gate.bias=true@4:11\nseed=7@5:7\n"},
        {"moe.top_k: 2\nmoe:\n  num_experts: 8\n", "moe.top_k=2@1:12\nmoe.num_experts=8@3:16\n"},
        {"a: {b: 1, c: {d: 'q'}}\n", "a.b=1@1:8\na.c.d=q@1:18\n"},
        {"a: [1, 2, x]\nb:\n  - y\n  - z\n", "a=1,2,x@1:4\nb=y,z@3:3\n"},
        {"a: []\nb: {}\n", "a=@1:4\n"},
        {"a: ~\nb: null\nc:\nd: ''\ne: 'null'\nf: !!str null\n",
         "a=@1:4\nb=@2:4\nc=@3:3\nd=@4:4\ne=null@5:4\nf=null@6:4\n"},
        {"a: \"tab\\there\"\nb: >-\n  two\n  lines\n", "a=tab\there@1:4\nb=two lines@2:4\n"},
        {"a: !!int 3\nb: 1e-3\n", "a=3@1:4\nb=1e-3@2:4\n"},
        {"\xC3\xA9: \xE2\x82\xAC\n", "\xC3\xA9=\xE2\x82\xAC@1:4\n"},
        {"a:\r\n  b: 1\r\n", "a.b=1@2:6\n"},
        {"a.b.c.d.e.f.g.h: 1\n", "a.b.c.d.e.f.g.h=1@1:18\n"},
    };
    /* clang-format on */
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        text pairs = {0};
        moe_error error;
        assert_ok(moelm_yaml_parse("run.yaml", rows[i].yaml, strlen(rows[i].yaml), collect, &pairs, &error),
                  &error);
        assert_string_equal(pairs.data, rows[i].pairs);
    }
}

/* clang-format off */
static const struct {
    const char *yaml, *words;
} refusals[] = {
    {"a: 1\nb: &x 2\n", "run.yaml:2:4: anchors and aliases (x) are not accepted"},
    {"a: &x {b: 1}\n", "run.yaml:1:4: anchors"},
    {"a: &x [b]\n", "run.yaml:1:4: anchors"},
    {"a: *x\n", "run.yaml:1:4: anchors"},
    {"&x a: 1\n", "run.yaml:1:1: anchors"},
    {"&x\n", "run.yaml:1:1: anchors"},
    {"a: !!binary aGk=\n", "run.yaml:1:4: the tag tag:yaml.org,2002:binary is not accepted"},
    {"a: !mine x\n", "the tag !mine"},
    {"a: ! x\n", "the tag !"},
    {"a: !!map {b: 1}\n", "run.yaml:1:4: the tag"},
    {"a: !!set {b}\n", "run.yaml:1:4: the tag"},
    {"a: [!!python/object:x y]\n", "run.yaml:1:5: the tag"},
    {"a: 1\nb: 2\na: 3\n", "run.yaml:3:4: the key a was given before, in line 1"},
    {"a: {b: 1}\nc: 2\na: {d: 1}\n", "run.yaml:3:4: the key a was given before, in line 1"},
    {"a: 1\na: {b: 2}\n", "run.yaml:2:4: the key a was given before"},
    {"a: {b: 1}\na.b: 2\n", "run.yaml:2:6: the key a.b was given before, in line 1"},
    {"a.b: 1\na: 2\n", "a.b stands below a, which has a value in line 2"},
    {"a: 1\n---\nb: 2\n", "run.yaml:2:1: only one document is accepted"},
    {"a: {b: {c: {d: {e: {f: {g: {h: {i: 1}}}}}}}}\n",
     "run.yaml:1:33: the key \"i\" has more than 8 levels"},
    {"a.b.c.d.e.f.g.h.i: 1\n", "has more than 8 levels"},
    {": 1\n", "run.yaml:1:1:"},
    {"'': 1\n", "has an empty part"},
    {"a..b: 1\n", "has an empty part"},
    {".a: 1\n", "has an empty part"},
    {"a.: 1\n", "has an empty part"},
    {"a:\n  .b: 1\n", "run.yaml:2:3: the key \".b\" has an empty part"},
    {"[1, 2]: 3\n", "run.yaml:1:1: a key must be a plain word"},
    {"? {a: 1}\n: 2\n", "a key must be a plain word"},
    {"a: [1, [2]]\n", "run.yaml:1:8: a list may hold plain values only"},
    {"a: [{b: 1}]\n", "run.yaml:1:5: a list may hold plain values only"},
    {"a:\n- 1\n- 'x,y'\n", "run.yaml:3:3: a value in a list must not be empty nor contain a comma"},
    {"a: [1, ~]\n", "run.yaml:1:8: a value in a list"},
    {"- 1\n- 2\n", "run.yaml:1:1: must be `key: value` lines"},
    {"word\n", "run.yaml:1:1: must be `key: value` lines"},
    {"a: 1\nb: \"\\0\"\n", "run.yaml:2:4: a NUL byte is not accepted"},
    {"a: 1\n\tb: 2\n", "a tab; YAML indents by spaces"},
    {"a: \xc3\xa9\nb:\n \tc: 2\n", "a tab; YAML indents by spaces"},
    {"a: 'open\n", "run.yaml:"},
    {"a: {b: 1\n", "run.yaml:2:1:"},
    {"a: 1\nbc: \xff\xfe\n", "run.yaml:2:5: invalid"},
    {"a: 1\nbc: \x01\n", "run.yaml:2:"},
    {"\xFF\xFE"
     "a\n",
     "run.yaml:1:1:"},
    {"a: \"\\uD800\"\n", "run.yaml:1:"},
    {"%YAML 9.0\n---\na: 1\n", "run.yaml:"},
};
/* clang-format on */

static void test_refuses(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++) {
        text pairs = {0};
        moe_error error;
        assert_fails(
            moelm_yaml_parse("run.yaml", refusals[i].yaml, strlen(refusals[i].yaml), collect, &pairs, &error),
            MOE_ERR_INPUT, &error, refusals[i].words);
        assert_int_equal(pairs.length, 0); /* nothing of a bad file is handed out */
    }
}

static void test_nul_byte(void **state) {
    (void)state;
    text pairs = {0};
    moe_error error;
    assert_fails(moelm_yaml_parse("run.yaml", "a: 1\nb:\0 2\n", 11, collect, &pairs, &error), MOE_ERR_INPUT,
                 &error, "run.yaml:2:3: a NUL byte is not accepted");
}

static void test_long_key(void **state) {
    (void)state;
    char yaml[MOELM_YAML_MAX_KEY + 10];
    text pairs = {0};
    moe_error error;
    memset(yaml, 'k', sizeof yaml);
    memcpy(yaml + MOELM_YAML_MAX_KEY, ": 1\n", 5);
    assert_ok(moelm_yaml_parse("run.yaml", yaml, strlen(yaml), collect, &pairs, &error), &error);
    memset(yaml, 'k', sizeof yaml);
    memcpy(yaml + MOELM_YAML_MAX_KEY + 1, ": 1\n", 5);
    assert_fails(moelm_yaml_parse("run.yaml", yaml, strlen(yaml), collect, &pairs, &error), MOE_ERR_INPUT,
                 &error, "is longer than 160 bytes");
}

/* Every byte of the longest key escaped: what is written is still a key to YAML. */
static void test_long_key_of_escapes(void **state) {
    (void)state;
    char key[MOELM_YAML_MAX_KEY + 1], *written = NULL;
    text pairs = {0};
    moe_error error;
    memset(key, '\t', sizeof key);
    key[0] = 'k';
    key[MOELM_YAML_MAX_KEY] = '\0';
    const moelm_yaml_pair pair = {.key = key, .value = "1"};
    assert_ok(moelm_yaml_format(&pair, 1, &written, &error), &error);
    assert_ok(moelm_yaml_parse("again", written, strlen(written), collect, &pairs, &error), &error);
    free(written);
}

static moe_status stop_at_b(void *user, const char *key, const char *value, int line, int column) {
    (void)value, (void)line, (void)column;
    ++*(int *)user;
    return *key == 'b' ? MOE_ERR_ARGUMENT : MOE_OK;
}

static void test_callback_stops(void **state) {
    (void)state;
    int n_calls = 0;
    assert_int_equal(moelm_yaml_parse("run.yaml", "a: 1\nb: 2\nc: 3\n", 15, stop_at_b, &n_calls, NULL),
                     MOE_ERR_ARGUMENT);
    assert_int_equal(n_calls, 2);
}

static void test_load(void **state) {
    char *path = scratch_path(state, "run.yaml");
    text pairs = {0};
    moe_error error;
    assert_fails(moelm_yaml_load(path, collect, &pairs, &error), MOE_ERR_INPUT, &error, "No such file");
    scratch_put(path, "", 0);
    assert_ok(moelm_yaml_load(path, collect, &pairs, &error), &error);
    assert_int_equal(pairs.length, 0);
    scratch_put(path, "a: {b: c}", 9);
    assert_ok(moelm_yaml_load(path, collect, &pairs, &error), &error);
    assert_string_equal(pairs.data, "a.b=c@1:8\n");
    assert_int_equal(truncate(path, MOELM_YAML_MAX_BYTES + 1), 0);
    assert_fails(moelm_yaml_load(path, collect, &pairs, &error), MOE_ERR_INPUT, &error, "at most 1048576");
    assert_fails(moelm_yaml_load(*state, collect, &pairs, &error), MOE_ERR_INPUT, &error, "is a directory");
    free(path);
}

static void test_format(void **state) {
    (void)state;
    const moelm_yaml_pair pairs[] = {
        {"seed",          "7"    },
        {"moe.top_k",     "2"    },
        {"moe.gate.bias", "true" },
        {"moe",           "x"    },
        {"data.text",     "a: #b"},
        {"data.empty",    ""     },
        {"moe-x",         "-1e-3"},
        {"data.list",     "1,2"  },
        {"data.null",     "null" },
        {"data.line",     "1\n2" },
        {"data.quote",    "\"\\" },
        {"data.dash",     "-"    },
    };
    char *yaml = NULL;
    moe_error error;
    assert_fails(moelm_yaml_format(pairs, 12, &yaml, &error), MOE_ERR_ARGUMENT, &error,
                 "moe.gate.bias stands below moe");
    moelm_yaml_pair good[12];
    memcpy(good, pairs, sizeof good);
    good[3].key = "moe.num_experts";
    assert_ok(moelm_yaml_format(good, 12, &yaml, &error), &error);
    assert_string_equal(yaml, "data:\n"
                              "  dash: \"-\"\n"
                              "  empty: \"\"\n"
                              "  line: \"1\\u000A2\"\n"
                              "  list: 1,2\n"
                              "  \"null\": \"null\"\n"
                              "  quote: \"\\\"\\\\\"\n"
                              "  text: \"a: #b\"\n"
                              "moe:\n"
                              "  gate:\n"
                              "    bias: true\n"
                              "  num_experts: x\n"
                              "  top_k: 2\n"
                              "moe-x: -1e-3\n"
                              "seed: 7\n");
    free(yaml);
    assert_ok(moelm_yaml_format(NULL, 0, &yaml, &error), &error);
    assert_string_equal(yaml, "");
    free(yaml);
}

static void test_format_refuses(void **state) {
    (void)state;
    static const struct {
        moelm_yaml_pair pairs[2];
        const char *words;
    } rows[] = {
        {{{"a", "1"}, {"a", "2"}},                  "the key a was given twice"   },
        {{{"a.b", "1"}, {"a", "2"}},                "a.b stands below a"          },
        {{{"a", "1"}, {"", "2"}},                   "has an empty part"           },
        {{{"a", "1"}, {"b..c", "2"}},               "has an empty part"           },
        {{{"a", "1"}, {"a1.2.3.4.5.6.7.8.9", "2"}}, "more than 8 levels"          },
        {{{"a", "\xff"}, {"b", "2"}},               "a: key or value is not UTF-8"},
        {{{"a", "\xed\xa0\x80"}, {"b", "2"}},       "not UTF-8"                   },
        {{{"a", "\xc0\x80"}, {"b", "2"}},           "not UTF-8"                   },
        {{{"a", "\xf5\x80\x80\x80"}, {"b", "2"}},   "not UTF-8"                   },
        {{{"a", "\xe2\x82"}, {"b", "2"}},           "not UTF-8"                   },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char *yaml = NULL;
        moe_error error;
        assert_fails(moelm_yaml_format(rows[i].pairs, 2, &yaml, &error), MOE_ERR_ARGUMENT, &error,
                     rows[i].words);
        assert_null(yaml);
    }
}

/* 2. Random pairs come back as they went. */

enum { N_PAIRS = 12, N_ROUNDS = 500 };

typedef struct sample {
    char keys[N_PAIRS][64], values[N_PAIRS][80];
    int n_seen;
} sample;

static const char *const pieces[] = {
    "a",
    "B",
    "0",
    "9",
    " ",
    "  ",
    "-",
    "_",
    ".",
    ",",
    ":",
    ": ",
    " #",
    "'",
    "\"",
    "\\",
    "{",
    "}",
    "[",
    "]",
    "&",
    "*",
    "!",
    "|",
    ">",
    "%",
    "@",
    "`",
    "~",
    "?",
    "\n",
    "\r",
    "\t",
    "\x01",
    "\x7f",
    "null",
    "\xC2\x85",
    "\xE2\x80\xA8",
    "\xC3\xA9",
    "\xEF\xBB\xBF",
    "\xEF\xBF\xBE",
    "\xF0\x9F\x98\x80",
    "---",
    "<<",
    "=",
    "yes",
    "1e3",
    "0x1F",
};

static void random_text(char *out, int n_pieces, const char *but_not, uint64_t *seed) {
    *out = '\0';
    for (int i = 0; i < n_pieces; i++) {
        const char *piece = pieces[scratch_random(seed) % (sizeof pieces / sizeof *pieces)];
        if (!strpbrk(piece, but_not)) strcat(out, piece);
    }
}

static moe_status check_pair(void *user, const char *key, const char *value, int line, int column) {
    sample *wrote = user;
    (void)line, (void)column;
    for (int i = 0; i < N_PAIRS; i++) {
        if (strcmp(wrote->keys[i], key) != 0) continue;
        assert_string_equal(value, wrote->values[i]);
        wrote->n_seen++;
        return MOE_OK;
    }
    fail_msg("unknown key %s", key);
    return MOE_ERR_INTERNAL;
}

static void test_round_trip(void **state) {
    (void)state;
    uint64_t seed = (uint64_t)time(NULL);
    print_message("seed %" PRIu64 "\n", seed);
    for (int round = 0; round < N_ROUNDS; round++) {
        sample wrote = {0};
        moelm_yaml_pair pairs[N_PAIRS];
        for (int i = 0; i < N_PAIRS; i++) {
            char part[20];
            random_text(part, 3, ".", &seed);
            snprintf(wrote.keys[i], sizeof wrote.keys[i], "g%d.%s%d", i % 3, part, i);
            random_text(wrote.values[i], (int)(scratch_random(&seed) % 12), "", &seed);
            pairs[i] = (moelm_yaml_pair){wrote.keys[i], wrote.values[i]};
        }
        char *yaml;
        moe_error error;
        assert_ok(moelm_yaml_format(pairs, N_PAIRS, &yaml, &error), &error);
        assert_ok(moelm_yaml_parse("round", yaml, strlen(yaml), check_pair, &wrote, &error), &error);
        assert_int_equal(wrote.n_seen, N_PAIRS);
        free(yaml);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_flattens),
        cmocka_unit_test(test_refuses),
        cmocka_unit_test(test_nul_byte),
        cmocka_unit_test(test_long_key),
        cmocka_unit_test(test_long_key_of_escapes),
        cmocka_unit_test(test_callback_stops),
        cmocka_unit_test_setup_teardown(test_load, scratch_setup, scratch_teardown),
        cmocka_unit_test(test_format),
        cmocka_unit_test(test_format_refuses),
        cmocka_unit_test(test_round_trip),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
