/* test_cross_entropy.c: softmax cross-entropy and its gradient in place, every variant.
 * Uniform logits cost ln n, gradients of a row sum to nothing, uncounted rows cost nothing; then the
 * reference, finite differences and threads.
 */
#include "kernel/kernel_test.h"

static const int64_t row_counts[] = {0, 1, 2, 7, 33};
static const int64_t widths[] = {1,   2,   3,   15,   16,   17,   31,   33,  131,
                                 255, 256, 257, 1023, 1024, 1025, 2063, 9001};

/* Every fifth row is not counted; the others walk through all columns, first and last among them. */
static int32_t target_of(int64_t row, int64_t n) {
    return row % 5 == 3 ? -1 : (int32_t)(row % 2 ? n - 1 - row * 7 % n : row * 7 % n);
}

typedef struct loss_case {
    int64_t rows, n, ld;
    int32_t *target;
    float *logits, *loss;
} loss_case;

static loss_case loss_make(int64_t rows, int64_t n, double spread) {
    loss_case c = {rows, n, n + 3, calloc((size_t)rows + 1, sizeof(int32_t)), NULL, poisoned(MOE_F32, rows)};
    assert_non_null(c.target);
    for (int64_t r = 0; r < rows; ++r) c.target[r] = target_of(r, n);
    c.logits = random_array(MOE_F32, rows * c.ld, (uint64_t)(rows + 100 * n));
    for (int64_t i = 0; i < rows * c.ld; ++i) c.logits[i] *= (float)spread;
    return c;
}

static void loss_free(loss_case *c) {
    free(c->target);
    free(c->logits);
    free(c->loss);
}

static void loss_run(const moei_kernels *k, int32_t threads, const loss_case *c, double grad_scale) {
    moei_team team = test_team(threads);
    moe_cross_entropy_args a = {.dtype = MOE_F32,
                                .rows = c->rows,
                                .n = c->n,
                                .logits = c->logits,
                                .ld = c->ld,
                                .target = c->target,
                                .row_loss = c->loss,
                                .grad_scale = grad_scale};
    k->cross_entropy(&team, &a);
    assert_tail(c->loss, c->rows);
}

static void compare_variant(const moei_kernels *k, const moei_kernels *ref, int64_t rows, int64_t n,
                            double spread) {
    loss_case got = loss_make(rows, n, spread), want = loss_make(rows, n, spread);
    double size = 1.0 + 2.0 * max_abs(want.logits, rows * want.ld);
    size_t bytes = (size_t)(rows * got.ld) * sizeof(float);
    loss_run(k, 1, &got, 0.0);
    loss_run(ref, 1, &want, 0.0);
    assert_memory_equal(got.logits, want.logits, bytes); /* only read */
    assert_all_near(got.loss, want.loss, rows, 8 * FLT_EPSILON * size, "loss");
    loss_run(k, 1, &got, 0.25);
    loss_run(ref, 1, &want, 0.25);
    assert_all_near(got.loss, want.loss, rows, 8 * FLT_EPSILON * size, "loss with gradient");
    assert_all_near(got.logits, want.logits, rows * got.ld, 0.25 * 8 * FLT_EPSILON * size, "gradient");
    for (int64_t r = 0; r < rows; ++r) { /* the padding of a row was not touched */
        loss_case fresh = loss_make(rows, n, spread);
        assert_memory_equal(got.logits + r * got.ld + n, fresh.logits + r * got.ld + n, 3 * sizeof(float));
        loss_free(&fresh);
    }
    loss_free(&got);
    loss_free(&want);
}

static void test_variants(void **state) {
    (void)state;
    moei_kernels k, ref = ref_kernels(MOE_F32);
    for (int isa = MOEI_ISA_AVX2; isa < MOEI_ISA_COUNT; ++isa) {
        if (!test_kernels((moei_isa)isa, &k)) continue;
        for (size_t i = 0; i < COUNT(row_counts); ++i)
            for (size_t j = 0; j < COUNT(widths); ++j)
                compare_variant(&k, &ref, row_counts[i], widths[j], 1.0);
        compare_variant(&k, &ref, 5, 300, 1000.0); /* would overflow without the maximum */
        compare_variant(&k, &ref, 2, 131072, 3.0);
    }
}

/* ln n where all logits are alike, 0 and no gradient where a row is not counted. */
static void test_identities(void **state) {
    (void)state;
    moei_kernels k;
    for (int isa = MOEI_ISA_REF; isa < MOEI_ISA_COUNT; ++isa) {
        if (!test_kernels((moei_isa)isa, &k)) continue;
        loss_case c = loss_make(5, 1000, 1.0);
        for (int i = 0; i < 1000; ++i) c.logits[i] = -3.0F;
        c.logits[c.ld + 5] = -INFINITY; /* a column that cannot be */
        loss_run(&k, 1, &c, 2.0);
        assert_near((double)c.loss[0], log(1000.0), 1e-5, "loss of equal logits", 0);
        assert_true(c.loss[3] == 0.0F);
        assert_true(c.logits[c.ld + 5] == 0.0F);
        for (int64_t r = 0; r < 5; ++r) {
            double sum = 0.0, size = 0.0;
            for (int64_t i = 0; i < 1000; ++i) {
                sum += (double)c.logits[r * c.ld + i];
                size += fabs((double)c.logits[r * c.ld + i]);
            }
            assert_near(sum, 0.0, 1e-5, "sum of the gradient", r);
            assert_true(r == 3 ? size == 0.0 : size > 1.0);
        }
        loss_free(&c);
    }
}

static void test_threads(void **state) {
    (void)state;
    moei_kernels k;
    for (int isa = MOEI_ISA_REF; isa < MOEI_ISA_COUNT; ++isa) {
        if (!test_kernels((moei_isa)isa, &k)) continue;
        for (int32_t threads = 2; threads <= 4; threads += 2) {
            loss_case one = loss_make(131, 257, 1.0), many = loss_make(131, 257, 1.0);
            loss_run(&k, 1, &one, 1.0);
            loss_run(&k, threads, &many, 1.0);
            assert_memory_equal(one.loss, many.loss, 131 * sizeof(float));
            assert_memory_equal(one.logits, many.logits, (size_t)(131 * one.ld) * sizeof(float));
            loss_free(&one);
            loss_free(&many);
        }
    }
}

/* Mean loss of three rows by the definition, -ln of the softmax of the target. */
enum { FD_ROWS = 3, FD_N = 11 };

static double mean_loss(void *arg) {
    const double *x = arg;
    double sum = 0.0;
    for (int r = 0; r < FD_ROWS; ++r) {
        double total = 0.0;
        for (int i = 0; i < FD_N; ++i) total += exp(x[r * FD_N + i]);
        sum -= log(exp(x[r * FD_N + target_of(r, FD_N)]) / total);
    }
    return sum / FD_ROWS;
}

static void test_ref_gradient(void **state) {
    (void)state;
    moei_kernels ref = ref_kernels(MOE_F64);
    moei_team team = test_team(1);
    double *x = random_array(MOE_F64, FD_ROWS * FD_N, 5), *grad = random_array(MOE_F64, FD_ROWS * FD_N, 5);
    double loss[FD_ROWS];
    int32_t target[FD_ROWS];
    for (int r = 0; r < FD_ROWS; ++r) target[r] = target_of(r, FD_N);
    moe_cross_entropy_args a = {.dtype = MOE_F64,
                                .rows = FD_ROWS,
                                .n = FD_N,
                                .logits = grad,
                                .ld = FD_N,
                                .target = target,
                                .row_loss = loss,
                                .grad_scale = 1.0 / FD_ROWS};
    ref.cross_entropy(&team, &a);
    assert_near((loss[0] + loss[1] + loss[2]) / FD_ROWS, mean_loss(x), 1e-14, "loss", 0);
    assert_gradient(mean_loss, x, x, grad, FD_ROWS * FD_N, "dlogits");
    free(x);
    free(grad);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_identities),
        cmocka_unit_test(test_ref_gradient),
        cmocka_unit_test(test_variants),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
