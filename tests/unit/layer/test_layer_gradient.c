/* test_layer_gradient.c: every gradient of the layer against finite differences in f64, over layers in which
 * every two values of options meet (support/cover.h), corner shapes and kinds of the caller's own.
 * Bound: 1e-6 relative; the count of descriptors and of numbers is printed.
 */
#include "support/bare_kind.h"
#include "support/cover.h"

#include "moekit/grad_check.h"
#include "route/names.h"

static const double bound = 1e-6;

static void check(moe_layer_desc desc, int64_t n_tokens, uint64_t salt, grad_check_result *total) {
    grad_check_options options = {.desc = desc, .n_tokens = n_tokens, .seed = test_seed() + salt};
    grad_check_result result;
    moe_error error = {0};
    if (grad_check(&options, &result, &error) != MOE_OK)
        fail_msg("E %d K %d T %lld: %s", desc.num_experts, desc.top_k, (long long)n_tokens, error.text);
    for (int32_t i = 0; i < result.n_tensors; ++i)
        if (!(result.tensor[i].error < bound))
            fail_msg("E %d K %d T %lld: %s is off by %g", desc.num_experts, desc.top_k, (long long)n_tokens,
                     result.tensor[i].name, result.tensor[i].error);
    total->checked += result.checked;
}

static bool is(const char *value, const char *name) {
    return value && strcmp(value, name) == 0;
}

/* Forced logits hand the router a gradient as if they were its own, which is no difference of anything. */
static bool straight_through(const moe_layer_desc *d, const char *tensor) {
    return is(d->router_type, "random") && (strcmp(tensor, "x") == 0 || strncmp(tensor, "gate", 4) == 0);
}

/* Of a whole set. Some tensors have nothing that is smooth: the first numbers of x key the noise of balanced,
 * and a plan of sinkhorn over tokens that are all alike leaves the choice to rounding. */
typedef struct tally {
    grad_check_result sum; /* n_tensors: descriptors */
    int tensors, unchecked;
} tally;

/* The weights of the balanced router are constants: its gate learns from other losses at best. Scaled by 0
 * they hand nothing back to experts and gate: without_weights has such layers. */
static bool constant(const char *key, const char *value) {
    return is(value, "balanced") || strncmp(key, "moe.fake_", 9) == 0 ||
           (is(key, "moe.routed_scaling_factor") && is(value, "-1"));
}

/* Checks one problem of the set; returns whether every tensor had a gradient worth the name. */
static bool check_problem(const cover_set *set, int i, tally *all) {
    grad_check_result *total = &all->sum;
    const cover_problem *p = &set->problem[i];
    cover_call call;
    char text[COVER_TEXT];
    grad_check_result result;
    moe_error error = {0};
    bool alive = true;
    cover_begin_call(p, &call);
    cover_describe(p, text);
    moe_layer_desc desc = cover_desc(p, MOE_F64);
    desc.saved_dtype = "auto"; /* 8 bits are near the gradient only: unit/experts/test_experts.c */
    const grad_check_options options = {.desc = desc,
                                        .call = &call.call,
                                        .replay = p->replayed,
                                        .n_tokens = p->n_tokens,
                                        .seed = test_seed() + (uint64_t)i};
    if (grad_check(&options, &result, &error) != MOE_OK) fail_msg("%s:%s", error.text, text);
    for (int32_t k = 0; k < result.n_tensors; ++k) {
        const grad_check_tensor *tensor = &result.tensor[k];
        if (straight_through(&p->desc, tensor->name)) continue;
        if (!(tensor->error < bound)) fail_msg("%s is off by %g:%s", tensor->name, tensor->error, text);
        ++all->tensors;
        all->unchecked += tensor->checked == 0;
        alive = alive && tensor->checked > 0 && tensor->largest > 1e-6;
        total->checked += tensor->checked;
        total->skipped += tensor->skipped;
        total->worst = fmax(total->worst, tensor->error);
    }
    ++total->n_tensors; /* descriptors */
    return alive;
}

/* Experts without rows and weights that are constants have no gradient; but for each value of an option there
 * is a layer in which every tensor has one, for most pairs too. */
static void every_pair_of_options(void **state) {
    (void)state;
    tally all = {.tensors = 0};
    cover_set set = cover_make(test_seed());
    bool *alive = calloc((size_t)set.n_problems, sizeof *alive);
    assert_non_null(alive);
    int n_alive = 0;
    for (int i = 0; i < set.n_problems; ++i) n_alive += alive[i] = check_problem(&set, i, &all);
    const int64_t pairs = cover_pairs(&set, alive);
    fprintf(stderr, "%d descriptors, %lld gradients checked, %lld at kinks skipped, worst %.2g\n",
            all.sum.n_tensors, (long long)all.sum.checked, (long long)all.sum.skipped, all.sum.worst);
    fprintf(stderr, "every tensor alive in %d of them, which hold %lld of %lld pairs\n", n_alive,
            (long long)pairs, (long long)set.n_feasible);
    fprintf(stderr, "%d of %d tensors with nothing but kinks\n", all.unchecked, all.tensors);
    assert_true(all.unchecked * 200 < all.tensors);
    assert_true(all.sum.skipped * 20 < all.sum.checked);
    assert_true(n_alive * 5 > set.n_problems * 2 && pairs * 5 > set.n_feasible * 4);
    assert_int_equal(cover_missing(&set, alive, constant), 0);
    free(alive);
    cover_free(&set);
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
                desc.score_before_topk = order > 0;
                desc.norm_topk_prob = order == 2;
            }
            check(desc, shapes[s].T, 1000 + s, &total);
        }
    assert_true(total.checked > 1000);
}

/* Weights of 0: experts have gradients of exactly 0, gate, shared experts and x learn from what is left. */
static void without_weights(void **state) {
    (void)state;
    for (size_t s = 0; moei_scores[s]; ++s) {
        const grad_check_options options = {
            .desc = {.d_model = 5,
                     .num_experts = 4,
                     .top_k = 2,
                     .expert_hidden_size = 3,
                     .score_function = moei_scores[s],
                     .routed_scaling_factor = MOE_ZERO,
                     .num_shared_experts = 1,
                     .aux_loss_coeff = 0.5f,
                     .z_loss_coeff = 0.3f},
            .n_tokens = 9,
            .seed = test_seed() + s
        };
        grad_check_result result;
        moe_error error = {0};
        if (grad_check(&options, &result, &error) != MOE_OK) fail_msg("%s: %s", moei_scores[s], error.text);
        for (int32_t i = 0; i < result.n_tensors; ++i) {
            const grad_check_tensor *tensor = &result.tensor[i];
            const bool routed = strncmp(tensor->name, "experts.", 8) == 0;
            if (!(tensor->error < bound) || tensor->checked == 0 || (tensor->largest > 0) == routed)
                fail_msg("%s: %s is off by %g, %lld checked, the largest %g", moei_scores[s], tensor->name,
                         tensor->error, (long long)tensor->checked, tensor->largest);
        }
    }
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
    if (!made->scale) {
        moe_ctx_free(ctx, made, sizeof *made);
        return MOE_ERR_MEMORY;
    }
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
                                          .saved_bytes = bare_saved_bytes,
                                          .scratch_bytes = bare_scratch_bytes,
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
        cmocka_unit_test(every_pair_of_options),
        cmocka_unit_test(corner_shapes),
        cmocka_unit_test(without_weights),
        cmocka_unit_test(contiguous_kinds),
        cmocka_unit_test(checker_compares_live_gradients),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
