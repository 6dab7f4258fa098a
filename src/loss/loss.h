/* loss.h: the router's own losses and the load statistics.
 * Each loss gives a value, and a gradient in terms of what the router can differentiate: scores, weights,
 * loads. Shapes: T tokens, E experts, K per token, G groups of tokens (sequences where a loss looks at them,
 * else 1).
 */
#ifndef MOEI_LOSS_H
#define MOEI_LOSS_H

#include "core/arena.h"
#include "core/ctx.h"
#include "flow.h"

/* Selections counted since the last moe_layer_end_step, for the global balance loss. */
typedef struct moei_loss_history {
    int64_t *count; /* [E] */
    bool ended;     /* the step is over: the next training forward starts anew. Till then the backward of the
                       last one may still ask for its counts. */
} moei_loss_history;

/* Memory of one call. */
typedef struct moei_loss_scratch {
    int64_t *offset; /* [G + 1] first token of a group */
    int64_t *valid;  /* [G] real tokens of a group */
    int64_t *count;  /* [G, E] selections by the map of desc.aux_map */
    int64_t *total;  /* [E] their sum over the groups */
    int64_t *first;  /* [G, E] first choices, of the GShard loss */
    int64_t *place;  /* [G, E] second choices, of the second-place loss, */
    double *rest;    /* [T] the scores of all but a token's first choice */
    double *second;  /* [G, E] and its gradient */
    int32_t *plain;  /* [T, K] the plain map; NULL: the actual one is counted */
    void *prob_sum;  /* real [G, E] */
    double *mean;    /* [E] */
    double *gate;    /* [groups * (1 + Eo)] of two levels: what each gate adds to the GShard loss, */
    double *outer;   /* [groups, Eo] and its gradient; that of the inner gates lies in prob */
    double *prob;    /* [G, E] the gradients */
    double *weight, *load, *usage; /* [E] */
} moei_loss_scratch;

/* Carves for up to T tokens of a routing in `dtype`; on an arena without memory it measures. */
moei_loss_scratch moei_loss_carve(const moe_layer_desc *desc, moe_dtype dtype, moei_arena *arena,
                                  moei_extent extent);
/* Whether a loss looks at each sequence on its own. */
bool moei_loss_by_sequence(const moe_layer_desc *desc);

enum { MOEI_LOSS_TOKENS = 64 }; /* of a task where tokens are worked on one by one */

typedef struct moei_loss_job {
    moe_ctx *ctx;
    const moe_layer_desc *desc;
    const moei_batch *batch;
    const moei_routing *routing;
    const moei_loss_history *history; /* of the global loss */
    moei_loss_scratch scratch;
    int64_t n_groups;
} moei_loss_job;

/* d objective / d what the router made. NULL or 0: no loss asks for it. */
typedef struct moei_loss_grad {
    double *prob;     /* [G, E] d / d prob[t,e], the same for every real token of a group */
    int64_t n_groups; /* G */
    double *second;   /* [G, E] likewise of its share of all but the first choice's */
    double z;         /* d / d lse(t) = z * lse(t) */
    double *weight;   /* [E] d / d every routed weight of expert e */
    double *load;     /* [E] d / d load[e] of noisy_top_k */
    double *usage;    /* [E] d / d softmax(logits)[t,e] */
    double *outer;    /* [groups, Eo] two levels: d / d outer_prob of every token of a group, */
    double *inner;    /* [Eo * groups, Ei] and d / d inner_prob of every clear first row of a segment */
} moei_loss_grad;

/* Counts the selections of a batch; every loss of the job reads them. */
void moei_loss_count(moei_loss_job *job);
/* Once a training forward: adds what was counted to the history, or starts it with that. */
void moei_loss_history_add(const moei_loss_job *job, moei_loss_history *history);
/* Fills the losses of `stats`; `loss` is their sum with the coefficients. After moei_loss_count. */
void moei_loss_values(const moei_loss_job *job, moe_stats *stats);
/* Gradient of scale * loss. After moei_loss_count. */
moei_loss_grad moei_loss_gradient(const moei_loss_job *job, double scale);

/* The losses. A value is without its coefficient, 0 without tokens; a gradient adds scale * its own. */
double moei_loss_switch(const moei_loss_job *job);
void moei_loss_switch_gradient(const moei_loss_job *job, double scale, moei_loss_grad *grad);
double moei_loss_sequence(const moei_loss_job *job);
void moei_loss_sequence_gradient(const moei_loss_job *job, double scale, moei_loss_grad *grad);
double moei_loss_global(const moei_loss_job *job);
void moei_loss_global_gradient(const moei_loss_job *job, double scale, moei_loss_grad *grad);
double moei_loss_gshard(const moei_loss_job *job);
void moei_loss_gshard_gradient(const moei_loss_job *job, double scale, moei_loss_grad *grad);
double moei_loss_second(const moei_loss_job *job);
void moei_loss_second_gradient(const moei_loss_job *job, double scale, moei_loss_grad *grad);
double moei_loss_importance(const moei_loss_job *job);
void moei_loss_importance_gradient(const moei_loss_job *job, double scale, moei_loss_grad *grad);
double moei_loss_load(const moei_loss_job *job);
void moei_loss_load_gradient(const moei_loss_job *job, double scale, moei_loss_grad *grad);
double moei_loss_entropy(const moei_loss_job *job);
void moei_loss_entropy_gradient(const moei_loss_job *job, double scale, moei_loss_grad *grad);
double moei_loss_z(const moei_loss_job *job);
void moei_loss_z_gradient(const moei_loss_job *job, double scale, moei_loss_grad *grad);

/* The GShard loss of one gate: n * sum_e count[e] sum[e] / size^2; and grad[e] += scale * d / d sum[e]. */
double moei_gate_balance(const int64_t *count, const double *sum, int32_t n, int64_t size);
void moei_gate_balance_gradient(const int64_t *count, int32_t n, int64_t size, double scale, double *grad);
/* count[G,E]: choices number k, whatever a policy made of them. */
void moei_loss_count_choice(const moei_loss_job *job, int64_t k, int64_t *count);
/* Those into count[G,E]; and grad[G,E] += scale * d / d sum of the mean over groups of their balance. */
void moei_loss_choice_gradient(const moei_loss_job *job, int64_t k, int64_t *count, double scale,
                               double *grad);

/* E * sum_e share_e P_e with share_e = count_e / sum of counts, P_e = mean prob over the batch's real tokens:
 * what the Switch loss and its global form have in common. 1 when balanced. */
double moei_balance(const moei_loss_job *job, const int64_t *count);
void moei_balance_gradient(const moei_loss_job *job, const int64_t *count, double scale,
                           moei_loss_grad *grad);

/* CV^2 of v[n] = population variance / (mean^2 + 1e-10), and grad[i] += scale * d CV^2 / d v[i].
 * Shazeer et al. 2017, equation 9. */
double moei_cv_squared(const double *v, int32_t n);
void moei_cv_squared_gradient(const double *v, int32_t n, double scale, double *grad);

/* A gradient's array: cleared and handed out at the first wish. */
double *moei_loss_want(double **slot, double *memory, int64_t n);

/* The sum of count[n]. */
double moei_loss_selections(const int64_t *count, int32_t n);

/* Groups with at least one real token. */
int64_t moei_loss_groups_used(const moei_loss_job *job);

/* Fills counts, load figures and router entropy of `stats`; `entropy` real [T]. */
void moei_load_stats(const moei_batch *batch, const moei_routing *routing, const moei_plan *plan,
                     const void *entropy, moe_stats *stats);

#endif
