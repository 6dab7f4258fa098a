/* rows.c: moves token rows to expert order and back, for experts that ask for contiguous rows.
 * x[T,n] -> rows[R,n]; dy[T,n], rows[R,n] -> drow_weight[R] -> dweight[T,K].
 * Source: the permute / unpermute of Megatron core's dispatchers, without padding.
 */
#include "core/real.h"
#include "dispatch/dispatch.h"
#include "kernel/kernel.h"

#include <string.h>

enum { ROWS_PER_TASK = 64 };

static void clear_padding(const moei_plan *plan, moe_mat rows) {
    for (int64_t r = 0; r < plan->n_rows; ++r)
        if (plan->row_slot[r] < 0)
            memset(moei_real_at(rows.dtype, rows.data, r * rows.stride), 0,
                   (size_t)rows.cols * moe_dtype_bytes(rows.dtype));
}

void moei_rows_gather(moe_ctx *ctx, const moei_plan *plan, moe_mat x, const void *weight, moe_mat rows) {
    /* A gather is a gather-and-sum of one row each. */
    ctx->kernels[x.dtype]->gather_sum(&ctx->team, &(moe_gather_sum_args){.dtype = x.dtype,
                                                                         .n_tokens = plan->n_rows,
                                                                         .n = x.cols,
                                                                         .top_k = 1,
                                                                         .rows = x.data,
                                                                         .ld_rows = x.stride,
                                                                         .row_of = plan->row_token,
                                                                         .weight = weight,
                                                                         .out = rows.data,
                                                                         .ld_out = rows.stride});
    clear_padding(plan, rows);
}

typedef struct weight_job {
    const moei_plan *plan;
    moe_mat dy, rows;
    void *drow_weight;
} weight_job;

static void weight_task(void *arg, int64_t task, void *scratch) {
    (void)scratch;
    const weight_job *job = arg;
    const moe_mat dy = job->dy, rows = job->rows;
    for (int64_t r = task * ROWS_PER_TASK; r < job->plan->n_rows && r < (task + 1) * ROWS_PER_TASK; ++r) {
        int64_t t = job->plan->row_token[r];
        double sum = 0;
        for (int64_t j = 0; j < dy.cols; ++j)
            sum += moei_real_load(dy.dtype, dy.data, t * dy.stride + j) *
                   moei_real_load(rows.dtype, rows.data, r * rows.stride + j);
        moei_real_store(job->plan->weight_dtype, job->drow_weight, r, sum);
    }
}

void moei_rows_weight_gradient(moe_ctx *ctx, const moei_plan *plan, moe_mat dy, moe_mat rows,
                               void *drow_weight) {
    weight_job job = {plan, dy, rows, drow_weight};
    moei_parallel(&ctx->team, (plan->n_rows + ROWS_PER_TASK - 1) / ROWS_PER_TASK, weight_task, &job);
}

void moei_rows_to_slots(const moei_plan *plan, const void *by_row, moe_dtype dtype, void *by_slot) {
    for (int64_t slot = 0; slot < plan->n_tokens * plan->top_k; ++slot) {
        int32_t r = plan->row_of[slot];
        moei_real_store(dtype, by_slot, slot, r < 0 ? 0 : moei_real_load(plan->weight_dtype, by_row, r));
    }
}
