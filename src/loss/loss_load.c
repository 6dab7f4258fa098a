/* loss_load.c: CV^2 of the smooth load of noisy top-k: experts should be chosen alike often.
 * load[E] -> CV^2. The load is the router's: its noise makes the chance of being chosen differentiable.
 * Source: Shazeer et al. 2017, appendix A, equations 8-11.
 */
#include "loss/loss.h"

double moei_loss_load(const moei_loss_job *job) {
    return moei_cv_squared(job->routing->load, job->routing->n_experts);
}

void moei_loss_load_gradient(const moei_loss_job *job, double scale, moei_loss_grad *grad) {
    const int32_t E = job->routing->n_experts;
    moei_cv_squared_gradient(job->routing->load, E, scale, moei_loss_want(&grad->load, job->scratch.load, E));
}
