/* gate_init.c: how the gate's weights are drawn.
 * weight[E,d]: N(0, std^2), and for sigma-MoE's scheme rows of equal length with the numbers' spread kept.
 * Source: sigma-MoE's "renorm keeping std" of the expert selection matrix (Csordas et al. 2023).
 */
#include "core/desc.h"
#include "core/option.h"
#include "core/real.h"
#include "route/route.h"

#include <math.h>

static moei_gate_init init_of(const moe_layer_desc *desc) {
    return (moei_gate_init)moei_option_place(desc->router_init, moei_router_inits);
}

double moei_gate_init_std(const moe_layer_desc *desc) {
    switch (init_of(desc)) {
    case MOEI_INIT_NORMAL_UNIT:
        return 1;
    case MOEI_INIT_ZEROS:
        return 0;
    case MOEI_INIT_FAN_IN_RENORM:
        return moei_number(desc->init_std_scale, 0) / sqrt((double)desc->d_model);
    case MOEI_INIT_NORMAL:
        break;
    }
    return moei_number(desc->init_std, 0);
}

/* Unbiased standard deviation; 0 for a single number. */
static double deviation(moe_dtype dtype, const void *x, int64_t n) {
    double mean = 0, squares = 0;
    for (int64_t i = 0; i < n; ++i) mean += moei_real_load(dtype, x, i) / (double)n;
    for (int64_t i = 0; i < n; ++i) squares += pow(moei_real_load(dtype, x, i) - mean, 2);
    return n > 1 ? sqrt(squares / (double)(n - 1)) : 0;
}

static void scale_numbers(moe_dtype dtype, void *x, int64_t first, int64_t n, double factor) {
    for (int64_t i = first; i < first + n; ++i)
        moei_real_store(dtype, x, i, factor * moei_real_load(dtype, x, i));
}

void moei_gate_renorm(const moe_layer_desc *desc, void *weight) {
    if (init_of(desc) != MOEI_INIT_FAN_IN_RENORM) return;
    const int64_t E = desc->num_experts, d = desc->d_model;
    const double before = deviation(desc->dtype, weight, E * d);
    for (int64_t e = 0; e < E; ++e) {
        double squares = 0;
        for (int64_t i = e * d; i < (e + 1) * d; ++i)
            squares += pow(moei_real_load(desc->dtype, weight, i), 2);
        if (squares > 0) scale_numbers(desc->dtype, weight, e * d, d, 1 / sqrt(squares));
    }
    const double after = deviation(desc->dtype, weight, E * d);
    if (after > 0) scale_numbers(desc->dtype, weight, 0, E * d, before / after);
}
