/* optimizer.h: AdamW over every parameter of a model that is trained.
 * What moe_layer_freeze freezes is neither stepped nor counted in the norm from then on; trained again, it
 * goes on with the moments it had. m and v have the shape of their parameter and, as its master copy where it
 * is bf16, are wide; `step` counts from 1.
 */
#ifndef MOELM_OPTIMIZER_H
#define MOELM_OPTIMIZER_H

#include <moekit/lm.h>

#include "config/config.h"

typedef struct moelm_slot {
    moe_param param;
    void *m, *v; /* wide; NULL: it has no gradient, as a buffer or what was frozen when gradients were made */
    float *master; /* of a bf16 parameter, which is its rounded copy; NULL: the others are their own */
    bool decay;    /* matrices shrink; norms, biases and embeddings do not */
} moelm_slot;

typedef struct moelm_optimizer {
    moe_ctx *ctx;
    const moe_lm *lm;
    int32_t count;
    moelm_slot *slot; /* [count] in the order of moe_lm_param */
    size_t bytes;     /* of the block that slots, moments and masters live in */
} moelm_optimizer;

/* For a model reserved for training, which outlives it; m and v start at zero. Failures are told on the
 * context. */
moe_status moelm_optimizer_create(moe_ctx *ctx, const moe_lm *lm, moelm_optimizer *optimizer);
void moelm_optimizer_destroy(moelm_optimizer *optimizer);
/* Sets the master copies from parameters that somebody else has set. */
void moelm_optimizer_take_masters(const moelm_optimizer *optimizer);

/* Euclidean norm of all gradients together that are trained by. */
moe_status moelm_optimizer_norm(const moelm_optimizer *optimizer, double *norm);
/* One update with gradients times grad_scale. */
moe_status moelm_optimizer_step(const moelm_optimizer *optimizer, const moelm_train_config *train,
                                int64_t step, double lr, double grad_scale);

/* Sets a parameter from its master copy, where it has one. */
void moelm_optimizer_round(const moelm_slot *slot);

bool moelm_optimizer_decays(const moe_param *param);

#endif
