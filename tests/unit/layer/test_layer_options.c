/* test_layer_options.c: presets make layers that run, complete descriptors stay as they are, and every
 * setting that would be ignored is refused with its reason.
 */
#include "support/layer_fixture.h"
#include "support/same_settings.h"

enum { T = 48, D = 8 };

static moe_layer_desc good_desc(void) {
    return (moe_layer_desc){
        .size = sizeof(moe_layer_desc), .d_model = D, .num_experts = 16, .expert_hidden_size = 6};
}

static void run_both_ways(moe_ctx *ctx, moe_layer *layer, const char *name) {
    const moe_call call = {.size = sizeof call, .mode = MOE_TRAIN, .step = 5, .sequence_length = T / 2};
    moe_mat x = test_random(MOE_F32, T, D, 1), y = test_output(MOE_F32, T, D),
            dx = test_output(MOE_F32, T, D);
    moe_stats stats = {.size = sizeof stats};
    must(ctx, moe_layer_reserve(layer, T, MOE_TRAIN));
    must(ctx, moe_layer_forward(layer, x, y, &call, &stats));
    must(ctx, moe_layer_backward(layer, x, y, dx));
    must(ctx, moe_layer_end_step(layer, NULL));
    must(ctx, moe_layer_forward(layer, x, y, NULL, NULL));
    if (!(isfinite(stats.loss) && stats.n_kept > 0)) fail_msg("%s: loss %g", name, stats.loss);
    double largest = 0;
    for (int64_t t = 0; t < T; ++t)
        for (int64_t i = 0; i < D; ++i) {
            assert_true(isfinite(test_at(y, t, i)) && isfinite(test_at(dx, t, i)));
            largest = fmax(largest, fabs(test_at(dx, t, i)));
        }
    if (!(largest > 0)) fail_msg("%s: no gradient", name);
    free(x.data), free(y.data), free(dx.data);
}

/* Every preset runs, and the layer's own complete descriptor makes the same layer again. */
static void presets_make_layers(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 2);
    size_t presets = 0;
    for (const char *const *name = moe_layer_presets(); *name; ++name, ++presets) {
        moe_layer_desc d = good_desc();
        moe_error error = {0};
        moe_layer *layer = NULL, *again = NULL;
        if (moe_layer_desc_preset(&d, *name, &error) != MOE_OK) fail_msg("%s: %s", *name, error.text);
        assert_int_equal(d.num_experts, 16); /* sizes are left alone */
        if (moe_layer_create(ctx, &d, &layer) != MOE_OK) fail_msg("%s: %s", *name, moe_ctx_error(ctx));
        must(ctx, moe_layer_create(ctx, moe_layer_get_desc(layer), &again));
        assert_same_settings(moe_layer_get_desc(layer), moe_layer_get_desc(again));
        run_both_ways(ctx, layer, *name);
        moe_layer_destroy(layer), moe_layer_destroy(again);
    }
    assert_int_equal(presets, 8);
    moe_layer_desc d = good_desc();
    moe_error error = {0};
    assert_int_equal(moe_layer_desc_preset(&d, "mixtrel", &error), MOE_ERR_ARGUMENT);
    assert_non_null(strstr(error.text, "sigma_moe"));
    moe_ctx_destroy(ctx);
}

/* A preset states its whole router: what another one said before is gone. */
static void the_last_preset_holds(void **state) {
    (void)state;
    for (const char *const *first = moe_layer_presets(); *first; ++first)
        for (const char *const *name = moe_layer_presets(); *name; ++name) {
            moe_layer_desc alone = good_desc(), after = good_desc();
            assert_int_equal(moe_layer_desc_preset(&alone, *name, NULL), MOE_OK);
            assert_int_equal(moe_layer_desc_preset(&after, *first, NULL), MOE_OK);
            assert_int_equal(moe_layer_desc_preset(&after, *name, NULL), MOE_OK);
            assert_same_settings(&alone, &after);
        }
    moe_layer_desc d = good_desc();
    assert_int_equal(moe_layer_desc_preset(&d, "t2t_top2", NULL), MOE_OK);
    assert_true(d.capacity_factor_inner == 0 && d.min_capacity == 0);
    d.num_groups_outer = 4;
    assert_int_equal(moe_layer_desc_preset(&d, "t2t_top2", NULL), MOE_OK);
    assert_true(d.capacity_factor_inner == 1 && d.min_capacity == 4);
    assert_int_equal(moe_layer_desc_check(&d, NULL), MOE_OK);
}

/* Sizes, kinds, deviations and memory are the caller's; everything else is the system's. */
static void presets_keep_what_they_do_not_set(void **state) {
    (void)state;
    moe_layer_desc d = good_desc();
    d.expert_kinds = "4,identity";
    d.shared_expert_hidden_size = 9;
    d.init_std = 0.5f;
    d.init_std_scale = 2;
    d.recompute = "layer";
    d.dropout = 0.1f;
    assert_int_equal(moe_layer_desc_preset(&d, "mixtral", NULL), MOE_OK);
    assert_string_equal(d.expert_kinds, "4,identity");
    assert_string_equal(d.recompute, "layer");
    assert_true(d.shared_expert_hidden_size == 9 && d.init_std == 0.5f);
    assert_true(d.init_std_scale == 0 && d.dropout == 0 && d.aux_loss_coeff == 0.02f);
    assert_false(moe_layer_preset_sets("moe.expert_kinds") || moe_layer_preset_sets("moe.top_k"));
    assert_true(moe_layer_preset_sets("moe.dropout") && moe_layer_preset_sets("moe.init_std_scale"));
}

/* The defaults of the table are those of an empty descriptor. */
static void defaults_agree_with_zero(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_layer_desc zero = good_desc(), told = {.size = sizeof told};
    const moe_option *row;
    for (size_t i = 0; (row = moe_layer_option_at(i)); ++i)
        assert_int_equal(moe_layer_desc_set(&told, row->key, row->initial, NULL), MOE_OK);
    told.d_model = D, told.num_experts = 16, told.expert_hidden_size = 6;
    moe_layer *a = NULL, *b = NULL;
    must(ctx, moe_layer_create(ctx, &zero, &a));
    must(ctx, moe_layer_create(ctx, &told, &b));
    assert_same_settings(moe_layer_get_desc(a), moe_layer_get_desc(b));
    moe_layer_destroy(a), moe_layer_destroy(b);
    moe_ctx_destroy(ctx);
}

/* Settings "key value key value ..." on top of a good descriptor, and a word of the reason. */
/* clang-format off */
static const char *const refusals[][2] = {
    {"num_experts 0", "num_shared_experts"},
    {"top_k 17", "top_k: 17 is outside 1 .. num_experts = 16"},
    {"shared_expert_hidden_size 4", "num_shared_experts"},
    {"shared_expert_activation relu", "num_shared_experts"},
    {"shared_expert_gate true", "num_shared_experts"},
    {"num_shared_experts 1 shared_expert_activation rolu", "shared_expert_activation"},
    {"num_experts 0 num_shared_experts 1 latent_size 4", "latent_size"},
    {"num_experts 0 num_shared_experts 1 output_bias true", "output_bias"},
    {"num_experts 0 num_shared_experts 1 dropout 0.1", "dropout"},
    {"num_experts 0 num_shared_experts 1 router_type hash", "num_experts is 0"},
    {"num_experts 0 num_shared_experts 1 aux_loss_coeff 1", "num_experts is 0"},
    {"num_experts 0 num_shared_experts 1 router_init zeros", "there is no router"},
    {"weight_apply input", "top_k 1"},
    {"activation relu glu_layout interleaved", "gated"},
    {"activation silu activation_limit 3", "gated"},
    {"activation gelu glu_linear_offset 1", "gated"},
    {"activation swiglu activation_alpha 1.5", "swigluoai"},
    {"expert_bias true expert_up_bias true", "expert_bias"},
    {"expert identity dropout 0.5", "ffn"},
    {"expert identity recompute layer", "ffn"},
    {"expert identity saved_dtype mxfp8", "ffn"},
    {"recompute layer saved_dtype mxfp8", "recompute none"},
    {"expert zero expert_kinds 4,4", "leave expert at ffn"},
    {"expert_kinds 4,4,zero", "one entry for each of the 16"},
    {"expert_kinds 4,16x8", "and has 17"},
    {"expert_kinds 16x0", "a width of 0 is outside"},
    {"num_experts 2 expert_kinds 4,4,4", "one entry for each of the 2"},
    {"num_experts 2 expert_kinds 4,plain", "neither a width nor a kind"},
    {"num_experts 2 expert_kinds 4,0", "outside 1 .."},
    {"num_experts 2 expert_kinds 4,mixed", "neither a width nor a kind"},
    {"num_experts 2 expert_kinds 4,identity output_size 9", "identity"},
    {"init_scheme megatron_scaled", "init_std_down"},
    {"init_scheme lucid_uniform init_std_down 0.1", "init_std_down"},
    {"init_std_scale 2", "sigma_moe"},
    {"norm_topk_prob true", "score_before_topk"},
    {"routing_unit task", "num_tasks"},
    {"num_tasks 3", "routing_unit task"},
    {"routing_unit task num_tasks 2 input_jitter_eps 0.1", "jitter"},
    {"selection_bias true", "score_before_topk"},
    {"selection_bias_update_rate 0.1", "selection_bias"},
    {"selection_bias_recenter true", "selection_bias"},
    {"selection_bias_in_weights true", "selection_bias"},
    {"score_before_topk true selection_bias true selection_bias_in_weights true", "sigmoid"},
    {"group_score max", "num_groups"},
    {"num_groups 4", "group_top_k"},
    {"group_top_k 2", "num_groups"},
    {"num_groups 4 group_top_k 5", "5 of num_groups 4"},
    {"num_groups 3 group_top_k 2", "3 groups do not divide num_experts 16"},
    {"num_groups 8 group_top_k 1 top_k 3", "3, but group_top_k 1 of num_groups 8 hold 2 of num_experts 16"},
    {"num_groups 4 group_top_k 3 top_k 2 group_score topn_sum", "rounded down"},
    {"router_type gshard_top2 num_groups 4 group_top_k 2", "router_type top_k"},
    {"router_type gshard_top2 top_k 3", "top_k 2"},
    {"router_type gshard_top2 score_function sigmoid", "softmax"},
    {"router_type hash top_k_min 1", "top_k_min"},
    {"top_k_min 3", "more than top_k"},
    {"router_type noisy_top_k selection_bias true score_function sigmoid", "router_type top_k"},
    {"router_type hash expert_dropout 0.1", "expert_dropout"},
    {"noise_epsilon 0.1", "noisy_top_k"},
    {"load_loss_coeff 1", "noisy_top_k"},
    {"sinkhorn_variant megatron", "router_type sinkhorn"},
    {"sinkhorn_iters 4", "router_type sinkhorn"},
    {"router_type sinkhorn sinkhorn_tol 0.1", "megatron"},
    {"quantile_ema 0.5", "quantile"},
    {"fake_noise 0.5", "balanced"},
    {"fake_skip_first 1", "balanced"},
    {"router_type balanced fake_skip_first 15", "fewer than top_k"},
    {"force_bias_std 1", "random"},
    {"second_policy_train all", "gshard_top2"},
    {"second_policy_eval none", "gshard_top2"},
    {"second_threshold_train 0.5", "gshard_top2"},
    {"router_type gshard_top2 second_threshold_eval 0.5", "threshold or random"},
    {"num_groups_outer 4", "gshard_top2"},
    {"router_type gshard_top2 num_groups_outer 3", "divide num_experts"},
    {"capacity_factor 1 capacity_factor_inner 1", "num_groups_outer"},
    {"pad_to_capacity true", "capacity_factor"},
    {"min_capacity 4", "capacity_factor"},
    {"capacity_multiple 8", "capacity_factor"},
    {"capacity_formula switch", "capacity_factor"},
    {"capacity_group sequence", "capacity_factor"},
    {"drop_policy position", "capacity_factor"},
    {"router_type expert_choice capacity_factor 1 pad_to_capacity true", "fills every expert"},
    {"router_type expert_choice capacity_factor 1 drop_policy position", "drops nothing"},
    {"router_type expert_choice gshard_loss_coeff 1", "first choices"},
    {"token_rounding 8 gshard_loss_coeff 1", "first choices"},
    {"token_rounding 8 router_type sinkhorn", "router_type top_k"},
    {"token_rounding 8 routing_unit sequence", "single tokens"},
    {"token_rounding 8 capacity_factor 1", "capacity_factor 0"},
    {"aux_scores raw", "balance loss"},
    {"aux_map plain", "balance loss"},
    {"expert identity expert_bias true", "no hidden layer"},
    {"expert identity expert_up_bias true", "ffn"},
    {"expert zero activation relu", "no hidden layer"},
    {"expert identity activation_limit 3", "no hidden layer"},
    {"expert identity glu_layout halves", "no hidden layer"},
    {"expert identity init_scheme sigma_moe", "no hidden layer"},
    {"expert identity init_std_down 0.3", "no hidden layer"},
    {"num_experts 2 expert_kinds zero,identity dropout 0.5", "no hidden layer"},
    {"num_experts 2 expert_kinds zero,identity recompute layer", "no hidden layer"},
    {"num_experts 2 expert_kinds zero,identity saved_dtype mxfp8", "no hidden layer"},
    {"num_experts 2 expert_kinds zero,identity num_shared_experts 1 dropout 0.5", "no hidden layer"},
    {"expert zero num_shared_experts 1 activation relu shared_expert_activation gelu",
     "only the shared experts"},
    {"router_type balanced score_before_topk true norm_topk_prob true", "sum to 1"},
    {"num_experts 0 num_shared_experts 1 expert zero", "num_experts is 0"},
    {"num_experts 0 num_shared_experts 1 top_k 2", "num_experts is 0"},
    {"num_experts 0 num_shared_experts 1 top_k_min 1", "num_experts is 0"},
    {"num_experts 0 num_shared_experts 1 num_groups_outer 2", "num_experts is 0"},
    {"router_type balanced score_before_topk true", "no scores"},
    {"init_std -0.5 top_k 9", "init_std"},
    {"router_type balanced importance_loss_coeff 1", "constants"},
    {"router_type balanced score_function sigmoid", "looks at no score"},
    {"router_type balanced router_bias true", "z_loss_coeff"},
    {"router_type balanced router_init zeros", "looks at no score"},
    {"router_type balanced router_dtype f64", "looks at no score"},
    {"router_type balanced input_jitter_eps 0.1", "looks at no score"},
    {"init_scheme lucid_uniform router_init normal_unit init_std 0.1", "draws nothing"},
    {"expert identity router_init zeros init_std 0.1", "draws nothing"},
    {"aux_loss_coeff 1 aux_scores raw", "sigmoid"},
    {"activation swiglo", "swiglo"},
};
/* clang-format on */

static void apply(moe_layer_desc *d, char *settings) {
    for (char *key = strtok(settings, " "); key; key = strtok(NULL, " ")) {
        const char *value = strtok(NULL, " ");
        if (moe_layer_desc_set(d, key, value, NULL) == MOE_OK) continue;
        assert_string_equal(key, "activation"); /* a wrong name can also come past the parser */
        d->activation = "swiglo";
    }
}

/* Fields of a call that this layer would not read. */
static void what_a_call_says_in_vain_is_refused(void **state) {
    (void)state;
    static const char *const settings[] = {"top_k 2", "dropout 0.5 num_experts 2 expert_kinds 4,6"};
    static const int32_t numbers[T];
    static const float draws_of[T * 16];
    static const uint8_t keep[T * 2 * 6];
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_mat x = test_random(MOE_F32, T, D, 1), y = test_output(MOE_F32, T, D);
    for (size_t i = 0; i < 7; ++i) {
        moe_layer_desc d = good_desc();
        moe_draws draws = {.size = sizeof draws};
        moe_call call = {.size = sizeof call, .draws = &draws};
        char text[64];
        snprintf(text, sizeof text, "%s", settings[i == 6]);
        apply(&d, text);
        moe_layer *layer = test_layer(ctx, &d, T);
        if (i == 0) call.task = numbers;
        if (i == 1) call.token_id = numbers;
        if (i == 2) draws.second_policy = draws_of;
        if (i == 3) draws.second_policy_inner = draws_of;
        if (i == 4) draws.expert_dropout = draws_of;
        if (i == 5) draws.noise = draws_of;
        if (i == 6) draws.dropout_keep = keep;
        static const char *const word[] = {
            "task",           "token_id", "second_policy", "second_policy_inner",
            "expert_dropout", "noise",    "expert_kinds"};
        assert_int_equal(moe_layer_forward(layer, x, y, &call, NULL), MOE_ERR_ARGUMENT);
        if (!strstr(moe_ctx_error(ctx), word[i])) fail_msg("'%s' lacks '%s'", moe_ctx_error(ctx), word[i]);
        must(ctx, moe_layer_forward(layer, x, y, NULL, NULL));
        moe_layer_destroy(layer);
    }
    free(x.data), free(y.data);
    moe_ctx_destroy(ctx);
}

/* What only the routed experts lack stays the shared experts': their activation's numbers. */
static void shared_experts_keep_their_activation(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_mat x = test_random(MOE_F32, T, D, 1), y[2];
    for (int i = 0; i < 2; ++i) {
        moe_layer_desc d = good_desc();
        d.expert = "zero";
        d.num_shared_experts = 1;
        d.shared_expert_activation = "quick_geglu";
        if (i) d.activation_alpha = 0.5f;
        moe_layer *layer = test_layer(ctx, &d, T);
        y[i] = test_output(MOE_F32, T, D);
        must(ctx, moe_layer_forward(layer, x, y[i], NULL, NULL));
        moe_layer_destroy(layer);
    }
    assert_memory_not_equal(y[0].data, y[1].data, test_bytes(y[0]));
    free(x.data), free(y[0].data), free(y[1].data);
    moe_ctx_destroy(ctx);
}

static void what_would_be_ignored_is_refused(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 1);
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; ++i) {
        moe_layer_desc d = good_desc();
        moe_layer *layer = NULL;
        char settings[256];
        snprintf(settings, sizeof settings, "%s", refusals[i][0]);
        apply(&d, settings);
        const moe_status status = moe_layer_create(ctx, &d, &layer);
        if (status == MOE_OK) fail_msg("'%s' was accepted", refusals[i][0]);
        if (!strstr(moe_ctx_error(ctx), refusals[i][1]))
            fail_msg("'%s': the text '%s' lacks '%s'", refusals[i][0], moe_ctx_error(ctx), refusals[i][1]);
        assert_true(status == MOE_ERR_ARGUMENT || status == MOE_ERR_UNSUPPORTED);
        assert_null(layer);
    }
    moe_ctx_destroy(ctx);
}

/* Numbers outside a row's limits are refused whoever wrote them into the descriptor. */
static void limits_hold_without_the_parser(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 1);
    size_t tried = 0;
    const moe_option *row;
    for (size_t i = 0; (row = moe_layer_option_at(i)); ++i) {
        moe_layer_desc d = good_desc();
        moe_layer *layer = NULL;
        if (row->type == MOE_OPT_INT)
            *(int32_t *)(void *)((char *)&d + row->offset) = -2;
        else if (row->type == MOE_OPT_FLOAT)
            *(float *)(void *)((char *)&d + row->offset) = NAN;
        else if (row->type == MOE_OPT_CHOICE && row->choices)
            *(const char **)(void *)((char *)&d + row->offset) = "no such choice";
        else
            continue;
        ++tried;
        assert_int_equal(moe_layer_create(ctx, &d, &layer), MOE_ERR_ARGUMENT);
        if (!strstr(moe_ctx_error(ctx), row->key)) fail_msg("'%s' lacks %s", moe_ctx_error(ctx), row->key);
    }
    assert_true(tried > 60);
    moe_ctx_destroy(ctx);
}

/* Names of other systems reach the field that means the same. */
static void aliases_reach_their_field(void **state) {
    (void)state;
    static const char *const aliases[][2] = {
        {"v_dim",                            "output_size"               },
        {"n_routed_experts",                 "num_experts"               },
        {"moe_router_topk",                  "top_k"                     },
        {"n_expert_groups",                  "num_groups"                },
        {"topk_group",                       "group_top_k"               },
        {"moe_router_bias_update_rate",      "selection_bias_update_rate"},
        {"sinkhorn_n_iters",                 "sinkhorn_iters"            },
        {"moe_pad_expert_input_to_capacity", "pad_to_capacity"           },
        {"loss_coef",                        "gshard_loss_coeff"         },
        {"weight_std_scale",                 "init_std_scale"            },
        {"swiglu_limit",                     "activation_limit"          },
        {"moe_shared_expert_gate",           "shared_expert_gate"        },
    };
    for (size_t i = 0; i < sizeof aliases / sizeof *aliases; ++i) {
        moe_layer_desc a = {.size = sizeof a}, b = {.size = sizeof b};
        assert_int_equal(moe_layer_desc_set(&a, aliases[i][0], "1", NULL), MOE_OK);
        assert_int_equal(moe_layer_desc_set(&b, aliases[i][1], "1", NULL), MOE_OK);
        assert_memory_equal(&a, &b, sizeof a);
    }
    moe_layer_desc d = good_desc();
    assert_int_equal(moe_layer_desc_set(&d, "moe_router_dtype", "fp64", NULL), MOE_OK);
    assert_string_equal(d.router_dtype, "fp64");
    assert_int_equal(moe_layer_desc_set(&d, "gate_precision", "fp32", NULL), MOE_OK);
    assert_string_equal(d.router_dtype, "fp32");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(presets_make_layers),
        cmocka_unit_test(the_last_preset_holds),
        cmocka_unit_test(presets_keep_what_they_do_not_set),
        cmocka_unit_test(defaults_agree_with_zero),
        cmocka_unit_test(what_a_call_says_in_vain_is_refused),
        cmocka_unit_test(shared_experts_keep_their_activation),
        cmocka_unit_test(what_would_be_ignored_is_refused),
        cmocka_unit_test(limits_hold_without_the_parser),
        cmocka_unit_test(aliases_reach_their_field),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
