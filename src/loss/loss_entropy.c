/* loss_entropy.c: the negative entropy of the mean usage, which is least when all experts are used alike.
 * logits[T,E] -> p_e = mean over real tokens of softmax(logits)_e -> sum_e p_e ln p_e, in [-ln E, 0].
 * Source: Csordas et al., Approximating Two-Layer Feedforward Networks (sigma-MoE), 2023, equation 19.
 */
#include "core/real.h"
#include "loss/loss.h"

#include <float.h>
#include <math.h>

/* Where the scores are a softmax they are at hand; the logits are kept where they are not. */
static double usage(const moei_loss_job *job, int64_t t, int64_t e) {
    const moei_routing *routing = job->routing;
    const int64_t at = t * routing->n_experts + e;
    if (job->routing->softmax) return moei_real_load(routing->dtype, routing->prob, at);
    return exp(moei_real_load(routing->dtype, routing->logits, at) -
               moei_real_load(routing->dtype, routing->lse, t));
}

static void expert_task(void *arg, int64_t e, void *scratch) {
    (void)scratch;
    const moei_loss_job *job = arg;
    double sum = 0;
    for (int64_t t = 0; t < job->routing->n_tokens; ++t)
        if (!moei_masked(job->batch, t)) sum += usage(job, t, e);
    job->scratch.mean[e] = sum / (double)job->batch->n_valid;
}

/* Softmax whatever the score function, as the system it comes from. An expert nobody could use has p = 0. */
static const double *mean_usage(const moei_loss_job *job) {
    moei_parallel(&job->ctx->team, job->routing->n_experts, expert_task, (void *)job);
    return job->scratch.mean;
}

double moei_loss_entropy(const moei_loss_job *job) {
    const double *p = mean_usage(job);
    double sum = 0;
    for (int32_t e = 0; e < job->routing->n_experts; ++e) sum += p[e] * log(fmax(p[e], DBL_MIN));
    return sum;
}

void moei_loss_entropy_gradient(const moei_loss_job *job, double scale, moei_loss_grad *grad) {
    const double *p = mean_usage(job);
    const int32_t E = job->routing->n_experts;
    double *gradient = moei_loss_want(&grad->usage, job->scratch.usage, E);
    /* d (p ln p) = ln p + 1, but a constant changes nothing: the softmax takes it off again. */
    for (int32_t e = 0; e < E; ++e)
        gradient[e] += scale * log(fmax(p[e], DBL_MIN)) / (double)job->batch->n_valid;
}
