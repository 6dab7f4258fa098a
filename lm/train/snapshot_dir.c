/* snapshot_dir.c: the checkpoints of a run directory as a set: named, found, rotated, swept.
 * checkpoints/step-<8 or more digits>/; anything else in there is left alone.
 * Source: docs/run-directory.md.
 */
#include "train/snapshot.h"

#include "core/status.h"
#include "format/file.h"
#include "format/publish.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PREFIX "step-"
enum { LEAST_DIGITS = 8, MOST_DIGITS = 18 };

moe_status moelm_snapshot_path(const char *run_dir, int64_t step, char *path, size_t size, moe_error *error) {
    int n = snprintf(path, size, "%s/checkpoints/" PREFIX "%0*lld", run_dir, LEAST_DIGITS, (long long)step);
    if (n > 0 && (size_t)n < size) return MOE_OK;
    return moei_error_set(error, MOE_ERR_ARGUMENT,
                          "%s: the path of a checkpoint is longer than its buffer of %zu bytes", run_dir,
                          size);
}

/* The step in a checkpoint's name, 0: another name. */
static int64_t step_of(const char *name) {
    if (strncmp(name, PREFIX, sizeof PREFIX - 1) != 0) return 0;
    const char *digits = name + sizeof PREFIX - 1;
    size_t n = strspn(digits, "0123456789");
    if (n < LEAST_DIGITS || n > MOST_DIGITS || digits[n] != '\0') return 0;
    return strtoll(digits, NULL, 10);
}

static bool is_checkpoint(const char *name) {
    return step_of(name) > 0;
}

static int newest_first(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x < y) - (x > y);
}

moe_status moelm_snapshot_list(const char *run_dir, int64_t **step, size_t *count, moe_error *error) {
    *step = NULL;
    *count = 0;
    char *path = moelm_path_join(run_dir, "checkpoints");
    if (!path) return moei_error_set(error, MOE_ERR_MEMORY, "%s: out of memory", run_dir);
    DIR *dir = opendir(path);
    moe_status status = MOE_OK;
    if (!dir && errno != ENOENT)
        status =
            moei_error_set(error, MOE_ERR_INPUT, "%s: cannot read the directory: %s", path, strerror(errno));
    size_t room = 0;
    for (struct dirent *entry; dir && status == MOE_OK && (entry = readdir(dir));) {
        int64_t found = step_of(entry->d_name);
        if (found == 0) continue;
        if (*count == room) {
            room = 2 * room + 8;
            int64_t *grown = realloc(*step, room * sizeof **step);
            if (!grown) {
                status = moei_error_set(error, MOE_ERR_MEMORY, "%s: out of memory", path);
                break;
            }
            *step = grown;
        }
        (*step)[(*count)++] = found;
    }
    if (dir) closedir(dir);
    free(path);
    if (status == MOE_OK && *count > 0) qsort(*step, *count, sizeof **step, newest_first);
    return status;
}

moe_status moe_lm_newest_checkpoint(const char *run_dir, char *path, size_t size, moe_error *error) {
    MOEI_TRY(moei_error_need(error, "moe_lm_newest_checkpoint", "run_dir", run_dir));
    MOEI_TRY(moei_error_need(error, "moe_lm_newest_checkpoint", "path", path));
    int64_t *step;
    size_t count;
    moe_status status = moelm_snapshot_list(run_dir, &step, &count, error);
    if (status == MOE_OK && count == 0)
        status = moei_error_set(error, MOE_ERR_INPUT,
                                moelm_file_exists(run_dir) ? "%s: holds no complete checkpoint"
                                                           : "%s: no such directory",
                                run_dir);
    if (status == MOE_OK) status = moelm_snapshot_path(run_dir, step[0], path, size, error);
    free(step);
    return status;
}

/* Removing a tree takes time; under a temporary name nobody takes what is left of it for a checkpoint. */
static moe_status disown(const char *run_dir, int64_t step, moe_error *error) {
    char path[4096];
    MOEI_TRY(moelm_snapshot_path(run_dir, step, path, sizeof path, error));
    char *temp = moelm_path_temp(path);
    if (!temp) return moei_error_set(error, MOE_ERR_MEMORY, "%s: out of memory", path);
    moe_status status = MOE_OK;
    if (rename(path, temp) != 0)
        status = moei_error_set(error, MOE_ERR_IO, "%s: cannot remove: %s", path, strerror(errno));
    free(temp);
    return status;
}

moe_status moelm_snapshot_rotate(const char *run_dir, int32_t keep, moe_error *error) {
    int64_t *step;
    size_t count;
    moe_status status = moelm_snapshot_list(run_dir, &step, &count, error);
    for (size_t i = (size_t)keep; i < count && status == MOE_OK; ++i)
        status = disown(run_dir, step[i], error);
    free(step);
    return status == MOE_OK ? moelm_snapshot_sweep(run_dir, error) : status;
}

moe_status moelm_snapshot_set_aside(const char *run_dir, int64_t step, moe_error *error) {
    char path[4096], aside[4096 + 16];
    MOEI_TRY(moelm_snapshot_path(run_dir, step, path, sizeof path, error));
    snprintf(aside, sizeof aside, "%s.damaged", path);
    for (int i = 1; moelm_file_exists(aside) && i < 1000; ++i)
        snprintf(aside, sizeof aside, "%s.damaged-%d", path, i);
    if (rename(path, aside) == 0) return MOE_OK;
    return moei_error_set(error, MOE_ERR_IO, "%s: cannot be renamed %s: %s", path, aside, strerror(errno));
}

moe_status moelm_snapshot_sweep(const char *run_dir, moe_error *error) {
    char *path = moelm_path_join(run_dir, "checkpoints");
    if (!path) return moei_error_set(error, MOE_ERR_MEMORY, "%s: out of memory", run_dir);
    moe_status status = moelm_publish_sweep(path, is_checkpoint, NULL, error);
    free(path);
    return status;
}
