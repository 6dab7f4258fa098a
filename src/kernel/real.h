/* real.h: element access for the reference kernels, which serve every dtype in f64 arithmetic.
 * p is an array of dtype t; i counts elements.
 */
#ifndef MOEI_KERNEL_REAL_H
#define MOEI_KERNEL_REAL_H

#include <moekit/moe.h>

static inline double moei_get(const void *p, moe_dtype t, int64_t i) {
    return t == MOE_F64 ? ((const double *)p)[i] : (double)((const float *)p)[i];
}

static inline void moei_put(void *p, moe_dtype t, int64_t i, double v) {
    if (t == MOE_F64)
        ((double *)p)[i] = v;
    else
        ((float *)p)[i] = (float)v;
}

#endif
