/* select_top_k.c: ranking by scores, and the pick of the K best that most routers end with.
 * selection[T,E] -> expert[T,K]: expert dropout, then groups, then the best; ties to the lower index.
 * Source: DeepSeek-V3 (group-limited, top-2 sum); Megatron core (top K / groups sum); sigma-MoE (expert
 * dropout).
 */
#include "route/select.h"

#include <math.h>

/* The best after `last` in the order "higher first, then lower index"; -1 where only -inf is left. */
int32_t moei_next_best(const double *z, int32_t n, int32_t last) {
    int32_t best = -1;
    for (int32_t i = 0; i < n; ++i) {
        if (z[i] == -INFINITY) continue;
        if (last >= 0 && (z[i] > z[last] || (z[i] == z[last] && i <= last))) continue;
        if (best < 0 || z[i] > z[best]) best = i;
    }
    return best;
}

/* Of those that can be chosen; -inf where none can. */
static double sum_of_best(const double *z, int32_t n, int32_t best) {
    int32_t last = moei_next_best(z, n, -1);
    if (last < 0) return -INFINITY;
    double sum = z[last];
    for (int32_t i = 1; i < best; ++i) {
        last = moei_next_best(z, n, last);
        if (last < 0) break;
        sum += z[last];
    }
    return sum;
}

static void rank_token(const moei_route_job *job, const void *arg, int64_t t, double *s) {
    const moei_router *router = job->router;
    moei_routing *routing = job->routing;
    const int64_t E = routing->n_experts;
    const bool bias = job->gate->selection_bias && !router->desc->selection_bias_in_weights;
    (void)arg;
    if (moei_masked(job->batch, t)) return;
    if (!router->rank_logits) moei_score_token(job, t, s);
    for (int64_t e = 0; e < E; ++e) {
        double z = router->rank_logits ? moei_real_load(routing->dtype, routing->logits, t * E + e) : s[e];
        if (bias) z += moei_real_load(routing->dtype, job->gate->selection_bias, e);
        moei_real_store(routing->dtype, routing->selection, t * E + e, z);
    }
}

void moei_rank_scores(const moei_route_job *job) {
    moei_each_token(job, rank_token, NULL);
}

/* Training: some experts cannot be chosen, but K always can: those whose draw came nearest come back. */
static void drop_experts(const moei_route_job *job, int64_t t, double *z, double *u) {
    const moe_draws *draws = job->batch->draws;
    const double rate = (double)job->router->desc->expert_dropout;
    const int32_t E = job->routing->n_experts;
    int32_t live = 0;
    if (job->batch->mode != MOE_TRAIN || rate <= 0) return;
    if (draws && draws->expert_dropout)
        for (int32_t e = 0; e < E; ++e) u[e] = (double)draws->expert_dropout[t * E + e];
    else
        moei_draw_uniform(job, MOE_DRAW_EXPERT_DROPOUT, job->batch->step, moei_draw_row(job, t), E, u);
    for (int32_t e = 0; e < E; ++e) live += u[e] >= rate && z[e] != -INFINITY;
    for (; live < job->router->top_k; ++live) {
        int32_t nearest = -1;
        for (int32_t e = 0; e < E; ++e)
            if (u[e] < rate && z[e] != -INFINITY && (nearest < 0 || u[e] > u[nearest])) nearest = e;
        if (nearest < 0) break; /* a bias of -inf leaves fewer than K */
        u[nearest] = 1;
    }
    for (int32_t e = 0; e < E; ++e)
        if (u[e] < rate) z[e] = -INFINITY;
}

/* Keeps group_top_k groups of neighbouring experts; the others cannot be chosen. */
static void mask_groups(const moei_router *router, double *z, double *group) {
    const int32_t n_groups = router->desc->num_groups;
    if (router->desc->group_top_k == 0) return;
    const int32_t size = router->n_experts / n_groups;
    const int32_t best[] = {[MOEI_GROUP_MAX] = 1,
                            [MOEI_GROUP_TOP2_SUM] = 2,
                            [MOEI_GROUP_TOPN_SUM] = router->top_k / router->desc->group_top_k};
    for (int32_t g = 0; g < n_groups; ++g)
        group[g] = sum_of_best(z + (int64_t)g * size, size, best[router->group_score]);
    int32_t last = -1;
    for (int32_t i = 0; i < router->desc->group_top_k; ++i) {
        last = moei_next_best(group, n_groups, last);
        if (last < 0) return; /* all that are left are kept */
    }
    /* Everything ranked after the last group kept is rejected. */
    for (int32_t g = 0; g < n_groups; ++g)
        for (int32_t i = 0; i < size; ++i)
            if (group[g] < group[last] || (group[g] == group[last] && g > last))
                z[(int64_t)g * size + i] = -INFINITY;
}

/* K of one token: top_k, or drawn from top_k_min .. top_k in training. */
static int32_t draw_k(const moei_route_job *job, int64_t t) {
    const int32_t least = job->router->desc->top_k_min, most = job->router->top_k;
    double u;
    if (least == 0 || job->batch->mode != MOE_TRAIN) return most;
    moei_draw_uniform(job, MOE_DRAW_TOP_K, job->batch->step, moei_draw_row(job, t), 1, &u);
    return least + (int32_t)(u * (most - least + 1));
}

static void pick_token(const moei_route_job *job, const void *arg, int64_t t, double *z) {
    moei_routing *routing = job->routing;
    const int32_t E = routing->n_experts, K = routing->top_k;
    int32_t *expert = routing->expert + t * K;
    (void)arg;
    for (int32_t k = 0; k < K; ++k) expert[k] = -1;
    if (moei_masked(job->batch, t)) return;
    for (int32_t e = 0; e < E; ++e)
        z[e] = moei_real_load(routing->dtype, routing->selection, (int64_t)t * E + e);
    drop_experts(job, t, z, z + E);
    mask_groups(job->router, z, z + E);
    const int32_t wanted = draw_k(job, t);
    for (int32_t k = 0, last = -1; k < wanted; ++k) {
        expert[k] = last = moei_next_best(z, E, last);
        if (last < 0) break; /* the next would start over */
    }
    for (int32_t e = 0; e < E; ++e)
        moei_real_store(routing->dtype, routing->selection, (int64_t)t * E + e, z[e]);
}

moe_status moei_pick(const moei_route_job *job) {
    moei_each_token(job, pick_token, NULL);
    return MOE_OK;
}
