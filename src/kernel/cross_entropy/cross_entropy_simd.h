/* cross_entropy_simd.h: softmax cross-entropy in vectors, gradient in place of the logits, f32 or bf16.
 * logits [rows, n] with row stride ld, target, row_loss [rows]; n from a few to some hundred thousand.
 * loss = log(sum exp(x)) - x[target]. Include after simd_avx2.h or simd_avx512.h.
 */
#ifndef MOEI_CROSS_ENTROPY_SIMD_H
#define MOEI_CROSS_ENTROPY_SIMD_H

#include <math.h>

#include "kernel/kernel_list.h"

/* A task takes rows worth about TASK_COLUMNS columns. A sum is carried over in f64 every CHUNK. */
enum { TASK_COLUMNS = 8192, CHUNK = 1024 };

/* NaN logits do not show here, but in the sum. */
static float row_max(const float *x, int64_t n) {
    vf m0 = vf_set1(-INFINITY), m1 = m0;
    int64_t i = 0;
    for (; i + 2 * VF_N <= n; i += 2 * VF_N) {
        m0 = vf_max(vf_load(x + i), m0);
        m1 = vf_max(vf_load(x + i + VF_N), m1);
    }
    float max = vf_max_lane(vf_max(m0, m1));
    for (; i < n; ++i) max = x[i] > max ? x[i] : max;
    return max;
}

/* sum of exp(x - max); out[n] gets the terms unless it is NULL. */
static double row_exp(const float *x, float *out, int64_t n, float max) {
    vf shift = vf_set1(max);
    double sum = 0.0;
    for (int64_t first = 0; first < n; first += CHUNK) {
        int64_t i = first, end = n - first < CHUNK ? n : first + CHUNK;
        vf part = vf_zero();
        for (; i + VF_N <= end; i += VF_N) {
            vf e = vf_exp(vf_sub(vf_load(x + i), shift));
            if (out) vf_store(out + i, e);
            part = vf_add(part, e);
        }
        sum += (double)vf_sum(part);
        if (i < end) {
            float tail[VF_N];
            vf e = vf_exp(vf_sub(vf_load_n(x + i, end - i), shift));
            if (out) vf_store_n(out + i, e, end - i);
            vf_store(tail, e);
            for (int64_t j = 0; j < end - i; ++j) sum += (double)tail[j];
        }
    }
    return sum;
}

static void row_scale(float *x, int64_t n, float factor) {
    vf f = vf_set1(factor);
    int64_t i = 0;
    for (; i + VF_N <= n; i += VF_N) vf_store(x + i, vf_mul(vf_load(x + i), f));
    for (; i < n; ++i) x[i] *= factor;
}

static float one_row(float *x, int64_t n, int32_t target, double grad_scale) {
    bool grad = grad_scale != 0.0;
    if (target < 0) {
        for (int64_t i = 0; grad && i < n; ++i) x[i] = 0.0F;
        return 0.0F;
    }
    float max = row_max(x, n), hit = x[target];
    double sum = row_exp(x, grad ? x : NULL, n, max);
    if (grad) {
        row_scale(x, n, (float)(grad_scale / sum));
        x[target] -= (float)grad_scale;
    }
    return (float)(log(sum) + (double)max - (double)hit);
}

static int64_t rows_per_task(int64_t n) {
    return n < TASK_COLUMNS ? TASK_COLUMNS / n : 1;
}

static void loss_rows(void *arg, int64_t task, void *scratch) {
    const moe_cross_entropy_args *a = arg;
    (void)scratch;
    int64_t step = rows_per_task(a->n), end = (task + 1) * step < a->rows ? (task + 1) * step : a->rows;
    for (int64_t r = task * step; r < end; ++r)
        ((float *)a->row_loss)[r] =
            one_row((float *)a->logits + r * a->ld, a->n, a->target[r], a->grad_scale);
}

static inline void cross_entropy_rows(const moei_team *team, const moe_cross_entropy_args *args) {
    int64_t step = rows_per_task(args->n);
    moei_parallel(team, (args->rows + step - 1) / step, loss_rows, (void *)args);
}

#endif
