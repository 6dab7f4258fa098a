/* select.c: the table of routers: how each ranks, selects and weighs.
 * moe_layer_desc.router_type -> a row.
 * Source: the files the functions live in.
 */
#include "route/select.h"

#include <string.h>

static const moei_selector selectors[] = {
    {.name = "top_k",
     .rank = moei_rank_scores,
     .select = moei_pick,
     .weigh = moei_weigh,
     .weigh_backward = moei_weigh_backward_token},
    {.name = "gshard_top2",
     .rank = moei_rank_scores,
     .select = moei_select_gshard,
     .weigh = moei_weigh,
     .weigh_backward = moei_weigh_backward_token},
    {.name = "noisy_top_k",
     .rank = moei_rank_scores,
     .select = moei_pick,
     .weigh = moei_weigh,
     .weigh_backward = moei_weigh_backward_token},
    {.name = "sinkhorn",
     .rank = moei_rank_sinkhorn,
     .select = moei_pick,
     .weigh = moei_weigh,
     .weigh_backward = moei_weigh_backward_token},
    {.name = "quantile",
     .rank = moei_rank_quantile,
     .select = moei_pick,
     .weigh = moei_weigh,
     .weigh_backward = moei_weigh_backward_token},
    {.name = "expert_choice",
     .rank = moei_rank_scores,
     .select = moei_select_expert_choice,
     .weigh = moei_weigh,
     .weigh_backward = moei_weigh_backward_token},
    {.name = "hash",
     .rank = moei_rank_hash,
     .select = moei_pick,
     .weigh = moei_weigh,
     .weigh_backward = moei_weigh_backward_token},
    {.name = "random",
     .rank = moei_rank_scores,
     .select = moei_pick,
     .weigh = moei_weigh,
     .weigh_backward = moei_weigh_backward_token},
    {.name = "balanced", .rank = moei_rank_balanced, .select = moei_pick,      .weigh = moei_weigh_balanced                                        },
};

const moei_selector *moei_selector_find(const char *name) {
    for (size_t i = 0; i < sizeof selectors / sizeof *selectors; ++i)
        if (strcmp(selectors[i].name, name) == 0) return &selectors[i];
    return NULL;
}
