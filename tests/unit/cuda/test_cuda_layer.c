/* test_cuda_layer.c: the layer on a GPU against the f64 layer on the CPU: forward, backward, statistics,
 * steps, with the kernels of every GPU and, in bf16, with Hopper's. Odd shapes, fresh random numbers (the
 * seed is printed), poisoned outputs; norm(difference) / norm(f64) <= 1e-5, gradients <= 2e-5, a thousand
 * times that in bf16. Skipped by name where there is no GPU, no CUDA or no Hopper.
 */
#include "unit/cuda/cuda_pair.h"

#include "experts/activation.h"

static void compare_stats(const cuda_problem *p, const moe_stats *got, const moe_stats *wanted) {
    assert_int_equal(got->n_tokens, wanted->n_tokens);
    assert_int_equal(got->n_routed, wanted->n_routed);
    assert_int_equal(got->n_kept, wanted->n_kept);
    assert_int_equal(got->n_dead, wanted->n_dead);
    cuda_close_to("loss", p, &got->loss, &wanted->loss, 1, 1e-5);
    cuda_close_to("aux_loss", p, &got->aux_loss, &wanted->aux_loss, 1, 1e-5);
    cuda_close_to("z_loss", p, &got->z_loss, &wanted->z_loss, 1, 1e-5);
    /* H of p = exp(logit - lse): what f32 rounds off both moves p by a share of itself and so H by an
     * absolute number, in nats, however small H is */
    const double off = fabs(got->router_entropy - wanted->router_entropy);
    if (!(off <= 1e-5 * fmax(1, wanted->router_entropy)))
        fail_msg("%s, router_entropy: %.9g, not %.9g (seed %llu)", p->name, got->router_entropy,
                 wanted->router_entropy, (unsigned long long)test_seed());
}

static void compare_params(const cuda_problem *p, const cuda_pair *both, double bound) {
    for (int32_t i = 0; i < moe_layer_param_count(both->layer); ++i) {
        moe_param ours = {.size = sizeof ours}, theirs = {.size = sizeof theirs};
        must(both->gpu, moe_layer_param(both->layer, i, &ours));
        must(both->cpu, moe_layer_param(both->exact, i, &theirs));
        assert_int_equal(ours.grad != NULL, theirs.grad != NULL);
        double *value = cuda_fetched(both->gpu, ours.dtype, ours.value, cuda_numbers(&ours));
        cuda_close_to(ours.name, p, value, theirs.value, cuda_numbers(&ours), 1e-6);
        free(value);
        if (!ours.grad) continue;
        double *grad = cuda_fetched(both->gpu, MOE_F32, ours.grad, cuda_numbers(&ours));
        cuda_close_to(ours.name, p, grad, theirs.grad, cuda_numbers(&ours), bound);
        free(grad);
    }
}

/* The same layers asked without training, on memory that was reserved for it. */
static void compare_inference(const cuda_problem *p, const cuda_pair *both, const moe_mat *x64,
                              const moe_mat *x, double bound) {
    const int64_t T = p->tokens, d_out = T > 0 ? both->n_out / T : both->d;
    moe_call call = {.size = sizeof call, .sequence_length = p->sequence};
    double *y = malloc((size_t)(both->n_out + 1) * sizeof *y);
    void *poison = test_output(both->dtype, T, d_out).data;
    assert_non_null(y);
    must(both->gpu,
         moe_memory_copy(both->gpu, both->d_y, poison, (size_t)both->n_out * moe_dtype_bytes(both->dtype)));
    free(poison);
    if (p->masked) call.token_mask = both->mask;
    must(both->cpu, moe_layer_forward(both->exact, *x64, (moe_mat){y, T, d_out, 0, MOE_F64}, &call, NULL));
    if (p->masked) call.token_mask = both->d_mask;
    must(both->gpu,
         moe_layer_forward(both->layer, *x, (moe_mat){both->d_y, T, d_out, 0, both->dtype}, &call, NULL));
    must(both->gpu, moe_ctx_wait(both->gpu));
    double *got = cuda_fetched(both->gpu, both->dtype, both->d_y, both->n_out);
    cuda_close_to("y of inference", p, got, y, both->n_out, bound);
    free(y), free(got);
}

static void run(moe_ctx *gpu, const cuda_problem *p, moe_dtype dtype) {
    cuda_pair both = cuda_pair_open(gpu, p, dtype);
    const double bound = dtype == MOE_F32 ? 1e-5 : 1e-2;
    const int64_t T = p->tokens, d = both.d, d_out = T > 0 ? both.n_out / T : d;
    moe_call call = {.size = sizeof call,
                     .mode = MOE_TRAIN,
                     .step = 3,
                     .loss_scale = 1.5f,
                     .sequence_length = p->sequence};
    moe_stats got = {.size = sizeof got}, wanted = {.size = sizeof wanted};
    double *y = malloc((size_t)(both.n_out + 1) * sizeof *y),
           *dx = malloc((size_t)(both.n_in + 1) * sizeof *dx);
    const moe_mat x64 = {both.x64, T, d, 0, MOE_F64}, dy64 = {both.dy64, T, d_out, 0, MOE_F64};
    const moe_mat x = {both.d_x, T, d, 0, dtype}, dy = {both.d_dy, T, d_out, 0, dtype};
    assert_true(y && dx);
    assert_int_equal(moe_layer_routes_on_device(both.layer), p->on_device);
    if (p->masked) call.token_mask = both.mask;
    call.replay_expert = both.choice;
    if (p->reweighed) call.replay_weight = both.weight;
    must(both.cpu, moe_layer_forward(both.exact, x64, (moe_mat){y, T, d_out, 0, MOE_F64}, &call, &wanted));
    must(both.cpu, moe_layer_backward(both.exact, x64, dy64, (moe_mat){dx, T, d, 0, MOE_F64}));
    if (p->masked) call.token_mask = both.d_mask;
    call.replay_expert = both.d_choice;
    if (p->reweighed) call.replay_weight = both.d_weight;
    must(gpu, moe_layer_forward(both.layer, x, (moe_mat){both.d_y, T, d_out, 0, dtype}, &call, &got));
    must(gpu, moe_layer_backward(both.layer, x, dy, (moe_mat){both.d_dx, T, d, 0, dtype}));
    must(gpu, moe_ctx_wait(gpu));
    /* In 8 bits numbers that differ by their last digit may be neighbours: an eighth. In bf16 one in twenty
     * is, which is 2 % of a norm and several times that of small gradients; in f32 there is at most one. */
    const double back = !p->eight_bits ? 2 * bound : dtype == MOE_F32 ? 5e-2 : 1e-1;
    double *y_got = cuda_fetched(gpu, dtype, both.d_y, both.n_out),
           *dx_got = cuda_fetched(gpu, dtype, both.d_dx, both.n_in);
    cuda_close_to("y", p, y_got, y, both.n_out, bound);
    cuda_close_to("dx", p, dx_got, dx, both.n_in, back);
    free(y), free(dx), free(y_got), free(dx_got);
    compare_stats(p, &got, &wanted);
    compare_inference(p, &both, &x64, &x, bound);
    must(gpu, moe_layer_end_step(both.layer, NULL));
    must(both.cpu, moe_layer_end_step(both.exact, NULL));
    compare_params(p, &both, back);
    cuda_pair_close(&both);
}

/* clang-format off */
/* Beyond d_model 24, num_experts 8, top_k 2, expert_hidden_size 20. */
static const cuda_problem problems[] = {
    {.name = "swiglu", .tokens = 37, .on_device = true,
     .settings = "aux_loss_coeff=0.3 z_loss_coeff=0.2"},
    {.name = "masked", .tokens = 41, .on_device = true, .masked = true,
     .settings = "aux_loss_coeff=0.3 z_loss_coeff=0.2"},
    {.name = "many experts, losses", .tokens = 150, .on_device = true, .masked = true,
     .settings = "d_model=72 num_experts=260 top_k=6 expert_hidden_size=24 aux_loss_coeff=0.1 "
                 "z_loss_coeff=0.1"},
    {.name = "relu, odd widths", .tokens = 131, .on_device = true,
     .settings = "d_model=67 num_experts=5 top_k=3 expert_hidden_size=131 activation=relu "
                 "score_before_topk=true norm_topk_prob=true aux_loss_coeff=0.1"},
    {.name = "router frozen", .tokens = 59, .on_device = true,
     .settings = "d_model=64 expert_hidden_size=40 router_frozen=true aux_loss_coeff=0.1"},
    {.name = "gelu, biases", .tokens = 53, .on_device = true,
     .settings = "activation=gelu expert_bias=true router_bias=true z_loss_coeff=0.1"},
    {.name = "biases, whole lines", .tokens = 153, .on_device = true,
     .settings = "d_model=136 num_experts=6 expert_hidden_size=88 expert_bias=true"},
    {.name = "sigmoid, groups, bias", .tokens = 77, .on_device = true,
     .settings = "num_experts=12 top_k=3 score_function=sigmoid norm_topk_prob=true "
                 "routed_scaling_factor=2.5 num_groups=4 group_top_k=2 selection_bias=true "
                 "selection_bias_update_rate=0.01 aux_loss_coeff=0.2"},
    {.name = "sqrtsoftplus, raw scores", .tokens = 29, .on_device = true,
     .settings = "score_function=sqrtsoftplus aux_scores=raw aux_loss_coeff=0.2 z_loss_coeff=0.1"},
    {.name = "biased weights", .tokens = 33, .on_device = true,
     .settings = "score_function=sigmoid selection_bias=true selection_bias_in_weights=true "
                 "aux_loss_coeff=0.2"},
    {.name = "capacity by weight", .tokens = 90, .on_device = true, .masked = true,
     .settings = "capacity_factor=0.7 aux_loss_coeff=0.1"},
    {.name = "capacity by place", .tokens = 90, .on_device = true,
     .settings = "capacity_factor=0.6 drop_policy=position"},
    {.name = "capacity by rank, padded", .tokens = 90, .on_device = true, .masked = true,
     .settings = "capacity_factor=0.6 drop_policy=rank_major pad_to_capacity=true"},
    {.name = "shared expert with gate", .tokens = 45, .on_device = true, .masked = true,
     .settings = "num_shared_experts=2 shared_expert_hidden_size=12 shared_expert_gate=true "
                 "output_bias=true"},
    {.name = "latent", .tokens = 45, .on_device = true,
     .settings = "latent_size=10 expert_bias=true output_size=30"},
    {.name = "dense", .tokens = 45,
     .settings = "num_experts=0 top_k=0 expert_hidden_size=0 num_shared_experts=1 "
                 "shared_expert_hidden_size=40"},
    {.name = "one expert", .tokens = 45, .on_device = true, .masked = true,
     .settings = "num_experts=1 top_k=1 score_function=sigmoid"},
    {.name = "weight at the input", .tokens = 45, .on_device = true,
     .settings = "top_k=1 score_function=sigmoid weight_apply=input"},
    {.name = "clamped, interleaved", .tokens = 45, .on_device = true,
     .settings = "activation=quick_geglu expert_bias=true"},
    {.name = "8 bits saved", .tokens = 77, .on_device = true, .masked = true, .eight_bits = true,
     .settings = "d_model=64 expert_hidden_size=40 num_experts=6 saved_dtype=mxfp8 aux_loss_coeff=0.1"},
    {.name = "8 bits saved, odd", .tokens = 45, .on_device = true, .eight_bits = true,
     .settings = "expert_hidden_size=19 saved_dtype=mxfp8 dropout=0.2 expert_bias=true num_shared_experts=1"},
    {.name = "dropout, recompute", .tokens = 45, .on_device = true,
     .settings = "dropout=0.3 recompute=layer"},
    {.name = "identity", .tokens = 45, .on_device = true,
     .settings = "expert=identity score_before_topk=true"},
    {.name = "mixed kinds", .tokens = 60,
     .settings = "num_experts=5 expert_kinds=20,20,7,identity,zero expert_hidden_size=0"},
    {.name = "many tokens", .tokens = 3001, .on_device = true,
     .settings = "d_model=40 num_experts=37 top_k=4 expert_hidden_size=33 capacity_factor=1.1 "
                 "aux_loss_coeff=0.1"},
    {.name = "wide experts", .tokens = 700, .on_device = true,
     .settings = "d_model=192 num_experts=12 top_k=3 expert_hidden_size=264 aux_loss_coeff=0.1 "
                 "z_loss_coeff=0.1 score_before_topk=true norm_topk_prob=true"},
    /* Of so many numbers one may stand on the other side of relu's kink, which is 3e-4 of a gradient's norm:
     * a smooth activation. */
    {.name = "so wide that rows are put in order", .tokens = 1030, .on_device = true, .masked = true,
     .settings = "d_model=8 num_experts=4 top_k=4 expert_hidden_size=4096 activation=silu expert_bias=true"},
    {.name = "narrow experts", .tokens = 515, .on_device = true, .masked = true,
     .settings = "d_model=136 num_experts=40 top_k=5 expert_hidden_size=24 aux_loss_coeff=0.1 "
                 "routed_scaling_factor=2.5"},
    {.name = "choices alone have gradients", .tokens = 515, .on_device = true, .masked = true,
     .settings = "d_model=136 num_experts=40 top_k=5 expert_hidden_size=72 routed_scaling_factor=2.5"},
    {.name = "the same, shared expert", .tokens = 300, .on_device = true,
     .settings = "d_model=256 num_experts=12 top_k=4 expert_hidden_size=264 num_shared_experts=1"},
    {.name = "the same, biases", .tokens = 300, .on_device = true,
     .settings = "d_model=264 num_experts=8 top_k=3 expert_hidden_size=40 expert_bias=true"},
    {.name = "scaled by 0", .tokens = 61, .on_device = true, .masked = true,
     .settings = "routed_scaling_factor=-1 aux_loss_coeff=0.1 num_shared_experts=1"},
    {.name = "scaled by 0, many choices", .tokens = 61, .on_device = true,
     .settings = "num_experts=40 top_k=33 routed_scaling_factor=-1 z_loss_coeff=0.1 num_shared_experts=1"},
    {.name = "few tokens", .tokens = 5, .on_device = true, .masked = true,
     .settings = "d_model=320 num_experts=64 top_k=6 expert_hidden_size=72"},
    {.name = "relu, whole lines", .tokens = 300, .on_device = true,
     .settings = "d_model=256 num_experts=7 top_k=2 expert_hidden_size=128 activation=relu "
                 "score_function=sigmoid aux_loss_coeff=0.1"},
    {.name = "gelu, shared, capacity", .tokens = 300, .on_device = true, .masked = true,
     .settings = "d_model=72 num_experts=260 top_k=3 expert_hidden_size=200 activation=gelu "
                 "num_shared_experts=2 shared_expert_hidden_size=88 capacity_factor=1.1 router_bias=true"},
    {.name = "shared, latent, gate", .tokens = 310, .on_device = true,
     .settings = "d_model=160 latent_size=64 num_experts=9 top_k=3 expert_hidden_size=48 "
                 "num_shared_experts=1 shared_expert_hidden_size=208 shared_expert_gate=true"},
    {.name = "choices given", .tokens = 93, .on_device = true, .masked = true, .replayed = true,
     .settings = "num_experts=11 top_k=3 aux_loss_coeff=0.1 z_loss_coeff=0.1"},
    {.name = "choices given, sigmoid", .tokens = 61, .on_device = true, .replayed = true,
     .settings = "d_model=64 expert_hidden_size=40 score_function=sigmoid norm_topk_prob=true "
                 "aux_loss_coeff=0.1 capacity_factor=1.1"},
    {.name = "choices and weights given", .tokens = 61, .on_device = true, .masked = true, .replayed = true,
     .reweighed = true, .settings = "d_model=64 expert_hidden_size=40 aux_loss_coeff=0.1"},
    {.name = "choices given to a twin", .tokens = 40, .sequence = 10, .masked = true, .replayed = true,
     .settings = "seq_aux_loss_coeff=0.2 num_experts=9"},
    {.name = "no tokens", .tokens = 0, .on_device = true,
     .settings = "aux_loss_coeff=0.1"},
    {.name = "expert choice", .tokens = 40,
     .settings = "router_type=expert_choice"},
    {.name = "rounded rows", .tokens = 75, .masked = true,
     .settings = "num_experts=6 token_rounding=8 aux_loss_coeff=0.1"},
    {.name = "noisy top-k", .tokens = 40, .masked = true,
     .settings = "router_type=noisy_top_k load_loss_coeff=0.1 importance_loss_coeff=0.1"},
    {.name = "two levels", .tokens = 48,
     .settings = "router_type=gshard_top2 num_groups_outer=2 gshard_loss_coeff=0.1"},
    {.name = "sinkhorn", .tokens = 40,
     .settings = "router_type=sinkhorn"},
    {.name = "losses by sequence", .tokens = 40, .sequence = 10, .masked = true,
     .settings = "seq_aux_loss_coeff=0.2 entropy_loss_coeff=0.1"},
    {.name = "jitter, router in f64", .tokens = 40,
     .settings = "input_jitter_eps=0.1 router_dtype=f64"},
};
/* clang-format on */

static void layers_are_those_of_the_cpu(void **state) {
    moe_ctx *gpu = cuda_ctx(*state);
    if (!gpu) skip();
    const char *only = getenv("MOEKIT_TEST_PROBLEM");
    bool found = !only;
    for (size_t i = 0; i < sizeof problems / sizeof *problems; ++i) {
        if (only && strcmp(only, problems[i].name) != 0) continue;
        found = true;
        if (!cuda_is_hopper(gpu)) run(gpu, &problems[i], MOE_F32);
        run(gpu, &problems[i], MOE_BF16);
        fprintf(stderr, "  %s\n", problems[i].name);
    }
    if (!found) fail_msg("MOEKIT_TEST_PROBLEM is '%s', which no problem is called", only);
    moe_ctx_destroy(gpu);
}

/* Widths that Hopper's products take. Limits that are met are for f32: on which side of one a number of bf16
 * stands is chance; check_moe has them on Hopper. */
static void activation_is_that_of_the_cpu(moe_ctx *gpu, const char *name, moe_dtype dtype) {
    const char *more = "";
    char settings[200];
    if (moe_act_gated(moei_activation_find(name)->act))
        more = dtype == MOE_F32 ? "activation_limit=0.8 glu_linear_offset=0.5 glu_layout=halves"
                                : "activation_limit=60";
    snprintf(settings, sizeof settings, "d_model=16 expert_hidden_size=88 activation=%s %s", name, more);
    const cuda_problem p = {.name = name, .settings = settings, .tokens = 211, .on_device = true};
    run(gpu, &p, dtype);
}

static void activations_are_those_of_the_cpu(void **state) {
    moe_ctx *gpu = cuda_ctx(*state);
    if (!gpu) skip();
    for (size_t i = 0; moei_activation_names[i]; ++i) {
        if (!cuda_is_hopper(gpu)) activation_is_that_of_the_cpu(gpu, moei_activation_names[i], MOE_F32);
        activation_is_that_of_the_cpu(gpu, moei_activation_names[i], MOE_BF16);
    }
    moe_ctx_destroy(gpu);
}

int main(void) {
    int failed = 0, groups = 0;
    if (!cuda_is_here()) return 77;
    /* For sanitizers, which take their time: one family, one layer. */
    if (getenv("MOEKIT_TEST_PROBLEM")) cmocka_set_test_filter("layers_are_those_of_the_cpu");
    for (int i = 0; i < CUDA_FAMILIES; ++i) {
        if (!cuda_family_is_wanted(cuda_families[i])) continue;
        const struct CMUnitTest tests[] = {
            cmocka_unit_test_prestate(layers_are_those_of_the_cpu, cuda_families[i]),
            cmocka_unit_test_prestate(activations_are_those_of_the_cpu, cuda_families[i]),
        };
        failed += cmocka_run_group_tests_name(cuda_families[i], tests, NULL, NULL);
        ++groups;
    }
    return groups > 0 ? failed : 77;
}
