/* simd_avx2.h: the vector vocabulary of the f32 kernels, AVX2 + FMA edition.
 * vf: VF_N floats; vd: VD_N doubles; vm: a lane mask. simd_avx512.h defines the same names, so an
 * algorithm is written once in <op>_simd.h and compiled by <op>_avx2.c and <op>_avx512.c.
 */
#ifndef MOEI_SIMD_AVX2_H
#define MOEI_SIMD_AVX2_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

enum { VF_N = 8, VD_N = 4 };
typedef __m256 vf;
typedef __m256d vd;
typedef __m256 vm; /* all bits of a lane set, or none */

static inline vf vf_zero(void) {
    return _mm256_setzero_ps();
}
static inline vf vf_set1(float x) {
    return _mm256_set1_ps(x);
}
static inline vf vf_load(const float *p) {
    return _mm256_loadu_ps(p);
}
static inline void vf_store(float *p, vf a) {
    _mm256_storeu_ps(p, a);
}
/* The first n lanes (0 <= n <= VF_N); memory past them is not touched, lanes past them read 0. */
static inline vm vm_first(int64_t n) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32((int32_t)n), lane));
}
static inline vf vf_load_n(const float *p, int64_t n) {
    return _mm256_maskload_ps(p, _mm256_castps_si256(vm_first(n)));
}
static inline void vf_store_n(float *p, vf a, int64_t n) {
    _mm256_maskstore_ps(p, _mm256_castps_si256(vm_first(n)), a);
}

/* bf16 in memory: exactly to f32, and back rounded to nearest, ties to even, a NaN made quiet. */
static inline vf vf_load_bf16(const uint16_t *p) {
    __m128i half = _mm_loadu_si128((const __m128i *)(const void *)p);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
static inline vf vf_load_bf16_n(const uint16_t *p, int64_t n) {
    uint16_t whole[VF_N] = {0};
    memcpy(whole, p, (size_t)n * sizeof *p);
    return vf_load_bf16(whole);
}
static inline void vf_store_bf16(uint16_t *p, vf a) {
    __m256i bits = _mm256_castps_si256(a), high = _mm256_srli_epi32(bits, 16);
    __m256i even = _mm256_and_si256(high, _mm256_set1_epi32(1));
    __m256i up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), even);
    __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    __m256i half = _mm256_blendv_epi8(_mm256_srli_epi32(up, 16), quiet, nan);
    half = _mm256_permute4x64_epi64(_mm256_packus_epi32(half, half), 0x08);
    _mm_storeu_si128((__m128i *)(void *)p, _mm256_castsi256_si128(half));
}
static inline void vf_store_bf16_n(uint16_t *p, vf a, int64_t n) {
    uint16_t whole[VF_N];
    vf_store_bf16(whole, a);
    memcpy(p, whole, (size_t)n * sizeof *p);
}

/* Past the caches: a vector of f32, or two of them as bf16, to a multiple of the bytes stored; vf_stream_end
 * comes before another thread may read them. */
static inline void vf_stream(float *p, vf a) {
    _mm256_stream_ps(p, a);
}
static inline void vf_stream_bf16(uint16_t *p, vf first, vf second) {
    _Alignas(32) uint16_t both[2 * VF_N];
    vf_store_bf16(both, first);
    vf_store_bf16(both + VF_N, second);
    _mm256_stream_si256((__m256i *)(void *)p, _mm256_load_si256((const __m256i *)(const void *)both));
}
static inline void vf_stream_end(void) {
    _mm_sfence();
}

static inline vf vf_add(vf a, vf b) {
    return _mm256_add_ps(a, b);
}
static inline vf vf_sub(vf a, vf b) {
    return _mm256_sub_ps(a, b);
}
static inline vf vf_mul(vf a, vf b) {
    return _mm256_mul_ps(a, b);
}
static inline vf vf_div(vf a, vf b) {
    return _mm256_div_ps(a, b);
}
static inline vf vf_sqrt(vf a) {
    return _mm256_sqrt_ps(a);
}
static inline vf vf_fma(vf a, vf b, vf c) {
    return _mm256_fmadd_ps(a, b, c);
} /* a*b + c */
static inline vf vf_fnma(vf a, vf b, vf c) {
    return _mm256_fnmadd_ps(a, b, c);
} /* c - a*b */
/* Where either is NaN: b. */
static inline vf vf_max(vf a, vf b) {
    return _mm256_max_ps(a, b);
}
static inline vf vf_min(vf a, vf b) {
    return _mm256_min_ps(a, b);
}
static inline vf vf_abs(vf a) {
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a);
}
static inline vf vf_neg(vf a) {
    return _mm256_xor_ps(a, _mm256_set1_ps(-0.0f));
}
static inline vf vf_round(vf a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/* a * 2^n for whole n in [-254, 254]: two powers in the normal range, so rounded once for a in [1/2, 2]. */
static inline vf vf_scale2(vf a, vf n) {
    const __m256i bias = _mm256_set1_epi32(127);
    __m256i all = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(all, 1), rest = _mm256_sub_epi32(all, half);
    __m256 p = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
    __m256 q = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
    return _mm256_mul_ps(_mm256_mul_ps(a, p), q);
}

static inline vm vf_lt(vf a, vf b) {
    return _mm256_cmp_ps(a, b, _CMP_LT_OQ);
}
static inline vm vf_eq(vf a, vf b) {
    return _mm256_cmp_ps(a, b, _CMP_EQ_OQ);
}
static inline vf vf_select(vm m, vf a, vf b) {
    return _mm256_blendv_ps(b, a, m);
} /* m ? a : b */
static inline uint32_t vm_bits(vm m) {
    return (uint32_t)_mm256_movemask_ps(m);
} /* bit i: lane i */

/* Halves are added to halves: a fixed tree. */
static inline float vf_sum(vf a) {
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}
static inline float vf_max_lane(vf a) {
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_shuffle_ps(q, q, 1)));
}

/* In-place transpose of a VF_N x VF_N block held as rows. */
static inline void vf_transpose(vf r[static 8]) {
    __m256 t[8];
    for (int i = 0; i < 8; i += 4) {
        __m256 a = _mm256_unpacklo_ps(r[i], r[i + 1]), b = _mm256_unpackhi_ps(r[i], r[i + 1]);
        __m256 c = _mm256_unpacklo_ps(r[i + 2], r[i + 3]), d = _mm256_unpackhi_ps(r[i + 2], r[i + 3]);
        t[i] = _mm256_shuffle_ps(a, c, 0x44);
        t[i + 1] = _mm256_shuffle_ps(a, c, 0xee);
        t[i + 2] = _mm256_shuffle_ps(b, d, 0x44);
        t[i + 3] = _mm256_shuffle_ps(b, d, 0xee);
    }
    for (int i = 0; i < 4; ++i) {
        r[i] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x20);
        r[i + 4] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x31);
    }
}

/* Codes of packed weights (kernel/packed.h): vu holds VF_N words of 32 bits, vt the numbers of 16 codes. */
typedef __m256i vu;
typedef struct vt {
    __m256 low, high;
} vt;
static inline vu vu_load(const void *p) {
    return _mm256_loadu_si256((const __m256i *)p);
}
static inline vt vt_load(const float table[16]) {
    return (vt){_mm256_loadu_ps(table), _mm256_loadu_ps(table + 8)};
}
/* The number of code i of 8 in each word: its low three bits choose in both halves, the fourth between them.
 */
static inline vf vf_nibble(vt table, vu words, int i) {
    __m256i code = _mm256_srli_epi32(words, 4 * i), top = _mm256_slli_epi32(words, 28 - 4 * i);
    __m256 low = _mm256_permutevar8x32_ps(table.low, code);
    __m256 high = _mm256_permutevar8x32_ps(table.high, code);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(top));
}
/* Signed byte i of 4. */
static inline vf vf_byte(vu words, int i) {
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(words, 24 - 8 * i), 24));
}
/* bf16 i of 2. */
static inline vf vf_half(vu words, int i) {
    return _mm256_castsi256_ps(i == 0 ? _mm256_slli_epi32(words, 16)
                                      : _mm256_and_si256(words, _mm256_set1_epi32(-0x10000)));
}
/* Scales: finite f16 of at least zero, and powers of two. */
static inline vf vf_load_f16(const void *p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_mul_ps(_mm256_castsi256_ps(_mm256_slli_epi32(wide, 13)), _mm256_set1_ps(0x1p112f));
}
static inline vf vf_load_exponent(const void *p) {
    __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 23));
}

static inline vd vd_zero(void) {
    return _mm256_setzero_pd();
}
static inline vd vd_set1(double x) {
    return _mm256_set1_pd(x);
}
static inline vd vd_load(const double *p) {
    return _mm256_loadu_pd(p);
}
static inline void vd_store(double *p, vd a) {
    _mm256_storeu_pd(p, a);
}
static inline vd vd_add(vd a, vd b) {
    return _mm256_add_pd(a, b);
}
static inline vd vd_mul(vd a, vd b) {
    return _mm256_mul_pd(a, b);
}
static inline vd vd_fma(vd a, vd b, vd c) {
    return _mm256_fmadd_pd(a, b, c);
}
static inline vd vd_low(vf a) {
    return _mm256_cvtps_pd(_mm256_castps256_ps128(a));
} /* lanes 0 .. VD_N-1 */
static inline vd vd_high(vf a) {
    return _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1));
}
static inline vf vf_from_vd(vd low, vd high) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm256_cvtpd_ps(low)), _mm256_cvtpd_ps(high), 1);
}
static inline double vd_sum(vd a) {
    __m128d q = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_add_sd(q, _mm_unpackhi_pd(q, q)));
}

#include "kernel/simd_math.h"

#endif
