/* route.c: one call of the router: gate -> scores -> selection -> weights, and the way back.
 * x[T,d] -> logits, prob, expert, weight; dweight[T,K] and the losses -> gate gradients, dx[T,d].
 * Source: Shazeer et al. 2017 (top-k gating); Fedus et al. 2021; Jiang et al., Mixtral, 2024.
 */
#include "route/route.h"

#include "kernel/kernel.h"
#include "route/select.h"

#include <math.h>
#include <string.h>

moe_status moei_route_bad_token(const moei_route_job *job, int64_t t) {
    return moe_ctx_fail(
        job->ctx, MOE_ERR_NUMERIC,
        "router of layer %u: token %lld has a NaN or infinite logit; look for NaN or infinity in "
        "the layer's input or in gate.weight",
        job->router->layer_index, (long long)t);
}

/* The kernel's share: scores, the K best, or those of a replay, and their weights in one pass. */
static moe_status fused_forward(const moei_route_job *job) {
    const moei_router *router = job->router;
    moei_routing *routing = job->routing;
    int64_t first_bad = -1;
    moei_gate_forward(job);
    job->ctx->kernels[routing->dtype]->topk(&job->ctx->team,
                                            &(moei_topk_args){.dtype = routing->dtype,
                                                              .n_tokens = routing->n_tokens,
                                                              .n_experts = router->n_experts,
                                                              .top_k = router->top_k,
                                                              .mask = job->batch->mask,
                                                              .score_before_topk = router->score_before_topk,
                                                              .norm_topk_prob = router->norm_topk_prob,
                                                              .scale = router->scale,
                                                              .logits = routing->logits,
                                                              .given = job->batch->replay_expert != NULL,
                                                              .prob = routing->prob,
                                                              .lse = routing->lse,
                                                              .expert = routing->expert,
                                                              .weight = routing->weight,
                                                              .entropy = job->scratch.entropy,
                                                              .first_bad = &first_bad});
    return first_bad >= 0 ? moei_route_bad_token(job, first_bad) : MOE_OK;
}

/* The first expert that a token ranks by NaN; -1: none. */
static int64_t first_bad_rank(const moei_route_job *job, int64_t t) {
    const moei_routing *routing = job->routing;
    for (int64_t e = 0; e < routing->n_experts && !moei_masked(job->batch, t); ++e)
        if (isnan(moei_real_load(routing->dtype, routing->selection, t * routing->n_experts + e))) return e;
    return -1;
}

static void mark_bad_rank(const moei_route_job *job, const void *arg, int64_t t, double *room) {
    (void)arg;
    (void)room;
    if (first_bad_rank(job, t) >= 0) moei_real_store(job->routing->dtype, job->routing->lse, t, (double)NAN);
}

/* NaN has no place in an order. The logits are finite, so a bias brought it, or a plan that overflowed. */
static moe_status check_selection(const moei_route_job *job) {
    const moei_routing *routing = job->routing;
    const char *cause =
        job->router->kind.transports
            ? "the transport plan of router_type sinkhorn overflowed; the logits are too large"
            : "look for NaN or infinity in the biases of the selection";
    moei_each_token(job, mark_bad_rank, NULL);
    for (int64_t t = 0; t < routing->n_tokens; ++t)
        if (isnan(moei_real_load(routing->dtype, routing->lse, t)))
            return moe_ctx_fail(
                job->ctx, MOE_ERR_NUMERIC, "router of layer %u: token %lld ranks expert %lld by NaN; %s",
                job->router->layer_index, (long long)t, (long long)first_bad_rank(job, t), cause);
    return MOE_OK;
}

/* What is wrong with slot k of a token's recorded selection; NULL: nothing. */
static const char *replay_fault(const moei_route_job *job, const int32_t *token, int64_t k) {
    const int32_t E = job->routing->n_experts, e = token[k], chosen = moei_named(e, E);
    if (chosen >= E) return "there is no such expert";
    if (moei_two_levels(job->router)) return moei_levels_replay_fault(job, token, k);
    if (e < -1 && !job->routing->choice) return "only router_type gshard_top2 removes choices";
    if (e <= moei_dropped(0, E)) return "only two levels drop while they route";
    if (job->router->kind.by_expert)
        return e == -1 || e == k ? NULL : "slot e of expert_choice is expert e's";
    for (int64_t j = 0; j < k && chosen >= 0; ++j)
        if (moei_named(token[j], E) == chosen) return "an earlier slot names it already";
    return NULL;
}

/* Experts that choose never take more than their share of the real tokens of a group; nothing would drop it.
 */
static moe_status check_replayed_shares(const moei_route_job *job) {
    const moei_routing *routing = job->routing;
    const moei_batch *batch = job->batch;
    const int64_t T = routing->n_tokens, E = routing->n_experts,
                  n = job->router->capacity->by_sequence ? batch->sequence_length : T;
    if (!job->router->kind.by_expert) return MOE_OK;
    for (int64_t first = 0; first < T; first += n) {
        const int64_t real = moei_real_tokens(batch, first, n),
                      share = moei_expert_choice_rows(job->router, batch->mode, real);
        for (int64_t e = 0; e < E; ++e) {
            int64_t given = 0;
            for (int64_t t = first; t < first + n; ++t) given += routing->expert[t * E + e] >= 0;
            if (given > share)
                return moe_ctx_fail(job->ctx, MOE_ERR_ARGUMENT,
                                    "replay_expert: expert %lld is given %lld tokens from token %lld on; its "
                                    "capacity is %lld of the %lld real ones there",
                                    (long long)e, (long long)given, (long long)first, (long long)share,
                                    (long long)real);
        }
    }
    return MOE_OK;
}

/* There is memory for as many rows as rounding can make of K a token. */
static moe_status check_replayed_rows(const moei_route_job *job) {
    const moei_routing *routing = job->routing;
    const moei_extent extent = {routing->n_tokens, 1, job->batch->mode};
    const int64_t most = moei_router_max_rows(job->router, extent);
    int64_t rows = 0;
    for (int64_t slot = 0; slot < routing->n_tokens * routing->top_k; ++slot)
        rows += routing->expert[slot] >= 0;
    if (rows <= most) return MOE_OK;
    return moe_ctx_fail(
        job->ctx, MOE_ERR_ARGUMENT,
        "replay_expert: names %lld experts; top_k %d of %lld tokens with token_rounding %d are "
        "at most %lld",
        (long long)rows, job->router->top_k, (long long)routing->n_tokens, job->router->desc->token_rounding,
        (long long)most);
}

/* A recorded selection instead of a new one. What a policy removed still divided the other's weight. */
static moe_status replay(const moei_route_job *job) {
    const moei_batch *batch = job->batch;
    moei_routing *routing = job->routing;
    const int64_t K = routing->top_k;
    for (int64_t slot = 0; slot < routing->n_tokens * K; ++slot) {
        const int32_t e = batch->replay_expert[slot];
        const char *fault = replay_fault(job, batch->replay_expert + slot / K * K, slot % K);
        if (fault)
            return moe_ctx_fail(job->ctx, MOE_ERR_ARGUMENT,
                                "replay_expert: token %lld, slot %lld names expert %d: %s; this layer has "
                                "0 .. %d, each once a token, and -1 for a slot that is not routed",
                                (long long)(slot / K), (long long)(slot % K), e, fault,
                                routing->n_experts - 1);
        routing->expert[slot] = moei_masked(batch, slot / K) ? -1 : e;
        if (routing->choice)
            routing->choice[slot] = moei_masked(batch, slot / K) ? -1 : moei_named(e, routing->n_experts);
    }
    if (moei_router_rounds(job->router, batch->mode)) return check_replayed_rows(job);
    return check_replayed_shares(job);
}

static moe_status replay_weights(const moei_route_job *job) {
    moei_routing *routing = job->routing;
    const int64_t K = routing->top_k;
    for (int64_t slot = 0; slot < routing->n_tokens * K; ++slot) {
        const bool routed = routing->expert[slot] >= 0;
        const double weight = moei_real_load(routing->dtype, job->batch->replay_weight, slot);
        if (routed && !isfinite(weight))
            return moe_ctx_fail(job->ctx, MOE_ERR_NUMERIC,
                                "replay_weight: token %lld, slot %lld has weight %g; it must be finite",
                                (long long)(slot / K), (long long)(slot % K), weight);
        moei_real_store(routing->dtype, routing->weight, slot, routed ? weight : 0);
    }
    return MOE_OK;
}

/* Draws handed in, `each` a token. Random numbers of our own are finite; an order of others must be too. */
static moe_status check_draws(const moei_route_job *job, const char *name, const float *draw, int64_t each) {
    for (int64_t i = 0; draw && i < job->routing->n_tokens * each; ++i)
        if (!isfinite(draw[i]) && !moei_masked(job->batch, i / each))
            return moe_ctx_fail(job->ctx, MOE_ERR_NUMERIC,
                                "moe_draws.%s: number %lld of token %lld is %g; it must be finite", name,
                                (long long)(i % each), (long long)(i / each), (double)draw[i]);
    return MOE_OK;
}

static moe_status check_numbers(const moei_route_job *job) {
    const moe_draws *draws = job->batch->draws;
    if (!draws) return MOE_OK;
    MOEI_TRY(check_draws(job, "second_policy", draws->second_policy, 1));
    MOEI_TRY(check_draws(job, "expert_dropout", draws->expert_dropout, job->routing->n_experts));
    return check_draws(job, "noise", draws->noise, job->routing->n_experts);
}

static moe_status check_batch(const moei_route_job *job) {
    const moei_router *router = job->router;
    const moei_batch *batch = job->batch;
    if (batch->replay_weight && !batch->replay_expert)
        return moe_ctx_fail(job->ctx, MOE_ERR_ARGUMENT,
                            "replay_weight without replay_expert: whose weights?");
    if (router->unit != MOEI_UNIT_TASK) return MOE_OK;
    if (!batch->task)
        return moe_ctx_fail(job->ctx, MOE_ERR_ARGUMENT, "task: routing_unit task needs moe_call.task");
    for (int64_t s = 0; s < batch->n_sequences; ++s)
        if (batch->task[s] < 0 || batch->task[s] >= router->desc->num_tasks)
            return moe_ctx_fail(job->ctx, MOE_ERR_ARGUMENT,
                                "task: sequence %lld is of task %d; num_tasks is %d", (long long)s,
                                batch->task[s], router->desc->num_tasks);
    return MOE_OK;
}

/* Rounding looks at all tokens, the kernels at one. */
static bool is_fused(const moei_route_job *job) {
    return job->router->fused && !moei_router_rounds(job->router, job->batch->mode);
}

static moe_status forward(const moei_route_job *job) {
    const moei_selector *selector = job->router->selector;
    const moei_batch *batch = job->batch;
    moei_routing_open(job->router, &job->scratch, batch->mode, job->routing);
    if (batch->replay_expert) MOEI_TRY(replay(job));
    if (moei_two_levels(job->router) || is_fused(job)) {
        MOEI_TRY(moei_two_levels(job->router) ? moei_levels_forward(job) : fused_forward(job));
        return batch->replay_weight ? replay_weights(job) : MOE_OK;
    }
    moei_gate_forward(job);
    MOEI_TRY(moei_score_forward(job));
    if (!batch->replay_expert) {
        selector->rank(job);
        MOEI_TRY(check_selection(job));
        MOEI_TRY(selector->select(job));
        if (moei_router_rounds(job->router, batch->mode)) moei_round_tokens(job);
    }
    if (batch->replay_weight)
        MOEI_TRY(replay_weights(job));
    else
        selector->weigh(job);
    if (job->routing->load) moei_noise_load(job);
    return MOE_OK;
}

moe_status moei_route_forward(const moei_route_job *job) {
    moei_wide_job wide;
    MOEI_TRY(check_batch(job));
    MOEI_TRY(check_numbers(job));
    return forward(moei_widen_forward(job, &wide));
}

void moei_route_logits(const moei_route_job *job) {
    moei_wide_job wide;
    moei_gate_forward(moei_widen_forward(job, &wide));
}

void moei_route_logits_backward(const moei_route_job *job, const moei_gate *grad, moe_mat dx) {
    moei_wide_job wide;
    moei_gate real = *grad;
    moe_mat real_dx = dx;
    moei_widen_gradients(job, &real, &real_dx);
    moei_gate_backward(moei_widen(job, &wide), &real, real_dx);
    moei_narrow_gradients(job, &real, real_dx, grad, dx);
}

typedef struct backward_arg {
    const void *dweight;
    const moei_route_loss_grad *loss;
} backward_arg;

/* dlogits of one token, into scratch.logits */
static void backward_token(const moei_route_job *job, const void *arg, int64_t t, double *room) {
    const backward_arg *b = arg;
    const moei_routing *routing = job->routing;
    const int64_t E = routing->n_experts, K = routing->top_k;
    double *s = room, *ds = s + E, *dl = ds + E, *dweight = dl + E;
    memset(ds, 0, 2 * (size_t)E * sizeof *ds);
    if (!moei_masked(job->batch, t)) {
        for (int64_t k = 0; k < K; ++k) {
            const int32_t e = routing->expert[t * K + k];
            dweight[k] = 0;
            if (e >= 0)
                dweight[k] = moei_real_load(routing->dtype, b->dweight, t * K + k) +
                             (b->loss->weight ? b->loss->weight[e] : 0);
        }
        moei_score_token(job, t, s);
        if (job->router->selector->weigh_backward && !job->batch->replay_weight)
            job->router->selector->weigh_backward(job, t, s, dweight, ds, dl);
        moei_score_backward_token(job, t, b->loss, s, ds, dl);
    }
    for (int64_t e = 0; e < E; ++e) moei_real_store(routing->dtype, job->scratch.logits, t * E + e, dl[e]);
}

static void backward_fused(const moei_route_job *job, const void *dweight, const moei_route_loss_grad *loss) {
    const moei_router *router = job->router;
    const moei_routing *routing = job->routing;
    job->ctx->kernels[routing->dtype]->topk_grad(
        &job->ctx->team, &(moei_topk_grad_args){.dtype = routing->dtype,
                                                .n_tokens = routing->n_tokens,
                                                .n_experts = router->n_experts,
                                                .top_k = router->top_k,
                                                .mask = job->batch->mask,
                                                .score_before_topk = router->score_before_topk,
                                                .norm_topk_prob = router->norm_topk_prob,
                                                .scale = router->scale,
                                                .prob = routing->prob,
                                                .lse = routing->lse,
                                                .expert = routing->expert,
                                                .weight = routing->weight,
                                                .dweight = dweight,
                                                .aux_grad = loss->prob,
                                                .z_grad = loss->z,
                                                .dlogits = job->scratch.logits});
}

static void backward(const moei_route_job *job, const void *dweight, const moei_route_loss_grad *loss,
                     const moei_gate *grad, moe_mat dx) {
    const bool one_group = loss->group_tokens == 0 || loss->group_tokens >= job->routing->n_tokens;
    const backward_arg arg = {dweight, loss};
    if (moei_two_levels(job->router)) {
        moei_levels_backward(job, dweight, loss, grad, dx);
        return;
    }
    if (is_fused(job) && !job->batch->replay_weight && !loss->usage && !loss->weight && one_group)
        backward_fused(job, dweight, loss);
    else
        moei_each_token(job, backward_token, &arg);
    if (job->gate->noise) moei_noise_backward(job, loss->load);
    moei_gate_backward(job, grad, dx);
}

void moei_route_backward(const moei_route_job *job, const void *dweight, const moei_route_loss_grad *loss,
                         const moei_gate *grad, moe_mat dx) {
    moei_wide_job wide;
    moei_gate real = *grad;
    moe_mat real_dx = dx;
    moei_widen_gradients(job, &real, &real_dx);
    backward(moei_widen(job, &wide), dweight, loss, &real, real_dx);
    moei_narrow_gradients(job, &real, real_dx, grad, dx);
}
