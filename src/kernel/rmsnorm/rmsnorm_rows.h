/* rmsnorm_rows.h: where the rows of an RMS normalisation stand: x, y [rows, heads, n], heads side by side.
 * A row here is that of one head: heads * rows of them, each with a root mean square of its own.
 * Source: moekit/op.h, whose zeros stand for one head and for rows without a gap.
 */
#ifndef MOEI_RMSNORM_ROWS_H
#define MOEI_RMSNORM_ROWS_H

#include <moekit/op.h>

static inline int64_t norm_heads(const moe_rmsnorm_args *a) {
    return a->heads ? a->heads : 1;
}

static inline int64_t norm_rows(const moe_rmsnorm_args *a) {
    return a->rows * norm_heads(a);
}

/* First number of row r, of rows that are `ld` apart. */
static inline int64_t norm_at(const moe_rmsnorm_args *a, int64_t ld, int64_t r) {
    const int64_t heads = norm_heads(a);
    return ld ? r / heads * ld + r % heads * a->n : r * a->n;
}

#endif
