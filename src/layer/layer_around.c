/* layer_around.c: whole products, the output bias and the shared experts' gate.
 * in[T,k] b[k,n] -> out[T,n]. Vectors of T or n numbers are cheap beside the products, so one thread does
 * them. Source: Automodel's shared_expert_gate; sigma-MoE's o_bias.
 */
#include "layer/layer_around.h"

#include "core/real.h"
#include "kernel/kernel.h"

#include <math.h>

void moei_product(moe_ctx *ctx, moe_mat in, const void *b, bool transposed, moe_mat out, bool accumulate) {
    const int64_t offset[2] = {0, in.rows};
    ctx->kernels[in.dtype]->gemm_rows(&ctx->team,
                                      &(moe_gemm_rows_args){.dtype = in.dtype,
                                                            .n_groups = 1,
                                                            .offset = offset,
                                                            .n = out.cols,
                                                            .k = in.cols,
                                                            .a = in.data,
                                                            .lda = in.stride,
                                                            .b = b,
                                                            .ldb = transposed ? in.cols : out.cols,
                                                            .b_trans = transposed,
                                                            .c = out.data,
                                                            .ldc = out.stride,
                                                            .accumulate = accumulate});
}

void moei_product_weight(moe_ctx *ctx, moe_mat in, moe_mat dout, void *db) {
    const int64_t offset[2] = {0, in.rows};
    ctx->kernels[in.dtype]->gemm_outer(&ctx->team, &(moe_gemm_outer_args){.dtype = in.dtype,
                                                                          .n_groups = 1,
                                                                          .offset = offset,
                                                                          .m = in.cols,
                                                                          .n = dout.cols,
                                                                          .a = in.data,
                                                                          .lda = in.stride,
                                                                          .b = dout.data,
                                                                          .ldb = dout.stride,
                                                                          .c = db,
                                                                          .ldc = dout.cols,
                                                                          .accumulate = true});
}

static bool is_real_token(const uint8_t *mask, int64_t t) {
    return !mask || mask[t];
}

void moei_add_bias(const uint8_t *mask, const void *bias, moe_mat y) {
    for (int64_t t = 0; t < y.rows; ++t)
        for (int64_t j = 0; is_real_token(mask, t) && j < y.cols; ++j) {
            const int64_t i = t * y.stride + j;
            moei_real_store(y.dtype, y.data, i,
                            moei_real_load(y.dtype, y.data, i) + moei_real_load(y.dtype, bias, j));
        }
}

void moei_bias_backward(const uint8_t *mask, moe_mat dy, void *dbias) {
    for (int64_t j = 0; j < dy.cols; ++j) {
        double sum = moei_real_load(dy.dtype, dbias, j);
        for (int64_t t = 0; t < dy.rows; ++t)
            if (is_real_token(mask, t)) sum += moei_real_load(dy.dtype, dy.data, t * dy.stride + j);
        moei_real_store(dy.dtype, dbias, j, sum);
    }
}

void moei_shared_gate_apply(moe_mat gate, moe_mat y) {
    for (int64_t t = 0; t < y.rows; ++t) {
        const double g = 1 / (1 + exp(-moei_real_load(gate.dtype, gate.data, t)));
        moei_real_store(gate.dtype, gate.data, t, g);
        for (int64_t j = 0; j < y.cols; ++j) {
            const int64_t i = t * y.stride + j;
            moei_real_store(y.dtype, y.data, i, g * moei_real_load(y.dtype, y.data, i));
        }
    }
}

void moei_shared_gate_backward(moe_mat gate, moe_mat dgate) {
    for (int64_t t = 0; t < gate.rows; ++t) {
        const double g = moei_real_load(gate.dtype, gate.data, t);
        moei_real_store(dgate.dtype, dgate.data, t, moei_real_load(dgate.dtype, dgate.data, t) * g * (1 - g));
    }
}
