/* test_cuda_layer.c: the layer on a GPU against the f64 layer on the CPU: forward, backward, statistics,
 * steps, with the kernels of every GPU and, in bf16, with Hopper's. Odd shapes, fresh random numbers (the
 * seed is printed), poisoned outputs; norm(difference) / norm(f64) <= 1e-5, gradients <= 2e-5, a thousand
 * times that in bf16. Skipped by name where there is no GPU, no CUDA or no Hopper.
 */
#include "unit/cuda/cuda_fixture.h"

#include "core/real.h"
#include "experts/activation.h"

typedef struct problem {
    const char *name, *settings;
    int64_t tokens;
    bool masked, on_device; /* on_device: the device's kernels are to route it */
    bool eight_bits;        /* Z is saved in 8 bits */
    int64_t sequence;
} problem;

static double *widened(moe_dtype dtype, const void *from, int64_t n) {
    double *value = malloc((size_t)(n + 1) * sizeof *value);
    assert_non_null(value);
    for (int64_t i = 0; i < n; ++i) value[i] = moei_real_load(dtype, from, i);
    return value;
}

/* N(0, std^2), rounded to `dtype`. */
static void *drawn(moe_dtype dtype, uint32_t purpose, int64_t n, double std) {
    float *exact = malloc((size_t)(n + 1) * sizeof *exact);
    void *rounded = malloc((size_t)(n + 1) * moe_dtype_bytes(dtype));
    assert_true(exact && rounded);
    moe_random_normal(test_seed(), MOE_DRAW_TEST, purpose, 0, MOE_F32, exact, n, std);
    for (int64_t i = 0; i < n; ++i) moei_real_store(dtype, rounded, i, (double)exact[i]);
    free(exact);
    return rounded;
}

static int64_t numbers(const moe_param *param) {
    return param->dim[0] * param->dim[1] * param->dim[2];
}

/* Device memory as doubles on the host. */
static double *fetched(moe_ctx *ctx, moe_dtype dtype, const void *device, int64_t n) {
    const size_t bytes = (size_t)n * moe_dtype_bytes(dtype);
    void *host = malloc(bytes + 1);
    assert_non_null(host);
    must(ctx, moe_memory_copy(ctx, host, device, bytes));
    double *value = widened(dtype, host, n);
    free(host);
    return value;
}

static void close_to(const char *what, const problem *p, const double *got, const double *wanted, int64_t n,
                     double bound) {
    double difference = 0, size = 0;
    for (int64_t i = 0; i < n; ++i) {
        if (isnan(got[i]))
            fail_msg("%s, %s: number %lld is NaN (seed %llu)", p->name, what, (long long)i,
                     (unsigned long long)test_seed());
        difference += (got[i] - wanted[i]) * (got[i] - wanted[i]);
        size += wanted[i] * wanted[i];
    }
    const double relative = sqrt(difference) / (sqrt(size) + 1e-30);
    if (size > 0 ? relative > bound : difference > 0)
        fail_msg("%s, %s: off by %.3g, bound %.3g (seed %llu)", p->name, what, relative, bound,
                 (unsigned long long)test_seed());
}

/* One layer in both places, the same numbers in each. */
typedef struct pair {
    moe_ctx *cpu, *gpu;
    moe_layer *exact, *layer;
    moe_dtype dtype;
    void *x, *dy; /* host */
    double *x64, *dy64;
    void *d_x, *d_y, *d_dy, *d_dx, *d_mask;
    uint8_t *mask;
    int64_t d, n_in, n_out;
} pair;

static void copy_params(const pair *p) {
    for (int32_t i = 0; i < moe_layer_param_count(p->layer); ++i) {
        moe_param ours = {.size = sizeof ours}, theirs = {.size = sizeof theirs};
        must(p->gpu, moe_layer_param(p->layer, i, &ours));
        must(p->cpu, moe_layer_param(p->exact, i, &theirs));
        assert_string_equal(ours.name, theirs.name);
        const int64_t n = numbers(&ours);
        void *value = drawn(ours.dtype, 100 + (uint32_t)i, n,
                            ours.buffer      ? 0.05
                            : ours.n_dim > 1 ? 0.4
                                             : 0.1);
        must(p->gpu, moe_memory_copy(p->gpu, ours.value, value, (size_t)n * moe_dtype_bytes(ours.dtype)));
        for (int64_t j = 0; j < n; ++j) ((double *)theirs.value)[j] = moei_real_load(ours.dtype, value, j);
        free(value);
    }
}

static void *upload(moe_ctx *ctx, const void *from, size_t bytes) {
    void *device = moe_memory_alloc(ctx, bytes + 1);
    assert_non_null(device);
    must(ctx, moe_memory_copy(ctx, device, from, bytes));
    return device;
}

static moe_layer_desc described(const problem *p) {
    moe_layer_desc desc = {
        .size = sizeof desc, .d_model = 24, .num_experts = 8, .top_k = 2, .expert_hidden_size = 20};
    static char text[400]; /* names of kinds point into it */
    char *rest = text;
    snprintf(text, sizeof text, "%s", p->settings);
    for (char *key; (key = strtok_r(rest, " ", &rest)) != NULL;) {
        char *value = strchr(key, '=');
        moe_error error = {0};
        assert_non_null(value);
        *value++ = 0;
        if (moe_layer_desc_set(&desc, key, value, &error) != MOE_OK) fail_msg("%s: %s", p->name, error.text);
    }
    return desc;
}

static pair open_pair(moe_ctx *gpu, const problem *p, moe_dtype dtype) {
    pair both = {.gpu = gpu, .cpu = test_ctx("ref", 1), .dtype = dtype};
    moe_layer_desc desc = described(p);
    const int32_t d_out = desc.output_size ? desc.output_size : desc.d_model;
    const size_t real = moe_dtype_bytes(dtype);
    both.d = desc.d_model;
    desc.dtype = MOE_F64;
    must(both.cpu, moe_layer_create(both.cpu, &desc, &both.exact));
    must(both.cpu, moe_layer_reserve(both.exact, p->tokens, MOE_TRAIN));
    desc.dtype = dtype;
    must(gpu, moe_layer_create(gpu, &desc, &both.layer));
    must(gpu, moe_layer_reserve(both.layer, p->tokens, MOE_TRAIN));
    copy_params(&both);
    both.n_in = p->tokens * desc.d_model;
    both.n_out = p->tokens * d_out;
    both.x = drawn(dtype, 1, both.n_in, 1);
    both.dy = drawn(dtype, 2, both.n_out, 1);
    both.x64 = widened(dtype, both.x, both.n_in);
    both.dy64 = widened(dtype, both.dy, both.n_out);
    both.d_x = upload(gpu, both.x, (size_t)both.n_in * real);
    both.d_dy = upload(gpu, both.dy, (size_t)both.n_out * real);
    void *poison = test_output(dtype, p->tokens, desc.d_model > d_out ? desc.d_model : d_out).data;
    both.d_y = upload(gpu, poison, (size_t)both.n_out * real);
    both.d_dx = upload(gpu, poison, (size_t)both.n_in * real);
    free(poison);
    both.mask = malloc((size_t)p->tokens + 1);
    assert_non_null(both.mask);
    for (int64_t t = 0; t < p->tokens; ++t) both.mask[t] = t % 5 != 2;
    both.d_mask = upload(gpu, both.mask, (size_t)p->tokens);
    return both;
}

static void close_pair(pair *both) {
    void *device[] = {both->d_x, both->d_y, both->d_dy, both->d_dx, both->d_mask};
    for (size_t i = 0; i < sizeof device / sizeof *device; ++i) moe_memory_free(both->gpu, device[i], 1);
    moe_layer_destroy(both->layer);
    moe_layer_destroy(both->exact);
    moe_ctx_destroy(both->cpu);
    free(both->x), free(both->dy), free(both->x64), free(both->dy64), free(both->mask);
}

static void compare_stats(const problem *p, const moe_stats *got, const moe_stats *wanted) {
    assert_int_equal(got->n_tokens, wanted->n_tokens);
    assert_int_equal(got->n_routed, wanted->n_routed);
    assert_int_equal(got->n_kept, wanted->n_kept);
    assert_int_equal(got->n_dead, wanted->n_dead);
    close_to("loss", p, &got->loss, &wanted->loss, 1, 1e-5);
    close_to("aux_loss", p, &got->aux_loss, &wanted->aux_loss, 1, 1e-5);
    close_to("z_loss", p, &got->z_loss, &wanted->z_loss, 1, 1e-5);
    /* H of p = exp(logit - lse): what f32 rounds off both moves p by a share of itself and so H by an
     * absolute number, in nats, however small H is */
    const double off = fabs(got->router_entropy - wanted->router_entropy);
    if (!(off <= 1e-5 * fmax(1, wanted->router_entropy)))
        fail_msg("%s, router_entropy: %.9g, not %.9g (seed %llu)", p->name, got->router_entropy,
                 wanted->router_entropy, (unsigned long long)test_seed());
}

static void compare_params(const problem *p, const pair *both, double bound) {
    for (int32_t i = 0; i < moe_layer_param_count(both->layer); ++i) {
        moe_param ours = {.size = sizeof ours}, theirs = {.size = sizeof theirs};
        must(both->gpu, moe_layer_param(both->layer, i, &ours));
        must(both->cpu, moe_layer_param(both->exact, i, &theirs));
        assert_int_equal(ours.grad != NULL, theirs.grad != NULL);
        double *value = fetched(both->gpu, ours.dtype, ours.value, numbers(&ours));
        close_to(ours.name, p, value, theirs.value, numbers(&ours), 1e-6);
        free(value);
        if (!ours.grad) continue;
        double *grad = fetched(both->gpu, MOE_F32, ours.grad, numbers(&ours));
        close_to(ours.name, p, grad, theirs.grad, numbers(&ours), bound);
        free(grad);
    }
}

/* The same layers asked without training, on memory that was reserved for it. */
static void compare_inference(const problem *p, const pair *both, const moe_mat *x64, const moe_mat *x,
                              double bound) {
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
    double *got = fetched(both->gpu, both->dtype, both->d_y, both->n_out);
    close_to("y of inference", p, got, y, both->n_out, bound);
    free(y), free(got);
}

static void run(moe_ctx *gpu, const problem *p, moe_dtype dtype) {
    pair both = open_pair(gpu, p, dtype);
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
    must(both.cpu, moe_layer_forward(both.exact, x64, (moe_mat){y, T, d_out, 0, MOE_F64}, &call, &wanted));
    must(both.cpu, moe_layer_backward(both.exact, x64, dy64, (moe_mat){dx, T, d, 0, MOE_F64}));
    if (p->masked) call.token_mask = both.d_mask;
    must(gpu, moe_layer_forward(both.layer, x, (moe_mat){both.d_y, T, d_out, 0, dtype}, &call, &got));
    must(gpu, moe_layer_backward(both.layer, x, dy, (moe_mat){both.d_dx, T, d, 0, dtype}));
    must(gpu, moe_ctx_wait(gpu));
    /* In 8 bits numbers that differ by their last digit may be neighbours: an eighth. In bf16 one in twenty
     * is, which is 2 % of a norm and several times that of small gradients; in f32 there is at most one. */
    const double back = !p->eight_bits ? 2 * bound : dtype == MOE_F32 ? 5e-2 : 1e-1;
    double *y_got = fetched(gpu, dtype, both.d_y, both.n_out),
           *dx_got = fetched(gpu, dtype, both.d_dx, both.n_in);
    close_to("y", p, y_got, y, both.n_out, bound);
    close_to("dx", p, dx_got, dx, both.n_in, back);
    free(y), free(dx), free(y_got), free(dx_got);
    compare_stats(p, &got, &wanted);
    compare_inference(p, &both, &x64, &x, bound);
    must(gpu, moe_layer_end_step(both.layer, NULL));
    must(both.cpu, moe_layer_end_step(both.exact, NULL));
    compare_params(p, &both, back);
    close_pair(&both);
}

/* clang-format off */
/* Beyond d_model 24, num_experts 8, top_k 2, expert_hidden_size 20. */
static const problem problems[] = {
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
    {.name = "narrow experts", .tokens = 515, .on_device = true, .masked = true,
     .settings = "d_model=136 num_experts=40 top_k=5 expert_hidden_size=24 aux_loss_coeff=0.1 "
                 "routed_scaling_factor=2.5"},
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

/* In f32 Hopper has the kernels of every GPU. */
static bool is_hopper(const moe_ctx *gpu) {
    return strcmp(moe_ctx_isa(gpu), "sm90") == 0;
}

static void layers_are_those_of_the_cpu(void **state) {
    moe_ctx *gpu = cuda_ctx(*state);
    if (!gpu) skip();
    const char *only = getenv("MOEKIT_TEST_PROBLEM");
    bool found = !only;
    for (size_t i = 0; i < sizeof problems / sizeof *problems; ++i) {
        if (only && strcmp(only, problems[i].name) != 0) continue;
        found = true;
        if (!is_hopper(gpu)) run(gpu, &problems[i], MOE_F32);
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
    const problem p = {.name = name, .settings = settings, .tokens = 211, .on_device = true};
    run(gpu, &p, dtype);
}

static void activations_are_those_of_the_cpu(void **state) {
    moe_ctx *gpu = cuda_ctx(*state);
    if (!gpu) skip();
    for (size_t i = 0; moei_activation_names[i]; ++i) {
        if (!is_hopper(gpu)) activation_is_that_of_the_cpu(gpu, moei_activation_names[i], MOE_F32);
        activation_is_that_of_the_cpu(gpu, moei_activation_names[i], MOE_BF16);
    }
    moe_ctx_destroy(gpu);
}

/* y of inference, and the view of its routing, whose plan few tokens do without until somebody asks: after
 * the call, when its mask may be gone. */
static void infer(moe_ctx *gpu, const problem *p, moe_dtype dtype) {
    pair both = open_pair(gpu, p, dtype);
    const int64_t T = p->tokens, d = both.d;
    moe_call call = {.size = sizeof call};
    moe_routing_view got = {.size = sizeof got}, wanted = {.size = sizeof wanted};
    double *y = malloc((size_t)both.n_out * sizeof *y);
    assert_non_null(y);
    const moe_mat x64 = {both.x64, T, d, 0, MOE_F64}, x = {both.d_x, T, d, 0, dtype};
    if (p->masked) call.token_mask = both.mask;
    must(both.cpu, moe_layer_forward(both.exact, x64, (moe_mat){y, T, d, 0, MOE_F64}, &call, NULL));
    if (p->masked) call.token_mask = both.d_mask;
    must(gpu, moe_layer_forward(both.layer, x, (moe_mat){both.d_y, T, d, 0, dtype}, &call, NULL));
    double *y_got = fetched(gpu, dtype, both.d_y, both.n_out);
    close_to("y", p, y_got, y, both.n_out, dtype == MOE_F32 ? 1e-5 : 1e-2);
    must(both.cpu, moe_layer_routing(both.exact, &wanted));
    moe_memory_free(gpu, both.d_mask, 1);
    both.d_mask = NULL;
    for (int asked = 0; asked < 2; ++asked) must(gpu, moe_layer_routing(both.layer, &got));
    const size_t slots = (size_t)(T * wanted.top_k), E = (size_t)wanted.n_experts;
    int32_t *row_of = malloc(slots * sizeof *row_of);
    int64_t *kept = malloc(E * sizeof *kept);
    assert_true(row_of && kept);
    must(gpu, moe_memory_copy(gpu, row_of, got.row_of, slots * sizeof *row_of));
    must(gpu, moe_memory_copy(gpu, kept, got.kept, E * sizeof *kept));
    assert_memory_equal(row_of, wanted.row_of, slots * sizeof *row_of);
    assert_memory_equal(kept, wanted.kept, E * sizeof *kept);
    free(y), free(y_got), free(row_of), free(kept);
    close_pair(&both);
}

static void few_tokens_are_inferred(void **state) {
    moe_ctx *gpu = cuda_ctx(*state);
    if (!gpu) skip();
    static const char *const settings[] = {
        "d_model=320 num_experts=64 top_k=6 expert_hidden_size=72",
        "d_model=136 num_experts=11 top_k=4 expert_hidden_size=264 activation=gelu num_shared_experts=1",
        "d_model=64 num_experts=5 top_k=2 expert_hidden_size=48 output_bias=true activation=relu",
        "d_model=64 num_experts=9 top_k=2 expert_hidden_size=48 expert_bias=true",
        "d_model=64 num_experts=9 top_k=3 expert_hidden_size=48 score_function=sigmoid",
        "d_model=64 num_experts=5 top_k=2 expert_hidden_size=48 activation=swigluoai activation_limit=0.8",
    };
    for (size_t i = 0; i < sizeof settings / sizeof *settings; ++i)
        for (int64_t tokens = 1; tokens <= 9; tokens += tokens > 4 ? 4 : 1) {
            const problem p = {
                .name = settings[i], .settings = settings[i], .tokens = tokens, .masked = tokens == 3};
            infer(gpu, &p, is_hopper(gpu) ? MOE_BF16 : MOE_F32);
        }
    moe_ctx_destroy(gpu);
}

static void a_bad_logit_is_told(void **state) {
    moe_ctx *gpu = cuda_ctx(*state);
    if (!gpu) skip();
    const moe_dtype dtype = is_hopper(gpu) ? MOE_BF16 : MOE_F32;
    const problem p = problems[0];
    pair both = open_pair(gpu, &p, dtype);
    for (int64_t t = 5; t < p.tokens; t += 4) moei_real_store(dtype, both.x, t * both.d + 3, (double)NAN);
    must(gpu, moe_memory_copy(gpu, both.d_x, both.x, (size_t)both.n_in * moe_dtype_bytes(dtype)));
    const moe_mat x = {both.d_x, p.tokens, both.d, 0, dtype}, y = {both.d_y, p.tokens, both.d, 0, dtype};
    /* The first call that sees one tells it, forward itself where the device was quick: before the first
     * token was there, perhaps, which the next call then tells. */
    int named = 0;
    for (int i = 0; i < 2; ++i) {
        const moe_status status =
            i == 0 ? moe_layer_forward(both.layer, x, y, &test_train_call, NULL) : moe_ctx_wait(gpu);
        if (status == MOE_OK) continue;
        assert_int_equal(status, MOE_ERR_NUMERIC);
        named += strstr(moe_ctx_error(gpu), "token 5 has") != NULL;
    }
    assert_int_equal(named, 1);
    must(gpu, moe_ctx_wait(gpu));
    close_pair(&both);
    moe_ctx_destroy(gpu);
}

/* y, dx and the gradients of W1 and the gate, as they lie in memory. */
static void *bytes_of_a_step(const pair *both, const problem *p, size_t *bytes) {
    static const char *const name[] = {"experts.up.weight", "gate.weight"};
    const moe_mat x = {both->d_x, p->tokens, both->d, 0, both->dtype},
                  y = {both->d_y, p->tokens, both->d, 0, both->dtype},
                  dy = {both->d_dy, p->tokens, both->d, 0, both->dtype},
                  dx = {both->d_dx, p->tokens, both->d, 0, both->dtype};
    moe_layer_zero_grad(both->layer);
    must(both->gpu, moe_layer_forward(both->layer, x, y, &test_train_call, NULL));
    must(both->gpu, moe_layer_backward(both->layer, x, dy, dx));
    const size_t matrix = (size_t)both->n_in * moe_dtype_bytes(both->dtype);
    char *now = malloc(2 * matrix);
    assert_non_null(now);
    must(both->gpu, moe_memory_copy(both->gpu, now, both->d_y, matrix));
    must(both->gpu, moe_memory_copy(both->gpu, now + matrix, both->d_dx, matrix));
    *bytes = 2 * matrix;
    for (size_t i = 0; i < sizeof name / sizeof *name; ++i) {
        moe_param param = {.size = sizeof param};
        must(both->gpu, moe_layer_param_by_name(both->layer, name[i], &param));
        const size_t grad = (size_t)numbers(&param) * sizeof(float);
        now = realloc(now, *bytes + grad);
        assert_non_null(now);
        must(both->gpu, moe_memory_copy(both->gpu, now + *bytes, param.grad, grad));
        *bytes += grad;
    }
    return now;
}

/* The same bits from run to run. */
static void step_repeats(moe_ctx *gpu, const problem *p, moe_dtype dtype) {
    pair both = open_pair(gpu, p, dtype);
    size_t bytes;
    void *first = bytes_of_a_step(&both, p, &bytes);
    for (int round = 1; round < 5; ++round) {
        void *now = bytes_of_a_step(&both, p, &bytes);
        assert_memory_equal(now, first, bytes);
        free(now);
    }
    free(first);
    close_pair(&both);
}

static void runs_repeat(void **state) {
    moe_ctx *gpu = cuda_ctx(*state);
    if (!gpu) skip();
    static const problem repeated[] = {
        {.name = "repeat",       .tokens = 700, .settings = "capacity_factor=0.9 aux_loss_coeff=0.1"},
        {.name = "repeat, wide",
         .tokens = 700,
         .settings = "d_model=192 num_experts=12 top_k=3 expert_hidden_size=264 aux_loss_coeff=0.1" },
    };
    for (size_t i = 0; i < sizeof repeated / sizeof *repeated; ++i) {
        if (!is_hopper(gpu)) step_repeats(gpu, &repeated[i], MOE_F32);
        step_repeats(gpu, &repeated[i], MOE_BF16);
    }
    moe_ctx_destroy(gpu);
}

/* Which kernels a context has, by its isa; one that the GPU lacks is refused, one of the CPU lowers nothing.
 */
static void isa_names_the_kernels(void **state) {
    moe_ctx *gpu = cuda_ctx(*state);
    if (!gpu) skip();
    assert_string_equal(moe_ctx_isa(gpu), *state);
    assert_string_equal(moe_ctx_kernel_of(gpu, "gemm_rows", MOE_BF16),
                        is_hopper(gpu) ? "gemm_rows__sm90" : "gemm_rows__cuda");
    assert_string_equal(moe_ctx_kernel(gpu, "gemm_rows"), "gemm_rows__cuda");
    assert_string_equal(moe_ctx_kernel_of(gpu, "plan", MOE_BF16), "plan__cuda");
    moe_ctx_destroy(gpu);
}

int main(void) {
    char *families[] = {"cuda", "sm90"};
    moe_ctx *gpu = cuda_ctx(families[0]);
    if (!gpu) return 77;
    moe_ctx_destroy(gpu);
    /* For sanitizers, which take their time: one family, one layer. */
    const char *isa = getenv("MOEKIT_ISA");
    if (getenv("MOEKIT_TEST_PROBLEM")) cmocka_set_test_filter("layers_are_those_of_the_cpu");
    int failed = 0, groups = 0;
    for (size_t i = 0; i < sizeof families / sizeof *families; ++i) {
        if (isa && strcmp(isa, families[i]) != 0) continue;
        const struct CMUnitTest tests[] = {
            cmocka_unit_test_prestate(isa_names_the_kernels, families[i]),
            cmocka_unit_test_prestate(layers_are_those_of_the_cpu, families[i]),
            cmocka_unit_test_prestate(activations_are_those_of_the_cpu, families[i]),
            cmocka_unit_test_prestate(few_tokens_are_inferred, families[i]),
            cmocka_unit_test_prestate(a_bad_logit_is_told, families[i]),
            cmocka_unit_test_prestate(runs_repeat, families[i]),
        };
        failed += cmocka_run_group_tests_name(families[i], tests, NULL, NULL);
        ++groups;
    }
    if (groups == 0) fprintf(stderr, "not run here: MOEKIT_ISA is '%s', neither cuda nor sm90\n", isa);
    return groups > 0 ? failed : 77;
}
