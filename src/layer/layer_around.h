/* layer_around.h: the small arithmetic around the experts: whole products, a bias, a sigmoid gate. */
#ifndef MOEI_LAYER_AROUND_H
#define MOEI_LAYER_AROUND_H

#include "core/ctx.h"
#include "flow.h"

/* out[T,n], wide or of the type of in, (+)= in[T,k] b[k,n], or b[n,k]^T where `transposed`. */
void moei_product(moe_ctx *ctx, moe_mat in, const void *b, bool transposed, moe_mat out, bool accumulate);
/* db[k,n], wide, += in[T,k]^T dout[T,n] */
void moei_product_weight(moe_ctx *ctx, moe_mat in, moe_mat dout, void *db);

/* y[t] += bias[n] for tokens with mask 1, NULL: for all; wide dbias[n] += sum of their dy. */
void moei_add_bias(moe_ctx *ctx, const uint8_t *mask, const void *bias, moe_mat y);
void moei_bias_backward(moe_ctx *ctx, const uint8_t *mask, moe_mat dy, void *dbias);

/* wide gate[T,1] = sigmoid(gate); y[t] *= gate[t] */
void moei_shared_gate_apply(moe_ctx *ctx, moe_mat gate, moe_mat y);
/* wide dgate[T,1] *= gate (1 - gate); then dweight[d] += dgate^T x and, where wanted, dx += dgate weight. */
void moei_shared_gate_backward(moe_ctx *ctx, moe_mat gate, moe_mat dgate, moe_mat x, const void *weight,
                               void *dweight, moe_mat dx);

#endif
