/* batch.c: several texts at once; a step is one pass over the newest token of all of them.
 * Of each text a place: window[capacity], keys and values; logits[texts, V]. A prompt is read in a pass of
 * its own, but for what another text has read already. A window as long as the context is cut to its last
 * half, which is read again from position 0, so that texts go on for ever. Source: Yu et al. 2022 (texts join
 * and leave between steps); Zheng et al. 2024 (common beginnings read once).
 */
#include "model/model.h"

#include "core/ctx.h"

#include <string.h>

typedef struct place {
    moelm_cache *cache;
    int64_t n;           /* tokens in the window */
    int64_t left;        /* still to draw; 0: the place is free */
    uint64_t at;         /* of the next token in the text, prompt included */
    const float *logits; /* [V] of it, in this step */
    int32_t drawn;
    moe_lm_sampler sampler;
    moe_lm_token_fn on_token;
    void *user;
} place;

struct moe_lm_batch {
    moe_lm *lm;
    void *block;
    size_t bytes;
    int64_t max_texts, capacity;
    int64_t told; /* tokens of the prompt that was last said to be too long */
    bool in_step;
    bool alone;          /* a pass a text: its neighbours would have a say */
    place *places;       /* [max_texts] */
    moelm_cache *caches; /* [max_texts] theirs */
    place **live;        /* [max_texts] the texts of this step */
    place **newest;      /* [max_texts] those of one pass, */
    moelm_cache **cache; /* [max_texts] their caches */
    int32_t *token;      /* [max_texts] and tokens */
    float *logits;       /* [max_texts, V] wide */
    int32_t *heap;       /* [max_texts, V] scratch of draws */
};

/* 1. What is told of a text. */

moe_status moelm_text_check(moe_lm *lm, const char *call, const moe_lm_text *text, moe_lm_text *ours,
                            moe_lm_sampler *sampler) {
    MOEI_TRY(moei_ctx_desc_read(lm->ctx, ours, sizeof *ours, text, "moe_lm_text"));
    MOEI_TRY(moei_ctx_need(lm->ctx, call, "prompt", ours->prompt));
    if (ours->n_prompt < 1)
        return moe_ctx_fail(lm->ctx, MOE_ERR_ARGUMENT, "the prompt is empty: give at least one token");
    if (ours->n_new < 0)
        return moe_ctx_fail(lm->ctx, MOE_ERR_ARGUMENT, "%lld new tokens: 0 or more", (long long)ours->n_new);
    if (!ours->sampler || !ours->on_token)
        return moe_ctx_fail(lm->ctx, MOE_ERR_ARGUMENT,
                            "a sampler and a function that takes tokens are needed");
    for (int64_t i = 0; i < ours->n_prompt; ++i)
        if (ours->prompt[i] < 0 || ours->prompt[i] >= lm->vocab)
            return moe_ctx_fail(lm->ctx, MOE_ERR_ARGUMENT, "prompt[%lld] is %d, outside 0 .. %lld",
                                (long long)i, ours->prompt[i], (long long)lm->vocab - 1);
    MOEI_TRY(moei_ctx_desc_read(lm->ctx, sampler, sizeof *sampler, ours->sampler, "moe_lm_sampler"));
    return moelm_sampler_check(lm->ctx, sampler);
}

int64_t moelm_text_length(const moe_lm *lm, const moe_lm_text *text) {
    return text->n_prompt < lm->context - text->n_new ? text->n_prompt + text->n_new : lm->context;
}

/* 2. Life. */

static void carve(const moe_lm *lm, moei_arena *arena, moe_lm_batch *batch) {
    const size_t n = (size_t)batch->max_texts;
    batch->places = moei_arena_take(arena, n * sizeof *batch->places);
    batch->caches = moei_arena_take(arena, n * sizeof *batch->caches);
    batch->live = moei_arena_take(arena, n * sizeof *batch->live);
    batch->newest = moei_arena_take(arena, n * sizeof *batch->newest);
    batch->cache = moei_arena_take(arena, n * sizeof *batch->cache);
    batch->token = moei_arena_take(arena, n * sizeof *batch->token);
    batch->logits = moei_arena_array(arena, batch->max_texts, lm->vocab, sizeof *batch->logits);
    batch->heap = moei_arena_array(arena, batch->max_texts, lm->vocab, sizeof *batch->heap);
    moelm_cache_carve(lm, arena, batch->max_texts, batch->capacity, batch->caches);
    for (size_t i = 0; batch->places && i < n; ++i) batch->places[i] = (place){.cache = &batch->caches[i]};
}

/* The batch's sizes, and what it takes. */
static moe_status measure(moe_lm *lm, const moe_lm_batch_desc *desc, moe_lm_batch *batch) {
    moe_lm_batch_desc ours;
    MOEI_TRY(moei_ctx_desc_read(lm->ctx, &ours, sizeof ours, desc, "moe_lm_batch_desc"));
    if (ours.max_texts < 1 || ours.max_texts > MOELM_MAX_TEXTS)
        return moe_ctx_fail(lm->ctx, MOE_ERR_ARGUMENT, "max_texts: %lld is outside 1 .. %d",
                            (long long)ours.max_texts, MOELM_MAX_TEXTS);
    if (ours.max_length < 0)
        return moe_ctx_fail(lm->ctx, MOE_ERR_ARGUMENT, "max_length: %lld; it is 0 (the context) or more",
                            (long long)ours.max_length);
    const bool whole = ours.max_length == 0 || ours.max_length > lm->context;
    *batch = (moe_lm_batch){.lm = lm,
                            .max_texts = ours.max_texts,
                            .capacity = whole ? lm->context : ours.max_length,
                            .alone = moelm_company(lm) != NULL};
    if (batch->max_texts > INT32_MAX / batch->capacity)
        return moe_ctx_fail(lm->ctx, MOE_ERR_ARGUMENT,
                            "max_texts: %lld of %lld tokens are more than %d tokens",
                            (long long)batch->max_texts, (long long)batch->capacity, INT32_MAX);
    moei_arena arena = {0};
    carve(lm, &arena, batch);
    batch->bytes = arena.used;
    return MOE_OK;
}

moe_status moe_lm_batch_measure(moe_lm *lm, const moe_lm_batch_desc *desc, size_t *bytes) {
    if (!lm) return MOE_ERR_ARGUMENT;
    MOEI_TRY(moei_ctx_need(lm->ctx, "moe_lm_batch_measure", "bytes", bytes));
    moe_lm_batch batch;
    MOEI_TRY(measure(lm, desc, &batch));
    *bytes = sizeof batch + batch.bytes;
    return MOE_OK;
}

moe_status moe_lm_batch_create(moe_lm *lm, const moe_lm_batch_desc *desc, moe_lm_batch **batch) {
    if (!lm) return MOE_ERR_ARGUMENT;
    MOEI_TRY(moei_ctx_need(lm->ctx, "moe_lm_batch_create", "batch", batch));
    moe_lm_batch sizes;
    MOEI_TRY(measure(lm, desc, &sizes));
    MOEI_TRY(moe_lm_reserve(lm, 1, sizes.capacity, MOE_INFER));
    MOEI_TRY(moe_lm_reserve(lm, sizes.alone ? 1 : sizes.max_texts, 1, MOE_INFER));
    moe_lm_batch *made = moe_ctx_alloc(lm->ctx, sizeof *made);
    if (!made) return moei_ctx_no_memory(lm->ctx, "a batch");
    *made = sizes;
    made->block = moe_ctx_alloc(lm->ctx, made->bytes);
    if (!made->block) {
        moe_ctx_free(lm->ctx, made, sizeof *made);
        return moei_ctx_no_memory(lm->ctx, "keys and values of %lld texts of %lld tokens",
                                  (long long)sizes.max_texts, (long long)sizes.capacity);
    }
    moei_arena arena = {.base = made->block};
    carve(lm, &arena, made);
    if (made->alone && made->max_texts > 1)
        moei_log(lm->ctx, MOE_LOG_WARN, "%s: texts are written beside each other in a pass each",
                 moelm_company(lm));
    *batch = made;
    return MOE_OK;
}

void moe_lm_batch_destroy(moe_lm_batch *batch) {
    if (!batch) return;
    moe_ctx *ctx = batch->lm->ctx;
    moe_ctx_free(ctx, batch->block, batch->bytes);
    moe_ctx_free(ctx, batch, sizeof *batch);
}

int64_t moe_lm_batch_live(const moe_lm_batch *batch) {
    int64_t n = 0;
    for (int64_t i = 0; batch && i < batch->max_texts; ++i) n += batch->places[i].left > 0;
    return n;
}

int64_t moelm_batch_capacity(const moe_lm_batch *batch) {
    return batch ? batch->capacity : 0;
}

bool moelm_batch_in_step(const moe_lm_batch *batch) {
    return batch && batch->in_step;
}

/* Whoever comes next may have trained the model: what was read is forgotten. */
static void forget(moe_lm_batch *batch) {
    for (int64_t i = 0; i < batch->max_texts; ++i) batch->places[i].left = batch->places[i].cache->n = 0;
}

void moelm_batch_clear(moe_lm_batch *batch) {
    forget(batch);
    batch->told = 0;
}

static moe_status check_idle(const moe_lm_batch *batch, const char *call) {
    if (!batch->in_step) return MOE_OK;
    return moe_ctx_fail(batch->lm->ctx, MOE_ERR_STATE,
                        "%s: the batch is in a step; call again when moe_lm_batch_step has returned", call);
}

/* 3. Windows. */

/* Of two texts, how many of the first n tokens are the same. */
static int64_t common(const int32_t *a, const int32_t *b, int64_t n) {
    int64_t i = 0;
    while (i < n && a[i] == b[i]) ++i;
    return i;
}

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* The prompt's end that fits the window; of what the place read before, the beginning that fits it. The last
 * token is read in any case: its logits are wanted. */
static void open_window(moe_lm_batch *batch, const moe_lm_text *text, place *p) {
    const moe_lm *lm = batch->lm;
    p->n = least(text->n_prompt, lm->context);
    if (p->n < text->n_prompt && batch->told != text->n_prompt) /* not the same words for every sample */
        moei_log(lm->ctx, MOE_LOG_WARN,
                 "the prompt of %lld tokens is longer than the context of %lld: its last %lld are read",
                 (long long)text->n_prompt, (long long)lm->context, (long long)p->n);
    if (p->n < text->n_prompt) batch->told = text->n_prompt;
    const int32_t *prompt = text->prompt + text->n_prompt - p->n;
    const int64_t most = batch->alone ? 0 : least(p->cache->n, p->n - 1);
    p->cache->n = common(p->cache->window, prompt, most);
    memcpy(p->cache->window, prompt, (size_t)p->n * sizeof *prompt);
}

/* Appends the token that was drawn, and first shortens a full window to its last half. */
static void append(const moe_lm *lm, place *p) {
    int32_t *window = p->cache->window;
    if (p->n == lm->context) {
        const int64_t keep = lm->context / 2 > 1 ? lm->context / 2 - 1 : 0;
        memmove(window, window + p->n - keep, (size_t)keep * sizeof *window);
        p->cache->n = 0;
        p->n = keep;
    }
    window[p->n++] = p->drawn;
}

moe_status moe_lm_batch_add(moe_lm_batch *batch, const moe_lm_text *text) {
    if (!batch) return MOE_ERR_ARGUMENT;
    moe_lm *lm = batch->lm;
    moe_lm_text ours;
    moe_lm_sampler sampler;
    MOEI_TRY(check_idle(batch, "moe_lm_batch_add"));
    MOEI_TRY(moelm_text_check(lm, "moe_lm_batch_add", text, &ours, &sampler));
    if (moelm_text_length(lm, &ours) > batch->capacity)
        return moe_ctx_fail(
            lm->ctx, MOE_ERR_ARGUMENT,
            "a text of %lld and %lld new tokens is longer than the batch's max_length of %lld",
            (long long)ours.n_prompt, (long long)ours.n_new, (long long)batch->capacity);
    if (ours.n_new == 0) return MOE_OK;
    place *p = batch->places, *end = p + batch->max_texts;
    while (p < end && p->left > 0) ++p;
    if (p == end)
        return moe_ctx_fail(lm->ctx, MOE_ERR_STATE,
                            "%lld texts are being written, as many as max_texts: step until one is over",
                            (long long)batch->max_texts);
    open_window(batch, &ours, p);
    p->left = ours.n_new;
    p->at = (uint64_t)ours.n_prompt;
    p->sampler = sampler;
    p->on_token = ours.on_token;
    p->user = ours.user;
    return MOE_OK;
}

/* 4. A step. */

/* Reads `length` tokens of each of n texts, logits[n, V] after the last of each; 1 text or 1 token. */
static moe_status read_texts(moe_lm_batch *batch, place **texts, int64_t n, int64_t length, float *logits) {
    moe_lm *lm = batch->lm;
    for (int64_t i = 0; i < n; ++i) {
        batch->cache[i] = texts[i]->cache;
        batch->token[i] = texts[i]->cache->window[texts[i]->cache->n];
        texts[i]->logits = logits + i * lm->vocab;
    }
    moelm_pass pass = {.tokens = length == 1 ? batch->token : texts[0]->cache->window + texts[0]->cache->n,
                       .n_seq = n,
                       .length = length,
                       .cache = batch->cache,
                       .call = {.size = sizeof pass.call}};
    MOEI_TRY(moelm_forward(lm, &pass));
    MOEI_TRY(moelm_head(lm, length - 1, n, logits));
    for (int64_t i = 0; i < n; ++i) texts[i]->cache->n = texts[i]->n;
    return MOE_OK;
}

/* Takes over what another text has read of the same beginning. */
static void share_beginning(const moe_lm_batch *batch, place *p) {
    for (int64_t i = 0; i < batch->max_texts; ++i) {
        const moelm_cache *other = batch->places[i].cache;
        const int64_t rows = common(other->window, p->cache->window, least(other->n, p->n - 1));
        if (rows > p->cache->n) moelm_cache_copy(batch->lm, p->cache, other, rows);
    }
}

/* Prompts, and windows that were cut, each in a pass of its own; their logits stand last. What lacks one
 * token is left to read_newest. */
static moe_status read_prompts(moe_lm_batch *batch, int64_t n) {
    float *logits = batch->logits + batch->max_texts * batch->lm->vocab;
    for (int64_t i = 0; i < n; ++i) {
        place *p = batch->live[i];
        if (p->n - p->cache->n > 1 && !batch->alone) share_beginning(batch, p);
        if (p->n - p->cache->n == 1) continue;
        logits -= batch->lm->vocab;
        MOEI_TRY(read_texts(batch, &p, 1, p->n - p->cache->n, logits));
    }
    return MOE_OK;
}

static moe_status read_newest(moe_lm_batch *batch, int64_t n) {
    int64_t newest = 0;
    for (int64_t i = 0; i < n; ++i)
        if (batch->live[i]->cache->n < batch->live[i]->n) batch->newest[newest++] = batch->live[i];
    const int64_t most = batch->alone ? 1 : newest;
    for (int64_t i = 0; i < newest; i += most)
        MOEI_TRY(read_texts(batch, batch->newest + i, most, 1, batch->logits + i * batch->lm->vocab));
    return MOE_OK;
}

static void draw_task(void *arg, int64_t task, void *scratch) {
    const moe_lm_batch *batch = arg;
    const int64_t vocab = batch->lm->vocab;
    place *p = batch->live[task];
    (void)scratch;
    p->drawn = moelm_draw(&p->sampler, p->at, p->logits, vocab, batch->heap + task * vocab);
}

static void hand_out(const moe_lm *lm, place *p) {
    ++p->at;
    --p->left;
    if (!p->on_token(p->user, p->drawn)) p->left = 0;
    if (p->left > 0) append(lm, p);
}

static moe_status step(moe_lm_batch *batch, int64_t n) {
    moe_lm *lm = batch->lm;
    for (int64_t i = 0; i < n; ++i) { /* after a failure: read, but nothing drawn */
        moelm_cache *cache = batch->live[i]->cache;
        cache->n = least(cache->n, batch->live[i]->n - 1);
    }
    MOEI_TRY(read_prompts(batch, n));
    MOEI_TRY(read_newest(batch, n));
    for (int64_t i = 0; i < n; ++i) MOEI_TRY(moelm_logits_check(lm->ctx, batch->live[i]->logits, lm->vocab));
    moe_parallel(lm->ctx, n, draw_task, batch);
    for (int64_t i = 0; i < n; ++i) hand_out(lm, batch->live[i]);
    return MOE_OK;
}

moe_status moe_lm_batch_step(moe_lm_batch *batch) {
    if (!batch) return MOE_ERR_ARGUMENT;
    MOEI_TRY(check_idle(batch, "moe_lm_batch_step"));
    int64_t n = 0;
    for (int64_t i = 0; i < batch->max_texts; ++i)
        if (batch->places[i].left > 0) batch->live[n++] = &batch->places[i];
    if (n == 0) return MOE_OK;
    batch->in_step = true;
    const moe_status status = step(batch, n);
    batch->in_step = false;
    if (moe_lm_batch_live(batch) == 0) forget(batch);
    return status;
}
