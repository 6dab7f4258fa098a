/* run_log.h: the files that grow while a run trains: metrics.jsonl, load.bin, main.log.
 * Opened at the step a run goes on from, so that a resumed run ends with the files of an unbroken one.
 */
#ifndef MOELM_RUN_LOG_H
#define MOELM_RUN_LOG_H

#include "train/alarm.h"
#include "train/router_stats.h"

/* What one line of metrics.jsonl tells. */
typedef struct moelm_metrics {
    const moe_lm_progress *progress;
    const moelm_load *load;           /* of this step */
    const moelm_router_stats *router; /* [n_layers] of this step */
    const moelm_alarms *alarms;       /* those that rang in this step; NULL: none */
    bool evaluated;                   /* this step has a held-out figure */
    bool layers;                      /* tell them */
    bool finished;                    /* the run ends with this step */
} moelm_metrics;

typedef struct moelm_run_log moelm_run_log;
moe_status moelm_run_log_open(const char *run_dir, int64_t step, const moelm_load *shape, moelm_run_log **log,
                              moe_error *error);
moe_status moelm_run_log_metrics(moelm_run_log *log, const moelm_metrics *metrics, moe_error *error);
moe_status moelm_run_log_load(moelm_run_log *log, int64_t step, const moelm_load *load, moe_error *error);
/* One line of main.log. */
moe_status moelm_run_log_say(moelm_run_log *log, const char *text, moe_error *error);
/* Everything said so far survives a power cut; called before a checkpoint counts on it. */
moe_status moelm_run_log_sync(moelm_run_log *log, moe_error *error);
void moelm_run_log_close(moelm_run_log *log);

#endif
