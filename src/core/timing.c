/* timing.c: the clock of moekit/op.h's moe_time.
 */
#include "core/timing.h"

#include <time.h>

double moei_timing_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}
