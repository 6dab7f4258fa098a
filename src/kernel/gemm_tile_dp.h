/* gemm_tile_dp.h: the register tile of bf16 pairs, by vdpbf16ps: MR x NR sums in f32.
 * Operands as in gemm_pairs.h, which it includes. Source: gemm_tile.h.
 */
#ifndef MOEI_GEMM_TILE_DP_H
#define MOEI_GEMM_TILE_DP_H

enum {
    K_STEP = 2,
    MR = 14,         /* 28 of 32 registers hold the tile */
    STREAM_ROWS = 4, /* up to so many rows B is packed a strip at a time, straight before its use */
};

#include "kernel/gemm_pairs.h"

/* sum[mr, NR] (+)= A B: A element (i, k) at a[i * a_i + k], B a panel; a_k is 1. */
MOEI_INLINE void tile_fixed(const int mr, const moei_packed *a, const int64_t a_i, const int64_t a_k,
                            const moei_packed *b, int64_t kc, float *sum, bool add) {
    vf acc[MR][2];
    MOEI_UNROLL
    for (int i = 0; i < mr; ++i) {
        acc[i][0] = add ? vf_load(sum + i * SUM_LD) : vf_zero();
        acc[i][1] = add ? vf_load(sum + i * SUM_LD + VF_N) : vf_zero();
    }
    for (int64_t k = 0; k < kc; k += 2, a += 2 * a_k, b += 2 * NR) {
        __m512bh b0 = (__m512bh)_mm512_loadu_si512(b), b1 = (__m512bh)_mm512_loadu_si512(b + NR);
        MOEI_UNROLL
        for (int i = 0; i < mr; ++i) {
            int32_t pair;
            memcpy(&pair, a + i * a_i, sizeof pair);
            __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
            acc[i][0] = _mm512_dpbf16_ps(acc[i][0], x, b0);
            acc[i][1] = _mm512_dpbf16_ps(acc[i][1], x, b1);
        }
    }
    MOEI_UNROLL
    for (int i = 0; i < mr; ++i) {
        vf_store(sum + i * SUM_LD, acc[i][0]);
        vf_store(sum + i * SUM_LD + VF_N, acc[i][1]);
    }
}

#include "kernel/gemm_tile_any.h"

/* sum[mr, NR] (+)= A B, A packed with stride A_LD; `share` lines are fetched for every FETCH_K steps. */
static __attribute__((noinline)) void tile_pairs(int mr, const uint16_t *a, const uint16_t *b, int64_t kc,
                                                 float *sum, bool add, moei_fetch *fetch, int64_t share) {
    fetch_lines(fetch, share * moei_ceil_div(kc, FETCH_K));
    tile_any(mr, a, A_LD, 1, b, kc, sum, add);
}

static inline void tiles_begin(void) {}
static inline void tiles_end(void) {}

#endif
