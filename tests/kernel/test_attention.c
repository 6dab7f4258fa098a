/* test_attention.c: causal grouped-query attention, every variant, training and decoding, on one thread.
 * The reference against a plain softmax and finite differences, the variants against the reference. What no
 * rounding may break: test_attention_bits.c. Source: op.h.
 */
#include "kernel/attention_test.h"

static test_variant variants[MOEI_ISA_COUNT];
static int n_variants;

/* Rows of `width` numbers at stride ld: near, and the padding between them still poison. */
static void compare_rows(const float *got, const float *want, int64_t rows, int64_t width, int64_t ld,
                         double bound, const char *what) {
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t i = 0; i < width; ++i)
            assert_near((double)got[r * ld + i], (double)want[r * ld + i], bound, what, r * ld + i);
        for (int64_t i = width; i < ld; ++i) assert_true(isnan(got[r * ld + i]));
    }
    assert_tail(got, rows * ld);
}

static double rows_max(const float *x, int64_t rows, int64_t width, int64_t ld) {
    double max = 0.0;
    for (int64_t r = 0; r < rows; ++r) max = fmax(max, max_abs(x + r * ld, width));
    return max;
}

/* A score is a sum of head_dim terms of size |q||k|, an output one of kv_len terms; dq and dk come from the
 * difference of two sums of such terms, so their error does not shrink with them. */
static void compare(const tensors *got, const tensors *want, bool backward) {
    const shape *s = &got->s;
    int64_t rows = s->n_seq * s->q_len, width = (int64_t)s->heads * s->head_dim;
    int64_t kv_rows = s->n_seq * s->kv_stride, kv_width = (int64_t)s->kv_heads * s->head_dim;
    double unit = FLT_EPSILON * (double)(s->head_dim + s->kv_len + 16);
    compare_rows(got->out, want->out, rows, width, got->ldo,
                 unit * rows_max(want->out, rows, width, got->ldo), "out");
    assert_all_near(got->lse, want->lse, got->n_lse, unit * (1.0 + max_abs(want->lse, got->n_lse)), "lse");
    assert_tail(got->lse, got->n_lse);
    if (!backward) return;
    double dq = rows_max(want->dq, rows, width, got->ldq),
           dk = rows_max(want->dk, kv_rows, kv_width, got->ldkv);
    double dv = rows_max(want->dv, kv_rows, kv_width, got->ldkv);
    compare_rows(got->dq, want->dq, rows, width, got->ldq, 2 * unit * (1.0 + dq), "dq");
    compare_rows(got->dk, want->dk, kv_rows, kv_width, got->ldkv, 2 * unit * (1.0 + dk), "dk");
    compare_rows(got->dv, want->dv, kv_rows, kv_width, got->ldkv, 2 * unit * dv, "dv");
}

/* Every variant on the inputs of `want`, which holds what the reference makes of them. */
static void compare_variants(const tensors *want, bool backward) {
    for (int v = 0; v < n_variants; ++v) {
        tensors got = twin_of(want);
        run(&variants[v].kernels, 1, &got, backward);
        compare(&got, want, backward);
        release_twin(&got);
    }
}

static void check_shape(shape s, bool backward) {
    tensors want = make(s, MOE_F32, (uint64_t)(s.kv_len * 131 + s.head_dim));
    moei_kernels ref = ref_kernels(MOE_F32);
    run(&ref, 1, &want, backward);
    compare_variants(&want, backward);
    release(&want);
}

static void test_variants_training(void **state) {
    (void)state;
    static const int64_t lengths[] = {1, 2, 3, 15, 16, 17, 31, 63, 64, 65, 97, 127, 128, 129, 193};
    static const int32_t dims[] = {1, 3, 8, 16, 17, 32, 40, 64, 80, 128};
    for (size_t i = 0; i < COUNT(lengths); ++i)
        for (size_t j = i % 3; j < COUNT(dims); j += 3)
            check_shape((shape){2, lengths[i], lengths[i], lengths[i], 4, i % 2 ? 2 : 1, dims[j]}, true);
    check_shape((shape){1, 9, 9, 9, 3, 3, MOEI_HEAD_DIM_MAX}, true);
    check_shape((shape){0, 5, 5, 5, 2, 2, 8}, true);
    /* Long ones, whose dq does not fit beside the other blocks of a thread. */
    check_shape((shape){1, 97, 97, 97, 2, 1, MOEI_HEAD_DIM_MAX}, true);
    check_shape((shape){2, 131, 131, 131, 2, 2, MOEI_HEAD_DIM_MAX - 9}, true);
}

static void test_variants_cache(void **state) {
    (void)state;
    static const int64_t kv_lens[] = {1, 2, 16, 17, 63, 64, 65, 100, 128, 129, 200};
    static const int64_t q_lens[] = {1, 2, 5, 17, 64, 65, 100};
    static const int32_t dims[] = {5, 16, 31, 64, 100, 128};
    for (size_t i = 0; i < COUNT(kv_lens); ++i)
        for (size_t j = 0; j < COUNT(q_lens) && q_lens[j] <= kv_lens[i]; ++j)
            check_shape((shape){2, q_lens[j], kv_lens[i], kv_lens[i] + 7, 18, 2, dims[(i + j) % COUNT(dims)]},
                        false);
}

/* Scores of some hundred: a softmax without its maximum would overflow. The numbers make every score exact.
 */
static void test_large_scores(void **state) {
    (void)state;
    const moei_kernels ref = ref_kernels(MOE_F32);
    for (int64_t q_len = 1; q_len <= 70; q_len += 69) {
        tensors want = make((shape){1, q_len, 70, 70, 2, 1, 16}, MOE_F32, 77);
        float *q = want.q, *k = want.k;
        for (int64_t i = 0; i < want.n_q; ++i) q[i] = 256.0F * roundf(4 * q[i]);
        for (int64_t i = 0; i < want.n_kv; ++i) k[i] = 0.25F * roundf(4 * k[i]);
        run(&ref, 1, &want, false);
        compare_variants(&want, false);
        release(&want);
    }
}

/* The textbook formula in f64: scores, softmax, weighted mean. */
static void test_ref_is_softmax(void **state) {
    (void)state;
    tensors t = make((shape){2, 5, 9, 11, 6, 3, 7}, MOE_F64, 66);
    moei_kernels ref = ref_kernels(MOE_F64);
    run(&ref, 1, &t, false);
    const double *q = t.q, *k = t.k, *v = t.v, *out = t.out, *lse = t.lse;
    for (int64_t i = 0; i < 2 * 5 * 6; ++i) {
        int64_t row = i / 6, head = i % 6, kv_head = head / 2, seq = row / 5, seen = 9 - 5 + row % 5 + 1;
        double e[9], sum = 0.0, mean[7] = {0};
        for (int64_t j = 0; j < seen; ++j) {
            double dot = 0.0;
            for (int64_t d = 0; d < 7; ++d)
                dot += q[row * t.ldq + head * 7 + d] * k[(seq * 11 + j) * t.ldkv + kv_head * 7 + d];
            sum += e[j] = exp(dot / sqrt(7.0));
        }
        for (int64_t j = 0; j < seen; ++j)
            for (int64_t d = 0; d < 7; ++d)
                mean[d] += e[j] / sum * v[(seq * 11 + j) * t.ldkv + kv_head * 7 + d];
        for (int64_t d = 0; d < 7; ++d)
            assert_near(out[row * t.ldo + head * 7 + d], mean[d], 1e-13, "out", i);
        assert_near(lse[i], log(sum), 1e-13, "lse", i);
    }
    release(&t);
}

static double loss_of(void *arg) {
    const tensors *t = arg;
    moei_kernels ref = ref_kernels(MOE_F64);
    run(&ref, 1, t, false);
    double sum = 0.0;
    for (int64_t r = 0; r < t->s.n_seq * t->s.q_len; ++r)
        for (int64_t i = 0; i < t->s.heads * t->s.head_dim; ++i)
            sum += ((double *)t->out)[r * t->ldo + i] * ((double *)t->dout)[r * t->ldo + i];
    return sum;
}

/* The padding of a row has no gradient: it keeps the poison, here made 0 before comparing. */
static void zero_padding(double *x, int64_t n, int64_t width, int64_t ld) {
    for (int64_t i = 0; i < n; ++i)
        if (i % ld >= width) x[i] = 0.0;
}

static void test_ref_gradient(void **state) {
    (void)state;
    tensors t = make((shape){2, 5, 5, 5, 4, 2, 3}, MOE_F64, 67);
    moei_kernels ref = ref_kernels(MOE_F64);
    run(&ref, 1, &t, true);
    zero_padding(t.dq, t.n_q, 12, t.ldq);
    zero_padding(t.dk, t.n_kv, 6, t.ldkv);
    zero_padding(t.dv, t.n_kv, 6, t.ldkv);
    assert_gradient(loss_of, &t, t.q, t.dq, t.n_q, "dq");
    assert_gradient(loss_of, &t, t.k, t.dk, t.n_kv, "dk");
    assert_gradient(loss_of, &t, t.v, t.dv, t.n_kv, "dv");
    release(&t);
}

int main(void) {
    n_variants = test_variants_of(MOE_F32, variants);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ref_is_softmax),    cmocka_unit_test(test_ref_gradient),
        cmocka_unit_test(test_variants_training), cmocka_unit_test(test_variants_cache),
        cmocka_unit_test(test_large_scores),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
