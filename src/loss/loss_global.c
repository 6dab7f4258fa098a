/* loss_global.c: the Switch loss with selections counted over the whole optimizer step so far.
 * prob[T,E], count[E] since moe_layer_end_step -> E * sum_e f_e P_e. Small batches may then specialise.
 * Source: Megatron core (global_aux_loss); Qiu et al., Demons in the Detail, 2025, on why global counts.
 */
#include "loss/loss.h"

/* Inference adds nothing to the step's counts, so it is judged by its own. */
static const int64_t *counts(const moei_loss_job *job) {
    return job->batch->mode == MOE_TRAIN ? job->history->count : job->scratch.total;
}

double moei_loss_global(const moei_loss_job *job) {
    return moei_balance(job, counts(job));
}

void moei_loss_global_gradient(const moei_loss_job *job, double scale, moei_loss_grad *grad) {
    moei_balance_gradient(job, counts(job), scale, grad);
}
