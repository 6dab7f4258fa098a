/* run_dir.c: the directory of a run: claim and compare.
 * A run has settled in a directory that holds config.resolved.yaml, the first file it writes.
 * Source: flock(2) on the directory itself, so nothing is left behind by a killed process.
 */
#include "train/run_dir.h"

#include "config/config.h"
#include "core/status.h"
#include "format/publish.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static moe_status no_memory(const char *path, moe_error *error) {
    return moei_error_set(error, MOE_ERR_MEMORY, "%s: out of memory", path);
}

/* 1. Claim. */

static moe_status make_parent(const char *path, moe_error *error) {
    char *parent = moei_path_parent(path);
    moe_status status = parent ? moei_dir_make(parent, error) : no_memory(path, error);
    free(parent);
    return status;
}

static moe_status make_or_find(const char *path, bool resume, moe_error *error) {
    MOEI_TRY(make_parent(path, error));
    if (mkdir(path, 0777) == 0) return MOE_OK;
    if (errno != EEXIST)
        return moei_error_set(error, MOE_ERR_IO, "%s: cannot make the run directory: %s", path,
                              strerror(errno));
    if (resume) return MOE_OK;
    return moei_error_set(error, MOE_ERR_ARGUMENT,
                          "%s exists already, and a run is never overwritten; resume it, or name another "
                          "directory",
                          path);
}

static moe_status lock(moelm_run_dir *dir, moe_error *error) {
    dir->lock = open(dir->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir->lock < 0)
        return moei_error_set(error, MOE_ERR_IO, "%s: cannot open the run directory: %s", dir->path,
                              strerror(errno));
    if (moei_file_lock(dir->lock)) return MOE_OK;
    moelm_run_dir_release(dir);
    return moei_error_set(error, MOE_ERR_ARGUMENT, "%s: another process is training in it", dir->path);
}

moe_status moelm_run_dir_claim(const char *path, bool resume, moelm_run_dir *dir, bool *begun,
                               moe_error *error) {
    *dir = (moelm_run_dir){.path = path, .lock = -1};
    if (!path || *path == '\0')
        return moei_error_set(error, MOE_ERR_ARGUMENT, "run.dir is not set; it names the directory to make");
    MOEI_TRY(make_or_find(path, resume, error));
    MOEI_TRY(lock(dir, error));
    char *settings = moei_path_join(path, "config.resolved.yaml");
    moe_status status = settings ? moei_publish_sweep(path, NULL, error) : no_memory(path, error);
    if (status == MOE_OK)
        *begun = moei_file_exists(settings);
    else
        moelm_run_dir_release(dir);
    free(settings);
    return status;
}

void moelm_run_dir_release(moelm_run_dir *dir) {
    if (dir->lock >= 0) close(dir->lock);
    dir->lock = -1;
}

/* 2. Compare. */

/* Settings that may change on the way: where the run lies, how fast it goes, what it keeps. */
static bool is_free(const char *key) {
    static const char *const keys[] = {"run.dir", "run.threads", "train.keep"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; ++i)
        if (strcmp(key, keys[i]) == 0) return true;
    return false;
}

static moe_status compare(const moelm_run_dir *dir, const moe_lm_config *begun, const moe_lm_config *config,
                          moe_error *error) {
    for (size_t i = 0; i < config->count; ++i) {
        moe_lm_config_entry then, now;
        moe_lm_config_entry_get(begun, i, &then);
        moe_lm_config_entry_get(config, i, &now);
        if (is_free(now.option->key) || strcmp(then.value, now.value) == 0) continue;
        return moei_error_set(
            error, MOE_ERR_ARGUMENT,
            "%s: %.80s is '%.120s' now and was '%.120s' when the run began; resume with the "
            "settings in its config.resolved.yaml, or begin another run",
            dir->path, now.option->key, now.value, then.value);
    }
    return MOE_OK;
}

moe_status moelm_run_dir_check_config(const moelm_run_dir *dir, const moe_lm_config *config,
                                      moe_error *error) {
    moe_lm_config *begun;
    MOEI_TRY(moe_lm_config_create(&begun, error));
    char *path = moei_path_join(dir->path, "config.resolved.yaml");
    moe_status status = path ? moe_lm_config_load(begun, path, error) : no_memory(dir->path, error);
    if (status == MOE_OK) status = compare(dir, begun, config, error);
    free(path);
    moe_lm_config_destroy(begun);
    return status;
}

moe_status moelm_config_hash(const moe_lm_config *config, char text[MOELM_SHA256_TEXT], moe_error *error) {
    moe_lm_config_entry entry;
    size_t room = config->count * (sizeof entry.value + 96), used = 0;
    char *all = malloc(room);
    if (!all) return no_memory("settings", error);
    for (size_t i = 0; i < config->count; ++i) {
        moe_lm_config_entry_get(config, i, &entry);
        if (is_free(entry.option->key)) continue;
        used += (size_t)snprintf(all + used, room - used, "%s=%s\n", entry.option->key, entry.value);
    }
    moelm_sha256(all, used, text);
    free(all);
    return MOE_OK;
}
