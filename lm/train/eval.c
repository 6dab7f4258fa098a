/* eval.c: moe_lm_eval: bits per byte of a text, and eval.json.
 * Every byte is predicted once (score.h); the analysis rides on the same forwards.
 * Source: docs/run-directory.md.
 */
#include "core/status.h"
#include "format/json.h"
#include "model/model.h"
#include "train/analysis.h"
#include "train/data.h"
#include "train/schedule.h"

#include <string.h>

static json_t *baselines_object(const moe_lm_eval_options *options) {
    json_t *object = json_object();
    for (size_t i = 0; i < options->n_baselines; ++i)
        json_object_set_new(object, options->baselines[i].name,
                            json_real(options->baselines[i].bits_per_byte));
    return object;
}

static moe_status write_json(const moe_lm_eval_options *options, const char *text_path,
                             const moe_lm_eval_result *result, const moelm_analysis *analysis,
                             moe_error *error) {
    const char *slash = strrchr(text_path, '/');
    json_t *layers = moelm_analysis_layers(analysis);
    json_t *root = !layers ? NULL
                           : json_pack("{s:i, s:s, s:s, s:I, s:f, s:f, s:o, s:o}", "schema", 1, "checkpoint",
                                       options->checkpoint ? options->checkpoint : "", "text",
                                       slash ? slash + 1 : text_path, "bytes", (json_int_t)result->n_bytes,
                                       "bits_per_byte", result->bits_per_byte, "seconds", result->seconds,
                                       "baselines", baselines_object(options), "layers", layers);
    if (!root)
        return moei_error_set(error, MOE_ERR_ARGUMENT,
                              "%s: cannot be made: out of memory, or a name in it is not UTF-8",
                              options->json_path);
    moe_status status = moei_json_save(options->json_path, root, error);
    json_decref(root);
    return status;
}

static moe_status score_text(moe_lm *lm, const moelm_text *text, const moe_lm_eval_options *options,
                             moelm_analysis *analysis, moe_lm_eval_result *result) {
    int64_t bytes = (int64_t)text->map.bytes;
    if (options->max_bytes >= 2 && bytes > options->max_bytes) bytes = options->max_bytes;
    double bits, start = moelm_seconds();
    MOEI_TRY(moelm_score(lm, text->map.data, bytes, analysis ? moelm_analysis_add : NULL, analysis, &bits));
    *result = (moe_lm_eval_result){.size = sizeof *result,
                                   .n_bytes = bytes,
                                   .bits_per_byte = bits / (double)bytes,
                                   .seconds = moelm_seconds() - start};
    return MOE_OK;
}

static moe_status evaluate(moe_lm *lm, const moelm_text *text, const char *text_path,
                           const moe_lm_eval_options *options, moe_lm_eval_result *result) {
    moe_error error;
    moelm_analysis *analysis = NULL;
    if (options->json_path && moelm_analysis_create(lm, &analysis, &error) != MOE_OK)
        return moelm_fail(lm->ctx, &error);
    moe_status status = score_text(lm, text, options, analysis, result);
    if (status == MOE_OK && analysis && write_json(options, text_path, result, analysis, &error) != MOE_OK)
        status = moelm_fail(lm->ctx, &error);
    moelm_analysis_destroy(analysis);
    return status;
}

moe_status moe_lm_eval(moe_lm *lm, const char *text_path, const moe_lm_eval_options *options,
                       moe_lm_eval_result *result) {
    static const moe_lm_eval_options all = {.size = sizeof all};
    moe_error error;
    moelm_text text;
    moe_lm_eval_result found;
    if (!options) options = &all;
    if (options->size != sizeof *options)
        return moe_ctx_fail(lm->ctx, MOE_ERR_ARGUMENT,
                            "moe_lm_eval_options.size is %zu; set it to sizeof(moe_lm_eval_options) = %zu",
                            options->size, sizeof *options);
    if (moelm_text_open(text_path, "text", 2, &text, &error) != MOE_OK) return moelm_fail(lm->ctx, &error);
    moe_status status = evaluate(lm, &text, text_path, options, &found);
    moelm_text_close(&text);
    if (status == MOE_OK) *result = found;
    return status;
}
