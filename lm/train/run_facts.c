/* run_facts.c: config.resolved.yaml and run.json: what a run was made from, on what machine.
 * run.json first, so that a directory with settings in it is described.
 * Source: docs/run-directory.md.
 */
#include "config/config.h"
#include "core/status.h"
#include "core/thread.h"
#include "format/json.h"
#include "train/run_dir.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

static json_t *host_object(const moe_ctx *ctx) {
    char cpu[256];
    moe_cpu_name(cpu, sizeof cpu);
    struct utsname system;
    if (uname(&system) != 0) memset(&system, 0, sizeof system);
    json_int_t memory = (json_int_t)sysconf(_SC_PHYS_PAGES) * (json_int_t)sysconf(_SC_PAGESIZE);
    return json_pack("{s:s, s:s, s:s, s:i, s:s, s:s, s:i, s:I}", "system", system.sysname, "release",
                     system.release, "machine", system.machine, "cores", moei_thread_cores(), "cpu", cpu,
                     "isa", moe_ctx_isa(ctx), "threads", moe_ctx_threads(ctx), "memory_bytes", memory);
}

static json_t *input_object(const char *key, const char *path, const moelm_text *text) {
    json_t *input = json_pack("{s:s, s:s, s:I, s:s}", "key", key, "path", path, "bytes",
                              (json_int_t)text->map.bytes, "sha256", text->sha256);
    if (text->tokens.ids)
        json_object_set_new(input, "bytes_per_token",
                            json_real((double)text->n_bytes / (double)text->n_tokens));
    return input;
}

/* The checkpoint that the run begins with: its file of tensors, or, of shards, the index. */
static moe_status add_checkpoint(json_t *inputs, const char *from, moe_error *error) {
    char path[MOELM_PATH + 40];
    moelm_text text;
    if (*from == '\0') return MOE_OK;
    snprintf(path, sizeof path, "%s/model.safetensors", from);
    if (access(path, F_OK) != 0) snprintf(path, sizeof path, "%s/model.safetensors.index.json", from);
    MOEI_TRY(moelm_text_open(path, "train.from", 1, &text, error));
    json_array_append_new(inputs, input_object("train.from", path, &text));
    moelm_text_close(&text);
    return MOE_OK;
}

static json_t *run_object(const moelm_run_facts *facts) {
    const moe_lm_config *config = facts->config;
    char now[32] = "";
    time_t seconds = time(NULL);
    struct tm utc;
    if (gmtime_r(&seconds, &utc)) strftime(now, sizeof now, "%Y-%m-%dT%H:%M:%SZ", &utc);
    json_t *inputs = json_array();
    json_array_append_new(inputs, input_object("data.train", config->data.train, facts->train));
    if (facts->eval) json_array_append_new(inputs, input_object("data.eval", config->data.eval, facts->eval));
    if (facts->tokens->tokenizer)
        json_array_append_new(inputs, json_pack("{s:s, s:s, s:s}", "key", "data.tokenizer", "path",
                                                facts->tokens->path, "sha256", facts->tokens->sha256));
    return json_pack("{s:i, s:s, s:s, s:s, s:I, s:o, s:o, s:{s:I, s:I}}", "schema", 1, "version",
                     moe_version_string(), "command", facts->command ? facts->command : "", "started", now,
                     "seed", (json_int_t)config->train.seed, "host", host_object(facts->ctx), "inputs",
                     inputs, "parameters", "total", (json_int_t)facts->info.params_total, "active",
                     (json_int_t)facts->info.params_active);
}

moe_status moelm_run_dir_describe(const moelm_run_dir *dir, const moelm_run_facts *facts, moe_error *error) {
    char *run = moelm_path_join(dir->path, "run.json");
    char *settings = moelm_path_join(dir->path, "config.resolved.yaml");
    json_t *root = run_object(facts);
    moe_status status = MOE_OK;
    if (!run || !settings) status = moei_error_set(error, MOE_ERR_MEMORY, "%s: out of memory", dir->path);
    /* json_pack refuses text that is not UTF-8, which a path or a command may hold */
    else if (!root)
        status =
            moei_error_set(error, MOE_ERR_ARGUMENT,
                           "%s: a path or the command line is not UTF-8, so run.json cannot hold it", run);
    if (status == MOE_OK)
        status = add_checkpoint(json_object_get(root, "inputs"), facts->config->train.from, error);
    if (status == MOE_OK) status = moelm_json_save(run, root, error);
    if (status == MOE_OK) status = moe_lm_config_save(facts->config, settings, error);
    json_decref(root);
    free(settings);
    free(run);
    return status;
}
