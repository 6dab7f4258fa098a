/* adamw_ref.c: the oracle of one AdamW step on one tensor.
 * value, m, v, grad [n]; f32 or f64 in f64 arithmetic.
 * Source: Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2.
 */
#include "kernel/kernel_list.h"
#include "kernel/real.h"

#include <math.h>

enum { BLOCK = 16384 };

static void adamw_block(void *arg, int64_t task, void *scratch) {
    const moe_adamw_args *a = arg;
    (void)scratch;
    double correct1 = 1.0 - pow(a->beta1, (double)a->step), correct2 = 1.0 - pow(a->beta2, (double)a->step);
    int64_t end = a->n < (task + 1) * BLOCK ? a->n : (task + 1) * BLOCK;
    for (int64_t i = task * BLOCK; i < end; ++i) {
        double p = moei_get(a->value, a->dtype, i), g = moei_get(a->grad, a->dtype, i) * a->grad_scale;
        double m = a->beta1 * moei_get(a->m, a->dtype, i) + (1.0 - a->beta1) * g;
        double v = a->beta2 * moei_get(a->v, a->dtype, i) + (1.0 - a->beta2) * g * g;
        double step = m / correct1 / (sqrt(v / correct2) + a->eps) + a->weight_decay * p;
        moei_put(a->m, a->dtype, i, m);
        moei_put(a->v, a->dtype, i, v);
        moei_put(a->value, a->dtype, i, p - a->lr * step);
    }
}

void moei_adamw__ref(const moei_team *team, const moe_adamw_args *args) {
    moe_adamw_args a = *args;
    moei_parallel(team, (a.n + BLOCK - 1) / BLOCK, adamw_block, &a);
}
