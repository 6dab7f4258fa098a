/* product.h: what stages ask of whole matrices, all rows one group: products, their gradients, biases.
 * On the context's device; a view's stride is filled in. "wide": f32 for bf16, else of the same type.
 */
#ifndef MOEI_PRODUCT_H
#define MOEI_PRODUCT_H

#include <moekit/moe.h>

/* out[T,n], wide or of the type of in, (+)= in[T,k] b[k,n], or b[n,k]^T where `transposed`. */
void moei_product(moe_ctx *ctx, moe_mat in, const void *b, bool transposed, moe_mat out, bool accumulate);
/* db[k,n], wide, += in[T,k]^T dout[T,n] */
void moei_product_weight(moe_ctx *ctx, moe_mat in, moe_mat dout, void *db);
/* wide out[n] += sum over t of row_weight[t] in[t,n]; row_weight NULL: 1 */
void moei_column_sums(moe_ctx *ctx, moe_mat in, const void *row_weight, void *out);

/* y[t] += bias[n] for tokens with mask 1, NULL: for all; wide dbias[n] += sum of their dy. */
void moei_add_bias(moe_ctx *ctx, const uint8_t *mask, const void *bias, moe_mat y);
void moei_bias_backward(moe_ctx *ctx, const uint8_t *mask, moe_mat dy, void *dbias);

#endif
