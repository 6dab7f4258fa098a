/* test_gshard.c: top-2 with a second choice that a policy may take back, one level and two.
 * Recorded runs of whole layers are in tests/golden; here: what each policy means, gradients, masks, threads.
 */
#include "support/route_fixture.h"

#include "moekit/grad_check.h"

static const char *const policies[] = {"all", "none", "threshold", "random", "sample"};

enum { POLICIES = sizeof policies / sizeof *policies, T = 12, E = 4 };

static moe_layer_desc top2(const char *policy) {
    return (moe_layer_desc){.router_type = "gshard_top2",
                            .second_policy_train = policy,
                            .second_policy_eval = policy,
                            .gshard_loss_coeff = 1};
}

static void softmax_of(const route_bench *b, int64_t t, double s[E]) {
    double sum = 0;
    for (int e = 0; e < E; ++e) sum += s[e] = exp(test_at(b->logits, t, e));
    for (int e = 0; e < E; ++e) s[e] /= sum;
}

/* The two largest, by plain search. */
static void two_best(const double s[E], int best[2]) {
    best[0] = best[1] = -1;
    for (int e = 0; e < E; ++e)
        if (best[0] < 0 || s[e] > s[best[0]]) best[0] = e;
    for (int e = 0; e < E; ++e)
        if (e != best[0] && (best[1] < 0 || s[e] > s[best[1]])) best[1] = e;
}

/* Each policy by its definition, with the draws handed in. The first weight never changes. */
static void policies_by_definition(void **state) {
    const double threshold = 0.35;
    float u[T];
    const moe_draws draws = {.size = sizeof draws, .second_policy = u};
    moe_call call = {.size = sizeof call, .mode = MOE_TRAIN};
    (void)state;
    for (int64_t t = 0; t < T; ++t) u[t] = ((float)(t * 7 % T) + 0.5f) / T;
    for (int p = 0; p < 4; ++p) {
        moe_layer_desc desc = top2(policies[p]);
        if (p >= 2) desc.second_threshold_train = desc.second_threshold_eval = (float)threshold;
        route_bench b = route_begin(desc, golden_logits(T, E, NULL));
        call.draws = strcmp(policies[p], "random") == 0 ? &draws : NULL; /* the others read none */
        route_run(&b, &call);
        int removed = 0;
        for (int64_t t = 0; t < T; ++t) {
            double s[E];
            int best[2];
            softmax_of(&b, t, s);
            two_best(s, best);
            const double sum = s[best[0]] + s[best[1]] + 1e-9, second = s[best[1]] / sum;
            const bool keep[4] = {true, false, second > (double)(float)threshold,
                                  (double)u[t] < second / (double)(float)threshold};
            near(route_weight(&b, t, best[0]), s[best[0]] / sum);
            near(route_weight(&b, t, best[1]), keep[p] ? second : 0);
            assert_int_equal(b.view.expert[2 * t + 1], keep[p] ? best[1] : -2 - best[1]);
            removed += !keep[p];
        }
        assert_int_equal(b.stats.n_routed, 2 * T - removed);
        if (p > 1) assert_true(removed > 0 && removed < T);
        route_end(&b);
    }
}

/* The loss of second choices by its definition, of two sequences; what a policy removes still counts. */
static void second_place_by_definition(void **state) {
    const moe_call call = {.size = sizeof call, .mode = MOE_TRAIN, .sequence_length = T / 2};
    (void)state;
    for (int p = 0; p < 2; ++p) {
        moe_layer_desc desc = top2(policies[p]);
        desc.second_place_loss_coeff = 0.5f;
        route_bench b = route_begin(desc, golden_logits(T, E, NULL));
        route_run(&b, &call);
        double loss = 0;
        for (int64_t g = 0; g < 2; ++g) {
            double count[E] = {0}, share[E] = {0};
            for (int64_t t = g * T / 2; t < (g + 1) * T / 2; ++t) {
                double s[E];
                int best[2];
                softmax_of(&b, t, s);
                two_best(s, best);
                count[best[1]] += 2.0 / T;
                for (int e = 0; e < E; ++e)
                    share[e] += e == best[0] ? 0 : s[e] / (1 - s[best[0]] + 1e-9) * 2 / T;
            }
            for (int e = 0; e < E; ++e) loss += E * count[e] * share[e] / 2;
        }
        near(b.stats.second_place_loss, loss);
        near(b.stats.loss, b.stats.gshard_loss + 0.5 * loss);
        route_end(&b);
    }
}

/* The second expert in proportion to its share of the rest. */
static void sample_by_share(void **state) {
    enum { DRAWS = 4000 };
    moe_mat logits = test_output(MOE_F64, DRAWS, E);
    const double row[E] = {2, 0.5, -0.5, 1};
    double share[E], rest = 0;
    int count[E] = {0};
    (void)state;
    for (int64_t i = 0; i < DRAWS * E; ++i) ((double *)logits.data)[i] = row[i % E];
    route_bench b = route_begin(top2("sample"), logits);
    route_run(&b, &route_train);
    for (int64_t t = 0; t < DRAWS; ++t) {
        assert_int_equal(b.view.expert[2 * t], 0);
        ++count[b.view.expert[2 * t + 1]];
    }
    assert_int_equal(count[0], 0);
    for (int e = 1; e < E; ++e) rest += share[e] = exp(row[e]);
    /* six standard deviations: one wrong alarm in 500 million */
    for (int e = 1; e < E; ++e) {
        const double p = share[e] / rest, off = count[e] / (double)DRAWS - p;
        if (fabs(off) > 6 * sqrt(p * (1 - p) / DRAWS))
            fail_msg("expert %d: %d of %d, share %g", e, count[e], DRAWS, p);
    }
    near(route_weight(&b, 0, 0) + route_weight(&b, 0, b.view.expert[1]), 1);
    route_end(&b);
}

/* The policy of the mode; random repeats in a step and differs in the next. */
static void mode_and_step_decide(void **state) {
    moe_layer_desc desc = top2("random");
    int32_t first[2 * T];
    moe_call call = {.size = sizeof call, .mode = MOE_TRAIN, .step = 1};
    (void)state;
    desc.second_policy_eval = "none";
    desc.second_threshold_train = 0.9f;
    route_bench b = route_begin(desc, golden_logits(T, E, NULL));
    route_run(&b, &call);
    memcpy(first, b.view.expert, sizeof first);
    route_run(&b, &call);
    assert_memory_equal(first, b.view.expert, sizeof first);
    bool differs = false;
    for (call.step = 2; call.step < 9; ++call.step) {
        route_run(&b, &call);
        differs = differs || memcmp(first, b.view.expert, sizeof first) != 0;
    }
    assert_true(differs);
    call.mode = MOE_INFER;
    route_run(&b, &call);
    assert_int_equal(b.stats.n_routed, T);
    route_end(&b);
}

/* Small layers of random tokens: one level of 4 experts, or two of 2 or 3 outer ones. */
static moe_layer_desc small(const char *policy, int outer, float capacity) {
    moe_layer_desc desc = top2(policy);
    desc.d_model = 6;
    desc.num_experts = outer == 0 ? 4 : outer * 3;
    desc.num_groups_outer = outer;
    desc.expert_hidden_size = 3;
    desc.gshard_loss_coeff = 0.7f;
    desc.importance_loss_coeff = 0.3f;
    desc.z_loss_coeff = 0.1f;
    if (capacity > 0) {
        desc.capacity_factor = capacity;
        desc.capacity_formula = "lucidrains";
        desc.capacity_group = "sequence";
        desc.drop_policy = "rank_major";
        desc.min_capacity = 1;
    }
    return desc;
}

static const uint8_t some_masked[16] = {1, 1, 0, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0};

static void check_gradient(const moe_layer_desc *desc, const moe_call *call, uint64_t number) {
    const grad_check_options options = {
        .desc = *desc, .call = call, .n_tokens = 16, .seed = test_seed() + number};
    grad_check_result result;
    moe_error error = {0};
    if (grad_check(&options, &result, &error) != MOE_OK)
        fail_msg("%s: %s", desc->second_policy_train, error.text);
    for (int32_t i = 0; i < result.n_tensors; ++i)
        if (!(result.tensor[i].error < 1e-6))
            fail_msg("seed %llu + %llu: policy %s, outer %d, factor %g: %s is off by %g",
                     (unsigned long long)test_seed(), (unsigned long long)number, desc->second_policy_train,
                     desc->num_groups_outer, (double)desc->capacity_factor, result.tensor[i].name,
                     result.tensor[i].error);
    assert_true(result.checked > 4 * result.skipped);
}

static void gradients(void **state) {
    const moe_call calls[] = {
        {.size = sizeof(moe_call), .mode = MOE_TRAIN, .step = 3},
        { .size = sizeof(moe_call),
         .mode = MOE_TRAIN,
         .step = 4,
         .sequence_length = 8,
         .token_mask = some_masked}
    };
    const float capacities[] = {0, 0.6f, 1.25f};
    uint64_t number = 0;
    (void)state;
    for (int p = 0; p < POLICIES; ++p)
        for (int outer = 0; outer <= 3; outer += outer == 0 ? 2 : 1)
            for (int c = 0; c < 3; ++c, ++number) {
                const moe_layer_desc desc = small(policies[p], outer, capacities[c]);
                check_gradient(&desc, &calls[number % 2], number);
            }
}

static moe_layer *make(moe_ctx *ctx, moe_layer_desc desc, moe_dtype dtype, int64_t tokens) {
    desc.size = sizeof desc;
    desc.dtype = dtype;
    return test_layer(ctx, &desc, tokens);
}

/* A clear first choice of the outer level goes to two inner experts of its group, the second choice to one;
 * their weights make 1. */
static void two_levels_make_three_experts(void **state) {
    moe_ctx *ctx = test_ctx("ref", 2);
    moe_layer *layer = make(ctx, small("all", 3, 0), MOE_F64, 64);
    moe_mat x = test_random(MOE_F64, 64, 6, 30), y = test_output(MOE_F64, 64, 6);
    moe_routing_view view = {.size = sizeof view};
    moe_stats stats = {.size = sizeof stats};
    (void)state;
    must(ctx, moe_layer_forward(layer, x, y, &test_train_call, &stats));
    must(ctx, moe_layer_routing(layer, &view));
    assert_int_equal(view.top_k, 4);
    assert_int_equal(view.capacity, -1);
    for (int64_t t = 0; t < 64; ++t) {
        const int32_t *e = view.expert + 4 * t;
        const double *w = (const double *)view.weight + 4 * t;
        near(w[0] + w[1] + w[2] + w[3], 1);
        assert_true(e[0] >= 0 && e[1] >= 0 && e[0] / 3 == e[1] / 3 && e[0] != e[1] && w[0] >= w[1]);
        assert_true(e[2] == -1 && e[3] >= 0 && e[3] / 3 != e[0] / 3 && w[0] + w[1] > 0.5);
    }
    assert_int_equal(stats.n_routed, 3 * 64);
    assert_int_equal(stats.n_dropped, 0);
    moe_layer_destroy(layer);
    free(x.data);
    free(y.data);
    moe_ctx_destroy(ctx);
}

/* No expert has more rows of a sequence than its capacity, and nothing is lost from the books. */
static void two_levels_keep_their_capacity(void **state) {
    const moe_call call = {.size = sizeof call, .mode = MOE_TRAIN, .sequence_length = 24};
    moe_ctx *ctx = test_ctx("ref", 2);
    moe_mat x = test_random(MOE_F64, 72, 6, 31), y = test_output(MOE_F64, 72, 6);
    (void)state;
    for (int i = 1; i <= 8; ++i) {
        moe_layer *layer = make(ctx, small("all", 3, 0.25f * (float)i), MOE_F64, 72);
        moe_routing_view view = {.size = sizeof view};
        moe_stats stats = {.size = sizeof stats};
        must(ctx, moe_layer_forward(layer, x, y, &call, &stats));
        must(ctx, moe_layer_routing(layer, &view));
        assert_true(view.capacity >= 1);
        for (int32_t e = 0; e < 9; ++e)
            for (int64_t s = 0; s < 3; ++s) {
                int64_t rows = 0;
                for (int64_t slot = s * 96; slot < (s + 1) * 96; ++slot)
                    rows += view.expert[slot] == e && view.row_of[slot] >= 0;
                assert_true(rows <= view.capacity);
            }
        assert_int_equal(stats.n_kept + stats.n_dropped, stats.n_routed);
        assert_true(i > 2 || stats.n_dropped > 0);
        moe_layer_destroy(layer);
    }
    free(x.data);
    free(y.data);
    moe_ctx_destroy(ctx);
}

typedef struct run {
    moe_mat y, dx;
    double loss;
} run;

static run run_layer(moe_ctx *ctx, const moe_layer_desc *desc, moe_mat x, const moe_call *call) {
    moe_layer *layer = make(ctx, *desc, x.dtype, x.rows);
    run r = {test_output(x.dtype, x.rows, x.cols), test_output(x.dtype, x.rows, x.cols), 0};
    moe_stats stats = {.size = sizeof stats};
    must(ctx, moe_layer_forward(layer, x, r.y, call, &stats));
    must(ctx, moe_layer_backward(layer, x, x, r.dx));
    r.loss = stats.loss;
    moe_layer_destroy(layer);
    return r;
}

static void end(run r) {
    free(r.y.data);
    free(r.dx.data);
}

/* Masking a token of every sequence is leaving it out: capacity, places, losses, gradients. */
static void masked_tokens_are_absent(void **state) {
    moe_ctx *ctx = test_ctx("ref", 2);
    moe_mat x = test_random(MOE_F64, 32, 6, 32), kept = test_output(MOE_F64, 24, 6);
    uint8_t mask[32];
    (void)state;
    for (int64_t t = 0, row = 0; t < 32; ++t) {
        mask[t] = t % 4 != 1;
        if (mask[t]) memcpy((double *)kept.data + 6 * row++, (double *)x.data + 6 * t, 6 * sizeof(double));
    }
    const moe_call masked = {
        .size = sizeof masked, .mode = MOE_TRAIN, .sequence_length = 16, .token_mask = mask};
    const moe_call shorter = {.size = sizeof shorter, .mode = MOE_TRAIN, .sequence_length = 12};
    for (int outer = 0; outer <= 3; outer += 3) {
        const moe_layer_desc desc = small("threshold", outer, 1.0f);
        const run a = run_layer(ctx, &desc, x, &masked), b = run_layer(ctx, &desc, kept, &shorter);
        near(a.loss, b.loss);
        for (int64_t t = 0, row = 0; t < 32; ++t) {
            for (int64_t i = 0; i < 6; ++i) {
                near(test_at(a.y, t, i), mask[t] ? test_at(b.y, row, i) : 0);
                near(test_at(a.dx, t, i), mask[t] ? test_at(b.dx, row, i) : 0);
            }
            row += mask[t];
        }
        end(a);
        end(b);
    }
    free(x.data);
    free(kept.data);
    moe_ctx_destroy(ctx);
}

static void same_bits_for_any_thread_count(void **state) {
    const moe_call call = {.size = sizeof call, .mode = MOE_TRAIN, .step = 2, .sequence_length = 40};
    moe_mat x = test_random(MOE_F32, 200, 6, 33);
    (void)state;
    for (int p = 0; p < POLICIES; ++p)
        for (int outer = 0; outer <= 3; outer += 3) {
            const moe_layer_desc desc = small(policies[p], outer, 1.25f);
            moe_ctx *one = test_ctx(NULL, 1), *many = test_ctx(NULL, 6);
            const run a = run_layer(one, &desc, x, &call), b = run_layer(many, &desc, x, &call);
            assert_memory_equal(a.y.data, b.y.data, test_bytes(a.y));
            assert_memory_equal(a.dx.data, b.dx.data, test_bytes(a.dx));
            assert_true(a.loss == b.loss);
            end(a);
            end(b);
            moe_ctx_destroy(one);
            moe_ctx_destroy(many);
        }
    free(x.data);
}

/* Policies, capacities of both levels, groups, masked tokens: a replay is the record to the bit. */
static void replay_is_record(void **state) {
    const float factors[] = {0, 0.5f, 1.25f};
    uint8_t mask[72];
    (void)state;
    for (int t = 0; t < 72; ++t) mask[t] = t % 7 != 2;
    for (int i = 0; i < 3 * POLICIES * 4; ++i) {
        moe_ctx *ctx = test_ctx(NULL, 2);
        const moe_layer_desc desc = small(policies[i / 3 % POLICIES], i / 3 / POLICIES, factors[i % 3]);
        if (desc.num_groups_outer == 1) {
            moe_ctx_destroy(ctx);
            continue;
        }
        const moe_dtype dtype = i % 2 ? MOE_F64 : MOE_F32;
        moe_mat x = test_random(dtype, 72, 6, 40);
        moe_call call = {.size = sizeof call, .mode = MOE_TRAIN, .sequence_length = 24, .token_mask = mask};
        int32_t recorded[72 * 4];
        moe_routing_view view = {.size = sizeof view};
        moe_stats record = {.size = sizeof record}, again = record;
        moe_layer *layer = make(ctx, desc, dtype, 72);
        moe_mat y[2] = {test_output(dtype, 72, 6), test_output(dtype, 72, 6)};
        moe_mat dx[2] = {test_output(dtype, 72, 6), test_output(dtype, 72, 6)};
        must(ctx, moe_layer_forward(layer, x, y[0], &call, &record));
        must(ctx, moe_layer_backward(layer, x, x, dx[0]));
        must(ctx, moe_layer_routing(layer, &view));
        memcpy(recorded, view.expert, (size_t)(72 * view.top_k) * sizeof *recorded);
        call.replay_expert = recorded;
        must(ctx, moe_layer_forward(layer, x, y[1], &call, &again));
        must(ctx, moe_layer_backward(layer, x, x, dx[1]));
        must(ctx, moe_layer_routing(layer, &view));
        assert_memory_equal(recorded, view.expert, (size_t)(72 * view.top_k) * sizeof *recorded);
        assert_memory_equal(y[0].data, y[1].data, test_bytes(y[0]));
        assert_memory_equal(dx[0].data, dx[1].data, test_bytes(dx[0]));
        assert_true(test_same_stats(&record, &again));
        for (int j = 0; j < 2; ++j) free(y[j].data), free(dx[j].data);
        moe_layer_destroy(layer);
        free(x.data);
        moe_ctx_destroy(ctx);
    }
}

static void impossible_records_are_refused(void **state) {
    static const struct {
        int32_t slot[4];
        const char *word;
    } bad[] = {
        {{0, 3, -1, -1},   "another outer expert"},
        {{0, 1, 2, -1},    "names it"            },
        {{0, 0, -1, -1},   "names it"            },
        {{-2, 1, -8, -1},  "names it"            },
        {{-14, -1, 3, -1}, "no such expert"      },
        {{6, -1, -1, -1},  "no such expert"      },
    };
    moe_ctx *ctx = test_ctx("ref", 1);
    moe_layer *layer = make(ctx, small("all", 2, 0), MOE_F64, 1);
    moe_mat x = test_random(MOE_F64, 1, 6, 41), y = test_output(MOE_F64, 1, 6);
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; ++i) {
        const moe_call call = {.size = sizeof call, .replay_expert = bad[i].slot};
        assert_int_equal(moe_layer_forward(layer, x, y, &call, NULL), MOE_ERR_ARGUMENT);
        if (!strstr(moe_ctx_error(ctx), bad[i].word)) fail_msg("%s", moe_ctx_error(ctx));
    }
    moe_layer_destroy(layer);
    free(x.data), free(y.data);
    moe_ctx_destroy(ctx);
}

static void bad_logits_and_empty_batches(void **state) {
    moe_ctx *ctx = test_ctx("ref", 1);
    (void)state;
    for (int outer = 0; outer <= 3; outer += 3) {
        const uint8_t none[8] = {0};
        const moe_call masked = {.size = sizeof masked, .mode = MOE_TRAIN, .token_mask = none};
        const moe_layer_desc desc = small("random", outer, 1.0f);
        moe_layer *layer = make(ctx, desc, MOE_F64, 8);
        moe_mat x = test_random(MOE_F64, 8, 6, 34), y = test_output(MOE_F64, 8, 6),
                empty = {x.data, 0, 6, 6, MOE_F64};
        moe_stats stats = {.size = sizeof stats};
        must(ctx, moe_layer_forward(layer, x, y, &masked, &stats));
        assert_true(stats.loss == 0 && stats.n_routed == 0 && test_at(y, 3, 2) == 0);
        must(ctx, moe_layer_backward(layer, x, x, (moe_mat){.rows = 8, .cols = 6, .dtype = MOE_F64}));
        must(ctx, moe_layer_forward(layer, empty, empty, &test_train_call, &stats));
        assert_true(stats.loss == 0);
        ((double *)x.data)[5 * 6] = NAN;
        assert_int_equal(moe_layer_forward(layer, x, y, &test_train_call, NULL), MOE_ERR_NUMERIC);
        assert_non_null(strstr(moe_ctx_error(ctx), "token 5"));
        moe_layer_destroy(layer);
        free(x.data);
        free(y.data);
    }
    moe_ctx_destroy(ctx);
}

static void combinations_are_refused_with_reason(void **state) {
    const moe_layer_desc two = {.router_type = "gshard_top2", .num_experts = 6, .num_groups_outer = 2};
    moe_layer_desc desc = two;
    (void)state;
    desc.aux_loss_coeff = 1;
    route_refused(desc, "gshard_loss_coeff");
    desc = two;
    desc.capacity_factor = 1;
    route_refused(desc, "rank_major");
    desc.drop_policy = "rank_major";
    desc.pad_to_capacity = true;
    route_refused(desc, "pad_to_capacity");
    desc = two;
    desc.num_groups_outer = 4;
    route_refused(desc, "num_groups_outer");
    desc = two;
    desc.input_jitter_eps = 0.1f;
    route_refused(desc, "input_jitter_eps");
    desc = two;
    desc.second_place_loss_coeff = 0.5f;
    route_refused(desc, "num_groups_outer 0");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(policies_by_definition),
        cmocka_unit_test(second_place_by_definition),
        cmocka_unit_test(sample_by_share),
        cmocka_unit_test(mode_and_step_decide),
        cmocka_unit_test(gradients),
        cmocka_unit_test(two_levels_make_three_experts),
        cmocka_unit_test(two_levels_keep_their_capacity),
        cmocka_unit_test(masked_tokens_are_absent),
        cmocka_unit_test(same_bits_for_any_thread_count),
        cmocka_unit_test(replay_is_record),
        cmocka_unit_test(impossible_records_are_refused),
        cmocka_unit_test(bad_logits_and_empty_batches),
        cmocka_unit_test(combinations_are_refused_with_reason),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
