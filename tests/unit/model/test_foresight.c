/* test_foresight.c: whether later tokens decide on earlier ones is as moe_lm_config_foresight says.
 * Logits of the first half of a text, with two second halves: the same bits where it says nothing, others
 * where it names a setting. Source: the definition of a language model.
 */
#include "unit/model/model_fixture.h"

enum { LENGTH = 32, HALF = LENGTH / 2, VOCAB = 23, SECONDS = 8, MODELS = 8 };

/* How many of several second halves change a logit of the first, of the model drawn by this seed. */
static int count_changes(const char *const *pairs, uint64_t seed) {
    const moe_ctx_desc desc = {.size = sizeof desc, .n_threads = 2, .seed = test_seed() + seed};
    moe_ctx *ctx = NULL;
    moe_error error;
    if (moe_ctx_create(&desc, &ctx, &error) != MOE_OK) fail_msg("context: %s", error.text);
    moe_lm *lm = model_make(ctx, pairs);
    int32_t tokens[LENGTH];
    float first[LENGTH * VOCAB], logits[LENGTH * VOCAB];
    int changes = 0;
    model_tokens(tokens, LENGTH, VOCAB, 1);
    must(ctx, moe_lm_reserve(lm, 1, LENGTH, MOE_INFER));
    must(ctx, moe_lm_logits(lm, tokens, 1, LENGTH, first));
    for (uint64_t i = 0; i < SECONDS; ++i) {
        model_tokens(tokens + HALF, LENGTH - HALF, VOCAB, 2 + i);
        must(ctx, moe_lm_logits(lm, tokens, 1, LENGTH, logits));
        changes += memcmp(first, logits, HALF * VOCAB * sizeof *logits) != 0;
    }
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
    return changes;
}

/* Of one model in some seventy no text happens to: what is said must show in one of several. */
static int count_in_models(const char *const *pairs, bool said) {
    int changes = 0;
    for (uint64_t i = 0; i < MODELS && changes == 0 && (said || i == 0); ++i)
        changes = count_changes(pairs, i);
    return changes;
}

static void test_what_is_said_is_so(void **state) {
    (void)state;
    /* clang-format off */
    static const char *const cases[][13] = {
        {NULL},
        {"moe.router_type", "expert_choice"},
        {"moe.capacity_factor", "0.5"},
        {"moe.capacity_factor", "0.5", "moe.capacity_group", "sequence"},
        {"moe.capacity_factor", "0.5", "moe.drop_policy", "rank_major"},
        {"moe.capacity_factor", "0.5", "moe.drop_policy", "position"},
        {"moe.capacity_factor", "0.5", "moe.capacity_factor_eval", "-1"},
        {"moe.capacity_factor_eval", "0.5"},
        {"moe.router_type", "sinkhorn", "moe.top_k", "1"},
        {"moe.router_type", "quantile"},
        {"moe.router_type", "hash"},
        {"moe.router_type", "balanced"},
        {"moe.router_type", "balanced", "moe.fake_noise", "0.5"},
        {"moe.router_type", "random"},
        {"moe.router_type", "noisy_top_k"},
        {"moe.router_type", "gshard_top2"},
        {"moe.router_type", "gshard_top2", "moe.second_policy_eval", "random"},
        {"moe.token_rounding", "4"},
        {"moe.selection_bias", "true", "moe.score_before_topk", "true"},
        {"moe.num_groups_outer", "2", "moe.router_type", "gshard_top2", "moe.aux_loss_coeff", "0"},
        {"moe.num_groups_outer", "2", "moe.router_type", "gshard_top2", "moe.aux_loss_coeff", "0",
         "moe.capacity_factor", "1", "moe.capacity_factor_eval", "-1", "moe.drop_policy", "rank_major"},
        {"moe.num_groups_outer", "2", "moe.router_type", "gshard_top2", "moe.aux_loss_coeff", "0",
         "moe.capacity_factor", "0.5", "moe.drop_policy", "rank_major"},
    };
    /* clang-format on */
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
        moe_lm_config *config = model_config(cases[i]);
        const char *said = moe_lm_config_foresight(config);
        const int changes = count_in_models(cases[i], said != NULL);
        if ((said != NULL) != (changes > 0))
            fail_msg("case %zu, %s: %d of %d texts change what was before, and it is said: %s", i,
                     cases[i][1] ? cases[i][1] : "plain", changes, SECONDS, said ? said : "nothing");
        moe_lm_config_destroy(config);
    }
}

/* Inner experts alone may be full. */
static void test_inner_capacity(void **state) {
    (void)state;
    static const char *const pairs[] = {"moe.num_experts",
                                        "8",
                                        "moe.num_groups_outer",
                                        "2",
                                        "moe.router_type",
                                        "gshard_top2",
                                        "moe.aux_loss_coeff",
                                        "0",
                                        "moe.capacity_factor",
                                        "1",
                                        "moe.capacity_factor_eval",
                                        "-1",
                                        "moe.capacity_factor_inner",
                                        "0.2",
                                        "moe.capacity_formula",
                                        "gshard",
                                        "moe.drop_policy",
                                        "rank_major",
                                        NULL};
    moe_lm_config *config = model_config(pairs);
    assert_non_null(moe_lm_config_foresight(config));
    moe_lm_config_destroy(config);
    assert_true(count_in_models(pairs, true) > 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_is_said_is_so),
        cmocka_unit_test(test_inner_capacity),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
