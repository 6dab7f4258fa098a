/* test_cuda_act.c: the activations in the products of a GPU where numbers are none: NaN in, NaN out, within
 * limits and without, forward and where backward makes the value again; relu and its square of infinities.
 * With the kernels of every GPU and Hopper's. Skipped by name where there is no GPU, no CUDA or no Hopper.
 */
#include "unit/cuda/cuda_fixture.h"

#include "core/real.h"
#include "kernel/stage.h"

#include <moekit/op.h>

enum { PLAIN, NOT_A_NUMBER, ABOVE, BELOW, ROWS, WIDTH = 16, DEPTH = 8 };

static moe_mat filled(moe_dtype dtype, int64_t rows, int64_t cols, double value) {
    moe_mat mat = test_output(dtype, rows, cols);
    for (int64_t i = 0; i < rows * cols; ++i) moei_real_store(dtype, mat.data, i, value);
    return mat;
}

/* Rows of 1/2, and of what is no number, in the first column or in all. */
static moe_mat special(moe_dtype dtype, int64_t cols, bool everywhere) {
    const double value[ROWS] = {0.5, (double)NAN, (double)INFINITY, (double)-INFINITY};
    moe_mat mat = filled(dtype, ROWS, cols, 0.5);
    for (int64_t i = 0; i < ROWS * cols; ++i)
        if (everywhere || i % cols == 0) moei_real_store(dtype, mat.data, i, value[i / cols]);
    return mat;
}

static void check_values(moe_ctx *ctx, const char *what, moe_dtype dtype, moe_act act, const void *device) {
    const moe_mat got = test_output(dtype, ROWS, WIDTH);
    must(ctx, moe_memory_copy(ctx, got.data, device, test_bytes(got)));
    for (int64_t i = 0; i < ROWS * WIDTH; ++i) {
        const double value = moei_real_load(dtype, got.data, i);
        const bool pieces = act == MOE_ACT_RELU || act == MOE_ACT_RELU2;
        bool right = true;
        if (i / WIDTH == PLAIN) right = isfinite(value);
        if (i / WIDTH == NOT_A_NUMBER) right = isnan(value);
        if (i / WIDTH == ABOVE && pieces) right = value == (double)INFINITY;
        if (i / WIDTH == BELOW && pieces) right = value == 0;
        if (!right)
            fail_msg("%s, dtype %d, act %d: row %d is %g", what, (int)dtype, (int)act, (int)(i / WIDTH),
                     value);
    }
    free(got.data);
}

/* h = act(a b) of ones in b; and weighted h, made again from z, where a b is 1. */
static void check(moe_ctx *ctx, moe_dtype dtype, moe_act act, double limit) {
    const int64_t columns = moe_act_gated(act) ? 2 * WIDTH : WIDTH, rows[] = {0, ROWS};
    void *a = uploaded(ctx, special(dtype, DEPTH, false)),
         *b = uploaded(ctx, filled(dtype, DEPTH, columns, 1)),
         *h = uploaded(ctx, filled(dtype, ROWS, WIDTH, -7)),
         *z = uploaded(ctx, special(dtype, columns, true)),
         *dz = uploaded(ctx, test_output(dtype, ROWS, columns)),
         *wa = uploaded(ctx, filled(dtype, ROWS, WIDTH, -7)),
         *ones = uploaded(ctx, filled(dtype, ROWS, DEPTH, 1)), *offset = moe_memory_alloc(ctx, sizeof rows);
    assert_non_null(offset);
    must(ctx, moe_memory_copy(ctx, offset, rows, sizeof rows));
    moe_gemm_rows_args args = {.dtype = dtype, .epilogue = MOE_EPI_ACT, .act = act, .n_groups = 1};
    args.act_numbers.limit = limit, args.offset = offset, args.n_rows = ROWS;
    args.n = columns, args.k = DEPTH, args.a = a, args.lda = DEPTH, args.b = b, args.ldb = columns;
    args.h = h, args.ldh = WIDTH;
    must(ctx, moe_gemm_rows(ctx, &args));
    check_values(ctx, "h", dtype, act, h);
    args.epilogue = MOE_EPI_ACT_GRAD, args.n = WIDTH, args.a = ones, args.b_trans = true, args.ldb = DEPTH;
    args.z = z, args.dz = dz, args.ldz = columns, args.wa = wa, args.ldwa = WIDTH;
    args.h = NULL, args.ldh = 0;
    must(ctx, moe_gemm_rows(ctx, &args));
    check_values(ctx, "weighted h", dtype, act, wa);
    void *const device[] = {a, b, h, z, dz, wa, ones, offset};
    for (size_t i = 0; i < sizeof device / sizeof *device; ++i) moe_memory_free(ctx, device[i], 1);
}

static void what_is_no_number_stays_none(void **state) {
    moe_ctx *ctx = cuda_ctx(*state);
    if (!ctx) skip();
    for (int dtype = MOE_F32; dtype <= MOE_BF16; ++dtype) {
        if (dtype != MOE_F32 && dtype != MOE_BF16) continue;
        for (int act = MOE_ACT_NONE; act < MOEI_ACTS; ++act) {
            check(ctx, (moe_dtype)dtype, (moe_act)act, 0);
            if (moe_act_gated((moe_act)act)) check(ctx, (moe_dtype)dtype, (moe_act)act, 7);
        }
    }
    moe_ctx_destroy(ctx);
}

int main(void) {
    struct CMUnitTest tests[CUDA_FAMILIES];
    if (!cuda_is_here()) return 77;
    for (int i = 0; i < CUDA_FAMILIES; ++i)
        tests[i] =
            (struct CMUnitTest)cmocka_unit_test_prestate(what_is_no_number_stays_none, cuda_families[i]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
