/* gemm_packed_simd.h: operand B of the grouped product out of packed weights, in vectors of f32.
 * A number is value[code] * scale, rounded to f32; then everything goes as if B had held it: the same chains,
 * the same bits. Few rows read the packed panels where they are, front to back; more rows have them written
 * out into the panels of the register tile. Layout: kernel/packed.h. Include after gemm_tile.h.
 */
#ifndef MOEI_GEMM_PACKED_SIMD_H
#define MOEI_GEMM_PACKED_SIMD_H

#include "kernel/packed.h"

enum {
    PACKED_V = VF_N == 16 ? 4 : 2, /* vectors of columns side by side: chains of sums that do not wait */
    PACKED_STRIP = PACKED_V * VF_N,
    PACKED_FETCH = 1024, /* bytes ahead that are asked for */
};
_Static_assert(KC % MOEI_GROUP_MAX == 0, "a block of the sum begins with a group");

/* What is known when compiled: 16, 8 or 4 bits; f16, or exponents, or no scale. */
MOEI_INLINE vf packed_scale(const int bits, const bool exponents, const unsigned char *block,
                            int64_t column) {
    if (bits == 16) return vf_set1(1.0f);
    return exponents ? vf_load_exponent(block + column) : vf_load_f16(block + 2 * column);
}
MOEI_INLINE vf packed_number(const int bits, vt table, vu words, int i, vf scale) {
    if (bits == 16) return vf_half(words, i);
    return vf_mul(bits == 8 ? vf_byte(words, i) : vf_nibble(table, words, i), scale);
}

/* sum[mr, strip] (+)= A times a strip of columns of the blocks from `block` on; A packed, zeros past kc. */
MOEI_INLINE void packed_strip(const int mr, const int bits, const bool exponents, const moe_packed *p,
                              const unsigned char *block, int64_t column, const float *a, int64_t a_ld,
                              int64_t kc, float *sum, bool add) {
    const int per = 32 / bits, side = bits == 16 ? 1 : PACKED_V; /* tiles are read one after the other */
    const int64_t codes = moei_packed_scale_bytes(p->format) + moei_packed_column_at(bits, column);
    const vt table = vt_load(p->format->value);
    vf acc[4][PACKED_V];
    MOEI_UNROLL
    for (int r = 0; r < mr; ++r) {
        MOEI_UNROLL
        for (int v = 0; v < PACKED_V; ++v) acc[r][v] = vf_zero();
    }
    for (int64_t begin = 0; begin < kc; begin += p->group, block += p->block_bytes) {
        vf scale[PACKED_V];
        MOEI_UNROLL
        for (int v = 0; v < PACKED_V; ++v) scale[v] = packed_scale(bits, exponents, block, column + v * VF_N);
        const int64_t end = moei_min(begin + p->group, kc);
        MOEI_UNROLL
        for (int first = 0; first < PACKED_V; first += side) {
            const unsigned char *at = block + codes;
            for (int64_t k = begin; k < end; k += per, at += moei_packed_row_bytes(bits)) {
                vu words[PACKED_V];
                MOEI_UNROLL
                for (int v = first; v < first + side; ++v) {
                    const unsigned char *word = at + moei_packed_column_at(bits, v * VF_N);
                    words[v] = vu_load(word);
                    fetch_codes(bits, word + PACKED_FETCH);
                }
                MOEI_UNROLL
                for (int i = 0; i < per; ++i) {
                    MOEI_UNROLL
                    for (int v = first; v < first + side; ++v) {
                        const vf w = packed_number(bits, table, words[v], i, scale[v]);
                        MOEI_UNROLL
                        for (int r = 0; r < mr; ++r)
                            acc[r][v] = vf_fma(vf_set1(a[r * a_ld + k + i]), w, acc[r][v]);
                    }
                }
            }
        }
    }
    MOEI_UNROLL
    for (int r = 0; r < mr; ++r) {
        MOEI_UNROLL
        for (int v = 0; v < PACKED_V; ++v) {
            float *at = sum + r * SUM_LD + v * VF_N;
            vf_store(at, add ? vf_add(vf_load(at), acc[r][v]) : acc[r][v]);
        }
    }
}

MOEI_INLINE void packed_rows(const int mr, const moe_packed *p, const unsigned char *block, const float *a,
                             int64_t a_ld, int64_t kc, float *sum, bool add) {
    for (int64_t j = 0; j < MOEI_PANEL; j += PACKED_STRIP) {
        if (p->format->bits == 16)
            packed_strip(mr, 16, false, p, block, j, a, a_ld, kc, sum + j, add);
        else if (p->format->bits == 8)
            packed_strip(mr, 8, false, p, block, j, a, a_ld, kc, sum + j, add);
        else if (p->format->exponents)
            packed_strip(mr, 4, true, p, block, j, a, a_ld, kc, sum + j, add);
        else
            packed_strip(mr, 4, false, p, block, j, a, a_ld, kc, sum + j, add);
    }
}

/* sum[mr, 64] (+)= A times the panel's blocks from `block` on, mr up to 4. */
static void packed_panel(int mr, const moe_packed *p, const unsigned char *block, const float *a,
                         int64_t a_ld, int64_t kc, float *sum, bool add) {
    switch (mr) {
    case 1:
        packed_rows(1, p, block, a, a_ld, kc, sum, add);
        break;
    case 2:
        packed_rows(2, p, block, a, a_ld, kc, sum, add);
        break;
    case 3:
        packed_rows(3, p, block, a, a_ld, kc, sum, add);
        break;
    default:
        packed_rows(4, p, block, a, a_ld, kc, sum, add);
        break;
    }
}

/* The numbers of a panel's blocks from `block` on -> out[k * NR + column % NR] of the tile's panels, which
 * are PANEL apart; of `width` columns of the panel. */
MOEI_INLINE void unpack_rows(const int bits, const bool exponents, const moe_packed *p,
                             const unsigned char *block, int64_t width, int64_t kc, float *out) {
    const int per = 32 / bits;
    const int64_t codes = moei_packed_scale_bytes(p->format);
    const vt table = vt_load(p->format->value);
    for (int64_t k = 0; k < kc; block += p->block_bytes) {
        const int64_t end = moei_min(k + p->group, kc);
        for (const unsigned char *at = block + codes; k < end; k += per, at += moei_packed_row_bytes(bits)) {
            const int64_t steps = moei_min(per, kc - k);
            for (int64_t j = 0; j < width; j += VF_N) {
                const vf scale = packed_scale(bits, exponents, block, j);
                const vu words = vu_load(at + moei_packed_column_at(bits, j));
                float *to = out + j / NR * PANEL + k * NR + j % NR;
                if (steps == per) {
                    MOEI_UNROLL
                    for (int i = 0; i < per; ++i)
                        vf_store(to + i * NR, packed_number(bits, table, words, i, scale));
                } else {
                    for (int i = 0; i < steps; ++i)
                        vf_store(to + i * NR, packed_number(bits, table, words, i, scale));
                }
            }
        }
    }
}

static void unpack_panel(const moe_packed *p, const unsigned char *block, int64_t width, int64_t kc,
                         float *out) {
    if (p->format->bits == 16)
        unpack_rows(16, false, p, block, width, kc, out);
    else if (p->format->bits == 8)
        unpack_rows(8, false, p, block, width, kc, out);
    else if (p->format->exponents)
        unpack_rows(4, true, p, block, width, kc, out);
    else
        unpack_rows(4, false, p, block, width, kc, out);
}

/* pack_b: rows k0 .. k0+kc of a task's columns -> panels of [kc, NR]. */
static void unpack_b(const moe_packed *p, int32_t g, const moei_columns *cols, int64_t k0, int64_t kc,
                     float *out) {
    for (int32_t run = 0; run < cols->n_runs; ++run) {
        for (int64_t j = 0; j < cols->width; j += MOEI_PANEL) {
            const int64_t width = moei_ceil_div(moei_min(MOEI_PANEL, cols->width - j), NR) * NR;
            unpack_panel(p, moei_packed_block(p, g, k0, cols->first[run] + j), width, kc,
                         out + (run * cols->panels + j / NR) * PANEL);
        }
    }
}

#endif
