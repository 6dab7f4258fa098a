/* gemm_tile_dp.h: the register tile of bf16 pairs, by vdpbf16ps: MR x NR sums in f32.
 * Operands as in gemm_pairs.h, which it includes. Source: gemm_tile.h.
 */
#ifndef MOEI_GEMM_TILE_DP_H
#define MOEI_GEMM_TILE_DP_H

enum {
    K_STEP = 2,
    MR = 14, /* 28 of 32 registers hold the tile */
    NR = 32,
    KC = 256,
    NB = 512,            /* columns of a task: KC x NB of packed B is 256 KiB */
    MB = 448,            /* rows of a task at most: whole tiles, also when halved twice */
    A_LD = KC + 32,      /* row stride of packed A; the padding keeps rows off the same cache sets */
    A_STRIP = 16 * A_LD, /* rows are made in eights */
    SECOND_HALF = NR,    /* numbers from a pair row's first vector to its second */
    STREAM_ROWS = 4,     /* up to so many rows B is packed a strip at a time, straight before its use */
    FUSES_PACKED = 1,    /* so many rows multiply packed weights as they are read, */
    A_ROW = A_LD,        /* at this distance */
    FETCHES_B = 1,       /* the next block of B is asked for while this one is multiplied */
};

typedef uint16_t moei_operand;

/* Where in a strip of A row i's number k is, k a multiple of 32, and where in a panel a pair row is. */
static inline int64_t a_at(int64_t i, int64_t k) {
    return i * A_LD + k;
}
static inline int64_t pair_at(int64_t pair) {
    return pair * 2 * NR;
}

#include "kernel/gemm_pairs.h"

/* sum[mr, NR] (+)= A B: A element (i, k) at a[i * a_i + k], B a panel; a_k is 1. */
MOEI_INLINE void tile_fixed(const int mr, const moei_operand *a, const int64_t a_i, const int64_t a_k,
                            const moei_operand *b, int64_t kc, float *sum, bool add) {
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

/* sum[mr, NR] (+)= A B, a strip of A and a panel. */
static __attribute__((noinline)) void tile_pairs(int mr, const uint16_t *a, const uint16_t *b, int64_t kc,
                                                 float *sum, bool add) {
    tile_any(mr, a, A_LD, 1, b, kc, sum, add);
}

static inline void tiles_begin(int rows) {
    (void)rows;
}
static inline void tiles_end(void) {}

#endif
