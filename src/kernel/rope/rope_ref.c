/* rope_ref.c: the oracle of the rotary position embedding, in place, and of its inverse.
 * x [rows, heads, head_dim] with row stride ldx, position [rows]; any dtype in f64 arithmetic.
 * Source: Su et al. 2021, "RoFormer", eq. 34, with the halves layout of GPT-NeoX.
 */
#include <math.h>

#include "core/real.h"
#include "kernel/kernel_list.h"

static void turn_row(void *arg, int64_t task, void *scratch) {
    const moe_rope_args *a = arg;
    (void)scratch;
    int32_t half = a->head_dim / 2;
    for (int32_t i = 0; i < half; ++i) {
        double angle = (double)a->position[task] * pow((double)a->base, -2.0 * i / a->head_dim);
        double c = cos(angle), s = a->inverse ? -sin(angle) : sin(angle);
        for (int32_t h = 0; h < a->heads; ++h) {
            int64_t lo = task * a->ldx + (int64_t)h * a->head_dim + i, hi = lo + half;
            double x = moei_real_load(a->dtype, a->x, lo), y = moei_real_load(a->dtype, a->x, hi);
            moei_real_store(a->dtype, a->x, lo, x * c - y * s);
            moei_real_store(a->dtype, a->x, hi, y * c + x * s);
        }
    }
}

void moei_rope__ref(const moei_team *team, const moe_rope_args *args) {
    moei_parallel(team, args->rows, turn_row, (void *)args);
}
