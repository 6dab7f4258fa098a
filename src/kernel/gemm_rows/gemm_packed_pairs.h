/* gemm_packed_pairs.h: what the products of bf16 pairs with packed weights share, whatever multiplies them:
 * the parts of a panel that come one after the other, and where their sums go. gemm_pairs.h is to be included
 * before. Layout: kernel/packed.h.
 */
#ifndef MOEI_GEMM_PACKED_PAIRS_H
#define MOEI_GEMM_PACKED_PAIRS_H

#include "kernel/packed.h"

enum { AHEAD_BYTES = 3072 /* how far reading packed weights runs ahead */ };

_Static_assert(KC % MOEI_GROUP_MAX == 0 && STRIP_K % 32 == 0, "blocks of a sum begin with whole words");

/* Rows of A, A_ROW apart, zeros up to whole words, and their sums, to which a part adds or with which it
 * begins. */
typedef struct moei_pairs_use {
    const uint16_t *a;
    float *sum;
    int64_t panels; /* of the task */
    bool add;
} moei_pairs_use;

/* Of a panel, steps k .. k+kc of its columns, of which `width` are needed. Where the panel begins is found
 * once for all of its parts: that takes divisions, which a thread that waits for memory notices. */
typedef struct moei_packed_part {
    const moe_packed *p;
    const unsigned char *panel;
    int64_t width, k, kc;
    const unsigned char *next; /* what is read after it */
} moei_packed_part;

/* Asks for the first lines of what is next, unless it follows in memory anyway. */
static void begin_next(const moei_packed_part *part) {
    if (part->next == moei_panel_block(part->p, part->panel, part->k + part->kc)) return;
    for (int64_t at = 0; at < AHEAD_BYTES; at += LINE) __builtin_prefetch(part->next + at, 0, 2);
}

/* Scales of sixteen columns of a block. */
MOEI_INLINE vf pairs_scale(const bool exponents, const unsigned char *block, int64_t column) {
    return exponents ? vf_load_exponent(block + column) : vf_load_f16(block + 2 * column);
}

#endif
