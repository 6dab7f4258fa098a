/* pass.c: whole passes over the model: logits of every position, and the loss with its gradients.
 * tokens[n_seq * length] -> embedding -> blocks -> head.
 * Source: reverse-mode differentiation by hand, stage by stage, as each stage's own file does it.
 */
#include "model/model.h"

#include "core/ctx.h"

#include <math.h>

static moe_status check_shape(moe_lm *lm, const moelm_pass *pass) {
    const moelm_memory *mem = &lm->memory;
    if (pass->n_seq < 1 || pass->length < 1)
        return moe_ctx_fail(lm->ctx, MOE_ERR_ARGUMENT,
                            "%lld sequences of %lld tokens: both must be at least 1", (long long)pass->n_seq,
                            (long long)pass->length);
    if (pass->length > lm->context)
        return moe_ctx_fail(lm->ctx, MOE_ERR_ARGUMENT,
                            "a sequence of %lld tokens is longer than the model's context of %lld",
                            (long long)pass->length, (long long)lm->context);
    if (pass->n_seq > mem->max_rows / pass->length)
        return moe_ctx_fail(lm->ctx, MOE_ERR_STATE,
                            "%lld sequences of %lld tokens are more than the %lld tokens reserved; "
                            "call moe_lm_reserve first",
                            (long long)pass->n_seq, (long long)pass->length, (long long)mem->max_rows);
    if (pass->cache && pass->n_seq > mem->max_sequences)
        return moe_ctx_fail(lm->ctx, MOE_ERR_STATE,
                            "caches of %lld sequences are more than the %lld sequences reserved",
                            (long long)pass->n_seq, (long long)mem->max_sequences);
    return MOE_OK;
}

/* `lowest` is -1 where targets may be left out. */
static moe_status check_tokens(moe_lm *lm, const char *what, const int32_t *tokens, int64_t rows,
                               int32_t lowest) {
    if (!tokens) return moe_ctx_fail(lm->ctx, MOE_ERR_ARGUMENT, "%s: NULL", what);
    for (int64_t r = 0; r < rows; ++r)
        if (tokens[r] < lowest || tokens[r] >= lm->vocab)
            return moe_ctx_fail(lm->ctx, MOE_ERR_ARGUMENT, "%s[%lld] is %d, outside %d .. %lld", what,
                                (long long)r, tokens[r], lowest, (long long)lm->vocab - 1);
    return MOE_OK;
}

moe_status moelm_forward(moe_lm *lm, moelm_pass *pass) {
    MOEI_TRY(check_shape(lm, pass));
    int64_t rows = pass->n_seq * pass->length;
    MOEI_TRY(check_tokens(lm, "tokens", pass->tokens, rows, 0));
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t start = pass->cache ? pass->cache[r / pass->length]->n : 0;
        lm->memory.position[r] = (int32_t)(start + r % pass->length);
    }
    pass->aux = 0.0;
    pass->call.sequence_length = pass->length;
    MOEI_TRY(moelm_embed(lm, pass, lm->blocks[0].saved.in));
    for (int32_t i = 0; i < lm->n_layers; ++i) {
        void *out = i + 1 < lm->n_layers ? lm->blocks[i + 1].saved.in : lm->memory.out;
        MOEI_TRY(moelm_block_forward(lm, i, pass, out));
    }
    return MOE_OK;
}

static moe_status backward(moe_lm *lm, const moelm_pass *pass) {
    for (int32_t i = lm->n_layers; i-- > 0;) MOEI_TRY(moelm_block_backward(lm, i, pass));
    return moelm_embed_backward(lm, pass, lm->memory.dout);
}

moe_status moe_lm_logits(moe_lm *lm, const int32_t *tokens, int64_t n_seq, int64_t length, float *logits) {
    if (!lm) return MOE_ERR_ARGUMENT;
    MOEI_TRY(moei_ctx_need(lm->ctx, "moe_lm_logits", "logits", logits));
    moelm_pass pass = {
        .tokens = tokens, .n_seq = n_seq, .length = length, .call = {.size = sizeof pass.call}};
    MOEI_TRY(moelm_forward(lm, &pass));
    return moelm_head(lm, 0, n_seq * length, logits);
}

static moe_status check_loss(moe_lm *lm, const moelm_pass *pass, const int32_t *targets) {
    MOEI_TRY(check_shape(lm, pass));
    if (!isfinite(pass->call.loss_scale) || pass->call.loss_scale < 0)
        return moe_ctx_fail(lm->ctx, MOE_ERR_ARGUMENT, "grad_scale: %g is not a finite number of at least 0",
                            (double)pass->call.loss_scale);
    int64_t rows = pass->n_seq * pass->length;
    MOEI_TRY(check_tokens(lm, "targets", targets, rows, -1));
    if (pass->call.mode == MOE_TRAIN && lm->memory.mode != MOE_TRAIN)
        return moe_ctx_fail(lm->ctx, MOE_ERR_STATE, "gradients need moe_lm_reserve with MOE_TRAIN");
    for (int64_t r = 0; r < rows; ++r)
        if (targets[r] >= 0) return MOE_OK;
    return moe_ctx_fail(lm->ctx, MOE_ERR_ARGUMENT, "targets: all %lld are -1, so there is no loss to take",
                        (long long)rows);
}

moe_status moelm_loss(moe_lm *lm, moelm_pass *pass, const int32_t *targets, double *loss) {
    const bool train = pass->call.mode == MOE_TRAIN;
    double main_loss;
    MOEI_TRY(check_loss(lm, pass, targets));
    MOEI_TRY(moelm_forward(lm, pass));
    if (pass->call.overwrite_grad) moelm_zero_own_grad(lm);
    MOEI_TRY(moelm_head_loss(lm, targets, pass->n_seq * pass->length, train ? pass->call.loss_scale : 0,
                             &main_loss));
    if (train) MOEI_TRY(backward(lm, pass));
    *loss = main_loss;
    return MOE_OK;
}

moe_status moe_lm_loss(moe_lm *lm, const int32_t *tokens, const int32_t *targets, int64_t n_seq,
                       int64_t length, uint64_t step, float grad_scale, double *loss, double *aux) {
    if (!lm) return MOE_ERR_ARGUMENT;
    MOEI_TRY(moei_ctx_need(lm->ctx, "moe_lm_loss", "loss", loss));
    moelm_pass pass = {
        .tokens = tokens,
        .n_seq = n_seq,
        .length = length,
        .call = {.size = sizeof pass.call,
                 .mode = grad_scale != 0.0F ? MOE_TRAIN : MOE_INFER,
                 .step = step,
                 .loss_scale = grad_scale},
    };
    MOEI_TRY(moelm_loss(lm, &pass, targets, loss));
    if (aux) *aux = pass.aux;
    return MOE_OK;
}
