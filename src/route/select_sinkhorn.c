/* select_sinkhorn.c: selection from a balanced transport plan between tokens and experts, training only.
 * logits[T,E] -> selection[T,E]: standard and sigma_moe in logarithms, megatron the plan itself. No gradient.
 * Source: Cuturi 2013 in the log domain (standard); Megatron core's sinkhorn; the sinkmoid of sigma-MoE as it
 * is, whose signs make it overcorrect: kept for equality with that system.
 */
#include "route/select.h"

#include "core/desc.h"

#include <float.h>
#include <math.h>

enum { DEFAULT_ITERS = 3, MEGATRON_ITERS = 10000, PER_TASK = 16 };

/* One problem: the real tokens among `n` from `first`, n_real of them. a[E] and b[n] are its potentials. */
typedef struct plan {
    const moei_route_job *job;
    int64_t first, n, n_real, E;
    double *a, *b;
    double sign, row, column; /* of the logarithmic forms */
    double *max, *change;     /* of megatron: [n] the largest logit of a row, and how far a[E] moved */
} plan;

/* One half step: a number of a or of b from all of the other, so its order of sums is its own. */
typedef void half_step(const plan *p, int64_t i);
typedef struct half_steps {
    const plan *plan;
    half_step *fn;
} half_steps;

static void half_task(void *arg, int64_t first, int64_t end, void *scratch) {
    (void)scratch;
    const half_steps *all = arg;
    for (int64_t i = first; i < end; ++i) all->fn(all->plan, i);
}

static void for_all(const plan *p, int64_t n, half_step *fn) {
    half_steps all = {p, fn};
    moei_parallel_blocks(&p->job->ctx->team, n, PER_TASK, half_task, &all);
}

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

/* From the lse over e of logit + sign * a[e]. */
static void log_row(const plan *p, int64_t i) {
    double max = -INFINITY, sum = 0;
    if (skipped(p, i)) return;
    for (int64_t e = 0; e < p->E; ++e) take(&max, &sum, logit(p, i, e) + p->sign * p->a[e]);
    p->b[i] = p->row - (max + log(sum));
}

/* From the lse over the tokens of logit + sign * b[i]. */
static void log_column(const plan *p, int64_t e) {
    double max = -INFINITY, sum = 0;
    for (int64_t i = 0; i < p->n; ++i)
        if (!skipped(p, i)) take(&max, &sum, logit(p, i, e) + p->sign * p->b[i]);
    p->a[e] = p->column - (max + log(sum));
}

static void log_result(const plan *p, int64_t i) {
    for (int64_t e = 0; e < p->E && !skipped(p, i); ++e) store(p, i, e, logit(p, i, e) + p->a[e] + p->b[i]);
}

/* Rows sum to 1, columns to n / E. sigma_moe has other constants, which do not change the ranking, and the
 * potentials' signs inside the logarithms turned round. */
static void solve_log(plan *p, int32_t iters, bool sigma) {
    p->sign = sigma ? -1 : 1;
    p->row = sigma ? log((double)p->n_real) : 0;
    p->column = sigma ? log((double)p->E) : log((double)p->n_real / (double)p->E);
    for (int64_t e = 0; e < p->E; ++e) p->a[e] = 0;
    for (int32_t iter = 0; iter < iters; ++iter) {
        for_all(p, p->n, log_row);
        for_all(p, p->E, log_column);
    }
    for_all(p, p->n, log_result);
}

static const double megatron_eps = 1e-8; /* in each denominator */

static void largest_of_row(const plan *p, int64_t i) {
    p->max[i] = -INFINITY;
    for (int64_t e = 0; e < p->E && !skipped(p, i); ++e) p->max[i] = fmax(p->max[i], logit(p, i, e));
}

static double above_zero(double sum) {
    return fmax(sum, DBL_MIN);
}

static void megatron_row(const plan *p, int64_t i) {
    double sum = 0;
    if (skipped(p, i)) return;
    for (int64_t e = 0; e < p->E; ++e) sum += p->a[e] * exp(logit(p, i, e) - p->max[i]);
    p->b[i] = 1 / (double)p->n_real / above_zero(sum + megatron_eps * exp(-p->max[i]));
}

static void megatron_column(const plan *p, int64_t e) {
    double sum = 0;
    for (int64_t i = 0; i < p->n; ++i)
        if (!skipped(p, i)) sum += p->b[i] * exp(logit(p, i, e) - p->max[i]);
    const double a = 1 / (double)p->E / (sum + megatron_eps);
    p->change[e] = fabs(a - p->a[e]);
    p->a[e] = a;
}

static void megatron_result(const plan *p, int64_t i) {
    for (int64_t e = 0; e < p->E && !skipped(p, i); ++e)
        store(p, i, e, p->a[e] * exp(logit(p, i, e) - p->max[i]) * p->b[i]);
}

/* Megatron's potentials of exp(logit): a of experts, b of tokens. The exponentials of a row are taken below
 * its largest, which moves into b and its 1e-8; so the plan is the same number for number, and cannot
 * overflow: a is at most 1e8, b at most 1 / DBL_MIN, and a column sums to at most 1 / E. */
static void solve_megatron(plan *p, int32_t iters, double tol) {
    double change = INFINITY;
    for_all(p, p->n, largest_of_row);
    for (int64_t e = 0; e < p->E; ++e) p->a[e] = 1;
    for (int32_t iter = 0; iter < iters && change > tol; ++iter) {
        for_all(p, p->n, megatron_row);
        for_all(p, p->E, megatron_column);
        change = 0;
        for (int64_t e = 0; e < p->E; ++e) change += p->change[e] / (double)p->E;
    }
    for_all(p, p->n, megatron_result);
}

static void solve(const moei_route_job *job, int64_t first, int64_t n) {
    const moe_layer_desc *desc = job->router->desc;
    const int64_t E = job->routing->n_experts;
    double *work = job->scratch.work;
    plan p = {.job = job, .first = first, .n = n, .E = E, .a = work, .change = work + E, .b = work + 2 * E};
    p.max = p.b + n;
    p.n_real = moei_real_tokens(job->batch, first, n);
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
