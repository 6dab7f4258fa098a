/* gemm_tile_dp.h: the register tile of bf16 pairs, by vdpbf16ps: MR x NR sums in f32.
 * Operands as in gemm_pairs.h, which it includes. Source: gemm_tile.h.
 */
#ifndef MOEI_GEMM_TILE_DP_H
#define MOEI_GEMM_TILE_DP_H

enum {
    K_STEP = 2,
    K_RUN = 32, /* steps of packed weights that lie together */
    MR = 14,    /* 28 of 32 registers hold the tile */
    NR = 32,
    KC = 256,
    NB = 512,        /* columns of a task: KC x NB of packed B is 256 KiB */
    MB = 448,        /* rows of a task at most: whole tiles, also when halved twice */
    A_LD = KC + 32,  /* row stride of packed A; the padding keeps rows off the same cache sets */
    STRIP_ROWS = 32, /* FEW_ROWS */
    A_STRIP = STRIP_ROWS * A_LD,
    PACKED_K = KC, /* steps of packed weights at a time, a chain */
    PACKED_A_STRIP = A_STRIP,
    SUM_LD = NB + 16, /* row stride of sums; likewise */
    SUMS = (MB + MR) * SUM_LD,
    SECOND_HALF = NR, /* numbers from a pair row's first vector to its second */
    FEW_ROWS = 32,    /* up to so many rows take B where it is (gemm_rows_linear.h), */
    FEW_ROWS_STREAMED = 0,
    FEW_ROWS_TRANS = 4,  /* or, stored as [n, k], packed a strip at a time, */
    FEW_ROWS_PACKED = 4, /* or out of packed weights; */
    A_ROW = A_LD,        /* rows of A at this distance */
    STRIP_LAG = 0,       /* a strip is multiplied at once */
    FETCHES_B = 1,       /* the next block of B is asked for while this one is multiplied */
};

/* Where in a strip of A row i's number k is, k a multiple of 32, where in a panel a pair row is, and where
 * the sums of row i are from column j on. */
static inline int64_t a_at(int64_t i, int64_t k) {
    return i * A_LD + k;
}
static inline int64_t pair_at(int64_t pair) {
    return pair * 2 * NR;
}
static inline int64_t sum_at(int64_t i, int64_t j) {
    return i * SUM_LD + j;
}

#include "kernel/gemm_pairs.h"

/* Thirty-two columns of two rows of B as pairs: of every eight columns four are in `low`. */
typedef struct moei_pair_row {
    __m512bh low, high;
} moei_pair_row;

static inline moei_pair_row pairs_of_rows(const uint16_t *even, const uint16_t *odd) {
    __m512i x = _mm512_loadu_si512(even), y = _mm512_loadu_si512(odd);
    return (moei_pair_row){(__m512bh)_mm512_unpacklo_epi16(x, y), (__m512bh)_mm512_unpackhi_epi16(x, y)};
}

/* Sums of 32 columns from that order to their own. */
MOEI_INLINE void to_column_order(vf *low, vf *high) {
    const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    const __m512i second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    __m512d x = _mm512_castps_pd(*low), y = _mm512_castps_pd(*high);
    *low = _mm512_castpd_ps(_mm512_permutex2var_pd(x, first, y));
    *high = _mm512_castpd_ps(_mm512_permutex2var_pd(x, second, y));
}

/* Pair rows of B, `pair` numbers apart, their two vectors `half`, and `skip` more numbers after each K_RUN
 * steps; beside each of them a line is asked for, from `next` on (NULL: none), or, with `two`, two.
 * Or, with ld, rows of B where they are, so far apart; until a chain `ends` its sums stay in the order of
 * pairs. */
typedef struct moei_tile_pairs {
    const moei_operand *at;
    int64_t ld, pair, half, skip;
    const char *next;
    bool two, ends;
} moei_tile_pairs;
typedef moei_tile_pairs moei_tile_b;

/* A element (i, k) at a[i * a_i + k], a_k is 1. B in pair rows: sum[mr, NR] (+)= the chain of A B. B where it
 * is, kc even then: the chain in sum[mr, NR] goes on. */
MOEI_INLINE void tile_fixed(const int mr, const moei_operand *a, const int64_t a_i, const int64_t a_k,
                            const moei_tile_b where, int64_t kc, float *sum, bool add) {
    vf acc[MR][2];
    const bool direct = where.ld != 0;
    const int64_t b_step = direct ? 2 * where.ld : where.pair, run = where.skip ? K_RUN : kc;
    const moei_operand *b = where.at;
    const char *next = where.next;
    const int64_t second = where.two ? LINE : 0;
    MOEI_UNROLL
    for (int i = 0; i < mr; ++i) {
        acc[i][0] = direct && add ? vf_load(sum + i * SUM_LD) : vf_zero();
        acc[i][1] = direct && add ? vf_load(sum + i * SUM_LD + VF_N) : vf_zero();
    }
    for (int64_t k = 0; k < kc; b += where.skip) {
        for (const int64_t end = moei_min(k + run, kc); k < end; k += 2, a += 2 * a_k, b += b_step) {
            moei_pair_row row;
            if (direct) {
                row = pairs_of_rows(b, b + where.ld);
                __builtin_prefetch(b + NR); /* of the next strip, which L2 has */
                __builtin_prefetch(b + where.ld + NR);
            } else {
                row = (moei_pair_row){(__m512bh)_mm512_loadu_si512(b),
                                      (__m512bh)_mm512_loadu_si512(b + where.half)};
            }
            if (where.next) {
                __builtin_prefetch(next, 0, 2);
                __builtin_prefetch(next + second, 0, 2);
                next += LINE + second;
            }
            MOEI_UNROLL
            for (int i = 0; i < mr; ++i) {
                int32_t pair;
                memcpy(&pair, a + i * a_i, sizeof pair);
                __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
                acc[i][0] = _mm512_dpbf16_ps(acc[i][0], x, row.low);
                acc[i][1] = _mm512_dpbf16_ps(acc[i][1], x, row.high);
            }
        }
    }
    MOEI_UNROLL
    for (int i = 0; i < mr; ++i) {
        if (direct && where.ends) to_column_order(&acc[i][0], &acc[i][1]);
        MOEI_UNROLL
        for (int v = 0; v < 2; ++v) {
            float *at = sum + i * SUM_LD + v * VF_N;
            vf_store(at, add && !direct ? vf_add(vf_load(at), acc[i][v]) : acc[i][v]);
        }
    }
}

#include "kernel/gemm_tile_any.h"

/* Steps of a tile at which lines are asked for. */
static inline int64_t tile_steps(int64_t kc) {
    (void)kc;
    return 1;
}

/* sum[mr, NR] (+)= A B, a strip of A and a panel. */
static __attribute__((noinline)) void tile_panel(int mr, const uint16_t *a, const uint16_t *b, int64_t kc,
                                                 float *sum, bool add) {
    tile_any(mr, a, A_LD, 1, (moei_tile_b){.at = b, .pair = 2 * NR, .half = NR}, kc, sum, add);
}

/* The same; `lines` of what is beside are asked for. */
static inline void tile_beside(int mr, const uint16_t *a, const uint16_t *b, int64_t kc, float *sum, bool add,
                               moei_fetch *beside, int64_t lines) {
    fetch_lines(beside, lines);
    tile_panel(mr, a, b, kc, sum, add);
}

/* sum[rows, NR] (+)= A times a strip of B of whole chains, for few rows. */
static inline void strip_ready(const moei_b_strip *s, uint16_t *strip) {
    pack_any_strip(s->b, s->b_trans, s->column, s->width, s->k0, s->kc, strip);
}
static inline void strip_product(int rows, const uint16_t *a, const moei_b_strip *s, const uint16_t *strip,
                                 float *sum, bool add) {
    for (int i = 0, mr; i < rows; i += mr) {
        mr = tile_height(rows - i);
        tile_panel(mr, a + a_at(i, 0), strip, padded(s->kc), sum + i * SUM_LD, add);
    }
}

#endif
