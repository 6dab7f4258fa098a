/* layer.h: the inside of a layer: its parts, its parameters and its memory.
 * Memory is three arenas: parameters live with their owners, `saved` goes from forward to backward,
 * `scratch` is free between calls and may belong to another layer.
 */
#ifndef MOEI_LAYER_H
#define MOEI_LAYER_H

#include "core/arena.h"
#include "core/ctx.h"
#include "core/memory.h"
#include "dispatch/dispatch.h"
#include "flow.h"
#include "loss/loss.h"
#include "route/route.h"

/* One group of experts behind the public table: the routed ones, or the shared one. */
typedef struct moei_experts {
    const moe_expert_ops *ops; /* NULL: the layer has none */
    void *self;
    int32_t n_experts;
    const char *prefix;  /* of parameter names */
    size_t packed_bytes; /* of weights in few bits; 0: it has none */
} moei_experts;

/* Bytes of a parameter's name; of one of experts the prefix takes some. */
enum { MOEI_PARAM_NAME = 64, MOEI_EXPERT_NAME = MOEI_PARAM_NAME - (int)sizeof "experts" };
enum { MOEI_LAYER_NAMES = 2 };

typedef struct moei_layer_param {
    char name[MOEI_PARAM_NAME];
    moei_experts *experts;    /* NULL: the layer's own */
    int32_t index;            /* within its owner */
    size_t bytes, grad_bytes; /* bytes 0: given back by moe_layer_quantize */
    bool frozen;              /* by moe_layer_freeze */
    void *grad;
    moe_param own;     /* the layer's own: shape, value; of an unowned layer also the value lent to experts */
    void **value_slot; /* where the layer's own are looked for, */
    void **grad_slot;  /* and their gradients; NULL: nowhere */
} moei_layer_param;

/* What forward leaves for backward. */
typedef struct moei_saved {
    void *expert_rows;            /* saved_bytes of the routed experts (Z) */
    void *shared_rows;            /* and of the shared one */
    void *out_rows;               /* [R,d_out] only of contiguous experts: their dweight needs Y */
    void *latent_in, *latent_out; /* [T,l] before and after the routed experts */
    void *shared_gate;            /* [T] */
} moei_saved;

/* Carved anew by every call; NULL where the call does not need it. */
typedef struct moei_scratch {
    moei_route_scratch route;
    moei_loss_scratch loss;
    int32_t *row_token, *row_slot;  /* [R] of the plan */
    int32_t *part_count;            /* of making it, */
    double *drop_room;              /* [T,K] and of its capacity */
    void *row_weight, *slot_weight; /* [R], and [T,K] where the routing's are of another type */
    void *rows;                     /* [R,d] expert outputs; input gradients in backward */
    void *in_rows;                  /* [R,d] gathered tokens, where experts want them so */
    void *dout_rows;                /* [R,d] and their gradients */
    void *dlatent_in, *dlatent_out; /* [T,l] */
    void *shared_dgate;             /* [T] */
    void *drow_weight;              /* [R] of plan.weight_dtype */
    void *dweight;                  /* [T,K] of routing.dtype */
    void *experts, *shared;         /* their own scratch */
    int64_t shared_offset[2];
    void *tile_count; /* of a device's plan kernel */
    void *gate_grad;  /* of a device's kernel for the gate's way back */
    double *aux_grad; /* [E + 1] of a device's losses: those of prob, then the z-loss's */
} moei_scratch;

/* What training forwards add up until moe_layer_end_step; NULL where nobody asks. */
typedef struct moei_step_counts {
    int64_t *rows;    /* [E] kept, for the selection bias */
    double *quantile; /* [E] sum of the batches' statistics */
    int64_t n_quantile;
} moei_step_counts;

/* Parameters of a layer around its experts, or their gradients; NULL where it has none. */
typedef struct moei_around {
    void *latent_in;                        /* [d,l] */
    void *latent_out;                       /* [l,d_out] */
    void *latent_in_bias, *latent_out_bias; /* [l], [d_out] */
    void *shared_gate;                      /* [1,d] */
    void *output_bias;                      /* [d_out] */
} moei_around;

/* What a layer on a device has beside it: counts and tables in device memory, copies of calls in the host's.
 */
typedef struct moei_layer_device {
    int64_t *step_rows; /* [E] kept since the last step */
    uint32_t *drawn;    /* of moei_few_args */
    void *block;        /* holds n_valid, capacity_of */
    size_t bytes;
    int64_t *n_valid;              /* [1] real tokens of the batch */
    const int32_t *capacity_of[2]; /* by moe_mode: [T + 1] capacity of so many real tokens */
    void *host_block;              /* holds the rest */
    size_t host_bytes;
    uint8_t *mask;
    void *x, *dx; /* these and what follows only of a layer whose twin routes */
    int32_t *task, *token_id, *replay_expert;
    void *replay_weight; /* of routing.dtype */
} moei_layer_device;

typedef struct moei_layer_path moei_layer_path;

struct moe_layer {
    moe_ctx *ctx;
    const moei_layer_path *path; /* who routes: layer_path.h */
    moe_layer *twin;             /* on a device; else NULL */
    moei_layer_device device;
    moe_layer_desc desc; /* complete */
    char
        *name[MOEI_LAYER_NAMES]; /* strings of desc that no table lists; NULL in a twin, which borrows them */
    moei_router router;
    moei_capacity capacity;
    moei_experts experts, shared;
    bool packed, dropped; /* their weights are in few bits, and nothing else is left of them */
    moei_gate gate, gate_grad;
    moei_around around, around_grad;
    moei_step_counts step;
    moei_layer_param *param; /* grows while the layer is made, then stands still: names point into it */
    int32_t n_params_max;
    int32_t n_params;

    int64_t max_sequences; /* of moe_layer_limit_sequences; 0: any */
    int64_t max_tokens;    /* reserved; -1: not yet */
    int64_t reserved_sequences;
    moe_mode mode; /* reserved */
    void *saved_block, *scratch_block;
    size_t saved_bytes, scratch_bytes;
    moe_layer *scratch_owner; /* NULL: its own */
    bool lends_scratch;       /* another layer uses it too */

    moei_routing routing;
    moei_plan plan;
    moei_loss_history history; /* of the global balance loss */
    moei_saved saved;

    moei_batch batch; /* of the last forward */
    double loss_scale;
    bool overwrite_grad; /* of the last forward */
    bool router_done;    /* of a backward: the router's gradients are queued already */
    moe_draws draws;     /* of the last forward, where it brought some */
    bool has_routing;    /* the last forward succeeded */
    bool can_backward;
    bool plan_due; /* the device has not planned the last forward, which did without; who asks for the plan
                    * has it made */
};

/* The router, its parameters and counts. */
moe_status moei_layer_create_gate(moe_layer *layer);
/* Carve the two blocks for a call as large as `extent`: with an arena without memory this measures. */
void moei_layer_carve_saved(moe_layer *layer, moei_arena *arena, moei_extent extent);
moei_scratch moei_layer_carve_scratch(const moe_layer *layer, moei_arena *arena, moei_extent extent);
/* The scratch of layer->batch. */
moei_scratch moei_layer_scratch(const moe_layer *layer);
void moei_layer_free_grads(moe_layer *layer);
void moei_layer_free_grad(moe_layer *layer, moei_layer_param *param);
/* Not a buffer, not frozen and not a frozen router's. */
bool moei_layer_is_trained(const moei_layer_param *param);
/* Whether an earlier reserve made gradients, or some were lent. */
bool moei_layer_has_grads(const moe_layer *layer);
/* Whether an unowned layer has been lent all values, or all gradients; of others true. */
moe_status moei_layer_check_lent(const moe_layer *layer, bool grads);
/* Zeroes the gradients that a backward with overwrite_grad would add to all the same. */
void moei_layer_open_grads(moe_layer *layer);
/* Whether anything of the layer takes memory by the sequence. */
bool moei_layer_by_sequence(const moe_layer *layer);

/* Fills in the bytes of a parameter of this shape and of its gradient. */
void moei_layer_count_param(moei_layer_param *entry, const moe_param *shape);
/* The next free place of the list, not yet counted; NULL when it does not fit. */
moei_layer_param *moei_layer_new_param(moe_layer *layer);
/* Gives the layer a parameter of its own, zeroed; *value and, once reserved for training, *grad point to it.
 */
moe_status moei_layer_add_param(moe_layer *layer, const moe_param *shape, void **value, void **grad);
/* Whether this layer reads what the call tells it, and what the table of draws does (NULL: none came). */
moe_status moei_layer_call_check(const moe_layer *layer, const moe_call *call, const moe_draws *draws);
/* The router's part of one call. */
moei_route_job moei_layer_route_job(moe_layer *layer, const moei_scratch *s);
/* Gives the plan its memory by row, of this call. */
void moei_layer_plan_rows(moe_layer *layer, const moei_scratch *s);
/* Starts the counts of an optimizer step. */
void moei_layer_clear_step(moe_layer *layer);
/* After a training forward: adds to what moe_layer_end_step reads. */
void moei_layer_count_step(moe_layer *layer);

/* Whether the routed experts of this call may do without a plan. */
bool moei_layer_takes_few(const moe_layer *layer, const moei_scratch *s);

/* The losses of the last forward, in this call's scratch. */
static inline moei_loss_job moei_layer_loss_job(const moe_layer *layer, const moei_scratch *s) {
    return (moei_loss_job){.ctx = layer->ctx,
                           .desc = &layer->desc,
                           .batch = &layer->batch,
                           .routing = &layer->routing,
                           .history = &layer->history,
                           .scratch = s->loss};
}

/* A view whose stride 0 has become its columns. */
static inline moe_mat moei_with_stride(moe_mat mat) {
    if (mat.stride == 0) mat.stride = mat.cols;
    return mat;
}

/* Checks a view: rows, width, the layer's dtype, stride, data. */
moe_status moei_layer_check_mat(const moe_layer *layer, const char *name, moe_mat mat, int64_t rows,
                                int64_t cols);

#endif
