/* kernel_test.h: what the tests of whole-tensor kernels share: random arrays, poisoned outputs,
 * bounds. A test runs each instruction set's table against the reference; one that this machine lacks is
 * named.
 */
#ifndef KERNEL_TEST_H
#define KERNEL_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernel/kernel.h"
#include "kernel/test_team.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

enum { TAIL = 16 };

/* Products are tested by the rows of kernel.def, not by tables. */
static inline moei_kernels test_without_products(moei_isa isa, moe_dtype dtype) {
    moei_kernels table[MOEI_DTYPES];
    moei_kernel_select(isa, table);
    moei_kernels k = table[dtype];
    k.gemm_rows = k.gemm_packed = NULL;
    k.gemm_outer = NULL;
    k.peak = NULL;
    return k;
}

/* The kernels of exactly this instruction set, but for products; false (and a line) where this machine lacks
 * it, false where they are those of the one below. */
static inline bool test_kernels_of(moei_isa isa, moe_dtype dtype, moei_kernels *kernels) {
    if (!moei_isa_supported(isa)) {
        print_message("skipped: no %s on this machine\n", moei_isa_name(isa));
        return false;
    }
    *kernels = test_without_products(isa, dtype);
    if (isa == MOEI_ISA_REF) return true;
    const moei_kernels below = test_without_products(isa - 1, dtype);
    return memcmp(kernels, &below, sizeof below) != 0; /* pointers alone: no padding */
}

static inline bool test_kernels(moei_isa isa, moei_kernels *f32) {
    return test_kernels_of(isa, MOE_F32, f32);
}

typedef struct test_variant {
    const char *isa;
    moei_kernels kernels;
} test_variant;

/* Every table of this machine but the reference, each once; returns how many. */
static inline int test_variants_of(moe_dtype dtype, test_variant list[MOEI_ISA_COUNT]) {
    int count = 0;
    for (int isa = MOEI_ISA_REF + 1; isa < MOEI_ISA_COUNT; ++isa) {
        if (!test_kernels_of((moei_isa)isa, dtype, &list[count].kernels)) continue;
        list[count++].isa = moei_isa_name((moei_isa)isa);
    }
    return count;
}

static inline moei_kernels ref_kernels(moe_dtype dtype) {
    moei_kernels table[MOEI_DTYPES];
    moei_kernel_select(MOEI_ISA_REF, table);
    return table[dtype];
}

/* n numbers of a dtype, from N(0, 1). Streams of different `seed` are independent. */
static inline void *random_array(moe_dtype dtype, int64_t n, uint64_t seed) {
    void *x = calloc((size_t)n + 1, sizeof(double));
    assert_non_null(x);
    moe_random_normal(seed, MOE_DRAW_TEST, 0, 0, dtype, x, n, 1.0);
    return x;
}

/* An output to be written in full: NaN, with a tail that must stay NaN. */
static inline void *poisoned(moe_dtype dtype, int64_t n) {
    size_t bytes = ((size_t)n + TAIL) * moe_dtype_bytes(dtype);
    void *x = malloc(bytes);
    assert_non_null(x);
    memset(x, 0xff, bytes);
    return x;
}

/* f32: nothing behind the n numbers was touched. */
static inline void assert_tail(const float *x, int64_t n) {
    unsigned char untouched[TAIL * sizeof(float)];
    memset(untouched, 0xff, sizeof untouched);
    assert_memory_equal(x + n, untouched, sizeof untouched);
}

static inline void assert_near(double got, double want, double bound, const char *what, int64_t at) {
    if (fabs(got - want) <= bound) return;
    fail_msg("%s[%lld]: got %.9g, want %.9g, off by %.3g > %.3g", what, (long long)at, got, want,
             fabs(got - want), bound);
}

static inline double max_abs(const float *x, int64_t n) {
    double max = 0.0;
    for (int64_t i = 0; i < n; ++i) max = fmax(max, fabs((double)x[i]));
    return max;
}

static inline void assert_all_near(const float *got, const float *want, int64_t n, double bound,
                                   const char *what) {
    for (int64_t i = 0; i < n; ++i) assert_near((double)got[i], (double)want[i], bound, what, i);
}

/* Central differences of f at x against `grad`, in f64: error below 1e-6 of the largest gradient. */
static inline void assert_gradient(double (*f)(void *arg), void *arg, double *x, const double *grad,
                                   int64_t n, const char *what) {
    double largest = 0.0, step = 1e-5;
    for (int64_t i = 0; i < n; ++i) largest = fmax(largest, fabs(grad[i]));
    assert_true(largest > 0.0);
    for (int64_t i = 0; i < n; ++i) {
        double keep = x[i];
        x[i] = keep + step;
        double above = f(arg);
        x[i] = keep - step;
        double below = f(arg);
        x[i] = keep;
        assert_near(grad[i], (above - below) / (2 * step), 1e-6 * largest, what, i);
    }
}

#endif
