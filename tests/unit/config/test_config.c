/* test_config.c: settings by every name they have, their precedence, their limits, and YAML both ways.
 * Every row of the tables of options is set, printed and read back.
 * Source: moekit/lm.h; docs/options.md.
 */
#define _XOPEN_SOURCE 700 /* nftw, setenv */
#include "unit/config/config_fixture.h"

#include <math.h>
#include <time.h>

static void test_defaults_are_valid(void **state) {
    (void)state;
    moe_lm_config *config = make();
    moe_error error;
    assert_ok(moe_lm_config_check(config, &error), &error);
    for (size_t i = 0; i < moe_lm_config_count(config); ++i) {
        moe_lm_config_entry entry;
        moe_lm_config_entry_get(config, i, &entry);
        assert_string_equal(entry.origin, "default");
        assert_true(strlen(entry.option->help) > 10);
        /* the default reads back as itself */
        assert_ok(moe_lm_config_set(config, entry.option->key, entry.option->initial, "x", &error), &error);
        assert_string_equal(value_of(config, entry.option->key), entry.value);
    }
    moe_lm_config_destroy(config);
}

/* Names of other systems whose meaning is the same. */
static const struct {
    const char *name, *key, *value;
} foreign[] = {
    {"num_moe_experts",                     "moe.num_experts",           "4"       }, /* NeMo, Megatron */
    {"moe_router_topk",                     "moe.top_k",                 "3"       },
    {"moe_aux_loss_coeff",                  "moe.aux_loss_coeff",        "0.5"     },
    {"moe_z_loss_coeff",                    "moe.z_loss_coeff",          "0.25"    },
    {"moe_input_jitter_eps",                "moe.input_jitter_eps",      "0.125"   },
    {"moe_ffn_hidden_size",                 "moe.expert_hidden_size",    "48"      },
    {"moe_expert_capacity_factor",          "moe.capacity_factor",       "1.5"     },
    {"moe_token_drop_policy",               "moe.drop_policy",           "position"},
    {"moe_router_pre_softmax",              "moe.score_before_topk",     "true"    },
    {"moe_router_score_function",           "moe.score_function",        "softmax" },
    {"moe_router_topk_scaling_factor",      "moe.routed_scaling_factor", "2"       },
    {"moe_layer_freq",                      "model.moe_layer_freq",      "2"       },
    {"num_layers",                          "model.n_layers",            "3"       },
    {"hidden_size",                         "model.d_model",             "96"      },
    {"ffn_hidden_size",                     "model.ffn_hidden_size",     "80"      },
    {"num_attention_heads",                 "model.n_heads",             "6"       },
    {"num_query_groups",                    "model.n_kv_heads",          "2"       },
    {"kv_channels",                         "model.head_dim",            "20"      },
    {"rotary_base",                         "model.rope_base",           "500"     },
    {"layernorm_epsilon",                   "model.norm_eps",            "0.001"   },
    {"qk_layernorm",                        "model.qk_norm",             "head"    },
    {"init_method_std",                     "model.init_std",            "0.5"     },
    {"share_embeddings_and_output_weights", "model.tie_embeddings",      "true"    },
    {"micro_batch_size",                    "train.batch_size",          "5"       },
    {"max_steps",                           "train.steps",               "7"       },
    {"n_routed_experts",                    "moe.num_experts",           "4"       }, /* Automodel */
    {"n_activated_experts",                 "moe.top_k",                 "3"       },
    {"moe_inter_dim",                       "moe.expert_hidden_size",    "48"      },
    {"n_shared_experts",                    "moe.num_shared_experts",    "2"       },
    {"softmax_before_topk",                 "moe.score_before_topk",     "true"    },
    {"num_local_experts",                   "moe.num_experts",           "4"       }, /* Hugging Face */
    {"num_experts",                         "moe.num_experts",           "4"       },
    {"num_experts_per_tok",                 "moe.top_k",                 "3"       },
    {"router_aux_loss_coef",                "moe.aux_loss_coeff",        "0.5"     },
    {"num_hidden_layers",                   "model.n_layers",            "3"       },
    {"num_key_value_heads",                 "model.n_kv_heads",          "2"       },
    {"max_position_embeddings",             "model.context",             "64"      },
    {"rope_theta",                          "model.rope_base",           "500"     },
    {"rms_norm_eps",                        "model.norm_eps",            "0.001"   },
    {"tie_word_embeddings",                 "model.tie_embeddings",      "true"    },
    {"initializer_range",                   "model.init_std",            "0.5"     },
    {"learning_rate",                       "train.lr",                  "0.5"     },
    {"gradient_accumulation_steps",         "train.grad_accum",          "3"       },
    {"dim",                                 "model.d_model",             "96"      }, /* lucidrains */
    {"hidden_dim",                          "moe.expert_hidden_size",    "48"      },
    {"dmodel",                              "model.d_model",             "96"      }, /* sigma-MoE */
    {"n_experts",                           "moe.num_experts",           "4"       },
    {"expert_size",                         "moe.expert_hidden_size",    "48"      },
    {"k",                                   "moe.top_k",                 "3"       },
};

static void test_foreign_names(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof foreign / sizeof *foreign; ++i) {
        moe_lm_config *config = make();
        moe_error error;
        assert_ok(moe_lm_config_set(config, foreign[i].name, foreign[i].value, "test", &error), &error);
        assert_string_equal(value_of(config, foreign[i].key), foreign[i].value);
        assert_string_equal(origin_of(config, foreign[i].key), "test");
        moe_lm_config_destroy(config);
    }
}

/* Every alias and last part in the tables leads somewhere, and no two rows claim the same. */
static void test_every_alias(void **state) {
    (void)state;
    moe_lm_config *config = make();
    size_t n_aliases = 0;
    for (size_t i = 0; i < config->count; ++i) {
        const moe_option *row = &config->row[i];
        char list[300], *rest = list;
        snprintf(list, sizeof list, "%s", row->aliases);
        for (char *name; (name = strtok_r(rest, " ", &rest));) {
            moe_lm_config_entry entry;
            moe_error error;
            assert_ok(moe_lm_config_find(config, name, &entry, &error), &error);
            /* init_method_std sets the model's, which the experts follow */
            if (strcmp(name, "init_method_std") != 0) assert_string_equal(entry.option->key, row->key);
            n_aliases++;
        }
    }
    assert_true(n_aliases > 40);
    moe_lm_config_destroy(config);
}

static void test_precedence_and_origin(void **state) {
    moe_lm_config *config = make();
    moe_error error;
    assert_ok(load_text(state, config, "moe:\n  top_k: 3\ntrain: {lr: 0.5}\nnum_moe_experts: 16\n", &error),
              &error);
    assert_string_equal(value_of(config, "moe.top_k"), "3");
    assert_string_equal(value_of(config, "moe.num_experts"), "16");
    assert_non_null(strstr(origin_of(config, "moe.top_k"), "c.yaml:2"));
    setenv("MOEKIT_MOE_TOP_K", "4", 1);
    assert_ok(moe_lm_config_environment(config, &error), &error);
    assert_string_equal(value_of(config, "moe.top_k"), "4");
    assert_string_equal(origin_of(config, "moe.top_k"), "MOEKIT_MOE_TOP_K");
    setenv("MOEKIT_MOE_TOP_K", "four", 1);
    assert_fails(moe_lm_config_environment(config, &error), MOE_ERR_ARGUMENT, &error,
                 "environment variable MOEKIT_MOE_TOP_K: moe.top_k: 'four' is not a whole number");
    unsetenv("MOEKIT_MOE_TOP_K");
    assert_ok(moe_lm_config_set(config, "moe.top_k", "5", "command line", &error), &error);
    assert_string_equal(value_of(config, "top_k"), "5");
    assert_string_equal(origin_of(config, "top_k"), "command line");
    assert_string_equal(value_of(config, "train.lr"), "0.5");
    assert_string_equal(origin_of(config, "train.steps"), "default");
    moe_lm_config_destroy(config);
}

static void test_yaml_shapes(void **state) {
    static const char *const texts[] = {
        "moe.num_experts: 12\nmodel.d_model: 40\n",
        "moe: {num_experts: 12}\nmodel: {d_model: 40}\n",
        "num_moe_experts: 12\nhidden_size: 40\n",
        "model:\n  num_moe_experts: 12\n  hidden_size: 40\n",
        "{\"num_local_experts\": 12, \"hidden_size\": 40}\n",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; ++i) {
        moe_lm_config *config = make();
        moe_error error;
        assert_ok(load_text(state, config, texts[i], &error), &error);
        assert_string_equal(value_of(config, "moe.num_experts"), "12");
        assert_string_equal(value_of(config, "model.d_model"), "40");
        moe_lm_config_destroy(config);
    }
}

static void test_null_is_no_value(void **state) {
    moe_lm_config *config = make();
    moe_error error;
    assert_ok(moe_lm_config_set(config, "moe.capacity_factor", "2", "x", &error), &error);
    assert_int_equal(load_text(state, config, "moe.capacity_factor: null\n", &error), MOE_ERR_ARGUMENT);
    assert_non_null(strstr(error.text, "has no value"));
    /* of NeMo it is one: no capacity */
    assert_ok(load_text(state, config, "moe_expert_capacity_factor: null\n", &error), &error);
    assert_string_equal(value_of(config, "moe.capacity_factor"), "0");
    assert_ok(load_text(state, config, "data: {eval: \"\"}\n", &error), &error);
    assert_string_equal(value_of(config, "data.eval"), "");
    moe_lm_config_destroy(config);
}

static void test_unknown_keys(void **state) {
    moe_lm_config *config = make();
    moe_error error;
    assert_fails(moe_lm_config_set(config, "moe.num_exprts", "4", "x", &error), MOE_ERR_ARGUMENT, &error,
                 "unknown key 'moe.num_exprts'; the nearest is 'moe.num_experts'");
    assert_fails(load_text(state, config, "model:\n  d_model: 32\nmoe:\n  topk: 2\n", &error),
                 MOE_ERR_ARGUMENT, &error, "c.yaml:4:9: unknown key 'moe.topk'; the nearest is 'moe.top_k'");
    assert_fails(load_text(state, config, "train:\n  top_k: 2\n", &error), MOE_ERR_ARGUMENT, &error,
                 "c.yaml:2:10: unknown key 'train.top_k'");
    assert_fails(load_text(state, config, "train:\n  lr: fast\n", &error), MOE_ERR_ARGUMENT, &error,
                 "c.yaml:2:7: train.lr: 'fast' is not a finite number");
    assert_fails(load_text(state, config, "a: [1\n", &error), MOE_ERR_INPUT, &error, "c.yaml:2:");
    moe_lm_config_entry entry;
    assert_fails(moe_lm_config_find(config, "lrr", &entry, &error), MOE_ERR_ARGUMENT, &error, "train.lr");
    assert_fails(moe_lm_config_load(config, "/nowhere/c.yaml", &error), MOE_ERR_INPUT, &error,
                 "/nowhere/c.yaml");
    moe_lm_config_destroy(config);
}

static void test_layer_width_is_the_models(void **state) {
    (void)state;
    moe_lm_config *config = make();
    moe_error error;
    assert_ok(moe_lm_config_set(config, "model.d_model", "64", "x", &error), &error);
    assert_ok(moe_lm_config_set(config, "moe.d_model", "64", "x", &error), &error);
    assert_fails(moe_lm_config_set(config, "moe.d_model", "96", "x", &error), MOE_ERR_ARGUMENT, &error,
                 "a layer is as wide as its model, 64");
    moe_lm_config_destroy(config);
}

static bool is_number(const moe_option *row) {
    return row->type == MOE_OPT_INT || row->type == MOE_OPT_INT64 || row->type == MOE_OPT_FLOAT ||
           row->type == MOE_OPT_DOUBLE;
}

static void test_limits(void **state) {
    (void)state;
    moe_lm_config *config = make();
    int n_numbers = 0;
    for (size_t i = 0; i < config->count; ++i) {
        const moe_option *row = &config->row[i];
        if (!is_number(row)) continue;
        bool whole = row->type == MOE_OPT_INT || row->type == MOE_OPT_INT64;
        char text[64];
        moe_error error;
        for (int side = -1; side <= 1; side += 2) {
            double limit = side < 0 ? row->min : row->max;
            snprintf(text, sizeof text, whole ? "%.0f" : "%.17g", limit);
            assert_ok(moe_lm_config_set(config, row->key, text, "x", &error), &error);
            double beyond = limit + side * (whole ? 1 : fabs(limit) * 1e-6 + 1e-9);
            snprintf(text, sizeof text, whole ? "%.0f" : "%.17g", beyond);
            assert_fails(moe_lm_config_set(config, row->key, text, "x", &error), MOE_ERR_ARGUMENT, &error,
                         "is outside");
            assert_ptr_equal(strstr(error.text, row->key), error.text);
        }
        assert_fails(moe_lm_config_set(config, row->key, "nan", "x", &error), MOE_ERR_ARGUMENT, &error,
                     row->key);
        n_numbers++;
    }
    assert_true(n_numbers > 30);
    moe_lm_config_destroy(config);
}

/* Some valid value of the row, different from run to run. */
static void random_value(const moe_option *row, uint64_t *seed, char *text, size_t size) {
    double share = (double)(scratch_random(seed) >> 11) / 9007199254740992.0;
    double low = row->min, high = row->max < low + 1e6 ? row->max : low + 1e6;
    size_t n = 0;
    switch (row->type) {
    case MOE_OPT_BOOL:
        snprintf(text, size, share < 0.5 ? "true" : "false");
        break;
    case MOE_OPT_INT:
    case MOE_OPT_INT64:
        snprintf(text, size, "%.0f", low + share * (high - low));
        break;
    case MOE_OPT_FLOAT:
    case MOE_OPT_DOUBLE:
        snprintf(text, size, "%.17g", low + share * (high - low));
        break;
    case MOE_OPT_CHOICE:
        while (row->choices && row->choices[n]) n++;
        snprintf(text, size, "%s", n ? row->choices[scratch_random(seed) % n] : "my: expert #1");
        break;
    case MOE_OPT_TEXT:
        snprintf(text, size, "%s", strcmp(row->key, "run.isa") == 0 ? "avx2" : " a 'b' \"c\": #d, null ");
        break;
    }
}

static void test_round_trip(void **state) {
    uint64_t seed = (uint64_t)time(NULL);
    print_message("seed %llu\n", (unsigned long long)seed);
    char *first = scratch_path(state, "1.yaml"), *second = scratch_path(state, "2.yaml");
    for (int round = 0; round < 50; ++round) {
        moe_lm_config *config = make(), *back = make();
        moe_error error;
        for (size_t i = 0; i < config->count; ++i) {
            char text[128];
            random_value(&config->row[i], &seed, text, sizeof text);
            assert_ok(moe_lm_config_set(config, config->row[i].key, text, "random", &error), &error);
        }
        assert_ok(moe_lm_config_save(config, first, &error), &error);
        assert_ok(moe_lm_config_load(back, first, &error), &error);
        assert_ok(moe_lm_config_save(back, second, &error), &error);
        for (size_t i = 0; i < config->count; ++i) {
            moe_lm_config_entry a, b;
            moe_lm_config_entry_get(config, i, &a);
            moe_lm_config_entry_get(back, i, &b);
            assert_string_equal(a.value, b.value);
        }
        moe_lm_config_destroy(config);
        moe_lm_config_destroy(back);
    }
    free(first);
    free(second);
}

static void test_check(void **state) {
    static const struct {
        const char *pairs[7], *words; /* NULL: accepted */
    } cases[] = {
        {{"n_heads", "3"},                                          "model.n_heads: 3 heads do not divide"},
        {{"head_dim", "7"},                                         "model.head_dim: 7 is odd"            },
        {{"n_kv_heads", "3"},                                       "model.n_kv_heads: 3 do not divide"   },
        {{"top_k", "9"},                                            "moe.top_k: 9 is more than"           },
        {{"expert_hidden_size", "0"},                               "moe.expert_hidden_size: 0"           },
        {{"expert_hidden_size", "0", "moe.expert", "zero"},         NULL                                  },
        {{"norm_topk_prob", "true"},                                "moe.norm_topk_prob"                  },
        {{"train.length", "257"},                                   "train.length: 257 tokens do not fit" },
        {{"moe_layer_freq", "0", "moe.expert_hidden_size", "0"},    "model.ffn_hidden_size: 0"            },
        {{"moe_layer_freq", "0", "moe.capacity_factor", "1"},       "model.moe_layer_freq 0 leaves none"  },
        {{"moe_layer_freq", "0", "moe.preset", "deepseek_v3"},      "moe.preset: deepseek_v3 is of routed"},
        {{"num_experts", "0", "moe.router_type", "sinkhorn"},       "moe.num_experts 0 leaves none"       },
        {{"num_experts", "0", "moe.dropout", "0.5"},                "moe.dropout: 0.5 is of routed"       },
        {{"num_experts", "0", "moe.init_std_scale", "2"},           "moe.init_std_scale: 2"               },
        {{"moe_layer_freq", "0", "shared_expert_hidden_size", "7"}, "moe.shared_expert_hidden_size: 7"    },
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
        moe_lm_config *config = make();
        moe_error error;
        for (const char *const *p = cases[i].pairs; *p; p += 2)
            assert_ok(moe_lm_config_set(config, p[0], p[1], "x", &error), &error);
        if (cases[i].words)
            assert_fails(moe_lm_config_check(config, &error), MOE_ERR_ARGUMENT, &error, cases[i].words);
        else
            assert_ok(moe_lm_config_check(config, &error), &error);
        moe_lm_config_destroy(config);
    }
}

/* What only routed experts have goes with them; what an FFN has stays. */
static void test_dense(void **state) {
    (void)state;
    moe_lm_config *config = make();
    moe_error error;
    static const char *const pairs[][2] = {
        {"moe.preset",          "deepseek_v3"},
        {"moe.capacity_factor", "1.25"       },
        {"moe.activation",      "relu"       },
        {"moe.top_k",           "3"          }
    };
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; ++i)
        assert_ok(moe_lm_config_set(config, pairs[i][0], pairs[i][1], "x", &error), &error);
    assert_ok(moe_lm_config_check(config, &error), &error);
    assert_ok(moe_lm_config_make_dense(config, "y", &error), &error);
    assert_ok(moe_lm_config_check(config, &error), &error);
    assert_string_equal(value_of(config, "moe.capacity_factor"), "0");
    assert_string_equal(value_of(config, "moe.preset"), "");
    assert_string_equal(value_of(config, "moe.activation"), "relu");
    assert_string_equal(value_of(config, "moe.top_k"), "3");
    moe_lm_config_destroy(config);
}

static void test_layer_descriptors(void **state) {
    static const char *const pairs[] = {
        "moe_layer_freq",     "2",  "d_model",          "48", "num_experts",    "6",   "top_k", "3",
        "expert_hidden_size", "20", "n_shared_experts", "1",  "model.init_std", "0.5", NULL};
    (void)state;
    moe_lm_config *config = make();
    moe_error error;
    for (const char *const *p = pairs; *p; p += 2)
        assert_ok(moe_lm_config_set(config, p[0], p[1], "x", &error), &error);
    moe_layer_desc routed, dense;
    moelm_config_layer(config, 2, &routed);
    moelm_config_layer(config, 3, &dense);
    assert_int_equal(routed.size, sizeof routed);
    assert_int_equal(routed.num_experts, 6);
    assert_int_equal(routed.d_model, 48);
    assert_int_equal(routed.layer_index, 2);
    assert_true(routed.init_std == 0.5f && dense.init_std == 0.5f);
    assert_int_equal(dense.num_experts, 0);
    assert_int_equal(dense.num_shared_experts, 1);
    assert_int_equal(dense.shared_expert_hidden_size, 3 * 20 + 20); /* what a token meets in a routed layer */
    assert_true(dense.aux_loss_coeff == 0);
    moe_lm_config_destroy(config);
}

/* Settings within their own limits whose product is not, and limits of the kernels and of the threads. */
static void test_products_and_true_limits(void **state) {
    (void)state;
    expect_refusal((const char *const[]){"moe.num_experts", "4096", "moe.top_k", "4096",
                                         "moe.expert_hidden_size", "1048576", "model.moe_layer_freq", "0",
                                         NULL},
                   "4294967296, but the limit is 16777216");
    expect_refusal((const char *const[]){"moe.num_shared_experts", "1024", "moe.expert_hidden_size",
                                         "1048576", "model.moe_layer_freq", "2", NULL},
                   "the limit is 16777216");
    expect_refusal((const char *const[]){"model.head_dim", "1026", NULL},
                   "model.head_dim: 1026 is outside 0 .. 1024");
    expect_refusal((const char *const[]){"model.d_model", "4096", "model.n_heads", "2", NULL},
                   "is 2048, but the limit");
    expect_refusal((const char *const[]){"run.threads", "1025", NULL},
                   "run.threads: 1025 is outside 0 .. 1024");
    expect_refusal((const char *const[]){"train.eval_bytes", "1", NULL}, "train.eval_bytes: 1");
}

/* Settings that do not go together are told where they stand: a file may have them under other names. */
static void test_place_of_a_combination(void **state) {
    moe_lm_config *config = make();
    moe_error error;
    assert_ok(load_text(state, config, "model:\n  num_moe_experts: 8\n  moe_router_topk: 9\n", &error),
              &error);
    assert_fails(moe_lm_config_check(config, &error), MOE_ERR_ARGUMENT, &error,
                 ":3: moe.top_k: 9 is more than moe.num_experts 8");
    assert_ok(moe_lm_config_set(config, "moe.top_k", "10", "command line", &error), &error);
    assert_int_equal(moe_lm_config_check(config, &error), MOE_ERR_ARGUMENT);
    assert_string_equal(error.text, "moe.top_k: 10 is more than moe.num_experts 8");
    moe_lm_config_destroy(config);
}

/* What would be cut is not kept: a model of half its experts would be another one. */
static void test_long_kinds(void **state) {
    (void)state;
    char list[1100];
    for (int i = 0; i < 549; ++i) memcpy(list + 2 * i, "8,", 2);
    strcpy(list + 1098, "8");
    moe_lm_config *config = make();
    moe_error error;
    assert_fails(moe_lm_config_set(config, "moe.expert_kinds", list, "x", &error), MOE_ERR_ARGUMENT, &error,
                 "moe.expert_kinds: 1099 bytes, but at most 1023 are kept; 8x64");
    assert_string_equal(value_of(config, "moe.expert_kinds"), "");
    assert_ok(moe_lm_config_set(config, "moe.num_experts", "550", "x", &error), &error);
    assert_ok(moe_lm_config_set(config, "moe.expert_kinds", "549x8,zero", "x", &error), &error);
    assert_ok(moe_lm_config_check(config, &error), &error);
    moe_lm_config_destroy(config);
}

/* A file or an environment that is refused half-way leaves every setting as it was. */
static void test_refused_whole(void **state) {
    moe_lm_config *config = make();
    moe_error error;
    assert_ok(moe_lm_config_set(config, "moe.expert_kinds", "8,16", "x", &error), &error);
    static const char text[] =
        "model: {d_model: 64}\nmoe: {preset: mixtral, expert_kinds: \"4,4\", top_k: 9999999}\n";
    assert_fails(load_text(state, config, text, &error), MOE_ERR_ARGUMENT, &error, "moe.top_k");
    assert_string_equal(value_of(config, "model.d_model"), "128");
    assert_string_equal(origin_of(config, "model.d_model"), "default");
    assert_string_equal(value_of(config, "moe.expert_kinds"), "8,16");
    assert_string_equal(value_of(config, "moe.preset"), "");
    setenv("MOEKIT_MODEL_D_MODEL", "64", 1);
    setenv("MOEKIT_TRAIN_STEPS", "many", 1);
    assert_fails(moe_lm_config_environment(config, &error), MOE_ERR_ARGUMENT, &error, "many");
    unsetenv("MOEKIT_MODEL_D_MODEL");
    unsetenv("MOEKIT_TRAIN_STEPS");
    assert_string_equal(value_of(config, "model.d_model"), "128");
    moe_lm_config_destroy(config);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults_are_valid),
        cmocka_unit_test(test_foreign_names),
        cmocka_unit_test(test_every_alias),
        cmocka_unit_test_setup_teardown(test_precedence_and_origin, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_yaml_shapes, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_null_is_no_value, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_unknown_keys, scratch_setup, scratch_teardown),
        cmocka_unit_test(test_layer_width_is_the_models),
        cmocka_unit_test(test_limits),
        cmocka_unit_test_setup_teardown(test_round_trip, scratch_setup, scratch_teardown),
        cmocka_unit_test(test_check),
        cmocka_unit_test(test_dense),
        cmocka_unit_test(test_layer_descriptors),
        cmocka_unit_test(test_products_and_true_limits),
        cmocka_unit_test_setup_teardown(test_place_of_a_combination, scratch_setup, scratch_teardown),
        cmocka_unit_test(test_long_kinds),
        cmocka_unit_test_setup_teardown(test_refused_whole, scratch_setup, scratch_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
