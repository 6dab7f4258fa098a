/* mxfp8.h: numbers in 8 bits: e4m3 codes, 32 of which share a power of two as their scale (e8m0).
 * value = code * 2^(scale - 127); the largest code is 448. Compiled for GPUs too (kernel/cuda/both.cuh).
 * Source: OCP Microscaling Formats (MX) specification 1.0, MXFP8. The scale is the least by which no number
 * of a block exceeds 448: the one of the specification's example lets the largest be cut by an eighth.
 */
#ifndef MOEI_MXFP8_H
#define MOEI_MXFP8_H

#include <moekit/moe.h>
#include <string.h>

enum { MOEI_MX_BLOCK = 32 };
static inline int64_t moei_mx_blocks(int64_t n) {
    return (n + MOEI_MX_BLOCK - 1) / MOEI_MX_BLOCK;
}

/* What backward needs of a forward, kept so.
 *   mx_save     code and scale from values
 *   mx_restore  values from code and scale, rounded to dtype */
typedef struct moei_mx_rows_args {
    moe_dtype dtype;
    int64_t rows, n;
    void *values;   /* [rows, n] */
    uint8_t *code;  /* [rows, n] */
    uint8_t *scale; /* [rows, moei_mx_blocks(n)], a block of columns each */
} moei_mx_rows_args;

static inline int32_t moei_float_bits(float value) {
    int32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
static inline float moei_float_of(int32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Of a block whose largest magnitude has these bits; its power and one over it are normal numbers. */
static inline int32_t moei_mx_scale(int32_t most_bits) {
    const int32_t scale =
        (int32_t)(((uint32_t)most_bits + 0x1fffff) >> 23) - 8; /* one more above 1.75 * 2^8 = 448 */
    return scale > 1 ? scale : 1;
}
static inline float moei_mx_power(int32_t scale) {
    return moei_float_of(scale * (1 << 23));
}
static inline float moei_mx_over_power(int32_t scale) {
    return moei_mx_power(254 - scale);
}

/* A choice without a branch, so that loops over numbers become vectors. */
static inline int32_t moei_either(bool when, int32_t yes, int32_t no) {
    return no ^ ((yes ^ no) & -(int32_t)when);
}

/* Rounds to nearest, ties to even; what is no number, or above 448, becomes NaN, which is what a run that has
 * diverged is to show. */
static inline uint8_t moei_e4m3_round(float value) {
    const int32_t bits = moei_float_bits(value), size = bits & 0x7fffffff;
    const uint32_t rounded = (uint32_t)size + 0x7ffff + ((uint32_t)size >> 20 & 1);
    const int32_t normal = (int32_t)(rounded >> 20) - (120 << 3);
    /* Below 2^-6 codes are multiples of 2^-9, which is what adding 2^14 leaves of an f32. */
    const int32_t tiny = moei_float_bits(moei_float_of(size) + 0x1p14f) - moei_float_bits(0x1p14f);
    const int32_t code = moei_either(size < moei_float_bits(0x1p-6f), tiny, normal);
    return (uint8_t)(moei_either(size > moei_float_bits(448.0f), 127, code) | (bits >> 24 & 128));
}

static inline float moei_e4m3_value(uint8_t code) {
    const int32_t size = code & 127, normal = (size << 20) + (120 << 23);
    const int32_t tiny = moei_float_bits((float)size * 0x1p-9f);
    const int32_t number = moei_either(size == 127, 0x7fc00000, moei_either(size < 8, tiny, normal));
    return moei_float_of((int32_t)((uint32_t)number | (uint32_t)(code & 128) << 24));
}

#endif
