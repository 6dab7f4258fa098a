/* loss_switch.c: the Switch load-balancing loss over the batch.
 * prob[T,E], count[E] -> E * sum_e f_e P_e; 1 when balanced. Gradient flows through P only.
 * Source: Fedus et al., Switch Transformers, 2021, equations 4-6; K > 1 as in Megatron core (aux_loss).
 */
#include "core/real.h"
#include "loss/loss.h"

double moei_loss_selections(const int64_t *count, int32_t n) {
    int64_t sum = 0;
    for (int32_t e = 0; e < n; ++e) sum += count[e];
    return (double)sum;
}

double moei_balance(const moei_loss_job *job, const int64_t *count) {
    const int32_t E = job->routing->n_experts;
    const double selections = moei_loss_selections(count, E);
    if (selections == 0) return 0;
    double sum = 0;
    for (int64_t g = 0; g < job->n_groups; ++g)
        for (int32_t e = 0; e < E; ++e)
            sum += (double)count[e] / selections *
                   moei_real_load(job->routing->dtype, job->scratch.prob_sum, g * E + e);
    return E * sum / (double)job->batch->n_valid;
}

void moei_balance_gradient(const moei_loss_job *job, const int64_t *count, double scale,
                           moei_loss_grad *grad) {
    const int32_t E = job->routing->n_experts;
    const double selections = moei_loss_selections(count, E);
    double *prob = moei_loss_want(&grad->prob, job->scratch.prob, job->n_groups * E);
    if (selections == 0) return;
    for (int64_t i = 0; i < job->n_groups * E; ++i)
        prob[i] += scale * E * (double)count[i % E] / (selections * (double)job->batch->n_valid);
}

double moei_loss_switch(const moei_loss_job *job) {
    return moei_balance(job, job->scratch.total);
}

void moei_loss_switch_gradient(const moei_loss_job *job, double scale, moei_loss_grad *grad) {
    moei_balance_gradient(job, job->scratch.total, scale, grad);
}
