/* test_null.c: NULL for handles, names, values and places, through every public function of libmoekit.
 * A call in `test_refused` has nobody to tell a text; `test_told` looks for the name of what is missing.
 * Source: the rule on NULL at the top of moekit/moe.h; tests/scripts/check_null.sh finds functions not named
 * here.
 */
#include "support/layer_fixture.h"

#include <moekit/cuda.h>
#include <moekit/quant.h>

static const moe_layer_desc small = {
    .size = sizeof small, .d_model = 8, .num_experts = 4, .top_k = 2, .expert_hidden_size = 8};

static void without_a_context(void **state) {
    (void)state;
    char bytes[8] = "before";
    double number;
    moe_layer *layer;
    moe_packed *packed;
    static const moe_gemm_rows_args zeros;
    const void *args = &zeros; /* of any operation: nobody gets as far as to read them */
    const moe_expert_ops ops = {.size = sizeof ops, .name = "own"};
    const moe_packed_desc few = {.size = sizeof few, .format = "int8", .n_groups = 1, .k = 32, .n = 1};
    test_refused(moe_ctx_wait(NULL));
    test_refused(moe_memory_copy(NULL, bytes, "after", 6));
    test_refused(moe_layer_create(NULL, &small, &layer));
    test_refused(moe_expert_register(NULL, &ops));
    test_refused(moe_packed_create(NULL, &few, bytes, &packed));
    test_refused(moe_cuda_set_stream(NULL, NULL));
    test_refused(moe_gemm_rows(NULL, args));
    test_refused(moe_gemm_outer(NULL, args));
    test_refused(moe_gather_sum(NULL, args));
    test_refused(moe_colsum(NULL, args));
    test_refused(moe_rmsnorm(NULL, args));
    test_refused(moe_rmsnorm_backward(NULL, args));
    test_refused(moe_rope(NULL, args));
    test_refused(moe_attention(NULL, args));
    test_refused(moe_attention_backward(NULL, args));
    test_refused(moe_cross_entropy(NULL, args));
    test_refused(moe_adamw(NULL, args));
    test_refused(moe_sum_squares(NULL, MOE_F32, bytes, 1, &number));
    test_refused(moe_peak(NULL, MOE_F32, 0, &number));
    test_refused(moe_time_start(NULL));
    assert_int_equal(moe_ctx_fail(NULL, MOE_ERR_STATE, "nobody hears it"), MOE_ERR_STATE);
    assert_string_equal(bytes, "before");
}

static void without_a_layer(void **state) {
    (void)state;
    moe_layer_bytes bytes = {.size = sizeof bytes};
    moe_param param = {.size = sizeof param};
    moe_routing_view view = {.size = sizeof view};
    float number[1] = {0};
    const moe_mat mat = {number, 1, 1, 0, MOE_F32};
    test_refused(moe_layer_limit_sequences(NULL, 1));
    test_refused(moe_layer_measure(NULL, 1, MOE_INFER, &bytes));
    test_refused(moe_layer_reserve(NULL, 1, MOE_INFER));
    test_refused(moe_layer_share_scratch(NULL, NULL));
    test_refused(moe_layer_forward(NULL, mat, mat, NULL, NULL));
    test_refused(moe_layer_backward(NULL, mat, mat, mat));
    test_refused(moe_layer_set_grad_dtype(NULL, MOE_F32));
    test_refused(moe_layer_param(NULL, 0, &param));
    test_refused(moe_layer_bind_param(NULL, 0, NULL, NULL));
    test_refused(moe_layer_freeze(NULL, 0, true));
    test_refused(moe_layer_param_by_name(NULL, "gate.weight", &param));
    test_refused(moe_layer_end_step(NULL, NULL));
    test_refused(moe_layer_routing(NULL, &view));
    test_refused(moe_layer_quantize(NULL, NULL));
    test_refused(moe_packed_read(NULL, number));
}

static void what_a_context_misses_is_named(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx("ref", 1);
    const char *text = moe_ctx_error(ctx);
    double number = 0;
    char byte = 0;
    moe_layer *layer = NULL;
    moe_packed *packed = NULL;
    const moe_packed_desc few = {.size = sizeof few, .format = "int8", .n_groups = 1, .k = 32, .n = 1};
    test_told(moe_layer_create(ctx, &small, NULL), text, "moe_layer_create: layer is NULL");
    test_told(moe_layer_create(ctx, NULL, &layer), text, "moe_layer_desc: the pointer is NULL");
    test_told(moe_memory_copy(ctx, NULL, &byte, 1), text, "moe_memory_copy: to is NULL");
    test_told(moe_memory_copy(ctx, &byte, NULL, 1), text, "moe_memory_copy: from is NULL");
    test_told(moe_expert_register(ctx, NULL), text, "moe_expert_ops: the pointer is NULL");
    test_told(moe_packed_create(ctx, NULL, &byte, &packed), text, "moe_packed_desc: the pointer is NULL");
    test_told(moe_packed_create(ctx, &few, NULL, &packed), text, "moe_packed_create: b is NULL");
    test_told(moe_packed_create(ctx, &few, &byte, NULL), text, "moe_packed_create: packed is NULL");
    test_told(moe_gemm_rows(ctx, NULL), text, "moe_gemm_rows: args is NULL");
    test_told(moe_gemm_outer(ctx, NULL), text, "moe_gemm_outer: args is NULL");
    test_told(moe_gather_sum(ctx, NULL), text, "moe_gather_sum: args is NULL");
    test_told(moe_colsum(ctx, NULL), text, "moe_colsum: args is NULL");
    test_told(moe_rmsnorm(ctx, NULL), text, "moe_rmsnorm: args is NULL");
    test_told(moe_rmsnorm_backward(ctx, NULL), text, "moe_rmsnorm_backward: args is NULL");
    test_told(moe_rope(ctx, NULL), text, "moe_rope: args is NULL");
    test_told(moe_attention(ctx, NULL), text, "moe_attention: args is NULL");
    test_told(moe_attention_backward(ctx, NULL), text, "moe_attention_backward: args is NULL");
    test_told(moe_cross_entropy(ctx, NULL), text, "moe_cross_entropy: args is NULL");
    test_told(moe_adamw(ctx, NULL), text, "moe_adamw: args is NULL");
    test_told(moe_sum_squares(ctx, MOE_F32, NULL, 1, &number), text, "moe_sum_squares: x is NULL");
    test_told(moe_sum_squares(ctx, MOE_F32, &number, 1, NULL), text, "moe_sum_squares: sum is NULL");
    test_told(moe_peak(ctx, MOE_F32, 0, NULL), text, "moe_peak: per_second is NULL");
    moe_ctx_destroy(ctx);
}

static void what_a_layer_misses_is_named(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx("ref", 1);
    const char *text = moe_ctx_error(ctx);
    moe_layer *layer = test_layer(ctx, &small, 4);
    const moe_mat x = test_random(MOE_F32, 4, 8, 1), y = test_output(MOE_F32, 4, 8);
    const moe_mat none = {.rows = 4, .cols = 8};
    const moe_call train = {.size = sizeof train, .mode = MOE_TRAIN};
    moe_param param = {.size = sizeof param};
    test_told(moe_layer_measure(layer, 1, MOE_INFER, NULL), text, "moe_layer_bytes: the pointer is NULL");
    test_told(moe_layer_share_scratch(layer, NULL), text, "moe_layer_share_scratch: owner is NULL");
    test_told(moe_layer_param(layer, 0, NULL), text, "moe_param: the pointer is NULL");
    test_told(moe_layer_param_by_name(layer, NULL, &param), text, "moe_layer_param_by_name: name is NULL");
    test_told(moe_layer_forward(layer, none, y, NULL, NULL), text, "x: data is NULL");
    test_told(moe_layer_forward(layer, x, none, NULL, NULL), text, "y: data is NULL");
    must(ctx, moe_layer_forward(layer, x, y, &train, NULL));
    test_told(moe_layer_routing(layer, NULL), text, "moe_routing_view: the pointer is NULL");
    test_told(moe_layer_backward(layer, x, none, none), text, "dy: data is NULL");
    must(ctx, moe_layer_backward(layer, x, y, none)); /* dx is not wanted */
    must(ctx, moe_layer_end_step(layer, NULL));
    free(x.data);
    free(y.data);
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
}

static void what_a_text_names_is_named(void **state) {
    (void)state;
    moe_error error = {0};
    moe_layer_desc desc = small;
    const moe_layer_alias *alias;
    moe_act act;
    test_told(moe_ctx_create(NULL, NULL, &error), error.text, "moe_ctx_create: ctx is NULL");
    test_told(moe_layer_desc_preset(NULL, "mixtral", &error), error.text,
              "moe_layer_desc_preset: desc is NULL");
    test_told(moe_layer_desc_preset(&desc, NULL, &error), error.text, "moe_layer_desc_preset: name is NULL");
    test_told(moe_layer_desc_set(NULL, "top_k", "1", &error), error.text, "moe_layer_desc_set: desc is NULL");
    test_told(moe_layer_desc_set(&desc, NULL, "1", &error), error.text, "moe_layer_desc_set: key is NULL");
    test_told(moe_layer_desc_set(&desc, "top_k", NULL, &error), error.text,
              "moe_layer_desc_set: value is NULL");
    test_told(moe_layer_desc_check(NULL, &error), error.text, "moe_layer_desc: the pointer is NULL");
    test_told(moe_layer_desc_fill(NULL, &desc, &error), error.text, "moe_layer_desc_fill: desc is NULL");
    test_told(moe_layer_desc_fill(&desc, NULL, &error), error.text, "moe_layer_desc_fill: filled is NULL");
    test_told(moe_layer_alias_find(NULL, "1", &alias, &error), error.text,
              "moe_layer_alias_find: name is NULL");
    test_told(moe_layer_alias_find("seq_aux", NULL, &alias, &error), error.text, "alias_find: value is NULL");
    test_told(moe_layer_alias_find("seq_aux", "1", NULL, &error), error.text,
              "moe_layer_alias_find: alias is NULL");
    test_told(moe_act_by_name(NULL, &act, &error), error.text, "moe_act_by_name: name is NULL");
    test_told(moe_act_by_name("relu", NULL, &error), error.text, "moe_act_by_name: act is NULL");
    assert_memory_equal(&desc, &small, sizeof desc);
    assert_int_equal(moe_layer_desc_set(&desc, "no_such", "1", NULL), MOE_ERR_ARGUMENT); /* text not wanted */
}

/* What returns no status returns nothing: 0, false, NULL or "". */
static void questions_about_nothing_have_no_answer(void **state) {
    (void)state;
    size_t count = 99;
    assert_string_equal(moe_ctx_error(NULL), "no context");
    assert_int_equal(moe_ctx_threads(NULL), 0);
    assert_int_equal(moe_ctx_seed(NULL), 0);
    assert_string_equal(moe_ctx_isa(NULL), "");
    assert_null(moe_ctx_kernel(NULL, "gemm_rows"));
    assert_null(moe_ctx_kernel_of(NULL, "gemm_rows", MOE_F32));
    assert_null(moe_memory_alloc(NULL, 1));
    assert_null(moe_ctx_alloc(NULL, 1));
    assert_null(moe_cuda_stream(NULL));
    assert_false(moe_layer_preset_sets(NULL));
    assert_null(moe_layer_get_desc(NULL));
    assert_false(moe_layer_routes_on_device(NULL));
    assert_null(moe_layer_company(NULL));
    assert_int_equal(moe_layer_param_count(NULL), 0);
    assert_int_equal(moe_packed_bytes(NULL), 0);
    assert_null(moe_time_rows(NULL, &count));
    assert_int_equal(count, 0);
    assert_null(moe_layer_option_find(NULL));
    assert_true(moe_option_distance(NULL, "top_k") == SIZE_MAX);
    assert_true(moe_option_distance(moe_layer_option_at(0), NULL) == SIZE_MAX);
    assert_false(moe_option_is_near(NULL, 0));
    assert_null(moe_layer_alias_setting(NULL, 0));
    assert_null(moe_layer_alias_named(NULL));
    moe_ctx *ctx = test_ctx("ref", 1);
    assert_null(moe_ctx_kernel(ctx, NULL));
    assert_null(moe_time_rows(ctx, NULL));
    moe_ctx_destroy(ctx);
}

/* Nothing is done, by those that return nothing. */
static void nothing_is_done_with_nothing(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx("ref", 1);
    moe_cpu_name(NULL, 9);
    moe_ctx_destroy(NULL);
    moe_memory_free(NULL, ctx, 1);
    moe_memory_free(ctx, NULL, 1);
    moe_ctx_free(NULL, ctx, 1);
    moe_ctx_free(ctx, NULL, 1);
    moe_layer_destroy(NULL);
    moe_layer_zero_grad(NULL);
    moe_layer_desc_forget(NULL);
    moe_packed_destroy(NULL);
    moe_parallel(NULL, 1, NULL, NULL);
    moe_parallel(ctx, 1, NULL, NULL);
    moe_time_stop(NULL);
    moe_random(1, MOE_DRAW_TEST, 0, 0, 0, NULL);
    moe_random_normal(1, MOE_DRAW_TEST, 0, 0, MOE_F32, NULL, 2, 1);
    assert_string_equal(moe_ctx_error(ctx), "");
    moe_ctx_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_a_context),
        cmocka_unit_test(without_a_layer),
        cmocka_unit_test(what_a_context_misses_is_named),
        cmocka_unit_test(what_a_layer_misses_is_named),
        cmocka_unit_test(what_a_text_names_is_named),
        cmocka_unit_test(questions_about_nothing_have_no_answer),
        cmocka_unit_test(nothing_is_done_with_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
