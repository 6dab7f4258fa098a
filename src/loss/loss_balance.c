/* loss_balance.c: the Switch load-balancing loss.
 * prob[T,E], routed[E] -> E * sum_e f_e P_e; 1 when balanced. Gradient flows through P only.
 * Source: Fedus et al., Switch Transformers, 2021, equations 4-6; K > 1 as in Megatron core (aux_loss).
 */
#include "core/real.h"
#include "kernel/kernel.h"
#include "loss/loss.h"

double moei_loss_balance(moe_ctx *ctx, const moei_batch *batch, const moei_routing *routing,
                         const moei_plan *plan, void *prob_sum) {
    if (batch->n_valid == 0) return 0;
    const int64_t offset[2] = {0, routing->n_tokens};
    ctx->kernels[routing->dtype]->colsum(&ctx->team, &(moe_colsum_args){.dtype = routing->dtype,
                                                                        .n_groups = 1,
                                                                        .offset = offset,
                                                                        .n = routing->n_experts,
                                                                        .a = routing->prob,
                                                                        .lda = routing->n_experts,
                                                                        .out = prob_sum});
    double n = (double)batch->n_valid, sum = 0;
    for (int32_t e = 0; e < routing->n_experts; ++e)
        sum +=
            (double)plan->routed[e] / (routing->top_k * n) * moei_real_load(routing->dtype, prob_sum, e) / n;
    return routing->n_experts * sum;
}

void moei_loss_balance_gradient(const moei_batch *batch, const moei_plan *plan, double scale, double *grad) {
    double n = (double)batch->n_valid;
    for (int32_t e = 0; e < plan->n_experts; ++e)
        grad[e] = n > 0 ? scale * plan->n_experts * (double)plan->routed[e] / (plan->top_k * n * n) : 0;
}
