/* act_pass_simd.h: activation, dropout and routing weight of each row in vectors, forward and backward.
 * Z[R, n or 2n] <-> A[R, n], f32 or bf16, arithmetic in f32; formulas: kernel/stage.h and kernel/act.h.
 * Include after the header of a vector vocabulary. Source: act_pass_ref.c, whose draws it repeats.
 */
#ifndef MOEI_ACT_PASS_SIMD_H
#define MOEI_ACT_PASS_SIMD_H

#include "core/rng.h"
#include "kernel/act_simd.h"
#include "kernel/kernel_list.h"

enum { ROWS_PER_TASK = 16 };

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

static void forward_task(void *arg, int64_t first, int64_t end, void *scratch) {
    (void)scratch;
    for (int64_t r = first; r < end; ++r) forward_row(arg, r);
}

static void backward_task(void *arg, int64_t first, int64_t end, void *scratch) {
    (void)scratch;
    for (int64_t r = first; r < end; ++r) backward_row(arg, r);
}

static inline void act_pass(const moei_team *team, const moei_act_pass_args *args, moei_block_fn task) {
    moei_parallel_blocks(team, args->n_rows, ROWS_PER_TASK, task, (void *)args);
}

#endif
