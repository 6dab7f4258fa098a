/* act_pass_simd.h: activation, dropout and routing weight of each row in vectors, forward and backward.
 * Z[R, n or 2n] <-> A[R, n], f32 or bf16, arithmetic in f32; formulas: kernel/stage.h and kernel/act.h.
 * Include after the header of a vector vocabulary. Source: act_pass_ref.c, whose draws it repeats.
 */
#ifndef MOEI_ACT_PASS_SIMD_H
#define MOEI_ACT_PASS_SIMD_H

#include <math.h>

#include "core/rng.h"
#include "kernel/kernel_list.h"

enum { ROWS_PER_TASK = 16 };

typedef struct vec_slope {
    vf value, slope;
} vec_slope;

/* Beyond 100 sigmoid is 0 or 1 and its slope 0, which no factor that overflowed shall turn into NaN. */
static inline vf vec_bounded(vf x) {
    return vf_min(vf_set1(100.0f), vf_max(vf_set1(-100.0f), x));
}

static inline vec_slope vec_swish(vf v, float alpha) {
    const vf one = vf_set1(1.0f);
    vf x = vec_bounded(vf_mul(vf_set1(alpha), v)), s = vf_sigmoid(x);
    vf rest = vf_fma(x, vf_sub(one, s), one);
    return (vec_slope){vf_mul(v, s), vf_mul(s, rest)};
}

/* With t = tanh(y): (1 + t) / 2 is sigmoid(2 y), and (1 - t^2) / 2 is twice it times its complement. */
static inline vec_slope vec_gelu_tanh(vf v) {
    const float c = 0.797884561f, cubic = 0.044715f; /* sqrt(2 / pi) */
    const vf one = vf_set1(1.0f);
    vf x = vec_bounded(v), square = vf_mul(x, x);
    vf s = vf_sigmoid(vf_mul(vf_mul(x, vf_set1(2 * c)), vf_fma(square, vf_set1(cubic), one)));
    vf inner = vf_mul(vf_fma(square, vf_set1(3 * cubic), one), vf_set1(2 * c));
    return (vec_slope){vf_mul(v, s), vf_fma(vf_mul(x, inner), vf_mul(s, vf_sub(one, s)), s)};
}

static inline vec_slope vec_curve(moei_curve curve, vf v, float alpha) {
    const vf zero = vf_zero(), one = vf_set1(1.0f), leak = vf_set1(0.01f);
    const vm positive = vf_lt(zero, v);
    switch (curve) {
    case MOEI_CURVE_RELU:
        return (vec_slope){vf_max(zero, v), vf_select(positive, one, zero)};
    case MOEI_CURVE_LEAKY_RELU:
        return (vec_slope){vf_select(positive, v, vf_mul(leak, v)), vf_select(positive, one, leak)};
    case MOEI_CURVE_RELU2: {
        vf half = vf_max(zero, v);
        return (vec_slope){vf_mul(half, half), vf_add(half, half)};
    }
    case MOEI_CURVE_GELU: {
        vf density, cdf = vf_normal_cdf(v, &density);
        return (vec_slope){vf_mul(v, cdf), vf_fma(v, density, cdf)};
    }
    case MOEI_CURVE_GELU_TANH:
        return vec_gelu_tanh(v);
    case MOEI_CURVE_SWISH:
        break;
    }
    return vec_swish(v, alpha);
}

typedef struct vec_point {
    vf value, d_gate, d_up;
} vec_point;

/* At the limit itself the gradient passes. */
static inline vec_point vec_rule(const moei_act_rule *rule, vf gate, vf up) {
    const vf zero = vf_zero();
    if (!rule->gated) {
        vec_slope f = vec_curve(rule->curve, gate, (float)rule->alpha);
        return (vec_point){f.value, f.slope, zero};
    }
    const vf limit = vf_set1(rule->limit > 0 ? (float)rule->limit : INFINITY), low = vf_neg(limit);
    const vm gate_over = vf_lt(limit, gate), up_over = vf_lt(limit, up), up_under = vf_lt(up, low);
    vec_slope f = vec_curve(rule->curve, vf_select(gate_over, limit, gate), (float)rule->alpha);
    vf clamped = vf_select(up_under, low, vf_select(up_over, limit, up));
    vf factor = vf_add(clamped, vf_set1((float)rule->offset));
    return (vec_point){vf_mul(f.value, factor), vf_select(gate_over, zero, vf_mul(f.slope, factor)),
                       vf_select(up_over, zero, vf_select(up_under, zero, f.value))};
}

/* Factors of numbers j .. j+VF_N of a row's slot, as act_pass_ref.c draws them. A row without a slot is
 * padding. */
static vf dropout_factors(const moei_act_pass_args *args, int64_t r, int64_t j, int64_t left) {
    const int64_t slot = args->row_slot ? args->row_slot[r] : r;
    const float grow = (float)(1 / (1 - args->dropout));
    float factor[VF_N];
    uint32_t word[4] = {0};
    if (args->dropout <= 0 || slot < 0) return vf_set1(1.0f);
    for (int64_t i = 0; i < VF_N; ++i) {
        if (i % 4 == 0 && !args->dropout_keep)
            moe_random(args->seed, MOE_DRAW_DROPOUT, args->layer, args->step,
                       (uint64_t)slot * MOEI_DRAWS_OF_SLOT + (uint64_t)(j + i) / 4, word);
        bool keep = !args->dropout_keep && moei_uniform(word[i % 4]) >= args->dropout;
        if (args->dropout_keep && i < left) keep = args->dropout_keep[slot * args->n + j + i] != 0;
        factor[i] = keep ? grow : 0;
    }
    return vf_load(factor);
}

/* Gate and up of numbers j .. j+left of a row of Z that begins at `row`. Interleaved ones go through memory.
 */
static inline void load_z(const moei_act_pass_args *args, int64_t row, int64_t j, int64_t left, vf *gate,
                          vf *up) {
    const bool bf16 = args->dtype == MOE_BF16;
    if (!args->rule.gated || !args->rule.interleaved) {
        *gate = vf_get(bf16, args->z, row + j, left);
        *up = args->rule.gated ? vf_get(bf16, args->z, row + args->n + j, left) : vf_zero();
        return;
    }
    float g[VF_N] = {0}, u[VF_N] = {0};
    for (int64_t i = 0; i < moei_min(VF_N, left); ++i) {
        g[i] = (float)moei_real_load(args->dtype, args->z, row + 2 * (j + i));
        u[i] = (float)moei_real_load(args->dtype, args->z, row + 2 * (j + i) + 1);
    }
    *gate = vf_load(g);
    *up = vf_load(u);
}

static inline void store_z(const moei_act_pass_args *args, int64_t row, int64_t j, int64_t left, vf gate,
                           vf up) {
    const bool bf16 = args->dtype == MOE_BF16;
    if (!args->rule.gated || !args->rule.interleaved) {
        vf_put(bf16, args->z, row + j, gate, left);
        if (args->rule.gated) vf_put(bf16, args->z, row + args->n + j, up, left);
        return;
    }
    float g[VF_N], u[VF_N];
    vf_store(g, gate);
    vf_store(u, up);
    for (int64_t i = 0; i < moei_min(VF_N, left); ++i) {
        moei_real_store(args->dtype, args->z, row + 2 * (j + i), (double)g[i]);
        moei_real_store(args->dtype, args->z, row + 2 * (j + i) + 1, (double)u[i]);
    }
}

static void forward_row(const moei_act_pass_args *args, int64_t r) {
    const int64_t n = args->n, row = r * (args->rule.gated ? 2 * n : n);
    for (int64_t j = 0; j < n; j += VF_N) {
        vf gate, up;
        load_z(args, row, j, n - j, &gate, &up);
        vf a = vf_mul(vec_rule(&args->rule, gate, up).value, dropout_factors(args, r, j, n - j));
        vf_put(args->dtype == MOE_BF16, args->a, r * n + j, a, n - j);
    }
}

static void backward_row(const moei_act_pass_args *args, int64_t r) {
    const int64_t n = args->n, row = r * (args->rule.gated ? 2 * n : n);
    const bool bf16 = args->dtype == MOE_BF16;
    const vf weight = vf_set1(args->row_weight ? ((const float *)args->row_weight)[r] : 1.0f);
    vf dweight = vf_zero();
    for (int64_t j = 0; j < n; j += VF_N) {
        vf gate, up, factor = dropout_factors(args, r, j, n - j);
        load_z(args, row, j, n - j, &gate, &up);
        vec_point point = vec_rule(&args->rule, gate, up);
        vf a = vf_mul(point.value, factor), da = vf_get(bf16, args->a, r * n + j, n - j);
        vf through = vf_mul(vf_mul(weight, factor), da);
        dweight = vf_fma(da, a, dweight); /* past the end da is 0, and a finite */
        store_z(args, row, j, n - j, vf_mul(through, point.d_gate), vf_mul(through, point.d_up));
        vf_put(bf16, args->a, r * n + j, vf_mul(weight, a), n - j);
    }
    if (args->drow_weight) ((float *)args->drow_weight)[r] = vf_sum(dweight);
}

static void forward_task(void *arg, int64_t task, void *scratch) {
    const moei_act_pass_args *args = arg;
    (void)scratch;
    for (int64_t r = task * ROWS_PER_TASK; r < moei_min(args->n_rows, (task + 1) * ROWS_PER_TASK); ++r)
        forward_row(args, r);
}

static void backward_task(void *arg, int64_t task, void *scratch) {
    const moei_act_pass_args *args = arg;
    (void)scratch;
    for (int64_t r = task * ROWS_PER_TASK; r < moei_min(args->n_rows, (task + 1) * ROWS_PER_TASK); ++r)
        backward_row(args, r);
}

static inline void act_pass(const moei_team *team, const moei_act_pass_args *args, moe_task_fn task) {
    moei_parallel(team, moei_ceil_div(args->n_rows, ROWS_PER_TASK), task, (void *)args);
}

#endif
