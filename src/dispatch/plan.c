/* plan.c: counting sort of the routed slots by expert, by the whole team of threads.
 * expert[T,K] -> offset[E+1], row_token[R], row_slot[R], row_of[T,K]; O(T*K + E), no comparison.
 * Source: MegaBlocks (Gale et al. 2022) for dropless rows and a plan of indices, which moves no token;
 * Blelloch 1990 for counts of parts, their prefix sums, and parts that then write on their own.
 */
#include "core/real.h"
#include "dispatch/dispatch.h"

#include <string.h>

/* A part is long enough to be worth a task; more parts than a machine's threads would only take memory. */
enum { PARTS = 64, PART_SLOTS = 1024, EXPERTS_PER_TASK = 32 };

typedef struct plan_job {
    const moei_team *team;
    moei_plan *plan;
    const moei_routing *routing;
    moei_drop order;
    bool pad;
    int32_t *list; /* [routed slots] by expert, each expert's in order */
} plan_job;

static int64_t part_length(int64_t n_slots) {
    const int64_t each = (n_slots + PARTS - 1) / PARTS;
    return each > PART_SLOTS ? each : PART_SLOTS;
}

int64_t moei_plan_parts(int64_t n_slots) {
    const int64_t length = part_length(n_slots);
    return n_slots > 0 ? (n_slots + length - 1) / length : 1;
}

static int64_t slots_of(const moei_plan *plan) {
    return plan->n_tokens * plan->top_k;
}

static void for_parts(const plan_job *job, moei_block_fn fn) {
    const int64_t n = slots_of(job->plan);
    moei_parallel_blocks(job->team, n, part_length(n), fn, (void *)(uintptr_t)job);
}

static void for_experts(const plan_job *job, moei_block_fn fn) {
    moei_parallel_blocks(job->team, job->plan->n_experts, EXPERTS_PER_TASK, fn, (void *)(uintptr_t)job);
}

/* The counts, later the cursors, of the part that begins at slot `first`. */
static int32_t *part_counts(const moei_plan *plan, int64_t first) {
    return plan->part_count + first / part_length(slots_of(plan)) * plan->n_experts;
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

static void padded_offsets(moei_plan *plan) {
    int64_t rows = 0;
    for (int64_t g = 0; g < plan->n_groups; ++g) rows += padded_rows(plan, g);
    for (int32_t e = 0; e <= plan->n_experts; ++e) plan->offset[e] = e * rows;
}

/* --- every expert's slots, in order --- */

/* Slot number i in the order that experts' rows stand in: group by group, tokens or ranks first. */
static int64_t slot_in_order(const plan_job *job, int64_t i) {
    const moei_plan *plan = job->plan;
    if (job->order != MOEI_DROP_RANK_MAJOR) return i;
    const int64_t n = plan->n_tokens / plan->n_groups, group = n * plan->top_k, g = i / group;
    return (g * n + i % group % n) * plan->top_k + i % group / n;
}

/* Counts the slots of every expert in a part, and marks each as wanted (0) or absent (-1). */
static void count_part(void *arg, int64_t first, int64_t end, void *scratch) {
    const plan_job *job = arg;
    moei_plan *plan = job->plan;
    int32_t *count = part_counts(plan, first);
    (void)scratch;
    memset(count, 0, (size_t)plan->n_experts * sizeof *count);
    for (int64_t i = first; i < end; ++i) {
        const int64_t slot = slot_in_order(job, i);
        const int32_t e = job->routing->expert[slot];
        plan->row_of[slot] = e < 0 ? -1 : 0;
        if (e >= 0) ++count[e];
    }
}

/* A part's count becomes where its slots begin among those of the expert. */
static void start_parts(void *arg, int64_t first, int64_t end, void *scratch) {
    const plan_job *job = arg;
    moei_plan *plan = job->plan;
    const int64_t E = plan->n_experts, parts = slots_of(plan) > 0 ? moei_plan_parts(slots_of(plan)) : 0;
    (void)scratch;
    for (int64_t e = first; e < end; ++e) plan->routed[e] = 0;
    for (int64_t part = 0; part < parts; ++part)
        for (int64_t e = first; e < end; ++e) {
            const int32_t count = plan->part_count[part * E + e];
            plan->part_count[part * E + e] = (int32_t)plan->routed[e];
            plan->routed[e] += count;
        }
}

static void list_part(void *arg, int64_t first, int64_t end, void *scratch) {
    const plan_job *job = arg;
    int32_t *next = part_counts(job->plan, first);
    (void)scratch;
    for (int64_t i = first; i < end; ++i) {
        const int64_t slot = slot_in_order(job, i);
        const int32_t e = job->routing->expert[slot];
        if (e >= 0) job->list[job->plan->offset[e] + next[e]++] = (int32_t)slot;
    }
}

static void list_slots(const plan_job *job) {
    for_parts(job, count_part);
    for_experts(job, start_parts);
    offsets_from(job->plan, job->plan->routed);
    for_parts(job, list_part);
}

/* --- capacity: who stays, and where --- */

/* Where an expert's list begins, once `offset` tells where its rows will: in part counts that are done with.
 */
static int32_t *list_starts(const moei_plan *plan) {
    return plan->part_count;
}

/* Drops what exceeds the capacity: the slots of an expert stand group by group, so a group is a run. */
static void drop_of_expert(const plan_job *job, int64_t e) {
    moei_plan *plan = job->plan;
    const int64_t n = plan->routed[e], group_slots = slots_of(plan) / plan->n_groups;
    const int32_t *slots = job->list + plan->offset[e];
    double *room = plan->drop_room ? plan->drop_room + plan->offset[e] : NULL;
    plan->kept[e] = 0;
    for (int64_t i = 0, next; i < n; i = next) {
        const int64_t g = slots[i] / group_slots, capacity = plan->capacity[g];
        for (next = i + 1; next < n && slots[next] / group_slots == g;) ++next;
        plan->kept[e] += next - i < capacity ? next - i : capacity;
        moei_drop_slots(job->routing, capacity, job->order, slots + i, next - i, room, plan->row_of);
    }
    list_starts(plan)[e] = (int32_t)plan->offset[e];
}

static void drop_task(void *arg, int64_t first, int64_t end, void *scratch) {
    (void)scratch;
    for (int64_t e = first; e < end; ++e) drop_of_expert(arg, e);
}

/* Rows of one expert: what stays of its list, every group followed by its padding. */
static void place_expert(const plan_job *job, int64_t e) {
    moei_plan *plan = job->plan;
    const int32_t *slots = job->list + list_starts(plan)[e];
    const int64_t n = plan->routed[e], groups = job->pad ? plan->n_groups : 1;
    const int64_t group_slots = slots_of(plan) / groups;
    int32_t *row = plan->row_slot + plan->offset[e];
    const int32_t *end = row;
    for (int64_t g = 0, i = 0; g < groups; ++g) {
        for (; i < n && slots[i] < (g + 1) * group_slots; ++i)
            if (plan->row_of[slots[i]] >= 0) *row++ = slots[i];
        if (job->pad)
            for (end += padded_rows(plan, g); row < end;) *row++ = -1;
    }
}

static void place_task(void *arg, int64_t first, int64_t end, void *scratch) {
    (void)scratch;
    for (int64_t e = first; e < end; ++e) place_expert(arg, e);
}

/* --- what stands by row --- */

static void index_row_block(void *arg, int64_t first, int64_t end, void *scratch) {
    const plan_job *job = arg;
    moei_plan *plan = job->plan;
    (void)scratch;
    for (int64_t r = first; r < end; ++r) {
        const int32_t slot = plan->row_slot[r];
        plan->row_token[r] = slot < 0 ? 0 : slot / plan->top_k;
        if (slot >= 0) plan->row_of[slot] = (int32_t)r;
        moei_real_store(plan->weight_dtype, plan->row_weight, r,
                        slot < 0 ? 0 : moei_real_load(job->routing->dtype, job->routing->weight, slot));
    }
}

static void convert_weights(void *arg, int64_t first, int64_t end, void *scratch) {
    const plan_job *job = arg;
    (void)scratch;
    for (int64_t slot = first; slot < end; ++slot)
        moei_real_store(job->plan->weight_dtype, job->plan->slot_weight, slot,
                        moei_real_load(job->routing->dtype, job->routing->weight, slot));
}

static void index_rows(const plan_job *job) {
    const int64_t n = job->plan->n_rows;
    moei_parallel_blocks(job->team, n, part_length(n), index_row_block, (void *)(uintptr_t)job);
    if (job->plan->slot_weight) for_parts(job, convert_weights);
}

static void slots_of_rows(void *arg, int64_t first, int64_t end, void *scratch) {
    const plan_job *job = arg;
    const moei_plan *plan = job->plan;
    (void)scratch;
    for (int64_t slot = first; slot < end; ++slot)
        if (plan->row_of[slot] >= 0) plan->row_slot[plan->row_of[slot]] = (int32_t)slot;
}

void moei_plan_index(const moei_team *team, moei_plan *plan, const moei_routing *routing) {
    const plan_job job = {.team = team, .plan = plan, .routing = routing};
    /* What stays -1 is padding. */
    memset(plan->row_slot, -1, (size_t)plan->n_rows * sizeof *plan->row_slot);
    for_parts(&job, slots_of_rows);
    index_rows(&job);
}

const void *moei_plan_slot_weight(const moei_plan *plan, const moei_routing *routing) {
    return plan->slot_weight ? plan->slot_weight : routing->weight;
}

void moei_plan_build(const moei_team *team, moei_plan *plan, const moei_batch *batch,
                     const moei_routing *routing, const moei_capacity *capacity) {
    plan_job job = {.team = team, .plan = plan, .routing = routing, .order = MOEI_DROP_POSITION};
    plan->n_tokens = routing->n_tokens;
    plan->n_experts = routing->n_experts;
    plan->top_k = routing->top_k;
    group_capacities(plan, batch, capacity);
    const bool limited = plan->capacity[0] >= 0;
    if (capacity) job.order = capacity->drop;
    job.pad = limited && capacity->pad;
    /* Without a capacity the lists are the rows; else rows are made of lists that stand where the rows'
     * tokens will. */
    job.list = limited ? plan->row_token : plan->row_slot;
    list_slots(&job);
    if (limited) {
        for_experts(&job, drop_task);
        if (job.pad)
            padded_offsets(plan);
        else
            offsets_from(plan, plan->kept);
        for_experts(&job, place_task);
    } else {
        memcpy(plan->kept, plan->routed, (size_t)plan->n_experts * sizeof *plan->kept);
    }
    plan->n_rows = plan->offset[plan->n_experts];
    index_rows(&job);
}

int64_t moei_plan_max_rows(const moei_capacity *capacity, moei_extent extent, int32_t top_k,
                           int32_t n_experts) {
    const int64_t routed = extent.tokens * top_k;
    if (!capacity || !capacity->pad) return routed;
    const int64_t padded = moei_capacity_most(capacity, n_experts, extent) * n_experts;
    return padded > routed ? padded : routed;
}
