/* expert.h: the table a custom expert fills. moekit's own FFN experts use the same door.
 *
 * An expert kind serves all experts of a layer at once: it receives the tokens as they are, the
 * row -> token index and the offsets of each expert's rows, so that it may use the grouped products
 * of op.h without copying a token. A kind that wants its rows contiguous sets `contiguous` and is
 * given them gathered; its row gradients then arrive weighted and it may ignore the routing weights.
 */
#ifndef MOEKIT_EXPERT_H
#define MOEKIT_EXPERT_H

#include <moekit/moe.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What an expert kind is told when it is made. */
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
    float init_std, init_std_down, init_std_scale; /* 0 is 0 here: numbers need not be drawn */
    int32_t layer_index;
    uint64_t stream;     /* distinguishes random draws of routed and shared experts */
    void *user;          /* moe_expert_ops.user */
    bool unowned;        /* moe_layer_desc.unowned; of built-in kinds alone */
    uint8_t reserved[7]; /* 0: no padding, as in moe_ctx_desc */
} moe_expert_desc;

/* One call. Rows of expert e are offset[e] <= r < offset[e+1]; R = offset[n_experts]. */
typedef struct moe_expert_io {
    size_t size;
    moe_mode mode;
    int32_t n_experts;
    int64_t n_rows;
    const int64_t *offset;    /* [n_experts + 1] */
    const int32_t *row_token; /* [R] row of `in` (and of `dout`) for row r; NULL: r itself */
    const void *row_weight;   /* [R] routing weight of row r: f64 in f64 layers, else f32; NULL: 1, and always
                                 NULL where `contiguous` */
    moe_mat in;               /* [T, d_in] tokens, or [R, d_in] where `contiguous` */
    moe_mat out;              /* forward: [R, d_out] rows in expert order, written */
    uint64_t step;            /* keys random draws */
    const int32_t *row_slot;  /* [R] token * K + k of row r, what draws are counted by; NULL: r itself */
    const uint8_t *dropout_keep; /* [T*K, d_hidden] 1: kept, instead of draws; NULL: drawn */
    void *saved;   /* saved_bytes(R): written by a MOE_TRAIN forward, may be overwritten by backward */
    void *scratch; /* scratch_bytes(R, mode) */
    /* backward only */
    moe_mat dout; /* [T, d_out] dy of the tokens; or [R, d_out] weight * dy where `contiguous` */
    moe_mat din; /* [R, d_in] written: gradient of each row's input, weight included; data NULL: not wanted */
    void *drow_weight; /* [R] written: d loss / d row_weight, of its type; not asked of `contiguous` kinds */
    bool overwrite_grad; /* gradients of parameters are stored, not added to; only of
                            moe_expert_ops.overwrites kinds */
    uint8_t reserved[7]; /* 0: no padding, as in moe_ctx_desc */
} moe_expert_io;

typedef struct moe_expert_ops {
    size_t size;
    const char *name;
    bool contiguous;
    void *user;
    /* Makes the experts and draws their parameters. Failures are told through moe_ctx_fail, as by `param`; of
     * a kind that only returns a status the text names it. */
    moe_status (*create)(moe_ctx *ctx, const moe_expert_desc *desc, void **self);
    void (*destroy)(void *self);
    int32_t (*param_count)(const void *self);
    /* Shape, name and value of one parameter; its grad is told by `bind_grad`. The name is the kind's, no
     * other of its parameters has it, and it has 1 to 49 bytes; every dimension is at least 1. A bf16
     * parameter has an f32 gradient, but for one that says grad_dtype MOE_BF16. param->size is what the
     * caller knows: nothing beyond it is written. */
    moe_status (*param)(const void *self, int32_t index, moe_param *param);
    /* Gives each parameter its gradient, in the order of `param`; zeroed by the layer. */
    void (*bind_grad)(void *self, int32_t index, void *grad);
    size_t (*saved_bytes)(const void *self, int64_t max_rows);
    size_t (*scratch_bytes)(const void *self, int64_t max_rows, moe_mode mode);
    /* A status other than MOE_OK is what the layer's call returns; its text is told with moe_ctx_fail. */
    moe_status (*forward)(void *self, const moe_expert_io *io);
    moe_status (*backward)(void *self, const moe_expert_io *io); /* NULL: inference only */
    /* Takes what a CUDA context gives: pointers of moe_expert_io are device memory, n_rows is at least
     * offset[n_experts], rows past that are padding. Others are refused there. */
    bool on_device;
    /* Backward heeds overwrite_grad. Gradients of kinds that do not are zeroed by the layer instead. */
    bool overwrites;
    uint8_t reserved[6]; /* 0: no padding, as in moe_ctx_desc */
} moe_expert_ops;

/* Registers a kind under its name with this context; `ops` and its name are copied. A layer made afterwards
 * may name it in moe_layer_desc.expert. Names already taken are MOE_ERR_ARGUMENT. */
MOE_API moe_status moe_expert_register(moe_ctx *ctx, const moe_expert_ops *ops);

/* For plug-ins: records the text of a failure on the context and returns `status`. */
MOE_API moe_status moe_ctx_fail(moe_ctx *ctx, moe_status status, const char *format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 3, 4)))
#endif
    ;
/* The context's allocator of the host, 64-byte aligned. NULL (with a text recorded) when it does not fit.
 * Freed with the bytes it was allocated with. */
MOE_API void *moe_ctx_alloc(moe_ctx *ctx, size_t bytes);
MOE_API void moe_ctx_free(moe_ctx *ctx, void *ptr, size_t bytes);

/* Of the layer's parameter `index` (moe_layer_param) backward computes no gradient until it is said to be
 * trained again, and leaves what memory it has for that as it was. Frozen before the first reserve for
 * training it takes none, and then stays frozen (MOE_ERR_STATE); an unowned layer may freeze and train at any
 * time, and what is frozen needs no gradient lent. Of ffn experts, routed or shared; others:
 * MOE_ERR_UNSUPPORTED. */
MOE_API moe_status moe_layer_freeze(moe_layer *layer, int32_t index, bool frozen);

#ifdef __cplusplus
}
#endif
#endif
