/* test_load_packed.c: checkpoints whose experts are packed while they are read (moe_lm_load_with), held to
 * the model that is read whole: one whose layers are packed afterwards, and one that has the packed numbers.
 * Shapes: 3 layers of 6 experts [64, 40] around one dense layer. Source: the law of quant.h.
 */
#include "unit/model/checkpoint_fixture.h"

#include <moekit/quant.h>

enum { LENGTH = 20, VOCAB = 23, NUMBERS = LENGTH * VOCAB };

static const char *const wide[] = {"model.d_model",
                                   "64",
                                   "model.n_layers",
                                   "4",
                                   "model.dense_layers",
                                   "2",
                                   "moe.num_experts",
                                   "6",
                                   "moe.expert_hidden_size",
                                   "40",
                                   "model.init_std",
                                   "0.3",
                                   NULL};

/* Bytes of the context's memory, and the most there were. */
typedef struct meter {
    size_t now, most;
} meter;

static void *meter_alloc(void *user, size_t bytes, size_t align) {
    meter *m = user;
    m->now += bytes;
    if (m->now > m->most) m->most = m->now;
    return aligned_alloc(align, (bytes + align - 1) / align * align);
}

static void meter_free(void *user, void *ptr, size_t bytes) {
    ((meter *)user)->now -= bytes;
    free(ptr);
}

static moe_ctx *metered_ctx(meter *m) {
    const moe_ctx_desc desc = {
        .size = sizeof desc, .seed = 1, .n_threads = 2, .host = {meter_alloc, meter_free, m}
    };
    moe_error error = {0};
    moe_ctx *ctx = NULL;
    assert_ok(moe_ctx_create(&desc, &ctx, &error), &error);
    return ctx;
}

static moe_lm *load(moe_ctx *ctx, const char *path, const char *dtype, const char *experts) {
    const moe_lm_load_desc desc = {.size = sizeof desc, .dtype = dtype, .experts = experts};
    moe_lm *lm = NULL;
    must(ctx, moe_lm_load_with(ctx, path, &desc, &lm));
    return lm;
}

static void take_logits(moe_ctx *ctx, moe_lm *lm, float *logits) {
    int32_t tokens[LENGTH];
    model_tokens(tokens, LENGTH, VOCAB, 5);
    must(ctx, moe_lm_reserve(lm, 1, LENGTH, MOE_INFER));
    must(ctx, moe_lm_logits(lm, tokens, 1, LENGTH, logits));
}

/* The experts' numbers as a format has them. */
static void round_experts(moe_ctx *ctx, moe_lm *lm, const char *format) {
    for (int32_t i = 0; i < moe_lm_param_count(lm); ++i) {
        moe_param param = {.size = sizeof param};
        must(ctx, moe_lm_param(lm, i, &param));
        const bool up = strstr(param.name, "up.weight") != NULL;
        if (!up && !strstr(param.name, "down.weight")) continue;
        const moe_packed_desc desc = {.size = sizeof desc,
                                      .format = format,
                                      .dtype = param.dtype,
                                      .n_groups = (int32_t)param.dim[0],
                                      .k = param.dim[1],
                                      .n = param.dim[2],
                                      .n_runs = up ? 2 : 1};
        moe_packed *packed = NULL;
        must(ctx, moe_packed_create(ctx, &desc, param.value, &packed));
        must(ctx, moe_packed_read(packed, param.value));
        moe_packed_destroy(packed);
    }
}

static void check_format(const char *path, const char *dtype, const char *format) {
    moe_ctx *ctx = test_ctx(NULL, 2);
    static float whole[NUMBERS], later[NUMBERS], loaded[NUMBERS], rounded[NUMBERS];
    moe_lm *lm = load(ctx, path, dtype, NULL);
    take_logits(ctx, lm, whole);
    for (int32_t i = 0; i < 4; ++i) {
        const moe_quant_desc desc = {.size = sizeof desc, .format = format};
        must(ctx, moe_layer_quantize(moe_lm_layer(lm, i), &desc));
    }
    take_logits(ctx, lm, later);
    moe_lm_destroy(lm);
    lm = load(ctx, path, dtype, format);
    take_logits(ctx, lm, loaded);
    moe_lm_destroy(lm);
    lm = load(ctx, path, dtype, NULL);
    round_experts(ctx, lm, format);
    take_logits(ctx, lm, rounded);
    moe_lm_destroy(lm);
    assert_memory_equal(loaded, later, sizeof loaded);
    const bool pairs = strcmp(format, "bf16x2") == 0, exact = pairs && strcmp(dtype, "bf16") == 0;
    if (strcmp(dtype, "f32") == 0 || pairs) assert_memory_equal(loaded, rounded, sizeof loaded);
    assert_true((memcmp(loaded, whole, sizeof loaded) == 0) == exact);
    moe_ctx_destroy(ctx);
}

static void test_formats(void **state) {
    moe_ctx *ctx = test_ctx(NULL, 2);
    char *path = scratch_path(state, "p");
    moe_lm *lm = model_make(ctx, wide);
    must(ctx, moe_lm_save(lm, path));
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
    for (const char *const *format = moe_packed_formats(); *format; ++format) {
        check_format(path, "f32", *format);
        check_format(path, "bf16", *format);
    }
    free(path);
}

/* Loading takes the packed model and one layer unpacked, and not a byte more of experts. */
static void test_memory(void **state) {
    char *path = scratch_path(state, "m");
    meter m = {0};
    moe_ctx *ctx = metered_ctx(&m);
    moe_lm *lm = model_make(ctx, wide);
    must(ctx, moe_lm_save(lm, path));
    const size_t layer = sizeof(float) * 6 * 3 * 64 * 40;
    moe_lm_destroy(lm);
    const size_t before = m.now;
    m.most = before;
    lm = load(ctx, path, NULL, "int4");
    const size_t held = m.now - before, most = m.most - before;
    if (most > held + layer + layer / 4)
        fail_msg("%zu bytes while it was read, %zu held, a layer has %zu", most, held, layer);
    moe_lm_destroy(lm);
    m.most = before;
    lm = load(ctx, path, NULL, NULL);
    assert_true(held < (m.now - before) / 2);
    assert_true(m.most < m.now + layer / 4);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
    free(path);
}

/* Nothing of a model is there before all of its tensors are known to fit. */
static void test_refused_before_memory(void **state) {
    char *path = scratch_path(state, "r");
    meter m = {0};
    moe_ctx *ctx = metered_ctx(&m);
    moe_lm *lm = model_make(ctx, wide);
    must(ctx, moe_lm_save(lm, path));
    moe_lm_destroy(lm);
    edit e;
    moelm_safetensors *file = open_edit(path, &e);
    size_t at = 0;
    while (strcmp(e.tensor[at].name, "blocks.3.ffn.experts.down.weight") != 0) ++at;
    e.tensor[at].dim[0] -= 1;
    write_edit(path, "model.safetensors", e.tensor, e.count);
    const size_t before = m.now;
    m.most = before;
    lm = NULL;
    must_fail(ctx, moe_lm_load(ctx, path, &lm), MOE_ERR_INPUT,
              "blocks.3.ffn.experts.down.weight has the shape");
    if (m.most - before > 1 << 15) fail_msg("%zu bytes for a model that is refused", m.most - before);
    moelm_safetensors_close(file);
    moe_ctx_destroy(ctx);
    free(path);
}

static void test_refusals(void **state) {
    moe_ctx *ctx = test_ctx(NULL, 1);
    char *path = scratch_path(state, "w"), *other = scratch_path(state, "o");
    moe_lm *lm = model_make(ctx, NULL);
    must(ctx, moe_lm_save(lm, path));
    moe_lm_destroy(lm);
    lm = NULL;
    moe_lm_load_desc desc = {.size = sizeof desc, .experts = "int3"};
    must_fail(ctx, moe_lm_load_with(ctx, path, &desc, &lm), MOE_ERR_ARGUMENT, "'int3' is not one of: int8");
    desc = (moe_lm_load_desc){.size = sizeof desc, .experts = "int4", .experts_group = 48};
    must_fail(ctx, moe_lm_load_with(ctx, path, &desc, &lm), MOE_ERR_ARGUMENT, "it has 32, 64 and 128");
    must_fail(ctx, moe_lm_load_with(ctx, path, NULL, &lm), MOE_ERR_ARGUMENT, "moe_lm_load_desc");
    desc.experts_group = 128;
    assert_null(lm);
    must_fail(ctx, moe_lm_load_with(ctx, path, &desc, NULL), MOE_ERR_ARGUMENT, "lm is NULL");
    must_fail(ctx, moe_lm_load_with(ctx, NULL, &desc, &lm), MOE_ERR_ARGUMENT, "directory is NULL");
    must(ctx, moe_lm_load_with(ctx, path, &desc, &lm));
    must_fail(ctx, moe_lm_save(lm, other), MOE_ERR_STATE, "drop_weights");
    assert_int_equal(moe_lm_reserve(lm, 1, 4, MOE_TRAIN), MOE_ERR_STATE);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
    free(other);
    free(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_formats, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_memory, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_refused_before_memory, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_refusals, scratch_setup, scratch_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
