/* colsum_simd.h: weighted sums of the columns of every group in vectors, f32 or bf16 summed in f64.
 * out[g, j] = sum of row_weight[r] * a[a_row[r], j], r ascending; a task is a strip of columns of a group.
 * Formula: moekit/op.h.
 */
#include "kernel/kernel_list.h"

enum { STRIP = 2, COLUMNS = STRIP * VF_N };

static void strip_task(void *arg, int64_t task, void *scratch) {
    const moe_colsum_args *args = arg;
    int64_t strips = moei_ceil_div(args->n, COLUMNS), g = task / strips, j = task % strips * COLUMNS;
    int64_t n = moei_min(COLUMNS, args->n - j);
    vd low[STRIP], high[STRIP];
    (void)scratch;
    for (int v = 0; v < STRIP; ++v) low[v] = high[v] = vd_zero();
    for (int64_t r = args->offset[g]; r < args->offset[g + 1]; ++r) {
        int64_t a = (args->a_row ? args->a_row[r] : r) * args->lda + j;
        vd w = vd_set1(args->row_weight ? (double)((const float *)args->row_weight)[r] : 1.0);
        for (int v = 0; v < STRIP && v * VF_N < n; ++v) {
            vf x = vf_get(args->dtype == MOE_BF16, args->a, a + v * VF_N, n - v * VF_N);
            low[v] = vd_fma(w, vd_low(x), low[v]);
            high[v] = vd_fma(w, vd_high(x), high[v]);
        }
    }
    float *out = (float *)args->out + g * args->n + j;
    for (int v = 0; v < STRIP && v * VF_N < n; ++v) {
        if (args->accumulate) {
            vf old = vf_load_upto(out + v * VF_N, n - v * VF_N);
            low[v] = vd_add(vd_low(old), low[v]);
            high[v] = vd_add(vd_high(old), high[v]);
        }
        vf_store_upto(out + v * VF_N, vf_from_vd(low[v], high[v]), n - v * VF_N);
    }
}

static void colsum_simd(const moei_team *team, const moe_colsum_args *args) {
    moei_parallel(team, args->n_groups * moei_ceil_div(args->n, COLUMNS), strip_task, (void *)args);
}
