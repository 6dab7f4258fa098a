/* eval.c: moe_lm_eval: bits per byte of a text, eval.json and route traces.
 * Every token is predicted once (score.h); analysis and traces ride on the same forwards.
 * Source: docs/run-directory.md, docs/routes.md.
 */
#include "core/ctx.h"
#include "format/file.h"
#include "format/json.h"
#include "model/model.h"
#include "train/analysis.h"
#include "train/clock.h"
#include "train/data.h"
#include "train/routes.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WINDOW = 4096 }; /* tokens: memory of a window grows with it, and long contexts would ask for all */

static json_t *baselines_object(const moe_lm_eval_options *options) {
    json_t *object = json_object();
    for (size_t i = 0; i < options->n_baselines; ++i)
        json_object_set_new(object, options->baselines[i].name,
                            json_real(options->baselines[i].bits_per_byte));
    return object;
}

/* The texts of eval.json name files without their folders; NULL stays NULL. */
static const char *last_name(const char *path) {
    const char *slash = path ? strrchr(path, '/') : NULL;
    return slash ? slash + 1 : path;
}

static moe_status write_json(const moe_lm *lm, const moe_lm_eval_options *options, const char *text_path,
                             const char *sha256, const moe_lm_eval_result *result,
                             const moelm_analysis *analysis, moe_error *error) {
    json_t *layers = moelm_analysis_layers(analysis);
    const char *foresight = moe_lm_config_foresight(lm->config);
    json_t *root =
        !layers ? NULL
                : json_pack("{s:i, s:s, s:s, s:s, s:s?, s:s?, s:I, s:f, s:f, s:o, s:o}", "schema", 1,
                            "checkpoint", options->checkpoint ? options->checkpoint : "", "text",
                            last_name(text_path), "text_sha256", sha256, "replayed_routes",
                            last_name(options->replay_routes), "foresight", foresight, "bytes",
                            (json_int_t)result->n_bytes, "bits_per_byte", result->bits_per_byte, "seconds",
                            result->seconds, "baselines", baselines_object(options), "layers", layers);
    if (root && options->tokenizer) {
        json_object_set_new(root, "tokens", json_integer((json_int_t)result->n_tokens));
        json_object_set_new(root, "perplexity", json_real(result->perplexity));
    }
    if (!root)
        return moei_error_set(error, MOE_ERR_ARGUMENT,
                              "%s: cannot be made: out of memory, or a name in it is not UTF-8",
                              options->json_path);
    moe_status status = moelm_json_save(options->json_path, root, error);
    json_decref(root);
    return status;
}

/* What one evaluation holds together. */
typedef struct evaluation {
    moe_lm *lm;
    const moe_lm_eval_options *options;
    moelm_text *text;
    moelm_reading reading; /* of its first `bytes` */
    int64_t bytes, window;
    moelm_routes_text routes_text;
    moelm_analysis *analysis;      /* NULL: none */
    moelm_routes recorded, replay; /* layer NULL: not asked for */
    moe_error error;
} evaluation;

static moe_status on_windows(void *user, moe_lm *lm, const moelm_windows *windows) {
    evaluation *e = user;
    const int64_t last = windows->first + windows->n_seq - 1;
    const int64_t done = 1 + moelm_window_start(windows, last) + windows->length;
    if (e->analysis) MOEI_TRY(moelm_analysis_add(e->analysis, lm, windows));
    if (e->recorded.layer) MOEI_TRY(moelm_routes_add(&e->recorded, lm, windows));
    if (e->options->on_progress)
        e->options->on_progress(
            e->options->user,
            e->reading.ids ? (int64_t)((double)done / (double)e->reading.n * (double)e->bytes) : done,
            e->bytes);
    return MOE_OK;
}

/* Passes a failure on to the model's context. */
static moe_status told(evaluation *e, moe_status status) {
    return status == MOE_OK ? MOE_OK : moelm_fail(e->lm->ctx, &e->error);
}

static moe_status read_text(evaluation *e) {
    const moe_lm_eval_options *options = e->options;
    const moelm_reader reader = {
        .tokenizer = options->tokenizer, .most_bytes = options->max_bytes, .least_tokens = 2, .begins = true};
    const bool ids = options->tokenizer != NULL;
    if (ids) MOEI_TRY(told(e, moelm_text_tokenize(e->text, &reader, "text", &e->error)));
    e->reading = moelm_text_reading(e->text, options->max_bytes);
    e->bytes = ids ? e->text->n_bytes : e->reading.n;
    e->window = e->lm->context;
    if (ids && options->window == 0 && e->window > WINDOW) e->window = WINDOW;
    if (options->window > 0 && e->window > options->window) e->window = options->window;
    return MOE_OK;
}

static moe_status prepare(evaluation *e) {
    const moe_lm_eval_options *options = e->options;
    MOEI_TRY(read_text(e));
    const moelm_windows w = moelm_windows_of(&e->reading, e->window);
    const moelm_routes_text *routes = &e->routes_text;
    e->routes_text = (moelm_routes_text){e->text->sha256, e->bytes, w.length, w.n_windows};
    if (options->json_path)
        MOEI_TRY(told(e, moelm_analysis_create(e->lm, options->tokenizer, &e->analysis, &e->error)));
    if (options->record_routes)
        MOEI_TRY(told(e, moelm_routes_create(e->lm, routes, &e->recorded, &e->error)));
    if (!options->replay_routes) return MOE_OK;
    return told(e, moelm_routes_load(options->replay_routes, e->lm, routes, &e->replay, &e->error));
}

/* What a layer says of the experts that it was to replay is a fault of their file. */
static moe_status blame_trace(const evaluation *e, moe_status status) {
    const char *path = e->options->replay_routes;
    const char *text = moe_ctx_error(e->lm->ctx);
    if (status != MOE_ERR_ARGUMENT || !path || strncmp(text, "replay_", strlen("replay_")) != 0)
        return status;
    moe_error found;
    moei_error_set(&found, status, "%s", text);
    return moe_ctx_fail(e->lm->ctx, MOE_ERR_INPUT, "%s: %s", path, found.text);
}

static moe_status evaluate(evaluation *e, const char *text_path, moe_lm_eval_result *result) {
    const moe_lm_eval_options *options = e->options;
    MOEI_TRY(prepare(e));
    const moelm_score_hooks hooks = {e->replay.layer, on_windows, e};
    const int64_t tokens = e->reading.n - e->reading.begun;
    double bits, start = moelm_seconds();
    MOEI_TRY(blame_trace(e, moelm_score(e->lm, &e->reading, e->window, &hooks, &bits)));
    *result = (moe_lm_eval_result){.size = sizeof *result,
                                   .n_bytes = e->bytes,
                                   .bits_per_byte = bits / (double)e->bytes,
                                   .seconds = moelm_seconds() - start,
                                   .n_tokens = tokens,
                                   .perplexity = exp2(bits / (double)tokens)};
    if (e->analysis)
        MOEI_TRY(
            told(e, write_json(e->lm, options, text_path, e->text->sha256, result, e->analysis, &e->error)));
    if (!options->record_routes) return MOE_OK;
    return told(e, moelm_routes_save(&e->recorded, options->record_routes, &e->routes_text, &e->error));
}

static moe_status check_baselines(moe_lm *lm, const moe_lm_eval_options *options) {
    if (options->n_baselines > 0)
        MOEI_TRY(moei_ctx_need(lm->ctx, "moe_lm_eval", "baselines", options->baselines));
    for (size_t i = 0; i < options->n_baselines; ++i) {
        const moe_lm_baseline *b = &options->baselines[i];
        if (!b->name)
            return moe_ctx_fail(lm->ctx, MOE_ERR_ARGUMENT, "moe_lm_eval: baselines[%zu].name is NULL", i);
        if (!isfinite(b->bits_per_byte))
            return moe_ctx_fail(lm->ctx, MOE_ERR_ARGUMENT,
                                "moe_lm_eval: baselines[%zu], %.40s, has %g bits per byte; leave it out", i,
                                b->name, b->bits_per_byte);
    }
    return MOE_OK;
}

/* A file of the checkpoint, whatever its name. */
static bool is_of_checkpoint(const char *path, const char *checkpoint) {
    char *parent = checkpoint && moelm_file_exists(path) ? moelm_path_parent(path) : NULL;
    const bool same = parent && moelm_path_same(parent, checkpoint);
    free(parent);
    return same;
}

/* What is written replaces nothing that is read. */
static moe_status check_output(moe_lm *lm, const char *path, const char *text_path,
                               const moe_lm_eval_options *options) {
    if (!path) return MOE_OK;
    const char *replay = options->replay_routes;
    const char *what = moelm_path_same(path, text_path)              ? "the text"
                       : replay && moelm_path_same(path, replay)     ? "the route trace that is replayed"
                       : is_of_checkpoint(path, options->checkpoint) ? "a file of the checkpoint"
                                                                     : NULL;
    if (!what) return MOE_OK;
    return moe_ctx_fail(lm->ctx, MOE_ERR_ARGUMENT, "%s: is %s, which would be lost; name another file", path,
                        what);
}

static moe_status check_outputs(moe_lm *lm, const char *text_path, const moe_lm_eval_options *options) {
    const char *json = options->json_path, *routes = options->record_routes;
    MOEI_TRY(check_output(lm, json, text_path, options));
    MOEI_TRY(check_output(lm, routes, text_path, options));
    if (!json || !routes || !moelm_path_same(json, routes)) return MOE_OK;
    return moe_ctx_fail(lm->ctx, MOE_ERR_ARGUMENT,
                        "%s: takes either the analysis or the route trace; name a file for each", json);
}

static moe_status check_vocabulary(const moe_lm *lm, const moe_tokenizer *tokenizer) {
    const long long vocab = (long long)lm->vocab;
    if (!tokenizer && vocab != 256)
        return moe_ctx_fail(
            lm->ctx, MOE_ERR_UNSUPPORTED,
            "the model has %lld tokens: without a tokenizer a text can be evaluated for models "
            "of bytes, which have 256",
            vocab);
    if (!tokenizer || moe_tokenizer_vocab_size(tokenizer) <= vocab) return MOE_OK;
    return moe_ctx_fail(lm->ctx, MOE_ERR_INPUT,
                        "the tokenizer has %d tokens and the model %lld: it is another model's",
                        moe_tokenizer_vocab_size(tokenizer), vocab);
}

moe_status moe_lm_eval(moe_lm *lm, const char *text_path, const moe_lm_eval_options *options,
                       moe_lm_eval_result *result) {
    if (!lm) return MOE_ERR_ARGUMENT;
    MOEI_TRY(moei_ctx_need(lm->ctx, "moe_lm_eval", "text_path", text_path));
    static const moe_lm_eval_options all = {.size = sizeof all};
    moe_error error;
    moelm_text text;
    moe_lm_eval_options ours;
    moe_lm_eval_result found;
    MOEI_TRY(
        moei_ctx_desc_read(lm->ctx, &ours, sizeof ours, options ? options : &all, "moe_lm_eval_options"));
    MOEI_TRY(moei_ctx_desc_check_out(lm->ctx, result, sizeof *result, "moe_lm_eval_result"));
    if (ours.max_bytes < 0 || ours.max_bytes == 1)
        return moe_ctx_fail(lm->ctx, MOE_ERR_ARGUMENT,
                            "moe_lm_eval_options.max_bytes is %lld; it is 2 or more, or 0 for the whole text",
                            (long long)ours.max_bytes);
    if (ours.window < 0)
        return moe_ctx_fail(lm->ctx, MOE_ERR_ARGUMENT,
                            "moe_lm_eval_options.window is %lld; it is 1 token or more, or 0",
                            (long long)ours.window);
    MOEI_TRY(check_vocabulary(lm, ours.tokenizer));
    MOEI_TRY(check_baselines(lm, &ours));
    MOEI_TRY(check_outputs(lm, text_path, &ours));
    if (moelm_text_open(text_path, "text", 2, &text, &error) != MOE_OK) return moelm_fail(lm->ctx, &error);
    evaluation e = {.lm = lm, .options = &ours, .text = &text};
    moe_status status = evaluate(&e, text_path, &found);
    moelm_routes_destroy(&e.replay);
    moelm_routes_destroy(&e.recorded);
    moelm_analysis_destroy(e.analysis);
    moelm_text_close(&text);
    MOEI_TRY(status);
    return moei_ctx_desc_write(lm->ctx, result, &found, sizeof found, "moe_lm_eval_result");
}
