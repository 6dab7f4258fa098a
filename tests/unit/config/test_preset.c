/* test_preset.c: moe.preset at every level: before the other keys of its level, after all of earlier levels;
 * and alarms and routing units that a language model cannot have are refused with the reason.
 */
#define _XOPEN_SOURCE 700 /* nftw, setenv */
#include "unit/config/config_fixture.h"

static void load(void **state, moe_lm_config *config, const char *text) {
    moe_error error;
    assert_ok(load_text(state, config, text, &error), &error);
}

static void set(moe_lm_config *config, const char *key, const char *value) {
    moe_error error;
    assert_ok(moe_lm_config_set(config, key, value, "test", &error), &error);
}

/* A preset looks at num_groups_outer, whichever comes first and whoever says it. */
static void test_final_sizes(void **state) {
    static const char *const files[] = {
        "moe: {num_groups_outer: 2, num_experts: 8, preset: t2t_top2}\n",
        "moe: {preset: t2t_top2, num_experts: 8, num_groups_outer: 2}\n",
    };
    for (size_t i = 0; i < sizeof files / sizeof *files; ++i) {
        moe_lm_config *config = make();
        load(state, config, files[i]);
        assert_string_equal(value_of(config, "moe.capacity_factor_inner"), "1");
        assert_non_null(strstr(origin_of(config, "moe.capacity_factor_inner"), "preset t2t_top2"));
        set(config, "num_groups_outer", "0");
        assert_string_equal(value_of(config, "moe.shared_expert_activation"), "");
        assert_ptr_not_equal(config->moe.shared_expert_activation, NULL);
        moe_error error;
        assert_ok(moe_lm_config_check(config, &error), &error);
        assert_string_equal(value_of(config, "moe.capacity_factor_inner"), "0");
        assert_string_equal(value_of(config, "moe.capacity_factor"), "1.25");
        set(config, "moe.capacity_factor_inner", "1.5");
        set(config, "moe.num_groups_outer", "2");
        assert_string_equal(value_of(config, "moe.capacity_factor_inner"), "1.5"); /* the user's stays */
        moe_lm_config_destroy(config);
    }
}

/* Wherever it stands in a file, the file's other keys override it, and it overrides earlier files. */
static void test_levels(void **state) {
    moe_lm_config *config = make();
    load(state, config, "moe: {aux_loss_coeff: 0.5, num_experts: 16, init_std: 0.3, capacity_factor: 1.5}\n");
    load(state, config,
         "moe:\n  routed_scaling_factor: 7\n  norm_topk_prob: false\n  preset: deepseek_v3\n  top_k: 4\n");
    assert_string_equal(value_of(config, "moe.preset"), "deepseek_v3");
    assert_string_equal(value_of(config, "moe.score_function"), "sigmoid");
    assert_string_equal(value_of(config, "moe.num_groups"), "8");
    assert_string_equal(value_of(config, "moe.routed_scaling_factor"), "7"); /* the same file's */
    assert_string_equal(value_of(config, "moe.norm_topk_prob"), "false");
    assert_string_equal(value_of(config, "moe.aux_loss_coeff"), "0"); /* DeepSeek-V3 has none */
    assert_string_equal(value_of(config, "moe.z_loss_coeff"), "0");   /* nor the model's default */
    assert_string_equal(value_of(config, "moe.capacity_factor"), "0");
    assert_string_equal(value_of(config, "moe.num_experts"), "16"); /* sizes stay */
    assert_string_equal(value_of(config, "moe.init_std"), "0.3");
    assert_string_equal(value_of(config, "moe.top_k"), "4");
    assert_non_null(strstr(origin_of(config, "moe.score_function"), "c.yaml:4, preset deepseek_v3"));
    assert_non_null(strstr(origin_of(config, "moe.top_k"), "c.yaml:5"));
    setenv("MOEKIT_MOE_PRESET", "lucidrains", 1);
    setenv("MOEKIT_MOE_CAPACITY_FACTOR", "3", 1);
    moe_error error;
    assert_ok(moe_lm_config_environment(config, &error), &error);
    unsetenv("MOEKIT_MOE_PRESET");
    unsetenv("MOEKIT_MOE_CAPACITY_FACTOR");
    assert_string_equal(value_of(config, "moe.router_type"), "gshard_top2");
    assert_string_equal(value_of(config, "moe.capacity_factor"), "3");
    assert_string_equal(value_of(config, "moe.num_groups"), "0");
    assert_string_equal(value_of(config, "moe.routed_scaling_factor"), "1");
    moe_lm_config_destroy(config);
}

static void test_unknown(void **state) {
    (void)state;
    moe_lm_config *config = make();
    moe_error error;
    assert_fails(moe_lm_config_set(config, "moe.preset", "mixtrel", "test", &error), MOE_ERR_ARGUMENT, &error,
                 "is not one of: mixtral, deepseek_v3");
    assert_string_equal(value_of(config, "moe.preset"), "");
    assert_string_equal(value_of(config, "moe.aux_loss_coeff"), "0.01"); /* nothing moved */
    set(config, "moe.preset", "");                                       /* YAML's null */
    assert_string_equal(value_of(config, "moe.aux_loss_coeff"), "0.01");
    moe_lm_config_destroy(config);
}

/* A configuration written whole reads back as itself, with every preset, and passes. */
static void test_written_and_read(void **state) {
    char *path = scratch_path(state, "resolved.yaml");
    for (const char *const *name = moe_layer_presets(); *name; ++name) {
        moe_lm_config *config = make(), *back = make();
        moe_error error;
        set(config, "moe.preset", *name);
        set(config, "moe.z_loss_coeff", "0.125");
        assert_ok(moe_lm_config_check(config, &error), &error);
        assert_ok(moe_lm_config_save(config, path, &error), &error);
        assert_ok(moe_lm_config_load(back, path, &error), &error);
        for (size_t i = 0; i < moe_lm_config_count(config); ++i) {
            moe_lm_config_entry p, q;
            moe_lm_config_entry_get(config, i, &p);
            moe_lm_config_entry_get(back, i, &q);
            if (strcmp(p.value, q.value) != 0)
                fail_msg("%s: %s: %s, then %s", *name, p.option->key, p.value, q.value);
        }
        moe_lm_config_destroy(config);
        moe_lm_config_destroy(back);
    }
    free(path);
}

static void test_refusals(void **state) {
    (void)state;
    /* clang-format off */
    static const struct {
        const char *pair[6], *words;
    } cases[] = {
        {{"moe.routing_unit", "sequence"}, "yet to be predicted"},
        {{"moe.routing_unit", "task", "moe.num_tasks", "2"}, "a text has no tasks"},
        {{"moe.num_groups", "3", "moe.group_top_k", "1"},
         "moe.num_groups: 3 groups do not divide num_experts 8"},
        {{"moe.noise_epsilon", "0.5"}, "moe.noise_epsilon: needs router_type noisy_top_k"},
        {{"train.alarm_action", "stop"}, "train.alarm_action: needs"},
        {{"train.alarm_steps", "3"}, "train.alarm_steps: needs"},
        {{"train.alarm_dropped", "0.1"}, "needs moe.capacity_factor"},
        {{"train.alarm_entropy", "0.1", "train.alarm_action", "revive"},
         "revive needs train.alarm_dead_steps"},
        {{"train.alarm_dead_steps", "5", "model.moe_layer_freq", "0"}, "no routed experts to watch"},
        {{"train.alarm_dead_steps", "5", "train.alarm_action", "revive", "moe.router_frozen", "true"},
         "moe.router_frozen"},
        {{"train.alarm_dead_steps", "5", "train.alarm_action", "revive", "moe.router_type", "hash"},
         "the expert would stay dead"},
        {{"train.alarm_dead_steps", "5", "train.alarm_action", "revive", "moe.expert", "identity"},
         "have nothing to copy"},
        {{"train.alarm_dead_steps", "5", "train.alarm_action", "revive", "moe.expert_kinds", "4,4"},
         "moe.expert_kinds"},
        {{"train.alarm_dead_steps", "5", "train.alarm_action", "revive", "moe.num_groups_outer", "2"},
         "one level"},
    };
    /* clang-format on */
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
        moe_lm_config *config = make();
        moe_error error;
        for (size_t p = 0; p < 6 && cases[i].pair[p]; p += 2)
            set(config, cases[i].pair[p], cases[i].pair[p + 1]);
        assert_fails(moe_lm_config_check(config, &error), MOE_ERR_ARGUMENT, &error, cases[i].words);
        moe_lm_config_destroy(config);
    }
}

/* What lets later tokens decide on earlier ones is named, and what does not is not. */
static void test_foresight(void **state) {
    (void)state;
    static const struct {
        const char *pairs[7], *words;
    } cases[] = {
        {{NULL},                                                            NULL                           },
        {{"moe.router_type", "expert_choice"},                              "moe.router_type expert_choice"},
        {{"moe.capacity_factor", "1.25"},                                   "moe.drop_policy probs"        },
        {{"moe.capacity_factor_eval", "2"},                                 "moe.drop_policy probs"        },
        {{"moe.capacity_factor", "1.25", "moe.drop_policy", "rank_major"},  "moe.drop_policy rank_major"   },
        {{"moe.capacity_factor", "1.25", "moe.drop_policy", "position"},    NULL                           },
        {{"moe.capacity_factor", "1.25", "moe.capacity_factor_eval", "-1"}, NULL                           },
        {{"moe.router_type", "sinkhorn", "moe.top_k", "1"},                 NULL                           },
        {{"moe.token_rounding", "4"},                                       NULL                           },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
        moe_lm_config *config;
        moe_error error;
        assert_ok(moe_lm_config_create(&config, &error), &error);
        for (const char *const *p = cases[i].pairs; *p; p += 2)
            assert_ok(moe_lm_config_set(config, p[0], p[1], "test", &error), &error);
        assert_ok(moe_lm_config_check(config, &error), &error);
        const char *found = moe_lm_config_foresight(config);
        if (!found != !cases[i].words || (found && !strstr(found, cases[i].words)))
            fail_msg("case %zu: %s", i, found ? found : "nothing");
        assert_ok(moe_lm_config_make_dense(config, "test", &error), &error);
        assert_null(moe_lm_config_foresight(config));
        moe_lm_config_destroy(config);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_final_sizes, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_levels, scratch_setup, scratch_teardown),
        cmocka_unit_test(test_unknown),
        cmocka_unit_test_setup_teardown(test_written_and_read, scratch_setup, scratch_teardown),
        cmocka_unit_test(test_foresight),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
