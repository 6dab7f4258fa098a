/* timing.h: where a context's time goes, once somebody asks: moe_time_start in moekit/op.h.
 * A row an operation; whatever the router does goes to one row of its own. Not asked, it costs a test of
 * NULL.
 */
#ifndef MOEI_TIMING_H
#define MOEI_TIMING_H

#include "core/ctx.h"

typedef enum moei_time_row {
    MOEI_TIME_ROUTE, /* router, plan and losses, the operations they call included */
    MOEI_TIME_GEMM_ROWS,
    MOEI_TIME_GEMM_OUTER,
    MOEI_TIME_GATHER_SUM,
    MOEI_TIME_COLSUM,
    MOEI_TIME_ACT_PASS,
    MOEI_TIME_RMSNORM,
    MOEI_TIME_ROPE,
    MOEI_TIME_ATTENTION,
    MOEI_TIME_CROSS_ENTROPY,
    MOEI_TIME_ADAMW,
    MOEI_TIME_SUM_SQUARES,
    MOEI_TIME_ROWS
} moei_time_row;

typedef struct moei_timing {
    moe_time row[MOEI_TIME_ROWS];
    bool in_route; /* operations are the router's now */
    double began;  /* when it became so */
} moei_timing;

double moei_timing_now(void); /* seconds, monotonic */

static inline void moei_timing_add(moei_timing *timing, moei_time_row row, double began) {
    timing->row[row].seconds += moei_timing_now() - began;
    ++timing->row[row].calls;
}

/* Around what a layer does to route. */
static inline void moei_timing_enter_route(const moe_ctx *ctx) {
    if (!ctx->timing) return;
    ctx->timing->in_route = true;
    ctx->timing->began = moei_timing_now();
}

static inline void moei_timing_leave_route(const moe_ctx *ctx) {
    if (!ctx->timing) return;
    ctx->timing->in_route = false;
    moei_timing_add(ctx->timing, MOEI_TIME_ROUTE, ctx->timing->began);
}

#endif
