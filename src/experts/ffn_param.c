/* ffn_param.c: the parameters of FFN experts and how each system draws them.
 * up[E,d,n or 2n], down[E,n,d_out], up bias[E,n or 2n], down bias[E,d_out]; biases begin at zero.
 * Source: initialisation of lucidrains' MoE (uniform by the last dimension), sigma-MoE (by the width of all
 * experts together), Megatron core and Automodel (normal).
 */
#include "core/desc.h"
#include "core/memory.h"
#include "core/real.h"
#include "core/rng.h"
#include "experts/ffn.h"

#include <math.h>
#include <string.h>

static const char *const param_name[MOEI_FFN_PARAMS] = {"up.weight", "down.weight", "up.bias", "down.bias"};

static void param_shape(const moei_ffn *f, int32_t index, moe_param *param) {
    const int64_t E = f->desc.n_experts, z = f->d_z, n = f->desc.d_hidden;
    const moe_param shape[MOEI_FFN_PARAMS] = {
        {.n_dim = 3, .dim = {E, f->desc.d_in, z} },
        {.n_dim = 3, .dim = {E, n, f->desc.d_out}},
        {.n_dim = 2, .dim = {E, z, 1}            },
        {.n_dim = 2, .dim = {E, f->desc.d_out, 1}}
    };
    *param = shape[index];
    param->name = param_name[index];
    param->dtype = f->desc.dtype;
    param->grad_dtype = index < MOEI_FFN_MATRICES ? f->grad_dtype : moei_wide(f->desc.dtype);
}

static size_t param_bytes(const moe_param *param) {
    return (size_t)param->dim[0] * (size_t)param->dim[1] * (size_t)param->dim[2] *
           moe_dtype_bytes(param->dtype);
}

static double normal_std(const moe_expert_desc *d, bool down) {
    if (d->init_scheme && strcmp(d->init_scheme, "sigma_moe") == 0)
        return (double)d->init_std_scale /
               sqrt(down ? (double)d->n_experts * (double)d->d_hidden : (double)d->d_in);
    return (double)(down ? d->init_std_down : d->init_std);
}

/* x[n] of U(-bound, bound) */
static void fill_uniform(const moei_ffn *f, uint64_t stream, void *x, int64_t n, double bound) {
    uint32_t word[4];
    for (int64_t i = 0; i < n; ++i) {
        if (i % 4 == 0)
            moe_random(f->ctx->desc.seed, MOE_DRAW_INIT, (uint32_t)f->desc.layer_index, stream,
                       (uint64_t)i / 4, word);
        moei_real_store(f->desc.dtype, x, i, bound * (2 * moei_uniform(word[i % 4]) - 1));
    }
}

/* Weights of one parameter, on the host while they are drawn. */
typedef struct draw {
    const moei_ffn *f;
    int32_t index;
    const moe_param *param;
    void *value;
} draw;

/* Expert e draws from a stream of its own, so the weights do not depend on who holds which expert. */
static uint64_t stream_of(const draw *w, int64_t e) {
    return (w->f->desc.stream * MOEI_FFN_PARAMS + (uint64_t)w->index) << 32 | (uint32_t)e;
}

static int64_t numbers_an_expert(const draw *w) {
    return w->param->dim[1] * w->param->dim[2];
}

static void *weights_of(const draw *w, int64_t e) {
    return moei_real_at(w->param->dtype, w->value, e * numbers_an_expert(w));
}

static void draw_uniform(void *arg, int64_t e, void *scratch) {
    const draw *w = arg;
    (void)scratch;
    fill_uniform(w->f, stream_of(w, e), weights_of(w, e), numbers_an_expert(w),
                 1 / sqrt((double)w->param->dim[2]));
}

static int64_t parts_an_expert(const draw *w) {
    return (numbers_an_expert(w) + MOEI_NORMAL_BLOCK - 1) / MOEI_NORMAL_BLOCK;
}

static void draw_normal(void *arg, int64_t task, void *scratch) {
    const draw *w = arg;
    const int64_t e = task / parts_an_expert(w), n = numbers_an_expert(w);
    const int64_t first = task % parts_an_expert(w) * MOEI_NORMAL_BLOCK, left = n - first;
    const moei_normal normal = {.seed = w->f->ctx->desc.seed,
                                .purpose = MOE_DRAW_INIT,
                                .layer = (uint32_t)w->f->desc.layer_index,
                                .step = stream_of(w, e),
                                .dtype = w->param->dtype,
                                .x = weights_of(w, e),
                                .n = n,
                                .std = normal_std(&w->f->desc, w->index == MOEI_FFN_DOWN)};
    (void)scratch;
    moei_normal_part(&normal, first, first + (left < MOEI_NORMAL_BLOCK ? left : MOEI_NORMAL_BLOCK));
}

static void draw_weights(draw *w) {
    const moe_expert_desc *d = &w->f->desc;
    if (d->init_scheme && strcmp(d->init_scheme, "lucid_uniform") == 0)
        moe_parallel(w->f->ctx, d->n_experts, draw_uniform, w);
    else
        moe_parallel(w->f->ctx, d->n_experts * parts_an_expert(w), draw_normal, w);
}

void moei_ffn_drop(void *self, int32_t index) {
    moei_ffn *f = self;
    moe_param param;
    param_shape(f, index, &param);
    if (!f->desc.unowned) moei_memory_free(f->ctx, f->value[index], param_bytes(&param));
    f->value[index] = NULL;
}

void moei_ffn_destroy(void *self) {
    moei_ffn *f = self;
    if (!f) return;
    for (int32_t i = 0; i < f->n_params; ++i) moei_ffn_drop(f, i);
    for (int i = 0; i < MOEI_FFN_MATRICES; ++i) moe_packed_destroy(f->packed[i]);
    moe_ctx_free(f->ctx, f, sizeof *f);
}

/* Weights are drawn, biases begin at zero. */
static moe_status create_param(moei_ffn *f, int32_t index) {
    moe_param param;
    param_shape(f, index, &param);
    const size_t bytes = param_bytes(&param);
    f->value[index] = moei_memory_alloc(f->ctx, bytes);
    if (!f->value[index])
        return moei_ctx_no_memory(f->ctx, "%s of %d experts of width %d", param.name, f->desc.n_experts,
                                  f->desc.d_hidden);
    if (index != MOEI_FFN_UP && index != MOEI_FFN_DOWN)
        return moei_memory_clear(f->ctx, f->value[index], bytes);
    void *view = moei_memory_open(f->ctx, f->value[index], bytes);
    if (!view) return moei_ctx_no_memory(f->ctx, "%s, drawn on the host", param.name);
    draw_weights(&(draw){f, index, &param, view});
    return moei_memory_close(f->ctx, f->value[index], view, bytes);
}

moe_status moei_ffn_create(moe_ctx *ctx, const moe_expert_desc *desc, void **self) {
    const moei_activation *kind = moei_activation_find(desc->activation);
    if (!kind) return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "activation: '%s' is not known", desc->activation);
    moei_ffn *f = moe_ctx_alloc(ctx, sizeof *f);
    if (!f) return moei_ctx_no_memory(ctx, "experts");
    *f = (moei_ffn){.ctx = ctx, .desc = *desc, .n_params = desc->bias ? 4 : desc->up_bias ? 3 : 2};
    f->grad_dtype = moei_wide(desc->dtype);
    f->rule = moei_act_rule_of(kind, desc);
    f->act = kind->act;
    f->fused = desc->dropout == 0 && moei_act_fuses(&f->rule);
    f->d_z = f->rule.gated ? 2 * desc->d_hidden : desc->d_hidden;
    for (int32_t i = 0; i < f->n_params && !desc->unowned; ++i) {
        const moe_status status = create_param(f, i);
        if (status == MOE_OK) continue;
        moei_ffn_destroy(f);
        return status;
    }
    *self = f;
    return MOE_OK;
}

int32_t moei_ffn_param_count(const void *self) {
    return ((const moei_ffn *)self)->n_params;
}

moe_status moei_ffn_param(const void *self, int32_t index, moe_param *param) {
    const moei_ffn *f = self;
    param_shape(f, index, param);
    param->value = f->value[index];
    param->grad = f->grad[index];
    return MOE_OK;
}

void moei_ffn_set_grad_dtype(void *self, moe_dtype dtype) {
    ((moei_ffn *)self)->grad_dtype = dtype;
}

void moei_ffn_bind_value(void *self, int32_t index, void *value) {
    ((moei_ffn *)self)->value[index] = value;
}

void moei_ffn_bind_grad(void *self, int32_t index, void *grad) {
    ((moei_ffn *)self)->grad[index] = grad;
}
