/* test_layer_quantize.c: a layer with packed experts is the layer whose experts have the numbers that were
 * packed. To the bit in f32 (nf4 on the reference: to 1e-6, as its products do not round the numbers first);
 * in bf16 to 1e-2 of the norm, as written back they are rounded once more, but bf16x2 to the bit there too.
 */
#include "support/layer_fixture.h"

#include "core/real.h"

enum { TOKENS = 37 };

static const moe_layer_desc plain = {.size = sizeof(moe_layer_desc),
                                     .d_model = 72,
                                     .num_experts = 5,
                                     .top_k = 2,
                                     .expert_hidden_size = 40,
                                     .init_std = 0.3F};

/* clang-format off */
static const moe_quant_desc formats[] = {
    {.size = sizeof(moe_quant_desc), .format = "int8"},
    {.size = sizeof(moe_quant_desc), .format = "int8", .group = 128},
    {.size = sizeof(moe_quant_desc), .format = "int4"},
    {.size = sizeof(moe_quant_desc), .format = "int4", .group = 64},
    {.size = sizeof(moe_quant_desc), .format = "nf4"},
    {.size = sizeof(moe_quant_desc), .format = "mxfp4"},
    {.size = sizeof(moe_quant_desc), .format = "bf16x2"},
};
/* clang-format on */
enum { N_FORMATS = sizeof formats / sizeof *formats };

static moe_layer *make(moe_ctx *ctx, const moe_layer_desc *desc, moe_dtype dtype) {
    moe_layer_desc told = *desc;
    moe_layer *layer = NULL;
    told.dtype = dtype;
    must(ctx, moe_layer_create(ctx, &told, &layer));
    must(ctx, moe_layer_reserve(layer, TOKENS, MOE_INFER));
    for (int32_t i = 0; i < moe_layer_param_count(layer); ++i) { /* biases begin at zero */
        moe_param param = {.size = sizeof param};
        must(ctx, moe_layer_param(layer, i, &param));
        if (strstr(param.name, "bias"))
            moe_random_normal(test_seed(), MOE_DRAW_TEST, 77, (uint64_t)i, param.dtype, param.value,
                              param.dim[0] * param.dim[1] * param.dim[2], 0.3);
    }
    return layer;
}

/* The experts' matrices through the format, written back. */
static void write_back(moe_ctx *ctx, moe_layer *layer, const moe_quant_desc *quant) {
    static const char *const names[] = {"experts.up.weight", "experts.down.weight", "shared.up.weight",
                                        "shared.down.weight"};
    for (size_t i = 0; i < sizeof names / sizeof *names; ++i) {
        moe_param param = {.size = sizeof param};
        if (moe_layer_param_by_name(layer, names[i], &param) != MOE_OK) continue;
        const moe_packed_desc desc = {.size = sizeof desc,
                                      .format = quant->format,
                                      .group = quant->group,
                                      .dtype = param.dtype,
                                      .n_groups = (int32_t)param.dim[0],
                                      .k = param.dim[1],
                                      .n = param.dim[2]};
        moe_packed *packed = NULL;
        must(ctx, moe_packed_create(ctx, &desc, param.value, &packed));
        must(ctx, moe_packed_read(packed, param.value));
        moe_packed_destroy(packed);
    }
}

static moe_mat forward(moe_ctx *ctx, moe_layer *layer, moe_mat x) {
    moe_mat y = test_output(x.dtype, x.rows, moe_layer_get_desc(layer)->output_size);
    must(ctx, moe_layer_forward(layer, x, y, NULL, NULL));
    return y;
}

/* Norm of a - b over the norm of b. */
static double distance(moe_mat a, moe_mat b) {
    double off = 0, size = 0;
    for (int64_t i = 0; i < a.rows * a.cols; ++i) {
        const double want = moei_real_load(b.dtype, b.data, i);
        off += pow(moei_real_load(a.dtype, a.data, i) - want, 2);
        size += want * want;
    }
    assert_true(size > 0);
    return sqrt(off / size);
}

static void check_law(const char *isa, const moe_layer_desc *desc, moe_dtype dtype,
                      const moe_quant_desc *quant) {
    moe_ctx *ctx = test_ctx(isa, 2);
    moe_layer *packed = make(ctx, desc, dtype), *written = make(ctx, desc, dtype);
    moe_mat x = test_random(dtype, TOKENS, desc->d_model, 5);
    must(ctx, moe_layer_quantize(packed, quant));
    write_back(ctx, written, quant);
    moe_mat got = forward(ctx, packed, x), want = forward(ctx, written, x);
    const bool exact =
        strcmp(quant->format, "bf16x2") == 0 || (dtype == MOE_F32 && strcmp(quant->format, "nf4") != 0);
    const double off = distance(got, want);
    if (exact ? memcmp(got.data, want.data, test_bytes(got)) != 0
              : !(off <= (dtype == MOE_BF16 ? 1e-2 : 1e-6)))
        fail_msg("%s, %s, groups of %d, dtype %d: off by %g", isa ? isa : "best", quant->format, quant->group,
                 (int)dtype, off);
    free(x.data), free(got.data), free(want.data);
    moe_layer_destroy(packed), moe_layer_destroy(written);
    moe_ctx_destroy(ctx);
}

static void test_packed_is_written_back(void **state) {
    (void)state;
    moe_layer_desc shared = plain, wide = plain, pass = plain, dense = plain;
    shared.num_shared_experts = 2, shared.shared_expert_gate = true, shared.expert_bias = true;
    wide.expert_hidden_size = 130, wide.d_model = 200, wide.activation = "relu", wide.output_size = 24;
    pass.activation = "swigluoai", pass.latent_size = 33;
    dense.num_experts = dense.top_k = dense.expert_hidden_size = 0, dense.num_shared_experts = 1,
    dense.shared_expert_hidden_size = 70;
    const moe_layer_desc *const layers[] = {&plain, &shared, &wide, &pass, &dense};
    for (size_t l = 0; l < sizeof layers / sizeof *layers; ++l)
        for (int f = 0; f < N_FORMATS; ++f) {
            check_law(NULL, layers[l], MOE_F32, &formats[f]);
            check_law("ref", layers[l], MOE_F32, &formats[f]);
            check_law(NULL, layers[l], MOE_BF16, &formats[f]);
        }
    check_law(NULL, &plain, MOE_F64, &formats[2]);
}

/* One token after another, and with other threads: the same bits as together. */
static void test_same_bits_alone_and_together(void **state) {
    (void)state;
    for (int f = 0; f < N_FORMATS; ++f) {
        const moe_dtype dtype = f % 2 ? MOE_F32 : MOE_BF16;
        moe_mat x = test_random(dtype, TOKENS, plain.d_model, 6), y[2], one;
        moe_ctx *ctx[2] = {test_ctx(NULL, 1), test_ctx(NULL, 3)};
        for (int i = 0; i < 2; ++i) {
            moe_layer *layer = make(ctx[i], &plain, dtype);
            must(ctx[i], moe_layer_quantize(layer, &formats[f]));
            y[i] = forward(ctx[i], layer, x);
            for (int64_t t = 0; t < TOKENS && i == 0; ++t) {
                const size_t row = (size_t)plain.d_model * moe_dtype_bytes(dtype);
                const moe_mat token = {(char *)x.data + (size_t)t * row, 1, x.cols, x.cols, dtype};
                one = forward(ctx[i], layer, token);
                assert_memory_equal(one.data, (char *)y[i].data + (size_t)t * row, row);
                free(one.data);
            }
            moe_layer_destroy(layer);
            moe_ctx_destroy(ctx[i]);
        }
        assert_memory_equal(y[0].data, y[1].data, test_bytes(y[0]));
        free(x.data), free(y[0].data), free(y[1].data);
    }
}

/* Each format is about as far from the plain layer as its numbers are from the weights. */
static void test_distance_from_plain(void **state) {
    (void)state;
    static const double most[] = {0.02, 0.02, 0.25, 0.25, 0.25, 0.3, 0.005};
    moe_ctx *ctx = test_ctx(NULL, 2);
    moe_layer_desc desc = plain;
    desc.d_model = 256, desc.expert_hidden_size = 128;
    moe_layer *layer = make(ctx, &desc, MOE_F32);
    moe_mat x = test_random(MOE_F32, TOKENS, desc.d_model, 7), want = forward(ctx, layer, x);
    for (int f = 0; f < N_FORMATS; ++f) {
        must(ctx, moe_layer_quantize(layer, &formats[f]));
        moe_mat got = forward(ctx, layer, x);
        const double off = distance(got, want);
        fprintf(stderr, "%s, groups of %d: y is off by %.4f\n", formats[f].format, formats[f].group, off);
        assert_true(off > 1e-4 && off < most[f]);
        free(got.data);
    }
    must(ctx, moe_layer_quantize(layer, NULL)); /* its own weights again */
    moe_mat again = forward(ctx, layer, x);
    assert_memory_equal(again.data, want.data, test_bytes(want));
    free(x.data), free(want.data), free(again.data);
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
}

static void refused(moe_ctx *ctx, moe_status got, moe_status want, const char *text) {
    assert_int_equal(got, want);
    if (!strstr(moe_ctx_error(ctx), text)) fail_msg("'%s' says nothing of '%s'", moe_ctx_error(ctx), text);
}

static moe_layer_bytes measured(moe_ctx *ctx, const moe_layer *layer) {
    moe_layer_bytes bytes = {.size = sizeof bytes};
    must(ctx, moe_layer_measure(layer, TOKENS, MOE_INFER, &bytes));
    return bytes;
}

static void test_dropped_weights(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_layer *layer = make(ctx, &plain, MOE_F32);
    moe_mat x = test_random(MOE_F32, TOKENS, plain.d_model, 8);
    const moe_layer_bytes before = measured(ctx, layer);
    moe_quant_desc drop = formats[2];
    must(ctx, moe_layer_quantize(layer, &drop));
    const moe_layer_bytes both = measured(ctx, layer);
    moe_mat kept = forward(ctx, layer, x);
    drop.drop_weights = true;
    must(ctx, moe_layer_quantize(layer, &drop));
    const moe_layer_bytes after = measured(ctx, layer);
    moe_mat y = forward(ctx, layer, x);
    assert_memory_equal(y.data, kept.data, test_bytes(y));
    assert_int_equal(before.packed, 0);
    assert_int_equal(both.params, before.params);
    /* up: 72 rows are three groups of 32, gate and up of 40 columns a panel each; down: two groups, two
     * panels; a block of a panel is 64 scales of 2 bytes and 32 rows of half a byte. */
    assert_int_equal(both.packed, 5 * (3 * 2 + 2 * 2) * 64 * (2 + 16));
    assert_int_equal(after.packed, both.packed);
    assert_int_equal(before.params - after.params, 5 * 3 * 72 * 40 * sizeof(float));
    moe_param param = {.size = sizeof param};
    must(ctx, moe_layer_param_by_name(layer, "experts.down.weight", &param));
    assert_null(param.value);
    must(ctx, moe_layer_param_by_name(layer, "gate.weight", &param));
    assert_non_null(param.value);
    const char *gone = "drop_weights has given this layer's weights back", *train = "only a new layer can";
    moe_layer_bytes bytes = {.size = sizeof bytes};
    refused(ctx, moe_layer_quantize(layer, NULL), MOE_ERR_STATE, gone);
    refused(ctx, moe_layer_quantize(layer, &drop), MOE_ERR_STATE, gone);
    refused(ctx, moe_layer_reserve(layer, TOKENS, MOE_TRAIN), MOE_ERR_STATE, train);
    refused(ctx, moe_layer_measure(layer, TOKENS, MOE_TRAIN, &bytes), MOE_ERR_STATE, train);
    free(x.data), free(y.data), free(kept.data);
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
}

/* A layer that was trained: the gradients of what is dropped go too, those of what stays do not. */
static void test_trained_then_dropped(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_layer_desc desc = plain;
    desc.num_shared_experts = 1, desc.expert_bias = true;
    moe_layer *layer = test_layer(ctx, &desc, TOKENS);
    moe_mat x = test_random(MOE_F32, TOKENS, desc.d_model, 10), y = forward(ctx, layer, x), again;
    must(ctx, moe_layer_forward(layer, x, y, &test_train_call, NULL));
    must(ctx, moe_layer_backward(layer, x, y, (moe_mat){0}));
    must(ctx, moe_layer_reserve(layer, TOKENS, MOE_INFER));
    must(ctx, moe_layer_quantize(
                  layer,
                  &(moe_quant_desc){.size = sizeof(moe_quant_desc), .format = "int8", .drop_weights = true}));
    int dropped = 0;
    for (int32_t i = 0; i < moe_layer_param_count(layer); ++i) {
        moe_param param = {.size = sizeof param};
        must(ctx, moe_layer_param(layer, i, &param));
        const bool matrix = strstr(param.name, "up.weight") || strstr(param.name, "down.weight");
        if ((matrix && (param.value || param.grad)) || (!matrix && !(param.value && param.grad)))
            fail_msg("%s: value %p, gradient %p", param.name, param.value, param.grad);
        dropped += matrix;
    }
    assert_int_equal(dropped, 4);
    moe_layer_zero_grad(layer);
    again = forward(ctx, layer, x);
    const double off = distance(again, y);
    if (!(off > 0 && off < 0.02)) fail_msg("y is off by %g", off);
    free(x.data), free(y.data), free(again.data);
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
}

static void test_refusals(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_layer *layer = test_layer(ctx, &plain, TOKENS);
    moe_quant_desc unknown = formats[0];
    unknown.format = "fp4";
    refused(ctx, moe_layer_quantize(layer, &formats[0]), MOE_ERR_STATE,
            "the layer is reserved for MOE_TRAIN");
    must(ctx, moe_layer_reserve(layer, TOKENS, MOE_INFER));
    refused(ctx, moe_layer_quantize(layer, &unknown), MOE_ERR_ARGUMENT, "format: 'fp4' is not one of");
    must(ctx, moe_layer_quantize(layer, &formats[0]));
    moe_layer_bytes bytes = {.size = sizeof bytes};
    refused(ctx, moe_layer_reserve(layer, TOKENS, MOE_TRAIN), MOE_ERR_STATE,
            "choose MOE_INFER, or call it with NULL first");
    refused(ctx, moe_layer_measure(layer, TOKENS, MOE_TRAIN, &bytes), MOE_ERR_STATE,
            "has packed the weights");
    moe_mat x = test_random(MOE_F32, TOKENS, plain.d_model, 9), y = forward(ctx, layer, x), again;
    refused(ctx, moe_layer_quantize(layer, &unknown), MOE_ERR_ARGUMENT, "'fp4'");
    moe_param param = {.size = sizeof param};
    must(ctx, moe_layer_param_by_name(layer, "experts.down.weight", &param));
    ((float *)param.value)[0] = INFINITY;
    refused(ctx, moe_layer_quantize(layer, &formats[2]), MOE_ERR_NUMERIC, "expert 0");
    again = forward(ctx, layer, x); /* still as it was */
    assert_memory_equal(y.data, again.data, test_bytes(y));
    must(ctx, moe_layer_quantize(layer, NULL));
    must(ctx, moe_layer_reserve(layer, TOKENS, MOE_TRAIN));
    moe_layer_destroy(layer);
    moe_layer_desc mixed = plain;
    mixed.expert_kinds = "40,40,8,identity,zero";
    layer = make(ctx, &mixed, MOE_F32);
    refused(ctx, moe_layer_quantize(layer, &formats[0]), MOE_ERR_UNSUPPORTED,
            "built-in ffn experts of one width");
    moe_layer_destroy(layer);
    free(x.data), free(y.data), free(again.data);
    moe_ctx_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_packed_is_written_back), cmocka_unit_test(test_same_bits_alone_and_together),
        cmocka_unit_test(test_distance_from_plain),    cmocka_unit_test(test_dropped_weights),
        cmocka_unit_test(test_trained_then_dropped),   cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
