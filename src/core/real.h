/* real.h: any dtype read and written as double: what reference kernels and stages touch single numbers with.
 * i: element index. bf16 is the upper half of an f32 (8 significant bits), rounded to nearest, ties to even.
 */
#ifndef MOEI_REAL_H
#define MOEI_REAL_H

#include <moekit/moe.h>
#include <string.h>

enum { MOEI_DTYPES = 3 };

/* The dtype of what stands beside numbers of `dtype` and is summed or divided by: routing weights, statistics
 * of a row, gradients of parameters, moments. bf16 would lose small terms of a long sum. */
static inline moe_dtype moei_wide(moe_dtype dtype) {
    return dtype == MOE_BF16 ? MOE_F32 : dtype;
}

/* For a text. */
static inline const char *moei_dtype_name(moe_dtype dtype) {
    static const char *const name[MOEI_DTYPES] = {"MOE_F32", "MOE_F64", "MOE_BF16"};
    return (unsigned)dtype < MOEI_DTYPES ? name[dtype] : "no moe_dtype";
}

static inline float moei_bf16_value(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

static inline uint16_t moei_bf16_round(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (value != value) return (uint16_t)(bits >> 16 | 0x40); /* a quiet NaN, never infinity */
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline double moei_real_load(moe_dtype dtype, const void *p, int64_t i) {
    switch (dtype) {
    case MOE_F64:
        return ((const double *)p)[i];
    case MOE_BF16:
        return (double)moei_bf16_value(((const uint16_t *)p)[i]);
    case MOE_F32:
        break;
    }
    return (double)((const float *)p)[i];
}

static inline void moei_real_store(moe_dtype dtype, void *p, int64_t i, double value) {
    switch (dtype) {
    case MOE_F64:
        ((double *)p)[i] = value;
        break;
    case MOE_BF16:
        ((uint16_t *)p)[i] = moei_bf16_round((float)value);
        break;
    case MOE_F32:
        ((float *)p)[i] = (float)value;
        break;
    }
}

/* The address of element i. */
static inline void *moei_real_at(moe_dtype dtype, void *p, int64_t i) {
    return (char *)p + i * (int64_t)moe_dtype_bytes(dtype);
}

#endif
