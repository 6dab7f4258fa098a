/* generate.c: a continuation of one prompt: a batch of one text that the model keeps.
 * Source: plain autoregressive decoding; batch.c has the steps.
 */
#include "model/model.h"

#include "core/ctx.h"

/* The batch grows with the longest text. */
static moe_status reserve_own(moe_lm *lm, int64_t length) {
    if (moelm_batch_capacity(lm->own) >= length) return MOE_OK;
    const moe_lm_batch_desc desc = {.size = sizeof desc, .max_texts = 1, .max_length = length};
    moe_lm_batch *larger;
    MOEI_TRY(moe_lm_batch_create(lm, &desc, &larger));
    moe_lm_batch_destroy(lm->own);
    lm->own = larger;
    return MOE_OK;
}

moe_status moe_lm_generate(moe_lm *lm, const int32_t *prompt, int64_t n_prompt, int64_t n_new,
                           const moe_lm_sampler *sampler, moe_lm_token_fn on_token, void *user) {
    if (!lm) return MOE_ERR_ARGUMENT;
    if (moelm_batch_in_step(lm->own))
        return moe_ctx_fail(
            lm->ctx, MOE_ERR_STATE,
            "moe_lm_generate: this model is generating; it has one cache of keys and values, so "
            "call again when on_token has returned false or the text is over, or write several "
            "texts with moe_lm_batch_create");
    const moe_lm_text text = {sizeof text, prompt, n_prompt, n_new, sampler, on_token, user};
    moe_lm_text read;
    moe_lm_sampler drawn_by;
    MOEI_TRY(moelm_text_check(lm, "moe_lm_generate", &text, &read, &drawn_by));
    MOEI_TRY(reserve_own(lm, moelm_text_length(lm, &read)));
    moe_status status = moe_lm_batch_add(lm->own, &text);
    while (status == MOE_OK && moe_lm_batch_live(lm->own) > 0) status = moe_lm_batch_step(lm->own);
    moelm_batch_clear(lm->own);
    return status;
}
