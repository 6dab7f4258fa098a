/* test_layer_gradient.c: every gradient of the layer against finite differences in f64, over all
 * combinations of score order, activation, bias, capacity, shared expert, jitter and losses.
 * Bound: 1e-6 relative; the count of combinations and of numbers is printed.
 */
#include "support/layer_fixture.h"

#include "moekit/grad_check.h"

static const double bound = 1e-6;
static const char *const activations[] = {"swiglu", "gelu", "relu"};

static void describe(const moe_layer_desc *d, char *text, size_t size) {
    snprintf(text, size,
             "seed %llu: E %d K %d act %s bias %d before %d norm %d capacity %g %s shared %d jitter %g aux "
             "%g z %g",
             (unsigned long long)test_seed(), d->num_experts, d->top_k,
             d->activation ? d->activation : "swiglu", d->expert_bias, d->score_before_topk,
             d->norm_topk_prob, (double)d->capacity_factor, d->drop_policy ? d->drop_policy : "probs",
             d->num_shared_experts, (double)d->input_jitter_eps, (double)d->aux_loss_coeff,
             (double)d->z_loss_coeff);
}

static void check(moe_layer_desc desc, int64_t n_tokens, uint64_t salt, grad_check_result *total) {
    grad_check_options options = {.desc = desc, .n_tokens = n_tokens, .seed = test_seed() + salt};
    grad_check_result result;
    moe_error error = {0};
    char text[256];
    describe(&desc, text, sizeof text);
    if (grad_check(&options, &result, &error) != MOE_OK) fail_msg("%s: %s", text, error.text);
    for (int32_t i = 0; i < result.n_tensors; ++i)
        if (!(result.tensor[i].error < bound))
            fail_msg("%s: %s is off by %g", text, result.tensor[i].name, result.tensor[i].error);
    total->checked += result.checked;
    total->skipped += result.skipped;
    total->worst = fmax(total->worst, result.worst);
    ++total->n_tensors; /* combinations */
}

/* before, norm: the three legal orders of softmax and selection. */
static void set_score_order(moe_layer_desc *desc, int order) {
    desc->score_before_topk = order > 0;
    desc->norm_topk_prob = order == 2;
}

static void all_combinations(void **state) {
    (void)state;
    grad_check_result total = {0};
    for (int i = 0; i < 3 * 3 * 2 * 3 * 2; ++i) {
        moe_layer_desc desc = {.d_model = 5, .num_experts = 4, .top_k = 2, .expert_hidden_size = 3};
        set_score_order(&desc, i % 3);
        desc.activation = activations[i / 3 % 3];
        desc.expert_bias = i / 9 % 2;
        desc.capacity_factor = i / 18 % 3 > 0 ? 0.75f : 0;
        desc.drop_policy = i / 18 % 3 == 2 ? "position" : "probs";
        desc.num_shared_experts = i / 54 % 2;
        /* the rest alternates, so that each meets each of the above */
        desc.input_jitter_eps = i % 2 ? 0.1f : 0;
        desc.aux_loss_coeff = i % 5 != 0 ? 0.7f : 0;
        desc.z_loss_coeff = i % 7 != 0 ? 0.3f : 0;
        desc.routed_scaling_factor = i % 4 == 0 ? 2.5f : 0;
        check(desc, 6, (uint64_t)i, &total);
    }
    fprintf(stderr, "%d combinations, %lld gradients checked, %lld at kinks skipped, worst %.2g\n",
            total.n_tensors, (long long)total.checked, (long long)total.skipped, total.worst);
    assert_true(total.skipped * 20 < total.checked);
}

static void corner_shapes(void **state) {
    (void)state;
    grad_check_result total = {0};
    static const struct {
        int32_t E, K;
        int64_t T;
    } shapes[] = {
        {1,  1, 5},
        {3,  3, 5},
        {7,  1, 4},
        {11, 5, 1},
        {0,  0, 4},
        {64, 2, 3}
    };
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; ++s)
        for (int order = 0; order < 3; ++order) {
            moe_layer_desc desc = {
                .d_model = 5, .num_experts = shapes[s].E, .top_k = shapes[s].K, .expert_hidden_size = 3};
            if (shapes[s].E == 0) {
                desc.num_shared_experts = 2;
            } else {
                desc.aux_loss_coeff = desc.z_loss_coeff = 0.5f;
                set_score_order(&desc, order);
            }
            check(desc, shapes[s].T, 1000 + s, &total);
        }
    assert_true(total.checked > 1000);
}

/* --- a kind of the caller's own, on contiguous rows: y = scale[e] * x * x, scale a parameter --------------
 */

typedef struct square {
    moe_ctx *ctx;
    int64_t E;
    double *scale, *grad; /* [E] */
} square;

static moe_status square_create(moe_ctx *ctx, const moe_expert_desc *desc, void **self) {
    square *made = moe_ctx_alloc(ctx, sizeof *made);
    if (!made) return MOE_ERR_MEMORY;
    *made = (square){.ctx = ctx, .E = desc->n_experts};
    made->scale = moe_ctx_alloc(ctx, (size_t)made->E * sizeof *made->scale);
    if (!made->scale) return MOE_ERR_MEMORY;
    *self = made;
    return MOE_OK;
}
static void square_destroy(void *self) {
    square *it = self;
    moe_ctx_free(it->ctx, it->scale, (size_t)it->E * sizeof *it->scale);
    moe_ctx_free(it->ctx, it, sizeof *it);
}
static int32_t square_param_count(const void *self) {
    (void)self;
    return 1;
}
static moe_status square_param(const void *self, int32_t index, moe_param *param) {
    (void)index;
    const square *it = self;
    *param = (moe_param){
        .name = "scale",
        .dtype = MOE_F64,
        .n_dim = 1,
        .dim = {it->E, 1, 1},
        .value = it->scale,
        .grad = it->grad
    };
    return MOE_OK;
}
static void square_bind_grad(void *self, int32_t index, void *grad) {
    (void)index;
    ((square *)self)->grad = grad;
}
static size_t square_no_bytes(const void *self, int64_t rows) {
    (void)self, (void)rows;
    return 0;
}
static size_t square_no_scratch(const void *self, int64_t rows, moe_mode mode) {
    (void)self, (void)rows, (void)mode;
    return 0;
}
static moe_status square_forward(void *self, const moe_expert_io *io) {
    const square *it = self;
    assert_true(!io->row_token && !io->row_weight); /* contiguous rows, and the weights are the layer's */
    const double *in = io->in.data;
    double *out = io->out.data;
    for (int64_t e = 0; e < it->E; ++e)
        for (int64_t i = io->offset[e] * io->in.cols; i < io->offset[e + 1] * io->in.cols; ++i)
            out[i] = it->scale[e] * in[i] * in[i];
    return MOE_OK;
}
static moe_status square_backward(void *self, const moe_expert_io *io) {
    const square *it = self;
    assert_true(!io->row_token && !io->row_weight && !io->drow_weight);
    const double *in = io->in.data, *dout = io->dout.data;
    double *din = io->din.data;
    for (int64_t e = 0; e < it->E; ++e)
        for (int64_t i = io->offset[e] * io->in.cols; i < io->offset[e + 1] * io->in.cols; ++i) {
            din[i] = dout[i] * it->scale[e] * 2 * in[i];
            it->grad[e] += dout[i] * in[i] * in[i];
        }
    return MOE_OK;
}

static const moe_expert_ops square_ops = {.size = sizeof(moe_expert_ops),
                                          .name = "square",
                                          .contiguous = true,
                                          .create = square_create,
                                          .destroy = square_destroy,
                                          .param_count = square_param_count,
                                          .param = square_param,
                                          .bind_grad = square_bind_grad,
                                          .saved_bytes = square_no_bytes,
                                          .scratch_bytes = square_no_scratch,
                                          .forward = square_forward,
                                          .backward = square_backward};

/* The router's gradient of contiguous kinds is <dy, Y>, the layer's own work; so is the gathering. */
static void contiguous_kinds(void **state) {
    (void)state;
    for (int variant = 0; variant < 6; ++variant) {
        grad_check_result result;
        moe_error error = {0};
        moe_layer_desc desc = {.d_model = 5, .num_experts = 4, .top_k = 2, .expert = "square"};
        desc.expert_hidden_size = 3;
        desc.aux_loss_coeff = variant % 2 ? 0.5f : 0;
        desc.latent_size = variant == 2 ? 4 : 0;
        desc.capacity_factor = variant == 3 ? 0.75f : 0;
        if (variant == 4) desc.top_k = 1, desc.score_before_topk = true, desc.weight_apply = "input";
        if (variant == 5) desc.capacity_factor = 1, desc.pad_to_capacity = true;
        const grad_check_options options = {
            .desc = desc, .kind = &square_ops, .n_tokens = 7, .seed = test_seed() + (uint64_t)variant};
        if (grad_check(&options, &result, &error) != MOE_OK) fail_msg("variant %d: %s", variant, error.text);
        assert_true(result.n_tensors >= 3);
        for (int32_t i = 0; i < result.n_tensors; ++i) {
            if (!(result.tensor[i].error < bound))
                fail_msg("variant %d: %s is off by %g", variant, result.tensor[i].name,
                         result.tensor[i].error);
            assert_true(result.tensor[i].checked > 0 && result.tensor[i].largest > 1e-3);
        }
    }
}

/* The checker compares something: every tensor has a gradient worth the name, and rounding shows. */
static void checker_compares_live_gradients(void **state) {
    (void)state;
    grad_check_result result;
    moe_layer_desc desc = {.num_experts = 4, .top_k = 2, .aux_loss_coeff = 1};
    grad_check_options options = {.desc = desc, .n_tokens = 6, .seed = test_seed()};
    assert_int_equal(grad_check(&options, &result, NULL), MOE_OK);
    assert_true(result.worst < bound && result.worst > 0); /* zero would mean it compared nothing */
    assert_int_equal(result.n_tensors, 4);
    for (int32_t i = 0; i < result.n_tensors; ++i) assert_true(result.tensor[i].largest > 1e-3);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_combinations),
        cmocka_unit_test(corner_shapes),
        cmocka_unit_test(contiguous_kinds),
        cmocka_unit_test(checker_compares_live_gradients),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
