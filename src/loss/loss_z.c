/* loss_z.c: the router z-loss, which keeps logits small.
 * lse[T] -> mean over real tokens of lse^2.
 * Source: Zoph et al., ST-MoE, 2022, equation 5.
 */
#include "core/real.h"
#include "loss/loss.h"

double moei_loss_z(const moei_loss_job *job) {
    double sum = 0;
    for (int64_t t = 0; t < job->routing->n_tokens; ++t) {
        double lse = moei_real_load(job->routing->dtype, job->routing->lse, t); /* 0 where masked */
        sum += lse * lse;
    }
    return sum / (double)job->batch->n_valid;
}

void moei_loss_z_gradient(const moei_loss_job *job, double scale, moei_loss_grad *grad) {
    grad->z += 2 * scale / (double)job->batch->n_valid;
}
