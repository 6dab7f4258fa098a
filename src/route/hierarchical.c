/* hierarchical.c: two levels of GShard top-2 as one flat routing over E = Eo * Ei experts with 4 slots a
 * token. x[T,d] -> outer expert of two slots -> a row at its inner gate -> slots (outer rank, inner rank),
 * whose weight is the product of both. Each level has its capacity, filled with all first choices before all
 * second ones. Source: Jordan and Jacobs 1994; Shazeer et al. 2017, appendix B; importance and places as in
 * tensor2tensor and lucidrains: a row that was a second choice, or not a clear first one, gets one inner
 * expert instead of two.
 */
#include "route/hierarchical.h"
#include "kernel/kernel.h"

#include <math.h>
#include <string.h>

moei_levels moei_levels_carve(const moei_router *router, moei_arena *arena, moei_extent extent) {
    const int64_t Eo = router->desc->num_groups_outer, Ei = router->n_experts / Eo;
    const int64_t T = extent.tokens, groups = moei_capacity_groups(router->capacity, extent);
    const size_t real = moe_dtype_bytes(router->dtype);
    return (moei_levels){.n_outer = (int32_t)Eo,
                         .outer = moei_arena_array(arena, T, 2, sizeof(int32_t)),
                         .row_of = moei_arena_array(arena, T, 2, sizeof(int32_t)),
                         .outer_prob = moei_arena_array(arena, T, Eo, real),
                         .outer_weight = moei_arena_array(arena, T, 2, real),
                         .valid = moei_arena_array(arena, groups, 1, sizeof(int64_t)),
                         .places = moei_arena_array(arena, groups, 1, sizeof(int64_t)),
                         .capacity = moei_arena_array(arena, groups, 1, sizeof(int64_t)),
                         .offset = moei_arena_array(arena, Eo + 1, 1, sizeof(int64_t)),
                         .segment = moei_arena_array(arena, Eo * groups + 1, 1, sizeof(int64_t)),
                         .row_token = moei_arena_array(arena, T, 2, sizeof(int32_t)),
                         .row_slot = moei_arena_array(arena, T, 2, sizeof(int32_t)),
                         .clear_first = moei_arena_array(arena, T, 2, 1),
                         .inner = moei_arena_array(arena, 2 * T, 2, sizeof(int32_t)),
                         .inner_prob = moei_arena_array(arena, 2 * T, Ei, real)};
}

moei_level_sizes moei_level_sizes_of(const moei_route_job *job) {
    const moei_batch *batch = job->batch;
    const int32_t Eo = job->router->desc->num_groups_outer;
    const int64_t groups = moei_group_count(batch, job->router->capacity->by_sequence);
    return (moei_level_sizes){.Eo = Eo,
                              .Ei = job->router->n_experts / Eo,
                              .n_groups = groups,
                              .group_tokens = job->routing->n_tokens / groups};
}

static void store_row(moe_dtype dtype, void *to, int64_t at, const double *from, int32_t n) {
    for (int32_t i = 0; i < n; ++i) moei_real_store(dtype, to, at + i, from ? from[i] : 0);
}

/* U(0,1) of token t: which 0 for the outer gate, 1 and 2 for the inner gates of its slots. */
static double draw(const moei_route_job *job, int64_t t, int64_t which) {
    double u[3];
    moei_draw_uniform(job, MOE_DRAW_SECOND_POLICY, job->batch->step, t, 3, u);
    return u[which];
}

static double outer_draw(const moei_route_job *job, int64_t t) {
    const moe_draws *draws = job->batch->draws;
    return draws && draws->second_policy ? (double)draws->second_policy[t] : draw(job, t, 0);
}

/* The second expert by z, or by a draw. */
static int32_t choose_second(moei_second second, const double *z, const double *s, int32_t n, int32_t first,
                             double u) {
    return second.policy == MOEI_SECOND_SAMPLE ? moei_second_sample(s, n, first, u)
                                               : moei_next_best(z, n, first);
}

/* The recorded slots of (token, outer slot) name an outer expert; true: they also stand for a row at its
 * inner gate. */
static bool recorded_outer(const moei_route_job *job, int64_t slot, int32_t *outer) {
    const moei_level_sizes size = moei_level_sizes_of(job);
    const int32_t *code = job->batch->replay_expert + 2 * slot;
    const int32_t e = moei_named(code[code[0] == -1], job->routing->n_experts);
    *outer = e < 0 ? -1 : e / size.Ei;
    return code[0] >= 0 || code[1] != -1;
}

/* outer[t] and row_of[t] (0: wanted, -1: not) of one token, and their weights. */
static void choose_outer(const moei_route_job *job, moei_second second, int64_t t, const double *z,
                         const double *s, double weight[2]) {
    const moei_level_sizes size = moei_level_sizes_of(job);
    const moei_levels *levels = &job->routing->levels;
    int32_t *choice = levels->outer + 2 * t, *row_of = levels->row_of + 2 * t;
    if (job->batch->replay_expert) {
        for (int64_t o = 0; o < 2; ++o) row_of[o] = recorded_outer(job, 2 * t + o, &choice[o]) ? 0 : -1;
        moei_shares(s, choice, 2, moei_level_eps, weight);
    } else {
        const double u = outer_draw(job, t);
        choice[0] = moei_next_best(z, size.Eo, -1);
        choice[1] = choose_second(second, z, s, size.Eo, choice[0], u);
        moei_shares(s, choice, 2, moei_level_eps, weight);
        row_of[0] = 0;
        row_of[1] = moei_second_stays(second, weight[1], u) ? 0 : -1;
        if (row_of[1] < 0) job->routing->expert[4 * t + 2] = moei_removed(choice[1] * size.Ei);
    }
    for (int64_t o = 0; o < 2; ++o)
        if (row_of[o] < 0) weight[o] = 0;
}

static void outer_token(const moei_route_job *job, const void *arg, int64_t t, double *room) {
    moei_routing *routing = job->routing;
    const moei_levels *levels = &routing->levels;
    const int32_t Eo = moei_level_sizes_of(job).Eo;
    double *z = room, *s = room + Eo, weight[2] = {0, 0}, lse = 0, entropy = 0;
    for (int64_t slot = 2 * t; slot < 2 * t + 2; ++slot) levels->outer[slot] = levels->row_of[slot] = -1;
    if (!moei_masked(job->batch, t))
        lse = moei_softmax_row(routing->dtype, job->scratch.logits, t * Eo, Eo, s, &entropy);
    const bool routed = !moei_masked(job->batch, t) && !isnan(lse);
    moei_load_row(routing->dtype, job->scratch.logits, t * Eo, Eo, z);
    if (routed) choose_outer(job, *(const moei_second *)arg, t, z, s, weight);
    store_row(routing->dtype, levels->outer_prob, t * Eo, routed ? s : NULL, Eo);
    store_row(routing->dtype, levels->outer_weight, 2 * t, weight, 2);
    moei_real_store(routing->dtype, routing->lse, t, lse);
    moei_real_store(routing->dtype, job->scratch.entropy, t, entropy);
}

/* Takes places of the outer experts for one rank of one group; count[Eo] goes on from the rank before. */
static void take_places(const moei_route_job *job, int64_t g, int32_t rank, int64_t limit, int64_t *count) {
    const moei_level_sizes size = moei_level_sizes_of(job);
    moei_routing *routing = job->routing;
    if (job->batch->replay_expert) limit = -1; /* those that found no place are not wanted */
    for (int64_t t = g * size.group_tokens; t < (g + 1) * size.group_tokens; ++t) {
        int32_t *row = &routing->levels.row_of[2 * t + rank];
        if (*row < 0) continue;
        const int32_t o = routing->levels.outer[2 * t + rank];
        if (limit < 0 || count[o] < limit) {
            *row = (int32_t)count[o]++;
            continue;
        }
        *row = -1;
        moei_real_store(routing->dtype, routing->levels.outer_weight, 2 * t + rank, 0);
        routing->expert[4 * t + 2 * rank] = moei_dropped(o * size.Ei, routing->n_experts);
    }
}

/* Rows at the inner gates: outer experts in order, their groups in order, places in order. */
static void make_rows(const moei_route_job *job) {
    const moei_level_sizes size = moei_level_sizes_of(job);
    moei_levels *levels = &job->routing->levels;
    const moei_capacity *capacity = job->router->capacity;
    const int64_t G = size.n_groups;
    int64_t *count = (int64_t *)(void *)job->scratch.work, row = 0;
    levels->most_places = 0;
    for (int64_t g = 0; g < G; ++g) {
        const int64_t valid = moei_real_tokens(job->batch, g * size.group_tokens, size.group_tokens);
        const int64_t limit = capacity->rows(capacity, job->batch->mode, false, valid, 2, size.Eo);
        levels->valid[g] = valid;
        levels->places[g] = limit < 0 ? valid : limit;
        if (levels->places[g] > levels->most_places) levels->most_places = levels->places[g];
        memset(count, 0, (size_t)size.Eo * sizeof *count);
        take_places(job, g, 0, limit, count);
        take_places(job, g, 1, limit, count);
        for (int64_t o = 0; o < size.Eo; ++o) levels->segment[o * G + g] = count[o];
    }
    for (int64_t i = 0; i <= size.Eo * G; ++i) {
        const int64_t rows = i < size.Eo * G ? levels->segment[i] : 0;
        levels->segment[i] = row;
        if (i % G == 0) levels->offset[i / G] = row;
        row += rows;
    }
}

static void index_rows(const moei_route_job *job) {
    const moei_level_sizes size = moei_level_sizes_of(job);
    moei_levels *levels = &job->routing->levels;
    for (int64_t slot = 0; slot < 2 * job->routing->n_tokens; ++slot) {
        if (levels->row_of[slot] < 0) continue;
        const int64_t segment = levels->outer[slot] * size.n_groups + slot / 2 / size.group_tokens;
        levels->row_of[slot] += (int32_t)levels->segment[segment];
        levels->row_slot[levels->row_of[slot]] = (int32_t)slot;
        levels->row_token[levels->row_of[slot]] = (int32_t)(slot / 2);
    }
}

static double inner_draw(const moei_route_job *job, int64_t segment, int64_t place, int64_t slot) {
    const moe_draws *draws = job->batch->draws;
    if (!draws || !draws->second_policy_inner) return draw(job, slot / 2, 1 + slot % 2);
    return (double)draws->second_policy_inner[segment * job->routing->levels.most_places + place];
}

/* Those of places that nobody took may be anything. */
static moe_status check_inner_draws(const moei_route_job *job) {
    const moei_level_sizes size = moei_level_sizes_of(job);
    const moei_levels *levels = &job->routing->levels;
    if (!job->batch->draws || !job->batch->draws->second_policy_inner) return MOE_OK;
    for (int64_t segment = 0; segment < size.Eo * size.n_groups; ++segment)
        for (int64_t row = levels->segment[segment]; row < levels->segment[segment + 1]; ++row) {
            const int64_t place = row - levels->segment[segment];
            const double draw = inner_draw(job, segment, place, levels->row_slot[row]);
            if (!isfinite(draw))
                return moe_ctx_fail(job->ctx, MOE_ERR_NUMERIC,
                                    "moe_draws.second_policy_inner: place %lld of outer expert %lld in group "
                                    "%lld is %g; it must be finite",
                                    (long long)place, (long long)(segment / size.n_groups),
                                    (long long)(segment % size.n_groups), draw);
        }
    return MOE_OK;
}

/* One row at its inner gate. A clear first choice of the outer level may go to two inner experts, others go
 * to their best one alone, by the rules of a second choice. */
static void inner_row(const moei_route_job *job, moei_second second, int64_t segment, int64_t row,
                      double *room) {
    const moei_level_sizes size = moei_level_sizes_of(job);
    moei_routing *routing = job->routing;
    const moei_levels *levels = &routing->levels;
    const int64_t slot = levels->row_slot[row];
    const double outer = moei_real_load(routing->dtype, levels->outer_weight, slot);
    double *z = room, *s = room + size.Ei, weight[2], entropy;
    int32_t *choice = levels->inner + 2 * row, *expert = routing->expert + 2 * slot;
    choice[0] = choice[1] = -1;
    moei_load_row(routing->dtype, job->scratch.inner, row * size.Ei, size.Ei, z);
    if (isnan(moei_softmax_row(routing->dtype, job->scratch.inner, row * size.Ei, size.Ei, s, &entropy)))
        s[0] = NAN;
    store_row(routing->dtype, levels->inner_prob, row * size.Ei, s, size.Ei);
    levels->clear_first[row] = outer > 0.5;
    if (isnan(s[0])) return;
    if (job->batch->replay_expert) {
        for (int j = 0; j < 2; ++j)
            if (expert[j] != -1) choice[j] = moei_named(expert[j], routing->n_experts) % size.Ei;
        moei_shares(s, choice, 2, moei_level_eps, weight);
    } else {
        const double u = inner_draw(job, segment, row - levels->segment[segment], slot);
        if (outer > 0.5) choice[0] = moei_next_best(z, size.Ei, -1);
        if (outer > 0) choice[1] = choose_second(second, z, s, size.Ei, choice[0], u);
        moei_shares(s, choice, 2, moei_level_eps, weight);
        for (int j = 0; j < 2; ++j)
            if (choice[j] >= 0) expert[j] = levels->outer[slot] * size.Ei + choice[j];
        if (choice[1] < 0)
            expert[0] = moei_removed(levels->outer[slot] * size.Ei);
        else if (!moei_second_stays(second, weight[1], u))
            expert[1] = moei_removed(expert[1]);
    }
    for (int j = 0; j < 2; ++j)
        moei_real_store(routing->dtype, routing->weight, 2 * slot + j,
                        expert[j] < 0 ? 0 : job->router->scale * outer * weight[j]);
}

typedef struct inner_job {
    const moei_route_job *job;
    moei_second second;
} inner_job;

static void inner_task(void *arg, int64_t segment, void *scratch) {
    const inner_job *inner = arg;
    const int64_t *bounds = inner->job->routing->levels.segment + segment;
    for (int64_t row = bounds[0]; row < bounds[1]; ++row)
        inner_row(inner->job, inner->second, segment, row, scratch);
}

/* Places of the inner experts of one segment: all first choices, then all second ones. */
static void take_inner_places(const moei_route_job *job, int64_t segment) {
    const moei_level_sizes size = moei_level_sizes_of(job);
    moei_routing *routing = job->routing;
    const moei_levels *levels = &routing->levels;
    const moei_capacity *capacity = job->router->capacity;
    const int64_t limit =
        capacity->rows(capacity, job->batch->mode, true, levels->places[segment % size.n_groups], 2, size.Ei);
    int64_t *count = (int64_t *)(void *)job->scratch.work;
    levels->capacity[segment % size.n_groups] = limit;
    memset(count, 0, (size_t)size.Ei * sizeof *count);
    for (int32_t j = 0; j < 2 && limit >= 0 && !job->batch->replay_expert; ++j)
        for (int64_t row = levels->segment[segment]; row < levels->segment[segment + 1]; ++row) {
            const int64_t slot = 2 * (int64_t)levels->row_slot[row] + j;
            int32_t *expert = &routing->expert[slot];
            if (*expert < 0 || count[*expert % size.Ei]++ < limit) continue;
            *expert = moei_dropped(*expert, routing->n_experts);
            moei_real_store(routing->dtype, routing->weight, slot, 0);
        }
}

static void outer_logits(const moei_route_job *job) {
    const moe_mat x = job->batch->x;
    const int32_t Eo = moei_level_sizes_of(job).Eo;
    moei_product(job->ctx, x, job->gate->weight, true,
                 (moe_mat){job->scratch.logits, x.rows, Eo, Eo, job->routing->dtype}, false);
}

static void inner_logits(const moei_route_job *job) {
    const moei_level_sizes size = moei_level_sizes_of(job);
    const moe_mat x = job->batch->x;
    const moe_gemm_rows_args args = {.dtype = x.dtype,
                                     .n_groups = size.Eo,
                                     .offset = job->routing->levels.offset,
                                     .n = size.Ei,
                                     .k = job->router->d_model,
                                     .a = x.data,
                                     .lda = x.stride,
                                     .a_row = job->routing->levels.row_token,
                                     .b = job->gate->inner,
                                     .ldb = job->router->d_model,
                                     .b_group = (int64_t)size.Ei * job->router->d_model,
                                     .b_trans = true,
                                     .c = job->scratch.inner,
                                     .ldc = size.Ei};
    job->ctx->kernels[x.dtype]->gemm_rows(&job->ctx->team, &args);
}

static void inner_level(const moei_route_job *job, moei_second second) {
    const moei_level_sizes size = moei_level_sizes_of(job);
    inner_job inner = {job, second};
    moei_parallel(&job->ctx->team, size.Eo * size.n_groups, inner_task, &inner);
    for (int64_t segment = 0; segment < size.Eo * size.n_groups; ++segment) take_inner_places(job, segment);
}

static moe_status find_bad(const moei_route_job *job) {
    const moei_routing *routing = job->routing;
    const int32_t Ei = moei_level_sizes_of(job).Ei;
    for (int64_t slot = 0; slot < 2 * routing->n_tokens; ++slot) {
        const int64_t row = routing->levels.row_of[slot];
        if (isnan(moei_real_load(routing->dtype, routing->lse, slot / 2)) ||
            (row >= 0 && isnan(moei_real_load(routing->dtype, routing->levels.inner_prob, row * Ei))))
            return moei_route_bad_token(job, slot / 2);
    }
    return MOE_OK;
}

const char *moei_levels_replay_fault(const moei_route_job *job, const int32_t *token, int64_t k) {
    const int32_t E = job->routing->n_experts, Ei = moei_level_sizes_of(job).Ei;
    const int32_t chosen = moei_named(token[k], E);
    for (int64_t j = 0; j < k && chosen >= 0; ++j) {
        const int32_t other = moei_named(token[j], E);
        if (other < 0) continue;
        if (j / 2 == k / 2 && other / Ei != chosen / Ei) return "its neighbour has another outer expert";
        if (j / 2 == k / 2 ? other == chosen : other / Ei == chosen / Ei)
            return "an earlier slot names it, or its outer expert, already";
    }
    return NULL;
}

moe_status moei_levels_forward(const moei_route_job *job) {
    moei_routing *routing = job->routing;
    const moei_second second = job->router->second[job->batch->mode];
    const int64_t slots = 4 * routing->n_tokens;
    routing->levels.n_groups = moei_level_sizes_of(job).n_groups;
    for (int64_t slot = 0; slot < slots && !job->batch->replay_expert; ++slot) routing->expert[slot] = -1;
    memset(routing->weight, 0, (size_t)slots * moe_dtype_bytes(routing->dtype));
    outer_logits(job);
    moei_each_token(job, outer_token, &second);
    make_rows(job);
    index_rows(job);
    MOEI_TRY(check_inner_draws(job));
    inner_logits(job);
    inner_level(job, second);
    routing->n_dropped = 0;
    for (int64_t slot = 0; slot < slots; ++slot)
        routing->n_dropped += routing->expert[slot] <= moei_dropped(0, routing->n_experts);
    return find_bad(job);
}
