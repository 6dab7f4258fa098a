/* layer_around.c: whole products, the output bias and the shared experts' gate.
 * in[T,k] b[k,n] -> out[T,n]. Source: Automodel's shared_expert_gate; sigma-MoE's o_bias.
 */
#include "layer/layer_around.h"

#include "kernel/kernel.h"

void moei_product(moe_ctx *ctx, moe_mat in, const void *b, bool transposed, moe_mat out, bool accumulate) {
    const int64_t offset[2] = {0, in.rows};
    ctx->kernels[in.dtype]->gemm_rows(&ctx->team,
                                      &(moe_gemm_rows_args){.dtype = in.dtype,
                                                            .n_groups = 1,
                                                            .offset = moei_one_group(ctx, offset),
                                                            .n_rows = in.rows,
                                                            .n = out.cols,
                                                            .k = in.cols,
                                                            .a = in.data,
                                                            .lda = in.stride,
                                                            .b = b,
                                                            .ldb = transposed ? in.cols : out.cols,
                                                            .b_trans = transposed,
                                                            .c = out.data,
                                                            .ldc = out.stride,
                                                            .accumulate = accumulate,
                                                            .c_wide = out.dtype != in.dtype});
}

void moei_product_weight(moe_ctx *ctx, moe_mat in, moe_mat dout, void *db) {
    const int64_t offset[2] = {0, in.rows};
    ctx->kernels[in.dtype]->gemm_outer(&ctx->team,
                                       &(moe_gemm_outer_args){.dtype = in.dtype,
                                                              .n_groups = 1,
                                                              .offset = moei_one_group(ctx, offset),
                                                              .n_rows = in.rows,
                                                              .m = in.cols,
                                                              .n = dout.cols,
                                                              .a = in.data,
                                                              .lda = in.stride,
                                                              .b = dout.data,
                                                              .ldb = dout.stride,
                                                              .c = db,
                                                              .ldc = dout.cols,
                                                              .accumulate = true,
                                                              .c_wide = true});
}

void moei_add_bias(moe_ctx *ctx, const uint8_t *mask, const void *bias, moe_mat y) {
    ctx->kernels[y.dtype]->add_bias(&ctx->team, &(moei_bias_args){.dtype = y.dtype,
                                                                  .rows = y.rows,
                                                                  .n = y.cols,
                                                                  .mask = mask,
                                                                  .bias = (void *)(uintptr_t)bias,
                                                                  .mat = y.data,
                                                                  .ld = y.stride});
}

void moei_bias_backward(moe_ctx *ctx, const uint8_t *mask, moe_mat dy, void *dbias) {
    ctx->kernels[dy.dtype]->bias_grad(&ctx->team, &(moei_bias_args){.dtype = dy.dtype,
                                                                    .rows = dy.rows,
                                                                    .n = dy.cols,
                                                                    .mask = mask,
                                                                    .bias = dbias,
                                                                    .mat = dy.data,
                                                                    .ld = dy.stride});
}

void moei_shared_gate_apply(moe_ctx *ctx, moe_mat gate, moe_mat y) {
    ctx->kernels[y.dtype]->sigmoid_gate(
        &ctx->team,
        &(moei_sigmoid_gate_args){
            .dtype = y.dtype, .rows = y.rows, .n = y.cols, .gate = gate.data, .y = y.data, .ld = y.stride});
}

void moei_shared_gate_backward(moe_ctx *ctx, moe_mat gate, moe_mat dgate, moe_mat x, const void *weight,
                               void *dweight, moe_mat dx) {
    const int64_t offset[2] = {0, x.rows};
    ctx->kernels[x.dtype]->sigmoid_gate_grad(&ctx->team, &(moei_sigmoid_gate_args){.dtype = x.dtype,
                                                                                   .rows = x.rows,
                                                                                   .n = x.cols,
                                                                                   .gate = gate.data,
                                                                                   .dgate = dgate.data,
                                                                                   .weight = weight,
                                                                                   .y = dx.data,
                                                                                   .ld = dx.stride});
    ctx->kernels[x.dtype]->colsum(&ctx->team, &(moe_colsum_args){.dtype = x.dtype,
                                                                 .n_groups = 1,
                                                                 .offset = moei_one_group(ctx, offset),
                                                                 .n_rows = x.rows,
                                                                 .n = x.cols,
                                                                 .a = x.data,
                                                                 .lda = x.stride,
                                                                 .row_weight = dgate.data,
                                                                 .out = dweight,
                                                                 .accumulate = true});
}
