/* test_layer_kinds.c: what a layer asks of a kind of expert that is not the library's: a name that may go,
 * and parameters that it can keep. One that fails without a word is named, alone and among others. Source:
 * include/moekit/expert.h.
 */
#include "support/layer_fixture.h"

#include "support/scale_kind.h"

enum { T = 9, D = 6, E = 3 };

static moe_layer_desc kinds_desc(const char *expert, const char *kinds) {
    return (moe_layer_desc){.size = sizeof(moe_layer_desc),
                            .d_model = D,
                            .num_experts = E,
                            .top_k = 2,
                            .expert_hidden_size = 4,
                            .expert = expert,
                            .expert_kinds = kinds};
}

static void test_fails(moe_ctx *ctx, moe_status status, moe_status expected, const char *text) {
    assert_int_equal(status, expected);
    if (!strstr(moe_ctx_error(ctx), text)) fail_msg("'%s' does not say '%s'", moe_ctx_error(ctx), text);
}

/* What is found is the context's copy; what serves expert_kinds has no name of its own. */
static void a_kind_is_found_by_the_name_it_had(void **state) {
    (void)state;
    scale_habit habit = {.name = "scale", .overwrites = true};
    moe_expert_ops ops = scale_kind(&habit);
    char name[] = "scale";
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_layer *layer = NULL;
    moe_layer_desc desc = kinds_desc("scale", NULL);
    ops.name = name;
    must(ctx, moe_expert_register(ctx, &ops));
    memset(name, 'x', strlen(name));
    must(ctx, moe_layer_create(ctx, &desc, &layer));
    moe_layer_destroy(layer);
    desc = kinds_desc("mixed", NULL);
    test_fails(ctx, moe_layer_create(ctx, &desc, &layer), MOE_ERR_ARGUMENT, "expert: 'mixed' is not known");
    moe_ctx_destroy(ctx);
}

static void kinds_without_a_hidden_layer_need_no_width(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 1);
    const moe_mat x = test_random(MOE_F32, T, D, 1), y = test_output(MOE_F32, T, D);
    const char *const kinds[] = {"identity", "zero", "ffn"};
    for (int i = 0; i < 3; ++i) {
        moe_layer_desc desc = kinds_desc(kinds[i], NULL);
        moe_layer *layer = NULL;
        desc.expert_hidden_size = 0;
        if (i == 2) {
            test_fails(ctx, moe_layer_create(ctx, &desc, &layer), MOE_ERR_ARGUMENT, "expert_hidden_size: 0");
            continue;
        }
        must(ctx, moe_layer_create(ctx, &desc, &layer));
        must(ctx, moe_layer_reserve(layer, T, MOE_INFER));
        must(ctx, moe_layer_forward(layer, x, y, NULL, NULL));
        for (int64_t t = 0; t < T; ++t) /* weights sum to 1 */
            assert_true(fabs(test_at(y, t, 0) - (i == 0 ? test_at(x, t, 0) : 0)) < 1e-6);
        moe_layer_destroy(layer);
    }
    free(x.data), free(y.data);
    moe_ctx_destroy(ctx);
}

static void kinds_that_want_their_rows_gathered_stand_alone(void **state) {
    (void)state;
    scale_habit habit = {.name = "gathered"};
    moe_expert_ops ops = scale_kind(&habit);
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_layer *layer = NULL;
    const moe_layer_desc desc = kinds_desc(NULL, "4,gathered,zero");
    ops.contiguous = true;
    must(ctx, moe_expert_register(ctx, &ops));
    test_fails(ctx, moe_layer_create(ctx, &desc, &layer), MOE_ERR_UNSUPPORTED,
               "'gathered' cannot stand beside others");
    moe_ctx_destroy(ctx);
}

/* --- parameters that no layer can keep --- */

enum { PARAMS = 2 };
static moe_param told[PARAMS];

static int32_t told_count(const void *self) {
    (void)self;
    return PARAMS;
}

static moe_status told_param(const void *self, int32_t index, moe_param *param) {
    (void)self;
    *param = told[index];
    return MOE_OK;
}

#define LONG_NAME "a.name.of.fifty.bytes.which.leaves.no.room.for.more"

/* clang-format off */
static const struct {
    const char *text;
    moe_param second;
} unfit[] = {
    {"parameter 1 is called ''; a name has 1 to", {.n_dim = 1, .dim = {1}}},
    {"parameter 1 is called ''; a name has 1 to", {.name = "", .n_dim = 1, .dim = {1}}},
    {"parameter 1 is called '" LONG_NAME, {.name = LONG_NAME LONG_NAME, .n_dim = 1, .dim = {1}}},
    {"parameters 0 and 1 are both called 'first'", {.name = "first", .n_dim = 1, .dim = {1}}},
    {"'flat' has 0 dimensions; 1 to 3 are possible", {.name = "flat", .dim = {1}}},
    {"'deep' has 4 dimensions; 1 to 3 are possible", {.name = "deep", .n_dim = 4, .dim = {1, 1, 1}}},
    {"dim[1] of parameter 'none' is 0; it must be at least 1", {.name = "none", .n_dim = 2, .dim = {4, 0}}},
    {"dtype of parameter 'odd' is 9; it must be", {.name = "odd", .n_dim = 1, .dim = {1}, .dtype = (moe_dtype)9}},
};
/* clang-format on */

static void parameters_that_no_layer_can_keep_are_refused(void **state) {
    (void)state;
    scale_habit habit = {.name = "scale"};
    moe_expert_ops ops = scale_kind(&habit);
    moe_ctx *ctx = test_ctx(NULL, 1);
    ops.param_count = told_count;
    ops.param = told_param;
    must(ctx, moe_expert_register(ctx, &ops));
    for (size_t i = 0; i < 2 * sizeof unfit / sizeof *unfit; ++i) {
        const moe_layer_desc desc = kinds_desc(i % 2 ? NULL : "scale", i % 2 ? "4,scale,zero" : NULL);
        moe_layer *layer = NULL;
        told[0] = (moe_param){.name = "first", .n_dim = 1, .dim = {1}};
        told[1] = unfit[i / 2].second;
        test_fails(ctx, moe_layer_create(ctx, &desc, &layer), MOE_ERR_ARGUMENT, unfit[i / 2].text);
        assert_non_null(strstr(moe_ctx_error(ctx), "expert 'scale': "));
        assert_null(layer);
    }
    moe_ctx_destroy(ctx);
}

/* --- failures without a word --- */

static moe_status silent_create(moe_ctx *ctx, const moe_expert_desc *desc, void **self) {
    (void)ctx, (void)desc, (void)self;
    return MOE_ERR_MEMORY;
}

static moe_status silent_param(const void *self, int32_t index, moe_param *param) {
    (void)self, (void)index, (void)param;
    return MOE_ERR_STATE;
}

static moe_status silent_run(void *self, const moe_expert_io *io) {
    (void)self, (void)io;
    return MOE_ERR_INTERNAL;
}

/* An earlier failure is there to be mistaken for theirs. */
static void silent_failures_are_named(void **state) {
    (void)state;
    scale_habit habit = {.name = "forward"};
    const moe_call train = {.size = sizeof train, .mode = MOE_TRAIN};
    const moe_expert_ops good = scale_kind(&habit);
    moe_expert_ops ops[] = {good, good, good, good};
    moe_ctx *ctx = test_ctx(NULL, 1);
    const moe_mat x = test_random(MOE_F32, T, D, 1), y = test_output(MOE_F32, T, D);
    ops[0].name = "create", ops[0].create = silent_create;
    ops[1].name = "param", ops[1].param = silent_param;
    ops[2].name = "forward", ops[2].forward = silent_run;
    ops[3].name = "backward", ops[3].backward = silent_run;
    for (int i = 0; i < 4; ++i) must(ctx, moe_expert_register(ctx, &ops[i]));
    for (int i = 0; i < 8; ++i) {
        char kinds[40], text[80];
        snprintf(kinds, sizeof kinds, "4,%s,zero", ops[i / 2].name);
        snprintf(text, sizeof text, "expert '%s': its %s failed and did not say why", ops[i / 2].name,
                 ops[i / 2].name);
        const moe_layer_desc desc = kinds_desc(i % 2 ? NULL : ops[i / 2].name, i % 2 ? kinds : NULL);
        moe_layer *layer = NULL;
        test_refused(moe_layer_create(ctx, NULL, &layer));
        if (i < 4) {
            test_fails(ctx, moe_layer_create(ctx, &desc, &layer), i < 2 ? MOE_ERR_MEMORY : MOE_ERR_STATE,
                       text);
            continue;
        }
        must(ctx, moe_layer_create(ctx, &desc, &layer));
        must(ctx, moe_layer_reserve(layer, T, MOE_TRAIN));
        if (i >= 6) must(ctx, moe_layer_forward(layer, x, y, &train, NULL));
        test_fails(ctx,
                   i < 6 ? moe_layer_forward(layer, x, y, &train, NULL)
                         : moe_layer_backward(layer, x, y, (moe_mat){0}),
                   MOE_ERR_INTERNAL, text);
        moe_layer_destroy(layer);
    }
    free(x.data), free(y.data);
    moe_ctx_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_kind_is_found_by_the_name_it_had),
        cmocka_unit_test(kinds_without_a_hidden_layer_need_no_width),
        cmocka_unit_test(kinds_that_want_their_rows_gathered_stand_alone),
        cmocka_unit_test(parameters_that_no_layer_can_keep_are_refused),
        cmocka_unit_test(silent_failures_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
