/* optimizer.c: AdamW over every parameter of a model, one block of memory for its state.
 * m, v: of the shape of the parameter, wide. Weight decay is for matrices: a norm's gain, a bias or an
 * embedding row has no redundancy that shrinking would remove. Source: Loshchilov and Hutter 2019; minGPT
 * groups so too.
 */
#include "train/optimizer.h"

#include <moekit/expert.h>
#include <moekit/op.h>

#include "core/arena.h"
#include "core/ctx.h"
#include "core/real.h"
#include "model/model.h"

#include <math.h>
#include <string.h>

bool moelm_optimizer_decays(const moe_param *param) {
    size_t length = strlen(param->name);
    bool is_bias = length >= 4 && strcmp(param->name + length - 4, "bias") == 0;
    return param->n_dim >= 2 && !is_bias && strstr(param->name, "embed") == NULL;
}

/* Runs once to measure and once to hand out: see core/arena.h. */
static moe_status carve(moei_arena *arena, const moe_lm *lm, moelm_optimizer *optimizer) {
    size_t n = (size_t)optimizer->count;
    moelm_slot *slot = moei_arena_take(arena, n * sizeof *slot);
    for (int32_t i = 0; i < optimizer->count; ++i) {
        moe_param param = {.size = sizeof param};
        MOEI_TRY(moe_lm_param(lm, i, &param));
        size_t bytes = (size_t)moelm_param_numbers(&param) * moe_dtype_bytes(moei_wide(param.dtype));
        void *m = param.grad ? moei_arena_take(arena, bytes) : NULL;
        void *v = param.grad ? moei_arena_take(arena, bytes) : NULL;
        float *master = param.grad && param.dtype == MOE_BF16 ? moei_arena_take(arena, bytes) : NULL;
        if (slot) slot[i] = (moelm_slot){param, m, v, master, moelm_optimizer_decays(&param)};
    }
    optimizer->slot = slot;
    return MOE_OK;
}

static void take_master(const moelm_slot *slot) {
    for (int64_t j = 0; slot->master && j < moelm_param_numbers(&slot->param); ++j)
        slot->master[j] = (float)moei_real_load(slot->param.dtype, slot->param.value, j);
}

void moelm_optimizer_round(const moelm_slot *slot) {
    for (int64_t j = 0; slot->master && j < moelm_param_numbers(&slot->param); ++j)
        moei_real_store(slot->param.dtype, slot->param.value, j, (double)slot->master[j]);
}

moe_status moelm_optimizer_create(moe_ctx *ctx, const moe_lm *lm, moelm_optimizer *optimizer) {
    *optimizer = (moelm_optimizer){.ctx = ctx, .lm = lm, .count = moe_lm_param_count(lm)};
    moei_arena arena = {0};
    MOEI_TRY(carve(&arena, lm, optimizer));
    void *block = moe_ctx_alloc(ctx, arena.used);
    if (!block) return moei_ctx_no_memory(ctx, "moments of AdamW");
    optimizer->bytes = arena.used;
    memset(block, 0, optimizer->bytes);
    arena = (moei_arena){.base = block};
    MOEI_TRY(carve(&arena, lm, optimizer));
    moelm_optimizer_take_masters(optimizer);
    return MOE_OK;
}

void moelm_optimizer_take_masters(const moelm_optimizer *optimizer) {
    for (int32_t i = 0; i < optimizer->count; ++i) take_master(&optimizer->slot[i]);
}

void moelm_optimizer_destroy(moelm_optimizer *optimizer) {
    /* the slots stand at the start of the block */
    if (optimizer->slot) moe_ctx_free(optimizer->ctx, optimizer->slot, optimizer->bytes);
    *optimizer = (moelm_optimizer){0};
}

/* Asked each time: a slot has what its parameter was when the optimizer was made. */
static moe_status is_trained(const moelm_optimizer *optimizer, int32_t index, bool *trained) {
    moe_param now = {.size = sizeof now};
    MOEI_TRY(moe_lm_param(optimizer->lm, index, &now));
    *trained = optimizer->slot[index].m && !now.frozen;
    return MOE_OK;
}

moe_status moelm_optimizer_norm(const moelm_optimizer *optimizer, double *norm) {
    double total = 0;
    for (int32_t i = 0; i < optimizer->count; ++i) {
        const moe_param *param = &optimizer->slot[i].param;
        double sum;
        bool trained;
        MOEI_TRY(is_trained(optimizer, i, &trained));
        if (!trained) continue;
        MOEI_TRY(moe_sum_squares(optimizer->ctx, param->grad_dtype, param->grad, moelm_param_numbers(param),
                                 &sum));
        total += sum;
    }
    *norm = sqrt(total);
    return MOE_OK;
}

moe_status moelm_optimizer_step(const moelm_optimizer *optimizer, const moelm_train_config *train,
                                int64_t step, double lr, double grad_scale) {
    for (int32_t i = 0; i < optimizer->count; ++i) {
        const moelm_slot *slot = &optimizer->slot[i];
        bool trained;
        MOEI_TRY(is_trained(optimizer, i, &trained));
        if (!trained) continue;
        const moe_adamw_args args = {
            .dtype = slot->param.dtype,
            .n = moelm_param_numbers(&slot->param),
            .value = slot->param.value,
            .master = slot->master,
            .m = slot->m,
            .v = slot->v,
            .grad = slot->param.grad,
            .grad_dtype = slot->param.grad_dtype,
            .lr = lr,
            .beta1 = train->beta1,
            .beta2 = train->beta2,
            .eps = train->adam_eps,
            .weight_decay = slot->decay ? train->weight_decay : 0,
            .grad_scale = grad_scale,
            .step = step,
        };
        MOEI_TRY(moe_adamw(optimizer->ctx, &args));
    }
    return MOE_OK;
}
