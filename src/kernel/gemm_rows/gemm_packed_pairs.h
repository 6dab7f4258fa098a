/* gemm_packed_pairs.h: operand B of the products of bf16 pairs out of packed weights.
 * A number is value[code] * scale, rounded to bf16 as if it had been written back; strips and panels are
 * those of gemm_pairs.h, which is to be included before. Layout: kernel/packed.h.
 */
#ifndef MOEI_GEMM_PACKED_PAIRS_H
#define MOEI_GEMM_PACKED_PAIRS_H

#include "kernel/packed.h"

enum { AHEAD_BYTES = 3072 /* how far reading packed weights runs ahead */ };

_Static_assert(KC % MOEI_GROUP_MAX == 0 && STRIP_K % 32 == 0, "blocks of a sum begin with whole words");

/* Sixteen pairs out of the even and the odd numbers. */
static inline __m512i pairs_of(vf even, vf odd) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23,
                                           7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}

/* Where pairs go: into memory, or, with `rows` of A, straight into their sums. */
typedef struct moei_pairs_use {
    uint16_t *out;
    const uint16_t *a; /* rows A_ROW apart, zeros up to whole words */
    float *sum;
    int64_t panels; /* of the task */
    bool add;
} moei_pairs_use;

/* Of a panel, steps k .. k+kc of its columns from `column` on, of which `width` are needed. Where the panel
 * begins is found once for all of its parts: that takes divisions, which a thread that waits for memory
 * notices. */
typedef struct moei_packed_part {
    const moe_packed *p;
    const unsigned char *panel;
    int64_t column, width, k, kc;
    const unsigned char *next; /* what is read after it */
} moei_packed_part;

/* Scales of sixteen columns of a block. */
MOEI_INLINE vf pairs_scale(const int bits, const bool exponents, const unsigned char *block, int64_t column) {
    if (bits == 16) return vf_set1(1.0f);
    return exponents ? vf_load_exponent(block + column) : vf_load_f16(block + 2 * column);
}

/* Numbers i and i + 1 of sixteen words. */
MOEI_INLINE __m512i pairs_in(const int bits, vt table, vu words, int i, vf scale) {
    if (bits == 16) return words;
    const vf even = bits == 8 ? vf_byte(words, i) : vf_nibble(table, words, i);
    const vf odd = bits == 8 ? vf_byte(words, i + 1) : vf_nibble(table, words, i + 1);
    return pairs_of(vf_mul(even, scale), vf_mul(odd, scale));
}

enum { PANEL_V = MOEI_PANEL / VF_N };

/* Chains of a panel's columns -> their sums. Where no more than half of them are needed, the others' place
 * may be that of the next run, and zeros times an infinite A are no zeros. */
MOEI_INLINE void store_chains(const int rows, vf acc[4][PANEL_V], int64_t width, moei_pairs_use use) {
    const int needed = width > NR ? PANEL_V : NR / VF_N;
    MOEI_UNROLL
    for (int r = 0; r < rows; ++r) {
        MOEI_UNROLL
        for (int v = 0; v < PANEL_V; ++v) {
            float *at = use.sum + sum_at(r, v * VF_N);
            if (v < needed) vf_store(at, use.add ? vf_add(vf_load(at), acc[r][v]) : acc[r][v]);
        }
    }
}

/* A part of a panel -> pair rows of NR columns; or, with all of its columns, into sums. Zeros up to
 * padded(kc), as the last group of a panel is padded with them. */
MOEI_INLINE void use_pairs(const int rows, const int bits, const bool exponents, const moei_packed_part *part,
                           moei_pairs_use use) {
    const moe_packed *p = part->p;
    const unsigned char *panel = part->panel;
    const int64_t column = part->column;
    const int vectors = rows > 0 ? PANEL_V : NR / VF_N;
    const int per = 32 / bits, side = bits == 16 ? 1 : vectors; /* tiles are read one after the other */
    const int64_t codes = moei_packed_scale_bytes(p->format) + moei_packed_column_at(bits, column);
    const int64_t k0 = part->k, end = k0 + padded(part->kc);
    const vt table = vt_load(p->format->value);
    vf acc[4][PANEL_V];
    MOEI_UNROLL
    for (int r = 0; r < rows; ++r) {
        MOEI_UNROLL
        for (int v = 0; v < vectors; ++v) acc[r][v] = vf_zero();
    }
    for (int64_t begin = k0, stop; begin < end; begin = stop) {
        const unsigned char *block = panel + begin / p->group * p->block_bytes;
        const int64_t from = codes + begin % p->group / per * moei_packed_row_bytes(bits);
        stop = moei_min(end, (begin / p->group + 1) * p->group);
        vf scale[PANEL_V];
        MOEI_UNROLL
        for (int v = 0; v < vectors; ++v) scale[v] = pairs_scale(bits, exponents, block, column + v * VF_N);
        MOEI_UNROLL
        for (int first = 0; first < vectors; first += side) {
            const unsigned char *at = block + from;
            for (int64_t k = begin; k < stop; k += per, at += moei_packed_row_bytes(bits)) {
                MOEI_UNROLL
                for (int v = first; v < first + side; ++v) {
                    const unsigned char *word = at + moei_packed_column_at(bits, v * VF_N);
                    const vu words = vu_load(word);
                    fetch_codes(bits, word + AHEAD_BYTES);
                    MOEI_UNROLL
                    for (int i = 0; i < per; i += 2) {
                        const __m512i pairs = pairs_in(bits, table, words, i, scale[v]);
                        if (rows == 0)
                            _mm512_storeu_si512(use.out + pair_at((k - k0 + i) / 2) + v * SECOND_HALF, pairs);
                        MOEI_UNROLL
                        for (int r = 0; r < rows; ++r) {
                            int32_t x;
                            memcpy(&x, use.a + r * A_ROW + k - k0 + i, sizeof x);
                            acc[r][v] =
                                _mm512_dpbf16_ps(acc[r][v], (__m512bh)_mm512_set1_epi32(x), (__m512bh)pairs);
                        }
                    }
                }
            }
        }
    }
    if (rows > 0) store_chains(rows, acc, part->width, use);
}

MOEI_INLINE void use_column(const int rows, const moei_packed_part *part, moei_pairs_use use) {
    const moei_packed_format *format = part->p->format;
    if (format->bits == 16)
        use_pairs(rows, 16, false, part, use);
    else if (format->bits == 8)
        use_pairs(rows, 8, false, part, use);
    else if (format->exponents)
        use_pairs(rows, 4, true, part, use);
    else
        use_pairs(rows, 4, false, part, use);
}

/* pack_strip of packed weights: the same columns, which begin a strip of a panel. */
static void unpack_strip(const moe_packed *p, const unsigned char *panel, int64_t column, int64_t k0,
                         int64_t kc, uint16_t *out) {
    const moei_packed_part part = {.p = p, .panel = panel, .column = column, .width = NR, .k = k0, .kc = kc};
    use_column(0, &part, (moei_pairs_use){.out = out});
}

/* pack_b of packed weights. */
static void unpack_b(const moe_packed *p, int32_t g, const moei_columns *cols, int64_t k0, int64_t kc,
                     uint16_t *out) {
    for (int64_t i = 0; i < cols->n_runs * cols->panels; ++i) {
        const int64_t j = cols->first[i / cols->panels] + i % cols->panels * NR;
        int64_t column;
        const int64_t panel = moei_packed_panel(p, j, &column);
        unpack_strip(p, p->data + moei_packed_at(p, g, panel), column, k0, kc, out + i * PANEL);
    }
}

#endif
