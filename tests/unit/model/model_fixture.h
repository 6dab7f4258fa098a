/* model_fixture.h: what the model tests share: a context, a tiny model from "key", "value" pairs, random
 * tokens. The seed of every draw is printed once; MOEKIT_TEST_SEED repeats it. Source: the conventions of
 * support/layer_fixture.h. */
#ifndef MODEL_FIXTURE_H
#define MODEL_FIXTURE_H

#define _XOPEN_SOURCE 700 /* nftw */

#include "support/layer_fixture.h"
#include "unit/format/scratch.h"

#include <moekit/lm.h>

static inline moe_lm_config *model_config(const char *const *pairs) {
    /* clang-format off */
    static const char *const tiny[] = {
        "model.vocab_size", "23",  "model.d_model", "16",  "model.n_layers", "2",
        "model.n_heads", "4",  "model.n_kv_heads", "2",  "model.context", "32",
        "model.init_std", "0.2",  "moe.num_experts", "4",  "moe.top_k", "2",
        "moe.expert_hidden_size", "12",  NULL
    };
    /* clang-format on */
    moe_lm_config *config;
    moe_error error = {0};
    assert_ok(moe_lm_config_create(&config, &error), &error);
    for (const char *const *p = tiny; *p; p += 2)
        assert_ok(moe_lm_config_set(config, p[0], p[1], "test", &error), &error);
    for (const char *const *p = pairs; p && *p; p += 2)
        assert_ok(moe_lm_config_set(config, p[0], p[1], "test", &error), &error);
    return config;
}

static inline moe_lm *model_make(moe_ctx *ctx, const char *const *pairs) {
    moe_lm_config *config = model_config(pairs);
    moe_lm *lm = NULL;
    must(ctx, moe_lm_create(ctx, config, &lm));
    moe_lm_config_destroy(config);
    return lm;
}

static inline moe_lm *model_load(moe_ctx *ctx, const char *directory) {
    moe_lm *lm = NULL;
    must(ctx, moe_lm_load(ctx, directory, &lm));
    return lm;
}

/* The call on ctx must fail this way, and its text must contain the words. */
#define must_fail(ctx, call, expected, words)                                                                \
    do {                                                                                                     \
        moe_status model_status = (call);                                                                    \
        if (model_status != (expected) || !strstr(moe_ctx_error(ctx), (words)))                              \
            fail_msg("%s: %s: \"%s\" lacks \"%s\"", #call, moe_status_name(model_status),                    \
                     moe_ctx_error(ctx), (words));                                                           \
    } while (0)

static inline void model_tokens(int32_t *tokens, int64_t n, int32_t vocab, uint64_t stream) {
    for (int64_t i = 0; i < n; ++i) {
        uint32_t word[4];
        moe_random(test_seed(), MOE_DRAW_TEST, 77, stream, (uint64_t)i, word);
        tokens[i] = (int32_t)(word[0] % (uint32_t)vocab);
    }
}

static inline int64_t model_numbers(const moe_param *param) {
    int64_t n = 1;
    for (int32_t i = 0; i < param->n_dim; ++i) n *= param->dim[i];
    return n;
}

static inline moe_param model_param(moe_lm *lm, const char *name) {
    moe_param param = {.size = sizeof param};
    for (int32_t i = 0; i < moe_lm_param_count(lm); ++i)
        if (moe_lm_param(lm, i, &param) == MOE_OK && strcmp(param.name, name) == 0) return param;
    fail_msg("no parameter %s", name);
    return param;
}

/* max |a - b| / max |b| */
static inline double model_distance(const float *a, const float *b, int64_t n) {
    double most = 0, scale = 0;
    for (int64_t i = 0; i < n; ++i) {
        most = fmax(most, fabs((double)a[i] - (double)b[i]));
        scale = fmax(scale, fabs((double)b[i]));
        if (!isfinite(a[i])) return INFINITY;
    }
    return scale > 0 ? most / scale : most;
}

/* Tokens that generate hands out. */
typedef struct model_taken {
    int32_t token[256];
    int64_t n, stop_after; /* 0: never */
} model_taken;

static inline bool model_take(void *user, int32_t token) {
    model_taken *taken = user;
    assert_true(taken->n < 256);
    taken->token[taken->n++] = token;
    return taken->n != taken->stop_after;
}

#endif
