/* test_gemm_outer.c: the grouped outer products C_g (+)= A_g^T B_g, every variant against direct sums in f64,
 * over ragged rows with repeats, padding, empty groups, and more groups than threads.
 * Source: op.h; bounds of gemm_test.h.
 */
#include "kernel/gemm_test.h"

enum { MANY = 70 };

static const moei_kernel_row *variants[MOEI_ISA_COUNT + 1];

/* One random problem and its solution: sum[total], and the sizes of its terms. */
typedef struct outer_case {
    uint64_t seed;
    moe_gemm_outer_args args;
    int64_t offset[MANY + 1], total; /* numbers of C, with its padding */
    int32_t *index;
    guarded a, b;
    double *sum, *size;
} outer_case;

/* Rows of every group times `scale`. */
static void draw_shape(outer_case *p, test_random *random, int64_t scale, bool many) {
    moe_gemm_outer_args *args = &p->args;
    args->n_groups = many ? MANY : 1 + (int32_t)random_below(random, 5);
    draw_groups(random, args->n_groups, 1000, p->offset);
    for (int32_t g = 0; g <= args->n_groups; ++g) p->offset[g] *= scale;
    const size_t sizes = COUNT(edges) - (many ? 7 : 0); /* many groups are small ones */
    args->m = random_of(random, edges, sizes), args->n = random_of(random, edges, sizes);
}

/* Everything but the shape. */
static void fill_case(outer_case *p, test_random *random, uint64_t seed, moe_dtype dtype) {
    moe_gemm_outer_args *args = &p->args;
    const int64_t rows = p->offset[args->n_groups];
    p->seed = seed;
    args->dtype = dtype, args->offset = p->offset;
    args->lda = args->m + random_below(random, 3), args->ldb = args->n + random_below(random, 3);
    args->ldc = args->n + random_below(random, 3);
    args->c_group = args->m * args->ldc + random_below(random, 4);
    args->accumulate = seed % 4 == 0, args->c_wide = seed % 3 != 0;
    p->total = args->n_groups * args->c_group;
    p->a = guarded_random(random, dtype, (rows + 1) * args->lda), args->a = p->a.data;
    p->b = guarded_random(random, dtype, (rows + 1) * args->ldb), args->b = p->b.data;
    p->index = malloc((size_t)(rows + 1) * sizeof *p->index);
    assert_non_null(p->index);
    for (int64_t r = 0; r <= rows; ++r) p->index[r] = (int32_t)random_below(random, rows + 1);
    args->a_row = seed % 2 ? p->index : NULL, args->b_row = seed % 3 ? NULL : p->index;
}

static bool inside(const outer_case *p, int64_t at) {
    const int64_t cell = at % p->args.c_group;
    return cell < p->args.m * p->args.ldc && cell % p->args.ldc < p->args.n;
}

static void solve(outer_case *p) {
    const moe_gemm_outer_args *args = &p->args;
    p->sum = calloc((size_t)p->total + 1, sizeof *p->sum);
    p->size = calloc((size_t)p->total + 1, sizeof *p->size);
    assert_true(p->sum && p->size);
    for (int64_t at = 0; at < p->total; ++at) {
        const int64_t g = at / args->c_group, i = at % args->c_group / args->ldc,
                      j = at % args->c_group % args->ldc;
        if (!inside(p, at)) continue;
        p->sum[at] = p->size[at] = args->accumulate ? 0.25 : 0;
        for (int64_t r = p->offset[g]; r < p->offset[g + 1]; ++r) {
            double term = get(&p->a, (args->a_row ? p->index[r] : r) * args->lda + i) *
                          get(&p->b, (args->b_row ? p->index[r] : r) * args->ldb + j);
            p->sum[at] += term, p->size[at] += fabs(term);
        }
    }
}

static guarded run(const outer_case *p, const moei_kernel_row *variant, int32_t threads) {
    const moei_team team = test_team(threads);
    moe_gemm_outer_args args = p->args;
    guarded c = guarded_new(args.c_wide ? moei_wide(args.dtype) : args.dtype, p->total);
    args.c = c.data;
    for (int64_t at = 0; at < p->total && args.accumulate; ++at)
        if (inside(p, at)) moei_real_store(c.dtype, c.data, at, 0.25);
    ((moei_gemm_outer_fn *)variant->fn)(&team, &args);
    return c;
}

static void check_variant(const outer_case *p, const moei_kernel_row *variant) {
    guarded c = run(p, variant, 1), again = run(p, variant, 4);
    assert_same_bits(&c, &again, variant->name, p->seed);
    for (int64_t at = 0; at < p->total; ++at) {
        const int64_t *first = &p->offset[at / p->args.c_group];
        if (!inside(p, at)) {
            assert_true(isnan(get(&c, at)));
            continue;
        }
        check_close(get(&c, at), p->sum[at],
                    chain_bound(p->args.dtype, first[1] - first[0]) * p->size[at] +
                        storage_bound(c.dtype, p->sum[at]),
                    variant->name, p->seed, "c", at);
    }
    guarded_free(&c), guarded_free(&again);
}

/* Solves it, compares and frees. */
static void check_case(outer_case *p) {
    solve(p);
    for (int i = 0; variants[i]; ++i)
        if (serves(variants[i], p->args.dtype)) check_variant(p, variants[i]);
    guarded_free(&p->a), guarded_free(&p->b);
    free(p->index), free(p->sum), free(p->size);
}

static void check_outer(uint64_t seed, moe_dtype dtype, int64_t scale, bool many) {
    outer_case p = {.seed = seed};
    test_random random = {seed * 77 + 1};
    draw_shape(&p, &random, scale, many);
    fill_case(&p, &random, seed, dtype);
    check_case(&p);
}

/* A task of a group with few rows is higher than one with many: C of more rows than either, groups of all
 * kinds beside each other. */
static void test_heights(void **state) {
    (void)state;
    static const int64_t rows[] = {530, 3, 0, 513, 512, 7};
    for (uint64_t seed = 1; seed <= 2; ++seed) {
        outer_case p = {
            .args = {.n_groups = COUNT(rows), .m = 601, .n = 17}
        };
        test_random random = {seed};
        for (size_t g = 0; g < COUNT(rows); ++g) p.offset[g + 1] = p.offset[g] + rows[g];
        fill_case(&p, &random, seed, seed == 1 ? MOE_BF16 : MOE_F32);
        check_case(&p);
    }
}

static void test_outer(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 40; ++seed) {
        if (seed < 10) check_outer(seed, MOE_F64, 1, false);
        check_outer(seed, MOE_F32, 1, false), check_outer(seed, MOE_BF16, 1, false);
        if (seed % 8 == 0) check_outer(seed, MOE_F32, 5, false), check_outer(seed, MOE_BF16, 5, false);
    }
}

static void test_many_groups(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 4; ++seed)
        check_outer(seed, MOE_F32, 1, true), check_outer(seed, MOE_BF16, 1, true);
}

/* New sums of 8 MiB and more may go past the caches, if they begin a line: what adding to zeros makes. */
static void check_large_outer(const moei_kernel_row *variant, moe_dtype dtype, bool wide) {
    enum { M = 1025, ROWS = 3, SKIP = 64 };
    const moe_dtype c_dtype = wide ? MOE_F32 : dtype;
    const int64_t n = c_dtype == MOE_F32 ? 2048 : 4096, offset[] = {0, ROWS};
    test_random random = {7};
    guarded a = guarded_random(&random, dtype, ROWS * M), b = guarded_random(&random, dtype, ROWS * n);
    guarded c = guarded_new(c_dtype, M * n + SKIP), added = guarded_new(c_dtype, M * n);
    for (int64_t i = 0; i < M * n; ++i) moei_real_store(c_dtype, added.data, i, 0);
    int64_t skip = 0;
    while ((uintptr_t)moei_real_at(c_dtype, c.data, skip) % 64 != 0) ++skip;
    moe_gemm_outer_args args = {.dtype = dtype,
                                .n_groups = 1,
                                .offset = offset,
                                .m = M,
                                .n = n,
                                .a = a.data,
                                .lda = M,
                                .b = b.data,
                                .ldb = n,
                                .c = moei_real_at(c_dtype, c.data, skip),
                                .ldc = n,
                                .c_group = M * n,
                                .c_wide = wide};
    const moei_team four = test_team(4);
    ((moei_gemm_outer_fn *)variant->fn)(&four, &args);
    args.c = added.data, args.accumulate = true;
    ((moei_gemm_outer_fn *)variant->fn)(&four, &args);
    for (int64_t i = 0; i < M * n; ++i) assert_true(get(&c, skip + i) == get(&added, i));
    for (int64_t i = 0; i < SKIP; ++i) assert_true(isnan(get(&c, i < skip ? i : M * n + i)));
    guarded_free(&a), guarded_free(&b), guarded_free(&c), guarded_free(&added);
}

static void test_large_outer(void **state) {
    (void)state;
    for (int i = 0; variants[i]; ++i) {
        const moei_kernel_row *v = variants[i];
        if (serves(v, MOE_F32)) check_large_outer(v, MOE_F32, false);
        if (serves(v, MOE_BF16)) check_large_outer(v, MOE_BF16, false), check_large_outer(v, MOE_BF16, true);
    }
}

int main(void) {
    all_variants("gemm_outer", variants);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_outer),
        cmocka_unit_test(test_many_groups),
        cmocka_unit_test(test_heights),
        cmocka_unit_test(test_large_outer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
