/* expert_ffn.c: two-layer feed-forward experts: the products, forward and backward.
 * Z[R,n or 2n] = x W1[e] + b1, A[R,n] = act(Z), Y[R,d] = A W2[e] + b2; backward keeps Z, or nothing.
 * Source: Shazeer 2020 (GLU variants); SonicMoE (Guo et al. 2025) for dweight = <dA', A>.
 */
#include "core/arena.h"
#include "core/memory.h"
#include "core/real.h"
#include "experts/experts.h"
#include "experts/ffn.h"
#include "kernel/kernel.h"

static size_t rows_bytes(const moei_ffn *f, int64_t rows, int64_t cols) {
    return (size_t)rows * (size_t)cols * moe_dtype_bytes(f->desc.dtype);
}

static size_t ffn_saved_bytes(const void *self, int64_t max_rows) {
    const moei_ffn *f = self;
    if (f->desc.saved_mxfp8) return (size_t)(max_rows * (f->d_z + moei_mx_blocks(f->d_z)));
    return f->desc.recompute ? 0 : rows_bytes(f, max_rows, f->d_z);
}

/* Z in 8 bits, codes first, in what the layer saves. */
static moei_mx_rows_args mx_rows(const moei_ffn *f, const moe_expert_io *io, void *z) {
    uint8_t *code = io->saved;
    return (moei_mx_rows_args){.dtype = f->desc.dtype,
                               .rows = io->n_rows,
                               .n = f->d_z,
                               .values = z,
                               .code = code,
                               .scale = code + io->n_rows * f->d_z};
}

/* Forward needs A, or what `few` asks for; backward weight*A and the partial sums of dweight; Z where nobody
 * saves it as it is. */
typedef struct ffn_scratch {
    void *a, *dweight_part, *z;
} ffn_scratch;

static ffn_scratch carve(const moei_ffn *f, moei_arena *arena, int64_t rows, moe_mode mode) {
    const bool train = mode == MOE_TRAIN;
    const size_t wide = moe_dtype_bytes(moei_wide(f->desc.dtype));
    const bool few = !train && f->ctx->kernels[f->desc.dtype]->few;
    const size_t a = rows_bytes(f, rows, f->desc.d_hidden),
                 few_a = few ? moei_few_scratch_bytes(rows, f->desc.d_in, f->desc.d_hidden) : 0;
    ffn_scratch s = {.a = moei_arena_take(arena, few_a > a ? few_a : a)};
    if (train && f->fused)
        s.dweight_part = moei_arena_array(arena, rows, moe_dweight_parts(f->desc.d_hidden), wide);
    if (train ? f->desc.recompute || f->desc.saved_mxfp8 : !f->fused)
        s.z = moei_arena_take(arena, rows_bytes(f, rows, f->d_z));
    return s;
}

static size_t ffn_scratch_bytes(const void *self, int64_t max_rows, moe_mode mode) {
    moei_arena arena = {0};
    carve(self, &arena, max_rows, mode);
    return arena.used;
}

static moe_act_numbers act_numbers(const moei_ffn *f) {
    return (moe_act_numbers){f->rule.alpha, f->rule.limit, f->rule.offset};
}

/* Z = gather(x) W1 + b1, into z (NULL: not kept). The fused epilogue also writes A. */
static moe_status up_product(const moei_ffn *f, const moe_expert_io *io, void *z, bool fused, void *a) {
    const moe_expert_desc *d = &f->desc;
    return moe_gemm_rows(f->ctx, &(moe_gemm_rows_args){.dtype = d->dtype,
                                                       .n_groups = io->n_experts,
                                                       .offset = io->offset,
                                                       .n_rows = io->n_rows,
                                                       .n = f->d_z,
                                                       .k = d->d_in,
                                                       .a = io->in.data,
                                                       .lda = io->in.stride,
                                                       .a_row = io->row_token,
                                                       .b = f->value[MOEI_FFN_UP],
                                                       .ldb = f->d_z,
                                                       .b_group = (int64_t)d->d_in * f->d_z,
                                                       .b_packed = f->packed[MOEI_FFN_UP],
                                                       .bias = f->value[MOEI_FFN_UP_BIAS],
                                                       .c = z,
                                                       .ldc = f->d_z,
                                                       .epilogue = fused ? MOE_EPI_ACT : MOE_EPI_STORE,
                                                       .act = f->act,
                                                       .act_numbers = act_numbers(f),
                                                       .h = fused ? a : NULL,
                                                       .ldh = d->d_hidden});
}

/* Y = A W2 + b2 */
static moe_status down_product(const moei_ffn *f, const moe_expert_io *io, const void *a) {
    const moe_expert_desc *d = &f->desc;
    return moe_gemm_rows(f->ctx, &(moe_gemm_rows_args){.dtype = d->dtype,
                                                       .n_groups = io->n_experts,
                                                       .offset = io->offset,
                                                       .n_rows = io->n_rows,
                                                       .n = d->d_out,
                                                       .k = d->d_hidden,
                                                       .a = a,
                                                       .lda = d->d_hidden,
                                                       .b = f->value[MOEI_FFN_DOWN],
                                                       .ldb = d->d_out,
                                                       .b_group = (int64_t)d->d_hidden * d->d_out,
                                                       .b_packed = f->packed[MOEI_FFN_DOWN],
                                                       .bias = f->value[MOEI_FFN_DOWN_BIAS],
                                                       .c = io->out.data,
                                                       .ldc = io->out.stride});
}

static moei_act_pass_args pass_of(const moei_ffn *f, const moe_expert_io *io, void *z, void *a) {
    return (moei_act_pass_args){.dtype = f->desc.dtype,
                                .rule = f->rule,
                                .n_rows = io->n_rows,
                                .n = f->desc.d_hidden,
                                .z = z,
                                .a = a,
                                .row_weight = io->row_weight,
                                .drow_weight = io->drow_weight,
                                .dropout = io->mode == MOE_TRAIN ? (double)f->desc.dropout : 0,
                                .seed = f->ctx->desc.seed,
                                .layer = (uint32_t)f->desc.layer_index,
                                .step = io->step,
                                .row_slot = io->row_slot,
                                .dropout_keep = io->dropout_keep};
}

static moe_status ffn_forward(void *self, const moe_expert_io *io) {
    const moei_ffn *f = self;
    moei_arena arena = {io->scratch, 0};
    const ffn_scratch s = carve(f, &arena, io->n_rows, io->mode);
    void *kept = io->mode == MOE_TRAIN && !s.z ? io->saved : s.z;
    MOEI_TRY(up_product(f, io, f->fused && f->desc.recompute ? NULL : kept, f->fused, s.a));
    if (!f->fused) {
        const moei_act_pass_args pass = pass_of(f, io, kept, s.a);
        f->ctx->kernels[pass.dtype]->act_pass(&f->ctx->team, &pass);
    }
    if (io->mode == MOE_TRAIN && f->desc.saved_mxfp8) {
        const moei_mx_rows_args rows = mx_rows(f, io, kept);
        f->ctx->kernels[rows.dtype]->mx_save(&f->ctx->team, &rows);
    }
    return down_product(f, io, s.a);
}

bool moei_ffn_few_args(const void *self, moei_few_args *args) {
    const moei_ffn *f = self;
    const moe_expert_desc *d = &f->desc;
    moei_arena arena = {args->scratch, 0};
    if (!f->ctx->kernels[d->dtype]->few || !f->fused || d->d_in != d->d_out || f->value[MOEI_FFN_UP_BIAS])
        return false;
    args->n = d->d_hidden;
    args->w1 = f->value[MOEI_FFN_UP];
    args->w2 = f->value[MOEI_FFN_DOWN];
    args->w1_packed = f->packed[MOEI_FFN_UP];
    args->w2_packed = f->packed[MOEI_FFN_DOWN];
    args->act = f->act;
    args->act_numbers = act_numbers(f);
    args->scratch = carve(f, &arena, args->n_tokens * args->top_k, MOE_INFER).a;
    return moei_few_takes(args);
}

/* dA' = gather(dy) W2^T; from it dZ (over Z), weight*A and dweight = <dA', A>. */
static moe_status hidden_gradient(const moei_ffn *f, const moe_expert_io *io, void *z, ffn_scratch s) {
    const moe_expert_desc *d = &f->desc;
    moe_gemm_rows_args args = {.dtype = d->dtype,
                               .n_groups = io->n_experts,
                               .offset = io->offset,
                               .n_rows = io->n_rows,
                               .n = d->d_hidden,
                               .k = d->d_out,
                               .a = io->dout.data,
                               .lda = io->dout.stride,
                               .a_row = io->row_token,
                               .b = f->value[MOEI_FFN_DOWN],
                               .ldb = d->d_out,
                               .b_group = (int64_t)d->d_hidden * d->d_out,
                               .b_trans = true};
    if (!f->fused) {
        args.c = s.a;
        args.ldc = d->d_hidden;
        MOEI_TRY(moe_gemm_rows(f->ctx, &args));
        const moei_act_pass_args pass = pass_of(f, io, z, s.a);
        f->ctx->kernels[pass.dtype]->act_pass_grad(&f->ctx->team, &pass);
        return MOE_OK;
    }
    args.epilogue = MOE_EPI_ACT_GRAD;
    args.act = f->act;
    args.act_numbers = act_numbers(f);
    args.z = args.dz = z;
    args.ldz = f->d_z;
    args.row_weight = io->row_weight;
    args.wa = s.a;
    args.ldwa = d->d_hidden;
    args.dweight = io->drow_weight;
    args.dweight_part = s.dweight_part;
    return moe_gemm_rows(f->ctx, &args);
}

static moe_gemm_outer_args weight_gradient(const moei_ffn *f, const moe_expert_io *io) {
    return (moe_gemm_outer_args){.dtype = f->desc.dtype,
                                 .n_groups = io->n_experts,
                                 .offset = io->offset,
                                 .n_rows = io->n_rows,
                                 .accumulate = !io->overwrite_grad,
                                 .c_wide = f->grad_dtype != MOE_BF16};
}

/* dW2[e] (+)= (weight*A)^T gather(dy) */
static moe_gemm_outer_args down_gradient(const moei_ffn *f, const moe_expert_io *io, const void *a) {
    const moe_expert_desc *d = &f->desc;
    moe_gemm_outer_args down = weight_gradient(f, io);
    down.m = down.lda = d->d_hidden;
    down.n = down.ldc = d->d_out;
    down.a = a;
    down.b = io->dout.data;
    down.ldb = io->dout.stride;
    down.b_row = io->row_token;
    down.c = f->grad[MOEI_FFN_DOWN];
    down.c_group = (int64_t)d->d_hidden * d->d_out;
    return down;
}

/* dW1[e] (+)= gather(x)^T dZ */
static moe_gemm_outer_args up_gradient(const moei_ffn *f, const moe_expert_io *io, const void *z) {
    const moe_expert_desc *d = &f->desc;
    moe_gemm_outer_args up = weight_gradient(f, io);
    up.m = d->d_in;
    up.n = up.ldb = up.ldc = f->d_z;
    up.a = io->in.data;
    up.lda = io->in.stride;
    up.a_row = io->row_token;
    up.b = z;
    up.c = f->grad[MOEI_FFN_UP];
    up.c_group = (int64_t)d->d_in * f->d_z;
    return up;
}

/* Rows by index put in order, where that pays: in `room` [rows, columns], which has no other use meanwhile.
 */
static bool put_in_order(const moei_ffn *f, const moe_expert_io *io, moe_mat *rows, void *room,
                         int64_t columns) {
    moei_order_rows_fn *order = f->ctx->kernels[f->desc.dtype]->order_rows;
    const moei_copy_rows_args copy = {.dtype = f->desc.dtype,
                                      .rows = io->n_rows,
                                      .n = rows->cols,
                                      .from = rows->data,
                                      .ld_from = rows->stride,
                                      .row = io->row_token,
                                      .slot = io->row_slot,
                                      .to = room,
                                      .ld_to = rows->cols};
    if (!order || !room || !io->row_token || columns < rows->cols ||
        !order(&f->ctx->team, &copy, io->n_experts, f->desc.d_hidden))
        return false;
    *rows = (moe_mat){room, io->n_rows, rows->cols, rows->cols, rows->dtype};
    return true;
}

/* dW2 from dy in order, in the room of the rows' gradients, which come later. False: not so, and nothing was
 * done. What rides with products of weights (moei_outer_products) does not ride here: it writes where the
 * product of the rows' gradients still reads. */
static bool ordered_down_gradient(const moei_ffn *f, const moe_expert_io *io, const void *a,
                                  moe_status *status) {
    moe_expert_io ordered = *io;
    if (!f->grad[MOEI_FFN_DOWN] || !put_in_order(f, io, &ordered.dout, io->din.data, io->din.stride))
        return false;
    ordered.row_token = NULL;
    const moe_gemm_outer_args down = down_gradient(f, &ordered, a);
    *status = moe_gemm_outer(f->ctx, &down);
    return true;
}

/* Of what is trained; `down_done`: dW1 alone, and the room of the weighted A is free. */
static moe_status weight_gradients(const moei_ffn *f, const moe_expert_io *io, const void *z, ffn_scratch s,
                                   bool down_done) {
    moe_expert_io ordered = *io;
    if (down_done && f->grad[MOEI_FFN_UP] && put_in_order(f, io, &ordered.in, s.a, f->desc.d_hidden))
        ordered.row_token = NULL;
    const moe_gemm_outer_args product[2] = {down_gradient(f, io, s.a), up_gradient(f, &ordered, z)};
    const int32_t first = product[0].c && !down_done ? 0 : 1, last = product[1].c ? 1 : 0;
    return first > last ? MOE_OK : moei_outer_products(f->ctx, &product[first], last - first + 1);
}

/* The down bias is weighted too, so drow_weight[r] += <b2[e], dy[token]>. */
static void bias_weight_gradient(const moei_ffn *f, const moe_expert_io *io) {
    const moe_expert_desc *d = &f->desc;
    f->ctx->kernels[d->dtype]->row_dot(&f->ctx->team, &(moei_row_dot_args){.dtype = d->dtype,
                                                                           .n_groups = io->n_experts,
                                                                           .n_rows = io->n_rows,
                                                                           .offset = io->offset,
                                                                           .n = d->d_out,
                                                                           .a = io->dout.data,
                                                                           .lda = io->dout.stride,
                                                                           .a_row = io->row_token,
                                                                           .b = f->value[MOEI_FFN_DOWN_BIAS],
                                                                           .ldb = d->d_out,
                                                                           .b_by_group = true,
                                                                           .out = io->drow_weight,
                                                                           .accumulate = true});
}

/* db1 (+)= sum dZ */
static moe_status up_bias_gradient(const moei_ffn *f, const moe_expert_io *io, const void *z) {
    return moe_colsum(f->ctx, &(moe_colsum_args){.dtype = f->desc.dtype,
                                                 .n_groups = io->n_experts,
                                                 .offset = io->offset,
                                                 .n_rows = io->n_rows,
                                                 .n = f->d_z,
                                                 .a = z,
                                                 .lda = f->d_z,
                                                 .out = f->grad[MOEI_FFN_UP_BIAS],
                                                 .accumulate = !io->overwrite_grad});
}

/* db2 (+)= sum weight*dy */
static moe_status down_bias_gradient(const moei_ffn *f, const moe_expert_io *io) {
    const moe_expert_desc *d = &f->desc;
    return moe_colsum(f->ctx, &(moe_colsum_args){.dtype = d->dtype,
                                                 .n_groups = io->n_experts,
                                                 .offset = io->offset,
                                                 .n_rows = io->n_rows,
                                                 .n = d->d_out,
                                                 .a = io->dout.data,
                                                 .lda = io->dout.stride,
                                                 .a_row = io->row_token,
                                                 .row_weight = io->row_weight,
                                                 .out = f->grad[MOEI_FFN_DOWN_BIAS],
                                                 .accumulate = !io->overwrite_grad});
}

/* dX = dZ W1^T, row by row */
static moe_status input_gradient(const moei_ffn *f, const moe_expert_io *io, const void *z) {
    const moe_expert_desc *d = &f->desc;
    return moei_rows_product(f->ctx, &(moe_gemm_rows_args){.dtype = d->dtype,
                                                           .n_groups = io->n_experts,
                                                           .offset = io->offset,
                                                           .n_rows = io->n_rows,
                                                           .n = d->d_in,
                                                           .k = f->d_z,
                                                           .a = z,
                                                           .lda = f->d_z,
                                                           .b = f->value[MOEI_FFN_UP],
                                                           .ldb = f->d_z,
                                                           .b_group = (int64_t)d->d_in * f->d_z,
                                                           .b_trans = true,
                                                           .c = io->din.data,
                                                           .ldc = io->din.stride});
}

/* What the layer waits for comes first, the gradients of the parameters last. */
static moe_status ffn_backward(void *self, const moe_expert_io *io) {
    const moei_ffn *f = self;
    moei_arena arena = {io->scratch, 0};
    const ffn_scratch s = carve(f, &arena, io->n_rows, MOE_TRAIN);
    void *z = s.z ? s.z : io->saved;
    if (f->desc.recompute) MOEI_TRY(up_product(f, io, z, false, NULL));
    if (f->desc.saved_mxfp8) {
        const moei_mx_rows_args rows = mx_rows(f, io, z);
        f->ctx->kernels[rows.dtype]->mx_restore(&f->ctx->team, &rows);
    }
    MOEI_TRY(hidden_gradient(f, io, z, s));
    if (f->value[MOEI_FFN_DOWN_BIAS] && io->drow_weight) bias_weight_gradient(f, io);
    moei_beside_step(f->ctx, MOEI_BESIDE_WEIGHED);
    moe_status status = MOE_OK;
    const bool down_done = ordered_down_gradient(f, io, s.a, &status);
    MOEI_TRY(status);
    if (io->din.data) MOEI_TRY(input_gradient(f, io, z));
    moei_beside_step(f->ctx, MOEI_BESIDE_MARK);
    MOEI_TRY(weight_gradients(f, io, z, s, down_done));
    if (f->grad[MOEI_FFN_UP_BIAS]) MOEI_TRY(up_bias_gradient(f, io, z));
    return f->grad[MOEI_FFN_DOWN_BIAS] ? down_bias_gradient(f, io) : MOE_OK;
}

const moe_expert_ops moei_expert_ffn = {.size = sizeof(moe_expert_ops),
                                        .name = "ffn",
                                        .create = moei_ffn_create,
                                        .destroy = moei_ffn_destroy,
                                        .param_count = moei_ffn_param_count,
                                        .param = moei_ffn_param,
                                        .bind_grad = moei_ffn_bind_grad,
                                        .saved_bytes = ffn_saved_bytes,
                                        .scratch_bytes = ffn_scratch_bytes,
                                        .forward = ffn_forward,
                                        .backward = ffn_backward,
                                        .on_device = true,
                                        .overwrites = true};
