/* gemm_pairs.h: bf16 operands packed in pairs along the sum, as vdpbf16ps and AMX tiles read them.
 * A: a strip of MR rows by up to KC steps. B: panels of NR columns, PANEL numbers apart; a pair row of a
 * panel is two vectors. Where in a strip, a panel or the sums a number stands is the tile's matter: it
 * defines K_STEP (a sum is padded with zeros to a multiple of it), NB (columns of a task), a_at, pair_at,
 * sum_at, SUMS and SECOND_HALF, and then includes this, after simd_avx512.h.
 *
 * The sum of an element is one chain along k in the order of the instruction (AMX: a tile goes on from the
 * sums of the block before), or one for each block of KC, added in order. So a row has the same bits whatever
 * stands beside it.
 */
#ifndef MOEI_GEMM_PAIRS_H
#define MOEI_GEMM_PAIRS_H

#include <string.h>

enum {
    PANEL = KC * NR + 64, /* of whole KC; the padding keeps panels off the same cache sets */
    STRIP_K = 64,         /* steps of the strips of B that few rows use: 4 KiB; KC where B is [n, k] */
    AHEAD_ROWS = 8,       /* so far reading runs ahead of packing */
};

#include "kernel/gemm_block.h"

typedef uint16_t moei_operand;

static inline __m512i load_bf16(const uint16_t *p, int64_t n) {
    if (n >= 32) return _mm512_loadu_si512(p);
    return n <= 0 ? _mm512_setzero_si512() : _mm512_maskz_loadu_epi16((1u << n) - 1, p);
}

static inline const uint16_t *bf16_at(const moei_rows *rows, int64_t r) {
    return (const uint16_t *)rows->base + row_start(rows, r);
}

/* Two rows of 32 columns -> 32 pairs. */
static inline void interleave(__m512i even, __m512i odd, uint16_t *out) {
    const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    const __m512i second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    __m512i low = _mm512_unpacklo_epi16(even, odd), high = _mm512_unpackhi_epi16(even, odd);
    _mm512_storeu_si512(out, _mm512_permutex2var_epi64(low, first, high));
    _mm512_storeu_si512(out + SECOND_HALF, _mm512_permutex2var_epi64(low, second, high));
}

/* A pair row of a panel out of two rows of B from `column` on; NULL: a row of zeros. */
static inline void pack_pair(const uint16_t *even, const uint16_t *odd, int64_t column, int64_t width,
                             uint16_t *out) {
    const __m512i zero = _mm512_setzero_si512();
    interleave(even ? load_bf16(even + column, width) : zero, odd ? load_bf16(odd + column, width) : zero,
               out);
}

/* B[k0 .. k0+kc, column .. column+width] -> a strip of a panel, kc <= KC and width <= NR; zeros up to
 * padded(kc). */
static inline void pack_strip(const moei_rows *b, int64_t column, int64_t width, int64_t k0, int64_t kc,
                              uint16_t *out) {
    int64_t k = 0;
    if (!b->index && width >= NR) { /* the common case, free of what the edges need */
        const uint16_t *from = bf16_at(b, k0) + column;
        for (; k + 2 <= kc; k += 2, from += 2 * b->ld)
            interleave(_mm512_loadu_si512(from), _mm512_loadu_si512(from + b->ld), out + pair_at(k / 2));
    }
    for (; k < padded(kc); k += 2)
        pack_pair(k < kc ? bf16_at(b, k0 + k) : NULL, k + 1 < kc ? bf16_at(b, k0 + k + 1) : NULL, column,
                  width, out + pair_at(k / 2));
}

/* Sixteen columns of B stored as [n, k], `width` of which exist, none if it is not positive, and up to 32
 * steps: half of sixteen pair rows. There a pair is one 32-bit number already. */
static inline void turn_pairs(const moei_rows *b, int64_t column, int64_t width, int64_t k0, int64_t kc,
                              uint16_t *out) {
    const uint16_t *from = bf16_at(b, column) + k0;
    int64_t pairs = moei_min(VF_N, padded(kc) / 2);
    vf block[VF_N];
    if (width >= VF_N && kc >= 32) { /* the common case, free of what the edges need */
        for (int64_t i = 0; i < VF_N; ++i)
            block[i] = vf_load((const float *)(const void *)(from + i * b->ld));
    } else {
        for (int64_t i = 0; i < VF_N; ++i) {
            block[i] = vf_zero();
            if (i < width) block[i] = _mm512_castsi512_ps(load_bf16(from + i * b->ld, kc));
        }
    }
    vf_transpose(block);
    for (int64_t i = 0; i < pairs; ++i) vf_store((float *)(void *)(out + pair_at(i)), block[i]);
}

static inline void pack_strip_trans(const moei_rows *b, int64_t column, int64_t width, int64_t k0, int64_t kc,
                                    uint16_t *out) {
    for (int64_t k = 0; k < kc; k += 32) {
        uint16_t *to = out + pair_at(k / 2);
        int64_t first = moei_min(width, VF_N);
        turn_pairs(b, column, first, k0 + k, kc - k, to);
        turn_pairs(b, column + moei_min(first, width - 1), width - first, k0 + k, kc - k, to + SECOND_HALF);
    }
}

/* B[k0 .. k0+kc, column .. column+width], width <= NR. */
typedef struct moei_b_strip {
    const moei_rows *b;
    bool b_trans;
    int64_t column, width, k0, kc;
} moei_b_strip;

static inline void pack_any_strip(const moei_rows *b, bool trans, int64_t column, int64_t width, int64_t k0,
                                  int64_t kc, uint16_t *out) {
    if (trans)
        pack_strip_trans(b, column, width, k0, kc, out);
    else
        pack_strip(b, column, width, k0, kc, out);
}

/* One run of columns of a pair row -> its panels; the same columns of two later rows are asked for, into L2:
 * a core has too few buffers for lines on their way to L1. */
static inline void pack_run(const uint16_t *even, const uint16_t *odd, const uint16_t *const next[2],
                            int64_t column, int64_t width, uint16_t *out) {
    int64_t whole = even && odd ? width / NR * NR : 0; /* the common case, free of what the edges need */
    for (int64_t j = column; j < column + whole; j += NR, out += PANEL) {
        _mm_prefetch((const char *)(next[0] + j), _MM_HINT_T1);
        _mm_prefetch((const char *)(next[1] + j), _MM_HINT_T1);
        interleave(_mm512_loadu_si512(even + j), _mm512_loadu_si512(odd + j), out);
    }
    for (int64_t j = whole; j < width; j += NR, out += PANEL)
        pack_pair(even, odd, column + j, width - j, out);
}

/* B[k0 .. k0+kc, columns] -> panels. Rows are read whole, so memory is read in order, and asked for before
 * their turn, as hardware does not follow runs of a few hundred bytes. */
static void pack_b(const moei_rows *b, const moei_columns *cols, int64_t k0, int64_t kc, uint16_t *out) {
    const int64_t last = k0 + kc - 1;
    for (int64_t k = k0; k < k0 + padded(kc); k += 2) {
        const uint16_t *even = k <= last ? bf16_at(b, k) : NULL, *odd = k < last ? bf16_at(b, k + 1) : NULL;
        const uint16_t *const next[2] = {bf16_at(b, moei_min(k + AHEAD_ROWS, last)),
                                         bf16_at(b, moei_min(k + AHEAD_ROWS + 1, last))};
        uint16_t *to = out + pair_at((k - k0) / 2);
        for (int32_t run = 0; run < cols->n_runs; ++run)
            pack_run(even, odd, next, cols->first[run], cols->width, to + run * cols->panels * PANEL);
    }
}

/* The same of B stored as [n, k]: sixteen of its rows at a time, the next sixteen asked for; into L2, as rows
 * a page apart would take each other's places in L1. */
static inline void pack_b_trans(const moei_rows *b, const moei_columns *cols, int64_t k0, int64_t kc,
                                uint16_t *out) {
    for (int64_t j = 0; j < cols->n_runs * cols->panels * NR; j += VF_N) {
        int64_t in_run = j % (cols->panels * NR), left = cols->width - in_run;
        int64_t column = cols->first[j / (cols->panels * NR)] + moei_min(in_run, cols->width - 1);
        uint16_t *to = out + j / NR * PANEL + (j % NR ? SECOND_HALF : 0);
        for (int64_t k = 0; k < kc; k += 32) {
            for (int64_t i = VF_N; i < moei_min(2 * VF_N, left); ++i)
                _mm_prefetch((const char *)(bf16_at(b, column + i) + k0 + k), _MM_HINT_T1);
            turn_pairs(b, column, moei_min(left, VF_N), k0 + k, kc - k, to + pair_at(k / 2));
        }
    }
}

#endif
