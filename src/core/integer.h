/* integer.h: least and quotient rounded up, of sizes and numbers of blocks (b > 0).
 * [none], a, b >= 0. Source: none.
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
