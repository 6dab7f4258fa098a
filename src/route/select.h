/* select.h: what the files of route/ share: the table of selectors, loops over tokens, draws.
 * A selector ranks (fills selection[T,E], the common pick takes the K best) or selects by itself.
 */
#ifndef MOEI_SELECT_H
#define MOEI_SELECT_H

#include "core/real.h"
#include "route/route.h"

#include <moekit/op.h>

typedef struct moei_selector {
    moei_router_kind kind;
    /* Fills routing->selection for every real token. */
    void (*rank)(const moei_route_job *job);
    /* Fills expert (and choice) from selection. */
    moe_status (*select)(const moei_route_job *job);
    void (*weigh)(const moei_route_job *job);
    /* What dweight[K] of one token asks, which is spent: added to ds[E] (through the scores s[E]) or dl[E]
     * (straight to the logits). NULL: the weights are constants. */
    void (*weigh_backward)(const moei_route_job *job, int64_t t, const double *s, double *dweight, double *ds,
                           double *dl);
} moei_selector;
const moei_selector *moei_selector_find(const char *name);

/* Rankers and selectors of the table. */
void moei_rank_scores(const moei_route_job *job);
void moei_rank_sinkhorn(const moei_route_job *job);
void moei_rank_quantile(const moei_route_job *job);
void moei_rank_hash(const moei_route_job *job);
void moei_rank_balanced(const moei_route_job *job);
void moei_weigh_balanced(const moei_route_job *job);
moe_status moei_pick(const moei_route_job *job);
moe_status moei_select_expert_choice(const moei_route_job *job);
moe_status moei_select_gshard(const moei_route_job *job);

/* gshard.c. `weight`: normalised, of the second choice; u: U(0,1). */
bool moei_second_stays(moei_second second, double weight, double u);
/* Policy sample: an expert other than `first` (-1: any), drawn by its share s[e] of the rest. */
int32_t moei_second_sample(const double *s, int32_t n, int32_t first, double u);

/* token_rounding.c: the picked experts with the rows of each rounded; spends selection. */
void moei_round_tokens(const moei_route_job *job);

/* The best of z[n] after `last` (-1: the best of all) in the order "higher first, then lower index"; -1 where
 * only -inf is left. */
int32_t moei_next_best(const double *z, int32_t n, int32_t last);
/* Rows that expert choice gives an expert from a group of n tokens. */
int64_t moei_expert_choice_rows(const moei_router *router, moe_mode mode, int64_t n);

/* hierarchical.c: the whole router where there are two levels. */
moe_status moei_levels_forward(const moei_route_job *job);
void moei_levels_backward(const moei_route_job *job, const void *dweight, const moei_route_loss_grad *loss,
                          const moei_gate *grad, moe_mat dx);
/* What is wrong with slot k of a token's recorded slots; NULL: nothing. */
const char *moei_levels_replay_fault(const moei_route_job *job, const int32_t *token, int64_t k);
moei_levels moei_levels_carve(const moei_router *router, moei_arena *arena, moei_extent extent);
static inline bool moei_has_jitter(const moei_route_job *job) {
    return job->router->jitter_eps > 0 && job->batch->mode == MOE_TRAIN;
}

static inline bool moei_two_levels(const moei_router *router) {
    return router->desc->num_groups_outer > 0;
}

/* widen.c: the job as the router computes it, every number real: itself where the layer's dtype is the
 * router's, else one in `wide` with copies. Gradients likewise: `grad` and `dx` become cleared copies where
 * they need to, and narrowing adds them to the layer's. */
typedef struct moei_wide_job {
    moei_route_job job;
    moei_batch batch;
    moei_gate gate;
} moei_wide_job;
const moei_route_job *moei_widen(const moei_route_job *job, moei_wide_job *wide);
/* The same for a forward, where a product of bf16 tokens with a bf16 gate has f32 logits without copies. */
const moei_route_job *moei_widen_forward(const moei_route_job *job, moei_wide_job *wide);
void moei_widen_gradients(const moei_route_job *job, moei_gate *grad, moe_mat *dx);
void moei_narrow_gradients(const moei_route_job *job, const moei_gate *from, moe_mat from_dx,
                           const moei_gate *grad, moe_mat dx);
moei_route_wide moei_route_wide_carve(const moei_router *router, moei_arena *arena, int64_t T, bool train);

/* gate.c: routing->logits, and the way back from dlogits (scratch.logits). */
void moei_gate_forward(const moei_route_job *job);
void moei_gate_backward(const moei_route_job *job, const moei_gate *grad, moe_mat dx);
/* jitter.c: to[T,d] = from * factor, or that added; the factor is U(1-eps, 1+eps), one draw a number, keyed
 * by (seed, layer, step, token): the same each time it is asked for. */
void moei_jitter(const moei_route_job *job, moe_mat from, moe_mat to, bool adds);
/* noisy.c: logits = clean + noise; load; and their gradients into dlogits and scratch.noise. */
void moei_noise_add(const moei_route_job *job);
void moei_noise_load(const moei_route_job *job);
void moei_noise_backward(const moei_route_job *job, const double *dload);
/* score_function.c: prob, lse, entropy from logits; a bad logit is an error. */
moe_status moei_score_forward(const moei_route_job *job);
moe_status moei_route_bad_token(const moei_route_job *job, int64_t t); /* route.c tells it */
/* Writes s[E] of token t: the score function of its logits, with the selection bias where weights want it. */
void moei_score_token(const moei_route_job *job, int64_t t, double *s);
/* s[n] = softmax of the logits from `at`, and its entropy; the lse, or NaN where a logit is bad. */
double moei_softmax_row(moe_dtype dtype, const void *logits, int64_t at, int32_t n, double *s,
                        double *entropy);
/* dl[n] += s (ds - <ds, s>) + z s: through a softmax s[n], and z times the gradient of its lse. ds NULL: 0.
 */
void moei_softmax_backward(const double *s, const double *ds, double z, int32_t n, double *dl);
/* Adds to dl[E] what ds[E], the gradient of s[E] from moei_score_token, and the losses ask for; ds is spent.
 */
void moei_score_backward_token(const moei_route_job *job, int64_t t, const moei_route_loss_grad *loss,
                               const double *s, double *ds, double *dl);
/* weight.c */
void moei_weigh(const moei_route_job *job);
/* Adds to ds[E] (through the scores) or dl[E] (straight to the logits). dweight[K] holds the losses' too, and
 * is spent. */
void moei_weigh_backward_token(const moei_route_job *job, int64_t t, const double *s, double *dweight,
                               double *ds, double *dl);
/* share[K] = s[chosen] over their sum + eps, 0 of no choice (-1); and ds[chosen] += what dshare[K] asks. */
void moei_shares(const double *s, const int32_t *chosen, int32_t K, double eps, double *share);
void moei_shares_backward(const double *s, const int32_t *chosen, int32_t K, double eps, const double *dshare,
                          double *ds);

/* Runs fn for every token, many at a time. `room` is the thread's own: 4 E doubles, for the most experts that
 * the options allow (65536), fill it. */
typedef void moei_token_fn(const moei_route_job *job, const void *arg, int64_t t, double *room);
void moei_each_token(const moei_route_job *job, moei_token_fn *fn, const void *arg);

/* Tokens of one routing unit share their draws: the number that keys them. */
static inline int64_t moei_draw_row(const moei_route_job *job, int64_t t) {
    return job->router->unit == MOEI_UNIT_TOKEN ? t : t / job->batch->sequence_length;
}

/* The experts whose weights were computed, removed ones included. */
static inline const int32_t *moei_chosen(const moei_routing *routing, int64_t t) {
    return (routing->choice ? routing->choice : routing->expert) + t * routing->top_k;
}

/* The step of what is drawn once for all of them and so belongs to the model; a run's count up from 0. */
#define MOEI_EVERY_STEP UINT64_MAX
/* u[n]: U(0,1), or N(0,1), of `row` of stream (purpose, step). */
void moei_draw_uniform(const moei_route_job *job, moe_purpose purpose, uint64_t step, int64_t row, int64_t n,
                       double *u);
void moei_draw_normal(const moei_route_job *job, moe_purpose purpose, uint64_t step, int64_t row, int64_t n,
                      double *u);

#endif
