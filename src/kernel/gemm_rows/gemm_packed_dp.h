/* gemm_packed_dp.h: products of bf16 with packed weights by vdpbf16ps.
 * sum[rows, 64] (+)= A[rows, kc] times a part of a panel. Of 8 and 4 bits the values are multiplied, as bf16,
 * and the sum of each group is scaled and added, in order: sum = sum + scale * (sum of a * value). Few rows
 * multiply values as they make them; for more, half a panel's values are written out in L1, and the tile
 * passes by. Weights that are pairs already are multiplied where they are. Steps of A stand in the order of
 * pairs. Layout: kernel/packed.h. Include after gemm_tile_dp.h.
 */
#ifndef MOEI_GEMM_PACKED_DP_H
#define MOEI_GEMM_PACKED_DP_H

#include "kernel/gemm_rows/gemm_packed_pairs.h"

/* Rows of a task at most that read packed panels as they are: all. */
static int64_t few_packed_rows(const moe_packed *p) {
    (void)p;
    return MB;
}

/* KC steps of B -> panels. */
static void ready_b(const moe_gemm_rows_args *args, int32_t g, const moei_rows *b, const moei_columns *cols,
                    int64_t k0, int64_t kc, uint16_t *out) {
    (void)g;
    if (args->b_trans)
        pack_b_trans(b, cols, k0, kc, out);
    else
        pack_b(b, cols, k0, kc, out);
}

/* 1. Values of codes. A word of `per` steps makes per / 2 pairs, of its steps i and i + per / 2, as they then
 * need no more than a shift. */

/* Where the values of codes stand: of 4 bits a table of 32 bf16, twice the sixteen, as the permutation looks
 * at five bits; of 8 bits the low and then the high bytes of 0 .. 127 as bf16. */
typedef struct moei_values {
    __m512i at[4];
} moei_values;

/* clang-format off */
static const uint8_t bf16_bytes[2][128] = {{
    0x00, 0x80, 0x00, 0x40, 0x80, 0xa0, 0xc0, 0xe0, 0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70,
    0x80, 0x88, 0x90, 0x98, 0xa0, 0xa8, 0xb0, 0xb8, 0xc0, 0xc8, 0xd0, 0xd8, 0xe0, 0xe8, 0xf0, 0xf8,
    0x00, 0x04, 0x08, 0x0c, 0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x28, 0x2c, 0x30, 0x34, 0x38, 0x3c,
    0x40, 0x44, 0x48, 0x4c, 0x50, 0x54, 0x58, 0x5c, 0x60, 0x64, 0x68, 0x6c, 0x70, 0x74, 0x78, 0x7c,
    0x80, 0x82, 0x84, 0x86, 0x88, 0x8a, 0x8c, 0x8e, 0x90, 0x92, 0x94, 0x96, 0x98, 0x9a, 0x9c, 0x9e,
    0xa0, 0xa2, 0xa4, 0xa6, 0xa8, 0xaa, 0xac, 0xae, 0xb0, 0xb2, 0xb4, 0xb6, 0xb8, 0xba, 0xbc, 0xbe,
    0xc0, 0xc2, 0xc4, 0xc6, 0xc8, 0xca, 0xcc, 0xce, 0xd0, 0xd2, 0xd4, 0xd6, 0xd8, 0xda, 0xdc, 0xde,
    0xe0, 0xe2, 0xe4, 0xe6, 0xe8, 0xea, 0xec, 0xee, 0xf0, 0xf2, 0xf4, 0xf6, 0xf8, 0xfa, 0xfc, 0xfe,
}, {
    0x00, 0x3f, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41,
    0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41,
    0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42,
    0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42,
    0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42,
    0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42,
    0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42,
    0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42,
}};
/* clang-format on */

MOEI_INLINE moei_values values_of(const int bits, const moei_packed_format *format) {
    moei_values values = {{_mm512_setzero_si512()}};
    if (bits == 4) {
        const __m256i table = vf_to_bf16(vt_load(format->value));
        values.at[0] = _mm512_inserti64x4(_mm512_castsi256_si512(table), table, 1);
    } else if (bits == 8) {
        for (int i = 0; i < 4; ++i) values.at[i] = _mm512_loadu_si512(bf16_bytes[i / 2] + i % 2 * 64);
    }
    return values;
}

/* The bf16 of 64 signed bytes: the bytes of their sizes', and their signs. */
MOEI_INLINE void byte_pairs(const moei_values *values, vu words, __m512i pair[2]) {
    enum { OR_AND = 0xf8 };                    /* a | b & c */
    const __mmask64 high = 0xaaaaaaaaaaaaaaaa; /* of each 16 bits */
    const __m512i size = _mm512_abs_epi8(words);
    const __m512i first = _mm512_permutex2var_epi8(values->at[0], size, values->at[1]);
    __m512i second = _mm512_permutex2var_epi8(values->at[2], size, values->at[3]);
    second = _mm512_ternarylogic_epi32(second, words, _mm512_set1_epi8(-128), OR_AND);
    pair[0] = _mm512_mask_blend_epi8(high, first, _mm512_slli_epi16(second, 8));
    pair[1] = _mm512_mask_blend_epi8(high, _mm512_srli_epi16(first, 8), second);
}

/* The pairs of sixteen words. */
MOEI_INLINE void word_pairs(const int bits, const moei_values *values, vu words, __m512i pair[4]) {
    if (bits == 8) {
        byte_pairs(values, words, pair);
    } else {
        MOEI_UNROLL
        for (int i = 0; i < 4; ++i)
            pair[i] = _mm512_permutexvar_epi16(_mm512_srli_epi32(words, (unsigned)(4 * i)), values->at[0]);
    }
}

/* Steps of a row of A into the order of pairs. */
static void order_steps(const moe_packed *p, int64_t kc, uint16_t *a) {
    const int per = moei_packed_per(p->format);
    uint16_t order[32];
    if (per == 2) return;
    for (int i = 0; i < 32; ++i) order[i] = (uint16_t)(i / per * per + i % per / 2 + i % 2 * (per / 2));
    const __m512i from = _mm512_loadu_si512(order);
    for (int64_t k = 0; k < kc; k += 32)
        _mm512_storeu_si512(a + k, _mm512_permutexvar_epi16(from, _mm512_loadu_si512(a + k)));
}

/* 2. Few rows. */

enum { PANEL_V = MOEI_PANEL / VF_N };

/* Of sixteen columns with `rows` chains: the sums of words from `at` on, of steps k .. end. */
MOEI_INLINE void add_words(const int rows, const int bits, const moei_values *values,
                           const unsigned char *word, const uint16_t *a, vf *const chain) {
    __m512i pair[4];
    const vu words = vu_load(word);
    fetch_codes(bits, word + AHEAD_BYTES);
    word_pairs(bits, values, words, pair);
    MOEI_UNROLL
    for (int i = 0; i < 16 / bits; ++i) {
        MOEI_UNROLL
        for (int r = 0; r < rows; ++r) {
            int32_t x;
            memcpy(&x, a + r * A_ROW + 2 * i, sizeof x);
            chain[r] = _mm512_dpbf16_ps(chain[r], (__m512bh)_mm512_set1_epi32(x), (__m512bh)pair[i]);
        }
    }
}

/* Of sixteen columns, chains of `rows` rows. */
typedef struct moei_chains {
    vf row[FEW_ROWS_PACKED];
} moei_chains;

MOEI_INLINE void begin_chains(const int rows, moei_chains chain[PANEL_V]) {
    MOEI_UNROLL
    for (int v = 0; v < PANEL_V; ++v) {
        MOEI_UNROLL
        for (int r = 0; r < rows; ++r) chain[v].row[r] = vf_zero();
    }
}

/* Columns that are needed: where no more than half of them are, the others' place may be that of the next
 * run, and zeros times an infinite A are no zeros. */
static inline int needed_vectors(const moei_packed_part *part) {
    return part->width > NR ? PANEL_V : NR / VF_N;
}

/* Sums of groups, which are scaled and added in order. */
MOEI_INLINE void multiply_codes(const int rows, const int bits, const bool exponents,
                                const moei_packed_part *part, moei_pairs_use use) {
    const moe_packed *p = part->p;
    const int per = 32 / bits, needed = needed_vectors(part);
    const int64_t end = part->k + part->kc;
    const moei_values values = values_of(bits, p->format);
    const uint16_t *a = use.a;
    moei_chains sum[PANEL_V], chain[PANEL_V];
    begin_chains(rows, sum);
    MOEI_UNROLL
    for (int v = 0; v < PANEL_V; ++v) {
        MOEI_UNROLL
        for (int r = 0; r < rows; ++r)
            if (use.add && v < needed) sum[v].row[r] = vf_load(use.sum + sum_at(r, v * VF_N));
    }
    for (int64_t begin = part->k, stop; begin < end; begin = stop) {
        const unsigned char *block = moei_panel_block(p, part->panel, begin);
        const unsigned char *word = block + moei_packed_scale_bytes(p->format);
        stop = begin + p->group;
        begin_chains(rows, chain);
        for (int64_t k = begin; k < moei_min(stop, end); k += per, a += per) {
            MOEI_UNROLL
            for (int v = 0; v < PANEL_V; ++v, word += 4 * VF_N)
                add_words(rows, bits, &values, word, a, chain[v].row);
        }
        MOEI_UNROLL
        for (int v = 0; v < PANEL_V; ++v) {
            const vf scale = pairs_scale(exponents, block, v * VF_N);
            MOEI_UNROLL
            for (int r = 0; r < rows; ++r) sum[v].row[r] = vf_fma(scale, chain[v].row[r], sum[v].row[r]);
        }
    }
    MOEI_UNROLL
    for (int v = 0; v < PANEL_V; ++v) {
        MOEI_UNROLL
        for (int r = 0; r < rows; ++r)
            if (v < needed) vf_store(use.sum + sum_at(r, v * VF_N), sum[v].row[r]);
    }
}

enum { PAIRS_AT_ONCE = 4 };

/* Of sixteen columns with `rows` chains: the sums of n pair rows. Every other line is asked for: with all of
 * them a core's few buffers for lines that come are full while memory is slow, with none its own prefetchers
 * stay behind. */
MOEI_INLINE void add_pairs(const int rows, const int n, const unsigned char *pairs, const uint16_t *a,
                           vf *const chain) {
    MOEI_UNROLL
    for (int i = 0; i < n; ++i, pairs += LINE) {
        const __m512bh pair = (__m512bh)vu_load(pairs);
        if (i % 2 == 0) __builtin_prefetch(pairs + AHEAD_BYTES, 0, 2);
        MOEI_UNROLL
        for (int r = 0; r < rows; ++r) {
            int32_t x;
            memcpy(&x, a + r * A_ROW + 2 * i, sizeof x);
            chain[r] = _mm512_dpbf16_ps(chain[r], (__m512bh)_mm512_set1_epi32(x), pair);
        }
    }
}

/* Pairs as they lie, tile after tile: one chain, which is added. */
MOEI_INLINE void multiply_pairs(const int rows, const moei_packed_part *part, moei_pairs_use use) {
    const int needed = needed_vectors(part);
    moei_chains chain[PANEL_V];
    begin_chains(rows, chain);
    for (int64_t k = 0; k < part->kc; k += MOEI_PAIRS_GROUP) {
        const unsigned char *tile = moei_panel_block(part->p, part->panel, part->k + k);
        const int64_t pairs = moei_min(MOEI_PAIRS_GROUP, padded(part->kc - k)) / 2;
        MOEI_UNROLL
        for (int v = 0; v < PANEL_V; ++v, tile += MOEI_TILE_BYTES) {
            const uint16_t *a = use.a + k;
            int64_t i = 0;
#pragma GCC unroll 1 /* a tile unrolled as a whole is slower */
            for (; i + PAIRS_AT_ONCE <= pairs; i += PAIRS_AT_ONCE)
                add_pairs(rows, PAIRS_AT_ONCE, tile + i * LINE, a + 2 * i, chain[v].row);
#pragma GCC unroll 1
            for (; i < pairs; ++i) add_pairs(rows, 1, tile + i * LINE, a + 2 * i, chain[v].row);
        }
    }
    MOEI_UNROLL
    for (int v = 0; v < PANEL_V; ++v) {
        MOEI_UNROLL
        for (int r = 0; r < rows; ++r) {
            float *at = use.sum + sum_at(r, v * VF_N);
            const vf sum = chain[v].row[r];
            if (v < needed) vf_store(at, use.add ? vf_add(vf_load(at), sum) : sum);
        }
    }
}

MOEI_INLINE void multiply_any(const int rows, const moei_packed_part *part, moei_pairs_use use) {
    const moei_packed_format *format = part->p->format;
    if (format->bits == 16)
        multiply_pairs(rows, part, use);
    else if (format->bits == 8)
        multiply_codes(rows, 8, false, part, use);
    else if (format->exponents)
        multiply_codes(rows, 4, true, part, use);
    else
        multiply_codes(rows, 4, false, part, use);
}

/* sum[mr, 64] (+)= A times a part of a panel as it is read, mr up to FEW_ROWS_PACKED. */
static void multiply_few(int mr, const moei_packed_part *part, moei_pairs_use use) {
    switch (mr) {
    case 1:
        multiply_any(1, part, use);
        break;
    case 2:
        multiply_any(2, part, use);
        break;
    case 3:
        multiply_any(3, part, use);
        break;
    default:
        multiply_any(4, part, use);
        break;
    }
}

/* 3. More rows. */

enum { TILE = MOEI_TILE_BYTES / 2 }; /* numbers of sixteen columns of a block */
_Static_assert((int)K_RUN == (int)MOEI_PAIRS_GROUP, "after as many steps the next block begins");

/* sum[mr, NR] (+)= A times half a panel of pairs, and what is next is asked for. */
static __attribute__((noinline)) void tile_pairs(int mr, const uint16_t *a, const uint16_t *b, int64_t kc,
                                                 const char *next, bool two, float *sum, bool add) {
    tile_any(
        mr, a, A_LD, 1,
        (moei_tile_b){.at = b, .pair = 2 * VF_N, .half = TILE, .skip = 3 * TILE, .next = next, .two = two},
        kc, sum, add);
}

/* Each tile asks for a quarter of what is next, or for half of it where there are but two, in the order of
 * memory: all of it beside the first tiles would come no sooner than memory gives it. */
static void tiles_of_pairs(int rows, const moei_packed_part *part, moei_pairs_use use) {
    const uint16_t *panel = (const void *)moei_panel_block(part->p, part->panel, part->k);
    const int64_t quarter = part->kc / 2 * LINE;
    const bool two = part->width <= NR || rows <= MR;
    int64_t asked = 0;
    for (int64_t j = 0; j < part->width; j += NR) {
        for (int i = 0, mr; i < rows; i += mr) {
            mr = tile_height(rows - i);
            tile_pairs(mr, use.a + a_at(i, 0), panel + j / VF_N * TILE, padded(part->kc),
                       (const char *)part->next + asked, two, use.sum + sum_at(i, j), use.add);
            asked = moei_min(asked + (two ? 2 : 1) * quarter, 3 * quarter);
        }
    }
}

/* Values of half a panel as pair rows, and scales of its groups. */
typedef struct moei_half_values {
    uint16_t *pair; /* [KC / 2] pair rows */
    float scale[KC / 32][NR];
} moei_half_values;

MOEI_INLINE void write_values(const int bits, const bool exponents, const moei_packed_part *part,
                              int64_t column, moei_half_values *out) {
    const moe_packed *p = part->p;
    const int per = 32 / bits;
    const int64_t end = part->k + part->kc;
    const moei_values values = values_of(bits, p->format);
    uint16_t *to = out->pair;
    float *scale = out->scale[0];
    for (int64_t k = part->k; k < end; scale += NR) {
        const unsigned char *block = moei_panel_block(p, part->panel, k);
        const unsigned char *word =
            block + moei_packed_scale_bytes(p->format) + moei_packed_column_at(bits, column);
        const int64_t stop = moei_min(k + p->group, end);
        vf_store(scale, pairs_scale(exponents, block, column));
        vf_store(scale + VF_N, pairs_scale(exponents, block, column + VF_N));
        for (; k < stop; k += per, word += moei_packed_row_bytes(bits), to += pair_at(per / 2)) {
            MOEI_UNROLL
            for (int v = 0; v < 2; ++v) {
                __m512i pair[4];
                word_pairs(bits, &values, vu_load(word + v * LINE), pair);
                MOEI_UNROLL
                for (int i = 0; i < per / 2; ++i)
                    _mm512_storeu_si512(to + pair_at(i) + v * SECOND_HALF, pair[i]);
            }
        }
    }
}

enum { SCALED_ROWS = 7 }; /* of a tile: chains and sums stand in registers, four a row */

/* sum[mr, NR] (+)= A times half a panel's values, kc whole words. */
MOEI_INLINE void tile_scaled(const int mr, const uint16_t *a, const moei_half_values *b, int64_t group,
                             int64_t kc, float *sum, bool add) {
    const uint16_t *pair = b->pair;
    vf total[SCALED_ROWS][2];
    MOEI_UNROLL
    for (int i = 0; i < 2 * mr; ++i)
        total[i / 2][i % 2] = add ? vf_load(sum + sum_at(i / 2, i % 2 * VF_N)) : vf_zero();
    for (int64_t k = 0; k < kc;) {
        const float *scale = b->scale[k / group];
        vf chain[SCALED_ROWS][2];
        MOEI_UNROLL
        for (int i = 0; i < 2 * mr; ++i) chain[i / 2][i % 2] = vf_zero();
        for (const int64_t stop = moei_min(k + group, kc); k < stop; k += 2, pair += pair_at(1)) {
            const __m512bh first = (__m512bh)_mm512_loadu_si512(pair);
            const __m512bh second = (__m512bh)_mm512_loadu_si512(pair + SECOND_HALF);
            MOEI_UNROLL
            for (int i = 0; i < mr; ++i) {
                int32_t x;
                memcpy(&x, a + a_at(i, k), sizeof x);
                chain[i][0] = _mm512_dpbf16_ps(chain[i][0], (__m512bh)_mm512_set1_epi32(x), first);
                chain[i][1] = _mm512_dpbf16_ps(chain[i][1], (__m512bh)_mm512_set1_epi32(x), second);
            }
        }
        MOEI_UNROLL
        for (int i = 0; i < 2 * mr; ++i)
            total[i / 2][i % 2] =
                vf_fma(vf_load(scale + i % 2 * VF_N), chain[i / 2][i % 2], total[i / 2][i % 2]);
    }
    MOEI_UNROLL
    for (int i = 0; i < 2 * mr; ++i) vf_store(sum + sum_at(i / 2, i % 2 * VF_N), total[i / 2][i % 2]);
}

/* The same with a height known at run time. */
static __attribute__((noinline)) void tile_scaled_any(int mr, const uint16_t *a, const moei_half_values *b,
                                                      int64_t group, int64_t kc, float *sum, bool add) {
    switch (mr) {
    case 1:
        tile_scaled(1, a, b, group, kc, sum, add);
        break;
    case 2:
        tile_scaled(2, a, b, group, kc, sum, add);
        break;
    case 3:
        tile_scaled(3, a, b, group, kc, sum, add);
        break;
    case 4:
        tile_scaled(4, a, b, group, kc, sum, add);
        break;
    case 5:
        tile_scaled(5, a, b, group, kc, sum, add);
        break;
    case 6:
        tile_scaled(6, a, b, group, kc, sum, add);
        break;
    default:
        tile_scaled(7, a, b, group, kc, sum, add);
        break;
    }
}

/* Each tile asks for its share of what is next: unpacking alone would wait for it. */
static void tiles_of_codes(int rows, const moei_packed_part *part, moei_pairs_use use, uint16_t *strip) {
    const moei_packed_format *format = part->p->format;
    const int64_t per = moei_packed_per(format), kc = moei_ceil_div(part->kc, per) * per;
    const int64_t tiles = moei_ceil_div(rows, SCALED_ROWS) * (part->width > NR ? 2 : 1);
    const int64_t share = moei_ceil_div(moei_ceil_div(kc, part->p->group) * part->p->block_bytes, tiles);
    const unsigned char *next = part->next;
    moei_half_values half = {.pair = strip};
    for (int64_t j = 0; j < part->width; j += NR) {
        if (format->bits == 8)
            write_values(8, false, part, j, &half);
        else if (format->exponents)
            write_values(4, true, part, j, &half);
        else
            write_values(4, false, part, j, &half);
        for (int i = 0, mr; i < rows; i += mr) {
            mr = (int)moei_ceil_div(rows - i, moei_ceil_div(rows - i, SCALED_ROWS));
            for (int64_t at = 0; at < share; at += LINE) __builtin_prefetch(next + at, 0, 2);
            next += share;
            tile_scaled_any(mr, use.a + a_at(i, 0), &half, part->p->group, kc, use.sum + sum_at(i, j),
                            use.add);
        }
    }
}

/* Up to so many rows read codes again for each four of them, out of L1: cheaper than writing values out. */
enum { FEW_ROWS_AGAIN = 8 };

/* sum[rows, NR or 2 NR] (+)= A times a part of a panel. */
static void few_packed_panel(int rows, const moei_packed_part *part, moei_pairs_use use, uint16_t *strip) {
    if (rows <= (part->p->format->bits == 16 ? FEW_ROWS_PACKED : FEW_ROWS_AGAIN)) {
        begin_next(part);
        for (int i = 0, mr; i < rows; i += mr) {
            mr = (int)moei_ceil_div(rows - i, moei_ceil_div(rows - i, FEW_ROWS_PACKED));
            moei_pairs_use some = use;
            some.a += a_at(i, 0), some.sum += sum_at(i, 0);
            multiply_few(mr, part, some);
        }
    } else if (part->p->format->bits == 16)
        tiles_of_pairs(rows, part, use);
    else
        tiles_of_codes(rows, part, use, strip);
}

#endif
