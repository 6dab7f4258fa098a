/* test_layer_lent.c: layers whose parameters and gradients lie in the caller's memory (moe_layer_bind_param).
 * Identities: y, dx and gradients are those of a layer that owns its parameters, to the bit; two layers that
 * are lent the same values each keep a forward of their own. Contract: moekit/moe.h section 6.
 */
#include "unit/layer/grads_fixture.h"

#include <moekit/quant.h>

#include "support/scale_kind.h"

enum { T = 36, D = 24, MOST = 1 << 16 };

typedef struct variant {
    const char *name;
    moe_layer_desc desc;
} variant;
/* clang-format off */
static const variant variants[] = {
    {"swiglu", {.num_experts = 5, .aux_loss_coeff = 0.1F, .z_loss_coeff = 0.01F}},
    {"relu with biases", {.num_experts = 5, .activation = "relu", .expert_bias = true, .router_bias = true}},
    {"shared and gated", {.num_experts = 5, .num_shared_experts = 2, .shared_expert_gate = true}},
    {"only shared", {.num_shared_experts = 2, .shared_expert_hidden_size = 17}},
    {"latent, output bias", {.num_experts = 5, .latent_size = 11, .expert_bias = true, .output_bias = true}},
    {"unequal", {.expert_kinds = "13,identity,5,zero,7", .num_experts = 5}},
    {"frozen, biased selection",
     {.num_experts = 5,
      .router_frozen = true,
      .score_function = "sigmoid",
      .selection_bias = true,
      .selection_bias_update_rate = 0.1F}},
    {"two levels", {.router_type = "gshard_top2", .num_groups_outer = 2, .num_experts = 4}},
    {"two levels, frozen",
     {.router_type = "gshard_top2", .num_groups_outer = 2, .num_experts = 4, .router_frozen = true}},
};
/* clang-format on */

static moe_layer_desc desc_of(const variant *v, moe_dtype dtype, bool unowned) {
    moe_layer_desc desc = v->desc;
    desc.size = sizeof desc;
    desc.dtype = dtype;
    desc.d_model = D;
    desc.expert_hidden_size = 19;
    desc.init_std = 0.3F;
    desc.unowned = unowned;
    return desc;
}

static moe_layer *make(moe_ctx *ctx, const variant *v, moe_dtype dtype, bool unowned) {
    moe_layer *layer = NULL;
    const moe_layer_desc desc = desc_of(v, dtype, unowned);
    must(ctx, moe_layer_create(ctx, &desc, &layer));
    must(ctx, moe_layer_reserve(layer, T, MOE_TRAIN));
    return layer;
}

static void *lent(size_t numbers, moe_dtype dtype, int fill) {
    const size_t bytes = (numbers * moe_dtype_bytes(dtype) + 63) / 64 * 64;
    void *memory = aligned_alloc(64, bytes);
    assert_non_null(memory);
    return memset(memory, fill, bytes);
}

/* Copies of the owner's values, poison for gradients. */
static void lend(moe_ctx *ctx, const moe_layer *owner, moe_layer *layer) {
    assert_int_equal(moe_layer_param_count(owner), moe_layer_param_count(layer));
    for (int32_t i = 0; i < moe_layer_param_count(owner); ++i) {
        const moe_param from = grads_param(ctx, owner, i), to = grads_param(ctx, layer, i);
        const size_t numbers = (size_t)grads_count(&from);
        assert_string_equal(from.name, to.name);
        assert_null(to.value);
        assert_null(to.grad);
        assert_int_equal(to.frozen, !from.buffer && !from.grad);
        void *value = memcpy(lent(numbers, from.dtype, 0), from.value, numbers * moe_dtype_bytes(from.dtype));
        must(ctx,
             moe_layer_bind_param(layer, i, value, from.grad ? lent(numbers, from.grad_dtype, 0xff) : NULL));
        const moe_param now = grads_param(ctx, layer, i);
        assert_ptr_equal(now.value, value);
        assert_int_equal(now.grad != NULL, from.grad != NULL);
    }
}

static void take_back(moe_ctx *ctx, moe_layer *layer, bool values) {
    for (int32_t i = 0; i < moe_layer_param_count(layer); ++i) {
        const moe_param param = grads_param(ctx, layer, i);
        if (values) free(param.value);
        free(param.grad);
    }
    moe_layer_destroy(layer);
}

static void same_bits(const variant *v, const char *what, const void *a, const void *b, size_t bytes) {
    if (memcmp(a, b, bytes) != 0)
        fail_msg("%s: %s is another in lent memory (seed %llu)", v->name, what,
                 (unsigned long long)test_seed());
}

static void lent_is_owned_to_the_bit(void **state) {
    (void)state;
    static const moe_dtype dtypes[] = {MOE_F32, MOE_F64, MOE_BF16};
    static double wanted[MOST], got[MOST];
    moe_ctx *ctx = test_ctx(NULL, 2);
    for (size_t i = 0; i < 3 * (sizeof variants / sizeof *variants); ++i) {
        const variant *v = &variants[i / 3];
        moe_layer *owner = make(ctx, v, dtypes[i % 3], false), *layer = make(ctx, v, dtypes[i % 3], true);
        lend(ctx, owner, layer);
        const int64_t n = grads_step(ctx, owner, T, true, wanted, MOST);
        assert_int_equal(grads_step(ctx, layer, T, true, got, MOST), n);
        same_bits(v, "a gradient", wanted, got, (size_t)n * sizeof *wanted);
        must(ctx, moe_layer_end_step(owner, NULL));
        must(ctx, moe_layer_end_step(layer, NULL));
        for (int32_t j = 0; j < moe_layer_param_count(owner); ++j) {
            const moe_param a = grads_param(ctx, owner, j), b = grads_param(ctx, layer, j);
            same_bits(v, a.name, a.value, b.value, (size_t)grads_count(&a) * moe_dtype_bytes(a.dtype));
        }
        const moe_layer_bytes bytes = test_measure(ctx, layer, T), owned = test_measure(ctx, owner, T);
        assert_true(bytes.params == 0 && bytes.grads == 0 && owned.params > 0);
        assert_true(bytes.saved == owned.saved && bytes.scratch == owned.scratch);
        moe_layer_destroy(owner);
        take_back(ctx, layer, true);
    }
    moe_ctx_destroy(ctx);
}

/* forward 1, forward 2, backward 1, backward 2 of two layers with the same values: as one after the other. */
static void each_keeps_its_own_forward(void **state) {
    (void)state;
    const variant *v = &variants[0];
    moe_ctx *ctx = test_ctx(NULL, 2);
    moe_layer *owner = make(ctx, v, MOE_F32, false),
              *layer[2] = {make(ctx, v, MOE_F32, true), make(ctx, v, MOE_F32, true)};
    lend(ctx, owner, layer[0]);
    for (int32_t i = 0; i < moe_layer_param_count(owner); ++i) {
        const moe_param param = grads_param(ctx, layer[0], i);
        must(ctx, moe_layer_bind_param(layer[1], i, param.value,
                                       lent((size_t)grads_count(&param), param.grad_dtype, 0xff)));
    }
    moe_mat x[2], dy = test_random(MOE_F32, T, D, 9), y = test_output(MOE_F32, T, D);
    moe_mat dx = test_output(MOE_F32, T, D), wanted = test_output(MOE_F32, T, D);
    for (uint32_t i = 0; i < 2; ++i) {
        x[i] = test_random(MOE_F32, T, D, 10 + i);
        must(ctx, moe_layer_forward(layer[i], x[i], y, &test_train_call, NULL));
    }
    for (int i = 0; i < 2; ++i) {
        must(ctx, moe_layer_backward(layer[i], x[i], dy, dx));
        must(ctx, moe_layer_forward(owner, x[i], y, &test_train_call, NULL));
        must(ctx, moe_layer_backward(owner, x[i], dy, wanted));
        same_bits(v, "dx", wanted.data, dx.data, test_bytes(dx));
    }
    free(x[0].data), free(x[1].data), free(dy.data), free(y.data), free(dx.data), free(wanted.data);
    take_back(ctx, layer[1], false);
    take_back(ctx, layer[0], true);
    moe_layer_destroy(owner);
    moe_ctx_destroy(ctx);
}

static void told(moe_ctx *ctx, moe_status got, moe_status expected, const char *text) {
    assert_int_equal(got, expected);
    if (!strstr(moe_ctx_error(ctx), text)) fail_msg("'%s' does not say '%s'", moe_ctx_error(ctx), text);
}

static void what_is_missing_or_wrong_is_named(void **state) {
    (void)state;
    const variant *v = &variants[6]; /* a frozen gate first, then its bias */
    const moe_quant_desc quant = {.size = sizeof quant, .format = "int8"};
    scale_habit habit = {.name = "scale"};
    const moe_expert_ops foreign = scale_kind(&habit);
    const moe_layer_desc kind = {.size = sizeof kind,
                                 .d_model = D,
                                 .num_experts = 2,
                                 .expert = "scale",
                                 .expert_hidden_size = 8,
                                 .unowned = true};
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_layer *owner = make(ctx, v, MOE_F32, false), *layer = make(ctx, v, MOE_F32, true), *none = NULL;
    float *numbers = lent(64, MOE_F32, 0);
    moe_mat x = test_random(MOE_F32, T, D, 1), y = test_output(MOE_F32, T, D), no_dx = {0};
    told(ctx, moe_layer_bind_param(owner, 0, numbers, NULL), MOE_ERR_STATE,
         "gate.weight: this layer has memory");
    told(ctx, moe_layer_bind_param(layer, 99, numbers, NULL), MOE_ERR_ARGUMENT, "parameter 99");
    told(ctx, moe_layer_bind_param(layer, 0, numbers, numbers), MOE_ERR_ARGUMENT,
         "gate.weight: it is not trained");
    told(ctx, moe_layer_bind_param(layer, 0, numbers + 1, NULL), MOE_ERR_ARGUMENT, "64-byte aligned");
    told(ctx, moe_layer_forward(layer, x, y, &test_train_call, NULL), MOE_ERR_STATE,
         "gate.weight: nobody has lent");
    told(ctx, moe_layer_end_step(layer, NULL), MOE_ERR_STATE, "gate.weight: nobody has lent");
    told(ctx, moe_layer_quantize(layer, &quant), MOE_ERR_STATE, "gate.weight: nobody has lent");
    for (int32_t i = 0; i < moe_layer_param_count(layer); ++i) {
        const moe_param param = grads_param(ctx, owner, i);
        must(ctx, moe_layer_bind_param(layer, i, param.value, NULL));
    }
    must(ctx, moe_layer_forward(layer, x, y, &test_train_call, NULL));
    told(ctx, moe_layer_backward(layer, x, y, no_dx), MOE_ERR_STATE,
         "experts.up.weight: nobody has lent this layer its gradient");
    must(ctx, moe_expert_register(ctx, &foreign));
    told(ctx, moe_layer_create(ctx, &kind, &none), MOE_ERR_UNSUPPORTED, "expert 'scale'");
    moe_layer_destroy(layer);
    moe_layer_destroy(owner);
    free(numbers), free(x.data), free(y.data);
    moe_ctx_destroy(ctx);
}

/* Packed from lent weights, which drop_weights does not free: they are the caller's. */
static void lent_weights_are_packed(void **state) {
    (void)state;
    const variant *v = &variants[0];
    const moe_quant_desc quant = {.size = sizeof quant, .format = "int8", .drop_weights = true};
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_layer_desc desc = desc_of(v, MOE_F32, true);
    moe_layer *owner = NULL, *layer = NULL;
    moe_mat x = test_random(MOE_F32, T, D, 1), y = test_output(MOE_F32, T, D),
            wanted = test_output(MOE_F32, T, D);
    must(ctx, moe_layer_create(ctx, &desc, &layer));
    desc.unowned = false;
    must(ctx, moe_layer_create(ctx, &desc, &owner));
    must(ctx, moe_layer_reserve(layer, T, MOE_INFER));
    must(ctx, moe_layer_reserve(owner, T, MOE_INFER));
    for (int32_t i = 0; i < moe_layer_param_count(layer); ++i)
        must(ctx, moe_layer_bind_param(layer, i, grads_param(ctx, owner, i).value, NULL));
    must(ctx, moe_layer_quantize(layer, &quant));
    must(ctx, moe_layer_forward(layer, x, y, NULL, NULL));
    told(ctx, moe_layer_bind_param(layer, 1, y.data, NULL), MOE_ERR_STATE, "drop_weights");
    must(ctx, moe_layer_quantize(owner, &quant));
    must(ctx, moe_layer_forward(owner, x, wanted, NULL, NULL));
    same_bits(v, "y", wanted.data, y.data, test_bytes(y));
    moe_layer_destroy(layer);
    moe_layer_destroy(owner);
    free(x.data), free(y.data), free(wanted.data);
    moe_ctx_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lent_is_owned_to_the_bit), cmocka_unit_test(each_keeps_its_own_forward),
        cmocka_unit_test(what_is_missing_or_wrong_is_named), cmocka_unit_test(lent_weights_are_packed)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
