/* test_layers.c: which layers have experts: moe_layer_freq, moe_layer_offset, dense_layers.
 * Six layers, '1' one with experts. Source: docs/options.md.
 */
#define _XOPEN_SOURCE 700 /* nftw */

#include "unit/config/config_fixture.h"

/* Layers with experts begin anywhere, and some may be left out; what is said of experts counts all the same.
 */
static void test_layers_with_experts(void **state) {
    (void)state;
    static const struct {
        const char *freq, *offset, *dense, *routed;
    } cases[] = {
        {"1", "0", "",      "111111"},
        {"2", "0", "",      "101010"},
        {"2", "1", "",      "010101"},
        {"3", "2", "",      "001001"},
        {"1", "0", "0,1,5", "001110"},
        {"2", "1", "3",     "010001"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
        moe_lm_config *config = make();
        moe_error error;
        assert_ok(moe_lm_config_set(config, "model.n_layers", "6", "x", &error), &error);
        assert_ok(moe_lm_config_set(config, "model.moe_layer_freq", cases[i].freq, "x", &error), &error);
        assert_ok(moe_lm_config_set(config, "model.moe_layer_offset", cases[i].offset, "x", &error), &error);
        assert_ok(moe_lm_config_set(config, "model.dense_layers", cases[i].dense, "x", &error), &error);
        assert_ok(moe_lm_config_set(config, "moe.router_type", "expert_choice", "x", &error), &error);
        assert_ok(moe_lm_config_check(config, &error), &error);
        assert_non_null(moe_lm_config_foresight(config));
        for (int32_t l = 0; l < 6; ++l) {
            moe_layer_desc desc;
            moelm_config_layer(config, l, &desc);
            if ((desc.num_experts > 0) != (cases[i].routed[l] == '1'))
                fail_msg("%s: layer %d has %d experts", cases[i].routed, l, desc.num_experts);
        }
        assert_ok(moe_lm_config_make_dense(config, "x", &error), &error);
        assert_ok(moe_lm_config_check(config, &error), &error);
        moe_lm_config_destroy(config);
    }
}

/* As Hugging Face's configurations say it, by whatever section; six layers. */
static void test_other_names_of_layers(void **state) {
    static const struct {
        const char *text, *freq, *offset, *dense, *words; /* words: of the refusal; NULL: accepted */
    } cases[] = {
        {"mlp_only_layers: [0, 3]",                            "1",  "0",  "0,3",   NULL                              },
        {"model: {mlp_only_layers: [5]}",                      "1",  "0",  "5",     NULL                              },
        {"mlp_only_layers: []",                                "1",  "0",  "",      NULL                              },
        {"mlp_only_layers: null\ndecoder_sparse_step: null",   "1",  "0",  "",      NULL                              },
        {"decoder_sparse_step: 2",                             "2",  "1",  "",      NULL                              },
        {"model.decoder_sparse_step: 3\nmlp_only_layers: [2]", "3",  "2",  "2",     NULL                              },
        {"first_k_dense_replace: 3",                           "1",  "0",  "0,1,2", NULL                              },
        {"first_k_dense_replace: 0",                           "1",  "0",  "",      NULL                              },
        {"decoder_sparse_step: 0",                             NULL, NULL, NULL,    "'0' is not a whole number in 1"  },
        {"first_k_dense_replace: -1",                          NULL, NULL, NULL,    "'-1' is not a whole number"      },
        {"first_k_dense_replace: 4096",                        NULL, NULL, NULL,    "does not fit model.dense_layers" },
        {"first_k_dense_replace: 1\nmlp_only_layers: [0, 3]",  NULL, NULL, NULL,
         "mlp_only_layers sets model.dense_layers, which"                                                             },
        {"decoder_sparse_step: 2\nmoe_layer_freq: 3",          NULL, NULL, NULL,    "sets model.moe_layer_freq, which"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
        moe_lm_config *config = make();
        moe_error error;
        assert_ok(moe_lm_config_set(config, "model.n_layers", "6", "x", &error), &error);
        if (cases[i].words) {
            assert_fails(load_text(state, config, cases[i].text, &error), MOE_ERR_ARGUMENT, &error,
                         cases[i].words);
            assert_string_equal(origin_of(config, "model.dense_layers"), "default");
        } else {
            assert_ok(load_text(state, config, cases[i].text, &error), &error);
            assert_ok(moe_lm_config_check(config, &error), &error);
            assert_string_equal(value_of(config, "model.moe_layer_freq"), cases[i].freq);
            assert_string_equal(value_of(config, "model.moe_layer_offset"), cases[i].offset);
            assert_string_equal(value_of(config, "model.dense_layers"), cases[i].dense);
        }
        moe_lm_config_destroy(config);
    }
}

/* Settings that say nothing, or nothing that can be. */
static void test_wrong_layers(void **state) {
    static const struct {
        const char *pairs[5], *words; /* NULL: accepted */
    } cases[] = {
        {{"moe_layer_freq", "0", "model.moe_layer_offset", "1"}, "model.moe_layer_freq: 0 leaves no"                 },
        {{"moe_layer_freq", "0", "model.dense_layers", "1"},     "model.moe_layer_freq: 0 leaves no"                 },
        {{"moe_layer_freq", "2", "model.moe_layer_offset", "2"}, "2 must be below model.moe_layer_freq"              },
        {{"moe_layer_freq", "2", "model.moe_layer_offset", "1"}, NULL                                                },
        {{"model.dense_layers", "0,3"},                          NULL                                                },
        {{"model.dense_layers", "0,4"},                          "'0,4' names a layer outside 0 .. 3"                },
        {{"model.dense_layers", "99999999999999999999"},         "names a layer outside 0 .. 3"                      },
        {{"model.dense_layers", "0,,3"},                         "'0,,3' is no list of layers"                       },
        {{"model.dense_layers", "0, 3"},                         "'0, 3' is no list of layers, as 0,3 without blanks"},
        {{"model.dense_layers", "0,"},                           "'0,' is no list of layers"                         },
        {{"model.dense_layers", "-1"},                           "'-1' is no list of layers"                         },
        {{"model.dense_layers", "0,1,2,3"},                      "leaves none of 4 layers with experts"              },
        {{"model.dense_layers", "0", "expert_hidden_size", "0"}, "model.ffn_hidden_size: 0"                          },
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) expect_refusal(cases[i].pairs, cases[i].words);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layers_with_experts),
        cmocka_unit_test_setup_teardown(test_other_names_of_layers, scratch_setup, scratch_teardown),
        cmocka_unit_test(test_wrong_layers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
