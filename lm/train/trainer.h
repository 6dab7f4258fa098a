/* trainer.h: the parts of a training run, held together while moe_lm_train works.
 */
#ifndef MOELM_TRAINER_H
#define MOELM_TRAINER_H

#include "config/config.h"
#include "model/checkpoint.h"
#include "train/data.h"
#include "train/optimizer.h"
#include "train/run_dir.h"
#include "train/run_log.h"
#include "train/score.h"
#include "train/snapshot.h"

typedef struct moelm_trainer {
    moe_ctx *ctx;
    const moe_lm_config *config;
    const moe_lm_train_options *options;

    moelm_tokens tokenizer;
    moelm_text train, eval; /* eval.map.data NULL: none */
    moe_lm *lm;
    moelm_optimizer optimizer;
    moelm_run_dir dir;
    moelm_run_log *log;
    moelm_train_state state;

    int64_t length;
    int32_t *tokens, *targets;  /* [batch_size, length] of one forward */
    moelm_load load;            /* of the step */
    moelm_router_stats *router; /* [n_layers] of the step */
    moe_lm_progress progress;
    double elapsed_before, clock_start; /* seconds of earlier sittings; this one's start */
    double rate_seconds;                /* spent in steps since the last logged one */
    int64_t rate_tokens;
    int64_t saved_step;
    char from[MOELM_PATH]; /* the checkpoint that the run begins, or once began, with; "": none */
    bool began_from;       /* in this sitting */
    char told[MOELM_TOLD]; /* how the model is another than there; "": it is not */
    moe_error error;       /* text of the failure being passed up */
} moelm_trainer;

/* trainer.c: the loop, from state.step on. */
moe_status moelm_trainer_run(moelm_trainer *t);
double moelm_trainer_elapsed(const moelm_trainer *t);
/* Writes text to main.log and hands it to the caller as an event. */
moe_status moelm_trainer_event(moelm_trainer *t, const char *event);
/* Of the held-out text, those that are evaluated while training. */
moelm_reading moelm_trainer_eval_text(const moelm_trainer *t);
/* Passes on the text of a failed call on the context. */
moe_status moelm_trainer_ctx(moelm_trainer *t, moe_status status);

/* train.c: before the first step of a run: the parameters of `from`, where it names a checkpoint. */
moe_status moelm_trainer_begin(moelm_trainer *t);

/* resume.c: reads the newest checkpoint that is whole; `event` says which. */
moe_status moelm_trainer_resume(moelm_trainer *t, char *event, size_t size);
/* Whether the newest of run_dir is of this run, text and kernels; changes nothing. */
moe_status moelm_trainer_check_resume(moelm_trainer *t, const char *run_dir);

/* trainer_alarm.c: what rings after the step just made is told, and revived where the settings say so. */
moe_status moelm_trainer_alarms(moelm_trainer *t);

/* trainer_step.c: forwards, backwards, one update; leaves its figures in progress, load and router. */
moe_status moelm_trainer_step(moelm_trainer *t, int64_t step);

#endif
