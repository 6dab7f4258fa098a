/* snapshot.h: a training run at one step on disk: checkpoints/step-00001200/ of a run directory.
 * The model in Hugging Face form, optimizer.safetensors (m.<name> and v.<name> of every parameter, and
 * master.<name> of every bf16 one) and
 * trainer.json. A directory appears whole or not at all.
 */
#ifndef MOELM_SNAPSHOT_H
#define MOELM_SNAPSHOT_H

#include "format/sha256.h"
#include "train/alarm.h"
#include "train/load.h"
#include "train/optimizer.h"
#include "train/tokens.h"

/* Where a run stands. */
typedef struct moelm_train_state {
    int64_t step, tokens;
    double elapsed_s;
    double eval_bits_per_byte; /* last one, NaN before the first */
    bool finished;
    moelm_load interval; /* rows since the last record of load.bin */
    moelm_alarms alarms; /* counts of steps out of bounds */
    int64_t seed;
    char config_sha256[MOELM_SHA256_TEXT]; /* of the settings that decide the result */
    char text_sha256[MOELM_SHA256_TEXT];   /* of data.train, and of the tokenizer where there is one */
    const moelm_tokens *tokenizer;         /* kept beside the model; NULL: none */
    const char *isa;                       /* of the kernels of this sitting */
    bool any_isa;                          /* go on from a checkpoint of others */
} moelm_train_state;

/* "<run_dir>/checkpoints/step-00001200" */
moe_status moelm_snapshot_path(const char *run_dir, int64_t step, char *path, size_t size, moe_error *error);
moe_status moelm_snapshot_save(const char *path, moe_lm *lm, const moelm_optimizer *optimizer,
                               const moelm_train_state *state, moe_error *error);
/* Into the optimizer and the parameters it updates. The hashes and, unless any_isa, the isa of `state` must
 * be those of the checkpoint; the rest is read. MOE_ERR_INPUT: it is damaged, and state and parameters are
 * undefined. */
moe_status moelm_snapshot_load(const char *path, const moelm_optimizer *optimizer, moelm_train_state *state,
                               moe_error *error);
/* Whether hashes and isa are those, by its trainer.json alone. */
moe_status moelm_snapshot_check(const char *path, const moelm_train_state *state, moe_error *error);
/* Steps of the checkpoints, newest first; free *step with free(). A missing directory has none. */
moe_status moelm_snapshot_list(const char *run_dir, int64_t **step, size_t *count, moe_error *error);
/* Renames one that cannot be read, so that it counts as a checkpoint no longer. */
moe_status moelm_snapshot_set_aside(const char *run_dir, int64_t step, moe_error *error);
/* Removes all but the newest `keep`. */
moe_status moelm_snapshot_rotate(const char *run_dir, int32_t keep, moe_error *error);
/* Removes what killed writers left. */
moe_status moelm_snapshot_sweep(const char *run_dir, moe_error *error);

#endif
