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
                                                            .accumulate = accumulate,
                                                            .c_wide = out.dtype != in.dtype});
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
                                                                          .accumulate = true,
                                                                          .c_wide = true});
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
    const moe_dtype wide = moei_wide(dy.dtype);
    for (int64_t j = 0; j < dy.cols; ++j) {
        double sum = moei_real_load(wide, dbias, j);
        for (int64_t t = 0; t < dy.rows; ++t)
            if (is_real_token(mask, t)) sum += moei_real_load(dy.dtype, dy.data, t * dy.stride + j);
        moei_real_store(wide, dbias, j, sum);
    }
}

/* The shared experts' gate: one task a token. */
typedef struct gate_job {
    moe_mat gate, tokens;
    const void *weight; /* backward */
} gate_job;

static void gate_task(void *arg, int64_t t, void *scratch) {
    (void)scratch;
    const gate_job *job = arg;
    const moe_mat gate = job->gate, y = job->tokens;
    const double g = 1 / (1 + exp(-moei_real_load(gate.dtype, gate.data, t)));
    moei_real_store(gate.dtype, gate.data, t, g);
    for (int64_t j = 0; j < y.cols; ++j) {
        const int64_t i = t * y.stride + j;
        moei_real_store(y.dtype, y.data, i, g * moei_real_load(y.dtype, y.data, i));
    }
}

void moei_shared_gate_apply(moe_ctx *ctx, moe_mat gate, moe_mat y) {
    gate_job job = {.gate = gate, .tokens = y};
    moei_parallel(&ctx->team, y.rows, gate_task, &job);
}

/* dx[t] += dgate[t] w */
static void gate_input_task(void *arg, int64_t t, void *scratch) {
    (void)scratch;
    const gate_job *job = arg;
    const moe_mat dx = job->tokens;
    const double dgate = moei_real_load(job->gate.dtype, job->gate.data, t);
    for (int64_t j = 0; j < dx.cols; ++j) {
        const int64_t i = t * dx.stride + j;
        moei_real_store(dx.dtype, dx.data, i,
                        moei_real_load(dx.dtype, dx.data, i) +
                            dgate * moei_real_load(dx.dtype, job->weight, j));
    }
}

void moei_shared_gate_backward(moe_ctx *ctx, moe_mat gate, moe_mat dgate, moe_mat x, const void *weight,
                               void *dweight, moe_mat dx) {
    const int64_t offset[2] = {0, x.rows};
    for (int64_t t = 0; t < gate.rows; ++t) {
        const double g = moei_real_load(gate.dtype, gate.data, t);
        moei_real_store(dgate.dtype, dgate.data, t, moei_real_load(dgate.dtype, dgate.data, t) * g * (1 - g));
    }
    ctx->kernels[x.dtype]->colsum(&ctx->team, &(moe_colsum_args){.dtype = x.dtype,
                                                                 .n_groups = 1,
                                                                 .offset = offset,
                                                                 .n = x.cols,
                                                                 .a = x.data,
                                                                 .lda = x.stride,
                                                                 .row_weight = dgate.data,
                                                                 .out = dweight,
                                                                 .accumulate = true});
    gate_job job = {dgate, dx, weight};
    if (dx.data) moei_parallel(&ctx->team, dx.rows, gate_input_task, &job);
}
