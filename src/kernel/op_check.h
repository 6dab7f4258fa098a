/* op_check.h: what the public operations ask of their arguments: whole numbers in a range, pointers that are
 * there and begin with an element, dtypes that are served. A wrong one is told by the operation's and its own
 * name, with its value and what would be right (MOE_ERR_ARGUMENT). `op` is "moe_" and the name of a row of
 * kernel.def.
 */
#ifndef MOEI_OP_CHECK_H
#define MOEI_OP_CHECK_H

#include <moekit/op.h>

#define MOEI_COUNT(array) (sizeof(array) / sizeof(array)[0])

/* A whole number and the range it must lie in. */
typedef struct moei_limit {
    const char *field;
    int64_t value, min, max;
} moei_limit;
moe_status moei_op_limits(moe_ctx *ctx, const char *op, const moei_limit *limits, size_t n);

/* A pointer and the bytes of what it points to, of which its address is a multiple. */
typedef struct moei_need {
    const char *field;
    const void *ptr;
    size_t bytes;
} moei_need;
moe_status moei_op_needs(moe_ctx *ctx, const char *op, const moei_need *needs, size_t n);
/* Of those that may be NULL. */
moe_status moei_op_whole(moe_ctx *ctx, const char *op, const moei_need *may, size_t n);

/* The CPU serves every operation in every dtype; a device has the rows of kernel.def. */
moe_status moei_op_dtype(moe_ctx *ctx, const char *op, moe_dtype dtype);
/* A finite number that must not be below `min`; NaN fails too. */
moe_status moei_op_real(moe_ctx *ctx, const char *op, const char *field, double value, double min);
/* One that may have either sign. */
moe_status moei_op_finite(moe_ctx *ctx, const char *op, const char *field, double value);

#endif
