/* test_adamw.c: the AdamW step and the sum of squares, every variant.
 * The first step by hand, many steps by the textbook recurrence, then each variant against the reference.
 */
#include "kernel/kernel_test.h"

static const int64_t sizes[] = {0, 1, 7, 8, 15, 16, 17, 31, 33, 127, 1009, 16383, 16384, 16385, 32771, 50000};

typedef struct tensor {
    int64_t n;
    float *value, *m, *v, *grad;
} tensor;

static tensor tensor_make(int64_t n) {
    tensor t = {n, poisoned(MOE_F32, n), poisoned(MOE_F32, n), poisoned(MOE_F32, n), NULL};
    float *from[3] = {t.value, t.m, t.v};
    for (uint64_t i = 0; i < 3; ++i) moe_random_normal(90 + i, MOE_DRAW_TEST, 0, 0, MOE_F32, from[i], n, 1.0);
    for (int64_t i = 0; i < n; ++i) t.v[i] *= t.v[i];
    t.grad = random_array(MOE_F32, n, 94);
    return t;
}

static void tensor_free(tensor *t) {
    free(t->value);
    free(t->m);
    free(t->v);
    free(t->grad);
}

static moe_adamw_args args_of(const tensor *t, int64_t step) {
    return (moe_adamw_args){.dtype = MOE_F32,
                            .n = t->n,
                            .value = t->value,
                            .m = t->m,
                            .v = t->v,
                            .grad = t->grad,
                            .lr = 0.01,
                            .beta1 = 0.9,
                            .beta2 = 0.95,
                            .eps = 1e-8,
                            .weight_decay = 0.1,
                            .grad_scale = 0.5,
                            .step = step};
}

static void run(const moei_kernels *k, int32_t threads, const tensor *t) {
    moei_team team = test_team(threads);
    for (int64_t step = 1; step <= 3; ++step) {
        moe_adamw_args a = args_of(t, step);
        k->adamw(&team, &a);
    }
    assert_tail(t->value, t->n);
    assert_tail(t->m, t->n);
    assert_tail(t->v, t->n);
}

static void test_variants(void **state) {
    (void)state;
    moei_kernels k, ref = ref_kernels(MOE_F32);
    for (int isa = MOEI_ISA_AVX2; isa < MOEI_ISA_COUNT; ++isa) {
        if (!test_kernels((moei_isa)isa, &k)) continue;
        for (size_t i = 0; i < COUNT(sizes); ++i) {
            tensor got = tensor_make(sizes[i]), want = tensor_make(sizes[i]);
            run(&k, 1, &got);
            run(&ref, 1, &want);
            for (int64_t j = 0; j < sizes[i]; ++j) {
                double m = 1.0 + fabs((double)want.m[j]), v = (double)want.v[j];
                assert_near((double)got.m[j], (double)want.m[j], 4 * FLT_EPSILON * m, "m", j);
                assert_near((double)got.v[j], v, 8 * FLT_EPSILON * v, "v", j);
                /* three steps of about lr * m_hat / sqrt(v_hat), which is large where v is small */
                double step = 0.01 * 10.0 * m / sqrt(v / 0.15) + fabs((double)want.value[j]);
                assert_near((double)got.value[j], (double)want.value[j], 16 * FLT_EPSILON * step, "value", j);
            }
            tensor_free(&got);
            tensor_free(&want);
        }
    }
}

static void test_threads(void **state) {
    (void)state;
    moei_kernels k;
    for (int isa = MOEI_ISA_REF; isa < MOEI_ISA_COUNT; ++isa) {
        if (!test_kernels((moei_isa)isa, &k)) continue;
        for (int32_t threads = 2; threads <= 4; threads += 2) {
            tensor one = tensor_make(50000), many = tensor_make(50000);
            run(&k, 1, &one);
            run(&k, threads, &many);
            assert_memory_equal(one.value, many.value, 50000 * sizeof(float));
            assert_memory_equal(one.m, many.m, 50000 * sizeof(float));
            assert_memory_equal(one.v, many.v, 50000 * sizeof(float));
            tensor_free(&one);
            tensor_free(&many);
        }
    }
}

/* From zero moments the first step is lr * sign(grad), whatever the gradient's size, plus the decay. */
static void test_first_step(void **state) {
    (void)state;
    moei_kernels k;
    for (int isa = MOEI_ISA_REF; isa < MOEI_ISA_COUNT; ++isa) {
        if (!test_kernels((moei_isa)isa, &k)) continue;
        moei_team team = test_team(1);
        tensor t = tensor_make(100), before = tensor_make(100);
        memset(t.m, 0, 100 * sizeof(float));
        memset(t.v, 0, 100 * sizeof(float));
        moe_adamw_args a = args_of(&t, 1);
        k.adamw(&team, &a);
        for (int i = 0; i < 100; ++i) {
            double p = (double)before.value[i], sign = t.grad[i] > 0 ? 1.0 : -1.0;
            assert_near((double)t.value[i], p - 0.01 * (sign + 0.1 * p), 1e-6, "value", i);
        }
        tensor_free(&t);
        tensor_free(&before);
    }
}

/* bf16 values with an f32 master: the master makes the steps of f32, the value is its rounded copy. */
static void test_master(void **state) {
    (void)state;
    enum { N = 1009 };
    moei_kernels k, f32;
    for (int isa = MOEI_ISA_REF; isa < MOEI_ISA_COUNT; ++isa) {
        if (!test_kernels((moei_isa)isa, &f32) || !test_kernels_of((moei_isa)isa, MOE_BF16, &k)) continue;
        tensor plain = tensor_make(N), mixed = tensor_make(N);
        uint16_t *value = poisoned(MOE_BF16, N);
        run(&f32, 1, &plain);
        for (int64_t step = 1; step <= 3; ++step) {
            moei_team team = test_team(1 + (int32_t)step);
            moe_adamw_args a = args_of(&mixed, step);
            a.dtype = MOE_BF16, a.value = value, a.master = mixed.value;
            k.adamw(&team, &a);
        }
        for (int64_t i = 0; i < N; ++i) {
            double size = 1e-5 * (1 + fabs((double)plain.value[i]));
            assert_near((double)mixed.value[i], (double)plain.value[i], size, "master", i);
            assert_int_equal(value[i], moei_bf16_round(mixed.value[i]));
        }
        assert_int_equal(value[N], 0xffff); /* nothing behind it was touched */
        tensor_free(&plain);
        tensor_free(&mixed);
        free(value);
    }
}

/* bf16 gradients, of every length: the same bits as their widened copies. */
static void test_narrow_gradients(void **state) {
    (void)state;
    moei_kernels k;
    for (int isa = MOEI_ISA_REF; isa < MOEI_ISA_COUNT; ++isa) {
        if (!test_kernels_of((moei_isa)isa, MOE_BF16, &k)) continue;
        for (size_t s = 0; s < COUNT(sizes); ++s) {
            const int64_t n = sizes[s];
            moei_team team = test_team(1 + (int32_t)(s % 3));
            tensor wide = tensor_make(n), narrow = tensor_make(n);
            uint16_t *value = poisoned(MOE_BF16, n), *grad = poisoned(MOE_BF16, n);
            for (int64_t i = 0; i < n; ++i) {
                grad[i] = moei_bf16_round(wide.grad[i]);
                wide.grad[i] = moei_bf16_value(grad[i]);
            }
            moe_adamw_args a = args_of(&wide, 2), b = args_of(&narrow, 2);
            a.dtype = b.dtype = MOE_BF16, a.value = b.value = value;
            a.master = wide.value, b.master = narrow.value;
            b.grad = grad, b.grad_dtype = MOE_BF16;
            k.adamw(&team, &a);
            k.adamw(&team, &b);
            assert_memory_equal(narrow.value, wide.value, (size_t)n * sizeof(float));
            assert_memory_equal(narrow.m, wide.m, (size_t)n * sizeof(float));
            assert_memory_equal(narrow.v, wide.v, (size_t)n * sizeof(float));
            tensor_free(&wide);
            tensor_free(&narrow);
            free(value);
            free(grad);
        }
    }
}

/* Algorithm 2 of the paper with its bias corrections spelled out, 20 steps on one number, in f64. */
static void test_ref_recurrence(void **state) {
    (void)state;
    moei_kernels ref = ref_kernels(MOE_F64);
    moei_team team = test_team(1);
    double value = 0.7, m = 0.0, v = 0.0, want = 0.7, first = 0.0, second = 0.0;
    for (int step = 1; step <= 20; ++step) {
        double grad = sin((double)step), g = grad * 0.5;
        moe_adamw_args a = {.dtype = MOE_F64,
                            .n = 1,
                            .value = &value,
                            .m = &m,
                            .v = &v,
                            .grad = &grad,
                            .grad_dtype = MOE_F64,
                            .lr = 0.03,
                            .beta1 = 0.8,
                            .beta2 = 0.99,
                            .eps = 1e-3,
                            .weight_decay = 0.2,
                            .grad_scale = 0.5,
                            .step = step};
        ref.adamw(&team, &a);
        first = 0.8 * first + 0.2 * g;
        second = 0.99 * second + 0.01 * g * g;
        double hat1 = first / (1 - pow(0.8, step)), hat2 = second / (1 - pow(0.99, step));
        want -= 0.03 * (hat1 / (sqrt(hat2) + 1e-3) + 0.2 * want);
        assert_near(value, want, 1e-14, "value at step", step);
    }
}

static void test_sum_squares(void **state) {
    (void)state;
    moei_kernels k;
    for (int isa = MOEI_ISA_REF; isa < MOEI_ISA_COUNT; ++isa) {
        if (!test_kernels((moei_isa)isa, &k)) continue;
        for (size_t i = 0; i < COUNT(sizes); ++i) {
            float *x = random_array(MOE_F32, sizes[i], i);
            long double want = 0.0L;
            for (int64_t j = 0; j < sizes[i]; ++j) want += (long double)x[j] * (long double)x[j];
            moei_team team = test_team(1);
            double one = k.sum_squares(&team, MOE_F32, x, sizes[i]);
            assert_near(one, (double)want, 1e-13 * (double)want, "sum of squares", sizes[i]);
            for (int32_t threads = 2; threads <= 4; threads += 2) {
                team = test_team(threads);
                double many = k.sum_squares(&team, MOE_F32, x, sizes[i]);
                assert_memory_equal(&one, &many, sizeof one);
            }
            free(x);
        }
    }
    double *x = random_array(MOE_F64, 1009, 3), want = 0.0;
    moei_kernels ref = ref_kernels(MOE_F64);
    moei_team team = test_team(1);
    for (int j = 0; j < 1009; ++j) want += x[j] * x[j];
    assert_near(ref.sum_squares(&team, MOE_F64, x, 1009), want, 1e-12 * want, "f64", 0);
    free(x);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_first_step),       cmocka_unit_test(test_ref_recurrence),
        cmocka_unit_test(test_variants),         cmocka_unit_test(test_threads),
        cmocka_unit_test(test_sum_squares),      cmocka_unit_test(test_master),
        cmocka_unit_test(test_narrow_gradients),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
