/* select_quantile.c: quantile balancing: a bias for every expert from the logit that its fair share would
 * need. logits[T,E], beta[E] -> selection = logits - beta, and in training this batch's statistic
 * quantile[E]. Source: quantile_balancing of Megatron core's router.
 */
#include "route/select.h"

#include "core/order.h"

static void rank_token(const moei_route_job *job, const void *arg, int64_t t, double *room) {
    moei_routing *routing = job->routing;
    const int64_t E = routing->n_experts;
    (void)arg;
    (void)room;
    for (int64_t e = 0; e < E; ++e)
        moei_real_store(routing->dtype, routing->selection, t * E + e,
                        moei_real_load(routing->dtype, routing->logits, t * E + e) -
                            moei_real_load(routing->dtype, job->gate->quantile_bias, e));
}

/* alpha[t]: the (K+1)-th largest of what the token was ranked by, or the least where fewer can be chosen. */
static void alpha_token(const moei_route_job *job, const void *arg, int64_t t, double *z) {
    const moei_routing *routing = job->routing;
    const int32_t E = routing->n_experts;
    int32_t last = -1;
    (void)arg;
    if (moei_masked(job->batch, t)) return;
    for (int32_t e = 0; e < E; ++e) z[e] = moei_real_load(routing->dtype, routing->selection, t * E + e);
    for (int32_t k = 0; k <= job->router->top_k; ++k) {
        const int32_t next = moei_next_best(z, E, last);
        if (next < 0) break;
        last = next;
    }
    job->scratch.work[t] = last < 0 ? 0 : z[last];
}

/* quantile[e]: what must come off the logits of expert e so that its fair share m K / E of the m tokens would
 * rank it above their alpha. Its column of scratch.columns is reordered. */
static void measure_task(void *arg, int64_t e, void *scratch) {
    const moei_route_job *job = arg;
    const moei_routing *routing = job->routing;
    const int64_t E = routing->n_experts, T = routing->n_tokens, m = job->batch->n_valid;
    double *above = job->scratch.columns + e * T;
    int64_t n = 0;
    (void)scratch;
    for (int64_t t = 0; t < T; ++t)
        if (!moei_masked(job->batch, t))
            above[n++] = moei_real_load(routing->dtype, routing->logits, t * E + e) - job->scratch.work[t];
    routing->quantile[e] = moei_nth_largest(above, n, m * job->router->top_k / E);
}

void moei_rank_quantile(const moei_route_job *job) {
    moei_each_token(job, rank_token, NULL);
    if (job->batch->mode != MOE_TRAIN || job->batch->n_valid == 0) return;
    moei_each_token(job, alpha_token, NULL);
    moei_parallel(&job->ctx->team, job->routing->n_experts, measure_task, (void *)(uintptr_t)job);
}
