/* gather_sum_ref.c: weighted sum of the rows of every token, plainly.
 * out[t, :] = sum over k of weight[t,k] * rows[row_of[t,k], :], k ascending; one task a token.
 */
#include "core/real.h"
#include "kernel/kernel_list.h"

static void token_task(void *arg, int64_t t, void *scratch) {
    const moe_gather_sum_args *args = arg;
    (void)scratch;
    for (int64_t j = 0; j < args->n; ++j) {
        int64_t at = t * args->ld_out + j;
        double sum = args->accumulate ? moei_real_load(args->dtype, args->out, at) : 0;
        for (int64_t slot = t * args->top_k; slot < (t + 1) * args->top_k; ++slot) {
            int64_t r = args->row_of[slot];
            if (r < 0) continue;
            double w = args->weight ? moei_real_load(moei_wide(args->dtype), args->weight, slot) : 1;
            sum += w * moei_real_load(args->dtype, args->rows, r * args->ld_rows + j);
        }
        moei_real_store(args->dtype, args->out, at, sum);
    }
}

void moei_gather_sum__ref(const moei_team *team, const moe_gather_sum_args *args) {
    moei_parallel(team, args->n_tokens, token_task, (void *)args);
}
