/* test_select_top_k.c: scores, order, groups and biases of top-k routing against numbers of the reference
 * systems. Logits Lg; numbers from executions of Megatron core and NeMo Automodel, to six decimals.
 */
#include "support/route_fixture.h"

static void check_two(const route_bench *b, int64_t t, int32_t e0, double w0, int32_t e1, double w1) {
    assert_int_equal(b->view.expert[t * b->view.top_k], e0);
    assert_int_equal(b->view.expert[t * b->view.top_k + 1], e1);
    near(route_weight(b, t, e0), w0);
    near(route_weight(b, t, e1), w1);
}

static void softmax_after_and_before(void **state) {
    (void)state;
    static const int64_t counts[] = {7, 4, 5, 8};
    route_bench b = route_begin((moe_layer_desc){.top_k = 2, .z_loss_coeff = 1, .aux_loss_coeff = 1},
                                golden_logits(12, 4, NULL));
    route_run(&b, &route_train);
    check_two(&b, 0, 3, .605722, 2, .394278);
    check_two(&b, 1, 1, .512582, 0, .487418);
    for (int32_t e = 0; e < 4; ++e) assert_int_equal(b.view.routed[e], counts[e]);
    near(b.stats.aux_loss, .990015);
    near(b.stats.z_loss, 4.963216);
    route_end(&b);
    b = route_begin((moe_layer_desc){.top_k = 2, .score_before_topk = true}, golden_logits(12, 4, NULL));
    route_run(&b, &route_train);
    check_two(&b, 0, 3, .466466, 2, .303633);
    route_end(&b);
}

static void sigmoid_and_sqrtsoftplus(void **state) {
    (void)state;
    static const struct {
        const char *score;
        double w2, w3, aux;
    } rows[] = {
        {"sigmoid",      .482629, .517371, 1.000724},
        {"sqrtsoftplus", .475337, .524663, .999645 }
    };
    for (int i = 0; i < 2; ++i) {
        const moe_layer_desc desc = {
            .top_k = 2, .score_function = rows[i].score, .norm_topk_prob = true, .aux_loss_coeff = 1};
        route_bench b = route_begin(desc, golden_logits(12, 4, NULL));
        route_run(&b, &route_train);
        check_two(&b, 0, 3, rows[i].w3, 2, rows[i].w2);
        near(b.stats.aux_loss, rows[i].aux);
        route_end(&b);
    }
}

static void selection_bias_and_its_update(void **state) {
    (void)state;
    static const double bias[] = {.3, -.2, 0, .1}, after[] = {.299, -.199, .001, .099};
    static const uint32_t sets[] = {0xc, 0x3, 0x9, 0x5};
    const moe_layer_desc desc = {.top_k = 2,
                                 .score_function = "sigmoid",
                                 .norm_topk_prob = true,
                                 .selection_bias = true,
                                 .selection_bias_update_rate = 1e-3f};
    route_bench b = route_begin(desc, golden_logits(12, 4, NULL));
    moe_param param = {.size = sizeof param};
    must(b.ctx, moe_layer_param_by_name(b.layer, "gate.selection_bias", &param));
    assert_true(param.buffer && !param.grad);
    memcpy(param.value, bias, sizeof bias);
    route_run(&b, &route_train);
    for (int64_t t = 0; t < 4; ++t) assert_int_equal(route_set(&b, t), sets[t]);
    near(route_weight(&b, 3, 0), .489569);
    near(route_weight(&b, 3, 2), .510431);
    must(b.ctx, moe_layer_end_step(b.layer, NULL));
    for (int e = 0; e < 4; ++e) near(((double *)param.value)[e], after[e]);
    /* Counts given replace the layer's own, and the own start anew: equal counts move nothing. */
    route_run(&b, &route_train);
    must(b.ctx, moe_layer_end_step(b.layer, (const int64_t[]){5, 5, 5, 5}));
    must(b.ctx, moe_layer_end_step(b.layer, NULL));
    for (int e = 0; e < 4; ++e) near(((double *)param.value)[e], after[e]);
    route_end(&b);
}

static void bias_can_be_recentred_and_weigh(void **state) {
    (void)state;
    const moe_layer_desc desc = {.top_k = 1,
                                 .score_function = "sigmoid",
                                 .score_before_topk = true,
                                 .selection_bias = true,
                                 .selection_bias_update_rate = 0.5f,
                                 .selection_bias_recenter = true,
                                 .selection_bias_in_weights = true};
    route_bench b = route_begin(desc, golden_logits(12, 4, NULL));
    double *bias = route_param(&b, "gate.selection_bias"), sum = 0;
    route_run(&b, &route_train);
    must(b.ctx, moe_layer_end_step(b.layer, (const int64_t[]){9, 0, 0, 0}));
    for (int e = 0; e < 4; ++e) sum += bias[e];
    near(sum, 0);
    near(bias[0], -.75);
    bias[2] = 10;
    route_run(&b, &route_train);
    assert_int_equal(b.view.expert[0], 2);
    near(route_weight(&b, 0, 2), 10 + 1 / (1 + exp(-1.4347121817990456)));
    route_end(&b);
}

static void groups_limit_the_choice(void **state) {
    (void)state;
    static const uint32_t sets[] = {0x3c, 0x33, 0x0f, 0xf0, 0xc3, 0xcc};
    const moe_layer_desc desc = {.top_k = 4,
                                 .score_function = "sigmoid",
                                 .norm_topk_prob = true,
                                 .num_groups = 4,
                                 .group_top_k = 2,
                                 .group_score = "topn_sum"};
    route_bench b = route_begin(desc, golden_logits(6, 8, NULL));
    route_run(&b, &route_train);
    for (int64_t t = 0; t < 6; ++t) assert_int_equal(route_set(&b, t), sets[t]);
    route_end(&b);
}

/* topn_sum of 3 experts in 2 groups sums 3 / 2, rounded down: the best one of each group. */
static void groups_round_their_share_down(void **state) {
    (void)state;
    static const char *const scores[] = {"topn_sum", "max"};
    uint32_t sets[2][6];
    for (int i = 0; i < 2; ++i) {
        const moe_layer_desc desc = {.top_k = 3,
                                     .score_function = "sigmoid",
                                     .num_groups = 4,
                                     .group_top_k = 2,
                                     .group_score = scores[i]};
        route_bench b = route_begin(desc, golden_logits(6, 8, NULL));
        route_run(&b, &route_train);
        for (int64_t t = 0; t < 6; ++t) sets[i][t] = route_set(&b, t);
        route_end(&b);
    }
    assert_memory_equal(sets[0], sets[1], sizeof sets[0]);
}

/* All scores below 0: an expert of a rejected group must not win by being masked to 0. */
static void rejected_groups_cannot_win(void **state) {
    (void)state;
    static const char *const scores[] = {"max", "top2_sum", "topn_sum"};
    for (int i = 0; i < 3; ++i) {
        const moe_layer_desc desc = {.top_k = 2, .num_groups = 2, .group_top_k = 1, .group_score = scores[i]};
        moe_mat logits = test_output(MOE_F64, 1, 4);
        memcpy(logits.data, (const double[]){-9, -9, -1, -2}, 4 * sizeof(double));
        route_bench b = route_begin(desc, logits);
        route_run(&b, &route_train);
        assert_int_equal(route_set(&b, 0), 0xc);
        route_end(&b);
    }
}

static void automodel_scores(void **state) {
    (void)state;
    /* clang-format off */
    static const struct {
        moe_layer_desc desc;
        double w3, w2, aux;
    } rows[] = {
        {{.top_k = 2}, .605722, .394278, 1.013478},
        {{.top_k = 2, .score_before_topk = true}, .466466, .303633, 1.013478},
        {{.top_k = 2, .score_before_topk = true, .norm_topk_prob = true}, .605722, .394278, 1.013478},
        {{.top_k = 2, .score_function = "sigmoid", .norm_topk_prob = true, .routed_scaling_factor = 2.5f},
         1.293427, 1.206573, 1.008014},
        {{.top_k = 2, .score_function = "sqrtsoftplus", .norm_topk_prob = true}, .524663, .475337, 1.006101},
    };
    /* clang-format on */
    static const uint8_t mask[12] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0};
    static const int64_t load[] = {6, 3, 4, 7};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; ++i) {
        moe_layer_desc desc = rows[i].desc;
        desc.aux_loss_coeff = 1;
        route_bench b = route_begin(desc, golden_logits(12, 4, NULL));
        moe_call call = route_train;
        call.token_mask = mask;
        route_run(&b, &call);
        check_two(&b, 0, 3, rows[i].w3, 2, rows[i].w2);
        for (int32_t e = 0; e < 4; ++e) assert_int_equal(b.view.routed[e], load[e]);
        near(b.stats.aux_loss, rows[i].aux);
        route_end(&b);
    }
}

static void ties_go_to_the_lower_index(void **state) {
    (void)state;
    /* clang-format off */
    static const moe_layer_desc descs[] = {
        {.top_k = 3},
        {.top_k = 3, .score_function = "sigmoid"},
        {.top_k = 3, .score_before_topk = true, .num_groups = 2, .group_top_k = 1},
        {.top_k = 3, .router_type = "quantile"},
    };
    /* clang-format on */
    for (size_t i = 0; i < sizeof descs / sizeof *descs; ++i) {
        moe_mat logits = test_output(MOE_F64, 2, 6);
        for (int j = 0; j < 12; ++j) ((double *)logits.data)[j] = j < 6 ? 0.5 : -0.5;
        route_bench b = route_begin(descs[i], logits);
        route_run(&b, &route_train);
        for (int j = 0; j < 6; ++j) assert_int_equal(b.view.expert[j], j % 3);
        route_end(&b);
    }
}

/* Where sigmoids round to 1 the logits still tell who is better. */
static void saturated_scores_keep_their_order(void **state) {
    (void)state;
    moe_mat logits = test_output(MOE_F64, 1, 4);
    memcpy(logits.data, (const double[]){50, 51, 60, 40}, 4 * sizeof(double));
    route_bench b = route_begin((moe_layer_desc){.top_k = 2, .score_function = "sigmoid"}, logits);
    route_run(&b, &route_train);
    assert_int_equal(b.view.expert[0], 2);
    assert_int_equal(b.view.expert[1], 1);
    route_end(&b);
}

/* -inf in the selection bias retires an expert: fewer than K are left, and the slots over stay empty. */
static void retired_experts_leave_slots_empty(void **state) {
    enum { T = 6, E = 8, K = 3 };
    /* clang-format off */
    static const moe_layer_desc descs[] = {
        {.top_k = K, .score_function = "sigmoid", .selection_bias = true, .norm_topk_prob = true},
        {.top_k = K, .score_function = "sigmoid", .selection_bias = true, .num_groups = 4, .group_top_k = 2},
        {.top_k = K, .score_function = "sigmoid", .selection_bias = true, .num_groups = 2, .group_top_k = 1,
         .group_score = "topn_sum"},
    };
    /* clang-format on */
    (void)state;
    for (size_t i = 0; i < sizeof descs / sizeof *descs; ++i)
        for (int live = 0; live <= 2; ++live) {
            route_bench b = route_begin(descs[i], test_random(MOE_F64, T, E, 14));
            double *bias = route_param(&b, "gate.selection_bias");
            for (int e = 0; e < E; ++e) bias[e] = e == 5 && live > 0 ? 0 : e == 4 && live > 1 ? 0 : -INFINITY;
            route_run(&b, &route_train);
            for (int64_t t = 0; t < T; ++t) {
                const int32_t *expert = b.view.expert + t * K;
                for (int k = 0; k < K; ++k)
                    assert_true(k < live ? expert[k] == 4 || expert[k] == 5 : expert[k] == -1);
                assert_true(live < 2 || expert[0] != expert[1]);
            }
            for (int64_t j = 0; j < (int64_t)T * E; ++j) assert_true(isfinite(((double *)b.y.data)[j]));
            route_end(&b);
        }
}

/* A group is worth its live experts, and one without any is never kept before another. */
static void retired_groups_are_passed_over(void **state) {
    enum { T = 6, E = 8 };
    (void)state;
    const moe_layer_desc desc = {
        .top_k = 1, .score_function = "sigmoid", .selection_bias = true, .num_groups = 4, .group_top_k = 1};
    route_bench b = route_begin(desc, test_random(MOE_F64, T, E, 15));
    double *bias = route_param(&b, "gate.selection_bias");
    for (int e = 0; e < E; ++e) bias[e] = e == 6 ? -5 : -INFINITY;
    route_run(&b, &route_train);
    for (int64_t t = 0; t < T; ++t) assert_int_equal(b.view.expert[t], 6);
    route_end(&b);
}

static void unordered_selection_is_an_error(void **state) {
    enum { T = 6, E = 8 };
    uint8_t mask[T] = {0};
    moe_call call = route_train;
    (void)state;
    route_bench b = route_begin(
        (moe_layer_desc){
            .top_k = 2, .score_function = "sigmoid", .selection_bias = true, .aux_loss_coeff = 1},
        test_random(MOE_F64, T, E, 16));
    route_param(&b, "gate.selection_bias")[3] = NAN;
    assert_int_equal(moe_layer_forward(b.layer, b.logits, b.y, &call, NULL), MOE_ERR_NUMERIC);
    assert_non_null(strstr(moe_ctx_error(b.ctx), "token 0"));
    assert_non_null(strstr(moe_ctx_error(b.ctx), "expert 3"));
    mask[4] = 1;
    call.token_mask = mask;
    assert_int_equal(moe_layer_forward(b.layer, b.logits, b.y, &call, NULL), MOE_ERR_NUMERIC);
    assert_non_null(strstr(moe_ctx_error(b.ctx), "token 4"));
    route_end(&b);
}

static void combinations_are_refused_with_reason(void **state) {
    (void)state;
    route_refused((moe_layer_desc){.num_experts = 6, .top_k = 2, .num_groups = 4, .group_top_k = 2},
                  "num_groups");
    route_refused((moe_layer_desc){.num_experts = 8, .top_k = 4, .num_groups = 4, .group_top_k = 1}, "top_k");
    route_refused((moe_layer_desc){.num_experts = 8, .top_k = 2, .num_groups = 2, .group_top_k = 3},
                  "group_top_k");
    route_refused(
        (moe_layer_desc){
            .num_experts = 8, .top_k = 2, .num_groups = 4, .group_top_k = 3, .group_score = "topn_sum"},
        "group_score");
    route_refused((moe_layer_desc){.num_experts = 8, .top_k = 2, .selection_bias = true}, "selection_bias");
    route_refused(
        (moe_layer_desc){.num_experts = 8, .top_k = 2, .router_type = "hash", .expert_dropout = 0.1f},
        "expert_dropout");
    route_refused((moe_layer_desc){.num_experts = 8, .top_k = 2, .top_k_min = 3}, "top_k_min");
    route_refused((moe_layer_desc){.num_experts = 4, .top_k = 4, .router_type = "quantile"}, "quantile");
    route_refused(
        (moe_layer_desc){.num_experts = 4, .top_k = 3, .router_type = "balanced", .fake_skip_first = 2},
        "fake_skip_first");
    route_refused((moe_layer_desc){.num_experts = 4, .top_k = 2, .score_function = "tanh"}, "score_function");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(softmax_after_and_before),
        cmocka_unit_test(sigmoid_and_sqrtsoftplus),
        cmocka_unit_test(selection_bias_and_its_update),
        cmocka_unit_test(bias_can_be_recentred_and_weigh),
        cmocka_unit_test(groups_limit_the_choice),
        cmocka_unit_test(groups_round_their_share_down),
        cmocka_unit_test(rejected_groups_cannot_win),
        cmocka_unit_test(automodel_scores),
        cmocka_unit_test(ties_go_to_the_lower_index),
        cmocka_unit_test(saturated_scores_keep_their_order),
        cmocka_unit_test(retired_experts_leave_slots_empty),
        cmocka_unit_test(retired_groups_are_passed_over),
        cmocka_unit_test(unordered_selection_is_an_error),
        cmocka_unit_test(combinations_are_refused_with_reason),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
