/* gemm_packed_amx.h: products of bf16 with packed weights in AMX tiles.
 * sum[rows, 64] (+)= A[rows, kc] times a panel, for one tile of rows: it is written out by strips in L1, as
 * tiles read memory. More rows have all of it written out first (gemm_rows_block.h). Layout: kernel/packed.h.
 * Include after gemm_tile_amx.h.
 */
#ifndef MOEI_GEMM_PACKED_AMX_H
#define MOEI_GEMM_PACKED_AMX_H

#include "kernel/gemm_rows/gemm_packed_pairs.h"

/* Rows of a task at most that unpack a strip at a time. */
static int64_t few_packed_rows(const moe_packed *p) {
    (void)p;
    return FEW_ROWS_PACKED;
}

/* sum[rows, NR or 2 NR] (+)= A times a part of a panel. */
static void few_packed_panel(int rows, const moei_packed_part *part, moei_pairs_use use, uint16_t *strip) {
    for (int64_t j = 0; j < part->width; j += NR) {
        unpack_strip(part->p, part->group, part->column + j, part->k, part->kc, strip);
        tile_panel(rows, use.a, strip, padded(part->kc), use.sum + sum_at(0, j), use.add);
    }
}

#endif
