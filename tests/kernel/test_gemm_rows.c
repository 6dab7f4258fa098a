/* test_gemm_rows.c: the grouped products C_g = A_g B_g, every variant and epilogue against a direct triple
 * loop in f64; the same bits for any number of threads and whatever rows stand beside. Source: op.h; bounds
 * of gemm_test.h.
 */
#include "kernel/gemm_test.h"

#include "kernel/act.h"

static const moei_kernel_row *variants[MOEI_ISA_COUNT + 1];
static const int64_t depths[] = {1,  2,  3,  4,   5,   8,   17,  31,  32,  33,
                                 63, 65, 96, 128, 255, 256, 257, 511, 513, 520};

/* One random problem; its arguments serve every epilogue. */
typedef struct product_case {
    test_random random;
    uint64_t seed;
    moe_gemm_rows_args args;
    int64_t offset[9], rows, d_z, n_h; /* d_z: columns of z where it is read, n_h: of h */
    int32_t *a_row;
    double *sum, *size; /* [rows, args.n] of solve: A B_g + bias, and of the sizes of its terms; else NULL */
    guarded a, b, bias, c, h, z, dz, wa, w, dweight, part;
} product_case;

static void make_case(product_case *p, uint64_t seed, moe_dtype dtype, moe_epilogue epilogue, moe_act act,
                      int64_t max_size) {
    *p = (product_case){.random = {seed * 0x9e3779b97f4a7c15ULL + 1}, .seed = seed};
    moe_gemm_rows_args *args = &p->args;
    test_random *random = &p->random;
    args->n_groups = 1 + (int32_t)random_below(random, 5);
    p->rows = draw_groups(random, args->n_groups, max_size, p->offset);
    args->offset = p->offset;
    bool gated = moe_act_gated(act);
    args->dtype = dtype, args->epilogue = epilogue, args->act = act;
    if (seed % 4 == 0) args->act_numbers = (moe_act_numbers){1.702, 1.5, 1};
    args->n = random_of(random, edges, COUNT(edges)), args->k = random_of(random, depths, COUNT(depths));
    if (args->n > max_size) args->n = max_size;
    if (gated && epilogue == MOE_EPI_ACT) args->n *= 2;
    args->b_trans = random_below(random, 2);
    args->lda = args->k + random_below(random, 3);
    args->ldb = (args->b_trans ? args->k : args->n) + random_below(random, 3);
    args->b_group = (args->b_trans ? args->n : args->k) * args->ldb + random_below(random, 5);
    args->ldc = args->n + random_below(random, 3);
    int64_t a_rows = p->rows + 1;
    if (random_below(random, 2)) {
        p->a_row = malloc((size_t)a_rows * sizeof *p->a_row);
        for (int64_t r = 0; r < a_rows; ++r) p->a_row[r] = (int32_t)random_below(random, a_rows);
        args->a_row = p->a_row;
    }
    p->a = guarded_random(random, dtype, a_rows * args->lda), args->a = p->a.data;
    p->b = guarded_random(random, dtype, args->n_groups * args->b_group), args->b = p->b.data;
    p->bias = guarded_random(random, dtype, args->n_groups * args->n);
    if (epilogue != MOE_EPI_ACT_GRAD && random_below(random, 2)) args->bias = p->bias.data;
    args->c_wide = epilogue == MOE_EPI_STORE && seed % 2;
    moe_dtype wide = moei_wide(dtype);
    p->c = guarded_new(args->c_wide ? wide : dtype, a_rows * args->ldc), args->c = p->c.data;
    p->n_h = gated ? args->n / 2 : args->n, args->ldh = p->n_h + random_below(random, 3);
    p->h = guarded_new(dtype, a_rows * args->ldh), args->h = p->h.data;
    p->d_z = gated ? 2 * args->n : args->n, args->ldz = p->d_z + random_below(random, 3);
    p->z = guarded_random(random, dtype, a_rows * args->ldz), args->z = p->z.data;
    for (int64_t i = 0; i < p->z.n; ++i) moei_real_store(dtype, p->z.data, i, 4 * get(&p->z, i));
    p->dz = guarded_new(dtype, a_rows * args->ldz), args->dz = p->dz.data;
    args->ldwa = args->n + random_below(random, 3);
    p->wa = guarded_new(dtype, a_rows * args->ldwa), args->wa = p->wa.data;
    p->w = guarded_random(random, wide, a_rows);
    if (random_below(random, 2)) args->row_weight = p->w.data;
    p->dweight = guarded_new(wide, a_rows), args->dweight = p->dweight.data;
    p->part = guarded_new(wide, a_rows * moe_dweight_parts(args->n)), args->dweight_part = p->part.data;
}

static moe_act act_of(uint64_t seed) {
    return (moe_act)(seed % MOEI_ACTS);
}

static void free_outputs(product_case *p) {
    guarded *outputs[] = {&p->c, &p->h, &p->dz, &p->wa, &p->dweight, &p->part};
    for (size_t i = 0; i < COUNT(outputs); ++i) guarded_free(outputs[i]);
}

static void free_case(product_case *p) {
    guarded *inputs[] = {&p->a, &p->b, &p->bias, &p->z, &p->w};
    for (size_t i = 0; i < COUNT(inputs); ++i) guarded_free(inputs[i]);
    free_outputs(p);
    free(p->a_row), free(p->sum), free(p->size);
}

/* Makes `twin` of the same inputs, with outputs of its own: free_outputs ends it. */
static void make_twin(product_case *twin, const product_case *p) {
    *twin = *p;
    guarded *outputs[] = {&twin->c, &twin->h, &twin->dz, &twin->wa, &twin->dweight, &twin->part};
    for (size_t i = 0; i < COUNT(outputs); ++i) *outputs[i] = guarded_new(outputs[i]->dtype, outputs[i]->n);
    moe_gemm_rows_args *args = &twin->args;
    args->offset = twin->offset;
    args->c = twin->c.data, args->h = twin->h.data, args->dz = twin->dz.data, args->wa = twin->wa.data;
    args->dweight = twin->dweight.data, args->dweight_part = twin->part.data;
}

/* Cells of a row past the matrix (the padding of its ld) must stay as they were. */
static void check_padding(const guarded *m, int64_t rows, int64_t n, int64_t ld) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t j = n; j < ld; ++j) assert_true(isnan(get(m, r * ld + j)));
}

/* A B_g + bias at (r, j), and the sum of the sizes of its terms. */
static double direct(const product_case *p, int32_t g, int64_t r, int64_t j, double *size) {
    const moe_gemm_rows_args *args = &p->args;
    double sum = args->bias ? get(&p->bias, g * args->n + j) : 0;
    *size = fabs(sum);
    for (int64_t i = 0; i < args->k; ++i) {
        double a = get(&p->a, (p->a_row ? p->a_row[r] : r) * args->lda + i);
        double b = get(&p->b, g * args->b_group + (args->b_trans ? j * args->ldb + i : i * args->ldb + j));
        sum += a * b;
        *size += fabs(a * b);
    }
    return sum;
}

/* Once a case, for every variant. */
static void solve(product_case *p) {
    const int64_t n = p->args.n;
    p->sum = malloc((size_t)(p->rows * n + 1) * sizeof *p->sum);
    p->size = malloc((size_t)(p->rows * n + 1) * sizeof *p->size);
    assert_true(p->sum && p->size);
    for (int32_t g = 0; g < p->args.n_groups; ++g)
        for (int64_t at = p->offset[g] * n; at < p->offset[g + 1] * n; ++at)
            p->sum[at] = direct(p, g, at / n, at % n, &p->size[at]);
}

static void run(const moei_kernel_row *variant, int32_t n_threads, const moe_gemm_rows_args *args) {
    moei_team team = test_team(n_threads);
    ((moei_gemm_rows_fn *)variant->fn)(&team, args);
}

static void check_store(product_case *p, const moei_kernel_row *variant) {
    moe_gemm_rows_args *args = &p->args;
    args->accumulate = p->seed % 3 == 0;
    for (int64_t r = 0; r < p->rows && args->accumulate; ++r)
        for (int64_t j = 0; j < args->n; ++j) moei_real_store(p->c.dtype, p->c.data, r * args->ldc + j, 0.5);
    run(variant, 1 + (int32_t)(p->seed % 2), args);
    for (int64_t r = 0; r < p->rows; ++r) {
        for (int64_t j = 0; j < args->n; ++j) {
            const int64_t at = r * args->n + j;
            double want = p->sum[at] + (args->accumulate ? 0.5 : 0);
            double bound = chain_bound(args->dtype, args->k) * (p->size[at] + 0.5);
            check_close(get(&p->c, r * args->ldc + j), want, bound + storage_bound(p->c.dtype, want),
                        variant->name, p->seed, "c", r * args->ldc + j);
        }
    }
    check_padding(&p->c, p->rows, args->n, args->ldc);
}

/* What the activation makes of an error in its inputs, plus its own. */
static double act_bound(moei_act_point act, double gate, double up, double error) {
    double own = 4e-6 * (1 + fabs(gate)) * (1 + fabs(up));
    return 1.5 * (fabs(act.d_gate) + fabs(act.d_up)) * error + own + error * error;
}

static void check_act(product_case *p, const moei_kernel_row *variant) {
    moe_gemm_rows_args *args = &p->args;
    const moe_dtype dtype = args->dtype;
    const uint64_t seed = p->seed;
    const moei_act_rule rule = moei_act_rule_for(args->act, args->act_numbers);
    const bool gated = rule.gated, keep = seed % 5 != 0;
    if (!keep) args->c = NULL;
    run(variant, 1, args);
    for (int64_t r = 0; r < p->rows; ++r) {
        for (int64_t j = 0; j < p->n_h; ++j) {
            const int64_t at = r * args->n + j;
            double gate = p->sum[at], gate_size = p->size[at], bound = chain_bound(dtype, args->k);
            double up = gated ? p->sum[at + p->n_h] : 0, up_size = gated ? p->size[at + p->n_h] : 0;
            const moei_act_point want = moei_act_at(&rule, gate, up);
            double h_bound = act_bound(want, gate, up, bound * (gate_size + up_size));
            check_close(get(&p->h, r * args->ldh + j), want.value, h_bound + storage_bound(dtype, want.value),
                        variant->name, seed, "h", j);
            if (keep)
                check_close(get(&p->c, r * args->ldc + j), gate,
                            bound * gate_size + storage_bound(dtype, gate), variant->name, seed, "gate", j);
            if (keep && gated)
                check_close(get(&p->c, r * args->ldc + p->n_h + j), up,
                            bound * up_size + storage_bound(dtype, up), variant->name, seed, "up", j);
        }
    }
    check_padding(&p->h, p->rows, p->n_h, args->ldh);
    check_padding(&p->c, p->rows, keep ? args->n : 0, args->ldc);
}

static void check_act_grad(product_case *p, const moei_kernel_row *variant) {
    const moe_gemm_rows_args *args = &p->args;
    const moe_dtype dtype = args->dtype;
    const uint64_t seed = p->seed;
    const char *name = variant->name;
    const moei_act_rule rule = moei_act_rule_for(args->act, args->act_numbers);
    const bool gated = rule.gated;
    run(variant, 2, args);
    for (int64_t r = 0; r < p->rows; ++r) {
        double w = args->row_weight ? get(&p->w, r) : 1, dweight = 0, dweight_bound = 1e-6;
        for (int64_t j = 0; j < args->n; ++j) {
            double da = p->sum[r * args->n + j];
            double error = chain_bound(dtype, args->k) * p->size[r * args->n + j];
            double gate = get(&p->z, r * args->ldz + j),
                   up = gated ? get(&p->z, r * args->ldz + args->n + j) : 0;
            const moei_act_point want = moei_act_at(&rule, gate, up);
            double own = 4e-6 * (1 + fabs(gate)) * (1 + fabs(up));
            double dz = w * want.d_gate * da, dz_up = w * want.d_up * da, wa = w * want.value;
            double wrong = own * (fabs(da) + error);
            check_close(get(&p->dz, r * args->ldz + j), dz,
                        fabs(want.d_gate) * error + wrong + storage_bound(dtype, dz), name, seed, "dz", j);
            if (gated)
                check_close(get(&p->dz, r * args->ldz + args->n + j), dz_up,
                            fabs(want.d_up) * error + wrong + storage_bound(dtype, dz_up), name, seed,
                            "dz up", j);
            check_close(get(&p->wa, r * args->ldwa + j), wa, own + storage_bound(dtype, wa), name, seed, "wa",
                        j);
            dweight += da * want.value;
            dweight_bound += fabs(want.value) * error + own * (fabs(da) + error);
        }
        check_close(get(&p->dweight, r), dweight, dweight_bound, name, seed, "dweight", r);
    }
    check_padding(&p->dz, p->rows, p->d_z, args->ldz);
    check_padding(&p->wa, p->rows, args->n, args->ldwa);
}

typedef void check_variant(product_case *p, const moei_kernel_row *variant);

static void check_case(uint64_t seed, moe_dtype dtype, moe_epilogue epilogue) {
    static check_variant *const check[] = {
        [MOE_EPI_STORE] = check_store, [MOE_EPI_ACT] = check_act, [MOE_EPI_ACT_GRAD] = check_act_grad};
    const bool store = epilogue == MOE_EPI_STORE;
    product_case p, twin;
    make_case(&p, seed, dtype, epilogue, store ? MOE_ACT_NONE : act_of(seed), store ? 300 : 150);
    solve(&p);
    for (int i = 0; variants[i]; ++i) {
        if (!serves(variants[i], dtype)) continue;
        make_twin(&twin, &p);
        check[epilogue](&twin, variants[i]);
        free_outputs(&twin);
    }
    free_case(&p);
}

static void test_against_triple_loop(void **state) {
    (void)state;
    for (int dtype = 0; dtype < MOEI_DTYPES; ++dtype)
        for (uint64_t seed = 1; seed <= (dtype == MOE_F64 ? 20 : 60); ++seed) {
            check_case(seed, (moe_dtype)dtype, MOE_EPI_STORE);
            check_case(seed, (moe_dtype)dtype, MOE_EPI_ACT);
            check_case(seed, (moe_dtype)dtype, MOE_EPI_ACT_GRAD);
        }
}

/* Tasks own what they write, so the number of threads shows nowhere. */
static void test_same_bits_for_any_threads(void **state) {
    (void)state;
    for (int i = 0; variants[i]; ++i) {
        const moei_kernel_row *v = variants[i];
        for (uint64_t seed = 1; seed <= 48; ++seed) {
            moe_dtype dtype = seed % 2 ? MOE_F32 : MOE_BF16;
            moe_epilogue epilogue = (moe_epilogue)(seed % 3);
            product_case one;
            if (!serves(v, dtype)) continue;
            make_case(&one, seed, dtype, epilogue, act_of(seed), 200);
            run(v, 1, &one.args);
            for (int32_t threads = 2; threads <= 4; threads += 2) {
                product_case many;
                make_twin(&many, &one);
                run(v, threads, &many.args);
                assert_same_bits(&one.c, &many.c, v->name, seed);
                assert_same_bits(&one.h, &many.h, v->name, seed);
                assert_same_bits(&one.dz, &many.dz, v->name, seed);
                assert_same_bits(&one.wa, &many.wa, v->name, seed);
                assert_same_bits(&one.dweight, &many.dweight, v->name, seed);
                free_outputs(&many);
            }
            free_case(&one);
        }
    }
}

/* Row `r` of a result must have the bits it had in the whole batch. */
static void assert_same_row(const guarded *whole, const guarded *part, int64_t r, int64_t ld, int64_t n,
                            const product_case *p, const char *variant) {
    size_t real = moe_dtype_bytes(whole->dtype);
    const char *a = (const char *)whole->data + (size_t)(r * ld) * real;
    const char *b = (const char *)part->data + (size_t)(r * ld) * real;
    if (memcmp(a, b, (size_t)n * real) == 0) return;
    fail_msg("%s, seed %llu: row %lld depends on its neighbours", variant, (unsigned long long)p->seed,
             (long long)r);
}

/* Rows [first, end) computed without the others. */
static void check_part(const moei_kernel_row *v, const product_case *whole, int32_t g, int64_t first,
                       int64_t end) {
    product_case part;
    make_twin(&part, whole);
    moe_gemm_rows_args *args = &part.args;
    for (int32_t i = 0; i <= args->n_groups; ++i) part.offset[i] = i <= g ? first : end;
    run(v, 1, args);
    for (int64_t r = first; r < end; ++r) {
        if (args->epilogue != MOE_EPI_ACT_GRAD)
            assert_same_row(&whole->c, &part.c, r, args->ldc, args->n, whole, v->name);
        if (args->epilogue == MOE_EPI_ACT)
            assert_same_row(&whole->h, &part.h, r, args->ldh, part.n_h, whole, v->name);
        if (args->epilogue != MOE_EPI_ACT_GRAD) continue;
        assert_same_row(&whole->dz, &part.dz, r, args->ldz, part.d_z, whole, v->name);
        assert_same_row(&whole->wa, &part.wa, r, args->ldwa, args->n, whole, v->name);
        assert_same_row(&whole->dweight, &part.dweight, r, 1, 1, whole, v->name);
    }
    free_outputs(&part);
}

/* The promise of op.h: a row has the same bits whatever other rows stand beside it. */
static void test_rows_do_not_depend_on_the_batch(void **state) {
    (void)state;
    for (int i = 0; variants[i]; ++i) {
        const moei_kernel_row *v = variants[i];
        for (uint64_t seed = 100; seed < 148; ++seed) {
            moe_dtype dtype = seed % 2 ? MOE_F32 : MOE_BF16;
            product_case whole;
            if (!serves(v, dtype)) continue;
            make_case(&whole, seed, dtype, (moe_epilogue)(seed % 3), act_of(seed), 300);
            run(v, 1, &whole.args);
            for (int32_t g = 0; g < whole.args.n_groups; ++g) {
                for (int64_t step = 1, r = whole.offset[g]; r < whole.offset[g + 1]; r += step, step += 2) {
                    int64_t end = r + step < whole.offset[g + 1] ? r + step : whole.offset[g + 1];
                    check_part(v, &whole, g, r, end);
                }
            }
            free_case(&whole);
        }
    }
}

/* One group, nothing between its rows; C is wide and the caller's to add. */
static moe_gemm_rows_args plain_args(const int64_t *offset, int64_t n, int64_t k, const guarded *a,
                                     const guarded *b) {
    return (moe_gemm_rows_args){.dtype = a->dtype,
                                .n_groups = 1,
                                .offset = offset,
                                .n = n,
                                .k = k,
                                .a = a->data,
                                .lda = k,
                                .b = b->data,
                                .ldb = n,
                                .ldc = n,
                                .c_wide = true};
}

/* More rows or columns than a task takes, so that blocks of them meet. */
static void check_many(const moei_kernel_row *v, moe_dtype dtype, int64_t rows, int64_t width,
                       int64_t depth) {
    test_random random = {7};
    guarded a = guarded_random(&random, dtype, rows * depth),
            b = guarded_random(&random, dtype, depth * width);
    guarded c = guarded_new(moei_wide(dtype), rows * width),
            again = guarded_new(moei_wide(dtype), rows * width);
    int64_t offset[2] = {0, rows};
    moe_gemm_rows_args args = plain_args(offset, width, depth, &a, &b);
    args.c = c.data;
    run(v, 1, &args);
    args.c = again.data;
    run(v, 2, &args); /* cuts rows otherwise */
    assert_same_bits(&c, &again, v->name, 7);
    for (int64_t at = 0; at < rows * width; ++at) {
        double sum = 0, size = 0;
        for (int64_t i = 0; i < depth; ++i) {
            double term = get(&a, at / width * depth + i) * get(&b, i * width + at % width);
            sum += term, size += fabs(term);
        }
        check_close(get(&c, at), sum, chain_bound(dtype, depth) * size, v->name, 7, "c", at);
    }
    guarded_free(&a), guarded_free(&b), guarded_free(&c), guarded_free(&again);
}

static void test_many_rows_or_columns(void **state) {
    (void)state;
    for (int i = 0; variants[i]; ++i) {
        const moei_kernel_row *v = variants[i];
        if (serves(v, MOE_F32)) check_many(v, MOE_F32, 700, 40, 600);
        if (serves(v, MOE_BF16)) check_many(v, MOE_BF16, 700, 40, 600);
        if (serves(v, MOE_BF16)) check_many(v, MOE_BF16, 40, 1570, 270);
    }
}

/* More groups of few rows than fit one pass of one thread or of two, all with the same B: a row is what it is
 * in one group. */
static void check_many_groups(const moei_kernel_row *v, moe_dtype dtype, int64_t width) {
    enum { GROUPS = 80, DEPTH = 1300 };
    static const int32_t threads[] = {1, 2, 4};
    test_random random = {8};
    int64_t offset[GROUPS + 1] = {0};
    for (int g = 0; g < GROUPS; ++g) offset[g + 1] = offset[g] + (g % 9 == 0 ? 32 : g % 5);
    const int64_t rows = offset[GROUPS], one[2] = {0, rows};
    guarded a = guarded_random(&random, dtype, rows * DEPTH),
            b = guarded_random(&random, dtype, DEPTH * width);
    moe_gemm_rows_args args = plain_args(one, width, DEPTH, &a, &b);
    guarded together = guarded_new(moei_wide(dtype), rows * width);
    args.c = together.data;
    run(v, 2, &args);
    args.n_groups = GROUPS;
    args.offset = offset;
    for (size_t i = 0; i < COUNT(threads); ++i) {
        guarded apart = guarded_new(moei_wide(dtype), rows * width);
        args.c = apart.data;
        run(v, threads[i], &args);
        for (int64_t at = 0; at < rows * width; ++at)
            if (get(&apart, at) != get(&together, at))
                fail_msg("%s, %d threads: row %lld, column %lld is %.9g, and %.9g in one group", v->name,
                         threads[i], (long long)(at / width), (long long)(at % width), get(&apart, at),
                         get(&together, at));
        guarded_free(&apart);
    }
    guarded_free(&a), guarded_free(&b), guarded_free(&together);
}

static void test_many_groups(void **state) {
    (void)state;
    for (int i = 0; variants[i]; ++i) {
        const moei_kernel_row *v = variants[i];
        if (v->isa == MOEI_ISA_REF) continue; /* no blocks, no passes */
        if (serves(v, MOE_F32)) check_many_groups(v, MOE_F32, 300);
        if (serves(v, MOE_F32)) check_many_groups(v, MOE_F32, 320); /* slabs end where the next begins */
        if (serves(v, MOE_BF16)) check_many_groups(v, MOE_BF16, 320);
    }
}

int main(void) {
    all_variants("gemm_rows", variants);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_triple_loop),
        cmocka_unit_test(test_same_bits_for_any_threads),
        cmocka_unit_test(test_rows_do_not_depend_on_the_batch),
        cmocka_unit_test(test_many_rows_or_columns),
        cmocka_unit_test(test_many_groups),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
