/* integer.h: the lesser of two sizes, and a quotient rounded up: how many blocks of b hold a.
 * a >= 0, b > 0; a + b must not overflow.
 */
#ifndef MOEI_INTEGER_H
#define MOEI_INTEGER_H

#include <stdint.h>

static inline int64_t moei_min(int64_t a, int64_t b) {
    return a < b ? a : b;
}
static inline int64_t moei_ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

#endif
