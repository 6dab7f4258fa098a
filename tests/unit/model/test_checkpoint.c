/* test_checkpoint.c: a model saved and loaded is the same model; wrong checkpoints are told, tensor by
 * tensor. Both families; f32, bf16 and f16 tensors; one file and shards. Source: the file format of
 * safetensors; numbers below 2^8 are exact in bf16 and f16.
 */
#include "unit/model/model_fixture.h"

#include "format/file.h"
#include "format/json.h"
#include "format/safetensors.h"

#include <moekit/quant.h>

/* clang-format off */
static const char *const mixtral[] = {
    "moe.z_loss_coeff", "0.003",  "moe.aux_loss_coeff", "0.01",  "model.head_dim", "6",
    "moe.score_before_topk", "true",  "moe.norm_topk_prob", "true",  NULL
};
/* clang-format on */
static const char *const tied[] = {"model.tie_embeddings", "true", "moe.input_jitter_eps", "0.125", NULL};
/* clang-format off */
static const char *const moekit[] = {
    "moe.num_shared_experts", "2",  "moe.expert_bias", "true",  "moe.activation", "gelu",
    "model.moe_layer_freq", "2",  "moe.capacity_factor", "1.25",  "moe.drop_policy", "position",  NULL
};
/* clang-format on */
static const char *const unnormed[] = {"moe.score_before_topk", "true", NULL};
static const char *const dense[] = {"model.moe_layer_freq", "0", NULL};

/* 1. Round trips. */

static void assert_same_settings(moe_ctx *ctx, moe_lm *a, moe_lm *b) {
    moe_lm_info x = {.size = sizeof x}, y = {.size = sizeof y};
    moe_lm_get_info(a, &x);
    moe_lm_get_info(b, &y);
    assert_memory_equal(&x, &y, sizeof x);
    const moe_option *row;
    for (int32_t i = 0; i < x.n_layers; ++i) {
        const char *p = (const char *)moe_layer_get_desc(moe_lm_layer(a, i));
        const char *q = (const char *)moe_layer_get_desc(moe_lm_layer(b, i));
        for (size_t o = 0; (row = moe_layer_option_at(o)); ++o) {
            if (row->type == MOE_OPT_CHOICE)
                assert_string_equal(*(char *const *)(p + row->offset), *(char *const *)(q + row->offset));
            else if (row->type == MOE_OPT_BOOL)
                assert_memory_equal(p + row->offset, q + row->offset, sizeof(bool));
            else
                assert_memory_equal(p + row->offset, q + row->offset, 4);
        }
    }
    assert_int_equal(moe_lm_param_count(a), moe_lm_param_count(b));
    for (int32_t i = 0; i < moe_lm_param_count(a); ++i) {
        moe_param p = {.size = sizeof p}, q = {.size = sizeof q};
        must(ctx, moe_lm_param(a, i, &p));
        must(ctx, moe_lm_param(b, i, &q));
        assert_string_equal(p.name, q.name);
        assert_memory_equal(p.value, q.value, (size_t)model_numbers(&p) * sizeof(float));
    }
}

static void check_type(const char *directory, const char *expected) {
    char path[1000];
    const char *type;
    json_t *root;
    moe_error error;
    snprintf(path, sizeof path, "%s/config.json", directory);
    assert_ok(moelm_json_load(path, &root, &error), &error);
    assert_ok(moelm_json_get_string(root, "config.json", "model_type", &type, &error), &error);
    assert_string_equal(type, expected);
    json_decref(root);
}

/* The settings of a checkpoint are its model's, whatever was set before: a model of them takes its
 * parameters. */
static void check_settings(moe_ctx *ctx, moe_lm *lm, const char *path) {
    static const char *const other[] = {"moe.num_shared_experts",
                                        "1",
                                        "model.moe_layer_freq",
                                        "2",
                                        "moe.router_type",
                                        "sinkhorn",
                                        "moe.expert_up_bias",
                                        "true",
                                        NULL};
    moe_lm_config *config = model_config(other);
    moe_lm *made = NULL;
    moe_error error;
    assert_ok(moe_lm_config_load_checkpoint(config, path, &error), &error);
    must(ctx, moe_lm_create(ctx, config, &made));
    must(ctx, moe_lm_init_from(made, path));
    assert_same_settings(ctx, lm, made);
    moe_lm_destroy(made);
    moe_lm_config_destroy(config);
}

static void round_trip(void **state, const char *name, const char *const *pairs, const char *type) {
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_lm *lm = model_make(ctx, pairs);
    char *path = scratch_path(state, name);
    must(ctx, moe_lm_save(lm, path));
    check_type(path, type);
    moe_lm *back = model_load(ctx, path);
    assert_same_settings(ctx, lm, back);
    check_settings(ctx, lm, path);
    must_fail(ctx, moe_lm_save(lm, path), MOE_ERR_ARGUMENT, "exists already");
    moe_lm_destroy(back);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
    free(path);
}

/* A layer that gave its weights back answers, and is refused before anything is written. */
static void check_dropped(void **state, const char *const *pairs) {
    const moe_quant_desc quant = {.size = sizeof quant, .format = "int8", .drop_weights = true};
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_lm *lm = model_make(ctx, pairs);
    char *path = scratch_path(state, "dropped");
    moe_param param = {.size = sizeof param};
    must(ctx, moe_layer_quantize(moe_lm_layer(lm, 1), &quant));
    must_fail(ctx, moe_lm_save(lm, path), MOE_ERR_STATE, "given blocks.1.");
    must_fail(ctx, moe_lm_save(lm, path), MOE_ERR_STATE, "experts.up.weight back (drop_weights)");
    assert_int_equal(scratch_count(*state), 0);
    must(ctx, moe_layer_param_by_name(moe_lm_layer(lm, 0), "experts.up.weight", &param));
    assert_non_null(param.value);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
    free(path);
}

static void test_dropped_weights(void **state) {
    check_dropped(state, mixtral);
    static const char *const bias[] = {"moe.expert_bias", "true", NULL}; /* our own family */
    check_dropped(state, bias);
}

static void test_round_trips(void **state) {
    round_trip(state, "mixtral", mixtral, "mixtral");
    round_trip(state, "tied", tied, "mixtral");
    round_trip(state, "moekit", moekit, "moekit");
    round_trip(state, "unnormed", unnormed, "moekit");
    round_trip(state, "dense", dense, "moekit");
    /* one weight is its score, where Mixtral's would be 1 */
    static const char *const top1_scored[] = {
        "moe.top_k", "1", "moe.score_before_topk", "true", "moe.norm_topk_prob", "true", NULL};
    static const char *const top1[] = {"moe.top_k", "1", NULL};
    round_trip(state, "top1_scored", top1_scored, "moekit");
    round_trip(state, "top1", top1, "mixtral");
    assert_int_equal(scratch_count(*state), 7);
}

static void test_golden_is_written_as_it_was(void **state) {
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_lm *lm = model_load(ctx, "tests/golden/mixtral");
    char *path = scratch_path(state, "again");
    moelm_safetensors *a, *b;
    moe_error error;
    must(ctx, moe_lm_save(lm, path));
    assert_ok(moelm_safetensors_open("tests/golden/mixtral", &a, &error), &error);
    assert_ok(moelm_safetensors_open(path, &b, &error), &error);
    assert_int_equal(moelm_safetensors_count(a), moelm_safetensors_count(b));
    for (size_t i = 0; i < moelm_safetensors_count(a); ++i) {
        const moelm_st_tensor *p = moelm_safetensors_at(a, i), *q = moelm_safetensors_find(b, p->name);
        assert_non_null(q);
        assert_int_equal(p->bytes, q->bytes);
        assert_memory_equal(p->data, q->data, p->bytes);
    }
    moelm_safetensors_close(a);
    moelm_safetensors_close(b);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
    free(path);
}

static void test_full_disk_leaves_nothing(void **state) {
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_lm *lm = model_make(ctx, NULL);
    char *path = scratch_path(state, "full");
    scratch_disk_full(5000);
    moe_status status = moe_lm_save(lm, path);
    scratch_disk_normal();
    assert_int_equal(status, MOE_ERR_IO);
    assert_int_equal(scratch_count(*state), 0);
    must(ctx, moe_lm_save(lm, path));
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
    free(path);
}

/* 2. Other number formats and shards. */

enum { MAX_TENSORS = 64 };
typedef struct edit {
    moelm_st_tensor tensor[MAX_TENSORS];
    size_t count;
} edit;

/* The tensors of a saved directory, to be changed and written back. */
static moelm_safetensors *open_edit(const char *directory, edit *e) {
    moelm_safetensors *file;
    moe_error error;
    assert_ok(moelm_safetensors_open(directory, &file, &error), &error);
    e->count = moelm_safetensors_count(file);
    assert_true(e->count < MAX_TENSORS);
    for (size_t i = 0; i < e->count; ++i) e->tensor[i] = *moelm_safetensors_at(file, i);
    return file;
}

static void write_edit(const char *directory, const char *name, const moelm_st_tensor *tensor, size_t count) {
    char path[1000];
    moe_error error;
    snprintf(path, sizeof path, "%s/%s", directory, name);
    assert_ok(moelm_safetensors_write(path, tensor, count, NULL, 0, &error), &error);
}

/* A saved tiny model with numbers k/8, |k| < 128: exact in every format. */
static moe_lm *save_exact(moe_ctx *ctx, const char *path, const char *const *pairs) {
    moe_lm *lm = model_make(ctx, pairs);
    for (int32_t i = 0; i < moe_lm_param_count(lm); ++i) {
        moe_param param = {.size = sizeof param};
        must(ctx, moe_lm_param(lm, i, &param));
        for (int64_t j = 0; j < model_numbers(&param); ++j)
            ((float *)param.value)[j] = (float)((i * 31 + j * 7) % 255 - 127) / 8.0F;
    }
    must(ctx, moe_lm_save(lm, path));
    return lm;
}

static uint16_t to_half(float value, bool brain) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (brain) return (uint16_t)(bits >> 16);
    uint32_t sign = bits >> 16 & 0x8000, exponent = bits >> 23 & 255, fraction = bits >> 13 & 1023;
    return exponent == 0 ? (uint16_t)sign : (uint16_t)(sign | (exponent - 112) << 10 | fraction);
}

static void check_halves(void **state, const char *name, bool brain) {
    moe_ctx *ctx = test_ctx(NULL, 1);
    char *path = scratch_path(state, name);
    moe_lm *lm = save_exact(ctx, path, NULL);
    edit e;
    moelm_safetensors *file = open_edit(path, &e);
    for (size_t i = 0; i < e.count; ++i) {
        size_t n = e.tensor[i].bytes / 4;
        uint16_t *half = malloc(2 * n);
        assert_non_null(half);
        for (size_t j = 0; j < n; ++j) half[j] = to_half(((const float *)e.tensor[i].data)[j], brain);
        e.tensor[i].data = half;
        e.tensor[i].dtype = brain ? MOELM_ST_BF16 : MOELM_ST_F16;
    }
    write_edit(path, "model.safetensors", e.tensor, e.count);
    for (size_t i = 0; i < e.count; ++i) free((void *)e.tensor[i].data);
    moelm_safetensors_close(file);
    moe_lm *back = model_load(ctx, path);
    assert_same_settings(ctx, lm, back);
    moe_lm_destroy(back);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
    free(path);
}

static void test_other_number_formats(void **state) {
    check_halves(state, "bf16", true);
    check_halves(state, "f16", false);
}

static void remove_in(const char *directory, const char *name) {
    char path[1000];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    assert_int_equal(remove(path), 0);
}

static void test_shards(void **state) {
    moe_ctx *ctx = test_ctx(NULL, 1);
    char *path = scratch_path(state, "shards");
    moe_lm *lm = save_exact(ctx, path, NULL);
    edit e;
    moelm_safetensors *file = open_edit(path, &e);
    const char *const shard[] = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"};
    size_t half = e.count / 2;
    write_edit(path, shard[0], e.tensor, half);
    write_edit(path, shard[1], e.tensor + half, e.count - half);
    json_t *map = json_object(), *index = json_pack("{s:{}, s:o}", "metadata", "weight_map", map);
    for (size_t i = 0; i < e.count; ++i)
        json_object_set_new(map, e.tensor[i].name, json_string(shard[i >= half]));
    char *name = scratch_path(state, "shards/model.safetensors.index.json");
    moe_error error;
    assert_ok(moelm_json_save(name, index, &error), &error);
    json_decref(index);
    moelm_safetensors_close(file);
    remove_in(path, "model.safetensors");
    moe_lm *back = model_load(ctx, path);
    assert_same_settings(ctx, lm, back);
    moe_lm_destroy(back);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
    free(name);
    free(path);
}

/* 3. Wrong checkpoints. */

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
    check_config(ctx, path, NULL, "hidden_size", "262144", input, "describes a model of");
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

static void test_wrong_moekit_config(void **state) {
    moe_ctx *ctx = test_ctx(NULL, 1);
    char *path = scratch_path(state, "k");
    moe_lm_destroy(save_exact(ctx, path, moekit));
    check_config(ctx, path, NULL, "moe", NULL, MOE_ERR_INPUT, "moe is missing");
    check_config(ctx, path, "moe", "top_q", "2", MOE_ERR_INPUT, "moe.top_k");
    check_config(ctx, path, "moe", "activation", "\"tanh\"", MOE_ERR_INPUT, "tanh");
    check_config(ctx, path, "moe", "top_k", "[1]", MOE_ERR_INPUT, "moe.top_k");
    check_config(ctx, path, "moe", "num_experts", "65536", MOE_ERR_INPUT, "describes a model of");
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
    moe_lm_destroy(save_exact(ctx, path, mixtral));
    remove_in(path, "model.safetensors");
    expect_failure(ctx, path, MOE_ERR_INPUT, "model.safetensors");
    moe_ctx_destroy(ctx);
    free(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_round_trips, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_dropped_weights, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_golden_is_written_as_it_was, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_full_disk_leaves_nothing, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_other_number_formats, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_shards, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_wrong_tensors, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_wrong_mixtral_config, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_wrong_moekit_config, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_damaged_bytes, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_nothing_there, scratch_setup, scratch_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
