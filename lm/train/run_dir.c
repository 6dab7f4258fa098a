/* run_dir.c: the directory of a run: claim and compare.
 * A run has settled in a directory that holds config.resolved.yaml, the first file it writes.
 * Source: flock(2) on the directory itself, so nothing is left behind by a killed process.
 */
#include "train/run_dir.h"

#include "config/config.h"
#include "core/status.h"
#include "format/publish.h"
#include "format/utf8.h"

#include <dirent.h>
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

static char *without_slashes(const char *path) {
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/') --length;
    return strndup(path, length);
}

static moe_status make_parent(const char *path, moe_error *error) {
    char *parent = moelm_path_parent(path);
    moe_status status = parent ? moelm_dir_make(parent, error) : no_memory(path, error);
    free(parent);
    return status;
}

static moe_status lock(moelm_run_dir *dir, moe_error *error) {
    dir->lock = open(dir->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir->lock < 0)
        return moei_error_set(error, MOE_ERR_IO, "%s: cannot open the run directory: %s", dir->path,
                              strerror(errno));
    if (moelm_file_lock(dir->lock)) return MOE_OK;
    return moei_error_set(error, MOE_ERR_ARGUMENT, "%s: another process is training in it", dir->path);
}

/* Nothing is lost: what stands in the way gets the first free name after it. */
static moe_status move_aside(moelm_run_dir *dir, moe_error *error) {
    enum { MOST = 9999 };
    size_t room = strlen(dir->path) + 16;
    dir->old = malloc(room);
    if (!dir->old) return no_memory(dir->path, error);
    int i = 1;
    do snprintf(dir->old, room, "%s.%d", dir->path, i);
    while (moelm_file_exists(dir->old) && ++i <= MOST);
    if (i > MOST)
        return moei_error_set(error, MOE_ERR_ARGUMENT, "%s: no free name up to %s", dir->path, dir->old);
    if (rename(dir->path, dir->old) == 0) return MOE_OK;
    return moei_error_set(error, MOE_ERR_IO, "%s: cannot be renamed %s: %s", dir->path, dir->old,
                          strerror(errno));
}

static moe_status make_new(moelm_run_dir *dir, moe_error *error) {
    dir->made = mkdir(dir->path, 0777) == 0;
    if (dir->made) return MOE_OK;
    return moei_error_set(error, MOE_ERR_IO, "%s: cannot make the run directory: %s", dir->path,
                          strerror(errno));
}

/* A run killed before it settled leaves run.json and beginnings of the two files; anything else is not ours.
 */
static bool is_unsettled(const char *name) {
    static const char *const begun[] = {"run.json", "config.resolved.yaml"};
    for (size_t i = 0; i < sizeof begun / sizeof *begun; ++i) {
        size_t length = strlen(begun[i]);
        const char *rest = name + length;
        if (strncmp(name, begun[i], length) != 0) continue;
        if (*rest == '\0' ||
            (strncmp(rest, ".tmp-", 5) == 0 && rest[5 + strspn(rest + 5, "0123456789")] == '\0'))
            return true;
    }
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

static moe_status check_unsettled(const char *path, moe_error *error) {
    DIR *files = opendir(path);
    if (!files)
        return moei_error_set(error, MOE_ERR_IO, "%s: cannot read the directory: %s", path, strerror(errno));
    moe_status status = MOE_OK;
    for (struct dirent *file; status == MOE_OK && (file = readdir(files));)
        if (!is_unsettled(file->d_name))
            status = moei_error_set(error, MOE_ERR_INPUT,
                                    "%s: holds %s, but no config.resolved.yaml: it is no run; name another "
                                    "directory",
                                    path, file->d_name);
    closedir(files);
    return status;
}

/* Whether the directory has a file that only runs have. */
static bool is_run(const char *path) {
    static const char *const files[] = {"run.json", "config.resolved.yaml"};
    bool found = false;
    for (size_t i = 0; i < sizeof files / sizeof *files && !found; ++i) {
        char *file = moelm_path_join(path, files[i]);
        found = file && moelm_file_exists(file);
        free(file);
    }
    return found;
}

/* --move-old is for runs: a directory of something else is not renamed by a slip of the pen. */
static moe_status check_movable(const char *path, moe_error *error) {
    return is_run(path) ? MOE_OK : check_unsettled(path, error);
}

static moe_status check_free(const char *path, moe_error *error) {
    if (!moelm_file_exists(path)) return MOE_OK;
    if (is_run(path))
        return moei_error_set(
            error, MOE_ERR_ARGUMENT,
            "%s exists already, and a run is never overwritten; resume it, or name another directory", path);
    return moei_error_set(error, MOE_ERR_ARGUMENT,
                          "%s exists already and is no run; name a directory that is to be made", path);
}

static moe_status make_or_take(moelm_run_dir *dir, moelm_claim claim, moe_error *error) {
    if (claim == MOELM_CLAIM_NEW) MOEI_TRY(check_free(dir->path, error));
    MOEI_TRY(make_parent(dir->path, error));
    if (claim == MOELM_CLAIM_NEW || !moelm_file_exists(dir->path)) MOEI_TRY(make_new(dir, error));
    MOEI_TRY(lock(dir, error));
    if (dir->made || claim == MOELM_CLAIM_RESUME) return MOE_OK;
    MOEI_TRY(check_movable(dir->path, error));
    MOEI_TRY(move_aside(dir, error));
    close(dir->lock);
    dir->lock = -1;
    MOEI_TRY(make_new(dir, error));
    return lock(dir, error);
}

/* The files of a run that are written under a temporary name. */
static bool is_ours(const char *name) {
    static const char *const names[] = {"run.json", "config.resolved.yaml", "eval.json", "sample.txt",
                                        "report.html"};
    for (size_t i = 0; i < sizeof names / sizeof *names; ++i)
        if (strcmp(name, names[i]) == 0) return true;
    return false;
}

/* Whether a run has settled in the directory; if not, nothing else has. */
static moe_status find_begun(const char *path, bool *begun, moe_error *error) {
    char *settings = moelm_path_join(path, "config.resolved.yaml");
    if (!settings) return no_memory(path, error);
    *begun = moelm_file_exists(settings);
    free(settings);
    return *begun ? MOE_OK : check_unsettled(path, error);
}

static moe_status take(moelm_run_dir *dir, moelm_claim claim, bool *begun, moe_error *error) {
    MOEI_TRY(make_or_take(dir, claim, error));
    MOEI_TRY(find_begun(dir->path, begun, error));
    return moelm_publish_sweep(dir->path, is_ours, NULL, error);
}

/* run.json and main.log could not hold it. */
static moe_status check_path(const char *path, moe_error *error) {
    uint32_t code;
    for (size_t left = strlen(path), n; left > 0; path += n, left -= n) {
        n = moelm_utf8_decode(path, left, &code);
        if (n == 0)
            return moei_error_set(error, MOE_ERR_ARGUMENT,
                                  "run.dir: the path is not UTF-8; name another directory");
        if (code < 0x20 || code == 0x7f)
            return moei_error_set(error, MOE_ERR_ARGUMENT,
                                  "run.dir: the path holds the control character %u; name another directory",
                                  (unsigned)code);
    }
    return MOE_OK;
}

/* Where something is to be made: the nearest directory above it that exists, as its owner, mode and file
 * system say. */
static moe_status check_place(const char *path, moe_error *error) {
    char *at = strdup(path);
    while (at && !moelm_file_exists(at) && strcmp(at, ".") != 0 && strcmp(at, "/") != 0) {
        char *parent = moelm_path_parent(at);
        free(at);
        at = parent;
    }
    if (!at) return no_memory(path, error);
    moe_status status = MOE_OK;
    if (!moelm_dir_exists(at))
        status = moei_error_set(error, MOE_ERR_IO, "%s: cannot be made: %s is no directory", path, at);
    else if (access(at, W_OK | X_OK) != 0)
        status =
            moei_error_set(error, MOE_ERR_IO, "%s: cannot be written: %s: %s", path, at, strerror(errno));
    free(at);
    return status;
}

/* What is moved aside is written in its parent. */
static moe_status check_claim(const char *path, moelm_claim claim, moe_error *error) {
    const bool there = moelm_file_exists(path);
    bool begun;
    if (claim == MOELM_CLAIM_NEW) MOEI_TRY(check_free(path, error));
    if (there && claim == MOELM_CLAIM_RESUME) MOEI_TRY(find_begun(path, &begun, error));
    if (there && claim == MOELM_CLAIM_MOVE_OLD) MOEI_TRY(check_movable(path, error));
    if (!there || claim == MOELM_CLAIM_RESUME) return check_place(path, error);
    char *parent = moelm_path_parent(path);
    const moe_status status = parent ? check_place(parent, error) : no_memory(path, error);
    free(parent);
    return status;
}

moe_status moelm_run_dir_check_claim(const char *path, moelm_claim claim, moe_error *error) {
    if (*path == '\0') return MOE_OK;
    MOEI_TRY(check_path(path, error));
    char *plain = without_slashes(path);
    const moe_status status = plain ? check_claim(plain, claim, error) : no_memory(path, error);
    free(plain);
    return status;
}

moe_status moelm_run_dir_claim(const char *path, moelm_claim claim, moelm_run_dir *dir, bool *begun,
                               moe_error *error) {
    *dir = (moelm_run_dir){.lock = -1};
    if (!path || *path == '\0')
        return moei_error_set(error, MOE_ERR_ARGUMENT, "run.dir is not set; it names the directory to make");
    MOEI_TRY(check_path(path, error));
    dir->path = without_slashes(path);
    if (!dir->path) return no_memory(path, error);
    moe_status status = take(dir, claim, begun, error);
    if (status != MOE_OK) moelm_run_dir_release(dir);
    return status;
}

moe_status moelm_run_dir_check_place(const moelm_run_dir *dir, moe_error *error) {
    struct stat claimed, there;
    const bool known = fstat(dir->lock, &claimed) == 0;
    if (known && stat(dir->path, &there) == 0 && claimed.st_dev == there.st_dev &&
        claimed.st_ino == there.st_ino)
        return MOE_OK;
    return moei_error_set(
        error, MOE_ERR_IO,
        "%s: is no longer the directory that this run trains in: it was renamed or removed, "
        "so no checkpoint is written; resume it where it is now",
        dir->path);
}

/* Where the settings are not, nothing but run.json can be; rmdir leaves alone what holds more. */
static void remove_unsettled(const moelm_run_dir *dir) {
    char *settings = moelm_path_join(dir->path, "config.resolved.yaml"),
         *run = moelm_path_join(dir->path, "run.json");
    if (settings && run && !moelm_file_exists(settings)) {
        unlink(run);
        rmdir(dir->path);
    }
    free(run);
    free(settings);
}

void moelm_run_dir_release(moelm_run_dir *dir) {
    if (dir->made) remove_unsettled(dir);
    if (dir->lock >= 0) close(dir->lock);
    free(dir->old);
    free(dir->path);
    *dir = (moelm_run_dir){.lock = -1};
}

/* 2. Compare. */

/* Settings that may change on the way: where the run lies, how fast it goes, what it keeps, and
 * what it began with, which the run's own record tells. The instruction set is compared with the
 * checkpoint's. */
static bool is_free(const char *key) {
    static const char *const keys[] = {"run.dir",    "run.threads", "run.isa", "run.resume_any_isa",
                                       "train.keep", "train.from"};
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
            "settings in its config.resolved.yaml, or begin another run (train.from=%s: with its parameters)",
            dir->path, now.option->key, now.value, then.value, dir->path);
    }
    return MOE_OK;
}

moe_status moelm_run_dir_check_config(const moelm_run_dir *dir, const moe_lm_config *config, char *from,
                                      moe_error *error) {
    moe_lm_config *begun;
    MOEI_TRY(moe_lm_config_create(&begun, error));
    char *path = moelm_path_join(dir->path, "config.resolved.yaml");
    moe_status status = path ? moe_lm_config_load(begun, path, error) : no_memory(dir->path, error);
    if (status == MOE_OK) status = compare(dir, begun, config, error);
    memcpy(from, begun->train.from, sizeof begun->train.from);
    free(path);
    moe_lm_config_destroy(begun);
    return status;
}

moe_status moelm_run_dir_check_begun(const char *path, const moe_lm_config *config, moe_error *error) {
    char from[MOELM_PATH];
    if (*path == '\0') return MOE_OK;
    char *settings = moelm_path_join(path, "config.resolved.yaml"), *copy = strdup(path);
    moe_status status = settings && copy ? MOE_OK : no_memory(path, error);
    const moelm_run_dir dir = {.path = copy, .lock = -1};
    if (status == MOE_OK && moelm_file_exists(settings))
        status = moelm_run_dir_check_config(&dir, config, from, error);
    free(copy);
    free(settings);
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
