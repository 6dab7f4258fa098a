/* weight.c: the weights of the chosen experts, and their gradient.
 * s[T,E] or logits[T,E], chosen[T,K] -> weight[T,K]. before: the scores of the chosen; after: softmax over
 * the chosen logits. Then divided by their sum where asked, then scaled. Source: Mixtral (after), DeepSeek-V3
 * (sigmoid, normalised, scaled); semantics section 9 for the gradients.
 */
#include "route/select.h"

#include <math.h>

/* Softmax over the chosen is the one score that depends on who else was chosen. */
static bool softmax_over_chosen(const moei_router *router) {
    return router->score == MOEI_SOFTMAX && !router->score_before_topk;
}

/* w[K]: unscaled weights of the chosen of token t. */
static void chosen_weights(const moei_route_job *job, int64_t t, const double *s, double *w) {
    const moei_routing *routing = job->routing;
    const int32_t *chosen = moei_chosen(routing, t);
    const int64_t E = routing->n_experts;
    const bool over_chosen = softmax_over_chosen(job->router);
    double max = -INFINITY, sum = 0;
    for (int32_t k = 0; k < routing->top_k; ++k) {
        if (chosen[k] < 0) continue;
        w[k] =
            over_chosen ? moei_real_load(routing->dtype, routing->logits, t * E + chosen[k]) : s[chosen[k]];
        max = fmax(max, w[k]);
    }
    for (int32_t k = 0; k < routing->top_k; ++k) {
        if (chosen[k] < 0) continue;
        if (over_chosen) w[k] = exp(w[k] - max);
        sum += w[k];
    }
    if (!over_chosen && !job->router->norm_topk_prob) return;
    sum += over_chosen ? 0 : job->router->norm_eps;
    for (int32_t k = 0; k < routing->top_k; ++k)
        if (chosen[k] >= 0) w[k] /= sum;
}

static void weigh_token(const moei_route_job *job, const void *arg, int64_t t, double *room) {
    moei_routing *routing = job->routing;
    const int64_t K = routing->top_k, E = routing->n_experts;
    double *s = room, *w = room + E;
    (void)arg;
    if (!moei_masked(job->batch, t)) {
        moei_score_token(job, t, s);
        chosen_weights(job, t, s, w);
    }
    for (int64_t k = 0; k < K; ++k)
        moei_real_store(routing->dtype, routing->weight, t * K + k,
                        routing->expert[t * K + k] < 0 ? 0 : job->router->scale * w[k]);
}

void moei_weigh(const moei_route_job *job) {
    moei_each_token(job, weigh_token, NULL);
}

/* The unscaled weight of a slot, from the scaled one that was kept; scaled by 0 it has no gradient either. */
static double share_of(const moei_route_job *job, int64_t slot) {
    const double weight = moei_real_load(job->routing->dtype, job->routing->weight, slot);
    return job->router->scale == 0 ? 0 : weight / job->router->scale;
}

void moei_weigh_backward_token(const moei_route_job *job, int64_t t, const double *s, const double *dweight,
                               double *ds, double *dl) {
    const moei_router *router = job->router;
    const moei_routing *routing = job->routing;
    const int32_t *chosen = moei_chosen(routing, t);
    const int64_t first = t * routing->top_k;
    /* Softmax over the chosen is what the weights already are, and needs no logits kept. */
    const bool over_chosen = softmax_over_chosen(router);
    double sum = router->norm_eps, mean = 0;
    for (int64_t k = 0; k < routing->top_k; ++k) {
        if (chosen[k] < 0) continue;
        const double w = over_chosen ? share_of(job, first + k) : s[chosen[k]];
        sum += w;
        mean += w * router->scale * dweight[k];
    }
    for (int64_t k = 0; k < routing->top_k; ++k) {
        if (chosen[k] < 0) continue;
        const double v = router->scale * dweight[k];
        if (over_chosen)
            dl[chosen[k]] += share_of(job, first + k) * (v - mean);
        else
            ds[chosen[k]] += router->norm_topk_prob ? v / sum - mean / (sum * sum) : v;
    }
}
