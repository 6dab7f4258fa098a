/* test_route_gradient.c: every router x score function x order against finite differences in f64.
 * All losses that go with a router are on; sequences, masks and recorded routes come in turn. Bound 1e-6.
 */
#include "support/layer_fixture.h"

#include "moekit/grad_check.h"
#include "route/names.h"

static const double bound = 1e-6;

typedef struct total {
    int combinations;
    long long checked, skipped;
    double worst;
} total;

static void check(moe_layer_desc desc, const moe_call *call, total *sum) {
    grad_check_options options = {
        .desc = desc, .call = call, .n_tokens = 6, .seed = test_seed() + (uint64_t)sum->combinations};
    grad_check_result result;
    moe_error error = {0};
    char text[256];
    snprintf(text, sizeof text, "seed %llu + %d: %s %s before %d norm %d groups %d bias %d unit %s",
             (unsigned long long)test_seed(), sum->combinations, desc.router_type, desc.score_function,
             desc.score_before_topk, desc.norm_topk_prob, desc.num_groups, desc.selection_bias,
             desc.routing_unit ? desc.routing_unit : "token");
    if (grad_check(&options, &result, &error) != MOE_OK) fail_msg("%s: %s", text, error.text);
    for (int32_t i = 0; i < result.n_tensors; ++i)
        if (!(result.tensor[i].error < bound))
            fail_msg("%s: %s is off by %g", text, result.tensor[i].name, result.tensor[i].error);
    ++sum->combinations;
    sum->checked += result.checked;
    sum->skipped += result.skipped;
    sum->worst = fmax(sum->worst, result.worst);
}

static void report(const total *sum) {
    fprintf(stderr, "%d combinations, %lld gradients checked, %lld at kinks skipped, worst %.2g\n",
            sum->combinations, sum->checked, sum->skipped, sum->worst);
    assert_true(sum->skipped * 4 < sum->checked);
}

static moe_layer_desc base(const char *type, const char *score) {
    return (moe_layer_desc){.d_model = 5,
                            .num_experts = 4,
                            .top_k = 2,
                            .expert_hidden_size = 3,
                            .router_type = type,
                            .score_function = score,
                            .aux_loss_coeff = 0.7f,
                            .z_loss_coeff = 0.3f};
}

/* Order: after, before, before and normalised (softmax after cannot be normalised again). */
static void set_order(moe_layer_desc *desc, int order) {
    desc->score_before_topk = order > 0;
    desc->norm_topk_prob = order == 2;
}

static void routers_scores_and_orders(void **state) {
    (void)state;
    static const char *const types[] = {"top_k",    "noisy_top_k",   "sinkhorn",
                                        "quantile", "expert_choice", "hash"};
    static const uint8_t mask[] = {1, 1, 0, 1, 1, 1};
    total sum = {0};
    const size_t n = test_names(moei_scores);
    for (size_t i = 0; i < 6 * n * 3; ++i) {
        moe_layer_desc desc = base(types[i / 3 / n], moei_scores[i / 3 % n]);
        const moe_call call = {
            .mode = MOE_TRAIN, .step = 3, .token_mask = i % 2 ? mask : NULL, .sequence_length = 3};
        set_order(&desc, (int)(i % 3));
        desc.routed_scaling_factor = i % 4 == 0 ? 2.5f : 0;
        desc.router_bias = i % 5 < 2;
        desc.entropy_loss_coeff = i % 2 ? 0.5f : 0;
        desc.seq_aux_loss_coeff = i % 3 ? 0.4f : 0;
        desc.importance_loss_coeff = i % 4 == 1 ? 0.3f : 0;
        desc.load_loss_coeff = strcmp(desc.router_type, "noisy_top_k") == 0 ? 0.6f : 0;
        check(desc, &call, &sum);
    }
    report(&sum);
}

static void options_of_top_k(void **state) {
    (void)state;
    total sum = {0};
    const size_t n = test_names(moei_scores);
    for (size_t i = 0; i < n * 9; ++i) {
        moe_layer_desc desc = base("top_k", moei_scores[i % n]);
        const bool softmax = i % n == MOEI_SOFTMAX;
        switch (i / n) {
        case 0:
            desc.num_groups = desc.group_top_k = 2, desc.group_score = "topn_sum";
            break;
        case 1:
            desc.selection_bias = desc.score_before_topk = true;
            break;
        case 2:
            desc.selection_bias = desc.score_before_topk = true, desc.selection_bias_in_weights = !softmax;
            break;
        case 3:
            desc.expert_dropout = 0.4f;
            break;
        case 4:
            desc.top_k_min = 1, desc.norm_topk_prob = !softmax;
            break;
        case 5:
            if (!softmax) desc.aux_scores = "raw";
            break;
        case 6:
            desc.token_rounding = 2, desc.importance_loss_coeff = 0.3f;
            break;
        case 7:
            desc.token_rounding = 4, desc.score_before_topk = desc.norm_topk_prob = true;
            break;
        default:
            desc.top_k = 1, desc.score_before_topk = desc.norm_topk_prob = true;
            break;
        }
        check(desc, NULL, &sum);
    }
    report(&sum);
}

static void sinkhorn_variants(void **state) {
    (void)state;
    total sum = {0};
    for (int i = 0; i < 6; ++i) {
        moe_layer_desc desc = base("sinkhorn", i < 4 ? "softmax" : "sigmoid");
        desc.sinkhorn_variant = i < 4 ? "megatron" : "sigma_moe";
        desc.top_k = 1 + i % 2;
        desc.entropy_loss_coeff = 0.5f;
        check(desc, NULL, &sum);
    }
    report(&sum);
}

static void units_and_replay(void **state) {
    (void)state;
    static const int32_t task[] = {1, 0}, expert[] = {0, 3, 1, -1, 2, 1, 3, 0, 0, 1, 2, 3};
    static const uint8_t mask[] = {1, 0, 1, 1, 1, 1};
    total sum = {0};
    for (int i = 0; moei_scores[i / 4]; ++i) {
        moe_layer_desc desc = base(i % 4 == 1 ? "noisy_top_k" : "top_k", moei_scores[i / 4]);
        moe_call call = {.mode = MOE_TRAIN, .step = 3, .sequence_length = 3, .token_mask = mask};
        desc.routing_unit = i % 4 == 3 ? "token" : i % 4 == 2 ? "task" : "sequence";
        if (i % 4 == 2) desc.num_tasks = 2, call.task = task;
        if (i % 4 == 3) call.replay_expert = expert;
        desc.router_bias = i % 2;
        check(desc, &call, &sum);
    }
    report(&sum);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(routers_scores_and_orders),
        cmocka_unit_test(options_of_top_k),
        cmocka_unit_test(sinkhorn_variants),
        cmocka_unit_test(units_and_replay),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
