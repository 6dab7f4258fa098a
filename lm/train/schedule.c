/* schedule.c: linear warm-up, then half a cosine down to lr * min_lr_ratio.
 * With train.max_seconds the cosine follows the clock where that runs ahead of the steps.
 * Source: Loshchilov and Hutter, "SGDR", 2017, without restarts.
 */
#include "train/schedule.h"

#include <math.h>

static double clamp01(double x) {
    return x < 0 ? 0 : x > 1 ? 1 : x;
}

double moelm_schedule_progress(const moelm_train_config *train, int64_t step, double seconds) {
    double by_step = (double)step / (double)train->steps;
    double by_clock = train->max_seconds > 0 ? seconds / train->max_seconds : 0;
    return clamp01(by_step > by_clock ? by_step : by_clock);
}

double moelm_schedule_lr(const moelm_train_config *train, int64_t step, double seconds) {
    const double pi = 3.14159265358979323846;
    int64_t warmup = train->warmup_steps;
    double warm = step < warmup ? (double)step / (double)warmup : 1;
    /* the cosine starts where the warm-up ends, and never before */
    double begin = clamp01((double)warmup / (double)train->steps);
    double progress = moelm_schedule_progress(train, step, seconds);
    double t = begin < 1 ? clamp01((progress - begin) / (1 - begin)) : 0;
    double share = train->min_lr_ratio + (1 - train->min_lr_ratio) * 0.5 * (1 + cos(pi * t));
    return train->lr * warm * share;
}
