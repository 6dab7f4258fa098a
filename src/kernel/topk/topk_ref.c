/* topk_ref.c: softmax scores, the K best experts of every token, and the gradient of both, plainly.
 * logits[T, E] -> prob[T, E], lse[T], expert[T, K], weight[T, K], entropy[T]; one task a token.
 * Source: softmax gating of Shazeer et al. 2017, eq. 3-5; Mixtral (softmax over the selected);
 * Switch auxiliary loss, Fedus et al. 2021, eq. 4; z-loss, Zoph et al. 2022, eq. 5.
 */
#include <math.h>

#include "core/real.h"
#include "kernel/kernel_list.h"

static double logit(const moei_topk_args *args, int64_t t, int32_t e) {
    return moei_real_load(args->dtype, args->logits, t * args->n_experts + e);
}

/* What a token that is not routed gets; `lse` is NaN where its logits are bad. */
static void write_unrouted(const moei_topk_args *args, int64_t t, double lse) {
    for (int32_t e = 0; e < args->n_experts; ++e)
        moei_real_store(args->dtype, args->prob, t * args->n_experts + e, 0);
    for (int32_t k = 0; k < args->top_k; ++k) {
        args->expert[t * args->top_k + k] = -1;
        moei_real_store(args->dtype, args->weight, t * args->top_k + k, 0);
    }
    moei_real_store(args->dtype, args->lse, t, lse);
    if (args->entropy) moei_real_store(args->dtype, args->entropy, t, 0);
}

/* The best expert after `last` in the order "higher logit first, then lower index". Softmax is monotone,
 * so logits order as scores do, and do not tie where scores round to the same number. */
static int32_t next_best(const moei_topk_args *args, int64_t t, int32_t last) {
    int32_t best = -1;
    for (int32_t e = 0; e < args->n_experts; ++e) {
        double l = logit(args, t, e);
        if (last >= 0) {
            double previous = logit(args, t, last);
            if (l > previous || (l == previous && e <= last)) continue;
        }
        if (best < 0 || l > logit(args, t, best)) best = e;
    }
    return best;
}

static void select_experts(const moei_topk_args *args, int64_t t) {
    int32_t *expert = args->expert + t * args->top_k;
    for (int32_t k = 0, last = -1; k < args->top_k; ++k) last = expert[k] = next_best(args, t, last);
}

/* Softmax over all E, whose exp(logit - max) add up to `sum`; or over the selected alone, below their own
 * largest: given ones may all be far below the best. */
static void weigh_experts(const moei_topk_args *args, int64_t t, double max, double sum) {
    const int32_t *expert = args->expert + t * args->top_k;
    const bool over_all = args->score_before_topk && !args->norm_topk_prob;
    double top = -INFINITY, selected = 0;
    for (int32_t k = 0; k < args->top_k; ++k)
        if (expert[k] >= 0) top = fmax(top, logit(args, t, expert[k]));
    if (over_all) top = max;
    for (int32_t k = 0; k < args->top_k; ++k)
        if (expert[k] >= 0) selected += exp(logit(args, t, expert[k]) - top);
    for (int32_t k = 0; k < args->top_k; ++k) {
        double w = 0;
        if (expert[k] >= 0)
            w = args->scale * exp(logit(args, t, expert[k]) - top) / (over_all ? sum : selected);
        moei_real_store(args->dtype, args->weight, t * args->top_k + k, w);
    }
}

static void token_task(void *arg, int64_t t, void *scratch) {
    const moei_topk_args *args = arg;
    double max = -INFINITY, sum = 0, entropy = 0;
    (void)scratch;
    if (args->mask && !args->mask[t]) {
        write_unrouted(args, t, 0);
        return;
    }
    for (int32_t e = 0; e < args->n_experts; ++e) {
        if (!isfinite(logit(args, t, e))) {
            write_unrouted(args, t, NAN);
            return;
        }
        max = fmax(max, logit(args, t, e));
    }
    for (int32_t e = 0; e < args->n_experts; ++e) sum += exp(logit(args, t, e) - max);
    for (int32_t e = 0; e < args->n_experts; ++e) {
        double below = max - logit(args, t, e), p = exp(-below) / sum;
        if (p > 0) entropy += p * (log(sum) + below);
        moei_real_store(args->dtype, args->prob, t * args->n_experts + e, p);
    }
    moei_real_store(args->dtype, args->lse, t, max + log(sum));
    if (args->entropy) moei_real_store(args->dtype, args->entropy, t, entropy);
    if (!args->given) select_experts(args, t);
    weigh_experts(args, t, max, sum);
}

void moei_topk__ref(const moei_team *team, const moei_topk_args *args) {
    moei_parallel(team, args->n_tokens, token_task, (void *)args);
    for (int64_t t = 0; t < args->n_tokens; ++t) {
        if (!isnan(moei_real_load(args->dtype, args->lse, t))) continue;
        *args->first_bad = t;
        return;
    }
}

/* With s = softmax(logits) and u[e] = d objective / d s[e]: dl[e] = s[e] (u[e] - <u, s> + z_grad lse).
 * Weights that are a softmax over the selected, p, add scale p[k] (dweight[k] - <dweight, p>) on them;
 * weights that are s itself add scale * dweight to u on them. Either is weight / scale. */
static void grad_task(void *arg, int64_t t, void *scratch) {
    const moei_topk_grad_args *args = arg;
    moe_dtype dtype = args->dtype;
    int32_t n_experts = args->n_experts, top_k = args->top_k;
    const int32_t *expert = args->expert + t * top_k;
    bool masked = args->mask && !args->mask[t], over_all = args->score_before_topk && !args->norm_topk_prob;
    double mean_u = 0, mean_dw = 0;
    (void)scratch;
    for (int32_t e = 0; e < n_experts && args->aux_grad; ++e)
        mean_u += args->aux_grad[e] * moei_real_load(dtype, args->prob, t * n_experts + e);
    for (int32_t k = 0; k < top_k && !masked; ++k)
        if (expert[k] >= 0)
            mean_dw += moei_real_load(dtype, args->weight, t * top_k + k) *
                       moei_real_load(dtype, args->dweight, t * top_k + k);
    double shift = args->z_grad * moei_real_load(dtype, args->lse, t) - mean_u - (over_all ? mean_dw : 0);
    for (int32_t e = 0; e < n_experts; ++e) {
        int64_t at = t * n_experts + e;
        double u = args->aux_grad ? args->aux_grad[e] : 0;
        moei_real_store(dtype, args->dlogits, at,
                        masked ? 0 : moei_real_load(dtype, args->prob, at) * (u + shift));
    }
    for (int32_t k = 0; k < top_k && !masked; ++k) {
        if (expert[k] < 0 || args->scale == 0) continue;
        int64_t at = t * n_experts + expert[k];
        double p = moei_real_load(dtype, args->weight, t * top_k + k) / args->scale;
        double dw = args->scale * moei_real_load(dtype, args->dweight, t * top_k + k);
        double own = p * (dw - (over_all ? 0 : mean_dw));
        moei_real_store(dtype, args->dlogits, at, moei_real_load(dtype, args->dlogits, at) + own);
    }
}

void moei_topk_grad__ref(const moei_team *team, const moei_topk_grad_args *args) {
    moei_parallel(team, args->n_tokens, grad_task, (void *)args);
}
