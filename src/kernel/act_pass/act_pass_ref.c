/* act_pass_ref.c: activation, dropout and routing weight of each row, forward and backward, plainly.
 * Z[R, n or 2n] <-> A[R, n]; formulas: kernel/stage.h. One task some rows.
 * Source: Srivastava et al. 2014 (dropout); the backward draws the same numbers again instead of keeping
 * them.
 */
#include "core/real.h"
#include "core/rng.h"
#include "kernel/act.h"
#include "kernel/kernel_list.h"

enum { ROWS_PER_TASK = 16 };

/* Factors of numbers j .. j+3 of a row's slot. A row without a slot is padding: nothing to drop. */
static void dropout_factors(const moei_act_pass_args *args, int64_t r, int64_t j, double factor[4]) {
    const int64_t slot = args->row_slot ? args->row_slot[r] : r;
    const double grow = 1 / (1 - args->dropout);
    uint32_t word[4];
    for (int i = 0; i < 4; ++i) factor[i] = 1;
    if (args->dropout <= 0 || slot < 0) return;
    if (!args->dropout_keep)
        moe_random(args->seed, MOE_DRAW_DROPOUT, args->layer, args->step,
                   (uint64_t)slot * MOEI_DRAWS_OF_SLOT + (uint64_t)j / 4, word);
    for (int i = 0; i < 4 && j + i < args->n; ++i) {
        const bool keep = args->dropout_keep ? args->dropout_keep[slot * args->n + j + i] != 0
                                             : moei_uniform(word[i]) >= args->dropout;
        factor[i] = keep ? grow : 0;
    }
}

/* Columns of Z that hold number j of A. */
static void columns(const moei_act_pass_args *args, int64_t j, int64_t *gate, int64_t *up) {
    const bool pairs = args->rule.interleaved && args->rule.gated;
    *gate = pairs ? 2 * j : j;
    *up = pairs ? 2 * j + 1 : args->n + j;
}

static moei_act_point point_at(const moei_act_pass_args *args, int64_t row, int64_t gate, int64_t up) {
    const double u = args->rule.gated ? moei_real_load(args->dtype, args->z, row + up) : 0;
    return moei_act_rule_at(&args->rule, moei_real_load(args->dtype, args->z, row + gate), u);
}

static int64_t z_columns(const moei_act_pass_args *args) {
    return args->rule.gated ? 2 * args->n : args->n;
}

static void forward_row(const moei_act_pass_args *args, int64_t r) {
    double factor[4] = {0};
    for (int64_t j = 0; j < args->n; ++j) {
        int64_t gate, up;
        columns(args, j, &gate, &up);
        if (j % 4 == 0) dropout_factors(args, r, j, factor);
        const moei_act_point point = point_at(args, r * z_columns(args), gate, up);
        moei_real_store(args->dtype, args->a, r * args->n + j, point.value * factor[j % 4]);
    }
}

static void backward_row(const moei_act_pass_args *args, int64_t r) {
    const moe_dtype wide = moei_wide(args->dtype);
    const double weight = args->row_weight ? moei_real_load(wide, args->row_weight, r) : 1;
    const int64_t row = r * z_columns(args);
    double factor[4] = {0}, dweight = 0;
    for (int64_t j = 0; j < args->n; ++j) {
        int64_t gate, up;
        columns(args, j, &gate, &up);
        if (j % 4 == 0) dropout_factors(args, r, j, factor);
        const moei_act_point point = point_at(args, row, gate, up);
        const double a = point.value * factor[j % 4];
        const double da = moei_real_load(args->dtype, args->a, r * args->n + j);
        const double through = weight * factor[j % 4] * da;
        dweight += da * a;
        moei_real_store(args->dtype, args->z, row + gate, through * point.d_gate);
        if (args->rule.gated) moei_real_store(args->dtype, args->z, row + up, through * point.d_up);
        moei_real_store(args->dtype, args->a, r * args->n + j, weight * a);
    }
    if (args->drow_weight) moei_real_store(wide, args->drow_weight, r, dweight);
}

static void forward_task(void *arg, int64_t first, int64_t end, void *scratch) {
    (void)scratch;
    for (int64_t r = first; r < end; ++r) forward_row(arg, r);
}

static void backward_task(void *arg, int64_t first, int64_t end, void *scratch) {
    (void)scratch;
    for (int64_t r = first; r < end; ++r) backward_row(arg, r);
}

void moei_act_pass__ref(const moei_team *team, const moei_act_pass_args *args) {
    moei_parallel_blocks(team, args->n_rows, ROWS_PER_TASK, forward_task, (void *)args);
}

void moei_act_pass_grad__ref(const moei_team *team, const moei_act_pass_args *args) {
    moei_parallel_blocks(team, args->n_rows, ROWS_PER_TASK, backward_task, (void *)args);
}
