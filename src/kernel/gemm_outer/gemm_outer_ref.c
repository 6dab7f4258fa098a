/* gemm_outer_ref.c: grouped product over a ragged sum, plainly.
 * C_g[m, n] = sum of A[a_row[r], m] * B[b_row[r], n] over the rows r of group g; one task a row of C_g.
 * Formula: moekit/op.h.
 */
#include "core/real.h"
#include "kernel/kernel_list.h"

static double product(const moe_gemm_outer_args *args, int32_t g, int64_t i, int64_t j) {
    double sum = 0;
    for (int64_t r = args->offset[g]; r < args->offset[g + 1]; ++r) {
        int64_t a = (args->a_row ? args->a_row[r] : r) * args->lda + i;
        int64_t b = (args->b_row ? args->b_row[r] : r) * args->ldb + j;
        sum += moei_real_load(args->dtype, args->a, a) * moei_real_load(args->dtype, args->b, b);
    }
    return sum;
}

static void row_task(void *arg, int64_t task, void *scratch) {
    const moe_gemm_outer_args *args = arg;
    int32_t g = (int32_t)(task / args->m);
    int64_t i = task % args->m;
    moe_dtype dtype = args->c_wide ? moei_wide(args->dtype) : args->dtype;
    (void)scratch;
    for (int64_t j = 0; j < args->n; ++j) {
        int64_t at = g * args->c_group + i * args->ldc + j;
        double old = args->accumulate ? moei_real_load(dtype, args->c, at) : 0;
        moei_real_store(dtype, args->c, at, old + product(args, g, i, j));
    }
}

void moei_gemm_outer__ref(const moei_team *team, const moe_gemm_outer_args *args) {
    moei_parallel(team, args->n_groups * args->m, row_task, (void *)args);
}
