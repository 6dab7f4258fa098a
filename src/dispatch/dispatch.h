/* dispatch.h: (expert, weight) -> the plan: which row of which expert serves which (token, slot).
 * Indices only. Capacity, dropping and padding change the plan and nothing else.
 */
#ifndef MOEI_DISPATCH_H
#define MOEI_DISPATCH_H

#include "core/ctx.h"
#include "flow.h"

/* Names of the capacity formulas, of what a capacity counts by, and of the drop policies, NULL-terminated. */
extern const char *const moei_capacity_formulas[];
extern const char *const moei_capacity_scopes[];
extern const char *const moei_drop_policies[];

/* The capacity of a layer, its names looked up; a name that is not built in is MOE_ERR_INTERNAL.
 * `by_expert`: experts choose by it, so that without a factor it is that of factor 1. */
moe_status moei_capacity_init(const moe_layer_desc *desc, bool by_expert, moei_capacity *capacity,
                              moe_error *error);

/* Fills the plan from a routing. Rows of one expert stand group by group; inside a group in token order,
 * or with rank_major all first choices before all second ones. `capacity` NULL: dropless. */
void moei_plan_build(const moei_team *team, moei_plan *plan, const moei_batch *batch,
                     const moei_routing *routing, const moei_capacity *capacity);

/* How many parts of n_slots = T * K slots are counted on their own; grows with n_slots. */
int64_t moei_plan_parts(int64_t n_slots);

/* Fills row_token, row_slot, row_weight and slot_weight of a plan from its offset and row_of: what
 * moei_plan_build made there. */
void moei_plan_index(const moei_team *team, moei_plan *plan, const moei_routing *routing);

/* The most rows that the plan of a call no larger than `extent` has. */
int64_t moei_plan_max_rows(const moei_capacity *capacity, moei_extent extent, int32_t top_k,
                           int32_t n_experts);

/* [T,K] of plan->weight_dtype: what combine weighs by. */
const void *moei_plan_slot_weight(const moei_plan *plan, const moei_routing *routing);

/* Marks in row_of the slots that exceed `capacity` with -1; those kept are left alone.
 * slots[n]: the t*K+k of one group that chose one expert, in the order of the plan. room[n]: of policy probs.
 */
void moei_drop_slots(const moei_routing *routing, int64_t capacity, moei_drop drop, const int32_t *slots,
                     int64_t n, double *room, int32_t *row_of);
/* Whether plans of this capacity need moei_plan.drop_room. */
bool moei_drops_by_weight(const moei_capacity *capacity);

/* For experts that want their rows contiguous. rows[R,n] = weight[r] * x[row_token[r]] (weight NULL: 1);
 * padding is zeros. */
void moei_rows_gather(moe_ctx *ctx, const moei_plan *plan, moe_mat x, const void *weight, moe_mat rows);
/* drow_weight[r] = <dy[row_token[r]], rows[r]>, of plan->weight_dtype */
void moei_rows_weight_gradient(moe_ctx *ctx, const moei_plan *plan, moe_mat dy, moe_mat rows,
                               void *drow_weight);

/* by_row[R] of plan->weight_dtype -> by_slot[T,K] of `dtype`; slots without a row get 0. */
void moei_rows_to_slots(const moei_team *team, const moei_plan *plan, const void *by_row, moe_dtype dtype,
                        void *by_slot);

#endif
