/* gemm_rows_ref.c: grouped product over ragged rows, plainly.
 * C[r, :] = A[a_row[r], :] B_g for the rows r of group g; one task a row. Formulas: moekit/op.h.
 */
#include "core/real.h"
#include "kernel/act.h"
#include "kernel/kernel_list.h"
#include "kernel/packed.h"

/* One element of A B_g (+ bias_g). */
static double product(const moe_gemm_rows_args *args, int32_t g, int64_t r, int64_t j) {
    int64_t a = (args->a_row ? args->a_row[r] : r) * args->lda;
    int64_t b = g * args->b_group + (args->b_trans ? j * args->ldb : j);
    int64_t step = args->b_trans ? 1 : args->ldb;
    double sum = 0;
    for (int64_t i = 0; i < args->k; ++i)
        sum += moei_real_load(args->dtype, args->a, a + i) *
               (args->b_packed ? moei_packed_value(args->b_packed, g, i, j)
                               : moei_real_load(args->dtype, args->b, b + i * step));
    return args->bias ? sum + moei_real_load(args->dtype, args->bias, g * args->n + j) : sum;
}

static void store_row(const moe_gemm_rows_args *args, int32_t g, int64_t r) {
    moe_dtype dtype = args->c_wide ? moei_wide(args->dtype) : args->dtype;
    for (int64_t j = 0; j < args->n; ++j) {
        int64_t at = r * args->ldc + j;
        double old = args->accumulate ? moei_real_load(dtype, args->c, at) : 0;
        moei_real_store(dtype, args->c, at, old + product(args, g, r, j));
    }
}

static void act_row(const moe_gemm_rows_args *args, int32_t g, int64_t r) {
    const moei_act_rule rule = moei_act_rule_for(args->act, args->act_numbers);
    const bool gated = rule.gated;
    int64_t width = gated ? args->n / 2 : args->n;
    for (int64_t j = 0; j < width; ++j) {
        double gate = product(args, g, r, j), up = gated ? product(args, g, r, width + j) : 0;
        if (args->c) {
            moei_real_store(args->dtype, args->c, r * args->ldc + j, gate);
            if (gated) moei_real_store(args->dtype, args->c, r * args->ldc + width + j, up);
        }
        moei_real_store(args->dtype, args->h, r * args->ldh + j, moei_act_rule_at(&rule, gate, up).value);
    }
}

static void act_grad_row(const moe_gemm_rows_args *args, int32_t g, int64_t r) {
    const moei_act_rule rule = moei_act_rule_for(args->act, args->act_numbers);
    const bool gated = rule.gated;
    moe_dtype wide = moei_wide(args->dtype);
    double w = args->row_weight ? moei_real_load(wide, args->row_weight, r) : 1, dweight = 0;
    for (int64_t j = 0; j < args->n; ++j) {
        int64_t gate_at = r * args->ldz + j, up_at = gate_at + args->n;
        double da = product(args, g, r, j), gate = moei_real_load(args->dtype, args->z, gate_at);
        double up = gated ? moei_real_load(args->dtype, args->z, up_at) : 0;
        const moei_act_point act = moei_act_rule_at(&rule, gate, up);
        moei_real_store(args->dtype, args->dz, gate_at, w * act.d_gate * da);
        if (gated) moei_real_store(args->dtype, args->dz, up_at, w * act.d_up * da);
        moei_real_store(args->dtype, args->wa, r * args->ldwa + j, w * act.value);
        dweight += da * act.value;
    }
    if (args->dweight) moei_real_store(wide, args->dweight, r, dweight);
}

static void row_task(void *arg, int64_t task, void *scratch) {
    const moe_gemm_rows_args *args = arg;
    int64_t r = args->offset[0] + task;
    int32_t g = 0;
    (void)scratch;
    while (r >= args->offset[g + 1]) ++g;
    switch (args->epilogue) {
    case MOE_EPI_STORE:
        store_row(args, g, r);
        break;
    case MOE_EPI_ACT:
        act_row(args, g, r);
        break;
    case MOE_EPI_ACT_GRAD:
        act_grad_row(args, g, r);
        break;
    }
}

void moei_gemm_rows__ref(const moei_team *team, const moe_gemm_rows_args *args) {
    moei_parallel(team, args->offset[args->n_groups] - args->offset[0], row_task, (void *)args);
}
