/* flow.h: the nouns that travel between stages. Structs only; whoever fills a field is named.
 * Shapes: T tokens, d width, E experts, K per token, R rows kept. "real" means the layer's dtype.
 */
#ifndef MOEI_FLOW_H
#define MOEI_FLOW_H

#include <moekit/moe.h>

/* What the layer was given. */
typedef struct moei_batch {
    moe_mat x; /* [T, d] */
    moe_mode mode;
    uint64_t step;
    const uint8_t *mask; /* [T] 1 = real token; NULL: all */
    int64_t n_valid;     /* tokens with mask 1 */
} moei_batch;

/* Written by route, read by every stage after it. */
typedef struct moei_routing {
    int64_t n_tokens;
    int32_t n_experts, top_k;
    moe_dtype dtype;
    void *logits;    /* real [T, E] */
    void *prob;      /* real [T, E] softmax(logits): what losses see; 0 where masked */
    void *lse;       /* real [T] log-sum-exp of the logits */
    int32_t *expert; /* [T, K] score descending, ties to the lower index; -1 where masked */
    void *weight;    /* real [T, K]; 0 where masked */
} moei_routing;

/* Written by dispatch: where each routed row stands. Indices only; no token is moved. */
typedef struct moei_plan {
    int64_t n_tokens;
    int32_t n_experts, top_k;
    int64_t n_rows;     /* R, after capacity */
    int64_t *offset;    /* [E + 1] */
    int64_t *routed;    /* [E] rows asked for, before capacity */
    int64_t *kept;      /* [E] rows kept */
    int32_t *row_token; /* [R] token of row r; ascending inside an expert */
    int32_t *row_slot;  /* [R] t*K + k of row r */
    int32_t *row_of;    /* [T, K] row of (t, k); -1 where dropped or masked */
    void *row_weight;   /* real [R] routing weight of row r */
} moei_plan;

#endif
