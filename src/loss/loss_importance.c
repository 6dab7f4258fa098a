/* loss_importance.c: CV^2 of the summed routing weights: experts should matter alike.
 * weight[T,K] -> importance[E] -> CV^2. Counts what the router chose, before capacity.
 * Source: Shazeer et al. 2017, section 4, equations 6-7.
 */
#include "core/real.h"
#include "loss/loss.h"

#include <string.h>

static const double *importance(const moei_loss_job *job) {
    const moei_routing *routing = job->routing;
    double *sum = job->scratch.mean;
    memset(sum, 0, (size_t)routing->n_experts * sizeof *sum);
    for (int64_t slot = 0; slot < routing->n_tokens * routing->top_k; ++slot)
        if (routing->expert[slot] >= 0)
            sum[routing->expert[slot]] += moei_real_load(routing->dtype, routing->weight, slot);
    return sum;
}

double moei_loss_importance(const moei_loss_job *job) {
    return moei_cv_squared(importance(job), job->routing->n_experts);
}

void moei_loss_importance_gradient(const moei_loss_job *job, double scale, moei_loss_grad *grad) {
    const int32_t E = job->routing->n_experts;
    moei_cv_squared_gradient(importance(job), E, scale,
                             moei_loss_want(&grad->weight, job->scratch.weight, E));
}
