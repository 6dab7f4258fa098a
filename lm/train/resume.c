/* resume.c: where a run goes on: the newest checkpoint that can be read.
 * One that cannot is set aside with a warning, so that the next save finds its name free.
 * Source: docs/run-directory.md.
 */
#include "core/ctx.h"
#include "train/trainer.h"

#include <stdio.h>
#include <stdlib.h>

static moe_status load(moelm_trainer *t, int64_t step, moe_error *error) {
    char path[4096];
    MOEI_TRY(moelm_snapshot_path(t->dir.path, step, path, sizeof path, error));
    return moelm_snapshot_load(path, &t->optimizer, &t->state, error);
}

/* The n newest are damaged, the first for `why`, and `path` serves. */
static moe_status set_aside(moelm_trainer *t, const int64_t *step, size_t n, const char *why,
                            const char *path) {
    for (size_t i = 0; i < n; ++i) MOEI_TRY(moelm_snapshot_set_aside(t->dir.path, step[i], &t->error));
    moei_log(t->ctx, MOE_LOG_WARN, "%s: %zu checkpoint%s damaged and set aside (%.300s)", path, n,
             n == 1 ? " after it is" : "s after it are", why);
    return MOE_OK;
}

/* From the start where the run was killed before its first checkpoint. */
static moe_status load_newest(moelm_trainer *t, const int64_t *step, size_t count, char *event, size_t size) {
    char path[4096];
    moe_error first = {.text = ""};
    moe_status status = MOE_ERR_INPUT;
    size_t i = 0;
    for (; i < count && status == MOE_ERR_INPUT; ++i) status = load(t, step[i], i == 0 ? &first : &t->error);
    if (count == 0) {
        snprintf(event, size, "resume: no checkpoint yet, from the start");
        return moelm_trainer_begin(t);
    }
    if (status == MOE_ERR_INPUT || (status != MOE_OK && i == 1))
        return moei_error_set(&t->error, status, "%s", first.text);
    if (status != MOE_OK) return status;
    MOEI_TRY(moelm_snapshot_path(t->dir.path, step[i - 1], path, sizeof path, &t->error));
    if (i > 1) MOEI_TRY(set_aside(t, step, i - 1, first.text, path));
    t->saved_step = t->state.step;
    snprintf(event, size, "resume %s", path);
    return MOE_OK;
}

moe_status moelm_trainer_resume(moelm_trainer *t, char *event, size_t size) {
    int64_t *step;
    size_t count;
    MOEI_TRY(moelm_snapshot_sweep(t->dir.path, &t->error));
    moe_status status = moelm_snapshot_list(t->dir.path, &step, &count, &t->error);
    if (status == MOE_OK) status = load_newest(t, step, count, event, size);
    free(step);
    return status;
}

/* A damaged one would be set aside, and the next one be asked. */
static moe_status check_newest(moelm_trainer *t, const char *run_dir, const int64_t *step, size_t count) {
    char path[4096];
    moe_error first = {.text = ""};
    moe_status status = count ? MOE_ERR_INPUT : MOE_OK;
    for (size_t i = 0; i < count && status == MOE_ERR_INPUT; ++i) {
        MOEI_TRY(moelm_snapshot_path(run_dir, step[i], path, sizeof path, &t->error));
        status = moelm_snapshot_check(path, &t->state, &t->error);
        if (i == 0) first = t->error;
    }
    return status == MOE_ERR_INPUT ? moei_error_set(&t->error, status, "%s", first.text) : status;
}

moe_status moelm_trainer_check_resume(moelm_trainer *t, const char *run_dir) {
    int64_t *step;
    size_t count;
    if (*run_dir == '\0') return MOE_OK;
    MOEI_TRY(moelm_snapshot_list(run_dir, &step, &count, &t->error));
    const moe_status status = check_newest(t, run_dir, step, count);
    free(step);
    return status;
}
