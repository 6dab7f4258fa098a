/* colsum_ref.c: weighted sums of the columns of every group, plainly.
 * out[g, j] = sum of row_weight[r] * a[a_row[r], j] over the rows r of group g; one task an element.
 */
#include "core/real.h"
#include "kernel/kernel_list.h"

static void element_task(void *arg, int64_t task, void *scratch) {
    const moe_colsum_args *args = arg;
    int64_t g = task / args->n, j = task % args->n;
    double sum = 0;
    moe_dtype wide = moei_wide(args->dtype);
    (void)scratch;
    for (int64_t r = args->offset[g]; r < args->offset[g + 1]; ++r) {
        double w = args->row_weight ? moei_real_load(wide, args->row_weight, r) : 1;
        int64_t row = args->a_row ? args->a_row[r] : r;
        sum += w * moei_real_load(args->dtype, args->a, row * args->lda + j);
    }
    double old = args->accumulate ? moei_real_load(wide, args->out, task) : 0;
    moei_real_store(wide, args->out, task, old + sum);
}

void moei_colsum__ref(const moei_team *team, const moe_colsum_args *args) {
    moei_parallel(team, args->n_groups * args->n, element_task, (void *)args);
}
