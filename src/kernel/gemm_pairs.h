/* gemm_pairs.h: bf16 operands packed in pairs along the sum, as vdpbf16ps and AMX tiles read them.
 * A: rows of A_LD numbers, the sum along a row. B: panels of NR columns, a panel [kc/2][NR][2]: one pair row
 * is two vectors, sixteen of them are two AMX tiles. Include after simd_avx512.h and K_STEP, the multiple to
 * which a sum is padded with zeros.
 *
 * The sum of an element is one chain along k in the order of the instruction, whatever the blocks: a tile
 * goes on from the sums of the block before. So a row has the same bits whatever stands beside it.
 */
#ifndef MOEI_GEMM_PAIRS_H
#define MOEI_GEMM_PAIRS_H

#include <string.h>

enum {
    NR = 32,
    KC = 256,         /* 32 rows of packed A, 18 KiB, and a panel of B, 16 KiB, share an L1 of 48 KiB */
    NB = 512,         /* columns of a task: KC x NB of packed B is 256 KiB, next to its sums in L2 */
    A_LD = KC + 32,   /* the padding keeps rows off the same cache sets */
    SUM_LD = NB + 16, /* likewise */
    STRIP_K = 64,     /* pairs are made of STRIP_K x NR numbers at a time: 4 KiB */
};

#include "kernel/gemm_block.h"

typedef uint16_t moei_packed;

static inline int64_t padded(int64_t k) {
    return moei_ceil_div(k, K_STEP) * K_STEP;
}

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
    _mm512_storeu_si512(out + 32, _mm512_permutex2var_epi64(low, second, high));
}

/* B[k0 .. k0+kc, column .. column+width] -> a strip of a panel, kc <= STRIP_K and width <= NR; zeros up to
 * padded(kc). */
static void pack_strip(const moei_rows *b, int64_t column, int64_t width, int64_t k0, int64_t kc,
                       uint16_t *out) {
    int64_t k = 0;
    if (!b->index && width >= NR) { /* the common case, free of what the edges need */
        const uint16_t *from = bf16_at(b, k0) + column;
        for (; k + 2 <= kc; k += 2, from += 2 * b->ld, out += 2 * NR)
            interleave(_mm512_loadu_si512(from), _mm512_loadu_si512(from + b->ld), out);
    }
    for (; k < padded(kc); k += 2, out += 2 * NR) {
        __m512i even = _mm512_setzero_si512(), odd = even;
        if (k < kc) even = load_bf16(bf16_at(b, k0 + k) + column, width);
        if (k + 1 < kc) odd = load_bf16(bf16_at(b, k0 + k + 1) + column, width);
        interleave(even, odd, out);
    }
}

/* The same of B stored as [n, k]: there a pair is one 32-bit number already. */
static void pack_strip_trans(const moei_rows *b, int64_t column, int64_t width, int64_t k0, int64_t kc,
                             uint16_t *out) {
    for (int64_t k = 0; k < kc; k += 32) {
        for (int64_t j = 0; j < NR; j += VF_N) {
            vf block[VF_N];
            for (int64_t i = 0; i < VF_N; ++i) {
                bool inside = j + i < width;
                const uint16_t *from = bf16_at(b, inside ? column + j + i : column) + k0 + k;
                block[i] = _mm512_castsi512_ps(load_bf16(from, inside ? kc - k : 0));
            }
            vf_transpose(block);
            uint16_t *to = out + k * NR + 2 * j;
            for (int64_t i = 0; i < moei_min(VF_N, (padded(kc) - k) / 2); ++i)
                vf_store((float *)(void *)(to + 2 * i * NR), block[i]);
        }
    }
}

static void pack_strip_any(const moei_rows *b, bool trans, int64_t column, int64_t width, int64_t k0,
                           int64_t kc, uint16_t *out) {
    if (trans)
        pack_strip_trans(b, column, width, k0, kc, out);
    else
        pack_strip(b, column, width, k0, kc, out);
}

/* B[k0 .. k0+kc, columns] -> panels of [padded(kc)/2][NR][2]. */
static void pack_b(const moei_rows *b, bool trans, const moei_columns *cols, int64_t k0, int64_t kc,
                   uint16_t *out) {
    for (int64_t k = 0; k < kc; k += STRIP_K) {
        for (int64_t p = 0; p < cols->n_runs * cols->panels; ++p) {
            int64_t j = p % cols->panels * NR;
            pack_strip_any(b, trans, cols->first[p / cols->panels] + j, moei_min(NR, cols->width - j), k0 + k,
                           moei_min(STRIP_K, kc - k), out + p * padded(kc) * NR + k * NR);
        }
    }
}

/* A block of B that will be packed soon, asked for a few cache lines at a time while tiles are multiplied:
 * reading it at once would wait for every line, as packing has too few of them under way. */
typedef struct moei_fetch {
    moei_rows rows;
    int64_t row, end;      /* rows still to ask for */
    int64_t column, bytes; /* where in a row, and how much of it */
    int64_t at;            /* bytes of the present row asked for */
    int64_t second;        /* elements from the first run of columns to the second; 0: there is none */
} moei_fetch;

static moei_fetch fetch_of(const moei_rows *b, bool trans, const moei_columns *cols, int64_t k0, int64_t kc) {
    int64_t second = cols->n_runs == 2 ? cols->first[1] - cols->first[0] : 0;
    if (trans)
        return (moei_fetch){*b, cols->first[0], cols->first[0] + cols->width, k0, 2 * kc, 0, second * b->ld};
    return (moei_fetch){*b, k0, k0 + kc, cols->first[0], 2 * cols->width, 0, second};
}

static inline void fetch_lines(moei_fetch *f, int64_t lines) {
    for (; lines > 0 && f->row < f->end; --lines) {
        const uint16_t *at = bf16_at(&f->rows, f->row) + f->column;
        _mm_prefetch((const char *)at + f->at, _MM_HINT_T1);
        if (f->second) _mm_prefetch((const char *)(at + f->second) + f->at, _MM_HINT_T1);
        f->at += LINE;
        if (f->at < f->bytes) continue;
        f->at = 0;
        ++f->row;
    }
}

/* Lines to ask for in every FETCH_K steps of a sum, so that the block is there after `tiles` tiles of kc
 * steps. */
enum { FETCH_K = 32 };
static inline int64_t fetch_share(const moei_fetch *f, int64_t tiles, int64_t kc) {
    int64_t lines = (f->end - f->row) * moei_ceil_div(f->bytes, LINE);
    return moei_ceil_div(lines, tiles * moei_ceil_div(kc, FETCH_K));
}

#endif
