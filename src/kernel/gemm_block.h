/* gemm_block.h: what the tiles of all families share: rows by index, the columns of a task, what is asked for
 * before its turn.
 * A tile's header defines NR, the width of a panel of packed B, and K_STEP, and includes this.
 * Source: Goto & van de Geijn 2008; Van Zee & van de Geijn 2015 (BLIS).
 */
#ifndef MOEI_GEMM_BLOCK_H
#define MOEI_GEMM_BLOCK_H

#include <stdbool.h>
#include <stddef.h>

#include "core/integer.h"
#include "kernel/hint.h"

/* Steps of a sum that the tile takes: whole K_STEPs, the last filled with zeros. */
static inline int64_t padded(int64_t k) {
    return moei_ceil_div(k, K_STEP) * K_STEP;
}

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

/* Rows that will be read soon, asked for a few cache lines at a time while tiles are multiplied: reading them
 * at once would wait for every line. */
typedef struct moei_fetch {
    moei_rows rows;
    int64_t row, end;      /* rows still to ask for */
    int64_t column, bytes; /* where in a row, and how much of it */
    int64_t at;            /* bytes of the present row asked for */
    int64_t second;        /* elements from the first run of columns to the second; 0: there is none */
} moei_fetch;

/* rows[row .. end, column .. column+n] */
static inline moei_fetch fetch_block(const moei_rows *rows, int64_t row, int64_t end, int64_t column,
                                     int64_t n) {
    return (moei_fetch){
        .rows = *rows, .row = row, .end = end, .column = column, .bytes = n * (rows->bf16 ? 2 : 4)};
}

/* B[k0 .. k0+kc, columns] */
static inline moei_fetch fetch_b(const moei_rows *b, bool trans, const moei_columns *cols, int64_t k0,
                                 int64_t kc) {
    int64_t second = cols->n_runs == 2 ? cols->first[1] - cols->first[0] : 0;
    int64_t real = b->bf16 ? 2 : 4, from = cols->first[0];
    if (trans) return (moei_fetch){*b, from, from + cols->width, k0, kc * real, 0, second * b->ld};
    return (moei_fetch){*b, k0, k0 + kc, from, cols->width * real, 0, second};
}

static inline void fetch_lines(moei_fetch *f, int64_t lines) {
    while (lines > 0 && f->row < f->end) {
        int64_t element = row_start(&f->rows, f->row) + f->column;
        int64_t end = moei_min(f->bytes, f->at + lines * LINE);
        const char *first = byte_at(f->rows.bf16, f->rows.base, element);
        const char *second = byte_at(f->rows.bf16, f->rows.base, element + f->second);
        for (int64_t at = f->at; at < end; at += LINE) __builtin_prefetch(first + at, 0, 2);
        for (int64_t at = f->at; f->second && at < end; at += LINE) __builtin_prefetch(second + at, 0, 2);
        lines -= moei_ceil_div(end - f->at, LINE);
        f->at = end;
        if (end < f->bytes) return;
        f->at = 0;
        ++f->row;
    }
}

/* A line of packed weights: into L2 where memory is the limit, into L1 where unpacking is. */
MOEI_INLINE void fetch_codes(const int bits, const void *at) {
    if (bits == 16)
        __builtin_prefetch(at, 0, 2);
    else
        __builtin_prefetch(at);
}

/* Lines to ask for beside each of `tiles` tiles or steps of them: in one burst they would keep the tiles from
 * their own. */
static inline int64_t fetch_share(const moei_fetch *f, int64_t tiles) {
    return moei_ceil_div((f->end - f->row) * moei_ceil_div(f->bytes, LINE), tiles);
}

/* All at once: what is read first, when there is nothing to do meanwhile. */
static inline void fetch_all(moei_fetch f) {
    fetch_lines(&f, fetch_share(&f, 1));
}

#endif
