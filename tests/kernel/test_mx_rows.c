/* test_mx_rows.c: rows kept in 8 bits: codes against all that there are, scales against their definition,
 * every variant on odd shapes, and the same bits for any number of threads. Source: OCP Microscaling Formats
 * specification 1.0, table of E4M3.
 */
#include "kernel/guarded.h"

#include "kernel/mxfp8.h"

enum { CODES = 127, TAIL_BYTES = 16, POISON = 0xab };

/* A magnitude of E4M3: bias 7, three bits of fraction; 127 is NaN. */
static double value_of(int code) {
    const int power = code >> 3, fraction = code & 7;
    return power == 0 ? ldexp(fraction, -9) : ldexp(8 + fraction, power - 10);
}

/* The nearest magnitude, of two as near the even code, found by looking at all. */
static int nearest(double value) {
    static double magnitude[CODES];
    int best = 0;
    if (magnitude[1] == 0)
        for (int code = 1; code < CODES; ++code) magnitude[code] = value_of(code);
    for (int code = 1; code < CODES; ++code) {
        const double near = fabs(magnitude[code] - value), least = fabs(magnitude[best] - value);
        if (near < least || (near == least && code % 2 == 0)) best = code;
    }
    return best;
}

static void one_number(float v) {
    const int want = (fabsf(v) > 448 || isnan(v) ? 127 : nearest(fabs((double)v))) | (signbit(v) ? 128 : 0);
    const uint8_t code = moei_e4m3_round(v);
    if (code != want) fail_msg("%a becomes code %d, not %d", (double)v, code, want);
}

static void codes_are_the_nearest(void **state) {
    (void)state;
    test_random random = {20251216};
    assert_true(isnan(moei_e4m3_value(127)) && isnan(moei_e4m3_value(255)));
    for (int code = 0; code < CODES; ++code) {
        assert_true((double)moei_e4m3_value((uint8_t)code) == value_of(code));
        assert_true((double)moei_e4m3_value((uint8_t)(code | 128)) == -value_of(code));
        assert_int_equal(moei_e4m3_round(moei_e4m3_value((uint8_t)code)), code);
        if (code + 1 == CODES) break;
        const float middle = (float)((value_of(code) + value_of(code + 1)) / 2);
        one_number(middle), one_number(-middle);
        one_number(nextafterf(middle, 0)), one_number(nextafterf(middle, 1000));
    }
    for (int i = 0; i < 5000; ++i)
        one_number((float)ldexp(448 * random_real(&random), -(int)random_below(&random, 30)));
    one_number(NAN), one_number(INFINITY), one_number(-INFINITY), one_number(448.1f), one_number(0x1p-140f);
}

/* The least power of two by which the largest is 448 at most; numbers of f32 go down to 2^-149. */
static void scales_are_the_least(void **state) {
    (void)state;
    static const float most[] = {448,        448.01f, 449,     447.9f,    1,         1.75f,
                                 1.7500001f, 1e-20f,  3.4e38f, 0x1p-126f, 0x1p-149f, 0};
    for (size_t i = 0; i < sizeof most / sizeof *most; ++i) {
        const int32_t scale = moei_mx_scale(moei_float_bits(most[i]));
        assert_in_range(scale, 1, 253);
        assert_true((double)most[i] <= 448 * ldexp(1, scale - 127));
        assert_true(scale == 1 || (double)most[i] > 448 * ldexp(1, scale - 128));
        assert_true((double)moei_mx_power(scale) == ldexp(1, scale - 127));
        assert_true((double)moei_mx_over_power(scale) == ldexp(1, 127 - scale));
    }
}

static uint8_t *bytes_new(int64_t n) {
    uint8_t *bytes = malloc((size_t)n + TAIL_BYTES);
    assert_non_null(bytes);
    memset(bytes, POISON, (size_t)n + TAIL_BYTES);
    return bytes;
}

static void bytes_free(uint8_t *bytes, int64_t n) {
    for (int i = 0; i < TAIL_BYTES; ++i) assert_int_equal(bytes[n + i], POISON);
    free(bytes);
}

/* Numbers of very unequal size, the largest of a block among them, and blocks of zeros. */
static void fill(test_random *random, const guarded *g) {
    for (int64_t i = 0; i < g->n; ++i)
        moei_real_store(g->dtype, g->data, i,
                        i / 64 % 5 == 3 ? 0 : ldexp(random_real(random), (int)random_below(random, 24) - 12));
}

static void check_row(const guarded *was, const guarded *is, const moei_mx_rows_args *a, int64_t r) {
    for (int64_t j = 0; j < a->n; ++j) {
        const int64_t block = j / MOEI_MX_BLOCK * MOEI_MX_BLOCK;
        double most = 0;
        for (int64_t i = block; i < a->n && i < block + MOEI_MX_BLOCK; ++i)
            most = fmax(most, fabs(get(was, r * a->n + i)));
        const int scale = a->scale[r * moei_mx_blocks(a->n) + block / MOEI_MX_BLOCK];
        const double power = ldexp(1, scale - 127), value = get(was, r * a->n + j);
        assert_int_equal(scale, moei_mx_scale(moei_float_bits((float)most)));
        const int code = nearest(fabs(value) / power);
        assert_int_equal(a->code[r * a->n + j] & 127, code);
        assert_true(get(is, r * a->n + j) == copysign(value_of(code) * power, value));
        assert_true(fabs(get(is, r * a->n + j) - value) <= fmax(fabs(value) / 16, power / 1024));
    }
}

static void check_case(const moei_kernel_row *row, moe_dtype dtype, uint64_t seed) {
    static const int64_t widths[] = {1, 7, 31, 32, 33, 40, 64, 95, 96, 256};
    test_random random = {seed};
    const int64_t n = random_of(&random, widths, sizeof widths / sizeof *widths),
                  rows = random_below(&random, 40);
    const int64_t blocks = moei_mx_blocks(n);
    moei_kernels table[MOEI_DTYPES];
    moei_kernel_select(row->isa, table);
    guarded was = guarded_new(dtype, rows * n), is = guarded_new(dtype, rows * n),
            many = guarded_new(dtype, rows * n);
    fill(&random, &was);
    moei_mx_rows_args a = {.dtype = dtype, .rows = rows, .n = n, .values = was.data};
    a.code = bytes_new(rows * n), a.scale = bytes_new(rows * blocks);
    moei_mx_rows_args b = a;
    b.code = bytes_new(rows * n), b.scale = bytes_new(rows * blocks);
    const moei_team one = test_team(1), three = test_team(3);
    table[dtype].mx_save(&one, &a);
    table[dtype].mx_save(&three, &b);
    a.values = is.data, b.values = many.data;
    table[dtype].mx_restore(&one, &a);
    table[dtype].mx_restore(&three, &b);
    for (int64_t r = 0; r < rows; ++r) check_row(&was, &is, &a, r);
    assert_memory_equal(a.code, b.code, (size_t)(rows * n));
    assert_memory_equal(a.scale, b.scale, (size_t)(rows * blocks));
    assert_memory_equal(is.data, many.data, (size_t)(rows * n) * moe_dtype_bytes(dtype));
    bytes_free(a.code, rows * n), bytes_free(a.scale, rows * blocks);
    bytes_free(b.code, rows * n), bytes_free(b.scale, rows * blocks);
    guarded_free(&was), guarded_free(&is), guarded_free(&many);
}

static void rows_of_every_variant(void **state) {
    (void)state;
    for (const moei_kernel_row *row = NULL; (row = next_variant("mx_save", row));)
        for (int dtype = 0; dtype < MOEI_DTYPES; ++dtype)
            for (uint64_t seed = 1; seed <= 20 && serves(row, (moe_dtype)dtype); ++seed)
                check_case(row, (moe_dtype)dtype, seed);
}

/* A run that has diverged shows it: what is no number comes back as none, and spoils no other block. */
static void what_is_no_number_stays_so(void **state) {
    (void)state;
    float v[96], back[96];
    uint8_t code[96], scale[3];
    moei_kernels table[MOEI_DTYPES];
    const moei_team team = test_team(1);
    moei_kernel_select(moei_isa_best(), table);
    for (int i = 0; i < 96; ++i) v[i] = (float)(i - 40);
    v[3] = NAN, v[70] = -INFINITY;
    moei_mx_rows_args a = {.dtype = MOE_F32, .rows = 1, .n = 96, .values = v, .code = code, .scale = scale};
    table[MOE_F32].mx_save(&team, &a);
    a.values = back;
    table[MOE_F32].mx_restore(&team, &a);
    assert_true(isnan(back[3]) && isnan(back[70]));
    for (int i = 32; i < 64; ++i) assert_true(fabsf(back[i] - v[i]) <= fabsf(v[i]) / 16);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(codes_are_the_nearest),
        cmocka_unit_test(scales_are_the_least),
        cmocka_unit_test(rows_of_every_variant),
        cmocka_unit_test(what_is_no_number_stays_so),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
