/* clip.c: queries, keys and values held within model.clip_qkv, forward and backward.
 * qkv[R, C] after norms and before rotary; kept[R, C] tells backward which numbers were within, NULL in
 * inference. Source: clip_qkv of MPT and OLMoE (Muennighoff et al. 2024). At the bound itself the gradient
 * passes, as in torch's clamp for long; that of 2.15 holds it back.
 */
#include "model/model.h"

#include <math.h>

enum { ROWS = 16 }; /* of a task */

typedef struct clipping {
    const moe_lm *lm;
    int64_t rows;
    void *x; /* [rows, C] qkv, or its gradient */
    uint8_t *kept;
} clipping;

/* The bound as a number that the model has: what is clipped is at it, not beyond. */
static float bound_of(const moe_lm *lm) {
    return lm->dtype == MOE_BF16 ? moei_bf16_value(moei_bf16_round(lm->clip)) : lm->clip;
}

/* Numbers at .. end - 1. A NaN stays what it is. */
static void clip_numbers(const clipping *c, int64_t at, int64_t end) {
    const float bound = bound_of(c->lm);
    for (int64_t i = at; i < end; ++i) {
        const float x =
            c->lm->dtype == MOE_BF16 ? moei_bf16_value(((uint16_t *)c->x)[i]) : ((float *)c->x)[i];
        const bool out = fabsf(x) > bound;
        if (c->kept) c->kept[i] = !out;
        if (!out) continue;
        if (c->lm->dtype == MOE_BF16)
            ((uint16_t *)c->x)[i] = moei_bf16_round(copysignf(bound, x));
        else
            ((float *)c->x)[i] = copysignf(bound, x);
    }
}

static void drop_numbers(const clipping *c, int64_t at, int64_t end) {
    for (int64_t i = at; i < end; ++i)
        if (!c->kept[i] && c->lm->dtype == MOE_BF16)
            ((uint16_t *)c->x)[i] = 0;
        else if (!c->kept[i])
            ((float *)c->x)[i] = 0;
}

static int64_t end_of(const clipping *c, int64_t task) {
    const int64_t end = (task + 1) * ROWS;
    return (end < c->rows ? end : c->rows) * moelm_qkv_cols(c->lm);
}

static void clip_task(void *arg, int64_t task, void *scratch) {
    const clipping *c = arg;
    (void)scratch;
    clip_numbers(c, task * ROWS * moelm_qkv_cols(c->lm), end_of(c, task));
}

static void drop_task(void *arg, int64_t task, void *scratch) {
    const clipping *c = arg;
    (void)scratch;
    drop_numbers(c, task * ROWS * moelm_qkv_cols(c->lm), end_of(c, task));
}

void moelm_clip(moe_lm *lm, const moelm_saved *s, int64_t rows) {
    clipping c = {lm, rows, s->qkv, s->kept};
    if (lm->clip > 0) moe_parallel(lm->ctx, (rows + ROWS - 1) / ROWS, clip_task, &c);
}

void moelm_clip_backward(moe_lm *lm, const moelm_saved *s, int64_t rows) {
    clipping c = {lm, rows, lm->memory.dqkv, s->kept};
    if (lm->clip > 0) moe_parallel(lm->ctx, (rows + ROWS - 1) / ROWS, drop_task, &c);
}
