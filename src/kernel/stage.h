/* stage.h: what the stages do to single numbers, as kernels: argument structs of operations inside the
 * library, beside the public ones of moekit/op.h. "wide": f32 for bf16, else of `dtype`.
 * The router's and the plan's have rows on devices only: on the CPU the stages are plain C.
 */
#ifndef MOEI_STAGE_H
#define MOEI_STAGE_H

#include <moekit/op.h>

#include "core/memory.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Rows with mask 0 are left out; mask NULL: none.
 *   add_bias   mat[r, :] += bias
 *   bias_grad  bias += sum over r of mat[r, :], wide */
typedef struct moei_bias_args {
    moe_dtype dtype;
    int64_t rows, n;
    const uint8_t *mask; /* [rows] */
    void *bias;          /* [n] */
    void *mat;           /* [rows, n] */
    int64_t ld;
} moei_bias_args;

/* sigmoid_gate       gate[r] = sigmoid(gate[r]); y[r, :] *= gate[r]
 * sigmoid_gate_grad  dgate[r] *= gate[r] (1 - gate[r]); y[r, :] += dgate[r] weight, where y is not NULL */
typedef struct moei_sigmoid_gate_args {
    moe_dtype dtype;
    int64_t rows, n;
    void *gate; /* wide [rows] */
    void *y;    /* [rows, n] */
    int64_t ld;
    void *dgate;        /* wide [rows] */
    const void *weight; /* [n] */
} moei_sigmoid_gate_args;

/* out[r] (+)= <a[a_row[r]], b[b_row[r]]>; or, b_by_group, with row g of b for the rows of group g. */
typedef struct moei_row_dot_args {
    moe_dtype dtype;
    int32_t n_groups;
    int64_t n_rows;        /* as of moe_gemm_rows_args */
    const int64_t *offset; /* [n_groups + 1] */
    int64_t n;
    const void *a;
    int64_t lda;
    const int32_t *a_row; /* [R]; NULL: r */
    const void *b;
    int64_t ldb;
    const int32_t *b_row;
    bool b_by_group;
    void *out; /* wide [R] */
    bool accumulate;
} moei_row_dot_args;

/* to[r] = weight[r] * from[row[r]]; zeros where slot[r] is negative, and all zeros where from is NULL. */
typedef struct moei_copy_rows_args {
    moe_dtype dtype;
    int64_t rows, n;
    const void *from;
    int64_t ld_from;
    const int32_t *row;  /* NULL: r */
    const void *weight;  /* wide [rows]; NULL: 1 */
    const int32_t *slot; /* NULL: none is negative */
    void *to;
    int64_t ld_to;
} moei_copy_rows_args;

/* to[r, :] (+)= from[r, :], rounded once. */
typedef struct moei_convert_args {
    moe_dtype dtype, from_dtype; /* of to, of from */
    int64_t rows, n;
    const void *from;
    int64_t ld_from;
    void *to;
    int64_t ld_to;
    bool accumulate;
} moei_convert_args;

/* The functions inside the activations: of v alone, or of the gate. */
typedef enum moei_curve {
    MOEI_CURVE_LINEAR = 0,
    MOEI_CURVE_RELU,
    MOEI_CURVE_LEAKY_RELU,
    MOEI_CURVE_RELU2,
    MOEI_CURVE_SWISH,
    MOEI_CURVE_GELU,
    MOEI_CURVE_GELU_TANH
} moei_curve;

/* An activation with its numbers: f(min(g, limit)) * (clamp(u, +-limit) + offset) of gate and up where gated,
 * else f(v). limit 0: no clamp. */
typedef struct moei_act_rule {
    moei_curve curve;
    bool gated, interleaved; /* interleaved: even columns of Z gate, odd ones up; else halves */
    double alpha, limit, offset;
} moei_act_rule;
typedef struct moei_act_point {
    double value, d_gate, d_up;
} moei_act_point;
moei_act_point moei_act_at(const moei_act_rule *rule, double gate, double up);
enum { MOEI_ACTS = MOE_ACT_GEGLU + 1 }; /* what the products call activations: moe_act */
/* One of them as a rule. */
moei_act_rule moei_act_rule_for(moe_act act, moe_act_numbers numbers);

/* An activation as a pass of its own, for what the products do not fuse, row by row:
 *   act_pass       A = act(Z) m, with m = 0 or 1 / (1 - dropout)
 *   act_pass_grad  a holds dA', the gradient of w A: dZ = w m act'(Z) dA' over Z, w A over a,
 *                  drow_weight[r] = <dA', A> */
typedef struct moei_act_pass_args {
    moe_dtype dtype;
    moei_act_rule rule;
    int64_t n_rows, n;
    void *z;                /* [R, n or 2n] */
    void *a;                /* [R, n] */
    const void *row_weight; /* wide [R]; NULL: 1 */
    void *drow_weight;      /* wide [R]; NULL: not wanted */
    double dropout;         /* 0: none */
    uint64_t seed;
    uint32_t layer;
    uint64_t step;
    const int32_t *row_slot;     /* [R] which draws are row r's, negative: none; NULL: r */
    const uint8_t *dropout_keep; /* [slots, n]; NULL: drawn */
} moei_act_pass_args;
enum { MOEI_DRAWS_OF_SLOT = 1 << 18 }; /* four numbers of A a draw */

/* Scores, the K best, weights: the router of route/ for router_type top_k, one token like the next. */
typedef enum moei_router_score {
    MOEI_ROUTER_SOFTMAX,
    MOEI_ROUTER_SIGMOID,
    MOEI_ROUTER_SQRTSOFTPLUS
} moei_router_score;
typedef struct moei_router_args {
    int64_t n_tokens;
    int32_t n_experts, top_k;
    moei_router_score score;
    bool score_before_topk, norm_topk_prob;
    bool rank_logits;     /* select by logits, else by scores */
    bool bias_in_weights; /* weights from the biased scores */
    bool normalise_prob;  /* prob: scores divided by their sum */
    double norm_eps, scale;
    int32_t n_groups, group_top_k, group_best; /* group_top_k 0: off; group_best: experts summed of a group */
    int32_t layer;
    const uint8_t *mask;          /* [T]; NULL: all real */
    const float *selection_bias;  /* [E]; NULL: none */
    const int32_t *replay_expert; /* [T, K]; NULL: select */
    const float *replay_weight;   /* [T, K]; NULL: live */
    moe_dtype dtype;              /* of x and gate, which only `route` reads */
    int64_t d, ldx;
    const void *x, *gate; /* [T, d], [E, d] */
    float *logits;        /* [T, E]; `route` writes it, NULL: not wanted */
    uint8_t
        *tile_count;   /* `route` writes what the plan begins with: moei_plan_scratch_bytes; NULL: nothing */
    float *prob, *lse; /* [T, E], [T] */
    int32_t *expert;   /* [T, K] */
    float *weight;     /* [T, K] */
    float *entropy;    /* [T]; NULL: not wanted; `route` leaves it alone */
    moei_fault *fault; /* where a bad token is told */
    /* gradient only */
    const int32_t *row_of;    /* [T, K] */
    const float *drow_weight; /* [R] */
    const double *aux_grad;   /* [E] d loss / d prob[t,e]; NULL: none */
    const double *z_grad;     /* [1] d loss / d lse(t) = z_grad * lse(t); NULL: none */
    float *dlogits;           /* [T, E] */
    /* bf16 [T, 2E], where not NULL written instead: dlogits as the sum of two numbers, high ones first */
    void *dlogits_pairs;
    float *row_factor; /* [R] dlogits of the choices by row, where those are all; NULL: not wanted */
} moei_router_args;

/* What a product over rows adds to them beside A B: C[r] += factor[r] vector[group of r]. */
typedef struct moei_rows_plus {
    const float *factor; /* [R] */
    const float *vector; /* [n_groups, n] */
} moei_rows_plus;

/* Products of gemm_outer in one launch. */
typedef struct moei_gemm_outers_args {
    const moe_gemm_outer_args *product; /* [n_products], over the same groups */
    int32_t n_products;                 /* 1 or 2 */
    const moe_gemm_outer_args *aside;   /* one over groups of its own; NULL: none */
} moei_gemm_outers_args;

/* Whether choices alone have dlogits that are not 0, and each token's add up to 0: softmax over the chosen,
 * without losses; and not so many of a token that the kernels have a slower way for them. */
enum { MOEI_SOFTMAX_CHOICES = 32 };
static inline bool moei_router_chosen_only(const moei_router_args *a) {
    return a->top_k <= MOEI_SOFTMAX_CHOICES && a->score == MOEI_ROUTER_SOFTMAX && !a->score_before_topk &&
           !a->bias_in_weights && !a->replay_weight && !a->aux_grad && !a->z_grad;
}

/* The gate's way back, of dlogits that stand as pairs where the scratch begins:
 *   gate_grad      prepares, and tells the product over chunks of tokens that others queue for dgate;
 *   gate_grad_sum  dx[t] (+)= dlogits[t] gate + sum_k rows[row_of[t,k]], f32 sum, k ascending;
 *   gate_grad_end  dgate += the parts of that product. */
typedef struct moei_gate_grad_args {
    moe_dtype dtype; /* of x, gate, dx */
    int64_t n_tokens, d;
    int32_t n_experts;
    const void *x, *gate; /* [T, d], [E, d] */
    int64_t ldx;
    float *dgate;  /* [E, d]; gate_grad_end alone writes it, and reads nothing else but the scratch */
    void *scratch; /* of moei_gate_grad_carve */
    float *vector; /* [E, d] gate_grad writes the gate less its experts' mean; NULL: not wanted */
    /* gate_grad_sum only */
    int32_t top_k; /* 0: no rows */
    const void *rows;
    int64_t ld_rows;
    const int32_t *row_of; /* [T, K]; negative: none */
    void *dx;              /* [T, d] */
    int64_t ld_dx;
    bool accumulate, in_rows; /* in_rows: the rows have dlogits' part already */
} moei_gate_grad_args;
/* Shapes that its kernels are for. */
static inline bool moei_gate_grad_serves(int64_t n_experts, int64_t d) {
    return n_experts % 4 == 0 && d % 8 == 0;
}
/* And arguments: what it reads and writes lies in pieces of 16 bytes; a frozen router has no gradient. */
static inline bool moei_gate_grad_takes(const moei_gate_grad_args *a) {
    const uintptr_t at =
        (uintptr_t)a->x | (uintptr_t)a->gate | (uintptr_t)a->dgate | (uintptr_t)a->dx | (uintptr_t)a->rows;
    return a->scratch && a->dgate && a->dtype == MOE_BF16 && a->n_tokens > 0 &&
           moei_gate_grad_serves(a->n_experts, a->d) && a->ldx % 8 == 0 && (!a->dx || a->ld_dx % 8 == 0) &&
           (!a->rows || a->ld_rows % 8 == 0) && at % 16 == 0;
}
/* Tiles of the gate, as gate_grad_sum multiplies them: experts by columns. */
enum { MOEI_GATE_STEP = 16, MOEI_GATE_COLUMNS = 128, MOEI_GATE_TOKENS = 16 };
/* Where its arrays begin in the scratch, and bytes of all: dlogits as two bf16 numbers [T, 2E], the gate in
 * whole tiles, dlogits once more in whole tiles of tokens by experts (or of each choice f32 [T, K], a
 * moei_rows_plus' factor), sums over chunks of tokens f32 [chunks, 2E, d] (before them the gate as its
 * vector, f32 [E, d]), tokens of a chunk int64_t [chunks + 1]. */
typedef struct moei_gate_grad_scratch {
    int64_t chunks;
    size_t gate, dlogits, part, offset, bytes;
} moei_gate_grad_scratch;
static inline moei_gate_grad_scratch moei_gate_grad_carve(int64_t n_tokens, int64_t n_experts, int64_t d) {
    const int64_t line = 256, pairs = 66; /* of an H100's multiprocessors: a tile of 256 x 256 each */
    const int64_t tiles = (2 * n_experts + 255) / 256 * ((d + 255) / 256);
    const int64_t chunks = tiles > 0 && tiles < pairs ? pairs / tiles : 1;
    const int64_t gate = (4 * n_tokens * n_experts + line - 1) / line * line;
    const int64_t steps = (n_experts + MOEI_GATE_STEP - 1) / MOEI_GATE_STEP * MOEI_GATE_STEP;
    const int64_t columns = (d + MOEI_GATE_COLUMNS - 1) / MOEI_GATE_COLUMNS * MOEI_GATE_COLUMNS;
    const int64_t tokens = (n_tokens + MOEI_GATE_TOKENS - 1) / MOEI_GATE_TOKENS * MOEI_GATE_TOKENS;
    const int64_t dlogits = gate + 2 * steps * columns, part = dlogits + 4 * steps * tokens;
    const int64_t offset = part + (8 * chunks * n_experts * d + line - 1) / line * line;
    return (moei_gate_grad_scratch){.chunks = chunks,
                                    .gate = (size_t)gate,
                                    .dlogits = (size_t)dlogits,
                                    .part = (size_t)part,
                                    .offset = (size_t)offset,
                                    .bytes = (size_t)(offset + 8 * (chunks + 1))};
}

/* The experts of few tokens in inference, without a plan: y[t] (+)= sum_k weight[t,k] f_expert[t,k](x[t]) of
 * two-layer experts without biases; expert negative: nothing. */
enum {
    MOEI_FEW_TOKENS = 128,      /* so many */
    MOEI_FEW_ROWS = 2048,       /* n_tokens * top_k at most */
    MOEI_FEW_EXPERTS = 1024,    /* n_experts at most */
    MOEI_FEW_EXPERT_ROWS = 64,  /* rows of an expert for which its weights are read once */
    MOEI_FEW_PACKED_ROWS = 256, /* n_tokens * top_k at most where weights are packed, of so many tokens: */
    MOEI_FEW_PACKED_TOKENS = 16,
    MOEI_FEW_COUNTERS = 1 + MOEI_FEW_EXPERTS + MOEI_FEW_ROWS / MOEI_FEW_EXPERT_ROWS
};
typedef struct moei_few_args {
    moe_dtype dtype;
    int64_t n_tokens, d, n;
    int32_t n_experts, top_k;
    const void *x;                           /* [T, d] */
    const void *w1;                          /* [E, d, n], gated [E, d, 2n], gate first */
    const void *w2;                          /* [E, n, d] */
    const moe_packed *w1_packed, *w2_packed; /* both instead of w1 and w2, or NULL; gated w1 in two runs */
    int64_t ldx, ldy;
    moe_act act;
    moe_act_numbers act_numbers;
    const int32_t *expert; /* [T, K]; of a token no expert twice */
    const float *weight;   /* [T, K] */
    void *scratch;         /* [moei_few_scratch_bytes] */
    uint32_t *drawn;       /* [MOEI_FEW_COUNTERS] for the kernels alone, zeros before the first call */
    void *y;               /* [T, d] */
    bool accumulate;
} moei_few_args;
/* Arguments that its kernels are for: bf16, in pieces of 16 bytes. Of more tokens than rows for which an
 * expert is read once, only while experts have three quarters of so many on average: beyond, what is read
 * twice costs more than a plan. */
static inline bool moei_few_takes(const moei_few_args *a) {
    const int64_t rows = a->n_tokens * a->top_k;
    const bool packed = a->w1_packed;
    const uintptr_t at = (uintptr_t)a->x | (packed ? 0 : (uintptr_t)a->w1 | (uintptr_t)a->w2);
    return a->dtype == MOE_BF16 && a->act != MOE_ACT_NONE && a->n_tokens > 0 &&
           a->n_tokens <= (packed ? MOEI_FEW_PACKED_TOKENS : MOEI_FEW_TOKENS) &&
           rows <= (packed ? MOEI_FEW_PACKED_ROWS : MOEI_FEW_ROWS) && a->n_experts <= MOEI_FEW_EXPERTS &&
           (a->n_tokens <= MOEI_FEW_EXPERT_ROWS || 4 * rows <= 3 * MOEI_FEW_EXPERT_ROWS * a->n_experts) &&
           a->d % 8 == 0 && a->ldx % 8 == 0 && a->n % 8 == 0 && at % 16 == 0;
}

/* Of each choice hidden numbers in bf16 and sums, these in bf16 or, with packed weights, f32. `rows` is
 * n_tokens * top_k or more. */
static inline size_t moei_few_scratch_bytes(int64_t rows, int64_t d, int64_t n) {
    const int64_t chosen = rows < MOEI_FEW_ROWS ? rows : (int64_t)MOEI_FEW_ROWS,
                  packed = rows < MOEI_FEW_PACKED_ROWS ? rows : (int64_t)MOEI_FEW_PACKED_ROWS;
    const int64_t bytes = chosen * (2 * n + 2 * d), packed_bytes = packed * (2 * n + 4 * d);
    return (size_t)(bytes > packed_bytes ? bytes : packed_bytes);
}

/* Where each routed row stands: dispatch/plan.c on a device. Rows past offset[E] are padding.
 *   plan        fills all that is not const
 *   plan_index  row_token, row_slot and row_weight again, from offset and row_of */
typedef struct moei_plan_args {
    int64_t n_tokens, n_rows; /* n_rows: that the row arrays hold, n_tokens * top_k at least */
    int32_t n_experts, top_k;
    bool rank_major;    /* an expert's rows: all first choices, then all second ones; else by token */
    bool keep_heaviest; /* of a full expert, ties to the earlier slot; else the first in that order */
    bool pad;
    const uint8_t *mask;
    const int32_t *capacity_of; /* [T + 1] rows an expert may take of so many real tokens; NULL: dropless */
    const int32_t *expert;
    const float *weight;
    int64_t *n_valid;  /* [1] real tokens */
    int64_t *capacity; /* [1] */
    int64_t *offset, *routed, *kept;
    int32_t *row_token, *row_slot, *row_of;
    float *row_weight;
    void *tile_count; /* scratch of moei_plan_scratch_bytes: rows of each expert in each tile */
    bool counted; /* `route` has filled it: uint8_t [tiles of MOEI_ROUTE_TILE tokens, E rounded up to 4] */
    int64_t *step_rows; /* [E] kept is added; NULL: nobody asks */
} moei_plan_args;
enum { MOEI_PLAN_TILE = 1024, MOEI_ROUTE_TILE = 64 };
static inline int64_t moei_plan_tiles(int64_t n_slots) {
    return (n_slots + MOEI_PLAN_TILE - 1) / MOEI_PLAN_TILE;
}
static inline int64_t moei_route_tiles(int64_t n_tokens) {
    return (n_tokens + MOEI_ROUTE_TILE - 1) / MOEI_ROUTE_TILE;
}
/* Counts of tiles of slots are 32 bits, those of tiles of tokens 8. */
static inline size_t moei_plan_scratch_bytes(int64_t n_tokens, int64_t n_slots, int64_t n_experts) {
    const int64_t by_slot = moei_plan_tiles(n_slots) * n_experts * (int64_t)sizeof(int32_t);
    const int64_t by_token = moei_route_tiles(n_tokens) * ((n_experts + 3) / 4 * 4);
    return (size_t)(by_slot > by_token ? by_slot : by_token);
}

/* What the Switch and z losses ask of the router. */
typedef struct moei_balance_args {
    int32_t n_experts;
    const int64_t *routed;  /* [E] */
    const int64_t *n_valid; /* [1] */
    double aux, z;          /* scale times coefficient */
    double *aux_grad;       /* [E] */
    double *z_grad;         /* [1] */
} moei_balance_args;

#ifdef __cplusplus
}
#endif

#endif
