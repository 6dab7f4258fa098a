/* test_layer_alias_order.c: any two settings, another system's or ours, say the same in either order.
 * Every entry of moe_layer_alias_at beside every other and every value of ours, after every preset where they
 * meet. Source: docs/architecture.md, "What the user said wins".
 */
#include "support/layer_fixture.h"
#include "support/same_settings.h"

#include "unit/layer/alias_fixture.h"

enum { WORDS = 512, FIELDS = 8 };

/* A name and value: an entry of another system's, or one of ours. */
typedef struct word {
    const char *name, *value;
    moe_layer_desc alone;            /* said to an empty descriptor */
    const moe_option *field[FIELDS]; /* whose values it says, then those it implies */
    int n_said, n_fields;
} word;

static void add_field(word *w, const char *key) {
    assert_true(w->n_fields < FIELDS);
    w->field[w->n_fields] = moe_layer_option_find(key);
    assert_non_null(w->field[w->n_fields++]);
}

static void add_fields(word *w, const moe_layer_alias *alias, bool implied) {
    const moe_alias_setting *setting;
    for (size_t i = 0; (setting = moe_layer_alias_setting(alias, i)); ++i)
        if ((setting->where != NULL) == implied) add_field(w, setting->key);
}

/* `alias` NULL: ours. */
static void add_word(word *list, int *count, const char *name, const char *value,
                     const moe_layer_alias *alias) {
    moe_error error;
    word w = {.name = name, .value = value, .alone = {.size = sizeof w.alone}};
    if (alias)
        add_fields(&w, alias, false);
    else
        add_field(&w, name);
    w.n_said = w.n_fields;
    if (alias) add_fields(&w, alias, true);
    if (moe_layer_desc_set(&w.alone, w.name, w.value, &error) != MOE_OK) fail_msg("%s", error.text);
    assert_true(*count < WORDS);
    list[(*count)++] = w;
}

/* Every entry first, then two values or more of every row of ours. Returns how many words there are. */
static int all_words(word *list, int *n_entries) {
    const moe_layer_alias *alias;
    const moe_option *row;
    int count = 0;
    for (size_t i = 0; (alias = moe_layer_alias_at(i)); ++i)
        if (!alias->advice) add_word(list, &count, alias->name, alias_sample(alias), alias);
    *n_entries = count;
    for (size_t i = 0; (row = moe_layer_option_at(i)); ++i) {
        static const char *const flags[] = {"true", "false", NULL}, *const numbers[] = {"0", "1", NULL},
                                 *const shares[] = {"0", "0.5", NULL}, *const names[] = {"zero", NULL};
        const char *const *values = row->choices ? row->choices : row->max < 1 ? shares : numbers;
        if (row->type == MOE_OPT_BOOL) values = flags;
        if (row->type == MOE_OPT_CHOICE && !row->choices) values = names;
        for (; *values; ++values) add_word(list, &count, row->key, *values, NULL);
    }
    return count;
}

static bool share_a_field(const word *a, const word *b) {
    for (int i = 0; i < a->n_fields; ++i)
        for (int j = 0; j < b->n_fields; ++j)
            if (a->field[i] == b->field[j]) return true;
    return false;
}

/* Both say, and not only imply, a value of one field, and not the same: then the later wins. */
static bool contradict(const word *a, const word *b) {
    for (int i = 0; i < a->n_said; ++i)
        for (int j = 0; j < b->n_said; ++j)
            if (a->field[i] == b->field[j] && !same_setting(a->field[i], &a->alone, &b->alone)) return true;
    return false;
}

static moe_layer_desc say_three(const char *preset, const word *a, const word *b, const word *c) {
    moe_layer_desc d = {.size = sizeof d};
    if (preset) assert_int_equal(moe_layer_desc_preset(&d, preset, NULL), MOE_OK);
    assert_int_equal(moe_layer_desc_set(&d, a->name, a->value, NULL), MOE_OK);
    assert_int_equal(moe_layer_desc_set(&d, b->name, b->value, NULL), MOE_OK);
    if (c) assert_int_equal(moe_layer_desc_set(&d, c->name, c->value, NULL), MOE_OK);
    return d;
}

static void both_ways(const char *preset, const word *a, const word *b, const word *c) {
    const moe_layer_desc p = say_three(preset, a, b, c), q = say_three(preset, b, a, c);
    const moe_option *row;
    for (size_t i = 0; (row = moe_layer_option_at(i)); ++i)
        if (!same_setting(row, &p, &q))
            fail_msg("preset %s: %s depends on the order of %s=%s and %s=%s, then %s=%s",
                     preset ? preset : "none", row->key, a->name, a->value, b->name, b->value,
                     c ? c->name : "", c ? c->value : "");
}

/* After every preset, and as a file of two names after which a command line says the first again. */
static void both_ways_everywhere(const word *a, const word *b, const word *entries, int n_entries) {
    for (const char *const *preset = moe_layer_presets(); *preset; ++preset) both_ways(*preset, a, b, NULL);
    for (int i = 0; i < n_entries; ++i)
        if (&entries[i] != a && strcmp(a->name, entries[i].name) == 0) both_ways(NULL, a, b, &entries[i]);
}

/* Every entry beside every other word, both ways. */
static void the_order_does_not_matter(void **state) {
    (void)state;
    static word words[WORDS];
    int n_entries, contradictions = 0, close = 0;
    const int count = all_words(words, &n_entries);
    for (int i = 0; i < n_entries; ++i)
        for (int j = i + 1; j < count; ++j) {
            const word *a = &words[i], *b = &words[j];
            if (strcmp(a->name, b->name) == 0) continue;
            if (contradict(a, b)) {
                ++contradictions;
                continue;
            }
            both_ways(NULL, a, b, NULL);
            if (!share_a_field(a, b)) continue;
            both_ways_everywhere(a, b, words, n_entries);
            ++close;
        }
    assert_true(contradictions > 100 && contradictions < 500);
    assert_true(close > 100);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_order_does_not_matter)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
