/* cross_entropy_ref.c: the oracle of softmax cross-entropy with the gradient in place of the logits.
 * logits [rows, n] with row stride ld, target, row_loss [rows]; any dtype in f64 arithmetic.
 * loss = log(sum exp(x)) - x[target]; dlogits = grad_scale * (softmax(x) - onehot(target)).
 */
#include <math.h>

#include "core/real.h"
#include "kernel/kernel_list.h"

static void cross_entropy_row(void *arg, int64_t task, void *scratch) {
    const moe_cross_entropy_args *a = arg;
    (void)scratch;
    int64_t first = task * a->ld;
    int32_t target = a->target[task];
    if (target < 0) {
        moei_real_store(moei_wide(a->dtype), a->row_loss, task, 0.0);
        for (int64_t i = 0; a->grad_scale != 0.0 && i < a->n; ++i)
            moei_real_store(a->dtype, a->logits, first + i, 0.0);
        return;
    }
    double max = -INFINITY, sum = 0.0;
    for (int64_t i = 0; i < a->n; ++i) max = fmax(max, moei_real_load(a->dtype, a->logits, first + i));
    for (int64_t i = 0; i < a->n; ++i) sum += exp(moei_real_load(a->dtype, a->logits, first + i) - max);
    double loss = log(sum) + max - moei_real_load(a->dtype, a->logits, first + target);
    moei_real_store(moei_wide(a->dtype), a->row_loss, task, loss);
    for (int64_t i = 0; a->grad_scale != 0.0 && i < a->n; ++i) {
        double p = exp(moei_real_load(a->dtype, a->logits, first + i) - max) / sum;
        moei_real_store(a->dtype, a->logits, first + i, a->grad_scale * (p - (i == target ? 1.0 : 0.0)));
    }
}

void moei_cross_entropy__ref(const moei_team *team, const moe_cross_entropy_args *args) {
    moei_parallel(team, args->rows, cross_entropy_row, (void *)args);
}
