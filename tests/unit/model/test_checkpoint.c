/* test_checkpoint.c: a model saved and loaded is the same model.
 * Every family; f32, bf16 and f16 tensors; one file and shards. Source: the file format of safetensors.
 */
#include "unit/model/checkpoint_fixture.h"

#include "format/json.h"

#include <moekit/quant.h>

static const char *const unnormed[] = {"moe.score_before_topk", "true", NULL};
static const char *const normed[] = {"model.qk_norm", "head", "moe.expert_bias", "true", NULL};
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
    round_trip(state, "normed", normed, "moekit");
    round_trip(state, "qwen", qwen, "qwen3_moe");
    round_trip(state, "olmoe", olmoe, "olmoe");
    static const char *const clipped[] = {"model.clip_qkv", "8", NULL};
    round_trip(state, "clipped", clipped, "moekit");
    static const char *const some[] = {
        "model.qk_norm", "head", "model.dense_layers", "1", "moe.z_loss_coeff", "0.5", "moe.input_jitter_eps",
        "0.125",         NULL};
    static const char *const first[] = {"model.qk_norm", "head", "model.moe_layer_freq", "2", NULL};
    static const char *const dense_olmoe[] = {"model.qk_norm", "full", "model.dense_layers", "1", NULL};
    static const char *const wide_olmoe[] = {"model.qk_norm", "full", "model.head_dim", "6", NULL};
    round_trip(state, "some", some, "qwen3_moe");
    round_trip(state, "first", first, "moekit");
    round_trip(state, "dense_olmoe", dense_olmoe, "moekit");
    round_trip(state, "wide_olmoe", wide_olmoe, "moekit");
    /* one weight is its score in these two, or 1 */
    static const char *const top1_qwen[] = {"model.qk_norm", "head", "moe.top_k", "1", NULL};
    static const char *const top1_olmoe[] = {
        "model.qk_norm",      "full", "moe.top_k", "1", "moe.score_before_topk", "true",
        "moe.norm_topk_prob", "true", NULL};
    round_trip(state, "top1_qwen", top1_qwen, "qwen3_moe");
    round_trip(state, "top1_olmoe", top1_olmoe, "olmoe");
    /* one weight is its score, where Mixtral's would be 1 */
    static const char *const top1_scored[] = {
        "moe.top_k", "1", "moe.score_before_topk", "true", "moe.norm_topk_prob", "true", NULL};
    static const char *const top1[] = {"moe.top_k", "1", NULL};
    round_trip(state, "top1_scored", top1_scored, "moekit");
    round_trip(state, "top1", top1, "mixtral");
    assert_int_equal(scratch_count(*state), 17);
}

static void check_golden(void **state, const char *golden, const char *name) {
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_lm *lm = model_load(ctx, golden);
    char *path = scratch_path(state, name);
    moelm_safetensors *a, *b;
    moe_error error;
    must(ctx, moe_lm_save(lm, path));
    check_type(path, name);
    assert_ok(moelm_safetensors_open(golden, &a, &error), &error);
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

static void test_golden_is_written_as_it_was(void **state) {
    check_golden(state, "tests/golden/mixtral", "mixtral");
    check_golden(state, "tests/golden/qwen3_moe", "qwen3_moe");
    check_golden(state, "tests/golden/olmoe", "olmoe");
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

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_round_trips, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_dropped_weights, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_golden_is_written_as_it_was, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_full_disk_leaves_nothing, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_other_number_formats, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_shards, scratch_setup, scratch_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
