/* rmsnorm_ref.c: the oracle of RMS normalisation, forward and backward.
 * x, y, dy, dx [rows, n], each with its own distance between rows, gain, dgain [n], inv_rms [rows]; any dtype
 * in f64 arithmetic.
 * Source: Zhang & Sennrich 2019, "Root Mean Square Layer Normalization", eq. 4.
 */
#include <math.h>

#include "core/real.h"
#include "kernel/kernel_list.h"
#include "kernel/rmsnorm/rmsnorm_rows.h"

enum { ROW_BLOCK = 16, COLUMN_BLOCK = 64 };

static void forward_rows(void *arg, int64_t first, int64_t end, void *scratch) {
    const moe_rmsnorm_args *a = arg;
    (void)scratch;
    for (int64_t r = first; r < end; ++r) {
        const int64_t at = norm_at(a, a->ldx, r), to = norm_at(a, a->ldy, r);
        double sum = 0.0;
        for (int64_t i = 0; i < a->n; ++i) {
            double x = moei_real_load(a->dtype, a->x, at + i);
            sum += x * x;
        }
        double inv = 1.0 / sqrt(sum / (double)a->n + (double)a->eps);
        for (int64_t i = 0; i < a->n; ++i) {
            double x = moei_real_load(a->dtype, a->x, at + i);
            moei_real_store(a->dtype, a->y, to + i, x * inv * moei_real_load(a->dtype, a->gain, i));
        }
        if (a->inv_rms) moei_real_store(moei_wide(a->dtype), a->inv_rms, r, inv);
    }
}

void moei_rmsnorm__ref(const moei_team *team, const moe_rmsnorm_args *args) {
    moei_parallel_blocks(team, norm_rows(args), ROW_BLOCK, forward_rows, (void *)args);
}

/* dx = inv * (gain * dy - x * inv^2 * mean(gain * dy * x)) */
static void backward_rows(void *arg, int64_t first, int64_t end, void *scratch) {
    const moe_rmsnorm_args *a = arg;
    (void)scratch;
    for (int64_t r = first; r < end; ++r) {
        const int64_t at = norm_at(a, a->ldx, r), to = norm_at(a, a->ldy, r);
        double inv = moei_real_load(moei_wide(a->dtype), a->inv_rms, r), dot = 0.0;
        for (int64_t i = 0; i < a->n; ++i)
            dot += moei_real_load(a->dtype, a->gain, i) * moei_real_load(a->dtype, a->dy, to + i) *
                   moei_real_load(a->dtype, a->x, at + i);
        double pull = inv * inv * dot / (double)a->n;
        for (int64_t i = 0; i < a->n; ++i) {
            double scaled = moei_real_load(a->dtype, a->gain, i) * moei_real_load(a->dtype, a->dy, to + i);
            double dx = inv * (scaled - pull * moei_real_load(a->dtype, a->x, at + i));
            if (a->accumulate) dx += moei_real_load(a->dtype, a->dx, to + i);
            moei_real_store(a->dtype, a->dx, to + i, dx);
        }
    }
}

/* A task owns columns and runs down all rows, so the sum has one order and needs no partials. */
static void backward_columns(void *arg, int64_t first, int64_t end, void *scratch) {
    const moe_rmsnorm_args *a = arg;
    (void)scratch;
    const int64_t count = end - first;
    double sum[COLUMN_BLOCK] = {0};
    moe_dtype wide = moei_wide(a->dtype);
    for (int64_t r = 0; r < norm_rows(a); ++r) {
        const int64_t at = norm_at(a, a->ldx, r) + first, to = norm_at(a, a->ldy, r) + first;
        double inv = moei_real_load(wide, a->inv_rms, r);
        for (int64_t i = 0; i < count; ++i)
            sum[i] += moei_real_load(a->dtype, a->dy, to + i) * moei_real_load(a->dtype, a->x, at + i) * inv;
    }
    for (int64_t i = 0; i < count; ++i)
        moei_real_store(wide, a->dgain, first + i, moei_real_load(wide, a->dgain, first + i) + sum[i]);
}

/* dgain first: dx may overwrite dy. */
void moei_rmsnorm_backward__ref(const moei_team *team, const moe_rmsnorm_args *args) {
    moei_parallel_blocks(team, args->n, COLUMN_BLOCK, backward_columns, (void *)args);
    moei_parallel_blocks(team, norm_rows(args), ROW_BLOCK, backward_rows, (void *)args);
}
