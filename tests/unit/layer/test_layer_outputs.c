/* test_layer_outputs.c: structs a layer writes for callers built with an older or a newer header.
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

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(outputs_grow_by_size),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
