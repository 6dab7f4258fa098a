/* gemm_tile_amx.h: the tile of bf16 pairs in AMX: 32 x 32 sums in four tile registers, fed by two of A and
 * two of B, so that every tile that is loaded serves two products. Operands as in gemm_pairs.h, which it
 * includes. Source: Intel 64 and IA-32 Architectures Optimization Reference Manual, chapter on AMX.
 */
#ifndef MOEI_GEMM_TILE_AMX_H
#define MOEI_GEMM_TILE_AMX_H

enum {
    K_STEP = 32,      /* numbers of a tile's row; FETCH_K */
    MR = 32,          /* rows past the last are computed too, and not used */
    STREAM_ROWS = 16, /* one tile of A: then B is packed a strip at a time, straight before its use */
};

#include "kernel/gemm_amx.h"
#include "kernel/gemm_pairs.h"

static void tile_2x2(const uint16_t *a, const uint16_t *b, int64_t kc, float *sum, bool add,
                     moei_fetch *fetch, int64_t share) {
    enum { A_BYTES = 2 * A_LD, B_BYTES = 4 * NR, SUM_BYTES = 4 * SUM_LD };
    if (add) {
        _tile_loadd(0, sum, SUM_BYTES);
        _tile_loadd(1, sum + 16, SUM_BYTES);
        _tile_loadd(2, sum + 16 * SUM_LD, SUM_BYTES);
        _tile_loadd(3, sum + 16 * SUM_LD + 16, SUM_BYTES);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t k = 0; k < kc; k += K_STEP, a += K_STEP, b += K_STEP * NR) {
        _tile_loadd(4, a, A_BYTES);
        _tile_loadd(6, b, B_BYTES);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + NR, B_BYTES);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a + 16 * A_LD, A_BYTES);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        fetch_lines(fetch, share);
    }
    _tile_stored(0, sum, SUM_BYTES);
    _tile_stored(1, sum + 16, SUM_BYTES);
    _tile_stored(2, sum + 16 * SUM_LD, SUM_BYTES);
    _tile_stored(3, sum + 16 * SUM_LD + 16, SUM_BYTES);
}

static void tile_1x2(const uint16_t *a, const uint16_t *b, int64_t kc, float *sum, bool add,
                     moei_fetch *fetch, int64_t share) {
    enum { A_BYTES = 2 * A_LD, B_BYTES = 4 * NR, SUM_BYTES = 4 * SUM_LD };
    if (add) {
        _tile_loadd(0, sum, SUM_BYTES);
        _tile_loadd(1, sum + 16, SUM_BYTES);
    } else {
        _tile_zero(0);
        _tile_zero(1);
    }
    for (int64_t k = 0; k < kc; k += K_STEP, a += K_STEP, b += K_STEP * NR) {
        _tile_loadd(4, a, A_BYTES);
        _tile_loadd(6, b, B_BYTES);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + NR, B_BYTES);
        _tile_dpbf16ps(1, 4, 7);
        fetch_lines(fetch, share);
    }
    _tile_stored(0, sum, SUM_BYTES);
    _tile_stored(1, sum + 16, SUM_BYTES);
}

/* sum[mr, NR] (+)= A B, A packed with stride A_LD; mr up to MR, kc a multiple of K_STEP. Meanwhile `share`
 * lines are fetched in every FETCH_K steps: spread, as a burst would keep the tiles from their own lines. */
static inline void tile_pairs(int mr, const uint16_t *a, const uint16_t *b, int64_t kc, float *sum, bool add,
                              moei_fetch *fetch, int64_t share) {
    if (mr > 16)
        tile_2x2(a, b, kc, sum, add, fetch, share);
    else
        tile_1x2(a, b, kc, sum, add, fetch, share);
}

#endif
