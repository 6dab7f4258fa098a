/* test_cuda_op.c: the public operations on a GPU against the CPU's reference: groups that begin late, end
 * early or are empty, strides wider than rows, rows by index, sums added to what is there. Numbers that a
 * call does not own stay NaN in both. norm(difference) / norm <= 1e-5 in f32, 1e-2 in bf16. More groups than
 * a grid's second dimension has blocks. With the kernels of every GPU and Hopper's; skipped by name where
 * there is no GPU, no CUDA or no Hopper. Source: moekit/op.h.
 */
#include "unit/cuda/cuda_fixture.h"

#include "core/real.h"
#include "kernel/stage.h"

#include <moekit/op.h>

enum { ROWS = 300, TOKENS = 90, GROUPS = 6, MOST = 1 << 22, PLENTY = 70000 };
static const int64_t offset[GROUPS + 1] = {5, 5, 140, 141, 141, 270, 290};

typedef struct shape {
    moe_dtype dtype;
    int64_t n, k, more; /* more: that rows are apart beyond their width */
} shape;

/* What the operations wrote, in the order of their calls, and where each one's begins. */
typedef struct results {
    const char *name[32];
    int64_t begin[33];
    int count;
    double *value;
} results;

/* Memory that a call reads or writes, freed at its end. */
typedef struct room {
    moe_ctx *ctx;
    struct {
        void *at;
        size_t bytes;
    } block[16];
    int count;
} room;

static void *hold(room *r, const void *from, size_t bytes) {
    assert_true(r->count < (int)(sizeof r->block / sizeof *r->block));
    r->block[r->count].bytes = bytes;
    return r->block[r->count++].at = cuda_upload(r->ctx, from, bytes);
}

static void *hold_mat(room *r, moe_mat host) {
    void *at = hold(r, host.data, test_bytes(host));
    free(host.data);
    return at;
}

static void *drawn(room *r, moe_dtype dtype, int64_t rows, int64_t cols, uint32_t purpose) {
    return hold_mat(r, test_random(dtype, rows, cols, purpose));
}

static void *poisoned(room *r, moe_dtype dtype, int64_t rows, int64_t cols) {
    return hold_mat(r, test_output(dtype, rows, cols));
}

static const int32_t *indices(room *r, int64_t rows) {
    int32_t index[ROWS];
    assert_true(rows <= ROWS);
    for (int64_t i = 0; i < rows; ++i) index[i] = (int32_t)(i * 37 % TOKENS);
    return hold(r, index, (size_t)rows * sizeof *index);
}

static void release(room *r) {
    for (int i = 0; i < r->count; ++i) moe_memory_free(r->ctx, r->block[i].at, r->block[i].bytes);
    r->count = 0;
}

static void keep(results *to, const char *name, moe_ctx *ctx, moe_dtype dtype, const void *from, int64_t n) {
    const moe_mat host = test_output(dtype, 1, n);
    const int64_t begin = to->begin[to->count];
    assert_true(begin + n <= MOST && to->count < (int)(sizeof to->name / sizeof *to->name));
    must(ctx, moe_memory_copy(ctx, host.data, from, test_bytes(host)));
    for (int64_t i = 0; i < n; ++i) to->value[begin + i] = moei_real_load(dtype, host.data, i);
    to->name[to->count++] = name;
    to->begin[to->count] = begin + n;
    free(host.data);
}

static moe_dtype wide(moe_dtype dtype) {
    return dtype == MOE_BF16 ? MOE_F32 : dtype;
}

static moe_gemm_rows_args rows_args(room *r, const shape *s, int64_t n, int64_t k, bool trans) {
    const int64_t ldb = (trans ? k : n) + s->more;
    moe_gemm_rows_args a = {.dtype = s->dtype, .n_groups = GROUPS, .n_rows = ROWS, .n = n, .k = k};
    a.offset = hold(r, offset, sizeof offset);
    a.lda = k + s->more, a.ldb = ldb, a.b_trans = trans, a.b_group = (trans ? n : k) * ldb;
    a.b = drawn(r, s->dtype, GROUPS * (trans ? n : k), ldb, 1);
    return a;
}

static void store(moe_ctx *ctx, const shape *s, bool gather, bool trans, bool adds, results *to) {
    room r = {.ctx = ctx};
    moe_gemm_rows_args a = rows_args(&r, s, s->n, s->k, trans);
    a.a = drawn(&r, s->dtype, ROWS, a.lda, 2), a.a_row = gather ? indices(&r, ROWS) : NULL;
    a.ldc = s->n + s->more, a.accumulate = adds, a.c_wide = trans && !gather;
    const moe_dtype dtype = a.c_wide ? wide(s->dtype) : s->dtype;
    a.c = adds ? drawn(&r, dtype, ROWS, a.ldc, 3) : poisoned(&r, dtype, ROWS, a.ldc);
    a.bias = gather ? drawn(&r, s->dtype, GROUPS, s->n, 4) : NULL;
    must(ctx, moe_gemm_rows(ctx, &a));
    keep(to, "store", ctx, dtype, a.c, ROWS * a.ldc);
    release(&r);
}

static void act(moe_ctx *ctx, const shape *s, moe_act which, results *to) {
    const bool gated = moe_act_gated(which);
    room r = {.ctx = ctx};
    moe_gemm_rows_args a = rows_args(&r, s, gated ? 2 * s->n : s->n, s->k, false);
    a.epilogue = MOE_EPI_ACT, a.act = which;
    a.a = drawn(&r, s->dtype, TOKENS, a.lda, 2), a.a_row = indices(&r, ROWS);
    a.ldc = a.n + s->more, a.c = poisoned(&r, s->dtype, ROWS, a.ldc);
    a.ldh = s->n + s->more, a.h = poisoned(&r, s->dtype, ROWS, a.ldh);
    a.bias = drawn(&r, s->dtype, GROUPS, a.n, 4);
    must(ctx, moe_gemm_rows(ctx, &a));
    keep(to, "act, z", ctx, s->dtype, a.c, ROWS * a.ldc);
    keep(to, "act, h", ctx, s->dtype, a.h, ROWS * a.ldh);
    release(&r);
}

static void act_grad(moe_ctx *ctx, const shape *s, moe_act which, results *to) {
    room r = {.ctx = ctx};
    moe_gemm_rows_args a = rows_args(&r, s, s->n, s->k, true);
    a.epilogue = MOE_EPI_ACT_GRAD, a.act = which;
    a.a = drawn(&r, s->dtype, TOKENS, a.lda, 2), a.a_row = indices(&r, ROWS);
    a.ldz = (moe_act_gated(which) ? 2 * s->n : s->n) + s->more, a.ldwa = s->n + s->more;
    a.z = drawn(&r, s->dtype, ROWS, a.ldz, 5), a.dz = poisoned(&r, s->dtype, ROWS, a.ldz);
    a.wa = poisoned(&r, s->dtype, ROWS, a.ldwa), a.row_weight = drawn(&r, wide(s->dtype), ROWS, 1, 6);
    a.dweight = poisoned(&r, wide(s->dtype), ROWS, 1);
    a.dweight_part = poisoned(&r, wide(s->dtype), ROWS, moe_dweight_parts(s->n));
    must(ctx, moe_gemm_rows(ctx, &a));
    keep(to, "act_grad, dz", ctx, s->dtype, a.dz, ROWS * a.ldz);
    keep(to, "act_grad, wa", ctx, s->dtype, a.wa, ROWS * a.ldwa);
    keep(to, "act_grad, dweight", ctx, wide(s->dtype), a.dweight, ROWS);
    release(&r);
}

static void outer(moe_ctx *ctx, const shape *s, bool turned, bool adds, results *to) {
    room r = {.ctx = ctx};
    moe_gemm_outer_args a = {.dtype = s->dtype, .n_groups = GROUPS, .n_rows = ROWS, .m = s->k, .n = s->n};
    a.offset = hold(&r, offset, sizeof offset);
    a.lda = a.m + s->more, a.ldb = a.n + s->more, a.ldc = a.n + s->more, a.c_group = a.m * a.ldc;
    a.a = drawn(&r, s->dtype, ROWS, a.lda, 2), a.b = drawn(&r, s->dtype, ROWS, a.ldb, 3);
    *(turned ? &a.b_row : &a.a_row) = indices(&r, ROWS);
    a.accumulate = adds, a.c_wide = turned;
    const moe_dtype dtype = a.c_wide ? wide(s->dtype) : s->dtype;
    const int64_t numbers = GROUPS * a.c_group;
    a.c = adds ? drawn(&r, dtype, 1, numbers, 4) : poisoned(&r, dtype, 1, numbers);
    must(ctx, moe_gemm_outer(ctx, &a));
    keep(to, "outer", ctx, dtype, a.c, numbers);
    release(&r);
}

static void sums(moe_ctx *ctx, const shape *s, bool adds, results *to) {
    enum { K = 3 };
    room r = {.ctx = ctx};
    int32_t row_of[TOKENS * K];
    for (int i = 0; i < TOKENS * K; ++i) row_of[i] = i % 11 == 4 ? -1 : i * 7 % ROWS;
    moe_gather_sum_args g = {.dtype = s->dtype, .n_tokens = TOKENS, .n = s->n, .top_k = K};
    g.ld_rows = g.ld_out = s->n + s->more, g.rows = drawn(&r, s->dtype, ROWS, g.ld_rows, 2);
    g.row_of = hold(&r, row_of, sizeof row_of), g.weight = drawn(&r, wide(s->dtype), TOKENS, K, 3);
    g.accumulate = adds;
    g.out = adds ? drawn(&r, s->dtype, TOKENS, g.ld_out, 4) : poisoned(&r, s->dtype, TOKENS, g.ld_out);
    must(ctx, moe_gather_sum(ctx, &g));
    keep(to, "gather_sum", ctx, s->dtype, g.out, TOKENS * g.ld_out);
    moe_colsum_args c = {.dtype = s->dtype, .n_groups = GROUPS, .n_rows = ROWS, .n = s->n};
    c.offset = hold(&r, offset, sizeof offset), c.lda = g.ld_rows, c.a = g.rows;
    c.a_row = adds ? NULL : indices(&r, ROWS), c.accumulate = adds;
    c.row_weight = drawn(&r, wide(s->dtype), ROWS, 1, 5);
    c.out = adds ? drawn(&r, wide(s->dtype), GROUPS, s->n, 6) : poisoned(&r, wide(s->dtype), GROUPS, s->n);
    must(ctx, moe_colsum(ctx, &c));
    keep(to, "colsum", ctx, wide(s->dtype), c.out, GROUPS * s->n);
    release(&r);
}

static void run(moe_ctx *ctx, const shape *s, results *to) {
    to->count = 0;
    for (int i = 0; i < 8; ++i) store(ctx, s, i & 1, i >> 1 & 1, i >> 2 & 1, to);
    for (int i = 0; i < 2; ++i) {
        act(ctx, s, i ? MOE_ACT_GEGLU : MOE_ACT_RELU2, to);
        act_grad(ctx, s, i ? MOE_ACT_SWIGLU : MOE_ACT_GELU, to);
        outer(ctx, s, i, false, to);
        outer(ctx, s, i, true, to);
        sums(ctx, s, i, to);
    }
}

static void compare(const char *isa, const shape *s, const results *got, const results *wanted) {
    const double bound = s->dtype == MOE_F32 ? 1e-5 : 1e-2;
    assert_int_equal(got->count, wanted->count);
    for (int op = 0; op < got->count; ++op) {
        double off = 0, size = 0;
        for (int64_t i = got->begin[op]; i < got->begin[op + 1]; ++i) {
            const double a = got->value[i], b = wanted->value[i];
            if (isnan(a) != isnan(b))
                fail_msg(
                    "%s, %s, n %lld, k %lld, strides +%lld, dtype %d: number %lld is %g, not %g (seed %llu)",
                    isa, got->name[op], (long long)s->n, (long long)s->k, (long long)s->more, (int)s->dtype,
                    (long long)(i - got->begin[op]), a, b, (unsigned long long)test_seed());
            if (isnan(a)) continue;
            off += (a - b) * (a - b), size += b * b;
        }
        if (!(size > 0 && sqrt(off) <= bound * sqrt(size)))
            fail_msg("%s, %s, n %lld, k %lld, strides +%lld, dtype %d: off by %g of %g (seed %llu)", isa,
                     got->name[op], (long long)s->n, (long long)s->k, (long long)s->more, (int)s->dtype,
                     sqrt(off), sqrt(size), (unsigned long long)test_seed());
    }
}

static void operations_are_those_of_the_cpu(void **state) {
    static const shape shapes[] = {
        {MOE_F32,  40,  24,  0},
        {MOE_F32,  131, 67,  3},
        {MOE_BF16, 136, 200, 0},
        {MOE_BF16, 72,  64,  8},
        {MOE_BF16, 67,  41,  1},
    };
    moe_ctx *gpu[CUDA_FAMILIES], *cpu = test_ctx("ref", 2);
    results got = {.value = malloc(MOST * sizeof(double))}, wanted = {.value = malloc(MOST * sizeof(double))};
    assert_true(got.value && wanted.value);
    (void)state;
    for (int family = 0; family < CUDA_FAMILIES; ++family) gpu[family] = cuda_ctx(cuda_families[family]);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; ++i) {
        run(cpu, &shapes[i], &wanted);
        for (int family = 0; family < CUDA_FAMILIES; ++family) {
            if (!gpu[family]) continue; /* not of this GPU */
            run(gpu[family], &shapes[i], &got);
            compare(cuda_families[family], &shapes[i], &got, &wanted);
        }
    }
    free(got.value), free(wanted.value);
    for (int family = 0; family < CUDA_FAMILIES; ++family) moe_ctx_destroy(gpu[family]);
    moe_ctx_destroy(cpu);
}

/* A row a group, of ones: sums are the rows, products their squares. */
static void groups_may_be_many(void **state) {
    enum { N = 3 };
    moe_ctx *ctx = cuda_ctx(cuda_families[0]); /* no other family has kernels for so many */
    (void)state;
    for (int i = 0; i < 2; ++i) {
        const moe_dtype dtype = i ? MOE_BF16 : MOE_F32;
        const size_t real = moe_dtype_bytes(dtype);
        int64_t *begin = malloc((PLENTY + 1) * sizeof *begin);
        char *rows = malloc(PLENTY * N * real);
        float *sum = malloc(PLENTY * N * sizeof *sum), *square = malloc(PLENTY * N * N * sizeof *square);
        assert_true(begin && rows && sum && square);
        for (int64_t g = 0; g <= PLENTY; ++g) begin[g] = g;
        for (int64_t j = 0; j < PLENTY * N; ++j) moei_real_store(dtype, rows, j, (double)(1 + j % 7));
        room r = {.ctx = ctx};
        moe_colsum_args c = {.dtype = dtype, .n_groups = PLENTY, .n_rows = PLENTY, .n = N, .lda = N};
        c.offset = hold(&r, begin, (PLENTY + 1) * sizeof *begin), c.a = hold(&r, rows, PLENTY * N * real);
        c.out = hold(&r, sum, PLENTY * N * sizeof *sum);
        moe_gemm_outer_args o = {.dtype = dtype, .n_groups = PLENTY, .n_rows = PLENTY, .m = N, .n = N};
        o.offset = c.offset, o.a = o.b = c.a, o.lda = o.ldb = o.ldc = N, o.c_group = N * N, o.c_wide = true;
        o.c = hold(&r, square, PLENTY * N * N * sizeof *square);
        must(ctx, moe_colsum(ctx, &c));
        must(ctx, moe_gemm_outer(ctx, &o));
        must(ctx, moe_memory_copy(ctx, sum, c.out, PLENTY * N * sizeof *sum));
        must(ctx, moe_memory_copy(ctx, square, o.c, PLENTY * N * N * sizeof *square));
        must(ctx, moe_ctx_wait(ctx));
        for (int64_t j = 0; j < PLENTY * N; ++j) {
            const double own = (double)(1 + j % 7);
            assert_true((double)sum[j] == own);
            for (int64_t l = 0; l < N; ++l)
                assert_true((double)square[j * N + l] == own * (double)(1 + (j / N * N + l) % 7));
        }
        release(&r);
        free(begin), free(rows), free(sum), free(square);
    }
    moe_ctx_destroy(ctx);
}

int main(void) {
    if (!cuda_is_here()) return 77;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(operations_are_those_of_the_cpu),
        cmocka_unit_test(groups_may_be_many),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
