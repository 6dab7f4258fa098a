/* run_dir.h: the directory of a training run: claimed, compared with what it was begun with, described.
 * One process works in it at a time; the claim is a lock on the directory and goes with the process.
 */
#ifndef MOELM_RUN_DIR_H
#define MOELM_RUN_DIR_H

#include <moekit/lm.h>

#include "train/data.h"
#include "train/tokens.h"

typedef struct moelm_run_dir {
    char *path; /* without slashes at its end */
    char *old;  /* where the run that stood in the way lies now; NULL: none did */
    int lock;   /* -1: not claimed */
    bool made;  /* by this claim */
} moelm_run_dir;

/* What to do with a directory that exists. */
typedef enum moelm_claim {
    MOELM_CLAIM_NEW,     /* refuse it */
    MOELM_CLAIM_RESUME,  /* go on in it, unless it holds what no run of ours began */
    MOELM_CLAIM_MOVE_OLD /* rename it DIR.1, DIR.2, ..., unless somebody trains in it */
} moelm_claim;

/* Makes or takes the directory and removes leftovers of killed writers; *begun says whether a run has settled
 * in it. */
moe_status moelm_run_dir_claim(const char *path, moelm_claim claim, moelm_run_dir *dir, bool *begun,
                               moe_error *error);
/* What moelm_run_dir_claim would refuse, but for another process in it; makes nothing. "": not said yet. */
moe_status moelm_run_dir_check_claim(const char *path, moelm_claim claim, moe_error *error);
/* Whether the run there, if one has settled, goes on with `config`. */
moe_status moelm_run_dir_check_begun(const char *path, const moe_lm_config *config, moe_error *error);
/* Whether the path still is the directory that was claimed, which may have been renamed or removed since. */
moe_status moelm_run_dir_check_place(const moelm_run_dir *dir, moe_error *error);
/* Removes a directory that the claim made and in which nothing settled. */
void moelm_run_dir_release(moelm_run_dir *dir);

/* Whether going on with `config` would give the bits of the run as it began; names the first key that
 * differs. from[MOELM_PATH]: the train.from that it began with. */
moe_status moelm_run_dir_check_config(const moelm_run_dir *dir, const moe_lm_config *config, char *from,
                                      moe_error *error);
/* Of all settings that decide the result. */
moe_status moelm_config_hash(const moe_lm_config *config, char text[MOELM_SHA256_TEXT], moe_error *error);

/* What run.json tells. */
typedef struct moelm_run_facts {
    const moe_ctx *ctx;
    const moe_lm_config *config;
    const char *command;            /* NULL: not known */
    const moelm_text *train, *eval; /* eval NULL: none */
    const moelm_tokens *tokens;
    moe_lm_info info;
} moelm_run_facts;
/* Writes config.resolved.yaml and run.json. */
moe_status moelm_run_dir_describe(const moelm_run_dir *dir, const moelm_run_facts *facts, moe_error *error);

#endif
