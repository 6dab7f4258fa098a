/* schedule.h: how far a run has come, and the learning rate there.
 * A step is numbered from 1; seconds are those the run has taken before it.
 */
#ifndef MOELM_SCHEDULE_H
#define MOELM_SCHEDULE_H

#include "config/config.h"

/* In [0, 1]: steps done over steps wanted, or time over train.max_seconds where that is more. */
double moelm_schedule_progress(const moelm_train_config *train, int64_t step, double seconds);
double moelm_schedule_lr(const moelm_train_config *train, int64_t step, double seconds);

#endif
