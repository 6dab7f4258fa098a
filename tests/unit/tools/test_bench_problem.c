/* test_bench_problem.c: problem strings: read, refused, printed back, and the routes of a skew.
 * expert[T,K] of even and of Zipf's loads against their counts.
 * Source: tools/moekit/bench/bench_problem.h.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moekit/bench/bench_problem.h"

static bench_problem parse(const char *text) {
    bench_problem problem;
    moe_error error = {.status = MOE_OK};
    if (bench_problem_parse(text, &problem, &error) != MOE_OK) fail_msg("%s: %s", text, error.text);
    return problem;
}

static void test_words(void **state) {
    (void)state;
    const bench_problem p = parse("k3,e7,t11,d13,n17,shared2,act=geglu,bias,skew=zipf0.5,f64");
    assert_int_equal(p.n_experts, 7);
    assert_int_equal(p.n_tokens, 11);
    assert_int_equal(p.d_model, 13);
    assert_int_equal(p.hidden, 17);
    assert_int_equal(p.top_k, 3);
    assert_int_equal(p.n_shared, 2);
    assert_string_equal(p.activation, "geglu");
    assert_true(p.bias && p.skew == BENCH_ZIPF && p.exponent == 0.5 && p.dtype == MOE_F64);
    assert_int_equal(bench_problem_weights(&p), 3 * 13 * 17);
    assert_null(p.format);
    assert_string_equal(parse("nf4,e4").format, "nf4");
    assert_string_equal(parse("int4g128").format, "int4");
    assert_int_equal(parse("int4g128").group, 128);
    assert_true(parse("k1,saved=mxfp8,bf16").saved_mxfp8 && !p.saved_mxfp8);
    assert_true(bench_problem_begins("skew=even,e4") && bench_problem_begins("act=gelu"));
    assert_false(bench_problem_begins("moe.top_k=3") || bench_problem_begins("e4,skew=even"));
    assert_true(bench_problem_flop(&p, 11) == 2.0 * 11 * 5 * 3 * 13 * 17);
}

/* Every shape is a layer, says what is printed of it, and is changed by the words behind it. */
static void test_shapes(void **state) {
    (void)state;
    for (const bench_shape *shape = bench_shapes; shape->name; ++shape) {
        char text[200], again[200];
        moe_error error;
        snprintf(text, sizeof text, "%s,t5", shape->name);
        bench_problem p = parse(text);
        assert_int_equal(p.n_tokens, 5);
        bench_problem_print(&p, text, sizeof text);
        p = parse(text);
        bench_problem_print(&p, again, sizeof again);
        assert_string_equal(text, again);
        const moe_layer_desc desc = bench_problem_layer(&p);
        if (moe_layer_desc_check(&desc, &error) != MOE_OK) fail_msg("%s: %s", shape->name, error.text);
    }
    const bench_problem kept = parse("e4,saved=mxfp8");
    assert_string_equal(bench_problem_layer(&kept).saved_dtype, "mxfp8");
    assert_int_equal(parse("mixtral,k1").top_k, 1);
    assert_int_equal(parse("mixtral,bf16").dtype, MOE_BF16);
    assert_int_equal(parse("mixtral,k1").hidden, 14336);
}

static void test_refusals(void **state) {
    (void)state;
    static const char *const wrong[] = {
        "e8,wide",   "e4,k5",        "t0",          "e",        "e-1",    "skew=odd",
        "skew=zipf", "skew=zipf11",  "skew=zipf1x", "act=tanh", "f16",    "mixtra",
        "k",         "e99999999999", "d0",          "int4g",    "int4g0", "int4x"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; ++i) {
        bench_problem problem = {.n_experts = -7};
        moe_error error = {.status = MOE_OK};
        if (bench_problem_parse(wrong[i], &problem, &error) != MOE_ERR_ARGUMENT)
            fail_msg("%s is taken", wrong[i]);
        assert_int_equal(error.status, MOE_ERR_ARGUMENT);
        assert_true(strlen(error.text) > 0);
        assert_int_equal(problem.n_experts, -7);
    }
}

static void test_near_names(void **state) {
    (void)state;
    bench_problem problem;
    moe_error error;
    assert_int_equal(bench_problem_parse("mixtrall", &problem, &error), MOE_ERR_ARGUMENT);
    assert_non_null(strstr(error.text, "did you mean 'mixtral'?"));
    assert_int_equal(bench_problem_parse("e8,wide", &problem, &error), MOE_ERR_ARGUMENT);
    assert_null(strstr(error.text, "did you mean"));
    assert_int_equal(bench_problem_parse("act=gleu", &problem, &error), MOE_ERR_ARGUMENT);
    assert_non_null(strstr(error.text, " gelu "));
}

/* Rows per expert of the problem's routes, with each token's experts checked. */
static int64_t *count_rows(const bench_problem *p) {
    int32_t *expert = malloc((size_t)(p->n_tokens * p->top_k) * sizeof *expert);
    int64_t *rows = calloc((size_t)p->n_experts, sizeof *rows);
    assert_non_null(expert);
    assert_non_null(rows);
    bench_problem_route(p, expert);
    for (int64_t i = 0; i < p->n_tokens * p->top_k; ++i) {
        assert_in_range(expert[i], 0, p->n_experts - 1);
        for (int64_t j = i - i % p->top_k; j < i; ++j) assert_int_not_equal(expert[i], expert[j]);
        ++rows[expert[i]];
    }
    free(expert);
    return rows;
}

static void test_even_routes(void **state) {
    (void)state;
    const bench_problem p = parse("e12,k3,t40,skew=even");
    int64_t *rows = count_rows(&p);
    for (int32_t e = 0; e < p.n_experts; ++e) assert_int_equal(rows[e], 10);
    free(rows);
}

/* With K = 1 the rows follow p(e) within five deviations. */
static void test_zipf_routes(void **state) {
    (void)state;
    const bench_problem one = parse("e9,k1,t20000,skew=zipf1.0"), all = parse("e5,k5,t30,skew=zipf2");
    double total = 0;
    int64_t *rows = count_rows(&one);
    for (int e = 0; e < 9; ++e) total += 1.0 / (e + 1);
    for (int e = 0; e < 9; ++e) {
        const double p = 1.0 / (e + 1) / total, deviation = sqrt(20000 * p * (1 - p));
        if (fabs((double)rows[e] - 20000 * p) > 5 * deviation)
            fail_msg("expert %d has %lld rows of %g expected", e, (long long)rows[e], 20000 * p);
    }
    free(rows);
    free(count_rows(&all));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_words),       cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_refusals),    cmocka_unit_test(test_even_routes),
        cmocka_unit_test(test_zipf_routes), cmocka_unit_test(test_near_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
