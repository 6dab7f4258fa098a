/* norm.c: RMSNorm over rows of the residual stream, forward and backward.
 * x, y [rows, d], gain [d], rms [rows] kept for backward.
 * Source: Zhang & Sennrich 2019.
 */
#include "model/model.h"

moe_status moelm_norm(moe_lm *lm, int64_t rows, const moelm_tensor *gain, const void *x, void *y,
                      float *rms) {
    const moe_rmsnorm_args args = {
        .dtype = lm->dtype,
        .rows = rows,
        .n = lm->d,
        .eps = lm->eps,
        .x = x,
        .gain = gain->value,
        .y = y,
        .inv_rms = rms,
    };
    return moe_rmsnorm(lm->ctx, &args);
}

moe_status moelm_norm_backward(moe_lm *lm, const moelm_norm_grad *g) {
    const moe_rmsnorm_args args = {
        .dtype = lm->dtype,
        .rows = g->rows,
        .n = lm->d,
        .eps = lm->eps,
        .x = g->x,
        .gain = g->gain->value,
        .inv_rms = g->rms,
        .dy = g->dy,
        .dx = g->dx,
        .dgain = g->gain->grad,
        .accumulate = g->add,
    };
    return moe_rmsnorm_backward(lm->ctx, &args);
}
