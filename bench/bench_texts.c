/* bench_texts.c: tokens a second of B texts that are written at once (moe_lm_batch), of a model with random
 * weights: bench_texts [KEY=VALUE]..., keys of `moekit config options`, e.g. model.d_model=1024.
 * A step makes one token of each text and reads the weights of the experts that some text went to, so the
 * table tells how many those were and how many times faster that lets steps be where bytes are what takes
 * time. Each text has a prompt of its own, which is read before the clock starts; sizes take turns, the best
 * round counts.
 */
#include <moekit/lm.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SIZES = 5, ROUNDS = 3, STEPS = 24, PROMPT = 32 };
static const int64_t sizes[SIZES] = {1, 2, 4, 8, 16};

typedef struct figure {
    double seconds; /* a step, the best so far */
    double touched; /* share of the routed experts that had a row, mean over steps and layers */
} figure;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void fail(const char *text) {
    fprintf(stderr, "bench_texts: %s\n", text);
    exit(1);
}

static moe_lm *make_model(moe_ctx *ctx, int argc, char **argv) {
    moe_lm_config *config;
    moe_lm *lm;
    moe_error error;
    if (moe_lm_config_create(&config, &error) != MOE_OK) fail(error.text);
    for (int i = 1; i < argc; ++i) {
        char *value = strchr(argv[i], '=');
        if (!value) fail("arguments are KEY=VALUE");
        *value++ = '\0';
        if (moe_lm_config_set(config, argv[i], value, "command line", &error) != MOE_OK) fail(error.text);
    }
    if (moe_lm_create(ctx, config, &lm) != MOE_OK) fail(moe_ctx_error(ctx));
    moe_lm_config_destroy(config);
    return lm;
}

static bool go_on(void *user, int32_t token) {
    *(int64_t *)user += token;
    return true;
}

static void add_texts(moe_ctx *ctx, moe_lm_batch *batch, int64_t n, int64_t *sum) {
    for (int64_t i = 0; i < n; ++i) {
        int32_t prompt[PROMPT];
        const moe_lm_sampler sampler = {
            .size = sizeof sampler, .temperature = 1.0F, .top_p = 0.95F, .seed = (uint64_t)i};
        for (int t = 0; t < PROMPT; ++t) prompt[t] = (int32_t)((i * 37 + t * 11 + i * t) % 256);
        const moe_lm_text text = {.size = sizeof text,
                                  .prompt = prompt,
                                  .n_prompt = PROMPT,
                                  .n_new = STEPS + 1,
                                  .sampler = &sampler,
                                  .on_token = go_on,
                                  .user = sum};
        if (moe_lm_batch_add(batch, &text) != MOE_OK) fail(moe_ctx_error(ctx));
    }
}

/* Mean over the layers with routed experts, of the last step. */
static double touched(moe_lm *lm, int32_t n_layers) {
    double sum = 0;
    int32_t n = 0;
    for (int32_t i = 0; i < n_layers; ++i) {
        const moe_layer_desc *desc = moe_layer_get_desc(moe_lm_layer(lm, i));
        moe_stats stats = {.size = sizeof stats};
        if (desc->num_experts == 0 || moe_lm_layer_stats(lm, i, &stats) != MOE_OK) continue;
        sum += (double)(desc->num_experts - stats.n_dead) / desc->num_experts;
        ++n;
    }
    return n ? sum / n : 0;
}

static void measure(moe_ctx *ctx, moe_lm *lm, int64_t n, figure *f) {
    const moe_lm_batch_desc desc = {.size = sizeof desc, .max_texts = n, .max_length = PROMPT + STEPS + 1};
    moe_lm_info info = {.size = sizeof info};
    moe_lm_batch *batch;
    int64_t sum = 0;
    double share = 0;
    moe_lm_get_info(lm, &info);
    if (moe_lm_batch_create(lm, &desc, &batch) != MOE_OK) fail(moe_ctx_error(ctx));
    add_texts(ctx, batch, n, &sum);
    if (moe_lm_batch_step(batch) != MOE_OK) fail(moe_ctx_error(ctx));
    double seconds = 0;
    for (int i = 0; i < STEPS; ++i) {
        const double start = now();
        if (moe_lm_batch_step(batch) != MOE_OK) fail(moe_ctx_error(ctx));
        seconds += now() - start;
        share += touched(lm, info.n_layers) / STEPS;
    }
    moe_lm_batch_destroy(batch);
    if (f->seconds == 0 || seconds / STEPS < f->seconds) f->seconds = seconds / STEPS;
    f->touched = share;
}

/* Of a step with one text and with these: parameters read. All experts of a layer are alike. */
static double reads(const moe_lm_info *info, double one, double these) {
    const double routed = one < 1 ? (double)(info->params_total - info->params_active) / (1 - one) : 0;
    return (double)info->params_total - routed + these * routed;
}

int main(int argc, char **argv) {
    moe_ctx *ctx;
    moe_error error;
    if (moe_ctx_create(NULL, &ctx, &error) != MOE_OK) fail(error.text);
    moe_lm *lm = make_model(ctx, argc, argv);
    moe_lm_info info = {.size = sizeof info};
    figure figures[SIZES] = {0};
    moe_lm_get_info(lm, &info);
    for (int round = 0; round < ROUNDS; ++round)
        for (int i = 0; i < SIZES; ++i) measure(ctx, lm, sizes[i], &figures[i]);
    printf("%.1f M parameters, %.1f M of a token; %s, %d threads\n", 1e-6 * (double)info.params_total,
           1e-6 * (double)info.params_active, moe_ctx_isa(ctx), moe_ctx_threads(ctx));
    printf("%5s %10s %10s %8s %14s %12s\n", "texts", "ms a step", "tokens/s", "times", "experts read",
           "by bytes");
    for (int i = 0; i < SIZES; ++i) {
        const figure *f = &figures[i];
        const double n = (double)sizes[i], first = reads(&info, figures[0].touched, figures[0].touched);
        printf("%5d %10.3f %10.0f %8.2f %13.0f%% %12.2f\n", (int)sizes[i], 1e3 * f->seconds, n / f->seconds,
               n * figures[0].seconds / f->seconds, 100 * f->touched,
               n * first / reads(&info, figures[0].touched, f->touched));
    }
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}
