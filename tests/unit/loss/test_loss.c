/* test_loss.c: every loss: recorded values, finite differences in f64 alone and together, masks, scale,
 * threads. Logits of the recorded runs: Lg(t,e) = 2 sin(0.9 t (e + 1) + 0.4 e), T = 12, E = 4, K = 2.
 */
#include "support/route_fixture.h"

#include "loss/loss.h"
#include "moekit/grad_check.h"
#include "route/names.h"

static moe_stats run_stats(moe_layer_desc desc, moe_mat logits, const moe_call *call) {
    desc.top_k = 2;
    route_bench b = route_begin(desc, logits);
    route_run(&b, call);
    const moe_stats stats = b.stats;
    route_end(&b);
    return stats;
}

/* Megatron core, coefficient 1. */
static void switch_as_recorded(void **state) {
    const moe_layer_desc after = {.aux_loss_coeff = 1};
    const moe_layer_desc before = {.aux_loss_coeff = 1, .score_before_topk = true};
    const moe_layer_desc sigmoid = {.aux_loss_coeff = 1, .score_function = "sigmoid"};
    const moe_layer_desc softplus = {.aux_loss_coeff = 1, .score_function = "sqrtsoftplus"};
    (void)state;
    near(run_stats(after, golden_logits(12, 4, NULL), &route_train).aux_loss, 0.990015);
    near(run_stats(before, golden_logits(12, 4, NULL), &route_train).loss, 0.990015);
    near(run_stats(sigmoid, golden_logits(12, 4, NULL), &route_train).aux_loss, 1.000724);
    near(run_stats(softplus, golden_logits(12, 4, NULL), &route_train).aux_loss, 0.999645);
}

/* Automodel, the last two tokens masked. */
static void masked_switch_as_recorded(void **state) {
    const uint8_t mask[12] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0};
    const moe_call call = {.size = sizeof call, .mode = MOE_TRAIN, .token_mask = mask};
    const moe_layer_desc softmax = {.aux_loss_coeff = 1};
    const moe_layer_desc sigmoid = {.aux_loss_coeff = 1, .score_function = "sigmoid"};
    const moe_layer_desc softplus = {.aux_loss_coeff = 1, .score_function = "sqrtsoftplus"};
    (void)state;
    near(run_stats(softmax, golden_logits(12, 4, NULL), &call).aux_loss, 1.013478);
    near(run_stats(sigmoid, golden_logits(12, 4, NULL), &call).aux_loss, 1.008014);
    near(run_stats(softplus, golden_logits(12, 4, NULL), &call).aux_loss, 1.006101);
}

/* The reference counts tokens sequence-minor: token t is position t / 2 of sequence t % 2. */
static void sequence_as_recorded(void **state) {
    const moe_call call = {.size = sizeof call, .mode = MOE_TRAIN, .sequence_length = 6};
    moe_mat logits = golden_logits(12, 4, NULL), ordered = golden_logits(12, 4, NULL);
    (void)state;
    for (int64_t t = 0; t < 12; ++t)
        memcpy((double *)ordered.data + (t % 2 * 6 + t / 2) * 4, (double *)logits.data + t * 4,
               4 * sizeof(double));
    free(logits.data);
    const moe_layer_desc desc = {.seq_aux_loss_coeff = 1};
    near(run_stats(desc, ordered, &call).seq_aux_loss, 1.001454);
}

static void z_and_entropy_as_recorded(void **state) {
    const double offset[4] = {1, 0, -1, 0};
    const moe_layer_desc z = {.z_loss_coeff = 1}, entropy = {.entropy_loss_coeff = 1};
    const moe_layer_desc sigmoid = {.entropy_loss_coeff = 1, .score_function = "sigmoid"};
    (void)state;
    near(run_stats(z, golden_logits(12, 4, NULL), &route_train).z_loss, 4.963216);
    near(run_stats(entropy, golden_logits(12, 4, NULL), &route_train).entropy_loss, -1.380275);
    near(run_stats(sigmoid, golden_logits(12, 4, NULL), &route_train).entropy_loss, -1.380275);
    near(run_stats(sigmoid, golden_logits(12, 4, offset), &route_train).loss, -1.220645);
}

/* tensor2tensor's importance and load of a recorded noisy run. */
static void cv_squared_as_recorded(void **state) {
    const double importance[4] = {1.408252, 1.708885, 1.518342, 1.364521};
    const double load[4] = {3.161149, 3.124750, 2.406959, 3.574491};
    (void)state;
    near(moei_cv_squared(importance, 4), 0.007860);
    near(moei_cv_squared(load, 4), 0.018750);
    for (int e = 0; e < 4; ++e) {
        double grad[4] = {0}, above[4], below[4];
        memcpy(above, load, sizeof load);
        memcpy(below, load, sizeof load);
        above[e] += 1e-5;
        below[e] -= 1e-5;
        moei_cv_squared_gradient(load, 4, 3, grad);
        near(grad[e], 3 * (moei_cv_squared(above, 4) - moei_cv_squared(below, 4)) / 2e-5);
    }
}

/* The plain map leaves out what moved the actual selection: here a bias that sends all tokens to two experts.
 */
static void plain_map_ignores_the_bias(void **state) {
    (void)state;
    double loss[2];
    for (int plain = 0; plain < 2; ++plain) {
        const moe_layer_desc desc = {.top_k = 2,
                                     .score_function = "sigmoid",
                                     .selection_bias = true,
                                     .aux_loss_coeff = 1,
                                     .aux_map = plain ? "plain" : "actual"};
        route_bench b = route_begin(desc, golden_logits(12, 4, NULL));
        double *bias = route_param(&b, "gate.selection_bias");
        bias[0] = bias[1] = 10;
        route_run(&b, &route_train);
        loss[plain] = b.stats.aux_loss;
        assert_int_equal(b.view.routed[0], 12);
        route_end(&b);
    }
    near(loss[1], 1.000724);
    assert_true(fabs(loss[0] - loss[1]) > 1e-3);
}

/* Counts of two batches, the scores of the second; moe_layer_end_step starts anew. */
static void global_counts_since_the_step(void **state) {
    const moe_layer_desc desc = {.top_k = 2, .global_aux_loss_coeff = 1, .aux_loss_coeff = 1};
    const double offset[4] = {3, 0, -1, 0};
    (void)state;
    route_bench b = route_begin(desc, golden_logits(12, 4, NULL));
    route_run(&b, &route_train);
    near(b.stats.global_aux_loss, b.stats.aux_loss);
    int64_t count[4], total = 0;
    memcpy(count, b.view.routed, sizeof count);
    moe_mat other = golden_logits(12, 4, offset);
    memcpy(b.logits.data, other.data, test_bytes(other));
    free(other.data);
    route_run(&b, &route_train);
    double expected = 0;
    for (int e = 0; e < 4; ++e) total += count[e] += b.view.routed[e];
    for (int64_t t = 0; t < 12; ++t) {
        double sum = 0;
        for (int e = 0; e < 4; ++e) sum += exp(test_at(b.logits, t, e));
        for (int e = 0; e < 4; ++e)
            expected += 4.0 * (double)count[e] / (double)total * exp(test_at(b.logits, t, e)) / sum / 12;
    }
    near(b.stats.global_aux_loss, expected);
    assert_true(fabs(b.stats.global_aux_loss - b.stats.aux_loss) > 1e-3);
    must(b.ctx, moe_layer_end_step(b.layer, NULL));
    route_run(&b, &route_train);
    near(b.stats.global_aux_loss, b.stats.aux_loss);
    route_end(&b);
}

/* An inference counts its own batch, and no later forward counts it. */
static void global_loss_of_an_inference(void **state) {
    const moe_layer_desc desc = {.top_k = 2, .global_aux_loss_coeff = 1, .aux_loss_coeff = 1};
    const double offset[4] = {3, 0, -1, 0};
    const moe_call infer = {.size = sizeof infer};
    (void)state;
    route_bench b = route_begin(desc, golden_logits(12, 4, NULL));
    route_bench twin = route_begin(desc, golden_logits(12, 4, NULL));
    moe_mat mine = b.logits, other = golden_logits(12, 4, offset);
    route_run(&b, &route_train);
    route_run(&twin, &route_train);
    b.logits = other;
    route_run(&b, &infer);
    near(b.stats.global_aux_loss, b.stats.aux_loss);
    near(b.stats.loss, 2 * b.stats.aux_loss);
    assert_true(fabs(b.stats.aux_loss - twin.stats.aux_loss) > 1e-3);
    b.logits = mine;
    route_run(&b, &route_train);
    route_run(&twin, &route_train);
    assert_true(b.stats.global_aux_loss == twin.stats.global_aux_loss);
    free(other.data);
    route_end(&b);
    route_end(&twin);
}

typedef struct loss_case {
    const char *name;
    size_t coeff;
    const char *router, *score;
} loss_case;

#define COEFF(name) #name, offsetof(moe_layer_desc, name)

static const loss_case cases[] = {
    {COEFF(aux_loss_coeff),          "top_k",       "softmax"     },
    {COEFF(aux_loss_coeff),          "top_k",       "sqrtsoftplus"},
    {COEFF(seq_aux_loss_coeff),      "top_k",       "softmax"     },
    {COEFF(seq_aux_loss_coeff),      "top_k",       "sigmoid"     },
    {COEFF(global_aux_loss_coeff),   "top_k",       "softmax"     },
    {COEFF(gshard_loss_coeff),       "top_k",       "softmax"     },
    {COEFF(gshard_loss_coeff),       "gshard_top2", "softmax"     },
    {COEFF(second_place_loss_coeff), "gshard_top2", "softmax"     },
    {COEFF(importance_loss_coeff),   "top_k",       "softmax"     },
    {COEFF(importance_loss_coeff),   "top_k",       "sigmoid"     },
    {COEFF(importance_loss_coeff),   "gshard_top2", "softmax"     },
    {COEFF(load_loss_coeff),         "noisy_top_k", "softmax"     },
    {COEFF(entropy_loss_coeff),      "top_k",       "softmax"     },
    {COEFF(entropy_loss_coeff),      "top_k",       "sigmoid"     },
    {COEFF(z_loss_coeff),            "top_k",       "softmax"     },
    {COEFF(z_loss_coeff),            "top_k",       "sigmoid"     },
};

enum { CASES = sizeof cases / sizeof *cases };

static const double bound = 1e-6;

static void check_gradient(const moe_layer_desc *desc, const moe_call *call, const char *name,
                           uint64_t number) {
    const grad_check_options options = {
        .desc = *desc, .call = call, .n_tokens = 8, .seed = test_seed() + number};
    grad_check_result result;
    moe_error error = {0};
    if (grad_check(&options, &result, &error) != MOE_OK) fail_msg("%s: %s", name, error.text);
    for (int32_t i = 0; i < result.n_tensors; ++i)
        if (!(result.tensor[i].error < bound))
            fail_msg("seed %llu + %llu: %s: %s is off by %g", (unsigned long long)test_seed(),
                     (unsigned long long)number, name, result.tensor[i].name, result.tensor[i].error);
    assert_true(result.checked > 4 * result.skipped);
}

static moe_layer_desc base(const char *router, const char *score) {
    return (moe_layer_desc){.d_model = 5,
                            .num_experts = 4,
                            .top_k = 2,
                            .expert_hidden_size = 3,
                            .router_type = router,
                            .score_function = score};
}

static void set_coeff(moe_layer_desc *desc, const loss_case *c, float value) {
    *(float *)(void *)((char *)desc + c->coeff) = value;
}

static const uint8_t some_masked[8] = {1, 1, 0, 1, 1, 1, 1, 0};

static void each_loss_alone(void **state) {
    const moe_call plain = {.size = sizeof plain, .mode = MOE_TRAIN, .step = 3};
    const moe_call sequences = {.size = sizeof sequences,
                                .mode = MOE_TRAIN,
                                .step = 3,
                                .sequence_length = 4,
                                .token_mask = some_masked};
    (void)state;
    for (int i = 0; i < CASES; ++i) {
        moe_layer_desc desc = base(cases[i].router, cases[i].score);
        set_coeff(&desc, &cases[i], 0.8f);
        check_gradient(&desc, &plain, cases[i].name, (uint64_t)i);
        check_gradient(&desc, &sequences, cases[i].name, (uint64_t)i);
    }
}

/* Random sets of losses, of maps, of what the scores of a loss are. */
static void losses_together(void **state) {
    moe_call calls[3];
    for (int c = 0; c < 3; ++c) calls[c] = (moe_call){.size = sizeof *calls, .mode = MOE_TRAIN, .step = 3};
    calls[1].sequence_length = 2;
    calls[2].sequence_length = 4;
    calls[2].token_mask = some_masked;
    const uint32_t n = (uint32_t)test_names(moei_scores);
    (void)state;
    for (uint64_t i = 0; i < 40; ++i) {
        uint32_t word[4];
        moe_random(test_seed(), MOE_DRAW_TEST, 920, 0, i, word);
        moe_layer_desc desc = base("top_k", moei_scores[word[0] % n]);
        for (int c = 0; c < CASES; ++c)
            if (word[1] >> c & 1 && strcmp(cases[c].router, "top_k") == 0)
                set_coeff(&desc, &cases[c], 0.2f + 0.1f * (float)c);
        const bool balance =
            desc.aux_loss_coeff > 0 || desc.seq_aux_loss_coeff > 0 || desc.global_aux_loss_coeff > 0;
        if (balance && word[2] & 1) desc.aux_map = "plain";
        if (balance && word[2] & 2 && word[0] % n != MOEI_SOFTMAX)
            desc.aux_scores = "raw"; /* softmax sums to 1 */
        if (word[2] & 4) desc.capacity_factor = 0.8f;
        check_gradient(&desc, &calls[word[3] % 3], "together", 100 + i);
    }
}

static void all_losses_of(moe_layer_desc *desc) {
    desc->aux_loss_coeff = 0.3f;
    desc->seq_aux_loss_coeff = 0.2f;
    desc->global_aux_loss_coeff = 0.5f;
    desc->gshard_loss_coeff = 0.7f;
    desc->importance_loss_coeff = 0.4f;
    desc->entropy_loss_coeff = 0.1f;
    desc->z_loss_coeff = 0.01f;
}

/* Forward and a backward without an upstream gradient: what is left in the gate is the losses'. */
static moe_stats gate_gradient(moe_ctx *ctx, const moe_layer_desc *desc, moe_mat x, const moe_call *call,
                               void *grad, size_t bytes) {
    moe_layer *layer = test_layer(ctx, desc, x.rows);
    moe_mat y = test_output(x.dtype, x.rows, x.cols), dy = test_output(x.dtype, x.rows, x.cols);
    moe_stats stats = {.size = sizeof stats};
    moe_param gate = {.size = sizeof gate};
    memset(dy.data, 0, test_bytes(dy));
    must(ctx, moe_layer_forward(layer, x, y, call, &stats));
    must(ctx, moe_layer_backward(layer, x, dy, (moe_mat){.rows = x.rows, .cols = x.cols, .dtype = x.dtype}));
    must(ctx, moe_layer_param_by_name(layer, "gate.weight", &gate));
    memcpy(grad, gate.grad, bytes);
    free(y.data);
    free(dy.data);
    moe_layer_destroy(layer);
    return stats;
}

static void scale_is_of_the_call(void **state) {
    moe_ctx *ctx = test_ctx("ref", 1);
    moe_layer_desc desc = {
        .size = sizeof desc, .dtype = MOE_F64, .d_model = 6, .num_experts = 5, .expert_hidden_size = 4};
    moe_call call = {.size = sizeof call, .mode = MOE_TRAIN, .sequence_length = 8};
    moe_mat x = test_random(MOE_F64, 16, 6, 5);
    double once[30], thrice[30], largest = 0;
    (void)state;
    all_losses_of(&desc);
    const moe_stats first = gate_gradient(ctx, &desc, x, &call, once, sizeof once);
    call.loss_scale = 3;
    const moe_stats second = gate_gradient(ctx, &desc, x, &call, thrice, sizeof thrice);
    assert_true(first.loss == second.loss);
    near(first.loss, 0.3 * first.aux_loss + 0.2 * first.seq_aux_loss + 0.5 * first.global_aux_loss +
                         0.7 * first.gshard_loss + 0.4 * first.importance_loss + 0.1 * first.entropy_loss +
                         0.01 * first.z_loss);
    for (int i = 0; i < 30; ++i) {
        near(thrice[i], 3 * once[i]);
        largest = fmax(largest, fabs(once[i]));
    }
    assert_true(largest > 1e-6);
    free(x.data);
    moe_ctx_destroy(ctx);
}

static void same_bits_for_any_thread_count(void **state) {
    moe_layer_desc desc = {.size = sizeof desc, .d_model = 16, .num_experts = 7, .expert_hidden_size = 4};
    const moe_call call = {.size = sizeof call, .mode = MOE_TRAIN, .sequence_length = 25};
    moe_mat x = test_random(MOE_F32, 200, 16, 6);
    float grad[2][112];
    moe_stats stats[2];
    (void)state;
    all_losses_of(&desc);
    desc.aux_map = "plain";
    for (int i = 0; i < 2; ++i) {
        moe_ctx *ctx = test_ctx(NULL, i == 0 ? 1 : 5);
        stats[i] = gate_gradient(ctx, &desc, x, &call, grad[i], sizeof grad[i]);
        moe_ctx_destroy(ctx);
    }
    assert_memory_equal(grad[0], grad[1], sizeof grad[0]);
    assert_memory_equal(&stats[0], &stats[1], sizeof stats[0]);
    free(x.data);
}

/* Masking every fourth token is leaving it out: all values, and the gradient. */
static void masked_tokens_are_absent(void **state) {
    moe_ctx *ctx = test_ctx("ref", 1);
    moe_layer_desc desc = {
        .size = sizeof desc, .dtype = MOE_F64, .d_model = 6, .num_experts = 5, .expert_hidden_size = 4};
    uint8_t mask[24];
    moe_mat x = test_random(MOE_F64, 24, 6, 7), kept = test_output(MOE_F64, 18, 6);
    double whole[30], part[30];
    (void)state;
    all_losses_of(&desc);
    for (int64_t t = 0, row = 0; t < 24; ++t) {
        mask[t] = t % 4 != 2;
        if (mask[t]) memcpy((double *)kept.data + 6 * row++, (double *)x.data + 6 * t, 6 * sizeof(double));
    }
    const moe_call masked = {
        .size = sizeof masked, .mode = MOE_TRAIN, .sequence_length = 8, .token_mask = mask};
    const moe_call shorter = {.size = sizeof shorter, .mode = MOE_TRAIN, .sequence_length = 6};
    const moe_stats a = gate_gradient(ctx, &desc, x, &masked, whole, sizeof whole);
    const moe_stats b = gate_gradient(ctx, &desc, kept, &shorter, part, sizeof part);
    near(a.loss, b.loss);
    near(a.gshard_loss, b.gshard_loss);
    near(a.seq_aux_loss, b.seq_aux_loss);
    near(a.entropy_loss, b.entropy_loss);
    for (int i = 0; i < 30; ++i) near(whole[i], part[i]);
    free(x.data);
    free(kept.data);
    moe_ctx_destroy(ctx);
}

/* Nobody is real: no loss, no gradient, no NaN. */
static void all_masked(void **state) {
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_layer_desc desc = {.size = sizeof desc, .d_model = 6, .num_experts = 5, .expert_hidden_size = 4};
    const uint8_t mask[8] = {0};
    const moe_call call = {.size = sizeof call, .mode = MOE_TRAIN, .sequence_length = 4, .token_mask = mask};
    moe_mat x = test_random(MOE_F32, 8, 6, 8);
    float grad[30];
    (void)state;
    all_losses_of(&desc);
    const moe_stats stats = gate_gradient(ctx, &desc, x, &call, grad, sizeof grad);
    assert_true(stats.loss == 0 && stats.aux_loss == 0 && stats.n_routed == 0);
    for (int i = 0; i < 30; ++i) assert_true(grad[i] == 0);
    free(x.data);
    moe_ctx_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(switch_as_recorded),
        cmocka_unit_test(masked_switch_as_recorded),
        cmocka_unit_test(sequence_as_recorded),
        cmocka_unit_test(z_and_entropy_as_recorded),
        cmocka_unit_test(cv_squared_as_recorded),
        cmocka_unit_test(plain_map_ignores_the_bias),
        cmocka_unit_test(global_counts_since_the_step),
        cmocka_unit_test(global_loss_of_an_inference),
        cmocka_unit_test(each_loss_alone),
        cmocka_unit_test(losses_together),
        cmocka_unit_test(scale_is_of_the_call),
        cmocka_unit_test(same_bits_for_any_thread_count),
        cmocka_unit_test(masked_tokens_are_absent),
        cmocka_unit_test(all_masked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
