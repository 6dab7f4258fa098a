/* test_norm_rope.c: RMS normalisation and rotary embedding, every variant.
 * Identities first (unit root mean square, turning back, relative positions), then the reference.
 */
#include "kernel/kernel_test.h"

static const int64_t row_counts[] = {0, 1, 2, 15, 16, 17, 33, 127, 128, 129, 300};
static const int64_t widths[] = {1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 61, 64, 65, 127, 128, 131, 256};

typedef struct norm_case {
    int64_t rows, n;
    float *x, *gain, *dy, *dx0, *dgain0;
} norm_case;

static norm_case norm_make(int64_t rows, int64_t n) {
    uint64_t seed = (uint64_t)(rows * 1000 + n);
    return (norm_case){rows,
                       n,
                       random_array(MOE_F32, rows * n, seed),
                       random_array(MOE_F32, n, seed + 1000000),
                       random_array(MOE_F32, rows * n, seed + 2000000),
                       random_array(MOE_F32, rows * n, seed + 3000000),
                       random_array(MOE_F32, n, seed + 4000000)};
}

static void norm_free(norm_case *c) {
    free(c->x);
    free(c->gain);
    free(c->dy);
    free(c->dx0);
    free(c->dgain0);
}

typedef struct norm_result {
    float *y, *inv, *dx, *dgain;
} norm_result;

static norm_result norm_run(const moei_kernels *k, int32_t threads, const norm_case *c, bool accumulate) {
    moei_team team = test_team(threads);
    norm_result r = {poisoned(MOE_F32, c->rows * c->n), poisoned(MOE_F32, c->rows),
                     poisoned(MOE_F32, c->rows * c->n), poisoned(MOE_F32, c->n)};
    memcpy(r.dgain, c->dgain0, (size_t)c->n * sizeof(float));
    if (accumulate) memcpy(r.dx, c->dx0, (size_t)(c->rows * c->n) * sizeof(float));
    moe_rmsnorm_args a = {.dtype = MOE_F32,
                          .rows = c->rows,
                          .n = c->n,
                          .eps = 1e-5F,
                          .x = c->x,
                          .gain = c->gain,
                          .y = r.y,
                          .inv_rms = r.inv,
                          .dy = c->dy,
                          .dx = r.dx,
                          .dgain = r.dgain,
                          .accumulate = accumulate};
    k->rmsnorm(&team, &a);
    k->rmsnorm_backward(&team, &a);
    assert_tail(r.y, c->rows * c->n);
    assert_tail(r.inv, c->rows);
    assert_tail(r.dx, c->rows * c->n);
    assert_tail(r.dgain, c->n);
    return r;
}

static void norm_result_free(norm_result *r) {
    free(r->y);
    free(r->inv);
    free(r->dx);
    free(r->dgain);
}

/* Error bounds: a sum of n rounded terms in some order is off by less than n * eps * sum of |terms|. */
static void norm_compare(const norm_case *c, const norm_result *got, const norm_result *want) {
    int64_t n = c->n;
    double gain = max_abs(c->gain, n);
    for (int64_t r = 0; r < c->rows; ++r) {
        double inv = (double)want->inv[r], x = max_abs(c->x + r * n, n);
        double dy = max_abs(c->dy + r * n, n), terms = (double)(n < 32 ? n : 32) + 4;
        assert_near((double)got->inv[r], inv, terms * FLT_EPSILON * inv, "inv_rms", r);
        assert_all_near(got->y + r * n, want->y + r * n, n, terms * FLT_EPSILON * inv * x * gain, "y");
        double size = inv * gain * dy * (1.0 + inv * inv * x * x) + max_abs(c->dx0 + r * n, n);
        assert_all_near(got->dx + r * n, want->dx + r * n, n, terms * FLT_EPSILON * size, "dx");
    }
    for (int64_t i = 0; i < n; ++i) {
        double sum = fabs((double)c->dgain0[i]);
        for (int64_t r = 0; r < c->rows; ++r)
            sum += fabs((double)c->dy[r * n + i] * (double)c->x[r * n + i] * (double)want->inv[r]);
        assert_near((double)got->dgain[i], (double)want->dgain[i], 32 * FLT_EPSILON * sum, "dgain", i);
    }
}

static void test_norm_variants(void **state) {
    (void)state;
    moei_kernels k, ref = ref_kernels(MOE_F32);
    for (int isa = MOEI_ISA_AVX2; isa < MOEI_ISA_COUNT; ++isa) {
        if (!test_kernels((moei_isa)isa, &k)) continue;
        for (size_t i = 0; i < COUNT(row_counts); ++i)
            for (size_t j = 0; j < COUNT(widths); ++j) {
                norm_case c = norm_make(row_counts[i], widths[j]);
                for (int accumulate = 0; accumulate < 2; ++accumulate) {
                    norm_result want = norm_run(&ref, 1, &c, accumulate),
                                got = norm_run(&k, 1, &c, accumulate);
                    norm_compare(&c, &got, &want);
                    norm_result_free(&got);
                    norm_result_free(&want);
                }
                norm_free(&c);
            }
    }
}

static void test_norm_threads(void **state) {
    (void)state;
    moei_kernels k;
    norm_case c = norm_make(301, 131);
    for (int isa = MOEI_ISA_REF; isa < MOEI_ISA_COUNT; ++isa) {
        if (!test_kernels((moei_isa)isa, &k)) continue;
        norm_result one = norm_run(&k, 1, &c, true);
        for (int32_t threads = 2; threads <= 4; threads += 2) {
            norm_result many = norm_run(&k, threads, &c, true);
            assert_memory_equal(one.y, many.y, (size_t)(c.rows * c.n) * sizeof(float));
            assert_memory_equal(one.dx, many.dx, (size_t)(c.rows * c.n) * sizeof(float));
            assert_memory_equal(one.dgain, many.dgain, (size_t)c.n * sizeof(float));
            norm_result_free(&many);
        }
        norm_result_free(&one);
    }
    norm_free(&c);
}

/* Heads side by side in longer rows: the bits of rows one after the other, and nothing between them is
 * touched.
 */
static void test_norm_heads(void **state) {
    (void)state;
    enum { ROWS = 37, HEADS = 3, N = 19, GAP = 5, ALL = ROWS * HEADS, LDX = HEADS * N + GAP, LDY = LDX + 2 };
    norm_case c = norm_make(ALL, N);
    float *x = poisoned(MOE_F32, ROWS * LDX), *dy = poisoned(MOE_F32, ROWS * LDY);
    for (int r = 0; r < ROWS; ++r) {
        memcpy(x + r * LDX, c.x + r * HEADS * N, HEADS * N * sizeof *x);
        memcpy(dy + r * LDY, c.dy + r * HEADS * N, HEADS * N * sizeof *dy);
    }
    for (int isa = MOEI_ISA_REF; isa < MOEI_ISA_COUNT; ++isa) {
        moei_kernels k;
        if (!test_kernels((moei_isa)isa, &k)) continue;
        moei_team team = test_team(2);
        norm_result plain = norm_run(&k, 1, &c, false);
        float *y = poisoned(MOE_F32, ROWS * LDY), *dx = poisoned(MOE_F32, ROWS * LDY), inv[ALL], dgain[N];
        memcpy(dx, dy, ROWS * LDY * sizeof *dx); /* dx is dy */
        memcpy(dgain, c.dgain0, sizeof dgain);
        const moe_rmsnorm_args a = {.dtype = MOE_F32,
                                    .rows = ROWS,
                                    .n = N,
                                    .eps = 1e-5F,
                                    .x = x,
                                    .gain = c.gain,
                                    .y = y,
                                    .inv_rms = inv,
                                    .dy = dx,
                                    .dx = dx,
                                    .dgain = dgain,
                                    .heads = HEADS,
                                    .ldx = LDX,
                                    .ldy = LDY};
        k.rmsnorm(&team, &a);
        k.rmsnorm_backward(&team, &a);
        assert_memory_equal(inv, plain.inv, sizeof inv);
        assert_memory_equal(dgain, plain.dgain, sizeof dgain);
        for (int r = 0; r < ROWS; ++r) {
            assert_memory_equal(y + r * LDY, plain.y + r * HEADS * N, HEADS * N * sizeof *y);
            assert_memory_equal(dx + r * LDY, plain.dx + r * HEADS * N, HEADS * N * sizeof *dx);
            /* the gaps of dy were never written either, and dx began as its copy */
            assert_memory_equal(y + r * LDY + HEADS * N, dy + r * LDY + HEADS * N, (GAP + 2) * sizeof *y);
            assert_memory_equal(dx + r * LDY + HEADS * N, dy + r * LDY + HEADS * N, (GAP + 2) * sizeof *y);
        }
        norm_result_free(&plain);
        free(y), free(dx);
    }
    free(x), free(dy);
    norm_free(&c);
}

/* With gain 1 and eps 0 a row comes out with root mean square 1, whatever its scale, and as that changes
 * nothing, the gradient is at right angles to the row. */
static void test_norm_unit(void **state) {
    (void)state;
    moei_kernels k;
    for (int isa = MOEI_ISA_REF; isa < MOEI_ISA_COUNT; ++isa) {
        if (!test_kernels((moei_isa)isa, &k)) continue;
        moei_team team = test_team(1);
        float *x = random_array(MOE_F32, 5 * 67, 11), *y = poisoned(MOE_F32, 5 * 67), gain[67];
        float *dy = random_array(MOE_F32, 5 * 67, 12), *dx = poisoned(MOE_F32, 5 * 67), dgain[67] = {0},
              inv[5];
        for (int i = 0; i < 67; ++i) gain[i] = 1.0F;
        for (int i = 0; i < 5 * 67; ++i) x[i] *= powf(1e12F, (float)(i / 67) - 2.0F);
        moe_rmsnorm_args a = {.dtype = MOE_F32,
                              .rows = 5,
                              .n = 67,
                              .x = x,
                              .gain = gain,
                              .y = y,
                              .inv_rms = inv,
                              .dy = dy,
                              .dx = dx,
                              .dgain = dgain};
        k.rmsnorm(&team, &a);
        k.rmsnorm_backward(&team, &a);
        for (int r = 0; r < 5; ++r) {
            double sum = 0.0, along = 0.0, all = 0.0;
            for (int i = r * 67; i < (r + 1) * 67; ++i) {
                sum += (double)y[i] * (double)y[i];
                along += (double)dx[i] * (double)x[i];
                all += fabs((double)dx[i] * (double)x[i]);
            }
            assert_near(sqrt(sum / 67), 1.0, 1e-6, "rms", r);
            assert_near(along, 0.0, 1e-5 * all, "dx along x", r);
            assert_true((x[r * 67] > 0) == (y[r * 67] > 0));
        }
        free(x), free(y), free(dy), free(dx);
    }
}

typedef struct norm_loss {
    moe_rmsnorm_args args;
    const double *weight;
} norm_loss;

static double norm_loss_of(void *arg) {
    norm_loss *l = arg;
    moei_kernels ref = ref_kernels(MOE_F64);
    moei_team team = test_team(1);
    ref.rmsnorm(&team, &l->args);
    double sum = 0.0;
    for (int64_t i = 0; i < l->args.rows * l->args.n; ++i) sum += l->weight[i] * ((double *)l->args.y)[i];
    return sum;
}

static void test_norm_gradient(void **state) {
    (void)state;
    enum { ROWS = 5, N = 13 };
    moei_kernels ref = ref_kernels(MOE_F64);
    moei_team team = test_team(1);
    double *x = random_array(MOE_F64, ROWS * N, 21), *gain = random_array(MOE_F64, N, 22);
    double *dy = random_array(MOE_F64, ROWS * N, 23), y[ROWS * N], inv[ROWS], dx[ROWS * N], dgain[N] = {0};
    norm_loss loss = {
        {.dtype = MOE_F64,
         .rows = ROWS,
         .n = N,
         .eps = 1e-3F,
         .x = x,
         .gain = gain,
         .y = y,
         .inv_rms = inv,
         .dy = dy,
         .dx = dx,
         .dgain = dgain},
        dy
    };
    norm_loss_of(&loss);
    ref.rmsnorm_backward(&team, &loss.args);
    assert_gradient(norm_loss_of, &loss, x, dx, ROWS * N, "dx");
    assert_gradient(norm_loss_of, &loss, gain, dgain, N, "dgain");
    free(x);
    free(gain);
    free(dy);
}

static void rope_run(const moei_kernels *k, int32_t threads, moe_dtype dtype, void *x, int64_t rows,
                     int32_t heads, int32_t head_dim, const int32_t *position, bool inverse) {
    moei_team team = test_team(threads);
    moe_rope_args a = {.dtype = dtype,
                       .rows = rows,
                       .heads = heads,
                       .head_dim = head_dim,
                       .x = x,
                       .ldx = (int64_t)heads * head_dim + 3,
                       .position = position,
                       .base = 10000.0F,
                       .inverse = inverse};
    k->rope(&team, &a);
}

/* Any whole position up to a million; row 0 stands at 0. */
static int32_t *positions(int64_t rows) {
    int32_t *p = calloc((size_t)rows + 1, sizeof *p);
    assert_non_null(p);
    for (int64_t r = 1; r < rows; ++r) {
        uint32_t word[4];
        moe_random(5, MOE_DRAW_TEST, 0, 0, (uint64_t)r, word);
        p[r] = (int32_t)(word[0] % (r % 2 ? 1000000 : 300));
    }
    return p;
}

static void test_rope_variants(void **state) {
    (void)state;
    static const int32_t dims[] = {2, 4, 6, 16, 30, 32, 34, 64, 66, 128, 1024};
    static const int64_t rows[] = {0, 1, 2, 31, 32, 33, 65};
    moei_kernels k, ref = ref_kernels(MOE_F32);
    for (int isa = MOEI_ISA_AVX2; isa < MOEI_ISA_COUNT; ++isa) {
        if (!test_kernels((moei_isa)isa, &k)) continue;
        for (size_t i = 0; i < COUNT(rows) * COUNT(dims) * 2; ++i) {
            int64_t r = rows[i % COUNT(rows)];
            int32_t dim = dims[i / COUNT(rows) % COUNT(dims)], heads = i % 2 ? 1 : 3, *at = positions(r);
            bool inverse = i >= COUNT(rows) * COUNT(dims);
            int64_t n = r * (heads * dim + 3);
            float *got = random_array(MOE_F32, n, i), *want = random_array(MOE_F32, n, i);
            rope_run(&k, 1, MOE_F32, got, r, heads, dim, at, inverse);
            rope_run(&ref, 1, MOE_F32, want, r, heads, dim, at, inverse);
            assert_all_near(got, want, n, 4 * FLT_EPSILON * max_abs(want, n), "rope");
            free(got);
            free(want);
            free(at);
        }
    }
}

/* Position 0 leaves a row alone, turning back restores it, no thread count changes a bit. */
static void test_rope_identities(void **state) {
    (void)state;
    enum { ROWS = 67, HEADS = 3, DIM = 20, WIDTH = HEADS * DIM + 3 };
    moei_kernels k;
    int32_t *at = positions(ROWS);
    for (int isa = MOEI_ISA_REF; isa < MOEI_ISA_COUNT; ++isa) {
        if (!test_kernels((moei_isa)isa, &k)) continue;
        float *x = random_array(MOE_F32, ROWS * WIDTH, 31), *one = random_array(MOE_F32, ROWS * WIDTH, 31);
        rope_run(&k, 1, MOE_F32, one, ROWS, HEADS, DIM, at, false);
        assert_memory_equal(x, one, WIDTH * sizeof(float));
        assert_memory_not_equal(x + WIDTH, one + WIDTH, WIDTH * sizeof(float));
        for (int32_t threads = 2; threads <= 4; threads += 2) {
            float *many = random_array(MOE_F32, ROWS * WIDTH, 31);
            rope_run(&k, threads, MOE_F32, many, ROWS, HEADS, DIM, at, false);
            assert_memory_equal(one, many, ROWS * WIDTH * sizeof(float));
            free(many);
        }
        rope_run(&k, 1, MOE_F32, one, ROWS, HEADS, DIM, at, true);
        assert_all_near(one, x, ROWS * WIDTH, 8 * FLT_EPSILON * max_abs(x, ROWS * WIDTH), "turned back");
        free(x);
        free(one);
    }
    free(at);
}

/* The point of the embedding: <q at m, k at n> depends on m - n alone. Independent of any table. */
static void test_rope_relative(void **state) {
    (void)state;
    enum { DIM = 24, WIDTH = DIM + 3 };
    moei_kernels ref = ref_kernels(MOE_F64);
    double first = 0.0;
    for (int32_t shift = 0; shift < 5000; shift += 977) {
        double *x = random_array(MOE_F64, 2 * WIDTH, 41), dot = 0.0;
        int32_t at[2] = {shift + 9, shift + 2};
        rope_run(&ref, 1, MOE_F64, x, 2, 1, DIM, at, false);
        for (int i = 0; i < DIM; ++i) dot += x[i] * x[WIDTH + i];
        if (shift == 0) first = dot;
        assert_near(dot, first, 1e-10, "dot", shift);
        free(x);
    }
    double pair[2] = {1.0, 0.0}; /* one pair turns by its position in radians */
    int32_t at = 1;
    moe_rope_args a = {.dtype = MOE_F64,
                       .rows = 1,
                       .heads = 1,
                       .head_dim = 2,
                       .x = pair,
                       .ldx = 2,
                       .position = &at,
                       .base = 10000.0F};
    moei_team team = test_team(1);
    ref.rope(&team, &a);
    assert_near(pair[0], 0.54030230586813977, 1e-15, "cos", 1);
    assert_near(pair[1], 0.84147098480789651, 1e-15, "sin", 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_norm_unit),     cmocka_unit_test(test_norm_gradient),
        cmocka_unit_test(test_norm_variants), cmocka_unit_test(test_norm_threads),
        cmocka_unit_test(test_norm_heads),    cmocka_unit_test(test_rope_identities),
        cmocka_unit_test(test_rope_relative), cmocka_unit_test(test_rope_variants),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
