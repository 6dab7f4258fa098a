/* rmsnorm_simd.h: RMS normalisation in vectors, forward and backward, f32 or bf16.
 * x, y, dy, dx [rows, n], each with its own distance between rows, gain, dgain [n], inv_rms [rows].
 * Source: Zhang & Sennrich 2019, eq. 4. Include after simd_avx2.h or simd_avx512.h.
 */
#ifndef MOEI_RMSNORM_SIMD_H
#define MOEI_RMSNORM_SIMD_H

#include <float.h>
#include <math.h>

#include "core/real.h"
#include "kernel/kernel_list.h"
#include "kernel/rmsnorm/rmsnorm_rows.h"

/* A task of backward sums its rows' share of dgain in f32; the shares are added in f64. */
enum { ROW_BLOCK = 16, ROW_CHUNK = 64, COLUMN_BLOCK = 4 * VF_N };

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

/* Squares of numbers beyond 1e19 are no f32, and below 1e-19 they lose bits, which eps may not hide. */
static double square_sum_in_f64(const moe_rmsnorm_args *a, int64_t at) {
    double sum = 0;
    for (int64_t i = at; i < at + a->n; ++i) {
        const double x = moei_real_load(a->dtype, a->x, i);
        sum += x * x;
    }
    return sum;
}

MOEI_INLINE void forward_row(const bool bf16, const moe_rmsnorm_args *a, int64_t r) {
    static const float LEAST = 0x1p-80F, EPS_HIDES = 0x1p-56F;
    const int64_t n = a->n, at = norm_at(a, a->ldx, r), to = norm_at(a, a->ldy, r);
    double sum = (double)row_square_sum(bf16, a->x, at, n);
    if (!(sum <= (double)FLT_MAX) || (sum < (double)LEAST && a->eps < EPS_HIDES))
        sum = square_sum_in_f64(a, at);
    float inv = (float)(1.0 / sqrt(sum / (double)n + (double)a->eps));
    vf scale = vf_set1(inv);
    for (int64_t i = 0; i < n; i += VF_N) {
        vf normed = vf_mul(vf_get(bf16, a->x, at + i, n - i), scale);
        vf_put(bf16, a->y, to + i, vf_mul(normed, vf_get(bf16, a->gain, i, n - i)), n - i);
    }
    if (a->inv_rms) ((float *)a->inv_rms)[r] = inv;
}

static void forward_rows(void *arg, int64_t task, void *scratch) {
    const moe_rmsnorm_args *a = arg;
    (void)scratch;
    int64_t end = moei_min((task + 1) * ROW_BLOCK, norm_rows(a));
    for (int64_t r = task * ROW_BLOCK; r < end; ++r) {
        if (a->dtype == MOE_BF16)
            forward_row(true, a, r);
        else
            forward_row(false, a, r);
    }
}

/* A wave of chunks of rows, as many as have room for their shares of dgain. */
typedef struct norm_wave {
    const moe_rmsnorm_args *args;
    int64_t first, end; /* rows */
    int64_t ld;         /* n in whole vectors */
    float *share;       /* [chunks, ld] */
} norm_wave;

/* Sum of gain * dy * x of row r; adds inv * dy * x to share[n]. */
MOEI_INLINE float row_dot(const bool bf16, const moe_rmsnorm_args *a, int64_t r, float inv, float *share) {
    vf sum[2] = {vf_zero(), vf_zero()}, scale = vf_set1(inv);
    const int64_t n = a->n, at = norm_at(a, a->ldx, r), to = norm_at(a, a->ldy, r);
    for (int64_t i = 0; i < n; i += VF_N) {
        int64_t v = i / VF_N % 2;
        vf x = vf_get(bf16, a->x, at + i, n - i), dy = vf_get(bf16, a->dy, to + i, n - i);
        sum[v] = vf_fma(vf_mul(vf_get(bf16, a->gain, i, n - i), dy), x, sum[v]);
        vf_store(share + i, vf_fma(vf_mul(x, scale), dy, vf_load(share + i)));
    }
    return vf_sum(vf_add(sum[0], sum[1]));
}

/* dx = inv * (gain * dy - x * pull), pull = inv^2 * mean(gain * dy * x); dx may be dy. */
MOEI_INLINE void backward_row(const bool bf16, const moe_rmsnorm_args *a, int64_t r, float *share) {
    const int64_t n = a->n, at = norm_at(a, a->ldx, r), to = norm_at(a, a->ldy, r);
    float inv = ((const float *)a->inv_rms)[r];
    vf scale = vf_set1(inv), pull = vf_set1(inv * (inv * row_dot(bf16, a, r, inv, share) / (float)n));
    for (int64_t i = 0; i < n; i += VF_N) {
        int64_t left = n - i;
        vf scaled = vf_mul(vf_get(bf16, a->gain, i, left), vf_get(bf16, a->dy, to + i, left));
        vf g = vf_fnma(vf_get(bf16, a->x, at + i, left), pull, scaled);
        vf old = a->accumulate ? vf_get(bf16, a->dx, to + i, left) : vf_zero();
        vf_put(bf16, a->dx, to + i, vf_fma(g, scale, old), left);
    }
}

static void backward_chunk(void *arg, int64_t task, void *scratch) {
    const norm_wave *w = arg;
    const moe_rmsnorm_args *a = w->args;
    float *share = w->share + task * w->ld;
    const int64_t first = w->first + task * ROW_CHUNK, end = moei_min(first + ROW_CHUNK, w->end);
    (void)scratch;
    for (int64_t i = 0; i < w->ld; i += VF_N) vf_store(share + i, vf_zero());
    for (int64_t r = first; r < end; ++r) {
        if (a->dtype == MOE_BF16)
            backward_row(true, a, r, share);
        else
            backward_row(false, a, r, share);
    }
}

/* dgain += the shares of all chunks, in order. */
static void add_shares(void *arg, int64_t task, void *scratch) {
    const norm_wave *w = arg;
    const int64_t n = w->args->n, chunks = moei_ceil_div(w->end - w->first, ROW_CHUNK);
    (void)scratch;
    for (int64_t i = task * COLUMN_BLOCK; i < moei_min((task + 1) * COLUMN_BLOCK, n); i += VF_N) {
        float *dgain = (float *)w->args->dgain + i;
        vf old = vf_load_upto(dgain, n - i);
        vd low = vd_low(old), high = vd_high(old);
        for (int64_t c = 0; c < chunks; ++c) {
            vf share = vf_load(w->share + c * w->ld + i);
            low = vd_add(low, vd_low(share));
            high = vd_add(high, vd_high(share));
        }
        vf_store_upto(dgain, vf_from_vd(low, high), n - i);
    }
}

static inline void rmsnorm_forward(const moei_team *team, const moe_rmsnorm_args *args) {
    moei_parallel(team, moei_ceil_div(norm_rows(args), ROW_BLOCK), forward_rows, (void *)args);
}

/* Every number is read once. The shares of a wave fill the first thread's scratch, which no task of ours uses
 * otherwise. */
static inline void rmsnorm_backward(const moei_team *team, const moe_rmsnorm_args *args) {
    const int64_t ld = moei_ceil_div(args->n, VF_N) * VF_N,
                  room = MOEI_THREAD_SCRATCH / (int64_t)sizeof(float);
    const int64_t rows = room / ld * ROW_CHUNK, all = norm_rows(args);
    for (int64_t r = 0; r < all; r += rows) {
        norm_wave wave = {args, r, moei_min(r + rows, all), ld, team->scratch};
        moei_parallel(team, moei_ceil_div(wave.end - r, ROW_CHUNK), backward_chunk, &wave);
        moei_parallel(team, moei_ceil_div(args->n, COLUMN_BLOCK), add_shares, &wave);
    }
}

#endif
