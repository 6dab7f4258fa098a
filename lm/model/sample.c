/* sample.c: the next token from its logits[V]: greedy, or drawn with temperature, top-k and top-p.
 * top-k keeps the k largest; top-p keeps, of these, the fewest that hold the share p of their weight.
 * Source: Fan et al. 2018 (top-k), Holtzman et al. 2020 (top-p, nucleus).
 */
#include "model/model.h"

#include "core/rng.h"

#include <math.h>

moe_status moelm_sampler_check(moe_ctx *ctx, const moe_lm_sampler *s) {
    if (!(s->temperature >= 0.0F) || !isfinite(s->temperature))
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "temperature: %g; it is 0 (greedy) or more",
                            (double)s->temperature);
    if (s->top_k < 0)
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "top_k: %d; it is 0 (all tokens) or more", s->top_k);
    if (!(s->top_p >= 0.0F && s->top_p <= 1.0F))
        return moe_ctx_fail(ctx, MOE_ERR_ARGUMENT, "top_p: %g is outside 0 .. 1", (double)s->top_p);
    return MOE_OK;
}

/* Larger logit first, then the lower token. */
static bool before(const float *logits, int32_t a, int32_t b) {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
}

static void sift_down(const float *logits, int32_t *heap, int64_t n, int64_t at) {
    for (;;) {
        int64_t child = 2 * at + 1;
        if (child >= n) return;
        if (child + 1 < n && before(logits, heap[child + 1], heap[child])) ++child;
        if (!before(logits, heap[child], heap[at])) return;
        int32_t token = heap[at];
        heap[at] = heap[child];
        heap[child] = token;
        at = child;
    }
}

/* The k best tokens, best first, at the end of the heap's array in reverse: heap[vocab-1] is the best. */
static void take_best(const float *logits, int64_t vocab, int64_t k, int32_t *heap) {
    for (int64_t i = 0; i < vocab; ++i) heap[i] = (int32_t)i;
    for (int64_t i = vocab / 2; i-- > 0;) sift_down(logits, heap, vocab, i);
    for (int64_t n = vocab; n > vocab - k; --n) {
        int32_t best = heap[0];
        heap[0] = heap[n - 1];
        heap[n - 1] = best;
        sift_down(logits, heap, n - 1, 0);
    }
}

/* Walks the kept tokens, best first, until their weights reach `share`; *sum gets what they weigh. */
static int64_t walk(const moe_lm_sampler *s, const float *logits, const int32_t *last, int64_t kept,
                    double share, double *sum) {
    double top = (double)logits[*last];
    *sum = 0.0;
    for (int64_t i = 0; i < kept; ++i) {
        *sum += exp(((double)logits[last[-i]] - top) / (double)s->temperature);
        if (*sum >= share) return i + 1;
    }
    return kept;
}

moe_status moelm_logits_check(moe_ctx *ctx, const float *logits, int64_t vocab) {
    for (int64_t i = 0; i < vocab; ++i)
        if (!isfinite(logits[i]))
            return moe_ctx_fail(ctx, MOE_ERR_NUMERIC,
                                "the logit of token %lld is %f: the model's weights are damaged",
                                (long long)i, (double)logits[i]);
    return MOE_OK;
}

int32_t moelm_draw(const moe_lm_sampler *s, uint64_t position, const float *logits, int64_t vocab,
                   int32_t *heap) {
    int64_t kept = s->top_k > 0 && s->top_k < vocab ? s->top_k : vocab;
    if (s->temperature == 0.0F) kept = 1;
    take_best(logits, vocab, kept, heap);
    const int32_t *last = heap + vocab - 1;
    if (kept == 1) return *last;

    double sum, walked;
    walk(s, logits, last, kept, INFINITY, &sum);
    if (s->top_p > 0.0F && s->top_p < 1.0F) kept = walk(s, logits, last, kept, (double)s->top_p * sum, &sum);
    uint32_t word[4];
    moe_random(s->seed, MOE_DRAW_SAMPLE, 0, position, 0, word);
    return last[-(walk(s, logits, last, kept, moei_uniform(word[0]) * sum, &walked) - 1)];
}
