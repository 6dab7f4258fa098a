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

/* Tokens by their logits: heap[0 .. left-1] is a heap of those not yet taken out of it; behind it stand those
 * that are, the best last. */
typedef struct ranking {
    const float *logits;
    int32_t *heap;
    int64_t vocab, left;
} ranking;

static ranking rank_tokens(const float *logits, int64_t vocab, int32_t *heap) {
    for (int64_t i = 0; i < vocab; ++i) heap[i] = (int32_t)i;
    for (int64_t i = vocab / 2; i-- > 0;) sift_down(logits, heap, vocab, i);
    return (ranking){logits, heap, vocab, vocab};
}

/* The token of place i, 0 the best; no more are ranked than that takes. */
static int32_t ranked(ranking *r, int64_t i) {
    while (r->vocab - r->left <= i) {
        const int32_t best = r->heap[0];
        r->heap[0] = r->heap[--r->left];
        r->heap[r->left] = best;
        sift_down(r->logits, r->heap, r->left, 0);
    }
    return r->heap[r->vocab - 1 - i];
}

static double weight(const moe_lm_sampler *s, ranking *r, int32_t token) {
    return exp(((double)r->logits[token] - (double)r->logits[ranked(r, 0)]) / (double)s->temperature);
}

/* Walks the kept tokens, best first, until their weights reach `share`; *sum gets what they weigh. */
static int64_t walk(const moe_lm_sampler *s, ranking *r, int64_t kept, double share, double *sum) {
    *sum = 0.0;
    for (int64_t i = 0; i < kept; ++i) {
        *sum += weight(s, r, ranked(r, i));
        if (*sum >= share) return i + 1;
    }
    return kept;
}

/* What the kept tokens weigh: all of them in their own order, as ranking them takes longer than all else. */
static double weigh(const moe_lm_sampler *s, ranking *r, int64_t kept) {
    double sum = 0.0;
    if (kept < r->vocab)
        walk(s, r, kept, INFINITY, &sum);
    else
        for (int64_t i = 0; i < r->vocab; ++i) sum += weight(s, r, (int32_t)i);
    return sum;
}

static int32_t likeliest(const float *logits, int64_t vocab) {
    int32_t best = 0;
    for (int32_t i = 1; i < vocab; ++i)
        if (logits[i] > logits[best]) best = i;
    return best;
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
    if (s->temperature == 0.0F || kept == 1) return likeliest(logits, vocab);
    ranking r = rank_tokens(logits, vocab, heap);
    double sum = weigh(s, &r, kept), walked;
    if (s->top_p > 0.0F && s->top_p < 1.0F) kept = walk(s, &r, kept, (double)s->top_p * sum, &sum);
    uint32_t word[4];
    moe_random(s->seed, MOE_DRAW_SAMPLE, 0, position, 0, word);
    return ranked(&r, walk(s, &r, kept, moei_uniform(word[0]) * sum, &walked) - 1);
}
