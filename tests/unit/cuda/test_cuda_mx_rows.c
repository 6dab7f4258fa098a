/* test_cuda_mx_rows.c: rows kept in 8 bits on a GPU, to the bit those of the CPU: there is nothing to add up.
 * Widths that threads read at once and others, f32 and bf16; numbers of every size, infinities and NaN.
 * Skipped by name where there is no GPU or no CUDA.
 */
#include "unit/cuda/cuda_fixture.h"

#include "core/ctx.h"
#include "core/real.h"
#include "kernel/kernel.h"

static moe_mat numbers(moe_dtype dtype, int64_t rows, int64_t n) {
    moe_mat mat = test_random(dtype, rows, n, 70 + (uint32_t)n);
    for (int64_t i = 0; i < rows * n; ++i)
        moei_real_store(dtype, mat.data, i,
                        ldexp(moei_real_load(dtype, mat.data, i), (int)(i * 7 % 40) - 20));
    if (rows * n > 40) moei_real_store(dtype, mat.data, 40, (double)INFINITY);
    if (rows * n > 90) moei_real_store(dtype, mat.data, 90, (double)NAN);
    return mat;
}

static void same(moe_ctx *ctx, const char *what, const void *device, const void *host, size_t bytes,
                 int64_t n) {
    uint8_t *got = malloc(bytes + 1);
    assert_non_null(got);
    must(ctx, moe_memory_copy(ctx, got, device, bytes));
    for (size_t i = 0; i < bytes; ++i)
        if (got[i] != ((const uint8_t *)host)[i])
            fail_msg("%s of %lld columns: byte %zu is %d, on the CPU %d", what, (long long)n, i, got[i],
                     ((const uint8_t *)host)[i]);
    free(got);
}

/* NaN is NaN, whatever else its bits say. */
static void same_numbers(moe_ctx *ctx, const void *device, moe_mat host) {
    moe_mat got = test_output(host.dtype, host.rows, host.cols);
    must(ctx, moe_memory_copy(ctx, got.data, device, test_bytes(got)));
    for (int64_t i = 0; i < got.rows * got.cols; ++i) {
        const double a = moei_real_load(got.dtype, got.data, i), b = moei_real_load(host.dtype, host.data, i);
        if (isnan(a) != isnan(b) || (!isnan(a) && a != b))
            fail_msg("number %lld of %lld columns is %g, on the CPU %g", (long long)i, (long long)got.cols, a,
                     b);
    }
    free(got.data);
}

static void check(moe_ctx *gpu, moe_ctx *cpu, moe_dtype dtype, int64_t rows, int64_t n) {
    const size_t codes = (size_t)(rows * n), scales = (size_t)(rows * moei_mx_blocks(n)),
                 bytes = codes * moe_dtype_bytes(dtype);
    moe_mat was = numbers(dtype, rows, n), back = test_output(dtype, rows, n);
    moei_mx_rows_args host = {.dtype = dtype, .rows = rows, .n = n, .values = was.data}, device = host;
    host.code = malloc(codes + 1), host.scale = malloc(scales + 1);
    device.code = moe_memory_alloc(gpu, codes + 1), device.scale = moe_memory_alloc(gpu, scales + 1);
    assert_true(host.code && host.scale && device.code && device.scale);
    void *d_back = uploaded(gpu, test_output(dtype, rows, n));
    cpu->kernels[dtype]->mx_save(&cpu->team, &host);
    host.values = back.data;
    cpu->kernels[dtype]->mx_restore(&cpu->team, &host);
    device.values = uploaded(gpu, was);
    gpu->kernels[dtype]->mx_save(&gpu->team, &device);
    moe_memory_free(gpu, device.values, bytes);
    device.values = d_back;
    gpu->kernels[dtype]->mx_restore(&gpu->team, &device);
    must(gpu, moe_ctx_wait(gpu));
    same(gpu, "codes", device.code, host.code, codes, n);
    same(gpu, "scales", device.scale, host.scale, scales, n);
    same_numbers(gpu, d_back, back);
    moe_memory_free(gpu, device.code, codes + 1), moe_memory_free(gpu, device.scale, scales + 1);
    moe_memory_free(gpu, d_back, bytes);
    free(host.code), free(host.scale), free(back.data);
}

static void bytes_are_those_of_the_cpu(void **state) {
    (void)state;
    static const int64_t widths[] = {1, 8, 19, 31, 32, 40, 63, 64, 96, 200, 512};
    moe_ctx *gpu = cuda_ctx(NULL), *cpu = test_ctx(NULL, 2);
    for (size_t i = 0; i < sizeof widths / sizeof *widths; ++i)
        for (int64_t rows = 0; rows <= 77; rows = 3 * rows + 2) {
            check(gpu, cpu, MOE_F32, rows, widths[i]);
            check(gpu, cpu, MOE_BF16, rows, widths[i]);
        }
    moe_ctx_destroy(gpu), moe_ctx_destroy(cpu);
}

int main(void) {
    if (!cuda_is_here()) return 77;
    const struct CMUnitTest tests[] = {cmocka_unit_test(bytes_are_those_of_the_cpu)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
