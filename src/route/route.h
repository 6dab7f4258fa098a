/* route.h: tokens -> (expert, weight), and the way back from the weights and losses to the gate.
 * Shapes: x[T,d], gate[E,d], logits[T,E], expert and weight[T,K].
 */
#ifndef MOEI_ROUTE_H
#define MOEI_ROUTE_H

#include "core/ctx.h"
#include "flow.h"

typedef struct moei_router {
    int32_t d_model, n_experts, top_k;
    bool score_before_topk, norm_topk_prob;
    double scale;
    float jitter_eps;
    uint32_t layer_index;
} moei_router;

/* What the losses ask of the router's gradient (written by loss/, read here). NULL or 0: nothing. */
typedef struct moei_route_loss_grad {
    const double *prob;   /* [n_groups, E] d loss / d prob[t,e], the same for every real token of a group */
    int64_t group_tokens; /* tokens of a group; 0: one group, the batch */
    double z;             /* d loss / d lse(t) = z * lse(t) */
    const double *weight; /* [E] added to the gradient of every routed weight of expert e */
    const double *load;   /* [E] d loss / d load[e], noisy_top_k */
    const double *usage;  /* [E] d loss / d softmax(logits)[t,e], whatever the score function */
} moei_route_loss_grad;

/* `jittered` real [T,d] is needed where the router has jitter and the batch trains.
 * `entropy` real [T] or NULL. A NaN or infinite logit is MOE_ERR_NUMERIC. */
moe_status moei_route_forward(moe_ctx *ctx, const moei_router *router, const moei_batch *batch,
                              const void *gate, void *jittered, void *entropy, moei_routing *routing);

/* Adds to dgate[E,d] and to dx[T,d] (NULL: not wanted). `dlogits` real [T,E] is scratch and may be the
 * logits themselves. */
void moei_route_backward(moe_ctx *ctx, const moei_router *router, const moei_batch *batch, const void *gate,
                         void *jittered, const moei_routing *routing, const void *dweight,
                         moei_route_loss_grad loss, void *dlogits, void *dgate, moe_mat dx);

/* out[T,d] = x * factor, where factor is U(1-eps, 1+eps), one draw a number, keyed by (seed, layer, step,
 * token): the same each time it is asked for. */
void moei_jitter(moe_ctx *ctx, const moei_router *router, const moei_batch *batch, void *out);
/* dx += dout[T,d] * factor. */
void moei_jitter_backward(moe_ctx *ctx, const moei_router *router, const moei_batch *batch, const void *dout,
                          moe_mat dx);

#endif
