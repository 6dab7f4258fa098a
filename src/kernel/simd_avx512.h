/* simd_avx512.h: the vector vocabulary of the f32 kernels, AVX-512 edition (F, BW, DQ, VL).
 * vf: VF_N floats; vd: VD_N doubles; vm: a lane mask. simd_avx2.h defines the same names, so an
 * algorithm is written once in <op>_simd.h and compiled by <op>_avx2.c and <op>_avx512.c.
 */
#ifndef MOEI_SIMD_AVX512_H
#define MOEI_SIMD_AVX512_H

#include <immintrin.h>
#include <stdint.h>

enum { VF_N = 16, VD_N = 8 };
typedef __m512 vf;
typedef __m512d vd;
typedef __mmask16 vm;

static inline vf vf_zero(void) {
    return _mm512_setzero_ps();
}
static inline vf vf_set1(float x) {
    return _mm512_set1_ps(x);
}
static inline vf vf_load(const float *p) {
    return _mm512_loadu_ps(p);
}
static inline void vf_store(float *p, vf a) {
    _mm512_storeu_ps(p, a);
}
/* The first n lanes (0 <= n <= VF_N); memory past them is not touched, lanes past them read 0. */
static inline vm vm_first(int64_t n) {
    return (vm)((1u << n) - 1);
}
static inline vf vf_load_n(const float *p, int64_t n) {
    return _mm512_maskz_loadu_ps(vm_first(n), p);
}
static inline void vf_store_n(float *p, vf a, int64_t n) {
    _mm512_mask_storeu_ps(p, vm_first(n), a);
}

/* bf16 in memory: exactly to f32, and back rounded to nearest, ties to even, a NaN made quiet. */
static inline vf vf_load_bf16(const uint16_t *p) {
    __m256i half = _mm256_loadu_si256((const __m256i *)(const void *)p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
static inline vf vf_load_bf16_n(const uint16_t *p, int64_t n) {
    __m256i half = _mm256_maskz_loadu_epi16(vm_first(n), p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
#if defined(__AVX512BF16__)
static inline __m256i vf_to_bf16(vf a) { /* numbers below 2^-126 become 0 */
    return (__m256i)_mm512_cvtneps_pbh(a);
}
#else
static inline __m256i vf_to_bf16(vf a) {
    __m512i bits = _mm512_castps_si512(a), high = _mm512_srli_epi32(bits, 16);
    __m512i even = _mm512_and_si512(high, _mm512_set1_epi32(1));
    __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), even);
    __m512i quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
    __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(_mm512_srli_epi32(up, 16), nan, quiet));
}
#endif
static inline void vf_store_bf16(uint16_t *p, vf a) {
    _mm256_storeu_si256((__m256i *)(void *)p, vf_to_bf16(a));
}
static inline void vf_store_bf16_n(uint16_t *p, vf a, int64_t n) {
    _mm256_mask_storeu_epi16(p, vm_first(n), vf_to_bf16(a));
}

/* Past the caches: a vector of f32, or two of them as bf16, to a multiple of the bytes stored; vf_stream_end
 * comes before another thread may read them. */
static inline void vf_stream(float *p, vf a) {
    _mm512_stream_ps(p, a);
}
static inline void vf_stream_bf16(uint16_t *p, vf first, vf second) {
    __m512i low = _mm512_castsi256_si512(vf_to_bf16(first));
    _mm512_stream_si512((__m512i *)(void *)p, _mm512_inserti64x4(low, vf_to_bf16(second), 1));
}
static inline void vf_stream_end(void) {
    _mm_sfence();
}

static inline vf vf_add(vf a, vf b) {
    return _mm512_add_ps(a, b);
}
static inline vf vf_sub(vf a, vf b) {
    return _mm512_sub_ps(a, b);
}
static inline vf vf_mul(vf a, vf b) {
    return _mm512_mul_ps(a, b);
}
static inline vf vf_div(vf a, vf b) {
    return _mm512_div_ps(a, b);
}
static inline vf vf_sqrt(vf a) {
    return _mm512_sqrt_ps(a);
}
static inline vf vf_fma(vf a, vf b, vf c) {
    return _mm512_fmadd_ps(a, b, c);
} /* a*b + c */
static inline vf vf_fnma(vf a, vf b, vf c) {
    return _mm512_fnmadd_ps(a, b, c);
} /* c - a*b */
/* Where either is NaN: b. */
static inline vf vf_max(vf a, vf b) {
    return _mm512_max_ps(a, b);
}
static inline vf vf_min(vf a, vf b) {
    return _mm512_min_ps(a, b);
}
static inline vf vf_abs(vf a) {
    return _mm512_abs_ps(a);
}
static inline vf vf_neg(vf a) {
    return _mm512_xor_ps(a, _mm512_set1_ps(-0.0f));
}
static inline vf vf_round(vf a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/* a * 2^n for whole n in [-254, 254], rounded once. */
static inline vf vf_scale2(vf a, vf n) {
    return _mm512_scalef_ps(a, n);
}

static inline vm vf_lt(vf a, vf b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ);
}
static inline vm vf_eq(vf a, vf b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ);
}
static inline vf vf_select(vm m, vf a, vf b) {
    return _mm512_mask_blend_ps(m, b, a);
} /* m ? a : b */
static inline uint32_t vm_bits(vm m) {
    return m;
} /* bit i: lane i */

/* Halves are added to halves: a fixed tree. */
static inline float vf_sum(vf a) {
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}
static inline float vf_max_lane(vf a) {
    return _mm512_reduce_max_ps(a);
}

/* In-place transpose of a VF_N x VF_N block held as rows. */
static inline void vf_transpose(vf r[static 16]) {
    __m512 t[16];
    for (int i = 0; i < 16; i += 4) {
        __m512 a = _mm512_unpacklo_ps(r[i], r[i + 1]), b = _mm512_unpackhi_ps(r[i], r[i + 1]);
        __m512 c = _mm512_unpacklo_ps(r[i + 2], r[i + 3]), d = _mm512_unpackhi_ps(r[i + 2], r[i + 3]);
        t[i] = _mm512_shuffle_ps(a, c, 0x44);
        t[i + 1] = _mm512_shuffle_ps(a, c, 0xee);
        t[i + 2] = _mm512_shuffle_ps(b, d, 0x44);
        t[i + 3] = _mm512_shuffle_ps(b, d, 0xee);
    }
    for (int i = 0; i < 4; ++i) {
        __m512 a = _mm512_shuffle_f32x4(t[i], t[i + 4], 0x88), b = _mm512_shuffle_f32x4(t[i], t[i + 4], 0xdd);
        __m512 c = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0x88);
        __m512 d = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0xdd);
        r[i] = _mm512_shuffle_f32x4(a, c, 0x88);
        r[i + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
        r[i + 8] = _mm512_shuffle_f32x4(a, c, 0xdd);
        r[i + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
}

/* Codes of packed weights (kernel/packed.h): vu holds VF_N words of 32 bits, vt the numbers of 16 codes. */
typedef __m512i vu;
typedef __m512 vt;
static inline vu vu_load(const void *p) {
    return _mm512_loadu_si512(p);
}
static inline vt vt_load(const float table[16]) {
    return _mm512_loadu_ps(table);
}
/* The number of code i of 8 in each word. */
static inline vf vf_nibble(vt table, vu words, int i) {
    return _mm512_permutexvar_ps(_mm512_srli_epi32(words, (unsigned)(4 * i)), table);
}
/* Signed byte i of 4. */
static inline vf vf_byte(vu words, int i) {
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(words, (unsigned)(24 - 8 * i)), 24));
}
/* bf16 i of 2. */
static inline vf vf_half(vu words, int i) {
    return _mm512_castsi512_ps(i == 0 ? _mm512_slli_epi32(words, 16)
                                      : _mm512_and_si512(words, _mm512_set1_epi32(-0x10000)));
}
/* Scales: finite f16 of at least zero, and powers of two. */
static inline vf vf_load_f16(const void *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
static inline vf vf_load_exponent(const void *p) {
    __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 23));
}

static inline vd vd_zero(void) {
    return _mm512_setzero_pd();
}
static inline vd vd_set1(double x) {
    return _mm512_set1_pd(x);
}
static inline vd vd_load(const double *p) {
    return _mm512_loadu_pd(p);
}
static inline void vd_store(double *p, vd a) {
    _mm512_storeu_pd(p, a);
}
static inline vd vd_add(vd a, vd b) {
    return _mm512_add_pd(a, b);
}
static inline vd vd_mul(vd a, vd b) {
    return _mm512_mul_pd(a, b);
}
static inline vd vd_fma(vd a, vd b, vd c) {
    return _mm512_fmadd_pd(a, b, c);
}
static inline vd vd_low(vf a) {
    return _mm512_cvtps_pd(_mm512_castps512_ps256(a));
} /* lanes 0 .. VD_N-1 */
static inline vd vd_high(vf a) {
    return _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1));
}
static inline vf vf_from_vd(vd low, vd high) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(low)), _mm512_cvtpd_ps(high), 1);
}
static inline double vd_sum(vd a) {
    __m256d h = _mm256_add_pd(_mm512_castpd512_pd256(a), _mm512_extractf64x4_pd(a, 1));
    __m128d q = _mm_add_pd(_mm256_castpd256_pd128(h), _mm256_extractf128_pd(h, 1));
    return _mm_cvtsd_f64(_mm_add_sd(q, _mm_unpackhi_pd(q, q)));
}

#include "kernel/simd_math.h"

#endif
