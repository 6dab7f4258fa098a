/* jitter.c: multiplicative noise on the router's input, training only.
 * x[T,d] -> x * U(1-eps, 1+eps); the backward pass draws the same numbers again instead of keeping them.
 * Source: Fedus et al., Switch Transformers, 2021, section 2.4; moe_input_jitter_eps of Megatron core.
 */
#include "core/real.h"
#include "core/rng.h"
#include "route/route.h"

#include <moekit/op.h>

enum { TOKENS_PER_TASK = 16 };

typedef struct jitter_job {
    const moe_ctx *ctx;
    const moei_router *router;
    const moei_batch *batch;
    void *out;        /* forward: [T,d] */
    const void *dout; /* backward: [T,d] */
    moe_mat dx;
} jitter_job;

/* The factors of numbers 4q .. 4q+3 of token t. */
static void factors(const jitter_job *job, int64_t t, int64_t q, double factor[4]) {
    const int64_t quads = (job->router->d_model + 3) / 4;
    uint32_t word[4];
    moe_random(job->ctx->desc.seed, MOE_DRAW_JITTER, job->router->layer_index, job->batch->step,
               (uint64_t)(t * quads + q), word);
    for (int i = 0; i < 4; ++i)
        factor[i] = 1.0 + (double)job->router->jitter_eps * (2.0 * moei_uniform(word[i]) - 1.0);
}

static void jitter_token(const jitter_job *job, int64_t t) {
    const int64_t d = job->router->d_model;
    const moe_mat x = job->batch->x;
    double factor[4] = {0};
    for (int64_t i = 0; i < d; ++i) {
        if (i % 4 == 0) factors(job, t, i / 4, factor);
        moei_real_store(x.dtype, job->out, t * d + i,
                        factor[i % 4] * moei_real_load(x.dtype, x.data, t * x.stride + i));
    }
}

static void jitter_token_backward(const jitter_job *job, int64_t t) {
    const int64_t d = job->router->d_model;
    const moe_mat dx = job->dx;
    double factor[4] = {0};
    for (int64_t i = 0; i < d; ++i) {
        if (i % 4 == 0) factors(job, t, i / 4, factor);
        double sum = moei_real_load(dx.dtype, dx.data, t * dx.stride + i) +
                     factor[i % 4] * moei_real_load(dx.dtype, job->dout, t * d + i);
        moei_real_store(dx.dtype, dx.data, t * dx.stride + i, sum);
    }
}

static void jitter_task(void *arg, int64_t task, void *scratch) {
    (void)scratch;
    const jitter_job *job = arg;
    const int64_t n_tokens = job->batch->x.rows;
    for (int64_t t = task * TOKENS_PER_TASK; t < n_tokens && t < (task + 1) * TOKENS_PER_TASK; ++t) {
        if (job->out)
            jitter_token(job, t);
        else
            jitter_token_backward(job, t);
    }
}

static void run(jitter_job job) {
    int64_t n_tasks = (job.batch->x.rows + TOKENS_PER_TASK - 1) / TOKENS_PER_TASK;
    moei_parallel(&job.ctx->team, n_tasks, jitter_task, &job);
}

void moei_jitter(moe_ctx *ctx, const moei_router *router, const moei_batch *batch, void *out) {
    run((jitter_job){.ctx = ctx, .router = router, .batch = batch, .out = out});
}

void moei_jitter_backward(moe_ctx *ctx, const moei_router *router, const moei_batch *batch, const void *dout,
                          moe_mat dx) {
    run((jitter_job){.ctx = ctx, .router = router, .batch = batch, .dout = dout, .dx = dx});
}
