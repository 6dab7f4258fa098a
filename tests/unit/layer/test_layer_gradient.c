/* test_layer_gradient.c: every gradient of the layer against finite differences in f64, over all
 * combinations of score order, activation, bias, capacity, shared expert, jitter and losses.
 * Bound: 1e-6 relative; the count of combinations and of numbers is printed.
 */
#include "support/layer_fixture.h"

#include "moekit/grad_check.h"

static const double bound = 1e-6;
static const char *const activations[] = {"swiglu", "gelu", "relu"};

static void describe(const moe_layer_desc *d, char *text, size_t size) {
    snprintf(text, size,
             "seed %llu: E %d K %d act %s bias %d before %d norm %d capacity %g %s shared %d jitter %g aux "
             "%g z %g",
             (unsigned long long)test_seed(), d->num_experts, d->top_k,
             d->activation ? d->activation : "swiglu", d->expert_bias, d->score_before_topk,
             d->norm_topk_prob, (double)d->capacity_factor, d->drop_policy ? d->drop_policy : "probs",
             d->num_shared_experts, (double)d->input_jitter_eps, (double)d->aux_loss_coeff,
             (double)d->z_loss_coeff);
}

static void check(moe_layer_desc desc, int64_t n_tokens, uint64_t salt, grad_check_result *total) {
    grad_check_options options = {.desc = desc, .n_tokens = n_tokens, .seed = test_seed() + salt};
    grad_check_result result;
    moe_error error = {0};
    char text[256];
    describe(&desc, text, sizeof text);
    if (grad_check(&options, &result, &error) != MOE_OK) fail_msg("%s: %s", text, error.text);
    for (int32_t i = 0; i < result.n_tensors; ++i)
        if (!(result.tensor[i].error < bound))
            fail_msg("%s: %s is off by %g", text, result.tensor[i].name, result.tensor[i].error);
    total->checked += result.checked;
    total->skipped += result.skipped;
    total->worst = fmax(total->worst, result.worst);
    ++total->n_tensors; /* combinations */
}

/* before, norm: the three legal orders of softmax and selection. */
static void set_score_order(moe_layer_desc *desc, int order) {
    desc->score_before_topk = order > 0;
    desc->norm_topk_prob = order == 2;
}

static void all_combinations(void **state) {
    (void)state;
    grad_check_result total = {0};
    for (int i = 0; i < 3 * 3 * 2 * 3 * 2; ++i) {
        moe_layer_desc desc = {.d_model = 5, .num_experts = 4, .top_k = 2, .expert_hidden_size = 3};
        set_score_order(&desc, i % 3);
        desc.activation = activations[i / 3 % 3];
        desc.expert_bias = i / 9 % 2;
        desc.capacity_factor = i / 18 % 3 > 0 ? 0.75f : 0;
        desc.drop_policy = i / 18 % 3 == 2 ? "position" : "probs";
        desc.num_shared_experts = i / 54 % 2;
        /* the rest alternates, so that each meets each of the above */
        desc.input_jitter_eps = i % 2 ? 0.1f : 0;
        desc.aux_loss_coeff = i % 5 != 0 ? 0.7f : 0;
        desc.z_loss_coeff = i % 7 != 0 ? 0.3f : 0;
        desc.routed_scaling_factor = i % 4 == 0 ? 2.5f : 0;
        check(desc, 6, (uint64_t)i, &total);
    }
    fprintf(stderr, "%d combinations, %lld gradients checked, %lld at kinks skipped, worst %.2g\n",
            total.n_tensors, (long long)total.checked, (long long)total.skipped, total.worst);
    assert_true(total.skipped * 20 < total.checked);
}

static void corner_shapes(void **state) {
    (void)state;
    grad_check_result total = {0};
    static const struct {
        int32_t E, K;
        int64_t T;
    } shapes[] = {
        {1,  1, 5},
        {3,  3, 5},
        {7,  1, 4},
        {11, 5, 1},
        {0,  0, 4},
        {64, 2, 3}
    };
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; ++s)
        for (int order = 0; order < 3; ++order) {
            moe_layer_desc desc = {
                .d_model = 5, .num_experts = shapes[s].E, .top_k = shapes[s].K, .expert_hidden_size = 3};
            if (shapes[s].E == 0) {
                desc.num_shared_experts = 2;
            } else {
                desc.aux_loss_coeff = desc.z_loss_coeff = 0.5f;
                set_score_order(&desc, order);
            }
            check(desc, shapes[s].T, 1000 + s, &total);
        }
    assert_true(total.checked > 1000);
}

/* The checker compares something: every tensor has a gradient worth the name, and rounding shows. */
static void checker_compares_live_gradients(void **state) {
    (void)state;
    grad_check_result result;
    moe_layer_desc desc = {.num_experts = 4, .top_k = 2, .aux_loss_coeff = 1};
    grad_check_options options = {.desc = desc, .n_tokens = 6, .seed = test_seed()};
    assert_int_equal(grad_check(&options, &result, NULL), MOE_OK);
    assert_true(result.worst < bound && result.worst > 0); /* zero would mean it compared nothing */
    assert_int_equal(result.n_tensors, 4);
    for (int32_t i = 0; i < result.n_tensors; ++i) assert_true(result.tensor[i].largest > 1e-3);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_combinations),
        cmocka_unit_test(corner_shapes),
        cmocka_unit_test(checker_compares_live_gradients),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
