/* test_huge_gates.c: the activations of every variant against kernel/act.h where an exponential leaves the
 * range of f32: in the epilogues of products and in the pass of its own. One number a row; every gate is
 * exact in bf16. What the argument is multiplied by must then be 0 or 1 and not merely close to it.
 */
#include "kernel/guarded.h"

#include "kernel/act.h"

#include <float.h>

static const double sizes[] = {1,  12,   13.1875, 13.25, 14,   40,   86.5, 87,   87.5, 88.5,
                               89, 89.5, 104,     1e3,   1e10, 1e19, 1e25, 1e33, 1e36, 3e38};
enum { SIZES = sizeof sizes / sizeof sizes[0], GATES = 2 * SIZES };

static double gate_at(int64_t i) {
    uint16_t stored;
    moei_real_store(MOE_BF16, &stored, 0, i % 2 ? -sizes[i / 2] : sizes[i / 2]);
    return moei_real_load(MOE_BF16, &stored, 0);
}

/* What f32 makes of the value, and of an activation whose tail has an absolute error; infinity, where the
 * value is no number of f32. */
static void check_value(double got, double want, moe_dtype dtype, const char *name, const char *what,
                        int64_t i) {
    if (dtype != MOE_F64 && want > FLT_MAX)
        assert_true(got == HUGE_VAL);
    else
        check_close(got, want, 1e-5 * (1 + fabs(want)) + storage_bound(dtype, want), name, 0, what, i);
}

/* Row i times a 1 x n matrix makes gate_at(i) in the first column, and 1 in the second one of a gated act. */
static void check_act(const moei_kernel_row *variant, moe_dtype dtype, moe_act act) {
    const moei_act_rule rule = moei_act_rule_for(act, (moe_act_numbers){0});
    const bool gated = rule.gated;
    const int64_t offset[] = {0, GATES};
    guarded a = guarded_new(dtype, 2 * GATES), b = guarded_new(dtype, 4), h = guarded_new(dtype, GATES);
    moe_gemm_rows_args args = {.dtype = dtype, .epilogue = MOE_EPI_ACT, .act = act, .n_groups = 1};
    args.offset = offset, args.n = gated ? 2 : 1, args.k = 2;
    args.a = a.data, args.lda = 2, args.b = b.data, args.ldb = args.n, args.h = h.data, args.ldh = 1;
    for (int64_t i = 0; i < GATES; ++i) {
        moei_real_store(dtype, a.data, 2 * i, gate_at(i));
        moei_real_store(dtype, a.data, 2 * i + 1, 1);
    }
    for (int64_t i = 0; i < 4; ++i) moei_real_store(dtype, b.data, i, i == 0 || (gated && i == 3));
    moei_team team = test_team(1);
    ((moei_gemm_rows_fn *)variant->fn)(&team, &args);
    for (int64_t i = 0; i < GATES; ++i)
        check_value(get(&h, i), moei_act_at(&rule, gate_at(i), 1).value, dtype, variant->name, "h", i);
    guarded_free(&a), guarded_free(&b), guarded_free(&h);
}

/* The gradient at z = gate_at(i), and up 1; da and the row's weight are 1. */
static void check_act_grad(const moei_kernel_row *variant, moe_dtype dtype, moe_act act) {
    const moei_act_rule rule = moei_act_rule_for(act, (moe_act_numbers){0});
    const int64_t offset[] = {0, GATES}, columns = rule.gated ? 2 : 1;
    guarded one = guarded_new(dtype, 1), a = guarded_new(dtype, GATES), wa = guarded_new(dtype, GATES);
    guarded z = guarded_new(dtype, columns * GATES), dz = guarded_new(dtype, columns * GATES);
    moe_gemm_rows_args args = {.dtype = dtype, .epilogue = MOE_EPI_ACT_GRAD, .act = act, .n_groups = 1};
    args.offset = offset, args.n = 1, args.k = 1, args.a = a.data, args.lda = 1, args.b = one.data;
    args.ldb = 1, args.z = z.data, args.dz = dz.data, args.ldz = columns, args.wa = wa.data, args.ldwa = 1;
    moei_real_store(dtype, one.data, 0, 1);
    for (int64_t i = 0; i < GATES; ++i) {
        moei_real_store(dtype, a.data, i, 1);
        moei_real_store(dtype, z.data, columns * i, gate_at(i));
        if (columns == 2) moei_real_store(dtype, z.data, 2 * i + 1, 1);
    }
    moei_team team = test_team(1);
    ((moei_gemm_rows_fn *)variant->fn)(&team, &args);
    for (int64_t i = 0; i < GATES; ++i) {
        const moei_act_point want = moei_act_at(&rule, gate_at(i), 1);
        check_value(get(&wa, i), want.value, dtype, variant->name, "wa", i);
        check_value(get(&dz, columns * i), want.d_gate, dtype, variant->name, "dz", i);
        if (columns == 2) check_value(get(&dz, 2 * i + 1), want.d_up, dtype, variant->name, "dz up", i);
    }
    guarded_free(&one), guarded_free(&a), guarded_free(&wa), guarded_free(&z), guarded_free(&dz);
}

static void test_epilogues(void **state) {
    (void)state;
    for (const moei_kernel_row *v = next_variant("gemm_rows", NULL); v; v = next_variant("gemm_rows", v))
        for (int dtype = 0; dtype < MOEI_DTYPES; ++dtype)
            for (int act = MOE_ACT_NONE; act < MOEI_ACTS && serves(v, (moe_dtype)dtype); ++act) {
                check_act(v, (moe_dtype)dtype, (moe_act)act);
                check_act_grad(v, (moe_dtype)dtype, (moe_act)act);
            }
}

static void check_pass(const moei_kernels *k, moe_dtype dtype, moei_curve curve, const char *isa) {
    guarded z = guarded_new(dtype, GATES), a = guarded_new(dtype, GATES);
    moei_act_pass_args args = {.dtype = dtype, .n_rows = GATES, .n = 1, .z = z.data, .a = a.data};
    args.rule = (moei_act_rule){.curve = curve, .alpha = 1.125};
    for (int64_t i = 0; i < GATES; ++i) moei_real_store(dtype, z.data, i, gate_at(i));
    moei_team team = test_team(1);
    k->act_pass(&team, &args);
    for (int64_t i = 0; i < GATES; ++i)
        check_value(get(&a, i), moei_curve_at(curve, gate_at(i), 1.125).value, dtype, isa, "a", i);
    for (int64_t i = 0; i < GATES; ++i) moei_real_store(dtype, a.data, i, 1);
    k->act_pass_grad(&team, &args);
    for (int64_t i = 0; i < GATES; ++i) {
        check_value(get(&z, i), moei_curve_at(curve, gate_at(i), 1.125).slope, dtype, isa, "dz", i);
        check_value(get(&a, i), moei_curve_at(curve, gate_at(i), 1.125).value, dtype, isa, "wa", i);
    }
    guarded_free(&z), guarded_free(&a);
}

static void test_pass(void **state) {
    (void)state;
    static const moei_curve smooth[] = {MOEI_CURVE_GELU, MOEI_CURVE_GELU_TANH, MOEI_CURVE_SWISH};
    for (int isa = MOEI_ISA_REF; isa < MOEI_ISA_COUNT; ++isa) {
        moei_kernels table[MOEI_DTYPES];
        if (!moei_isa_supported((moei_isa)isa)) continue;
        moei_kernel_select((moei_isa)isa, table);
        for (int dtype = 0; dtype < MOEI_DTYPES; ++dtype)
            for (size_t c = 0; c < sizeof smooth / sizeof smooth[0]; ++c)
                check_pass(&table[dtype], (moe_dtype)dtype, smooth[c], moei_isa_name((moei_isa)isa));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_epilogues), cmocka_unit_test(test_pass)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
