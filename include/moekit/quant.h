/* quant.h: weights packed for inference, in few bits or only in the order they are multiplied in: the experts
 * of a layer, and B of any grouped product (op.h). Activations, sums, biases and the router stay as they are;
 * only what is multiplied is packed.
 */
#ifndef MOEKIT_QUANT_H
#define MOEKIT_QUANT_H

#include <moekit/moe.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Experts of a layer: their weights are packed, and forward reads the packed ones. y is that of the layer
 * whose experts have the numbers that were packed. */
typedef struct moe_quant_desc {
    size_t size;
    const char *format; /* "int8" "int4" "nf4" "mxfp4" "bf16x2": moe_packed, below */
    int32_t group; /* numbers along the sum that share a scale: int8, int4: 32, 64 or 128; nf4: 64; mxfp4: 32;
                      0: the smallest of the format, and all that bf16x2 takes, which has no scales */
    bool drop_weights; /* the weights' memory is given back: their moe_param.value and grad are NULL from then
                          on, the layer cannot be saved, and no moe_layer_quantize, of NULL or not, is
                          accepted again (MOE_ERR_STATE) */
    uint8_t reserved[3]; /* 0: no padding, as in moe_ctx_desc */
} moe_quant_desc;
/* Packs the weights of routed and shared experts as they are now; once more after they were set anew. NULL:
 * the layer uses its own weights again. Experts are the built-in ffn, of one width. On the CPU every dtype
 * and format, on CUDA f32 and bf16 in all but bf16x2. A NaN or infinite weight is MOE_ERR_NUMERIC. Refused
 * while the layer is reserved for MOE_TRAIN, as moe_layer_reserve and moe_layer_measure refuse MOE_TRAIN
 * while it is packed. A refusal leaves the layer as it was. */
MOE_API moe_status moe_layer_quantize(moe_layer *layer, const moe_quant_desc *desc);

/* Weights of inference in 4 or 8 bits a number and a scale for each `group` of numbers along the sum, or as
 * they are:
 *   int8, int4  signed, groups of 32, 64 or 128 with an f16 scale, the group's largest number / 127 or / 7
 *   nf4         16 quantiles of the normal distribution, groups of 64 with their largest as f16
 *   mxfp4       OCP's e2m1, groups of 32 with a power of two
 *   bf16x2      bf16, two steps of the sum side by side: no bit of bf16 weights is lost, and y keeps its bits
 * bf16x2 is of the CPU alone (on CUDA MOE_ERR_UNSUPPORTED). With `avx512bf16` and `amx` few rows are as fast
 * as memory gives it, and more need no packing on the way (docs/kernels.md); other kernels, and products of
 * f32, lay it out anew for more than a few rows. It takes as much memory as bf16 weights, which may be
 * dropped. Each number becomes the nearest one, ties to even codes; what is beyond bf16's largest becomes
 * that. An f16 scale has 11 bits down to 6.1e-5, which is 0.0078 for the largest number of an int8 group;
 * below it loses bits (int8 of N(0, s^2) is off by 0.5 % from s = 1e-3 on, by 1 % at 3e-5, 3 % at 1e-5), and
 * from 3e-8 on the group becomes zeros. A scale that is too large for f16 (65504), or for a power of two in
 * f32, is clamped. src/kernel/packed.h tells the bytes. */
typedef struct moe_packed moe_packed;
typedef struct moe_packed_desc {
    size_t size;
    const char *format;  /* one of moe_packed_formats */
    int32_t group;       /* as in moe_quant_desc */
    moe_dtype dtype;     /* of b, and of the products it will be in */
    int32_t n_groups;    /* matrices */
    int64_t k, n;        /* [k, n] each; up to 2^48 numbers in all */
    int32_t n_runs;      /* 2: the columns are gates and then ups, for MOE_EPI_ACT; 0: 1 */
    uint8_t reserved[4]; /* 0: no padding, as in moe_ctx_desc */
} moe_packed_desc;
MOE_API const char *const *moe_packed_formats(void); /* NULL-terminated */
/* Packs b[n_groups, k, n], which is not needed afterwards, for products on the device of ctx, which must live
 * as long. A NaN or infinity is MOE_ERR_NUMERIC, f64 on CUDA MOE_ERR_UNSUPPORTED. */
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
