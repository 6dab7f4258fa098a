/* cuda_kernel.h: the launchers behind the rows of kernel.def that others call too: kernels of another file or
 * family, and checks and benchmarks, which choose for themselves what the rows choose by shape.
 * Arguments are those of the operation, with all pointers in device memory. A launcher queues on
 * team->stream, allocates nothing, and returns 0 or a CUDA error. It returns cudaErrorNotSupported, before
 * anything is queued, for arguments that its kernels do not take. Any other error also stays the runtime's
 * last error, where the device's check finds it.
 */
#ifndef MOEI_CUDA_KERNEL_H
#define MOEI_CUDA_KERNEL_H

#include "core/thread.h"
#include "kernel/stage.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Groups a grouped product over rows can have. */
enum { MOEI_CUDA_GROUPS_MAX = 512 };

/* Tile schedules. 0 lets the launcher choose by shape. ACT_GRAD of ungated acts and c_wide are 128 x 128 in
 * ping-pong whatever is asked. */
typedef enum moei_schedule {
    MOEI_SCHEDULE_AUTO = 0,
    MOEI_SCHEDULE_COOPERATIVE, /* 128 x 256: two warpgroups share a tile */
    MOEI_SCHEDULE_PINGPONG     /* 128 x 192 (ACT, ACT_GRAD: 128 x 128): one stores while the other computes */
} moei_schedule;

/* Both: bf16, dense weights, widths and strides that are multiples of 8, 16-byte aligned; C in
 * f32 where c_wide (of gemm_rows: not gathered, B transposed). */
int moei_cuda_gemm_rows(const moei_team *team, const moe_gemm_rows_args *args, moei_schedule schedule);
/* dweight[r] of ACT_GRAD = the sum of its parts [r, parts], first to last; on any GPU. */
void moei_cuda_sum_dweight(const moei_team *team, const moe_gemm_rows_args *args, int64_t parts);
/* One of a_row and b_row at most. */
int moei_cuda_gemm_outer(const moei_team *team, const moe_gemm_outer_args *args);
/* Up to two products of the same groups. */
int moei_cuda_gemm_outers(const moei_team *team, const moei_gemm_outers_args *args);

/* The products of bf16 by mma.sync, on any GPU, whatever widths, strides and addresses; groups may be
 * empty, rows, m and n are not 0. */
void moei_cuda_gemm_rows_mma(const moei_team *team, const moe_gemm_rows_args *args);
void moei_cuda_gemm_outer_mma(const moei_team *team, const moe_gemm_outer_args *args);
/* `gemm_packed` of bf16, likewise. */
void moei_cuda_gemm_packed_mma(const moei_team *team, const moe_gemm_rows_args *args);

/* `route` of kernel.h: plain softmax top-k over up to 256 experts, 32 of them a token; up to 1024 tokens by
 * clusters of eight blocks. The second one is sooner: for up to MOEI_FEW_TOKENS tokens, counted ones up to 8.
 */
bool moei_cuda_route_fits(const moei_router_args *args);
int moei_cuda_route(const moei_team *team, const moei_router_args *args);
int moei_cuda_route_few(const moei_team *team, const moei_router_args *args);

/* The plan where nothing is dropped, up to 256 experts, 32 choices and 131072 tokens, on any GPU. False: not
 * for these arguments. */
bool moei_cuda_plan_dropless(const moei_team *team, const moei_plan_args *args);

/* `few` of kernel.h; the second one where weights are packed, of arguments that the first one takes. Calls
 * that share `drawn` run one after the other; each leaves zeros there, so that graphs can be replayed. */
int moei_cuda_few(const moei_team *team, const moei_few_args *args);
int moei_cuda_few_packed(const moei_team *team, const moei_few_args *args);

#ifdef __cplusplus
}
#endif
#endif
