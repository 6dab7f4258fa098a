/* loss.h: the router's own losses and the load statistics, from probabilities and counts.
 * Each loss gives a value and the gradient that route/ turns into dlogits.
 */
#ifndef MOEI_LOSS_H
#define MOEI_LOSS_H

#include "core/ctx.h"
#include "flow.h"

/* Switch loss E * sum_e f_e P_e over real tokens, f_e = routed_e / (K n_valid), P_e = mean prob.
 * prob_sum real [E] is scratch. 0 without tokens. */
double moei_loss_balance(moe_ctx *ctx, const moei_batch *batch, const moei_routing *routing,
                         const moei_plan *plan, void *prob_sum);
/* grad[E]: scale * d loss / d prob[t,e], the same for every real token. */
void moei_loss_balance_gradient(const moei_batch *batch, const moei_plan *plan, double scale, double *grad);

/* z-loss: mean over real tokens of lse(t)^2; its gradient is moei_loss_z_gradient * lse(t). */
double moei_loss_z(const moei_batch *batch, const moei_routing *routing);
double moei_loss_z_gradient(const moei_batch *batch, double scale);

/* Fills counts, load figures and router entropy of `stats`; `entropy` real [T]. */
void moei_load_stats(const moei_batch *batch, const moei_routing *routing, const moei_plan *plan,
                     const void *entropy, moe_stats *stats);

#endif
