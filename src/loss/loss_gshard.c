/* loss_gshard.c: the GShard loss: first choices only, every sequence on its own.
 * prob[T,E], first[G,E] -> (1/G) sum_g E * sum_e d_ge P_ge with d = first / tokens, P = mean prob, which is
 * the mean over g and e of d P, times E^2. Two levels measure theirs while routing. Source: Lepikhin et al.,
 * GShard, 2020, section 2.2; tensor2tensor and lucidrains (mean times E^2).
 */
#include "core/real.h"
#include "loss/loss.h"

#include <string.h>

static void count_first(const moei_loss_job *job) {
    const moei_routing *routing = job->routing;
    const moei_loss_scratch *s = &job->scratch;
    const int64_t E = routing->n_experts;
    const int32_t *choice = routing->choice ? routing->choice : routing->expert;
    memset(s->first, 0, (size_t)(job->n_groups * E) * sizeof *s->first);
    for (int64_t g = 0; g < job->n_groups; ++g)
        for (int64_t t = s->offset[g]; t < s->offset[g + 1]; ++t) {
            const int32_t e = choice[t * routing->top_k];
            if (e >= 0) ++s->first[g * E + e];
        }
}

double moei_loss_gshard(const moei_loss_job *job) {
    const moei_loss_scratch *s = &job->scratch;
    const int32_t E = job->routing->n_experts;
    if (!job->routing->prob) return job->routing->level_loss;
    count_first(job);
    double sum = 0;
    for (int64_t g = 0; g < job->n_groups; ++g)
        for (int64_t i = g * E; i < (g + 1) * E && s->valid[g] > 0; ++i)
            sum += (double)s->first[i] * moei_real_load(job->routing->dtype, s->prob_sum, i) /
                   ((double)s->valid[g] * (double)s->valid[g]);
    return E * sum / (double)moei_loss_groups_used(job);
}

void moei_loss_gshard_gradient(const moei_loss_job *job, double scale, moei_loss_grad *grad) {
    const moei_loss_scratch *s = &job->scratch;
    const int32_t E = job->routing->n_experts;
    if (!job->routing->prob) {
        grad->levels += scale;
        return;
    }
    count_first(job);
    const double each = scale * E / (double)moei_loss_groups_used(job);
    double *prob = moei_loss_want(&grad->prob, s->prob, job->n_groups * E);
    for (int64_t g = 0; g < job->n_groups; ++g)
        for (int64_t i = g * E; i < (g + 1) * E && s->valid[g] > 0; ++i)
            prob[i] += each * (double)s->first[i] / ((double)s->valid[g] * (double)s->valid[g]);
}
