/* gemm_test.h: what the tests of grouped products share: sizes, loads of groups, bounds.
 * An f32 sum of length k over chains of at most 256 is off by (min(k,256) + k/256 + 4) eps sum|a||b|; what is
 * stored as bf16 by half a unit in its last place more.
 */
#ifndef GEMM_TEST_H
#define GEMM_TEST_H

#include "kernel/guarded.h"

#define COUNT(list) (sizeof(list) / sizeof(list)[0])

static const int64_t edges[] = {1,  2,  3,  7,  15, 16,  17,  31,  32,  33,
                                47, 63, 64, 65, 97, 127, 130, 256, 257, 300};
static const int64_t loads[] = {0, 0, 1, 1, 2, 4, 5, 6, 7, 12, 13, 14, 15, 28, 29, 65, 130};

static inline double chain_bound(moe_dtype dtype, int64_t k) {
    double length = (double)(k < 256 ? k : 256 + k / 256) + 4;
    return length * (dtype == MOE_F64 ? EPS_F64 * (double)(k + 4) : EPS_F32);
}

/* offset[n_groups + 1] of groups with at most max_load rows; returns the rows. */
static inline int64_t draw_groups(test_random *random, int32_t n_groups, int64_t max_load, int64_t *offset) {
    offset[0] = 0;
    for (int32_t g = 0; g < n_groups; ++g) {
        const int64_t load = random_of(random, loads, COUNT(loads));
        offset[g + 1] = offset[g] + (load < max_load ? load : max_load);
    }
    return offset[n_groups];
}

static inline void assert_same_bits(const guarded *a, const guarded *b, const char *variant, uint64_t seed) {
    if (memcmp(a->block, b->block, (size_t)(a->n + 2 * GUARD) * moe_dtype_bytes(a->dtype)) == 0) return;
    fail_msg("%s, seed %llu: other bits", variant, (unsigned long long)seed);
}

/* The rows of kernel.def that serve `op` on this machine, NULL after the last. */
static inline void all_variants(const char *op, const moei_kernel_row *list[MOEI_ISA_COUNT + 1]) {
    list[0] = next_variant(op, NULL);
    for (int i = 0; list[i]; ++i) list[i + 1] = next_variant(op, list[i]);
}

#endif
