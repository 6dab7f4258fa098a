/* ffn.h: the inside of an FFN kind: its sizes, its parameters. Shared by expert_ffn.c, ffn_param.c and
 * ffn_packed.c. */
#ifndef MOEI_FFN_H
#define MOEI_FFN_H

#include "experts/activation.h"
#include "experts/experts.h"

enum { MOEI_FFN_UP = 0, MOEI_FFN_DOWN, MOEI_FFN_UP_BIAS, MOEI_FFN_DOWN_BIAS, MOEI_FFN_PARAMS };

typedef struct moei_ffn {
    moe_ctx *ctx;
    moe_expert_desc desc;
    moei_act_rule rule;
    moe_act act;          /* with rule's numbers */
    bool fused;           /* in the products; else the activation is a pass of its own */
    int32_t d_z;          /* columns of Z: n, or 2n if gated */
    int32_t n_params;     /* 2, 3 with up biases, 4 with both */
    moe_dtype grad_dtype; /* of the matrices: wide, or bf16 */
    void *value[MOEI_FFN_PARAMS], *grad[MOEI_FFN_PARAMS]; /* value NULL: given back, see packed */
    moe_packed *packed[MOEI_FFN_MATRICES];                /* what the products read instead; NULL: value */
} moei_ffn;

/* The moe_expert_ops entries that concern parameters. */
moe_status moei_ffn_create(moe_ctx *ctx, const moe_expert_desc *desc, void **self);
void moei_ffn_destroy(void *self);
int32_t moei_ffn_param_count(const void *self);
moe_status moei_ffn_param(const void *self, int32_t index, moe_param *param);
void moei_ffn_bind_grad(void *self, int32_t index, void *grad);
/* Gives back the memory of one. */
void moei_ffn_drop(void *self, int32_t index);

#endif
