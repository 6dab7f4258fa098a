/* test_capacity.c: each capacity formula against numbers worked out by hand, and what all of them promise.
 * n tokens, K experts a token, E experts, factor f -> C; random sizes, the seed is printed.
 */
#include "support/layer_fixture.h"

#include "dispatch/dispatch.h"

typedef struct sizes {
    int64_t n;
    int32_t K, E;
} sizes;

static moei_capacity rule_of(const moe_layer_desc *desc, bool by_expert) {
    moei_capacity rule;
    moe_error error = {0};
    if (moei_capacity_init(desc, by_expert, &rule, &error) != MOE_OK) fail_msg("%s", error.text);
    return rule;
}

static int64_t rows(moe_layer_desc desc, sizes s) {
    const moei_capacity rule = rule_of(&desc, false);
    return rule.rows(&rule, MOE_TRAIN, false, s.n, s.K, s.E);
}

static int64_t by_name(const char *formula, float factor, int64_t n, int32_t K, int32_t E) {
    return rows((moe_layer_desc){.capacity_formula = formula, .capacity_factor = factor}, (sizes){n, K, E});
}

static void formulas_by_hand(void **state) {
    (void)state;
    assert_int_equal(by_name("megatron", 1.0f, 12, 2, 4), 6);
    assert_int_equal(by_name("megatron", 0.5f, 12, 2, 4), 3);
    assert_int_equal(by_name("megatron", 1.0f, 10, 2, 3), 7);   /* 6.67 up */
    assert_int_equal(by_name("megablocks", 1.0f, 10, 2, 3), 6); /* 6.67 down */
    assert_int_equal(by_name("deepspeed", 1.0f, 10, 2, 3), 7);  /* as megatron, */
    assert_int_equal(by_name("deepspeed", 1.0f, 16, 1, 8), 4);  /* but 4 at least */
    assert_int_equal(by_name("switch", 1.0f, 10, 2, 4), 3);     /* 2.5 up, K does not count */
    assert_int_equal(by_name("gshard", 1.0f, 10, 2, 4), 2);     /* 2.5 down */
    assert_int_equal(by_name("gshard", 1.25f, 2, 2, 4), 0);     /* nothing, as in tensor2tensor */
    assert_int_equal(by_name("lucidrains", 1.0f, 12, 2, 3), 4);
    assert_int_equal(by_name("lucidrains", 2.0f, 12, 2, 3), 8);
    assert_int_equal(by_name("tutel", 1.25f, 10, 2, 4), 6);   /* 2 floor(1.25 * 3) */
    assert_int_equal(by_name("fastmoe", 1.25f, 10, 2, 4), 6); /* 2 * 13 / 4 */
    assert_int_equal(by_name(NULL, 1.0f, 10, 2, 3), 7);       /* megatron */
}

/* Decimal factors are what was written, not the float beside it. */
static void decimals_are_exact(void **state) {
    (void)state;
    assert_int_equal(by_name("gshard", 0.29f, 100, 2, 1), 29); /* 100 * 0.29 is 28.999... in binary */
    assert_int_equal(by_name("megatron", 1.1f, 10, 1, 11), 1); /* 1.1f is above 1.1 */
    assert_int_equal(by_name("megatron", 33.3f, 1000, 1, 333), 100);
    assert_int_equal(by_name("megatron", 60.0f, 31, 1, 60), 31); /* floating point says 32 of 31 tokens */
    assert_int_equal(by_name("megatron", 1e6f, 5, 2, 64), 5);
}

/* The minimum of lucidrains may exceed the group; every other formula stays within it. */
static void minimum_and_multiple(void **state) {
    moe_layer_desc desc = {.capacity_factor = 1, .capacity_formula = "lucidrains"};
    (void)state;
    assert_int_equal(rows(desc, (sizes){2, 2, 4}), 4);
    desc.capacity_formula = "deepspeed";
    assert_int_equal(rows(desc, (sizes){2, 2, 4}), 2);
    desc.min_capacity = 7;
    assert_int_equal(rows(desc, (sizes){16, 1, 8}), 7);
    desc.capacity_multiple = 4;
    assert_int_equal(rows(desc, (sizes){16, 1, 8}), 8);
    assert_int_equal(rows(desc, (sizes){6, 1, 8}), 6);
}

static void factors_of_train_and_eval(void **state) {
    const moe_layer_desc desc = {
        .capacity_factor = 1.25f, .capacity_factor_eval = 2, .capacity_factor_inner = 3};
    const moe_layer_desc one = {.capacity_factor = 1.25f};
    const moei_capacity both = rule_of(&desc, false), same = rule_of(&one, false);
    (void)state;
    assert_true(both.factor[MOE_TRAIN] == 1.25f && both.factor[MOE_INFER] == 2);
    assert_true(both.factor_inner[MOE_TRAIN] == 3 && both.factor_inner[MOE_INFER] == 3);
    assert_true(same.factor[MOE_INFER] == 1.25f && same.factor_inner[MOE_TRAIN] == 1.25f);
    assert_int_equal(by_name("tutel", 0, 10, 2, 4), -1);
}

/* Decoding: of one token every formula leaves an expert its row, unless none is asked for. */
static void inference_keeps_a_row(void **state) {
    (void)state;
    for (int formula = 0; moei_capacity_formulas[formula]; ++formula) {
        moe_layer_desc desc = {.capacity_formula = moei_capacity_formulas[formula],
                               .capacity_factor = 1,
                               .capacity_factor_inner = 0.5f};
        moei_capacity rule = rule_of(&desc, false);
        for (int inner = 0; inner < 2; ++inner) {
            assert_true(rule.rows(&rule, MOE_INFER, inner, 1, 2, 6) >= 1);
            assert_true(rule.rows(&rule, MOE_INFER, inner, 1, 1, 1000) >= 1);
        }
        desc.min_capacity = MOE_ZERO;
        rule = rule_of(&desc, false);
        assert_int_equal(rule.rows(&rule, MOE_INFER, false, 1, 2, 6),
                         rule.rows(&rule, MOE_TRAIN, false, 1, 2, 6));
    }
}

/* Without a factor a capacity is none, but where experts choose by it. */
static void experts_choose_by_factor_one(void **state) {
    const moe_layer_desc none = {.capacity_factor_eval = 2}, half = {.capacity_factor = 0.5f};
    (void)state;
    assert_true(rule_of(&none, false).factor[MOE_TRAIN] == 0);
    assert_true(rule_of(&none, true).factor[MOE_TRAIN] == 1 && rule_of(&none, true).factor[MOE_INFER] == 2);
    assert_true(rule_of(&half, true).factor[MOE_TRAIN] == 0.5f);
}

static void unknown_names_are_told(void **state) {
    const moe_layer_desc desc[] = {
        {.capacity_formula = "megatorn"}, {.capacity_group = "megatorn"}, {.drop_policy = "megatorn"}};
    (void)state;
    for (int i = 0; i < 3; ++i) {
        moei_capacity rule;
        moe_error error = {0};
        assert_int_equal(moei_capacity_init(&desc[i], false, &rule, &error), MOE_ERR_INTERNAL);
        assert_non_null(strstr(error.text, "megatorn"));
    }
}

/* Between 0 and n, more with more tokens or a larger factor, a multiple where nothing is cut off. */
static void promises_of_all(void **state) {
    (void)state;
    for (int formula = 0; moei_capacity_formulas[formula]; ++formula)
        for (uint64_t i = 0; i < 400; ++i) {
            uint32_t word[4];
            moe_random(test_seed(), MOE_DRAW_TEST, 900, 0, i, word);
            const sizes s = {word[0] % 300, 1 + (int32_t)(word[1] % 4), 1 + (int32_t)(word[2] % 40)};
            const sizes more = {s.n + 1, s.K, s.E};
            const moe_layer_desc desc = {.capacity_formula = moei_capacity_formulas[formula],
                                         .capacity_factor = (float)(word[3] % 5000 + 1) / 1000,
                                         .min_capacity = (int32_t)(word[0] >> 16) % 8,
                                         .capacity_multiple = (int32_t)(word[1] >> 16) % 5};
            moe_layer_desc larger = desc;
            larger.capacity_factor += 0.5f;
            const int64_t C = rows(desc, s);
            const bool exceeds = strcmp(desc.capacity_formula, "lucidrains") == 0;
            if (C < 0 || (C > s.n && !exceeds) || rows(desc, more) < C || rows(larger, s) < C ||
                (C < desc.min_capacity && C < s.n) ||
                (desc.capacity_multiple > 1 && C < s.n && C % desc.capacity_multiple != 0))
                fail_msg("%s factor %g: %lld of %lld tokens, K %d, E %d, minimum %d, multiple %d",
                         desc.capacity_formula, (double)desc.capacity_factor, (long long)C, (long long)s.n,
                         s.K, s.E, desc.min_capacity, desc.capacity_multiple);
        }
}

/* Where float arithmetic is exact, the truncating formulas are the references' own expression. */
static void truncation_is_the_references(void **state) {
    (void)state;
    for (uint64_t i = 0; i < 400; ++i) {
        uint32_t word[4];
        moe_random(test_seed(), MOE_DRAW_TEST, 901, 0, i, word);
        const int64_t n = 8 + word[0] % 500;
        const int32_t E = 1 << word[1] % 6, K = 1 + (int32_t)(word[2] % 3);
        const double factor = (1 + word[3] % 16) * 0.125;
        const int64_t expected = (int64_t)((double)n * factor / E), cut = expected < n ? expected : n;
        assert_int_equal(by_name("gshard", (float)factor, n, K, E), cut);
        assert_int_equal(by_name("lucidrains", (float)factor, n, K, E), cut > 4 ? cut : 4);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(formulas_by_hand),
        cmocka_unit_test(decimals_are_exact),
        cmocka_unit_test(minimum_and_multiple),
        cmocka_unit_test(factors_of_train_and_eval),
        cmocka_unit_test(experts_choose_by_factor_one),
        cmocka_unit_test(unknown_names_are_told),
        cmocka_unit_test(promises_of_all),
        cmocka_unit_test(truncation_is_the_references),
        cmocka_unit_test(inference_keeps_a_row),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
