/* expert_plain.c: experts without parameters: identity (y = x) and zero (y = 0).
 * in[T,d] -> out[R,d]. A token that needs no work is routed to them.
 * Source: Jin et al., "MoE++: zero-computation experts", 2024 (copy and zero experts).
 */
#include "core/real.h"
#include "core/thread.h"
#include "experts/experts.h"

#include <string.h>

enum { ROWS_PER_TASK = 64 };

typedef struct plain {
    moe_ctx *ctx;
} plain;

static moe_status plain_create(moe_ctx *ctx, const moe_expert_desc *desc, void **self) {
    (void)desc;
    plain *p = moe_ctx_alloc(ctx, sizeof *p);
    if (!p) return MOE_ERR_MEMORY;
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

/* to[r] = from[token of r], times the row's weight where asked; rows of `to` are real. */
static void copy_row(const moe_expert_io *io, moe_mat from, moe_mat to, int64_t r, bool weighted) {
    const int64_t t = io->row_token ? io->row_token[r] : r;
    const double weight =
        weighted && io->row_weight ? moei_real_load(moei_wide(to.dtype), io->row_weight, r) : 1;
    for (int64_t j = 0; j < to.cols; ++j)
        moei_real_store(to.dtype, to.data, r * to.stride + j,
                        weight * moei_real_load(from.dtype, from.data, t * from.stride + j));
}

static void identity_row_backward(const moe_expert_io *io, int64_t r) {
    const int64_t t = io->row_token ? io->row_token[r] : r;
    if (io->din.data) copy_row(io, io->dout, io->din, r, true);
    if (!io->drow_weight) return;
    double sum = 0;
    for (int64_t j = 0; j < io->dout.cols; ++j)
        sum += moei_real_load(io->in.dtype, io->in.data, t * io->in.stride + j) *
               moei_real_load(io->dout.dtype, io->dout.data, t * io->dout.stride + j);
    moei_real_store(moei_wide(io->dout.dtype), io->drow_weight, r, sum);
}

static void identity_task(void *arg, int64_t task, void *scratch) {
    (void)scratch;
    const moe_expert_io *io = arg;
    for (int64_t r = task * ROWS_PER_TASK; r < io->n_rows && r < (task + 1) * ROWS_PER_TASK; ++r)
        copy_row(io, io->in, io->out, r, false);
}

static void identity_backward_task(void *arg, int64_t task, void *scratch) {
    (void)scratch;
    const moe_expert_io *io = arg;
    for (int64_t r = task * ROWS_PER_TASK; r < io->n_rows && r < (task + 1) * ROWS_PER_TASK; ++r)
        identity_row_backward(io, r);
}

static moe_status run(const void *self, const moe_expert_io *io, moei_task_fn task) {
    const plain *p = self;
    moe_expert_io copy = *io;
    moei_parallel(&p->ctx->team, (io->n_rows + ROWS_PER_TASK - 1) / ROWS_PER_TASK, task, &copy);
    return MOE_OK;
}

static moe_status identity_forward(void *self, const moe_expert_io *io) {
    return run(self, io, identity_task);
}

static moe_status identity_backward(void *self, const moe_expert_io *io) {
    return run(self, io, identity_backward_task);
}

static void clear_rows(moe_mat rows, int64_t n) {
    const size_t real = moe_dtype_bytes(rows.dtype);
    for (int64_t r = 0; r < n; ++r)
        memset((char *)rows.data + (size_t)(r * rows.stride) * real, 0, (size_t)rows.cols * real);
}

static moe_status zero_forward(void *self, const moe_expert_io *io) {
    (void)self;
    clear_rows(io->out, io->n_rows);
    return MOE_OK;
}

static moe_status zero_backward(void *self, const moe_expert_io *io) {
    (void)self;
    if (io->din.data) clear_rows(io->din, io->n_rows);
    if (io->drow_weight)
        memset(io->drow_weight, 0, (size_t)io->n_rows * moe_dtype_bytes(moei_wide(io->dout.dtype)));
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
                                             .backward = identity_backward};

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
                                         .backward = zero_backward};
