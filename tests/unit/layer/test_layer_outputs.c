/* test_layer_outputs.c: structs that calls write for callers built with an older or a newer header.
 * Older: a struct cut short, with a guard behind it. Newer: one with fields that this library does not know.
 */
#include "support/layer_fixture.h"

enum { T = 9, D = 6, GUARD = 0x5a, MORE = 24 };

static const moe_layer_desc desc = {
    .size = sizeof(moe_layer_desc), .d_model = D, .num_experts = 4, .top_k = 2, .expert_hidden_size = 5};

typedef moe_status (*fill)(moe_layer *layer, void *out);

static moe_status fill_stats(moe_layer *layer, void *out) {
    moe_mat x = test_random(MOE_F32, T, D, 1), y = test_output(MOE_F32, T, D);
    const moe_status status = moe_layer_forward(layer, x, y, &test_train_call, out);
    /* a refusal comes before the work */
    if (status != MOE_OK) assert_true(isnan(test_at(y, 0, 0)));
    free(x.data);
    free(y.data);
    return status;
}

static moe_status fill_view(moe_layer *layer, void *out) {
    return moe_layer_routing(layer, out);
}

static moe_status fill_param(moe_layer *layer, void *out) {
    return moe_layer_param(layer, 1, out);
}

static moe_status fill_param_by_name(moe_layer *layer, void *out) {
    return moe_layer_param_by_name(layer, "experts.down.weight", out);
}

/* Fills `bytes` of a struct of `size`; the guard behind them must stand. */
static unsigned char *filled(moe_ctx *ctx, moe_layer *layer, fill f, size_t size) {
    unsigned char *out = malloc(size + MORE);
    assert_non_null(out);
    memset(out, GUARD, size + MORE);
    memcpy(out, &size, sizeof size);
    must(ctx, f(layer, out));
    for (size_t i = size; i < size + MORE; ++i) assert_int_equal(out[i], GUARD);
    size_t kept;
    memcpy(&kept, out, sizeof kept);
    assert_true(kept == size);
    return out;
}

static void check(moe_ctx *ctx, moe_layer *layer, const char *name, fill f, size_t size) {
    unsigned char *whole = filled(ctx, layer, f, size), *newer = filled(ctx, layer, f, size + MORE);
    for (size_t older = 2 * sizeof(size_t); older < size; older += sizeof(size_t)) {
        unsigned char *part = filled(ctx, layer, f, older);
        assert_memory_equal(part + sizeof older, whole + sizeof older, older - sizeof older);
        free(part);
    }
    assert_memory_equal(newer + sizeof size, whole + sizeof size, size - sizeof size);
    for (size_t i = size; i < size + MORE; ++i) assert_int_equal(newer[i], 0);
    static const size_t senseless[] = {0, sizeof(size_t), SIZE_MAX};
    for (size_t i = 0; i < sizeof senseless / sizeof *senseless; ++i) {
        memcpy(newer, &senseless[i], sizeof *senseless);
        assert_int_equal(f(layer, newer), MOE_ERR_ARGUMENT);
        assert_non_null(strstr(moe_ctx_error(ctx), name));
        assert_non_null(strstr(moe_ctx_error(ctx), "sizeof"));
    }
    free(whole);
    free(newer);
}

static void outputs_grow_by_size(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_layer *layer = test_layer(ctx, &desc, T);
    check(ctx, layer, "moe_stats", fill_stats, sizeof(moe_stats));
    moe_stats stats = {.size = sizeof stats};
    must(ctx, fill_stats(layer, &stats)); /* refusals have left no routing to look at */
    assert_int_equal(stats.n_kept, T * 2);
    check(ctx, layer, "moe_routing_view", fill_view, sizeof(moe_routing_view));
    check(ctx, layer, "moe_param", fill_param, sizeof(moe_param));
    check(ctx, layer, "moe_param", fill_param_by_name, sizeof(moe_param));
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
}

/* --- descriptors that calls change --- */

/* Another value than the default. */
static const char *other_value(const moe_option *row) {
    switch (row->type) {
    case MOE_OPT_BOOL:
        return "true";
    case MOE_OPT_INT:
    case MOE_OPT_INT64:
        return "3";
    case MOE_OPT_FLOAT:
    case MOE_OPT_DOUBLE:
        return "0.5";
    case MOE_OPT_CHOICE:
    case MOE_OPT_TEXT:
        break;
    }
    return row->choices ? row->choices[1] : "other";
}

/* An empty descriptor of `size` bytes with a guard behind it. */
static moe_layer_desc *guarded(size_t size) {
    unsigned char *made = calloc(1, size + MORE);
    assert_non_null(made);
    memcpy(made, &size, sizeof size);
    memset(made + size, GUARD, MORE);
    return (moe_layer_desc *)(void *)made;
}

static void test_guard(const moe_layer_desc *given, size_t size) {
    const unsigned char *bytes = (const unsigned char *)given;
    assert_true(given->size == size);
    for (size_t i = size; i < size + MORE; ++i) assert_int_equal(bytes[i], GUARD);
}

/* A field that the caller's struct has is set as in a whole one, and one that it lacks is refused. */
static void set_in_part(const moe_option *row, size_t size) {
    moe_layer_desc whole = {.size = sizeof whole}, *part = guarded(size);
    moe_error error = {0};
    assert_int_equal(moe_layer_desc_set(&whole, row->key, other_value(row), &error), MOE_OK);
    const moe_status status = moe_layer_desc_set(part, row->key, other_value(row), &error);
    assert_int_equal(status, row->offset < size ? MOE_OK : MOE_ERR_UNSUPPORTED);
    if (status == MOE_OK)
        assert_memory_equal((char *)part + sizeof size, (char *)&whole + sizeof size, size - sizeof size);
    else if (!strstr(error.text, row->key) || !strstr(error.text, "older"))
        fail_msg("%s: '%s'", row->key, error.text);
    test_guard(part, size);
    assert_int_equal(moe_layer_desc_set(part, row->key, row->initial, &error), MOE_OK); /* asks nothing new */
    test_guard(part, size);
    free(part);
}

static void descriptors_are_changed_no_further_than_they_reach(void **state) {
    (void)state;
    int refused = 0;
    for (size_t size = 2 * sizeof size; size < sizeof(moe_layer_desc); size += 5 * sizeof size) {
        for (size_t i = 0; moe_layer_option_at(i); ++i) set_in_part(moe_layer_option_at(i), size);
        for (const char *const *name = moe_layer_presets(); *name; ++name) {
            moe_layer_desc *part = guarded(size);
            const moe_status status = moe_layer_desc_preset(part, *name, NULL);
            assert_true(status == MOE_OK || status == MOE_ERR_UNSUPPORTED);
            refused += status != MOE_OK;
            test_guard(part, size);
            moe_layer_desc_forget(part);
            test_guard(part, size);
            free(part);
        }
    }
    assert_true(refused > 0);
}

static void descriptors_without_a_size_are_left_alone(void **state) {
    (void)state;
    static const size_t senseless[] = {0, sizeof(size_t), SIZE_MAX};
    for (size_t i = 0; i < sizeof senseless / sizeof *senseless; ++i) {
        moe_layer_desc given = {.size = senseless[i]}, before = given;
        moe_error error;
        assert_int_equal(moe_layer_desc_set(&given, "top_k", "2", &error), MOE_ERR_ARGUMENT);
        assert_non_null(strstr(error.text, "set it to sizeof(moe_layer_desc)"));
        assert_int_equal(moe_layer_desc_preset(&given, "mixtral", &error), MOE_ERR_ARGUMENT);
        assert_non_null(strstr(error.text, "set it to sizeof(moe_layer_desc)"));
        moe_layer_desc_forget(&given);
        assert_memory_equal(&given, &before, sizeof given);
    }
}

/* An output is written on success alone. */
static void a_refused_value_writes_no_entry(void **state) {
    (void)state;
    const moe_layer_alias *const before = moe_layer_alias_at(3), *alias = before;
    assert_int_equal(moe_layer_alias_find("topk_method", "other", &alias, NULL), MOE_ERR_ARGUMENT);
    assert_int_equal(moe_layer_alias_find("moe_use_upcycling", "true", &alias, NULL), MOE_ERR_ARGUMENT);
    assert_ptr_equal(alias, before);
    assert_int_equal(moe_layer_alias_find("top_k", "3", &alias, NULL), MOE_OK);
    assert_null(alias);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_refused_value_writes_no_entry),
        cmocka_unit_test(descriptors_are_changed_no_further_than_they_reach),
        cmocka_unit_test(descriptors_without_a_size_are_left_alone),
        cmocka_unit_test(outputs_grow_by_size),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
