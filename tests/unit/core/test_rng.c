/* test_rng.c: Philox against the known answers of its authors, and the draws made from it.
 * Source of the answers: kat_vectors of Random123 (Salmon et al. 2011), philox4x32 with 10 rounds.
 */
#include "support/layer_fixture.h"

#include "core/ctx.h"
#include "core/real.h"
#include "core/rng.h"

static void known_answers(void **state) {
    (void)state;
    /* clang-format off */
    static const struct {
        uint32_t counter[4], key[2], want[4];
    } cases[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    /* clang-format on */
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
        uint32_t out[4];
        moei_philox(cases[i].counter, cases[i].key, out);
        assert_memory_equal(out, cases[i].want, sizeof out);
    }
}

/* Changing any one part of the key changes the draw; asking again does not. */
static void every_part_of_the_key_counts(void **state) {
    (void)state;
    uint32_t base[4], other[4];
    moe_random(1, MOE_DRAW_INIT, 2, 3, 4, base);
    moe_random(1, MOE_DRAW_INIT, 2, 3, 4, other);
    assert_memory_equal(base, other, sizeof base);
    const struct {
        uint64_t seed;
        moe_purpose purpose;
        uint32_t layer;
        uint64_t step, index;
    } changed[] = {
        {9,          MOE_DRAW_INIT,   2, 3,          4         },
        {1,          MOE_DRAW_JITTER, 2, 3,          4         },
        {1,          MOE_DRAW_INIT,   9, 3,          4         },
        {1,          MOE_DRAW_INIT,   2, 9,          4         },
        {1,          MOE_DRAW_INIT,   2, 3,          9         },
        {1ull << 40, MOE_DRAW_INIT,   2, 3,          4         },
        {1,          MOE_DRAW_INIT,   2, 3ull << 40, 4         },
        {1,          MOE_DRAW_INIT,   2, 3,          4ull << 40}
    };
    for (size_t i = 0; i < sizeof changed / sizeof *changed; ++i) {
        moe_random(changed[i].seed, changed[i].purpose, changed[i].layer, changed[i].step, changed[i].index,
                   other);
        assert_memory_not_equal(base, other, sizeof base);
    }
}

static void normals_have_their_moments(void **state) {
    (void)state;
    enum { N = 200001 };
    double *x = malloc(N * sizeof *x), m1 = 0, m2 = 0, m4 = 0;
    assert_non_null(x);
    moe_random_normal(test_seed(), MOE_DRAW_TEST, 0, 0, MOE_F64, x, N, 3.0);
    for (int i = 0; i < N; ++i) {
        double z = x[i] / 3.0;
        m1 += z / N;
        m2 += z * z / N;
        m4 += z * z * z * z / N;
    }
    /* five standard errors of each moment */
    assert_true(fabs(m1) < 5 / sqrt((double)N));
    assert_true(fabs(m2 - 1) < 5 * sqrt(2.0 / N));
    assert_true(fabs(m4 - 3) < 5 * sqrt(96.0 / N));
    free(x);
}

static void both_dtypes_and_any_length_agree(void **state) {
    (void)state;
    double wide[7];
    float narrow[7], prefix[3];
    moe_random_normal(5, MOE_DRAW_TEST, 1, 2, MOE_F64, wide, 7, 1.0);
    moe_random_normal(5, MOE_DRAW_TEST, 1, 2, MOE_F32, narrow, 7, 1.0);
    moe_random_normal(5, MOE_DRAW_TEST, 1, 2, MOE_F32, prefix, 3, 1.0);
    for (int i = 0; i < 7; ++i) assert_true((float)wide[i] == narrow[i]);
    assert_memory_equal(prefix, narrow, sizeof prefix);
}

/* A team fills what one thread does, to the bit, whatever the number of blocks and of threads; nothing
 * beyond. */
static void all_threads_draw_what_one_does(void **state) {
    (void)state;
    enum { N = 3 * MOEI_NORMAL_BLOCK + 5 };
    static const moe_dtype dtypes[] = {MOE_F32, MOE_F64, MOE_BF16};
    double *one = malloc(N * sizeof *one), *many = malloc(N * sizeof *many);
    assert_true(one && many);
    for (size_t d = 0; d < sizeof dtypes / sizeof *dtypes; ++d)
        for (int32_t threads = 1; threads <= 3; ++threads) {
            moe_ctx *ctx = test_ctx("ref", threads);
            memset(one, 0x5a, N * sizeof *one);
            memset(many, 0x5a, N * sizeof *many);
            moe_random_normal(test_seed(), MOE_DRAW_TEST, 3, 4, dtypes[d], one, N - 2, 0.5);
            moei_normal_draw(&ctx->team,
                             &(moei_normal){test_seed(), MOE_DRAW_TEST, 3, 4, dtypes[d], many, N - 2, 0.5});
            assert_memory_equal(one, many, N * sizeof *one);
            moei_normal_draw(&ctx->team,
                             &(moei_normal){test_seed(), MOE_DRAW_TEST, 3, 4, dtypes[d], many, N - 2, 0});
            moe_random_normal(test_seed(), MOE_DRAW_TEST, 3, 4, dtypes[d], one, N - 2, 0);
            assert_memory_equal(one, many, N * sizeof *one);
            moe_ctx_destroy(ctx);
        }
    free(one);
    free(many);
}

/* Ties go to the even neighbour, infinities and NaN stay what they are, every bf16 comes back as it was. */
static void bf16_rounds_to_nearest_even(void **state) {
    (void)state;
    assert_int_equal(moei_bf16_round(1.0F), 0x3f80);
    assert_int_equal(moei_bf16_round(1.0F + 0x1p-8F), 0x3f80);
    assert_int_equal(moei_bf16_round(1.0F + 0x1p-8F + 0x1p-20F), 0x3f81);
    assert_int_equal(moei_bf16_round(1.0F + 0x3p-8F), 0x3f82);
    assert_int_equal(moei_bf16_round(-1.0F - 0x3p-8F), 0xbf82);
    assert_int_equal(moei_bf16_round(3.4e38F), 0x7f80);
    assert_true(isnan(moei_bf16_value(moei_bf16_round(NAN))));
    for (uint32_t bits = 0; bits <= 0xffff; ++bits) {
        float value = moei_bf16_value((uint16_t)bits);
        if (!isnan(value)) assert_int_equal(moei_bf16_round(value), bits);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_answers),
        cmocka_unit_test(every_part_of_the_key_counts),
        cmocka_unit_test(normals_have_their_moments),
        cmocka_unit_test(all_threads_draw_what_one_does),
        cmocka_unit_test(both_dtypes_and_any_length_agree),
        cmocka_unit_test(bf16_rounds_to_nearest_even),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
