/* test_layer.c: identities of the whole layer, on every instruction set this machine has.
 * An identity needs no second implementation: permuting tokens permutes outputs, and so on.
 */
#include "unit/layer/identity_fixture.h"

/* --- bits ------------------------------------------------------------------------------------------- */

typedef struct run {
    moe_mat y, dx;
    float *grads;
    int64_t n_grads;
} run;

static void free_run(run *r) {
    free(r->y.data);
    free(r->dx.data);
    free(r->grads);
}

/* One forward and backward on fresh tokens; everything that came out. */
static run run_once(moe_ctx *ctx, const moe_layer_desc *desc, moe_mat x, moe_mat dy) {
    moe_layer *layer = test_layer(ctx, desc, x.rows);
    run r = {test_output(MOE_F32, x.rows, x.cols), test_output(MOE_F32, x.rows, x.cols), NULL, 0};
    must(ctx, moe_layer_forward(layer, x, r.y, &test_train_call, NULL));
    must(ctx, moe_layer_backward(layer, x, dy, r.dx));
    for (int32_t i = 0; i < moe_layer_param_count(layer); ++i) {
        moe_param p = {.size = sizeof p};
        must(ctx, moe_layer_param(layer, i, &p));
        int64_t n = p.dim[0] * p.dim[1] * p.dim[2];
        r.grads = realloc(r.grads, (size_t)(r.n_grads + n) * sizeof *r.grads);
        assert_non_null(r.grads);
        memcpy(r.grads + r.n_grads, p.grad, (size_t)n * sizeof *r.grads);
        r.n_grads += n;
    }
    moe_layer_destroy(layer);
    return r;
}

static void same_bits_for_any_thread_count(void **state) {
    (void)state;
    for (int isa = 0; isa < TEST_ISAS_F32; ++isa) {
        moe_ctx *one = test_ctx_if_supported(test_isas[isa]);
        if (!one) continue;
        moe_layer_desc desc = base_desc();
        desc.num_shared_experts = 1;
        desc.input_jitter_eps = 0.05f;
        desc.capacity_factor = 1.0f;
        moe_mat x = test_random(MOE_F32, 301, 37, 4), dy = test_random(MOE_F32, 301, 37, 5);
        run want = run_once(one, &desc, x, dy);
        for (int32_t threads = 2; threads <= 4; threads += 2) {
            moe_ctx *many = test_ctx(test_isas[isa], threads);
            run got = run_once(many, &desc, x, dy);
            assert_memory_equal(got.y.data, want.y.data, test_bytes(want.y));
            assert_memory_equal(got.dx.data, want.dx.data, test_bytes(want.dx));
            assert_memory_equal(got.grads, want.grads, (size_t)want.n_grads * sizeof *want.grads);
            free_run(&got);
            moe_ctx_destroy(many);
        }
        free_run(&want);
        free(x.data), free(dy.data);
        moe_ctx_destroy(one);
    }
}

/* Dropless: a token alone gives the bits it gives among others, and reordering tokens reorders outputs. */
static void outputs_do_not_depend_on_company(void **state) {
    (void)state;
    for (int isa = 0; isa < TEST_ISAS_F32; ++isa) {
        moe_ctx *ctx = test_ctx_if_supported(test_isas[isa]);
        if (!ctx) continue;
        enum { T = 211, D = 37 };
        moe_layer_desc desc = base_desc();
        desc.num_shared_experts = 1;
        moe_layer *layer = test_layer(ctx, &desc, T);
        moe_mat x = test_random(MOE_F32, T, D, 6), y = test_output(MOE_F32, T, D);
        moe_mat reversed = test_random(MOE_F32, T, D, 6), yr = test_output(MOE_F32, T, D);
        float *rows = reversed.data, *from = x.data;
        for (int64_t t = 0; t < T; ++t) memcpy(rows + t * D, from + (T - 1 - t) * D, D * sizeof(float));
        must(ctx, moe_layer_forward(layer, x, y, NULL, NULL));
        must(ctx, moe_layer_forward(layer, reversed, yr, NULL, NULL));
        for (int64_t t = 0; t < T; ++t)
            assert_memory_equal((float *)y.data + t * D, (float *)yr.data + (T - 1 - t) * D,
                                D * sizeof(float));
        for (int64_t t = 0; t < T; t += 17) {
            moe_mat one = {(float *)x.data + t * D, 1, D, D, MOE_F32}, alone = test_output(MOE_F32, 1, D);
            must(ctx, moe_layer_forward(layer, one, alone, NULL, NULL));
            assert_memory_equal(alone.data, (float *)y.data + t * D, D * sizeof(float));
            free(alone.data);
        }
        free(x.data), free(y.data), free(reversed.data), free(yr.data);
        moe_layer_destroy(layer);
        moe_ctx_destroy(ctx);
    }
}

/* --- capacity, masks, statistics ---------------------------------------------------------------------- */

static void kept_and_dropped_make_all(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 2);
    static const float factors[] = {0, 0.05f, 0.5f, 1, 1.25f, 2, 100};
    for (size_t f = 0; f < sizeof factors / sizeof *factors; ++f)
        for (int policy = 0; policy < 2; ++policy)
            for (int64_t T = 0; T < 90; T += 29) {
                moe_layer_desc desc = base_desc();
                desc.capacity_factor = factors[f];
                desc.drop_policy = policy && factors[f] > 0 ? "position" : "probs";
                moe_layer *layer = test_layer(ctx, &desc, T);
                moe_mat x = test_random(MOE_F32, T, 37, 8), y = test_output(MOE_F32, T, 37);
                moe_stats stats = {.size = sizeof stats};
                moe_routing_view view = {.size = sizeof view};
                must(ctx, moe_layer_forward(layer, x, y, &test_train_call, &stats));
                must(ctx, moe_layer_routing(layer, &view));
                assert_int_equal(stats.n_kept + stats.n_dropped, 3 * T);
                int64_t limit =
                    factors[f] > 0 ? (int64_t)ceil((double)factors[f] * 3 * (double)T / 7 - 1e-6) : T;
                int64_t kept = 0;
                for (int32_t e = 0; e < 7; ++e) {
                    assert_true(view.kept[e] <= limit && view.kept[e] <= T);
                    assert_int_equal(view.kept[e], view.routed[e] < limit ? view.routed[e] : limit);
                    kept += view.kept[e];
                }
                assert_int_equal(kept, stats.n_kept);
                free(x.data), free(y.data);
                moe_layer_destroy(layer);
            }
    moe_ctx_destroy(ctx);
}

/* Which of an expert's tokens stay: the first ones, or those with the largest weights. */
static void drop_policies_keep_the_right_rows(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 1);
    enum { T = 64 };
    for (int policy = 0; policy < 2; ++policy) {
        moe_layer_desc desc = base_desc();
        desc.capacity_factor = 0.5f;
        desc.drop_policy = policy ? "position" : "probs";
        moe_layer *layer = test_layer(ctx, &desc, T);
        moe_mat x = test_random(MOE_F32, T, 37, 9), y = test_output(MOE_F32, T, 37);
        moe_routing_view view = {.size = sizeof view};
        must(ctx, moe_layer_forward(layer, x, y, NULL, NULL));
        must(ctx, moe_layer_routing(layer, &view));
        const float *weight = view.weight;
        for (int32_t e = 0; e < 7; ++e)
            for (int64_t kept = 0; kept < 3 * T; ++kept)
                for (int64_t dropped = 0; dropped < 3 * T; ++dropped) {
                    if (view.expert[kept] != e || view.row_of[kept] < 0) continue;
                    if (view.expert[dropped] != e || view.row_of[dropped] >= 0) continue;
                    if (policy)
                        assert_true(kept < dropped);
                    else
                        assert_true(weight[kept] >= weight[dropped]);
                }
        free(x.data), free(y.data);
        moe_layer_destroy(layer);
    }
    moe_ctx_destroy(ctx);
}

/* Masking tokens is the same as leaving them out: outputs, losses, statistics, gradients. */
static void masked_tokens_are_absent(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 2);
    enum { T = 60, D = 37 };
    moe_layer_desc desc = base_desc();
    desc.capacity_factor = 1.0f;
    moe_layer *layer = test_layer(ctx, &desc, T);
    moe_mat x = test_random(MOE_F32, T, D, 10), dy = test_random(MOE_F32, T, D, 11);
    moe_mat y = test_output(MOE_F32, T, D), dx = test_output(MOE_F32, T, D);
    moe_mat xs = test_random(MOE_F32, T, D, 10), dys = test_random(MOE_F32, T, D, 11);
    uint8_t mask[T];
    int64_t n = 0;
    for (int64_t t = 0; t < T; ++t) {
        mask[t] = t % 3 != 1;
        if (!mask[t]) continue;
        memcpy((float *)xs.data + n * D, (float *)x.data + t * D, D * sizeof(float));
        memcpy((float *)dys.data + n++ * D, (float *)dy.data + t * D, D * sizeof(float));
    }
    xs.rows = dys.rows = n;
    moe_call call = test_train_call;
    call.token_mask = mask;
    moe_stats with_mask = {.size = sizeof with_mask}, without = {.size = sizeof without};
    moe_param gate = {.size = sizeof gate};
    must(ctx, moe_layer_forward(layer, x, y, &call, &with_mask));
    must(ctx, moe_layer_backward(layer, x, dy, dx));
    must(ctx, moe_layer_param_by_name(layer, "gate.weight", &gate));
    float *gate_grad = malloc(7 * D * sizeof(float));
    assert_non_null(gate_grad);
    memcpy(gate_grad, gate.grad, 7 * D * sizeof(float));
    moe_layer_zero_grad(layer);
    moe_mat ys = test_output(MOE_F32, n, D), dxs = test_output(MOE_F32, n, D);
    must(ctx, moe_layer_forward(layer, xs, ys, &test_train_call, &without));
    must(ctx, moe_layer_backward(layer, xs, dys, dxs));
    assert_int_equal(with_mask.n_tokens, n);
    assert_int_equal(with_mask.n_dropped, without.n_dropped);
    assert_true(fabs(with_mask.loss - without.loss) < 1e-6);
    assert_true(fabs(with_mask.router_entropy - without.router_entropy) < 1e-5);
    for (int64_t t = 0, s = 0; t < T; ++t)
        for (int64_t i = 0; i < D; ++i) {
            if (!mask[t]) assert_true(test_at(y, t, i) == 0 && test_at(dx, t, i) == 0);
            if (mask[t]) assert_true(test_at(y, t, i) == test_at(ys, s, i));
            if (mask[t]) assert_true(fabs(test_at(dx, t, i) - test_at(dxs, s, i)) < 1e-5);
            if (i == D - 1) s += mask[t];
        }
    for (int64_t i = 0; i < 7 * D; ++i)
        assert_true(fabs((double)(gate_grad[i] - ((float *)gate.grad)[i])) < 1e-4);
    free(gate_grad), free(x.data), free(y.data), free(dx.data), free(dy.data);
    free(xs.data), free(ys.data), free(dxs.data), free(dys.data);
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
}

/* Each loss alone moves the gate. */
static void every_loss_alone_reaches_the_gate(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 2);
    for (int loss = 0; loss < 2; ++loss) {
        moe_layer_desc desc = base_desc();
        desc.aux_loss_coeff = loss == 0 ? 1.0f : 0;
        desc.z_loss_coeff = loss == 1 ? 1.0f : 0;
        moe_layer *layer = test_layer(ctx, &desc, 50);
        moe_mat x = test_random(MOE_F32, 50, 37, 12), y = test_output(MOE_F32, 50, 37);
        moe_mat none = test_output(MOE_F32, 50, 37);
        memset(none.data, 0, test_bytes(none)); /* the main loss is silent */
        moe_stats stats = {.size = sizeof stats};
        moe_param gate = {.size = sizeof gate};
        must(ctx, moe_layer_forward(layer, x, y, &test_train_call, &stats));
        must(ctx, moe_layer_backward(layer, x, none, (moe_mat){0}));
        must(ctx, moe_layer_param_by_name(layer, "gate.weight", &gate));
        double norm = 0;
        for (int64_t i = 0; i < 7 * 37; ++i) norm += pow((double)((float *)gate.grad)[i], 2);
        assert_true(sqrt(norm) > 1e-3);
        assert_true(stats.loss == (double)(loss ? desc.z_loss_coeff : desc.aux_loss_coeff) *
                                      (loss ? stats.z_loss : stats.aux_loss));
        free(x.data), free(y.data), free(none.data);
        moe_layer_destroy(layer);
    }
    moe_ctx_destroy(ctx);
}

/* Two gradient accumulations of half the loss make one whole; loss_scale is explicit and per call. */
static void gradients_accumulate(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 2);
    moe_layer_desc desc = base_desc();
    moe_layer *layer = test_layer(ctx, &desc, 40);
    moe_mat x = test_random(MOE_F32, 40, 37, 13), y = test_output(MOE_F32, 40, 37);
    moe_mat dy = test_random(MOE_F32, 40, 37, 14), half = test_random(MOE_F32, 40, 37, 14);
    for (int64_t i = 0; i < 40 * 37; ++i) ((float *)half.data)[i] *= 0.5f;
    moe_param gate = {.size = sizeof gate};
    float once[7 * 37];
    must(ctx, moe_layer_forward(layer, x, y, &test_train_call, NULL));
    must(ctx, moe_layer_backward(layer, x, dy, (moe_mat){0}));
    must(ctx, moe_layer_param_by_name(layer, "gate.weight", &gate));
    memcpy(once, gate.grad, sizeof once);
    moe_layer_zero_grad(layer);
    moe_call call = test_train_call;
    call.loss_scale = 0.5f;
    for (int i = 0; i < 2; ++i) {
        must(ctx, moe_layer_forward(layer, x, y, &call, NULL));
        must(ctx, moe_layer_backward(layer, x, half, (moe_mat){0}));
    }
    for (int64_t i = 0; i < 7 * 37; ++i)
        assert_true(fabs((double)(once[i] - ((float *)gate.grad)[i])) <= 1e-5 * (1 + fabs((double)once[i])));
    free(x.data), free(y.data), free(dy.data), free(half.data);
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_bits_for_any_thread_count), cmocka_unit_test(outputs_do_not_depend_on_company),
        cmocka_unit_test(kept_and_dropped_make_all),      cmocka_unit_test(drop_policies_keep_the_right_rows),
        cmocka_unit_test(masked_tokens_are_absent),       cmocka_unit_test(every_loss_alone_reaches_the_gate),
        cmocka_unit_test(gradients_accumulate),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
