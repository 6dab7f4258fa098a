/* expert_ffn.c: two-layer feed-forward experts, gated or not, with or without biases.
 * Z[R,n or 2n] = x W1[e] + b1, A[R,n] = act(Z), Y[R,d] = A W2[e] + b2; backward keeps Z only.
 * Source: Shazeer 2020 (GLU variants); SonicMoE (Guo et al. 2025) for dweight = <dA', A>.
 */
#include "core/arena.h"
#include "core/real.h"
#include "experts/experts.h"
#include "kernel/kernel.h"

#include <string.h>

enum { UP = 0, DOWN, UP_BIAS, DOWN_BIAS, PARAMS };

typedef struct ffn {
    moe_ctx *ctx;
    moe_expert_desc desc;
    moe_act act;
    int32_t d_z;      /* columns of Z: n, or 2n if gated */
    int32_t n_params; /* 2, or 4 with biases */
    void *value[PARAMS], *grad[PARAMS];
} ffn;

static const char *const param_name[PARAMS] = {"up.weight", "down.weight", "up.bias", "down.bias"};

static void param_shape(const ffn *f, int32_t index, moe_param *param) {
    const int64_t E = f->desc.n_experts, z = f->d_z, n = f->desc.d_hidden;
    const moe_param shape[PARAMS] = {
        {.n_dim = 3, .dim = {E, f->desc.d_in, z} },
        {.n_dim = 3, .dim = {E, n, f->desc.d_out}},
        {.n_dim = 2, .dim = {E, z, 1}            },
        {.n_dim = 2, .dim = {E, f->desc.d_out, 1}}
    };
    *param = shape[index];
    param->name = param_name[index];
    param->dtype = f->desc.dtype;
}

static size_t param_bytes(const moe_param *param) {
    return (size_t)param->dim[0] * (size_t)param->dim[1] * (size_t)param->dim[2] *
           moe_dtype_bytes(param->dtype);
}

/* Expert e draws from a stream of its own, so the weights do not depend on who holds which expert. */
static void init_weights(ffn *f, int32_t index, const moe_param *param) {
    const float std = index == UP ? f->desc.init_std : f->desc.init_std_down;
    const int64_t numbers = param->dim[1] * param->dim[2];
    for (int32_t e = 0; e < f->desc.n_experts; ++e) {
        uint64_t stream = (f->desc.stream * PARAMS + (uint64_t)index) << 32 | (uint32_t)e;
        void *weights = moei_real_at(param->dtype, f->value[index], e * numbers);
        moe_random_normal(f->ctx->desc.seed, MOE_DRAW_INIT, (uint32_t)f->desc.layer_index, stream,
                          param->dtype, weights, numbers, (double)std);
    }
}

static void ffn_destroy(void *self) {
    ffn *f = self;
    if (!f) return;
    for (int32_t i = 0; i < f->n_params; ++i) {
        moe_param param;
        param_shape(f, i, &param);
        moe_ctx_free(f->ctx, f->value[i], param_bytes(&param));
    }
    moe_ctx_free(f->ctx, f, sizeof *f);
}

static moe_status ffn_create(moe_ctx *ctx, const moe_expert_desc *desc, void **self) {
    moe_act act;
    moe_error error;
    if (moe_act_by_name(desc->activation, &act, &error) != MOE_OK)
        return moe_ctx_fail(ctx, error.status, "%s", error.text);
    ffn *f = moe_ctx_alloc(ctx, sizeof *f);
    if (!f) return MOE_ERR_MEMORY;
    *f = (ffn){.ctx = ctx, .desc = *desc, .act = act, .n_params = desc->bias ? 4 : 2};
    f->d_z = moe_act_gated(act) ? 2 * desc->d_hidden : desc->d_hidden;
    for (int32_t i = 0; i < f->n_params; ++i) {
        moe_param param;
        param_shape(f, i, &param);
        f->value[i] = moe_ctx_alloc(ctx, param_bytes(&param));
        if (!f->value[i]) {
            ffn_destroy(f);
            return MOE_ERR_MEMORY;
        }
        if (i == UP || i == DOWN)
            init_weights(f, i, &param);
        else
            memset(f->value[i], 0, param_bytes(&param));
    }
    *self = f;
    return MOE_OK;
}

static int32_t ffn_param_count(const void *self) {
    return ((const ffn *)self)->n_params;
}

static moe_status ffn_param(const void *self, int32_t index, moe_param *param) {
    const ffn *f = self;
    param_shape(f, index, param);
    param->value = f->value[index];
    param->grad = f->grad[index];
    return MOE_OK;
}

static void ffn_bind_grad(void *self, int32_t index, void *grad) {
    ((ffn *)self)->grad[index] = grad;
}

static size_t rows_bytes(const ffn *f, int64_t rows, int64_t cols) {
    return (size_t)rows * (size_t)cols * moe_dtype_bytes(f->desc.dtype);
}

static size_t ffn_saved_bytes(const void *self, int64_t max_rows) {
    const ffn *f = self;
    return rows_bytes(f, max_rows, f->d_z);
}

/* Forward needs A; backward weight*A and the partial sums of dweight. */
typedef struct ffn_scratch {
    void *a, *dweight_part;
} ffn_scratch;

static ffn_scratch carve(const ffn *f, moei_arena *arena, int64_t rows, moe_mode mode) {
    ffn_scratch s = {.a = moei_arena_take(arena, rows_bytes(f, rows, f->desc.d_hidden))};
    if (mode == MOE_TRAIN)
        s.dweight_part = moei_arena_take(arena, rows_bytes(f, rows, moe_dweight_parts(f->desc.d_hidden)));
    return s;
}

static size_t ffn_scratch_bytes(const void *self, int64_t max_rows, moe_mode mode) {
    moei_arena arena = {0};
    carve(self, &arena, max_rows, mode);
    return arena.used;
}

static moe_status ffn_forward(void *self, const moe_expert_io *io) {
    const ffn *f = self;
    const moe_expert_desc *d = &f->desc;
    moei_arena arena = {io->scratch, 0};
    const ffn_scratch s = carve(f, &arena, io->n_rows, io->mode);
    MOEI_TRY(moe_gemm_rows(f->ctx, &(moe_gemm_rows_args){.dtype = d->dtype,
                                                         .n_groups = io->n_experts,
                                                         .offset = io->offset,
                                                         .n = f->d_z,
                                                         .k = d->d_in,
                                                         .a = io->in.data,
                                                         .lda = io->in.stride,
                                                         .a_row = io->row_token,
                                                         .b = f->value[UP],
                                                         .ldb = f->d_z,
                                                         .b_group = (int64_t)d->d_in * f->d_z,
                                                         .bias = f->value[UP_BIAS],
                                                         .c = io->mode == MOE_TRAIN ? io->saved : NULL,
                                                         .ldc = f->d_z,
                                                         .epilogue = MOE_EPI_ACT,
                                                         .act = f->act,
                                                         .h = s.a,
                                                         .ldh = d->d_hidden}));
    return moe_gemm_rows(f->ctx, &(moe_gemm_rows_args){.dtype = d->dtype,
                                                       .n_groups = io->n_experts,
                                                       .offset = io->offset,
                                                       .n = d->d_out,
                                                       .k = d->d_hidden,
                                                       .a = s.a,
                                                       .lda = d->d_hidden,
                                                       .b = f->value[DOWN],
                                                       .ldb = d->d_out,
                                                       .b_group = (int64_t)d->d_hidden * d->d_out,
                                                       .bias = f->value[DOWN_BIAS],
                                                       .c = io->out.data,
                                                       .ldc = io->out.stride});
}

/* dA' = gather(dy) W2^T; from it dZ (over Z), weight*A and dweight = <dA', A>. */
static moe_status hidden_gradient(const ffn *f, const moe_expert_io *io, ffn_scratch s) {
    const moe_expert_desc *d = &f->desc;
    return moe_gemm_rows(f->ctx, &(moe_gemm_rows_args){.dtype = d->dtype,
                                                       .n_groups = io->n_experts,
                                                       .offset = io->offset,
                                                       .n = d->d_hidden,
                                                       .k = d->d_out,
                                                       .a = io->dout.data,
                                                       .lda = io->dout.stride,
                                                       .a_row = io->row_token,
                                                       .b = f->value[DOWN],
                                                       .ldb = d->d_out,
                                                       .b_group = (int64_t)d->d_hidden * d->d_out,
                                                       .b_trans = true,
                                                       .epilogue = MOE_EPI_ACT_GRAD,
                                                       .act = f->act,
                                                       .z = io->saved,
                                                       .dz = io->saved,
                                                       .ldz = f->d_z,
                                                       .row_weight = io->row_weight,
                                                       .wa = s.a,
                                                       .ldwa = d->d_hidden,
                                                       .dweight = io->drow_weight,
                                                       .dweight_part = s.dweight_part});
}

/* dW2[e] += (weight*A)^T gather(dy);  dW1[e] += gather(x)^T dZ */
static moe_status weight_gradients(const ffn *f, const moe_expert_io *io, ffn_scratch s) {
    const moe_expert_desc *d = &f->desc;
    MOEI_TRY(moe_gemm_outer(f->ctx, &(moe_gemm_outer_args){.dtype = d->dtype,
                                                           .n_groups = io->n_experts,
                                                           .offset = io->offset,
                                                           .m = d->d_hidden,
                                                           .n = d->d_out,
                                                           .a = s.a,
                                                           .lda = d->d_hidden,
                                                           .b = io->dout.data,
                                                           .ldb = io->dout.stride,
                                                           .b_row = io->row_token,
                                                           .c = f->grad[DOWN],
                                                           .ldc = d->d_out,
                                                           .c_group = (int64_t)d->d_hidden * d->d_out,
                                                           .accumulate = true}));
    return moe_gemm_outer(f->ctx, &(moe_gemm_outer_args){.dtype = d->dtype,
                                                         .n_groups = io->n_experts,
                                                         .offset = io->offset,
                                                         .m = d->d_in,
                                                         .n = f->d_z,
                                                         .a = io->in.data,
                                                         .lda = io->in.stride,
                                                         .a_row = io->row_token,
                                                         .b = io->saved,
                                                         .ldb = f->d_z,
                                                         .c = f->grad[UP],
                                                         .ldc = f->d_z,
                                                         .c_group = (int64_t)d->d_in * f->d_z,
                                                         .accumulate = true});
}

typedef struct bias_job {
    const ffn *f;
    const moe_expert_io *io;
} bias_job;

/* The down bias is weighted too, so drow_weight[r] += <b2[e], dy[token]>. One task an expert. */
static void bias_weight_task(void *arg, int64_t e, void *scratch) {
    (void)scratch;
    const bias_job *job = arg;
    const moe_expert_io *io = job->io;
    const moe_dtype dtype = job->f->desc.dtype;
    const int64_t d_out = job->f->desc.d_out;
    for (int64_t r = io->offset[e]; r < io->offset[e + 1]; ++r) {
        int64_t t = io->row_token ? io->row_token[r] : r;
        double sum = moei_real_load(dtype, io->drow_weight, r);
        for (int64_t j = 0; j < d_out; ++j)
            sum += moei_real_load(dtype, job->f->value[DOWN_BIAS], e * d_out + j) *
                   moei_real_load(dtype, io->dout.data, t * io->dout.stride + j);
        moei_real_store(dtype, io->drow_weight, r, sum);
    }
}

/* db1 += sum dZ;  db2 += sum weight*dy;  and what the down bias adds to dweight. */
static moe_status bias_gradients(const ffn *f, const moe_expert_io *io) {
    const moe_expert_desc *d = &f->desc;
    MOEI_TRY(moe_colsum(f->ctx, &(moe_colsum_args){.dtype = d->dtype,
                                                   .n_groups = io->n_experts,
                                                   .offset = io->offset,
                                                   .n = f->d_z,
                                                   .a = io->saved,
                                                   .lda = f->d_z,
                                                   .out = f->grad[UP_BIAS],
                                                   .accumulate = true}));
    MOEI_TRY(moe_colsum(f->ctx, &(moe_colsum_args){.dtype = d->dtype,
                                                   .n_groups = io->n_experts,
                                                   .offset = io->offset,
                                                   .n = d->d_out,
                                                   .a = io->dout.data,
                                                   .lda = io->dout.stride,
                                                   .a_row = io->row_token,
                                                   .row_weight = io->row_weight,
                                                   .out = f->grad[DOWN_BIAS],
                                                   .accumulate = true}));
    bias_job job = {f, io};
    if (io->drow_weight) moe_parallel(f->ctx, io->n_experts, bias_weight_task, &job);
    return MOE_OK;
}

static moe_status ffn_backward(void *self, const moe_expert_io *io) {
    const ffn *f = self;
    const moe_expert_desc *d = &f->desc;
    moei_arena arena = {io->scratch, 0};
    const ffn_scratch s = carve(f, &arena, io->n_rows, MOE_TRAIN);
    MOEI_TRY(hidden_gradient(f, io, s));
    MOEI_TRY(weight_gradients(f, io, s));
    if (d->bias) MOEI_TRY(bias_gradients(f, io));
    if (!io->din.data) return MOE_OK;
    return moe_gemm_rows(f->ctx, &(moe_gemm_rows_args){.dtype = d->dtype,
                                                       .n_groups = io->n_experts,
                                                       .offset = io->offset,
                                                       .n = d->d_in,
                                                       .k = f->d_z,
                                                       .a = io->saved,
                                                       .lda = f->d_z,
                                                       .b = f->value[UP],
                                                       .ldb = f->d_z,
                                                       .b_group = (int64_t)d->d_in * f->d_z,
                                                       .b_trans = true,
                                                       .c = io->din.data,
                                                       .ldc = io->din.stride});
}

const moe_expert_ops moei_expert_ffn = {.size = sizeof(moe_expert_ops),
                                        .name = "ffn",
                                        .create = ffn_create,
                                        .destroy = ffn_destroy,
                                        .param_count = ffn_param_count,
                                        .param = ffn_param,
                                        .bind_grad = ffn_bind_grad,
                                        .saved_bytes = ffn_saved_bytes,
                                        .scratch_bytes = ffn_scratch_bytes,
                                        .forward = ffn_forward,
                                        .backward = ffn_backward};
