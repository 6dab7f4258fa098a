/* select_hash.c: routers that do not ask the gate which experts: hash of the token, and forced balance.
 * token_id[T] or token numbers -> selection[T,E], higher first; balanced also writes weight[T,K].
 * Source: Roller et al., Hash layers, 2021 (a random but fixed table); FakeBalancedGate of NeMo Automodel.
 */
#include "route/select.h"

#include <math.h>

/* The hash ranks all experts, so K of them are as well defined as one. Its table is the layer's number's. */
static void rank_hash_token(const moei_route_job *job, const void *arg, int64_t t, double *u) {
    moei_routing *routing = job->routing;
    const int64_t E = routing->n_experts;
    const int64_t id = job->batch->token_id ? job->batch->token_id[t] : moei_draw_row(job, t);
    (void)arg;
    moei_draw_uniform(job, MOE_DRAW_HASH, MOEI_EVERY_STEP, id, E, u);
    for (int64_t e = 0; e < E; ++e) moei_real_store(routing->dtype, routing->selection, t * E + e, u[e]);
}

void moei_rank_hash(const moei_route_job *job) {
    moei_each_token(job, rank_hash_token, NULL);
}

/* The step of the noisy form's draws: read off the first numbers of the real tokens, so that a forward
 * repeated on the same x repeats them. */
static uint64_t step_of_input(const moei_batch *batch) {
    const int64_t d = batch->x.cols;
    double sum = 0;
    for (int64_t t = 0, read = 0; t < batch->x.rows && read < 4; ++t)
        for (int64_t j = 0; j < d && read < 4 && !moei_masked(batch, t); ++j, ++read)
            sum += moei_real_load(batch->x.dtype, batch->x.data, t * batch->x.stride + j);
    const double scaled = fmod(trunc(1e6 * sum), 2147483648.0);
    if (!isfinite(scaled)) return 0; /* the sum overflowed */
    return (uint64_t)(scaled < 0 ? scaled + 2147483648.0 : scaled);
}

typedef struct balanced_draw {
    uint64_t step;
    const double *bias; /* [E - skip] favours some experts for all tokens; NULL: exact round robin */
} balanced_draw;

static void rank_balanced_token(const moei_route_job *job, const void *arg, int64_t t, double *u) {
    const balanced_draw *draw = arg;
    moei_routing *routing = job->routing;
    const int64_t E = routing->n_experts, skip = job->router->desc->fake_skip_first, used = E - skip;
    if (draw->bias) moei_draw_uniform(job, MOE_DRAW_HASH, draw->step, t, used, u);
    for (int64_t e = 0; e < E; ++e) {
        /* Round robin hands out (t K + k) mod used; its k-th expert ranks k-th. */
        int64_t turn = (e - skip - t * routing->top_k % used + used) % used;
        double z = e < skip ? -INFINITY : draw->bias ? u[e - skip] + draw->bias[e - skip] : -(double)turn;
        moei_real_store(routing->dtype, routing->selection, t * E + e, z);
    }
}

/* Streams 1 and 2 after the ranks': the shared bias, the weights. */
static uint64_t stream(uint64_t step, uint64_t number) {
    return step + (number << 32);
}

void moei_rank_balanced(const moei_route_job *job) {
    const double noise = (double)job->router->desc->fake_noise;
    const int64_t used = job->routing->n_experts - job->router->desc->fake_skip_first;
    balanced_draw draw = {step_of_input(job->batch), NULL};
    if (noise > 0) {
        double *bias = job->scratch.work;
        moei_draw_normal(job, MOE_DRAW_HASH, stream(draw.step, 1), 0, used, bias);
        for (int64_t e = 0; e < used; ++e) bias[e] *= 0.1 * noise;
        draw.bias = bias;
    }
    moei_each_token(job, rank_balanced_token, &draw);
}

/* weight = (1 - noise) / K + noise * u_k / sum u */
static void weigh_balanced_token(const moei_route_job *job, const void *arg, int64_t t, double *u) {
    const balanced_draw *draw = arg;
    const double noise = (double)job->router->desc->fake_noise;
    moei_routing *routing = job->routing;
    const int64_t K = routing->top_k;
    double sum = 0;
    if (noise > 0) moei_draw_uniform(job, MOE_DRAW_HASH, stream(draw->step, 2), t, K, u);
    for (int64_t k = 0; k < K && noise > 0; ++k) sum += u[k];
    for (int64_t k = 0; k < K; ++k) {
        double w = (1 - noise) / (double)K + (noise > 0 ? noise * u[k] / sum : 0);
        moei_real_store(routing->dtype, routing->weight, t * K + k, routing->expert[t * K + k] < 0 ? 0 : w);
    }
}

void moei_weigh_balanced(const moei_route_job *job) {
    const balanced_draw draw = {step_of_input(job->batch), NULL};
    moei_each_token(job, weigh_balanced_token, &draw);
}
