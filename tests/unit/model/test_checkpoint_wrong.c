/* test_checkpoint_wrong.c: wrong checkpoints are told: tensor by tensor, and what their config.json says.
 * Every family; any truncation, random bytes. Source: families/family.h, which faults are which.
 */
#include "unit/model/checkpoint_fixture.h"

#include "format/file.h"
#include "format/json.h"

static void expect_failure(moe_ctx *ctx, const char *path, moe_status status, const char *words) {
    moe_lm *lm = NULL;
    must_fail(ctx, moe_lm_load(ctx, path, &lm), status, words);
    assert_null(lm);
}

static void check_wrong_tensors(void **state, const char *name, const char *const *pairs,
                                const char *victim) {
    moe_ctx *ctx = test_ctx(NULL, 1);
    char *path = scratch_path(state, name);
    moe_lm_destroy(save_exact(ctx, path, pairs));
    edit e;
    moelm_safetensors *file = open_edit(path, &e);
    size_t at = 0;
    while (strcmp(e.tensor[at].name, victim) != 0) ++at;
    moelm_st_tensor good = e.tensor[at], last = e.tensor[e.count - 1];
    const char *const words = victim;

    e.tensor[at] = last; /* missing */
    write_edit(path, "model.safetensors", e.tensor, e.count - 1);
    expect_failure(ctx, path, MOE_ERR_INPUT, words);

    e.tensor[at] = good;
    e.tensor[at].dim[0] -= 1; /* shape; the writer works the bytes out again */
    write_edit(path, "model.safetensors", e.tensor, e.count);
    expect_failure(ctx, path, MOE_ERR_INPUT, words);

    e.tensor[at] = good;
    e.tensor[at].dtype = MOELM_ST_I32;
    write_edit(path, "model.safetensors", e.tensor, e.count);
    expect_failure(ctx, path, MOE_ERR_INPUT, "is I32; F32, BF16 and F16");

    e.tensor[at] = good;
    e.tensor[e.count] = good;
    e.tensor[e.count].name = "one.too.many";
    write_edit(path, "model.safetensors", e.tensor, e.count + 1);
    expect_failure(ctx, path, MOE_ERR_INPUT, "'one.too.many' has no place");

    write_edit(path, "model.safetensors", e.tensor, e.count); /* and so it is good again */
    moe_lm_destroy(model_load(ctx, path));
    moelm_safetensors_close(file);
    moe_ctx_destroy(ctx);
    free(path);
}

static void test_wrong_tensors(void **state) {
    check_wrong_tensors(state, "a", mixtral, "model.layers.1.block_sparse_moe.experts.3.w2.weight");
    check_wrong_tensors(state, "b", tied, "model.layers.0.self_attn.k_proj.weight");
    check_wrong_tensors(state, "c", moekit, "blocks.1.ffn.shared.up.weight");
    check_wrong_tensors(state, "d", qwen, "model.layers.0.mlp.up_proj.weight");
    check_wrong_tensors(state, "e", qwen, "model.layers.1.self_attn.k_norm.weight");
    check_wrong_tensors(state, "f", olmoe, "model.layers.1.mlp.experts.2.down_proj.weight");
}

/* Sets one field of config.json (value as JSON text; NULL removes it) and expects the failure. */
static void check_config(moe_ctx *ctx, const char *directory, const char *section, const char *key,
                         const char *value, moe_status status, const char *words) {
    char path[1000];
    json_t *root, *from;
    moe_error error;
    snprintf(path, sizeof path, "%s/config.json", directory);
    assert_ok(moelm_json_load(path, &root, &error), &error);
    json_t *changed = json_deep_copy(root);
    from = section ? json_object_get(changed, section) : changed;
    if (value)
        json_object_set_new(from, key, json_loads(value, JSON_DECODE_ANY, NULL));
    else
        json_object_del(from, key);
    assert_ok(moelm_json_save(path, changed, &error), &error);
    expect_failure(ctx, directory, status, words);
    assert_ok(moelm_json_save(path, root, &error), &error);
    json_decref(changed);
    json_decref(root);
}

static void test_wrong_mixtral_config(void **state) {
    moe_ctx *ctx = test_ctx(NULL, 1);
    char *path = scratch_path(state, "m");
    moe_lm_destroy(save_exact(ctx, path, mixtral));
    const moe_status input = MOE_ERR_INPUT, unsupported = MOE_ERR_UNSUPPORTED;
    check_config(ctx, path, NULL, "model_type", NULL, input, "model_type");
    check_config(ctx, path, NULL, "model_type", "\"llama\"", unsupported, "'llama'");
    check_config(ctx, path, NULL, "hidden_size", NULL, input, "'hidden_size' is missing");
    check_config(ctx, path, NULL, "hidden_size", "null", input, "model.d_model");
    check_config(ctx, path, NULL, "hidden_size", "-3", input, "model.d_model");
    check_config(ctx, path, NULL, "hidden_size", "\"many\"", input, "model.d_model");
    check_config(ctx, path, NULL, "hidden_size", "262144", input, "model.embed_tokens.weight has the shape");
    check_config(ctx, path, NULL, "hidden_size", "1048576", input, "model.d_model");
    check_config(ctx, path, NULL, "num_hidden_layers", "3", input, "model.layers.2.");
    check_config(ctx, path, NULL, "num_hidden_layers", "1", input,
                 "/m: tensor 'model.layers.1.input_layernorm.weight' has no place");
    check_config(ctx, path, NULL, "num_attention_heads", "3", input, "/config.json: model.n_kv_heads");
    check_config(ctx, path, NULL, "num_experts_per_tok", "9", input, "top_k");
    check_config(ctx, path, NULL, "head_dim", "5", input, "odd");
    check_config(ctx, path, NULL, "vocab_size", "99", input, "model.embed_tokens.weight");
    check_config(ctx, path, NULL, "tie_word_embeddings", "true", input, "lm_head.weight");
    check_config(ctx, path, NULL, "hidden_act", "\"tanh\"", unsupported,
                 "/config.json: hidden_act: 'tanh' is not one of: silu");
    check_config(ctx, path, NULL, "sliding_window", "8", unsupported, "sliding_window");
    check_config(ctx, path, NULL, "attention_dropout", "0.5", unsupported, "attention_dropout");
    check_config(ctx, path, NULL, "rope_scaling", "{}", unsupported, "rope_scaling");
    check_config(ctx, path, "rope_parameters", "rope_type", "\"yarn\"", unsupported, "rope_type yarn");
    check_config(ctx, path, "rope_parameters", "rope_theta", "[]", input, "rope_theta");
    check_config(ctx, path, "moekit", "moe.score_before_topk", "false", input, "norm_topk_prob");
    moe_lm_destroy(model_load(ctx, path));
    moe_ctx_destroy(ctx);
    free(path);
}

/* A window narrower than the context counts where it is switched on. */
static void check_window(moe_ctx *ctx, const char *path) {
    char name[1000];
    json_t *root;
    moe_error error;
    snprintf(name, sizeof name, "%s/config.json", path);
    assert_ok(moelm_json_load(name, &root, &error), &error);
    json_object_set_new(root, "sliding_window", json_integer(8));
    assert_ok(moelm_json_save(name, root, &error), &error);
    moe_lm_destroy(model_load(ctx, path));
    check_config(ctx, path, NULL, "use_sliding_window", "true", MOE_ERR_UNSUPPORTED, "sliding_window");
    check_config(ctx, path, NULL, "use_sliding_window", "1", MOE_ERR_INPUT, "use_sliding_window");
    json_object_set_new(root, "sliding_window", json_null());
    json_object_set_new(root, "use_sliding_window", json_true());
    assert_ok(moelm_json_save(name, root, &error), &error);
    json_decref(root);
}

/* What mlp_only_layers names beside the layers there are, transformers never asks for. */
static void check_other_layers(moe_ctx *ctx, const char *path) {
    static const char *const lists[] = {"[2]", "[-1]", "[99999999999999, 0, 7]", "[2, 0, 0, -3]"};
    char name[1000];
    json_t *root;
    moe_error error;
    snprintf(name, sizeof name, "%s/config.json", path);
    assert_ok(moelm_json_load(name, &root, &error), &error);
    for (size_t i = 0; i < sizeof lists / sizeof *lists; ++i) {
        json_t *changed = json_deep_copy(root);
        json_object_set_new(changed, "mlp_only_layers", json_loads(lists[i], 0, NULL));
        assert_ok(moelm_json_save(name, changed, &error), &error);
        moe_lm *lm = model_load(ctx, path);
        assert_int_equal(moe_layer_get_desc(moe_lm_layer(lm, 0))->num_experts, 0);
        assert_int_equal(moe_layer_get_desc(moe_lm_layer(lm, 1))->num_experts, 4);
        moe_lm_destroy(lm);
        json_decref(changed);
    }
    assert_ok(moelm_json_save(name, root, &error), &error);
    json_decref(root);
}

static void test_wrong_qwen_config(void **state) {
    moe_ctx *ctx = test_ctx(NULL, 1);
    char *path = scratch_path(state, "q");
    moe_lm_destroy(save_exact(ctx, path, qwen));
    const moe_status input = MOE_ERR_INPUT, unsupported = MOE_ERR_UNSUPPORTED;
    check_config(ctx, path, NULL, "num_experts", NULL, input, "'num_experts' is missing");
    check_config(ctx, path, NULL, "num_key_value_heads", NULL, input, "'num_key_value_heads' is missing");
    check_config(ctx, path, NULL, "head_dim", "5", input, "odd");
    check_config(ctx, path, NULL, "head_dim", "null", input, "self_attn.q_proj.weight"); /* 16 / 4, not 6 */
    check_config(ctx, path, NULL, "decoder_sparse_step", "1", input, "model.layers.0.mlp.gate.weight");
    check_config(ctx, path, NULL, "decoder_sparse_step", "0", input, "decoder_sparse_step");
    check_config(ctx, path, NULL, "decoder_sparse_step", "4097", input, "model.moe_layer_freq");
    check_config(ctx, path, NULL, "decoder_sparse_step", "9", input, "none of 2 layers with experts");
    check_config(ctx, path, NULL, "mlp_only_layers", "[1]", input, "none of 2 layers with experts");
    check_other_layers(ctx, path);
    check_config(ctx, path, NULL, "mlp_only_layers", "[\"0\"]", input, "expected a list of layers");
    check_config(ctx, path, NULL, "mlp_only_layers", "\"0\"", input, "expected a list of layers");
    check_config(ctx, path, NULL, "norm_topk_prob", "1", input, "norm_topk_prob");
    check_config(ctx, path, NULL, "norm_topk_prob", "false", input,
                 "score_before_topk"); /* moekit says: it is */
    check_config(ctx, path, NULL, "attention_bias", "true", unsupported, "not supported: attention_bias");
    check_window(ctx, path);
    check_config(ctx, path, NULL, "rope_scaling", "{\"type\": \"yarn\"}", unsupported, "rope_scaling");
    check_config(ctx, path, NULL, "quantization_config", "{}", unsupported, "quantization_config");
    moe_lm_destroy(model_load(ctx, path));
    moe_ctx_destroy(ctx);
    free(path);
}

/* What cannot be done is told at once, whatever it is. */
static void test_all_that_is_refused(void **state) {
    moe_ctx *ctx = test_ctx(NULL, 1);
    char *path = scratch_path(state, "r"), name[1000];
    json_t *root;
    moe_error error;
    moe_lm_destroy(save_exact(ctx, path, olmoe));
    snprintf(name, sizeof name, "%s/config.json", path);
    assert_ok(moelm_json_load(name, &root, &error), &error);
    json_object_set_new(root, "attention_bias", json_true());
    json_object_set_new(root, "attention_dropout", json_real(0.1));
    json_object_set_new(root, "clip_qkv", json_integer(0));
    json_object_set_new(root, "head_dim", json_integer(6));
    json_object_set_new(root, "hidden_act", json_string("tanh"));
    json_object_set_new(root, "rope_scaling", json_object());
    json_object_set_new(root, "sliding_window", json_integer(4));
    json_object_set_new(json_object_get(root, "rope_parameters"), "rope_type", json_string("yarn"));
    assert_ok(moelm_json_save(name, root, &error), &error);
    json_decref(root);
    static const char *const words[] = {
        "attention_bias", "attention_dropout", "clip_qkv",       "head_dim",
        "'tanh'",         "rope_scaling",      "sliding_window", "rope_type yarn"};
    for (size_t i = 0; i < sizeof words / sizeof *words; ++i)
        expect_failure(ctx, path, MOE_ERR_UNSUPPORTED, words[i]);
    moe_ctx_destroy(ctx);
    free(path);
}

static void test_wrong_moekit_config(void **state) {
    moe_ctx *ctx = test_ctx(NULL, 1);
    char *path = scratch_path(state, "k");
    moe_lm_destroy(save_exact(ctx, path, moekit));
    check_config(ctx, path, NULL, "moe", NULL, MOE_ERR_INPUT, "moe is missing");
    check_config(ctx, path, "moe", "top_q", "2", MOE_ERR_INPUT, "moe.top_k");
    check_config(ctx, path, "moe", "activation", "\"tanh\"", MOE_ERR_INPUT, "tanh");
    check_config(ctx, path, "moe", "top_k", "[1]", MOE_ERR_INPUT, "moe.top_k");
    check_config(ctx, path, "moe", "num_experts", "65536", MOE_ERR_INPUT, "blocks.0.ffn.gate.weight has");
    check_config(ctx, path, "moe", "expert", "\"unheard-of\"", MOE_ERR_ARGUMENT, "unheard-of");
    check_config(ctx, path, "model", "d_model", "17", MOE_ERR_INPUT, "");
    moe_lm_destroy(model_load(ctx, path));
    moe_ctx_destroy(ctx);
    free(path);
}

/* Every truncation and random bytes: an error with a text, never a crash, never a model. */
static void check_bytes(void **state, const char *file) {
    moe_ctx *ctx = test_ctx(NULL, 1);
    char *path = scratch_path(state, "d"), name[1000], *text;
    size_t bytes;
    moe_error error;
    uint64_t seed = test_seed();
    scratch_remove(path);
    moe_lm_destroy(save_exact(ctx, path, mixtral));
    snprintf(name, sizeof name, "%s/%s", path, file);
    assert_ok(moelm_file_read(name, 1, 1 << 24, &text, &bytes, &error), &error);
    for (size_t cut = 0; cut + 2 < bytes; cut += 1 + bytes / 60) {
        scratch_put(name, text, cut);
        expect_failure(ctx, path, MOE_ERR_INPUT, "");
    }
    for (int i = 0; i < 300; ++i) {
        char *bad = malloc(bytes);
        assert_non_null(bad);
        memcpy(bad, text, bytes);
        for (int j = 0; j < 3; ++j)
            bad[scratch_random(&seed) % (bytes < 3000 ? bytes : 3000)] = (char)scratch_random(&seed);
        scratch_put(name, bad, bytes);
        moe_lm *lm = NULL;
        if (moe_lm_load(ctx, path, &lm) == MOE_OK)
            moe_lm_destroy(lm); /* only numbers changed */
        else
            assert_true(strlen(moe_ctx_error(ctx)) > 0);
        free(bad);
    }
    free(text);
    free(path);
    moe_ctx_destroy(ctx);
}

static void test_damaged_bytes(void **state) {
    check_bytes(state, "config.json");
    check_bytes(state, "model.safetensors");
}

static void test_nothing_there(void **state) {
    moe_ctx *ctx = test_ctx(NULL, 1);
    char *path = scratch_path(state, "e");
    expect_failure(ctx, path, MOE_ERR_INPUT, "config.json");
    moe_lm_config *config = model_config(NULL);
    assert_int_equal(moe_lm_config_load_checkpoint(config, path, NULL), MOE_ERR_INPUT); /* and tells nobody */
    moe_lm_config_destroy(config);
    moe_lm_destroy(save_exact(ctx, path, mixtral));
    remove_in(path, "model.safetensors");
    expect_failure(ctx, path, MOE_ERR_INPUT, "model.safetensors");
    moe_ctx_destroy(ctx);
    free(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_wrong_tensors, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_wrong_mixtral_config, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_wrong_qwen_config, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_all_that_is_refused, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_wrong_moekit_config, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_damaged_bytes, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_nothing_there, scratch_setup, scratch_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
