/* gemm_block.h: what the tiles of all families share: rows by index, the columns of a task, their layout.
 * A tile's header defines NR, the width of a panel of packed B, and includes this.
 * Source: Goto & van de Geijn 2008; Van Zee & van de Geijn 2015 (BLIS).
 */
#ifndef MOEI_GEMM_BLOCK_H
#define MOEI_GEMM_BLOCK_H

#include <stdbool.h>
#include <stddef.h>

#define MOEI_UNROLL _Pragma("GCC unroll 16")

enum { LINE = 64 /* bytes of a cache line */ };

/* The columns of one task: up to two runs (gate and up), each cut into panels of NR, the last one padded. */
typedef struct moei_columns {
    int32_t n_runs;
    int64_t first[2], width; /* of each run */
    int64_t panels;          /* of each run */
} moei_columns;

static inline moei_columns columns_of(int64_t first, int64_t width) {
    return (moei_columns){.n_runs = 1, .first = {first}, .width = width, .panels = moei_ceil_div(width, NR)};
}

/* Rows of a matrix, in order or by index; elements are f32 or bf16. */
typedef struct moei_rows {
    const void *base;
    int64_t ld;
    const int32_t *index; /* NULL: row r is r */
    bool bf16;
} moei_rows;

/* Number of the first element of row r. */
static inline int64_t row_start(const moei_rows *rows, int64_t r) {
    return (rows->index ? rows->index[r] : r) * rows->ld;
}

static inline const char *byte_at(bool bf16, const void *base, int64_t element) {
    return (const char *)base + element * (bf16 ? 2 : 4);
}

#endif
