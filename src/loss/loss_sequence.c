/* loss_sequence.c: the Switch loss of every sequence, averaged.
 * prob[T,E], count[G,E] -> (1/G) sum_g E * sum_e f_ge P_ge; sequences without a real token do not count.
 * Source: DeepSeek-V2 (2024), section 2.2.3, equations 23-25; Megatron core (seq_aux_loss).
 */
#include "core/real.h"
#include "loss/loss.h"

double moei_loss_sequence(const moei_loss_job *job) {
    const int32_t E = job->routing->n_experts;
    const moei_loss_scratch *s = &job->scratch;
    double sum = 0;
    for (int64_t g = 0; g < job->n_groups; ++g) {
        const double selections = moei_loss_selections(s->count + g * E, E);
        for (int32_t e = 0; e < E && selections > 0; ++e)
            sum += (double)s->count[g * E + e] / selections *
                   moei_real_load(job->routing->dtype, s->prob_sum, g * E + e) / (double)s->valid[g];
    }
    return E * sum / (double)moei_loss_groups_used(job);
}

void moei_loss_sequence_gradient(const moei_loss_job *job, double scale, moei_loss_grad *grad) {
    const int32_t E = job->routing->n_experts;
    const moei_loss_scratch *s = &job->scratch;
    const double each = scale * E / (double)moei_loss_groups_used(job);
    double *prob = moei_loss_want(&grad->prob, s->prob, job->n_groups * E);
    for (int64_t g = 0; g < job->n_groups; ++g) {
        const double selections = moei_loss_selections(s->count + g * E, E);
        for (int32_t e = 0; e < E && selections > 0; ++e)
            prob[g * E + e] += each * (double)s->count[g * E + e] / (selections * (double)s->valid[g]);
    }
}
