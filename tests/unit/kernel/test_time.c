/* test_time.c: moe_time and moe_peak: every operation has a row, nothing changes by being measured.
 * A layer's rows are counted by hand from its stages.
 * Source: moekit/op.h; docs/architecture.md, "Time is measured by the context".
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <string.h>

#include "core/ctx.h"
#include "core/timing.h"
#include "kernel/kernel.h"

static moe_ctx *make(void) {
    moe_ctx *ctx = NULL;
    moe_error error;
    const moe_ctx_desc desc = {.size = sizeof desc, .n_threads = 2, .seed = 5};
    assert_int_equal(moe_ctx_create(&desc, &ctx, &error), MOE_OK);
    return ctx;
}

static const moe_time *row_of(const moe_ctx *ctx, const char *name) {
    size_t count;
    const moe_time *row = moe_time_rows(ctx, &count);
    for (size_t i = 0; i < count; ++i)
        if (strcmp(row[i].name, name) == 0) return &row[i];
    fail_msg("no row '%s'", name);
    return NULL;
}

/* What only the router calls is in its row, what stages do to single numbers (kernel/stage.h) in none; `peak`
 * is itself a measurement. */
static bool is_timed(const char *op) {
    static const char *const untimed[] = {
        "topk",          "topk_grad",      "peak",      "add_bias",          "bias_grad",
        "sigmoid_gate",  "row_dot",        "copy_rows", "sigmoid_gate_grad", "router",
        "router_grad",   "balance_grad",   "plan",      "plan_index",        "convert",
        "route",         "gate_grad",      "few",       "gate_grad_end",     "gemm_outers",
        "gate_grad_sum", "gemm_rows_plus", "order_rows"};
    for (size_t i = 0; i < sizeof untimed / sizeof *untimed; ++i)
        if (strcmp(op, untimed[i]) == 0) return false;
    return true;
}

static void test_every_operation_has_a_twin(void **state) {
    (void)state;
    moe_ctx *ctx = make();
    size_t count;
    const moei_kernel_row *row = moei_kernel_rows(&count);
    const moei_kernels *before = ctx->kernels[MOE_F32];
    assert_int_equal(moe_time_start(ctx), MOE_OK);
    const moei_kernels *timed = ctx->kernels[MOE_F32];
    for (size_t i = 0; i < count; ++i) {
        void (*a)(void), (*b)(void);
        memcpy(&a, (const char *)before + row[i].slot, sizeof a);
        memcpy(&b, (const char *)timed + row[i].slot, sizeof b);
        if ((a != b) != is_timed(row[i].op)) fail_msg("%s: timed and untimed differ wrongly", row[i].op);
    }
    moe_time_stop(ctx);
    assert_ptr_equal(ctx->kernels[MOE_F32], before);
    moe_ctx_destroy(ctx);
}

static void test_calls_are_counted(void **state) {
    (void)state;
    moe_ctx *ctx = make();
    float x[64];
    double sum, again;
    size_t count;
    moe_random_normal(5, MOE_DRAW_TEST, 0, 0, MOE_F32, x, 64, 1);
    assert_int_equal(moe_sum_squares(ctx, MOE_F32, x, 64, &sum), MOE_OK);
    assert_null(moe_time_rows(ctx, &count));
    assert_int_equal(count, 0);
    for (int turn = 0; turn < 2; ++turn) { /* starting again counts from zero */
        assert_int_equal(moe_time_start(ctx), MOE_OK);
        for (int i = 0; i < 3; ++i) assert_int_equal(moe_sum_squares(ctx, MOE_F32, x, 64, &again), MOE_OK);
        assert_true(sum == again);
        assert_int_equal(row_of(ctx, "sum_squares")->calls, 3);
        assert_true(row_of(ctx, "sum_squares")->seconds > 0);
        assert_int_equal(row_of(ctx, "adamw")->calls, 0);
    }
    moe_ctx_destroy(ctx); /* while it measures */
}

/* A training step of a layer, first untimed, then timed: the same bits. */
static void time_a_layer(moe_ctx *ctx, const char *setting, const char *value) {
    enum { T = 37, D = 24 };
    moe_layer_desc desc = {.size = sizeof desc,
                           .d_model = D,
                           .num_experts = 5,
                           .expert_hidden_size = 16,
                           .aux_loss_coeff = 0.1F};
    const moe_call call = {.size = sizeof call, .mode = MOE_TRAIN};
    moe_layer *layer;
    float x[T * D], y[2][T * D], dy[T * D], dx[2][T * D];
    moe_random_normal(5, MOE_DRAW_TEST, 1, 0, MOE_F32, x, T * D, 1);
    moe_random_normal(5, MOE_DRAW_TEST, 2, 0, MOE_F32, dy, T * D, 1);
    if (setting) assert_int_equal(moe_layer_desc_set(&desc, setting, value, NULL), MOE_OK);
    assert_int_equal(moe_layer_create(ctx, &desc, &layer), MOE_OK);
    assert_int_equal(moe_layer_reserve(layer, T, MOE_TRAIN), MOE_OK);
    for (int timed = 0; timed < 2; ++timed) {
        if (timed) assert_int_equal(moe_time_start(ctx), MOE_OK);
        const moe_mat in = {x, T, D, D, MOE_F32}, out = {y[timed], T, D, D, MOE_F32};
        assert_int_equal(moe_layer_forward(layer, in, out, &call, NULL), MOE_OK);
        assert_int_equal(moe_layer_backward(layer, in, (moe_mat){dy, T, D, D, MOE_F32},
                                            (moe_mat){dx[timed], T, D, D, MOE_F32}),
                         MOE_OK);
    }
    assert_memory_equal(y[0], y[1], sizeof y[0]);
    assert_memory_equal(dx[0], dx[1], sizeof dx[0]);
    moe_layer_destroy(layer);
}

/* The gate's product belongs to the router, those of the experts do not. */
static void test_a_layer(void **state) {
    (void)state;
    moe_ctx *ctx = make();
    time_a_layer(ctx, NULL, NULL);
    assert_int_equal(row_of(ctx, "route")->calls, 3); /* routing, losses, backward */
    assert_int_equal(row_of(ctx, "gemm_rows")->calls, 4);
    assert_int_equal(row_of(ctx, "gemm_outer")->calls, 2);
    assert_int_equal(row_of(ctx, "act_pass")->calls, 0);
    moe_ctx_destroy(ctx);
}

/* What only some layers do between their products, once forward and once backward. */
static void test_passes_of_a_layer(void **state) {
    (void)state;
    static const char *const settings[][2] = {
        {"dropout",     "0.2"  },
        {"saved_dtype", "mxfp8"}
    };
    for (size_t i = 0; i < sizeof settings / sizeof *settings; ++i) {
        moe_ctx *ctx = make();
        time_a_layer(ctx, settings[i][0], settings[i][1]);
        assert_int_equal(row_of(ctx, "act_pass")->calls, 2);
        moe_ctx_destroy(ctx);
    }
}

/* FLOP/s of multiplications and additions that wait for each other, on a processor or an emulated one. */
static double chain_rate(void) {
    enum { STEPS = 1000000 };
    volatile float seed = 0.999999F; /* read at run time, so that nothing is known to the compiler */
    const float factor = seed;
    float x = 1;
    const double began = moei_timing_now();
    for (int i = 0; i < STEPS; ++i) x = x * factor + 1e-7F;
    seed = x;
    return 2.0 * STEPS / (moei_timing_now() - began);
}

static void test_peak(void **state) {
    (void)state;
    moe_ctx *ctx = make();
    double rate = 0;
    const double least = chain_rate() / 8; /* as the machine may be busy with more in one of both moments */
    assert_int_equal(moe_peak(ctx, MOE_F32, 0.002, &rate), MOE_OK);
    assert_true(rate > least && rate < 1e15);
    assert_int_equal(moe_peak(ctx, MOE_F64, 0, &rate), MOE_OK);
    assert_true(rate > 1e7 && rate < 1e15);
    assert_int_equal(moe_peak(ctx, MOE_F32, (double)NAN, &rate), MOE_ERR_ARGUMENT);
    assert_int_equal(moe_peak(ctx, MOE_F32, (double)INFINITY, &rate), MOE_ERR_ARGUMENT);
    moe_ctx_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_operation_has_a_twin),
        cmocka_unit_test(test_calls_are_counted),
        cmocka_unit_test(test_a_layer),
        cmocka_unit_test(test_passes_of_a_layer),
        cmocka_unit_test(test_peak),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
