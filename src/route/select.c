/* select.c: the table of routers: what each needs, how it ranks, selects and weighs.
 * moe_layer_desc.router_type -> a row.
 * Source: the files the functions live in.
 */
#include "route/select.h"

#include "core/option.h"

/* clang-format off */
static const moei_selector selectors[MOEI_ROUTER_TYPES] = {
    [MOEI_ROUTER_TOP_K] = {.kind = {.fuses = true}, .rank = moei_rank_scores, .select = moei_pick,
        .weigh = moei_weigh, .weigh_backward = moei_weigh_backward_token},
    [MOEI_ROUTER_GSHARD_TOP2] = {.kind = {.top2 = true}, .rank = moei_rank_scores,
        .select = moei_select_gshard, .weigh = moei_weigh, .weigh_backward = moei_weigh_backward_token},
    [MOEI_ROUTER_NOISY_TOP_K] = {.kind = {.noisy = true}, .rank = moei_rank_scores, .select = moei_pick,
        .weigh = moei_weigh, .weigh_backward = moei_weigh_backward_token},
    [MOEI_ROUTER_SINKHORN] = {.kind = {.transports = true, .ranks_plans = true}, .rank = moei_rank_sinkhorn,
        .select = moei_pick, .weigh = moei_weigh, .weigh_backward = moei_weigh_backward_token},
    [MOEI_ROUTER_QUANTILE] = {.kind = {.quantile = true, .ranks_plans = true}, .rank = moei_rank_quantile,
        .select = moei_pick, .weigh = moei_weigh, .weigh_backward = moei_weigh_backward_token},
    [MOEI_ROUTER_EXPERT_CHOICE] = {.kind = {.by_expert = true}, .rank = moei_rank_scores,
        .select = moei_select_expert_choice, .weigh = moei_weigh,
        .weigh_backward = moei_weigh_backward_token},
    [MOEI_ROUTER_HASH] = {.kind = {.hashes = true}, .rank = moei_rank_hash, .select = moei_pick,
        .weigh = moei_weigh, .weigh_backward = moei_weigh_backward_token},
    [MOEI_ROUTER_RANDOM] = {.kind = {.fuses = true, .forced = true}, .rank = moei_rank_scores,
        .select = moei_pick, .weigh = moei_weigh, .weigh_backward = moei_weigh_backward_token},
    [MOEI_ROUTER_BALANCED] = {.rank = moei_rank_balanced, .select = moei_pick, .weigh = moei_weigh_balanced},
};
/* clang-format on */

const moei_selector *moei_selector_find(const char *name) {
    const int32_t type = moei_option_place(name, moei_router_types);
    return type < 0 ? NULL : &selectors[type];
}

moei_router_kind moei_router_kind_of(const moe_layer_desc *desc) {
    const moei_selector *selector = moei_selector_find(desc->router_type);
    return selector && desc->num_experts > 0 ? selector->kind : (moei_router_kind){0};
}
