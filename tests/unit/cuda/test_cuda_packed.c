/* test_cuda_packed.c: a layer with packed experts on a GPU against the same on the CPU's reference.
 * norm(difference) / norm <= 1e-5 in f32, 1e-2 in bf16. Its products: a row has the same bits alone as among
 * others.
 * Skipped by name where there is no GPU or no CUDA.
 */
#include "unit/cuda/cuda_fixture.h"

#include "core/real.h"

#include <moekit/op.h>

enum { MOST_TOKENS = 45 };

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
        /* Logits as large as sqrt(d) make of a sum's order alone a difference of 1e-5 in the weights. */
        for (int64_t j = 0; strcmp(param.name, "gate.weight") == 0 && j < value.cols; ++j)
            moei_real_store(value.dtype, value.data, j, moei_real_load(value.dtype, value.data, j) / 16);
        must(ctx, moe_memory_copy(ctx, param.value, value.data, test_bytes(value)));
        free(value.data);
    }
    return layer;
}

/* y of the first n tokens of x, on the host; the first `masked` of them are padding. */
static moe_mat forward(moe_ctx *ctx, moe_layer *layer, moe_mat x, int64_t n, int64_t masked) {
    uint8_t mask[MOST_TOKENS];
    for (int64_t t = 0; t < n; ++t) mask[t] = t >= masked;
    moe_call call = {.size = sizeof call};
    moe_mat y = test_output(x.dtype, n, moe_layer_get_desc(layer)->output_size), in = y, out = y;
    in.rows = n, in.cols = in.stride = x.cols;
    in.data = moe_memory_alloc(ctx, test_bytes(in));
    out.data = moe_memory_alloc(ctx, test_bytes(y));
    uint8_t *real = moe_memory_alloc(ctx, (size_t)n);
    assert_true(in.data && out.data && real);
    must(ctx, moe_memory_copy(ctx, real, mask, (size_t)n));
    if (masked > 0) call.token_mask = real;
    must(ctx, moe_memory_copy(ctx, in.data, x.data, test_bytes(in)));
    must(ctx, moe_memory_copy(ctx, out.data, y.data, test_bytes(y))); /* NaN */
    must(ctx, moe_layer_forward(layer, in, out, &call, NULL));
    must(ctx, moe_memory_copy(ctx, y.data, out.data, test_bytes(y)));
    moe_memory_free(ctx, real, (size_t)n);
    moe_memory_free(ctx, in.data, test_bytes(in));
    moe_memory_free(ctx, out.data, test_bytes(y));
    return y;
}

/* Few tokens are multiplied by kernels of their own, with padding among them too. */
static void check_layer(moe_ctx *gpu, moe_ctx *cpu, const moe_layer_desc *desc, const moe_quant_desc *quant) {
    static const struct {
        int64_t tokens, masked;
    } calls[] = {
        {1,  0},
        {1,  1},
        {2,  0},
        {2,  2},
        {3,  0},
        {3,  1},
        {16, 0},
        {16, 1},
        {45, 0}
    };
    moe_layer *ours = make(gpu, desc), *exact = make(cpu, desc);
    must(gpu, moe_layer_quantize(ours, quant));
    must(cpu, moe_layer_quantize(exact, quant));
    moe_mat x = test_random(desc->dtype, MOST_TOKENS, desc->d_model, 50);
    for (size_t c = 0; c < sizeof calls / sizeof *calls; ++c) {
        const int64_t n = calls[c].tokens, masked = calls[c].masked;
        moe_mat got = forward(gpu, ours, x, n, masked), again = forward(gpu, ours, x, n, masked),
                want = forward(cpu, exact, x, n, masked);
        double off = 0, size = 0;
        for (int64_t i = 0; i < got.rows * got.cols; ++i) {
            const double w = moei_real_load(want.dtype, want.data, i);
            off += pow(moei_real_load(got.dtype, got.data, i) - w, 2);
            size += w * w;
        }
        if (!(sqrt(off) <= (desc->dtype == MOE_BF16 ? 1e-2 : 1e-5) * sqrt(size)))
            fail_msg("%s, groups of %d, dtype %d, %lld tokens, %lld masked: off by %g of %g", quant->format,
                     quant->group, (int)desc->dtype, (long long)n, (long long)masked, sqrt(off), sqrt(size));
        assert_memory_equal(got.data, again.data, test_bytes(got));
        free(got.data), free(again.data), free(want.data);
    }
    free(x.data);
    moe_layer_destroy(ours), moe_layer_destroy(exact);
}

static void test_packed_layers(void **state) {
    /* clang-format off */
    static const moe_quant_desc formats[] = {
        {.size = sizeof(moe_quant_desc), .format = "int8"},
        {.size = sizeof(moe_quant_desc), .format = "int8", .group = 128},
        {.size = sizeof(moe_quant_desc), .format = "int4"},
        {.size = sizeof(moe_quant_desc), .format = "int4", .group = 64, .drop_weights = true},
        {.size = sizeof(moe_quant_desc), .format = "nf4"},
        {.size = sizeof(moe_quant_desc), .format = "mxfp4"},
    };
    /* clang-format on */
    static const moe_layer_desc layers[] = {
        {.size = sizeof(moe_layer_desc),
         .d_model = 256,
         .num_experts = 16,
         .top_k = 4,
         .expert_hidden_size = 96 },
        { .size = sizeof(moe_layer_desc),
         .d_model = 1100,
         .num_experts = 3,
         .top_k = 2,
         .expert_hidden_size = 44,
         .expert_bias = true,
         .num_shared_experts = 1,
         .activation = "gelu"},
        {        .size = sizeof(moe_layer_desc),
         .d_model = 72,
         .num_experts = 5,
         .top_k = 1,
         .expert_hidden_size = 40,
         .activation = "swigluoai"},
        { .size = sizeof(moe_layer_desc), /* every expert has all tokens */
         .d_model = 264,
         .num_experts = 2,
         .top_k = 2,
         .expert_hidden_size = 136,
         .num_shared_experts = 1,
         .activation = "relu2"},
    };
    moe_ctx *gpu = cuda_ctx(NULL);
    (void)state;
    if (!gpu) skip();
    moe_ctx *cpu = test_ctx("ref", 2);
    const char *problem = getenv("MOEKIT_TEST_PROBLEM");
    for (size_t l = 0; l < sizeof layers / sizeof *layers; ++l)
        for (size_t f = 0; f < sizeof formats / sizeof *formats; ++f)
            for (int wide = 0; wide < (problem ? 1 : 2); ++wide) {
                moe_layer_desc desc = layers[l];
                if (problem && desc.d_model != atoi(problem)) continue;
                desc.dtype = wide ? MOE_F32 : MOE_BF16;
                check_layer(gpu, cpu, &desc, &formats[f]);
            }
    moe_ctx_destroy(gpu), moe_ctx_destroy(cpu);
}

/* A grouped product whose rows are all of the group in the middle. */
typedef struct shape {
    moe_dtype dtype;
    bool gated;
    int32_t n_groups;
    int64_t rows, k, n;
} shape;

static size_t real_bytes(const shape *s, int64_t n) {
    return (size_t)n * moe_dtype_bytes(s->dtype);
}

/* C, or where gated H, of rows first .. end-1; the others are as they were. */
static void product(moe_ctx *gpu, const shape *s, const moe_packed *packed, char *a, char *c, int64_t first,
                    int64_t end) {
    int64_t offset[4];
    const int64_t width = s->gated ? s->n / 2 : s->n;
    for (int32_t i = 0; i <= s->n_groups; ++i) offset[i] = i <= s->n_groups / 2 ? 0 : end - first;
    void *device = cuda_upload(gpu, offset, sizeof offset), *to = c + real_bytes(s, first * width);
    const moe_gemm_rows_args args = {.dtype = s->dtype,
                                     .epilogue = s->gated ? MOE_EPI_ACT : MOE_EPI_STORE,
                                     .act = s->gated ? MOE_ACT_SWIGLU : MOE_ACT_NONE,
                                     .n_groups = s->n_groups,
                                     .offset = device,
                                     .n_rows = end - first,
                                     .n = s->n,
                                     .k = s->k,
                                     .a = a + real_bytes(s, first * s->k),
                                     .lda = s->k,
                                     .b_packed = packed,
                                     .c = s->gated ? NULL : to,
                                     .ldc = s->gated ? 0 : width,
                                     .h = s->gated ? to : NULL,
                                     .ldh = s->gated ? width : 0};
    must(gpu, moe_gemm_rows(gpu, &args));
    must(gpu, moe_ctx_wait(gpu));
    moe_memory_free(gpu, device, sizeof offset);
}

/* All rows at once, then by ones, twos, threes ... in memory that is NaN again. */
static void check_batches(moe_ctx *gpu, const shape *s, const char *format, char *a, const void *b) {
    const int64_t width = s->gated ? s->n / 2 : s->n;
    const moe_mat together = test_output(s->dtype, s->rows, width),
                  alone = test_output(s->dtype, s->rows, width);
    const moe_packed_desc desc = {.size = sizeof desc,
                                  .format = format,
                                  .dtype = s->dtype,
                                  .n_groups = s->n_groups,
                                  .k = s->k,
                                  .n = s->n,
                                  .n_runs = s->gated ? 2 : 1};
    const size_t bytes = test_bytes(together);
    char *c = cuda_upload(gpu, together.data, bytes);
    moe_packed *packed = NULL;
    must(gpu, moe_packed_create(gpu, &desc, b, &packed));
    product(gpu, s, packed, a, c, 0, s->rows);
    must(gpu, moe_memory_copy(gpu, together.data, c, bytes));
    must(gpu, moe_memory_copy(gpu, c, alone.data, bytes));
    for (int64_t r = 0, n = 1; r < s->rows; r += n, ++n)
        product(gpu, s, packed, a, c, r, r + n < s->rows ? r + n : s->rows);
    must(gpu, moe_memory_copy(gpu, alone.data, c, bytes));
    for (int64_t i = 0; i < s->rows * width; ++i) {
        const double x = moei_real_load(s->dtype, together.data, i),
                     y = moei_real_load(s->dtype, alone.data, i);
        if (!(x == y))
            fail_msg("%s, dtype %d, k %lld, n %lld%s: row %lld, column %lld is %g alone, %g among others",
                     format, (int)s->dtype, (long long)s->k, (long long)s->n, s->gated ? " gated" : "",
                     (long long)(i / width), (long long)(i % width), y, x);
    }
    moe_packed_destroy(packed);
    moe_memory_free(gpu, c, bytes);
    free(together.data), free(alone.data);
}

/* The large ones give a block of the whole batch several tiles of columns, of a few rows one; A is kept from
 * one tile to the next where the sum is short. */
static void test_rows_do_not_depend_on_the_batch(void **state) {
    static const struct {
        bool gated;
        int32_t n_groups;
        int64_t rows, k, n;
    } sizes[] = {
        {false, 3, 21,  1100, 70  },
        {true,  3, 21,  1100, 76  },
        {false, 1, 400, 1100, 2080},
        {true,  1, 400, 1100, 4160},
        {false, 1, 400, 200,  2080},
        {true,  1, 400, 200,  4160},
    };
    moe_ctx *gpu = cuda_ctx(NULL);
    (void)state;
    if (!gpu) skip();
    for (size_t i = 0; i < 2 * sizeof sizes / sizeof *sizes; ++i) {
        const shape s = {i % 2 ? MOE_BF16 : MOE_F32, sizes[i / 2].gated, sizes[i / 2].n_groups,
                         sizes[i / 2].rows,          sizes[i / 2].k,     sizes[i / 2].n};
        moe_mat a = test_random(s.dtype, s.rows, s.k, 1), b = test_random(s.dtype, s.n_groups * s.k, s.n, 2);
        void *d_a = cuda_upload(gpu, a.data, test_bytes(a)), *d_b = cuda_upload(gpu, b.data, test_bytes(b));
        for (const char *const *format = moe_packed_formats(); *format; ++format)
            if (strcmp(*format, "bf16x2") != 0) check_batches(gpu, &s, *format, d_a, d_b);
        moe_memory_free(gpu, d_a, test_bytes(a)), moe_memory_free(gpu, d_b, test_bytes(b));
        free(a.data), free(b.data);
    }
    moe_ctx_destroy(gpu);
}

/* More tiles of rows than a second dimension of a grid has blocks: four rows, again and again. */
static void test_many_rows(void **state) {
    enum { ROWS = 270000, KINDS = 4, DEPTH = 32, WIDTH = 32 };
    moe_ctx *gpu = cuda_ctx(NULL);
    (void)state;
    if (!gpu) skip();
    moe_mat a = test_random(MOE_F32, KINDS, DEPTH, 1), b = test_random(MOE_F32, DEPTH, WIDTH, 2),
            c = test_output(MOE_F32, ROWS, WIDTH);
    int32_t *row = malloc(ROWS * sizeof *row);
    assert_non_null(row);
    for (int32_t r = 0; r < ROWS; ++r) row[r] = r % KINDS;
    const int64_t offset[] = {0, ROWS};
    void *d_a = cuda_upload(gpu, a.data, test_bytes(a)), *d_b = cuda_upload(gpu, b.data, test_bytes(b)),
         *d_c = cuda_upload(gpu, c.data, test_bytes(c)), *d_row = cuda_upload(gpu, row, ROWS * sizeof *row),
         *d_offset = cuda_upload(gpu, offset, sizeof offset);
    const moe_packed_desc desc = {
        .size = sizeof desc, .format = "int8", .n_groups = 1, .k = DEPTH, .n = WIDTH};
    moe_packed *packed = NULL;
    must(gpu, moe_packed_create(gpu, &desc, d_b, &packed));
    const moe_gemm_rows_args args = {.n_groups = 1,
                                     .offset = d_offset,
                                     .n_rows = ROWS,
                                     .n = WIDTH,
                                     .k = DEPTH,
                                     .a = d_a,
                                     .lda = DEPTH,
                                     .a_row = d_row,
                                     .b_packed = packed,
                                     .c = d_c,
                                     .ldc = WIDTH};
    must(gpu, moe_gemm_rows(gpu, &args));
    must(gpu, moe_ctx_wait(gpu));
    must(gpu, moe_memory_copy(gpu, c.data, d_c, test_bytes(c)));
    const float *got = c.data;
    for (int64_t i = 0; i < (int64_t)ROWS * WIDTH; ++i)
        if (!(got[i] == got[i % (KINDS * WIDTH)]))
            fail_msg("row %lld, column %lld is %g, not %g", (long long)(i / WIDTH), (long long)(i % WIDTH),
                     (double)got[i], (double)got[i % (KINDS * WIDTH)]);
    moe_packed_destroy(packed);
    moe_memory_free(gpu, d_a, test_bytes(a)), moe_memory_free(gpu, d_b, test_bytes(b));
    moe_memory_free(gpu, d_c, test_bytes(c)), moe_memory_free(gpu, d_row, ROWS * sizeof *row);
    moe_memory_free(gpu, d_offset, sizeof offset);
    free(a.data), free(b.data), free(c.data), free(row);
    moe_ctx_destroy(gpu);
}

/* What the GPU does not multiply is not packed there, and what was packed there is not read here. */
static void test_refusals(void **state) {
    static const int64_t offset[] = {0, 1};
    float b[2] = {1, 2}, a[2] = {3, 4}, c = 0;
    moe_packed_desc desc = {
        .size = sizeof desc, .format = "int8", .dtype = MOE_F64, .n_groups = 1, .k = 2, .n = 1};
    moe_packed *packed = NULL;
    moe_ctx *gpu = cuda_ctx(NULL);
    (void)state;
    if (!gpu) skip();
    moe_ctx *cpu = test_ctx(NULL, 1);
    assert_int_equal(moe_packed_create(gpu, &desc, b, &packed), MOE_ERR_UNSUPPORTED);
    assert_non_null(strstr(moe_ctx_error(gpu), "a CPU context has them"));
    assert_null(packed);
    void *d_b = cuda_upload(gpu, b, sizeof b);
    desc.dtype = MOE_F32;
    desc.format = "bf16x2";
    assert_int_equal(moe_packed_create(gpu, &desc, d_b, &packed), MOE_ERR_UNSUPPORTED);
    assert_non_null(strstr(moe_ctx_error(gpu), "the order that CPUs multiply in"));
    assert_null(packed);
    desc.format = "int8";
    must(gpu, moe_packed_create(gpu, &desc, d_b, &packed));
    const moe_gemm_rows_args args = {.n_groups = 1,
                                     .offset = offset,
                                     .n = 1,
                                     .k = 2,
                                     .a = a,
                                     .lda = 2,
                                     .b_packed = packed,
                                     .c = &c,
                                     .ldc = 1};
    assert_int_equal(moe_gemm_rows(cpu, &args), MOE_ERR_ARGUMENT);
    assert_non_null(strstr(moe_ctx_error(cpu), "b_packed was made by a context of cuda, device 0"));
    moe_packed_destroy(packed);
    moe_memory_free(gpu, d_b, sizeof b);
    moe_ctx_destroy(gpu), moe_ctx_destroy(cpu);
}

int main(void) {
    moe_ctx *gpu = cuda_ctx(NULL);
    if (!gpu) return 77;
    moe_ctx_destroy(gpu);
    /* For sanitizers, which take their time: one layer by its d_model, in bf16. */
    if (getenv("MOEKIT_TEST_PROBLEM")) cmocka_set_test_filter("test_packed_layers");
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_packed_layers),
                                       cmocka_unit_test(test_rows_do_not_depend_on_the_batch),
                                       cmocka_unit_test(test_many_rows), cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
