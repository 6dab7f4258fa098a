/* row_ops_ref.c: biases, a gate over rows, dot products of rows and copies of rows, plainly.
 * Formulas: kernel/stage.h. A task is some rows, or one column where columns are summed.
 */
#include <math.h>
#include <string.h>

#include "core/real.h"
#include "kernel/kernel_list.h"

enum { ROWS_PER_TASK = 64 };

static void for_rows(const moei_team *team, int64_t rows, moei_block_fn fn, const void *args) {
    moei_parallel_blocks(team, rows, ROWS_PER_TASK, fn, (void *)args);
}

static void add_bias_task(void *arg, int64_t first, int64_t end, void *scratch) {
    const moei_bias_args *args = arg;
    (void)scratch;
    for (int64_t r = first; r < end; ++r)
        for (int64_t j = 0; (!args->mask || args->mask[r]) && j < args->n; ++j) {
            const int64_t i = r * args->ld + j;
            moei_real_store(args->dtype, args->mat, i,
                            moei_real_load(args->dtype, args->mat, i) +
                                moei_real_load(args->dtype, args->bias, j));
        }
}

void moei_add_bias__ref(const moei_team *team, const moei_bias_args *args) {
    for_rows(team, args->rows, add_bias_task, args);
}

static void bias_grad_task(void *arg, int64_t j, void *scratch) {
    const moei_bias_args *args = arg;
    const moe_dtype wide = moei_wide(args->dtype);
    double sum = moei_real_load(wide, args->bias, j);
    (void)scratch;
    for (int64_t r = 0; r < args->rows; ++r)
        if (!args->mask || args->mask[r]) sum += moei_real_load(args->dtype, args->mat, r * args->ld + j);
    moei_real_store(wide, args->bias, j, sum);
}

void moei_bias_grad__ref(const moei_team *team, const moei_bias_args *args) {
    moei_parallel(team, args->n, bias_grad_task, (void *)args);
}

static void sigmoid_gate_task(void *arg, int64_t first, int64_t end, void *scratch) {
    const moei_sigmoid_gate_args *args = arg;
    const moe_dtype wide = moei_wide(args->dtype);
    (void)scratch;
    for (int64_t r = first; r < end; ++r) {
        const double g = 1 / (1 + exp(-moei_real_load(wide, args->gate, r)));
        moei_real_store(wide, args->gate, r, g);
        for (int64_t j = 0; j < args->n; ++j) {
            const int64_t i = r * args->ld + j;
            moei_real_store(args->dtype, args->y, i, g * moei_real_load(args->dtype, args->y, i));
        }
    }
}

void moei_sigmoid_gate__ref(const moei_team *team, const moei_sigmoid_gate_args *args) {
    for_rows(team, args->rows, sigmoid_gate_task, args);
}

static void sigmoid_gate_grad_task(void *arg, int64_t first, int64_t end, void *scratch) {
    const moei_sigmoid_gate_args *args = arg;
    const moe_dtype wide = moei_wide(args->dtype);
    (void)scratch;
    for (int64_t r = first; r < end; ++r) {
        const double g = moei_real_load(wide, args->gate, r);
        moei_real_store(wide, args->dgate, r, moei_real_load(wide, args->dgate, r) * g * (1 - g));
        const double dgate = moei_real_load(wide, args->dgate, r);
        for (int64_t j = 0; args->y && j < args->n; ++j) {
            const int64_t i = r * args->ld + j;
            moei_real_store(args->dtype, args->y, i,
                            moei_real_load(args->dtype, args->y, i) +
                                dgate * moei_real_load(args->dtype, args->weight, j));
        }
    }
}

void moei_sigmoid_gate_grad__ref(const moei_team *team, const moei_sigmoid_gate_args *args) {
    for_rows(team, args->rows, sigmoid_gate_grad_task, args);
}

static void row_dot_task(void *arg, int64_t first, int64_t end, void *scratch) {
    const moei_row_dot_args *args = arg;
    const moe_dtype wide = moei_wide(args->dtype);
    int32_t g = 0;
    (void)scratch;
    for (int64_t r = args->offset[0] + first; r < args->offset[0] + end; ++r) {
        while (r >= args->offset[g + 1]) ++g;
        const int64_t a = (args->a_row ? args->a_row[r] : r) * args->lda;
        const int64_t b = (args->b_by_group ? g : args->b_row ? args->b_row[r] : r) * args->ldb;
        double sum = args->accumulate ? moei_real_load(wide, args->out, r) : 0;
        for (int64_t j = 0; j < args->n; ++j)
            sum += moei_real_load(args->dtype, args->a, a + j) * moei_real_load(args->dtype, args->b, b + j);
        moei_real_store(wide, args->out, r, sum);
    }
}

void moei_row_dot__ref(const moei_team *team, const moei_row_dot_args *args) {
    for_rows(team, args->offset[args->n_groups] - args->offset[0], row_dot_task, args);
}

static void copy_rows_task(void *arg, int64_t first, int64_t end, void *scratch) {
    const moei_copy_rows_args *args = arg;
    (void)scratch;
    for (int64_t r = first; r < end; ++r) {
        const int64_t from = (args->row ? args->row[r] : r) * args->ld_from;
        const bool padding = !args->from || (args->slot && args->slot[r] < 0);
        void *to = moei_real_at(args->dtype, args->to, r * args->ld_to);
        const size_t bytes = (size_t)args->n * moe_dtype_bytes(args->dtype);
        if (padding) {
            memset(to, 0, bytes);
        } else if (!args->weight) {
            memcpy(to, (const char *)args->from + (size_t)from * moe_dtype_bytes(args->dtype), bytes);
        } else {
            const double w = moei_real_load(moei_wide(args->dtype), args->weight, r);
            for (int64_t j = 0; j < args->n; ++j)
                moei_real_store(args->dtype, to, j, w * moei_real_load(args->dtype, args->from, from + j));
        }
    }
}

void moei_copy_rows__ref(const moei_team *team, const moei_copy_rows_args *args) {
    for_rows(team, args->rows, copy_rows_task, args);
}
