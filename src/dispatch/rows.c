/* rows.c: moves token rows to expert order and back, for experts that ask for contiguous rows.
 * x[T,n] -> rows[R,n]; dy[T,n], rows[R,n] -> drow_weight[R] -> dweight[T,K].
 * Source: the permute / unpermute of Megatron core's dispatchers, without padding.
 */
#include "core/real.h"
#include "dispatch/dispatch.h"
#include "kernel/kernel.h"

void moei_rows_gather(moe_ctx *ctx, const moei_plan *plan, moe_mat x, const void *weight, moe_mat rows) {
    ctx->kernels[x.dtype]->copy_rows(&ctx->team, &(moei_copy_rows_args){.dtype = x.dtype,
                                                                        .rows = plan->n_rows,
                                                                        .n = x.cols,
                                                                        .from = x.data,
                                                                        .ld_from = x.stride,
                                                                        .row = plan->row_token,
                                                                        .weight = weight,
                                                                        .slot = plan->row_slot,
                                                                        .to = rows.data,
                                                                        .ld_to = rows.stride});
}

void moei_rows_weight_gradient(moe_ctx *ctx, const moei_plan *plan, moe_mat dy, moe_mat rows,
                               void *drow_weight) {
    ctx->kernels[dy.dtype]->row_dot(&ctx->team, &(moei_row_dot_args){.dtype = dy.dtype,
                                                                     .n_groups = plan->n_experts,
                                                                     .n_rows = plan->n_rows,
                                                                     .offset = plan->offset,
                                                                     .n = dy.cols,
                                                                     .a = dy.data,
                                                                     .lda = dy.stride,
                                                                     .a_row = plan->row_token,
                                                                     .b = rows.data,
                                                                     .ldb = rows.stride,
                                                                     .out = drow_weight});
}

enum { SLOTS_PER_TASK = 1024 };

typedef struct to_slots {
    const moei_plan *plan;
    const void *by_row;
    moe_dtype dtype;
    void *by_slot;
} to_slots;

static void slots_task(void *arg, int64_t first, int64_t end, void *scratch) {
    const to_slots *to = arg;
    (void)scratch;
    for (int64_t slot = first; slot < end; ++slot) {
        const int32_t r = to->plan->row_of[slot];
        moei_real_store(to->dtype, to->by_slot, slot,
                        r < 0 ? 0 : moei_real_load(to->plan->weight_dtype, to->by_row, r));
    }
}

void moei_rows_to_slots(const moei_team *team, const moei_plan *plan, const void *by_row, moe_dtype dtype,
                        void *by_slot) {
    to_slots to = {plan, by_row, dtype, by_slot};
    moei_parallel_blocks(team, plan->n_tokens * plan->top_k, SLOTS_PER_TASK, slots_task, &to);
}
