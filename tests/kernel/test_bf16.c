/* test_bf16.c: the operations other than products in bf16, and the pass of activations in f32 too: every
 * variant against the reference on the same numbers, odd shapes, and the same bits for any number of threads.
 * A result may be off by what its f32 twin may be, and then round to the neighbour.
 */
#include "kernel/guarded.h"
#include "kernel/kernel_test.h"

enum { MOST = 6 };

/* The buffers of one call; the operation writes the last n_out. */
typedef struct call {
    guarded buffer[MOST];
    int n, n_out;
} call;

static void *add(call *c, test_random *random, moe_dtype dtype, int64_t n) {
    c->buffer[c->n] = guarded_random(random, dtype, n);
    return c->buffer[c->n++].data;
}

static void release(call *c) {
    for (int i = 0; i < c->n; ++i) guarded_free(&c->buffer[i]);
}

/* An operation builds its buffers from the seed, runs them, and says how far a result of size 1 may be off.
 */
typedef double operation(const moei_kernels *k, const moei_team *team, uint64_t seed, call *c);

static double rmsnorm(const moei_kernels *k, const moei_team *team, uint64_t seed, call *c) {
    static const int64_t widths[] = {1, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 131, 257};
    test_random random = {seed};
    int64_t n = random_of(&random, widths, COUNT(widths)), rows = random_below(&random, 40);
    moe_rmsnorm_args a = {.dtype = MOE_BF16, .rows = rows, .n = n, .eps = 1e-3F};
    a.accumulate = seed % 2;
    a.x = add(c, &random, MOE_BF16, rows * n), a.gain = add(c, &random, MOE_BF16, n);
    a.dy = add(c, &random, MOE_BF16, rows * n), a.dgain = add(c, &random, MOE_F32, n);
    c->n_out = seed % 3 ? 3 : 2;
    if (seed % 3) { /* backward; its statistics come from the reference, so that they agree */
        guarded y = guarded_new(MOE_BF16, rows * n);
        a.inv_rms = add(c, &random, MOE_F32, rows), a.dx = add(c, &random, MOE_BF16, rows * n), a.y = y.data;
        ref_kernels(MOE_BF16).rmsnorm(team, &a);
        k->rmsnorm_backward(team, &a);
        guarded_free(&y);
        return 1e-3 * sqrt((double)n); /* 1 / sqrt(eps) is 32: rows of small numbers grow */
    }
    a.inv_rms = add(c, &random, MOE_F32, rows), a.y = add(c, &random, MOE_BF16, rows * n);
    k->rmsnorm(team, &a);
    return 1e-4;
}

static double rope(const moei_kernels *k, const moei_team *team, uint64_t seed, call *c) {
    static const int64_t dims[] = {2, 6, 16, 30, 32, 34, 66, 128};
    test_random random = {seed};
    int32_t position[70];
    for (int i = 0; i < 70; ++i) position[i] = (int32_t)random_below(&random, 5000);
    int32_t dim = (int32_t)random_of(&random, dims, COUNT(dims)),
            heads = 1 + (int32_t)random_below(&random, 3);
    moe_rope_args a = {.dtype = MOE_BF16,
                       .rows = random_below(&random, 70),
                       .heads = heads,
                       .head_dim = dim,
                       .ldx = (int64_t)heads * dim + 3,
                       .position = position,
                       .base = 10000.0F,
                       .inverse = seed % 2};
    a.x = add(c, &random, MOE_BF16, a.rows * a.ldx), c->n_out = 1;
    k->rope(team, &a);
    return 1e-6;
}

static double cross_entropy(const moei_kernels *k, const moei_team *team, uint64_t seed, call *c) {
    static const int64_t widths[] = {1, 2, 15, 16, 17, 33, 255, 257, 1025, 3001};
    test_random random = {seed};
    int32_t target[20];
    moe_cross_entropy_args a = {.dtype = MOE_BF16,
                                .rows = random_below(&random, 20),
                                .n = random_of(&random, widths, COUNT(widths)),
                                .target = target,
                                .grad_scale = seed % 3 ? 0.5 : 0};
    for (int i = 0; i < 20; ++i) target[i] = (int32_t)random_below(&random, a.n + 1) - 1;
    a.ld = a.n + 3;
    a.logits = add(c, &random, MOE_BF16, a.rows * a.ld), a.row_loss = add(c, &random, MOE_F32, a.rows);
    for (int64_t i = 0; i < a.rows * a.ld; ++i)
        moei_real_store(MOE_BF16, a.logits, i, 8 * moei_real_load(MOE_BF16, a.logits, i));
    c->n_out = 2;
    k->cross_entropy(team, &a);
    return 4e-6;
}

static double attention(const moei_kernels *k, const moei_team *team, uint64_t seed, call *c) {
    static const int64_t dims[] = {1, 3, 8, 16, 17, 33, 64, 80};
    test_random random = {seed};
    bool backward = seed % 2;
    int64_t q_len = seed % 4 == 2 ? 1 : 1 + random_below(&random, 140);
    moe_attention_args a = {.dtype = MOE_BF16, .n_seq = 2, .q_len = q_len, .kv_heads = 2};
    a.kv_len = a.kv_stride = backward ? q_len : q_len + random_below(&random, 150);
    a.head_dim = (int32_t)random_of(&random, dims, COUNT(dims));
    a.heads = 2 + 2 * (int32_t)random_below(&random, 3);
    a.ldq = a.heads * a.head_dim + 5, a.ldkv = 2 * a.head_dim + 3, a.ldo = a.heads * a.head_dim + 1;
    int64_t rows = 2 * q_len, keys = 2 * a.kv_stride;
    a.q = add(c, &random, MOE_BF16, rows * a.ldq), a.k = add(c, &random, MOE_BF16, keys * a.ldkv);
    a.v = add(c, &random, MOE_BF16, keys * a.ldkv);
    guarded dout = guarded_random(&random, MOE_BF16, rows * a.ldo);
    guarded out = guarded_random(&random, MOE_BF16, rows * a.ldo);
    guarded lse = guarded_new(MOE_F32, rows * a.heads), delta = guarded_new(MOE_F32, rows * a.heads);
    a.out = out.data, a.lse = lse.data, a.delta = delta.data, a.dout = dout.data;
    if (backward) { /* out and lse from the reference, so that they agree */
        ref_kernels(MOE_BF16).attention(team, &a);
        a.dq = add(c, &random, MOE_BF16, rows * a.ldq), a.dk = add(c, &random, MOE_BF16, keys * a.ldkv);
        a.dv = add(c, &random, MOE_BF16, keys * a.ldkv), c->n_out = 3;
        k->attention_backward(team, &a);
    } else {
        a.out = add(c, &random, MOE_BF16, rows * a.ldo), a.lse = add(c, &random, MOE_F32, rows * a.heads);
        c->n_out = 2;
        k->attention(team, &a);
    }
    guarded_free(&dout), guarded_free(&out), guarded_free(&lse), guarded_free(&delta);
    return 1e-4;
}

static double sum_squares(const moei_kernels *k, const moei_team *team, uint64_t seed, call *c) {
    test_random random = {seed};
    int64_t n = random_below(&random, 2) ? random_below(&random, 70) : 16384 + random_below(&random, 20000);
    void *x = add(c, &random, MOE_BF16, n);
    double *sum = add(c, &random, MOE_F64, 1);
    c->n_out = 1;
    *sum = k->sum_squares(team, MOE_BF16, x, n);
    return 1e-12;
}

/* Every curve, gated or not, clamped, interleaved, with dropout drawn or given. Seed parity: backward. */
static double act_pass_of(moe_dtype dtype, const moei_kernels *k, const moei_team *team, uint64_t seed,
                          call *c) {
    static const int64_t widths[] = {1, 3, 4, 5, 8, 15, 16, 17, 33, 67, 130};
    test_random random = {seed};
    int64_t n = random_of(&random, widths, COUNT(widths)), rows = random_below(&random, 50);
    int32_t slot[50];
    bool gated = random_below(&random, 2), backward = seed % 2;
    moei_act_pass_args a = {.dtype = dtype, .n_rows = rows, .n = n, .seed = seed, .layer = 3, .step = 5};
    a.rule = (moei_act_rule){.curve = (moei_curve)(seed / 2 % 6),
                             .gated = gated,
                             .interleaved = seed % 3 == 0,
                             .alpha = 1.7,
                             .limit = seed % 5 ? 0 : 0.5,
                             .offset = seed % 5 ? 0 : 1};
    a.dropout = seed % 4 < 2 ? 0 : 0.25;
    for (int i = 0; i < 50; ++i) slot[i] = (int32_t)random_below(&random, 40) - 1;
    a.row_slot = seed % 7 ? slot : NULL;
    uint8_t *keep = malloc((size_t)(50 * n));
    for (int64_t i = 0; i < 50 * n; ++i) keep[i] = (uint8_t)random_below(&random, 2);
    a.dropout_keep = seed % 8 < 3 ? keep : NULL;
    if (seed % 6) a.row_weight = add(c, &random, moei_wide(dtype), rows);
    a.drow_weight = add(c, &random, moei_wide(dtype), rows);
    a.z = add(c, &random, dtype, rows * n * (gated ? 2 : 1));
    a.a = add(c, &random, dtype, rows * n), c->n_out = backward ? 3 : 1;
    if (backward)
        k->act_pass_grad(team, &a);
    else
        k->act_pass(team, &a);
    free(keep);
    return 2e-6 * sqrt((double)n) + 4e-6;
}

static double act_pass_bf16(const moei_kernels *k, const moei_team *team, uint64_t seed, call *c) {
    return act_pass_of(MOE_BF16, k, team, seed, c);
}
static double act_pass_f32(const moei_kernels *k, const moei_team *team, uint64_t seed, call *c) {
    return act_pass_of(MOE_F32, k, team, seed, c);
}

static void compare(const call *got, const call *want, double unit, const char *isa, uint64_t seed) {
    for (int b = got->n - got->n_out; b < got->n; ++b) {
        const guarded *g = &got->buffer[b], *w = &want->buffer[b];
        for (int64_t i = 0; i < g->n; ++i) {
            double size = fabs(get(w, i)), neighbour = g->dtype == MOE_BF16 ? EPS_BF16 * size : 0;
            check_close(get(g, i), get(w, i), unit * (1 + size) + neighbour, isa, seed, "result", i);
        }
    }
}

static void assert_same_bits(const call *one, const call *many) {
    for (int b = 0; b < one->n; ++b)
        assert_memory_equal(one->buffer[b].data, many->buffer[b].data,
                            (size_t)one->buffer[b].n * moe_dtype_bytes(one->buffer[b].dtype));
}

/* Every variant against what the reference made of the same seed, with one thread and with three. */
static void check_seed(operation *op, moe_dtype dtype, uint64_t seed, const test_variant *variant,
                       int count) {
    const moei_team one = test_team(1), three = test_team(3);
    const moei_kernels ref = ref_kernels(dtype);
    call want = {.n = 0}, again = {.n = 0};
    op(&ref, &one, seed, &want);
    op(&ref, &three, seed, &again);
    assert_same_bits(&want, &again);
    for (const test_variant *v = variant; v < variant + count; ++v) {
        call got = {.n = 0}, many = {.n = 0};
        const double unit = op(&v->kernels, &one, seed, &got);
        op(&v->kernels, &three, seed, &many);
        compare(&got, &want, unit, v->isa, seed);
        assert_same_bits(&got, &many);
        release(&got), release(&many);
    }
    release(&want), release(&again);
}

static void check(operation *op, moe_dtype dtype, uint64_t n_seeds) {
    test_variant variant[MOEI_ISA_COUNT];
    const int count = test_variants_of(dtype, variant);
    for (uint64_t seed = 1; seed <= n_seeds; ++seed) check_seed(op, dtype, seed, variant, count);
}

static void test_rmsnorm(void **state) {
    (void)state;
    check(rmsnorm, MOE_BF16, 120);
}
static void test_rope(void **state) {
    (void)state;
    check(rope, MOE_BF16, 80);
}
static void test_cross_entropy(void **state) {
    (void)state;
    check(cross_entropy, MOE_BF16, 90);
}
static void test_attention(void **state) {
    (void)state;
    check(attention, MOE_BF16, 60);
}
static void test_sum_squares(void **state) {
    (void)state;
    check(sum_squares, MOE_BF16, 20);
}

static void test_act_pass(void **state) {
    (void)state;
    check(act_pass_bf16, MOE_BF16, 240);
    check(act_pass_f32, MOE_F32, 240);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rmsnorm),       cmocka_unit_test(test_rope),
        cmocka_unit_test(test_cross_entropy), cmocka_unit_test(test_attention),
        cmocka_unit_test(test_sum_squares),   cmocka_unit_test(test_act_pass),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
