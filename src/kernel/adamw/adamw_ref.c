/* adamw_ref.c: the oracle of one AdamW step on one tensor.
 * value, master, m, v, grad [n]; any dtype in f64 arithmetic.
 * Source: Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2.
 */
#include <math.h>

#include "core/real.h"
#include "kernel/kernel_list.h"

enum { BLOCK = 16384 };

static void adamw_block(void *arg, int64_t task, void *scratch) {
    const moe_adamw_args *a = arg;
    (void)scratch;
    moe_dtype wide = moei_wide(a->dtype);
    double correct1 = 1.0 - pow(a->beta1, (double)a->step), correct2 = 1.0 - pow(a->beta2, (double)a->step);
    int64_t end = a->n < (task + 1) * BLOCK ? a->n : (task + 1) * BLOCK;
    for (int64_t i = task * BLOCK; i < end; ++i) {
        double p = a->master ? (double)a->master[i] : moei_real_load(a->dtype, a->value, i);
        double g = moei_real_load(a->grad_dtype, a->grad, i) * a->grad_scale;
        double m = a->beta1 * moei_real_load(wide, a->m, i) + (1.0 - a->beta1) * g;
        double v = a->beta2 * moei_real_load(wide, a->v, i) + (1.0 - a->beta2) * g * g;
        double step = m / correct1 / (sqrt(v / correct2) + a->eps) + a->weight_decay * p;
        moei_real_store(wide, a->m, i, m);
        moei_real_store(wide, a->v, i, v);
        if (a->master) a->master[i] = (float)(p - a->lr * step);
        moei_real_store(a->dtype, a->value, i, p - a->lr * step);
    }
}

void moei_adamw__ref(const moei_team *team, const moe_adamw_args *args) {
    moei_parallel(team, (args->n + BLOCK - 1) / BLOCK, adamw_block, (void *)args);
}
