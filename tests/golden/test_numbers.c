/* test_numbers.c: numbers that the reference systems gave for logits Lg(t,e) = 2 sin(0.9 t (e + 1) + 0.4 e).
 * Those of whole layers are here: slots, losses, two levels, and what a layer does not show. The others:
 * Source: runs of Megatron core (MC), sigma-MoE (SM), lucidrains (LU), Automodel (AM), tensor2tensor (T2T).
 */
/* clang-format off */
/* Number | file | test
 * MC softmax after the selection, z-loss     unit/route/test_select_top_k.c    softmax_after_and_before
 * MC softmax before it: weights              unit/route/test_select_top_k.c    softmax_after_and_before
 *    counts and loss                         here                              softmax_before_counts
 * MC seq_aux                                 here                              balance_by_sequence
 * MC sigmoid, sqrtsoftplus                   unit/route/test_select_top_k.c    sigmoid_and_sqrtsoftplus
 * MC drop by probability, factors 1 and 0.5  unit/dispatch/test_plan.c         drop_by_probability_as_recorded
 * MC sigmoid with a bias, and its update     unit/route/test_select_top_k.c    selection_bias_and_its_update
 * MC group-limited sigmoid                   unit/route/test_select_top_k.c    groups_limit_the_choice
 * MC quantile statistic: centred             unit/route/test_select_hash.c     quantile_statistic
 *    before centring                         here                              quantile_before_centring
 * MC sinkhorn: counts, picks, weights        unit/route/test_select_sinkhorn.c megatron_plan
 *    plain top-2 counts                      unit/route/test_select_sinkhorn.c evaluation_ranks_by_scores
 *    plain argmax                            here                              sinkhorn_plain_argmax
 * SM sinkmoid: counts, picks, ln z           unit/route/test_select_sinkhorn.c sigma_moe_as_it_is
 * SM entropy loss                            here                              entropy_of_usage
 * LU top-2 of one group                      here                              top2_of_one_group
 *    policy none                             here                              top2_without_second_choices
 *    factor 2                                here                              top2_with_room
 * LU hierarchical, outer and both levels     here                              outer_level, two_levels
 * AM softmax before and after, sigmoid and   unit/route/test_select_top_k.c    automodel_scores
 *    sqrtsoftplus, two tokens masked
 * AM fake gate                               unit/route/test_select_hash.c     balanced_is_round_robin
 * T2T noisy top-2: gates, CV^2               unit/route/test_noisy.c           recorded_numbers
 *    importance, P of token 0, load          here                              noisy_importance_and_load
 */
/* clang-format on */
#include "support/route_fixture.h"

#include "layer/layer.h"

enum { SLOTS = 8 };

/* x = Lg(T, d), any gate. */
static route_bench begin(moe_layer_desc desc, int64_t T, int32_t d) {
    route_bench b = {.ctx = test_ctx("ref", 2), .logits = golden_logits(T, d, NULL)};
    desc.size = sizeof desc;
    desc.dtype = MOE_F64;
    desc.d_model = d;
    desc.expert_hidden_size = 1;
    must(b.ctx, moe_layer_create(b.ctx, &desc, &b.layer));
    must(b.ctx, moe_layer_reserve(b.layer, T, MOE_TRAIN));
    b.y = test_output(MOE_F64, T, d);
    return b;
}

static void set_units(const route_bench *b, const char *name, int64_t rows, int64_t d, int64_t first) {
    double *value = route_param(b, name);
    for (int64_t i = 0; i < rows * d; ++i) value[i] = i % d == first + i / d;
}

/* The tokens in an expert's slots: kept first choices in the order of tokens, then kept second ones. */
static int slots_of(const route_bench *b, int32_t e, int token[SLOTS]) {
    int n = 0;
    for (int k = 0; k < 2; ++k)
        for (int t = 0; t < b->view.n_tokens; ++t) {
            const int i = t * 2 + k;
            if (b->view.expert[i] != e || b->view.row_of[i] < 0) continue;
            assert_true(n < SLOTS);
            token[n++] = t;
        }
    return n;
}

static void check_slots(const route_bench *b, int32_t e, const int *expected, int n) {
    int token[SLOTS];
    assert_int_equal(slots_of(b, e, token), n);
    for (int i = 0; i < n; ++i) assert_int_equal(token[i], expected[i]);
}

/* Weight that reaches the output: 0 for a dropped row. */
static double kept_weight(const route_bench *b, int64_t t, int32_t e) {
    for (int k = 0; k < 2; ++k)
        if (b->view.expert[t * 2 + k] == e && b->view.row_of[t * 2 + k] >= 0)
            return ((const double *)b->view.weight)[t * 2 + k];
    return 0;
}

static moe_layer_desc lucidrains(const char *policy, float factor) {
    return (moe_layer_desc){.router_type = "gshard_top2",
                            .second_policy_train = policy,
                            .second_policy_eval = policy,
                            .capacity_factor = factor,
                            .capacity_formula = "lucidrains",
                            .capacity_group = "sequence",
                            .drop_policy = "rank_major",
                            .gshard_loss_coeff = 1};
}

static void top2_of_one_group(void **state) {
    (void)state;
    route_bench b = route_begin(lucidrains("all", 1.0f), golden_logits(12, 3, NULL));
    route_run(&b, &route_train);
    assert_int_equal(b.view.capacity, 4);
    check_slots(&b, 0, (int[]){2, 6, 8, 9}, 4);
    check_slots(&b, 1, (int[]){1, 4, 11, 0}, 4);
    check_slots(&b, 2, (int[]){0, 3, 5, 7}, 4);
    near(kept_weight(&b, 0, 1), .341667);
    near(kept_weight(&b, 0, 2), .658333);
    near(kept_weight(&b, 5, 2), .872583);
    near(kept_weight(&b, 5, 0) + kept_weight(&b, 5, 1), 0);
    near(b.stats.loss, .992241);
    route_end(&b);
}

static void top2_without_second_choices(void **state) {
    (void)state;
    route_bench b = route_begin(lucidrains("none", 1.0f), golden_logits(12, 3, NULL));
    route_run(&b, &route_train);
    check_slots(&b, 1, (int[]){1, 4, 11}, 3);
    near(kept_weight(&b, 0, 2), .658333);
    near(kept_weight(&b, 0, 1), 0);
    near(b.stats.loss, .992241);
    route_end(&b);
}

static void top2_with_room(void **state) {
    (void)state;
    route_bench b = route_begin(lucidrains("all", 2.0f), golden_logits(12, 3, NULL));
    route_run(&b, &route_train);
    assert_int_equal(b.view.capacity, 8);
    check_slots(&b, 0, (int[]){2, 6, 8, 9, 1, 3, 4, 10}, 8);
    check_slots(&b, 1, (int[]){1, 4, 11, 0, 5, 7, 8}, 7);
    check_slots(&b, 2, (int[]){0, 3, 5, 7, 10, 2, 6, 9}, 8);
    near(kept_weight(&b, 5, 1), .127417);
    route_end(&b);
}

/* The outer level of the next test, as a layer of its own. */
static void outer_level(void **state) {
    (void)state;
    moe_layer_desc desc = lucidrains("all", 1.0f);
    desc.num_experts = 2;
    route_bench b = begin(desc, 8, 4);
    set_units(&b, "gate.weight", 2, 4, 0);
    route_run(&b, &route_train);
    assert_int_equal(b.view.capacity, 4);
    check_slots(&b, 0, (int[]){2, 3, 6, 0}, 4);
    check_slots(&b, 1, (int[]){0, 1, 4, 5}, 4);
    near(b.stats.loss, 1.017936);
    route_end(&b);
}

/* Outer logits x0, x1, both inner gates' x2, x3; experts give back their input, so y is the sum of a
 * token's weights times x. */
static void two_levels(void **state) {
    static const double weights[] = {1.0, .512582, .969566, .856186, .943794, .881280, .601765, 0};
    (void)state;
    moe_layer_desc desc = lucidrains("all", 1.0f);
    desc.num_experts = 4;
    desc.num_groups_outer = 2;
    desc.expert_kinds = "identity,identity,identity,identity";
    route_bench b = begin(desc, 8, 4);
    set_units(&b, "gate.weight", 2, 4, 0);
    double *inner = route_param(&b, "gate_inner.weight");
    for (int64_t i = 0; i < 2 * 2 * 4; ++i) inner[i] = i % 4 == 2 + i / 4 % 2;
    route_run(&b, &route_train);
    for (int64_t t = 0; t < 8; ++t)
        for (int64_t j = 0; j < 4; ++j) near(test_at(b.y, t, j), weights[t] * test_at(b.logits, t, j));
    near(b.stats.loss, 1.805146);
    route_end(&b);
}

/* Megatron core: sequences of 6 tokens, two of them, laid out t = s * 2 + b; here one after the other. */
static void balance_by_sequence(void **state) {
    (void)state;
    const moe_layer_desc desc = {.top_k = 2, .seq_aux_loss_coeff = 1, .aux_map = "plain"};
    moe_mat laid = golden_logits(12, 4, NULL), ours = golden_logits(12, 4, NULL);
    for (int64_t t = 0; t < 12; ++t)
        memcpy((double *)ours.data + (t % 2 * 6 + t / 2) * 4, (double *)laid.data + t * 4,
               4 * sizeof(double));
    free(laid.data);
    route_bench b = route_begin(desc, ours);
    moe_call call = route_train;
    call.sequence_length = 6;
    route_run(&b, &call);
    near(b.stats.loss, 1.001454);
    route_end(&b);
}

/* sigma-MoE: the negative entropy of the mean softmax, whatever the scores are. */
static void entropy_of_usage(void **state) {
    static const double offset[] = {1, 0, -1, 0};
    static const char *const scores[] = {"softmax", "sigmoid"};
    (void)state;
    for (int i = 0; i < 4; ++i) {
        const moe_layer_desc desc = {
            .top_k = 2, .score_function = scores[i % 2], .score_before_topk = true, .entropy_loss_coeff = 1};
        route_bench b = route_begin(desc, golden_logits(12, 4, i < 2 ? NULL : offset));
        route_run(&b, &route_train);
        near(b.stats.loss, i < 2 ? -1.380275 : -1.220645);
        route_end(&b);
    }
}

/* Megatron core: softmax over all experts, then the selection. */
static void softmax_before_counts(void **state) {
    static const int64_t counts[] = {7, 4, 5, 8};
    (void)state;
    const moe_layer_desc desc = {.top_k = 2, .score_before_topk = true, .aux_loss_coeff = 1};
    route_bench b = route_begin(desc, golden_logits(12, 4, NULL));
    route_run(&b, &route_train);
    for (int32_t e = 0; e < 4; ++e) assert_int_equal(b.view.routed[e], counts[e]);
    near(b.stats.loss, .990015);
    route_end(&b);
}

/* Megatron core: what a batch asks of the biases, before their mean is taken off. */
static void quantile_before_centring(void **state) {
    static const double beta[] = {0, 0, 0, .637080};
    (void)state;
    const moe_layer_desc desc = {.top_k = 2, .router_type = "quantile"};
    route_bench b = route_begin(desc, golden_logits(8, 4, NULL));
    route_run(&b, &route_train);
    for (int e = 0; e < 4; ++e) near(b.layer->step.quantile[e], beta[e]);
    route_end(&b);
}

/* Megatron core: without the plan, in evaluation, sinkhorn takes the best logit. */
static void sinkhorn_plain_argmax(void **state) {
    static const double offset[] = {1, 0, -1, 0};
    static const int32_t first[] = {3, 0, 0, 0, 1, 2, 0, 3, 0, 0, 0, 1};
    const moe_call infer = {.size = sizeof infer};
    (void)state;
    const moe_layer_desc desc = {.top_k = 1, .router_type = "sinkhorn", .sinkhorn_variant = "megatron"};
    route_bench b = route_begin(desc, golden_logits(12, 4, offset));
    route_run(&b, &infer);
    for (int64_t t = 0; t < 12; ++t) assert_int_equal(b.view.expert[t], first[t]);
    route_end(&b);
}

/* tensor2tensor's noisy top-2: x = (clean logits, raw widths of the noise), noise = the widths' rows from the
 * last to the first. Importance is what each expert's weights sum to, load what its P do. */
static void noisy_importance_and_load(void **state) {
    enum { T = 6, E = 4 };
    static const double importance[E] = {1.408252, 1.708885, 1.518342, 1.364521};
    static const double load[E] = {3.161149, 3.124750, 2.406959, 3.574491};
    static const double first[E] = {.081107, .580895, .322572, .987179};
    (void)state;
    const moe_layer_desc desc = {.router_type = "noisy_top_k",
                                 .num_experts = E,
                                 .top_k = 2,
                                 .importance_loss_coeff = 1,
                                 .load_loss_coeff = 1};
    route_bench b = begin(desc, T, 2 * E);
    float noise[T * E];
    for (int t = 0; t < T; ++t)
        for (int e = 0; e < E; ++e) {
            const double raw = cos(1.7 * t + 0.6 * e * (t + 1));
            ((double *)b.logits.data)[t * 2 * E + E + e] = raw;
            noise[(T - 1 - t) * E + e] = (float)raw;
        }
    set_units(&b, "gate.weight", E, 2 * E, 0);
    set_units(&b, "gate.noise", E, 2 * E, E);
    const moe_draws draws = {.size = sizeof draws, .noise = noise};
    moe_call call = route_train;
    call.draws = &draws;
    route_run(&b, &call);
    for (int32_t e = 0; e < E; ++e) {
        double sum = 0;
        for (int64_t t = 0; t < T; ++t) sum += route_weight(&b, t, e);
        near(sum, importance[e]);
    }
    const double *P = moei_layer_scratch(b.layer).route.noise; /* as forward left it */
    for (int e = 0; e < E; ++e) {
        double sum = 0;
        for (int t = 0; t < T; ++t) sum += P[t * E + e];
        near(P[e], first[e]);
        near(sum, load[e]);
    }
    near(b.stats.loss, .007860 + .018750);
    route_end(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(top2_of_one_group),
        cmocka_unit_test(top2_without_second_choices),
        cmocka_unit_test(top2_with_room),
        cmocka_unit_test(outer_level),
        cmocka_unit_test(two_levels),
        cmocka_unit_test(balance_by_sequence),
        cmocka_unit_test(entropy_of_usage),
        cmocka_unit_test(noisy_importance_and_load),
        cmocka_unit_test(softmax_before_counts),
        cmocka_unit_test(quantile_before_centring),
        cmocka_unit_test(sinkhorn_plain_argmax),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
