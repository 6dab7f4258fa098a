/* test_layer.c: identities of the whole layer, on every instruction set this machine has.
 * An identity needs no second implementation: permuting tokens permutes outputs, and so on.
 */
#include "support/layer_fixture.h"

static const char *const isas[] = {"ref", "avx2", "avx512"};
enum { ISAS = sizeof isas / sizeof *isas };

static moe_layer_desc base_desc(void) {
    return (moe_layer_desc){.size = sizeof(moe_layer_desc),
                            .d_model = 37,
                            .num_experts = 7,
                            .top_k = 3,
                            .expert_hidden_size = 19,
                            .expert_bias = true,
                            .aux_loss_coeff = 0.01f,
                            .z_loss_coeff = 0.001f};
}

/* Biases start at zero; identities should not lean on that. */
static void randomise_biases(moe_layer *layer) {
    for (int32_t i = 0; i < moe_layer_param_count(layer); ++i) {
        moe_param p = {.size = sizeof p};
        assert_int_equal(moe_layer_param(layer, i, &p), MOE_OK);
        if (strstr(p.name, "bias"))
            moe_random_normal(test_seed(), MOE_DRAW_TEST, 100 + (uint32_t)i, 0, p.dtype, p.value,
                              p.dim[0] * p.dim[1] * p.dim[2], 0.5);
    }
}

/* --- the layer against its definition, written out ------------------------------------------------- */

static double activation(const char *name, double gate, double up) {
    if (strcmp(name, "relu") == 0) return gate > 0 ? gate : 0;
    if (strcmp(name, "gelu") == 0) return 0.5 * gate * (1 + erf(gate / sqrt(2.0)));
    return gate / (1 + exp(-gate)) * up;
}

static double value_at(const moe_param *p, int64_t i) {
    return p->dtype == MOE_F64 ? ((const double *)p->value)[i] : (double)((const float *)p->value)[i];
}

/* y += weight * expert e of group `prefix` on token x[t], with plain loops. */
static void add_expert(moe_layer *layer, const char *prefix, int64_t e, double weight, moe_mat x, int64_t t,
                       double *y) {
    char name[64];
    moe_param up = {.size = sizeof up}, down = {.size = sizeof down};
    moe_param up_bias = {.size = sizeof up_bias}, down_bias = {.size = sizeof down_bias};
    snprintf(name, sizeof name, "%s.up.weight", prefix);
    assert_int_equal(moe_layer_param_by_name(layer, name, &up), MOE_OK);
    snprintf(name, sizeof name, "%s.down.weight", prefix);
    assert_int_equal(moe_layer_param_by_name(layer, name, &down), MOE_OK);
    const moe_layer_desc *desc = moe_layer_get_desc(layer);
    if (desc->expert_bias) {
        snprintf(name, sizeof name, "%s.up.bias", prefix);
        assert_int_equal(moe_layer_param_by_name(layer, name, &up_bias), MOE_OK);
        snprintf(name, sizeof name, "%s.down.bias", prefix);
        assert_int_equal(moe_layer_param_by_name(layer, name, &down_bias), MOE_OK);
    }
    int64_t d = up.dim[1], z = up.dim[2], n = down.dim[1];
    double a[512];
    assert_true(n <= 512);
    for (int64_t j = 0; j < n; ++j) {
        double part[2] = {0, 0};
        for (int64_t half = 0; half < z / n; ++half) {
            int64_t col = half * n + j;
            if (desc->expert_bias) part[half] = value_at(&up_bias, e * z + col);
            for (int64_t i = 0; i < d; ++i)
                part[half] += test_at(x, t, i) * value_at(&up, (e * d + i) * z + col);
        }
        a[j] = activation(desc->activation, part[0], part[1]);
    }
    for (int64_t i = 0; i < d; ++i) {
        double sum = desc->expert_bias ? value_at(&down_bias, e * d + i) : 0;
        for (int64_t j = 0; j < n; ++j) sum += a[j] * value_at(&down, (e * n + j) * d + i);
        y[i] += weight * sum;
    }
}

/* Top-k softmax routing of one token, written out. */
static void route_by_hand(moe_layer *layer, moe_mat x, int64_t t, int32_t *expert, double *weight) {
    const moe_layer_desc *desc = moe_layer_get_desc(layer);
    moe_param gate = {.size = sizeof gate};
    assert_int_equal(moe_layer_param_by_name(layer, "gate.weight", &gate), MOE_OK);
    double logit[64], lse = 0, sum = 0;
    bool taken[64] = {false};
    int32_t E = desc->num_experts;
    for (int32_t e = 0; e < E; ++e) {
        logit[e] = 0;
        for (int64_t i = 0; i < x.cols; ++i) logit[e] += test_at(x, t, i) * value_at(&gate, e * x.cols + i);
        lse += exp(logit[e]);
    }
    for (int32_t k = 0; k < desc->top_k; ++k) {
        int32_t best = -1;
        for (int32_t e = 0; e < E; ++e)
            if (!taken[e] && (best < 0 || logit[e] > logit[best])) best = e;
        taken[best] = true;
        expert[k] = best;
        weight[k] = exp(logit[best]);
        sum += weight[k];
    }
    for (int32_t k = 0; k < desc->top_k; ++k) {
        bool over_all = desc->score_before_topk && !desc->norm_topk_prob;
        weight[k] *= (double)desc->routed_scaling_factor / (over_all ? lse : sum);
    }
}

static void compare_with_definition(const char *isa, moe_layer_desc desc, moe_dtype dtype, double bound) {
    moe_ctx *ctx = test_ctx_if_supported(isa);
    if (!ctx) return;
    enum { T = 23 };
    desc.dtype = dtype;
    moe_layer *layer = test_layer(ctx, &desc, T);
    randomise_biases(layer);
    moe_mat x = test_random(dtype, T, desc.d_model, 1), y = test_output(dtype, T, desc.d_model);
    must(ctx, moe_layer_forward(layer, x, y, &test_train_call, NULL));
    double worst = 0, scale = 0;
    for (int64_t t = 0; t < T; ++t) {
        double want[64] = {0};
        int32_t expert[64];
        double weight[64];
        if (desc.num_experts) {
            route_by_hand(layer, x, t, expert, weight);
            for (int32_t k = 0; k < moe_layer_get_desc(layer)->top_k; ++k)
                add_expert(layer, "experts", expert[k], weight[k], x, t, want);
        }
        if (desc.num_shared_experts) add_expert(layer, "shared", 0, 1, x, t, want);
        for (int64_t i = 0; i < desc.d_model; ++i) {
            worst = fmax(worst, fabs(test_at(y, t, i) - want[i]));
            scale = fmax(scale, fabs(want[i]));
        }
    }
    assert_true(scale > 0.1); /* or the comparison says nothing */
    if (!(worst <= bound * scale)) fail_msg("isa %s: off by %g of %g", isa, worst, scale);
    free(x.data);
    free(y.data);
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
}

static void layer_is_its_definition(void **state) {
    (void)state;
    static const char *const activations[] = {"swiglu", "gelu", "relu"};
    for (int isa = 0; isa < ISAS; ++isa)
        for (int act = 0; act < 3; ++act)
            for (int variant = 0; variant < 5; ++variant) {
                moe_layer_desc desc = base_desc();
                desc.activation = activations[act];
                desc.expert_bias = variant % 2 == 0;
                desc.score_before_topk = variant >= 1 && variant < 4;
                desc.norm_topk_prob = variant == 2;
                desc.num_shared_experts = variant >= 3 ? 2 : 0;
                desc.routed_scaling_factor = variant == 3 ? 2.5f : 0;
                if (variant == 4) { /* no router, so none of its settings */
                    desc.num_experts = desc.top_k = 0;
                    desc.aux_loss_coeff = desc.z_loss_coeff = 0;
                }
                compare_with_definition(isas[isa], desc, MOE_F32, 2e-5);
                if (isa == 0) compare_with_definition(isas[isa], desc, MOE_F64, 1e-12);
            }
}

/* --- identity experts ------------------------------------------------------------------------------- */

typedef struct identity {
    int64_t d;
} identity;
static moe_status identity_create(moe_ctx *ctx, const moe_expert_desc *desc, void **self) {
    identity *made = moe_ctx_alloc(ctx, sizeof *made);
    if (!made) return MOE_ERR_MEMORY;
    made->d = desc->d_in;
    *self = made;
    return MOE_OK;
}
static void identity_destroy(void *self) {
    free(self);
}
static int32_t identity_params(const void *self) {
    (void)self;
    return 0;
}
static moe_status identity_param(const void *self, int32_t index, moe_param *param) {
    (void)self, (void)index, (void)param;
    return MOE_ERR_ARGUMENT;
}
static void identity_bind(void *self, int32_t index, void *grad) {
    (void)self, (void)index, (void)grad;
}
static size_t identity_saved(const void *self, int64_t rows) {
    (void)self, (void)rows;
    return 0;
}
static size_t identity_scratch(const void *self, int64_t rows, moe_mode mode) {
    (void)self, (void)rows, (void)mode;
    return 0;
}
static moe_status identity_forward(void *self, const moe_expert_io *io) {
    (void)self;
    assert_null(io->row_token); /* contiguous was asked for */
    memcpy(io->out.data, io->in.data, (size_t)(io->n_rows * io->in.cols) * moe_dtype_bytes(io->in.dtype));
    return MOE_OK;
}
static moe_status identity_backward(void *self, const moe_expert_io *io) {
    (void)self;
    memcpy(io->din.data, io->dout.data, (size_t)(io->n_rows * io->in.cols) * moe_dtype_bytes(io->in.dtype));
    return MOE_OK;
}

static const moe_expert_ops identity_ops = {.size = sizeof(moe_expert_ops),
                                            .name = "copy",
                                            .contiguous = true,
                                            .create = identity_create,
                                            .destroy = identity_destroy,
                                            .param_count = identity_params,
                                            .param = identity_param,
                                            .bind_grad = identity_bind,
                                            .saved_bytes = identity_saved,
                                            .scratch_bytes = identity_scratch,
                                            .forward = identity_forward,
                                            .backward = identity_backward};

/* Weights that sum to one make a layer of identity experts the identity, forward and backward. */
static void identity_experts_make_the_identity(void **state) {
    (void)state;
    for (int isa = 0; isa < ISAS; ++isa) {
        moe_ctx *ctx = test_ctx_if_supported(isas[isa]);
        if (!ctx) continue;
        enum { T = 53 };
        moe_layer_desc desc = base_desc();
        desc.expert = "copy";
        desc.aux_loss_coeff = desc.z_loss_coeff = 0;
        must(ctx, moe_expert_register(ctx, &identity_ops));
        assert_int_equal(moe_expert_register(ctx, &identity_ops), MOE_ERR_ARGUMENT); /* name taken */
        moe_layer *layer = test_layer(ctx, &desc, T);
        moe_mat x = test_random(MOE_F32, T, 37, 2), dy = test_random(MOE_F32, T, 37, 3);
        moe_mat y = test_output(MOE_F32, T, 37), dx = test_output(MOE_F32, T, 37);
        must(ctx, moe_layer_forward(layer, x, y, &test_train_call, NULL));
        must(ctx, moe_layer_backward(layer, x, dy, dx));
        for (int64_t t = 0; t < T; ++t)
            for (int64_t i = 0; i < 37; ++i) {
                assert_true(fabs(test_at(y, t, i) - test_at(x, t, i)) < 1e-5);
                /* all weight gradients of a token are equal, so the softmax passes nothing on */
                assert_true(fabs(test_at(dx, t, i) - test_at(dy, t, i)) < 1e-4);
            }
        free(x.data), free(y.data), free(dy.data), free(dx.data);
        moe_layer_destroy(layer);
        moe_ctx_destroy(ctx);
    }
}

static moe_status silent_forward(void *self, const moe_expert_io *io) {
    (void)self;
    (void)io;
    return MOE_ERR_INTERNAL;
}

/* A kind that fails without a word is named, not the failure before it; names that a list cannot hold are
 * refused. */
static void silent_experts_are_named(void **state) {
    (void)state;
    static const char *const unfit[] = {"a b", "a,b", "64"};
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_expert_ops ops = identity_ops;
    for (size_t i = 0; i < sizeof unfit / sizeof *unfit; ++i) {
        ops.name = unfit[i];
        assert_int_equal(moe_expert_register(ctx, &ops), MOE_ERR_ARGUMENT);
        assert_non_null(strstr(moe_ctx_error(ctx), "choose a name"));
    }
    ops.name = "silent";
    ops.forward = silent_forward;
    must(ctx, moe_expert_register(ctx, &ops));
    moe_layer_desc desc = base_desc();
    desc.expert = "silent";
    moe_layer *layer = test_layer(ctx, &desc, 8);
    moe_mat x = test_random(MOE_F32, 8, 37, 2), y = test_output(MOE_F32, 8, 37);
    assert_int_equal(moe_layer_forward(layer, x, y, &test_train_call, NULL), MOE_ERR_INTERNAL);
    if (!strstr(moe_ctx_error(ctx), "expert 'silent': its forward failed"))
        fail_msg("%s", moe_ctx_error(ctx));
    free(x.data), free(y.data);
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
}

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
    for (int isa = 0; isa < ISAS; ++isa) {
        moe_ctx *one = test_ctx_if_supported(isas[isa]);
        if (!one) continue;
        moe_layer_desc desc = base_desc();
        desc.num_shared_experts = 1;
        desc.input_jitter_eps = 0.05f;
        desc.capacity_factor = 1.0f;
        moe_mat x = test_random(MOE_F32, 301, 37, 4), dy = test_random(MOE_F32, 301, 37, 5);
        run want = run_once(one, &desc, x, dy);
        for (int32_t threads = 2; threads <= 4; threads += 2) {
            moe_ctx *many = test_ctx(isas[isa], threads);
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
    for (int isa = 0; isa < ISAS; ++isa) {
        moe_ctx *ctx = test_ctx_if_supported(isas[isa]);
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

/* Each loss alone moves the gate. (Pain P18: a balance loss without a gradient.) */
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
        cmocka_unit_test(layer_is_its_definition),
        cmocka_unit_test(identity_experts_make_the_identity),
        cmocka_unit_test(silent_experts_are_named),
        cmocka_unit_test(same_bits_for_any_thread_count),
        cmocka_unit_test(outputs_do_not_depend_on_company),
        cmocka_unit_test(kept_and_dropped_make_all),
        cmocka_unit_test(drop_policies_keep_the_right_rows),
        cmocka_unit_test(masked_tokens_are_absent),
        cmocka_unit_test(every_loss_alone_reaches_the_gate),
        cmocka_unit_test(gradients_accumulate),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
