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
MOEI_INLINE float row_max(const bool bf16, const void *x, int64_t at, int64_t n) {
    vf max[2] = {vf_set1(-INFINITY), vf_set1(-INFINITY)};
    int64_t i = 0;
    for (; i + 2 * VF_N <= n; i += 2 * VF_N) {
        max[0] = vf_max(vf_get(bf16, x, at + i, VF_N), max[0]);
        max[1] = vf_max(vf_get(bf16, x, at + i + VF_N, VF_N), max[1]);
    }
    for (; i + VF_N <= n; i += VF_N) max[0] = vf_max(vf_get(bf16, x, at + i, VF_N), max[0]);
    vf last = i < n ? vf_get(bf16, x, at + i, n - i) : vf_set1(-INFINITY);
    max[0] = vf_max(vf_select(vm_first(i < n ? n - i : 0), last, vf_set1(-INFINITY)), max[0]);
    return vf_max_lane(vf_max(max[0], max[1]));
}

/* sum of exp(x - max). f32 with `keep`: x becomes the terms. */
MOEI_INLINE double row_exp(const bool bf16, void *x, int64_t at, int64_t n, float max, bool keep) {
    vf shift = vf_set1(max);
    double sum = 0.0;
    for (int64_t first = 0; first < n; first += CHUNK) {
        int64_t i = first, end = n - first < CHUNK ? n : first + CHUNK;
        vf part = vf_zero();
        for (; i + VF_N <= end; i += VF_N) {
            vf e = vf_exp(vf_sub(vf_get(bf16, x, at + i, VF_N), shift));
            if (!bf16 && keep) vf_put(false, x, at + i, e, VF_N);
            part = vf_add(part, e);
        }
        sum += (double)vf_sum(part);
        if (i < end) {
            float tail[VF_N];
            vf e = vf_exp(vf_sub(vf_get(bf16, x, at + i, end - i), shift));
            if (!bf16 && keep) vf_put(false, x, at + i, e, end - i);
            vf_store(tail, e);
            for (int64_t j = 0; j < end - i; ++j) sum += (double)tail[j];
        }
    }
    return sum;
}

/* x = factor * exp(x - max), which f32 kept; bf16 computes it again, as rounding twice would show. */
MOEI_INLINE void row_grad(const bool bf16, void *x, int64_t at, int64_t n, float max, float factor) {
    vf shift = vf_set1(max), f = vf_set1(factor);
    for (int64_t i = 0; i < n; i += VF_N) {
        vf e = vf_get(bf16, x, at + i, n - i);
        if (bf16) e = vf_exp(vf_sub(e, shift));
        vf_put(bf16, x, at + i, vf_mul(e, f), n - i);
    }
}

MOEI_INLINE float one_row(const bool bf16, void *x, int64_t at, int64_t n, int32_t target,
                          double grad_scale) {
    bool grad = grad_scale != 0.0;
    if (target < 0) {
        for (int64_t i = 0; grad && i < n; i += VF_N) vf_put(bf16, x, at + i, vf_zero(), n - i);
        return 0.0F;
    }
    float max = row_max(bf16, x, at, n), hit[VF_N];
    vf logit = vf_get(bf16, x, at + target, 1);
    double sum = row_exp(bf16, x, at, n, max, grad);
    vf_store(hit, logit);
    float loss = (float)(log(sum) + (double)max - (double)hit[0]);
    if (!grad) return loss;
    row_grad(bf16, x, at, n, max, (float)(grad_scale / sum));
    vf_store(hit, vf_exp(vf_sub(logit, vf_set1(max))));
    vf_put(bf16, x, at + target, vf_set1((float)(grad_scale * ((double)hit[0] / sum - 1.0))), 1);
    return loss;
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
            a->dtype == MOE_BF16 ? one_row(true, a->logits, r * a->ld, a->n, a->target[r], a->grad_scale)
                                 : one_row(false, a->logits, r * a->ld, a->n, a->target[r], a->grad_scale);
}

static inline void cross_entropy_rows(const moei_team *team, const moe_cross_entropy_args *args) {
    int64_t step = rows_per_task(args->n);
    moei_parallel(team, (args->rows + step - 1) / step, loss_rows, (void *)args);
}

#endif
