/* trainer.c: the loop of a training run: step, evaluate, log, save, until done, stopped or failed.
 * The order within a step is fixed, so the files of a checkpoint's step are complete when it is saved.
 * Source: docs/run-directory.md.
 */
#include "train/trainer.h"

#include "core/status.h"
#include "train/clock.h"
#include "train/schedule.h"
#include "train/score.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

double moelm_trainer_elapsed(const moelm_trainer *t) {
    return t->elapsed_before + moelm_seconds() - t->clock_start;
}

moe_status moelm_trainer_ctx(moelm_trainer *t, moe_status status) {
    return status == MOE_OK ? MOE_OK : moei_error_set(&t->error, status, "%s", moe_ctx_error(t->ctx));
}

/* Every `every` steps, and at the end. */
static bool is_due(int64_t step, int64_t every, bool last) {
    return last || (every > 0 && step % every == 0);
}

/* The progress of this moment, told under the name of an event; NULL: a step like others. */
static moe_lm_progress progress_of(const moelm_trainer *t, const char *event) {
    moe_lm_progress progress = t->progress;
    progress.event = event;
    return progress;
}

static void report(const moelm_trainer *t, const char *event) {
    moe_lm_progress progress = progress_of(t, event);
    if (t->options->on_progress) t->options->on_progress(t->options->user, &progress);
}

/* The line in main.log is the one a terminal shows. */
static moe_status say(moelm_trainer *t, const char *event) {
    char line[4400];
    moe_lm_progress progress = progress_of(t, event);
    moe_lm_progress_text(&progress, line, sizeof line);
    return moelm_run_log_say(t->log, line, &t->error);
}

moe_status moelm_trainer_event(moelm_trainer *t, const char *event) {
    MOEI_TRY(say(t, event));
    report(t, event);
    return MOE_OK;
}

moelm_reading moelm_trainer_eval_text(const moelm_trainer *t) {
    return moelm_text_reading(&t->eval, t->config->train.eval_bytes);
}

static moe_status evaluate(moelm_trainer *t) {
    const moelm_reading text = moelm_trainer_eval_text(t);
    double bits;
    MOEI_TRY(moelm_trainer_ctx(t, moelm_score(t->lm, &text, t->lm->context, NULL, &bits)));
    t->progress.eval_bits_per_byte = t->state.eval_bits_per_byte =
        bits / (double)(text.ids ? t->eval.n_bytes : text.n);
    t->progress.eval_step = t->state.step;
    return moelm_trainer_event(t, "eval");
}

/* An error has words alone, and strerror's are among them. */
static bool is_full_disk(const moe_error *error) {
    static const int causes[] = {ENOSPC, EDQUOT, EFBIG};
    bool full = strstr(error->text, "its file system has") != NULL; /* moelm_file_check_space */
    for (size_t i = 0; i < sizeof causes / sizeof *causes; ++i)
        full = full || strstr(error->text, strerror(causes[i]));
    return full;
}

/* What a disk that is full, or gone, takes from the run, and what gives it back. */
static moe_status told_what_is_lost(moelm_trainer *t, moe_status status) {
    char lost[64] = "no step is saved";
    const moe_error why = t->error;
    if (status != MOE_ERR_IO) return status;
    if (t->saved_step > 0)
        snprintf(lost, sizeof lost, "no step after %lld is saved", (long long)t->saved_step);
    return moei_error_set(&t->error, status, "%.300s; %s. %s, then resume %s to go on", why.text, lost,
                          is_full_disk(&why) ? "Make room" : "Mend that", t->dir.path);
}

static moe_status write_checkpoint(moelm_trainer *t, const char *path) {
    MOEI_TRY(moelm_run_log_sync(t->log, &t->error));
    t->state.elapsed_s = moelm_trainer_elapsed(t);
    MOEI_TRY(moelm_snapshot_save(path, t->lm, &t->optimizer, &t->state, &t->error));
    t->saved_step = t->state.step;
    return moelm_snapshot_rotate(t->dir.path, t->config->train.keep, &t->error);
}

static moe_status save(moelm_trainer *t) {
    char path[4096], event[4200];
    MOEI_TRY(moelm_run_dir_check_place(&t->dir, &t->error));
    MOEI_TRY(moelm_snapshot_path(t->dir.path, t->state.step, path, sizeof path, &t->error));
    MOEI_TRY(told_what_is_lost(t, write_checkpoint(t, path)));
    snprintf(event, sizeof event, "checkpoint %s", path);
    return moelm_trainer_event(t, event);
}

static void measure_time(moelm_trainer *t, double step_seconds) {
    moe_lm_progress *p = &t->progress;
    const moelm_train_config *train = &t->config->train;
    int64_t tokens = train->batch_size * train->grad_accum * t->length;
    t->state.tokens += tokens;
    t->rate_tokens += tokens;
    t->rate_seconds += step_seconds;
    p->step = t->state.step;
    p->tokens = t->state.tokens;
    p->elapsed_s = moelm_trainer_elapsed(t);
    p->tokens_per_second = t->rate_seconds > 0 ? (double)t->rate_tokens / t->rate_seconds : 0;
    double done = moelm_schedule_progress(train, p->step, p->elapsed_s);
    p->eta_s = p->elapsed_s * (1 - done) / done;
}

static moe_status write_metrics(moelm_trainer *t, bool evaluated, bool last) {
    const moelm_metrics metrics = {.progress = &t->progress,
                                   .load = &t->load,
                                   .router = t->router,
                                   .alarms = &t->state.alarms,
                                   .evaluated = evaluated,
                                   .layers = t->config->train.log_layers,
                                   .finished = last};
    MOEI_TRY(say(t, NULL));
    return moelm_run_log_metrics(t->log, &metrics, &t->error);
}

/* What follows the update of a step: held-out figure, metrics, load, checkpoint, in this order. A step that
 * rings is logged. */
static moe_status write_step(moelm_trainer *t, bool last) {
    const moelm_train_config *train = &t->config->train;
    int64_t step = t->state.step;
    moelm_load_add(&t->state.interval, &t->load);
    bool evaluated = t->eval.map.data && is_due(step, train->eval_every, last);
    if (evaluated) MOEI_TRY(evaluate(t));
    const bool logged = is_due(step, train->log_every, last) || t->state.alarms.n_ringing > 0;
    if (logged) MOEI_TRY(told_what_is_lost(t, write_metrics(t, evaluated, last)));
    if (is_due(step, train->load_every, last)) {
        MOEI_TRY(told_what_is_lost(t, moelm_run_log_load(t->log, step, &t->state.interval, &t->error)));
        moelm_load_clear(&t->state.interval);
    }
    report(t, NULL);
    if (logged) t->rate_seconds = 0, t->rate_tokens = 0;
    return is_due(step, train->save_every, last) ? save(t) : MOE_OK;
}

static moe_status stopped(moelm_trainer *t) {
    int64_t step = t->state.step;
    if (step > t->saved_step) MOEI_TRY(save(t));
    return moei_error_set(&t->error, MOE_ERR_INTERRUPTED,
                          "stopped after step %lld of %lld; resume %s to go on", (long long)step,
                          (long long)t->config->train.steps, t->dir.path);
}

/* Saved first: what led to the alarm can be looked at, and the run goes on when it is resumed. */
static moe_status stopped_by_alarm(moelm_trainer *t) {
    char text[200];
    int64_t step = t->state.step;
    if (step > t->saved_step) MOEI_TRY(save(t));
    moelm_alarm_text(&t->state.alarms.ringing[0], text, sizeof text);
    return moei_error_set(&t->error, MOE_ERR_ALARM,
                          "alarm in step %lld: %s; train.alarm_action is stop, and the checkpoint is saved: "
                          "resume %s to go on nevertheless",
                          (long long)step, text, t->dir.path);
}

/* Told where the end is not the last step, which speaks for itself, and of a run that was over before. */
static moe_status tell_end(moelm_trainer *t, bool was_over) {
    const moelm_train_config *train = &t->config->train;
    const bool late = t->state.step < train->steps;
    char event[4400], why[80] = "", idle[4200] = "";
    if (!late && !was_over) return MOE_OK;
    if (late)
        snprintf(why, sizeof why, ", as its time (train.max_seconds %g) has passed", train->max_seconds);
    if (was_over)
        snprintf(idle, sizeof idle,
                 "; there is nothing to resume, and train.from=%s begins another run with its parameters",
                 t->dir.path);
    snprintf(event, sizeof event, "over%s%s", why, idle);
    return moelm_trainer_event(t, event);
}

moe_status moelm_trainer_run(moelm_trainer *t) {
    const moelm_train_config *train = &t->config->train;
    const bool was_over = t->state.finished;
    while (!t->state.finished) {
        if (t->options->should_stop && t->options->should_stop(t->options->user)) return stopped(t);
        double start = moelm_seconds();
        moe_status status = moelm_trainer_step(t, t->state.step + 1);
        if (status == MOE_ERR_INTERRUPTED) return stopped(t);
        MOEI_TRY(status);
        t->state.step++;
        measure_time(t, moelm_seconds() - start);
        bool late = train->max_seconds > 0 && moelm_trainer_elapsed(t) >= train->max_seconds;
        t->state.finished = late || t->state.step >= train->steps;
        MOEI_TRY(moelm_trainer_alarms(t));
        MOEI_TRY(write_step(t, t->state.finished));
        if (t->state.alarms.n_ringing > 0 && strcmp(train->alarm_action, "stop") == 0)
            return stopped_by_alarm(t);
    }
    return tell_end(t, was_over);
}
