/* test_noisy.c: noisy top-k gating against tensor2tensor's formulas, and its loads in evaluation.
 * T = 6, E = 4: clean logits Lg, noise logits cos(1.7 t + 0.6 e (t + 1)), noise the same table upside down.
 */
#include "support/route_fixture.h"

enum { T = 6, E = 4 };

static double table(int64_t t, int64_t e) {
    return cos(1.7 * (double)t + 0.6 * (double)e * (double)(t + 1));
}

/* d_model 2E: the first half of a token are its logits, the second its noise logits. */
static route_bench begin(moe_layer_desc desc, float noise[T * E]) {
    moe_mat lg = golden_logits(T, E, NULL), x = test_output(MOE_F64, T, 2 * E);
    route_bench b = {.ctx = test_ctx("ref", 2), .logits = x, .y = test_output(MOE_F64, T, 2 * E)};
    for (int64_t t = 0; t < T; ++t)
        for (int64_t e = 0; e < E; ++e) {
            ((double *)x.data)[t * 2 * E + e] = ((double *)lg.data)[t * E + e];
            ((double *)x.data)[t * 2 * E + E + e] = table(t, e);
            noise[t * E + e] = (float)table(T - 1 - t, e);
        }
    free(lg.data);
    desc.size = sizeof desc;
    desc.dtype = MOE_F64;
    desc.router_type = "noisy_top_k";
    desc.d_model = 2 * E;
    desc.num_experts = E;
    desc.expert_hidden_size = 1;
    must(b.ctx, moe_layer_create(b.ctx, &desc, &b.layer));
    must(b.ctx, moe_layer_reserve(b.layer, T, MOE_TRAIN));
    for (int e = 0; e < E; ++e)
        for (int i = 0; i < 2 * E; ++i) {
            route_param(&b, "gate.weight")[e * 2 * E + i] = i == e;
            route_param(&b, "gate.noise")[e * 2 * E + i] = i == E + e;
        }
    return b;
}

static void recorded_numbers(void **state) {
    (void)state;
    float noise[T * E];
    const moe_draws draws = {.size = sizeof draws, .noise = noise};
    moe_call call = route_train;
    call.draws = &draws;
    route_bench b =
        begin((moe_layer_desc){.top_k = 2, .importance_loss_coeff = 1, .load_loss_coeff = 1}, noise);
    route_run(&b, &call);
    near(route_weight(&b, 0, 1), .365601);
    near(route_weight(&b, 0, 3), .634399);
    near(route_weight(&b, 1, 0), .693150);
    near(route_weight(&b, 1, 1), .306850);
    assert_true(fabs(b.stats.importance_loss - .007860) < 1e-6);
    assert_true(fabs(b.stats.load_loss - .018750) < 1e-6);
    route_end(&b);
}

/* In evaluation there is no noise: plain top-k. */
static void evaluation_has_no_noise(void **state) {
    (void)state;
    float noise[T * E];
    const moe_call infer = {.size = sizeof infer};
    route_bench b = begin((moe_layer_desc){.top_k = 2}, noise);
    route_bench plain = route_begin((moe_layer_desc){.top_k = 2}, golden_logits(T, E, NULL));
    route_run(&b, &infer);
    route_run(&plain, &infer);
    assert_memory_equal(b.view.expert, plain.view.expert, T * 2 * sizeof(int32_t));
    for (int i = 0; i < T * 2; ++i)
        near(((const double *)b.view.weight)[i], ((const double *)plain.view.weight)[i]);
    route_end(&b);
    route_end(&plain);
}

/* The same step repeats the noise, another draws anew. */
static void noise_is_keyed_by_step(void **state) {
    (void)state;
    float noise[T * E];
    double first[T * 2];
    route_bench b = begin((moe_layer_desc){.top_k = 2}, noise);
    moe_call call = route_train;
    route_run(&b, &call);
    memcpy(first, b.view.weight, sizeof first);
    route_run(&b, &call);
    assert_memory_equal(first, b.view.weight, sizeof first);
    ++call.step;
    route_run(&b, &call);
    assert_memory_not_equal(first, b.view.weight, sizeof first);
    route_end(&b);
}

/* Without a least width the noise may underflow, to 0 or to what is hardly above it: P is a step there. */
static void noise_that_underflows(void **state) {
    static const double raw[] = {-240, -720, -760};
    (void)state;
    float noise[T * E];
    for (size_t i = 0; i < sizeof raw / sizeof *raw; ++i) {
        moe_layer_desc desc = {.top_k = 2, .noise_epsilon = MOE_ZERO, .load_loss_coeff = 1};
        route_bench b = begin(desc, noise);
        moe_mat dy = test_random(MOE_F64, T, 2 * E, 3), dx = test_output(MOE_F64, T, 2 * E);
        for (int64_t t = 0; t < T; ++t)
            for (int64_t e = 0; e < E; ++e)
                ((double *)b.logits.data)[t * 2 * E + E + e] = e % 2 ? raw[i] : table(t, e);
        route_run(&b, &route_train);
        must(b.ctx, moe_layer_backward(b.layer, b.logits, dy, dx));
        for (int64_t k = 0; k < T * 2 * E; ++k) assert_true(isfinite(((double *)dx.data)[k]));
        assert_true(isfinite(b.stats.loss));
        free(dy.data), free(dx.data);
        route_end(&b);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(recorded_numbers),
        cmocka_unit_test(evaluation_has_no_noise),
        cmocka_unit_test(noise_is_keyed_by_step),
        cmocka_unit_test(noise_that_underflows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
