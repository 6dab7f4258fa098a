/* test_packed.c: packed weights: what each format makes of numbers, and the products that read them.
 * A product with B packed is the product with the numbers moe_packed_read gives: to the bit where the kernel
 * of an instruction set serves both, in f32 or in pairs of bf16; else within the bounds of gemm_test.h.
 */
#include "kernel/guarded.h"

#include "core/ctx.h"
#include "core/memory.h"
#include "kernel/act.h"
#include "kernel/packed.h"

#define COUNT(list) (sizeof(list) / sizeof(list)[0])

static const int64_t widths[] = {1, 7, 16, 40, 63, 64, 65, 128, 130, 200};
static const int64_t depths[] = {1, 3, 8, 31, 32, 33, 64, 100, 128, 200, 256, 257, 300, 520};
static const int64_t loads[] = {0, 0, 1, 1, 2, 3, 4, 5, 6, 13, 14, 15, 29, 70};

static moe_ctx *new_ctx(int32_t n_threads) {
    const moe_ctx_desc desc = {.size = sizeof desc, .n_threads = n_threads};
    moe_ctx *ctx = NULL;
    assert_int_equal(moe_ctx_create(&desc, &ctx, NULL), MOE_OK);
    return ctx;
}

static moe_packed *pack(moe_ctx *ctx, const moe_packed_desc *desc, const void *b) {
    moe_packed *packed = NULL;
    if (moe_packed_create(ctx, desc, b, &packed) != MOE_OK) fail_msg("%s", moe_ctx_error(ctx));
    return packed;
}

static moe_packed_desc describe(const char *format, int32_t group, moe_dtype dtype, int32_t n_groups,
                                int64_t k, int64_t n) {
    return (moe_packed_desc){.size = sizeof(moe_packed_desc),
                             .format = format,
                             .group = group,
                             .dtype = dtype,
                             .n_groups = n_groups,
                             .k = k,
                             .n = n};
}

/* One column of k numbers through a format. */
static void through(const char *format, moe_dtype dtype, const void *x, int64_t k, void *read) {
    moe_ctx *ctx = new_ctx(1);
    const moe_packed_desc desc = describe(format, 0, dtype, 1, k, 1);
    moe_packed *packed = pack(ctx, &desc, x);
    assert_int_equal(moe_packed_read(packed, read), MOE_OK);
    moe_packed_destroy(packed);
    moe_ctx_destroy(ctx);
}

/* A column whose largest number makes the scale 1; ties go to even codes. */
static void test_known_numbers(void **state) {
    (void)state;
    /* clang-format off */
    static const struct {
        const char *format;
        float x[10], want[10];
    } known[] = {
        {"int8",
         {127, -127, 0, 0.5F, 1.5F, -2.5F, 126.6F, 63, 0.49F, -0.51F},
         {127, -127, 0, 0, 2, -2, 127, 63, 0, -1}},
        {"int4", {7, -7, 0, 0.5F, 1.5F, -2.5F, 6.6F, 3, 0.49F, -0.51F}, {7, -7, 0, 0, 2, -2, 7, 3, 0, -1}},
        {"mxfp4",
         {6, -6, 0.25F, 0.26F, 2.5F, -5, 5.01F, 3.5F, -0.75F, 1.25F},
         {6, -6, 0, 0.5F, 2, -4, 6, 4, -1, 1}},
        {"nf4",
         {1, -1, 0, 0.04F, 0.5F, -0.7F, 0.0795803F, -0.1F, 0.9F, 0.2F},
         {1, -1, 0, 0.07958029955625534F, 0.44070982933044434F, -0.6961928009986877F, 0.07958029955625534F,
          -0.09105003625154495F, 1, 0.16093020141124725F}},
        {"bf16x2",
         {1, -1, -0.0F, 0x1.01p0F, 0x1.03p0F, -0x1.010002p0F, 0x1.febp127F, -0x1.ffp127F, 0x1p-133F, 3e38F},
         {1, -1, -0.0F, 1, 0x1.04p0F, -0x1.02p0F, 0x1.fep127F, -0x1.fep127F, 0x1p-133F, 0x1.c4p127F}},
    };
    /* clang-format on */
    for (size_t i = 0; i < COUNT(known); ++i) {
        float read[10];
        through(known[i].format, MOE_F32, known[i].x, 10, read);
        for (int j = 0; j < 10; ++j)
            if (read[j] != known[i].want[j])
                fail_msg("%s: %g is read as %.9g, not %.9g", known[i].format, (double)known[i].x[j],
                         (double)read[j], (double)known[i].want[j]);
    }
}

/* The largest number of a group is `size`: what the format reads for it, to +- `off`. */
static double largest_read(const char *format, double size, double *off) {
    static const struct {
        const char *format;
        double most;
    } codes[] = {
        {"int8", 127},
        {"int4", 7  },
        {"nf4",  1  }
    };
    for (size_t i = 0; i < COUNT(codes); ++i) {
        if (strcmp(codes[i].format, format) != 0) continue;
        const double scale = size / codes[i].most; /* as f16: ten bits, fewer below 2^-14, at most 65504 */
        const double want = scale > 65504 ? 65504 * codes[i].most : scale < 0x1p-25 ? 0 : size;
        *off = want > 0 ? fmax(0x1p-25 * codes[i].most, 0x1p-11 * want) : 0;
        return want;
    }
    if (strcmp(format, "bf16x2") == 0) {
        *off = fmax(0x1p-134, 0x1p-8 * size);
        if (size > 0x1.ffp127) *off = 0;
        return fmin(size, 0x1.fep127);
    }
    assert_string_equal(format, "mxfp4"); /* 5/4 of size at worst: e2m1 has nothing between 4 and 6 */
    const double want = size > 6 * 0x1p127 ? 6 * 0x1p127 : size < 0x1p-128 ? 0 : size;
    *off = size > want ? 0 : 0.25 * want;
    return want;
}

static void check_extreme(const char *format, moe_dtype dtype, double size) {
    enum { N = 200 };
    double x64[N], read64[N], off;
    float x32[N], read32[N];
    for (int i = 0; i < N; ++i) {
        x64[i] = (i % 2 ? -1 : 1) * size * ((double)(N - i) / N);
        x32[i] = (float)x64[i];
    }
    if (dtype == MOE_F64)
        through(format, dtype, x64, N, read64);
    else
        through(format, dtype, x32, N, read32);
    for (int i = 0; i < N; ++i) {
        const double x = dtype == MOE_F64 ? x64[i] : (double)x32[i];
        const double read = dtype == MOE_F64 ? read64[i] : (double)read32[i];
        if (!isfinite(read) || fabs(read) > 1.25 * size || (read != 0 && (read < 0) != (x < 0)))
            fail_msg("%s of %g: %g is read as %g", format, size, x, read);
    }
    const double read = dtype == MOE_F64 ? read64[0] : (double)read32[0];
    const double want = largest_read(format, size, &off);
    if (!(fabs(read - want) <= off))
        fail_msg("%s of %g, dtype %d: the largest is read as %g, not %g", format, size, (int)dtype, read,
                 want);
}

/* Numbers whose scale is subnormal, is lost, or is clamped. */
static void test_extremes(void **state) {
    static const double sizes[] = {0, 1e-44, 1e-30, 1e-12, 1e-6, 1e-5, 1e-3, 1, 1e6, 1e30, 3e38};
    static const double wide[] = {1e-300, 1e39, 1e45, 1e300, 1.7e308};
    (void)state;
    for (const char *const *format = moe_packed_formats(); *format; ++format) {
        for (size_t s = 0; s < COUNT(sizes); ++s) {
            check_extreme(*format, MOE_F32, sizes[s]);
            check_extreme(*format, MOE_F64, sizes[s]);
        }
        for (size_t s = 0; s < COUNT(wide); ++s) check_extreme(*format, MOE_F64, wide[s]);
    }
}

/* What has been packed once is packed to the same numbers; and the error is about what a code of so many bits
 * allows for N(0, 1). */
static void test_error_and_idempotence(void **state) {
    (void)state;
    enum { K = 512, N = 96 };
    static const struct {
        const char *format;
        int32_t group;
        double least, most; /* norm of the error over that of the numbers */
    } expected[] = {
        {"int8",   32,  0.004, 0.006},
        {"int8",   128, 0.005, 0.008},
        {"int4",   32,  0.09,  0.105},
        {"int4",   64,  0.10,  0.115},
        {"int4",   128, 0.10,  0.13 },
        {"nf4",    64,  0.08,  0.10 },
        {"mxfp4",  32,  0.10,  0.13 },
        {"bf16x2", 0,   0.001, 0.002},
    };
    moe_ctx *ctx = new_ctx(2);
    float *x = malloc(sizeof *x * K * N), *once = malloc(sizeof *x * K * N),
          *twice = malloc(sizeof *x * K * N);
    moe_random_normal(20261122, MOE_DRAW_TEST, 0, 0, MOE_F32, x, K * N, 1);
    for (size_t i = 0; i < COUNT(expected); ++i) {
        const moe_packed_desc desc = describe(expected[i].format, expected[i].group, MOE_F32, 1, K, N);
        moe_packed *first = pack(ctx, &desc, x);
        assert_int_equal(moe_packed_read(first, once), MOE_OK);
        moe_packed *second = pack(ctx, &desc, once);
        assert_int_equal(moe_packed_read(second, twice), MOE_OK);
        assert_memory_equal(once, twice, sizeof *x * K * N);
        double off = 0, size = 0;
        for (int j = 0; j < K * N; ++j) {
            off += pow((double)once[j] - (double)x[j], 2);
            size += pow((double)x[j], 2);
        }
        print_message("%s, groups of %d: relative error %.4f, %.2f bits a weight\n", expected[i].format,
                      expected[i].group, sqrt(off / size), 8.0 * (double)moe_packed_bytes(first) / (K * 128));
        assert_in_range((int)(1e6 * sqrt(off / size)), (int)(1e6 * expected[i].least),
                        (int)(1e6 * expected[i].most));
        moe_packed_destroy(first);
        moe_packed_destroy(second);
    }
    free(x), free(once), free(twice);
    moe_ctx_destroy(ctx);
}

static void refused(moe_ctx *ctx, moe_packed_desc desc, const void *b, moe_status status, const char *text) {
    moe_packed *packed = NULL;
    assert_int_equal(moe_packed_create(ctx, &desc, b, &packed), status);
    assert_null(packed);
    if (!strstr(moe_ctx_error(ctx), text)) fail_msg("'%s' says nothing of '%s'", moe_ctx_error(ctx), text);
}

static void test_refusals(void **state) {
    (void)state;
    moe_ctx *ctx = new_ctx(1);
    float b[4] = {1, 2, 3, NAN};
    const moe_packed_desc good = describe("int4", 0, MOE_F32, 2, 2, 1);
    moe_packed_desc bad = good;
    refused(ctx, good, b, MOE_ERR_NUMERIC, "expert 1");
    refused(ctx, good, NULL, MOE_ERR_ARGUMENT, "b is NULL");
    bad.format = "int5";
    refused(ctx, bad, b, MOE_ERR_ARGUMENT, "'int5' is not one of: int8, int4, nf4, mxfp4, bf16x2");
    bad = good, bad.group = 48;
    refused(ctx, bad, b, MOE_ERR_ARGUMENT, "int4 has no groups of 48; it has 32, 64 and 128");
    bad = good, bad.format = "mxfp4", bad.group = 64;
    refused(ctx, bad, b, MOE_ERR_ARGUMENT, "mxfp4 has no groups of 64; it has 32");
    bad = good, bad.format = "bf16x2", bad.group = 32;
    refused(ctx, bad, b, MOE_ERR_ARGUMENT, "bf16x2 has no scales, so no groups of 32; it must be 0");
    bad = good, bad.n_runs = 2;
    refused(ctx, bad, b, MOE_ERR_ARGUMENT, "two of equal width");
    bad = good, bad.k = 0;
    refused(ctx, bad, b, MOE_ERR_ARGUMENT, "at least 1");
    bad = good, bad.k = (int64_t)1 << 40, bad.n = (int64_t)1 << 30; /* 2^70 numbers, then 2^49 */
    refused(ctx, bad, b, MOE_ERR_ARGUMENT, "more than 2^48 numbers");
    bad = good, bad.k = bad.n = (int64_t)1 << 24;
    refused(ctx, bad, b, MOE_ERR_ARGUMENT, "2 matrices of [16777216, 16777216] are more than 2^48 numbers");
    moe_ctx_destroy(ctx);
}

static void product_refused(moe_ctx *ctx, moe_gemm_rows_args args, const char *text) {
    assert_int_equal(moe_gemm_rows(ctx, &args), MOE_ERR_ARGUMENT);
    if (!strstr(moe_ctx_error(ctx), text)) fail_msg("'%s' says nothing of '%s'", moe_ctx_error(ctx), text);
}

/* A product refuses what was packed for another, and what lies on another device. */
static void test_products_refuse(void **state) {
    enum { K = 3, N = 4 };
    static const int64_t offset[] = {0, 1, 2};
    static const moei_device gpu = {.name = "cuda"};
    const float a[2 * K] = {1, 2, 3, 4, 5, 6}, b[2 * K * N] = {1, -2, 3};
    float c[2 * N] = {0};
    (void)state;
    moe_ctx *ctx = new_ctx(1);
    const moe_packed_desc desc = describe("int8", 0, MOE_F32, 2, K, N);
    moe_packed *packed = pack(ctx, &desc, b);
    const moe_gemm_rows_args good = {.n_groups = 2,
                                     .offset = offset,
                                     .n = N,
                                     .k = K,
                                     .a = a,
                                     .lda = K,
                                     .b_packed = packed,
                                     .c = c,
                                     .ldc = N};
    assert_int_equal(moe_gemm_rows(ctx, &good), MOE_OK);
    moe_gemm_rows_args bad = good;
    bad.n = 2;
    product_refused(ctx, bad, "moe_gemm_rows: b_packed was made for n 4; this call needs 2");
    bad = good, bad.k = 2;
    product_refused(ctx, bad, "b_packed was made for k 3; this call needs 2");
    bad = good, bad.n_groups = 1;
    product_refused(ctx, bad, "b_packed was made for n_groups 2; this call needs 1");
    bad = good, bad.dtype = MOE_BF16;
    product_refused(ctx, bad, "b_packed was made for dtype 0; this call needs 2");
    bad = good, bad.epilogue = MOE_EPI_ACT, bad.act = MOE_ACT_SWIGLU;
    product_refused(ctx, bad, "b_packed was made for n_runs 1; this call needs 2");
    bad = good, bad.epilogue = MOE_EPI_ACT_GRAD;
    product_refused(ctx, bad, "MOE_EPI_ACT_GRAD needs b");
    bad = good, bad.epilogue = MOE_EPI_ACT, bad.act = (moe_act)704; /* far behind the table of activations */
    product_refused(ctx, bad, "moe_gemm_rows: act is 704; it must lie in 0 .. 10");
    moe_ctx elsewhere = *ctx;
    elsewhere.device = &gpu;
    moe_packed far = *packed;
    far.ctx = &elsewhere;
    bad = good, bad.b_packed = &far;
    product_refused(ctx, bad, "b_packed was made by a context of cuda, device 0; this one computes on cpu");
    moe_packed_destroy(packed);
    moe_ctx_destroy(ctx);
}

/* One random product; the numbers it should read are `b`, [n_groups, k, n] of its dtype. */
typedef struct packed_case {
    test_random random;
    uint64_t seed;
    moe_ctx *ctx;
    moe_packed *packed;
    moe_gemm_rows_args args;
    int64_t offset[5], rows, n_h;
    int32_t *a_row;
    guarded a, b, bias, c, h;
} packed_case;

/* Of each group, where they are not drawn. */
typedef struct case_size {
    int32_t format;
    int64_t rows, n, k; /* n: gates alone */
} case_size;

static void make_sized_case(packed_case *p, uint64_t seed, moe_dtype dtype, const case_size *told) {
    *p = (packed_case){.random = {seed * 0x9e3779b97f4a7c15ULL + 1}, .seed = seed, .ctx = new_ctx(1)};
    test_random *random = &p->random;
    moe_gemm_rows_args *args = &p->args;
    const moe_act act = (moe_act)(seed % (MOE_ACT_GEGLU + 1));
    args->dtype = dtype;
    args->epilogue = seed % 3 ? MOE_EPI_ACT : MOE_EPI_STORE;
    args->act = args->epilogue == MOE_EPI_ACT ? act : MOE_ACT_NONE;
    if (seed % 5 == 0) args->act_numbers = (moe_act_numbers){1.702, 1.5, 1};
    const bool gated = moe_act_gated(args->act);
    args->n_groups = 1 + (int32_t)random_below(random, 4);
    for (int32_t g = 0; g < args->n_groups; ++g)
        p->offset[g + 1] = p->offset[g] + (told ? told->rows : random_of(random, loads, COUNT(loads)));
    p->rows = p->offset[args->n_groups];
    args->offset = p->offset;
    args->n = (told ? told->n : random_of(random, widths, COUNT(widths))) * (gated ? 2 : 1);
    args->k = told ? told->k : random_of(random, depths, COUNT(depths));
    static const char *const formats[] = {"int8", "int4", "nf4", "mxfp4", "bf16x2"};
    static const int32_t groups[] = {32, 64, 128};
    const uint64_t format = told ? (uint64_t)told->format : seed / 4 % COUNT(formats);
    moe_packed_desc desc = describe(formats[format], 0, dtype, args->n_groups, args->k, args->n);
    if (format < 2) desc.group = groups[random_below(random, 3)];
    desc.n_runs = gated ? 2 : 1;
    p->b = guarded_random(random, dtype, args->n_groups * args->k * args->n);
    p->packed = pack(p->ctx, &desc, p->b.data);
    assert_int_equal(moe_packed_read(p->packed, p->b.data), MOE_OK);
    args->b_packed = p->packed;
    args->lda = args->k + random_below(random, 3);
    args->ldc = args->n + random_below(random, 3);
    const int64_t a_rows = p->rows + 1;
    p->a_row = malloc((size_t)a_rows * sizeof *p->a_row);
    for (int64_t r = 0; r < a_rows; ++r) p->a_row[r] = (int32_t)random_below(random, a_rows);
    if (random_below(random, 2)) args->a_row = p->a_row;
    p->a = guarded_random(random, dtype, a_rows * args->lda), args->a = p->a.data;
    p->bias = guarded_random(random, dtype, args->n_groups * args->n);
    if (random_below(random, 2)) args->bias = p->bias.data;
    args->c_wide = args->epilogue == MOE_EPI_STORE && random_below(random, 2);
    p->c = guarded_new(args->c_wide ? moei_wide(dtype) : dtype, a_rows * args->ldc), args->c = p->c.data;
    p->n_h = gated ? args->n / 2 : args->n, args->ldh = p->n_h + random_below(random, 3);
    p->h = guarded_new(dtype, a_rows * args->ldh), args->h = p->h.data;
}

static void make_case(packed_case *p, uint64_t seed, moe_dtype dtype) {
    make_sized_case(p, seed, dtype, NULL);
}

static void free_case(packed_case *p) {
    guarded *all[] = {&p->a, &p->b, &p->bias, &p->c, &p->h};
    for (size_t i = 0; i < COUNT(all); ++i) guarded_free(all[i]);
    moe_packed_destroy(p->packed);
    moe_ctx_destroy(p->ctx);
    free(p->a_row);
}

static void run(const moei_kernel_row *variant, int32_t n_threads, const moe_gemm_rows_args *args) {
    moei_team team = test_team(n_threads);
    ((moei_gemm_rows_fn *)variant->fn)(&team, args);
}

/* A B_g + bias at (r, j), and the sum of the sizes of its terms. */
static double direct(const packed_case *p, int64_t r, int64_t j, double *size) {
    const moe_gemm_rows_args *args = &p->args;
    int32_t g = 0;
    while (r >= p->offset[g + 1]) ++g;
    double sum = args->bias ? get(&p->bias, g * args->n + j) : 0;
    *size = fabs(sum);
    for (int64_t i = 0; i < args->k; ++i) {
        const double term = get(&p->a, (args->a_row ? args->a_row[r] : r) * args->lda + i) *
                            get(&p->b, (g * args->k + i) * args->n + j);
        sum += term;
        *size += fabs(term);
    }
    return sum;
}

/* Of bf16, B is the read numbers but for their last rounding. */
static double sum_bound(moe_dtype dtype, int64_t k) {
    const double length = (double)(k < 256 ? k : 256 + k / 256) + 6;
    return dtype == MOE_BF16 ? length * EPS_F32 + 0.5 * EPS_BF16 : length * EPS_F32;
}

static void check_case(const moei_kernel_row *v, const packed_case *p) {
    const moe_gemm_rows_args *args = &p->args;
    const bool gated = moe_act_gated(args->act);
    const double bound = sum_bound(args->dtype, args->k);
    for (int64_t r = 0; r < p->rows; ++r) {
        for (int64_t j = 0; j < p->n_h; ++j) {
            double size, up_size = 0, gate = direct(p, r, j, &size);
            check_close(get(&p->c, r * args->ldc + j), gate, bound * size + storage_bound(p->c.dtype, gate),
                        v->name, p->seed, "c", r * args->ldc + j);
            if (args->epilogue != MOE_EPI_ACT) continue;
            const double up = gated ? direct(p, r, p->n_h + j, &up_size) : 0;
            const moei_act_rule rule = moei_act_rule_for(args->act, args->act_numbers);
            const moei_act_point want = moei_act_at(&rule, gate, up);
            const double error = bound * (size + up_size);
            check_close(get(&p->h, r * args->ldh + j), want.value,
                        1.5 * (fabs(want.d_gate) + fabs(want.d_up)) * error + error * error +
                            4e-6 * (1 + fabs(gate)) * (1 + fabs(up)) + storage_bound(args->dtype, want.value),
                        v->name, p->seed, "h", r * args->ldh + j);
        }
    }
}

static void test_against_direct_sums(void **state) {
    (void)state;
    for (const moei_kernel_row *v = next_variant("gemm_packed", NULL); v;
         v = next_variant("gemm_packed", v)) {
        for (uint64_t seed = 1; seed <= 96; ++seed) {
            const moe_dtype dtype = seed % 2 ? MOE_F32 : MOE_BF16;
            packed_case p;
            if (!serves(v, dtype)) continue;
            make_case(&p, seed * 7 + seed / 16, dtype);
            run(v, 1 + (int32_t)(seed % 2), &p.args);
            check_case(v, &p);
            free_case(&p);
        }
    }
}

static void same_bits(const guarded *a, const guarded *b, const char *what, const char *variant,
                      uint64_t seed) {
    if (memcmp(a->block, b->block, (size_t)(a->n + 2 * GUARD) * moe_dtype_bytes(a->dtype)) == 0) return;
    fail_msg("%s, seed %llu: %s", variant, (unsigned long long)seed, what);
}

/* The row of kernel.def for plain products by the same instructions. */
static const moei_kernel_row *plain_twin(const moei_kernel_row *v, moe_dtype dtype) {
    size_t count;
    const moei_kernel_row *rows = moei_kernel_rows(&count);
    for (const moei_kernel_row *row = rows; row < rows + count; ++row)
        if (strcmp(row->op, "gemm_rows") == 0 && row->isa == v->isa && serves(row, dtype)) return row;
    fail_msg("%s: kernel.def has no gemm_rows to hold it to", v->name);
    return NULL;
}

/* The same product with packed weights and with the numbers read back. */
static void check_plain_bits(const moei_kernel_row *v, const moei_kernel_row *plain, packed_case *a,
                             packed_case *b) {
    run(v, 1, &a->args);
    b->args.b_packed = NULL;
    b->args.b = b->b.data;
    b->args.ldb = b->args.n;
    b->args.b_group = b->args.k * b->args.n;
    run(plain, 1, &b->args);
    same_bits(&a->c, &b->c, "packed and plain differ", v->name, a->seed);
    same_bits(&a->h, &b->h, "packed and plain differ", v->name, a->seed);
    free_case(a), free_case(b);
}

/* The law: packed is plain with the numbers read back. The reference multiplies what f32 cannot hold, and of
 * bf16 those that serve f32 too do not round the numbers. */
static void test_same_bits_as_plain(void **state) {
    (void)state;
    for (const moei_kernel_row *v = next_variant("gemm_packed", NULL); v;
         v = next_variant("gemm_packed", v)) {
        if (v->isa == MOEI_ISA_REF) continue;
        const moe_dtype dtype = serves(v, MOE_F32) ? MOE_F32 : MOE_BF16;
        const moei_kernel_row *plain = plain_twin(v, dtype);
        for (uint64_t seed = 1; seed <= 64; ++seed) {
            packed_case a, b;
            make_case(&a, seed, dtype);
            make_case(&b, seed, dtype);
            check_plain_bits(v, plain, &a, &b);
        }
    }
}

/* Bf16 in pairs is multiplied where it is by rows whose A does not fit all at once; gated and not. */
static void test_many_rows_of_pairs(void **state) {
    static const case_size sizes[] = {
        {4, 100, 72, 1100},
        {4, 230, 40, 300 },
        {4, 460, 96, 260 }
    };
    (void)state;
    for (const moei_kernel_row *v = next_variant("gemm_packed", NULL); v;
         v = next_variant("gemm_packed", v)) {
        if (v->isa == MOEI_ISA_REF || !serves(v, MOE_BF16)) continue;
        const moei_kernel_row *plain = plain_twin(v, MOE_BF16);
        for (uint64_t seed = 8; seed < 11; ++seed) { /* reglu, none, geglu */
            packed_case a, b;
            make_sized_case(&a, seed, MOE_BF16, &sizes[seed - 8]);
            make_sized_case(&b, seed, MOE_BF16, &sizes[seed - 8]);
            check_plain_bits(v, plain, &a, &b);
        }
    }
}

static void test_same_bits_for_any_threads(void **state) {
    (void)state;
    for (const moei_kernel_row *v = next_variant("gemm_packed", NULL); v;
         v = next_variant("gemm_packed", v)) {
        for (uint64_t seed = 1; seed <= 32; ++seed) {
            const moe_dtype dtype = seed % 2 ? MOE_F32 : MOE_BF16;
            packed_case one, four;
            if (!serves(v, dtype)) continue;
            make_case(&one, seed, dtype);
            make_case(&four, seed, dtype);
            run(v, 1, &one.args);
            run(v, 4, &four.args);
            same_bits(&one.c, &four.c, "other bits with four threads", v->name, seed);
            same_bits(&one.h, &four.h, "other bits with four threads", v->name, seed);
            free_case(&one), free_case(&four);
        }
    }
}

/* Rows one by one and a few at a time have the bits they have together. */
static void test_rows_do_not_depend_on_the_batch(void **state) {
    (void)state;
    for (const moei_kernel_row *v = next_variant("gemm_packed", NULL); v;
         v = next_variant("gemm_packed", v)) {
        for (uint64_t seed = 100; seed < 148; ++seed) {
            const moe_dtype dtype = seed % 2 ? MOE_F32 : MOE_BF16;
            packed_case whole, part;
            if (!serves(v, dtype)) continue;
            make_case(&whole, seed, dtype);
            make_case(&part, seed, dtype);
            run(v, 1, &whole.args);
            for (int32_t g = 0; g < whole.args.n_groups; ++g) {
                for (int64_t step = 1, r = whole.offset[g]; r < whole.offset[g + 1]; r += step, step += 2) {
                    const int64_t end = r + step < whole.offset[g + 1] ? r + step : whole.offset[g + 1];
                    for (int32_t i = 0; i <= part.args.n_groups; ++i) part.offset[i] = i <= g ? r : end;
                    run(v, 1, &part.args);
                }
            }
            same_bits(&whole.c, &part.c, "a row depends on its neighbours", v->name, seed);
            same_bits(&whole.h, &part.h, "a row depends on its neighbours", v->name, seed);
            free_case(&whole), free_case(&part);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_numbers),
        cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_error_and_idempotence),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_products_refuse),
        cmocka_unit_test(test_against_direct_sums),
        cmocka_unit_test(test_same_bits_as_plain),
        cmocka_unit_test(test_many_rows_of_pairs),
        cmocka_unit_test(test_same_bits_for_any_threads),
        cmocka_unit_test(test_rows_do_not_depend_on_the_batch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
