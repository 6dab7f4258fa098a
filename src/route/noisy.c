/* noisy.c: noisy top-k gating: logits + N(0,1) * softplus(noise logits), and the smooth load of each expert.
 * clean[T,E], std[T,E] -> logits[T,E]; P[t,e] -> load[E]; gradients through clean, std and both thresholds.
 * Source: Shazeer et al. 2017, equations 3-5 and 8-10, as tensor2tensor's noisy_top_k_gating computes them.
 */
#include "route/select.h"

#include "core/desc.h"

#include <math.h>
#include <string.h>

static double load_at(const moei_route_job *job, const void *p, int64_t i) {
    return moei_real_load(job->routing->dtype, p, i);
}

static void store_at(const moei_route_job *job, void *p, int64_t i, double value) {
    moei_real_store(job->routing->dtype, p, i, value);
}

/* The N(0,1) of token t. */
static void noise_token(const moei_route_job *job, int64_t t, double *noise) {
    const moe_draws *draws = job->batch->draws;
    const int64_t E = job->routing->n_experts;
    if (draws && draws->noise)
        for (int64_t e = 0; e < E; ++e) noise[e] = (double)draws->noise[t * E + e];
    else
        moei_draw_normal(job, MOE_DRAW_NOISE, job->batch->step, moei_draw_row(job, t), E, noise);
}

static void add_token(const moei_route_job *job, const void *arg, int64_t t, double *noise) {
    const moei_routing *routing = job->routing;
    const int64_t E = routing->n_experts;
    const bool train = job->batch->mode == MOE_TRAIN;
    (void)arg;
    if (train) noise_token(job, t, noise);
    for (int64_t e = 0; e < E; ++e) {
        const int64_t at = t * E + e;
        double clean = load_at(job, routing->logits, at), raw = load_at(job, routing->noise_std, at);
        double std =
            train ? fmax(raw, 0) + log1p(exp(-fabs(raw))) + moei_number(job->router->desc->noise_epsilon, 0)
                  : 0;
        store_at(job, routing->clean, at, clean);
        store_at(job, routing->noise_std, at, std);
        if (train) store_at(job, routing->logits, at, clean + noise[e] * std);
    }
}

void moei_noise_add(const moei_route_job *job) {
    moei_each_token(job, add_token, NULL);
}

/* Of P = (1 + erf(below / width)) / 2: a little more than the noise's, which may have underflowed to 0. */
static double width_of(double std) {
    return sqrt(2) * std + 1e-20;
}

/* Of token t: the experts whose noisy logits are the K-th and (K+1)-th largest. */
static void thresholds(const moei_route_job *job, int64_t t, double *noisy, int32_t *kth, int32_t *next) {
    const int32_t E = job->routing->n_experts;
    *kth = -1;
    for (int32_t e = 0; e < E; ++e) noisy[e] = load_at(job, job->routing->logits, t * E + e);
    for (int32_t k = 0; k < job->router->top_k; ++k) *kth = moei_next_best(noisy, E, *kth);
    *next = moei_next_best(noisy, E, *kth);
}

static void load_token(const moei_route_job *job, const void *arg, int64_t t, double *noisy) {
    const moei_routing *routing = job->routing;
    const int64_t E = routing->n_experts;
    int32_t kth, next;
    (void)arg;
    if (moei_masked(job->batch, t)) {
        for (int64_t e = 0; e < E; ++e) store_at(job, job->scratch.noise, t * E + e, 0);
        return;
    }
    thresholds(job, t, noisy, &kth, &next);
    for (int64_t e = 0; e < E; ++e) {
        double p = 1; /* with K = E every expert is always in */
        if (next >= 0) {
            const double threshold = noisy[noisy[e] > noisy[next] ? next : kth];
            const double below = load_at(job, routing->clean, t * E + e) - threshold;
            p = 0.5 * (1 + erf(below / width_of(load_at(job, routing->noise_std, t * E + e))));
        }
        store_at(job, job->scratch.noise, t * E + e, p);
    }
}

static void sum_load(void *arg, int64_t e, void *scratch) {
    (void)scratch;
    const moei_route_job *job = arg;
    double sum = 0;
    for (int64_t t = 0; t < job->routing->n_tokens; ++t)
        sum += load_at(job, job->scratch.noise, t * job->routing->n_experts + e);
    job->routing->load[e] = sum;
}

void moei_noise_load(const moei_route_job *job) {
    moei_each_token(job, load_token, NULL);
    moei_parallel(&job->ctx->team, job->routing->n_experts, sum_load, (void *)(uintptr_t)job);
}

/* d load into dclean, dstd and, at the thresholds, dnoisy. Without noise P is a step, which has no slope. */
static void load_gradient(const moei_route_job *job, int64_t t, const double *dload, double *noisy,
                          double *dnoisy, double *dclean, double *dstd) {
    const moei_routing *routing = job->routing;
    const int64_t E = routing->n_experts;
    const double one_over_sqrt_pi = 0.56418958354775628695;
    int32_t kth, next;
    thresholds(job, t, noisy, &kth, &next);
    if (next < 0) return;
    for (int64_t e = 0; e < E; ++e) {
        const int32_t threshold = noisy[e] > noisy[next] ? next : kth;
        const double std = load_at(job, routing->noise_std, t * E + e);
        if (std == 0) continue;
        const double z = (load_at(job, routing->clean, t * E + e) - noisy[threshold]) / width_of(std);
        const double slope = dload[e] * one_over_sqrt_pi * exp(-z * z) / width_of(std);
        dclean[e] += slope;
        dnoisy[threshold] -= slope;
        dstd[e] -= slope * z * sqrt(2);
    }
}

/* scratch.logits holds dnoisy: becomes dclean; scratch.noise gets the gradient of the noise logits. */
static void backward_token(const moei_route_job *job, const void *arg, int64_t t, double *room) {
    const moei_routing *routing = job->routing;
    const int64_t E = routing->n_experts;
    double *noise = room, *dnoisy = noise + E, *dclean = dnoisy + E, *dstd = dclean + E;
    memset(dclean, 0, 2 * (size_t)E * sizeof *dclean);
    for (int64_t e = 0; e < E; ++e) dnoisy[e] = load_at(job, job->scratch.logits, t * E + e);
    if (arg && !moei_masked(job->batch, t)) load_gradient(job, t, arg, noise, dnoisy, dclean, dstd);
    noise_token(job, t, noise);
    for (int64_t e = 0; e < E; ++e) {
        /* std = softplus(raw) + epsilon, whose slope is 1 - exp(-softplus(raw)) */
        const double plus =
            load_at(job, routing->noise_std, t * E + e) - moei_number(job->router->desc->noise_epsilon, 0);
        store_at(job, job->scratch.logits, t * E + e, dclean[e] + dnoisy[e]);
        store_at(job, job->scratch.noise, t * E + e, -expm1(-plus) * (dstd[e] + noise[e] * dnoisy[e]));
    }
}

void moei_noise_backward(const moei_route_job *job, const double *dload) {
    moei_each_token(job, backward_token, dload);
}
