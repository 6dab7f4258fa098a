/* test_route.c: what holds for every router: replay equals record, threads make no difference, masks, NaN,
 * units, random K and expert dropout. Random logits and layers; the seed is printed.
 */
#include "support/route_fixture.h"

#include "route/select.h"

enum { T = 24, E = 8, K = 3 };

/* One of each router and of each way to score. */
/* clang-format off */
static const moe_layer_desc routers[] = {
    {.top_k = K},
    {.top_k = K, .score_before_topk = true, .norm_topk_prob = true, .routed_scaling_factor = 2.5f},
    {.top_k = K, .score_before_topk = true, .selection_bias = true},
    {.top_k = K, .score_function = "sigmoid", .norm_topk_prob = true, .num_groups = 4, .group_top_k = 2},
    {.top_k = K, .score_function = "sqrtsoftplus", .expert_dropout = 0.4f},
    {.top_k = K, .top_k_min = 1},
    {.top_k = K, .router_bias = true, .score_function = "sigmoid"},
    {.top_k = K, .token_rounding = 5},
    {.top_k = K, .token_rounding = 4, .score_before_topk = true, .norm_topk_prob = true},
    {.top_k = K, .router_type = "sinkhorn"},
    {.top_k = K, .router_type = "sinkhorn", .sinkhorn_variant = "megatron"},
    {.top_k = K, .router_type = "sinkhorn", .sinkhorn_variant = "sigma_moe", .score_function = "sigmoid"},
    {.top_k = K, .router_type = "quantile"},
    {.top_k = K, .router_type = "noisy_top_k"},
    {.top_k = K, .router_type = "expert_choice", .score_before_topk = true},
    {.top_k = K, .router_type = "hash"},
    {.top_k = K, .router_type = "random"},
    {.top_k = K, .router_type = "balanced", .fake_noise = 0.2f},
    {.top_k = 2, .router_type = "gshard_top2"}
};
/* clang-format on */
enum { N_ROUTERS = sizeof routers / sizeof *routers };

/* Whether router i is of this type. */
static bool is_of(int i, moei_router_type type) {
    const char *name = routers[i].router_type ? routers[i].router_type : moei_router_types[MOEI_ROUTER_TOP_K];
    return strcmp(name, moei_router_types[type]) == 0;
}

static void every_router_and_score_is_tried(void **state) {
    (void)state;
    for (int type = 0; type < MOEI_ROUTER_TYPES; ++type) {
        if (!moei_router_types[type]) fail_msg("router %d of route/names.h has no name in names.c", type);
        int tried = 0;
        for (int i = 0; i < N_ROUTERS; ++i) tried += is_of(i, (moei_router_type)type);
        if (tried == 0) fail_msg("%s has no row in `routers` of this file", moei_router_types[type]);
    }
    for (size_t s = 0; moei_scores[s]; ++s) {
        int tried = s == MOEI_SOFTMAX;
        for (int i = 0; i < N_ROUTERS; ++i)
            tried += routers[i].score_function && strcmp(routers[i].score_function, moei_scores[s]) == 0;
        if (tried == 0) fail_msg("score %s has no row in `routers` of this file", moei_scores[s]);
    }
}

/* Router i with every loss that it allows. */
static moe_layer_desc with_losses(int i) {
    moe_layer_desc desc = routers[i];
    const char *type = desc.router_type ? desc.router_type : "top_k";
    desc.aux_loss_coeff = desc.seq_aux_loss_coeff = desc.global_aux_loss_coeff = 0.3f;
    desc.importance_loss_coeff = strcmp(type, "balanced") == 0 ? 0 : 0.2f;
    desc.entropy_loss_coeff = desc.z_loss_coeff = 0.2f;
    desc.gshard_loss_coeff = strcmp(type, "expert_choice") == 0 || desc.token_rounding > 0 ? 0 : 0.1f;
    desc.load_loss_coeff = strcmp(type, "noisy_top_k") == 0 ? 0.1f : 0;
    return desc;
}

static route_bench begin(int i) {
    return route_begin(with_losses(i), test_random(MOE_F64, T, E, 20 + (uint32_t)i));
}

/* Routing and gradients of one training step, copied. */
typedef struct outcome {
    int32_t expert[T * E];
    double weight[T * E], dx[T * E], dgate[E * E], loss;
} outcome;

static outcome step(route_bench *b, const moe_call *call) {
    outcome o = {.loss = 0};
    moe_param gate = {.size = sizeof gate};
    moe_mat dy = test_random(MOE_F64, T, E, 9), dx = test_output(MOE_F64, T, E);
    route_run(b, call);
    memcpy(o.expert, b->view.expert, (size_t)(T * b->view.top_k) * sizeof(int32_t));
    memcpy(o.weight, b->view.weight, (size_t)(T * b->view.top_k) * sizeof(double));
    moe_layer_zero_grad(b->layer);
    must(b->ctx, moe_layer_backward(b->layer, b->logits, dy, dx));
    must(b->ctx, moe_layer_param_by_name(b->layer, "gate.weight", &gate));
    memcpy(o.dx, dx.data, sizeof o.dx);
    memcpy(o.dgate, gate.grad, sizeof o.dgate);
    o.loss = b->stats.loss;
    free(dy.data), free(dx.data);
    return o;
}

static void replay_equals_record(void **state) {
    (void)state;
    for (int i = 0; i < N_ROUTERS; ++i) {
        route_bench b = begin(i);
        moe_call call = route_train;
        const outcome recorded = step(&b, &call);
        call.replay_expert = recorded.expert;
        const outcome replayed = step(&b, &call);
        assert_memory_equal(recorded.expert, replayed.expert, sizeof recorded.expert);
        /* The fused kernels and the plain path add in another order. */
        for (int j = 0; j < T * E; ++j) {
            assert_true(fabs(recorded.weight[j] - replayed.weight[j]) < 1e-12);
            assert_true(fabs(recorded.dx[j] - replayed.dx[j]) < 1e-11);
        }
        route_end(&b);
    }
}

/* Given weights are used as they are and give the gate no gradient. */
static void replayed_weights_are_constants(void **state) {
    (void)state;
    route_bench b = route_begin(routers[0], test_random(MOE_F64, T, E, 20));
    int32_t expert[T * K];
    double weight[T * K];
    for (int i = 0; i < T * K; ++i) {
        expert[i] = i % 5 == 4 ? -1 : i % E;
        weight[i] = 0.1 * (i % 7); /* no float is that */
    }
    moe_call call = route_train;
    call.replay_expert = expert;
    call.replay_weight = weight;
    const outcome o = step(&b, &call);
    for (int i = 0; i < T * K; ++i) assert_true(o.weight[i] == (expert[i] < 0 ? 0 : weight[i]));
    for (int i = 0; i < E * E; ++i) assert_true(o.dgate[i] == 0);
    weight[7] = NAN;
    assert_int_equal(moe_layer_forward(b.layer, b.logits, b.y, &call, NULL), MOE_ERR_NUMERIC);
    assert_non_null(strstr(moe_ctx_error(b.ctx), "replay_weight: token 2, slot 1"));
    expert[7] = E;
    assert_int_equal(moe_layer_forward(b.layer, b.logits, b.y, &call, NULL), MOE_ERR_ARGUMENT);
    assert_non_null(strstr(moe_ctx_error(b.ctx), "token 2, slot 1"));
    call.replay_expert = NULL;
    assert_int_equal(moe_layer_forward(b.layer, b.logits, b.y, &call, NULL), MOE_ERR_ARGUMENT);
    route_end(&b);
}

/* Nor would a policy have removed the expert that it kept: removed choices count. */
static void a_replay_names_an_expert_once(void **state) {
    (void)state;
    static const int32_t pairs[][2] = {
        {4, 4 },
        {4, -6}
    };
    for (int i = 0; i < 2; ++i) {
        int32_t expert[T * 2];
        route_bench b = route_begin((moe_layer_desc){.top_k = 2, .router_type = "gshard_top2"},
                                    test_random(MOE_F64, T, E, 38));
        moe_call call = route_train;
        for (int j = 0; j < T * 2; ++j) expert[j] = j % E;
        call.replay_expert = expert;
        route_run(&b, &call);
        memcpy(expert + 5 * 2, pairs[i], sizeof pairs[i]);
        assert_int_equal(moe_layer_forward(b.layer, b.logits, b.y, &call, NULL), MOE_ERR_ARGUMENT);
        assert_non_null(strstr(moe_ctx_error(b.ctx), "token 5, slot 1"));
        route_end(&b);
    }
}

static void threads_make_no_difference(void **state) {
    (void)state;
    for (int i = 0; i < N_ROUTERS; ++i) {
        route_bench b = begin(i), one = begin(i);
        moe_ctx *ctx = test_ctx("ref", 1);
        moe_layer *layer = NULL;
        moe_layer_desc desc = *moe_layer_get_desc(one.layer);
        must(ctx, moe_layer_create(ctx, &desc, &layer));
        must(ctx, moe_layer_reserve(layer, T, MOE_TRAIN));
        for (int32_t p = 0; p < moe_layer_param_count(layer); ++p) {
            moe_param from = {.size = sizeof from}, to = {.size = sizeof to};
            must(ctx, moe_layer_param(b.layer, p, &from));
            must(ctx, moe_layer_param(layer, p, &to));
            memcpy(to.value, from.value,
                   (size_t)(to.dim[0] * to.dim[1] * to.dim[2]) * moe_dtype_bytes(to.dtype));
        }
        moe_layer_destroy(one.layer);
        moe_ctx_destroy(one.ctx);
        one.layer = layer;
        one.ctx = ctx;
        const outcome two_threads = step(&b, &route_train), one_thread = step(&one, &route_train);
        assert_memory_equal(&two_threads, &one_thread, sizeof two_threads);
        assert_true(two_threads.loss != 0);
        route_end(&b);
        route_end(&one);
    }
}

static void bad_logits_name_the_token(void **state) {
    (void)state;
    uint8_t mask[T];
    memset(mask, 1, sizeof mask);
    mask[17] = 0;
    for (int i = 0; i < N_ROUTERS; ++i) {
        if (strcmp(routers[i].router_type ? routers[i].router_type : "", "random") == 0) continue;
        route_bench b = begin(i);
        moe_call call = route_train;
        ((double *)b.logits.data)[17 * E + 2] = NAN;
        assert_int_equal(moe_layer_forward(b.layer, b.logits, b.y, &call, NULL), MOE_ERR_NUMERIC);
        assert_non_null(strstr(moe_ctx_error(b.ctx), "token 17"));
        call.token_mask = mask;
        route_run(&b, &call);
        assert_int_equal(route_set(&b, 17), 0);
        route_end(&b);
    }
}

static void all_masked(void **state) {
    (void)state;
    static const uint8_t mask[T];
    for (int i = 0; i < N_ROUTERS; ++i) {
        route_bench b = begin(i);
        moe_call call = route_train;
        assert_true(step(&b, &call).loss != 0);
        call.token_mask = mask;
        const outcome o = step(&b, &call);
        assert_true(o.loss == 0);
        for (int64_t t = 0; t < T; ++t) assert_int_equal(route_set(&b, t), 0);
        for (int j = 0; j < T * E; ++j) assert_true(((double *)b.y.data)[j] == 0 && o.dx[j] == 0);
        must(b.ctx, moe_layer_end_step(b.layer, NULL));
        route_end(&b);
    }
}

static void random_k_stays_in_range(void **state) {
    (void)state;
    route_bench b =
        route_begin((moe_layer_desc){.top_k = 4, .top_k_min = 2}, test_random(MOE_F64, 300, E, 31));
    const moe_call infer = {.size = sizeof infer};
    int seen[5] = {0};
    route_run(&b, &route_train);
    for (int64_t t = 0; t < 300; ++t) {
        const int chosen = __builtin_popcount(route_set(&b, t));
        double sum = 0;
        assert_true(chosen >= 2 && chosen <= 4);
        ++seen[chosen];
        for (int32_t e = 0; e < E; ++e) sum += route_weight(&b, t, e);
        near(sum, 1);
    }
    for (int k = 2; k <= 4; ++k) assert_true(seen[k] > 50);
    route_run(&b, &infer);
    for (int64_t t = 0; t < 300; ++t) assert_int_equal(__builtin_popcount(route_set(&b, t)), 4);
    route_end(&b);
}

/* Draws below the rate forbid an expert, but never leave fewer than K. */
static void expert_dropout_leaves_k(void **state) {
    (void)state;
    static float u[T * E];
    const moe_draws draws = {.size = sizeof draws, .expert_dropout = u};
    moe_call call = route_train;
    call.draws = &draws;
    route_bench b =
        route_begin((moe_layer_desc){.top_k = K, .expert_dropout = 0.5f}, test_random(MOE_F64, T, E, 33));
    for (int i = 0; i < T * E; ++i) u[i] = (float)(i * 37 % 101) / 101;
    for (int e = 0; e < E; ++e) u[e] = 0.05f * (float)e; /* all of token 0 */
    route_run(&b, &call);
    assert_int_equal(route_set(&b, 0), 0xe0);
    for (int64_t t = 1; t < T; ++t) {
        int live = 0;
        for (int e = 0; e < E; ++e) live += u[t * E + e] >= 0.5f;
        for (int e = 0; e < E && live >= K; ++e)
            if (route_set(&b, t) >> e & 1) assert_true(u[t * E + e] >= 0.5f);
        assert_int_equal(__builtin_popcount(route_set(&b, t)), K);
    }
    route_end(&b);
}

/* A sequence is routed as one token, the mean of its real ones. */
static void sequences_are_routed_whole(void **state) {
    (void)state;
    uint8_t mask[T];
    for (int t = 0; t < T; ++t) mask[t] = t % 6 != 4;
    moe_call call = route_train;
    call.sequence_length = 6;
    call.token_mask = mask;
    route_bench b =
        route_begin((moe_layer_desc){.top_k = K, .routing_unit = "sequence"}, test_random(MOE_F64, T, E, 35));
    moe_mat mean = test_output(MOE_F64, T / 6, E);
    for (int s = 0; s < T / 6; ++s)
        for (int e = 0; e < E; ++e) {
            double sum = 0;
            for (int t = s * 6; t < s * 6 + 6; ++t) sum += mask[t] ? ((double *)b.logits.data)[t * E + e] : 0;
            ((double *)mean.data)[s * E + e] = sum / 5;
        }
    route_bench whole = route_begin((moe_layer_desc){.top_k = K}, mean);
    route_run(&b, &call);
    route_run(&whole, &route_train);
    for (int t = 0; t < T; ++t)
        for (int k = 0; k < K; ++k) {
            assert_int_equal(b.view.expert[t * K + k], mask[t] ? whole.view.expert[t / 6 * K + k] : -1);
            if (mask[t])
                near(((const double *)b.view.weight)[t * K + k],
                     ((const double *)whole.view.weight)[t / 6 * K + k]);
        }
    route_end(&b);
    route_end(&whole);
}

static void tasks_are_routed_by_name(void **state) {
    (void)state;
    static const int32_t task[] = {2, 0, 2, 1};
    int32_t bad[] = {2, 0, 3, 1};
    moe_call call = route_train;
    call.sequence_length = 6;
    route_bench b = route_begin((moe_layer_desc){.top_k = K, .routing_unit = "task", .num_tasks = 3},
                                test_random(MOE_F64, T, E, 36));
    assert_int_equal(moe_layer_forward(b.layer, b.logits, b.y, &call, NULL), MOE_ERR_ARGUMENT);
    call.task = bad;
    assert_int_equal(moe_layer_forward(b.layer, b.logits, b.y, &call, NULL), MOE_ERR_ARGUMENT);
    call.task = task;
    route_run(&b, &call);
    const double *embedding = route_param(&b, "gate.task");
    for (int t = 0; t < T; ++t) {
        int best = 0;
        for (int e = 1; e < E; ++e)
            if (embedding[task[t / 6] * E + e] > embedding[task[t / 6] * E + best]) best = e;
        assert_int_equal(b.view.expert[t * K], best);
    }
    route_end(&b);
}

static void a_frozen_gate_gets_no_gradient(void **state) {
    (void)state;
    route_bench b = route_begin((moe_layer_desc){.top_k = K, .router_frozen = true, .router_bias = true},
                                test_random(MOE_F64, T, E, 37));
    static const char *const names[] = {"gate.weight", "gate.bias"};
    moe_mat dy = test_random(MOE_F64, T, E, 9), dx = test_output(MOE_F64, T, E);
    double largest = 0;
    route_run(&b, &route_train);
    must(b.ctx, moe_layer_backward(b.layer, b.logits, dy, dx));
    for (int i = 0; i < 2; ++i) {
        moe_param gate = {.size = sizeof gate};
        must(b.ctx, moe_layer_param_by_name(b.layer, names[i], &gate));
        assert_null(gate.grad);
    }
    for (int j = 0; j < T * E; ++j) largest = fmax(largest, fabs(((double *)dx.data)[j]));
    assert_true(largest > 0); /* x still gets one */
    free(dy.data), free(dx.data);
    route_end(&b);
}

/* A name without its row in select.c would be a call of NULL. */
static void every_router_has_a_row(void **state) {
    (void)state;
    for (const char *const *name = moei_router_types; *name; ++name) {
        const moei_selector *row = moei_selector_find(*name);
        if (!row || !row->rank || !row->select || !row->weigh)
            fail_msg("router_type %s has no row in select.c", *name);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_router_and_score_is_tried),
        cmocka_unit_test(replay_equals_record),
        cmocka_unit_test(replayed_weights_are_constants),
        cmocka_unit_test(a_replay_names_an_expert_once),
        cmocka_unit_test(threads_make_no_difference),
        cmocka_unit_test(bad_logits_name_the_token),
        cmocka_unit_test(all_masked),
        cmocka_unit_test(random_k_stays_in_range),
        cmocka_unit_test(expert_dropout_leaves_k),
        cmocka_unit_test(sequences_are_routed_whole),
        cmocka_unit_test(tasks_are_routed_by_name),
        cmocka_unit_test(a_frozen_gate_gets_no_gradient),
        cmocka_unit_test(every_router_has_a_row),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
