/* clock.h: the time that training and evaluation take.
 */
#ifndef MOELM_CLOCK_H
#define MOELM_CLOCK_H

/* Of a clock that only runs forward. */
double moelm_seconds(void);

#endif
