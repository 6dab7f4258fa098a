/* alarm.h: what may go wrong with a router while it trains, watched step by step: experts without work, load
 * on few experts, rows dropped. Counters go with the checkpoint, so a resumed run rings as an unbroken one.
 */
#ifndef MOELM_ALARM_H
#define MOELM_ALARM_H

#include "config/config.h"
#include "train/load.h"

typedef enum moelm_alarm_kind { MOELM_ALARM_DEAD, MOELM_ALARM_ENTROPY, MOELM_ALARM_DROPPED } moelm_alarm_kind;

typedef struct moelm_alarm {
    moelm_alarm_kind kind;
    int32_t layer;
    int32_t expert; /* the dead one; else -1 */
    int32_t from;   /* the expert it was revived from; -1: it was not */
    int64_t steps;  /* in a row */
    double value;   /* the figure that broke its bound; of a dead expert 0 rows */
    double bound;
} moelm_alarm;

typedef struct moelm_alarms {
    int32_t n_layers;
    int64_t n_experts;        /* of all layers */
    uint64_t *silent;         /* [n_experts] steps in a row without a row; places as in moelm_load */
    uint64_t *even, *dropped; /* [n_layers] steps in a row that a bound was broken: entropy, drops */
    moelm_alarm *ringing;     /* those that began with the last step */
    int32_t n_ringing;
} moelm_alarms;

moe_status moelm_alarms_create(const moelm_load *shape, moelm_alarms *alarms, moe_error *error);
void moelm_alarms_destroy(moelm_alarms *alarms);

/* Counts a step of this load. An alarm rings when its count is reached, and not again until it has been good;
 * with the actions stop and revive its count starts again. `lm`: some experts are idle by their layer's own
 * settings. */
void moelm_alarms_count(moelm_alarms *alarms, const moelm_train_config *train, const moelm_load *load,
                        moe_lm *lm);
/* "layer 1: expert 3 had no row for 10 steps" */
void moelm_alarm_text(const moelm_alarm *alarm, char *text, size_t size);
const char *moelm_alarm_name(moelm_alarm_kind kind);

#endif
