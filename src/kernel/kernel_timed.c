/* kernel_timed.c: moe_time: a second kernel table whose functions time those of the first.
 * While it is asked for, the context's tables are the timed ones; an operation without a twin here runs
 * unmeasured and so counts as "rest" to whoever adds up the rows.
 */
#include "core/timing.h"
#include "kernel/kernel.h"

/* What a context holds while it measures. */
typedef struct timed_kernels {
    moei_timing timing; /* first: the context points to it */
    const moei_kernels *inner[MOEI_DTYPES];
    moei_kernels table[MOEI_DTYPES];
} timed_kernels;

/* The team is the context's own. */
static timed_kernels *timed_of(const moei_team *team) {
    const moe_ctx *ctx = (const moe_ctx *)(const void *)((const char *)team - offsetof(moe_ctx, team));
    return (timed_kernels *)(void *)ctx->timing;
}

/* The router's operations are in its own row already. */
static void add(timed_kernels *timed, moei_time_row row, double began) {
    if (!timed->timing.in_route) moei_timing_add(&timed->timing, row, began);
}

static void gemm_rows(const moei_team *team, const moe_gemm_rows_args *args) {
    timed_kernels *timed = timed_of(team);
    const double began = moei_timing_now();
    timed->inner[args->dtype]->gemm_rows(team, args);
    add(timed, MOEI_TIME_GEMM_ROWS, began);
}

static void gemm_packed(const moei_team *team, const moe_gemm_rows_args *args) {
    timed_kernels *timed = timed_of(team);
    const double began = moei_timing_now();
    timed->inner[args->dtype]->gemm_packed(team, args);
    add(timed, MOEI_TIME_GEMM_ROWS, began);
}

static void gemm_outer(const moei_team *team, const moe_gemm_outer_args *args) {
    timed_kernels *timed = timed_of(team);
    const double began = moei_timing_now();
    timed->inner[args->dtype]->gemm_outer(team, args);
    add(timed, MOEI_TIME_GEMM_OUTER, began);
}

static void gather_sum(const moei_team *team, const moe_gather_sum_args *args) {
    timed_kernels *timed = timed_of(team);
    const double began = moei_timing_now();
    timed->inner[args->dtype]->gather_sum(team, args);
    add(timed, MOEI_TIME_GATHER_SUM, began);
}

static void colsum(const moei_team *team, const moe_colsum_args *args) {
    timed_kernels *timed = timed_of(team);
    const double began = moei_timing_now();
    timed->inner[args->dtype]->colsum(team, args);
    add(timed, MOEI_TIME_COLSUM, began);
}

static void act_pass(const moei_team *team, const moei_act_pass_args *args) {
    timed_kernels *timed = timed_of(team);
    const double began = moei_timing_now();
    timed->inner[args->dtype]->act_pass(team, args);
    add(timed, MOEI_TIME_ACT_PASS, began);
}

static void act_pass_grad(const moei_team *team, const moei_act_pass_args *args) {
    timed_kernels *timed = timed_of(team);
    const double began = moei_timing_now();
    timed->inner[args->dtype]->act_pass_grad(team, args);
    add(timed, MOEI_TIME_ACT_PASS, began);
}

/* Numbers that a pass keeps are its own. */
static void mx_save(const moei_team *team, const moei_mx_rows_args *args) {
    timed_kernels *timed = timed_of(team);
    const double began = moei_timing_now();
    timed->inner[args->dtype]->mx_save(team, args);
    add(timed, MOEI_TIME_ACT_PASS, began);
}

static void mx_restore(const moei_team *team, const moei_mx_rows_args *args) {
    timed_kernels *timed = timed_of(team);
    const double began = moei_timing_now();
    timed->inner[args->dtype]->mx_restore(team, args);
    add(timed, MOEI_TIME_ACT_PASS, began);
}

static void rmsnorm(const moei_team *team, const moe_rmsnorm_args *args) {
    timed_kernels *timed = timed_of(team);
    const double began = moei_timing_now();
    timed->inner[args->dtype]->rmsnorm(team, args);
    add(timed, MOEI_TIME_RMSNORM, began);
}

static void rmsnorm_backward(const moei_team *team, const moe_rmsnorm_args *args) {
    timed_kernels *timed = timed_of(team);
    const double began = moei_timing_now();
    timed->inner[args->dtype]->rmsnorm_backward(team, args);
    add(timed, MOEI_TIME_RMSNORM, began);
}

static void rope(const moei_team *team, const moe_rope_args *args) {
    timed_kernels *timed = timed_of(team);
    const double began = moei_timing_now();
    timed->inner[args->dtype]->rope(team, args);
    add(timed, MOEI_TIME_ROPE, began);
}

static void attention(const moei_team *team, const moe_attention_args *args) {
    timed_kernels *timed = timed_of(team);
    const double began = moei_timing_now();
    timed->inner[args->dtype]->attention(team, args);
    add(timed, MOEI_TIME_ATTENTION, began);
}

static void attention_backward(const moei_team *team, const moe_attention_args *args) {
    timed_kernels *timed = timed_of(team);
    const double began = moei_timing_now();
    timed->inner[args->dtype]->attention_backward(team, args);
    add(timed, MOEI_TIME_ATTENTION, began);
}

static void cross_entropy(const moei_team *team, const moe_cross_entropy_args *args) {
    timed_kernels *timed = timed_of(team);
    const double began = moei_timing_now();
    timed->inner[args->dtype]->cross_entropy(team, args);
    add(timed, MOEI_TIME_CROSS_ENTROPY, began);
}

static void adamw(const moei_team *team, const moe_adamw_args *args) {
    timed_kernels *timed = timed_of(team);
    const double began = moei_timing_now();
    timed->inner[args->dtype]->adamw(team, args);
    add(timed, MOEI_TIME_ADAMW, began);
}

static double sum_squares(const moei_team *team, moe_dtype dtype, const void *x, int64_t n) {
    timed_kernels *timed = timed_of(team);
    const double began = moei_timing_now(), sum = timed->inner[dtype]->sum_squares(team, dtype, x, n);
    add(timed, MOEI_TIME_SUM_SQUARES, began);
    return sum;
}

/* topk and its gradient are the router's, so nobody times them one by one. */
static void wrap(const moei_kernels *inner, moei_kernels *table) {
    *table = *inner;
    table->gemm_rows = gemm_rows;
    table->gemm_packed = gemm_packed;
    table->gemm_outer = gemm_outer;
    table->gather_sum = gather_sum;
    table->colsum = colsum;
    table->act_pass = act_pass;
    table->act_pass_grad = act_pass_grad;
    table->mx_save = mx_save;
    table->mx_restore = mx_restore;
    table->rmsnorm = rmsnorm;
    table->rmsnorm_backward = rmsnorm_backward;
    table->rope = rope;
    table->attention = attention;
    table->attention_backward = attention_backward;
    table->cross_entropy = cross_entropy;
    table->adamw = adamw;
    table->sum_squares = sum_squares;
}

moe_status moe_time_start(moe_ctx *ctx) {
    if (!ctx) return MOE_ERR_ARGUMENT;
    static const char *const name[MOEI_TIME_ROWS] = {
        [MOEI_TIME_ROUTE] = "route",           [MOEI_TIME_GEMM_ROWS] = "gemm_rows",
        [MOEI_TIME_GEMM_OUTER] = "gemm_outer", [MOEI_TIME_GATHER_SUM] = "gather_sum",
        [MOEI_TIME_COLSUM] = "colsum",         [MOEI_TIME_ACT_PASS] = "act_pass",
        [MOEI_TIME_RMSNORM] = "rmsnorm",       [MOEI_TIME_ROPE] = "rope",
        [MOEI_TIME_ATTENTION] = "attention",   [MOEI_TIME_CROSS_ENTROPY] = "cross_entropy",
        [MOEI_TIME_ADAMW] = "adamw",           [MOEI_TIME_SUM_SQUARES] = "sum_squares",
    };
    if (ctx->desc.device != MOE_CPU)
        return moe_ctx_fail(ctx, MOE_ERR_UNSUPPORTED,
                            "moe_time: calls of this device only start its work; use the device's profiler");
    if (!ctx->timing) {
        timed_kernels *timed = moe_ctx_alloc(ctx, sizeof *timed);
        if (!timed) return moei_ctx_no_memory(ctx, "moe_time_start");
        for (int i = 0; i < MOEI_DTYPES; ++i) {
            timed->inner[i] = ctx->kernels[i];
            wrap(timed->inner[i], &timed->table[i]);
            ctx->kernels[i] = &timed->table[i];
        }
        ctx->timing = &timed->timing;
    }
    *ctx->timing = (moei_timing){.in_route = false};
    for (int i = 0; i < MOEI_TIME_ROWS; ++i) ctx->timing->row[i].name = name[i];
    return MOE_OK;
}

void moe_time_stop(moe_ctx *ctx) {
    timed_kernels *timed = ctx ? (timed_kernels *)(void *)ctx->timing : NULL;
    if (!timed) return;
    for (int i = 0; i < MOEI_DTYPES; ++i) ctx->kernels[i] = timed->inner[i];
    ctx->timing = NULL;
    moe_ctx_free(ctx, timed, sizeof *timed);
}

const moe_time *moe_time_rows(const moe_ctx *ctx, size_t *count) {
    const struct moei_timing *timing = ctx ? ctx->timing : NULL;
    if (count) *count = timing ? MOEI_TIME_ROWS : 0;
    return timing ? timing->row : NULL;
}
