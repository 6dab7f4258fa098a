/* test_other_names.c: settings of other systems in a configuration: what they set, whom they yield to, and
 * whose word counts from one level to the next. Source: docs/options.md.
 */
#define _XOPEN_SOURCE 700 /* nftw */
#include "unit/config/config_fixture.h"

/* One setting of theirs may be several of ours; two may say the same of one. */
static void test_settings_of_other_systems(void **state) {
    moe_lm_config *config = make();
    moe_error error;
    assert_ok(load_text(state, config,
                        "model:\n"
                        "  moe_router_load_balancing_type: seq_aux_loss\n"
                        "  moe_aux_loss_coeff: 0.02\n"
                        "  moe_shared_expert_intermediate_size: 48\n"
                        "force_e_score_correction_bias: true\n"
                        "gate_bias_update_factor: 0.001\n"
                        "score_func: sigmoid\n",
                        &error),
              &error);
    assert_string_equal(value_of(config, "moe.aux_loss_type"), "sequence");
    assert_string_equal(value_of(config, "moe.num_shared_experts"), "1");
    assert_string_equal(value_of(config, "moe.shared_expert_hidden_size"), "48");
    assert_string_equal(value_of(config, "moe.selection_bias"), "true");
    assert_string_equal(value_of(config, "moe.selection_bias_update_rate"), "0.001");
    assert_ok(moe_lm_config_check(config, &error), &error);
    assert_int_equal(load_text(state, config, "moe.router_type: hash\nnoisy_gating: true\n", &error),
                     MOE_ERR_ARGUMENT);
    assert_non_null(strstr(error.text, ":2:"));
    assert_non_null(
        strstr(error.text, "noisy_gating sets moe.router_type, which moe.router_type of line 1 has"));
    assert_int_equal(load_text(state, config, "moe_grouped_gemm: false\n", &error), MOE_ERR_ARGUMENT);
    assert_non_null(strstr(error.text, "leave it out"));
    moe_lm_config_destroy(config);
}

/* What a name implies overrides defaults and presets, and nothing that was said, at whatever level. */
static void test_what_was_said_stays(void **state) {
    static const char *const said[][2] = {
        {"moe.selection_bias_update_rate", "0.01" },
        {"moe.z_loss_coeff",               "0.002"}
    };
    moe_layer_desc layer = {.size = sizeof layer};
    moe_error error;
    for (int after = 0; after < 2; ++after) {
        moe_lm_config *config = make();
        if (after) assert_ok(load_text(state, config, "topk_method: noaux_tc\n", &error), &error);
        for (size_t i = 0; i < sizeof said / sizeof *said; ++i) {
            assert_ok(moe_lm_config_set(config, said[i][0], said[i][1], "test", &error), &error);
            assert_ok(moe_layer_desc_set(&layer, said[i][0], said[i][1], &error), &error);
        }
        if (!after) assert_ok(load_text(state, config, "topk_method: noaux_tc\n", &error), &error);
        assert_ok(moe_layer_desc_set(&layer, "topk_method", "noaux_tc", &error), &error);
        assert_string_equal(value_of(config, "moe.aux_loss_coeff"), "0");
        assert_non_null(strstr(origin_of(config, "moe.aux_loss_coeff"), ":1"));
        for (size_t i = 0; i < sizeof said / sizeof *said; ++i) {
            assert_string_equal(value_of(config, said[i][0]), said[i][1]);
            assert_string_equal(origin_of(config, said[i][0]), "test");
        }
        assert_true(layer.selection_bias_update_rate == config->moe.selection_bias_update_rate);
        assert_true(layer.z_loss_coeff == config->moe.z_loss_coeff);
        moe_lm_config_destroy(config);
    }
}

/* A later level takes back what the same name said at an earlier one, and no more. */
static void test_a_name_is_said_again(void **state) {
    moe_lm_config *config = make();
    moe_error error;
    assert_ok(load_text(state, config,
                        "moe_router_load_balancing_type: sinkhorn\n"
                        "model.score_func: sigmoid_with_bias\n",
                        &error),
              &error);
    assert_string_equal(value_of(config, "moe.router_type"), "sinkhorn");
    assert_ok(moe_lm_config_set(config, "moe_router_load_balancing_type", "aux_loss", "test", &error),
              &error);
    assert_ok(moe_lm_config_set(config, "score_func", "softmax", "test", &error), &error);
    assert_string_equal(value_of(config, "moe.router_type"), "top_k");
    assert_string_equal(origin_of(config, "moe.router_type"), "test");
    assert_string_equal(value_of(config, "moe.sinkhorn_variant"), "standard");
    assert_string_equal(value_of(config, "moe.selection_bias"), "false");
    assert_string_equal(value_of(config, "moe.score_function"), "softmax");
    moe_lm_config_destroy(config);
}

/* All that a file says and nobody understands is told at once, and nothing of the file is kept. */
static void test_every_refused_key_is_named(void **state) {
    moe_lm_config *config = make();
    moe_error error;
    char text[8192] = "moe:\n  num_experts: 4\n  preset: mystery\n";
    assert_int_equal(
        load_text(state, config,
                  "top_k: 1\narchitectures: x\nvocab: 3\nmoe:\n  top_k: many\nhidden_act: silu\n", &error),
        MOE_ERR_ARGUMENT);
    assert_non_null(strstr(error.text, ":2:16: unknown key 'architectures'"));
    assert_non_null(strstr(error.text, "; refused too: vocab (line 3), moe.top_k (line 5)"));
    assert_string_equal(origin_of(config, "moe.top_k"), "default");
    for (int i = 0; i < 100; ++i) snprintf(text + strlen(text), 64, "a_key_of_nobody_%d: 1\n", i);
    assert_int_equal(load_text(state, config, text, &error), MOE_ERR_ARGUMENT);
    assert_non_null(strstr(error.text, "'mystery'"));
    assert_non_null(strstr(error.text, "a_key_of_nobody_0 (line 4)"));
    int named = 0, more = 0;
    for (const char *at = error.text; (at = strstr(at, "(line ")); ++at) ++named;
    const char *rest = strstr(error.text, ") and ");
    assert_non_null(rest);
    assert_int_equal(sscanf(rest, ") and %d more", &more), 1);
    assert_int_equal(named + more, 100);
    moe_lm_config_destroy(config);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_settings_of_other_systems, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_what_was_said_stays, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_a_name_is_said_again, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_every_refused_key_is_named, scratch_setup, scratch_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
