/* test_attention_bits.c: causal grouped-query attention, every variant: what no rounding may break. The same
 * bits for any number of threads, alone or in a batch, decoding against a cache or all at once, and whatever
 * comes later. Source: op.h.
 */
#include "kernel/attention_test.h"

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

/* Sequences that have seen unequally much, anywhere in one tensor, have the bits of each alone. */
static void test_unequal_sequences(void **state) {
    (void)state;
    enum { N = 3, ROWS = 300 };
    static const int64_t lens[N] = {70, 3, 129}, rows[N] = {130, 1, 60}, q_lens[] = {1, 3};
    moei_kernels k;
    for (int isa = MOEI_ISA_REF; isa < MOEI_ISA_COUNT; ++isa) {
        if (!test_kernels((moei_isa)isa, &k)) continue;
        for (size_t c = 0; c < COUNT(q_lens); ++c) {
            const int64_t q = q_lens[c];
            tensors t = make((shape){N, q, q, ROWS / N, 6, 2, 20}, MOE_F32, 67), alone = twin_of(&t);
            moei_team team = test_team(2);
            moe_attention_args a = args_of(&t);
            a.kv_lens = lens;
            a.kv_rows = rows;
            k.attention(&team, &a);
            for (int64_t s = 0; s < N; ++s) {
                moe_attention_args one = args_of(&alone);
                one.n_seq = 1;
                one.kv_len = one.kv_stride = lens[s];
                one.q = (const float *)t.q + s * q * t.ldq;
                one.k = (const float *)t.k + rows[s] * t.ldkv;
                one.v = (const float *)t.v + rows[s] * t.ldkv;
                one.out = (float *)alone.out + s * q * t.ldo;
                one.lse = (float *)alone.lse + s * q * 6;
                k.attention(&team, &one);
            }
            assert_same_bits(&t, &alone, false);
            release_twin(&alone);
            release(&t);
        }
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

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_causality),         cmocka_unit_test(test_batch_invariance),
        cmocka_unit_test(test_unequal_sequences), cmocka_unit_test(test_decode_is_forward),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
