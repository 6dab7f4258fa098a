/* plan.c: counting sort of the routed slots by expert.
 * expert[T,K] -> offset[E+1], row_token[R], row_slot[R], row_of[T,K]; O(T*K + E), no comparison.
 * Source: DESIGN "the plan is indices, not data movement"; MegaBlocks (Gale et al. 2022) for dropless rows.
 */
#include "core/real.h"
#include "dispatch/dispatch.h"

#include <string.h>

/* Counts every expert's slots and marks each routed slot as wanted (0), the rest as absent (-1). */
static void count_slots(moei_plan *plan, const moei_routing *routing) {
    const int64_t n_slots = plan->n_tokens * plan->top_k;
    memset(plan->routed, 0, (size_t)plan->n_experts * sizeof *plan->routed);
    for (int64_t slot = 0; slot < n_slots; ++slot) {
        int32_t e = routing->expert[slot];
        plan->row_of[slot] = e < 0 ? -1 : 0;
        if (e >= 0) ++plan->routed[e];
    }
}

static void offsets_from(moei_plan *plan, const int64_t *count) {
    plan->offset[0] = 0;
    for (int32_t e = 0; e < plan->n_experts; ++e) plan->offset[e + 1] = plan->offset[e] + count[e];
}

/* Writes row_slot for every slot still wanted, in token order inside an expert. `kept` is the cursor
 * and ends as the count. */
static void fill_rows(moei_plan *plan, const moei_routing *routing) {
    const int64_t n_slots = plan->n_tokens * plan->top_k;
    memset(plan->kept, 0, (size_t)plan->n_experts * sizeof *plan->kept);
    for (int64_t slot = 0; slot < n_slots; ++slot) {
        if (plan->row_of[slot] < 0) continue;
        int32_t e = routing->expert[slot];
        plan->row_slot[plan->offset[e] + plan->kept[e]++] = (int32_t)slot;
    }
}

static void drop_over_capacity(moei_plan *plan, const moei_routing *routing, int64_t capacity,
                               moei_drop drop) {
    for (int32_t e = 0; e < plan->n_experts; ++e)
        moei_drop_slots(routing, capacity, drop, plan->row_slot + plan->offset[e], plan->routed[e],
                        plan->row_of);
}

static void index_rows(moei_plan *plan, const moei_routing *routing) {
    for (int64_t r = 0; r < plan->n_rows; ++r) {
        int32_t slot = plan->row_slot[r];
        plan->row_token[r] = slot / plan->top_k;
        plan->row_of[slot] = (int32_t)r;
        moei_real_store(routing->dtype, plan->row_weight, r,
                        moei_real_load(routing->dtype, routing->weight, slot));
    }
}

void moei_plan_build(moei_plan *plan, const moei_routing *routing, int64_t capacity, moei_drop drop) {
    plan->n_tokens = routing->n_tokens;
    plan->n_experts = routing->n_experts;
    plan->top_k = routing->top_k;
    count_slots(plan, routing);
    offsets_from(plan, plan->routed);
    fill_rows(plan, routing);
    if (capacity >= 0) {
        drop_over_capacity(plan, routing, capacity, drop);
        for (int32_t e = 0; e < plan->n_experts; ++e)
            plan->kept[e] = plan->routed[e] < capacity ? plan->routed[e] : capacity;
        offsets_from(plan, plan->kept);
        fill_rows(plan, routing);
    }
    plan->n_rows = plan->offset[plan->n_experts];
    index_rows(plan, routing);
}
