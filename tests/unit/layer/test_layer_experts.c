/* test_layer_experts.c: what is around the experts, seen from outside: padding tokens are as if absent.
 * y[t] = 0 for a masked t, and its dy reaches no parameter. Shared experts and latent biases do see it.
 */
#include "support/layer_fixture.h"

enum { T = 12, D = 6 };

static const uint8_t mask[T] = {1, 0, 1, 1, 0, 1, 1, 1, 0, 1, 1, 0};

static moe_layer_desc good_desc(void) {
    return (moe_layer_desc){
        .size = sizeof(moe_layer_desc), .d_model = D, .num_experts = 4, .expert_hidden_size = 5};
}

/* Forward and backward with dy[T,D]; `grad` gets all gradients, one after another. Returns their number. */
static int64_t gradients(moe_ctx *ctx, moe_layer *layer, moe_mat x, moe_mat dy, moe_mat y, float *grad) {
    moe_call call = test_train_call;
    moe_mat dx = test_output(MOE_F32, T, D);
    int64_t n = 0;
    call.token_mask = mask;
    moe_layer_zero_grad(layer);
    must(ctx, moe_layer_forward(layer, x, y, &call, NULL));
    must(ctx, moe_layer_backward(layer, x, dy, dx));
    for (int32_t i = 0; i < moe_layer_param_count(layer); ++i) {
        moe_param param = {.size = sizeof param};
        must(ctx, moe_layer_param(layer, i, &param));
        if (!param.grad) continue;
        const int64_t count = param.dim[0] * param.dim[1] * param.dim[2];
        memcpy(grad + n, param.grad, (size_t)count * sizeof *grad);
        n += count;
    }
    free(dx.data);
    return n;
}

/* Whether padding is absent: its y is zero, and its dy changes no gradient. */
static bool padding_is_absent(moe_layer_desc desc) {
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_layer *layer = test_layer(ctx, &desc, T);
    static float one[1 << 14], two[1 << 14];
    moe_mat x = test_random(MOE_F32, T, D, 1), dy = test_random(MOE_F32, T, D, 2),
            y = test_output(MOE_F32, T, D);
    bool absent = true;
    test_fill_biases(ctx, layer, 1.0);
    const int64_t n = gradients(ctx, layer, x, dy, y, one);
    for (int64_t t = 0; t < T; ++t)
        for (int64_t i = 0; i < D && !mask[t]; ++i) {
            absent = absent && test_at(y, t, i) == 0;
            ((float *)dy.data)[t * D + i] += 3;
        }
    assert_int_equal(gradients(ctx, layer, x, dy, y, two), n);
    absent = absent && memcmp(one, two, (size_t)n * sizeof *one) == 0;
    free(x.data), free(dy.data), free(y.data);
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
    return absent;
}

static void padding_is_absent_from_routed_experts(void **state) {
    (void)state;
    moe_layer_desc d = good_desc();
    assert_true(padding_is_absent(d));
    d.expert_bias = d.output_bias = true;
    assert_true(padding_is_absent(d));
    d.expert_bias = false;
    d.latent_size = 3;
    assert_true(padding_is_absent(d));
}

static void what_serves_all_tokens_sees_padding(void **state) {
    (void)state;
    moe_layer_desc d = good_desc();
    d.num_shared_experts = 1;
    assert_false(padding_is_absent(d));
    d = good_desc();
    d.expert_bias = true;
    d.latent_size = 3; /* Automodel's fc2 adds its bias to every token */
    assert_false(padding_is_absent(d));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(padding_is_absent_from_routed_experts),
        cmocka_unit_test(what_serves_all_tokens_sees_padding),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
