/* test_select_sinkhorn.c: the three Sinkhorn routers against the reference systems, and against overflow.
 * Logits Lg + (1, 0, -1, 0), T = 12, E = 4; recorded picks and counts of Megatron core and sigma-MoE.
 */
#include "support/route_fixture.h"

static const double offset[] = {1, 0, -1, 0};

static void megatron_plan(void **state) {
    (void)state;
    static const int64_t counts[] = {7, 4, 5, 8};
    static const int32_t first[] = {3, 0, 3, 2, 1, 2, 3, 3, 0, 0, 2, 1};
    moe_layer_desc desc = {.top_k = 2, .router_type = "sinkhorn", .sinkhorn_variant = "megatron"};
    route_bench b = route_begin(desc, golden_logits(12, 4, offset));
    route_run(&b, &route_train);
    for (int32_t e = 0; e < 4; ++e) assert_int_equal(b.view.routed[e], counts[e]);
    near(route_weight(&b, 0, 2), .119807);
    near(route_weight(&b, 0, 3), .500320);
    const double *plan = b.view.selection;
    for (int64_t t = 0; t < 12; ++t) {
        double row = 0;
        for (int64_t e = 0; e < 4; ++e) row += plan[t * 4 + e];
        assert_true(fabs(row - 1.0 / 12) < 1e-3 / 12);
    }
    route_end(&b);
    desc.top_k = 1;
    b = route_begin(desc, golden_logits(12, 4, offset));
    route_run(&b, &route_train);
    for (int64_t t = 0; t < 12; ++t) {
        const double l = ((double *)b.logits.data)[t * 4 + first[t]];
        assert_int_equal(b.view.expert[t], first[t]);
        near(route_weight(&b, t, first[t]), 1 / (1 + exp(-l)));
    }
    route_end(&b);
}

static void evaluation_ranks_by_scores(void **state) {
    (void)state;
    static const int64_t counts[] = {10, 4, 3, 7};
    const moe_call infer = {.size = sizeof infer};
    route_bench b =
        route_begin((moe_layer_desc){.top_k = 2, .router_type = "sinkhorn", .sinkhorn_variant = "megatron"},
                    golden_logits(12, 4, offset));
    route_run(&b, &infer);
    for (int32_t e = 0; e < 4; ++e) assert_int_equal(b.view.routed[e], counts[e]);
    route_end(&b);
}

static void sigma_moe_as_it_is(void **state) {
    (void)state;
    static const int64_t counts[] = {6, 4, 6, 8};
    static const int32_t first[] = {2, 1, 3, 2, 1, 2, 2, 2, 1, 3, 2, 1};
    static const double log_z[] = {-14.950722, -13.394548, -12.283652, -12.645107};
    moe_layer_desc desc = {
        .top_k = 2, .router_type = "sinkhorn", .sinkhorn_variant = "sigma_moe", .score_function = "sigmoid"};
    route_bench b = route_begin(desc, golden_logits(12, 4, offset));
    route_run(&b, &route_train);
    for (int32_t e = 0; e < 4; ++e) assert_int_equal(b.view.routed[e], counts[e]);
    for (int64_t t = 0; t < 12; ++t) assert_int_equal(b.view.expert[t * 2], first[t]);
    for (int e = 0; e < 4; ++e)
        assert_true(fabs(((const double *)b.view.selection)[e] - log_z[e]) < 2e-6); /* recorded in f32 */
    near(route_weight(&b, 0, 2), 1 / (1 + exp(-((double *)b.logits.data)[2])));
    route_end(&b);
}

/* sigma-MoE balances each sequence by itself: two sequences are two batches. */
static void sigma_moe_balances_sequences(void **state) {
    (void)state;
    moe_layer_desc desc = {
        .top_k = 2, .router_type = "sinkhorn", .sinkhorn_variant = "sigma_moe", .score_function = "sigmoid"};
    moe_call by_six = route_train;
    by_six.sequence_length = 6;
    route_bench whole = route_begin(desc, golden_logits(12, 4, offset));
    route_bench half = route_begin(desc, golden_logits(6, 4, offset));
    route_run(&whole, &by_six);
    route_run(&half, &route_train);
    assert_memory_equal(whole.view.expert, half.view.expert, 12 * sizeof(int32_t));
    route_end(&whole);
    route_end(&half);
}

/* Rows sum to 1 and, after enough rounds, columns to T / E. */
static void standard_is_balanced(void **state) {
    (void)state;
    const moe_layer_desc desc = {.top_k = 1, .router_type = "sinkhorn", .sinkhorn_iters = 200};
    route_bench b = route_begin(desc, golden_logits(40, 4, offset));
    route_run(&b, &route_train);
    const double *z = b.view.selection;
    for (int64_t e = 0; e < 4; ++e) {
        double column = 0;
        for (int64_t t = 0; t < 40; ++t) column += exp(z[t * 4 + e]);
        near(column, 10);
    }
    for (int64_t t = 0; t < 40; ++t)
        near(exp(z[t * 4]) + exp(z[t * 4 + 1]) + exp(z[t * 4 + 2]) + exp(z[t * 4 + 3]), 1);
    route_end(&b);
}

/* exp(1000) is no number; the plan of shifted logits is. Masked tokens, even of NaN, take no part. */
static void large_logits_and_masks(void **state) {
    (void)state;
    static const char *const variants[] = {"standard", "megatron"};
    uint8_t mask[14];
    memset(mask, 1, sizeof mask);
    mask[3] = mask[13] = 0;
    for (int i = 0; i < 2; ++i) {
        const moe_layer_desc desc = {.top_k = 2, .router_type = "sinkhorn", .sinkhorn_variant = variants[i]};
        moe_mat shifted = golden_logits(14, 4, (const double[]){1001, 1000, 999, 1000});
        moe_mat plain = golden_logits(12, 4, offset);
        for (int64_t t = 0, from = 0; from < 13; ++from) {
            if (from == 3) continue;
            for (int64_t e = 0; e < 4; ++e)
                ((double *)plain.data)[t * 4 + e] = ((double *)shifted.data)[from * 4 + e] - 1000;
            ++t;
        }
        ((double *)shifted.data)[3 * 4] = NAN;
        moe_call call = route_train;
        call.token_mask = mask;
        route_bench b = route_begin(desc, shifted), c = route_begin(desc, plain);
        route_run(&b, &call);
        route_run(&c, &route_train);
        for (int64_t t = 0, from = 0; from < 13; ++from) {
            if (from == 3) continue;
            assert_int_equal(route_set(&b, from), route_set(&c, t));
            ++t;
        }
        assert_int_equal(route_set(&b, 3), 0);
        assert_int_equal(route_set(&b, 13), 0);
        route_end(&b);
        route_end(&c);
    }
}

/* A row far below another is balanced as if it stood alone with its like: no exponential is lost. Without a
 * tolerance the potentials drift for all iterations there are. */
static void rows_far_apart(void **state) {
    (void)state;
    for (int i = 0; i < 2; ++i) {
        const moe_layer_desc desc = {.top_k = 1,
                                     .router_type = "sinkhorn",
                                     .sinkhorn_variant = "megatron",
                                     .sinkhorn_tol = i ? (float)MOE_ZERO : 0};
        moe_mat far = golden_logits(12, 4, offset);
        for (int e = 0; e < 4; ++e) {
            ((double *)far.data)[e] += 5000;
            ((double *)far.data)[4 + e] -= 5000;
            ((double *)far.data)[8 + e] = e == 1 ? 9000 : -9000;
        }
        route_bench b = route_begin(desc, far);
        route_run(&b, &route_train);
        for (int64_t k = 0; k < 12 * 4; ++k) assert_true(isfinite(((const double *)b.view.selection)[k]));
        assert_int_equal(route_set(&b, 2), 1u << 1);
        for (int64_t t = 0; t < 12 && i == 0; ++t) {
            double row = 0;
            for (int64_t e = 0; e < 4; ++e) row += ((const double *)b.view.selection)[t * 4 + e];
            if (t != 1) assert_true(row > 0.5 / 12 && row < 2.0 / 12);
        }
        route_end(&b);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(megatron_plan),        cmocka_unit_test(evaluation_ranks_by_scores),
        cmocka_unit_test(sigma_moe_as_it_is),   cmocka_unit_test(sigma_moe_balances_sequences),
        cmocka_unit_test(standard_is_balanced), cmocka_unit_test(large_logits_and_masks),
        cmocka_unit_test(rows_far_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
