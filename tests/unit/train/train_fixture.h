/* train_fixture.h: what the tests of training share: a tiny run in the scratch directory, stopped where a
 * test wants, and files compared.
 */
#ifndef TRAIN_FIXTURE_H
#define TRAIN_FIXTURE_H

#define _XOPEN_SOURCE 700 /* nftw */
#include "unit/format/scratch.h"

#include <moekit/expert.h>
#include <moekit/lm.h>

enum { TEXT_BYTES = 3000 };

/* Words in random order: something to learn, nothing to know by heart. */
static inline char *train_text(void **state, const char *name, size_t bytes, uint64_t seed) {
    static const char *const words[] = {"and ", "the ", "lord ", "said ", "unto ", "moses, ", "go\n"};
    char *path = scratch_path(state, name), *text = malloc(bytes + 16);
    size_t used = 0;
    while (used < bytes) used += (size_t)sprintf(text + used, "%s", words[scratch_random(&seed) % 7]);
    scratch_put(path, text, bytes);
    free(text);
    return path;
}

typedef struct train_setup {
    const char *dir;          /* below the scratch directory */
    const char *const *pairs; /* further "key", "value", NULL */
    bool resume, move_old;
    const char *isa;         /* NULL: the best */
    const char *command;     /* NULL: "test" */
    int64_t stop_after;      /* should_stop answers true after this step; 0: never */
    int64_t disk_full_after; /* no file may grow after this step; 0: never */
    int32_t threads;
    uint64_t seed;              /* of the context; 0: that of the settings */
    const moe_expert_ops *kind; /* registered first; NULL: none */
} train_setup;

typedef struct train_result {
    moe_status status;
    char text[500];
    moe_lm_progress last;
    int n_steps, n_evals, n_checkpoints;
    char resumed[500];  /* the resume event, "" if none */
    char over[500];     /* that of a run whose time is over, "" if none */
    char warning[2000]; /* all of the log, a line each */
    double first_loss;
} train_result;

typedef struct train_watch {
    const train_setup *setup;
    train_result *result;
} train_watch;

static inline void train_on_progress(void *user, const moe_lm_progress *progress) {
    train_watch *watch = user;
    train_result *result = watch->result;
    const char *event = progress->event;
    result->last = *progress;
    result->last.event = NULL;
    if (!event && result->n_steps++ == 0) result->first_loss = progress->loss;
    if (event && strcmp(event, "eval") == 0) result->n_evals++;
    if (event && strncmp(event, "checkpoint ", 11) == 0) result->n_checkpoints++;
    if (event && strncmp(event, "resume", 6) == 0)
        snprintf(result->resumed, sizeof result->resumed, "%s", event);
    if (event && strncmp(event, "over", 4) == 0) snprintf(result->over, sizeof result->over, "%s", event);
    if (watch->setup->disk_full_after && !event && progress->step == watch->setup->disk_full_after)
        scratch_disk_full(2000);
}

static inline bool train_should_stop(void *user) {
    train_watch *watch = user;
    return watch->setup->stop_after && watch->result->last.step >= watch->setup->stop_after;
}

static inline void train_on_log(void *user, moe_log_level level, const char *text) {
    train_result *result = user;
    const size_t used = strlen(result->warning);
    if (level == MOE_LOG_WARN) snprintf(result->warning + used, sizeof result->warning - used, "%s\n", text);
}

static inline moe_lm_config *train_config(void **state, const char *const *pairs) {
    /* clang-format off */
    static const char *const tiny[] = {
        "model.d_model", "16",  "model.n_layers", "2",  "model.n_heads", "2",  "model.context", "16",
        "moe.num_experts", "4",  "moe.expert_hidden_size", "8",  "moe.capacity_factor", "1.5",
        "moe.input_jitter_eps", "0.05",  "train.steps", "12",  "train.batch_size", "3",
        "train.grad_accum", "2",  "train.length", "12",  "train.lr", "0.01",
        "train.warmup_steps", "3",  "train.log_every", "2",  "train.eval_every", "4",
        "train.eval_bytes", "200",  "train.save_every", "5",  "train.load_every", "4",
        "train.seed", "7",  NULL
    };
    /* clang-format on */
    moe_lm_config *config;
    moe_error error;
    assert_ok(moe_lm_config_create(&config, &error), &error);
    char *train = train_text(state, "train.txt", TEXT_BYTES, 1),
         *eval = train_text(state, "eval.txt", 500, 2);
    assert_ok(moe_lm_config_set(config, "data.train", train, "test", &error), &error);
    assert_ok(moe_lm_config_set(config, "data.eval", eval, "test", &error), &error);
    free(train);
    free(eval);
    for (const char *const *p = tiny; *p; p += 2)
        assert_ok(moe_lm_config_set(config, p[0], p[1], "test", &error), &error);
    for (const char *const *p = pairs; p && *p; p += 2)
        assert_ok(moe_lm_config_set(config, p[0], p[1], "test", &error), &error);
    return config;
}

/* One sitting of a run. */
static inline train_result train_run(void **state, const train_setup *setup) {
    train_result result = {.status = MOE_OK};
    train_watch watch = {setup, &result};
    moe_error error;
    moe_ctx *ctx;
    const moe_ctx_desc desc = {.size = sizeof desc,
                               .n_threads = setup->threads ? setup->threads : 1,
                               .isa = setup->isa,
                               .log = train_on_log,
                               .log_user = &result,
                               .seed = setup->seed ? setup->seed : 7};
    assert_ok(moe_ctx_create(&desc, &ctx, &error), &error);
    if (setup->kind) assert_int_equal(moe_expert_register(ctx, setup->kind), MOE_OK);
    moe_lm_config *config = train_config(state, setup->pairs);
    char *dir = scratch_path(state, setup->dir);
    const moe_lm_train_options options = {.size = sizeof options,
                                          .run_dir = dir,
                                          .resume = setup->resume,
                                          .move_old = setup->move_old,
                                          .on_progress = train_on_progress,
                                          .should_stop = train_should_stop,
                                          .user = &watch,
                                          .command = setup->command ? setup->command : "test"};
    result.status = moe_lm_train(ctx, config, &options);
    scratch_disk_normal();
    snprintf(result.text, sizeof result.text, "%s", moe_ctx_error(ctx));
    free(dir);
    moe_lm_config_destroy(config);
    moe_ctx_destroy(ctx);
    return result;
}

static inline void train_must(const train_result *result) {
    if (result->status != MOE_OK) fail_msg("%s: %s", moe_status_name(result->status), result->text);
}

static inline void train_must_fail(const train_result *result, moe_status status, const char *words) {
    if (result->status != status || !strstr(result->text, words))
        fail_msg("%s: \"%s\" lacks \"%s\"", moe_status_name(result->status), result->text, words);
}

static inline char *train_read(void **state, const char *name, size_t *bytes) {
    char *path = scratch_path(state, name);
    FILE *file = fopen(path, "rb");
    if (!file) fail_msg("%s is missing", path);
    fseek(file, 0, SEEK_END);
    *bytes = (size_t)ftell(file);
    rewind(file);
    char *data = calloc(*bytes + 1, 1);
    assert_int_equal(fread(data, 1, *bytes, file), *bytes);
    fclose(file);
    free(path);
    return data;
}

static inline bool train_exists(void **state, const char *name) {
    char *path = scratch_path(state, name);
    bool exists = access(path, F_OK) == 0;
    free(path);
    return exists;
}

/* The same bytes in files dir_a/name and dir_b/name. */
static inline void train_same_file(void **state, const char *dir_a, const char *dir_b, const char *name) {
    char a[300], b[300];
    size_t n_a, n_b;
    snprintf(a, sizeof a, "%s/%s", dir_a, name);
    snprintf(b, sizeof b, "%s/%s", dir_b, name);
    char *data_a = train_read(state, a, &n_a), *data_b = train_read(state, b, &n_b);
    if (n_a != n_b || memcmp(data_a, data_b, n_a) != 0) fail_msg("%s and %s differ", a, b);
    free(data_a);
    free(data_b);
}

/* Blanks what the clock wrote into metrics.jsonl. */
static inline void train_blank_times(char *text) {
    static const char *const keys[] = {"\"tokens_per_second\":", "\"elapsed_s\":"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; ++i)
        for (char *at = text; (at = strstr(at, keys[i]));) {
            at += strlen(keys[i]);
            size_t n = strcspn(at, ",}");
            memmove(at, at + n, strlen(at + n) + 1);
        }
}

static inline void train_same_metrics(void **state, const char *dir_a, const char *dir_b) {
    char a[300], b[300];
    size_t n;
    snprintf(a, sizeof a, "%s/metrics.jsonl", dir_a);
    snprintf(b, sizeof b, "%s/metrics.jsonl", dir_b);
    char *text_a = train_read(state, a, &n), *text_b = train_read(state, b, &n);
    train_blank_times(text_a);
    train_blank_times(text_b);
    assert_string_equal(text_a, text_b);
    free(text_a);
    free(text_b);
}

#endif
