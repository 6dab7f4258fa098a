/* order.h: order statistics. */
#ifndef MOEI_ORDER_H
#define MOEI_ORDER_H

#include <stdint.h>

/* The (rank + 1)-th largest of v[n], 0 <= rank < n; v is reordered. No NaN. */
double moei_nth_largest(double *v, int64_t n, int64_t rank);

#endif
