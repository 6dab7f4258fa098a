/* adamw_simd.h: one AdamW step on one tensor in vectors, f32, or bf16 with an f32 master.
 * value, master, m, v, grad [n].
 * Source: Loshchilov & Hutter 2019, algorithm 2. Include after simd_avx2.h or simd_avx512.h.
 */
#ifndef MOEI_ADAMW_SIMD_H
#define MOEI_ADAMW_SIMD_H

#include <math.h>

#include "kernel/kernel_list.h"

enum { BLOCK = 16384 };

/* The step with its constants folded: p -= rate * m / (sqrt(v) * spread + eps) + decay * p. */
typedef struct adamw_step {
    int64_t n;
    float *value, *m, *v; /* value: where the step is made, the master in bf16 */
    uint16_t *rounded;    /* bf16: the value itself */
    const void *grad;
    bool narrow_grad; /* bf16, else f32 */
    float grad_scale, keep1, take1, keep2, take2, rate, spread, eps, decay;
} adamw_step;

static inline void update(const adamw_step *a, int64_t i, int64_t n) {
    bool full = n == VF_N;
    vf p = full ? vf_load(a->value + i) : vf_load_n(a->value + i, n);
    vf m = full ? vf_load(a->m + i) : vf_load_n(a->m + i, n);
    vf v = full ? vf_load(a->v + i) : vf_load_n(a->v + i, n);
    vf g = vf_get(a->narrow_grad, a->grad, i, n);
    g = vf_mul(g, vf_set1(a->grad_scale));
    m = vf_fma(m, vf_set1(a->keep1), vf_mul(g, vf_set1(a->take1)));
    v = vf_fma(v, vf_set1(a->keep2), vf_mul(vf_mul(g, g), vf_set1(a->take2)));
    vf below = vf_fma(vf_sqrt(v), vf_set1(a->spread), vf_set1(a->eps));
    vf step = vf_fma(p, vf_set1(a->decay), vf_div(vf_mul(m, vf_set1(a->rate)), below));
    p = vf_sub(p, step);
    if (a->rounded) vf_put(true, a->rounded, i, p, n);
    if (full) {
        vf_store(a->value + i, p);
        vf_store(a->m + i, m);
        vf_store(a->v + i, v);
    } else {
        vf_store_n(a->value + i, p, n);
        vf_store_n(a->m + i, m, n);
        vf_store_n(a->v + i, v, n);
    }
}

static void update_block(void *arg, int64_t task, void *scratch) {
    const adamw_step *a = arg;
    (void)scratch;
    int64_t i = task * BLOCK, end = a->n - i < BLOCK ? a->n : i + BLOCK;
    for (; i + VF_N <= end; i += VF_N) update(a, i, VF_N);
    if (i < end) update(a, i, end - i);
}

static inline void adamw_update(const moei_team *team, const moe_adamw_args *args) {
    double correct1 = 1.0 - pow(args->beta1, (double)args->step);
    double correct2 = 1.0 - pow(args->beta2, (double)args->step);
    adamw_step step = {.n = args->n,
                       .value = args->dtype == MOE_BF16 ? args->master : args->value,
                       .rounded = args->dtype == MOE_BF16 ? args->value : NULL,
                       .m = args->m,
                       .v = args->v,
                       .grad = args->grad,
                       .narrow_grad = args->grad_dtype == MOE_BF16,
                       .grad_scale = (float)args->grad_scale,
                       .keep1 = (float)args->beta1,
                       .take1 = (float)(1.0 - args->beta1),
                       .keep2 = (float)args->beta2,
                       .take2 = (float)(1.0 - args->beta2),
                       .rate = (float)(args->lr / correct1),
                       .spread = (float)(1.0 / sqrt(correct2)),
                       .eps = (float)args->eps,
                       .decay = (float)(args->lr * args->weight_decay)};
    moei_parallel(team, (args->n + BLOCK - 1) / BLOCK, update_block, &step);
}

#endif
