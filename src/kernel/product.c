/* product.c: what stages ask of whole matrices: the operations with one group of rows.
 * in[T,k] b[k,n] -> out[T,n]; bias[n]. Source: the contracts of kernel.h; moei_one_group tells a device.
 */
#include "core/ctx.h"
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

moe_status moei_rows_product(moe_ctx *ctx, const moe_gemm_rows_args *args) {
    moei_gemm_rows_plus_fn *product = ctx->kernels[args->dtype]->gemm_rows_plus;
    if (!ctx->plus || !product || !product(&ctx->team, args, ctx->plus)) return moe_gemm_rows(ctx, args);
    ctx->plus = NULL;
    return MOE_OK;
}

moe_status moei_outer_products(moe_ctx *ctx, const moe_gemm_outer_args *product, int32_t n_products) {
    moei_gemm_outers_fn *outers = ctx->kernels[product->dtype]->gemm_outers;
    const moei_gemm_outers_args args = {product, n_products, ctx->ride};
    if (outers && outers(&ctx->team, &args)) {
        ctx->ride = NULL;
        return MOE_OK;
    }
    for (int32_t i = 0; i < n_products; ++i) MOEI_TRY(moe_gemm_outer(ctx, &product[i]));
    return MOE_OK;
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

void moei_column_sums(moe_ctx *ctx, moe_mat in, const void *row_weight, void *out) {
    const int64_t offset[2] = {0, in.rows};
    ctx->kernels[in.dtype]->colsum(&ctx->team, &(moe_colsum_args){.dtype = in.dtype,
                                                                  .n_groups = 1,
                                                                  .offset = moei_one_group(ctx, offset),
                                                                  .n_rows = in.rows,
                                                                  .n = in.cols,
                                                                  .a = in.data,
                                                                  .lda = in.stride,
                                                                  .row_weight = row_weight,
                                                                  .out = out,
                                                                  .accumulate = true});
}
