/* test_cuda_packed.c: a layer with packed experts on a GPU against the same on the CPU's reference.
 * norm(difference) / norm <= 1e-5 in f32, 1e-2 in bf16; a token has the same bits alone as among others.
 * Skipped by name where there is no GPU or no CUDA.
 */
#include "support/layer_fixture.h"

#include "core/real.h"

#include <moekit/cuda.h>
#include <moekit/quant.h>

enum { MOST_TOKENS = 45 };

static moe_ctx *cuda_ctx(void) {
    moe_ctx_desc desc = {.size = sizeof desc, .device = MOE_CUDA, .seed = test_seed()};
    moe_ctx *ctx = NULL;
    moe_error error = {0};
    if (moe_ctx_create(&desc, &ctx, &error) == MOE_OK) return ctx;
    assert_int_equal(error.status, MOE_ERR_UNSUPPORTED);
    fprintf(stderr, "not run here: %s\n", error.text);
    return NULL;
}

/* A layer of this context with drawn parameters, the same on every device. */
static moe_layer *make(moe_ctx *ctx, const moe_layer_desc *desc) {
    moe_layer *layer = NULL;
    must(ctx, moe_layer_create(ctx, desc, &layer));
    must(ctx, moe_layer_reserve(layer, MOST_TOKENS, MOE_INFER));
    for (int32_t i = 0; i < moe_layer_param_count(layer); ++i) {
        moe_param param = {.size = sizeof param};
        must(ctx, moe_layer_param(layer, i, &param));
        moe_mat value =
            test_random(param.dtype, 1, param.dim[0] * param.dim[1] * param.dim[2], 60 + (uint32_t)i);
        must(ctx, moe_memory_copy(ctx, param.value, value.data, test_bytes(value)));
        free(value.data);
    }
    return layer;
}

/* y of tokens first .. first+n-1 of x, on the host. */
static moe_mat forward(moe_ctx *ctx, moe_layer *layer, moe_mat x, int64_t first, int64_t n) {
    const size_t real = moe_dtype_bytes(x.dtype);
    moe_mat y = test_output(x.dtype, n, moe_layer_get_desc(layer)->output_size), in = y, out = y;
    in.rows = n, in.cols = in.stride = x.cols;
    in.data = moe_memory_alloc(ctx, test_bytes(in));
    out.data = moe_memory_alloc(ctx, test_bytes(y));
    assert_true(in.data && out.data);
    must(ctx,
         moe_memory_copy(ctx, in.data, (char *)x.data + (size_t)(first * x.cols) * real, test_bytes(in)));
    must(ctx, moe_memory_copy(ctx, out.data, y.data, test_bytes(y))); /* NaN */
    must(ctx, moe_layer_forward(layer, in, out, NULL, NULL));
    must(ctx, moe_memory_copy(ctx, y.data, out.data, test_bytes(y)));
    moe_memory_free(ctx, in.data, test_bytes(in));
    moe_memory_free(ctx, out.data, test_bytes(y));
    return y;
}

static void check_layer(moe_ctx *gpu, moe_ctx *cpu, const moe_layer_desc *desc, const moe_quant_desc *quant) {
    moe_layer *ours = make(gpu, desc), *exact = make(cpu, desc);
    must(gpu, moe_layer_quantize(ours, quant));
    must(cpu, moe_layer_quantize(exact, quant));
    moe_mat x = test_random(desc->dtype, MOST_TOKENS, desc->d_model, 50);
    for (int64_t n = 1; n <= MOST_TOKENS; n += n < 3 ? 1 : 21) {
        moe_mat got = forward(gpu, ours, x, 0, n), want = forward(cpu, exact, x, 0, n);
        moe_mat last = forward(gpu, ours, x, n - 1, 1);
        double off = 0, size = 0;
        for (int64_t i = 0; i < got.rows * got.cols; ++i) {
            const double w = moei_real_load(want.dtype, want.data, i);
            off += pow(moei_real_load(got.dtype, got.data, i) - w, 2);
            size += w * w;
        }
        if (!(sqrt(off / size) <= (desc->dtype == MOE_BF16 ? 1e-2 : 1e-5)))
            fail_msg("%s, groups of %d, dtype %d, %lld tokens: off by %g", quant->format, quant->group,
                     (int)desc->dtype, (long long)n, sqrt(off / size));
        const size_t row = (size_t)got.cols * moe_dtype_bytes(got.dtype);
        assert_memory_equal(last.data, (char *)got.data + (size_t)(n - 1) * row, row);
        free(got.data), free(want.data), free(last.data);
    }
    free(x.data);
    moe_layer_destroy(ours), moe_layer_destroy(exact);
}

static void test_packed_layers(void **state) {
    static const moe_quant_desc formats[] = {
        {.size = sizeof(moe_quant_desc), .format = "int8"                 },
        {.size = sizeof(moe_quant_desc), .format = "int8",                  .group = 128},
        {.size = sizeof(moe_quant_desc),                              .format = "int4"                                 },
        {.size = sizeof(moe_quant_desc),                              .format = "int4", .group = 64, .drop_weights = true},
        {.size = sizeof(moe_quant_desc),                   .format = "nf4"                               },
        {.size = sizeof(moe_quant_desc), .format = "mxfp4"},
    };
    static const moe_layer_desc layers[] = {
        {.size = sizeof(moe_layer_desc),
         .d_model = 256,
         .num_experts = 16,
         .top_k = 4,
         .expert_hidden_size = 96},
        { .size = sizeof(moe_layer_desc),
         .d_model = 1100,
         .num_experts = 3,
         .top_k = 2,
         .expert_hidden_size = 44,
         .expert_bias = true,
         .num_shared_experts = 1,
         .activation = "gelu"},
        {    .size = sizeof(moe_layer_desc),
         .d_model = 72,
         .num_experts = 5,
         .top_k = 1,
         .expert_hidden_size = 40,
         .activation = "swigluoai"},
    };
    moe_ctx *gpu = cuda_ctx();
    (void)state;
    if (!gpu) skip();
    moe_ctx *cpu = test_ctx("ref", 2);
    for (size_t l = 0; l < sizeof layers / sizeof *layers; ++l)
        for (size_t f = 0; f < sizeof formats / sizeof *formats; ++f)
            for (int wide = 0; wide < 2; ++wide) {
                moe_layer_desc desc = layers[l];
                desc.dtype = wide ? MOE_F32 : MOE_BF16;
                check_layer(gpu, cpu, &desc, &formats[f]);
            }
    moe_ctx_destroy(gpu), moe_ctx_destroy(cpu);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_packed_layers)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
