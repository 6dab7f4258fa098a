/* weight.c: the weights of the chosen experts, and their gradient.
 * s[T,E] or logits[T,E], chosen[T,K] -> weight[T,K]. before: the scores of the chosen; after: softmax over
 * the chosen logits. Then divided by their sum where asked, then scaled. Source: Mixtral (after), DeepSeek-V3
 * (sigmoid, normalised, scaled); test_route_gradient.c holds the gradients to finite differences.
 */
#include "route/select.h"

#include <math.h>

/* Softmax over the chosen is the one score that depends on who else was chosen. */
static bool softmax_over_chosen(const moei_router *router) {
    return router->score == MOEI_SOFTMAX && !router->score_before_topk;
}

void moei_shares(const double *s, const int32_t *chosen, int32_t K, double eps, double *share) {
    double sum = eps;
    for (int32_t k = 0; k < K; ++k) sum += share[k] = chosen[k] < 0 ? 0 : s[chosen[k]];
    for (int32_t k = 0; k < K; ++k) share[k] /= sum;
}

void moei_shares_backward(const double *s, const int32_t *chosen, int32_t K, double eps, const double *dshare,
                          double *ds) {
    double sum = eps, mean = 0;
    for (int32_t k = 0; k < K; ++k) {
        if (chosen[k] < 0) continue;
        sum += s[chosen[k]];
        mean += dshare[k] * s[chosen[k]];
    }
    for (int32_t k = 0; k < K; ++k)
        if (chosen[k] >= 0) ds[chosen[k]] += dshare[k] / sum - mean / (sum * sum);
}

/* w[K] = softmax over the logits of the chosen of token t. */
static void softmax_of_chosen(const moei_routing *routing, int64_t t, double *w) {
    const int32_t *chosen = moei_chosen(routing, t);
    double max = -INFINITY, sum = 0;
    for (int32_t k = 0; k < routing->top_k; ++k) {
        if (chosen[k] < 0) continue;
        w[k] = moei_real_load(routing->dtype, routing->logits, t * routing->n_experts + chosen[k]);
        max = fmax(max, w[k]);
    }
    for (int32_t k = 0; k < routing->top_k; ++k)
        if (chosen[k] >= 0) sum += w[k] = exp(w[k] - max);
    for (int32_t k = 0; k < routing->top_k; ++k)
        if (chosen[k] >= 0) w[k] /= sum;
}

/* w[K]: unscaled weights of the chosen of token t. */
static void chosen_weights(const moei_route_job *job, int64_t t, const double *s, double *w) {
    const moei_routing *routing = job->routing;
    const int32_t *chosen = moei_chosen(routing, t);
    if (softmax_over_chosen(job->router))
        softmax_of_chosen(routing, t, w);
    else if (job->router->norm_topk_prob)
        moei_shares(s, chosen, routing->top_k, job->router->norm_eps, w);
    else
        for (int32_t k = 0; k < routing->top_k; ++k) w[k] = chosen[k] < 0 ? 0 : s[chosen[k]];
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

/* Softmax over the chosen is what the weights already are, and needs no logits kept. v[K]: their gradient. */
static void softmax_backward(const moei_route_job *job, int64_t t, const double *v, double *dl) {
    const moei_routing *routing = job->routing;
    const int32_t *chosen = moei_chosen(routing, t);
    const int64_t first = t * routing->top_k;
    double mean = 0;
    for (int64_t k = 0; k < routing->top_k; ++k)
        if (chosen[k] >= 0) mean += share_of(job, first + k) * v[k];
    for (int64_t k = 0; k < routing->top_k; ++k)
        if (chosen[k] >= 0) dl[chosen[k]] += share_of(job, first + k) * (v[k] - mean);
}

void moei_weigh_backward_token(const moei_route_job *job, int64_t t, const double *s, double *dweight,
                               double *ds, double *dl) {
    const moei_router *router = job->router;
    const int32_t K = job->routing->top_k, *chosen = moei_chosen(job->routing, t);
    for (int32_t k = 0; k < K; ++k) dweight[k] *= router->scale;
    if (softmax_over_chosen(router))
        softmax_backward(job, t, dweight, dl);
    else if (router->norm_topk_prob)
        moei_shares_backward(s, chosen, K, router->norm_eps, dweight, ds);
    else
        for (int32_t k = 0; k < K; ++k)
            if (chosen[k] >= 0) ds[chosen[k]] += dweight[k];
}
