/* token_rounding.c: the rows of every expert rounded to the nearest multiple of a tile.
 * expert[T,K of E slots] as picked -> expert[T,E]: the choices that stay, then the experts added.
 * Source: SonicMoE, Guo et al. 2025, algorithm 4 (nearest rounding by frequency; a half goes downwards).
 *
 * With f tokens that chose expert e, and r the multiple nearest to f: where r < f the r of highest score
 * s[t,e] stay; else the r - f of highest score of those that did not choose it join, as many as can. Equal
 * scores: the earlier token first. Weights and their gradients are those of the experts that a token ends
 * with.
 */
#include "route/select.h"

#include "core/order.h"

#include <math.h>

static int64_t nearest_multiple(int64_t n, int64_t multiple) {
    const int64_t rest = n % multiple;
    return 2 * rest > multiple ? n - rest + multiple : n - rest;
}

/* Whether e is among the choices of token t. */
static bool chose(const moei_route_job *job, int64_t t, int64_t e) {
    const int32_t *choice = job->routing->expert + t * job->routing->top_k;
    for (int32_t k = 0; k < job->router->top_k; ++k)
        if (choice[k] == e) return true;
    return false;
}

/* selection[E] of a token becomes its scores, which experts compare tokens by; -inf stays: cannot be chosen.
 */
static void score_token(const moei_route_job *job, const void *arg, int64_t t, double *s) {
    const moei_routing *routing = job->routing;
    const int64_t E = routing->n_experts;
    (void)arg;
    if (moei_masked(job->batch, t)) return;
    moei_score_token(job, t, s);
    for (int64_t e = 0; e < E; ++e)
        if (moei_real_load(routing->dtype, routing->selection, t * E + e) != -INFINITY)
            moei_real_store(routing->dtype, routing->selection, t * E + e, s[e]);
}

/* The tokens that an expert is to take `wanted` of: those that chose it, or those that did not. */
typedef struct contest {
    bool chosen;
    int64_t wanted, n;
    double *score; /* [n], reordered */
} contest;

static bool takes_part(const moei_route_job *job, const contest *c, int64_t t, int64_t e, double score) {
    return score != -INFINITY && chose(job, t, e) == c->chosen;
}

static double score_of(const moei_routing *routing, int64_t t, int64_t e) {
    return moei_real_load(routing->dtype, routing->selection, t * routing->n_experts + e);
}

static contest open_contest(const moei_route_job *job, int64_t e) {
    const moei_routing *routing = job->routing;
    const int64_t T = routing->n_tokens;
    int64_t asked = 0;
    for (int64_t t = 0; t < T; ++t) asked += chose(job, t, e);
    const int64_t rounded = nearest_multiple(asked, job->router->desc->token_rounding);
    contest c = {.chosen = rounded < asked, .score = job->scratch.columns + e * T};
    c.wanted = c.chosen ? rounded : rounded - asked;
    for (int64_t t = 0; t < T; ++t) {
        if (moei_masked(job->batch, t)) continue;
        const double score = score_of(routing, t, e);
        if (takes_part(job, &c, t, e, score)) c.score[c.n++] = score;
    }
    if (c.wanted > c.n) c.wanted = c.n;
    return c;
}

/* selection of expert e becomes 1 for the tokens it has in the end, else 0. */
static void round_expert(void *arg, int64_t e, void *scratch) {
    const moei_route_job *job = arg;
    const moei_routing *routing = job->routing;
    const contest c = open_contest(job, e);
    const double least = c.wanted > 0 ? moei_nth_largest(c.score, c.n, c.wanted - 1) : INFINITY;
    int64_t equals = c.wanted; /* places for tokens of the least score that is taken */
    (void)scratch;
    for (int64_t i = 0; i < c.n; ++i) equals -= c.score[i] > least;
    for (int64_t t = 0; t < routing->n_tokens; ++t) {
        if (moei_masked(job->batch, t)) continue;
        const double score = score_of(routing, t, e);
        bool takes = chose(job, t, e);
        if (takes_part(job, &c, t, e, score)) takes = score > least || (score == least && --equals >= 0);
        moei_real_store(routing->dtype, routing->selection, t * routing->n_experts + e, takes);
    }
}

/* Slots of one token: the choices that stay, in their order, then the experts that it was added to. */
static void fill_slots(const moei_route_job *job, const void *arg, int64_t t, double *room) {
    const moei_routing *routing = job->routing;
    const int32_t E = routing->n_experts, K = job->router->top_k;
    int32_t *expert = routing->expert + t * routing->top_k, slots = 0;
    (void)arg;
    (void)room;
    if (moei_masked(job->batch, t)) return;
    for (int32_t k = 0; k < K; ++k) {
        const int32_t e = expert[k];
        expert[k] = -1;
        if (e < 0 || score_of(routing, t, e) == 0) continue;
        expert[slots++] = e;
        moei_real_store(routing->dtype, routing->selection, t * E + e, 0); /* it has its slot */
    }
    for (int32_t e = 0; e < E; ++e)
        if (score_of(routing, t, e) != 0) expert[slots++] = e;
}

void moei_round_tokens(const moei_route_job *job) {
    moei_each_token(job, score_token, NULL);
    moei_parallel(&job->ctx->team, job->routing->n_experts, round_expert, (void *)(uintptr_t)job);
    moei_each_token(job, fill_slots, NULL);
}
