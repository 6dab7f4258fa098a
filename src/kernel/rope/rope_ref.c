/* rope_ref.c: the oracle of the rotary position embedding, in place, and of its inverse.
 * x [rows, heads, head_dim] with row stride ldx, position [rows]; f32 or f64 in f64 arithmetic.
 * Source: Su et al. 2021, "RoFormer", eq. 34, with the halves layout of GPT-NeoX.
 */
#include "kernel/kernel_list.h"
#include "kernel/real.h"

#include <math.h>

static void turn_row(void *arg, int64_t task, void *scratch) {
    const moe_rope_args *a = arg;
    (void)scratch;
    int32_t half = a->head_dim / 2;
    for (int32_t i = 0; i < half; ++i) {
        double angle = (double)a->position[task] * pow((double)a->base, -2.0 * i / a->head_dim);
        double c = cos(angle), s = a->inverse ? -sin(angle) : sin(angle);
        for (int32_t h = 0; h < a->heads; ++h) {
            int64_t lo = task * a->ldx + (int64_t)h * a->head_dim + i, hi = lo + half;
            double x = moei_get(a->x, a->dtype, lo), y = moei_get(a->x, a->dtype, hi);
            moei_put(a->x, a->dtype, lo, x * c - y * s);
            moei_put(a->x, a->dtype, hi, y * c + x * s);
        }
    }
}

void moei_rope__ref(const moei_team *team, const moe_rope_args *args) {
    moe_rope_args a = *args;
    moei_parallel(team, a.rows, turn_row, &a);
}
