/* loss_second.c: the GShard loss of second choices: every expert should also be second equally often.
 * prob[T,E], choice[T,2] -> mean over groups of E * sum_e d_e P_e with d = second choices / tokens, before a
 * policy removes any, and P = the mean of r_e / (sum of r + 1e-9), r the scores without the first choice's.
 * Gradient flows through P only. Source: moe_use_second_place_loss of tensor2tensor (mean times E^2).
 */
#include "core/real.h"
#include "loss/loss.h"

static int32_t first_of(const moei_routing *routing, int64_t t) {
    return (routing->choice ? routing->choice : routing->expert)[t * routing->top_k];
}

/* rest[t] = what the shares of token t are of. */
static void rest_task(void *arg, int64_t first, int64_t end, void *scratch) {
    const moei_loss_job *job = arg;
    const moei_routing *routing = job->routing;
    const int64_t E = routing->n_experts;
    (void)scratch;
    for (int64_t t = first; t < end; ++t) {
        const int32_t best = first_of(routing, t);
        double sum = moei_rest_eps;
        for (int64_t e = 0; e < E; ++e)
            sum += e == best ? 0 : moei_real_load(routing->dtype, routing->prob, t * E + e);
        job->scratch.rest[t] = sum;
    }
}

/* second[g,e] = the sum of expert e's shares, over the tokens of group g. */
static void share_task(void *arg, int64_t e, void *scratch) {
    const moei_loss_job *job = arg;
    const moei_routing *routing = job->routing;
    const moei_loss_scratch *s = &job->scratch;
    const int64_t E = routing->n_experts;
    (void)scratch;
    for (int64_t g = 0; g < job->n_groups; ++g) {
        double sum = 0;
        for (int64_t t = s->offset[g]; t < s->offset[g + 1]; ++t)
            if (e != first_of(routing, t))
                sum += moei_real_load(routing->dtype, routing->prob, t * E + e) / s->rest[t];
        s->second[g * E + e] = sum;
    }
}

double moei_loss_second(const moei_loss_job *job) {
    const moei_loss_scratch *s = &job->scratch;
    const int32_t E = job->routing->n_experts;
    double sum = 0;
    moei_loss_count_choice(job, 1, s->place);
    moei_parallel_blocks(&job->ctx->team, job->routing->n_tokens, MOEI_LOSS_TOKENS, rest_task,
                         (void *)(uintptr_t)job);
    moei_parallel(&job->ctx->team, E, share_task, (void *)(uintptr_t)job);
    for (int64_t g = 0; g < job->n_groups; ++g)
        sum += moei_gate_balance(s->place + g * E, s->second + g * E, E, s->valid[g]);
    return sum / (double)moei_loss_groups_used(job);
}

void moei_loss_second_gradient(const moei_loss_job *job, double scale, moei_loss_grad *grad) {
    const moei_loss_scratch *s = &job->scratch;
    double *second = moei_loss_want(&grad->second, s->second, job->n_groups * job->routing->n_experts);
    moei_loss_choice_gradient(job, 1, s->place, scale, second);
}
