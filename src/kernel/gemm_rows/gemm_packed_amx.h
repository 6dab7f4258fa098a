/* gemm_packed_amx.h: products of bf16 with packed weights in AMX tiles.
 * sum[rows, 64] (+)= A[rows, kc] times a panel. Pairs lie as tiles load them and are multiplied where they
 * are by any number of rows. Numbers of other formats are value[code] * scale, rounded to bf16 as if they had
 * been written back: few rows write them out by strips in L1, more have all of it written out first
 * (gemm_rows_block.h). Layout: kernel/packed.h. Include after gemm_tile_amx.h.
 */
#ifndef MOEI_GEMM_PACKED_AMX_H
#define MOEI_GEMM_PACKED_AMX_H

#include "kernel/gemm_rows/gemm_packed_pairs.h"

enum {
    PANEL_STEP = K_STEP * MOEI_PANEL,                    /* numbers of a panel for a step of tiles */
    SUM_LINES = (16 * K_STEP + PACKED_K - 1) / PACKED_K, /* of a tile of sums, a step */
};
_Static_assert((int)MOEI_PAIRS_GROUP == (int)K_STEP && (int)MOEI_TILE_BYTES == 2 * (int)TILE,
               "a block is tiles side by side");

/* Rows of a task at most that read packed panels as they are. */
static int64_t few_packed_rows(const moe_packed *p) {
    return p->format->bits == 16 ? MB : FEW_ROWS_PACKED;
}

/* Steps of A stand as they come. */
static void order_steps(const moe_packed *p, int64_t kc, uint16_t *a) {
    (void)p, (void)kc, (void)a;
}

/* 16 x 32 sums of a panel where it is. Beside each step are asked for: the sums that come next, and `lines`
 * of what is read next. */
static void tile_pairs(const uint16_t *a, const uint16_t *b, int64_t kc, float *sum, bool add,
                       const float *next_sum, const char *next, int64_t lines) {
    if (add) {
        _tile_loadd(0, sum, LINE);
        _tile_loadd(1, sum + SUM_HALF, LINE);
    } else {
        _tile_zero(0);
        _tile_zero(1);
    }
    for (int64_t k = 0; k < kc; k += K_STEP, a += 2 * TILE, b += PANEL_STEP) {
        _tile_loadd(2, a, LINE);
        _tile_loadd(3, b, LINE);
        _tile_dpbf16ps(0, 2, 3);
        _tile_loadd(3, b + TILE, LINE);
        _tile_dpbf16ps(1, 2, 3);
        for (int i = 0; i < SUM_LINES; ++i, next_sum += 16) {
            _mm_prefetch((const char *)next_sum, _MM_HINT_T0);
            _mm_prefetch((const char *)(next_sum + SUM_HALF), _MM_HINT_T0);
        }
        for (int64_t i = 0; i < lines; ++i, next += LINE) _mm_prefetch(next, _MM_HINT_T1);
    }
    _tile_stored(0, sum, LINE);
    _tile_stored(1, sum + SUM_HALF, LINE);
}

/* A part of a panel of pairs stays in L1 while all rows pass by, sixteen at a time; the part that is next is
 * asked for meanwhile, evenly. */
static void multiply_pairs(int rows, const moei_packed_part *part, moei_pairs_use use) {
    const uint16_t *panel = (const void *)moei_panel_block(part->p, part->panel, part->k);
    const int64_t kc = padded(part->kc), steps = kc / K_STEP, halves = part->width > NR ? 2 : 1;
    const int64_t lines = moei_ceil_div(kc * MOEI_PANEL * 2 / LINE, moei_ceil_div(rows, 16) * halves * steps);
    const char *next = (const char *)part->next;
    for (int i = 0; i < rows; i += 16) {
        const uint16_t *a = use.a + i / STRIP_ROWS * PACKED_A_STRIP + i % STRIP_ROWS * K_STEP;
        float *sum = use.sum + strip_sums_at(i, use.panels) + sum_at(i % STRIP_ROWS, 0);
        const float *below = use.sum + strip_sums_at(i + 16, use.panels) + sum_at((i + 16) % STRIP_ROWS, 0);
        for (int64_t half = 0; half < halves; ++half, sum += sum_at(0, NR), next += steps * lines * LINE) {
            const float *next_sum = half + 1 < halves ? sum + sum_at(0, NR) : below;
            tile_pairs(a, panel + half * (2 * TILE), kc, sum, use.add, next_sum, next, lines);
        }
    }
}

/* Sixteen pairs out of the even and the odd numbers. */
static inline __m512i pairs_of(vf even, vf odd) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23,
                                           7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}

/* Numbers i and i + 1 of sixteen words. */
MOEI_INLINE __m512i pairs_in(const int bits, vt table, vu words, int i, vf scale) {
    const vf even = bits == 8 ? vf_byte(words, i) : vf_nibble(table, words, i);
    const vf odd = bits == 8 ? vf_byte(words, i + 1) : vf_nibble(table, words, i + 1);
    return pairs_of(vf_mul(even, scale), vf_mul(odd, scale));
}

/* Steps k0 .. k0+kc of NR columns of a panel, from `column` on -> pair rows. Zeros up to padded(kc), as the
 * last group of a panel is padded with them. */
MOEI_INLINE void unpack_pairs(const int bits, const bool exponents, const moe_packed *p,
                              const unsigned char *panel, int64_t column, int64_t k0, int64_t kc,
                              uint16_t *out) {
    const int per = 32 / bits;
    const int64_t codes = moei_packed_scale_bytes(p->format) + moei_packed_column_at(bits, column);
    const int64_t end = k0 + padded(kc);
    const vt table = vt_load(p->format->value);
    for (int64_t begin = k0, stop; begin < end; begin = stop) {
        const unsigned char *block = panel + begin / p->group * p->block_bytes;
        const unsigned char *at = block + codes + begin % p->group / per * moei_packed_row_bytes(bits);
        const vf scale[2] = {pairs_scale(exponents, block, column),
                             pairs_scale(exponents, block, column + VF_N)};
        stop = moei_min(end, (begin / p->group + 1) * p->group);
        for (int64_t k = begin; k < stop; k += per, at += moei_packed_row_bytes(bits)) {
            MOEI_UNROLL
            for (int v = 0; v < 2; ++v) {
                const vu words = vu_load(at + v * LINE);
                fetch_codes(bits, at + v * LINE + AHEAD_BYTES);
                MOEI_UNROLL
                for (int i = 0; i < per; i += 2)
                    _mm512_storeu_si512(out + pair_at((k - k0 + i) / 2) + v * SECOND_HALF,
                                        pairs_in(bits, table, words, i, scale[v]));
            }
        }
    }
}

static void unpack_strip(const moe_packed *p, const unsigned char *panel, int64_t column, int64_t k0,
                         int64_t kc, uint16_t *out) {
    if (p->format->bits == 8)
        unpack_pairs(8, false, p, panel, column, k0, kc, out);
    else if (p->format->exponents)
        unpack_pairs(4, true, p, panel, column, k0, kc, out);
    else
        unpack_pairs(4, false, p, panel, column, k0, kc, out);
}

/* KC steps of B -> panels, however it is stored. */
static void ready_b(const moe_gemm_rows_args *args, int32_t g, const moei_rows *b, const moei_columns *cols,
                    int64_t k0, int64_t kc, uint16_t *out) {
    if (!args->b_packed) {
        if (args->b_trans)
            pack_b_trans(b, cols, k0, kc, out);
        else
            pack_b(b, cols, k0, kc, out);
        return;
    }
    const moe_packed *p = args->b_packed;
    for (int64_t i = 0; i < cols->n_runs * cols->panels; ++i) {
        const int64_t j = cols->first[i / cols->panels] + i % cols->panels * NR;
        int64_t column;
        const int64_t panel = moei_packed_panel(p, j, &column);
        unpack_strip(p, p->data + moei_packed_at(p, g, panel), column, k0, kc, out + i * PANEL);
    }
}

/* Steps of tiles that are unpacked ahead of those that are multiplied: a tile is not loaded before what was
 * written to it has left the store buffer. */
enum { UNPACK_LAG = 2, UNPACKED = UNPACK_LAG + 1 };
_Static_assert(UNPACKED *PANEL_STEP <= KC * NR, "what is unpacked fits the strip");

/* Sums of tiles 0, 1, 4 and 5: sixteen columns each. */
static void load_sums(const float *sum, bool add, bool all) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(4);
    _tile_zero(5);
    if (!add) return;
    _tile_loadd(0, sum, LINE);
    _tile_loadd(1, sum + SUM_HALF, LINE);
    if (!all) return;
    _tile_loadd(4, sum + 2 * SUM_HALF, LINE);
    _tile_loadd(5, sum + 3 * SUM_HALF, LINE);
}

static void store_sums(float *sum, bool all) {
    _tile_stored(0, sum, LINE);
    _tile_stored(1, sum + SUM_HALF, LINE);
    if (!all) return;
    _tile_stored(4, sum + 2 * SUM_HALF, LINE);
    _tile_stored(5, sum + 3 * SUM_HALF, LINE);
}

/* The four sums += A times K_STEP steps of a panel. */
static void step_of_sums(const uint16_t *a, const uint16_t *b) {
    _tile_loadd(2, a, LINE);
    _tile_loadd(3, b, LINE);
    _tile_dpbf16ps(0, 2, 3);
    _tile_loadd(3, b + TILE, LINE);
    _tile_dpbf16ps(1, 2, 3);
    _tile_loadd(3, b + 2 * TILE, LINE);
    _tile_dpbf16ps(4, 2, 3);
    _tile_loadd(3, b + 3 * TILE, LINE);
    _tile_dpbf16ps(5, 2, 3);
}

/* Up to sixteen rows multiply what is unpacked in L1, all columns of some steps after the other. Where no
 * more than half of the columns are needed, the others' sums are neither read nor written. */
static void multiply_codes(const moei_packed_part *part, moei_pairs_use use, uint16_t *strip) {
    const bool all = part->width > NR;
    const int64_t steps = padded(part->kc) / K_STEP;
    tiles_see_memory();
    load_sums(use.sum, use.add, all);
    for (int64_t i = 0; i < steps + UNPACK_LAG; ++i) {
        const int64_t done = i - UNPACK_LAG, k = part->k + i * K_STEP;
        uint16_t *to = strip + i % UNPACKED * PANEL_STEP;
        for (int64_t j = 0; j < MOEI_PANEL && i < steps; j += NR)
            unpack_strip(part->p, part->panel, j, k, K_STEP, to + j / NR * (2 * TILE));
        tiles_see_memory();
        if (done >= 0) step_of_sums(use.a + done * (2 * TILE), strip + done % UNPACKED * PANEL_STEP);
    }
    store_sums(use.sum, all);
    tiles_see_memory();
}

/* sum[rows, NR or 2 NR] (+)= A times a part of a panel. */
static void few_packed_panel(int rows, const moei_packed_part *part, moei_pairs_use use, uint16_t *strip) {
    if (part->p->format->bits == 16) {
        multiply_pairs(rows, part, use);
    } else {
        begin_next(part);
        multiply_codes(part, use, strip);
    }
}

#endif
