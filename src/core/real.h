/* real.h: any dtype read and written as double: what reference kernels and stages touch single numbers with.
 * i: element index.
 */
#ifndef MOEI_REAL_H
#define MOEI_REAL_H

#include <moekit/moe.h>

static inline double moei_real_load(moe_dtype dtype, const void *p, int64_t i) {
    return dtype == MOE_F64 ? ((const double *)p)[i] : (double)((const float *)p)[i];
}

static inline void moei_real_store(moe_dtype dtype, void *p, int64_t i, double value) {
    if (dtype == MOE_F64)
        ((double *)p)[i] = value;
    else
        ((float *)p)[i] = (float)value;
}

/* The address of element i. */
static inline void *moei_real_at(moe_dtype dtype, void *p, int64_t i) {
    return (char *)p + i * (dtype == MOE_F64 ? (int64_t)sizeof(double) : (int64_t)sizeof(float));
}

#endif
