/* test_layer_alias.c: settings of NeMo, Automodel, Hugging Face, lucidrains, sigma-MoE and tensor2tensor.
 * Each name and value makes the descriptor that our own settings make. Any two of them, in either order:
 * test_layer_alias_order.c.
 */
#include "support/layer_fixture.h"

#include "unit/layer/alias_fixture.h"

static moe_layer_desc plain(void) {
    return (moe_layer_desc){
        .size = sizeof(moe_layer_desc), .d_model = 8, .num_experts = 8, .top_k = 2, .expert_hidden_size = 4};
}

static void set_all(moe_layer_desc *d, const char *settings, bool backwards) {
    char text[512], *word[16];
    int count = 0;
    moe_error error;
    snprintf(text, sizeof text, "%s", settings);
    for (char *next = strtok(text, " "); next; next = strtok(NULL, " ")) word[count++] = next;
    for (int i = 0; i < count; ++i) {
        char *key = word[backwards ? count - 1 - i : i], *value = strchr(key, '=');
        *value++ = '\0';
        if (moe_layer_desc_set(d, key, value, &error) != MOE_OK) fail_msg("%s", error.text);
    }
}

/* Every setting as text; a choice not made is its default. */
static void spell_desc(const moe_layer_desc *desc, char *text, size_t size) {
    size_t used = 0;
    const moe_option *row;
    for (size_t i = 0; (row = moe_layer_option_at(i)); ++i) {
        const char *at = (const char *)desc + row->offset;
        if (row->type == MOE_OPT_BOOL) used += (size_t)snprintf(text + used, size - used, "%d ", *at);
        if (row->type == MOE_OPT_INT)
            used += (size_t)snprintf(text + used, size - used, "%d ", *(const int32_t *)(const void *)at);
        if (row->type == MOE_OPT_FLOAT)
            used +=
                (size_t)snprintf(text + used, size - used, "%g ", (double)*(const float *)(const void *)at);
        if (row->type == MOE_OPT_CHOICE) {
            const char *choice = *(const char *const *)(const void *)at;
            used += (size_t)snprintf(text + used, size - used, "%s ", choice ? choice : row->initial);
        }
    }
}

/* The complete descriptor of a layer. */
static void spell(const char *settings, bool backwards, char *text, size_t size) {
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_layer *layer = NULL;
    moe_layer_desc d = plain();
    set_all(&d, settings, backwards);
    if (moe_layer_create(ctx, &d, &layer) != MOE_OK) fail_msg("%s: %s", settings, moe_ctx_error(ctx));
    spell_desc(moe_layer_get_desc(layer), text, size);
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
}

/* theirs, ours */
/* clang-format off */
static const char *const same[][2] = {
    {"moe_router_load_balancing_type=aux_loss moe_aux_loss_coeff=0.01",
     "aux_loss_coeff=0.01"},
    {"model.moe_router_load_balancing_type=seq_aux_loss moe_aux_loss_coeff=0.01",
     "seq_aux_loss_coeff=0.01"},
    {"moe_router_load_balancing_type=global_aux_loss moe_aux_loss_coeff=0.01",
     "global_aux_loss_coeff=0.01"},
    {"moe_router_load_balancing_type=none moe_aux_loss_coeff=0.01",
     "moe.top_k=2"},
    {"moe_router_load_balancing_type=sinkhorn moe_aux_loss_coeff=0.01",
     "router_type=sinkhorn sinkhorn_variant=megatron"},
    {"moe_router_load_balancing_type=quantile_balancing",
     "router_type=quantile"},
    {"moe_expert_capacity_factor=1.5 moe_token_drop_policy=position",
     "capacity_factor=1.5 drop_policy=position"},
    {"moe_expert_capacity_factor=None moe_token_dropping=False",
     "capacity_factor=0"},
    {"moe_router_topk=1 moe_apply_probs_on_input=true",
     "top_k=1 weight_apply=input"},
    {"moe_router_force_load_balancing=True",
     "router_type=random"},
    {"moe_router_force_biased=-0.5 moe_router_force_load_balancing=false",
     "router_type=random force_bias_std=0.5"},
    {"moe_router_force_biased=null moe_router_force_load_balancing=true",
     "router_type=random"},
    {"moe_router_load_balancing_type=sinkhorn moe_router_force_load_balancing=false noisy_gating=false "
     "fake_balanced_gate=false",
     "router_type=sinkhorn sinkhorn_variant=megatron"},
    {"moe_shared_expert_intermediate_size=0 shared_expert_intermediate_size=0",
     "moe.top_k=2"},
    {"moe_shared_expert_intermediate_size=12 moe_layer_recompute=true",
     "num_shared_experts=1 shared_expert_hidden_size=12 recompute=layer"},
    {"moe_router_score_function=sigmoid moe_router_pre_softmax=true moe_router_enable_expert_bias=true "
     "moe_router_bias_update_rate=0.001",
     "score_function=sigmoid score_before_topk=true selection_bias=true selection_bias_update_rate=0.001"},
    {"score_func=sigmoid softmax_before_topk=true gate_bias_update_factor=0.001 train_gate=false "
     "force_e_score_correction_bias=true route_scale=2 apply_router_weight_after_down=false",
     "score_function=sigmoid score_before_topk=true selection_bias=true selection_bias_update_rate=0.001 "
     "router_frozen=true routed_scaling_factor=2 weight_apply=hidden"},
    {"gate_bias_update_factor=0.0 fake_balanced_gate=true fake_gate_noise=0.5",
     "router_type=balanced fake_noise=0.5"},
    {"n_routed_experts=4 n_activated_experts=2 moe_inter_dim=6 n_shared_experts=1 shared_expert_inter_dim=5",
     "num_experts=4 top_k=2 expert_hidden_size=6 num_shared_experts=1 shared_expert_hidden_size=5"},
    {"model_type=qwen3_moe num_experts=4 num_experts_per_tok=2 moe_intermediate_size=6 norm_topk_prob=true "
     "hidden_act=silu",
     "num_experts=4 expert_hidden_size=6 score_before_topk=true norm_topk_prob=true"},
    {"model_type=olmoe norm_topk_prob=false", "score_before_topk=true"},
    {"model_type=qwen2_moe softmax_before_topk=true", "score_before_topk=true"},
    {"model_type=mixtral", "moe.top_k=2"},
    {"model_type=deepseek_v3 norm_topk_prob=true topk_method=noaux_tc scoring_func=sigmoid",
     "score_function=sigmoid score_before_topk=true norm_topk_prob=true selection_bias=true "
     "selection_bias_update_rate=0.001"},
    {"model_type=deepseek_v3", "score_function=sigmoid score_before_topk=true selection_bias=true"},
    {"router_dtype=float32 moe_token_dispatcher_type=alltoall", "router_dtype=f32"},
    {"hidden_act=gelu num_local_experts=4 num_experts_per_tok=1 router_aux_loss_coef=0.02",
     "activation=geglu_exact num_experts=4 top_k=1 aux_loss_coeff=0.02"},
    {"topk_method=noaux_tc scoring_func=sigmoid n_group=4 topk_group=2 seq_aux=true aux_loss_alpha=0.001",
     "selection_bias=true selection_bias_update_rate=0.001 score_function=sigmoid num_groups=4 group_top_k=2 "
     "seq_aux_loss_coeff=0.001"},
    {"topk_method=group_limited_greedy n_group=4 topk_group=2",
     "group_score=max num_groups=4 group_top_k=2 score_before_topk=true"},
    {"shared_expert_intermediate_size=7",
     "num_shared_experts=1 shared_expert_hidden_size=7 shared_expert_gate=true"},
    {"router_type=gshard_top2 capacity_factor_train=1.25 second_policy_train=random second_threshold_train=0.3 "
     "loss_coef=0.01 hidden_dim=9",
     "router_type=gshard_top2 capacity_factor=1.25 second_threshold_train=0.3 gshard_loss_coeff=0.01 "
     "expert_hidden_size=9"},
    {"n_experts=6 expert_size=3 k=2 selection_mode=sigmoid expert_dropout=0.05 weight_std_scale=2 "
     "init_scheme=sigma_moe bias=true v_dim=5",
     "num_experts=6 expert_hidden_size=3 top_k=2 score_function=sigmoid score_before_topk=true "
     "expert_dropout=0.05 init_std_scale=2 init_scheme=sigma_moe expert_up_bias=true output_bias=true "
     "output_size=5"},
    {"selection_mode=sinkmoid sinkhorn_n_iters=5",
     "router_type=sinkhorn sinkhorn_variant=sigma_moe score_function=sigmoid sinkhorn_iters=5"},
    {"selection_mode=softmax",
     "score_before_topk=true"},
    {"selection_mode=softmax activation_after_topk=true",
     "moe.top_k=2"},
    {"selection_mode=sigmoid activation_after_topk=true",
     "score_function=sigmoid"},
    {"selection_mode=softmax score_before_topk=false",
     "moe.top_k=2"},
    {"topk_method=noaux_tc scoring_func=sigmoid moe_router_bias_update_rate=0",
     "score_function=sigmoid selection_bias=true"},
    {"topk_method=noaux_tc scoring_func=sigmoid",
     "selection_bias=true selection_bias_update_rate=0.001 score_function=sigmoid"},
    {"topk_method=noaux_tc scoring_func=sigmoid moe_router_bias_update_rate=0.01",
     "score_function=sigmoid selection_bias=true selection_bias_update_rate=0.01"},
    {"score_func=sigmoid_with_bias gate_bias_update_factor=0.001 gate_precision=torch.float32",
     "score_function=sigmoid score_before_topk=true selection_bias=true selection_bias_update_rate=0.001 "
     "router_dtype=f32"},
    {"score_func=softmax_with_bias gate_precision=float64",
     "score_before_topk=true selection_bias=true router_dtype=f64"},
    {"moe_z_loss_coeff=null moe_router_dtype=null moe_router_topk_scaling_factor=null moe_aux_loss_coeff=null "
     "moe_router_num_groups=null moe_router_group_topk=null moe_input_jitter_eps=null v_dim=null "
     "moe_latent_size=null",
     "moe.top_k=2"},
    {"activation_func_clamp_value=null", "activation_limit=-1"},
    {"enable_routing_replay=false moe_enable_routing_replay=False mlp_only_layers=[] decoder_sparse_step=1 "
     "expert_tensor_parallel_size=1 moe_router_fusion=true moe_shared_expert_overlap=false "
     "moe_use_upcycling=false router_weights_fp32=true ignore_router_for_ac=false frozen_expert_bias=false",
     "moe.top_k=2"},
    {"noisy_gating=true moe_k=3",
     "router_type=noisy_top_k top_k=3"},
    {"gate_bias_update_factor=0 topk_method=noaux_tc scoring_func=sigmoid",
     "selection_bias=true score_function=sigmoid"},
    {"force_e_score_correction_bias=false score_func=sigmoid_with_bias",
     "selection_bias=true score_function=sigmoid score_before_topk=true"},
    {"moe_router_force_load_balancing=false moe_router_force_biased=0",
     "router_type=random"},
    {"moe_router_load_balancing_type=aux_loss router_type=sinkhorn sinkhorn_variant=megatron",
     "router_type=sinkhorn sinkhorn_variant=megatron"},
};
/* clang-format on */

static void names_and_values_mean_ours(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof same / sizeof *same; ++i) {
        char theirs[4096], backwards[4096], ours[4096];
        spell(same[i][0], false, theirs, sizeof theirs);
        spell(same[i][0], true, backwards, sizeof backwards);
        spell(same[i][1], false, ours, sizeof ours);
        if (strcmp(theirs, ours) != 0) fail_msg("%s:\n%s\n%s", same[i][0], theirs, ours);
        if (strcmp(backwards, ours) != 0) fail_msg("%s, backwards:\n%s\n%s", same[i][0], backwards, ours);
    }
}

static void refused(const char *key, const char *value, const char *words) {
    moe_layer_desc d = plain(), before = d;
    moe_error error;
    assert_int_equal(moe_layer_desc_set(&d, key, value, &error), MOE_ERR_ARGUMENT);
    if (!strstr(error.text, key) || !strstr(error.text, words))
        fail_msg("'%s' lacks '%s' or '%s'", error.text, key, words);
    assert_memory_equal(&d, &before, sizeof d);
}

static void what_has_no_equivalent_is_explained(void **state) {
    (void)state;
    refused("moe_token_dropping", "true", "set capacity_factor");
    refused("intermediate_size", "64", "moe_intermediate_size");
    refused("model_type", "mystery", "qwen3_moe");
    refused("model_type", "gpt_oss", "set activation swigluoai");
    refused("perplexity_reg", "0.1", "entropy_loss_coeff");
    refused("moe_grouped_gemm", "false", "NeMo");
    refused("mlp_only_layers", "[1]", "the whole model, not of a layer: set model.dense_layers");
    refused("first_k_dense_replace", "2", "model.dense_layers");
    refused("moe_group_size", "1024", "capacity_group");
    refused("moe_token_dropping", "true", "moe_token_dropping (NeMo) cannot be 'true' here; set");
    refused("moe_router_load_balancing_type", "aux_loss,seq_aux_loss",
            "set aux_loss_coeff, seq_aux_loss_coeff");
    refused("moe_aux_loss_coeff", "0.01,0.02", "each loss has its own");
    refused("expert_tensor_parallel_size", "2", "one machine");
    refused("moe_router_topk_limited_devices", "2", "group_top_k");
    refused("enable_routing_replay", "true", "--record-routes");
    refused("decoder_sparse_step", "2", "moe_layer_freq");
    refused("moe_overhead_eval", "2", "capacity_factor_eval");
    refused("activation_func", "silu", "swiglu");
    refused("moe_router_force_biased", "0.5", "drawn anew at every call");
    refused("moe_router_load_balancing_type", "mystery",
            "is not one of: aux_loss, seq_aux_loss, global_aux_loss, none, sinkhorn, quantile_balancing");
    refused("hidden_act", "tanh", "is not one of: silu");
}

static void a_coefficient_cannot_go_where_one_is(void **state) {
    (void)state;
    moe_layer_desc d = plain();
    moe_error error;
    set_all(&d, "aux_loss_type=sequence", false);
    assert_int_equal(moe_layer_desc_check(&d, &error), MOE_ERR_ARGUMENT);
    assert_non_null(strstr(error.text, "needs aux_loss_coeff"));
    set_all(&d, "aux_loss_coeff=0.1 seq_aux_loss_coeff=0.2", false);
    assert_int_equal(moe_layer_desc_check(&d, &error), MOE_ERR_ARGUMENT);
    assert_non_null(strstr(error.text, "set one of the two"));
}

static void a_section_changes_no_name(void **state) {
    (void)state;
    moe_layer_desc d = plain();
    moe_error error;
    assert_int_equal(moe_layer_desc_set(&d, "moe.k", "3", &error), MOE_OK);
    assert_int_equal(d.top_k, 3);
    assert_int_equal(moe_layer_desc_set(&d, "moe.hidden_act", "gelu", &error), MOE_OK);
    assert_string_equal(d.activation, "geglu_exact");
    assert_string_equal(moe_layer_alias_named("moe.hidden_act")->system, "Hugging Face");
    assert_null(moe_layer_alias_named("top_k"));
}

static bool takes(const moe_option *row, const char *value) {
    for (const char *const *choice = row->choices; choice && *choice; ++choice)
        if (strcmp(*choice, value) == 0) return true;
    return false;
}

/* Every entry names rows of ours, and values they take; what it implies, it does wherever or in one's place.
 */
static void the_table_is_right(void **state) {
    (void)state;
    const moe_layer_alias *alias;
    const moe_alias_setting *setting;
    for (size_t i = 0; (alias = moe_layer_alias_at(i)); ++i) {
        moe_layer_desc d = plain();
        moe_error error;
        for (size_t j = 0; (setting = moe_layer_alias_setting(alias, j)); ++j) {
            const moe_option *row = moe_layer_option_find(setting->key);
            assert_non_null(row);
            assert_true(!setting->where || strcmp(setting->where, "unset") == 0 ||
                        takes(row, setting->where));
        }
        const moe_status right = alias->advice ? MOE_ERR_ARGUMENT : MOE_OK;
        if (moe_layer_desc_set(&d, alias->name, alias_sample(alias), &error) != right)
            fail_msg("%s %s: %s", alias->name, alias_sample(alias), error.text);
    }
}

/* A file, then a command line that says otherwise: as if the file had said so. */
static void the_last_value_counts(void **state) {
    (void)state;
    const moe_layer_alias *first, *second;
    int pairs = 0;
    for (size_t i = 0; (first = moe_layer_alias_at(i)); ++i)
        for (size_t j = 0; (second = moe_layer_alias_at(j)); ++j) {
            if (strcmp(first->name, second->name) != 0 || first->advice || second->advice) continue;
            moe_layer_desc both = plain(), alone = plain();
            char got[4096], want[4096];
            assert_int_equal(moe_layer_desc_set(&both, first->name, alias_sample(first), NULL), MOE_OK);
            assert_int_equal(moe_layer_desc_set(&both, first->name, alias_sample(second), NULL), MOE_OK);
            assert_int_equal(moe_layer_desc_set(&alone, first->name, alias_sample(second), NULL), MOE_OK);
            spell_desc(&both, got, sizeof got);
            spell_desc(&alone, want, sizeof want);
            if (strcmp(got, want) != 0)
                fail_msg("%s %s, then %s:\n%s\n%s", first->name, alias_sample(first), alias_sample(second),
                         got, want);
            ++pairs;
        }
    assert_true(pairs > 100);
}

/* What a name says is gone when it says something else, unless another has said the same. */
static void a_name_takes_back_its_own(void **state) {
    (void)state;
    moe_layer_desc d = plain(), before;
    set_all(&d, "score_func=sigmoid_with_bias score_func=softmax", false);
    assert_true(!d.selection_bias && !d.score_before_topk);
    set_all(&d, "moe_router_force_load_balancing=true moe_router_force_biased=-0.5", false);
    set_all(&d, "moe_router_force_load_balancing=false", false);
    assert_string_equal(d.router_type, "random");
    set_all(&d, "fake_balanced_gate=true router_type=hash fake_balanced_gate=false", false);
    assert_string_equal(d.router_type, "hash");
    before = d;
    assert_int_equal(moe_layer_desc_set(&d, "gate_bias_update_factor", "fast", NULL), MOE_ERR_ARGUMENT);
    assert_memory_equal(&d, &before, sizeof d);
}

static bool nobody_spoke(const moe_layer_desc *desc) {
    static const uint8_t nobody[sizeof desc->said];
    return memcmp(desc->said, nobody, sizeof nobody) == 0;
}

/* Presets and what a caller has moe_layer_desc_forget are nobody's word and yield to what a name implies; a
 * field that C wrote does not. A descriptor of an older header, which ends before `said`, is written no
 * further. */
static void words_are_remembered(void **state) {
    (void)state;
    moe_layer_desc d = plain(), older = plain();
    set_all(&d, "activation_after_topk=true", false);
    assert_false(nobody_spoke(&d));
    assert_int_equal(moe_layer_desc_preset(&d, "mixtral", NULL), MOE_OK);
    set_all(&d, "selection_mode=softmax", false);
    assert_true(d.score_before_topk);
    set_all(&d, "topk_method=noaux_tc", false);
    assert_true(d.aux_loss_coeff == 0);
    d = plain();
    d.aux_loss_coeff = 0.5f;
    d.z_loss_coeff = 0.25f;
    set_all(&d, "topk_method=noaux_tc", false);
    assert_true(d.aux_loss_coeff == 0.5f && d.z_loss_coeff == 0.25f);
    moe_layer_desc_forget(&d);
    set_all(&d, "z_loss_coeff=0.25 topk_method=noaux_tc", false);
    assert_true(d.aux_loss_coeff == 0 && d.z_loss_coeff == 0.25f);
    older.size = offsetof(moe_layer_desc, said);
    set_all(&older, "activation_after_topk=true", false);
    assert_int_equal(moe_layer_desc_preset(&older, "mixtral", NULL), MOE_OK);
    moe_layer_desc_forget(&older);
    assert_true(nobody_spoke(&older));
}

/* Bare, or in the section of ours or theirs; elsewhere such a name is a mistake. */
static void a_name_stands_in_its_section(void **state) {
    (void)state;
    static const char *const good[] = {"noisy_gating", "moe.noisy_gating", "model.noisy_gating"};
    static const char *const bad[] = {"nonsense.bias", "optimizer.bias", "data.noisy_gating",
                                      "data.moe.noisy_gating"};
    moe_layer_desc d = plain();
    moe_error error;
    for (int i = 0; i < 3; ++i) assert_int_equal(moe_layer_desc_set(&d, good[i], "true", &error), MOE_OK);
    for (int i = 0; i < 4; ++i) {
        assert_int_equal(moe_layer_desc_set(&d, bad[i], "true", &error), MOE_ERR_ARGUMENT);
        assert_non_null(strstr(error.text, "unknown option"));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_and_values_mean_ours),
        cmocka_unit_test(what_has_no_equivalent_is_explained),
        cmocka_unit_test(a_coefficient_cannot_go_where_one_is),
        cmocka_unit_test(a_section_changes_no_name),
        cmocka_unit_test(the_table_is_right),
        cmocka_unit_test(the_last_value_counts),
        cmocka_unit_test(a_name_takes_back_its_own),
        cmocka_unit_test(words_are_remembered),
        cmocka_unit_test(a_name_stands_in_its_section),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
