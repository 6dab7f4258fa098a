/* recorded.h: what tests of recorded runs share: the tensors of expected.safetensors, and models that are to
 * give them. Source: each golden directory, DIR/config.json, model.safetensors and expected.safetensors. */
#ifndef RECORDED_H
#define RECORDED_H

#include "unit/model/model_fixture.h"

#include "format/safetensors.h"

typedef struct recorded_run {
    const char *directory;
    moelm_safetensors *file;
} recorded_run;

static inline recorded_run recorded_open(const char *directory) {
    recorded_run run = {.directory = directory};
    char path[200];
    moe_error error;
    snprintf(path, sizeof path, "%s/expected.safetensors", directory);
    assert_ok(moelm_safetensors_open(path, &run.file, &error), &error);
    return run;
}

static inline void recorded_close(recorded_run *run) {
    moelm_safetensors_close(run->file);
}

/* A copy, aligned; the caller frees it. */
static inline void *recorded_tensor(const recorded_run *run, const char *name, size_t bytes) {
    const moelm_st_tensor *tensor = moelm_safetensors_find(run->file, name);
    if (!tensor) fail_msg("%s: no tensor %s", run->directory, name);
    assert_int_equal(tensor->bytes, bytes);
    void *copy = malloc(bytes);
    assert_non_null(copy);
    memcpy(copy, tensor->data, bytes);
    return copy;
}

static inline void recorded_ids(const recorded_run *run, const char *name, int32_t *ids, int64_t n) {
    int64_t *wide = recorded_tensor(run, name, (size_t)n * sizeof *wide);
    for (int64_t i = 0; i < n; ++i) ids[i] = (int32_t)wide[i];
    free(wide);
}

static inline float recorded_one(const recorded_run *run, const char *name) {
    float *value = recorded_tensor(run, name, sizeof *value), one = *value;
    free(value);
    return one;
}

static inline void recorded_near(const recorded_run *run, const char *name, const float *values, int64_t n,
                                 double limit) {
    float *right = recorded_tensor(run, name, (size_t)n * sizeof *right);
    double distance = model_distance(values, right, n);
    if (!(distance <= limit))
        fail_msg("%s: %s: off by %g of its largest number, limit %g", run->directory, name, distance, limit);
    free(right);
}

/* The logits of input_ids[n_seq, length] in a dtype, by the first `n_isas` instruction sets. */
static inline void recorded_check_logits(const recorded_run *run, int n_seq, int length, int vocab,
                                         const char *dtype, int n_isas, double limit) {
    const int64_t rows = (int64_t)n_seq * length;
    int32_t *ids = malloc((size_t)rows * sizeof *ids);
    float *logits = malloc((size_t)(rows * vocab) * sizeof *logits);
    assert_non_null(ids);
    assert_non_null(logits);
    recorded_ids(run, "input_ids", ids, rows);
    for (int isa = 0; isa < n_isas; ++isa) {
        moe_ctx *ctx = test_ctx_if_supported(test_isas[isa]);
        if (!ctx) continue;
        moe_lm *lm = NULL;
        must(ctx, moe_lm_load_as(ctx, run->directory, dtype, &lm));
        must(ctx, moe_lm_reserve(lm, n_seq, length, MOE_INFER));
        must(ctx, moe_lm_logits(lm, ids, n_seq, length, logits));
        recorded_near(run, "logits", logits, rows * vocab, limit);
        moe_lm_destroy(lm);
        moe_ctx_destroy(ctx);
    }
    free(ids);
    free(logits);
}

/* generated[prompt + n_new]: what greedy decoding with the cache makes of its beginning. */
static inline void recorded_check_greedy(const recorded_run *run, int prompt, int n_new) {
    moe_ctx *ctx = test_ctx(NULL, 2);
    moe_lm *lm = model_load(ctx, run->directory);
    int32_t right[256];
    assert_true(prompt + n_new <= 256);
    recorded_ids(run, "generated", right, prompt + n_new);
    const moe_lm_sampler greedy = {.size = sizeof greedy};
    model_taken taken = {0};
    must(ctx, moe_lm_generate(lm, right, prompt, n_new, &greedy, model_take, &taken));
    assert_int_equal(taken.n, n_new);
    assert_memory_equal(taken.token, right + prompt, (size_t)n_new * sizeof *right);
    moe_lm_destroy(lm);
    moe_ctx_destroy(ctx);
}

/* Each token's successor in its sequence. */
static inline void recorded_targets(const int32_t *ids, int64_t rows, int length, int32_t *targets) {
    for (int64_t i = 0; i < rows; ++i) targets[i] = i % length == length - 1 ? -1 : ids[i + 1];
}

#endif
