/* test_select_expert_choice.c: every expert takes its C best tokens, and no other.
 * Random logits; C = ceil(T K / E) without a factor, by batch or by sequence, masked tokens never.
 * Source: Zhou et al. 2022: tokens are compared and weighed by softmax over the experts.
 */
#include "support/route_fixture.h"

static int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

/* What an expert compares tokens by, and a token's weight: its score among all experts. */
static double score_of(const route_bench *b, bool softmax, int64_t t, int64_t e) {
    const double *l = (const double *)b->logits.data + t * b->view.n_experts;
    double sum = 0;
    if (!softmax) return 1 / (1 + exp(-l[e]));
    for (int64_t i = 0; i < b->view.n_experts; ++i) sum += exp(l[i] - l[e]);
    return 1 / sum;
}

/* No token left out by an expert ranks above one that it took, within tokens first .. first + n - 1. */
static void check_group(const route_bench *b, bool softmax, const uint8_t *mask, int64_t first, int64_t n,
                        int64_t K) {
    const int64_t E = b->view.n_experts;
    int64_t real = 0;
    for (int64_t t = first; t < first + n; ++t) real += mask[t];
    for (int64_t e = 0; e < E; ++e) {
        double worst = INFINITY, best_left = -INFINITY;
        int64_t taken = 0;
        for (int64_t t = first; t < first + n; ++t) {
            const double score = score_of(b, softmax, t, e);
            const bool took = b->view.expert[t * E + e] == e;
            assert_true(took || b->view.expert[t * E + e] == -1);
            assert_true(mask[t] || !took);
            taken += took;
            if (took) near(((const double *)b->view.weight)[t * E + e], score);
            if (took) worst = fmin(worst, score);
            if (!took && mask[t]) best_left = fmax(best_left, score);
        }
        assert_int_equal(taken, ceil_div(real * K, E));
        assert_true(worst >= best_left);
    }
}

/* Rows of an expert in the group of n tokens that has the most real ones. */
static int64_t largest_share(const uint8_t *mask, int64_t n_tokens, int64_t n, int64_t K, int64_t E) {
    int64_t most = 0;
    for (int64_t first = 0; first < n_tokens; first += n) {
        int64_t real = 0;
        for (int64_t t = first; t < first + n; ++t) real += mask[t];
        if (real > most) most = real;
    }
    return ceil_div(most * K, E);
}

static void takes_the_best(void **state) {
    (void)state;
    enum { T = 36, E = 5, K = 2 };
    uint8_t mask[T];
    for (int t = 0; t < T; ++t) mask[t] = t % 7 != 3;
    for (int way = 0; way < 4; ++way) {
        const bool by_sequence = way % 2, softmax = way < 2;
        moe_layer_desc desc = {.top_k = K, .router_type = "expert_choice"};
        desc.score_function = softmax ? "softmax" : "sigmoid";
        desc.capacity_factor = 1;
        desc.capacity_group = by_sequence ? "sequence" : "batch";
        moe_call call = route_train;
        call.token_mask = mask;
        call.sequence_length = 12;
        route_bench b = route_begin(desc, test_random(MOE_F64, T, E, 11));
        route_run(&b, &call);
        assert_int_equal(b.view.top_k, E);
        for (int64_t first = 0; first < T; first += by_sequence ? 12 : T)
            check_group(&b, softmax, mask, first, by_sequence ? 12 : T, K);
        assert_int_equal(b.view.capacity, largest_share(mask, T, by_sequence ? 12 : T, K, E));
        for (int e = 0; e < E; ++e) assert_int_equal(b.view.routed[e], b.view.kept[e]);
        assert_int_equal(b.stats.n_dropped, 0);
        route_end(&b);
    }
}

/* Its share is its capacity, with a factor or without. */
static void capacity_is_told(void **state) {
    static const float factors[] = {0, 1, 0.5f};
    static const int64_t shares[] = {6, 6, 3};
    (void)state;
    for (int i = 0; i < 3; ++i) {
        const moe_layer_desc desc = {
            .top_k = 2, .router_type = "expert_choice", .capacity_factor = factors[i]};
        route_bench b = route_begin(desc, test_random(MOE_F64, 12, 4, 12));
        route_run(&b, &route_train);
        assert_int_equal(b.view.capacity, shares[i]);
        for (int e = 0; e < 4; ++e) assert_int_equal(b.view.kept[e], shares[i]);
        route_end(&b);
    }
}

static void refused_share(route_bench *b, const moe_call *call, const char *text) {
    assert_int_equal(moe_layer_forward(b->layer, b->logits, b->y, call, NULL), MOE_ERR_ARGUMENT);
    if (!strstr(moe_ctx_error(b->ctx), text)) fail_msg("'%s' and not '%s'", moe_ctx_error(b->ctx), text);
}

/* By sequence an expert has its share of each. */
static void replay_is_held_to_each_sequence(void **state) {
    enum { T = 12, E = 4, EACH = 4 };
    int32_t expert[T * E];
    moe_call call = route_train;
    (void)state;
    moe_layer_desc desc = {.top_k = 2, .router_type = "expert_choice", .capacity_factor = 1};
    desc.capacity_group = "sequence";
    route_bench b = route_begin(desc, test_random(MOE_F64, T, E, 14));
    for (int i = 0; i < T * E; ++i) expert[i] = i / E % EACH < 2 ? i % E : -1; /* 2 of 4 in each */
    call.replay_expert = expert;
    call.sequence_length = EACH;
    route_run(&b, &call);
    for (int e = 0; e < E; ++e) assert_int_equal(b.view.kept[e], 6);
    expert[6 * E + 3] = 3;
    refused_share(&b, &call, "expert 3 is given 3 tokens from token 4 on; its capacity is 2 of the 4 real");
    route_end(&b);
}

/* A replay is held to what the layer reserves: slot e is expert e's, and no expert takes more than its share.
 */
static void replay_is_held_to_the_share(void **state) {
    enum { T = 12, E = 4, SHARE = 6 };
    int32_t expert[T * E];
    uint8_t mask[T];
    moe_call call = route_train;
    (void)state;
    route_bench b = route_begin((moe_layer_desc){.top_k = 2, .router_type = "expert_choice"},
                                test_random(MOE_F64, T, E, 13));
    for (int i = 0; i < T * E; ++i) expert[i] = i / E < SHARE ? i % E : -1;
    call.replay_expert = expert;
    route_run(&b, &call);
    for (int e = 0; e < E; ++e) assert_int_equal(b.view.kept[e], SHARE);
    expert[SHARE * E + 1] = 1;
    refused_share(&b, &call, "expert 1 is given 7 tokens");
    for (int t = 0; t < T; ++t) mask[t] = t != 0; /* a masked token takes no share */
    call.token_mask = mask;
    route_run(&b, &call);
    assert_int_equal(b.view.kept[1], SHARE);
    for (int t = 0; t < T; ++t)
        mask[t] = t < T / 2; /* nor is there one of it: 6 real tokens leave 3 places */
    refused_share(&b, &call, "expert 0 is given 6 tokens from token 0 on; its capacity is 3 of the 6 real");
    for (int t = 0; t < T; ++t) mask[t] = t != 0;
    expert[3 * E + 2] = 3;
    assert_int_equal(moe_layer_forward(b.layer, b.logits, b.y, &call, NULL), MOE_ERR_ARGUMENT);
    assert_non_null(strstr(moe_ctx_error(b.ctx), "token 3, slot 2"));
    for (int i = 0; i < T * E; ++i) expert[i] = i % E;
    call.token_mask = NULL;
    assert_int_equal(moe_layer_forward(b.layer, b.logits, b.y, &call, NULL), MOE_ERR_ARGUMENT);
    route_end(&b);
}

static void nothing_to_take(void **state) {
    (void)state;
    static const uint8_t mask[8];
    moe_call call = route_train;
    call.token_mask = mask;
    route_bench b =
        route_begin((moe_layer_desc){.top_k = 2, .router_type = "expert_choice"}, golden_logits(8, 4, NULL));
    route_run(&b, &call);
    for (int e = 0; e < 4; ++e) assert_int_equal(b.view.routed[e], 0);
    for (int i = 0; i < 32; ++i) near(((double *)b.y.data)[i], 0);
    route_end(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(takes_the_best),
        cmocka_unit_test(capacity_is_told),
        cmocka_unit_test(replay_is_held_to_the_share),
        cmocka_unit_test(replay_is_held_to_each_sequence),
        cmocka_unit_test(nothing_to_take),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
