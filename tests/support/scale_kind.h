/* scale_kind.h: a kind of expert that is not the library's, for tests: y[r] = x[token of r] * w_e by element,
 * w[E,1,d]. A habit says what it does with its gradient; several may be registered. Plain loops in f64, any
 * dtype. Source: moekit/expert.h.
 */
#ifndef SCALE_KIND_H
#define SCALE_KIND_H

#include <moekit/expert.h>
#include <moekit/op.h>

#include "core/real.h"

typedef struct scale_habit {
    const char *name;
    bool overwrites;      /* stores its gradient where told to; else adds to it whatever it is told */
    moe_dtype grad_dtype; /* of bf16 parameters */
    int told;             /* backward calls that came with overwrite_grad */
} scale_habit;

typedef struct scale_expert {
    moe_ctx *ctx;
    moe_expert_desc desc;
    scale_habit *habit;
    void *weight, *grad;
} scale_expert;

static inline moe_dtype scale_grad_dtype(const scale_expert *s) {
    return s->desc.dtype == MOE_BF16 ? s->habit->grad_dtype : s->desc.dtype;
}

static inline int64_t scale_numbers(const moe_expert_desc *desc) {
    return (int64_t)desc->n_experts * desc->d_in;
}

static inline size_t scale_bytes(const moe_expert_desc *desc) {
    return (size_t)scale_numbers(desc) * moe_dtype_bytes(desc->dtype);
}

static inline moe_status scale_create(moe_ctx *ctx, const moe_expert_desc *desc, void **self) {
    scale_expert *s = moe_ctx_alloc(ctx, sizeof *s);
    if (!s) return MOE_ERR_MEMORY;
    *s = (scale_expert){.ctx = ctx, .desc = *desc, .habit = desc->user};
    s->weight = moe_ctx_alloc(ctx, scale_bytes(desc));
    if (!s->weight) {
        moe_ctx_free(ctx, s, sizeof *s);
        return MOE_ERR_MEMORY;
    }
    moe_random_normal(moe_ctx_seed(ctx), MOE_DRAW_INIT, (uint32_t)desc->layer_index, desc->stream,
                      desc->dtype, s->weight, scale_numbers(desc), 1);
    *self = s;
    return MOE_OK;
}

static inline void scale_destroy(void *self) {
    scale_expert *s = self;
    moe_ctx_free(s->ctx, s->weight, scale_bytes(&s->desc));
    moe_ctx_free(s->ctx, s, sizeof *s);
}

static inline int32_t scale_param_count(const void *self) {
    (void)self;
    return 1;
}

static inline moe_status scale_param(const void *self, int32_t index, moe_param *param) {
    const scale_expert *s = self;
    (void)index;
    *param = (moe_param){
        .size = sizeof *param,
        .name = "weight",
        .dtype = s->desc.dtype,
        .n_dim = 3,
        .dim = {s->desc.n_experts, 1, s->desc.d_in},
        .value = s->weight,
        .grad = s->grad,
        .grad_dtype = s->habit->grad_dtype
    };
    return MOE_OK;
}

static inline void scale_bind_grad(void *self, int32_t index, void *grad) {
    (void)index;
    ((scale_expert *)self)->grad = grad;
}

static inline size_t scale_saved_bytes(const void *self, int64_t max_rows) {
    (void)self, (void)max_rows;
    return 0;
}

static inline size_t scale_scratch_bytes(const void *self, int64_t max_rows, moe_mode mode) {
    (void)mode;
    return scale_saved_bytes(self, max_rows);
}

static inline double scale_read(const moe_mat *mat, int64_t row, int64_t column) {
    return moei_real_load(mat->dtype, mat->data, row * mat->stride + column);
}

static inline void scale_write(const moe_mat *mat, int64_t row, int64_t column, double value) {
    moei_real_store(mat->dtype, mat->data, row * mat->stride + column, value);
}

static inline int64_t scale_token(const moe_expert_io *io, int64_t r) {
    return io->row_token ? io->row_token[r] : r;
}

static inline double scale_weight(const scale_expert *s, int32_t e, int64_t i) {
    return moei_real_load(s->desc.dtype, s->weight, e * s->desc.d_in + i);
}

static inline moe_status scale_forward(void *self, const moe_expert_io *io) {
    const scale_expert *s = self;
    for (int32_t e = 0; e < io->n_experts; ++e)
        for (int64_t r = io->offset[e]; r < io->offset[e + 1]; ++r)
            for (int64_t i = 0; i < s->desc.d_in; ++i)
                scale_write(&io->out, r, i,
                            scale_read(&io->in, scale_token(io, r), i) * scale_weight(s, e, i));
    return MOE_OK;
}

static inline double scale_row_weight(const scale_expert *s, const moe_expert_io *io, int64_t r) {
    return io->row_weight ? moei_real_load(moei_wide(s->desc.dtype), io->row_weight, r) : 1;
}

static inline void scale_row_backward(const scale_expert *s, const moe_expert_io *io, int32_t e, int64_t r) {
    const int64_t token = scale_token(io, r);
    double dweight = 0;
    for (int64_t i = 0; i < s->desc.d_in; ++i) {
        const double dx = scale_read(&io->dout, token, i) * scale_weight(s, e, i);
        dweight += dx * scale_read(&io->in, token, i);
        if (io->din.data) scale_write(&io->din, r, i, scale_row_weight(s, io, r) * dx);
    }
    if (io->drow_weight) moei_real_store(moei_wide(s->desc.dtype), io->drow_weight, r, dweight);
}

static inline double scale_dw(const scale_expert *s, const moe_expert_io *io, int32_t e, int64_t i) {
    double sum = 0;
    for (int64_t r = io->offset[e]; r < io->offset[e + 1]; ++r) {
        const int64_t token = scale_token(io, r);
        sum += scale_row_weight(s, io, r) * scale_read(&io->dout, token, i) * scale_read(&io->in, token, i);
    }
    return sum;
}

static inline moe_status scale_backward(void *self, const moe_expert_io *io) {
    const scale_expert *s = self;
    const bool store = io->overwrite_grad && s->habit->overwrites;
    s->habit->told += io->overwrite_grad;
    for (int32_t e = 0; e < io->n_experts; ++e) {
        for (int64_t i = 0; i < s->desc.d_in; ++i) {
            const int64_t at = e * s->desc.d_in + i;
            const double before = store ? 0 : moei_real_load(scale_grad_dtype(s), s->grad, at);
            moei_real_store(scale_grad_dtype(s), s->grad, at, before + scale_dw(s, io, e, i));
        }
        for (int64_t r = io->offset[e]; r < io->offset[e + 1]; ++r) scale_row_backward(s, io, e, r);
    }
    return MOE_OK;
}

/* To be registered; the habit must outlive the context. */
static inline moe_expert_ops scale_kind(scale_habit *habit) {
    return (moe_expert_ops){.size = sizeof(moe_expert_ops),
                            .name = habit->name,
                            .user = habit,
                            .create = scale_create,
                            .destroy = scale_destroy,
                            .param_count = scale_param_count,
                            .param = scale_param,
                            .bind_grad = scale_bind_grad,
                            .saved_bytes = scale_saved_bytes,
                            .scratch_bytes = scale_scratch_bytes,
                            .forward = scale_forward,
                            .backward = scale_backward,
                            .overwrites = habit->overwrites};
}

#endif
