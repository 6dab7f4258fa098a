/* clock.c: seconds of a monotonic clock.
 * A double holds them to a microsecond for a century.
 * Source: clock_gettime(2) of POSIX.
 */
#include "train/clock.h"

#include <time.h>

double moelm_seconds(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}
