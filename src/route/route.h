/* route.h: tokens -> (expert, weight), and the way back from the weights and losses to the gate.
 * Shapes: x[T,d], logits[T,E], expert and weight[T,K slots]; parameters in moei_gate.
 */
#ifndef MOEI_ROUTE_H
#define MOEI_ROUTE_H

#include "core/arena.h"
#include "core/ctx.h"
#include "flow.h"
#include "route/names.h"

/* What a type of router needs, or brings, that others do not. */
typedef struct moei_router_kind {
    bool fuses;       /* of plain softmax scores one kernel does all */
    bool top2;        /* of two choices a policy may remove the second */
    bool noisy;       /* adds noise of a learnt width to its logits, and tells a smooth load */
    bool transports;  /* by sinkhorn's plan */
    bool quantile;    /* keeps a bias that each batch has a statistic for */
    bool by_expert;   /* experts choose tokens: slot e is expert e's */
    bool hashes;      /* looks at the tokens' numbers alone */
    bool forced;      /* its logits are drawn */
    bool ranks_plans; /* what it ranks are not scores, and is shown */
} moei_router_kind;
/* Nothing where there is no router. */
moei_router_kind moei_router_kind_of(const moe_layer_desc *desc);

/* Whether a second choice stays: `threshold` is of policies threshold and random. */
typedef struct moei_second {
    moei_second_policy policy;
    double threshold;
} moei_second;

/* A descriptor's router, with its names resolved and its rules applied. */
typedef struct moei_router {
    const moe_layer_desc *desc;    /* complete; outlives the router */
    const moei_capacity *capacity; /* asked by routers that count rows themselves; outlives the router */
    const struct moei_selector *selector;
    moei_router_type type;
    moei_router_kind kind;
    moe_dtype dtype; /* of all it computes; what it reads and gives back is of the layer's, and converted */
    int32_t d_model, n_experts, top_k;
    int32_t n_slots; /* of a token at most: top_k, but E for expert_choice and rounding, 4 for two levels */
    uint32_t layer_index;
    moei_unit unit;
    moei_score score;
    bool score_before_topk; /* of softmax: the other scores look at one logit each */
    bool norm_topk_prob;
    bool rank_logits; /* not scores: scores order alike, but tie where they round to the same number */
    double norm_eps, scale;
    moei_group_score group_score;
    moei_sinkhorn sinkhorn;
    moei_second second[2]; /* by moe_mode */
    float jitter_eps;
    bool keeps_logits; /* for backward; softmax needs none: prob and weight tell all */
    bool keeps_prob;   /* likewise: other scores come from the logits again */
    bool fused;        /* the kernels score, select and weigh: plain softmax top-k */
} moei_router;

/* Resolves and checks what concerns the router; a combination that has no meaning is refused with the reason.
 */
moe_status moei_router_init(moe_ctx *ctx, const moe_layer_desc *desc, const moei_capacity *capacity,
                            moei_router *router);
/* Whether a call of this mode rounds the rows of its experts, and the slots that a token then has. */
bool moei_router_rounds(const moei_router *router, moe_mode mode);
int32_t moei_router_slots(const moei_router *router, moe_mode mode);
/* Losses read softmax as it is; other scores divided by their sum, unless asked for raw. */
bool moei_router_normalises(const moei_router *router);
/* Rows that a batch of T tokens can ask for at most. */
int64_t moei_router_max_rows(const moei_router *router, moei_extent extent);

/* The router's parameters, or their gradients; NULL where it has none. Parameters are of the layer's dtype;
 * gradients and buffers of moei_wide of it. */
typedef struct moei_gate {
    void *weight;         /* [E, d] */
    void *bias;           /* [E] */
    void *noise;          /* [E, d] noisy_top_k */
    void *task;           /* [num_tasks, d] routing_unit task */
    void *inner;          /* [Eo, Ei, d] hierarchical */
    void *selection_bias; /* [E] buffer */
    void *quantile_bias;  /* [E] buffer */
} moei_gate;

enum { MOEI_GATE_PARAMS = 7 };
typedef struct moei_gate_param {
    const char *name;
    int32_t n_dim;
    int64_t dim[3];
    size_t offset; /* of its pointer in moei_gate */
    double std;    /* of its first draw; 0: zeros */
    bool buffer;
} moei_gate_param;
/* Lists the parameters that this router has. */
int32_t moei_router_params(const moei_router *router, moei_gate_param param[MOEI_GATE_PARAMS]);
/* What its parameters are kept in; buffers as sums are. */
moe_dtype moei_gate_dtype(const moei_router *router, bool buffer);

/* What the layer gives in its own types, as the router computes with it; NULL where that is the same. */
typedef struct moei_route_wide {
    void *x, *dx;         /* real [T,d] */
    moei_gate gate, grad; /* real */
} moei_route_wide;

/* Memory of a call, free again when it returns. */
typedef struct moei_route_scratch {
    void *logits; /* real [T,E]: the logits where routing does not keep them; dlogits in backward */
    void *prob;   /* real [T,E] where routing does not keep it */
    void *in; /* real [T,d]: what the gate reads where that is not x; its gradient in backward. [2T,d] of the
               * rows of two levels */
    void *selection; /* real [T,E] of routers that do not show it */
    void *noise;     /* real [T,E] noisy_top_k: P of flow.h's load; in backward the noise logits' gradient */
    int32_t *taken;  /* [rows] expert_choice: tokens that the experts of a group have taken */
    void *inner;     /* real [2T,Ei] logits of the inner gates of two levels, and their gradient */
    void *entropy;   /* real [T] H(softmax(logits)), 0 where masked */
    double *columns; /* [E, T] quantile and rounding, training: what the tokens of an expert are ranked by */
    double *work;    /* [2T + 2E] of the selectors that look at all tokens at once */
    moei_route_wide wide;
} moei_route_scratch;
/* Both on an arena without memory measure. */
moei_routing moei_routing_carve(const moei_router *router, moei_arena *arena, moei_extent extent);
moei_route_scratch moei_route_scratch_carve(const moei_router *router, moei_arena *arena, moei_extent extent);

/* Points routing->logits, prob and selection to where they lie in a call of this mode, and tells its slots.
 */
void moei_routing_open(const moei_router *router, const moei_route_scratch *scratch, moe_mode mode,
                       moei_routing *routing);

/* One call of the router. */
typedef struct moei_route_job {
    moe_ctx *ctx;
    const moei_router *router;
    const moei_gate *gate;
    const moei_batch *batch;
    moei_routing *routing;
    moei_route_scratch scratch;
} moei_route_job;

/* What the losses ask of the router's gradient (written by loss/, read here). NULL or 0: nothing. */
typedef struct moei_route_loss_grad {
    const double *prob;   /* [n_groups, E] d loss / d prob[t,e], the same for every real token of a group */
    int64_t group_tokens; /* tokens of a group; 0: one group, the batch */
    const double *second; /* [n_groups, E] likewise of prob[t,e] as a share of all but the first choice's,
                           * which has none: over their sum + moei_rest_eps */
    double z;             /* d loss / d lse(t) = z * lse(t) */
    const double *weight; /* [E] added to the gradient of every routed weight of expert e */
    const double *load;   /* [E] d loss / d load[e], noisy_top_k */
    const double *usage;  /* [E] d loss / d softmax(logits)[t,e], whatever the score function */
    const double *outer;  /* [groups, Eo] d loss / d levels.outer_prob of every token of a group, */
    const double
        *inner; /* [Eo * groups, Ei] and of levels.inner_prob of every clear first row of a segment */
} moei_route_loss_grad;

/* Fills job->routing. A NaN or infinite logit is MOE_ERR_NUMERIC and names the token. */
moe_status moei_route_forward(const moei_route_job *job);
/* dweight[T,K] and the losses' wishes -> adds to the gradients `grad` (NULL fields: not wanted) and to
 * dx[T,d] (data NULL: not wanted). */
void moei_route_backward(const moei_route_job *job, const void *dweight, const moei_route_loss_grad *loss,
                         const moei_gate *grad, moe_mat dx);

/* The part of both that a device's router shares: routing->logits from the batch, and from their gradient in
 * scratch.logits the gate's and dx's. */
void moei_route_logits(const moei_route_job *job);
void moei_route_logits_backward(const moei_route_job *job, const moei_gate *grad, moe_mat dx);

/* Once an optimizer step. bias[e] += rate * sign(mean - count[e]), DeepSeek-V3's; `recenter` then takes the
 * mean off. */
void moei_selection_bias_update(moe_dtype dtype, int32_t n_experts, const int64_t *count, double rate,
                                bool recenter, void *bias);
/* bias <- ema * bias + (1 - ema) * statistic, less its mean. */
void moei_quantile_bias_update(moe_dtype dtype, int32_t n_experts, const double *statistic, double ema,
                               void *bias);

/* Standard deviation of the gate's weights by router_init; and what normal_fan_in_renorm does to them once
 * drawn. */
double moei_gate_init_std(const moe_layer_desc *desc);
void moei_gate_renorm(const moe_layer_desc *desc, void *weight);

#endif
