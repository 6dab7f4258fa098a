/* gemm_tile.h: the register tile of both grouped products and the packing of its operand B.
 * MR x NR of C stay in registers while k runs over one block of KC; include after simd_avx2.h or
 * simd_avx512.h. Source: Goto & van de Geijn 2008; Van Zee & van de Geijn 2015 (BLIS).
 *
 * The sum of an element: one chain of fused multiply-adds per block of KC, k ascending from 0, then the
 * blocks are added in order. It depends on k alone, not on the tile, the block or the thread, so a row has
 * the same bits whatever stands beside it. Lanes and rows past an edge are zeros that nobody reads.
 */
#ifndef MOEI_GEMM_TILE_H
#define MOEI_GEMM_TILE_H

enum {
    MR = VF_N == 8 ? 6 : 14, /* 12 of 16 registers hold the tile, or 28 of 32 */
    NV = 2,
    NR = NV * VF_N,
    K_STEP = 1,
    KC = 256,
    NB = 256,  /* columns of a task: KC x NB of packed B is a quarter of a 1 MiB L2 */
    AHEAD = 8, /* rows of B that are fetched before their turn */
    PANEL =
        KC * NR + 16, /* numbers of a panel of packed B; the padding keeps panels off the same cache sets */
    SUM_LD = NB + 16, /* likewise rows */
};

#include "kernel/gemm_block.h"

typedef float moei_operand;

/* Where the sums of row i are from column j on. */
static inline int64_t sum_at(int64_t i, int64_t j) {
    return i * SUM_LD + j;
}

/* Rows of B: of a panel, or, with ld, where they are, so far apart. */
typedef struct moei_tile_rows {
    const moei_operand *at;
    int64_t ld;
} moei_tile_rows;
typedef moei_tile_rows moei_tile_b;

/* A element (i, k) at a[i * a_i + k * a_k]. B a panel: sum[mr, NR] (+)= the chain of A B. B where it is: the
 * chain in sum[mr, NR] goes on. */
MOEI_INLINE void tile_fixed(const int mr, const moei_operand *a, const int64_t a_i, const int64_t a_k,
                            const moei_tile_b where, int64_t kc, float *sum, bool add) {
    const moei_operand *b = where.at;
    const int64_t next = where.ld ? where.ld : NR;
    vf acc[MR][NV];
    MOEI_UNROLL
    for (int i = 0; i < mr; ++i) {
        MOEI_UNROLL
        for (int v = 0; v < NV; ++v)
            acc[i][v] = where.ld && add ? vf_load(sum + i * SUM_LD + v * VF_N) : vf_zero();
    }
    for (int64_t k = 0; k < kc; ++k, a += a_k, b += next) {
        for (int v = 0; v < NR * 4; v += LINE) __builtin_prefetch((const char *)(b + AHEAD * next) + v);
        vf b0 = vf_load(b), b1 = vf_load(b + VF_N);
        MOEI_UNROLL
        for (int i = 0; i < mr; ++i) {
            vf x = vf_set1(a[i * a_i]);
            acc[i][0] = vf_fma(x, b0, acc[i][0]);
            acc[i][1] = vf_fma(x, b1, acc[i][1]);
        }
    }
    MOEI_UNROLL
    for (int i = 0; i < mr; ++i) {
        MOEI_UNROLL
        for (int v = 0; v < NV; ++v) {
            float *at = sum + i * SUM_LD + v * VF_N;
            vf_store(at, add && !where.ld ? vf_add(vf_load(at), acc[i][v]) : acc[i][v]);
        }
    }
}

#include "kernel/gemm_tile_any.h"

/* Columns of a row of B, `width` of which exist -> a row of a panel. */
static inline void pack_edge(bool bf16, const void *base, int64_t from, int64_t width, float *to) {
    for (int v = 0; v < NV; ++v) {
        int64_t left = width - v * VF_N;
        vf_store(to + v * VF_N, left > 0 ? vf_get(bf16, base, from + v * VF_N, left) : vf_zero());
    }
}

/* One run of columns of a row of B -> that row of its panels; the same columns of a later row are asked for.
 */
MOEI_INLINE void pack_run(const bool bf16, const void *base, int64_t from, int64_t next, int64_t width,
                          float *to) {
    int64_t j = 0;
    for (; j + NR <= width; j += NR, to += PANEL) { /* the common case, free of what the edge needs */
        for (int v = 0; v < NV; ++v) {
            vf_store(to + v * VF_N, vf_get(bf16, base, from + j + v * VF_N, VF_N));
            if (v * VF_N * 4 % LINE == 0) __builtin_prefetch(byte_at(bf16, base, next + j + v * VF_N));
        }
    }
    if (j < width) pack_edge(bf16, base, from + j, width - j, to);
}

/* B[k0 .. k0+kc, columns] -> panels of [kc, NR]. Rows are read whole, so memory is read in order; the next
 * ones are fetched before their turn, as hardware does not follow runs of a few hundred bytes. */
static void pack_b(const moei_rows *b, const moei_columns *cols, int64_t k0, int64_t kc, float *out) {
    for (int64_t k = 0; k < kc; ++k) {
        int64_t row = row_start(b, k0 + k), next = row_start(b, k0 + moei_min(k + AHEAD, kc - 1));
        for (int32_t run = 0; run < cols->n_runs; ++run) {
            float *to = out + k * NR + run * cols->panels * PANEL;
            int64_t first = cols->first[run];
            if (b->bf16)
                pack_run(true, b->base, row + first, next + first, cols->width, to);
            else
                pack_run(false, b->base, row + first, next + first, cols->width, to);
        }
    }
}

#endif
