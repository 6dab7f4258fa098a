/* product.h: what stages ask of whole matrices, all rows one group: products, their gradients, biases.
 * On the context's device; a view's stride is filled in. "wide": f32 for bf16, else of the same type.
 */
#ifndef MOEI_PRODUCT_H
#define MOEI_PRODUCT_H

#include <moekit/moe.h>
#include <moekit/op.h>

/* out[T,n], wide or of the type of in, (+)= in[T,k] b[k,n], or b[n,k]^T where `transposed`. */
void moei_product(moe_ctx *ctx, moe_mat in, const void *b, bool transposed, moe_mat out, bool accumulate);
/* db[k,n], wide, += in[T,k]^T dout[T,n] */
void moei_product_weight(moe_ctx *ctx, moe_mat in, moe_mat dout, void *db);
/* wide out[n] += sum over t of row_weight[t] in[t,n]; row_weight NULL: 1 */
void moei_column_sums(moe_ctx *ctx, moe_mat in, const void *row_weight, void *out);

/* The gradients of an expert kind's rows. ctx->plus is added where the device can, and is then NULL. */
moe_status moei_rows_product(moe_ctx *ctx, const moe_gemm_rows_args *args);
/* product[n_products] over the same groups: the gradients of parameters. ctx->ride, which is over others,
 * shares their launch where the device can, and is then NULL. */
moe_status moei_outer_products(moe_ctx *ctx, const moe_gemm_outer_args *product, int32_t n_products);

/* y[t] += bias[n] for tokens with mask 1, NULL: for all; wide dbias[n] += sum of their dy. */
void moei_add_bias(moe_ctx *ctx, const uint8_t *mask, const void *bias, moe_mat y);
void moei_bias_backward(moe_ctx *ctx, const uint8_t *mask, moe_mat dy, void *dbias);

#endif
