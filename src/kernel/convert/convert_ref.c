/* convert_ref.c: numbers of one type into another, or added to them, plainly.
 * to[rows,n] (+)= from[rows,n]; one task a row. bf16 is what routers convert for every token, so its two ways
 * are plain loops, for the compiler to make vectors of.
 */
#include "core/real.h"
#include "kernel/kernel_list.h"

static void widen_bf16(const uint16_t *from, float *to, int64_t n) {
    for (int64_t j = 0; j < n; ++j) to[j] = moei_bf16_value(from[j]);
}

static void add_to_bf16(const float *from, uint16_t *to, int64_t n) {
    for (int64_t j = 0; j < n; ++j) to[j] = moei_bf16_round(moei_bf16_value(to[j]) + from[j]);
}

static void row_task(void *arg, int64_t r, void *scratch) {
    const moei_convert_args *args = arg;
    const moe_dtype from = args->from_dtype, to = args->dtype;
    const int64_t at = r * args->ld_from, out = r * args->ld_to;
    (void)scratch;
    if (from == MOE_BF16 && to == MOE_F32 && !args->accumulate) {
        widen_bf16((const uint16_t *)args->from + at, (float *)args->to + out, args->n);
        return;
    }
    if (from == MOE_F32 && to == MOE_BF16 && args->accumulate) {
        add_to_bf16((const float *)args->from + at, (uint16_t *)args->to + out, args->n);
        return;
    }
    for (int64_t j = 0; j < args->n; ++j) {
        const double before = args->accumulate ? moei_real_load(to, args->to, out + j) : 0;
        moei_real_store(to, args->to, out + j, before + moei_real_load(from, args->from, at + j));
    }
}

void moei_convert__ref(const moei_team *team, const moei_convert_args *args) {
    moei_parallel(team, args->rows, row_task, (void *)args);
}
