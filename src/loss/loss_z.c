/* loss_z.c: the router z-loss, which keeps logits small.
 * lse[T] -> mean lse^2.
 * Source: Zoph et al., ST-MoE, 2022, equation 5.
 */
#include "core/real.h"
#include "loss/loss.h"

double moei_loss_z(const moei_batch *batch, const moei_routing *routing) {
    double sum = 0;
    for (int64_t t = 0; t < routing->n_tokens; ++t) {
        double lse = moei_real_load(routing->dtype, routing->lse, t); /* 0 where masked */
        sum += lse * lse;
    }
    return batch->n_valid > 0 ? sum / (double)batch->n_valid : 0;
}

double moei_loss_z_gradient(const moei_batch *batch, double scale) {
    return batch->n_valid > 0 ? 2 * scale / (double)batch->n_valid : 0;
}
