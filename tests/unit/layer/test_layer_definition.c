/* test_layer_definition.c: the whole layer against its definition written out, and layers of known experts.
 * On every instruction set this machine has, in f32 and f64.
 */
#include "unit/layer/identity_fixture.h"

#include "support/bare_kind.h"

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
    for (int isa = 0; isa < TEST_ISAS_F32; ++isa)
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
                compare_with_definition(test_isas[isa], desc, MOE_F32, 2e-5);
                if (isa == 0) compare_with_definition(test_isas[isa], desc, MOE_F64, 1e-12);
            }
}

/* --- identity experts ------------------------------------------------------------------------------- */

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

static moe_expert_ops identity_kind(void) {
    moe_expert_ops ops = bare_kind("copy", identity_forward, identity_backward);
    ops.contiguous = true;
    return ops;
}

/* Weights that sum to one make a layer of identity experts the identity, forward and backward. */
static void identity_experts_make_the_identity(void **state) {
    (void)state;
    const moe_expert_ops ops = identity_kind();
    for (int isa = 0; isa < TEST_ISAS_F32; ++isa) {
        moe_ctx *ctx = test_ctx_if_supported(test_isas[isa]);
        if (!ctx) continue;
        enum { T = 53 };
        moe_layer_desc desc = base_desc();
        desc.expert = "copy";
        desc.aux_loss_coeff = desc.z_loss_coeff = 0;
        must(ctx, moe_expert_register(ctx, &ops));
        assert_int_equal(moe_expert_register(ctx, &ops), MOE_ERR_ARGUMENT); /* name taken */
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
    moe_expert_ops ops = identity_kind();
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

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layer_is_its_definition),
        cmocka_unit_test(identity_experts_make_the_identity),
        cmocka_unit_test(silent_experts_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
