/* rmsnorm_simd.h: RMS normalisation in vectors, forward and backward, f32 or bf16.
 * x, y, dy, dx [rows, n], gain, dgain [n], inv_rms [rows].
 * Source: Zhang & Sennrich 2019, eq. 4. Include after simd_avx2.h or simd_avx512.h.
 */
#ifndef MOEI_RMSNORM_SIMD_H
#define MOEI_RMSNORM_SIMD_H

#include <math.h>

#include "kernel/kernel_list.h"

/* A column task reads whole cache lines; its sums are carried over in f64 every ROW_CHUNK rows. */
enum { ROW_BLOCK = 16, COLUMN_VECS = 4, COLUMN_BLOCK = COLUMN_VECS * VF_N, ROW_CHUNK = 128 };

/* Four sums side by side hide the latency of the add. */
MOEI_INLINE float row_square_sum(const bool bf16, const void *x, int64_t at, int64_t n) {
    vf sum[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
    int64_t i = 0;
    for (; i + 4 * VF_N <= n; i += 4 * VF_N) {
        for (int v = 0; v < 4; ++v) {
            vf a = vf_get(bf16, x, at + i + v * VF_N, VF_N);
            sum[v] = vf_fma(a, a, sum[v]);
        }
    }
    for (; i < n; i += VF_N) {
        vf a = vf_get(bf16, x, at + i, n - i);
        sum[i + VF_N <= n ? 0 : 1] = vf_fma(a, a, sum[i + VF_N <= n ? 0 : 1]);
    }
    return vf_sum(vf_add(vf_add(sum[0], sum[1]), vf_add(sum[2], sum[3])));
}

MOEI_INLINE void forward_row(const bool bf16, const moe_rmsnorm_args *a, int64_t r) {
    int64_t n = a->n, at = r * n;
    float inv = (float)(1.0 / sqrt((double)row_square_sum(bf16, a->x, at, n) / (double)n + (double)a->eps));
    vf scale = vf_set1(inv);
    for (int64_t i = 0; i < n; i += VF_N) {
        vf normed = vf_mul(vf_get(bf16, a->x, at + i, n - i), scale);
        vf_put(bf16, a->y, at + i, vf_mul(normed, vf_get(bf16, a->gain, i, n - i)), n - i);
    }
    if (a->inv_rms) ((float *)a->inv_rms)[r] = inv;
}

static void forward_rows(void *arg, int64_t task, void *scratch) {
    const moe_rmsnorm_args *a = arg;
    (void)scratch;
    int64_t end = moei_min((task + 1) * ROW_BLOCK, a->rows);
    for (int64_t r = task * ROW_BLOCK; r < end; ++r) {
        if (a->dtype == MOE_BF16)
            forward_row(true, a, r);
        else
            forward_row(false, a, r);
    }
}

/* sum of gain * dy * x */
MOEI_INLINE float row_dot(const bool bf16, const moe_rmsnorm_args *a, int64_t at) {
    vf sum[2] = {vf_zero(), vf_zero()};
    int64_t n = a->n;
    for (int64_t i = 0; i < n; i += VF_N) {
        int64_t v = i / VF_N % 2;
        vf scaled = vf_mul(vf_get(bf16, a->gain, i, n - i), vf_get(bf16, a->dy, at + i, n - i));
        sum[v] = vf_fma(scaled, vf_get(bf16, a->x, at + i, n - i), sum[v]);
    }
    return vf_sum(vf_add(sum[0], sum[1]));
}

/* dx = inv * (gain * dy - x * pull), pull = inv^2 * mean(gain * dy * x) */
MOEI_INLINE void backward_row(const bool bf16, const moe_rmsnorm_args *a, int64_t r) {
    int64_t n = a->n, at = r * n;
    float inv = ((const float *)a->inv_rms)[r];
    vf scale = vf_set1(inv), pull = vf_set1(inv * inv * row_dot(bf16, a, at) / (float)n);
    for (int64_t i = 0; i < n; i += VF_N) {
        int64_t left = n - i;
        vf scaled = vf_mul(vf_get(bf16, a->gain, i, left), vf_get(bf16, a->dy, at + i, left));
        vf g = vf_fnma(vf_get(bf16, a->x, at + i, left), pull, scaled);
        vf old = a->accumulate ? vf_get(bf16, a->dx, at + i, left) : vf_zero();
        vf_put(bf16, a->dx, at + i, vf_fma(g, scale, old), left);
    }
}

static void backward_rows(void *arg, int64_t task, void *scratch) {
    const moe_rmsnorm_args *a = arg;
    (void)scratch;
    int64_t end = moei_min((task + 1) * ROW_BLOCK, a->rows);
    for (int64_t r = task * ROW_BLOCK; r < end; ++r) {
        if (a->dtype == MOE_BF16)
            backward_row(true, a, r);
        else
            backward_row(false, a, r);
    }
}

/* Adds inv * dy * x of rows first .. end-1 in one vector of columns; n <= VF_N of them exist. */
MOEI_INLINE vf column_sum(const bool bf16, const moe_rmsnorm_args *a, int64_t first, int64_t end,
                          int64_t column, int64_t n) {
    const float *inv = a->inv_rms;
    vf sum = vf_zero();
    for (int64_t r = first; r < end; ++r) {
        vf normed = vf_mul(vf_get(bf16, a->x, r * a->n + column, n), vf_set1(inv[r]));
        sum = vf_fma(normed, vf_get(bf16, a->dy, r * a->n + column, n), sum);
    }
    return sum;
}

/* A task owns columns and runs down all rows, so the sum has one order and needs no partials. */
static void backward_columns(void *arg, int64_t task, void *scratch) {
    const moe_rmsnorm_args *a = arg;
    (void)scratch;
    int64_t column = task * COLUMN_BLOCK;
    vd low[COLUMN_VECS], high[COLUMN_VECS];
    for (int c = 0; c < COLUMN_VECS; ++c) low[c] = high[c] = vd_zero();
    for (int64_t r = 0; r < a->rows; r += ROW_CHUNK) {
        int64_t end = moei_min(r + ROW_CHUNK, a->rows);
        for (int c = 0; c < COLUMN_VECS && column + c * VF_N < a->n; ++c) {
            int64_t left = a->n - column - c * VF_N;
            vf sum = a->dtype == MOE_BF16 ? column_sum(true, a, r, end, column + c * VF_N, left)
                                          : column_sum(false, a, r, end, column + c * VF_N, left);
            low[c] = vd_add(low[c], vd_low(sum));
            high[c] = vd_add(high[c], vd_high(sum));
        }
    }
    for (int c = 0; c < COLUMN_VECS && column + c * VF_N < a->n; ++c) {
        float *dgain = (float *)a->dgain + column + c * VF_N;
        int64_t left = a->n - column - c * VF_N < VF_N ? a->n - column - c * VF_N : VF_N;
        vf_store_n(dgain, vf_add(vf_load_n(dgain, left), vf_from_vd(low[c], high[c])), left);
    }
}

static inline void rmsnorm_forward(const moei_team *team, const moe_rmsnorm_args *args) {
    moei_parallel(team, (args->rows + ROW_BLOCK - 1) / ROW_BLOCK, forward_rows, (void *)args);
}

/* dgain first: dx may overwrite dy. */
static inline void rmsnorm_backward(const moei_team *team, const moe_rmsnorm_args *args) {
    moei_parallel(team, (args->n + COLUMN_BLOCK - 1) / COLUMN_BLOCK, backward_columns, (void *)args);
    moei_parallel(team, (args->rows + ROW_BLOCK - 1) / ROW_BLOCK, backward_rows, (void *)args);
}

#endif
