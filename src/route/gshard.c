/* gshard.c: GShard top-2: the best expert, and a second one that a policy may take back.
 * selection[T,E] -> choice[T,2], expert[T,2]. Weights are the two scores over their sum + 1e-9 (weight.c),
 * and stay as they are when a second choice goes. Source: Lepikhin et al., GShard, 2020, algorithm 1;
 * policies of tensor2tensor and lucidrains; sampled second expert: Zoph et al. 2022, section on top-n
 * routing.
 */
#include "route/select.h"

#include "core/desc.h"

#include <math.h>

bool moei_second_stays(moei_second second, double weight, double u) {
    switch (second.policy) {
    case MOEI_SECOND_NONE:
        return false;
    case MOEI_SECOND_THRESHOLD:
        return weight > second.threshold;
    case MOEI_SECOND_RANDOM:
        return u < weight / fmax(second.threshold, 1e-9);
    case MOEI_SECOND_ALL:
    case MOEI_SECOND_SAMPLE:
        break;
    }
    return true;
}

int32_t moei_second_sample(const double *s, int32_t n, int32_t first, double u) {
    double rest = 0, sum = 0;
    int32_t chosen = -1;
    for (int32_t e = 0; e < n; ++e) rest += e == first ? 0 : s[e];
    for (int32_t e = 0; e < n; ++e) {
        if (e == first) continue;
        sum += s[e];
        /* The last that has a chance stays chosen where rounding leaves u * rest unreached. */
        if (chosen < 0 || s[e] > 0) chosen = e;
        if (sum > u * rest) break;
    }
    return chosen;
}

static double second_draw(const moei_route_job *job, int64_t t) {
    const moe_draws *draws = job->batch->draws;
    double u;
    if (draws && draws->second_policy) return (double)draws->second_policy[t];
    moei_draw_uniform(job, MOE_DRAW_SECOND_POLICY, job->batch->step, moei_draw_row(job, t), 1, &u);
    return u;
}

static void second_token(const moei_route_job *job, const void *arg, int64_t t, double *s) {
    const moei_second *second = arg;
    moei_routing *routing = job->routing;
    int32_t *choice = routing->choice + 2 * t, *expert = routing->expert + 2 * t;
    double share[2];
    choice[0] = expert[0];
    choice[1] = expert[1];
    if (moei_masked(job->batch, t)) return;
    const double u = second_draw(job, t);
    moei_score_token(job, t, s);
    if (second->policy == MOEI_SECOND_SAMPLE)
        choice[1] = expert[1] = moei_second_sample(s, routing->n_experts, choice[0], u);
    moei_shares(s, choice, 2, job->router->norm_eps, share);
    if (!moei_second_stays(*second, share[1], u)) expert[1] = moei_removed(choice[1]);
}

moe_status moei_select_gshard(const moei_route_job *job) {
    const moei_second second = job->router->second[job->batch->mode];
    MOEI_TRY(moei_pick(job));
    moei_each_token(job, second_token, &second);
    return MOE_OK;
}
