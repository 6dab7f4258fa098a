/* act_pass.h: activations as a pass of their own, for what the kernels do not fuse into the product.
 * Z[R, n or 2n] <-> A[R, n], row by row.
 */
#ifndef MOEI_ACT_PASS_H
#define MOEI_ACT_PASS_H

#include "experts/activation.h"

typedef struct moei_act_pass {
    moe_ctx *ctx;
    moe_dtype dtype;
    const moei_act_rule *rule;
    int64_t n_rows, n;
    void *z; /* [R, n or 2n]; backward writes dZ over it */
    void *a; /* [R, n] forward: A written. Backward: the gradient of weight * A, overwritten by weight * A */
    const void *row_weight; /* [R]; NULL: 1 */
    void *drow_weight;      /* [R] backward: <gradient, A>; NULL: not wanted */
    float dropout;          /* 0: none */
    uint32_t layer;
    uint64_t step;
    const int32_t *row_slot;     /* [R] which draws are row r's; NULL: r */
    const uint8_t *dropout_keep; /* [slots, n]; NULL: drawn */
} moei_act_pass;

/* A = act(Z) * mask / (1 - dropout) */
void moei_act_pass_forward(moei_act_pass *pass);
void moei_act_pass_backward(moei_act_pass *pass);

#endif
