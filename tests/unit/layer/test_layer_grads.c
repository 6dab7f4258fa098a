/* test_layer_grads.c: how gradients of parameters are kept: stored or added to, in f32 or in bf16.
 * Identities: stored into poison = added to zeros; bf16 = f32 rounded once; twice = the sum, rounded again.
 * Contract: moe_call.overwrite_grad, moe_layer_set_grad_dtype.
 */
#include "unit/layer/grads_fixture.h"

enum { T = 45, D = GRADS_D, MOST = 1 << 17 };

/* clang-format off */
static const grads_variant variants[] = {
    {"swiglu", {.num_experts = 5, .aux_loss_coeff = 0.1F, .z_loss_coeff = 0.01F}},
    {"geglu, its own pass", {.num_experts = 5, .activation = "geglu", .dropout = 0.2F}},
    {"relu with biases", {.num_experts = 5, .activation = "relu", .expert_bias = true, .router_bias = true}},
    {"shared and gated", {.num_experts = 5, .num_shared_experts = 2, .shared_expert_gate = true}},
    {"only shared", {.num_shared_experts = 2, .shared_expert_hidden_size = 17}},
    {"latent, output bias", {.num_experts = 5, .latent_size = 11, .expert_bias = true, .output_bias = true}},
    {"8 bits saved", {.num_experts = 5, .saved_dtype = "mxfp8"}},
    {"recompute", {.num_experts = 5, .recompute = "layer", .expert_up_bias = true}},
    {"f64 router", {.num_experts = 5, .router_dtype = "f64"}},
    {"at the input", {.num_experts = 5, .weight_apply = "input", .top_k = 1, .score_function = "sigmoid"}},
    {"unequal", {.expert_kinds = "13,identity,5,zero,7", .num_experts = 5}},
    {"most without a row", {.num_experts = 64, .capacity_factor = 0.1F, .drop_policy = "position"}},
    {"frozen", {.num_experts = 5, .router_frozen = true}},
    {"noisy", {.num_experts = 5, .router_type = "noisy_top_k", .load_loss_coeff = 0.1F}},
    {"sequences", {.num_experts = 5, .routing_unit = "sequence"}},
    {"two levels", {.router_type = "gshard_top2", .num_groups_outer = 2, .num_experts = 4}},
};
/* clang-format on */

static moe_layer *make(moe_ctx *ctx, const grads_variant *v, moe_dtype dtype, moe_dtype grad_dtype) {
    moe_layer *layer = grads_make(ctx, v, dtype);
    if (grad_dtype == MOE_BF16) must(ctx, moe_layer_set_grad_dtype(layer, MOE_BF16));
    must(ctx, moe_layer_reserve(layer, T, MOE_TRAIN));
    return layer;
}

static double *room(void) {
    double *numbers = malloc(MOST * sizeof *numbers);
    assert_non_null(numbers);
    return numbers;
}

static void same(const char *isa, const grads_variant *v, moe_dtype dtype, const double *a, const double *b,
                 int64_t n) {
    for (int64_t i = 0; i < n; ++i)
        if (!(a[i] == b[i]))
            fail_msg("%s, %s, dtype %d: gradient %lld is %g, and %g another way (seed %llu)", isa, v->name,
                     (int)dtype, (long long)i, a[i], b[i], (unsigned long long)test_seed());
}

static void stored_is_added_to_zeros(void **state) {
    (void)state;
    static const moe_dtype dtypes[] = {MOE_F32, MOE_F64, MOE_BF16};
    double *added = room(), *stored = room(), *again = room();
    for (int isa = 0; isa < TEST_ISAS; ++isa) {
        moe_ctx *ctx = test_ctx_if_supported(test_isas[isa]);
        for (size_t i = 0; ctx && i < 3 * (sizeof variants / sizeof *variants); ++i) {
            const grads_variant *v = &variants[i / 3];
            const moe_dtype dtype = dtypes[i % 3];
            moe_layer *layer = make(ctx, v, dtype, MOE_F32);
            moe_layer_zero_grad(layer);
            const int64_t n = grads_step(ctx, layer, T, false, added, MOST);
            grads_poison(ctx, layer);
            assert_int_equal(grads_step(ctx, layer, T, true, stored, MOST), n);
            same(test_isas[isa], v, dtype, added, stored, n);
            grads_step(ctx, layer, T, true, again, MOST);
            same(test_isas[isa], v, dtype, added, again, n);
            grads_step(ctx, layer, T, false, again, MOST);
            double moved = 0;
            for (int64_t j = 0; j < n; ++j) moved += fabs(again[j] - added[j]);
            assert_true(moved > 0);
            moe_layer_destroy(layer);
        }
        moe_ctx_destroy(ctx);
    }
    free(added), free(stored), free(again);
}

static double rounded(double value) {
    uint16_t number;
    moei_real_store(MOE_BF16, &number, 0, value);
    return moei_real_load(MOE_BF16, &number, 0);
}

/* What f32 gradients `from` are where the experts' matrices have bf16 ones, added to `before` (NULL: stored).
 */
static void narrow(moe_ctx *ctx, const moe_layer *layer, const double *from, const double *before,
                   double *to) {
    int64_t n = 0;
    for (int32_t i = 0; i < moe_layer_param_count(layer); ++i) {
        const moe_param param = grads_param(ctx, layer, i);
        const bool matrix = strstr(param.name, "up.weight") || strstr(param.name, "down.weight");
        if (!param.grad) continue;
        assert_int_equal(param.grad_dtype, matrix ? MOE_BF16 : MOE_F32);
        for (int64_t j = 0; j < grads_count(&param); ++j, ++n) {
            const double sum = (double)(float)(from[n] + (before ? before[n] : 0));
            to[n] = matrix ? rounded(sum) : sum;
        }
    }
}

static void bf16_gradients_are_rounded_once(void **state) {
    (void)state;
    double *wide = room(), *got = room(), *wanted = room(), *twice = room();
    for (int isa = 0; isa < TEST_ISAS; ++isa) {
        moe_ctx *ctx = test_ctx_if_supported(test_isas[isa]);
        for (size_t i = 0; ctx && i < sizeof variants / sizeof *variants; ++i) {
            const grads_variant *v = &variants[i];
            if (v->desc.expert_kinds) continue;
            moe_layer *layer = make(ctx, v, MOE_BF16, MOE_F32), *halved = make(ctx, v, MOE_BF16, MOE_BF16);
            assert_true(test_measure(ctx, halved, T).grads < test_measure(ctx, layer, T).grads);
            const int64_t n = grads_step(ctx, layer, T, true, wide, MOST);
            grads_poison(ctx, halved);
            assert_int_equal(grads_step(ctx, halved, T, true, got, MOST), n);
            narrow(ctx, halved, wide, NULL, wanted);
            same(test_isas[isa], v, MOE_BF16, got, wanted, n);
            if (isa > 0) { /* the oracle's sums are in f64 */
                grads_step(ctx, halved, T, false, twice, MOST);
                narrow(ctx, halved, wide, got, wanted);
                double difference = 0, size = 0;
                for (int64_t j = 0; j < n; ++j) {
                    difference += fabs(twice[j] - wanted[j]);
                    size += fabs(wanted[j]);
                }
                assert_true(difference <= 1e-6 * size);
            }
            moe_layer_destroy(layer);
            moe_layer_destroy(halved);
        }
        moe_ctx_destroy(ctx);
    }
    free(wide), free(got), free(wanted), free(twice);
}

/* One step of AdamW on a copy of the parameter, from zero moments: master, m, v and the value one after
 * another. */
static void adamw_step(moe_ctx *ctx, const moe_param *param, const void *grad, moe_dtype grad_dtype,
                       float *state) {
    const int64_t n = grads_count(param);
    memset(state, 0, (size_t)(4 * n) * sizeof *state);
    memcpy(state + 3 * n, param->value, (size_t)n * moe_dtype_bytes(param->dtype));
    for (int64_t i = 0; i < n; ++i) state[i] = (float)moei_real_load(param->dtype, param->value, i);
    const moe_adamw_args args = {.dtype = param->dtype,
                                 .n = n,
                                 .value = state + 3 * n,
                                 .master = state,
                                 .m = state + n,
                                 .v = state + 2 * n,
                                 .grad = grad,
                                 .grad_dtype = grad_dtype,
                                 .lr = 0.01,
                                 .beta1 = 0.9,
                                 .beta2 = 0.95,
                                 .eps = 1e-8,
                                 .weight_decay = 0.1,
                                 .grad_scale = 0.7,
                                 .step = 1};
    must(ctx, moe_adamw(ctx, &args));
}

static void compare_steps(moe_ctx *ctx, const moe_param *param) {
    const int64_t n = grads_count(param);
    float *wide = malloc((size_t)n * sizeof *wide), *got = malloc((size_t)(8 * n) * sizeof *got);
    double sum, wide_sum;
    assert_true(wide && got);
    for (int64_t i = 0; i < n; ++i) wide[i] = (float)moei_real_load(param->grad_dtype, param->grad, i);
    adamw_step(ctx, param, param->grad, param->grad_dtype, got);
    adamw_step(ctx, param, wide, MOE_F32, got + 4 * n);
    assert_memory_equal(got, got + 4 * n, (size_t)(4 * n) * sizeof *got);
    must(ctx, moe_sum_squares(ctx, param->grad_dtype, param->grad, n, &sum));
    must(ctx, moe_sum_squares(ctx, MOE_F32, wide, n, &wide_sum));
    assert_true(sum > 0 && sum == wide_sum);
    free(wide), free(got);
}

static void optimizer_reads_bf16_gradients(void **state) {
    (void)state;
    double *grad = room();
    for (int isa = 0; isa < TEST_ISAS; ++isa) {
        moe_ctx *ctx = test_ctx_if_supported(test_isas[isa]);
        moe_layer *layer = ctx ? make(ctx, &variants[0], MOE_BF16, MOE_BF16) : NULL;
        if (layer) grads_step(ctx, layer, T, true, grad, MOST);
        for (int32_t i = 0; layer && i < moe_layer_param_count(layer); ++i) {
            const moe_param param = grads_param(ctx, layer, i);
            if (param.grad) compare_steps(ctx, &param);
        }
        moe_layer_destroy(layer);
        moe_ctx_destroy(ctx);
    }
    free(grad);
}

/* An empty step, as of a rank whose tokens all went elsewhere, stores a gradient too. */
static void no_tokens_store_zeros(void **state) {
    (void)state;
    double *grad = room();
    for (int isa = 0; isa < TEST_ISAS; ++isa) {
        moe_ctx *ctx = test_ctx_if_supported(test_isas[isa]);
        for (size_t i = 0; ctx && i < 4 * (sizeof variants / sizeof *variants); ++i) {
            const grads_variant *v = &variants[i / 4];
            const bool narrow = i % 4 == MOEI_DTYPES;
            if (narrow && v->desc.expert_kinds) continue;
            moe_layer *layer =
                make(ctx, v, narrow ? MOE_BF16 : (moe_dtype)(i % 4), narrow ? MOE_BF16 : MOE_F32);
            grads_poison(ctx, layer);
            const int64_t n = grads_step(ctx, layer, 0, true, grad, MOST);
            assert_true(n > 0);
            for (int64_t j = 0; j < n; ++j)
                if (grad[j] != 0)
                    fail_msg("%s, %s, dtype %d: gradient %lld of no tokens is %g", test_isas[isa], v->name,
                             (int)(i % 4), (long long)j, grad[j]);
            moe_layer_destroy(layer);
        }
        moe_ctx_destroy(ctx);
    }
    free(grad);
}

static void refusals(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_layer *layer = make(ctx, &variants[0], MOE_F32, MOE_F32);
    moe_mat x = test_random(MOE_F32, T, D, 1), y = test_output(MOE_F32, T, D);
    const moe_call call = {.size = sizeof call, .overwrite_grad = true};
    assert_int_equal(moe_layer_forward(layer, x, y, &call, NULL), MOE_ERR_ARGUMENT);
    assert_non_null(strstr(moe_ctx_error(ctx), "overwrite_grad"));
    assert_int_equal(moe_layer_set_grad_dtype(layer, MOE_BF16), MOE_ERR_ARGUMENT);
    assert_non_null(strstr(moe_ctx_error(ctx), "MOE_BF16 of a layer of MOE_F32"));
    moe_layer_destroy(layer);
    layer = make(ctx, &variants[0], MOE_BF16, MOE_F32);
    assert_int_equal(moe_layer_set_grad_dtype(layer, MOE_F64), MOE_ERR_ARGUMENT);
    assert_int_equal(moe_layer_set_grad_dtype(layer, MOE_BF16), MOE_ERR_STATE);
    moe_layer_destroy(layer);
    moe_layer_desc plain = {.size = sizeof plain,
                            .dtype = MOE_BF16,
                            .d_model = D,
                            .num_experts = 4,
                            .expert_hidden_size = 1,
                            .expert = "identity"};
    must(ctx, moe_layer_create(ctx, &plain, &layer));
    assert_int_equal(moe_layer_set_grad_dtype(layer, MOE_BF16), MOE_ERR_UNSUPPORTED);
    assert_non_null(strstr(moe_ctx_error(ctx), "ffn"));
    moe_layer_destroy(layer);
    free(x.data), free(y.data);
    moe_ctx_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stored_is_added_to_zeros),
        cmocka_unit_test(bf16_gradients_are_rounded_once),
        cmocka_unit_test(optimizer_reads_bf16_gradients),
        cmocka_unit_test(no_tokens_store_zeros),
        cmocka_unit_test(refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
