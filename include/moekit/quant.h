/* quant.h: weights in few bits, for inference: the experts of a layer, and B of any grouped product (op.h).
 * Activations, sums, biases and the router stay as they are; only what is multiplied is packed.
 */
#ifndef MOEKIT_QUANT_H
#define MOEKIT_QUANT_H

#include <moekit/moe.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Experts in few bits, for inference: their weights are packed, and forward reads the packed ones. All else
 * stays as it is: x, y, the router, biases, sums. y is that of the layer whose experts have the numbers that
 * were packed. */
typedef struct moe_quant_desc {
    size_t size;
    const char *format; /* "int8" "int4" "nf4" "mxfp4": moe_packed, below */
    int32_t group; /* numbers along the sum that share a scale: int8, int4: 32, 64 or 128; 0: 32; of nf4 64 */
    bool drop_weights; /* the weights' memory is given back: their moe_param.value is NULL from then on */
} moe_quant_desc;
/* Packs the weights of routed and shared experts as they are now; once more after they were set anew. NULL:
 * the layer uses its own weights again. Experts are the built-in ffn, of one width. Refused while the layer
 * is reserved for MOE_TRAIN; a packed layer is not trained. A refusal leaves the layer as it was. */
MOE_API moe_status moe_layer_quantize(moe_layer *layer, const moe_quant_desc *desc);

/* Weights of inference in 4 or 8 bits a number and a scale for each `group` of numbers along the sum:
 *   int8, int4  signed, groups of 32, 64 or 128 with an f16 scale, the group's largest number / 127 or / 7
 *   nf4         16 quantiles of the normal distribution, groups of 64 with their largest as f16
 *   mxfp4       OCP's e2m1, groups of 32 with a power of two
 * Each number becomes the nearest one, ties to even codes. A group whose scale f16 cannot show as it is too
 * small becomes zeros; one too large is clamped. src/kernel/packed.h tells the bytes. */
typedef struct moe_packed moe_packed;
typedef struct moe_packed_desc {
    size_t size;
    const char *format; /* one of moe_packed_formats */
    int32_t group;      /* 0: 32; of nf4 64 */
    moe_dtype dtype;    /* of b, and of the products it will be in */
    int32_t n_groups;   /* matrices */
    int64_t k, n;       /* [k, n] each */
    int32_t n_runs;     /* 2: the columns are gates and then ups, for MOE_EPI_ACT; 0: 1 */
} moe_packed_desc;
MOE_API const char *const *moe_packed_formats(void); /* NULL-terminated */
/* Packs b[n_groups, k, n], which is not needed afterwards. A NaN or infinity is MOE_ERR_NUMERIC. */
MOE_API moe_status moe_packed_create(moe_ctx *ctx, const moe_packed_desc *desc, const void *b,
                                     moe_packed **packed);
MOE_API void moe_packed_destroy(moe_packed *packed);
MOE_API size_t moe_packed_bytes(const moe_packed *packed);
/* The numbers that products see, rounded to dtype: b[n_groups, k, n]. */
MOE_API moe_status moe_packed_read(const moe_packed *packed, void *b);

#ifdef __cplusplus
}
#endif
#endif
