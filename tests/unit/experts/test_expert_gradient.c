/* test_expert_gradient.c: gradients of every kind of expert and of what stands around them, in f64 against
 * finite differences: options drawn so that each value meets each other's; the count is printed.
 */
#include "support/layer_fixture.h"

#include "experts/activation.h"
#include "moekit/grad_check.h"

static const double bound = 1e-6;
enum { COMBINATIONS = 160 };

static uint32_t pick(uint64_t combination, uint32_t option, uint32_t n) {
    uint32_t word[4];
    moe_random(test_seed(), MOE_DRAW_TEST, 900, combination, option, word);
    return word[0] % n;
}

static const char *const kinds[] = {"", "", "", "3,3,5,zero", "4,identity,zero,2", "7,1,1,identity"};

static moe_layer_desc drawn(uint64_t c) {
    moe_layer_desc d = {.d_model = 5, .num_experts = 4, .top_k = 2, .expert_hidden_size = 3};
    d.activation = moei_activation_names[pick(c, 0, 13)];
    const moei_activation *act = moei_activation_find(d.activation);
    if (act->gated) {
        d.glu_layout = pick(c, 1, 2) ? "interleaved" : "halves";
        d.activation_limit = pick(c, 2, 2) ? 0.8f : 0;
        d.glu_linear_offset = pick(c, 3, 2) ? 0.5f : 0;
    }
    if (act->alpha > 0 && pick(c, 4, 2)) d.activation_alpha = 1.1f;
    d.expert_bias = pick(c, 5, 3) == 0;
    d.expert_up_bias = !d.expert_bias && pick(c, 5, 3) == 1;
    d.output_bias = pick(c, 6, 2);
    d.dropout = pick(c, 7, 2) ? 0.3f : 0;
    d.latent_size = pick(c, 8, 2) ? 4 : 0;
    d.output_size = pick(c, 9, 2) ? 7 : 0;
    d.expert_kinds = kinds[pick(c, 10, 6)];
    if (strstr(d.expert_kinds, "identity") && d.latent_size == 0) d.output_size = 0;
    d.num_shared_experts = (int32_t)pick(c, 11, 3);
    if (d.num_shared_experts > 0) {
        d.shared_expert_gate = pick(c, 12, 2);
        d.shared_expert_hidden_size = (int32_t)pick(c, 13, 3);
        if (!act->gated || pick(c, 14, 2)) d.shared_expert_activation = pick(c, 14, 2) ? "relu2" : "silu";
    }
    d.recompute = pick(c, 15, 2) ? "layer" : "none";
    if (pick(c, 16, 3) == 0) {
        d.top_k = 1;
        d.weight_apply = "input";
        d.score_before_topk = true;
    }
    d.capacity_factor = pick(c, 17, 3) ? 0 : 0.75f;
    d.pad_to_capacity = d.capacity_factor > 0 && pick(c, 18, 2);
    return d;
}

static void describe(const moe_layer_desc *d, char *text, size_t size) {
    size_t count, used = (size_t)snprintf(text, size, "seed %llu", (unsigned long long)test_seed());
    const moe_option *row = moe_layer_options(&count);
    for (size_t i = 0; i < count && used < size; ++i) {
        const char *field = (const char *)d + row[i].offset;
        const char *name = row[i].key + strlen("moe.");
        if (row[i].type == MOE_OPT_CHOICE && *(char *const *)(const void *)field)
            used += (size_t)snprintf(text + used, size - used, " %s=%s", name,
                                     *(char *const *)(const void *)field);
        else if (row[i].type == MOE_OPT_BOOL && *(const bool *)field)
            used += (size_t)snprintf(text + used, size - used, " %s", name);
        else if (row[i].type == MOE_OPT_INT && *(const int32_t *)(const void *)field)
            used += (size_t)snprintf(text + used, size - used, " %s=%d", name,
                                     *(const int32_t *)(const void *)field);
        else if (row[i].type == MOE_OPT_FLOAT && *(const float *)(const void *)field != 0)
            used += (size_t)snprintf(text + used, size - used, " %s=%g", name,
                                     (double)*(const float *)(const void *)field);
    }
}

static void all_experts_and_surroundings(void **state) {
    (void)state;
    int64_t checked = 0, skipped = 0;
    double worst = 0;
    for (uint64_t c = 0; c < COMBINATIONS; ++c) {
        const grad_check_options options = {.desc = drawn(c), .n_tokens = 5, .seed = test_seed() + c};
        grad_check_result result;
        moe_error error = {0};
        char text[1024];
        describe(&options.desc, text, sizeof text);
        if (grad_check(&options, &result, &error) != MOE_OK) fail_msg("%s: %s", text, error.text);
        for (int32_t i = 0; i < result.n_tensors; ++i)
            if (!(result.tensor[i].error < bound))
                fail_msg("%s: %s is off by %g", text, result.tensor[i].name, result.tensor[i].error);
        checked += result.checked;
        skipped += result.skipped;
        worst = fmax(worst, result.worst);
    }
    fprintf(stderr, "%d combinations, %lld gradients checked, %lld at kinks skipped, worst %.2g\n",
            COMBINATIONS, (long long)checked, (long long)skipped, worst);
    assert_true(skipped * 10 < checked);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(all_experts_and_surroundings)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
