/* run_files.c: finds and opens what eval, generate and report work on.
 */
#include "run_files.h"

#include <moekit/quant.h>

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static bool holds(const char *directory, const char *name) {
    char path[RUN_PATH];
    const int n = snprintf(path, sizeof path, "%s/%s", directory, name);
    return n > 0 && n < RUN_PATH && cli_file_exists(path);
}

int run_files_find(cli_args *args, run_files *files) {
    const char *model = cli_text(args, "model");
    files->run = cli_text(args, "run");
    if (!model && !files->run)
        return cli_fail(args, MOE_ERR_ARGUMENT, "name a run (--run DIR) or a checkpoint (-m DIR)");
    if (files->run && !cli_file_exists(files->run))
        return cli_fail(args, MOE_ERR_INPUT, "%s: no such run directory", files->run);
    files->named = model != NULL;
    if (model) {
        if (strlen(model) >= sizeof files->checkpoint)
            return cli_fail(args, MOE_ERR_ARGUMENT, "--model: the path is too long");
        strcpy(files->checkpoint, model);
        if (!holds(model, "config.json") && holds(model, "config.resolved.yaml"))
            return cli_fail(args, MOE_ERR_INPUT, "%s: is a run and no checkpoint; name it by --run", model);
        return 0;
    }
    moe_error error;
    moe_status status =
        moe_lm_newest_checkpoint(files->run, files->checkpoint, sizeof files->checkpoint, &error);
    return status == MOE_OK ? 0 : cli_fail(args, status, "%s", error.text);
}

int run_files_path(cli_args *args, const char *run, const char *name, char path[RUN_PATH]) {
    int n = snprintf(path, RUN_PATH, "%s/%s", run, name);
    return n < RUN_PATH ? 0 : cli_fail(args, MOE_ERR_ARGUMENT, "%s: the path is too long", run);
}

/* The configuration the run was started with. */
static int open_config(cli_args *args, const char *run, moe_lm_config **config) {
    char path[RUN_PATH];
    moe_error error;
    int code = run_files_path(args, run, "config.resolved.yaml", path);
    if (code) return code;
    moe_status status = moe_lm_config_create(config, &error);
    if (status != MOE_OK) return cli_fail(args, status, "%s", error.text);
    status = moe_lm_config_load(*config, path, &error);
    if (status == MOE_OK) return 0;
    moe_lm_config_destroy(*config);
    return cli_fail(args, status, "%s", error.text);
}

int run_files_setting(cli_args *args, const char *run, const char *key, char text[1024]) {
    moe_lm_config *config;
    int code = open_config(args, run, &config);
    if (code) return code;
    code = cli_setting(args, config, key, text);
    moe_lm_config_destroy(config);
    return code;
}

bool run_files_same(const char *a, const char *b) {
    struct stat left, right;
    return stat(a, &left) == 0 && stat(b, &right) == 0 && left.st_dev == right.st_dev &&
           left.st_ino == right.st_ino;
}

static int lost(cli_args *args, const char *output, const char *what) {
    return cli_fail(args, MOE_ERR_ARGUMENT, "%s: is %s, which would be lost; name another file", output,
                    what);
}

static bool is_one_of(const char *name, const char *const *names) {
    while (*names && strcmp(name, *names) != 0) ++names;
    return *names != NULL;
}

static bool is_of_checkpoint(const char *directory, const char *name) {
    static const char *const index = "model.safetensors.index.json";
    const char *const json[] = {"config.json", "trainer.json", "tokenizer.json", index, NULL};
    const size_t length = strlen(name), end = strlen(".safetensors");
    const bool tensors = length > end && strcmp(name + length - end, ".safetensors") == 0;
    return (tensors || is_one_of(name, json)) && holds(directory, "config.json") &&
           (holds(directory, "model.safetensors") || holds(directory, index));
}

static bool is_of_run(const char *directory, const char *name) {
    static const char *const names[] = {
        "run.json",  "config.resolved.yaml", "metrics.jsonl", "load.bin", "main.log",
        "eval.json", "sample.txt",           "report.html",   NULL};
    return is_one_of(name, names) && holds(directory, "config.resolved.yaml");
}

int run_files_check_output(cli_args *args, const char *run, const char *own, const char *output) {
    char path[PATH_MAX];
    const int code = cli_output_check(args, output);
    if (code || !realpath(output, path)) return code; /* what is not there cannot be lost */
    char *slash = strrchr(path, '/');
    *slash = '\0';
    const char *name = slash + 1, *directory = slash == path ? "/" : path;
    if (run && strcmp(name, own) == 0 && run_files_same(directory, run)) return 0;
    if (is_of_run(directory, name)) return lost(args, output, "a file of a run");
    return is_of_checkpoint(directory, name) ? lost(args, output, "a file of a checkpoint") : 0;
}

int run_files_check_texts(cli_args *args, const moe_lm_config *config, const char *output) {
    static const char *const keys[] = {"data.train", "data.eval", "data.tokenizer"};
    char text[1024];
    for (size_t i = 0; i < sizeof keys / sizeof *keys; ++i) {
        int code = cli_setting(args, config, keys[i], text);
        if (code == 0 && *text && run_files_same(text, output)) code = lost(args, output, keys[i]);
        if (code) return code;
    }
    return 0;
}

int run_files_check_run_texts(cli_args *args, const char *run, const char *output) {
    moe_lm_config *config;
    if (!run || !holds(run, "config.resolved.yaml") || !cli_file_exists(output)) return 0;
    int code = open_config(args, run, &config);
    if (code) return code;
    code = run_files_check_texts(args, config, output);
    moe_lm_config_destroy(config);
    return code;
}

bool run_files_is_newest(const run_files *files) {
    char newest[RUN_PATH];
    if (!files->named) return true;
    return moe_lm_newest_checkpoint(files->run, newest, sizeof newest, NULL) == MOE_OK &&
           run_files_same(files->checkpoint, newest);
}

/* Whether the run has another newest checkpoint now than the one that could not be opened. */
static bool moved_on(run_files *files) {
    char newest[RUN_PATH];
    if (files->named || moe_lm_newest_checkpoint(files->run, newest, sizeof newest, NULL) != MOE_OK ||
        strcmp(newest, files->checkpoint) == 0)
        return false;
    strcpy(files->checkpoint, newest);
    return true;
}

/* The vocabulary that config.json speaks of; 0 where it cannot be read, which loading will tell. */
static int64_t vocabulary(const char *checkpoint) {
    moe_lm_config *config;
    moe_lm_config_entry entry = {.value = "0"};
    if (moe_lm_config_create(&config, NULL) != MOE_OK) return 0;
    if (moe_lm_config_load_checkpoint(config, checkpoint, NULL) == MOE_OK)
        moe_lm_config_find(config, "model.vocab_size", &entry, NULL);
    moe_lm_config_destroy(config);
    return strtoll(entry.value, NULL, 10);
}

/* Before the weights are read, which may take minutes. A checkpoint that a run has removed meanwhile is left
 * to loading, which looks for the newest again. */
static int open_tokenizer(cli_args *args, run_files *files) {
    moe_error error;
    const char *checkpoint = files->checkpoint;
    const int64_t vocab = vocabulary(checkpoint);
    if (vocab == 0) return 0;
    if (!holds(checkpoint, "tokenizer.json")) {
        if (vocab == 256 || !holds(checkpoint, "config.json")) return 0;
        return cli_fail(
            args, MOE_ERR_UNSUPPORTED,
            "%s: has %lld tokens and no tokenizer.json, which tells what they stand for: put the one "
            "into it that the checkpoint was published with (a model of bytes has 256 tokens)",
            checkpoint, (long long)vocab);
    }
    const moe_status status = moe_tokenizer_load(checkpoint, &files->tokenizer, &error);
    if (status != MOE_OK && !holds(checkpoint, "config.json")) return 0;
    if (status != MOE_OK) return cli_fail(args, status, "%s", error.text);
    const int32_t known = moe_tokenizer_vocab_size(files->tokenizer);
    if (known <= vocab) return 0;
    return cli_fail(args, MOE_ERR_INPUT,
                    "%s: tokenizer.json has %d tokens and the model %lld: it is another model's", checkpoint,
                    known, (long long)vocab);
}

/* --experts FORMAT or FORMAT,GROUP. */
static int read_experts(cli_args *args, char format[16], moe_lm_load_desc *desc) {
    const char *text = cli_text(args, "experts");
    if (!text) return 0;
    const size_t length = strcspn(text, ",");
    const char *const *known = moe_packed_formats();
    while (*known && (strlen(*known) != length || strncmp(*known, text, length) != 0)) ++known;
    if (!*known)
        return cli_fail(args, MOE_ERR_ARGUMENT,
                        "--experts: '%s' is not one of int8, int4, nf4, mxfp4 and bf16x2", text);
    snprintf(format, 16, "%s", *known);
    desc->experts = format;
    if (text[length] == '\0') return 0;
    char *end;
    const long group = strtol(text + length + 1, &end, 10);
    if (*end != '\0' || end == text + length + 1 || group < 1 || group > 1024)
        return cli_fail(args, MOE_ERR_ARGUMENT, "--experts: '%s': a group is a number, as in int4,64", text);
    desc->experts_group = (int32_t)group;
    return 0;
}

int run_files_load(cli_args *args, run_files *files, moe_ctx **ctx, moe_lm **lm) {
    char format[16];
    moe_lm_load_desc desc = {.size = sizeof desc, .dtype = cli_text(args, "dtype")};
    int code = cli_settings_load(args, NULL, 0);
    if (code == 0) code = read_experts(args, format, &desc);
    if (code == 0) code = cli_context_create(args, NULL, 0, ctx);
    if (code) return code;
    moe_status status = MOE_OK;
    do {
        moe_tokenizer_destroy(files->tokenizer);
        files->tokenizer = NULL;
        code = open_tokenizer(args, files);
        if (code == 0) status = moe_lm_load_with(*ctx, files->checkpoint, &desc, lm);
    } while (code == 0 && status == MOE_ERR_INPUT && moved_on(files));
    if (code == 0 && status == MOE_OK) return 0;
    if (code == 0) code = cli_fail(args, status, "%s", moe_ctx_error(*ctx));
    moe_ctx_destroy(*ctx);
    return code;
}
