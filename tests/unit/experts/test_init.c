/* test_init.c: what the init schemes of experts and router draw, through their moments and bounds.
 * Matrices of 64 x 96 for 8 experts. Source: the systems named beside the cases.
 */
#include "support/layer_fixture.h"

/* Each scheme's numbers: mean 0, the scheme's spread, and within its bounds where it has any. */
static void check_moments(moe_layer *layer, const char *name, double std, double bound) {
    moe_param p = {.size = sizeof p};
    assert_int_equal(moe_layer_param_by_name(layer, name, &p), MOE_OK);
    const int64_t n = p.dim[0] * p.dim[1] * p.dim[2];
    double mean = 0, square = 0;
    for (int64_t i = 0; i < n; ++i) {
        const double v = (double)((const float *)p.value)[i];
        mean += v / (double)n;
        square += v * v / (double)n;
        if (bound > 0) assert_true(fabs(v) <= bound * (1 + 1e-6));
    }
    if (fabs(mean) > 6 * std / sqrt((double)n) || fabs(sqrt(square) / std - 1) > 6 / sqrt((double)n))
        fail_msg("seed %llu: %s has mean %g, deviation %g instead of %g", (unsigned long long)test_seed(),
                 name, mean, sqrt(square), std);
}

static void init_schemes_have_their_moments(void **state) {
    (void)state;
    /* clang-format off */
    static const struct {
        const char *scheme, *router;
        float std, std_down, scale;
        double up, down, gate, up_bound, down_bound;
    } cases[] = {
        {"normal", "normal", 0.03f, 0, 0, 0.03, 0.03, 0.03, 0, 0},
        {"normal", "normal_unit", 0.03f, 0.01f, 0, 0.03, 0.01, 1, 0, 0},
        {"megatron_scaled", "normal", 0.02f, 0.005f, 0, 0.02, 0.005, 0.02, 0, 0},
        /* lucidrains: uniform by the last dimension, 96 and 64; its deviation is the bound over sqrt 3 */
        {"lucid_uniform", "normal_unit", 0, 0, 0, 0.0589256, 0.0721688, 1, 0.1020621, 0.125},
        /* sigma-MoE: s / sqrt(64), s / sqrt(8 * 96) */
        {"sigma_moe", "normal_fan_in_renorm", 0, 0, 0.5f, 0.0625, 0.0180422, 0.0625, 0, 0},
    };
    /* clang-format on */
    moe_ctx *ctx = test_ctx(NULL, 2);
    for (size_t c = 0; c < sizeof cases / sizeof *cases; ++c) {
        const moe_layer_desc d = {.size = sizeof d,
                                  .d_model = 64,
                                  .num_experts = 8,
                                  .expert_hidden_size = 96,
                                  .activation = "relu",
                                  .init_scheme = cases[c].scheme,
                                  .router_init = cases[c].router,
                                  .init_std = cases[c].std,
                                  .init_std_down = cases[c].std_down,
                                  .init_std_scale = cases[c].scale};
        moe_layer *layer = NULL;
        must(ctx, moe_layer_create(ctx, &d, &layer));
        check_moments(layer, "experts.up.weight", cases[c].up, cases[c].up_bound);
        check_moments(layer, "experts.down.weight", cases[c].down, cases[c].down_bound);
        check_moments(layer, "gate.weight", cases[c].gate, 0);
        moe_layer_destroy(layer);
    }
    moe_ctx_destroy(ctx);
}

/* Whoever reads parameters from a file does not wait for numbers, whatever scheme would draw them. */
static void undrawn_layers_are_zeros(void **state) {
    (void)state;
    static const char *const schemes[] = {"normal", "megatron_scaled", "lucid_uniform", "sigma_moe"};
    moe_ctx *ctx = test_ctx(NULL, 2);
    for (size_t c = 0; c < sizeof schemes / sizeof *schemes; ++c) {
        const bool by_std = c < 2;
        const moe_layer_desc d = {.size = sizeof d,
                                  .d_model = 8,
                                  .num_experts = 4,
                                  .expert_hidden_size = 6,
                                  .latent_size = by_std ? 4 : 0,
                                  .num_shared_experts = 1,
                                  .expert_bias = true,
                                  .init_scheme = schemes[c],
                                  .router_init = by_std ? "normal" : "normal_fan_in_renorm",
                                  .init_std = by_std ? 0.5f : 0,
                                  .init_std_down = c == 1 ? 0.25f : 0,
                                  .undrawn = true};
        moe_layer *layer = NULL;
        must(ctx, moe_layer_create(ctx, &d, &layer));
        for (int32_t i = 0; i < moe_layer_param_count(layer); ++i) {
            moe_param p = {.size = sizeof p};
            must(ctx, moe_layer_param(layer, i, &p));
            for (int64_t j = 0; j < p.dim[0] * p.dim[1] * p.dim[2]; ++j)
                if (((const float *)p.value)[j] != 0)
                    fail_msg("%s: %s[%d] is drawn", schemes[c], p.name, (int)j);
        }
        assert_true(moe_layer_get_desc(layer)->init_std == d.init_std);
        moe_layer_destroy(layer);
    }
    moe_ctx_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(init_schemes_have_their_moments),
                                       cmocka_unit_test(undrawn_layers_are_zeros)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
