/* select_sinkhorn.c: selection from a balanced transport plan between tokens and experts, training only.
 * logits[T,E] -> selection[T,E]: standard and sigma_moe in logarithms, megatron the plan itself. No gradient.
 * Source: Cuturi 2013 in the log domain (standard); Megatron core's sinkhorn; the sinkmoid of sigma-MoE as it
 * is, whose signs make it overcorrect: kept for equality with that system.
 */
#include "route/select.h"

#include "core/desc.h"

#include <math.h>

enum { DEFAULT_ITERS = 3, MEGATRON_ITERS = 10000 };

/* One problem: the real tokens among `n` from `first`, n_real of them. a[E] and b[n] are its potentials. */
typedef struct plan {
    const moei_route_job *job;
    int64_t first, n, n_real, E;
    double *a, *b;
} plan;

static bool skipped(const plan *p, int64_t i) {
    return moei_masked(p->job->batch, p->first + i);
}

static double logit(const plan *p, int64_t i, int64_t e) {
    const moei_routing *routing = p->job->routing;
    return moei_real_load(routing->dtype, routing->logits, (p->first + i) * p->E + e);
}

static void store(const plan *p, int64_t i, int64_t e, double z) {
    const moei_routing *routing = p->job->routing;
    moei_real_store(routing->dtype, routing->selection, (p->first + i) * p->E + e, z);
}

/* Running log-sum-exp: (max, sum) takes in x. */
static void take(double *max, double *sum, double x) {
    if (x > *max) {
        *sum = *sum * exp(*max - x) + 1;
        *max = x;
    } else {
        *sum += exp(x - *max);
    }
}

/* lse over e of logit + sign * a[e] */
static double row_lse(const plan *p, int64_t i, double sign) {
    double max = -INFINITY, sum = 0;
    for (int64_t e = 0; e < p->E; ++e) take(&max, &sum, logit(p, i, e) + sign * p->a[e]);
    return max + log(sum);
}

/* lse over the tokens of logit + sign * b[i] */
static double column_lse(const plan *p, int64_t e, double sign) {
    double max = -INFINITY, sum = 0;
    for (int64_t i = 0; i < p->n; ++i)
        if (!skipped(p, i)) take(&max, &sum, logit(p, i, e) + sign * p->b[i]);
    return max + log(sum);
}

/* Rows sum to 1, columns to n / E. sigma_moe has other constants, which do not change the ranking, and the
 * potentials' signs inside the logarithms turned round. */
static void solve_log(const plan *p, int32_t iters, bool sigma) {
    const double sign = sigma ? -1 : 1;
    const double row = sigma ? log((double)p->n_real) : 0;
    const double column = sigma ? log((double)p->E) : log((double)p->n_real / (double)p->E);
    for (int64_t e = 0; e < p->E; ++e) p->a[e] = 0;
    for (int32_t iter = 0; iter < iters; ++iter) {
        for (int64_t i = 0; i < p->n; ++i)
            if (!skipped(p, i)) p->b[i] = row - row_lse(p, i, sign);
        for (int64_t e = 0; e < p->E; ++e) p->a[e] = column - column_lse(p, e, sign);
    }
    for (int64_t i = 0; i < p->n; ++i)
        for (int64_t e = 0; e < p->E && !skipped(p, i); ++e)
            store(p, i, e, logit(p, i, e) + p->a[e] + p->b[i]);
}

static double largest_logit(const plan *p) {
    double max = -INFINITY;
    for (int64_t i = 0; i < p->n; ++i)
        for (int64_t e = 0; e < p->E && !skipped(p, i); ++e) max = fmax(max, logit(p, i, e));
    return max;
}

/* Megatron's potentials of exp(logit): a of experts, b of tokens, with its 1e-8 in each denominator. All
 * exponentials are taken below the largest, which moves into b and the token side's 1e-8; so the plan is the
 * same number for number and cannot overflow. */
static void solve_megatron(const plan *p, int32_t iters, double tol) {
    const double max = largest_logit(p), eps = 1e-8, n = (double)p->n_real, E = (double)p->E;
    double change = INFINITY;
    for (int64_t e = 0; e < p->E; ++e) p->a[e] = 1;
    for (int32_t iter = 0; iter < iters && change > tol; ++iter) {
        change = 0;
        for (int64_t i = 0; i < p->n; ++i) {
            double sum = 0;
            for (int64_t e = 0; e < p->E && !skipped(p, i); ++e) sum += p->a[e] * exp(logit(p, i, e) - max);
            p->b[i] = 1 / n / (sum + eps * exp(-max));
        }
        for (int64_t e = 0; e < p->E; ++e) {
            double sum = 0;
            for (int64_t i = 0; i < p->n; ++i)
                if (!skipped(p, i)) sum += p->b[i] * exp(logit(p, i, e) - max);
            const double a = 1 / E / (sum + eps);
            change += fabs(a - p->a[e]) / E;
            p->a[e] = a;
        }
    }
    for (int64_t i = 0; i < p->n; ++i)
        for (int64_t e = 0; e < p->E && !skipped(p, i); ++e)
            store(p, i, e, p->a[e] * exp(logit(p, i, e) - max) * p->b[i]);
}

static void solve(const moei_route_job *job, int64_t first, int64_t n) {
    const moe_layer_desc *desc = job->router->desc;
    const int64_t E = job->routing->n_experts;
    plan p = {.job = job, .first = first, .n = n, .E = E, .a = job->scratch.work, .b = job->scratch.work + E};
    for (int64_t i = 0; i < n; ++i) p.n_real += !skipped(&p, i);
    if (p.n_real == 0) return;
    const int32_t iters = desc->sinkhorn_iters;
    if (job->router->sinkhorn == MOEI_SINKHORN_MEGATRON)
        solve_megatron(&p, iters > 0 ? iters : MEGATRON_ITERS, moei_number(desc->sinkhorn_tol, 0));
    else
        solve_log(&p, iters > 0 ? iters : DEFAULT_ITERS, job->router->sinkhorn == MOEI_SINKHORN_SIGMA);
}

/* sigma-MoE balances each sequence by itself; the others the batch. */
void moei_rank_sinkhorn(const moei_route_job *job) {
    const moei_batch *batch = job->batch;
    if (batch->mode != MOE_TRAIN) {
        moei_rank_scores(job);
        return;
    }
    if (job->router->sinkhorn != MOEI_SINKHORN_SIGMA) {
        solve(job, 0, job->routing->n_tokens);
        return;
    }
    for (int64_t s = 0; s < batch->n_sequences; ++s)
        solve(job, s * batch->sequence_length, batch->sequence_length);
}
