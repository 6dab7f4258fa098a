/* test_far.c: operations on matrices whose rows lie as far apart as they may, past 2^31 elements and 64 GiB:
 * every index is of 64 bits. Bits are those of the same numbers side by side, with every instruction set.
 * Memory is promised by the system and touched where the numbers are, so it takes some megabytes.
 * Source: op.h; limits of kernel/kernel.h.
 */
#define _GNU_SOURCE
#include "support/layer_fixture.h"

#include <moekit/quant.h>

#include "core/real.h"
#include "kernel/kernel.h"

#include <sys/mman.h>

/* Rows of A, tokens; columns; groups; matrices of an operation, at most. */
enum { R = 40, K = 24, N = 48, G = 3, HEADS = 2, MOST = 10 };

static const int64_t offset[G + 1] = {0, 2, 7, R}; /* few rows, some, and more than a tile */

/* `groups` matrices [rows, cols], rows `ld` apart and matrices `apart`. */
typedef struct matrix {
    moe_dtype dtype;
    int64_t groups, rows, cols, ld, apart;
    void *data;
    size_t bytes;
} matrix;

typedef struct shape {
    int64_t groups, rows, cols;
} shape;

/* An operation by its matrices, of which some are its results. */
typedef struct operation {
    const char *name;
    shape shape[MOST]; /* up to the first without groups */
    moe_status (*run)(moe_ctx *ctx, const matrix *m);
} operation;

static moe_status rows_of(moe_ctx *ctx, const matrix *a, const matrix *b, bool trans, const matrix *c) {
    return moe_gemm_rows(ctx, &(moe_gemm_rows_args){.dtype = a->dtype,
                                                    .n_groups = G,
                                                    .offset = offset,
                                                    .n = N,
                                                    .k = K,
                                                    .a = a->data,
                                                    .lda = a->ld,
                                                    .b = b->data,
                                                    .ldb = b->ld,
                                                    .b_group = b->apart,
                                                    .b_trans = trans,
                                                    .c = c->data,
                                                    .ldc = c->ld});
}

static moe_status product(moe_ctx *ctx, const matrix *m) {
    return rows_of(ctx, &m[0], &m[1], false, &m[2]);
}

static moe_status product_trans(moe_ctx *ctx, const matrix *m) {
    return rows_of(ctx, &m[0], &m[1], true, &m[2]);
}

/* B packed lies as it does; tokens and results are far apart. */
static moe_status product_packed(moe_ctx *ctx, const matrix *m) {
    double weight[G * K * N];
    moe_packed *packed = NULL;
    const moe_packed_desc desc = {
        .size = sizeof desc, .format = "int8", .dtype = m->dtype, .n_groups = G, .k = K, .n = N};
    moe_random_normal(test_seed(), MOE_DRAW_TEST, MOST, 0, m->dtype, weight, G * K * N, 1.0);
    moe_status status = moe_packed_create(ctx, &desc, weight, &packed);
    if (status != MOE_OK) return status;
    status = moe_gemm_rows(ctx, &(moe_gemm_rows_args){.dtype = m->dtype,
                                                      .n_groups = G,
                                                      .offset = offset,
                                                      .n = N,
                                                      .k = K,
                                                      .a = m[0].data,
                                                      .lda = m[0].ld,
                                                      .b_packed = packed,
                                                      .c = m[1].data,
                                                      .ldc = m[1].ld});
    moe_packed_destroy(packed);
    return status;
}

static moe_status product_act(moe_ctx *ctx, const matrix *m) {
    int32_t backwards[R];
    for (int32_t r = 0; r < R; ++r) backwards[r] = R - 1 - r;
    return moe_gemm_rows(ctx, &(moe_gemm_rows_args){.dtype = m->dtype,
                                                    .n_groups = G,
                                                    .offset = offset,
                                                    .n = N,
                                                    .k = K,
                                                    .a = m[0].data,
                                                    .lda = m[0].ld,
                                                    .a_row = backwards,
                                                    .b = m[1].data,
                                                    .ldb = m[1].ld,
                                                    .b_group = m[1].apart,
                                                    .c = m[2].data,
                                                    .ldc = m[2].ld,
                                                    .epilogue = MOE_EPI_ACT,
                                                    .act = MOE_ACT_SWIGLU,
                                                    .h = m[3].data,
                                                    .ldh = m[3].ld});
}

static moe_status product_act_grad(moe_ctx *ctx, const matrix *m) {
    double dweight[R], part[R * 2]; /* N / 2 columns are one part */
    return moe_gemm_rows(ctx, &(moe_gemm_rows_args){.dtype = m->dtype,
                                                    .n_groups = G,
                                                    .offset = offset,
                                                    .n = N / 2,
                                                    .k = K,
                                                    .a = m[0].data,
                                                    .lda = m[0].ld,
                                                    .b = m[1].data,
                                                    .ldb = m[1].ld,
                                                    .b_group = m[1].apart,
                                                    .epilogue = MOE_EPI_ACT_GRAD,
                                                    .act = MOE_ACT_SWIGLU,
                                                    .z = m[2].data,
                                                    .dz = m[2].data,
                                                    .ldz = m[2].ld,
                                                    .wa = m[3].data,
                                                    .ldwa = m[3].ld,
                                                    .dweight = dweight,
                                                    .dweight_part = part});
}

static moe_status outer(moe_ctx *ctx, const matrix *m) {
    return moe_gemm_outer(ctx, &(moe_gemm_outer_args){.dtype = m->dtype,
                                                      .n_groups = G,
                                                      .offset = offset,
                                                      .m = K,
                                                      .n = N,
                                                      .a = m[0].data,
                                                      .lda = m[0].ld,
                                                      .b = m[1].data,
                                                      .ldb = m[1].ld,
                                                      .c = m[2].data,
                                                      .ldc = m[2].ld,
                                                      .c_group = m[2].apart,
                                                      .accumulate = true});
}

static moe_status gather_sum(moe_ctx *ctx, const matrix *m) {
    int32_t row_of[R];
    for (int32_t i = 0; i < R; ++i) row_of[i] = i * 7 % R;
    return moe_gather_sum(ctx, &(moe_gather_sum_args){.dtype = m->dtype,
                                                      .n_tokens = R / 2,
                                                      .n = N,
                                                      .top_k = 2,
                                                      .rows = m[0].data,
                                                      .ld_rows = m[0].ld,
                                                      .row_of = row_of,
                                                      .out = m[1].data,
                                                      .ld_out = m[1].ld});
}

/* The sums lie side by side in any case: they are copied to where they are compared. */
static moe_status colsum(moe_ctx *ctx, const matrix *m) {
    double out[G * N];
    const moe_status status = moe_colsum(ctx, &(moe_colsum_args){.dtype = m->dtype,
                                                                 .n_groups = G,
                                                                 .offset = offset,
                                                                 .n = N,
                                                                 .a = m[0].data,
                                                                 .lda = m[0].ld,
                                                                 .out = out});
    for (int64_t i = 0; i < G * N && status == MOE_OK; ++i)
        moei_real_store(m->dtype, m[1].data, i / N * m[1].ld + i % N,
                        moei_real_load(moei_wide(m->dtype), out, i));
    return status;
}

static moe_status rmsnorm(moe_ctx *ctx, const matrix *m) {
    double inv_rms[R], dgain[N] = {0};
    moe_rmsnorm_args args = {.dtype = m->dtype,
                             .rows = R,
                             .n = N,
                             .eps = 1e-5F,
                             .gain = m[0].data,
                             .x = m[1].data,
                             .ldx = m[1].ld,
                             .y = m[2].data,
                             .ldy = m[2].ld,
                             .inv_rms = inv_rms};
    const moe_status status = moe_rmsnorm(ctx, &args);
    args.dy = m[2].data;
    args.dx = m[3].data;
    args.dgain = dgain;
    return status == MOE_OK ? moe_rmsnorm_backward(ctx, &args) : status;
}

static moe_status rope(moe_ctx *ctx, const matrix *m) {
    int32_t position[R];
    for (int32_t r = 0; r < R; ++r) position[r] = r;
    return moe_rope(ctx, &(moe_rope_args){.dtype = m->dtype,
                                          .rows = R,
                                          .heads = HEADS,
                                          .head_dim = N / HEADS,
                                          .x = m[0].data,
                                          .ldx = m[0].ld,
                                          .position = position,
                                          .base = 10000});
}

static moe_status attention(moe_ctx *ctx, const matrix *m) {
    double lse[R * HEADS], delta[R * HEADS];
    moe_attention_args args = {.dtype = m->dtype,
                               .n_seq = 2,
                               .q_len = R / 2,
                               .kv_len = R / 2,
                               .kv_stride = R / 2,
                               .heads = HEADS,
                               .kv_heads = 1,
                               .head_dim = N / HEADS,
                               .q = m[0].data,
                               .ldq = m[0].ld,
                               .k = m[1].data,
                               .v = m[2].data,
                               .ldkv = m[1].ld,
                               .out = m[3].data,
                               .ldo = m[3].ld,
                               .lse = lse};
    const moe_status status = moe_attention(ctx, &args);
    args.dout = m[4].data;
    args.dq = m[5].data;
    args.dk = m[6].data;
    args.dv = m[7].data;
    args.delta = delta;
    return status == MOE_OK ? moe_attention_backward(ctx, &args) : status;
}

static moe_status cross_entropy(moe_ctx *ctx, const matrix *m) {
    int32_t target[R];
    double row_loss[R];
    for (int32_t r = 0; r < R; ++r) target[r] = r % N;
    return moe_cross_entropy(ctx, &(moe_cross_entropy_args){.dtype = m->dtype,
                                                            .rows = R,
                                                            .n = N,
                                                            .logits = m[0].data,
                                                            .ld = m[0].ld,
                                                            .target = target,
                                                            .row_loss = row_loss,
                                                            .grad_scale = 1});
}

/* clang-format off */
static const operation operations[] = {
    {"gemm_rows",           {{1, R, K}, {G, K, N}, {1, R, N}},                    product},
    {"gemm_rows, B^T",      {{1, R, K}, {G, N, K}, {1, R, N}},                    product_trans},
    {"gemm_packed",         {{1, R, K}, {1, R, N}},                               product_packed},
    {"gemm_rows, act",      {{1, R, K}, {G, K, N}, {1, R, N}, {1, R, N / 2}},     product_act},
    {"gemm_rows, act_grad", {{1, R, K}, {G, K, N / 2}, {1, R, N}, {1, R, N / 2}}, product_act_grad},
    {"gemm_outer",          {{1, R, K}, {1, R, N}, {G, K, N}},                    outer},
    {"gather_sum",          {{1, R, N}, {1, R / 2, N}},                           gather_sum},
    {"colsum",              {{1, R, N}, {1, G, N}},                               colsum},
    {"rmsnorm",             {{1, 1, N}, {1, R, N}, {1, R, N}, {1, R, N}},         rmsnorm},
    {"rope",                {{1, R, N}},                                          rope},
    {"attention",           {{1, R, N}, {1, R, N / HEADS}, {1, R, N / HEADS}, {1, R, N}, {1, R, N}, {1, R, N},
                             {1, R, N / HEADS}, {1, R, N / HEADS}},               attention},
    {"cross_entropy",       {{1, R, N}},                                          cross_entropy},
};
/* clang-format on */

static void *row_at(const matrix *m, int64_t g, int64_t r) {
    return moei_real_at(m->dtype, m->data, g * m->apart + r * m->ld);
}

/* data NULL: the system promises no such memory. */
static matrix make(shape s, moe_dtype dtype, bool far, uint32_t purpose) {
    matrix m = {.dtype = dtype, .groups = s.groups, .rows = s.rows, .cols = s.cols};
    m.ld = far ? MOEI_LD_MAX : s.cols;
    m.apart = s.rows * m.ld + (far ? 4099 : 0);
    m.bytes = (size_t)(m.groups * m.apart) * moe_dtype_bytes(dtype);
    m.data = mmap(NULL, m.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (m.data == MAP_FAILED) return (matrix){.data = NULL};
    madvise(m.data, m.bytes, MADV_NOHUGEPAGE); /* or each row takes two megabytes */
    for (int64_t g = 0; g < m.groups; ++g)
        for (int64_t r = 0; r < m.rows; ++r)
            moe_random_normal(test_seed(), MOE_DRAW_TEST, purpose, (uint64_t)(g * m.rows + r), dtype,
                              row_at(&m, g, r), m.cols, 1.0);
    return m;
}

static void compare(const char *isa, const operation *op, const matrix *near, const matrix *far) {
    const size_t bytes = (size_t)near->cols * moe_dtype_bytes(near->dtype);
    for (int64_t g = 0; g < near->groups; ++g)
        for (int64_t r = 0; r < near->rows; ++r)
            if (memcmp(row_at(near, g, r), row_at(far, g, r), bytes) != 0)
                fail_msg(
                    "%s, %s, %s: row %lld of matrix %lld has other bits far from its neighbours (seed %llu)",
                    isa, op->name, moei_dtype_name(near->dtype), (long long)r, (long long)g,
                    (unsigned long long)test_seed());
}

/* false: there is no memory of the kind. */
static bool check(moe_ctx *ctx, const operation *op, moe_dtype dtype) {
    matrix near[MOST], far[MOST];
    int n = 0;
    bool there = true;
    for (; n < MOST && op->shape[n].groups > 0; ++n) {
        near[n] = make(op->shape[n], dtype, false, (uint32_t)n);
        far[n] = make(op->shape[n], dtype, true, (uint32_t)n);
        there = there && near[n].data && far[n].data;
    }
    if (there) {
        must(ctx, op->run(ctx, near));
        must(ctx, op->run(ctx, far));
    }
    for (int i = 0; i < n; ++i) {
        if (there) compare(moe_ctx_isa(ctx), op, &near[i], &far[i]);
        if (near[i].data) munmap(near[i].data, near[i].bytes);
        if (far[i].data) munmap(far[i].data, far[i].bytes);
    }
    return there;
}

static void rows_far_apart_are_the_same(void **state) {
    (void)state;
    static const moe_dtype dtypes[] = {MOE_F32, MOE_F64, MOE_BF16};
    assert_true(R * (int64_t)MOEI_LD_MAX > INT64_C(1) << 31);
    assert_true(R * (int64_t)MOEI_LD_MAX * 4 > INT64_C(64) << 30);
    for (int isa = 0; isa < TEST_ISAS; ++isa) {
        moe_ctx *ctx = test_ctx_if_supported(test_isas[isa]);
        for (size_t i = 0; ctx && i < sizeof operations / sizeof *operations; ++i)
            for (size_t d = 0; d < sizeof dtypes / sizeof *dtypes; ++d)
                if (!check(ctx, &operations[i], dtypes[d])) {
                    moe_ctx_destroy(ctx);
                    print_message("skipped: this system promises no memory beyond what it has\n");
                    skip();
                }
        moe_ctx_destroy(ctx);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(rows_far_apart_are_the_same)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
