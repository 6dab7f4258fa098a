/* router.c: a descriptor's router: names resolved, combinations checked, parameters listed, memory carved.
 * moe_layer_desc -> moei_router, moei_gate_param[], moei_routing.
 * Source: options and their pitfalls as NeMo Automodel, Megatron core and sigma-MoE have them.
 */
#include "route/select.h"

#include <stddef.h>
#include <string.h>

static int one_of(const char *name, const char *const *names) {
    for (int i = 0; names[i]; ++i)
        if (strcmp(name, names[i]) == 0) return i;
    return -1;
}

/* Names in the order of their enumerations. */
static const char *const score_names[] = {"softmax", "sigmoid", "sqrtsoftplus", NULL};
static const char *const unit_names[] = {"token", "sequence", "task", NULL};
static const char *const group_names[] = {"max", "top2_sum", "topn_sum", NULL};
static const char *const sinkhorn_names[] = {"standard", "megatron", "sigma_moe", NULL};

static moe_status resolve(moe_ctx *ctx, const char *key, const char *name, const char *const *names,
                          int *found) {
    *found = one_of(name, names);
    if (*found >= 0) return MOE_OK;
    return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "%s: '%s' is not known", key, name);
}

static moe_status check_groups(moe_ctx *ctx, const moe_layer_desc *d, const moei_router *router) {
    if (d->num_groups == 0 && d->group_top_k == 0) return MOE_OK;
    if (!router->selector->groups)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "num_groups: router_type %s does not select by groups",
                            d->router_type);
    if (d->num_groups < 1 || d->group_top_k < 1 || d->group_top_k > d->num_groups)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                            "group_top_k: %d of num_groups %d; keep 1 .. num_groups of them", d->group_top_k,
                            d->num_groups);
    if (d->num_experts % d->num_groups != 0)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "num_groups: %d does not divide num_experts %d",
                            d->num_groups, d->num_experts);
    const int32_t kept = d->num_experts / d->num_groups * d->group_top_k;
    if (d->top_k > kept)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                            "top_k: %d, but %d groups of %d experts leave %d to choose from", d->top_k,
                            d->group_top_k, d->num_experts / d->num_groups, kept);
    if (router->group_score == MOEI_GROUP_TOPN_SUM && d->top_k % d->group_top_k != 0)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                            "group_score topn_sum: top_k %d is not a multiple of group_top_k %d", d->top_k,
                            d->group_top_k);
    if (d->expert_dropout > 0)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                            "expert_dropout with num_groups: a kept group could be left without experts");
    return MOE_OK;
}

static moe_status check_selection(moe_ctx *ctx, const moe_layer_desc *d, const moei_router *router) {
    if (d->selection_bias && !router->selector->selection_bias)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "selection_bias: router_type %s does not use one",
                            d->router_type);
    if (!d->selection_bias && (d->selection_bias_update_rate > 0 || d->selection_bias_recenter))
        return moe_ctx_fail(
            ctx, MOE_ERR_ARGUMENT,
            "selection_bias_update_rate, selection_bias_recenter: there is no selection_bias");
    if (d->selection_bias_in_weights &&
        (!d->selection_bias || !d->score_before_topk || router->score == MOEI_SOFTMAX))
        return moe_ctx_fail(
            ctx, MOE_ERR_ARGUMENT,
            "selection_bias_in_weights: needs selection_bias, score_before_topk and score_function "
            "sigmoid or sqrtsoftplus");
    if (!(d->expert_dropout >= 0 && d->expert_dropout < 1))
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "expert_dropout: %g is outside 0 .. 1",
                            (double)d->expert_dropout);
    if (d->expert_dropout > 0 && !router->selector->expert_dropout)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "expert_dropout: router_type %s does not drop experts",
                            d->router_type);
    if (d->top_k_min != 0 && !router->selector->random_k)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "top_k_min: router_type %s has a fixed K", d->router_type);
    if (d->top_k_min < 0 || d->top_k_min > d->top_k)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "top_k_min: %d is outside 0 .. top_k = %d", d->top_k_min,
                            d->top_k);
    return MOE_OK;
}

static moe_status check_unit(moe_ctx *ctx, const moe_layer_desc *d, const moei_router *router) {
    if (router->unit == MOEI_UNIT_TASK ? d->num_tasks < 1 : d->num_tasks != 0)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                            "num_tasks: %d; give it with routing_unit task, and only then", d->num_tasks);
    if (router->unit != MOEI_UNIT_TOKEN && d->input_jitter_eps > 0)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                            "input_jitter_eps: jitter is of tokens; routing_unit is %s", d->routing_unit);
    return MOE_OK;
}

/* Megatron's Sinkhorn has its own weights: sigmoid for one expert, else softmax over all, as they are. */
static moe_status init_sinkhorn(moe_ctx *ctx, const moe_layer_desc *d, moei_router *router) {
    if (router->sinkhorn == MOEI_SINKHORN_SIGMA && router->score != MOEI_SIGMOID)
        return moe_ctx_fail(
            ctx, MOE_ERR_ARGUMENT,
            "sinkhorn_variant sigma_moe: its weights are sigmoids; set score_function sigmoid");
    if (router->sinkhorn != MOEI_SINKHORN_MEGATRON) return MOE_OK;
    if (router->score != MOEI_SOFTMAX || d->norm_topk_prob || router->scale != 1)
        return moe_ctx_fail(
            ctx, MOE_ERR_ARGUMENT,
            "sinkhorn_variant megatron: its weights are softmax over all experts, neither normalised "
            "nor scaled; leave score_function, norm_topk_prob and routed_scaling_factor alone");
    router->score = d->top_k == 1 ? MOEI_SIGMOID : MOEI_SOFTMAX;
    router->score_before_topk = true;
    return MOE_OK;
}

static moe_status check_type(moe_ctx *ctx, const moe_layer_desc *d, const moei_router *router) {
    if (strcmp(d->router_type, "quantile") == 0 && d->top_k >= d->num_experts)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                            "router_type quantile: top_k %d of %d experts leaves none to balance", d->top_k,
                            d->num_experts);
    if (strcmp(d->router_type, "balanced") != 0) return MOE_OK;
    if (d->fake_skip_first < 0 || d->top_k > d->num_experts - d->fake_skip_first)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                            "fake_skip_first: %d of %d experts leaves fewer than top_k %d",
                            d->fake_skip_first, d->num_experts, d->top_k);
    if (!(d->fake_noise >= 0 && d->fake_noise <= 1))
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "fake_noise: %g is outside 0 .. 1", (double)d->fake_noise);
    if (router->scale != 1)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT,
                            "routed_scaling_factor: the weights of router_type balanced are 1 / K");
    return MOE_OK;
}

/* What follows from the checked descriptor. */
static void derive(const moe_layer_desc *d, moei_router *router) {
    const bool expert_choice = router->selector->select == moei_select_expert_choice;
    const bool sums = d->group_top_k > 0 && router->group_score != MOEI_GROUP_MAX;
    router->n_slots = expert_choice ? d->num_experts : d->top_k;
    /* A single weight divided by itself would cut the router off its gradient. */
    router->norm_topk_prob = d->norm_topk_prob && router->n_slots > 1;
    router->norm_eps = 1e-20;
    /* Every score rises with its logit, so within a token logits rank alike. */
    router->rank_logits = !router->score_before_topk || (!d->selection_bias && !sums && !expert_choice);
    router->shows_selection =
        strcmp(d->router_type, "sinkhorn") == 0 || strcmp(d->router_type, "quantile") == 0;
    router->keeps_logits = router->score != MOEI_SOFTMAX || strcmp(d->router_type, "noisy_top_k") == 0;
    router->fused = router->selector->groups && router->score == MOEI_SOFTMAX && d->group_top_k == 0 &&
                    !d->selection_bias && d->expert_dropout == 0 && d->top_k_min == 0;
}

moe_status moei_router_init(moe_ctx *ctx, const moe_layer_desc *d, const moei_capacity *capacity,
                            moei_router *router) {
    int score, unit, group_score, sinkhorn;
    const moei_selector *selector = moei_selector_find(d->router_type);
    if (!selector)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "router_type: '%s' is not known", d->router_type);
    MOEI_TRY(resolve(ctx, "score_function", d->score_function, score_names, &score));
    MOEI_TRY(resolve(ctx, "routing_unit", d->routing_unit, unit_names, &unit));
    MOEI_TRY(resolve(ctx, "group_score", d->group_score, group_names, &group_score));
    MOEI_TRY(resolve(ctx, "sinkhorn_variant", d->sinkhorn_variant, sinkhorn_names, &sinkhorn));
    *router = (moei_router){.desc = d,
                            .capacity = capacity,
                            .selector = selector,
                            .d_model = d->d_model,
                            .n_experts = d->num_experts,
                            .top_k = d->top_k,
                            .layer_index = (uint32_t)d->layer_index,
                            .unit = (moei_unit)unit,
                            .score = (moei_score)score,
                            .score_before_topk = d->score_before_topk,
                            .scale = (double)d->routed_scaling_factor,
                            .group_score = (moei_group_score)group_score,
                            .sinkhorn = (moei_sinkhorn)sinkhorn,
                            .jitter_eps = d->input_jitter_eps};
    MOEI_TRY(check_groups(ctx, d, router));
    MOEI_TRY(check_selection(ctx, d, router));
    MOEI_TRY(check_unit(ctx, d, router));
    MOEI_TRY(check_type(ctx, d, router));
    if (strcmp(d->router_type, "sinkhorn") == 0) MOEI_TRY(init_sinkhorn(ctx, d, router));
    derive(d, router);
    return MOE_OK;
}

int64_t moei_router_max_rows(const moei_router *router, int64_t T) {
    const int64_t E = router->n_experts;
    if (router->n_slots == router->top_k || router->capacity->by_sequence) return T * router->n_slots;
    const int64_t train = moei_expert_choice_rows(router, MOE_TRAIN, T);
    const int64_t infer = moei_expert_choice_rows(router, MOE_INFER, T);
    return E * (train > infer ? train : infer);
}

static bool is_type(const moei_router *router, const char *name) {
    return strcmp(router->desc->router_type, name) == 0;
}

/* clang-format off: clang-format 14 dies of nested tables */
int32_t moei_router_params(const moei_router *router, moei_gate_param param[MOEI_GATE_PARAMS]) {
    const moe_layer_desc *d = router->desc;
    const int64_t E = d->num_experts, width = d->d_model;
    const double std = (double)d->init_std;
    const moei_gate_param all[MOEI_GATE_PARAMS] = {
        {"gate.weight",         2, {E, width, 1},            offsetof(moei_gate, weight),         std, false},
        {"gate.bias",           1, {E, 1, 1},                offsetof(moei_gate, bias),           0,   false},
        {"gate.noise",          2, {E, width, 1},            offsetof(moei_gate, noise),          0,   false},
 /* Embeddings stand in for tokens, whose numbers are of order 1. */
        {"gate.task",           2, {d->num_tasks, width, 1}, offsetof(moei_gate, task),           1,   false},
        {"gate.selection_bias", 1, {E, 1, 1},                offsetof(moei_gate, selection_bias), 0,   true },
        {"gate.quantile_bias",  1, {E, 1, 1},                offsetof(moei_gate, quantile_bias),  0,   true },
    };
    /* clang-format on */
    const bool has[MOEI_GATE_PARAMS] = {true,
                                        d->router_bias,
                                        is_type(router, "noisy_top_k"),
                                        d->num_tasks > 0,
                                        d->selection_bias,
                                        is_type(router, "quantile")};
    int32_t n = 0;
    for (int32_t i = 0; i < MOEI_GATE_PARAMS; ++i)
        if (has[i]) param[n++] = all[i];
    return n;
}

static void *take(moei_arena *arena, int64_t rows, int64_t cols, size_t element) {
    return moei_arena_take(arena, (size_t)rows * (size_t)cols * element);
}

moei_routing moei_routing_carve(const moei_router *router, moei_arena *arena, int64_t T, moe_mode mode) {
    const moe_dtype dtype = router->desc->dtype;
    const int64_t E = router->n_experts, K = router->n_slots;
    const size_t real = moe_dtype_bytes(dtype);
    moei_routing routing = {.n_experts = (int32_t)E, .top_k = (int32_t)K, .dtype = dtype};
    routing.prob = take(arena, T, E, real);
    routing.lse = take(arena, T, 1, real);
    routing.expert = take(arena, T, K, sizeof(int32_t));
    routing.weight = take(arena, T, K, real);
    if (router->keeps_logits) routing.logits = take(arena, T, E, real);
    if (!router->fused) routing.selection = take(arena, T, E, real);
    if (is_type(router, "quantile") && mode == MOE_TRAIN)
        routing.quantile = take(arena, E, 1, sizeof(double));
    if (!is_type(router, "noisy_top_k")) return routing;
    routing.clean = take(arena, T, E, real);
    routing.noise_std = take(arena, T, E, real);
    routing.load_prob = take(arena, T, E, real);
    routing.load = take(arena, E, 1, sizeof(double));
    return routing;
}

moei_route_scratch moei_route_scratch_carve(const moei_router *router, moei_arena *arena, int64_t T,
                                            moe_mode mode) {
    const int64_t E = router->n_experts, d = router->d_model;
    const size_t real = moe_dtype_bytes(router->desc->dtype);
    const bool train = mode == MOE_TRAIN;
    moei_route_scratch s = {0};
    if (train || !router->keeps_logits) s.logits = take(arena, T, E, real);
    if (router->unit != MOEI_UNIT_TOKEN || (train && router->jitter_eps > 0)) s.in = take(arena, T, d, real);
    if (train && is_type(router, "noisy_top_k")) s.dnoise = take(arena, T, E, real);
    s.entropy = take(arena, T, 1, real);
    if (!router->fused || is_type(router, "random")) s.work = take(arena, 3 * T + 2 * E, 1, sizeof(double));
    return s;
}
