/* guarded.h: what kernel tests share: a small random stream, guarded buffers, rows of kernel.def.
 * A guarded buffer is full of NaN, so that a cell nobody wrote fails, and has cells around it that must not
 * change.
 */
#ifndef GUARDED_H
#define GUARDED_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/real.h"
#include "kernel/kernel.h"
#include "kernel/test_team.h"

enum { GUARD = 64 };
static const double EPS_F32 = 1.0 / (1 << 23), EPS_F64 = 1.0 / (1LL << 52), EPS_BF16 = 1.0 / (1 << 7);

/* xorshift64*: the tests must not lean on the library's own generator. */
typedef struct test_random {
    uint64_t state;
} test_random;

static inline uint32_t random_word(test_random *random) {
    random->state ^= random->state >> 12, random->state ^= random->state << 25;
    random->state ^= random->state >> 27;
    return (uint32_t)((random->state * 2685821657736338717ULL) >> 32);
}
static inline int64_t random_below(test_random *random, int64_t n) {
    return random_word(random) % n;
}
static inline double random_real(test_random *random) {
    return random_word(random) / 2147483648.0 - 1;
}
static inline int64_t random_of(test_random *random, const int64_t *list, size_t count) {
    return list[random_below(random, (int64_t)count)];
}

typedef struct guarded {
    moe_dtype dtype;
    int64_t n;
    char *block;
    void *data;
} guarded;

static inline guarded guarded_new(moe_dtype dtype, int64_t n) {
    size_t real = moe_dtype_bytes(dtype);
    guarded g = {.dtype = dtype, .n = n, .block = malloc((size_t)(n + 2 * GUARD) * real)};
    assert_non_null(g.block);
    g.data = g.block + GUARD * real;
    for (int64_t i = 0; i < n + 2 * GUARD; ++i) moei_real_store(dtype, g.block, i, NAN);
    for (int64_t i = 0; i < GUARD; ++i) {
        moei_real_store(dtype, g.block, i, 64 + (double)i);
        moei_real_store(dtype, g.block, GUARD + n + i, -64 - (double)i);
    }
    return g;
}
static inline guarded guarded_random(test_random *random, moe_dtype dtype, int64_t n) {
    guarded g = guarded_new(dtype, n);
    for (int64_t i = 0; i < n; ++i) moei_real_store(dtype, g.data, i, random_real(random));
    return g;
}
static inline void guarded_check(const guarded *g) {
    for (int64_t i = 0; i < GUARD; ++i) {
        assert_true(moei_real_load(g->dtype, g->block, i) == 64 + (double)i);
        assert_true(moei_real_load(g->dtype, g->block, GUARD + g->n + i) == -64 - (double)i);
    }
}
static inline void guarded_free(guarded *g) {
    guarded_check(g);
    free(g->block);
}
static inline double get(const guarded *g, int64_t i) {
    return moei_real_load(g->dtype, g->data, i);
}

/* The next row of kernel.def that serves `op` on this machine; NULL after the last. */
static inline const moei_kernel_row *next_variant(const char *op, const moei_kernel_row *after) {
    size_t count;
    const moei_kernel_row *rows = moei_kernel_rows(&count);
    for (const moei_kernel_row *row = after ? after + 1 : rows; row < rows + count; ++row) {
        if (strcmp(row->op, op) != 0) continue;
        if (moei_isa_supported(row->isa)) return row;
        print_message("skipped: %s, not on this machine\n", row->name);
    }
    return NULL;
}

static inline bool serves(const moei_kernel_row *row, moe_dtype dtype) {
    return row->serves >> dtype & 1;
}

/* What storing `value` may cost beyond the errors of an f32 result: half a unit in the last place of bf16. */
static inline double storage_bound(moe_dtype dtype, double value) {
    return dtype == MOE_BF16 ? 0.51 * EPS_BF16 * fabs(value) : 0;
}

/* Fails with a line that tells how to repeat the case. */
static inline void check_close(double got, double want, double bound, const char *variant, uint64_t seed,
                               const char *what, int64_t at) {
    if (fabs(got - want) <= bound) return;
    fail_msg("%s, seed %llu: %s[%lld] is %.9g, expected %.9g within %.3g", variant, (unsigned long long)seed,
             what, (long long)at, got, want, bound);
}

#endif
