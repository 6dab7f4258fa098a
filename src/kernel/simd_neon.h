/* simd_neon.h: the vector vocabulary of the f32 kernels, AArch64 edition (Advanced SIMD).
 * vf: VF_N floats; vd: VD_N doubles; vm: a lane mask. simd_avx2.h and simd_avx512.h define the same names, so
 * an algorithm is written once in <op>_simd.h and compiled by <op>_neon.c too.
 */
#ifndef MOEI_SIMD_NEON_H
#define MOEI_SIMD_NEON_H

#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

enum { VF_N = 4, VD_N = 2 };
typedef float32x4_t vf;
typedef float64x2_t vd;
typedef uint32x4_t vm; /* all bits of a lane set, or none */

static inline vf vf_zero(void) {
    return vdupq_n_f32(0);
}
static inline vf vf_set1(float x) {
    return vdupq_n_f32(x);
}
static inline vf vf_load(const float *p) {
    return vld1q_f32(p);
}
static inline void vf_store(float *p, vf a) {
    vst1q_f32(p, a);
}
/* The first n lanes (0 <= n <= VF_N); memory past them is not touched, lanes past them read 0. */
static inline vm vm_first(int64_t n) {
    const uint32_t lane[VF_N] = {0, 1, 2, 3};
    return vcltq_u32(vld1q_u32(lane), vdupq_n_u32((uint32_t)n));
}
static inline vf vf_load_n(const float *p, int64_t n) {
    float whole[VF_N] = {0};
    memcpy(whole, p, (size_t)n * sizeof *p);
    return vf_load(whole);
}
static inline void vf_store_n(float *p, vf a, int64_t n) {
    float whole[VF_N];
    vf_store(whole, a);
    memcpy(p, whole, (size_t)n * sizeof *p);
}

/* bf16 in memory: exactly to f32, and back rounded to nearest, ties to even, a NaN made quiet. */
static inline vf vf_load_bf16(const uint16_t *p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}
static inline vf vf_load_bf16_n(const uint16_t *p, int64_t n) {
    uint16_t whole[VF_N] = {0};
    memcpy(whole, p, (size_t)n * sizeof *p);
    return vf_load_bf16(whole);
}
static inline void vf_store_bf16(uint16_t *p, vf a) {
    uint32x4_t bits = vreinterpretq_u32_f32(a), high = vshrq_n_u32(bits, 16);
    uint32x4_t even = vandq_u32(high, vdupq_n_u32(1));
    uint32x4_t up = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), even);
    uint32x4_t quiet = vorrq_u32(high, vdupq_n_u32(0x40));
    vst1_u16(p, vmovn_u32(vbslq_u32(vceqq_f32(a, a), vshrq_n_u32(up, 16), quiet)));
}
static inline void vf_store_bf16_n(uint16_t *p, vf a, int64_t n) {
    uint16_t whole[VF_N];
    vf_store_bf16(whole, a);
    memcpy(p, whole, (size_t)n * sizeof *p);
}

/* A vector of f32, or two of them as bf16, that need not stay in a cache: here as any other. */
static inline void vf_stream(float *p, vf a) {
    vf_store(p, a);
}
static inline void vf_stream_bf16(uint16_t *p, vf first, vf second) {
    vf_store_bf16(p, first);
    vf_store_bf16(p + VF_N, second);
}
static inline void vf_stream_end(void) {}

static inline vf vf_add(vf a, vf b) {
    return vaddq_f32(a, b);
}
static inline vf vf_sub(vf a, vf b) {
    return vsubq_f32(a, b);
}
static inline vf vf_mul(vf a, vf b) {
    return vmulq_f32(a, b);
}
static inline vf vf_div(vf a, vf b) {
    return vdivq_f32(a, b);
}
static inline vf vf_sqrt(vf a) {
    return vsqrtq_f32(a);
}
static inline vf vf_fma(vf a, vf b, vf c) {
    return vfmaq_f32(c, a, b);
} /* a*b + c */
static inline vf vf_fnma(vf a, vf b, vf c) {
    return vfmsq_f32(c, a, b);
} /* c - a*b */
/* Where either is NaN: b. */
static inline vf vf_max(vf a, vf b) {
    return vbslq_f32(vcgtq_f32(a, b), a, b);
}
static inline vf vf_min(vf a, vf b) {
    return vbslq_f32(vcltq_f32(a, b), a, b);
}
static inline vf vf_abs(vf a) {
    return vabsq_f32(a);
}
static inline vf vf_neg(vf a) {
    return vnegq_f32(a);
}
static inline vf vf_round(vf a) {
    return vrndnq_f32(a);
}
/* a * 2^n for whole n in [-254, 254], rounded once. */
static inline vf vf_scale2(vf a, vf n) {
    int32x4_t all = vcvtq_s32_f32(n), half = vshrq_n_s32(all, 1), rest = vsubq_s32(all, half);
    vf p = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(half, vdupq_n_s32(127)), 23));
    vf q = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(rest, vdupq_n_s32(127)), 23));
    return vmulq_f32(vmulq_f32(a, p), q);
}

static inline vm vf_lt(vf a, vf b) {
    return vcltq_f32(a, b);
}
static inline vm vf_eq(vf a, vf b) {
    return vceqq_f32(a, b);
}
static inline vf vf_select(vm m, vf a, vf b) {
    return vbslq_f32(m, a, b);
} /* m ? a : b */
static inline uint32_t vm_bits(vm m) {
    const uint32_t bit[VF_N] = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(m, vld1q_u32(bit)));
} /* bit i: lane i */

/* Halves are added to halves: a fixed tree. */
static inline float vf_sum(vf a) {
    float32x2_t half = vadd_f32(vget_low_f32(a), vget_high_f32(a));
    return vget_lane_f32(half, 0) + vget_lane_f32(half, 1);
}
static inline float vf_max_lane(vf a) {
    return vmaxvq_f32(a);
}

/* In-place transpose of a VF_N x VF_N block held as rows. */
static inline void vf_transpose(vf r[static 4]) {
    vf a = vtrn1q_f32(r[0], r[1]), b = vtrn2q_f32(r[0], r[1]);
    vf c = vtrn1q_f32(r[2], r[3]), d = vtrn2q_f32(r[2], r[3]);
    r[0] = vcombine_f32(vget_low_f32(a), vget_low_f32(c));
    r[1] = vcombine_f32(vget_low_f32(b), vget_low_f32(d));
    r[2] = vcombine_f32(vget_high_f32(a), vget_high_f32(c));
    r[3] = vcombine_f32(vget_high_f32(b), vget_high_f32(d));
}

/* Codes of packed weights (kernel/packed.h): vu holds VF_N words of 32 bits, vt the numbers of 16 codes. */
typedef uint32x4_t vu;
typedef uint8x16x4_t vt;
static inline vu vu_load(const void *p) {
    return vreinterpretq_u32_u8(vld1q_u8((const uint8_t *)p));
}
static inline vt vt_load(const float table[16]) {
    vt t;
    for (int i = 0; i < 4; ++i) t.val[i] = vreinterpretq_u8_f32(vld1q_f32(table + 4 * i));
    return t;
}
/* The number of code i of 8 in each word: its four bytes are those from four times the code on. */
static inline vf vf_nibble(vt table, vu words, int i) {
    uint32x4_t code = vandq_u32(vshlq_u32(words, vdupq_n_s32(-4 * i)), vdupq_n_u32(15));
    uint32x4_t bytes = vmlaq_n_u32(vdupq_n_u32(0x03020100), code, 0x04040404);
    return vreinterpretq_f32_u8(vqtbl4q_u8(table, vreinterpretq_u8_u32(bytes)));
}
/* Signed byte i of 4. */
static inline vf vf_byte(vu words, int i) {
    int32x4_t top = vreinterpretq_s32_u32(vshlq_u32(words, vdupq_n_s32(24 - 8 * i)));
    return vcvtq_f32_s32(vshrq_n_s32(top, 24));
}
/* bf16 i of 2. */
static inline vf vf_half(vu words, int i) {
    return vreinterpretq_f32_u32(i == 0 ? vshlq_n_u32(words, 16) : vandq_u32(words, vdupq_n_u32(0xffff0000)));
}
/* Scales: finite f16 of at least zero, and powers of two. */
static inline vf vf_load_f16(const void *p) {
    uint16_t half[VF_N];
    memcpy(half, p, sizeof half);
    uint32x4_t bits = vshll_n_u16(vld1_u16(half), 13);
    return vmulq_n_f32(vreinterpretq_f32_u32(bits), 0x1p112f);
}
static inline vf vf_load_exponent(const void *p) {
    const uint8_t *e = (const uint8_t *)p;
    const uint32_t bits[VF_N] = {(uint32_t)e[0] << 23, (uint32_t)e[1] << 23, (uint32_t)e[2] << 23,
                                 (uint32_t)e[3] << 23};
    return vreinterpretq_f32_u32(vld1q_u32(bits));
}

static inline vd vd_zero(void) {
    return vdupq_n_f64(0);
}
static inline vd vd_set1(double x) {
    return vdupq_n_f64(x);
}
static inline vd vd_load(const double *p) {
    return vld1q_f64(p);
}
static inline void vd_store(double *p, vd a) {
    vst1q_f64(p, a);
}
static inline vd vd_add(vd a, vd b) {
    return vaddq_f64(a, b);
}
static inline vd vd_mul(vd a, vd b) {
    return vmulq_f64(a, b);
}
static inline vd vd_fma(vd a, vd b, vd c) {
    return vfmaq_f64(c, a, b);
}
static inline vd vd_low(vf a) {
    return vcvt_f64_f32(vget_low_f32(a));
} /* lanes 0 .. VD_N-1 */
static inline vd vd_high(vf a) {
    return vcvt_high_f64_f32(a);
}
static inline vf vf_from_vd(vd low, vd high) {
    return vcvt_high_f32_f64(vcvt_f32_f64(low), high);
}
static inline double vd_sum(vd a) {
    return vgetq_lane_f64(a, 0) + vgetq_lane_f64(a, 1);
}

#include "kernel/simd_math.h"

#endif
