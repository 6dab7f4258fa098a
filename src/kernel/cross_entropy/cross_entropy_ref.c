/* cross_entropy_ref.c: the oracle of softmax cross-entropy with the gradient in place of the logits.
 * logits [rows, n] with row stride ld, target, row_loss [rows]; f32 or f64 in f64 arithmetic.
 * loss = log(sum exp(x)) - x[target]; dlogits = grad_scale * (softmax(x) - onehot(target)).
 */
#include "kernel/kernel_list.h"
#include "kernel/real.h"

#include <math.h>

static void cross_entropy_row(void *arg, int64_t task, void *scratch) {
    const moe_cross_entropy_args *a = arg;
    (void)scratch;
    int64_t first = task * a->ld;
    int32_t target = a->target[task];
    if (target < 0) {
        moei_put(a->row_loss, a->dtype, task, 0.0);
        for (int64_t i = 0; a->grad_scale != 0.0 && i < a->n; ++i)
            moei_put(a->logits, a->dtype, first + i, 0.0);
        return;
    }
    double max = -INFINITY, sum = 0.0;
    for (int64_t i = 0; i < a->n; ++i) max = fmax(max, moei_get(a->logits, a->dtype, first + i));
    for (int64_t i = 0; i < a->n; ++i) sum += exp(moei_get(a->logits, a->dtype, first + i) - max);
    double loss = log(sum) + max - moei_get(a->logits, a->dtype, first + target);
    moei_put(a->row_loss, a->dtype, task, loss);
    for (int64_t i = 0; a->grad_scale != 0.0 && i < a->n; ++i) {
        double p = exp(moei_get(a->logits, a->dtype, first + i) - max) / sum;
        moei_put(a->logits, a->dtype, first + i, a->grad_scale * (p - (i == target ? 1.0 : 0.0)));
    }
}

void moei_cross_entropy__ref(const moei_team *team, const moe_cross_entropy_args *args) {
    moe_cross_entropy_args a = *args;
    moei_parallel(team, a.rows, cross_entropy_row, &a);
}
