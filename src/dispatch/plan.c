/* plan.c: counting sort of the routed slots by expert, twice where a capacity drops some of them.
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

/* Masked tokens take no capacity and do not raise it: masking a token is the same as leaving it out. */
static void group_capacities(moei_plan *plan, const moei_batch *batch, const moei_capacity *capacity) {
    plan->n_groups = moei_group_count(batch, capacity && capacity->by_sequence);
    const int64_t n = plan->n_tokens / plan->n_groups;
    for (int64_t g = 0; g < plan->n_groups; ++g)
        plan->capacity[g] =
            capacity ? capacity->rows(capacity, batch->mode, false, moei_real_tokens(batch, g * n, n),
                                      capacity->top_k, plan->n_experts)
                     : -1;
}

/* Padding never exceeds the group: more rows than tokens would serve nobody. */
static int64_t padded_rows(const moei_plan *plan, int64_t g) {
    const int64_t n = plan->n_tokens / plan->n_groups;
    return plan->capacity[g] < n ? plan->capacity[g] : n;
}

static void offsets_from(moei_plan *plan, const int64_t *count) {
    plan->offset[0] = 0;
    for (int32_t e = 0; e < plan->n_experts; ++e) plan->offset[e + 1] = plan->offset[e] + count[e];
}

/* Slot number i of a group in the order its experts' rows stand in. */
static int64_t slot_in_order(const moei_plan *plan, moei_drop order, int64_t first, int64_t n, int64_t i) {
    if (order != MOEI_DROP_RANK_MAJOR) return first * plan->top_k + i;
    return (first + i % n) * plan->top_k + i / n;
}

/* Writes row_slot for every slot still wanted. `kept` is the cursor of an expert and ends as its count, with
 * padding where `pad`. */
static void fill_rows(moei_plan *plan, const moei_routing *routing, moei_drop order, bool pad) {
    const int64_t n = plan->n_tokens / plan->n_groups;
    int64_t end = 0;
    memset(plan->kept, 0, (size_t)plan->n_experts * sizeof *plan->kept);
    for (int64_t g = 0; g < plan->n_groups; ++g) {
        for (int64_t i = 0; i < n * plan->top_k; ++i) {
            const int64_t slot = slot_in_order(plan, order, g * n, n, i);
            if (plan->row_of[slot] < 0) continue;
            const int32_t e = routing->expert[slot];
            plan->row_slot[plan->offset[e] + plan->kept[e]++] = (int32_t)slot;
        }
        if (!pad) continue;
        end += padded_rows(plan, g);
        for (int32_t e = 0; e < plan->n_experts; ++e)
            while (plan->kept[e] < end) plan->row_slot[plan->offset[e] + plan->kept[e]++] = -1;
    }
}

/* Drops what exceeds the capacity: the rows of an expert stand group by group, so a group is a run. */
static void drop_over_capacity(moei_plan *plan, const moei_routing *routing, moei_drop drop) {
    const int64_t group_slots = plan->n_tokens / plan->n_groups * plan->top_k;
    for (int32_t e = 0; e < plan->n_experts; ++e) {
        int32_t *slots = plan->row_slot + plan->offset[e];
        for (int64_t i = 0, next; i < plan->routed[e]; i = next) {
            const int64_t g = slots[i] / group_slots;
            for (next = i + 1; next < plan->routed[e] && slots[next] / group_slots == g;) ++next;
            moei_drop_slots(routing, plan->capacity[g], drop, slots + i, next - i, plan->row_of);
        }
    }
}

static void count_kept(moei_plan *plan, const moei_routing *routing) {
    memset(plan->kept, 0, (size_t)plan->n_experts * sizeof *plan->kept);
    for (int64_t slot = 0; slot < plan->n_tokens * plan->top_k; ++slot)
        if (plan->row_of[slot] >= 0) ++plan->kept[routing->expert[slot]];
}

static void padded_offsets(moei_plan *plan) {
    int64_t rows = 0;
    for (int64_t g = 0; g < plan->n_groups; ++g) rows += padded_rows(plan, g);
    for (int32_t e = 0; e <= plan->n_experts; ++e) plan->offset[e] = e * rows;
}

static void index_rows(moei_plan *plan, const moei_routing *routing) {
    for (int64_t r = 0; r < plan->n_rows; ++r) {
        const int32_t slot = plan->row_slot[r];
        plan->row_token[r] = slot < 0 ? 0 : slot / plan->top_k;
        if (slot >= 0) plan->row_of[slot] = (int32_t)r;
        moei_real_store(plan->weight_dtype, plan->row_weight, r,
                        slot < 0 ? 0 : moei_real_load(routing->dtype, routing->weight, slot));
    }
    for (int64_t slot = 0; plan->slot_weight && slot < plan->n_tokens * plan->top_k; ++slot)
        moei_real_store(plan->weight_dtype, plan->slot_weight, slot,
                        moei_real_load(routing->dtype, routing->weight, slot));
}

void moei_plan_index(moei_plan *plan, const moei_routing *routing) {
    for (int64_t r = 0; r < plan->n_rows; ++r) plan->row_slot[r] = -1; /* what stays so is padding */
    for (int64_t slot = 0; slot < plan->n_tokens * plan->top_k; ++slot)
        if (plan->row_of[slot] >= 0) plan->row_slot[plan->row_of[slot]] = (int32_t)slot;
    index_rows(plan, routing);
}

const void *moei_plan_slot_weight(const moei_plan *plan, const moei_routing *routing) {
    return plan->slot_weight ? plan->slot_weight : routing->weight;
}

void moei_plan_build(moei_plan *plan, const moei_batch *batch, const moei_routing *routing,
                     const moei_capacity *capacity) {
    const moei_drop order = capacity ? capacity->drop : MOEI_DROP_POSITION;
    plan->n_tokens = routing->n_tokens;
    plan->n_experts = routing->n_experts;
    plan->top_k = routing->top_k;
    group_capacities(plan, batch, capacity);
    count_slots(plan, routing);
    offsets_from(plan, plan->routed);
    fill_rows(plan, routing, order, false);
    if (plan->capacity[0] >= 0) {
        drop_over_capacity(plan, routing, order);
        count_kept(plan, routing);
        if (capacity->pad)
            padded_offsets(plan);
        else
            offsets_from(plan, plan->kept);
        fill_rows(plan, routing, order, capacity->pad);
        if (capacity->pad) count_kept(plan, routing);
    }
    plan->n_rows = plan->offset[plan->n_experts];
    index_rows(plan, routing);
}

int64_t moei_plan_capacity(const moei_plan *plan) {
    int64_t largest = -1;
    for (int64_t g = 0; g < plan->n_groups; ++g)
        if (plan->capacity[g] > largest) largest = plan->capacity[g];
    return largest;
}

int64_t moei_plan_max_rows(const moei_capacity *capacity, moei_extent extent, int32_t top_k,
                           int32_t n_experts) {
    const int64_t routed = extent.tokens * top_k;
    if (!capacity || !capacity->pad) return routed;
    const int64_t padded = moei_capacity_most(capacity, n_experts, extent) * n_experts;
    return padded > routed ? padded : routed;
}
