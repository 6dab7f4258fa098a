/* quant.h: weights packed for inference, in fewer bits or only in the order in which they are multiplied. For
 * the experts of a layer, and for operand B of any grouped product (op.h). Activations, sums, biases and the
 * router stay as they are. */
#ifndef MOEKIT_QUANT_H
#define MOEKIT_QUANT_H

#include <moekit/moe.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Packing the experts of a layer: forward then reads the packed weights. y is, up to rounding, that of the
 * packed numbers; |x| times the largest code, summed over a group, must fit f32. */
typedef struct moe_quant_desc {
    size_t size;
    const char *format; /* "int8" "int4" "nf4" "mxfp4" "bf16x2": moe_packed, below */
    int32_t group; /* how many numbers along the sum share a scale: int8, int4: 32, 64 or 128; nf4: 64; mxfp4:
                      32; 0: the format's smallest, and the only value for bf16x2, which has no scales */
    bool drop_weights;   /* gives the memory of the weights back: their moe_param.value and grad are NULL from
                            then on, the layer cannot be saved, and any further moe_layer_quantize, also with
                            NULL, is MOE_ERR_STATE */
    uint8_t reserved[3]; /* 0: no padding, as in moe_ctx_desc */
} moe_quant_desc;
/* Packs the weights of routed and shared experts as they are now; call it again after changing them. desc
 * NULL: the layer uses its own weights again. For built-in ffn experts of one width; on the CPU in every
 * dtype and format, on CUDA in f32 and bf16 and every format but bf16x2. A NaN or infinite weight is
 * MOE_ERR_NUMERIC. Refused while the layer is reserved for MOE_TRAIN; conversely, a packed layer cannot be
 * reserved or measured for MOE_TRAIN. A refusal leaves the layer as it was. */
MOE_API moe_status moe_layer_quantize(moe_layer *layer, const moe_quant_desc *desc);

/* Packed weights. A `group` of numbers along the sum shares a scale:
 *   int8, int4  signed, groups of 32, 64 or 128; f16 scale: the group's largest number / 127 or / 7
 *   nf4         16 quantiles of the normal distribution, groups of 64; f16 scale: the group's largest number
 *   mxfp4       OCP's e2m1, groups of 32; the scale is a power of two
 *   bf16x2      bf16 in another order, two steps of the sum side by side, without scales
 *
 * Each number becomes the nearest that its format has, ties to even codes; beyond bf16's largest it becomes
 * that. An f16 scale has 11 bits down to 6.1e-5, which is 0.0078 for the largest number of an int8 group.
 * Below it loses bits (int8 of N(0, s^2) is off by 0.5 % from s = 1e-3 on, by 1 % at 3e-5, 3 % at 1e-5), and
 * from 3e-8 on the group becomes zeros. A scale too large for f16 (65504), or for a power of two in f32, is
 * clamped.
 *
 * bf16x2 loses no bit of bf16 weights, whose y keeps its bits; others it rounds. For the CPU only (on CUDA
 * MOE_ERR_UNSUPPORTED). With `avx512bf16` and `amx` few rows run as fast as memory is read, and more rows
 * need no packing on the way (docs/kernels.md); other kernels, and products in f32, rearrange it for more
 * than a few rows. It takes as much memory as bf16 weights, which may be dropped.
 *
 * src/kernel/packed.h describes the bytes. */
typedef struct moe_packed moe_packed;
typedef struct moe_packed_desc {
    size_t size;
    const char *format;  /* one of moe_packed_formats */
    int32_t group;       /* as in moe_quant_desc */
    moe_dtype dtype;     /* of b, and of the products that will use it */
    int32_t n_groups;    /* matrices */
    int64_t k, n;        /* [k, n] each; up to 2^48 numbers in all */
    int32_t n_runs;      /* 2: the columns are gates, then ups, for a gated MOE_EPI_ACT; 0: 1 */
    uint8_t reserved[4]; /* 0: no padding, as in moe_ctx_desc */
} moe_packed_desc;
MOE_API const char *const *moe_packed_formats(void); /* NULL-terminated */
/* Packs b[n_groups, k, n], which is not needed afterwards, for products on the device of ctx, which must
 * outlive the result. A NaN or infinity is MOE_ERR_NUMERIC; f64 on CUDA is MOE_ERR_UNSUPPORTED. */
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
