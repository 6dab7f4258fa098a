/* cli_settings.c: resolves the settings of a verb, and makes the context they ask for.
 * defaults < system file < user file < files of the command line < environment < command line.
 */
#include "cli.h"

#include <stdlib.h>
#include <string.h>

const char *const cli_system_config_path = "/etc/moekit/config.yaml";

bool cli_user_config_path(char *path, size_t size) {
    const char *base = getenv("XDG_CONFIG_HOME"), *below = "moekit/config.yaml";
    if (!base || !*base) {
        base = getenv("HOME");
        below = ".config/moekit/config.yaml";
    }
    if (!base || !*base) return false;
    int n = snprintf(path, size, "%s/%s", base, below);
    return n > 0 && (size_t)n < size;
}

/* Whether the directory has a file of this name, its path into path[size]. */
static bool find_in(const char *directory, const char *name, char *path, size_t size) {
    const int n = snprintf(path, size, "%s/%s", directory, name);
    return n > 0 && (size_t)n < size && cli_file_exists(path);
}

/* A run stands for its settings, a checkpoint for the model that it holds. */
static int load_directory(cli_args *args, const char *directory) {
    char path[4096];
    moe_error error;
    moe_status status;
    if (find_in(directory, "config.resolved.yaml", path, sizeof path))
        status = moe_lm_config_load(args->config, path, &error);
    else if (find_in(directory, "config.json", path, sizeof path))
        status = moe_lm_config_load_checkpoint(args->config, directory, &error);
    else
        return cli_fail(
            args, MOE_ERR_INPUT,
            "%s: is a directory without config.resolved.yaml or config.json, so neither a run nor a "
            "checkpoint",
            directory);
    return status == MOE_OK ? 0 : cli_fail(args, status, "%s", error.text);
}

static bool ends_with(const char *text, const char *end) {
    const size_t length = strlen(text), n = strlen(end);
    return length >= n && strcmp(text + length - n, end) == 0;
}

/* What was probably meant: a checkpoint, or the text to train on. */
static int refuse_file(cli_args *args, const char *path, const moe_error *error) {
    const char *slash = strrchr(path, '/');
    if (strcmp(slash ? slash + 1 : path, "config.json") == 0)
        return cli_fail(args, error->status, "%s; of a checkpoint give the directory", error->text);
    if (ends_with(path, ".yaml") || ends_with(path, ".yml"))
        return cli_fail(args, error->status, "%s", error->text);
    return cli_fail(args, error->status,
                    "%s; %s is read as settings (YAML), and a text to train on is --data.train %s",
                    error->text, path, path);
}

static int load_file(cli_args *args, const char *path) {
    moe_error error;
    moe_lm_config_entry entry;
    if (!cli_file_exists(path) && moe_lm_config_find(args->config, path, &entry, NULL) == MOE_OK)
        return cli_fail(args, MOE_ERR_ARGUMENT, "%s is a setting and no file: %s=VALUE?", path, path);
    if (cli_is_directory(path)) return load_directory(args, path);
    moe_status status = moe_lm_config_load(args->config, path, &error);
    if (status == MOE_OK) return 0;
    return refuse_file(args, path, &error);
}

static int set_key(cli_args *args, const char *key, const char *value) {
    moe_error error;
    moe_status status = moe_lm_config_set(args->config, key, value, "command line", &error);
    return status == MOE_OK ? 0 : cli_fail(args, status, "%s", error.text);
}

/* The options that are short forms of keys. */
static int set_context_keys(cli_args *args) {
    const char *threads = cli_text(args, "threads"), *isa = cli_text(args, "isa");
    int code = threads ? set_key(args, "run.threads", threads) : 0;
    return code == 0 && isa ? set_key(args, "run.isa", isa) : code;
}

/* A preset comes before the keys of its level that override it. */
static int set_keys(cli_args *args) {
    int code = 0;
    for (int presets = 1; presets >= 0; --presets)
        for (int i = 0; i < args->n_set && code == 0; ++i)
            if ((strcmp(args->set[i].key, "moe.preset") == 0) == presets)
                code = set_key(args, args->set[i].key, args->set[i].value);
    return code;
}

int cli_settings_load(cli_args *args, const char *const *files, int n_files) {
    char user_path[4096];
    moe_error error;
    int code = 0;
    if (cli_file_exists(cli_system_config_path)) code = load_file(args, cli_system_config_path);
    if (code == 0 && cli_user_config_path(user_path, sizeof user_path) && cli_file_exists(user_path))
        code = load_file(args, user_path);
    for (int i = 0; i < n_files && code == 0; ++i) code = load_file(args, files[i]);
    if (code) return code;
    moe_status status = moe_lm_config_environment(args->config, &error);
    if (status != MOE_OK) return cli_fail(args, status, "%s", error.text);
    if (args->verb->keys == CLI_KEYS_LM) code = set_keys(args);
    return code ? code : set_context_keys(args);
}

int cli_setting(cli_args *args, const moe_lm_config *config, const char *key, char *text) {
    moe_lm_config_entry entry;
    moe_error error;
    moe_status status = moe_lm_config_find(config, key, &entry, &error);
    if (status != MOE_OK) return cli_fail(args, status, "%s", error.text);
    memcpy(text, entry.value, sizeof entry.value);
    return 0;
}

/* The failing call's text reaches the user through its status; so errors are not logged twice. */
static void on_log(void *user, moe_log_level level, const char *text) {
    cli_args *args = user;
    if (level == MOE_LOG_WARN) cli_warn(args, "%s", text);
    if ((level == MOE_LOG_INFO && args->verbose >= 1) || (level == MOE_LOG_DEBUG && args->verbose >= 2))
        cli_say(args, "%s", text);
}

int cli_context_create(cli_args *args, const char *isa, int32_t threads, moe_ctx **ctx) {
    char config_isa[1024], config_threads[1024], config_seed[1024];
    int code = cli_setting(args, args->config, "run.isa", config_isa);
    if (code == 0) code = cli_setting(args, args->config, "run.threads", config_threads);
    if (code == 0) code = cli_setting(args, args->config, "train.seed", config_seed);
    if (code) return code;
    if (!isa && *config_isa) isa = config_isa;
    if (threads == 0) threads = (int32_t)strtol(config_threads, NULL, 10);
    moe_error error;
    const char *device = cli_text(args, "device"); /* of verbs that have it */
    const bool cuda = device && strcmp(device, "cuda") == 0;
    if (device && !cuda && strcmp(device, "cpu") != 0)
        return cli_fail(args, MOE_ERR_ARGUMENT, "--device: '%s' is not one of: cpu, cuda", device);
    moe_ctx_desc desc = {.size = sizeof desc,
                         .device = cuda ? MOE_CUDA : MOE_CPU,
                         .n_threads = threads,
                         .isa = isa,
                         .seed = strtoull(config_seed, NULL, 10),
                         .log = on_log,
                         .log_user = args};
    moe_status status = moe_ctx_create(&desc, ctx, &error);
    return status == MOE_OK ? 0 : cli_fail(args, status, "%s", error.text);
}
