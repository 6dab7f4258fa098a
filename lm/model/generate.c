/* generate.c: a continuation of a prompt, token by token, with the cache.
 * When the window is as long as the context, its last half is read again from position 0 and becomes the
 * new window, so generation goes on for ever. Source: plain autoregressive decoding.
 */
#include "model/model.h"

#include "core/ctx.h"

#include <string.h>

static moe_status check(moe_lm *lm, const int32_t *prompt, int64_t n_prompt, int64_t n_new,
                        const moe_lm_sampler *sampler, moe_lm_token_fn on_token, moe_lm_sampler *ours) {
    if (lm->generating)
        return moe_ctx_fail(
            lm->ctx, MOE_ERR_STATE,
            "moe_lm_generate: this model is generating; it has one cache of keys and values, so "
            "call again when on_token has returned false or the text is over");
    MOEI_TRY(moei_ctx_need(lm->ctx, "moe_lm_generate", "prompt", prompt));
    if (n_prompt < 1)
        return moe_ctx_fail(lm->ctx, MOE_ERR_ARGUMENT, "the prompt is empty: give at least one token");
    if (n_new < 0)
        return moe_ctx_fail(lm->ctx, MOE_ERR_ARGUMENT, "%lld new tokens: 0 or more", (long long)n_new);
    if (!sampler || !on_token)
        return moe_ctx_fail(lm->ctx, MOE_ERR_ARGUMENT,
                            "a sampler and a function that takes tokens are needed");
    for (int64_t i = 0; i < n_prompt; ++i)
        if (prompt[i] < 0 || prompt[i] >= lm->vocab)
            return moe_ctx_fail(lm->ctx, MOE_ERR_ARGUMENT, "prompt[%lld] is %d, outside 0 .. %lld",
                                (long long)i, prompt[i], (long long)lm->vocab - 1);
    MOEI_TRY(moei_ctx_desc_read(lm->ctx, ours, sizeof *ours, sampler, "moe_lm_sampler"));
    return moelm_sampler_check(lm->ctx, ours);
}

/* The prompt's end that fits the window. */
static int64_t open_window(moe_lm *lm, const int32_t *prompt, int64_t n_prompt) {
    int64_t n = n_prompt < lm->context ? n_prompt : lm->context;
    if (n < n_prompt)
        moei_log(lm->ctx, MOE_LOG_WARN,
                 "the prompt of %lld tokens is longer than the context of %lld: its last %lld are read",
                 (long long)n_prompt, (long long)lm->context, (long long)n);
    memcpy(lm->cache.window, prompt + n_prompt - n, (size_t)n * sizeof *prompt);
    lm->cache.n = 0;
    return n;
}

/* Appends a token, and first shortens a full window to its last half. */
static int64_t append(moe_lm *lm, int64_t n, int32_t token) {
    int32_t *window = lm->cache.window;
    if (n == lm->context) {
        int64_t keep = lm->context / 2 > 1 ? lm->context / 2 - 1 : 0;
        memmove(window, window + n - keep, (size_t)keep * sizeof *window);
        lm->cache.n = 0;
        n = keep;
    }
    window[n] = token;
    return n + 1;
}

/* Reads what the cache does not hold yet and leaves the logits of the token after it. */
static moe_status read_window(moe_lm *lm, int64_t n) {
    moelm_cache *cache = &lm->cache;
    moelm_pass pass = {.tokens = cache->window + cache->n,
                       .n_seq = 1,
                       .length = n - cache->n,
                       .cache = cache,
                       .call = {.size = sizeof pass.call}};
    MOEI_TRY(moelm_forward(lm, &pass));
    cache->n = n;
    return moelm_head(lm, pass.length - 1, 1, cache->logits);
}

static moe_status draw_text(moe_lm *lm, int64_t n_prompt, int64_t n_window, int64_t n_new,
                            const moe_lm_sampler *sampler, moe_lm_token_fn on_token, void *user) {
    for (int64_t i = 0, n = n_window; i < n_new; ++i) {
        int32_t token;
        MOEI_TRY(read_window(lm, n));
        MOEI_TRY(moelm_sample(lm->ctx, sampler, (uint64_t)(n_prompt + i), lm->cache.logits, lm->vocab,
                              lm->cache.heap, &token));
        if (!on_token(user, token)) return MOE_OK;
        n = append(lm, n, token);
    }
    return MOE_OK;
}

moe_status moe_lm_generate(moe_lm *lm, const int32_t *prompt, int64_t n_prompt, int64_t n_new,
                           const moe_lm_sampler *sampler, moe_lm_token_fn on_token, void *user) {
    if (!lm) return MOE_ERR_ARGUMENT;
    moe_lm_sampler ours;
    MOEI_TRY(check(lm, prompt, n_prompt, n_new, sampler, on_token, &ours));
    int64_t longest = n_prompt < lm->context - n_new ? n_prompt + n_new : lm->context;
    MOEI_TRY(moe_lm_reserve(lm, 1, longest, MOE_INFER));
    MOEI_TRY(moelm_reserve_cache(lm, longest));
    int64_t n_window = open_window(lm, prompt, n_prompt);
    lm->generating = true;
    moe_status status = draw_text(lm, n_prompt, n_window, n_new, &ours, on_token, user);
    lm->generating = false;
    return status;
}
