/* router.c: a descriptor's router: names resolved, parameters listed, memory carved.
 * moe_layer_desc -> moei_router, moei_gate_param[], moei_routing.
 * Source: rules of the reference systems; combinations are checked with the descriptor, in layer/.
 */
#include "core/option.h"
#include "route/select.h"

#include "core/desc.h"

#include <stddef.h>

/* Never narrower than the layer's. */
static moe_dtype dtype_of(const moe_layer_desc *d, const char **lost) {
    const moe_dtype dtypes[] = {[MOEI_GATE_AUTO] = moei_wide(d->dtype),
                                [MOEI_GATE_F32] = MOE_F32,
                                [MOEI_GATE_F64] = MOE_F64,
                                [MOEI_GATE_FP32] = MOE_F32,
                                [MOEI_GATE_FP64] = MOE_F64};
    return dtypes[moei_option_resolve(d->router_dtype, moei_router_dtypes, lost)];
}

static moei_second second_of(const char *policy, float threshold, const char **lost) {
    return (moei_second){(moei_second_policy)moei_option_resolve(policy, moei_second_policies, lost),
                         moei_number(threshold, 0)};
}

/* What follows from the names and numbers. */
static void derive(const moe_layer_desc *d, moei_router *router) {
    const bool sums = d->group_top_k > 0 && router->group_score != MOEI_GROUP_MAX;
    const bool any_expert = router->kind.by_expert || d->token_rounding > 0;
    router->n_slots = any_expert ? d->num_experts : moei_two_levels(router) ? 4 : d->top_k;
    if (router->kind.transports && router->sinkhorn == MOEI_SINKHORN_MEGATRON) {
        /* Its own weights: sigmoid for one expert, else softmax over all. */
        router->score = d->top_k == 1 ? MOEI_SIGMOID : MOEI_SOFTMAX;
        router->score_before_topk = true;
    }
    /* A single weight divided by itself would cut the router off its gradient. */
    router->norm_topk_prob = d->norm_topk_prob && (d->token_rounding > 0 ? d->top_k : router->n_slots) > 1;
    router->norm_eps = router->kind.top2 ? 1e-9 : 1e-20;
    /* Every score rises with its logit, so within a token logits rank alike. */
    router->rank_logits = (router->score == MOEI_SOFTMAX && !router->score_before_topk) ||
                          (!d->selection_bias && !sums && !router->kind.by_expert);
    router->keeps_logits = router->score != MOEI_SOFTMAX || router->kind.noisy;
    router->keeps_prob = router->score == MOEI_SOFTMAX || moei_aux_plain(d);
    router->fused = router->kind.fuses && router->score == MOEI_SOFTMAX && d->group_top_k == 0 &&
                    !d->selection_bias && d->expert_dropout == 0 && d->top_k_min == 0;
}

moe_status moei_router_init(moe_ctx *ctx, const moe_layer_desc *d, const moei_capacity *capacity,
                            moei_router *router) {
    const char *lost = NULL;
    *router = (moei_router){
        .desc = d,
        .capacity = capacity,
        .selector = moei_selector_find(d->router_type),
        .type = (moei_router_type)moei_option_resolve(d->router_type, moei_router_types, &lost),
        .kind = moei_router_kind_of(d),
        .dtype = dtype_of(d, &lost),
        .d_model = d->d_model,
        .n_experts = d->num_experts,
        .top_k = d->top_k,
        .layer_index = (uint32_t)d->layer_index,
        .unit = (moei_unit)moei_option_resolve(d->routing_unit, moei_units, &lost),
        .score = (moei_score)moei_option_resolve(d->score_function, moei_scores, &lost),
        .score_before_topk = d->score_before_topk,
        .scale = moei_number(d->routed_scaling_factor, 1),
        .group_score = (moei_group_score)moei_option_resolve(d->group_score, moei_group_scores, &lost),
        .sinkhorn = (moei_sinkhorn)moei_option_resolve(d->sinkhorn_variant, moei_sinkhorns, &lost),
        .jitter_eps = d->input_jitter_eps};
    router->second[MOE_TRAIN] = second_of(d->second_policy_train, d->second_threshold_train, &lost);
    router->second[MOE_INFER] = second_of(d->second_policy_eval, d->second_threshold_eval, &lost);
    if (lost)
        return moe_ctx_fail(ctx, MOE_ERR_INTERNAL, "router: '%s' is in the options, but not built in", lost);
    derive(d, router);
    return MOE_OK;
}

bool moei_router_rounds(const moei_router *router, moe_mode mode) {
    return router->desc->token_rounding > 0 && mode == MOE_TRAIN;
}

int32_t moei_router_slots(const moei_router *router, moe_mode mode) {
    return router->desc->token_rounding > 0 && mode == MOE_INFER ? router->top_k : router->n_slots;
}

int64_t moei_router_max_rows(const moei_router *router, moei_extent extent) {
    const int64_t all = extent.tokens * moei_router_slots(router, extent.mode);
    if (moei_router_rounds(router, extent.mode)) {
        const int64_t added = (router->desc->token_rounding - 1) / 2; /* to an expert */
        const int64_t rounded = extent.tokens * router->top_k + router->n_experts * added;
        return rounded < all ? rounded : all;
    }
    if (!router->kind.by_expert) return all;
    return router->n_experts * moei_capacity_most(router->capacity, router->n_experts, extent);
}

moe_dtype moei_gate_dtype(const moei_router *router, bool buffer) {
    return buffer ? moei_wide(router->desc->dtype) : router->desc->dtype;
}

/* clang-format off: clang-format 14 dies of nested tables */
int32_t moei_router_params(const moei_router *router, moei_gate_param param[MOEI_GATE_PARAMS]) {
    const moe_layer_desc *d = router->desc;
    const int64_t E = d->num_experts, width = d->d_model;
    const int64_t Eo = d->num_groups_outer, rows = Eo > 0 ? Eo : E;
    const double std = moei_gate_init_std(d);
    const moei_gate_param all[MOEI_GATE_PARAMS] = {
        {"gate.weight",         2, {rows, width, 1},         offsetof(moei_gate, weight),         std, false},
        {"gate.bias",           1, {E, 1, 1},                offsetof(moei_gate, bias),           0,   false},
        {"gate.noise",          2, {E, width, 1},            offsetof(moei_gate, noise),          0,   false},
 /* Embeddings stand in for tokens, whose numbers are of order 1. */
        {"gate.task",           2, {d->num_tasks, width, 1}, offsetof(moei_gate, task),           1,   false},
        {"gate_inner.weight",   3, {Eo, E / rows, width},    offsetof(moei_gate, inner),          std, false},
        {"gate.selection_bias", 1, {E, 1, 1},                offsetof(moei_gate, selection_bias), 0,   true },
        {"gate.quantile_bias",  1, {E, 1, 1},                offsetof(moei_gate, quantile_bias),  0,   true },
    };
    /* clang-format on */
    const bool has[MOEI_GATE_PARAMS] = {true,
                                        d->router_bias,
                                        router->kind.noisy,
                                        d->num_tasks > 0,
                                        moei_two_levels(router),
                                        d->selection_bias,
                                        router->kind.quantile};
    int32_t n = 0;
    for (int32_t i = 0; i < MOEI_GATE_PARAMS; ++i)
        if (has[i]) param[n++] = all[i];
    return n;
}

moei_routing moei_routing_carve(const moei_router *router, moei_arena *arena, moei_extent extent) {
    const int64_t T = extent.tokens;
    const moe_dtype dtype = router->dtype;
    const int64_t E = router->n_experts, K = router->n_slots;
    const size_t real = moe_dtype_bytes(dtype);
    const bool train = extent.mode == MOE_TRAIN;
    moei_routing routing = {.n_experts = (int32_t)E, .top_k = (int32_t)K, .dtype = dtype};
    routing.softmax = router->score == MOEI_SOFTMAX;
    if (moei_two_levels(router))
        routing.levels = moei_levels_carve(router, arena, extent);
    else if (train && router->keeps_prob)
        routing.saved_prob = moei_arena_array(arena, T, E, real);
    routing.lse = moei_arena_array(arena, T, 1, real);
    routing.expert = moei_arena_array(arena, T, K, sizeof(int32_t));
    routing.weight = moei_arena_array(arena, T, K, real);
    if (moei_two_levels(router)) return routing;
    if (router->kind.top2) routing.choice = moei_arena_array(arena, T, K, sizeof(int32_t));
    if (train && router->keeps_logits) routing.saved_logits = moei_arena_array(arena, T, E, real);
    if (router->kind.ranks_plans) routing.selection = moei_arena_array(arena, T, E, real);
    if (router->kind.quantile && train) routing.quantile = moei_arena_array(arena, E, 1, sizeof(double));
    if (!router->kind.noisy) return routing;
    routing.clean = moei_arena_array(arena, T, E, real);
    routing.noise_std = moei_arena_array(arena, T, E, real);
    routing.load = moei_arena_array(arena, E, 1, sizeof(double));
    return routing;
}

void moei_routing_open(const moei_router *router, const moei_route_scratch *scratch, moe_mode mode,
                       moei_routing *routing) {
    const bool train = mode == MOE_TRAIN;
    routing->top_k = moei_router_slots(router, mode);
    routing->logits = train && router->keeps_logits ? routing->saved_logits : scratch->logits;
    routing->prob = train && router->keeps_prob ? routing->saved_prob : scratch->prob;
    if (!router->kind.ranks_plans) routing->selection = scratch->selection;
}

moei_route_scratch moei_route_scratch_carve(const moei_router *router, moei_arena *arena,
                                            moei_extent extent) {
    const int64_t T = extent.tokens, E = router->n_experts, d = router->d_model;
    const size_t real = moe_dtype_bytes(router->dtype);
    const bool train = extent.mode == MOE_TRAIN;
    moei_route_scratch s = {0};
    s.logits = moei_arena_array(arena, T, E, real);
    if (!moei_two_levels(router) && !(train && router->keeps_prob))
        s.prob = moei_arena_array(arena, T, E, real);
    if (moei_two_levels(router)) {
        s.inner = moei_arena_array(arena, 2 * T, E / router->desc->num_groups_outer, real);
        if (train) s.in = moei_arena_array(arena, 2 * T, d, real);
    } else if (router->unit != MOEI_UNIT_TOKEN || (train && router->jitter_eps > 0)) {
        s.in = moei_arena_array(arena, T, d, real);
    }
    const bool rounds = moei_router_rounds(router, extent.mode);
    if ((!router->fused || rounds) && !router->kind.ranks_plans && !moei_two_levels(router))
        s.selection = moei_arena_array(arena, T, E, real);
    if (router->kind.noisy) s.noise = moei_arena_array(arena, T, E, real);
    s.entropy = moei_arena_array(arena, T, 1, real);
    if (!router->fused || router->kind.forced)
        s.work = moei_arena_array(arena, 2 * T + 2 * E, 1, sizeof(double));
    if ((router->kind.quantile && train) || rounds) s.columns = moei_arena_array(arena, E, T, sizeof(double));
    if (router->kind.by_expert)
        s.taken = moei_arena_array(arena, moei_router_max_rows(router, extent), 1, sizeof(int32_t));
    s.wide = moei_route_wide_carve(router, arena, T, train);
    return s;
}
