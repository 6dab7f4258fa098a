/* train.c: moe_lm_train: everything a run needs, opened in an order that leaves nothing behind on error.
 * Texts, model and memory first; the directory only when they are there.
 * Source: docs/run-directory.md.
 */
#include <moekit/expert.h>
#include <moekit/op.h>

#include "core/ctx.h"
#include "core/status.h"
#include "model/model.h"
#include "train/clock.h"
#include "train/score.h"
#include "train/trainer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *run_path(const moelm_trainer *t) {
    return t->options->run_dir ? t->options->run_dir : t->config->run.dir;
}

/* Whether `inner` lies in the directory `outer`, both as they are on the disk. */
static bool lies_in(const char *outer, const char *inner) {
    char *a = realpath(outer, NULL), *b = realpath(inner, NULL);
    const size_t length = a ? strlen(a) : 0;
    const bool within = a && b && strncmp(a, b, length) == 0 && (b[length] == '/' || b[length] == '\0');
    free(a);
    free(b);
    return within;
}

static moe_status check(moelm_trainer *t) {
    const moe_lm_config *config = t->config;
    if (t->options->resume && t->options->move_old)
        return moei_error_set(
            &t->error, MOE_ERR_ARGUMENT,
            "moe_lm_train_options: resume goes on in the directory that move_old would move");
    if (t->options->move_old && *config->train.from && lies_in(run_path(t), config->train.from))
        return moei_error_set(&t->error, MOE_ERR_ARGUMENT,
                              "train.from: %s lies in %s, which move_old would move; name another run_dir",
                              config->train.from, run_path(t));
    MOEI_TRY(moe_lm_config_check(config, &t->error));
    if (moe_ctx_seed(t->ctx) != (uint64_t)config->train.seed)
        return moei_error_set(&t->error, MOE_ERR_ARGUMENT,
                              "train.seed is %lld, but the context was made with seed %llu; make it with "
                              "that of the configuration",
                              (long long)config->train.seed, (unsigned long long)moe_ctx_seed(t->ctx));
    return MOE_OK;
}

/* The newest checkpoint of a run that goes on, if it has a tokenizer; else "". */
static const char *kept_tokenizer(const moelm_trainer *t, char *path, size_t size) {
    const bool there = t->options->resume &&
                       moe_lm_newest_checkpoint(run_path(t), path, size, NULL) == MOE_OK &&
                       moelm_tokens_there(path);
    if (!there) path[0] = '\0';
    return path;
}

static moe_status check_vocabulary(moelm_trainer *t, const char *path) {
    const int32_t vocab = t->config->model.vocab_size;
    const int32_t known = *path ? moe_tokenizer_vocab_size(t->tokenizer.tokenizer) : 256;
    if (*path ? known <= vocab : known == vocab) return MOE_OK;
    if (*path)
        return moei_error_set(&t->error, MOE_ERR_ARGUMENT,
                              "model.vocab_size: %d, but the tokenizer of %s has %d; set %d or more", vocab,
                              path, known, known);
    return moei_error_set(
        &t->error, MOE_ERR_ARGUMENT,
        "model.vocab_size: %d, but a text is bytes, of which there are 256; data.tokenizer names a "
        "tokenizer",
        vocab);
}

/* Whether the tokenizer at `path` is the run's. */
static moe_status compare_tokenizer(const moelm_trainer *t, const char *path, bool *same, moe_error *error) {
    moelm_tokens other;
    MOEI_TRY(moelm_tokens_open(path, "data.tokenizer", &other, error));
    *same = strcmp(other.sha256, t->tokenizer.sha256) == 0;
    moelm_tokens_close(&other);
    return MOE_OK;
}

/* The tokenizer that a run keeps is the one that its settings name, if that is still there. */
static moe_status check_same_tokenizer(moelm_trainer *t, const char *kept) {
    const char *named = t->config->data.tokenizer;
    bool same;
    if (!*named || !*kept || !moelm_file_exists(named)) return MOE_OK;
    MOEI_TRY(compare_tokenizer(t, named, &same, &t->error));
    if (same) return MOE_OK;
    return moei_error_set(&t->error, MOE_ERR_ARGUMENT,
                          "data.tokenizer: %s is not the tokenizer that the run began with, which is in %s",
                          named, kept);
}

/* A run goes on with the tokenizer that it keeps. One that begins has that of the settings, or of the
 * checkpoint it begins with. */
static moe_status open_tokenizer(moelm_trainer *t) {
    char kept[4096];
    const char *named = t->config->data.tokenizer, *from = t->config->train.from;
    const char *path = kept_tokenizer(t, kept, sizeof kept);
    if (!*path) path = *named ? named : *from && moelm_tokens_there(from) ? from : "";
    if (*path) MOEI_TRY(moelm_tokens_open(path, "data.tokenizer", &t->tokenizer, &t->error));
    MOEI_TRY(check_vocabulary(t, path));
    return check_same_tokenizer(t, kept);
}

static moe_status open_texts(moelm_trainer *t) {
    const moelm_data_config *data = &t->config->data;
    const int64_t length = t->length + 1, eval_bytes = t->config->train.eval_bytes;
    const moe_tokenizer *tokenizer = t->tokenizer.tokenizer;
    const moelm_reader train = {.tokenizer = tokenizer, .least_tokens = length};
    const moelm_reader eval = {
        .tokenizer = tokenizer, .most_bytes = eval_bytes, .least_tokens = 2, .begins = true};
    MOEI_TRY(moelm_text_open(data->train, "data.train", tokenizer ? 1 : length, &t->train, &t->error));
    if (tokenizer) MOEI_TRY(moelm_text_tokenize(&t->train, &train, "data.train", &t->error));
    if (data->eval[0] == '\0') return MOE_OK;
    MOEI_TRY(moelm_text_open(data->eval, "data.eval", 2, &t->eval, &t->error));
    return tokenizer ? moelm_text_tokenize(&t->eval, &eval, "data.eval", &t->error) : MOE_OK;
}

/* Sequences at once, and the words of who wants them and has not the memory. */
typedef struct extent {
    int64_t n_seq, length;
    const char *what, *advice;
} extent;

/* Told before the machine begins to swap, or its system to kill: memory that is promised need not be there.
 */
static moe_status check_room(moelm_trainer *t, const extent *e) {
    moe_lm_info info = {.size = sizeof info};
    size_t bytes;
    MOEI_TRY(moelm_trainer_ctx(t, moe_lm_get_info(t->lm, &info)));
    MOEI_TRY(moelm_trainer_ctx(t, moe_lm_measure(t->lm, e->n_seq, e->length, MOE_TRAIN, &bytes)));
    /* moments and masters, and until the first step what train.from names */
    const moe_dtype dtype = moelm_config_dtype(t->config);
    const size_t each = (dtype == MOE_BF16 ? 12 : 8) + (t->from[0] ? moe_dtype_bytes(dtype) : 0);
    const size_t model = each + moe_dtype_bytes(dtype) + sizeof(float); /* values and gradients too */
    const double need = (double)bytes + (double)each * (double)info.params_total,
                 least = (double)model * (double)info.params_total;
    const double have = moe_machine_memory();
    moelm_pretend_reserved(t->lm, e->n_seq, e->length, MOE_TRAIN);
    if (have == 0 || need <= have) return MOE_OK;
    if (least > have)
        return moei_error_set(
            &t->error, MOE_ERR_MEMORY,
            "model.*: training %.1f G parameters, with their gradients and moments, takes %.1f GiB, and this "
            "machine has %.1f; lower model.d_model, model.n_layers, moe.num_experts or "
            "moe.expert_hidden_size",
            (double)info.params_total * 1e-9, least * 0x1p-30, have * 0x1p-30);
    return moei_error_set(
        &t->error, MOE_ERR_MEMORY,
        "%s %lld sequences of %lld tokens at once takes %.1f GiB, and this machine has %.1f; %s", e->what,
        (long long)e->n_seq, (long long)e->length, need * 0x1p-30, have * 0x1p-30, e->advice);
}

static moe_status reserve(moelm_trainer *t, const extent *e) {
    return moelm_trainer_ctx(t, moe_lm_reserve(t->lm, e->n_seq, e->length, MOE_TRAIN));
}

/* Does `work` for a batch, and for what evaluation takes beyond it: a run that has begun needs no more
 * memory.
 */
static moe_status for_extents(moelm_trainer *t, moe_status (*work)(moelm_trainer *, const extent *)) {
    const extent batch = {t->config->train.batch_size, t->length, "train.batch_size: training on",
                          "lower it, train.length or the model"};
    MOEI_TRY(work(t, &batch));
    if (!t->eval.map.data) return MOE_OK;
    const moelm_reading text = moelm_trainer_eval_text(t);
    const moelm_windows w = moelm_windows_of(&text, t->config->model.context);
    const extent windows = {moelm_score_sequences(t->lm, w.length), w.length,
                            "data.eval: training, and evaluating",
                            "lower model.context or the model, or name no data.eval"};
    return work(t, &windows);
}

/* Before a number is drawn: whether there is room, by the model's shapes. */
static moe_status check_size(moelm_trainer *t, moe_lm_info *info) {
    MOEI_TRY(moelm_trainer_ctx(t, moelm_create_shapes(t->ctx, t->config, &t->lm)));
    moe_status status = for_extents(t, check_room);
    if (status == MOE_OK && info) status = moelm_trainer_ctx(t, moe_lm_get_info(t->lm, info));
    moe_lm_destroy(t->lm);
    t->lm = NULL;
    return status;
}

static moe_status make_model(moelm_trainer *t) {
    MOEI_TRY(check_size(t, NULL));
    MOEI_TRY(moelm_trainer_ctx(t, moe_lm_create(t->ctx, t->config, &t->lm)));
    MOEI_TRY(for_extents(t, reserve));
    return moelm_trainer_ctx(t, moelm_optimizer_create(t->ctx, t->lm, &t->optimizer));
}

moe_status moelm_trainer_begin(moelm_trainer *t) {
    if (t->from[0] == '\0') return MOE_OK;
    MOEI_TRY(moelm_trainer_ctx(t, moelm_init_from(t->lm, t->from, t->told, sizeof t->told)));
    moelm_optimizer_take_masters(&t->optimizer);
    t->began_from = true;
    return MOE_OK;
}

static moe_status make_buffers(moelm_trainer *t) {
    size_t rows = (size_t)(t->config->train.batch_size * t->length);
    MOEI_TRY(moelm_load_create(t->lm, &t->load, &t->error));
    MOEI_TRY(moelm_load_create(t->lm, &t->state.interval, &t->error));
    MOEI_TRY(moelm_alarms_create(&t->load, &t->state.alarms, &t->error));
    t->tokens = malloc(rows * sizeof *t->tokens);
    t->targets = malloc(rows * sizeof *t->targets);
    t->router = calloc((size_t)t->load.n_layers, sizeof *t->router);
    if (t->tokens && t->targets && t->router) return MOE_OK;
    return moei_error_set(&t->error, MOE_ERR_MEMORY, "no memory for a batch of %zu tokens", rows);
}

/* What a checkpoint must have in common with this sitting. */
static moe_status identify(moelm_trainer *t) {
    t->state.seed = t->config->train.seed;
    t->state.eval_bits_per_byte = NAN;
    t->state.isa = moe_ctx_isa(t->ctx);
    t->state.any_isa = t->config->run.resume_any_isa;
    t->state.tokenizer = &t->tokenizer;
    memcpy(t->state.text_sha256, t->train.sha256, sizeof t->state.text_sha256);
    if (t->tokenizer.tokenizer) {
        char both[2 * MOELM_SHA256_TEXT];
        snprintf(both, sizeof both, "%s%s", t->train.sha256, t->tokenizer.sha256);
        moelm_sha256(both, strlen(both), t->state.text_sha256);
    }
    return moelm_config_hash(t->config, t->state.config_sha256, &t->error);
}

static moe_status settle(moelm_trainer *t, bool begun, char *event, size_t size) {
    moelm_run_facts facts = {.ctx = t->ctx,
                             .config = t->config,
                             .command = t->options->command,
                             .train = &t->train,
                             .eval = t->eval.map.data ? &t->eval : NULL,
                             .tokens = &t->tokenizer,
                             .info = {.size = sizeof facts.info}};
    moe_lm_get_info(t->lm, &facts.info);
    MOEI_TRY(identify(t));
    if (!begun) {
        if (t->options->resume) {
            MOEI_TRY(moelm_trainer_begin(t));
            snprintf(event, size, "resume: no run is in %s yet, from the start", t->dir.path);
        }
        return moelm_run_dir_describe(&t->dir, &facts, &t->error);
    }
    MOEI_TRY(moelm_run_dir_check_config(&t->dir, t->config, t->from, &t->error));
    return moelm_trainer_resume(t, event, size);
}

/* To who watches, and in main.log, where there is a run. */
static moe_status warn(moelm_trainer *t, const char *text) {
    char line[MOELM_TOLD + MOELM_PATH + 20];
    snprintf(line, sizeof line, "warning: %s", text);
    moei_log(t->ctx, MOE_LOG_WARN, "%s", text);
    if (!t->log) return MOE_OK;
    return moelm_run_log_say(t->log, line, &t->error);
}

/* What is allowed and may mislead. */
static moe_status warn_of_settings(moelm_trainer *t) {
    const moelm_train_config *train = &t->config->train;
    const char *foresight = moe_lm_config_foresight(t->config);
    char text[500];
    if (t->eval.map.data && strcmp(t->train.sha256, t->eval.sha256) == 0)
        MOEI_TRY(warn(t, "data.eval and data.train are the same text: nothing is held out, and evaluation "
                         "tells how well it is known by heart"));
    if (foresight) {
        snprintf(text, sizeof text, MOELM_FORESIGHT, foresight);
        MOEI_TRY(warn(t, text));
    }
    if (train->warmup_steps <= train->steps) return MOE_OK;
    snprintf(
        text, sizeof text,
        "train.warmup_steps is %lld and train.steps %lld: the learning rate rises to %.0f %% of train.lr "
        "and no further",
        (long long)train->warmup_steps, (long long)train->steps,
        100 * (double)train->steps / (double)train->warmup_steps);
    return warn(t, text);
}

/* The last step up to the one that the run stands at which had a held-out figure; 0: none. */
static int64_t eval_step(const moelm_trainer *t) {
    const int64_t step = t->state.step, every = t->config->train.eval_every;
    if (!isfinite(t->state.eval_bits_per_byte)) return 0;
    return t->state.finished || every == 0 ? step : step - step % every;
}

static void start_progress(moelm_trainer *t) {
    t->clock_start = moelm_seconds();
    t->elapsed_before = t->state.elapsed_s;
    t->progress = (moe_lm_progress){.size = sizeof t->progress,
                                    .step = t->state.step,
                                    .steps = t->config->train.steps,
                                    .tokens = t->state.tokens,
                                    .loss = NAN,
                                    .aux_loss = NAN,
                                    .z_loss = NAN,
                                    .lr = NAN,
                                    .grad_norm = NAN,
                                    .elapsed_s = t->state.elapsed_s,
                                    .eval_bits_per_byte = t->state.eval_bits_per_byte,
                                    .eval_step = eval_step(t)};
}

static moe_status prepare(moelm_trainer *t) {
    MOEI_TRY(check(t));
    memcpy(t->from, t->config->train.from, sizeof t->from);
    t->length = moelm_config_length(t->config);
    return open_tokenizer(t);
}

static moelm_claim claim_of(const moelm_trainer *t) {
    return t->options->resume     ? MOELM_CLAIM_RESUME
           : t->options->move_old ? MOELM_CLAIM_MOVE_OLD
                                  : MOELM_CLAIM_NEW;
}

/* Embeddings are of the tokens they were trained on: another tokenizer's mean something else. */
static moe_status warn_of_tokenizer(moelm_trainer *t) {
    char text[MOELM_TOLD + MOELM_PATH];
    bool same = false; /* also where the other cannot be read */
    const char *named = t->config->data.tokenizer;
    if (!*named || !moelm_tokens_there(t->from)) return MOE_OK;
    if (compare_tokenizer(t, t->from, &same, NULL) == MOE_OK && same) return MOE_OK;
    snprintf(text, sizeof text,
             "data.tokenizer: %.700s is not the tokenizer of %s, so embeddings may be of other tokens", named,
             t->from);
    return warn(t, text);
}

/* Where a run began with parameters of another. */
static moe_status tell_origin(moelm_trainer *t) {
    char text[MOELM_TOLD + MOELM_PATH];
    snprintf(text, sizeof text, "begin %s", t->from);
    MOEI_TRY(moelm_trainer_event(t, text));
    snprintf(text, sizeof text, "%s: %s", t->from, t->told);
    if (t->told[0] != '\0') MOEI_TRY(warn(t, text));
    return warn_of_tokenizer(t);
}

static moe_status train(moelm_trainer *t) {
    char event[4200] = "";
    bool begun = false;
    MOEI_TRY(prepare(t));
    MOEI_TRY(open_texts(t));
    MOEI_TRY(make_model(t));
    MOEI_TRY(make_buffers(t));
    if (!t->options->resume) MOEI_TRY(moelm_trainer_begin(t));
    MOEI_TRY(moelm_run_dir_claim(run_path(t), claim_of(t), &t->dir, &begun, &t->error));
    if (t->dir.old) snprintf(event, sizeof event, "moved what was there to %s", t->dir.old);
    MOEI_TRY(settle(t, begun, event, sizeof event));
    MOEI_TRY(moelm_run_log_open(t->dir.path, t->state.step, &t->load, &t->log, &t->error));
    if (!begun) MOEI_TRY(warn_of_settings(t));
    start_progress(t);
    if (event[0] != '\0') MOEI_TRY(moelm_trainer_event(t, event));
    if (t->began_from) MOEI_TRY(tell_origin(t));
    return moelm_trainer_run(t);
}

/* What `from` names fits into the model, or is refused as training would refuse it. */
static moe_status check_from(moelm_trainer *t) {
    if (t->from[0] == '\0' || t->options->resume) return MOE_OK;
    MOEI_TRY(moelm_trainer_ctx(t, moelm_create(t->ctx, t->config, false, &t->lm)));
    return moelm_trainer_ctx(t, moelm_init_from(t->lm, t->from, t->told, sizeof t->told));
}

static moe_status check_begun(moelm_trainer *t) {
    if (!t->options->resume) return MOE_OK;
    MOEI_TRY(moelm_run_dir_check_begun(run_path(t), t->config, &t->error));
    MOEI_TRY(identify(t));
    return moelm_trainer_check_resume(t, run_path(t));
}

static moe_status look(moelm_trainer *t, moe_lm_info *info) {
    MOEI_TRY(prepare(t));
    if (t->config->data.train[0] != '\0') MOEI_TRY(open_texts(t));
    MOEI_TRY(moelm_run_dir_check_claim(run_path(t), claim_of(t), &t->error));
    MOEI_TRY(check_begun(t));
    MOEI_TRY(check_size(t, info));
    MOEI_TRY(check_from(t));
    return warn_of_settings(t);
}

static void close_all(moelm_trainer *t) {
    moelm_run_log_close(t->log);
    moelm_run_dir_release(&t->dir);
    free(t->router);
    free(t->targets);
    free(t->tokens);
    moelm_alarms_destroy(&t->state.alarms);
    moelm_load_destroy(&t->state.interval);
    moelm_load_destroy(&t->load);
    moelm_optimizer_destroy(&t->optimizer);
    moe_lm_destroy(t->lm);
    moelm_text_close(&t->eval);
    moelm_text_close(&t->train);
    moelm_tokens_close(&t->tokenizer);
}

static moe_status closed(moelm_trainer *t, moe_status status) {
    close_all(t);
    return status == MOE_OK ? MOE_OK : moe_ctx_fail(t->ctx, status, "%s", t->error.text);
}

moe_status moe_lm_train(moe_ctx *ctx, const moe_lm_config *config, const moe_lm_train_options *options) {
    MOEI_TRY(moei_ctx_need(ctx, "moe_lm_train", "config", config));
    moe_lm_train_options ours;
    moelm_trainer t = {.ctx = ctx, .config = config, .options = &ours, .dir = {.lock = -1}};
    MOEI_TRY(moei_ctx_desc_read(ctx, &ours, sizeof ours, options, "moe_lm_train_options"));
    return closed(&t, train(&t));
}

moe_status moe_lm_train_check(moe_ctx *ctx, const moe_lm_config *config, const moe_lm_train_options *options,
                              moe_lm_info *info) {
    MOEI_TRY(moei_ctx_need(ctx, "moe_lm_train_check", "config", config));
    moe_lm_train_options ours;
    moe_lm_info found = {.size = sizeof found};
    moelm_trainer t = {.ctx = ctx, .config = config, .options = &ours, .dir = {.lock = -1}};
    MOEI_TRY(moei_ctx_desc_read(ctx, &ours, sizeof ours, options, "moe_lm_train_options"));
    MOEI_TRY(moei_ctx_desc_check_out(ctx, info, sizeof *info, "moe_lm_info"));
    MOEI_TRY(closed(&t, look(&t, &found)));
    return moei_ctx_desc_write(ctx, info, &found, sizeof found, "moe_lm_info");
}
