/* test_attention.c: causal grouped-query attention, every variant, training and decoding.
 * The reference against a plain softmax and finite differences, the variants against the reference, and
 * what no rounding may break: causality, batches, threads, decoding against a cache.
 */
#include "kernel/kernel_test.h"

static test_variant variants[MOEI_ISA_COUNT];
static int n_variants;

typedef struct shape {
    int64_t n_seq, q_len, kv_len, kv_stride;
    int32_t heads, kv_heads, head_dim;
} shape;

/* Tensors of one case; rows are padded so that a wrong stride shows. */
typedef struct tensors {
    shape s;
    moe_dtype dtype;
    int64_t ldq, ldkv, ldo, n_q, n_kv, n_o, n_lse;
    void *q, *k, *v, *dout;                 /* inputs */
    void *out, *lse, *delta, *dq, *dk, *dv; /* outputs */
} tensors;

static void poison_outputs(tensors *t) {
    t->out = poisoned(t->dtype, t->n_o);
    t->lse = poisoned(t->dtype, t->n_lse);
    t->delta = poisoned(t->dtype, t->n_lse);
    t->dq = poisoned(t->dtype, t->n_q);
    t->dk = poisoned(t->dtype, t->n_kv);
    t->dv = poisoned(t->dtype, t->n_kv);
}

static tensors make(shape s, moe_dtype dtype, uint64_t seed) {
    tensors t = {.s = s, .dtype = dtype};
    t.ldq = (int64_t)s.heads * s.head_dim + 5;
    t.ldkv = (int64_t)s.kv_heads * s.head_dim + 3;
    t.ldo = (int64_t)s.heads * s.head_dim + 1;
    t.n_q = s.n_seq * s.q_len * t.ldq;
    t.n_kv = s.n_seq * s.kv_stride * t.ldkv;
    t.n_o = s.n_seq * s.q_len * t.ldo;
    t.n_lse = s.n_seq * s.q_len * s.heads;
    t.q = random_array(dtype, t.n_q, 4 * seed);
    t.k = random_array(dtype, t.n_kv, 4 * seed + 1);
    t.v = random_array(dtype, t.n_kv, 4 * seed + 2);
    t.dout = random_array(dtype, t.n_o, 4 * seed + 3);
    poison_outputs(&t);
    return t;
}

/* The same inputs, outputs of its own. */
static tensors twin_of(const tensors *t) {
    tensors twin = *t;
    poison_outputs(&twin);
    return twin;
}

static void release_twin(tensors *t) {
    void *outputs[] = {t->out, t->lse, t->delta, t->dq, t->dk, t->dv};
    for (size_t i = 0; i < COUNT(outputs); ++i) free(outputs[i]);
}

static void release(tensors *t) {
    void *inputs[] = {t->q, t->k, t->v, t->dout};
    for (size_t i = 0; i < COUNT(inputs); ++i) free(inputs[i]);
    release_twin(t);
}

static moe_attention_args args_of(const tensors *t) {
    const shape *s = &t->s;
    return (moe_attention_args){.dtype = t->dtype,
                                .n_seq = s->n_seq,
                                .q_len = s->q_len,
                                .kv_len = s->kv_len,
                                .kv_stride = s->kv_stride,
                                .heads = s->heads,
                                .kv_heads = s->kv_heads,
                                .head_dim = s->head_dim,
                                .q = t->q,
                                .k = t->k,
                                .v = t->v,
                                .ldq = t->ldq,
                                .ldkv = t->ldkv,
                                .out = t->out,
                                .ldo = t->ldo,
                                .lse = t->lse,
                                .dout = t->dout,
                                .dq = t->dq,
                                .dk = t->dk,
                                .dv = t->dv,
                                .delta = t->delta};
}

static void run(const moei_kernels *k, int32_t threads, const tensors *t, bool backward) {
    moei_team team = test_team(threads);
    moe_attention_args a = args_of(t);
    k->attention(&team, &a);
    if (backward) k->attention_backward(&team, &a);
}

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
    run(&ref, 2, &want, backward);
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

static void assert_same_bits(const tensors *a, const tensors *b, bool backward) {
    assert_memory_equal(a->out, b->out, (size_t)a->n_o * sizeof(float));
    assert_memory_equal(a->lse, b->lse, (size_t)a->n_lse * sizeof(float));
    if (!backward) return;
    assert_memory_equal(a->dq, b->dq, (size_t)a->n_q * sizeof(float));
    assert_memory_equal(a->dk, b->dk, (size_t)a->n_kv * sizeof(float));
    assert_memory_equal(a->dv, b->dv, (size_t)a->n_kv * sizeof(float));
}

/* Backward of few sequences and key heads goes another way where there are more threads: {1, 200, ..} from
 * two on, {5, 131, ..} from four on, {2, 131, ..} with none of them. */
static void test_threads(void **state) {
    (void)state;
    static const shape shapes[] = {
        {2, 131, 131, 131, 4,  2, 24  },
        {1, 200, 200, 200, 4,  1, 40  },
        {5, 131, 131, 131, 1,  1, 17  },
        {1, 60,  60,  60,  3,  1, 24  },
        {2, 131, 131, 131, 2,  1, 1000},
        {3, 1,   131, 140, 20, 2, 24  }
    };
    moei_kernels k;
    for (int isa = MOEI_ISA_REF; isa < MOEI_ISA_COUNT; ++isa) {
        if (!test_kernels((moei_isa)isa, &k)) continue;
        for (size_t i = 0; i < COUNT(shapes); ++i) {
            const bool backward = shapes[i].q_len == shapes[i].kv_stride;
            tensors one = make(shapes[i], MOE_F32, 51);
            run(&k, 1, &one, backward);
            for (int32_t threads = 2; threads <= 4; threads += 2) {
                tensors many = twin_of(&one);
                run(&k, threads, &many, backward);
                assert_same_bits(&one, &many, backward);
                release_twin(&many);
            }
            release(&one);
        }
    }
}

/* Decoding one query, or a few, against the cache gives the bits of the whole sequence's forward; rows of the
 * cache past kv_len hold NaN and do not matter; nor does the other sequence. */
static void test_decode_is_forward(void **state) {
    (void)state;
    enum { LEN = 140, STRIDE = 150 };
    static const int64_t chunks[] = {1, 2, 7};
    moei_kernels k;
    for (int isa = MOEI_ISA_REF; isa < MOEI_ISA_COUNT; ++isa) {
        if (!test_kernels((moei_isa)isa, &k)) continue;
        tensors whole = make((shape){1, LEN, LEN, LEN, 6, 2, 20}, MOE_F32, 61);
        run(&k, 1, &whole, false);
        for (size_t c = 0; c < COUNT(chunks); ++c)
            for (int64_t kv = chunks[c]; kv <= LEN; kv += isa == MOEI_ISA_REF ? 17 : 1) {
                tensors part = make((shape){2, chunks[c], kv, STRIDE, 6, 2, 20}, MOE_F32, 62);
                int64_t first = kv - chunks[c];
                size_t row = (size_t)whole.ldkv * sizeof(float), q_row = (size_t)whole.ldq * sizeof(float);
                memset(part.k, 0xff, (size_t)part.n_kv * sizeof(float));
                memset(part.v, 0xff, (size_t)part.n_kv * sizeof(float));
                for (int64_t seq = 0; seq < 2; ++seq) { /* the second sequence is another */
                    memcpy((float *)part.k + seq * STRIDE * whole.ldkv, whole.k, (size_t)kv * row);
                    memcpy((float *)part.v + seq * STRIDE * whole.ldkv, seq ? whole.k : whole.v,
                           (size_t)kv * row);
                }
                memcpy(part.q, (float *)whole.q + first * whole.ldq, (size_t)chunks[c] * q_row);
                run(&k, 1, &part, false);
                assert_memory_equal(part.out, (float *)whole.out + first * whole.ldo,
                                    (size_t)(chunks[c] * whole.ldo - 1) * sizeof(float));
                assert_memory_equal(part.lse, (float *)whole.lse + first * 6,
                                    (size_t)(chunks[c] * 6) * sizeof(float));
                release(&part);
            }
        release(&whole);
    }
}

/* A sequence gives the same bits alone and as the second of three, forward and backward. */
static void test_batch_invariance(void **state) {
    (void)state;
    enum { LEN = 90 };
    moei_kernels k;
    for (int isa = MOEI_ISA_REF; isa < MOEI_ISA_COUNT; ++isa) {
        if (!test_kernels((moei_isa)isa, &k)) continue;
        tensors batch = make((shape){3, LEN, LEN, LEN, 4, 2, 12}, MOE_F32, 63);
        tensors alone = make((shape){1, LEN, LEN, LEN, 4, 2, 12}, MOE_F32, 64);
        memcpy(alone.q, (float *)batch.q + alone.n_q, (size_t)alone.n_q * sizeof(float));
        memcpy(alone.k, (float *)batch.k + alone.n_kv, (size_t)alone.n_kv * sizeof(float));
        memcpy(alone.v, (float *)batch.v + alone.n_kv, (size_t)alone.n_kv * sizeof(float));
        memcpy(alone.dout, (float *)batch.dout + alone.n_o, (size_t)alone.n_o * sizeof(float));
        run(&k, 2, &batch, true);
        run(&k, 2, &alone, true);
        tensors second = alone;
        second.out = (float *)batch.out + alone.n_o;
        second.lse = (float *)batch.lse + alone.n_lse;
        second.dq = (float *)batch.dq + alone.n_q;
        second.dk = (float *)batch.dk + alone.n_kv;
        second.dv = (float *)batch.dv + alone.n_kv;
        assert_same_bits(&alone, &second, true);
        release(&batch);
        release(&alone);
    }
}

/* Other keys and values from position 70 on leave every earlier query's bits alone and change the later. */
static void test_causality(void **state) {
    (void)state;
    enum { LEN = 100, FROM = 70 };
    moei_kernels k;
    for (int isa = MOEI_ISA_REF; isa < MOEI_ISA_COUNT; ++isa) {
        if (!test_kernels((moei_isa)isa, &k)) continue;
        tensors a = make((shape){1, LEN, LEN, LEN, 2, 1, 16}, MOE_F32, 65), b = make(a.s, MOE_F32, 65);
        for (int64_t i = FROM * b.ldkv; i < b.n_kv; ++i) ((float *)b.k)[i] = ((float *)b.v)[i] = 9.0F;
        run(&k, 1, &a, false);
        run(&k, 1, &b, false);
        assert_memory_equal(a.out, b.out, (size_t)(FROM * a.ldo) * sizeof(float));
        for (int64_t r = FROM; r < LEN; ++r)
            assert_true(((float *)a.out)[r * a.ldo] != ((float *)b.out)[r * b.ldo]);
        release(&a);
        release(&b);
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
        cmocka_unit_test(test_causality),         cmocka_unit_test(test_batch_invariance),
        cmocka_unit_test(test_decode_is_forward), cmocka_unit_test(test_threads),
        cmocka_unit_test(test_variants_training), cmocka_unit_test(test_variants_cache),
        cmocka_unit_test(test_large_scores),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
