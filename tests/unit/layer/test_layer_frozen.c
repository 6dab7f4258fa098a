/* test_layer_frozen.c: parameters of experts that are not trained (moe_layer_freeze).
 * Identities: y, dx and the gradients of what is trained are those of a layer that trains all, to the bit;
 * those of what is frozen stay as they were. Contract: moekit/expert.h.
 */
#include "unit/layer/grads_fixture.h"

enum { T = 36, D = GRADS_D };

static const grads_variant variants[] = {
    {"swiglu",          {.num_experts = 5, .top_k = 2}                                           },
    {"with biases",     {.num_experts = 5, .top_k = 2, .activation = "relu", .expert_bias = true}},
    {"shared as well",  {.num_experts = 5, .top_k = 2, .num_shared_experts = 2}                  },
    {"gathered before", {.num_experts = 5, .top_k = 1, .weight_apply = "input"}                  },
};
static const grads_variant unequal = {
    "unequal", {.num_experts = 3, .top_k = 2, .expert_kinds = "13,identity,7"}
};

static bool of_experts(const moe_param *param) {
    return strncmp(param->name, "gate.", 5) != 0;
}

/* Bit i of `frozen`: the layer's i-th parameter; the router's are left out. */
static void freeze(moe_ctx *ctx, moe_layer *layer, unsigned frozen) {
    for (int32_t i = 0; i < moe_layer_param_count(layer); ++i) {
        const moe_param param = grads_param(ctx, layer, i);
        if (!of_experts(&param)) continue;
        must(ctx, moe_layer_freeze(layer, i, frozen >> i & 1));
        assert_int_equal(grads_param(ctx, layer, i).frozen, frozen >> i & 1);
    }
}

/* One step over poisoned gradients: dx [T, D]. */
static moe_mat step(moe_ctx *ctx, moe_layer *layer, moe_dtype dtype, int poison, bool overwrite) {
    moe_mat x = test_random(dtype, T, D, 1), dy = test_random(dtype, T, D, 2), y = test_output(dtype, T, D);
    moe_mat dx = test_output(dtype, T, D);
    moe_call call = test_train_call;
    call.overwrite_grad = overwrite;
    for (int32_t i = 0; i < moe_layer_param_count(layer); ++i) {
        const moe_param param = grads_param(ctx, layer, i);
        if (param.grad)
            memset(param.grad, poison, (size_t)grads_count(&param) * moe_dtype_bytes(param.grad_dtype));
    }
    must(ctx, moe_layer_forward(layer, x, y, &call, NULL));
    must(ctx, moe_layer_backward(layer, x, dy, dx));
    free(x.data);
    free(y.data);
    free(dy.data);
    return dx;
}

static bool is_filled(const moe_param *param, int byte) {
    const unsigned char *grad = param->grad;
    for (int64_t i = 0; i < grads_count(param) * (int64_t)moe_dtype_bytes(param->grad_dtype); ++i)
        if (grad[i] != byte) return false;
    return true;
}

static void check(moe_ctx *ctx, const grads_variant *v, moe_dtype dtype, bool overwrite, bool before) {
    moe_layer *all = grads_make(ctx, v, dtype);
    must(ctx, moe_layer_reserve(all, T, MOE_TRAIN));
    const int poison = overwrite ? 0x3c : 0;
    const moe_mat want = step(ctx, all, dtype, poison, overwrite);
    for (unsigned frozen = 0; frozen < 1U << moe_layer_param_count(all); ++frozen) {
        moe_layer *some = grads_make(ctx, v, dtype);
        if (before) freeze(ctx, some, frozen);
        must(ctx, moe_layer_reserve(some, T, MOE_TRAIN));
        if (!before) freeze(ctx, some, frozen);
        const moe_mat dx = step(ctx, some, dtype, poison, overwrite);
        assert_memory_equal(dx.data, want.data, test_bytes(want));
        for (int32_t i = 0; i < moe_layer_param_count(some); ++i) {
            const moe_param a = grads_param(ctx, all, i), b = grads_param(ctx, some, i);
            if (!b.frozen)
                assert_memory_equal(a.grad, b.grad, (size_t)grads_count(&a) * moe_dtype_bytes(a.grad_dtype));
            else if (before)
                assert_null(b.grad);
            else
                assert_true(is_filled(&b, poison));
        }
        free(dx.data);
        moe_layer_destroy(some);
    }
    free(want.data);
    moe_layer_destroy(all);
}

static void the_rest_is_as_if_all_were_trained(void **state) {
    (void)state;
    static const moe_dtype dtypes[] = {MOE_F32, MOE_F64, MOE_BF16};
    moe_ctx *ctx = test_ctx(NULL, 2);
    for (size_t v = 0; v < sizeof variants / sizeof *variants; ++v)
        for (size_t d = 0; d < sizeof dtypes / sizeof *dtypes; ++d)
            for (int i = 0; i < 4; ++i) check(ctx, &variants[v], dtypes[d], i & 1, i & 2);
    moe_ctx_destroy(ctx);
}

static void it_takes_no_memory_and_what_is_trained_again_has_some(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_layer *layer = grads_make(ctx, &variants[0], MOE_F32);
    const size_t all = test_measure(ctx, layer, T).grads;
    const moe_param up = grads_param(ctx, layer, 1);
    must(ctx, moe_layer_freeze(layer, 1, true));
    assert_int_equal(all - test_measure(ctx, layer, T).grads, (size_t)grads_count(&up) * sizeof(float));
    must(ctx, moe_layer_freeze(layer, 1, false));
    must(ctx, moe_layer_freeze(layer, 1, true));
    must(ctx, moe_layer_reserve(layer, T, MOE_TRAIN));
    assert_int_equal(moe_layer_freeze(layer, 1, false), MOE_ERR_STATE);
    assert_non_null(strstr(moe_ctx_error(ctx), "experts.up.weight: this layer was reserved"));
    must(ctx, moe_layer_reserve(layer, T, MOE_INFER)); /* the gradients stay, and are no more */
    assert_int_equal(moe_layer_freeze(layer, 1, false), MOE_ERR_STATE);
    must(ctx, moe_layer_reserve(layer, T, MOE_TRAIN));
    assert_true(grads_param(ctx, layer, 1).frozen);
    must(ctx, moe_layer_freeze(layer, 2, true)); /* this one has a gradient */
    must(ctx, moe_layer_freeze(layer, 2, false));
    assert_int_equal(moe_layer_freeze(layer, 0, true), MOE_ERR_UNSUPPORTED);
    assert_non_null(strstr(moe_ctx_error(ctx), "gate.weight: only parameters of ffn experts"));
    assert_int_equal(moe_layer_freeze(layer, 9, true), MOE_ERR_ARGUMENT);
    moe_layer_destroy(layer);
    layer = grads_make(ctx, &unequal, MOE_F32);
    for (int32_t i = 0; i < moe_layer_param_count(layer); ++i)
        assert_int_equal(moe_layer_freeze(layer, i, true), MOE_ERR_UNSUPPORTED);
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_rest_is_as_if_all_were_trained),
        cmocka_unit_test(it_takes_no_memory_and_what_is_trained_again_has_some),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
