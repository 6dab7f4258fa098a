/* experts.h: finding an expert kind by name. The table itself is public: moekit/expert.h. */
#ifndef MOEI_EXPERTS_H
#define MOEI_EXPERTS_H

#include "core/ctx.h"
#include "kernel/kernel.h"

#include <moekit/quant.h>

/* The kind registered with this context, or built in, under `name`; NULL: none. Lives as long as ctx. */
const moe_expert_ops *moei_expert_find(const moe_ctx *ctx, const char *name);

/* Our own, found like anybody's: two-layer FFNs, y = x, y = 0. */
extern const moe_expert_ops moei_expert_ffn, moei_expert_identity, moei_expert_zero;
/* Parts of several kinds: what expert_kinds describes, so it has no name to be found by. */
extern const moe_expert_ops moei_expert_mixed;

/* Around a call of a kind's function, which may fail without a word: the text is then not that of an earlier
 * failure, but names the kind and its `function`. Returns `status`. */
void moei_expert_ask(moe_ctx *ctx);
moe_status moei_expert_answer(moe_ctx *ctx, const moe_expert_ops *ops, const char *function,
                              moe_status status);

/* Experts of a kind, which has to serve the context's device. */
moe_status moei_expert_create(moe_ctx *ctx, const moe_expert_ops *ops, const moe_expert_desc *desc,
                              void **self);
/* Lends an unowned kind of ours the memory of a parameter. */
void moei_expert_bind_value(const moe_expert_ops *ops, void *self, int32_t index, void *value);
void moei_expert_mixed_bind_value(void *self, int32_t index, void *value);
void moei_ffn_bind_value(void *self, int32_t index, void *value);
/* Whether a layer can keep a parameter as its kind tells it: by a name that no other of the kind has and
 * `room` bytes hold, of a shape with numbers, of a type that there is. */
moe_status moei_expert_check_param(moe_ctx *ctx, const moe_expert_ops *ops, const void *self, int32_t index,
                                   size_t room);

/* One entry of expert_kinds, "256,8x64,identity". */
enum { MOEI_KIND_BYTES = 48, MOEI_KIND_WIDTH_MAX = 1 << 20, MOEI_KIND_COUNT_MAX = 1 << 16 };
typedef struct moei_kind {
    char name[MOEI_KIND_BYTES]; /* as it is written, without its count */
    int32_t count;              /* neighbouring experts of this kind */
    bool is_width;              /* an FFN of `width` hidden columns; else a kind by name */
    int64_t width;
} moei_kind;
/* The next entry of the list; false at its end, and where a name does not fit. */
bool moei_kind_next(const char **list, moei_kind *kind);

/* Of moei_expert_ffn, weights in few bits: made, or not at all; then put in place, the old ones destroyed
 * (all NULL: its own weights again), and, where `drop`, its own given back. */
enum { MOEI_FFN_MATRICES = 2 }; /* up and down, which are its first parameters */
moe_status moei_ffn_pack(const void *self, const moe_quant_desc *desc, moe_packed *made[MOEI_FFN_MATRICES]);
void moei_ffn_use_packed(void *self, moe_packed *const packed[MOEI_FFN_MATRICES], bool drop);

/* Of moei_expert_ffn, before gradients are bound: the type of those of its matrices, wide or bf16. */
void moei_ffn_set_grad_dtype(void *self, moe_dtype dtype);

/* Of moei_expert_ffn, in `args` for `few` of kernel.h, whose tokens are filled in: the weights, what is done
 * with them, and of the kind's scratch of a call (as it stands in `args`) what those kernels use. False: not
 * of these experts, on this device or for such tokens. */
bool moei_ffn_few_args(const void *self, moei_few_args *args);

/* Of moei_expert_mixed: the first of its kinds that has no backward; NULL: all have. */
const char *moei_expert_mixed_forward_only(const void *self);
/* Of moei_expert_mixed: moe_expert_ops.overwrites of the kind that parameter `index` belongs to. */
bool moei_expert_mixed_overwrites(const void *self, int32_t index);

#endif
