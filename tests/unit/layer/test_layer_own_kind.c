/* test_layer_own_kind.c: gradients of a kind that is not the library's (scale_kind.h). Registered three
 * times: it adds to its gradient whatever it is told, stores it where told to, has it in bf16. Alone and
 * beside others. Identities: stored into poison = added to zeros; bf16 = f32 rounded once.
 */
#include "unit/layer/grads_fixture.h"

#include "support/scale_kind.h"

enum { T = 36, D = 12, E = 5, MOST = 1 << 12 };

static void add_kind(moe_ctx *ctx, scale_habit *habit) {
    const moe_expert_ops ops = scale_kind(habit);
    habit->told = 0;
    must(ctx, moe_expert_register(ctx, &ops));
}

static moe_layer *make(moe_ctx *ctx, const char *expert, const char *kinds, moe_dtype dtype) {
    const moe_layer_desc desc = {.size = sizeof desc,
                                 .dtype = dtype,
                                 .d_model = D,
                                 .num_experts = E,
                                 .top_k = 2,
                                 .expert_hidden_size = 7,
                                 .aux_loss_coeff = 0.1F,
                                 .expert = expert,
                                 .expert_kinds = kinds};
    moe_layer *layer = NULL;
    must(ctx, moe_layer_create(ctx, &desc, &layer));
    must(ctx, moe_layer_reserve(layer, T, MOE_TRAIN));
    return layer;
}

static const struct kinds {
    const char *expert, *kinds;
} layers[] = {
    {"stores", ""                           },
    {"adds",   ""                           },
    {"narrow", ""                           },
    {"",       "stores,stores,adds,narrow,5"},
    {"",       "9,adds,stores,identity,zero"},
    {"",       "narrow,3,stores,4,adds"     }
};
enum { LAYERS = sizeof layers / sizeof *layers };

/* 1 where the kind serves a part of the layer: neighbours of one kind are one part, and no layer has two. */
static int parts_of(const struct kinds *layer, const char *kind) {
    return strstr(layer->expert, kind) || strstr(layer->kinds, kind);
}

static void stored_is_added_to_zeros(void **state) {
    (void)state;
    scale_habit stores = {.name = "stores", .overwrites = true}, adds = {.name = "adds"},
                narrow = {.name = "narrow", .overwrites = true, .grad_dtype = MOE_BF16};
    static double added[MOST], stored[MOST], twice[MOST];
    moe_ctx *ctx = test_ctx(NULL, 2);
    add_kind(ctx, &stores), add_kind(ctx, &adds), add_kind(ctx, &narrow);
    for (int i = 0; i < 3 * LAYERS; ++i) {
        const char *kinds = layers[i / 3].kinds, *expert = layers[i / 3].expert;
        moe_layer *layer = make(ctx, *expert ? expert : NULL, *kinds ? kinds : NULL, (moe_dtype)(i % 3));
        moe_layer_zero_grad(layer);
        const int64_t n = grads_step(ctx, layer, T, false, added, MOST);
        assert_int_equal(stores.told + adds.told + narrow.told, 0);
        grads_poison(ctx, layer);
        assert_int_equal(grads_step(ctx, layer, T, true, stored, MOST), n);
        double moved = 0;
        grads_step(ctx, layer, T, false, twice, MOST);
        for (int64_t j = 0; j < n; ++j) {
            if (!(stored[j] == added[j]))
                fail_msg("%s%s, dtype %d: gradient %lld is %g stored and %g added to zeros (seed %llu)",
                         expert, kinds, i % 3, (long long)j, stored[j], added[j],
                         (unsigned long long)test_seed());
            moved += fabs(twice[j] - stored[j]);
        }
        assert_true(moved > 0);
        assert_int_equal(adds.told, 0); /* it would be told what it does not heed */
        assert_int_equal(stores.told, parts_of(&layers[i / 3], "stores"));
        assert_int_equal(narrow.told, parts_of(&layers[i / 3], "narrow"));
        stores.told = adds.told = narrow.told = 0;
        moe_layer_destroy(layer);
    }
    moe_ctx_destroy(ctx);
}

/* bf16 gradients are those of the same layer with f32 ones, rounded; f32 and f64 layers have their own. */
static void bf16_gradients_are_rounded_once(void **state) {
    (void)state;
    scale_habit wide = {.name = "wide", .overwrites = true},
                narrow = {.name = "narrow", .overwrites = true, .grad_dtype = MOE_BF16};
    static double whole[MOST], rounded[MOST];
    moe_ctx *ctx = test_ctx(NULL, 2);
    add_kind(ctx, &wide), add_kind(ctx, &narrow);
    for (int beside = 0; beside < 2; ++beside)
        for (int dtype = 0; dtype < MOEI_DTYPES; ++dtype) {
            moe_layer *a =
                make(ctx, beside ? NULL : "wide", beside ? "3,wide,wide,4,wide" : NULL, (moe_dtype)dtype);
            moe_layer *b = make(ctx, beside ? NULL : "narrow", beside ? "3,narrow,narrow,4,narrow" : NULL,
                                (moe_dtype)dtype);
            grads_poison(ctx, a), grads_poison(ctx, b);
            int64_t n = grads_step(ctx, a, T, true, whole, MOST), at = 0, own = 0;
            assert_int_equal(grads_step(ctx, b, T, true, rounded, MOST), n);
            for (int32_t i = 0; i < moe_layer_param_count(b); ++i) {
                const moe_param param = grads_param(ctx, b, i);
                const bool is_own = param.n_dim == 3 && param.dim[1] == 1;
                const bool halved = is_own && dtype == MOE_BF16;
                own += is_own;
                assert_int_equal(param.grad_dtype, halved ? MOE_BF16 : moei_wide((moe_dtype)dtype));
                for (int64_t j = 0; j < grads_count(&param); ++j, ++at) {
                    uint16_t bits = moei_bf16_round((float)whole[at]);
                    const double want = halved ? (double)moei_bf16_value(bits) : whole[at];
                    if (!(rounded[at] == want))
                        fail_msg("%s, %s[%lld]: %g, expected %g (seed %llu)", beside ? "beside" : "alone",
                                 param.name, (long long)j, rounded[at], want,
                                 (unsigned long long)test_seed());
                }
            }
            assert_int_equal(own, beside ? 2 : 1);
            moe_layer_destroy(a), moe_layer_destroy(b);
        }
    moe_ctx_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stored_is_added_to_zeros),
        cmocka_unit_test(bf16_gradients_are_rounded_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
