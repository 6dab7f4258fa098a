/* bias_update.c: biases that steer the selection instead of a loss, moved once an optimizer step.
 * count[E] or statistic[E] -> bias[E] of `dtype`, what buffers are kept in.
 * Source: Wang et al. 2024, "Auxiliary-loss-free load balancing", as DeepSeek-V3 uses it; quantile balancing
 * of Megatron core. The step is taken on the true mean; a bias exactly at it stays.
 */
#include "core/real.h"
#include "route/route.h"

static void take_mean_off(moe_dtype dtype, int32_t n, void *bias) {
    double mean = 0;
    for (int32_t e = 0; e < n; ++e) mean += moei_real_load(dtype, bias, e) / n;
    for (int32_t e = 0; e < n; ++e) moei_real_store(dtype, bias, e, moei_real_load(dtype, bias, e) - mean);
}

void moei_selection_bias_update(moe_dtype dtype, int32_t n_experts, const int64_t *count, double rate,
                                bool recenter, void *bias) {
    int64_t total = 0;
    for (int32_t e = 0; e < n_experts; ++e) total += count[e];
    for (int32_t e = 0; e < n_experts; ++e) {
        const int64_t scaled = count[e] * n_experts;
        const int sign = (total > scaled) - (total < scaled);
        moei_real_store(dtype, bias, e, moei_real_load(dtype, bias, e) + rate * sign);
    }
    if (recenter) take_mean_off(dtype, n_experts, bias);
}

void moei_quantile_bias_update(moe_dtype dtype, int32_t n_experts, const double *statistic, double ema,
                               void *bias) {
    for (int32_t e = 0; e < n_experts; ++e)
        moei_real_store(dtype, bias, e, ema * moei_real_load(dtype, bias, e) + (1 - ema) * statistic[e]);
    take_mean_off(dtype, n_experts, bias);
}
