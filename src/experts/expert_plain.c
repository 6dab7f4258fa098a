/* expert_plain.c: experts without parameters: identity (y = x) and zero (y = 0).
 * in[T,d] -> out[R,d]. A token that needs no work is routed to them.
 * Source: Jin et al., "MoE++: zero-computation experts", 2024 (copy and zero experts).
 */
#include "core/real.h"
#include "experts/experts.h"
#include "kernel/kernel.h"

typedef struct plain {
    moe_ctx *ctx;
} plain;

static moe_status plain_create(moe_ctx *ctx, const moe_expert_desc *desc, void **self) {
    (void)desc;
    plain *p = moe_ctx_alloc(ctx, sizeof *p);
    if (!p) return moei_ctx_no_memory(ctx, "experts");
    p->ctx = ctx;
    *self = p;
    return MOE_OK;
}

static void plain_destroy(void *self) {
    plain *p = self;
    if (p) moe_ctx_free(p->ctx, p, sizeof *p);
}

static int32_t no_params(const void *self) {
    (void)self;
    return 0;
}

static moe_status no_param(const void *self, int32_t index, moe_param *param) {
    (void)param;
    return moe_ctx_fail(((const plain *)self)->ctx, MOE_ERR_ARGUMENT, "parameter %d: this expert has none",
                        index);
}

static void no_grad(void *self, int32_t index, void *grad) {
    (void)self;
    (void)index;
    (void)grad;
}

static size_t no_saved(const void *self, int64_t max_rows) {
    (void)self;
    (void)max_rows;
    return 0;
}

static size_t no_scratch(const void *self, int64_t max_rows, moe_mode mode) {
    (void)self;
    (void)max_rows;
    (void)mode;
    return 0;
}

/* to[r] = from[token of r], times the row's weight where asked; from NULL: zeros. */
static void copy_rows(const void *self, const moe_expert_io *io, const moe_mat *from, moe_mat to,
                      bool weighted) {
    const moe_ctx *ctx = ((const plain *)self)->ctx;
    ctx->kernels[to.dtype]->copy_rows(&ctx->team,
                                      &(moei_copy_rows_args){.dtype = to.dtype,
                                                             .rows = io->n_rows,
                                                             .n = to.cols,
                                                             .from = from ? from->data : NULL,
                                                             .ld_from = from ? from->stride : 0,
                                                             .row = io->row_token,
                                                             .weight = weighted ? io->row_weight : NULL,
                                                             .to = to.data,
                                                             .ld_to = to.stride});
}

static moe_status identity_forward(void *self, const moe_expert_io *io) {
    copy_rows(self, io, &io->in, io->out, false);
    return MOE_OK;
}

static moe_status identity_backward(void *self, const moe_expert_io *io) {
    const moe_ctx *ctx = ((const plain *)self)->ctx;
    if (io->din.data) copy_rows(self, io, &io->dout, io->din, true);
    if (!io->drow_weight) return MOE_OK;
    ctx->kernels[io->in.dtype]->row_dot(&ctx->team, &(moei_row_dot_args){.dtype = io->in.dtype,
                                                                         .n_groups = io->n_experts,
                                                                         .n_rows = io->n_rows,
                                                                         .offset = io->offset,
                                                                         .n = io->dout.cols,
                                                                         .a = io->in.data,
                                                                         .lda = io->in.stride,
                                                                         .a_row = io->row_token,
                                                                         .b = io->dout.data,
                                                                         .ldb = io->dout.stride,
                                                                         .b_row = io->row_token,
                                                                         .out = io->drow_weight});
    return MOE_OK;
}

static moe_status zero_forward(void *self, const moe_expert_io *io) {
    copy_rows(self, io, NULL, io->out, false);
    return MOE_OK;
}

static moe_status zero_backward(void *self, const moe_expert_io *io) {
    const moe_mat dweight = {io->drow_weight, io->n_rows, 1, 1, moei_wide(io->dout.dtype)};
    if (io->din.data) copy_rows(self, io, NULL, io->din, false);
    if (io->drow_weight) copy_rows(self, io, NULL, dweight, false);
    return MOE_OK;
}

const moe_expert_ops moei_expert_identity = {.size = sizeof(moe_expert_ops),
                                             .name = "identity",
                                             .create = plain_create,
                                             .destroy = plain_destroy,
                                             .param_count = no_params,
                                             .param = no_param,
                                             .bind_grad = no_grad,
                                             .saved_bytes = no_saved,
                                             .scratch_bytes = no_scratch,
                                             .forward = identity_forward,
                                             .backward = identity_backward,
                                             .on_device = true};

const moe_expert_ops moei_expert_zero = {.size = sizeof(moe_expert_ops),
                                         .name = "zero",
                                         .create = plain_create,
                                         .destroy = plain_destroy,
                                         .param_count = no_params,
                                         .param = no_param,
                                         .bind_grad = no_grad,
                                         .saved_bytes = no_saved,
                                         .scratch_bytes = no_scratch,
                                         .forward = zero_forward,
                                         .backward = zero_backward,
                                         .on_device = true};
