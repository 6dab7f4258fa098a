/* packed.h: weights packed for inference, and where every byte of them lies: the one place that knows.
 * B_g[k, n] is cut into n_runs runs of columns (gate and up), a run into panels of 64 columns, a panel into
 * blocks of `group` rows, the last ones padded with zeros. A block is one read of memory from front to back:
 *   scale[64]              f16 or e8m0, one a column; codes of 16 bits have none
 *   code[group / per][64]  words of 32 bits, little-endian: of column j rows per*i .. per*i + per - 1, the
 *                          first in the lowest bits; per is 8 rows of 4 bits, 4 of 8 or 2 of 16
 * but words of 16 bits stand as [4][group / per][16], each of the four a tile as AMX loads it in one piece,
 * and the number is value[code] * scale, of 8 bits code, -127 .. 127, times scale, of 16 the code as bf16.
 * Sources: OCP MX specification 1.0 (mxfp4); Dettmers et al. 2023, QLoRA (nf4); Intel's VNNI order of bf16.
 */
#ifndef MOEI_PACKED_H
#define MOEI_PACKED_H

#include <moekit/op.h>

#include <string.h>

#include "core/real.h"

enum {
    MOEI_PANEL = 64,
    MOEI_CODES = 16,
    MOEI_GROUP_MAX = 128,
    MOEI_PAIRS_GROUP = 32, /* rows of a block of 16 bits, */
    MOEI_TILE_BYTES = 1024 /* whose tiles are 16 columns */
};

typedef struct moei_packed_format {
    const char *name;
    int32_t bits;      /* of a code: 16, 8 or 4 */
    bool exponents;    /* scales are powers of two, e8m0; else f16 */
    double most;       /* f16: the largest number of a group is this times its scale */
    int32_t groups[4]; /* rows that may share a scale, or a block, the default first; ends with 0 */
    float value[MOEI_CODES];
} moei_packed_format;

struct moe_packed {
    moe_ctx *ctx;
    const moei_packed_format *format;
    moe_dtype dtype;
    int32_t n_groups, group, n_runs;
    int64_t k, n;
    int64_t run_panels; /* of one run */
    int64_t block_bytes, panel_bytes, group_bytes;
    unsigned char *data; /* memory of the context's device */
    size_t bytes;
};

static inline int64_t moei_packed_scale_bytes(const moei_packed_format *format) {
    return format->bits == 16 ? 0 : MOEI_PANEL * (format->exponents ? 1 : 2);
}

/* Bytes from a row of words to the next, and from the first word of a row to that of column j. */
static inline int64_t moei_packed_row_bytes(int bits) {
    return bits == 16 ? 64 : 4 * MOEI_PANEL;
}
static inline int64_t moei_packed_column_at(int bits, int64_t j) {
    return bits == 16 ? j / 16 * MOEI_TILE_BYTES + j % 16 * 4 : 4 * j;
}

/* Rows of a word. */
static inline int32_t moei_packed_per(const moei_packed_format *format) {
    return 32 / format->bits;
}

/* Where the panel of group g begins; panels of the second run come after those of the first. */
static inline int64_t moei_packed_at(const moe_packed *p, int64_t g, int64_t panel) {
    return g * p->group_bytes + panel * p->panel_bytes;
}

/* The panel that column j lies in, and its column there. */
static inline int64_t moei_packed_panel(const moe_packed *p, int64_t j, int64_t *column) {
    const int64_t width = p->n / p->n_runs, run = width > 0 ? j / width : 0;
    *column = (j - run * width) % MOEI_PANEL;
    return run * p->run_panels + (j - run * width) / MOEI_PANEL;
}

/* The block that row i lies in, of a panel that begins there; of the panel that column j lies in. */
static inline const unsigned char *moei_panel_block(const moe_packed *p, const unsigned char *panel,
                                                    int64_t i) {
    return panel + i / p->group * p->block_bytes;
}
static inline const unsigned char *moei_packed_block(const moe_packed *p, int64_t g, int64_t i, int64_t j) {
    int64_t column;
    const int64_t panel = moei_packed_panel(p, j, &column);
    return moei_panel_block(p, p->data + moei_packed_at(p, g, panel), i);
}

/* A finite f16 of at least zero. */
static inline double moei_f16_value(uint16_t bits) {
    const uint32_t word = (uint32_t)bits << 13; /* the exponent is 112 too small, subnormal or not */
    float value;
    memcpy(&value, &word, sizeof value);
    return (double)value * 0x1p112;
}

static inline double moei_packed_scale(const moei_packed_format *format, const unsigned char *block,
                                       int64_t column) {
    uint16_t half;
    if (format->bits == 16) return 1;
    if (!format->exponents) {
        memcpy(&half, block + 2 * column, sizeof half);
        return moei_f16_value(half);
    }
    const uint32_t word = (uint32_t)block[column] << 23;
    float value;
    memcpy(&value, &word, sizeof value);
    return (double)value;
}

/* Element (i, j) of B_g. */
static inline double moei_packed_value(const moe_packed *p, int64_t g, int64_t i, int64_t j) {
    const moei_packed_format *format = p->format;
    const int64_t per = moei_packed_per(format), row = i % p->group;
    int64_t column;
    const int64_t panel = moei_packed_panel(p, j, &column);
    const unsigned char *block = p->data + moei_packed_at(p, g, panel) + i / p->group * p->block_bytes;
    const unsigned char *word = block + moei_packed_scale_bytes(format) +
                                row / per * moei_packed_row_bytes(format->bits) +
                                moei_packed_column_at(format->bits, column);
    const double scale = moei_packed_scale(format, block, column);
    const unsigned char *half = word + row % per * 2; /* of 16 bits */
    if (format->bits == 16) return (double)moei_bf16_value((uint16_t)(half[0] | half[1] << 8));
    if (format->bits == 8) return (double)(int8_t)word[row % per] * scale;
    return (double)format->value[word[row % per / 2] >> row % 2 * 4 & 15] * scale;
}

#endif
