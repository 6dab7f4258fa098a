/* score_function.c: logits -> scores, and the gradient of both what weights and what losses read of them.
 * logits[T,E] -> prob[T,E] (scores normalised over E), lse[T], entropy[T]; s[E] of a token is recomputed.
 * Source: semantics of Megatron core (aux losses read softmax, or sigmoid / (sum + 1e-20)) and Automodel.
 */
#include "route/select.h"

#include <math.h>
#include <string.h>

static const double sum_eps = 1e-20; /* Megatron core's and Automodel's */

static double logistic(double x) {
    return x >= 0 ? 1 / (1 + exp(-x)) : exp(x) / (1 + exp(x));
}

static double softplus(double x) {
    return fmax(x, 0) + log1p(exp(-fabs(x)));
}

/* The raw score of one logit; of softmax, which needs its whole row, see moei_softmax_row. */
static double score_of(moei_score score, double logit) {
    switch (score) {
    case MOEI_SOFTMAX:
        break;
    case MOEI_SIGMOID:
        return logistic(logit);
    case MOEI_SQRTSOFTPLUS:
        return sqrt(softplus(logit));
    }
    return NAN;
}

static double slope_of_sigmoid(double x) {
    const double p = logistic(x);
    return p * (1 - p);
}

static double slope_of_sqrtsoftplus(double x) {
    const double root = sqrt(softplus(x));
    return root > 0 ? logistic(x) / (2 * root) : 0;
}

/* Its derivative; of softmax, see moei_softmax_backward. */
static double slope_of(moei_score score, double logit) {
    switch (score) {
    case MOEI_SOFTMAX:
        break;
    case MOEI_SIGMOID:
        return slope_of_sigmoid(logit);
    case MOEI_SQRTSOFTPLUS:
        return slope_of_sqrtsoftplus(logit);
    }
    return NAN;
}

static double logit(const moei_routing *routing, int64_t t, int64_t e) {
    return moei_real_load(routing->dtype, routing->logits, t * routing->n_experts + e);
}

bool moei_router_normalises(const moei_router *router) {
    return router->score != MOEI_SOFTMAX && strcmp(router->desc->aux_scores, "raw") != 0;
}

void moei_score_token(const moei_route_job *job, int64_t t, double *s) {
    const moei_router *router = job->router;
    const moei_routing *routing = job->routing;
    const int64_t E = routing->n_experts;
    const bool biased = router->desc->selection_bias_in_weights;
    for (int64_t e = 0; e < E; ++e) {
        s[e] = router->score == MOEI_SOFTMAX ? moei_real_load(routing->dtype, routing->prob, t * E + e)
                                             : score_of(router->score, logit(routing, t, e));
        if (biased) s[e] += moei_real_load(routing->dtype, job->gate->selection_bias, e);
    }
}

static void write_masked(const moei_route_job *job, int64_t t, double lse) {
    moei_routing *routing = job->routing;
    const int64_t E = routing->n_experts;
    for (int64_t e = 0; e < E; ++e) moei_real_store(routing->dtype, routing->prob, t * E + e, 0);
    moei_real_store(routing->dtype, routing->lse, t, lse);
    moei_real_store(routing->dtype, job->scratch.entropy, t, 0);
}

double moei_softmax_row(moe_dtype dtype, const void *logits, int64_t at, int32_t n, double *s,
                        double *entropy) {
    double max = -INFINITY, sum = 0, below = 0;
    for (int32_t e = 0; e < n; ++e) {
        s[e] = moei_real_load(dtype, logits, at + e);
        if (!isfinite(s[e])) return NAN;
        max = fmax(max, s[e]);
    }
    for (int32_t e = 0; e < n; ++e) {
        const double depth = max - s[e];
        sum += s[e] = exp(-depth);
        if (s[e] > 0) below += s[e] * depth;
    }
    for (int32_t e = 0; e < n; ++e) s[e] /= sum;
    *entropy = log(sum) + below / sum;
    return max + log(sum);
}

void moei_softmax_backward(const double *s, const double *ds, double z, int32_t n, double *dl) {
    double mean = 0;
    for (int32_t e = 0; e < n && ds; ++e) mean += ds[e] * s[e];
    for (int32_t e = 0; e < n; ++e) dl[e] += s[e] * ((ds ? ds[e] - mean : 0) + z);
}

static void score_forward_token(const moei_route_job *job, const void *arg, int64_t t, double *s) {
    moei_routing *routing = job->routing;
    const int64_t E = routing->n_experts;
    double entropy = 0, sum = 0;
    (void)arg;
    double lse = 0;
    if (!moei_masked(job->batch, t))
        lse = moei_softmax_row(routing->dtype, routing->logits, t * E, routing->n_experts, s, &entropy);
    if (moei_masked(job->batch, t) || isnan(lse)) {
        write_masked(job, t, lse);
        return;
    }
    if (job->router->score != MOEI_SOFTMAX) moei_score_token(job, t, s);
    for (int64_t e = 0; e < E; ++e) sum += s[e];
    if (!moei_router_normalises(job->router)) sum = 1;
    for (int64_t e = 0; e < E; ++e)
        moei_real_store(routing->dtype, routing->prob, t * E + e, s[e] / (sum + sum_eps));
    moei_real_store(routing->dtype, routing->lse, t, lse);
    moei_real_store(routing->dtype, job->scratch.entropy, t, entropy);
}

moe_status moei_score_forward(const moei_route_job *job) {
    const moei_routing *routing = job->routing;
    moei_each_token(job, score_forward_token, NULL);
    for (int64_t t = 0; t < routing->n_tokens; ++t)
        if (isnan(moei_real_load(routing->dtype, routing->lse, t))) return moei_route_bad_token(job, t);
    return MOE_OK;
}

/* ds[E] += what u[E] asks of the scores as shares of their sum + eps, the one of `left_out` not among them.
 */
static void share_gradient(const double *s, const double *u, int32_t E, int32_t left_out, double eps,
                           double *ds) {
    double sum = eps, mean = 0;
    for (int32_t e = 0; e < E; ++e) {
        if (e == left_out) continue;
        sum += s[e];
        mean += u[e] * s[e];
    }
    for (int32_t e = 0; e < E; ++e)
        if (e != left_out) ds[e] += u[e] / sum - mean / (sum * sum);
}

/* The gradient of every token of the group of token t. */
static const double *of_group(const moei_route_job *job, const moei_route_loss_grad *loss, const double *grad,
                              int64_t t) {
    return grad + (loss->group_tokens > 0 ? t / loss->group_tokens : 0) * job->routing->n_experts;
}

/* ds[E] += what the losses on prob, and on the shares of second choices, ask */
static void loss_gradient(const moei_route_job *job, int64_t t, const moei_route_loss_grad *loss,
                          const double *s, double *ds) {
    const int32_t E = job->routing->n_experts;
    const double *u = loss->prob ? of_group(job, loss, loss->prob, t) : NULL;
    if (u && moei_router_normalises(job->router))
        share_gradient(s, u, E, -1, sum_eps, ds);
    else
        for (int32_t e = 0; u && e < E; ++e) ds[e] += u[e];
    if (loss->second)
        share_gradient(s, of_group(job, loss, loss->second, t), E, moei_chosen(job->routing, t)[0],
                       moei_rest_eps, ds);
}

/* dl[E] += ds[E] through the score function */
static void through_score(const moei_route_job *job, int64_t t, const double *s, const double *ds,
                          double *dl) {
    const moei_routing *routing = job->routing;
    if (job->router->score == MOEI_SOFTMAX) {
        moei_softmax_backward(s, ds, 0, routing->n_experts, dl);
        return;
    }
    for (int64_t e = 0; e < routing->n_experts; ++e)
        dl[e] += ds[e] * slope_of(job->router->score, logit(routing, t, e));
}

/* dl[E] += usage through softmax, and the z-loss; `room` [E] holds the softmax where scores are another. */
static void softmax_gradient(const moei_route_job *job, int64_t t, const moei_route_loss_grad *loss,
                             const double *s, double *room, double *dl) {
    const moei_routing *routing = job->routing;
    const double lse = moei_real_load(routing->dtype, routing->lse, t);
    const bool softmax = job->router->score == MOEI_SOFTMAX;
    for (int64_t e = 0; e < routing->n_experts && !softmax; ++e) room[e] = exp(logit(routing, t, e) - lse);
    moei_softmax_backward(softmax ? s : room, loss->usage, loss->z * lse, routing->n_experts, dl);
}

void moei_score_backward_token(const moei_route_job *job, int64_t t, const moei_route_loss_grad *loss,
                               const double *s, double *ds, double *dl) {
    loss_gradient(job, t, loss, s, ds);
    through_score(job, t, s, ds, dl);
    if (loss->usage || loss->z != 0) softmax_gradient(job, t, loss, s, ds, dl);
}
