/* draw.c: loops over tokens and the random numbers of a token.
 * Element e of row r of a stream is word e % 4 of Philox block (r * ceil(n / 4) + e / 4).
 * Source: core/rng.c; a draw depends on its key alone, so neither threads nor batch order change it.
 */
#include "core/rng.h"
#include "route/select.h"

#include <math.h>

enum { TOKENS_PER_TASK = 16 };

typedef struct token_loop {
    const moei_route_job *job;
    moei_token_fn *fn;
    const void *arg;
} token_loop;

static void tokens_task(void *arg, int64_t first, int64_t end, void *scratch) {
    const token_loop *loop = arg;
    for (int64_t t = first; t < end; ++t) loop->fn(loop->job, loop->arg, t, scratch);
}

void moei_each_token(const moei_route_job *job, moei_token_fn *fn, const void *arg) {
    token_loop loop = {job, fn, arg};
    moei_parallel_blocks(&job->ctx->team, job->routing->n_tokens, TOKENS_PER_TASK, tokens_task, &loop);
}

/* Only training draws by the context's seed. What a model is, and what it answers, must be the same in every
 * context that reads it, and its parameters do not tell a seed. */
static uint64_t seed_of(const moei_route_job *job, uint64_t step) {
    return step == MOEI_EVERY_STEP || job->batch->mode != MOE_TRAIN ? 0 : job->ctx->desc.seed;
}

static void draw_words(const moei_route_job *job, moe_purpose purpose, uint64_t step, int64_t block,
                       uint32_t word[4]) {
    moe_random(seed_of(job, step), purpose, job->router->layer_index, step, (uint64_t)block, word);
}

void moei_draw_uniform(const moei_route_job *job, moe_purpose purpose, uint64_t step, int64_t row, int64_t n,
                       double *u) {
    uint32_t word[4];
    for (int64_t i = 0; i < n; ++i) {
        if (i % 4 == 0) draw_words(job, purpose, step, row * ((n + 3) / 4) + i / 4, word);
        u[i] = moei_uniform(word[i % 4]);
    }
}

void moei_draw_normal(const moei_route_job *job, moe_purpose purpose, uint64_t step, int64_t row, int64_t n,
                      double *u) {
    const double two_pi = 6.283185307179586476925287;
    uint32_t word[4];
    for (int64_t i = 0; i < n; ++i) {
        if (i % 4 == 0) draw_words(job, purpose, step, row * ((n + 3) / 4) + i / 4, word);
        /* Words 0, 1 make numbers 0, 1 of the block, words 2, 3 the other two (Box and Muller 1958). */
        const uint32_t *pair = word + i % 4 / 2 * 2;
        const double radius = sqrt(-2 * log(moei_uniform(pair[0]))), angle = two_pi * moei_uniform(pair[1]);
        u[i] = radius * (i % 2 == 0 ? cos(angle) : sin(angle));
    }
}
