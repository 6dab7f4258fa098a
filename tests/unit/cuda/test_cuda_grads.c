/* test_cuda_grads.c: how gradients of parameters are kept on a GPU: stored or added to, in f32 or in bf16.
 * Identities, of which none needs the CPU: stored into poison = added to zeros; bf16 = f32 rounded once; the
 * same bits in the next run, in one that wants no dx, and in lent memory; added to themselves, twice as much.
 * What is frozen is left as it was, the rest is what it is without. With the kernels of every GPU and
 * Hopper's, at widths for those and others. Skipped by name where there is no GPU, no CUDA or no Hopper.
 */
#include "unit/cuda/cuda_fixture.h"

#include "core/real.h"

enum { T = 333, MOST = 1 << 20 };

typedef struct variant {
    const char *name;
    moe_layer_desc desc;
} variant;
/* clang-format off */
static const variant variants[] = {
    {"Hopper's widths", {.d_model = 136, .num_experts = 8, .expert_hidden_size = 72, .aux_loss_coeff = 0.1F}},
    {"no losses", {.d_model = 136, .num_experts = 8, .expert_hidden_size = 72}},
    {"a shared expert",
     {.d_model = 64, .num_experts = 4, .expert_hidden_size = 136, .num_shared_experts = 1}},
    {"biases",
     {.d_model = 72, .num_experts = 4, .expert_hidden_size = 40, .expert_bias = true, .router_bias = true}},
    {"a frozen router",
     {.d_model = 64, .num_experts = 8, .expert_hidden_size = 40, .router_frozen = true}},
    {"other widths", {.d_model = 37, .num_experts = 5, .expert_hidden_size = 19, .activation = "geglu"}},
    {"routed by a twin",
     {.d_model = 64, .num_experts = 8, .expert_hidden_size = 24, .router_type = "noisy_top_k"}},
    {"most without a row",
     {.d_model = 64, .num_experts = 64, .expert_hidden_size = 24, .capacity_factor = 0.1F}},
};
/* clang-format on */

static moe_layer *make(moe_ctx *ctx, const variant *v, moe_dtype dtype, bool narrow) {
    moe_layer *layer = NULL;
    moe_layer_desc desc = v->desc;
    desc.size = sizeof desc;
    desc.dtype = dtype;
    desc.init_std = 0.3F;
    must(ctx, moe_layer_create(ctx, &desc, &layer));
    if (narrow) must(ctx, moe_layer_set_grad_dtype(layer, MOE_BF16));
    must(ctx, moe_layer_reserve(layer, T, MOE_TRAIN));
    return layer;
}

static size_t grad_bytes(const moe_param *param) {
    return (size_t)(param->dim[0] * param->dim[1] * param->dim[2]) * moe_dtype_bytes(param->grad_dtype);
}

/* A layer's gradients one after another, fetched or written from the host; returns how many. */
static int64_t move_grads(moe_ctx *ctx, const moe_layer *layer, bool fetch, double *grad) {
    int64_t n = 0;
    for (int32_t i = 0; i < moe_layer_param_count(layer); ++i) {
        moe_param param = {.size = sizeof param};
        must(ctx, moe_layer_param(layer, i, &param));
        if (!param.grad) continue;
        const int64_t count = param.dim[0] * param.dim[1] * param.dim[2];
        const moe_mat host = test_output(param.grad_dtype, 1, count);
        assert_true(n + count <= MOST);
        must(ctx, moe_memory_copy(ctx, fetch ? host.data : param.grad, fetch ? param.grad : host.data,
                                  test_bytes(host)));
        for (int64_t j = 0; fetch && j < count; ++j) grad[n + j] = moei_real_load(host.dtype, host.data, j);
        n += count;
        free(host.data);
    }
    return n;
}

/* Stored into poison, with dx or without; added to zeros, or to what the last step left. */
typedef enum manner { STORED, STORED_WITHOUT_DX, ADDED, ADDED_AGAIN } manner;

static int64_t step(moe_ctx *ctx, moe_layer *layer, manner how, double *grad) {
    const moe_layer_desc *d = moe_layer_get_desc(layer);
    moe_mat mat[4];
    for (uint32_t i = 0; i < 4; ++i) {
        mat[i] = i < 2 ? test_random(d->dtype, T, d->d_model, i) : test_output(d->dtype, T, d->d_model);
        mat[i].data = uploaded(ctx, mat[i]);
    }
    moe_call call = test_train_call;
    call.overwrite_grad = how == STORED || how == STORED_WITHOUT_DX;
    if (how != ADDED_AGAIN) move_grads(ctx, layer, false, NULL);
    if (how == ADDED) moe_layer_zero_grad(layer);
    must(ctx, moe_layer_forward(layer, mat[0], mat[2], &call, NULL));
    must(ctx, moe_layer_backward(layer, mat[0], mat[1], how == STORED_WITHOUT_DX ? (moe_mat){0} : mat[3]));
    must(ctx, moe_ctx_wait(ctx));
    for (int i = 0; i < 4; ++i) moe_memory_free(ctx, mat[i].data, test_bytes(mat[i]));
    return move_grads(ctx, layer, true, grad);
}

static double rounded(double value) {
    uint16_t number;
    moei_real_store(MOE_BF16, &number, 0, value);
    return moei_real_load(MOE_BF16, &number, 0);
}

static void same(const char *isa, const variant *v, const char *what, const double *a, const double *b,
                 int64_t n) {
    for (int64_t i = 0; i < n; ++i)
        if (!(a[i] == b[i]))
            fail_msg("%s, %s, %s: gradient %lld is %g, not %g (seed %llu)", isa, v->name, what, (long long)i,
                     a[i], b[i], (unsigned long long)test_seed());
}

/* What a second backward adds to `once`: as much again. */
static void check_doubled(moe_ctx *ctx, moe_layer *layer, const char *isa, const variant *v,
                          const double *once, double *twice, double bound) {
    const int64_t n = step(ctx, layer, ADDED_AGAIN, twice);
    double most = 0;
    for (int64_t i = 0; i < n; ++i) most = fmax(most, fabs(once[i]));
    for (int64_t i = 0; i < n; ++i)
        if (!(fabs(twice[i] - 2 * once[i]) <= bound * most))
            fail_msg("%s, %s, added to itself: gradient %lld is %g, not twice %g (seed %llu)", isa, v->name,
                     (long long)i, twice[i], once[i], (unsigned long long)test_seed());
}

/* A layer that is lent the owner's values and other gradients stores the same. */
static void check_lent(moe_ctx *ctx, const moe_layer *owner, const char *isa, const variant *v,
                       const double *wanted, double *got) {
    moe_layer *layer = NULL;
    moe_layer_desc desc = *moe_layer_get_desc(owner);
    desc.unowned = true;
    must(ctx, moe_layer_create(ctx, &desc, &layer));
    must(ctx, moe_layer_reserve(layer, T, MOE_TRAIN));
    for (int32_t i = 0; i < moe_layer_param_count(owner); ++i) {
        moe_param param = {.size = sizeof param};
        must(ctx, moe_layer_param(owner, i, &param));
        void *grad = param.grad ? moe_memory_alloc(ctx, grad_bytes(&param)) : NULL;
        must(ctx, moe_layer_bind_param(layer, i, param.value, grad));
    }
    same(isa, v, "lent", got, wanted, step(ctx, layer, STORED, got));
    for (int32_t i = 0; i < moe_layer_param_count(layer); ++i) {
        moe_param param = {.size = sizeof param};
        must(ctx, moe_layer_param(layer, i, &param));
        moe_memory_free(ctx, param.grad, grad_bytes(&param));
    }
    moe_layer_destroy(layer);
}

/* Whether parameter i of experts is, or with `one` < 0 all of them are. */
static bool freeze(moe_ctx *ctx, moe_layer *layer, int32_t one, bool frozen) {
    bool any = false;
    for (int32_t i = 0; i < moe_layer_param_count(layer); ++i) {
        if (one >= 0 && i != one) continue;
        const moe_status status = moe_layer_freeze(layer, i, frozen);
        if (status != MOE_ERR_UNSUPPORTED) must(ctx, status); /* the router's */
        any = any || status == MOE_OK;
    }
    return any;
}

/* Backward without the product of each parameter of experts in turn, and without all. */
static void check_frozen(moe_ctx *ctx, moe_layer *layer, const char *isa, const variant *v,
                         const double *wanted, double *got) {
    for (int32_t one = -1; one < moe_layer_param_count(layer); ++one) {
        if (!freeze(ctx, layer, one, true)) continue;
        step(ctx, layer, STORED, got);
        int64_t at = 0;
        for (int32_t i = 0; i < moe_layer_param_count(layer); ++i) {
            moe_param param = {.size = sizeof param};
            must(ctx, moe_layer_param(layer, i, &param));
            const int64_t end = at + (param.grad ? param.dim[0] * param.dim[1] * param.dim[2] : 0);
            double most = 0;
            for (int64_t j = at; j < end; ++j) most = fmax(most, fabs(wanted[j]));
            for (; at < end; ++at)
                if (param.frozen ? !isnan(got[at]) : !(fabs(got[at] - wanted[at]) <= 1e-4 * most))
                    fail_msg("%s, %s, parameter %d frozen (-1: all): %s[%lld] is %g, not %g (seed %llu)", isa,
                             v->name, one, param.name, (long long)at, got[at],
                             param.frozen ? (double)NAN : wanted[at], (unsigned long long)test_seed());
        }
        freeze(ctx, layer, one, false);
    }
}

static void check(moe_ctx *ctx, const char *isa, const variant *v, moe_dtype dtype, double *const room[4]) {
    moe_layer *layer = make(ctx, v, dtype, false);
    double *const added = room[0], *const stored = room[1], *const narrow = room[2], *const again = room[3];
    const int64_t n = step(ctx, layer, ADDED, added);
    check_doubled(ctx, layer, isa, v, added, again, 1e-4);
    step(ctx, layer, STORED, stored);
    same(isa, v, "stored", stored, added, n);
    step(ctx, layer, STORED, again);
    same(isa, v, "stored again", again, stored, n);
    step(ctx, layer, STORED_WITHOUT_DX, again);
    same(isa, v, "without dx", again, stored, n);
    check_lent(ctx, layer, isa, v, stored, again);
    check_frozen(ctx, layer, isa, v, stored, again);
    moe_layer_destroy(layer);
    if (dtype != MOE_BF16) return;
    layer = make(ctx, v, dtype, true);
    step(ctx, layer, STORED, narrow);
    int64_t at = 0;
    for (int32_t i = 0; i < moe_layer_param_count(layer); ++i) {
        moe_param param = {.size = sizeof param};
        must(ctx, moe_layer_param(layer, i, &param));
        const int64_t count = param.grad ? param.dim[0] * param.dim[1] * param.dim[2] : 0;
        for (int64_t j = 0; j < count && param.grad_dtype == MOE_BF16; ++j)
            stored[at + j] = rounded(stored[at + j]);
        at += count;
    }
    same(isa, v, "bf16", narrow, stored, n);
    step(ctx, layer, ADDED, added);
    same(isa, v, "bf16, added", added, narrow, n);
    check_doubled(ctx, layer, isa, v, added, again, 1e-2);
    moe_layer_destroy(layer);
}

static void gradients_are_kept_in_every_way(void **state) {
    const char *isa = *state;
    moe_ctx *ctx = cuda_ctx(isa);
    double *room[4];
    if (!ctx) skip();
    for (int i = 0; i < 4; ++i) {
        room[i] = malloc(MOST * sizeof **room);
        assert_non_null(room[i]);
    }
    for (size_t i = 0; i < sizeof variants / sizeof *variants; ++i) {
        check(ctx, isa, &variants[i], MOE_F32, room);
        check(ctx, isa, &variants[i], MOE_BF16, room);
    }
    for (int i = 0; i < 4; ++i) free(room[i]);
    moe_ctx_destroy(ctx);
}

int main(void) {
    struct CMUnitTest tests[CUDA_FAMILIES];
    if (!cuda_is_here()) return 77;
    for (int i = 0; i < CUDA_FAMILIES; ++i)
        tests[i] =
            (struct CMUnitTest)cmocka_unit_test_prestate(gradients_are_kept_in_every_way, cuda_families[i]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
