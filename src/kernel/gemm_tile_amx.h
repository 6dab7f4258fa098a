/* gemm_tile_amx.h: the tile of bf16 pairs in AMX: 32 x 32 sums, made as two halves of 32 x 16.
 * Operands as in gemm_pairs.h, which it includes, and in the order of tiles: 32 steps of a strip of A, or of
 * a panel, are two tiles of 1 KiB one after the other. Source: Intel 64 and IA-32 Architectures Optimization
 * Reference Manual, chapter on AMX; which registers: docs/kernels.md.
 */
#ifndef MOEI_GEMM_TILE_AMX_H
#define MOEI_GEMM_TILE_AMX_H

enum {
    TILE = 512,  /* numbers of bf16 in a tile, sixteen rows of 64 bytes */
    K_STEP = 32, /* of a tile */
    MR = 32,     /* rows past the last are computed too, and not used */
    NR = 32,
    KC = 256,        /* a strip of A and half a panel of B, 24 KiB, stay in an L1 of 48 KiB */
    NB = 768,        /* columns of a task: KC x NB of packed B is 384 KiB, next to its sums in L2 */
    MB = 288,        /* rows of a task at most */
    WIDE_ROWS = 128, /* of at most so many rows packing takes as long as tiles or longer: then a task has */
    WIDE_NB = 1536,  /* so many columns, as memory is read faster in longer runs */
    STRIP_ROWS = MR,
    A_STRIP = STRIP_ROWS * KC,
    PACKED_K = 192, /* steps of packed weights at a time: a panel, 24 KiB, stays in L1 while rows pass by */
    PACKED_A_STRIP = STRIP_ROWS * PACKED_K,
    SUMS = (MB + MR) * NB,
    SUM_HALF = MR * 16, /* sums from sixteen columns of a strip to the next */
    SECOND_HALF = TILE, /* numbers from a pair row's first vector to its second */
    FEW_ROWS = 16,      /* one tile of A: then B is packed a strip at a time, straight before its use, */
    FEW_TASKS = 8,      /* of a thread at least: with more of them runs were shorter */
    FEW_ROWS_STREAMED = FEW_ROWS,
    FEW_ROWS_TRANS = FEW_ROWS,  /* stored as [n, k] too, */
    FEW_ROWS_PACKED = FEW_ROWS, /* and packed weights, as tiles read memory */
    A_ROW = K_STEP,
    STRIP_LAG = 1, /* a strip is packed while the one before is multiplied: its tiles wait for the stores */
    FETCHES_B = 0, /* asking for the next block of B costs the tiles more than packing gains */
};

/* Where in a strip of A row i's number k is, k a multiple of 32, where in a panel a pair row is, and where
 * the sums of row i are from column j on, a multiple of 16: those of a strip
 * stand by sixteen columns. */
static inline int64_t a_at(int64_t i, int64_t k) {
    return k / K_STEP * (2 * TILE) + i * K_STEP;
}
static inline int64_t pair_at(int64_t pair) {
    return pair / 16 * (2 * TILE) + pair % 16 * 32;
}
static inline int64_t sum_at(int64_t i, int64_t j) {
    return i / MR * (MR * NB) + j * MR + i % MR * 16;
}

/* From where the sums of strips from row i on stand, of a task of so many panels. */
static inline int64_t strip_sums_at(int64_t i, int64_t panels) {
    return i / MR * (MR * NR) * panels;
}

#include "kernel/gemm_amx.h"
#include "kernel/gemm_pairs.h"

/* 32 x 16 sums in four of the eight registers, one of them for all of A: with more in use a processor whose
 * core runs another thread has none left to rename, and every load waits for the product before it. */
static void tile_2x1(const uint16_t *a, const uint16_t *b, int64_t kc, float *sum, bool add,
                     moei_fetch *beside, int64_t lines) {
    if (add) {
        _tile_loadd(0, sum, LINE);
        _tile_loadd(1, sum + 16 * 16, LINE);
    } else {
        _tile_zero(0);
        _tile_zero(1);
    }
    const char *next = (const char *)(sum + SUM_HALF); /* sums of the next half, four rows of them a step */
    for (int64_t k = 0; k < kc; k += K_STEP, a += 2 * TILE, b += 2 * TILE) {
        _tile_loadd(2, b, LINE);
        _tile_loadd(3, a, LINE);
        _tile_dpbf16ps(0, 3, 2);
        _tile_loadd(3, a + TILE, LINE);
        _tile_dpbf16ps(1, 3, 2);
        for (int i = 0; i < MR * K_STEP / KC; ++i, next += LINE) _mm_prefetch(next, _MM_HINT_T0);
        fetch_lines(beside, lines);
    }
    _tile_stored(0, sum, LINE);
    _tile_stored(1, sum + 16 * 16, LINE);
}

/* 16 x 32 sums. */
static void tile_1x2(const uint16_t *a, const uint16_t *b, int64_t kc, float *sum, bool add,
                     moei_fetch *beside, int64_t lines) {
    if (add) {
        _tile_loadd(0, sum, LINE);
        _tile_loadd(1, sum + SUM_HALF, LINE);
    } else {
        _tile_zero(0);
        _tile_zero(1);
    }
    for (int64_t k = 0; k < kc; k += K_STEP, a += 2 * TILE, b += 2 * TILE) {
        _tile_loadd(2, a, LINE);
        _tile_loadd(3, b, LINE);
        _tile_dpbf16ps(0, 2, 3);
        _tile_loadd(3, b + TILE, LINE);
        _tile_dpbf16ps(1, 2, 3);
        fetch_lines(beside, 2 * lines);
    }
    _tile_stored(0, sum, LINE);
    _tile_stored(1, sum + SUM_HALF, LINE);
}

/* Steps of a tile at which lines are asked for. */
static inline int64_t tile_steps(int64_t kc) {
    return kc > 0 ? 2 * padded(kc) / K_STEP : 1;
}

/* sum[mr, NR] (+)= A B, a strip of A and a panel; mr up to MR, kc a multiple of K_STEP. At each step `lines`
 * of what is beside are asked for. */
static inline void tile_beside(int mr, const uint16_t *a, const uint16_t *b, int64_t kc, float *sum, bool add,
                               moei_fetch *beside, int64_t lines) {
    if (mr <= 16) {
        tile_1x2(a, b, kc, sum, add, beside, lines);
        return;
    }
    tile_2x1(a, b, kc, sum, add, beside, lines);
    tile_2x1(a, b + TILE, kc, sum + SUM_HALF, add, beside, lines);
}

static inline void tile_panel(int mr, const uint16_t *a, const uint16_t *b, int64_t kc, float *sum,
                              bool add) {
    moei_fetch none = {.end = 0};
    tile_beside(mr, a, b, kc, sum, add, &none, 0);
}

/* Rows of the next tile where `left` are left: low tiles take as long. */
static inline int tile_height(int64_t left) {
    return (int)moei_min(left, MR);
}

/* sum[rows, NR] (+)= A times a strip of B, for few rows: packed first. */
static inline void strip_ready(const moei_b_strip *s, uint16_t *strip) {
    pack_any_strip(s->b, s->b_trans, s->column, s->width, s->k0, s->kc, strip);
}
static inline void strip_product(int rows, const uint16_t *a, const moei_b_strip *s, const uint16_t *strip,
                                 float *sum, bool add) {
    tile_panel(rows, a, strip, padded(s->kc), sum, add);
}

#endif
