/* revive.c: copies one expert over another in everything that has a row an expert.
 * value, m, v [E, ...]: row `dead` <- row `from` + N(0, (0.01 rms)^2), moments 0.
 * Source: the noise parts the twins, as upcycling does with its copies (He et al. 2024).
 */
#include "train/revive.h"

#include <moekit/op.h>

#include "core/real.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const double noise = 0.01; /* of the root mean square of what is copied */

static bool has_row_an_expert(const moe_param *param, const char *prefix, int32_t n_experts) {
    const size_t length = strlen(prefix);
    if (strncmp(param->name, prefix, length) != 0 || param->dim[0] != n_experts) return false;
    const char *name = param->name + length;
    return strncmp(name, "experts.", 8) == 0 || strncmp(name, "gate.", 5) == 0;
}

static void copy_row(const moelm_revival *r, int32_t index, const moelm_slot *slot) {
    const moe_param *param = &slot->param;
    const int64_t n = param->dim[1] * param->dim[2];
    const moe_dtype dtype = slot->master ? MOE_F32 : param->dtype;
    void *all = slot->master ? slot->master : param->value, *to = moei_real_at(dtype, all, r->dead * n);
    const void *from = moei_real_at(dtype, all, r->from * n);
    double square = 0;
    for (int64_t i = 0; i < n; ++i) square += moei_real_load(dtype, from, i) * moei_real_load(dtype, from, i);
    /* one stream for each parameter, expert and step */
    const uint64_t stream = ((uint64_t)r->step << 32) + (uint64_t)index * (uint64_t)r->n_experts;
    const double std = param->n_dim > 1 ? noise * sqrt(square / (double)n) : 0;
    moe_random_normal(r->seed, MOE_DRAW_REVIVE, (uint32_t)r->layer, stream + (uint64_t)r->dead, dtype, to, n,
                      std);
    for (int64_t i = 0; i < n; ++i)
        moei_real_store(dtype, to, i, moei_real_load(dtype, to, i) + moei_real_load(dtype, from, i));
    moelm_optimizer_round(slot);
    if (!slot->m) return;
    memset((float *)slot->m + r->dead * n, 0, (size_t)n * sizeof(float));
    memset((float *)slot->v + r->dead * n, 0, (size_t)n * sizeof(float));
}

void moelm_revive(const moelm_optimizer *optimizer, const moelm_revival *revival) {
    char prefix[48];
    snprintf(prefix, sizeof prefix, "blocks.%d.ffn.", revival->layer);
    for (int32_t i = 0; i < optimizer->count; ++i)
        if (has_row_an_expert(&optimizer->slot[i].param, prefix, revival->n_experts))
            copy_row(revival, i, &optimizer->slot[i]);
}
