/* test_router_options.c: what the model tells its layers (sequences, tokens, buffers), and checkpoints that
 * carry every setting of a layer; Mixtral's form only where the layer is Mixtral's.
 */
#include "unit/model/model_fixture.h"

#include "core/option.h"
#include "format/json.h"

/* Hash routing asks for tokens: the same token goes to the same expert wherever it stands. */
static void test_hash_sees_tokens(void **state) {
    (void)state;
    static const char *const pairs[] = {"moe.router_type", "hash", "moe.top_k", "1",
                                        "moe.num_experts", "8",    NULL};
    enum { N = 64, VOCAB = 23 };
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_lm *lm = model_make(ctx, pairs);
    int32_t tokens[N], expert_of[VOCAB];
    static float logits[N * VOCAB];
    model_tokens(tokens, N, VOCAB, 1);
    must(ctx, moe_lm_reserve(lm, 2, N / 2, MOE_INFER));
    must(ctx, moe_lm_logits(lm, tokens, 2, N / 2, logits));
    moe_routing_view view = {.size = sizeof view};
    must(ctx, moe_layer_routing(moe_lm_layer(lm, 1), &view));
    for (int v = 0; v < VOCAB; ++v) expert_of[v] = -1;
    int used = 0;
    for (int t = 0; t < N; ++t) {
        int32_t *known = &expert_of[tokens[t]];
        if (*known >= 0) assert_int_equal(view.expert[t], *known);
        *known = view.expert[t];
        used |= 1 << *known;
    }
    assert_true((used & (used - 1)) != 0); /* more than one expert */
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}

/* Capacity by sequence: 16 tokens of one sequence, 2 choices and 4 experts make int(2 * 16 / 4) places of the
 * sequence, not of the batch. */
static void test_sequences_are_told(void **state) {
    (void)state;
    static const char *const pairs[] = {"moe.preset", "lucidrains", "moe.capacity_factor_eval", "2", NULL};
    enum { LENGTH = 16, SEQUENCES = 3, VOCAB = 23 };
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_lm *lm = model_make(ctx, pairs);
    int32_t tokens[LENGTH * SEQUENCES];
    static float logits[LENGTH * SEQUENCES * VOCAB];
    model_tokens(tokens, LENGTH * SEQUENCES, VOCAB, 1);
    must(ctx, moe_lm_reserve(lm, SEQUENCES, LENGTH, MOE_INFER));
    must(ctx, moe_lm_logits(lm, tokens, SEQUENCES, LENGTH, logits));
    moe_routing_view view = {.size = sizeof view};
    must(ctx, moe_layer_routing(moe_lm_layer(lm, 0), &view));
    assert_int_equal(view.capacity, 2 * LENGTH / 4);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}

/* Buffers are the model's to save, not its parameters to count. */
static void test_buffers_are_not_counted(void **state) {
    (void)state;
    static const char *const with[] = {"moe.score_before_topk", "true", "moe.selection_bias", "true", NULL};
    static const char *const without[] = {"moe.score_before_topk", "true", NULL};
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_lm *a = model_make(ctx, with), *b = model_make(ctx, without);
    moe_lm_info x = {.size = sizeof x}, y = {.size = sizeof y};
    moe_lm_get_info(a, &x);
    moe_lm_get_info(b, &y);
    assert_memory_equal(&x, &y, sizeof x);
    assert_int_equal(moe_lm_param_count(a), moe_lm_param_count(b) + 2);
    moe_lm_destroy(a);
    moe_lm_destroy(b);
    moe_ctx_destroy(ctx);
}

static void saved_type(const char *directory, char *type, size_t size) {
    char path[1000];
    const char *found;
    json_t *root;
    moe_error error;
    snprintf(path, sizeof path, "%s/config.json", directory);
    assert_ok(moelm_json_load(path, &root, &error), &error);
    assert_ok(moelm_json_get_string(root, "config.json", "model_type", &found, &error), &error);
    snprintf(type, size, "%s", found);
    json_decref(root);
}

/* Saves a model of these settings, loads it, and compares every setting of every layer and every number. */
static void round_trip(void **state, const char *name, const char *const *pairs, const char *type) {
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_lm *lm = model_make(ctx, pairs);
    char *path = scratch_path(state, name), found[40];
    must(ctx, moe_lm_save(lm, path));
    saved_type(path, found, sizeof found);
    if (strcmp(found, type) != 0) fail_msg("%s: saved as %s", name, found);
    moe_lm *back = model_load(ctx, path);
    const moe_option *row;
    for (int32_t l = 0; l < 2; ++l)
        for (size_t i = 0; (row = moe_layer_option_at(i)); ++i) {
            char p[1024], q[1024];
            moei_option_get(row, moe_layer_get_desc(moe_lm_layer(lm, l)), p, sizeof p);
            moei_option_get(row, moe_layer_get_desc(moe_lm_layer(back, l)), q, sizeof q);
            if (strcmp(p, q) != 0) fail_msg("%s: layer %d: %s: %s, then %s", name, l, row->key, p, q);
        }
    assert_int_equal(moe_lm_param_count(lm), moe_lm_param_count(back));
    for (int32_t i = 0; i < moe_lm_param_count(lm); ++i) {
        moe_param p = {.size = sizeof p}, q = {.size = sizeof q};
        must(ctx, moe_lm_param(lm, i, &p));
        must(ctx, moe_lm_param(back, i, &q));
        assert_string_equal(p.name, q.name);
        assert_int_equal(p.buffer, q.buffer);
        assert_memory_equal(p.value, q.value, (size_t)model_numbers(&p) * sizeof(float));
    }
    moe_lm_destroy(back);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
    free(path);
}

static void test_presets_are_carried(void **state) {
    for (const char *const *name = moe_layer_presets(); *name; ++name) {
        const char *const pairs[] = {"moe.num_experts", "8", "moe.preset", *name, NULL};
        round_trip(state, *name, pairs, strcmp(*name, "mixtral") == 0 ? "mixtral" : "moekit");
    }
}

/* One setting away from Mixtral's layer is another layer. Each list is settings that go together. */
/* clang-format off */
static const char *const unlike[][7] = {
    {"moe.router_bias", "true"},
    {"moe.router_type", "sinkhorn"},
    {"moe.router_type", "hash"},
    {"moe.router_type", "quantile", "moe.quantile_ema", "0.5"},
    {"moe.num_groups", "2", "moe.group_top_k", "1"},
    {"moe.num_groups_outer", "2", "moe.router_type", "gshard_top2", "moe.aux_loss_coeff", "0"},
    {"moe.capacity_factor_eval", "2"},
    {"moe.score_function", "sqrtsoftplus"},
    {"moe.routed_scaling_factor", "2"},
    {"moe.aux_scores", "raw", "moe.score_function", "sigmoid"},
    {"moe.activation", "relu2"},
    {"moe.glu_layout", "interleaved"},
    {"moe.activation_limit", "3"},
    {"moe.expert_up_bias", "true"},
    {"moe.output_bias", "true"},
    {"moe.weight_apply", "hidden"},
    {"moe.latent_size", "8"},
    {"moe.expert_kinds", "4,8,identity,zero"},
    {"moe.num_shared_experts", "1", "moe.shared_expert_gate", "true"},
};
/* What changes only how it is trained leaves a Mixtral, and so do the activations that its hidden_act has. */
static const char *const alike[][7] = {
    {"moe.router_frozen", "true"},
    {"moe.top_k_min", "1"},
    {"moe.expert_dropout", "0.1"},
    {"moe.seq_aux_loss_coeff", "0.1"},
    {"moe.global_aux_loss_coeff", "0.1"},
    {"moe.importance_loss_coeff", "0.1"},
    {"moe.aux_map", "plain"},
    {"moe.dropout", "0.1"},
    {"moe.init_scheme", "lucid_uniform"},
    {"moe.router_init", "zeros"},
    {"moe.recompute", "layer"},
    {"moe.saved_dtype", "mxfp8"},
    {"moe.entropy_loss_coeff", "0.1"},
    {"moe.aux_loss_type", "sequence"},
    {"moe.token_rounding", "4"},
    {"moe.init_scheme", "megatron_scaled"},
    {"moe.init_scheme", "sigma_moe", "moe.init_std_scale", "0.5"},
    {"moe.activation", "geglu"},
    {"moe.activation", "geglu_exact"},
    {"moe.activation", "reglu"},
};
/* clang-format on */

static void test_every_setting_is_carried(void **state) {
    for (size_t i = 0; i < sizeof unlike / sizeof *unlike; ++i) {
        char name[40];
        snprintf(name, sizeof name, "%zu", i);
        round_trip(state, name, unlike[i], "moekit");
    }
    for (size_t i = 0; i < sizeof alike / sizeof *alike; ++i) {
        char name[40];
        snprintf(name, sizeof name, "mixtral-%zu", i);
        round_trip(state, name, alike[i], "mixtral");
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hash_sees_tokens),
        cmocka_unit_test(test_sequences_are_told),
        cmocka_unit_test(test_buffers_are_not_counted),
        cmocka_unit_test_setup_teardown(test_presets_are_carried, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_every_setting_is_carried, scratch_setup, scratch_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
