/* topk_simd.h: softmax scores, the K best experts of every token, and the gradient of both, in f32 vectors.
 * logits[T, E] -> prob[T, E], lse[T], expert[T, K], weight[T, K], entropy[T]; a task is a block of tokens.
 * Formulas and sources: topk_ref.c.
 */
#include <math.h>
#include <string.h>

#include "kernel/kernel_list.h"

enum { TOKENS = 32 };

/* Lanes at and past n read `other`. */
static inline vf load_or(const float *p, int64_t n, vf other) {
    return n >= VF_N ? vf_load(p) : vf_select(vm_first(n), vf_load_n(p, n), other);
}

/* What a token that is not routed gets; `lse` is NaN where its logits are bad. */
static void write_unrouted(const moei_topk_args *args, int64_t t, float lse) {
    int64_t n_experts = args->n_experts, top_k = args->top_k;
    for (int64_t e = 0; e < n_experts; ++e) ((float *)args->prob)[t * n_experts + e] = 0;
    for (int64_t slot = t * top_k; slot < (t + 1) * top_k; ++slot) {
        args->expert[slot] = -1;
        ((float *)args->weight)[slot] = 0;
    }
    ((float *)args->lse)[t] = lse;
    if (args->entropy) ((float *)args->entropy)[t] = 0;
}

/* The largest of n finite logits; NaN if any is not finite: x * 0 is 0 for finite x alone. */
static float max_of_finite(const float *x, int64_t n) {
    vf max = vf_set1(-INFINITY), zero = vf_zero();
    for (int64_t e = 0; e < n; e += VF_N) {
        vf v = load_or(x + e, n - e, vf_set1(x[0]));
        max = vf_max(max, v);
        zero = vf_fma(v, vf_zero(), zero);
    }
    return vf_max_lane(max) + vf_sum(zero);
}

/* p = exp(x - max); their sum, and the sum of p * (max - x). Distances past the end of exp are cut, as
 * infinity times 0 is no number. */
static void exp_row(const float *x, int64_t n, float max, float *p, float *sum, float *spread) {
    vf top = vf_set1(max), total = vf_zero(), weighted = vf_zero();
    for (int64_t e = 0; e < n; e += VF_N) {
        vf below = vf_min(vf_set1(200.0f), vf_sub(top, load_or(x + e, n - e, top)));
        vf y = vf_exp(vf_neg(below));
        if (n - e < VF_N) y = vf_select(vm_first(n - e), y, vf_zero());
        vf_store_upto(p + e, y, n - e);
        total = vf_add(total, y);
        weighted = vf_fma(y, below, weighted);
    }
    *sum = vf_sum(total);
    *spread = vf_sum(weighted);
}

/* Index of the largest of rest[n], the lowest among equals; struck out by -infinity. */
static int32_t take_best(float *rest, int64_t n) {
    vf max = vf_set1(-INFINITY);
    for (int64_t e = 0; e < n; e += VF_N) max = vf_max(max, load_or(rest + e, n - e, max));
    vf best = vf_set1(vf_max_lane(max));
    for (int64_t e = 0; e < n; e += VF_N) {
        uint32_t hits = vm_bits(vf_eq(load_or(rest + e, n - e, vf_set1(-INFINITY)), best));
        if (!hits) continue;
        e += __builtin_ctz(hits);
        rest[e] = -INFINITY;
        return (int32_t)e;
    }
    return -1;
}

/* weight[k] = exp(x[expert[k]] - top), top the largest of these x and of `top`; their sum. Given experts may
 * all be far below the best. */
static double weigh_experts(const float *x, const int32_t *expert, int64_t top_k, float top, float *chosen,
                            float *weight) {
    double total = 0;
    float sum, spread;
    for (int64_t k = 0; k < top_k; ++k) {
        chosen[k] = expert[k] < 0 ? -INFINITY : x[expert[k]];
        top = fmaxf(top, chosen[k]);
    }
    exp_row(chosen, top_k, top, weight, &sum, &spread);
    for (int64_t k = 0; k < top_k; ++k)
        if (expert[k] >= 0) total += (double)weight[k];
    return total;
}

static void route_token(const moei_topk_args *args, int64_t t, float *rest) {
    int64_t n = args->n_experts, top_k = args->top_k;
    const float *x = (const float *)args->logits + t * n;
    float *p = (float *)args->prob + t * n, *weight = (float *)args->weight + t * top_k, sum, spread;
    int32_t *expert = args->expert + t * top_k;
    float max = max_of_finite(x, n);
    if (isnan(max)) {
        write_unrouted(args, t, NAN);
        return;
    }
    exp_row(x, n, max, p, &sum, &spread);
    double log_sum = log((double)sum);
    ((float *)args->lse)[t] = (float)((double)max + log_sum);
    if (args->entropy) ((float *)args->entropy)[t] = (float)(log_sum + (double)spread / (double)sum);
    if (!args->given) {
        memcpy(rest, x, (size_t)n * sizeof *rest);
        for (int64_t k = 0; k < top_k; ++k) expert[k] = take_best(rest, n);
    }
    bool over_all = args->score_before_topk && !args->norm_topk_prob;
    double selected = weigh_experts(x, expert, top_k, over_all ? max : -INFINITY, rest, weight);
    double scale = args->scale / (over_all ? (double)sum : selected);
    for (int64_t k = 0; k < top_k; ++k) weight[k] = expert[k] < 0 ? 0 : (float)(scale * (double)weight[k]);
    vf total = vf_set1(sum);
    for (int64_t e = 0; e < n; e += VF_N)
        vf_store_upto(p + e, vf_div(vf_load_upto(p + e, n - e), total), n - e);
}

static void route_task(void *arg, int64_t task, void *scratch) {
    const moei_topk_args *args = arg;
    int64_t end = moei_min((task + 1) * TOKENS, args->n_tokens);
    for (int64_t t = task * TOKENS; t < end; ++t) {
        if (args->mask && !args->mask[t])
            write_unrouted(args, t, 0);
        else
            route_token(args, t, scratch);
    }
}

static void topk_simd(const moei_team *team, const moei_topk_args *args) {
    moei_parallel(team, moei_ceil_div(args->n_tokens, TOKENS), route_task, (void *)args);
    for (int64_t t = 0; t < args->n_tokens; ++t) {
        if (!isnan(((const float *)args->lse)[t])) continue;
        *args->first_bad = t;
        return;
    }
}

static void grad_token(const moei_topk_grad_args *args, int64_t t, const float *aux) {
    int64_t n = args->n_experts, top_k = args->top_k;
    const float *p = (const float *)args->prob + t * n, *dweight = (const float *)args->dweight + t * top_k;
    const int32_t *expert = args->expert + t * top_k;
    float *dlogits = (float *)args->dlogits + t * n;
    const float *weight = (const float *)args->weight + t * top_k;
    double mean_dw = 0;
    for (int64_t k = 0; k < top_k; ++k)
        if (expert[k] >= 0) mean_dw += (double)weight[k] * (double)dweight[k];
    bool over_all = args->score_before_topk && !args->norm_topk_prob;
    vf mean_u = vf_zero();
    for (int64_t e = 0; e < n; e += VF_N)
        mean_u = vf_fma(vf_load_upto(aux + e, n - e), vf_load_upto(p + e, n - e), mean_u);
    double shift = args->z_grad * (double)((const float *)args->lse)[t] - (over_all ? mean_dw : 0);
    vf add = vf_set1((float)(shift - (double)vf_sum(mean_u)));
    for (int64_t e = 0; e < n; e += VF_N) {
        vf u = vf_add(vf_load_upto(aux + e, n - e), add);
        vf_store_upto(dlogits + e, vf_mul(vf_load_upto(p + e, n - e), u), n - e);
    }
    for (int64_t k = 0; k < top_k; ++k) {
        if (expert[k] < 0 || args->scale == 0) continue;
        double own = (double)weight[k] / args->scale;
        own *= args->scale * (double)dweight[k] - (over_all ? 0 : mean_dw);
        dlogits[expert[k]] = (float)((double)dlogits[expert[k]] + own);
    }
}

static void grad_task(void *arg, int64_t task, void *scratch) {
    const moei_topk_grad_args *args = arg;
    int64_t n = args->n_experts, end = moei_min((task + 1) * TOKENS, args->n_tokens);
    float *aux = scratch;
    for (int64_t e = 0; e < n; ++e) aux[e] = args->aux_grad ? (float)args->aux_grad[e] : 0;
    for (int64_t t = task * TOKENS; t < end; ++t) {
        if (args->mask && !args->mask[t])
            memset((float *)args->dlogits + t * n, 0, (size_t)n * sizeof *aux);
        else
            grad_token(args, t, aux);
    }
}

static void topk_grad_simd(const moei_team *team, const moei_topk_grad_args *args) {
    moei_parallel(team, moei_ceil_div(args->n_tokens, TOKENS), grad_task, (void *)args);
}
