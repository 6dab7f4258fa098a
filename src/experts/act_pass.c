/* act_pass.c: activation, dropout and routing weight of each row, forward and backward.
 * A = act(Z) m;  dZ = w m act'(Z) dA';  dweight = <dA', A>, with m = 0 or 1/(1-p) of dropout.
 * Source: Srivastava et al. 2014 (dropout); the backward draws the same numbers again instead of keeping
 * them.
 */
#include "experts/act_pass.h"

#include "core/real.h"
#include "core/rng.h"
#include "core/thread.h"

enum { ROWS_PER_TASK = 16, DRAWS_OF_SLOT = 1 << 18 };

/* Factors of numbers j .. j+3 of a row's slot. A row without a slot is padding: nothing to drop. */
static void dropout_factors(const moei_act_pass *pass, int64_t r, int64_t j, double factor[4]) {
    const int64_t slot = pass->row_slot ? pass->row_slot[r] : r;
    const double grow = 1 / (1 - (double)pass->dropout);
    uint32_t word[4];
    for (int i = 0; i < 4; ++i) factor[i] = 1;
    if (pass->dropout <= 0 || slot < 0) return;
    if (!pass->dropout_keep)
        moe_random(pass->ctx->desc.seed, MOE_DRAW_DROPOUT, pass->layer, pass->step,
                   (uint64_t)slot * DRAWS_OF_SLOT + (uint64_t)j / 4, word);
    for (int i = 0; i < 4 && j + i < pass->n; ++i) {
        const bool keep = pass->dropout_keep ? pass->dropout_keep[slot * pass->n + j + i] != 0
                                             : moei_uniform(word[i]) >= (double)pass->dropout;
        factor[i] = keep ? grow : 0;
    }
}

/* Columns of Z that hold number j of A. */
static void columns(const moei_act_pass *pass, int64_t j, int64_t *gate, int64_t *up) {
    const bool pairs = pass->rule->interleaved && pass->rule->kind->gated;
    *gate = pairs ? 2 * j : j;
    *up = pairs ? 2 * j + 1 : pass->n + j;
}

static moei_act_point point_at(const moei_act_pass *pass, int64_t row, int64_t gate, int64_t up) {
    const double u = pass->rule->kind->gated ? moei_real_load(pass->dtype, pass->z, row + up) : 0;
    return moei_act_at(pass->rule, moei_real_load(pass->dtype, pass->z, row + gate), u);
}

static int64_t z_columns(const moei_act_pass *pass) {
    return pass->rule->kind->gated ? 2 * pass->n : pass->n;
}

static void forward_row(const moei_act_pass *pass, int64_t r) {
    double factor[4] = {0};
    for (int64_t j = 0; j < pass->n; ++j) {
        int64_t gate, up;
        columns(pass, j, &gate, &up);
        if (j % 4 == 0) dropout_factors(pass, r, j, factor);
        const moei_act_point point = point_at(pass, r * z_columns(pass), gate, up);
        moei_real_store(pass->dtype, pass->a, r * pass->n + j, point.value * factor[j % 4]);
    }
}

static void backward_row(const moei_act_pass *pass, int64_t r) {
    const moe_dtype weight_dtype = moei_wide(pass->dtype);
    const double weight = pass->row_weight ? moei_real_load(weight_dtype, pass->row_weight, r) : 1;
    const int64_t row = r * z_columns(pass);
    double factor[4] = {0}, dweight = 0;
    for (int64_t j = 0; j < pass->n; ++j) {
        int64_t gate, up;
        columns(pass, j, &gate, &up);
        if (j % 4 == 0) dropout_factors(pass, r, j, factor);
        const moei_act_point point = point_at(pass, row, gate, up);
        const double a = point.value * factor[j % 4];
        const double da = moei_real_load(pass->dtype, pass->a, r * pass->n + j);
        const double through = weight * factor[j % 4] * da;
        dweight += da * a;
        moei_real_store(pass->dtype, pass->z, row + gate, through * point.d_gate);
        if (pass->rule->kind->gated) moei_real_store(pass->dtype, pass->z, row + up, through * point.d_up);
        moei_real_store(pass->dtype, pass->a, r * pass->n + j, weight * a);
    }
    if (pass->drow_weight) moei_real_store(weight_dtype, pass->drow_weight, r, dweight);
}

static void forward_task(void *arg, int64_t task, void *scratch) {
    (void)scratch;
    const moei_act_pass *pass = arg;
    for (int64_t r = task * ROWS_PER_TASK; r < pass->n_rows && r < (task + 1) * ROWS_PER_TASK; ++r)
        forward_row(pass, r);
}

static void backward_task(void *arg, int64_t task, void *scratch) {
    (void)scratch;
    const moei_act_pass *pass = arg;
    for (int64_t r = task * ROWS_PER_TASK; r < pass->n_rows && r < (task + 1) * ROWS_PER_TASK; ++r)
        backward_row(pass, r);
}

static int64_t tasks(const moei_act_pass *pass) {
    return (pass->n_rows + ROWS_PER_TASK - 1) / ROWS_PER_TASK;
}

void moei_act_pass_forward(moei_act_pass *pass) {
    moei_parallel(&pass->ctx->team, tasks(pass), forward_task, pass);
}

void moei_act_pass_backward(moei_act_pass *pass) {
    moei_parallel(&pass->ctx->team, tasks(pass), backward_task, pass);
}
