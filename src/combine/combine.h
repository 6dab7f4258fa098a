/* combine.h: rows of the experts -> tokens, and row gradients -> token gradients. */
#ifndef MOEI_COMBINE_H
#define MOEI_COMBINE_H

#include "core/ctx.h"
#include "flow.h"

/* y[t] (+)= sum_k weight[t,k] * rows[row_of[t,k]], k ascending; weight NULL: 1. */
void moei_combine(moe_ctx *ctx, const moei_plan *plan, const void *weight, moe_mat rows, moe_mat y,
                  bool accumulate);
/* dx[t] (+)= sum_k drows[row_of[t,k]]: the rows' gradients carry their weight already. */
void moei_combine_backward(moe_ctx *ctx, const moei_plan *plan, moe_mat drows, moe_mat dx, bool accumulate);

#endif
