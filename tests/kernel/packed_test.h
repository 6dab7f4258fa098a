/* packed_test.h: what the tests of packed weights share: a context, descriptors, packing.
 * b[n_groups,k,n] of a dtype -> moe_packed.
 * Source: moekit/quant.h.
 */
#ifndef PACKED_TEST_H
#define PACKED_TEST_H

#include "kernel/guarded.h"

#include <moekit/quant.h>

#define COUNT(list) (sizeof(list) / sizeof(list)[0])

static inline moe_ctx *new_ctx(int32_t n_threads) {
    const moe_ctx_desc desc = {.size = sizeof desc, .n_threads = n_threads};
    moe_ctx *ctx = NULL;
    assert_int_equal(moe_ctx_create(&desc, &ctx, NULL), MOE_OK);
    return ctx;
}

static inline moe_packed *pack(moe_ctx *ctx, const moe_packed_desc *desc, const void *b) {
    moe_packed *packed = NULL;
    if (moe_packed_create(ctx, desc, b, &packed) != MOE_OK) fail_msg("%s", moe_ctx_error(ctx));
    return packed;
}

static inline moe_packed_desc describe(const char *format, int32_t group, moe_dtype dtype, int32_t n_groups,
                                       int64_t k, int64_t n) {
    return (moe_packed_desc){.size = sizeof(moe_packed_desc),
                             .format = format,
                             .group = group,
                             .dtype = dtype,
                             .n_groups = n_groups,
                             .k = k,
                             .n = n};
}

#endif
