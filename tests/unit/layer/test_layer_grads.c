/* test_layer_grads.c: how gradients of parameters are kept: stored or added to, in f32 or in bf16.
 * Identities: stored into poison = added to zeros; bf16 = f32 rounded once; twice = the sum, rounded again.
 * Contract: moe_call.overwrite_grad, moe_layer_set_grad_dtype.
 */
#include "support/layer_fixture.h"

#include "core/real.h"

enum { T = 45, D = 24, MOST = 1 << 17, SEQUENCE = 9 };

static const char *const isas[] = {"ref", "avx2", "avx512", "avx512bf16", "amx"};
enum { ISAS = sizeof isas / sizeof *isas };

typedef struct variant {
    const char *name;
    moe_layer_desc desc;
} variant;
static const variant variants[] = {
    {"swiglu",              {.num_experts = 5, .aux_loss_coeff = 0.1F, .z_loss_coeff = 0.01F}                   },
    {"geglu, its own pass", {.num_experts = 5, .activation = "geglu", .dropout = 0.2F}                          },
    {"relu with biases",    {.num_experts = 5, .activation = "relu", .expert_bias = true, .router_bias = true}  },
    {"shared and gated",    {.num_experts = 5, .num_shared_experts = 2, .shared_expert_gate = true}             },
    {"only shared",         {.num_shared_experts = 2, .shared_expert_hidden_size = 17}                          },
    {"latent, output bias", {.num_experts = 5, .latent_size = 11, .expert_bias = true, .output_bias = true}     },
    {"recompute",           {.num_experts = 5, .recompute = "layer", .expert_up_bias = true}                    },
    {"f64 router",          {.num_experts = 5, .router_dtype = "f64"}                                           },
    {"at the input",        {.num_experts = 5, .weight_apply = "input", .top_k = 1, .score_function = "sigmoid"}},
    {"unequal",             {.expert_kinds = "13,identity,5,zero,7", .num_experts = 5}                          },
    {"most without a row",  {.num_experts = 64, .capacity_factor = 0.1F, .drop_policy = "position"}             },
    {"frozen",              {.num_experts = 5, .router_frozen = true}                                           },
    {"noisy",               {.num_experts = 5, .router_type = "noisy_top_k", .load_loss_coeff = 0.1F}           },
    {"sequences",           {.num_experts = 5, .routing_unit = "sequence"}                                      },
    {"two levels",          {.router_type = "gshard_top2", .num_groups_outer = 2, .num_experts = 4}             },
};

static moe_layer *make(moe_ctx *ctx, const variant *v, moe_dtype dtype, moe_dtype grad_dtype) {
    moe_layer *layer = NULL;
    moe_layer_desc desc = v->desc;
    desc.size = sizeof desc;
    desc.dtype = dtype;
    desc.d_model = D;
    desc.expert_hidden_size = 19;
    desc.init_std = 0.3F;
    must(ctx, moe_layer_create(ctx, &desc, &layer));
    if (grad_dtype == MOE_BF16) must(ctx, moe_layer_set_grad_dtype(layer, MOE_BF16));
    must(ctx, moe_layer_reserve(layer, T, MOE_TRAIN));
    return layer;
}

static moe_param param_at(moe_ctx *ctx, const moe_layer *layer, int32_t index) {
    moe_param param = {.size = sizeof param};
    must(ctx, moe_layer_param(layer, index, &param));
    return param;
}

static int64_t count_of(const moe_param *param) {
    return param->dim[0] * param->dim[1] * param->dim[2];
}

static void poison(moe_ctx *ctx, const moe_layer *layer) {
    for (int32_t i = 0; i < moe_layer_param_count(layer); ++i) {
        const moe_param param = param_at(ctx, layer, i);
        if (param.grad)
            memset(param.grad, 0xff, (size_t)count_of(&param) * moe_dtype_bytes(param.grad_dtype));
    }
}

/* One step; all gradients one after another. */
static int64_t step(moe_ctx *ctx, moe_layer *layer, bool overwrite, double *grad) {
    const moe_dtype dtype = moe_layer_get_desc(layer)->dtype;
    moe_mat x = test_random(dtype, T, D, 1), dy = test_random(dtype, T, D, 2), y = test_output(dtype, T, D),
            dx = test_output(dtype, T, D);
    moe_call call = test_train_call;
    int64_t n = 0;
    call.sequence_length = SEQUENCE;
    call.overwrite_grad = overwrite;
    must(ctx, moe_layer_forward(layer, x, y, &call, NULL));
    must(ctx, moe_layer_backward(layer, x, dy, dx));
    for (int32_t i = 0; i < moe_layer_param_count(layer); ++i) {
        const moe_param param = param_at(ctx, layer, i);
        const int64_t count = param.grad ? count_of(&param) : 0;
        assert_true(n + count <= MOST);
        for (int64_t j = 0; j < count; ++j) grad[n++] = moei_real_load(param.grad_dtype, param.grad, j);
    }
    free(x.data), free(dy.data), free(y.data), free(dx.data);
    return n;
}

static double *room(void) {
    double *numbers = malloc(MOST * sizeof *numbers);
    assert_non_null(numbers);
    return numbers;
}

static void same(const char *isa, const variant *v, moe_dtype dtype, const double *a, const double *b,
                 int64_t n) {
    for (int64_t i = 0; i < n; ++i)
        if (!(a[i] == b[i]))
            fail_msg("%s, %s, dtype %d: gradient %lld is %g, and %g another way (seed %llu)", isa, v->name,
                     (int)dtype, (long long)i, a[i], b[i], (unsigned long long)test_seed());
}

static void stored_is_added_to_zeros(void **state) {
    (void)state;
    static const moe_dtype dtypes[] = {MOE_F32, MOE_F64, MOE_BF16};
    double *added = room(), *stored = room(), *again = room();
    for (int isa = 0; isa < ISAS; ++isa) {
        moe_ctx *ctx = test_ctx_if_supported(isas[isa]);
        for (size_t i = 0; ctx && i < 3 * (sizeof variants / sizeof *variants); ++i) {
            const variant *v = &variants[i / 3];
            const moe_dtype dtype = dtypes[i % 3];
            moe_layer *layer = make(ctx, v, dtype, MOE_F32);
            moe_layer_zero_grad(layer);
            const int64_t n = step(ctx, layer, false, added);
            poison(ctx, layer);
            assert_int_equal(step(ctx, layer, true, stored), n);
            same(isas[isa], v, dtype, added, stored, n);
            step(ctx, layer, true, again);
            same(isas[isa], v, dtype, added, again, n);
            step(ctx, layer, false, again);
            double moved = 0;
            for (int64_t j = 0; j < n; ++j) moved += fabs(again[j] - added[j]);
            assert_true(moved > 0);
            moe_layer_destroy(layer);
        }
        moe_ctx_destroy(ctx);
    }
    free(added), free(stored), free(again);
}

static double rounded(double value) {
    uint16_t number;
    moei_real_store(MOE_BF16, &number, 0, value);
    return moei_real_load(MOE_BF16, &number, 0);
}

/* What f32 gradients `from` are where the experts' matrices have bf16 ones, added to `before` (NULL: stored).
 */
static void narrow(moe_ctx *ctx, const moe_layer *layer, const double *from, const double *before,
                   double *to) {
    int64_t n = 0;
    for (int32_t i = 0; i < moe_layer_param_count(layer); ++i) {
        const moe_param param = param_at(ctx, layer, i);
        const bool matrix = strstr(param.name, "up.weight") || strstr(param.name, "down.weight");
        if (!param.grad) continue;
        assert_int_equal(param.grad_dtype, matrix ? MOE_BF16 : MOE_F32);
        for (int64_t j = 0; j < count_of(&param); ++j, ++n) {
            const double sum = (double)(float)(from[n] + (before ? before[n] : 0));
            to[n] = matrix ? rounded(sum) : sum;
        }
    }
}

static void bf16_gradients_are_rounded_once(void **state) {
    (void)state;
    double *wide = room(), *got = room(), *wanted = room(), *twice = room();
    for (int isa = 0; isa < ISAS; ++isa) {
        moe_ctx *ctx = test_ctx_if_supported(isas[isa]);
        for (size_t i = 0; ctx && i < sizeof variants / sizeof *variants; ++i) {
            const variant *v = &variants[i];
            if (v->desc.expert_kinds) continue;
            moe_layer *layer = make(ctx, v, MOE_BF16, MOE_F32), *halved = make(ctx, v, MOE_BF16, MOE_BF16);
            assert_true(test_measure(ctx, halved, T).grads < test_measure(ctx, layer, T).grads);
            const int64_t n = step(ctx, layer, true, wide);
            poison(ctx, halved);
            assert_int_equal(step(ctx, halved, true, got), n);
            narrow(ctx, halved, wide, NULL, wanted);
            same(isas[isa], v, MOE_BF16, got, wanted, n);
            if (isa > 0) { /* the oracle's sums are in f64 */
                step(ctx, halved, false, twice);
                narrow(ctx, halved, wide, got, wanted);
                double difference = 0, size = 0;
                for (int64_t j = 0; j < n; ++j) {
                    difference += fabs(twice[j] - wanted[j]);
                    size += fabs(wanted[j]);
                }
                assert_true(difference <= 1e-6 * size);
            }
            moe_layer_destroy(layer);
            moe_layer_destroy(halved);
        }
        moe_ctx_destroy(ctx);
    }
    free(wide), free(got), free(wanted), free(twice);
}

/* One step of AdamW on a copy of the parameter, from zero moments: master, m, v and the value one after
 * another. */
static void adamw_step(moe_ctx *ctx, const moe_param *param, const void *grad, moe_dtype grad_dtype,
                       float *state) {
    const int64_t n = count_of(param);
    memset(state, 0, (size_t)(4 * n) * sizeof *state);
    memcpy(state + 3 * n, param->value, (size_t)n * moe_dtype_bytes(param->dtype));
    for (int64_t i = 0; i < n; ++i) state[i] = (float)moei_real_load(param->dtype, param->value, i);
    const moe_adamw_args args = {.dtype = param->dtype,
                                 .n = n,
                                 .value = state + 3 * n,
                                 .master = state,
                                 .m = state + n,
                                 .v = state + 2 * n,
                                 .grad = grad,
                                 .grad_dtype = grad_dtype,
                                 .lr = 0.01,
                                 .beta1 = 0.9,
                                 .beta2 = 0.95,
                                 .eps = 1e-8,
                                 .weight_decay = 0.1,
                                 .grad_scale = 0.7,
                                 .step = 1};
    must(ctx, moe_adamw(ctx, &args));
}

static void compare_steps(moe_ctx *ctx, const moe_param *param) {
    const int64_t n = count_of(param);
    float *wide = malloc((size_t)n * sizeof *wide), *got = malloc((size_t)(8 * n) * sizeof *got);
    double sum, wide_sum;
    assert_true(wide && got);
    for (int64_t i = 0; i < n; ++i) wide[i] = (float)moei_real_load(param->grad_dtype, param->grad, i);
    adamw_step(ctx, param, param->grad, param->grad_dtype, got);
    adamw_step(ctx, param, wide, MOE_F32, got + 4 * n);
    assert_memory_equal(got, got + 4 * n, (size_t)(4 * n) * sizeof *got);
    must(ctx, moe_sum_squares(ctx, param->grad_dtype, param->grad, n, &sum));
    must(ctx, moe_sum_squares(ctx, MOE_F32, wide, n, &wide_sum));
    assert_true(sum > 0 && sum == wide_sum);
    free(wide), free(got);
}

static void optimizer_reads_bf16_gradients(void **state) {
    (void)state;
    double *grad = room();
    for (int isa = 0; isa < ISAS; ++isa) {
        moe_ctx *ctx = test_ctx_if_supported(isas[isa]);
        moe_layer *layer = ctx ? make(ctx, &variants[0], MOE_BF16, MOE_BF16) : NULL;
        if (layer) step(ctx, layer, true, grad);
        for (int32_t i = 0; layer && i < moe_layer_param_count(layer); ++i) {
            const moe_param param = param_at(ctx, layer, i);
            if (param.grad) compare_steps(ctx, &param);
        }
        moe_layer_destroy(layer);
        moe_ctx_destroy(ctx);
    }
    free(grad);
}

/* A kind whose y is 0; the gradient of its w [E] counts backwards. */
typedef struct marks {
    moe_ctx *ctx;
    int32_t n_experts;
    float *weight, *grad;
    bool *told; /* where overwrite_grad of its last backward goes */
} marks;

static moe_status marks_create(moe_ctx *ctx, const moe_expert_desc *desc, void **self) {
    marks *m = calloc(1, sizeof *m);
    assert_non_null(m);
    *m = (marks){ctx, desc->n_experts, calloc((size_t)desc->n_experts, sizeof(float)), NULL, desc->user};
    *self = m;
    return MOE_OK;
}

static void marks_destroy(void *self) {
    free(((marks *)self)->weight);
    free(self);
}

static int32_t marks_param_count(const void *self) {
    (void)self;
    return 1;
}

static moe_status marks_param(const void *self, int32_t index, moe_param *param) {
    const marks *m = self;
    (void)index;
    *param = (moe_param){
        .size = sizeof *param, .name = "mark", .n_dim = 1, .dim = {m->n_experts, 1, 1},
                    .value = m->weight
    };
    return MOE_OK;
}

static void marks_bind_grad(void *self, int32_t index, void *grad) {
    (void)index;
    ((marks *)self)->grad = grad;
}

static size_t marks_saved_bytes(const void *self, int64_t max_rows) {
    (void)self, (void)max_rows;
    return 0;
}

static size_t marks_scratch_bytes(const void *self, int64_t max_rows, moe_mode mode) {
    (void)self, (void)max_rows, (void)mode;
    return 0;
}

static void clear_rows(moe_mat mat, int64_t rows) {
    for (int64_t r = 0; mat.data && r < rows; ++r)
        memset((float *)mat.data + r * mat.stride, 0, (size_t)mat.cols * sizeof(float));
}

static moe_status marks_forward(void *self, const moe_expert_io *io) {
    (void)self;
    clear_rows(io->out, io->n_rows);
    return MOE_OK;
}

static moe_status marks_backward(void *self, const moe_expert_io *io) {
    const marks *m = self;
    *m->told = io->overwrite_grad;
    clear_rows(io->din, io->n_rows);
    if (io->drow_weight) memset(io->drow_weight, 0, (size_t)io->n_rows * sizeof(float));
    for (int32_t e = 0; e < m->n_experts; ++e) m->grad[e] = (io->overwrite_grad ? 0 : m->grad[e]) + 1;
    return MOE_OK;
}

static moe_expert_ops marks_kind(const char *name, bool overwrites, bool *told) {
    return (moe_expert_ops){.size = sizeof(moe_expert_ops),
                            .name = name,
                            .user = told,
                            .create = marks_create,
                            .destroy = marks_destroy,
                            .param_count = marks_param_count,
                            .param = marks_param,
                            .bind_grad = marks_bind_grad,
                            .saved_bytes = marks_saved_bytes,
                            .scratch_bytes = marks_scratch_bytes,
                            .forward = marks_forward,
                            .backward = marks_backward,
                            .overwrites = overwrites};
}

/* Unequal experts: each kind that heeds overwrite_grad is told of it; the gradients of the others are
 * zeroed. */
static void unequal_experts_overwrite_each_for_itself(void **state) {
    (void)state;
    static const variant mixed = {
        "marks", {.expert_kinds = "13,stores,adds,7", .num_experts = 4}
    };
    moe_ctx *ctx = test_ctx(NULL, 1);
    bool stores = false, adds = true;
    const moe_expert_ops storing = marks_kind("stores", true, &stores),
                         adding = marks_kind("adds", false, &adds);
    double *grad = room();
    must(ctx, moe_expert_register(ctx, &storing));
    must(ctx, moe_expert_register(ctx, &adding));
    moe_layer *layer = make(ctx, &mixed, MOE_F32, MOE_F32);
    for (int turn = 0; turn < 2; ++turn) {
        poison(ctx, layer);
        step(ctx, layer, true, grad);
        assert_true(stores);
        assert_false(adds);
        const char *const names[] = {"experts.1.mark", "experts.2.mark"};
        for (int i = 0; i < 2; ++i) {
            moe_param param = {.size = sizeof param};
            must(ctx, moe_layer_param_by_name(layer, names[i], &param));
            assert_true(*(const float *)param.grad == 1);
        }
    }
    step(ctx, layer, false, grad);
    assert_false(stores);
    moe_layer_destroy(layer);
    moe_ctx_destroy(ctx);
    free(grad);
}

static void refusals(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx(NULL, 1);
    moe_layer *layer = make(ctx, &variants[0], MOE_F32, MOE_F32);
    moe_mat x = test_random(MOE_F32, T, D, 1), y = test_output(MOE_F32, T, D);
    const moe_call call = {.size = sizeof call, .overwrite_grad = true};
    assert_int_equal(moe_layer_forward(layer, x, y, &call, NULL), MOE_ERR_ARGUMENT);
    assert_non_null(strstr(moe_ctx_error(ctx), "overwrite_grad"));
    assert_int_equal(moe_layer_set_grad_dtype(layer, MOE_BF16), MOE_ERR_ARGUMENT);
    assert_non_null(strstr(moe_ctx_error(ctx), "MOE_BF16 of a layer of MOE_F32"));
    moe_layer_destroy(layer);
    layer = make(ctx, &variants[0], MOE_BF16, MOE_F32);
    assert_int_equal(moe_layer_set_grad_dtype(layer, MOE_F64), MOE_ERR_ARGUMENT);
    assert_int_equal(moe_layer_set_grad_dtype(layer, MOE_BF16), MOE_ERR_STATE);
    moe_layer_destroy(layer);
    moe_layer_desc plain = {.size = sizeof plain,
                            .dtype = MOE_BF16,
                            .d_model = D,
                            .num_experts = 4,
                            .expert_hidden_size = 1,
                            .expert = "identity"};
    must(ctx, moe_layer_create(ctx, &plain, &layer));
    assert_int_equal(moe_layer_set_grad_dtype(layer, MOE_BF16), MOE_ERR_UNSUPPORTED);
    assert_non_null(strstr(moe_ctx_error(ctx), "ffn"));
    moe_layer_destroy(layer);
    free(x.data), free(y.data);
    moe_ctx_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stored_is_added_to_zeros),
        cmocka_unit_test(bf16_gradients_are_rounded_once),
        cmocka_unit_test(optimizer_reads_bf16_gradients),
        cmocka_unit_test(unequal_experts_overwrite_each_for_itself),
        cmocka_unit_test(refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
