/* expert.h: the table that a custom kind of expert fills in. moekit's own FFN experts use the same table.
 *
 * A kind serves all experts of a layer at once. It receives the tokens as they are, the index from rows to
 * tokens, and the offsets of each expert's rows, so it may use the grouped products of op.h without copying a
 * token. A kind that wants contiguous rows sets `contiguous` and gets them gathered. Its row gradients then
 * arrive weighted, and it need not look at the routing weights.
 */
#ifndef MOEKIT_EXPERT_H
#define MOEKIT_EXPERT_H

#include <moekit/moe.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What a kind of expert is told when it is made. */
typedef struct moe_expert_desc {
    size_t size;
    moe_dtype dtype;
    int32_t n_experts;
    int32_t d_in, d_hidden, d_out;
    const char *activation;
    const char *glu_layout;                                      /* "auto" "halves" "interleaved" */
    float activation_alpha, activation_limit, glu_linear_offset; /* 0: the activation's own, or MOE_ZERO */
    bool bias, up_bias;                                          /* on both projections; on the first only */
    float dropout;                                               /* of hidden activations, training */
    bool recompute;    /* save nothing that backward can compute again */
    bool saved_mxfp8;  /* save pre-activations in 8 bits, moe_layer_desc.saved_dtype */
    const char *kinds; /* unequal experts: one entry an expert; "": all alike */
    const char *init_scheme;
    float init_std, init_std_down, init_std_scale; /* here 0 means 0; parameters need not be drawn */
    int32_t layer_index;
    uint64_t stream;     /* keeps the random draws of routed and shared experts apart */
    void *user;          /* moe_expert_ops.user */
    bool unowned;        /* moe_layer_desc.unowned; only for built-in kinds */
    uint8_t reserved[7]; /* 0: no padding, as in moe_ctx_desc */
} moe_expert_desc;

/* One call. Rows of expert e are offset[e] <= r < offset[e+1]; R = offset[n_experts]. */
typedef struct moe_expert_io {
    size_t size;
    moe_mode mode;
    int32_t n_experts;
    int64_t n_rows;
    const int64_t *offset;       /* [n_experts + 1] */
    const int32_t *row_token;    /* [R] row of `in` (and of `dout`) for row r; NULL: r itself */
    const void *row_weight;      /* [R] routing weight of row r: f64 in f64 layers, else f32; NULL: 1. Always
                                    NULL if `contiguous` */
    moe_mat in;                  /* [T, d_in] tokens, or [R, d_in] where `contiguous` */
    moe_mat out;                 /* forward: [R, d_out] rows in expert order, written */
    uint64_t step;               /* keys random draws */
    const int32_t *row_slot;     /* [R] token * K + k of row r, which draws are counted by; NULL: r itself */
    const uint8_t *dropout_keep; /* [T*K, d_hidden] 1: kept, instead of draws; NULL: drawn */
    void *saved;   /* saved_bytes(R): written by a MOE_TRAIN forward, may be overwritten by backward */
    void *scratch; /* scratch_bytes(R, mode) */
    /* backward only */
    moe_mat dout; /* [T, d_out] dy of the tokens; or [R, d_out] weight * dy where `contiguous` */
    moe_mat din; /* [R, d_in] written: gradient of each row's input, weight included; data NULL: not wanted */
    void *drow_weight;   /* [R] written: d loss / d row_weight, in its type; not for `contiguous` kinds */
    bool overwrite_grad; /* store the gradients of parameters instead of adding; only for kinds with
                            moe_expert_ops.overwrites */
    uint8_t reserved[7]; /* 0: no padding, as in moe_ctx_desc */
} moe_expert_io;

typedef struct moe_expert_ops {
    size_t size;
    const char *name;
    bool contiguous;
    void *user;
    /* Makes the experts and draws their parameters. Report failures through moe_ctx_fail, here and in
     * `param`; if a kind only returns a status, the text names the kind. */
    moe_status (*create)(moe_ctx *ctx, const moe_expert_desc *desc, void **self);
    void (*destroy)(void *self);
    int32_t (*param_count)(const void *self);
    /* Shape, name and value of one parameter; its grad comes from `bind_grad`. Names are unique within the
     * kind and have 1 to 49 bytes; every dimension is at least 1. A bf16 parameter has an f32 gradient,
     * unless it says grad_dtype MOE_BF16. param->size is what the caller knows: write nothing beyond it. */
    moe_status (*param)(const void *self, int32_t index, moe_param *param);
    /* Gives each parameter its gradient, in the order of `param`. The layer zeroes it. */
    void (*bind_grad)(void *self, int32_t index, void *grad);
    size_t (*saved_bytes)(const void *self, int64_t max_rows);
    size_t (*scratch_bytes)(const void *self, int64_t max_rows, moe_mode mode);
    /* A status other than MOE_OK becomes the result of the layer's call; give its text to moe_ctx_fail. */
    moe_status (*forward)(void *self, const moe_expert_io *io);
    moe_status (*backward)(void *self, const moe_expert_io *io); /* NULL: inference only */
    /* Set by kinds that work on a CUDA context: pointers of moe_expert_io are device memory, n_rows is at
     * least offset[n_experts], and rows past that are padding. Other kinds are refused there. */
    bool on_device;
    /* Set by kinds whose backward respects overwrite_grad. For others the layer zeroes the gradients
     * instead. */
    bool overwrites;
    uint8_t reserved[6]; /* 0: no padding, as in moe_ctx_desc */
} moe_expert_ops;

/* Registers a kind under its name with this context; `ops` and its name are copied. Layers made afterwards
 * may name it in moe_layer_desc.expert. A name already taken is MOE_ERR_ARGUMENT. */
MOE_API moe_status moe_expert_register(moe_ctx *ctx, const moe_expert_ops *ops);

/* For plug-ins: records the text of a failure on the context and returns `status`. */
MOE_API moe_status moe_ctx_fail(moe_ctx *ctx, moe_status status, const char *format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 3, 4)))
#endif
    ;
/* The context's host allocator, 64-byte aligned. NULL (with a text recorded) if it does not fit. Free with
 * the same number of bytes. */
MOE_API void *moe_ctx_alloc(moe_ctx *ctx, size_t bytes);
MOE_API void moe_ctx_free(moe_ctx *ctx, void *ptr, size_t bytes);

/* Freezes parameter `index` (moe_layer_param) of the layer, or lets it be trained again. Backward computes no
 * gradient for a frozen parameter and leaves its gradient memory as it was. If frozen before the first
 * reserve for training, it gets no gradient memory and stays frozen (MOE_ERR_STATE). An unowned layer may
 * freeze and train at any time, and needs no gradient lent for what is frozen. For parameters of ffn experts,
 * routed or shared; others are MOE_ERR_UNSUPPORTED. */
MOE_API moe_status moe_layer_freeze(moe_layer *layer, int32_t index, bool frozen);

#ifdef __cplusplus
}
#endif
#endif
