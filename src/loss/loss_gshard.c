/* loss_gshard.c: the GShard loss: first choices only, every group of tokens on its own.
 * A gate of n experts that sees `size` tokens: n * sum_e d_e P_e with d = first choices / size and P = sum of
 * scores / size. One level: the mean over the sequences. Two levels: of each group the outer gate's, plus the
 * mean of its Eo inner gates'; a row that is no clear first choice is left out of the inner sums, but not of
 * the places they are divided by. Source: Lepikhin et al., GShard, 2020, section 2.2; tensor2tensor and
 * lucidrains (mean times E^2).
 */
#include "core/real.h"
#include "loss/loss.h"

#include <string.h>

double moei_gate_balance(const int64_t *count, const double *sum, int32_t n, int64_t size) {
    double product = 0;
    if (size < 1) return 0;
    for (int32_t e = 0; e < n; ++e) product += (double)count[e] * sum[e];
    return n * product / ((double)size * (double)size);
}

void moei_gate_balance_gradient(const int64_t *count, int32_t n, int64_t size, double scale, double *grad) {
    for (int32_t e = 0; e < n && size > 0; ++e)
        grad[e] += scale * n * (double)count[e] / ((double)size * (double)size);
}

/* --- one level --- */

void moei_loss_count_choice(const moei_loss_job *job, int64_t k, int64_t *count) {
    const moei_routing *routing = job->routing;
    const int64_t *offset = job->scratch.offset, E = routing->n_experts;
    const int32_t *choice = routing->choice ? routing->choice : routing->expert;
    memset(count, 0, (size_t)(job->n_groups * E) * sizeof *count);
    for (int64_t g = 0; g < job->n_groups; ++g)
        for (int64_t t = offset[g]; t < offset[g + 1]; ++t) {
            const int32_t e = choice[t * routing->top_k + k];
            if (e >= 0) ++count[g * E + e];
        }
}

void moei_loss_choice_gradient(const moei_loss_job *job, int64_t k, int64_t *count, double scale,
                               double *grad) {
    const int32_t E = job->routing->n_experts;
    const double each = scale / (double)moei_loss_groups_used(job);
    moei_loss_count_choice(job, k, count);
    for (int64_t g = 0; g < job->n_groups; ++g)
        moei_gate_balance_gradient(count + g * E, E, job->scratch.valid[g], each, grad + g * E);
}

static double one_level(const moei_loss_job *job) {
    const moei_loss_scratch *s = &job->scratch;
    const int32_t E = job->routing->n_experts;
    double sum = 0;
    moei_loss_count_choice(job, 0, s->first);
    for (int64_t g = 0; g < job->n_groups; ++g) {
        for (int32_t e = 0; e < E; ++e)
            s->mean[e] = moei_real_load(job->routing->dtype, s->prob_sum, g * E + e);
        sum += moei_gate_balance(s->first + g * E, s->mean, E, s->valid[g]);
    }
    return sum / (double)moei_loss_groups_used(job);
}

static void one_level_gradient(const moei_loss_job *job, double scale, moei_loss_grad *grad) {
    const moei_loss_scratch *s = &job->scratch;
    double *prob = moei_loss_want(&grad->prob, s->prob, job->n_groups * job->routing->n_experts);
    moei_loss_choice_gradient(job, 0, s->first, scale, prob);
}

/* --- two levels: gate number i is the outer one of group i, then the inner one of segment i - groups --- */

typedef struct levels_job {
    const moei_loss_job *job;
    double each;          /* times the gradient of an outer gate */
    moei_loss_grad *grad; /* NULL: the values are asked for */
} levels_job;

/* count[Eo], sum[Eo] (NULL: not wanted) of group g. */
static void sum_outer(const moei_routing *routing, int64_t g, int64_t *count, double *sum) {
    const moei_levels *levels = &routing->levels;
    const int64_t length = routing->n_tokens / levels->n_groups, n = levels->n_outer;
    for (int64_t t = g * length; t < (g + 1) * length; ++t) {
        if (levels->outer[2 * t] >= 0) ++count[levels->outer[2 * t]];
        for (int64_t e = 0; e < n && sum; ++e)
            sum[e] += moei_real_load(routing->dtype, levels->outer_prob, t * n + e);
    }
}

/* count[Ei], sum[Ei] of a segment's clear first choices. */
static void sum_inner(const moei_routing *routing, int64_t segment, int64_t *count, double *sum) {
    const moei_levels *levels = &routing->levels;
    const int64_t n = routing->n_experts / levels->n_outer;
    for (int64_t row = levels->segment[segment]; row < levels->segment[segment + 1]; ++row) {
        if (!levels->clear_first[row]) continue;
        if (levels->inner[2 * row] >= 0) ++count[levels->inner[2 * row]];
        for (int64_t e = 0; e < n && sum; ++e)
            sum[e] += moei_real_load(routing->dtype, levels->inner_prob, row * n + e);
    }
}

static void gate_task(void *arg, int64_t i, void *scratch) {
    const levels_job *l = arg;
    const moei_routing *routing = l->job->routing;
    const moei_levels *levels = &routing->levels;
    const int64_t segment = i - levels->n_groups;
    const bool outer = segment < 0;
    const int32_t n = outer ? levels->n_outer : routing->n_experts / levels->n_outer;
    const int64_t size = outer ? levels->valid[i] : levels->places[segment % levels->n_groups];
    int64_t *count = scratch;
    double *sum = l->grad ? NULL : (double *)scratch + n;
    memset(scratch, 0, 2 * (size_t)n * sizeof *sum);
    if (outer)
        sum_outer(routing, i, count, sum);
    else
        sum_inner(routing, segment, count, sum);
    if (l->grad)
        moei_gate_balance_gradient(count, n, size, outer ? l->each : l->each / levels->n_outer,
                                   outer ? l->grad->outer + i * n : l->grad->inner + segment * n);
    else
        l->job->scratch.gate[i] = moei_gate_balance(count, sum, n, size);
}

static int64_t level_groups_used(const moei_levels *levels) {
    int64_t used = 0;
    for (int64_t g = 0; g < levels->n_groups; ++g) used += levels->valid[g] > 0;
    return used;
}

static double two_levels(const moei_loss_job *job) {
    const moei_levels *levels = &job->routing->levels;
    const int64_t G = levels->n_groups, gates = G * (1 + levels->n_outer);
    levels_job l = {.job = job};
    double outer = 0, inner = 0;
    moei_parallel(&job->ctx->team, gates, gate_task, &l);
    for (int64_t i = 0; i < G; ++i) outer += job->scratch.gate[i];
    for (int64_t i = G; i < gates; ++i) inner += job->scratch.gate[i];
    return (outer + inner / levels->n_outer) / (double)level_groups_used(levels);
}

static void two_levels_gradient(const moei_loss_job *job, double scale, moei_loss_grad *grad) {
    const moei_levels *levels = &job->routing->levels;
    const int64_t G = levels->n_groups, Eo = levels->n_outer;
    levels_job l = {.job = job, .each = scale / (double)level_groups_used(levels), .grad = grad};
    moei_loss_want(&grad->outer, job->scratch.outer, G * Eo);
    moei_loss_want(&grad->inner, job->scratch.prob, G * job->routing->n_experts);
    moei_parallel(&job->ctx->team, G * (1 + Eo), gate_task, &l);
}

double moei_loss_gshard(const moei_loss_job *job) {
    return moei_has_levels(job->routing) ? two_levels(job) : one_level(job);
}

void moei_loss_gshard_gradient(const moei_loss_job *job, double scale, moei_loss_grad *grad) {
    if (moei_has_levels(job->routing))
        two_levels_gradient(job, scale, grad);
    else
        one_level_gradient(job, scale, grad);
}
