/* test_op.c: what the public operations say of wrong arguments, and that empty work is no fault.
 * Each wrong call is a right one with one field spoilt; the text must name the field and its value.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <string.h>

#include <moekit/op.h>

#include "kernel/stage.h"

static moe_ctx *ctx;
static float number[64];
static int32_t index_of[8];
static const int64_t offset[3] = {0, 1, 2}, falling[3] = {0, 2, 1}, empty[3] = {2, 2, 2};
static const int64_t endless[3] = {0, 1, (int64_t)1 << 32};

static int open_ctx(void **state) {
    (void)state;
    return moe_ctx_create(&(moe_ctx_desc){.size = sizeof(moe_ctx_desc), .n_threads = 2}, &ctx, NULL) !=
           MOE_OK;
}

static int close_ctx(void **state) {
    (void)state;
    moe_ctx_destroy(ctx);
    return 0;
}

static void assert_told(moe_status status, const char *text) {
    if (status != MOE_ERR_ARGUMENT || !strstr(moe_ctx_error(ctx), text))
        fail_msg("status %d, text '%s', expected '%s'", (int)status, moe_ctx_error(ctx), text);
}

/* Spoils one field of a right call, expects the text, and mends it. */
#define WRONG(call, args, field, bad, text)                                                                  \
    do {                                                                                                     \
        __typeof__(args) spoilt = args;                                                                      \
        spoilt.field = bad;                                                                                  \
        assert_told(call(ctx, &spoilt), text);                                                               \
    } while (0)

/* One field of a right call begins a byte into an element. */
#define WITHIN(call, args, field)                                                                            \
    do {                                                                                                     \
        __typeof__(args) spoilt = args;                                                                      \
        const char *odd = (const char *)number + 1;                                                          \
        memcpy(&spoilt.field, &odd, sizeof odd);                                                             \
        assert_told(call(ctx, &spoilt), #call ": " #field " is at 0x");                                      \
    } while (0)

static const moe_gemm_rows_args right_product = {.n_groups = 2,
                                                 .offset = offset,
                                                 .n = 4,
                                                 .k = 3,
                                                 .a = number,
                                                 .lda = 3,
                                                 .b = number,
                                                 .ldb = 4,
                                                 .b_group = 12,
                                                 .c = number + 32,
                                                 .ldc = 4};

static void test_gemm_rows(void **state) {
    (void)state;
    moe_gemm_rows_args good = right_product;
    assert_int_equal(moe_gemm_rows(ctx, &good), MOE_OK);
    WRONG(moe_gemm_rows, good, dtype, (moe_dtype)7,
          "moe_gemm_rows: dtype is 7; it must be MOE_F32, MOE_F64 or MOE_BF16");
    assert_true(moe_dtype_bytes((moe_dtype)7) == 0 && moe_dtype_bytes(MOE_BF16) == 2);
    WRONG(moe_gemm_rows, good, n_groups, -1, "n_groups is -1");
    WRONG(moe_gemm_rows, good, offset, NULL, "offset is NULL");
    WRONG(moe_gemm_rows, good, offset, falling, "offset[2] is 1; it must be at least 2");
    WRONG(moe_gemm_rows, good, k, -3, "k is -3");
    WRONG(moe_gemm_rows, good, lda, 2, "lda is 2; it must be at least 3");
    WRONG(moe_gemm_rows, good, lda, INT64_MAX / 4,
          "lda is 2305843009213693951; it must lie in 3 .. 536870912");
    WRONG(moe_gemm_rows, good, b_group, INT64_MAX / 4, "b_group is 2305843009213693951");
    WRONG(moe_gemm_rows, good, offset, endless,
          "offset[n_groups] is 4294967296; it must lie in 0 .. 2147483647");
    WRONG(moe_gemm_rows, good, ldb, 3, "ldb is 3; it must be at least 4");
    WRONG(moe_gemm_rows, good, ldc, 3, "ldc is 3; it must be at least 4");
    WRONG(moe_gemm_rows, good, a, NULL, "a is NULL");
    WRONG(moe_gemm_rows, good, b, NULL, "b is NULL");
    WRONG(moe_gemm_rows, good, c, NULL, "c is NULL");
    WITHIN(moe_gemm_rows, good, offset);
    WITHIN(moe_gemm_rows, good, a);
    WITHIN(moe_gemm_rows, good, b);
    WITHIN(moe_gemm_rows, good, c);
    WITHIN(moe_gemm_rows, good, a_row);
    WITHIN(moe_gemm_rows, good, bias);
    WRONG(moe_gemm_rows, good, a, (char *)number + 2, "within an element; those of 4 bytes lie at multiples");
    WRONG(moe_gemm_rows, good, epilogue, (moe_epilogue)9, "epilogue is 9; it must lie in 0 .. 2");
    moe_gemm_rows_args none = {.n_groups = 2, .offset = empty, .n = 4, .k = 3, .lda = 3, .ldb = 4};
    assert_int_equal(moe_gemm_rows(ctx, &none), MOE_OK);
}

static void test_epilogues(void **state) {
    (void)state;
    moe_gemm_rows_args act = right_product;
    act.epilogue = MOE_EPI_ACT, act.act = MOE_ACT_SWIGLU, act.h = number, act.ldh = 2;
    WRONG(moe_gemm_rows, act, accumulate, true, "accumulate goes with MOE_EPI_STORE only");
    WRONG(moe_gemm_rows, act, n, 3, "n is 3; a gated activation needs an even number");
    WRONG(moe_gemm_rows, act, h, NULL, "h is NULL");
    WITHIN(moe_gemm_rows, act, h);
    WITHIN(moe_gemm_rows, act, c);
    WRONG(moe_gemm_rows, act, ldh, 1, "ldh is 1; it must be at least 2");
    WRONG(moe_gemm_rows, act, act, (moe_act)17, "act is 17");
    moe_gemm_rows_args grad = right_product;
    grad.epilogue = MOE_EPI_ACT_GRAD, grad.act = MOE_ACT_SWIGLU;
    grad.z = grad.dz = number, grad.ldz = 8, grad.wa = number + 16, grad.ldwa = 4;
    grad.b_trans = true; /* then no row of B bounds n, which is multiplied by 2 */
    WRONG(moe_gemm_rows, grad, n, INT64_MAX, "n is 9223372036854775807; it must lie in 0 .. 536870912");
    grad.b_trans = false;
    WRONG(moe_gemm_rows, grad, bias, number, "bias must be NULL with MOE_EPI_ACT_GRAD");
    WRONG(moe_gemm_rows, grad, ldz, 7, "ldz is 7; it must be at least 8");
    WRONG(moe_gemm_rows, grad, wa, NULL, "wa is NULL");
    WITHIN(moe_gemm_rows, grad, z);
    WITHIN(moe_gemm_rows, grad, dz);
    WITHIN(moe_gemm_rows, grad, wa);
    WITHIN(moe_gemm_rows, grad, row_weight);
    WRONG(moe_gemm_rows, grad, dweight, number, "dweight_part (with dweight) is NULL");
    grad.dweight_part = number;
    WITHIN(moe_gemm_rows, grad, dweight);
}

static void test_gemm_outer(void **state) {
    (void)state;
    moe_gemm_outer_args outer = {.n_groups = 2,
                                 .offset = offset,
                                 .m = 2,
                                 .n = 3,
                                 .a = number,
                                 .lda = 2,
                                 .b = number,
                                 .ldb = 3,
                                 .c = number + 32,
                                 .ldc = 3,
                                 .c_group = 6};
    assert_int_equal(moe_gemm_outer(ctx, &outer), MOE_OK);
    WRONG(moe_gemm_outer, outer, m, -2, "moe_gemm_outer: m is -2");
    WRONG(moe_gemm_outer, outer, c_group, -1, "c_group is -1; it must be at least 0");
    WRONG(moe_gemm_outer, outer, ldc, 2, "ldc is 2; it must be at least 3");
    WRONG(moe_gemm_outer, outer, c_group, 5, "c_group is 5; the matrices of 2 by 3 with ldc 3 would overlap");
    WRONG(moe_gemm_outer, outer, c_group, 0, "c_group is 0; the matrices of 2 by 3 with ldc 3 would overlap");
    moe_gemm_outer_args beside = outer; /* in the same rows */
    beside.ldc = 6, beside.c_group = 3;
    assert_int_equal(moe_gemm_outer(ctx, &beside), MOE_OK);
    WRONG(moe_gemm_outer, beside, ldc, 5, "c_group is 3; the matrices of 2 by 3 with ldc 5 would overlap");
    WRONG(moe_gemm_outer, outer, a, NULL, "a is NULL");
    WRONG(moe_gemm_outer, outer, c, NULL, "c is NULL");
    WITHIN(moe_gemm_outer, outer, a);
    WITHIN(moe_gemm_outer, outer, b);
    WITHIN(moe_gemm_outer, outer, c);
    WITHIN(moe_gemm_outer, outer, a_row);
    WITHIN(moe_gemm_outer, outer, b_row);
    moe_gemm_outer_args no_rows = outer; /* without rows the result is zero and the inputs need not be */
    no_rows.offset = empty, no_rows.a = no_rows.b = NULL;
    number[32] = 5.0F;
    assert_int_equal(moe_gemm_outer(ctx, &no_rows), MOE_OK);
    assert_true(number[32] == 0.0F);
}

static void test_sums(void **state) {
    (void)state;
    moe_gather_sum_args gather = {.n_tokens = 2,
                                  .n = 3,
                                  .top_k = 1,
                                  .rows = number,
                                  .ld_rows = 3,
                                  .row_of = index_of,
                                  .out = number + 32,
                                  .ld_out = 3};
    assert_int_equal(moe_gather_sum(ctx, &gather), MOE_OK);
    WRONG(moe_gather_sum, gather, n_tokens, -2, "moe_gather_sum: n_tokens is -2");
    WRONG(moe_gather_sum, gather, ld_out, 2, "ld_out is 2; it must be at least 3");
    WRONG(moe_gather_sum, gather, row_of, NULL, "row_of is NULL");
    WITHIN(moe_gather_sum, gather, rows);
    WITHIN(moe_gather_sum, gather, row_of);
    WITHIN(moe_gather_sum, gather, weight);
    WITHIN(moe_gather_sum, gather, out);

    moe_colsum_args colsum = {
        .n_groups = 2, .offset = offset, .n = 3, .a = number, .lda = 3, .out = number + 32};
    assert_int_equal(moe_colsum(ctx, &colsum), MOE_OK);
    WRONG(moe_colsum, colsum, lda, 2, "moe_colsum: lda is 2; it must be at least 3");
    WRONG(moe_colsum, colsum, out, NULL, "out is NULL");
    WITHIN(moe_colsum, colsum, a);
    WITHIN(moe_colsum, colsum, a_row);
    WITHIN(moe_colsum, colsum, row_weight);
    WITHIN(moe_colsum, colsum, out);
}

static void test_norm_rope(void **state) {
    (void)state;
    moe_rmsnorm_args norm = {.rows = 2,
                             .n = 4,
                             .x = number,
                             .gain = number,
                             .y = number + 16,
                             .inv_rms = number + 24,
                             .dy = number,
                             .dx = number + 32,
                             .dgain = number + 40,
                             .eps = 1e-5F};
    assert_int_equal(moe_rmsnorm(ctx, &norm), MOE_OK);
    assert_int_equal(moe_rmsnorm_backward(ctx, &norm), MOE_OK);
    WRONG(moe_rmsnorm, norm, rows, -1, "moe_rmsnorm: rows is -1; it must be at least 0");
    WRONG(moe_rmsnorm, norm, n, 0, "n is 0; it must lie in 1 .. 262144");
    WRONG(moe_rmsnorm, norm, heads, -1, "heads is -1; it must lie in 0 .. 262144");
    norm.heads = 2; /* the product is taken of numbers within their limits alone */
    WRONG(moe_rmsnorm, norm, n, INT64_MAX, "n is 9223372036854775807; it must lie in 1 .. 262144");
    norm.heads = 0;
    norm.n = 1 << 18;
    WRONG(moe_rmsnorm, norm, heads, 4096, "heads * n is 1073741824; it must lie in 1 .. 536870912");
    norm.n = 4;
    norm.rows = 1 << 30;
    WRONG(moe_rmsnorm, norm, heads, 2, "rows * heads is 2147483648; it must lie in 0 .. 2147483647");
    norm.rows = 2;
    WRONG(moe_rmsnorm, norm, ldx, 3, "ldx is 3; it must be at least 4");
    WRONG(moe_rmsnorm_backward, norm, ldy, 3, "ldy is 3; it must be at least 4");
    WRONG(moe_rmsnorm, norm, eps, -1.0F, "eps is -1; it must be at least 0");
    WRONG(moe_rmsnorm, norm, eps, NAN, "eps is");
    WRONG(moe_rmsnorm, norm, gain, NULL, "gain is NULL");
    WRONG(moe_rmsnorm_backward, norm, inv_rms, NULL, "moe_rmsnorm_backward: inv_rms is NULL");
    WRONG(moe_rmsnorm_backward, norm, dgain, NULL, "dgain is NULL");
    WITHIN(moe_rmsnorm, norm, x);
    WITHIN(moe_rmsnorm, norm, gain);
    WITHIN(moe_rmsnorm, norm, y);
    WITHIN(moe_rmsnorm, norm, inv_rms);
    WITHIN(moe_rmsnorm_backward, norm, inv_rms);
    WITHIN(moe_rmsnorm_backward, norm, dy);
    WITHIN(moe_rmsnorm_backward, norm, dx);
    WITHIN(moe_rmsnorm_backward, norm, dgain);
    moe_rope_args rope = {
        .rows = 2, .heads = 2, .head_dim = 4, .x = number, .ldx = 8, .position = index_of, .base = 10000.0F};
    assert_int_equal(moe_rope(ctx, &rope), MOE_OK);
    WRONG(moe_rope, rope, head_dim, 3, "moe_rope: head_dim is 3; it must be even");
    WRONG(moe_rope, rope, head_dim, 2048, "head_dim is 2048; it must lie in 2 .. 1024");
    WRONG(moe_rope, rope, ldx, 7, "ldx is 7; it must be at least 8");
    WRONG(moe_rope, rope, base, 0.0F, "base is 0; it must be at least 1");
    WRONG(moe_rope, rope, base, INFINITY, "base is inf; it must be at least 1 and finite");
    WRONG(moe_rope, rope, position, NULL, "position is NULL");
    WITHIN(moe_rope, rope, x);
    WITHIN(moe_rope, rope, position);
}

static const moe_attention_args right_attention = {.n_seq = 1,
                                                   .q_len = 2,
                                                   .kv_len = 2,
                                                   .kv_stride = 2,
                                                   .heads = 2,
                                                   .kv_heads = 1,
                                                   .head_dim = 2,
                                                   .q = number,
                                                   .k = number,
                                                   .v = number,
                                                   .ldq = 4,
                                                   .ldkv = 2,
                                                   .out = number + 8,
                                                   .ldo = 4,
                                                   .lse = number + 16,
                                                   .dout = number,
                                                   .dq = number + 24,
                                                   .dk = number + 32,
                                                   .dv = number + 40,
                                                   .delta = number + 48};

static void test_attention(void **state) {
    (void)state;
    moe_attention_args good = right_attention;
    assert_int_equal(moe_attention(ctx, &good), MOE_OK);
    assert_int_equal(moe_attention_backward(ctx, &good), MOE_OK);
    WRONG(moe_attention, good, kv_heads, 0, "moe_attention: kv_heads is 0; it must lie in 1 .. 2");
    WRONG(moe_attention, good, heads, 3, "ldq is 4; it must be at least 6");
    WRONG(moe_attention, good, head_dim, 0, "head_dim is 0");
    WRONG(moe_attention, good, q_len, 3, "kv_len is 2; it must be at least 3");
    WRONG(moe_attention, good, kv_len, 3, "kv_stride is 2; it must be at least 3");
    WRONG(moe_attention, good, n_seq, 1 << 30,
          "n_seq is 1073741824, kv_stride is 2; together they must be at most 2147483647 rows");
    WRONG(moe_attention, good, ldkv, 1, "ldkv is 1; it must be at least 2");
    WRONG(moe_attention, good, v, NULL, "v is NULL");
    WRONG(moe_attention, good, scale, INFINITY, "moe_attention: scale is inf; it must be finite");
    static const int64_t lens[1] = {2}, rows[1] = {5}, none[1] = {1}, before[1] = {-1}, far[1] = {INT32_MAX};
    moe_attention_args lists = good;
    lists.kv_lens = lens, lists.kv_rows = rows, lists.kv_len = lists.kv_stride = -1; /* not looked at */
    assert_int_equal(moe_attention(ctx, &lists), MOE_OK);
    WRONG(moe_attention, lists, kv_rows, NULL, "kv_rows is NULL");
    WRONG(moe_attention, lists, kv_lens, NULL, "kv_lens is NULL");
    WITHIN(moe_attention, lists, kv_lens);
    WITHIN(moe_attention, lists, kv_rows);
    WRONG(moe_attention, lists, kv_lens, none, "kv_lens[0] is 1, kv_rows[0] is 5; at least 2 keys");
    WRONG(moe_attention, lists, kv_rows, before, "kv_rows[0] is -1");
    WRONG(moe_attention, lists, kv_rows, far, "kv_rows[0] is 2147483647");
    assert_told(moe_attention_backward(ctx, &lists), "of the forward alone");
    moe_attention_args three = good;
    three.heads = 3, three.kv_heads = 2, three.ldq = three.ldo = 6, three.ldkv = 4;
    assert_told(moe_attention(ctx, &three), "heads is 3; it must be a multiple of kv_heads, 2");
    WRONG(moe_attention_backward, good, lse, NULL, "moe_attention_backward: lse is NULL");
    WRONG(moe_attention_backward, good, q_len, 1, "kv_len is 2; it must lie in 1 .. 1");
}

static void test_attention_data(void **state) {
    (void)state;
    moe_attention_args good = right_attention;
    WITHIN(moe_attention, good, q);
    WITHIN(moe_attention, good, k);
    WITHIN(moe_attention, good, v);
    WITHIN(moe_attention, good, out);
    WITHIN(moe_attention, good, lse);
    WITHIN(moe_attention_backward, good, lse);
    WITHIN(moe_attention_backward, good, dout);
    WITHIN(moe_attention_backward, good, dq);
    WITHIN(moe_attention_backward, good, dk);
    WITHIN(moe_attention_backward, good, dv);
    WITHIN(moe_attention_backward, good, delta);
}

static void test_losses(void **state) {
    (void)state;
    static const int32_t target[2] = {-1, 3}, high[2] = {0, 4}, low[2] = {-2, 0};
    moe_cross_entropy_args good = {
        .rows = 2, .n = 4, .logits = number, .ld = 4, .target = target, .row_loss = number + 16};
    assert_int_equal(moe_cross_entropy(ctx, &good), MOE_OK);
    WRONG(moe_cross_entropy, good, n, 0, "moe_cross_entropy: n is 0");
    WRONG(moe_cross_entropy, good, ld, 3, "ld is 3; it must be at least 4");
    WRONG(moe_cross_entropy, good, target, high, "target[1] is 4; it must lie in -1 .. 3");
    WRONG(moe_cross_entropy, good, target, low, "target[0] is -2; it must lie in -1 .. 3");
    WRONG(moe_cross_entropy, good, row_loss, NULL, "row_loss is NULL");
    WITHIN(moe_cross_entropy, good, logits);
    WITHIN(moe_cross_entropy, good, target);
    WITHIN(moe_cross_entropy, good, row_loss);
    WRONG(moe_cross_entropy, good, grad_scale, (double)NAN, "grad_scale is nan; it must be finite");
    moe_adamw_args adamw = {.n = 4,
                            .value = number,
                            .m = number + 8,
                            .v = number + 16,
                            .grad = number + 24,
                            .lr = 0.1,
                            .beta1 = 0.9,
                            .beta2 = 0.99,
                            .eps = 1e-8,
                            .grad_scale = 1.0,
                            .step = 1};
    assert_int_equal(moe_adamw(ctx, &adamw), MOE_OK);
    WRONG(moe_adamw, adamw, step, 0, "moe_adamw: step is 0; it must be at least 1");
    WITHIN(moe_adamw, adamw, value);
    WITHIN(moe_adamw, adamw, m);
    WITHIN(moe_adamw, adamw, v);
    WITHIN(moe_adamw, adamw, grad);
    WRONG(moe_adamw, adamw, beta2, 1.0, "beta2 is 1; both must be below 1");
    WRONG(moe_adamw, adamw, beta1, -0.5, "beta1 is -0.5");
    WRONG(moe_adamw, adamw, lr, (double)NAN, "lr is nan; it must be at least 0");
    WRONG(moe_adamw, adamw, lr, -1, "lr is -1; it must be at least 0");
    WRONG(moe_adamw, adamw, weight_decay, -5, "weight_decay is -5; it must be at least 0");
    WRONG(moe_adamw, adamw, weight_decay, (double)INFINITY,
          "weight_decay is inf; it must be at least 0 and finite");
    WRONG(moe_adamw, adamw, eps, (double)INFINITY, "eps is inf; it must be at least 0 and finite");
    WRONG(moe_adamw, adamw, grad_scale, (double)-INFINITY,
          "moe_adamw: grad_scale is -inf; it must be finite");
    WRONG(moe_adamw, adamw, grad_scale, 0, "grad_scale is 0, which leaves no gradient; 1 takes it as it is");
    WRONG(moe_adamw, adamw, m, NULL, "m is NULL");
    WRONG(moe_adamw, adamw, grad_dtype, MOE_BF16, "moe_adamw: grad_dtype is 2 where dtype is 0");
    WRONG(moe_adamw, adamw, dtype, MOE_F64, "grad_dtype is 0 where dtype is 1");
    double sum = -1.0;
    assert_told(moe_sum_squares(ctx, MOE_F32, number, -1, &sum), "moe_sum_squares: n is -1");
    assert_told(moe_sum_squares(ctx, MOE_F32, NULL, 3, &sum), "x is NULL");
    assert_told(moe_sum_squares(ctx, MOE_F32, (char *)number + 2, 3, &sum), "moe_sum_squares: x is at 0x");
    assert_told(moe_sum_squares(ctx, MOE_F32, number, 3, NULL), "sum is NULL");
    assert_true(sum == -1.0); /* outputs are written on success only */
    assert_int_equal(moe_sum_squares(ctx, MOE_F64, NULL, 0, &sum), MOE_OK);
    assert_true(sum == 0.0);
}

static void count_task(void *arg, int64_t task, void *scratch) {
    memset(scratch, 1, moe_thread_scratch_bytes());
    ((int32_t *)arg)[task] += 1;
}

static void test_small_things(void **state) {
    (void)state;
    int32_t seen[37] = {0};
    moe_parallel(ctx, 37, count_task, seen);
    for (int i = 0; i < 37; ++i) assert_int_equal(seen[i], 1);
    moe_act act = MOE_ACT_NONE;
    moe_error error;
    assert_int_equal(moe_act_by_name("gelu", &act, NULL), MOE_OK);
    assert_int_equal(act, MOE_ACT_GELU);
    assert_int_equal(moe_act_by_name("geluu", &act, &error), MOE_ERR_ARGUMENT);
    assert_int_equal(act, MOE_ACT_GELU);
    static const char before[] = "activation: 'geluu' is not one of: ";
    assert_int_equal(strncmp(error.text, before, strlen(before)), 0);
    char *next = error.text + strlen(before), *name;
    for (int i = MOE_ACT_NONE + 1; i < MOEI_ACTS; ++i) { /* each by its name, in their order */
        assert_non_null(name = strtok_r(next, ", ", &next));
        assert_int_equal(moe_act_by_name(name, &act, NULL), MOE_OK);
        assert_int_equal(act, i);
    }
    assert_null(strtok_r(next, ", ", &next));
    assert_true(moe_act_gated(MOE_ACT_SWIGLU));
    assert_false(moe_act_gated(MOE_ACT_RELU));
    assert_int_equal(moe_dweight_parts(64), 1);
    assert_int_equal(moe_dweight_parts(65), 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gemm_rows),      cmocka_unit_test(test_epilogues),
        cmocka_unit_test(test_gemm_outer),     cmocka_unit_test(test_sums),
        cmocka_unit_test(test_norm_rope),      cmocka_unit_test(test_attention),
        cmocka_unit_test(test_attention_data), cmocka_unit_test(test_losses),
        cmocka_unit_test(test_small_things),
    };
    return cmocka_run_group_tests(tests, open_ctx, close_ctx);
}
