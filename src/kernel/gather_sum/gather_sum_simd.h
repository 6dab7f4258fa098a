/* gather_sum_simd.h: weighted sum of the rows of every token in vectors, f32 or bf16, summed in f32.
 * out[t, :] = sum over k of weight[t,k] * rows[row_of[t,k], :], k ascending; a task is a block of tokens.
 * Formula: moekit/op.h. Memory-bound: a row is read once, in strips that stay in registers over k.
 */
#include "kernel/kernel_list.h"

enum { TOKENS = 32, STRIP = 4 };

/* Columns [j, j+n) of one token; whole vectors but for the last. */
MOEI_INLINE void sum_strip(const moe_gather_sum_args *args, const bool bf16, int64_t t, int64_t j,
                           int64_t n) {
    int64_t out = t * args->ld_out + j;
    vf acc[STRIP];
    for (int v = 0; v < STRIP; ++v) {
        int64_t left = n - v * VF_N;
        acc[v] = args->accumulate && left > 0 ? vf_get(bf16, args->out, out + v * VF_N, left) : vf_zero();
    }
    for (int64_t slot = t * args->top_k; slot < (t + 1) * args->top_k; ++slot) {
        if (args->row_of[slot] < 0) continue;
        int64_t row = args->row_of[slot] * args->ld_rows + j;
        vf w = vf_set1(args->weight ? ((const float *)args->weight)[slot] : 1.0f);
        for (int v = 0; v < STRIP && v * VF_N < n; ++v)
            acc[v] = vf_fma(w, vf_get(bf16, args->rows, row + v * VF_N, n - v * VF_N), acc[v]);
    }
    for (int v = 0; v < STRIP && v * VF_N < n; ++v)
        vf_put(bf16, args->out, out + v * VF_N, acc[v], n - v * VF_N);
}

static void tokens_task(void *arg, int64_t task, void *scratch) {
    const moe_gather_sum_args *args = arg;
    int64_t end = moei_min((task + 1) * TOKENS, args->n_tokens);
    (void)scratch;
    for (int64_t t = task * TOKENS; t < end; ++t) {
        for (int64_t j = 0; j < args->n; j += STRIP * VF_N) {
            int64_t n = moei_min(STRIP * VF_N, args->n - j);
            if (args->dtype == MOE_BF16)
                sum_strip(args, true, t, j, n);
            else
                sum_strip(args, false, t, j, n);
        }
    }
}

static void gather_sum_simd(const moei_team *team, const moe_gather_sum_args *args) {
    moei_parallel(team, moei_ceil_div(args->n_tokens, TOKENS), tokens_task, (void *)args);
}
