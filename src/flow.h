/* flow.h: the nouns that travel between stages, and what all of them ask. Whoever fills a field is named.
 * Shapes: T tokens, d width, E experts, K per token, R rows kept. Three types of number:
 *   the layer's     desc.dtype: x, y, parameters, rows of the experts;
 *   "real"          routing.dtype (desc.router_dtype): all that a router makes, from logits to the losses;
 *   wide            moei_wide(desc.dtype): routing weights handed to kernels, and their gradients.
 */
#ifndef MOEI_FLOW_H
#define MOEI_FLOW_H

#include <moekit/moe.h>
#include <string.h>

/* What the layer was given. Pointers are the caller's and live until backward. */
typedef struct moei_batch {
    moe_mat x; /* [T, d] */
    moe_mode mode;
    uint64_t step;
    const uint8_t *mask;                  /* [T] 1 = real token; NULL: all */
    int64_t n_valid;                      /* tokens with mask 1 */
    int64_t n_sequences, sequence_length; /* T = n_sequences * sequence_length; one sequence: (1, T) */
    const int32_t *task;                  /* [n_sequences]; NULL: none */
    const int32_t *token_id;              /* [T]; NULL: the token's number */
    const int32_t *replay_expert;         /* [T, K]; NULL: select */
    const void *replay_weight;            /* real [T, K]; NULL: live weights */
    const moe_draws *draws;               /* NULL: drawn */
} moei_batch;

/* What the hierarchical router keeps for its way back. Rows: (token, outer slot) pairs at an inner gate, by
 * outer expert, then group, then place; a segment is those of one outer expert and group. */
typedef struct moei_levels {
    int32_t n_outer;      /* Eo */
    int64_t n_groups;     /* of capacities and losses */
    int32_t *outer;       /* [T, 2] outer experts chosen; -1 where masked */
    int32_t *row_of;      /* [T, 2] their rows; -1: taken back, dropped or masked */
    void *outer_prob;     /* real [T, Eo] */
    void *outer_weight;   /* real [T, 2] */
    int64_t *valid;       /* [groups] real tokens */
    int64_t *places;      /* [groups] rows an outer expert may have */
    int64_t most_places;  /* of a group; groups with masked tokens may have fewer */
    int64_t *offset;      /* [Eo + 1] rows of an outer expert */
    int64_t *segment;     /* [Eo * groups + 1] */
    int32_t *row_token;   /* [2T] */
    int32_t *row_slot;    /* [2T] t*2 + outer slot */
    uint8_t *clear_first; /* [2T] outer weight above 1/2: may go to two inner experts */
    int32_t *inner;       /* [2T, 2] inner experts chosen; -1: none */
    void *inner_prob;     /* real [2T, Ei] */
    int64_t *capacity;    /* [groups] rows an inner expert may take of a segment; -1: dropless */
} moei_levels;

/* Written by route, read by every stage after it. What the router has no use for is NULL. */
typedef struct moei_routing {
    int64_t n_tokens;
    int32_t n_experts;
    int32_t top_k;   /* slots of a token in a call: desc.top_k, but E for expert_choice and token_rounding in
                        training, and 4 for two levels */
    moe_dtype dtype; /* of every "real"; at least as wide as the layer's */
    bool softmax;    /* prob is softmax(logits) */
    void *logits;    /* real [T, E] what is scored: after bias, forced draws, noise */
    void *prob;      /* real [T, E] what balance losses see: scores, normalised over E; 0 where masked */
    void *saved_logits, *saved_prob; /* where they lie in training if backward reads them; else NULL, and they
                                        lie in the scratch of a call */
    void *lse;                       /* real [T] log-sum-exp of the logits; 0 where masked */
    void *selection;                 /* real [T, E] what was ranked; -inf: cannot be chosen */
    int32_t *choice;   /* [T, K] chosen before the router's own policy removed it (then expert is
                          moei_removed(choice)); NULL: as `expert` */
    int32_t *expert;   /* [T, K] ranked descending, ties to the lower index; negative: not routed */
    void *weight;      /* real [T, K]; 0 where expert is negative */
    void *clean;       /* real [T, E] noisy_top_k: logits without noise */
    void *noise_std;   /* real [T, E] and the width of the noise */
    double *load;      /* [E] sum over tokens of P(e among the K, were its own noise drawn again) */
    double *quantile;  /* [E] statistic of this batch, quantile, training */
    int64_t n_dropped; /* slots a router with capacities of its own (hierarchical) dropped */
    moei_levels levels;
} moei_routing;

typedef enum moei_drop { MOEI_DROP_PROBS, MOEI_DROP_POSITION, MOEI_DROP_RANK_MAJOR } moei_drop;

/* How many rows an expert may take from a group of tokens. Made by dispatch from the descriptor; the
 * hierarchical router asks it too, for its outer and inner experts. */
typedef struct moei_capacity {
    const struct moei_capacity_formula *formula;
    /* C of a group of `n` tokens, of the inner experts of two levels or the others; -1: dropless */
    int64_t (*rows)(const struct moei_capacity *rule, moe_mode mode, bool inner, int64_t n, int32_t K,
                    int32_t E);
    float factor[2], factor_inner[2]; /* by moe_mode */
    int32_t minimum, multiple;
    int32_t top_k;    /* K that the formulas count by; expert_choice has more slots than that */
    bool by_sequence; /* groups are sequences; else the batch is one group */
    bool pad;         /* every expert gets exactly C rows of every group */
    moei_drop drop;
} moei_capacity;

/* How large a call is, or the largest there is memory for. */
typedef struct moei_extent {
    int64_t tokens, sequences; /* sequences of equal length, 1 or more, holding the tokens */
    moe_mode mode;
} moei_extent;

/* Groups that a capacity counts by. */
static inline int64_t moei_capacity_groups(const moei_capacity *capacity, moei_extent extent) {
    if (!capacity->by_sequence || extent.tokens < 1) return 1;
    return extent.sequences < extent.tokens ? extent.sequences : extent.tokens;
}

/* The most rows an expert takes of a call no larger than `extent`; no more than its tokens. Capacities grow
 * with their group, so of all numbers of groups of n tokens the largest decides: as many steps as there are
 * n. */
static inline int64_t moei_capacity_most(const moei_capacity *capacity, int32_t n_experts,
                                         moei_extent extent) {
    const int64_t T = extent.tokens, G = moei_capacity_groups(capacity, extent);
    int64_t most = 0;
    for (int64_t g = 1, n; g <= G && T > 0; ++g) {
        n = T / g;
        g = T / n < G ? T / n : G;
        for (int mode = MOE_INFER; mode <= MOE_TRAIN; ++mode) {
            const int64_t rows =
                capacity->rows(capacity, (moe_mode)mode, false, n, capacity->top_k, n_experts);
            if ((rows < n ? rows : n) * g > most) most = (rows < n ? rows : n) * g;
        }
    }
    return most;
}

/* Written by dispatch: where each routed row stands. Indices only; no token is moved. From forward to
 * backward it keeps `row_of` alone, 4 bytes a row beside the 8 of the routing's expert and weight: what is by
 * row is scratch, which backward makes again by moei_plan_index. */
typedef struct moei_plan {
    int64_t n_tokens;
    int32_t n_experts, top_k;
    int64_t n_rows;         /* R, after capacity, with padding */
    int64_t n_groups;       /* of capacity */
    int64_t *capacity;      /* [n_groups] rows an expert may take of a group; -1: dropless */
    int64_t *offset;        /* [E + 1] */
    int64_t *routed;        /* [E] rows asked for, before capacity */
    int64_t *kept;          /* [E] rows kept */
    int32_t *row_of;        /* [T, K] row of (t, k); -1 where dropped or masked */
    int32_t *row_token;     /* [R] token of row r; group by group inside an expert. Padding: 0 */
    int32_t *row_slot;      /* [R] t*K + k of row r. Padding: -1 */
    moe_dtype weight_dtype; /* wide */
    void *row_weight;       /* of weight_dtype [R] routing weight of row r. Padding: 0 */
    void *slot_weight;      /* of weight_dtype [T, K] the routing's weights; NULL where those are of it */
    int32_t *part_count;    /* [moei_plan_parts(T * K), E] scratch of making it, */
    double *drop_room;      /* [T * K] and where moei_drops_by_weight */
} moei_plan;

/* How `expert` tells that e was chosen, but removed by a policy: -2 - e; or dropped by a router with
 * capacities of its own: -2 - E - e. An outer expert that was not asked further stands for its first inner
 * one. */
static inline int32_t moei_removed(int32_t e) {
    return -2 - e;
}
static inline int32_t moei_dropped(int32_t e, int32_t n_experts) {
    return -2 - n_experts - e;
}
/* Beside the sum of a token's scores without its first choice's, which the others are divided by. */
static const double moei_rest_eps = 1e-9;

/* Whether balance losses count the plain top-K of the scores instead of the router's choices. */
static inline bool moei_aux_plain(const moe_layer_desc *desc) {
    return desc->aux_map && strcmp(desc->aux_map, "plain") == 0;
}

static inline bool moei_has_levels(const moei_routing *routing) {
    return routing->levels.n_outer > 0;
}

/* The expert that a slot names, whatever became of it; -1: none. */
static inline int32_t moei_named(int32_t slot, int32_t n_experts) {
    if (slot >= -1) return slot;
    return slot > moei_dropped(0, n_experts) ? -2 - slot : -2 - n_experts - slot;
}

static inline bool moei_masked(const moei_batch *batch, int64_t t) {
    return batch->mask && !batch->mask[t];
}
/* Tokens not masked among `n` from `first`. */
static inline int64_t moei_real_tokens(const moei_batch *batch, int64_t first, int64_t n) {
    int64_t real = n;
    for (int64_t t = first; batch->mask && t < first + n; ++t) real -= batch->mask[t] == 0;
    return real;
}
/* Groups of a batch: its sequences, or all of it. */
static inline int64_t moei_group_count(const moei_batch *batch, bool by_sequence) {
    return by_sequence && batch->n_sequences > 0 ? batch->n_sequences : 1;
}

#endif
