/* gemm_tile_any.h: a tile of any height up to MR: a body of its own for each, chosen at run time.
 * Include after MR, NB, sum_at and tile_fixed(mr, a, a_i, a_k, b, kc, sum, add), whose operands hold
 * moei_operand; what B is the tile says (moei_tile_b). Source: register tiles need heights known at compile
 * time.
 */
#ifndef MOEI_GEMM_TILE_ANY_H
#define MOEI_GEMM_TILE_ANY_H

enum {
    FEW_TASKS = 16, /* of a thread, of few rows */
    WIDE_NB = NB,
    WIDE_ROWS = 0 /* no task has more columns for having few rows */
};

/* From where on the sums of rows from i on stand, of a task of so many panels. */
static inline int64_t strip_sums_at(int64_t i, int64_t panels) {
    (void)panels;
    return sum_at(i, 0);
}

/* Rows of the next tile where `left` are left: all of nearly one height, as a low one has too few chains of
 * sums to keep the units busy. */
static inline int tile_height(int64_t left) {
    return (int)moei_ceil_div(left, moei_ceil_div(left, MR));
}

/* The tile with a height known at run time: a specialised body for each, none for heights over MR. */
MOEI_INLINE void tile_any(int mr, const moei_operand *a, const int64_t a_i, const int64_t a_k,
                          const moei_tile_b b, int64_t kc, float *sum, bool add) {
    switch (mr) {
    case 1:
        tile_fixed(1, a, a_i, a_k, b, kc, sum, add);
        break;
    case 2:
        tile_fixed(2, a, a_i, a_k, b, kc, sum, add);
        break;
    case 3:
        tile_fixed(3, a, a_i, a_k, b, kc, sum, add);
        break;
    case 4:
        tile_fixed(4, a, a_i, a_k, b, kc, sum, add);
        break;
    case 5:
        tile_fixed(5, a, a_i, a_k, b, kc, sum, add);
        break;
    case 6:
        tile_fixed(6, a, a_i, a_k, b, kc, sum, add);
        break;
    case 7:
        if (MR >= 7) tile_fixed(MR < 7 ? 1 : 7, a, a_i, a_k, b, kc, sum, add);
        break;
    case 8:
        if (MR >= 8) tile_fixed(MR < 8 ? 1 : 8, a, a_i, a_k, b, kc, sum, add);
        break;
    case 9:
        if (MR >= 9) tile_fixed(MR < 9 ? 1 : 9, a, a_i, a_k, b, kc, sum, add);
        break;
    case 10:
        if (MR >= 10) tile_fixed(MR < 10 ? 1 : 10, a, a_i, a_k, b, kc, sum, add);
        break;
    case 11:
        if (MR >= 11) tile_fixed(MR < 11 ? 1 : 11, a, a_i, a_k, b, kc, sum, add);
        break;
    case 12:
        if (MR >= 12) tile_fixed(MR < 12 ? 1 : 12, a, a_i, a_k, b, kc, sum, add);
        break;
    case 13:
        if (MR >= 13) tile_fixed(MR < 13 ? 1 : 13, a, a_i, a_k, b, kc, sum, add);
        break;
    case 14:
        if (MR >= 14) tile_fixed(MR < 14 ? 1 : 14, a, a_i, a_k, b, kc, sum, add);
        break;
    default:
        break;
    }
}

/* Vectors have no state that a task would set up. */
static inline void tiles_begin(int64_t rows) {
    (void)rows;
}
static inline void tiles_end(void) {}

#endif
