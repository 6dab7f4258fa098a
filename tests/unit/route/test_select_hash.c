/* test_select_hash.c: routers that do not ask the gate: balanced, hash, random; and quantile balancing.
 * Recorded indices of Automodel's FakeBalancedGate; the quantile statistic of Megatron core.
 */
#include "support/route_fixture.h"

static void balanced_is_round_robin(void **state) {
    (void)state;
    static const int32_t expert[] = {1, 2, 3, 4, 1, 2, 3, 4};
    const moe_layer_desc desc = {.top_k = 2, .router_type = "balanced", .fake_skip_first = 1};
    route_bench b = route_begin(desc, golden_logits(4, 5, NULL));
    route_run(&b, &route_train);
    assert_memory_equal(b.view.expert, expert, sizeof expert);
    for (int i = 0; i < 8; ++i) near(((const double *)b.view.weight)[i], 0.5);
    route_end(&b);
}

/* Noise: weights still sum to 1, skipped experts stay unused, and the draws follow x, not the step. */
static void balanced_with_noise(void **state) {
    (void)state;
    enum { T = 64, E = 8, K = 3 };
    const moe_layer_desc desc = {
        .top_k = K, .router_type = "balanced", .fake_skip_first = 2, .fake_noise = 0.3f};
    route_bench b = route_begin(desc, golden_logits(T, E, NULL));
    int32_t first[T * K];
    moe_call call = route_train;
    route_run(&b, &call);
    memcpy(first, b.view.expert, sizeof first);
    for (int64_t t = 0; t < T; ++t) {
        double sum = 0;
        for (int64_t k = 0; k < K; ++k) {
            const double w = ((const double *)b.view.weight)[t * K + k];
            assert_true(w >= 0.7 / K - 1e-6 && first[t * K + k] >= 2);
            sum += w;
        }
        near(sum, 1);
        assert_int_equal(__builtin_popcount(route_set(&b, t)), K);
    }
    ++call.step;
    route_run(&b, &call);
    assert_memory_equal(b.view.expert, first, sizeof first);
    ((double *)b.logits.data)[1] += 0.25;
    route_run(&b, &call);
    assert_memory_not_equal(b.view.expert, first, sizeof first);
    route_end(&b);
}

/* The draws follow the first numbers of real tokens: padding may hold anything, NaN too. */
static void balanced_looks_past_padding(void **state) {
    enum { T = 24, E = 8, K = 3 };
    static const double padding[] = {0.5, NAN, INFINITY, 1e300};
    uint8_t mask[T];
    int32_t first[T * K];
    (void)state;
    route_bench b = route_begin((moe_layer_desc){.top_k = K, .router_type = "balanced", .fake_noise = 0.3f},
                                golden_logits(T, E, NULL));
    moe_call call = route_train;
    call.token_mask = mask;
    for (int t = 0; t < T; ++t) mask[t] = t > 0;
    for (int i = 0; i < 4; ++i) {
        for (int e = 0; e < E; ++e) ((double *)b.logits.data)[e] = padding[i];
        route_run(&b, &call);
        if (i == 0) memcpy(first, b.view.expert, sizeof first);
        assert_memory_equal(b.view.expert, first, sizeof first);
    }
    ((double *)b.logits.data)[E] += 0.25; /* of the first real token */
    route_run(&b, &call);
    assert_memory_not_equal(b.view.expert, first, sizeof first);
    route_end(&b);
}

/* What padding holds does not enter the quantiles. */
static void quantile_looks_past_padding(void **state) {
    enum { T = 12, E = 4 };
    static const double padding[] = {0.5, NAN, -1e300};
    uint8_t mask[T];
    double bias[E];
    (void)state;
    for (int t = 0; t < T; ++t) mask[t] = t % 3 != 0;
    for (int i = 0; i < 3; ++i) {
        route_bench b =
            route_begin((moe_layer_desc){.top_k = 2, .router_type = "quantile"}, golden_logits(T, E, NULL));
        moe_call call = route_train;
        call.token_mask = mask;
        for (int j = 0; j < T * E; ++j)
            if (!mask[j / E]) ((double *)b.logits.data)[j] = padding[i];
        route_run(&b, &call);
        must(b.ctx, moe_layer_end_step(b.layer, NULL));
        if (i == 0) memcpy(bias, route_param(&b, "gate.quantile_bias"), sizeof bias);
        assert_memory_equal(route_param(&b, "gate.quantile_bias"), bias, sizeof bias);
        assert_true(bias[0] != 0);
        route_end(&b);
    }
}

static void hash_follows_the_token(void **state) {
    (void)state;
    enum { T = 400, E = 8, K = 2 };
    int32_t id[T], known[10][K];
    for (int t = 0; t < T; ++t) id[t] = t * 7 % 10;
    moe_call call = route_train;
    call.token_id = id;
    route_bench b =
        route_begin((moe_layer_desc){.top_k = K, .router_type = "hash"}, golden_logits(T, E, NULL));
    route_run(&b, &call);
    for (int t = 0; t < 10; ++t) memcpy(known[id[t]], b.view.expert + t * K, sizeof known[0]);
    for (int t = 0; t < T; ++t) {
        assert_memory_equal(b.view.expert + t * K, known[id[t]], sizeof known[0]);
        assert_int_equal(__builtin_popcount(route_set(&b, t)), K);
    }
    call.token_id = NULL; /* now each token hashes its number: nearly even */
    ++call.step;
    route_run(&b, &call);
    for (int e = 0; e < E; ++e) assert_true(b.view.routed[e] > 50 && b.view.routed[e] < 160);
    route_end(&b);
}

/* A unit is one to the hash: ids of single tokens are refused, its own number serves. */
static void hash_of_units(void **state) {
    (void)state;
    static const int32_t id[12] = {3, 3, 3, 1, 2, 2, 3, 3, 0, 0, 1, 1};
    const moe_layer_desc desc = {.top_k = 1, .router_type = "hash", .routing_unit = "sequence"};
    route_bench b = route_begin(desc, golden_logits(12, 6, NULL));
    moe_call call = route_train;
    call.sequence_length = 4;
    route_run(&b, &call);
    for (int t = 0; t < 12; ++t) assert_int_equal(b.view.expert[t], b.view.expert[t / 4 * 4]);
    call.token_id = id;
    assert_int_equal(moe_layer_forward(b.layer, b.logits, b.y, &call, NULL), MOE_ERR_ARGUMENT);
    assert_non_null(strstr(moe_ctx_error(b.ctx), "routing_unit token"));
    route_end(&b);
}

/* Forced logits do not depend on x, and their gradient goes straight through to the gate. */
static void random_passes_gradients_through(void **state) {
    (void)state;
    enum { T = 30, E = 6, K = 2 };
    const moe_layer_desc desc = {
        .top_k = K, .router_type = "random", .z_loss_coeff = 1, .force_bias_std = 0.5f};
    route_bench b = route_begin(desc, golden_logits(T, E, NULL));
    int32_t first[T * K];
    moe_param gate = {.size = sizeof gate};
    double norm = 0;
    route_run(&b, &route_train);
    memcpy(first, b.view.expert, sizeof first);
    moe_mat dy = test_random(MOE_F64, T, E, 3), dx = test_output(MOE_F64, T, E);
    must(b.ctx, moe_layer_backward(b.layer, b.logits, dy, dx));
    must(b.ctx, moe_layer_param_by_name(b.layer, "gate.weight", &gate));
    for (int i = 0; i < E * E; ++i) norm += fabs(((double *)gate.grad)[i]);
    assert_true(norm > 1e-3);
    for (int i = 0; i < T * E; ++i) ((double *)b.logits.data)[i] *= -1;
    route_run(&b, &route_train);
    assert_memory_equal(b.view.expert, first, sizeof first);
    free(dy.data), free(dx.data);
    route_end(&b);
}

static void quantile_statistic(void **state) {
    (void)state;
    static const double centred[] = {-.159270, -.159270, -.159270, .477810};
    route_bench b =
        route_begin((moe_layer_desc){.top_k = 2, .router_type = "quantile"}, golden_logits(8, 4, NULL));
    double *beta = route_param(&b, "gate.quantile_bias"), sum = 0;
    route_run(&b, &route_train);
    must(b.ctx, moe_layer_end_step(b.layer, NULL));
    for (int e = 0; e < 4; ++e) near(beta[e], centred[e]);
    must(b.ctx, moe_layer_end_step(b.layer, NULL)); /* no batch since: nothing to learn from */
    for (int e = 0; e < 4; ++e) near(beta[e], centred[e]);
    route_run(&b, &route_train);
    for (int e = 0; e < 4; ++e)
        near(((const double *)b.view.selection)[e], ((double *)b.logits.data)[e] - centred[e]);
    for (int i = 0; i < 30; ++i) {
        route_run(&b, &route_train);
        must(b.ctx, moe_layer_end_step(b.layer, NULL));
    }
    for (int e = 0; e < 4; ++e) sum += beta[e];
    near(sum, 0);
    route_end(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(balanced_is_round_robin),     cmocka_unit_test(balanced_with_noise),
        cmocka_unit_test(balanced_looks_past_padding), cmocka_unit_test(quantile_looks_past_padding),
        cmocka_unit_test(hash_follows_the_token),      cmocka_unit_test(random_passes_gradients_through),
        cmocka_unit_test(quantile_statistic),          cmocka_unit_test(hash_of_units),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
