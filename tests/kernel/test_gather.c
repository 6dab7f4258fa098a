/* test_gather.c: gather_sum and colsum, every variant against direct sums in f64; same bits for any threads.
 * in[R,n], row_of[T,K] -> out[T,n]; widths at and around vectors, rows that are not there, padded strides.
 * Source: op.h; bounds as in gemm_test.h.
 */
#include "kernel/guarded.h"

static const int64_t widths[] = {1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 97, 128, 131, 300};
enum { N_WIDTHS = sizeof widths / sizeof widths[0] };

static void fill(guarded *g, int64_t n, int64_t ld, double value) {
    for (int64_t i = 0; i < g->n; ++i) moei_real_store(g->dtype, g->data, i, i % ld < n ? value : NAN);
}

static void check_gather_sum(uint64_t seed, const moei_kernel_row *variant, moe_dtype dtype) {
    test_random random = {seed * 13 + 1};
    int64_t n = random_of(&random, widths, N_WIDTHS), tokens = random_below(&random, 80);
    int64_t rows = 1 + random_below(&random, 100), ld_rows = n + random_below(&random, 3);
    int64_t ld_out = n + random_below(&random, 3);
    int32_t top_k = 1 + (int32_t)random_below(&random, 8);
    guarded source = guarded_random(&random, dtype, rows * ld_rows);
    guarded weight = guarded_random(&random, moei_wide(dtype), tokens * top_k);
    int32_t *row_of = malloc((size_t)(tokens * top_k + 1) * sizeof *row_of);
    for (int64_t i = 0; i < tokens * top_k; ++i) row_of[i] = (int32_t)random_below(&random, rows + 1) - 1;
    moe_gather_sum_args args = {.dtype = dtype,
                                .n_tokens = tokens,
                                .n = n,
                                .top_k = top_k,
                                .rows = source.data,
                                .ld_rows = ld_rows,
                                .row_of = row_of,
                                .weight = seed % 2 ? weight.data : NULL,
                                .ld_out = ld_out,
                                .accumulate = seed % 3 == 0};
    for (int32_t threads = 1; threads <= 4; threads *= 2) {
        moei_team team = test_team(threads);
        guarded out = guarded_new(dtype, tokens * ld_out);
        if (args.accumulate) fill(&out, n, ld_out, 0.5);
        args.out = out.data;
        ((moei_gather_sum_fn *)variant->fn)(&team, &args);
        for (int64_t i = 0; i < out.n; ++i) {
            int64_t t = i / ld_out, j = i % ld_out;
            double sum = args.accumulate ? 0.5 : 0, size = sum;
            if (j >= n) {
                assert_true(isnan(get(&out, i)));
                continue;
            }
            for (int64_t slot = t * top_k; slot < (t + 1) * top_k; ++slot) {
                if (row_of[slot] < 0) continue;
                double term =
                    get(&source, row_of[slot] * ld_rows + j) * (args.weight ? get(&weight, slot) : 1);
                sum += term, size += fabs(term);
            }
            double eps = dtype == MOE_F64 ? EPS_F64 : EPS_F32;
            double bound = (top_k + 2) * eps * size + storage_bound(dtype, sum);
            check_close(get(&out, i), sum, bound, variant->name, seed, "out", i);
        }
        guarded_free(&out);
    }
    guarded_free(&source), guarded_free(&weight);
    free(row_of);
}

/* The sum is exact to the last rounding: f64 inside, so f32 results are within half an ulp or so. */
static void check_colsum(uint64_t seed, const moei_kernel_row *variant, moe_dtype dtype) {
    test_random random = {seed * 17 + 3};
    int64_t n = random_of(&random, widths, N_WIDTHS), lda = n + random_below(&random, 3), offset[6] = {0};
    int32_t n_groups = (int32_t)random_below(&random, 6);
    for (int32_t g = 0; g < n_groups; ++g)
        offset[g + 1] = offset[g] + random_below(&random, 3) * random_below(&random, 90);
    int64_t rows = offset[n_groups] + 1;
    moe_dtype wide = moei_wide(dtype);
    guarded a = guarded_random(&random, dtype, rows * lda), weight = guarded_random(&random, wide, rows);
    int32_t *index = malloc((size_t)rows * sizeof *index);
    for (int64_t r = 0; r < rows; ++r) index[r] = (int32_t)random_below(&random, rows);
    moe_colsum_args args = {.dtype = dtype,
                            .n_groups = n_groups,
                            .offset = offset,
                            .n = n,
                            .a = a.data,
                            .lda = lda,
                            .a_row = seed % 2 ? index : NULL,
                            .row_weight = seed % 3 ? weight.data : NULL,
                            .accumulate = seed % 4 == 0};
    guarded first = guarded_new(wide, n_groups * n);
    for (int32_t threads = 1; threads <= 4; threads *= 2) {
        moei_team team = test_team(threads);
        guarded out = guarded_new(wide, n_groups * n);
        if (args.accumulate) fill(&out, n, n, 0.25);
        args.out = out.data;
        ((moei_colsum_fn *)variant->fn)(&team, &args);
        for (int64_t i = 0; i < out.n; ++i) {
            double sum = 0, size = 0;
            for (int64_t r = offset[i / n]; r < offset[i / n + 1]; ++r) {
                double term = get(&a, (args.a_row ? index[r] : r) * lda + i % n) *
                              (args.row_weight ? get(&weight, r) : 1);
                sum += term, size += fabs(term);
            }
            if (args.accumulate) sum += 0.25, size += 0.25;
            double bound = dtype == MOE_F64 ? 200 * EPS_F64 * size : EPS_F32 * fabs(sum) + 1e-12 * size;
            check_close(get(&out, i), sum, bound, variant->name, seed, "out", i);
            if (threads == 1) moei_real_store(wide, first.data, i, get(&out, i));
            assert_true(get(&out, i) == get(&first, i));
        }
        guarded_free(&out);
    }
    guarded_free(&first), guarded_free(&a), guarded_free(&weight);
    free(index);
}

static void test_gather_sum(void **state) {
    (void)state;
    for (const moei_kernel_row *v = next_variant("gather_sum", NULL); v; v = next_variant("gather_sum", v)) {
        for (uint64_t seed = 1; seed <= 150; ++seed) {
            for (int dtype = 0; dtype < MOEI_DTYPES; ++dtype)
                if (serves(v, (moe_dtype)dtype)) check_gather_sum(seed, v, (moe_dtype)dtype);
        }
    }
}

static void test_colsum(void **state) {
    (void)state;
    for (const moei_kernel_row *v = next_variant("colsum", NULL); v; v = next_variant("colsum", v)) {
        for (uint64_t seed = 1; seed <= 100; ++seed) {
            for (int dtype = 0; dtype < MOEI_DTYPES; ++dtype)
                if (serves(v, (moe_dtype)dtype)) check_colsum(seed, v, (moe_dtype)dtype);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gather_sum),
        cmocka_unit_test(test_colsum),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
