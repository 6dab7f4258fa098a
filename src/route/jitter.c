/* jitter.c: multiplicative noise on the router's input, training only.
 * x[T,d] -> x * U(1-eps, 1+eps); the backward pass draws the same numbers again instead of keeping them.
 * Source: Fedus et al., Switch Transformers, 2021, section 2.4; moe_input_jitter_eps of Megatron core.
 */
#include "core/rng.h"
#include "route/select.h"

typedef struct jitter {
    moe_mat from, to;
    bool adds; /* to what is there */
} jitter;

/* The factors of numbers 4q .. 4q+3 of token t. */
static void factors(const moei_route_job *job, int64_t t, int64_t q, double factor[4]) {
    const int64_t quads = (job->router->d_model + 3) / 4;
    uint32_t word[4];
    moe_random(job->ctx->desc.seed, MOE_DRAW_JITTER, job->router->layer_index, job->batch->step,
               (uint64_t)(t * quads + q), word);
    for (int i = 0; i < 4; ++i)
        factor[i] = 1.0 + (double)job->router->jitter_eps * (2.0 * moei_uniform(word[i]) - 1.0);
}

static void jitter_token(const moei_route_job *job, const void *arg, int64_t t, double *room) {
    const jitter *j = arg;
    const moe_mat from = j->from, to = j->to;
    double factor[4] = {0};
    (void)room;
    for (int64_t i = 0; i < from.cols; ++i) {
        if (i % 4 == 0) factors(job, t, i / 4, factor);
        const double old = j->adds ? moei_real_load(to.dtype, to.data, t * to.stride + i) : 0;
        moei_real_store(to.dtype, to.data, t * to.stride + i,
                        old + factor[i % 4] * moei_real_load(from.dtype, from.data, t * from.stride + i));
    }
}

void moei_jitter(const moei_route_job *job, moe_mat from, moe_mat to, bool adds) {
    const jitter j = {from, to, adds};
    moei_each_token(job, jitter_token, &j);
}
