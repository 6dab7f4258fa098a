/* test_packed.c: the products that read packed weights (formats: test_packed_formats.c).
 * A product with B packed is the product with the numbers moe_packed_read gives: to the bit where the kernel
 * of an instruction set serves both, in f32 or in pairs of bf16, or has the bits of scaled sums of values,
 * where it scales sums; else within the bounds of gemm_test.h.
 */
#include "kernel/packed_test.h"

#include "core/ctx.h"
#include "core/memory.h"
#include "kernel/act.h"
#include "kernel/packed.h"

static const int64_t widths[] = {1, 7, 16, 40, 63, 64, 65, 128, 130, 200};
static const int64_t depths[] = {1, 3, 8, 31, 32, 33, 64, 100, 128, 200, 256, 257, 300, 520};
static const int64_t loads[] = {0, 0, 1, 1, 2, 3, 4, 5, 6, 13, 14, 15, 29, 70};

static void product_refused(moe_ctx *ctx, moe_gemm_rows_args args, const char *text) {
    assert_int_equal(moe_gemm_rows(ctx, &args), MOE_ERR_ARGUMENT);
    if (!strstr(moe_ctx_error(ctx), text)) fail_msg("'%s' says nothing of '%s'", moe_ctx_error(ctx), text);
}

/* A product refuses what was packed for another, and what lies on another device. */
static void test_products_refuse(void **state) {
    enum { K = 3, N = 4 };
    static const int64_t offset[] = {0, 1, 2};
    static const moei_device gpu = {.name = "cuda"};
    const float a[2 * K] = {1, 2, 3, 4, 5, 6}, b[2 * K * N] = {1, -2, 3};
    float c[2 * N] = {0};
    (void)state;
    moe_ctx *ctx = new_ctx(1);
    const moe_packed_desc desc = describe("int8", 0, MOE_F32, 2, K, N);
    moe_packed *packed = pack(ctx, &desc, b);
    const moe_gemm_rows_args good = {.n_groups = 2,
                                     .offset = offset,
                                     .n = N,
                                     .k = K,
                                     .a = a,
                                     .lda = K,
                                     .b_packed = packed,
                                     .c = c,
                                     .ldc = N};
    assert_int_equal(moe_gemm_rows(ctx, &good), MOE_OK);
    moe_gemm_rows_args bad = good;
    bad.n = 2;
    product_refused(ctx, bad, "moe_gemm_rows: b_packed was made for n 4; this call needs 2");
    bad = good, bad.k = 2;
    product_refused(ctx, bad, "b_packed was made for k 3; this call needs 2");
    bad = good, bad.n_groups = 1;
    product_refused(ctx, bad, "b_packed was made for n_groups 2; this call needs 1");
    bad = good, bad.dtype = MOE_BF16;
    product_refused(ctx, bad, "b_packed was made for dtype 0; this call needs 2");
    bad = good, bad.epilogue = MOE_EPI_ACT, bad.act = MOE_ACT_SWIGLU;
    product_refused(ctx, bad, "b_packed was made for n_runs 1; this call needs 2");
    bad = good, bad.epilogue = MOE_EPI_ACT_GRAD;
    product_refused(ctx, bad, "MOE_EPI_ACT_GRAD needs b");
    bad = good, bad.epilogue = MOE_EPI_ACT, bad.act = (moe_act)704; /* far behind the table of activations */
    product_refused(ctx, bad, "moe_gemm_rows: act is 704; it must lie in 0 .. 10");
    moe_ctx elsewhere = *ctx;
    elsewhere.device = &gpu;
    moe_packed far = *packed;
    far.ctx = &elsewhere;
    bad = good, bad.b_packed = &far;
    product_refused(ctx, bad, "b_packed was made by a context of cuda, device 0; this one computes on cpu");
    moe_packed_destroy(packed);
    moe_ctx_destroy(ctx);
}

/* One random product; the numbers it should read are `b`, [n_groups, k, n] of its dtype. */
typedef struct packed_case {
    test_random random;
    uint64_t seed;
    moe_ctx *ctx;
    moe_packed *packed;
    moe_gemm_rows_args args;
    int64_t offset[5], rows, n_h;
    int32_t *a_row;
    guarded a, b, bias, c, h;
} packed_case;

/* Of each group, where they are not drawn. */
typedef struct case_size {
    int32_t format;
    int64_t rows, n, k; /* n: gates alone */
} case_size;

static void make_sized_case(packed_case *p, uint64_t seed, moe_dtype dtype, const case_size *told) {
    *p = (packed_case){.random = {seed * 0x9e3779b97f4a7c15ULL + 1}, .seed = seed, .ctx = new_ctx(1)};
    test_random *random = &p->random;
    moe_gemm_rows_args *args = &p->args;
    const moe_act act = (moe_act)(seed % MOEI_ACTS);
    args->dtype = dtype;
    args->epilogue = seed % 3 ? MOE_EPI_ACT : MOE_EPI_STORE;
    args->act = args->epilogue == MOE_EPI_ACT ? act : MOE_ACT_NONE;
    if (seed % 5 == 0) args->act_numbers = (moe_act_numbers){1.702, 1.5, 1};
    const bool gated = moe_act_gated(args->act);
    args->n_groups = 1 + (int32_t)random_below(random, 4);
    for (int32_t g = 0; g < args->n_groups; ++g)
        p->offset[g + 1] = p->offset[g] + (told ? told->rows : random_of(random, loads, COUNT(loads)));
    p->rows = p->offset[args->n_groups];
    args->offset = p->offset;
    args->n = (told ? told->n : random_of(random, widths, COUNT(widths))) * (gated ? 2 : 1);
    args->k = told ? told->k : random_of(random, depths, COUNT(depths));
    static const char *const formats[] = {"int8", "int4", "nf4", "mxfp4", "bf16x2"};
    static const int32_t groups[] = {32, 64, 128};
    const uint64_t format = told ? (uint64_t)told->format : seed / 4 % COUNT(formats);
    moe_packed_desc desc = describe(formats[format], 0, dtype, args->n_groups, args->k, args->n);
    if (format < 2) desc.group = groups[random_below(random, 3)];
    desc.n_runs = gated ? 2 : 1;
    p->b = guarded_random(random, dtype, args->n_groups * args->k * args->n);
    p->packed = pack(p->ctx, &desc, p->b.data);
    assert_int_equal(moe_packed_read(p->packed, p->b.data), MOE_OK);
    args->b_packed = p->packed;
    args->lda = args->k + random_below(random, 3);
    args->ldc = args->n + random_below(random, 3);
    const int64_t a_rows = p->rows + 1;
    p->a_row = malloc((size_t)a_rows * sizeof *p->a_row);
    for (int64_t r = 0; r < a_rows; ++r) p->a_row[r] = (int32_t)random_below(random, a_rows);
    if (random_below(random, 2)) args->a_row = p->a_row;
    p->a = guarded_random(random, dtype, a_rows * args->lda), args->a = p->a.data;
    p->bias = guarded_random(random, dtype, args->n_groups * args->n);
    if (random_below(random, 2)) args->bias = p->bias.data;
    args->c_wide = args->epilogue == MOE_EPI_STORE && random_below(random, 2);
    p->c = guarded_new(args->c_wide ? moei_wide(dtype) : dtype, a_rows * args->ldc), args->c = p->c.data;
    p->n_h = gated ? args->n / 2 : args->n, args->ldh = p->n_h + random_below(random, 3);
    p->h = guarded_new(dtype, a_rows * args->ldh), args->h = p->h.data;
}

static void make_case(packed_case *p, uint64_t seed, moe_dtype dtype) {
    make_sized_case(p, seed, dtype, NULL);
}

static void free_case(packed_case *p) {
    guarded *all[] = {&p->a, &p->b, &p->bias, &p->c, &p->h};
    for (size_t i = 0; i < COUNT(all); ++i) guarded_free(all[i]);
    moe_packed_destroy(p->packed);
    moe_ctx_destroy(p->ctx);
    free(p->a_row);
}

static void run(const moei_kernel_row *variant, int32_t n_threads, const moe_gemm_rows_args *args) {
    moei_team team = test_team(n_threads);
    ((moei_gemm_rows_fn *)variant->fn)(&team, args);
}

/* A B_g + bias at (r, j), and the sum of the sizes of its terms. */
static double direct(const packed_case *p, int64_t r, int64_t j, double *size) {
    const moe_gemm_rows_args *args = &p->args;
    int32_t g = 0;
    while (r >= p->offset[g + 1]) ++g;
    double sum = args->bias ? get(&p->bias, g * args->n + j) : 0;
    *size = fabs(sum);
    for (int64_t i = 0; i < args->k; ++i) {
        const double term = get(&p->a, (args->a_row ? args->a_row[r] : r) * args->lda + i) *
                            get(&p->b, (g * args->k + i) * args->n + j);
        sum += term;
        *size += fabs(term);
    }
    return sum;
}

/* Of bf16, B is the read numbers but for their last rounding. */
static double sum_bound(moe_dtype dtype, int64_t k) {
    const double length = (double)(k < 256 ? k : 256 + k / 256) + 6;
    return dtype == MOE_BF16 ? length * EPS_F32 + 0.5 * EPS_BF16 : length * EPS_F32;
}

static void check_case(const moei_kernel_row *v, const packed_case *p) {
    const moe_gemm_rows_args *args = &p->args;
    const bool gated = moe_act_gated(args->act);
    const double bound = sum_bound(args->dtype, args->k);
    for (int64_t r = 0; r < p->rows; ++r) {
        for (int64_t j = 0; j < p->n_h; ++j) {
            double size, up_size = 0, gate = direct(p, r, j, &size);
            check_close(get(&p->c, r * args->ldc + j), gate, bound * size + storage_bound(p->c.dtype, gate),
                        v->name, p->seed, "c", r * args->ldc + j);
            if (args->epilogue != MOE_EPI_ACT) continue;
            const double up = gated ? direct(p, r, p->n_h + j, &up_size) : 0;
            const moei_act_rule rule = moei_act_rule_for(args->act, args->act_numbers);
            const moei_act_point want = moei_act_at(&rule, gate, up);
            const double error = bound * (size + up_size);
            check_close(get(&p->h, r * args->ldh + j), want.value,
                        1.5 * (fabs(want.d_gate) + fabs(want.d_up)) * error + error * error +
                            4e-6 * (1 + fabs(gate)) * (1 + fabs(up)) + storage_bound(args->dtype, want.value),
                        v->name, p->seed, "h", r * args->ldh + j);
        }
    }
}

static void test_against_direct_sums(void **state) {
    (void)state;
    for (const moei_kernel_row *v = next_variant("gemm_packed", NULL); v;
         v = next_variant("gemm_packed", v)) {
        for (uint64_t seed = 1; seed <= 96; ++seed) {
            const moe_dtype dtype = seed % 2 ? MOE_F32 : MOE_BF16;
            packed_case p;
            if (!serves(v, dtype)) continue;
            make_case(&p, seed * 7 + seed / 16, dtype);
            run(v, 1 + (int32_t)(seed % 2), &p.args);
            check_case(v, &p);
            free_case(&p);
        }
    }
}

static void same_bits(const guarded *a, const guarded *b, const char *what, const char *variant,
                      uint64_t seed) {
    if (memcmp(a->block, b->block, (size_t)(a->n + 2 * GUARD) * moe_dtype_bytes(a->dtype)) == 0) return;
    fail_msg("%s, seed %llu: %s", variant, (unsigned long long)seed, what);
}

/* The row of kernel.def for plain products by the same instructions. */
static const moei_kernel_row *plain_twin(const moei_kernel_row *v, moe_dtype dtype) {
    size_t count;
    const moei_kernel_row *rows = moei_kernel_rows(&count);
    for (const moei_kernel_row *row = rows; row < rows + count; ++row)
        if (strcmp(row->op, "gemm_rows") == 0 && row->isa == v->isa && serves(row, dtype)) return row;
    fail_msg("%s: kernel.def has no gemm_rows to hold it to", v->name);
    return NULL;
}

/* The same product with packed weights and with the numbers read back. */
static void check_plain_bits(const moei_kernel_row *v, const moei_kernel_row *plain, packed_case *a,
                             packed_case *b) {
    run(v, 1, &a->args);
    b->args.b_packed = NULL;
    b->args.b = b->b.data;
    b->args.ldb = b->args.n;
    b->args.b_group = b->args.k * b->args.n;
    run(plain, 1, &b->args);
    same_bits(&a->c, &b->c, "packed and plain differ", v->name, a->seed);
    same_bits(&a->h, &b->h, "packed and plain differ", v->name, a->seed);
    free_case(a), free_case(b);
}

/* Steps from `begin` on of A and of the values of B, in the order of pairs: of a word of `per` steps i and
 * i + per / 2 stand together. Zeros past the last step. */
typedef struct value_block {
    int64_t begin, steps, per;
    uint16_t *a, *b; /* [a rows, steps] and [n_groups, steps, n] */
    float *scale;    /* [n_groups, n] */
} value_block;

static int64_t step_of(const value_block *block, int64_t i) {
    const int64_t in_word = i % block->per;
    return block->begin + i - in_word + in_word / 2 + in_word % 2 * (block->per / 2);
}

static double scale_of(const moe_packed *p, int64_t g, int64_t k, int64_t j) {
    int64_t column;
    const unsigned char *panel = p->data + moei_packed_at(p, g, moei_packed_panel(p, j, &column));
    return moei_packed_scale(p->format, moei_panel_block(p, panel, k), column);
}

static value_block read_block(const packed_case *p, int64_t begin) {
    const moe_packed *packed = p->packed;
    const int64_t n = packed->n, k = packed->k, per = moei_packed_per(packed->format);
    const int64_t left = k - begin < packed->group ? k - begin : packed->group;
    const int64_t rows = p->rows + 1, groups = packed->n_groups;
    value_block block = {.begin = begin, .steps = (left + per - 1) / per * per, .per = per};
    block.a = calloc((size_t)(rows * block.steps), sizeof *block.a);
    block.b = calloc((size_t)(groups * block.steps * n), sizeof *block.b);
    block.scale = malloc((size_t)(groups * n) * sizeof *block.scale);
    for (int64_t at = 0; at < groups * n; ++at)
        block.scale[at] = (float)scale_of(packed, at / n, begin, at % n);
    for (int64_t i = 0; i < block.steps; ++i) {
        const int64_t step = step_of(&block, i);
        if (step >= k) continue;
        for (int64_t r = 0; r < rows; ++r)
            block.a[r * block.steps + i] = ((const uint16_t *)p->a.data)[r * p->args.lda + step];
        for (int64_t at = 0; at < groups * n; ++at) {
            const double scale = (double)block.scale[at],
                         number = moei_packed_value(packed, at / n, step, at % n);
            if (scale > 0)
                moei_real_store(MOE_BF16, block.b, (at / n * block.steps + i) * n + at % n, number / scale);
        }
    }
    return block;
}

/* sum[rows, n] = sum + scale times the plain product of the block. */
static void add_block(const packed_case *p, const moei_kernel_row *plain, const value_block *block,
                      float *sum) {
    const int64_t n = p->packed->n;
    float *chain = malloc((size_t)(p->rows * n + 1) * sizeof *chain);
    const moe_gemm_rows_args args = {.dtype = MOE_BF16,
                                     .n_groups = p->args.n_groups,
                                     .offset = p->offset,
                                     .n = n,
                                     .k = block->steps,
                                     .a = block->a,
                                     .lda = block->steps,
                                     .a_row = p->args.a_row,
                                     .b = block->b,
                                     .ldb = n,
                                     .b_group = block->steps * n,
                                     .c = chain,
                                     .ldc = n,
                                     .c_wide = true};
    run(plain, 1, &args);
    for (int32_t g = 0; g < p->args.n_groups; ++g)
        for (int64_t at = p->offset[g] * n; at < p->offset[g + 1] * n; ++at)
            sum[at] = fmaf(block->scale[g * n + at % n], chain[at], sum[at]);
    free(chain), free(block->a), free(block->b), free(block->scale);
}

/* What comes after the product, of sum[rows, n], by a plain product that has every row of sums as its B: cut
 * into three numbers of bf16, which add up to it without rounding in any order. */
static void end_sums(packed_case *p, const moei_kernel_row *plain, const float *sum) {
    enum { PIECES = 3 };
    const int64_t n = p->packed->n, rows = p->rows;
    int64_t *offset = calloc((size_t)rows + 1, sizeof *offset);
    uint16_t *one = malloc((size_t)rows * PIECES * sizeof *one + 1), *bias = NULL;
    uint16_t *b = malloc((size_t)(rows * PIECES * n + 1) * sizeof *b);
    if (p->args.bias) bias = malloc((size_t)(rows * n + 1) * sizeof *bias);
    int32_t g = 0;
    for (int64_t r = 0; r < rows; ++r) {
        while (r >= p->offset[g + 1]) ++g;
        offset[r + 1] = r + 1;
        if (bias) memcpy(bias + r * n, (const uint16_t *)p->args.bias + g * n, (size_t)n * sizeof *bias);
        for (int64_t i = 0; i < PIECES; ++i) moei_real_store(MOE_BF16, one, r * PIECES + i, 1);
        for (int64_t j = 0; j < n; ++j) {
            float left = sum[r * n + j];
            for (int64_t i = 0; i < PIECES; ++i) {
                uint32_t bits;
                memcpy(&bits, &left, sizeof bits);
                b[(r * PIECES + i) * n + j] = (uint16_t)(bits >> 16);
                left -= (float)moei_bf16_value((uint16_t)(bits >> 16));
            }
            assert_true(left == 0);
        }
    }
    moe_gemm_rows_args args = p->args;
    args.n_groups = (int32_t)rows, args.offset = offset, args.b_packed = NULL, args.bias = bias;
    args.a = one, args.lda = args.k = PIECES, args.a_row = NULL;
    args.b = b, args.ldb = n, args.b_group = PIECES * n;
    run(plain, 1, &args);
    free(offset), free(one), free(bias), free(b);
}

/* The same product, and the plain products of each group's values, scaled and added in order. */
static void check_scaled_bits(const moei_kernel_row *v, const moei_kernel_row *plain, packed_case *a,
                              packed_case *b) {
    float *sum = calloc((size_t)(b->rows * b->packed->n + 1), sizeof *sum);
    run(v, 1, &a->args);
    for (int64_t k = 0; k < b->packed->k; k += b->packed->group) {
        const value_block block = read_block(b, k);
        add_block(b, plain, &block, sum);
    }
    if (b->rows > 0) end_sums(b, plain, sum);
    same_bits(&a->c, &b->c, "packed and scaled sums differ", v->name, a->seed);
    same_bits(&a->h, &b->h, "packed and scaled sums differ", v->name, a->seed);
    free(sum);
    free_case(a), free_case(b);
}

/* The law: packed is plain with the numbers read back, or, where sums are scaled, with their values. The
 * reference multiplies what f32 cannot hold, and of bf16 those that serve f32 too do not round the numbers.
 */
static void check_law(const moei_kernel_row *v, const moei_kernel_row *plain, packed_case *a,
                      packed_case *b) {
    if (v->isa == MOEI_ISA_AVX512BF16 && a->packed->format->bits != 16)
        check_scaled_bits(v, plain, a, b);
    else
        check_plain_bits(v, plain, a, b);
}

static void test_same_bits_as_plain(void **state) {
    (void)state;
    for (const moei_kernel_row *v = next_variant("gemm_packed", NULL); v;
         v = next_variant("gemm_packed", v)) {
        if (v->isa == MOEI_ISA_REF) continue;
        const moe_dtype dtype = serves(v, MOE_F32) ? MOE_F32 : MOE_BF16;
        const moei_kernel_row *plain = plain_twin(v, dtype);
        for (uint64_t seed = 1; seed <= 64; ++seed) {
            packed_case a, b;
            make_case(&a, seed, dtype);
            make_case(&b, seed, dtype);
            check_law(v, plain, &a, &b);
        }
    }
}

/* Bf16 in pairs is multiplied where it is by rows whose A does not fit all at once, gated and not; and codes
 * by avx512bf16, which scales sums of groups, so that those go on from span to span: few rows and many. */
static void test_rows_that_do_not_fit_at_once(void **state) {
    static const case_size sizes[] = {
        {4, 100, 72,  1100}, /* reglu */
        {4, 290, 40,  2400}, /* none */
        {4, 460, 96,  260 }, /* geglu */
        {0, 5,   40,  7700},
        {1, 8,   130, 3900},
        {2, 70,  130, 3900},
        {3, 200, 40,  1500}
    };
    (void)state;
    for (const moei_kernel_row *v = next_variant("gemm_packed", NULL); v;
         v = next_variant("gemm_packed", v)) {
        if (v->isa == MOEI_ISA_REF || !serves(v, MOE_BF16)) continue;
        const moei_kernel_row *plain = plain_twin(v, MOE_BF16);
        for (uint64_t i = 0; i < COUNT(sizes); ++i) {
            if (sizes[i].format != 4 && v->isa != MOEI_ISA_AVX512BF16) continue;
            packed_case a, b;
            make_sized_case(&a, 8 + i, MOE_BF16, &sizes[i]);
            make_sized_case(&b, 8 + i, MOE_BF16, &sizes[i]);
            check_law(v, plain, &a, &b);
        }
    }
}

/* A panel's padding is zeros, which times an infinite A are no zeros: they must not come into the sums of the
 * second run, which stand where the first one's last panel ends. The last step comes after 3584, as far as a
 * row of A is packed at once. */
static void test_padding_beside_an_infinite_row(void **state) {
    enum { FORMATS = 5, STEP = 3590 };
    (void)state;
    for (const moei_kernel_row *v = next_variant("gemm_packed", NULL); v;
         v = next_variant("gemm_packed", v)) {
        if (v->isa == MOEI_ISA_REF) continue;
        const moe_dtype dtype = serves(v, MOE_F32) ? MOE_F32 : MOE_BF16;
        const moei_kernel_row *plain = plain_twin(v, dtype);
        for (int32_t format = 0; format < FORMATS; ++format) {
            const case_size size = {format, 1, 96, 3840};
            packed_case pair[2];
            for (int i = 0; i < 2; ++i) {
                make_sized_case(&pair[i], 8, dtype, &size); /* reglu */
                for (int64_t r = 0; r <= pair[i].rows; ++r)
                    moei_real_store(dtype, pair[i].a.data, r * pair[i].args.lda + STEP, (double)INFINITY);
            }
            check_plain_bits(v, plain, &pair[0], &pair[1]);
        }
    }
}

static void test_same_bits_for_any_threads(void **state) {
    (void)state;
    for (const moei_kernel_row *v = next_variant("gemm_packed", NULL); v;
         v = next_variant("gemm_packed", v)) {
        for (uint64_t seed = 1; seed <= 32; ++seed) {
            const moe_dtype dtype = seed % 2 ? MOE_F32 : MOE_BF16;
            packed_case one, four;
            if (!serves(v, dtype)) continue;
            make_case(&one, seed, dtype);
            make_case(&four, seed, dtype);
            run(v, 1, &one.args);
            run(v, 4, &four.args);
            same_bits(&one.c, &four.c, "other bits with four threads", v->name, seed);
            same_bits(&one.h, &four.h, "other bits with four threads", v->name, seed);
            free_case(&one), free_case(&four);
        }
    }
}

/* Rows one by one and a few at a time have the bits they have together. */
static void test_rows_do_not_depend_on_the_batch(void **state) {
    (void)state;
    for (const moei_kernel_row *v = next_variant("gemm_packed", NULL); v;
         v = next_variant("gemm_packed", v)) {
        for (uint64_t seed = 100; seed < 148; ++seed) {
            const moe_dtype dtype = seed % 2 ? MOE_F32 : MOE_BF16;
            packed_case whole, part;
            if (!serves(v, dtype)) continue;
            make_case(&whole, seed, dtype);
            make_case(&part, seed, dtype);
            run(v, 1, &whole.args);
            for (int32_t g = 0; g < whole.args.n_groups; ++g) {
                for (int64_t step = 1, r = whole.offset[g]; r < whole.offset[g + 1]; r += step, step += 2) {
                    const int64_t end = r + step < whole.offset[g + 1] ? r + step : whole.offset[g + 1];
                    for (int32_t i = 0; i <= part.args.n_groups; ++i) part.offset[i] = i <= g ? r : end;
                    run(v, 1, &part.args);
                }
            }
            same_bits(&whole.c, &part.c, "a row depends on its neighbours", v->name, seed);
            same_bits(&whole.h, &part.h, "a row depends on its neighbours", v->name, seed);
            free_case(&whole), free_case(&part);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_products_refuse),
        cmocka_unit_test(test_against_direct_sums),
        cmocka_unit_test(test_same_bits_as_plain),
        cmocka_unit_test(test_rows_that_do_not_fit_at_once),
        cmocka_unit_test(test_padding_beside_an_infinite_row),
        cmocka_unit_test(test_same_bits_for_any_threads),
        cmocka_unit_test(test_rows_do_not_depend_on_the_batch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
