/* snapshot.c: saving and loading where a training run stands.
 * optimizer.safetensors: m.<name>, v.<name>, master.<name> of bf16, of the parameter's shape; trainer.json:
 * see write_state. Source: docs/run-directory.md; directories are published by lm/format/publish.h.
 */
#include "train/snapshot.h"

#include "core/status.h"
#include "format/file.h"
#include "format/json.h"
#include "format/publish.h"
#include "format/safetensors.h"
#include "model/checkpoint.h"
#include "model/checksum.h"
#include "model/model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_BYTES = 160, SCHEMA = 1 };

static moe_status no_memory(const char *path, moe_error *error) {
    return moei_error_set(error, MOE_ERR_MEMORY, "%s: out of memory", path);
}

/* The text of a failure told on the model's context. */
static moe_status from_ctx(const moelm_optimizer *optimizer, moe_status status, moe_error *error) {
    return status == MOE_OK ? MOE_OK : moei_error_set(error, status, "%s", moe_ctx_error(optimizer->ctx));
}

/* 1. The optimizer. */

typedef struct tensor_list {
    moelm_st_tensor *tensor; /* [3 * n] m, v and master of each parameter that is trained */
    char (*name)[NAME_BYTES];
    size_t count;
} tensor_list;

static void tensor_list_free(tensor_list *list) {
    free(list->tensor);
    free(list->name);
}

static void add_state(tensor_list *list, const moe_param *param, const char *prefix, const void *data) {
    char *name = list->name[list->count];
    moelm_st_tensor *tensor = &list->tensor[list->count++];
    snprintf(name, NAME_BYTES, "%s.%s", prefix, param->name);
    tensor->name = name;
    tensor->dtype = param->dtype == MOE_F64 ? MOELM_ST_F64 : MOELM_ST_F32;
    tensor->n_dim = param->n_dim;
    for (int32_t d = 0; d < param->n_dim; ++d) tensor->dim[d] = param->dim[d];
    tensor->data = data;
}

static moe_status tensor_list_make(const moelm_optimizer *optimizer, tensor_list *list, moe_error *error) {
    size_t most = 3 * (size_t)optimizer->count;
    *list =
        (tensor_list){.tensor = calloc(most, sizeof *list->tensor), .name = calloc(most, sizeof *list->name)};
    if (!list->tensor || !list->name) {
        tensor_list_free(list);
        return no_memory("optimizer.safetensors", error);
    }
    for (int32_t i = 0; i < optimizer->count; ++i) {
        const moelm_slot *slot = &optimizer->slot[i];
        if (!slot->m) continue;
        add_state(list, &slot->param, "m", slot->m);
        add_state(list, &slot->param, "v", slot->v);
        if (slot->master) add_state(list, &slot->param, "master", slot->master);
    }
    return MOE_OK;
}

static moe_status write_optimizer(const char *path, const moelm_optimizer *optimizer, moe_error *error) {
    tensor_list list;
    MOEI_TRY(tensor_list_make(optimizer, &list, error));
    moe_status status = moelm_safetensors_write(path, list.tensor, list.count, NULL, 0, error);
    tensor_list_free(&list);
    return status;
}

static moe_status read_tensors(const moelm_safetensors *file, const char *path, const tensor_list *list,
                               moe_error *error) {
    for (size_t i = 0; i < list->count; ++i) {
        const moelm_st_tensor *want = &list->tensor[i], *found;
        MOEI_TRY(moelm_safetensors_get(file, want->name, want->n_dim, want->dim, &found, error));
        if (found->dtype != want->dtype)
            return moei_error_set(error, MOE_ERR_INPUT, "%s: %s is %s, not %s", path, want->name,
                                  moelm_st_dtype_name(found->dtype), moelm_st_dtype_name(want->dtype));
        memcpy((void *)(uintptr_t)want->data, found->data, found->bytes);
    }
    return MOE_OK;
}

static moe_status read_optimizer(const char *path, const moelm_optimizer *optimizer, moe_error *error) {
    tensor_list list;
    moelm_safetensors *file;
    MOEI_TRY(moelm_safetensors_open(path, &file, error));
    moe_status status = tensor_list_make(optimizer, &list, error);
    if (status == MOE_OK) {
        status = read_tensors(file, path, &list, error);
        tensor_list_free(&list);
        for (int32_t i = 0; status == MOE_OK && i < optimizer->count; ++i)
            moelm_optimizer_round(&optimizer->slot[i]);
    }
    moelm_safetensors_close(file);
    return status;
}

/* 2. The model. */

static moe_status copy_params(const char *path, const moe_lm *from, const moelm_optimizer *to,
                              moe_error *error) {
    if (moe_lm_param_count(from) != to->count)
        return moei_error_set(error, MOE_ERR_INPUT, "%s: holds another model (%d parameters, not %d)", path,
                              moe_lm_param_count(from), to->count);
    for (int32_t i = 0; i < to->count; ++i) {
        moe_param source = {.size = sizeof source};
        const moe_param *target = &to->slot[i].param;
        MOEI_TRY(from_ctx(to, moe_lm_param(from, i, &source), error));
        if (!moelm_param_alike(&source, target) || strcmp(source.name, target->name) != 0)
            return moei_error_set(error, MOE_ERR_INPUT, "%s: %s stands where this model has %s", path,
                                  source.name, target->name);
        moelm_param_copy(target, &source);
    }
    return MOE_OK;
}

/* The model is made from the run's settings and only its numbers come from the file: config.json need not
 * know how to train. */
static moe_status read_model(const char *path, const moelm_optimizer *optimizer, moe_error *error) {
    moe_lm *saved;
    const moe_lm_load_desc as_stored = {.size = sizeof as_stored};
    MOEI_TRY(from_ctx(optimizer, moelm_checkpoint_open(optimizer->ctx, path, &as_stored, &saved), error));
    moe_status status = copy_params(path, saved, optimizer, error);
    moe_lm_destroy(saved);
    return status;
}

/* 3. trainer.json. */

static json_t *counts_array(const uint64_t *count, int64_t n) {
    json_t *array = json_array();
    for (int64_t i = 0; i < n; ++i) json_array_append_new(array, json_integer((json_int_t)count[i]));
    return array;
}

static json_t *alarms_object(const moelm_alarms *alarms) {
    return json_pack("{s:o, s:o, s:o}", "silent", counts_array(alarms->silent, alarms->n_experts), "entropy",
                     counts_array(alarms->even, alarms->n_layers), "dropped",
                     counts_array(alarms->dropped, alarms->n_layers));
}

/* Takes `sums`. */
static moe_status write_state(const char *path, const moelm_train_state *s, json_t *sums, moe_error *error) {
    int64_t n = s->interval.first[s->interval.n_layers];
    json_t *eval = isfinite(s->eval_bits_per_byte) ? json_real(s->eval_bits_per_byte) : json_null();
    json_t *root =
        json_pack("{s:i, s:I, s:I, s:I, s:f, s:o, s:b, s:s, s:s, s:{s:o, s:o}, s:o, s:s, s:o}", "schema",
                  SCHEMA, "step", (json_int_t)s->step, "tokens", (json_int_t)s->tokens, "seed",
                  (json_int_t)s->seed, "elapsed_s", s->elapsed_s, "eval_bits_per_byte", eval, "finished",
                  s->finished, "config_sha256", s->config_sha256, "text_sha256", s->text_sha256, "interval",
                  "kept", counts_array(s->interval.kept, n), "dropped", counts_array(s->interval.dropped, n),
                  "alarms", alarms_object(&s->alarms), "isa", s->isa, "sha256", sums);
    if (!root) return no_memory(path, error);
    moe_status status = moelm_json_save(path, root, error);
    json_decref(root);
    return status;
}

static moe_status read_counts(const json_t *object, const char *where, const char *key, uint64_t *count,
                              int64_t n, moe_error *error) {
    json_t *array;
    MOEI_TRY(moelm_json_get_array(object, where, key, &array, error));
    if (json_array_size(array) != (size_t)n)
        return moei_error_set(error, MOE_ERR_INPUT, "%s: %s has %zu entries; this model needs %lld", where,
                              key, json_array_size(array), (long long)n);
    for (int64_t i = 0; i < n; ++i) {
        const json_t *value = json_array_get(array, (size_t)i);
        if (!json_is_integer(value) || json_integer_value(value) < 0)
            return moei_error_set(error, MOE_ERR_INPUT, "%s: %s[%lld] is not a count", where, key,
                                  (long long)i);
        count[i] = (uint64_t)json_integer_value(value);
    }
    return MOE_OK;
}

static moe_status read_interval(const json_t *root, const char *path, moelm_load *interval,
                                moe_error *error) {
    json_t *object;
    int64_t n = interval->first[interval->n_layers];
    MOEI_TRY(moelm_json_get_object(root, path, "interval", &object, error));
    MOEI_TRY(read_counts(object, path, "kept", interval->kept, n, error));
    return read_counts(object, path, "dropped", interval->dropped, n, error);
}

static moe_status read_alarms(const json_t *root, const char *path, const moelm_alarms *alarms,
                              moe_error *error) {
    json_t *object;
    MOEI_TRY(moelm_json_get_object(root, path, "alarms", &object, error));
    MOEI_TRY(read_counts(object, path, "silent", alarms->silent, alarms->n_experts, error));
    MOEI_TRY(read_counts(object, path, "entropy", alarms->even, alarms->n_layers, error));
    return read_counts(object, path, "dropped", alarms->dropped, alarms->n_layers, error);
}

static moe_status check_hash(const json_t *root, const char *path, const char *key, const char *expect,
                             const char *advice, moe_error *error) {
    const char *found;
    MOEI_TRY(moelm_json_get_string(root, path, key, &found, error));
    if (strcmp(found, expect) == 0) return MOE_OK;
    return moei_error_set(error, MOE_ERR_ARGUMENT, "%s: %s", path, advice);
}

/* Vectors of another width add in another order. */
static moe_status check_isa(const json_t *root, const char *path, const moelm_train_state *s,
                            moe_error *error) {
    const char *found;
    MOEI_TRY(moelm_json_get_string(root, path, "isa", &found, error));
    if (s->any_isa || strcmp(found, s->isa) == 0) return MOE_OK;
    return moei_error_set(
        error, MOE_ERR_ARGUMENT,
        "%s: was computed with %s kernels, and these are %s, which round otherwise: run with "
        "MOEKIT_ISA=%s to go on to the bit, or set run.resume_any_isa=true to accept the "
        "difference",
        path, found, s->isa, found);
}

/* Whether it is of this run, this text and these kernels. */
static moe_status check_state(const json_t *root, const char *path, const moelm_train_state *s,
                              moe_error *error) {
    int64_t schema;
    MOEI_TRY(moelm_json_get_int(root, path, "schema", SCHEMA, SCHEMA, &schema, error));
    MOEI_TRY(check_hash(root, path, "config_sha256", s->config_sha256,
                        "was written under other settings than this run's config.resolved.yaml says", error));
    MOEI_TRY(check_hash(
        root, path, "text_sha256", s->text_sha256,
        "was trained on another text or tokenizer; data.train has changed since, or data.tokenizer", error));
    return check_isa(root, path, s, error);
}

static moe_status read_state(const json_t *root, const char *path, moelm_train_state *s, moe_error *error) {
    int64_t seed;
    MOEI_TRY(check_state(root, path, s, error));
    MOEI_TRY(moelm_json_get_int(root, path, "seed", 0, INT64_MAX, &seed, error));
    MOEI_TRY(moelm_json_get_int(root, path, "step", 1, INT64_MAX, &s->step, error));
    MOEI_TRY(moelm_json_get_int(root, path, "tokens", 1, INT64_MAX, &s->tokens, error));
    MOEI_TRY(moelm_json_get_real(root, path, "elapsed_s", &s->elapsed_s, error));
    MOEI_TRY(moelm_json_get_bool(root, path, "finished", &s->finished, error));
    s->eval_bits_per_byte = NAN;
    MOEI_TRY(moelm_json_opt_real(root, path, "eval_bits_per_byte", &s->eval_bits_per_byte, error));
    MOEI_TRY(read_interval(root, path, &s->interval, error));
    return read_alarms(root, path, &s->alarms, error);
}

static moe_status load_state(const char *path, moelm_train_state *state, moe_error *error) {
    json_t *root;
    MOEI_TRY(moelm_json_load(path, &root, error));
    moe_status status = read_state(root, path, state, error);
    json_decref(root);
    return status;
}

/* 4. All of it. */

static moe_status write_files(const char *dir, moe_lm *lm, const moelm_optimizer *optimizer,
                              const moelm_train_state *state, moe_error *error) {
    MOEI_TRY(from_ctx(optimizer, moelm_checkpoint_write(lm, dir), error));
    if (state->tokenizer) MOEI_TRY(moelm_tokens_write(state->tokenizer, dir, error));
    char *moments = moelm_path_join(dir, "optimizer.safetensors"),
         *json = moelm_path_join(dir, "trainer.json");
    moe_status status = moments && json ? MOE_OK : no_memory(dir, error);
    if (status == MOE_OK) status = write_optimizer(moments, optimizer, error);
    json_t *sums;
    if (status == MOE_OK) status = moelm_checksum_make(dir, &sums, error);
    if (status == MOE_OK) status = write_state(json, state, sums, error);
    free(moments);
    free(json);
    return status;
}

moe_status moelm_snapshot_save(const char *path, moe_lm *lm, const moelm_optimizer *optimizer,
                               const moelm_train_state *state, moe_error *error) {
    moelm_publish *publish;
    MOEI_TRY(moelm_publish_begin(path, &publish, error));
    moe_status status = write_files(moelm_publish_path(publish), lm, optimizer, state, error);
    if (status == MOE_OK) return moelm_publish_commit(publish, error);
    moelm_publish_abort(publish);
    return status;
}

moe_status moelm_snapshot_check(const char *path, const moelm_train_state *state, moe_error *error) {
    char *json = moelm_path_join(path, "trainer.json");
    json_t *root = NULL;
    moe_status status = json ? moelm_json_load(json, &root, error) : no_memory(path, error);
    if (status == MOE_OK) status = check_state(root, json, state, error);
    json_decref(root);
    free(json);
    return status;
}

moe_status moelm_snapshot_load(const char *path, const moelm_optimizer *optimizer, moelm_train_state *state,
                               moe_error *error) {
    char *moments = moelm_path_join(path, "optimizer.safetensors");
    char *json = moelm_path_join(path, "trainer.json");
    moe_status status = moments && json ? MOE_OK : no_memory(path, error);
    if (status == MOE_OK) status = load_state(json, state, error);
    if (status == MOE_OK) status = read_model(path, optimizer, error);
    if (status == MOE_OK) status = moelm_checksum_check(path, "optimizer.safetensors", error);
    if (status == MOE_OK) status = read_optimizer(moments, optimizer, error);
    free(moments);
    free(json);
    return status;
}
