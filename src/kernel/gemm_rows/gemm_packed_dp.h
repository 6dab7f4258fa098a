/* gemm_packed_dp.h: products of bf16 with packed weights by vdpbf16ps.
 * sum[rows, 64] (+)= A[rows, kc] times a panel: few rows multiply it as they read it, whatever the format;
 * weights that are packed as pairs already are multiplied where they are by any number of rows. More rows of
 * others have it written out (gemm_rows_block.h). Layout: kernel/packed.h. Include after gemm_tile_dp.h.
 */
#ifndef MOEI_GEMM_PACKED_DP_H
#define MOEI_GEMM_PACKED_DP_H

#include "kernel/gemm_rows/gemm_packed_pairs.h"

/* Rows of a task at most that read packed panels as they are. */
static int64_t few_packed_rows(const moe_packed *p) {
    return p->format->bits == 16 ? MB : FEW_ROWS_PACKED;
}

/* sum[mr, NR or 2 NR] (+)= A times a part of a panel as it is read, mr up to 4: the chains of the tile,
 * without a strip between. */
static void multiply_few(int mr, const moei_packed_part *part, moei_pairs_use use) {
    switch (mr) {
    case 1:
        use_column(1, part, use);
        break;
    case 2:
        use_column(2, part, use);
        break;
    case 3:
        use_column(3, part, use);
        break;
    default:
        use_column(4, part, use);
        break;
    }
}

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

/* Asks for the first lines of what is next, unless it follows in memory anyway. */
static void begin_next(const moei_packed_part *part) {
    if (part->next == moei_panel_block(part->p, part->panel, part->k + part->kc)) return;
    for (int64_t at = 0; at < AHEAD_BYTES; at += LINE) __builtin_prefetch(part->next + at, 0, 2);
}

/* sum[rows, NR or 2 NR] (+)= A times a part of a panel. Of pairs that are multiplied where they are, each
 * tile asks for a quarter of what is next, or for half of it where there are but two, in the order of memory:
 * all of it beside the first tiles would come no sooner than memory gives it. */
static void few_packed_panel(int rows, const moei_packed_part *part, moei_pairs_use use, uint16_t *strip) {
    (void)strip;
    if (rows <= FEW_ROWS_PACKED) {
        begin_next(part);
        multiply_few(rows, part, use);
        return;
    }
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

#endif
