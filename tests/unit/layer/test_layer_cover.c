/* test_layer_cover.c: the covering set of layers itself: every value of every option is in it, and what it
 * holds for refused is refused on every way. And moe_layer_desc_check: it says of any descriptor, however
 * broken, what moe_layer_create says, and names an option.
 * Source: tests/support/cover.c.
 */
#include "support/trial.h"

static void every_pair_is_covered_or_refused(void **state) {
    (void)state;
    const int reasons = cover_print_refused(&trial_set);
    fprintf(stderr,
            "%d descriptors cover %lld of %lld feasible pairs of options (%lld pairs refused, %d reasons)\n",
            trial_set.n_problems, (long long)trial_set.n_covered, (long long)trial_set.n_feasible,
            (long long)trial_set.n_refused, reasons);
    assert_int_equal(trial_set.n_covered, trial_set.n_feasible);
}

static void no_legal_layer_holds_a_refused_pair(void **state) {
    (void)state;
    for (uint64_t i = 0; i < 4000; ++i) {
        cover_problem p;
        char text[COVER_TEXT];
        if (cover_draw(&trial_set, i, &p, text) > 0) fail_msg("a legal layer has %s", text);
    }
}

/* --- moe_layer_desc_check and moe_layer_create --- */

/* Refusals begin with the option's name, with or without "moe.", or with a field that is no option. */
static bool names_an_option(const char *text) {
    char name[64];
    const size_t length = strcspn(text, ": ");
    snprintf(name, sizeof name, "%.*s", (int)length, text);
    return strlen(text) > length + 2 && (moe_layer_option_find(name) || strcmp(name, "dtype") == 0);
}

/* What the check lets pass: names that only a context knows, and what memory there is. */
static bool only_create_knows(moe_status status, const char *text) {
    return status == MOE_ERR_MEMORY || strstr(text, "is not known") ||
           strstr(text, "neither a width nor a kind") || strstr(text, "cannot stand beside others");
}

static void *small_alloc(void *user, size_t bytes, size_t align) {
    (void)user;
    return bytes > (size_t)5 << 19 ? NULL : aligned_alloc(align, (bytes + align - 1) / align * align);
}
static void small_free(void *user, void *ptr, size_t bytes) {
    (void)user, (void)bytes;
    free(ptr);
}

/* Returns whether the descriptor is legal. */
static bool check_as_create(moe_ctx *ctx, const cover_problem *p) {
    moe_error error = {0};
    moe_layer *layer = NULL;
    char text[COVER_TEXT];
    cover_describe(p, text);
    const moe_status checked = moe_layer_desc_check(&p->desc, &error);
    const moe_status created = moe_layer_create(ctx, &p->desc, &layer);
    if (created == MOE_OK) moe_layer_destroy(layer);
    if (checked != MOE_OK && (checked != MOE_ERR_ARGUMENT || !names_an_option(error.text)))
        fail_msg("refused by '%s':%s", error.text, text);
    if (checked != MOE_OK && strcmp(error.text, moe_ctx_error(ctx)) != 0)
        fail_msg("the check says '%s', create says '%s':%s", error.text, moe_ctx_error(ctx), text);
    if (checked != created && !(checked == MOE_OK && only_create_knows(created, moe_ctx_error(ctx))))
        fail_msg("the check says %s, create says %s '%s':%s", moe_status_name(checked),
                 moe_status_name(created), moe_ctx_error(ctx), text);
    return checked == MOE_OK;
}

static moe_ctx *small_ctx(void) {
    const moe_ctx_desc desc = {
        .size = sizeof desc, .isa = "ref", .n_threads = 1, .host = {small_alloc, small_free, NULL}
    };
    moe_ctx *ctx = NULL;
    assert_int_equal(moe_ctx_create(&desc, &ctx, NULL), MOE_OK);
    return ctx;
}

static void check_says_what_create_says(void **state) {
    (void)state;
    moe_ctx *ctx = small_ctx();
    int legal = 0, drawn = 0;
    for (int i = 0; i < trial_set.n_problems; ++i, ++drawn)
        legal += check_as_create(ctx, &trial_set.problem[i]);
    assert_int_equal(legal, trial_set.n_problems);
    for (uint64_t i = 0; i < 3000; ++i, ++drawn) {
        cover_problem p;
        cover_draw_any(&trial_set, i, &p);
        legal += check_as_create(ctx, &p);
    }
    fprintf(stderr, "%d of %d descriptors are legal\n", legal, drawn);
    assert_true(legal < drawn);
    moe_ctx_destroy(ctx);
}

/* Fields of any content: numbers beyond their limits and names of nothing. */
static void break_field(moe_layer_desc *desc, const moe_option *row, uint32_t which) {
    static const int32_t whole[] = {INT32_MIN, -1, 0, 1, 7, 1 << 20, INT32_MAX};
    static const float real[] = {NAN, INFINITY, -INFINITY, -1, -0.0f, 1e-40f, 1e30f, 1};
    static const char *const name[] = {
        "",
        ",",
        "nonsense",
        "4,4,4,4",
        "identity,,4,zero",
        "99999999999999999999,1",
        "relu",
        "swiglu",
        "mixed",
        "a name that is far longer than any name that the library keeps in a buffer of its own, so that it "
        "is "
        "cut, or refused, but never overruns; and with 100%s of what a format would look for"};
    void *field = (char *)desc + row->offset;
    if (row->type == MOE_OPT_BOOL) *(bool *)field = which % 2;
    if (row->type == MOE_OPT_INT) *(int32_t *)field = whole[which % (sizeof whole / sizeof *whole)];
    if (row->type == MOE_OPT_FLOAT) *(float *)field = real[which % (sizeof real / sizeof *real)];
    if (row->type == MOE_OPT_CHOICE) *(const char **)field = name[which % (sizeof name / sizeof *name)];
}

static void broken_descriptors_are_told(void **state) {
    (void)state;
    moe_ctx *ctx = small_ctx();
    size_t count = 0;
    int legal = 0;
    while (moe_layer_option_at(count)) ++count;
    for (uint32_t i = 0; i < 6000; ++i) {
        cover_problem p = trial_set.problem[i % (uint32_t)trial_set.n_problems];
        uint32_t word[4];
        moe_random(test_seed(), MOE_DRAW_TEST, 950, 0, i, word);
        break_field(&p.desc, moe_layer_option_at(word[0] % count), word[1]);
        if (i % 3 == 0) break_field(&p.desc, moe_layer_option_at(word[2] % count), word[3]);
        if (i % 97 == 0) p.desc.dtype = (moe_dtype)(word[3] % 7);
        legal += check_as_create(ctx, &p);
    }
    fprintf(stderr, "%d of 6000 broken descriptors are legal\n", legal);
    assert_true(legal < 6000);
    moe_ctx_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_pair_is_covered_or_refused),
        cmocka_unit_test(no_legal_layer_holds_a_refused_pair),
        cmocka_unit_test(check_says_what_create_says),
        cmocka_unit_test(broken_descriptors_are_told),
    };
    return cmocka_run_group_tests(tests, trial_make_set, trial_free_set);
}
