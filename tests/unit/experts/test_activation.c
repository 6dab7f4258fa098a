/* test_activation.c: the table of activations: derivatives, clamps, names, and agreement with the kernels.
 * Points are random with a printed seed; each derivative is a difference of fourth order.
 */
#include "support/layer_fixture.h"

#include "experts/activation.h"
#include "kernel/act.h"

enum { POINTS = 200 };

static double draw(uint32_t purpose, double width) {
    static uint64_t count;
    double x;
    moe_random_normal(test_seed(), MOE_DRAW_TEST, purpose, ++count, MOE_F64, &x, 1, width);
    return x;
}

static moei_act_rule rule_of(const char *name, float limit) {
    const moe_expert_desc desc = {.size = sizeof desc, .activation_limit = limit};
    return moei_act_rule_of(moei_activation_find(name), &desc);
}

static double slope(const moei_act_rule *rule, double gate, double up, bool of_up) {
    double d[2];
    for (int i = 0; i < 2; ++i) {
        const double h = i ? 5e-5 : 1e-4, dg = of_up ? 0 : h, du = of_up ? h : 0;
        d[i] = (moei_act_at(rule, gate + dg, up + du).value - moei_act_at(rule, gate - dg, up - du).value) /
               (2 * h);
    }
    return (4 * d[1] - d[0]) / 3;
}

/* Where a piece of the function ends, a difference across it means nothing. */
static bool near_kink(const moei_act_rule *rule, double gate, double up) {
    const double limit = rule->limit > 0 ? rule->limit : INFINITY, reach = 2e-4;
    return fabs(gate) < reach || fabs(gate - limit) < reach || fabs(fabs(up) - limit) < reach;
}

static void derivatives_are_differences(void **state) {
    (void)state;
    static const float limits[] = {0, 0.7f, 3};
    int checked = 0;
    for (size_t a = 0; moei_activation_names[a]; ++a)
        for (size_t l = 0; l < sizeof limits / sizeof *limits; ++l)
            for (int i = 0; i < POINTS; ++i) {
                const moei_act_rule rule = rule_of(moei_activation_names[a], limits[l]);
                const double gate = draw(1, 2), up = draw(2, 2);
                if (near_kink(&rule, gate, up)) continue;
                const moei_act_point point = moei_act_at(&rule, gate, up);
                const double dg = slope(&rule, gate, up, false), du = slope(&rule, gate, up, true);
                if (fabs(point.d_gate - dg) > 1e-8 * (1 + fabs(dg)) ||
                    fabs(point.d_up - du) > 1e-8 * (1 + fabs(du)))
                    fail_msg("seed %llu: %s at (%g, %g): slopes %g %g, differences %g %g",
                             (unsigned long long)test_seed(), moei_activation_names[a], gate, up,
                             point.d_gate, point.d_up, dg, du);
                ++checked;
            }
    assert_true(checked > 7000);
}

/* A clamp passes the gradient at its limit and stops it beyond; the gate has no lower limit. */
static void clamps_include_their_boundary(void **state) {
    (void)state;
    static const char *const gated[] = {"swiglu", "geglu",       "geglu_exact",
                                        "reglu",  "quick_geglu", "swigluoai"};
    for (size_t a = 0; a < sizeof gated / sizeof *gated; ++a) {
        const moei_act_rule rule = rule_of(gated[a], 1.5f);
        const moei_act_point at = moei_act_at(&rule, 1.5, -1.5), past = moei_act_at(&rule, 1.6, -1.6);
        assert_true(at.d_gate != 0 && at.d_up != 0);
        assert_true(past.d_gate == 0 && past.d_up == 0 && past.value == at.value);
        const moei_act_point low = moei_act_at(&rule, -40, 1);
        assert_true(low.value == moei_act_at(&rule, -40, 1).value);
        assert_true(moei_act_at(&rule, 1, 9).value == moei_act_at(&rule, 1, 1.5).value);
    }
    /* quick_geglu and swigluoai clamp at 7 unasked */
    const moei_act_rule own = rule_of("swigluoai", 0);
    assert_true(moei_act_at(&own, 8, 9).value == moei_act_at(&own, 7, 7).value);
    const double sigmoid = 1 / (1 + exp(-1.702 * 0.5));
    assert_true(fabs(moei_act_at(&own, 0.5, 0.25).value - 0.5 * sigmoid * 1.25) < 1e-15);
}

/* Within limits and without: a run that has diverged does not look like one that goes on. */
static void nan_stays_nan(void **state) {
    (void)state;
    for (size_t a = 0; moei_activation_names[a]; ++a)
        for (int limited = 0; limited < 2; ++limited) {
            const moei_act_rule rule = rule_of(moei_activation_names[a], limited ? 7 : 0);
            assert_true(isnan(moei_act_at(&rule, (double)NAN, 2).value));
            if (rule.gated) assert_true(isnan(moei_act_at(&rule, 2, (double)NAN).value));
        }
}

/* Numbers of other implementations, to their printed digits. */
static void values_are_the_known_ones(void **state) {
    (void)state;
    static const struct {
        const char *name;
        double gate, up, value;
    } known[] = {
        {"relu",        -1,  0,    0                  },
        {"leaky_relu",  -2,  0,    -0.02              },
        {"relu2",       3,   0,    9                  },
        {"silu",        1,   0,    0.73105857863000490},
        {"gelu",        1,   0,    0.84134474606854293},
        {"gelu_tanh",   1,   0,    0.84119199060827676},
        {"quick_gelu",  1,   0,    0.84579576597284540},
        {"swiglu",      1,   2,    1.46211715726000980},
        {"geglu",       1,   2,    1.68238398121655352},
        {"geglu_exact", 1,   2,    1.68268949213708586},
        {"reglu",       0.5, -0.5, -0.25              }
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; ++i) {
        const moei_act_rule rule = rule_of(known[i].name, 0);
        const double value = moei_act_at(&rule, known[i].gate, known[i].up).value;
        if (fabs(value - known[i].value) > 1e-7) fail_msg("%s: %.17g", known[i].name, value);
    }
}

/* The products are told the rule but for where gates and ups stand. */
static void products_are_told_the_rule(void **state) {
    (void)state;
    for (size_t a = 0; moei_activation_names[a]; ++a) {
        const char *name = moei_activation_names[a];
        const moei_act_rule rule = rule_of(name, 0);
        const moei_act_rule theirs = moei_act_rule_for(
            moei_activation_find(name)->act, (moe_act_numbers){rule.alpha, rule.limit, rule.offset});
        if (moei_act_fuses(&rule) == moei_activation_find(name)->interleaved)
            fail_msg("%s: products take gates and ups in halves, with any numbers, and no others", name);
        for (int i = 0; i < POINTS; ++i) {
            const double gate = draw(3, 2), up = draw(4, 2);
            const moei_act_point mine = moei_act_at(&rule, gate, up), other = moei_act_at(&theirs, gate, up);
            assert_true(mine.value == other.value && mine.d_gate == other.d_gate && mine.d_up == other.d_up);
        }
    }
}

/* The word `place` of a list "a, b, c". */
static void word_of(const char *list, int place, char word[32]) {
    for (; place > 0 && strchr(list, ','); --place) list = strchr(list, ',') + 2;
    snprintf(word, 32, "%.*s", (int)strcspn(list, ","), list);
}

/* Each of the products' activations is one of the experts', by the same name where it takes no numbers. */
static void products_have_the_names(void **state) {
    (void)state;
    moe_error error;
    moe_act none;
    assert_int_equal(moe_act_by_name("", &none, &error), MOE_ERR_ARGUMENT);
    assert_non_null(strstr(error.text, ": relu,"));
    for (int i = MOE_ACT_NONE + 1; i < MOEI_ACTS; ++i) {
        int found = 0;
        char name[32];
        word_of(strstr(error.text, ": relu,") + 2, i - 1, name);
        for (size_t a = 0; moei_activation_names[a]; ++a) {
            const moei_activation *row = moei_activation_find(moei_activation_names[a]);
            moe_act act;
            if (row->act != (moe_act)i || row->alpha != 0) continue;
            ++found;
            if (moe_act_by_name(row->name, &act, NULL) != MOE_OK || act != (moe_act)i)
                fail_msg("%s of experts/activation.def is %s in kernel/act.c", row->name, name);
        }
        if (found != 1)
            fail_msg(
                "%s of kernel/act.c has %d rows without an alpha in experts/activation.def; it needs one",
                name, found);
    }
}

static void names_find_their_rows(void **state) {
    (void)state;
    const moei_activation *before = NULL;
    for (size_t i = 0; moei_activation_names[i]; ++i) {
        const moei_activation *row = moei_activation_find(moei_activation_names[i]);
        assert_non_null(row);
        assert_string_equal(row->name, moei_activation_names[i]);
        if (before && row != before + 1) fail_msg("%s: two rows have this name", row->name);
        before = row;
    }
    assert_non_null(before);
    assert_null(moei_activation_find("swiglo"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(derivatives_are_differences),
        cmocka_unit_test(clamps_include_their_boundary),
        cmocka_unit_test(nan_stays_nan),
        cmocka_unit_test(values_are_the_known_ones),
        cmocka_unit_test(products_are_told_the_rule),
        cmocka_unit_test(products_have_the_names),
        cmocka_unit_test(names_find_their_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
