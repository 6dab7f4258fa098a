/* dispatch.h: (expert, weight) -> the plan: which row of which expert serves which (token, slot).
 * Indices only. Capacity and dropping change the plan and nothing else.
 */
#ifndef MOEI_DISPATCH_H
#define MOEI_DISPATCH_H

#include "core/ctx.h"
#include "flow.h"

typedef enum moei_drop { MOEI_DROP_PROBS, MOEI_DROP_POSITION } moei_drop;

/* Fills the plan from a routing; rows of one expert stand in token order. `capacity` rows an expert at
 * most; negative: dropless. */
void moei_plan_build(moei_plan *plan, const moei_routing *routing, int64_t capacity, moei_drop drop);

/* ceil(n_tokens * top_k / n_experts * factor), at most n_tokens; factor 0: -1, dropless. In integers, the
 * factor taken to six decimals, so that no platform rounds differently (Megatron core's formula). */
int64_t moei_capacity(float factor, int64_t n_tokens, int32_t top_k, int32_t n_experts);

/* Marks in row_of the slots of expert `e` that exceed `capacity` with -1; those kept are left alone.
 * slots[n]: the t*K+k that chose e, in token order; overwritten. */
void moei_drop_slots(const moei_routing *routing, int64_t capacity, moei_drop drop, int32_t *slots, int64_t n,
                     int32_t *row_of);

/* For experts that want their rows contiguous. rows[R,n] = weight[r] * x[row_token[r]] (weight NULL: 1) */
void moei_rows_gather(moe_ctx *ctx, const moei_plan *plan, moe_mat x, const void *weight, moe_mat rows);
/* drow_weight[r] = <dy[row_token[r]], rows[r]> */
void moei_rows_weight_gradient(moe_ctx *ctx, const moei_plan *plan, moe_mat dy, moe_mat rows,
                               void *drow_weight);

/* [R] by row -> [T,K] by slot; slots without a row get 0. */
void moei_rows_to_slots(const moei_plan *plan, moe_dtype dtype, const void *by_row, void *by_slot);

#endif
