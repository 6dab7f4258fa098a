/* rope_simd.h: rotary position embedding in vectors, in place, f32 or bf16.
 * x [rows, heads, head_dim] with row stride ldx, position [rows].
 * Source: Su et al. 2021, eq. 34, halves layout. Include after simd_avx2.h or simd_avx512.h.
 */
#ifndef MOEI_ROPE_SIMD_H
#define MOEI_ROPE_SIMD_H

#include <math.h>

#include "kernel/kernel_list.h"

/* Rows of a task share its table of frequencies. ROPE_AHEAD rows are asked for before their turn: runs of
 * heads within wider rows are nothing that hardware follows. */
enum { ROPE_ROWS = 32, ROPE_AHEAD = 4, ROPE_HALF_MAX = MOEI_HEAD_DIM_MAX / 2 + 2 * VF_N };

typedef struct rope_scratch {
    double frequency[ROPE_HALF_MAX];
    float cosine[ROPE_HALF_MAX], sine[ROPE_HALF_MAX];
} rope_scratch;

static inline vd vd_round_small(vd a) { /* to a whole number, for |a| < 2^51 */
    const vd shift = vd_set1(6755399441055744.0);
    return vd_add(vd_add(a, shift), vd_set1(-6755399441055744.0));
}

/* angle = quarter * pi/2 + the result, |result| <= pi/4; *quarter in {0, 1, 2, 3}. In f64, so that a
 * position of a million keeps its phase. */
static inline vd reduce_angle(vd angle, vd *quarter) {
    vd k = vd_round_small(vd_mul(angle, vd_set1(0.63661977236758134)));
    vd r = vd_fma(k, vd_set1(-1.5707963267948966), angle);
    r = vd_fma(k, vd_set1(-6.123233995736766e-17), r);
    vd full = vd_round_small(vd_fma(k, vd_set1(0.25), vd_set1(-0.375))); /* floor(k / 4) */
    *quarter = vd_fma(full, vd_set1(-4.0), k);
    return r;
}

/* cos and sin of VF_N angles; Taylor series, whose error on |r| <= pi/4 is below 2e-9. */
static inline vf vf_cos_sin(vd angle_low, vd angle_high, vf *sine) {
    vd quarter_low, quarter_high;
    vd r_low = reduce_angle(angle_low, &quarter_low), r_high = reduce_angle(angle_high, &quarter_high);
    vf r = vf_from_vd(r_low, r_high), quarter = vf_from_vd(quarter_low, quarter_high), rr = vf_mul(r, r);
    vf s = vf_fma(rr, vf_set1(1.0F / 362880), vf_set1(-1.0F / 5040));
    s = vf_fma(s, rr, vf_set1(1.0F / 120));
    s = vf_fma(s, rr, vf_set1(-1.0F / 6));
    s = vf_fma(vf_mul(s, rr), r, r);
    vf c = vf_fma(rr, vf_set1(-1.0F / 3628800), vf_set1(1.0F / 40320));
    c = vf_fma(c, rr, vf_set1(-1.0F / 720));
    c = vf_fma(c, rr, vf_set1(1.0F / 24));
    c = vf_fma(c, rr, vf_set1(-0.5F));
    c = vf_fma(c, rr, vf_set1(1.0F));
    vf from_middle = vf_sub(quarter, vf_set1(1.5F));
    vm middle = vf_lt(vf_abs(from_middle), vf_set1(1.0F)), late = vf_lt(vf_zero(), from_middle);
    vm odd = vf_eq(vf_abs(vf_sub(quarter, vf_set1(2.0F))), vf_set1(1.0F));
    vf turned = vf_select(odd, c, s), across = vf_select(odd, s, c);
    *sine = vf_select(late, vf_neg(turned), turned);
    return vf_select(middle, vf_neg(across), across);
}

/* The tables are padded to whole vectors; what lies past `half` is computed and not used. */
static void fill_angles(rope_scratch *table, int32_t position, int32_t half, bool inverse) {
    vd at = vd_set1((double)position);
    for (int32_t i = 0; i < half; i += VF_N) {
        vf sine;
        vf cosine = vf_cos_sin(vd_mul(at, vd_load(table->frequency + i)),
                               vd_mul(at, vd_load(table->frequency + i + VD_N)), &sine);
        vf_store(table->cosine + i, cosine);
        vf_store(table->sine + i, inverse ? vf_neg(sine) : sine);
    }
}

MOEI_INLINE void turn_head(const bool bf16, void *x, int64_t at, const rope_scratch *table, int32_t half) {
    for (int32_t i = 0; i < half; i += VF_N) {
        int64_t left = half - i;
        vf c = vf_load(table->cosine + i), s = vf_load(table->sine + i);
        vf a = vf_get(bf16, x, at + i, left), b = vf_get(bf16, x, at + half + i, left);
        vf_put(bf16, x, at + i, vf_fnma(b, s, vf_mul(a, c)), left);
        vf_put(bf16, x, at + half + i, vf_fma(a, s, vf_mul(b, c)), left);
    }
}

static void ask_row(const moe_rope_args *a, int64_t r) {
    const int64_t real = a->dtype == MOE_BF16 ? 2 : 4, bytes = a->heads * a->head_dim * real;
    const char *row = (const char *)a->x + r * a->ldx * real;
    for (int64_t i = 0; i < bytes; i += LINE) __builtin_prefetch(row + i, 1);
}

static void turn_rows(void *arg, int64_t task, void *scratch) {
    const moe_rope_args *a = arg;
    rope_scratch *table = scratch;
    int32_t half = a->head_dim / 2, padded = (half + VF_N - 1) / VF_N * VF_N;
    for (int32_t i = 0; i < padded; ++i)
        table->frequency[i] = i < half ? pow((double)a->base, -2.0 * i / a->head_dim) : 0.0;
    int64_t end = (task + 1) * ROPE_ROWS < a->rows ? (task + 1) * ROPE_ROWS : a->rows;
    for (int64_t r = task * ROPE_ROWS; r < end; ++r) {
        if (r + ROPE_AHEAD < end) ask_row(a, r + ROPE_AHEAD);
        fill_angles(table, a->position[r], half, a->inverse);
        for (int32_t h = 0; h < a->heads; ++h) {
            int64_t at = r * a->ldx + (int64_t)h * a->head_dim;
            if (a->dtype == MOE_BF16)
                turn_head(true, a->x, at, table, half);
            else
                turn_head(false, a->x, at, table, half);
        }
    }
}

static inline void rope_turn(const moei_team *team, const moe_rope_args *args) {
    moei_parallel(team, (args->rows + ROPE_ROWS - 1) / ROPE_ROWS, turn_rows, (void *)args);
}

#endif
