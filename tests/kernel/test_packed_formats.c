/* test_packed_formats.c: what each format of packed weights makes of numbers, its errors, and what is not
 * packed. Known codes, extremes, bounds of the error; what was packed and read packs to itself. Source:
 * moekit/quant.h.
 */
#include "kernel/packed_test.h"

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

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_numbers),
        cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_error_and_idempotence),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
