/* model.h: the decoder: its tensors, the memory of a pass, and the stages a pass goes through.
 * Shapes: V vocabulary, d width, H heads and G key/value heads of width c, R = n_seq * length rows of a
 * pass; C = (H + 2G) * c columns of the fused q, k, v product. Everything is row-major and of the model's
 * dtype (model.dtype) but what is marked wide (f32; moekit/op.h): gradients of parameters, statistics of a
 * row, logits and losses. Source: the block is that of Mixtral (Jiang et al. 2024): RMSNorm before attention
 * and before the experts.
 */
#ifndef MOELM_MODEL_H
#define MOELM_MODEL_H

#include <moekit/expert.h>
#include <moekit/lm.h>
#include <moekit/op.h>

#include "config/config.h"
#include "core/arena.h"
#include "core/real.h"

enum { MOELM_NAME = 128, MOELM_MAX_TEXTS = 1 << 16 };

/* A parameter of the model itself; the layers own theirs. */
typedef struct moelm_tensor {
    int32_t n_dim;
    int64_t dim[2]; /* weights are [in, out], so y = x W; embedding and head are [V, d] */
    void *value;
    float *grad; /* wide */
} moelm_tensor;

/* What backward reads of one block. In inference all blocks share one set, and the three residual
 * streams are one buffer. */
typedef struct moelm_saved {
    void *in;             /* [R, d] residual stream before the block */
    void *norm;           /* [R, d] and normed */
    float *rms;           /* [R] wide */
    void *raw;            /* [R, (H+G)*c] queries and keys before their norms; NULL without norms */
    float *q_rms, *k_rms; /* [R, H], [R, G] wide, or [R] of all heads together; NULL without norms */
    void *qkv;            /* [R, C] after norms, clipping and rotary */
    uint8_t *kept;        /* [R, C] which of them were not clipped; NULL where none are */
    float *lse;           /* [R, H] wide */
    void *att;            /* [R, H*c] */
    void *mid;            /* [R, d] residual stream between attention and experts */
    void *ffn_norm;
    float *ffn_rms; /* wide */
} moelm_saved;

typedef struct moelm_block {
    moelm_tensor norm;     /* [d] */
    moelm_tensor qkv;      /* [d, C] columns of q, then k, then v */
    moelm_tensor q_norm;   /* [c], or [H*c] of all heads together; without norms there is none */
    moelm_tensor k_norm;   /* [c], or [G*c] */
    moelm_tensor out;      /* [H*c, d] */
    moelm_tensor ffn_norm; /* [d] */
    moe_layer *ffn;
    moe_stats stats; /* of the last forward */
    moelm_saved saved;
} moelm_block;

/* Memory of a pass over up to max_rows rows, one block of bytes. Fields of backward are NULL in inference. */
typedef struct moelm_memory {
    void *block;
    size_t bytes;
    int64_t max_rows, head_rows; /* rows of logits that exist at one time */
    int64_t max_sequences;
    moe_mode mode;
    int32_t *position;          /* [R] */
    int64_t *kv_lens, *kv_rows; /* [max_sequences] where a sequence's cache is */
    void *out;                  /* [R, d] residual stream after the last block */
    void *norm;                 /* [R, d] and normed */
    float *rms;                 /* [R] wide */
    void *branch;               /* [R, d] what a branch adds to the stream */
    float *logits;              /* [head_rows, V] wide */
    float *row_loss;            /* [head_rows] wide */
    void *dlogits;   /* [head_rows, V] gradient of the logits: `logits` itself where the types are one */
    void *dout;      /* [R, d] gradient of the residual stream */
    void *dnorm;     /* [R, d] */
    void *dqkv;      /* [R, C] */
    void *datt;      /* [R, H*c] */
    float *delta;    /* [R, H] wide */
    int32_t *order;  /* [R] rows sorted by token */
    int64_t *offset; /* [V + 1] rows of each token */
} moelm_memory;

/* Keys and values of a text's window, one of several that share a block; see kv_cache.c. */
typedef struct moelm_cache {
    int64_t n;           /* tokens whose keys and values are in */
    int32_t *window;     /* [capacity] the tokens */
    void *kv;            /* [n_layers, rows, 2*G*c] of all: a row is its keys, then its values */
    int64_t rows, first; /* of a layer; where this text's begin there */
} moelm_cache;

/* Where parameter `index` of moe_lm_param lives. */
typedef struct moelm_entry {
    char name[MOELM_NAME];
    moelm_tensor *tensor; /* NULL: parameter `param` of `layer` */
    moe_layer *layer;
    int32_t param;
} moelm_entry;

/* model.qk_norm: who shares a root mean square. */
typedef enum moelm_qk { MOELM_QK_NONE, MOELM_QK_HEAD, MOELM_QK_FULL } moelm_qk;

struct moe_lm {
    moe_ctx *ctx;
    moe_lm_config *config; /* model.* and moe.* of what it was made from */
    moe_dtype dtype;       /* f32 or bf16 */
    int64_t vocab, d, context;
    int32_t n_layers, heads, kv_heads, head_dim;
    float eps, rope_base, clip; /* clip 0: none */
    moelm_qk qk_norm;

    moelm_tensor embed;      /* [V, d] */
    moelm_tensor final_norm; /* [d] */
    moelm_tensor head;       /* [V, d]; a copy of embed's pointers where tied */
    moelm_block *blocks;     /* [n_layers] */
    moelm_entry *entries;    /* [n_entries] */
    int32_t n_entries;
    void *values, *grads; /* of all moelm_tensors, one block each */
    size_t value_bytes, grad_bytes;

    moelm_memory memory;
    moe_lm_batch *own; /* of one text: that of moe_lm_generate; NULL before the first */
};

/* Routes to use again: rows first .. of every layer's recording, in the order of the passes that made it. */
typedef struct moelm_route {
    int32_t slots;         /* of a token: moe_routing_view.top_k; 0: a dense layer */
    const int32_t *expert; /* [rows, slots] */
    moe_dtype dtype;       /* of the router: moe_routing_view.dtype */
    const void *weight;    /* [rows, slots] of dtype; NULL: the router's own */
} moelm_route;

/* One pass over tokens[n_seq * length]. With caches, one a sequence, each goes on at its cache's n; they are
 * of one block. */
typedef struct moelm_pass {
    const int32_t *tokens;
    int64_t n_seq, length;
    moelm_cache *const *cache; /* [n_seq]; NULL: none */
    const moelm_route *replay; /* [n_layers]; NULL: routed anew */
    int64_t replay_row;        /* of the first token */
    moe_call call;             /* moelm_forward fills in what the tokens say */
    double aux;                /* out: the layers' own losses */
} moelm_pass;

/* model.c */
int64_t moelm_param_numbers(const moe_param *param);
/* Of one type and shape; then the numbers of one may be copied to the other. */
bool moelm_param_alike(const moe_param *a, const moe_param *b);
void moelm_param_copy(const moe_param *to, const moe_param *from);
/* moe_lm_create without its warning; not drawn, all weights are zeros, for who reads them from a file. */
moe_status moelm_create(moe_ctx *ctx, const moe_lm_config *config, bool drawn, moe_lm **lm);
/* Its shapes alone: moe_lm_get_info and moe_lm_measure tell of the model, and the weights take no memory (but
 * those of registered kinds of experts). All else needs weights. */
moe_status moelm_create_shapes(moe_ctx *ctx, const moe_lm_config *config, moe_lm **lm);
/* Make a model of shapes whole, with zeros: all but its layers, and one layer. */
moe_status moelm_fill_tensors(moe_lm *lm);
moe_status moelm_fill_layer(moe_lm *lm, int32_t index);
/* What is said where moe_lm_config_foresight tells something, %s. */
#define MOELM_FORESIGHT "%s. Figures do not compare with those of a model that sees only what was before"
void moelm_warn_of_foresight(const moe_lm *lm);
/* What the first layer says whose routing depends on neighbours (moe_layer_company); NULL: none does. */
const char *moelm_company(const moe_lm *lm);
/* Copies a moe_error onto the context. */
moe_status moelm_fail(moe_ctx *ctx, const moe_error *error);
static inline int64_t moelm_qkv_cols(const moe_lm *lm) {
    return (int64_t)(lm->heads + 2 * lm->kv_heads) * lm->head_dim;
}
static inline int64_t moelm_att_cols(const moe_lm *lm) {
    return (int64_t)lm->heads * lm->head_dim;
}
static inline int64_t moelm_kv_cols(const moe_lm *lm) {
    return (int64_t)lm->kv_heads * lm->head_dim;
}

static inline int64_t moelm_qk_cols(const moe_lm *lm) {
    return moelm_att_cols(lm) + moelm_kv_cols(lm);
}

/* Element i of a block of the model's dtype. */
static inline void *moelm_at(const moe_lm *lm, const void *block, int64_t i) {
    return moei_real_at(lm->dtype, (void *)(uintptr_t)block, i);
}

/* reserve.c */
void moelm_release(moe_lm *lm);
/* Of a model of shapes alone: what moe_lm_reserve would leave, told but not there. */
void moelm_pretend_reserved(moe_lm *lm, int64_t n_seq, int64_t length, moe_mode mode);

/* Gradients of what the model owns; the layers have theirs. */
void moelm_zero_own_grad(moe_lm *lm);

/* linear.c: y[rows, out] = x W; dx[rows, in] = dy W^T; dW += x^T dy; logits[rows, V], wide, = x W^T. */
moe_status moelm_linear(moe_lm *lm, int64_t rows, const void *x, const moelm_tensor *w, void *y);
/* The same with columns first .. first + n - 1 of W only: y[rows, n], whose rows are ldy apart. */
moe_status moelm_linear_columns(moe_lm *lm, int64_t rows, const void *x, const moelm_tensor *w, int64_t first,
                                int64_t n, void *y, int64_t ldy);
moe_status moelm_linear_trans(moe_lm *lm, int64_t rows, const void *dy, const moelm_tensor *w, void *dx);
moe_status moelm_linear_grad(moe_lm *lm, int64_t rows, const void *x, const void *dy, moelm_tensor *w);
moe_status moelm_linear_logits(moe_lm *lm, int64_t rows, const void *x, const moelm_tensor *w, float *logits);
/* out = a + b, n numbers; out may be either. */
void moelm_add(moe_lm *lm, int64_t n, const void *a, const void *b, void *out);
/* n wide numbers as the model's dtype; nothing to do where the types are one and `from` is `to`. */
void moelm_narrow(moe_lm *lm, int64_t n, const float *from, void *to);

/* embed.c: out[rows, d]; the gradient of each token's row is summed in the order of the text. */
moe_status moelm_embed(moe_lm *lm, const moelm_pass *pass, void *out);
moe_status moelm_embed_backward(moe_lm *lm, const moelm_pass *pass, const void *dout);

/* norm.c: backward overwrites dx, or adds to it with `add`. */
moe_status moelm_norm(moe_lm *lm, int64_t rows, const moelm_tensor *gain, const void *x, void *y, float *rms);
typedef struct moelm_norm_grad {
    int64_t rows;
    moelm_tensor *gain;
    const void *x;
    float *rms; /* wide */
    const void *dy;
    void *dx;
    bool add;
} moelm_norm_grad;
moe_status moelm_norm_backward(moe_lm *lm, const moelm_norm_grad *g);

/* qk_norm.c: saved.raw normed into saved.qkv; backward turns memory.dqkv from the gradient of the one into
 * the other's. */
moe_status moelm_qk_norm(moe_lm *lm, const moelm_block *block, int64_t rows);
moe_status moelm_qk_norm_backward(moe_lm *lm, const moelm_block *block, int64_t rows);
/* Root mean squares of a row, of `heads` heads. */
int64_t moelm_qk_stats(const moe_lm *lm, int32_t heads);

/* clip.c: saved.qkv within lm->clip; backward takes the gradient of what was outside from memory.dqkv. */
void moelm_clip(moe_lm *lm, const moelm_saved *s, int64_t rows);
void moelm_clip_backward(moe_lm *lm, const moelm_saved *s, int64_t rows);

/* attention.c: from saved.norm to memory.branch, and back from memory.dout to memory.dnorm. */
moe_status moelm_attention(moe_lm *lm, int32_t index, const moelm_pass *pass);
moe_status moelm_attention_backward(moe_lm *lm, int32_t index, const moelm_pass *pass);

/* block.c: from saved.in to `out`; backward turns memory.dout from the gradient of the one into the other's.
 */
moe_status moelm_block_forward(moe_lm *lm, int32_t index, moelm_pass *pass, void *out);
moe_status moelm_block_backward(moe_lm *lm, int32_t index, const moelm_pass *pass);

/* head.c: logits[rows, V] of rows first.. of memory.out */
moe_status moelm_head(moe_lm *lm, int64_t first, int64_t rows, float *logits);
/* Mean cross-entropy over the counted targets; with grad_scale also memory.dout and the head's gradients. */
moe_status moelm_head_loss(moe_lm *lm, const int32_t *targets, int64_t rows, float grad_scale, double *loss);

/* pass.c: tokens checked; leaves the last residual stream in memory.out. */
moe_status moelm_forward(moe_lm *lm, moelm_pass *pass);
/* The pass with its loss, and with call.mode MOE_TRAIN its gradients times call.loss_scale: moe_lm_loss. With
 * call.overwrite_grad they replace what stood there, as the first forward of a step wants it. */
moe_status moelm_loss(moe_lm *lm, moelm_pass *pass, const int32_t *targets, double *loss);

/* kv_cache.c: n empty caches for `capacity` tokens each; a layer of the block that they share; the rows' keys
 * and values, appended behind cache->n; those of the rows to->n .. rows-1 of another cache, whose text begins
 * alike. */
void moelm_cache_carve(const moe_lm *lm, moei_arena *arena, int64_t n, int64_t capacity, moelm_cache *caches);
const void *moelm_cache_keys(const moe_lm *lm, const moelm_cache *cache, int32_t layer);
void moelm_cache_put(moe_lm *lm, moelm_cache *cache, int32_t layer, const void *qkv, int64_t rows);
void moelm_cache_copy(const moe_lm *lm, moelm_cache *to, const moelm_cache *from, int64_t rows);

/* sample.c: of logits[vocab] that are numbers; heap[vocab] is scratch, `position` keys the draw. */
moe_status moelm_sampler_check(moe_ctx *ctx, const moe_lm_sampler *sampler);
moe_status moelm_logits_check(moe_ctx *ctx, const float *logits, int64_t vocab);
int32_t moelm_draw(const moe_lm_sampler *sampler, uint64_t position, const float *logits, int64_t vocab,
                   int32_t *heap);

/* batch.c: `ours` and `sampler` get copies of what was told; `call` is named where something is wrong. */
moe_status moelm_text_check(moe_lm *lm, const char *call, const moe_lm_text *text, moe_lm_text *ours,
                            moe_lm_sampler *sampler);
/* Tokens of the longest window that the text needs. */
int64_t moelm_text_length(const moe_lm *lm, const moe_lm_text *text);
int64_t moelm_batch_capacity(const moe_lm_batch *batch);
bool moelm_batch_in_step(const moe_lm_batch *batch);
/* Drops the texts that are being written. */
void moelm_batch_clear(moe_lm_batch *batch);

#endif
