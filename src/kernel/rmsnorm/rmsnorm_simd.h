/* rmsnorm_simd.h: RMS normalisation in vectors, forward and backward, f32.
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
static inline float row_square_sum(const float *x, int64_t n) {
    vf s0 = vf_zero(), s1 = s0, s2 = s0, s3 = s0;
    int64_t i = 0;
    for (; i + 4 * VF_N <= n; i += 4 * VF_N) {
        vf a = vf_load(x + i), b = vf_load(x + i + VF_N);
        vf c = vf_load(x + i + 2 * VF_N), d = vf_load(x + i + 3 * VF_N);
        s0 = vf_fma(a, a, s0);
        s1 = vf_fma(b, b, s1);
        s2 = vf_fma(c, c, s2);
        s3 = vf_fma(d, d, s3);
    }
    for (; i + VF_N <= n; i += VF_N) s0 = vf_fma(vf_load(x + i), vf_load(x + i), s0);
    if (i < n) {
        vf a = vf_load_n(x + i, n - i);
        s1 = vf_fma(a, a, s1);
    }
    return vf_sum(vf_add(vf_add(s0, s1), vf_add(s2, s3)));
}

static void forward_rows(void *arg, int64_t task, void *scratch) {
    const moe_rmsnorm_args *a = arg;
    (void)scratch;
    const float *gain = a->gain;
    float *inv_rms = a->inv_rms;
    int64_t n = a->n, end = (task + 1) * ROW_BLOCK < a->rows ? (task + 1) * ROW_BLOCK : a->rows;
    for (int64_t r = task * ROW_BLOCK; r < end; ++r) {
        const float *x = (const float *)a->x + r * n;
        float *y = (float *)a->y + r * n;
        float inv = (float)(1.0 / sqrt((double)row_square_sum(x, n) / (double)n + (double)a->eps));
        vf scale = vf_set1(inv);
        int64_t i = 0;
        for (; i + VF_N <= n; i += VF_N)
            vf_store(y + i, vf_mul(vf_mul(vf_load(x + i), scale), vf_load(gain + i)));
        if (i < n) {
            vf tail = vf_mul(vf_mul(vf_load_n(x + i, n - i), scale), vf_load_n(gain + i, n - i));
            vf_store_n(y + i, tail, n - i);
        }
        if (inv_rms) inv_rms[r] = inv;
    }
}

/* sum of gain * dy * x */
static inline float row_dot(const float *gain, const float *dy, const float *x, int64_t n) {
    vf s0 = vf_zero(), s1 = s0;
    int64_t i = 0;
    for (; i + 2 * VF_N <= n; i += 2 * VF_N) {
        s0 = vf_fma(vf_mul(vf_load(gain + i), vf_load(dy + i)), vf_load(x + i), s0);
        s1 = vf_fma(vf_mul(vf_load(gain + i + VF_N), vf_load(dy + i + VF_N)), vf_load(x + i + VF_N), s1);
    }
    for (; i < n; i += VF_N) {
        int64_t left = n - i < VF_N ? n - i : VF_N;
        vf scaled = vf_mul(vf_load_n(gain + i, left), vf_load_n(dy + i, left));
        s0 = vf_fma(scaled, vf_load_n(x + i, left), s0);
    }
    return vf_sum(vf_add(s0, s1));
}

/* dx = inv * (gain * dy - x * pull), pull = inv^2 * mean(gain * dy * x) */
static void backward_rows(void *arg, int64_t task, void *scratch) {
    const moe_rmsnorm_args *a = arg;
    (void)scratch;
    const float *gain = a->gain;
    int64_t n = a->n, end = (task + 1) * ROW_BLOCK < a->rows ? (task + 1) * ROW_BLOCK : a->rows;
    for (int64_t r = task * ROW_BLOCK; r < end; ++r) {
        const float *x = (const float *)a->x + r * n, *dy = (const float *)a->dy + r * n;
        float *dx = (float *)a->dx + r * n;
        float inv = ((const float *)a->inv_rms)[r];
        vf scale = vf_set1(inv), pull = vf_set1(inv * inv * row_dot(gain, dy, x, n) / (float)n);
        int64_t i = 0;
        for (; i + VF_N <= n; i += VF_N) {
            vf g = vf_fnma(vf_load(x + i), pull, vf_mul(vf_load(gain + i), vf_load(dy + i)));
            vf old = a->accumulate ? vf_load(dx + i) : vf_zero();
            vf_store(dx + i, vf_fma(g, scale, old));
        }
        if (i < n) {
            int64_t left = n - i;
            vf g = vf_mul(vf_load_n(gain + i, left), vf_load_n(dy + i, left));
            vf old = a->accumulate ? vf_load_n(dx + i, left) : vf_zero();
            vf_store_n(dx + i, vf_fma(vf_fnma(vf_load_n(x + i, left), pull, g), scale, old), left);
        }
    }
}

/* Adds inv * dy * x of rows first .. end-1 in one vector of columns; n <= VF_N of them exist. */
static inline vf column_sum(const moe_rmsnorm_args *a, int64_t first, int64_t end, int64_t column,
                            int64_t n) {
    const float *x = (const float *)a->x + column, *dy = (const float *)a->dy + column, *inv = a->inv_rms;
    vf sum = vf_zero();
    if (n == VF_N)
        for (int64_t r = first; r < end; ++r)
            sum = vf_fma(vf_mul(vf_load(x + r * a->n), vf_set1(inv[r])), vf_load(dy + r * a->n), sum);
    else
        for (int64_t r = first; r < end; ++r) {
            vf normed = vf_mul(vf_load_n(x + r * a->n, n), vf_set1(inv[r]));
            sum = vf_fma(normed, vf_load_n(dy + r * a->n, n), sum);
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
        int64_t end = r + ROW_CHUNK < a->rows ? r + ROW_CHUNK : a->rows;
        for (int c = 0; c < COLUMN_VECS && column + c * VF_N < a->n; ++c) {
            int64_t left = a->n - column - c * VF_N;
            vf sum = column_sum(a, r, end, column + c * VF_N, left < VF_N ? left : VF_N);
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
