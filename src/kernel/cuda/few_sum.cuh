/* few_sum.cuh: the last step of the kernels for few tokens that keep a row for each choice, rows [T, K, d] in
 * bf16 or f32: y[t] (+)= sum over slots of weight times row, in order. Source: docs/kernels-cuda.md, few
 * tokens.
 */
#ifndef MOEI_FEW_SUM_CUH
#define MOEI_FEW_SUM_CUH

#include "kernel/cuda/cuda_kernel.h"
#include "kernel/cuda/early.cuh"
#include "kernel/cuda/portable.cuh"

namespace moei {

enum { SUM_THREADS = 64, SUM_COLUMNS = 4 /* of a thread */, SUM_AT_ONCE = 8 };

__device__ __forceinline__ float4 load_four(const float *from) {
    return __ldcg((const float4 *)from);
}
__device__ __forceinline__ float4 load_four(const bf16 *from) {
    const uint2 v = __ldcg((const uint2 *)from);
    return make_float4(bf16_low(v.x), bf16_high(v.x), bf16_low(v.y), bf16_high(v.y));
}

/* y[t], four columns from `column` on. Rows are asked for at once, whether they count or not. */
template <class T>
__device__ __forceinline__ void sum_choices(const moei_few_args &p, const T *rows, int64_t t,
                                            int64_t column) {
    float y[SUM_COLUMNS] = {};
    for (int k0 = 0; k0 < p.top_k; k0 += SUM_AT_ONCE) {
        float4 v[SUM_AT_ONCE];
        float weight[SUM_AT_ONCE];
        int expert[SUM_AT_ONCE];
#pragma unroll
        for (int j = 0; j < SUM_AT_ONCE; ++j) {
            const int64_t choice = t * p.top_k + min(k0 + j, p.top_k - 1);
            v[j] = load_four(rows + choice * p.d + column);
            expert[j] = p.expert[choice], weight[j] = p.weight[choice];
        }
#pragma unroll
        for (int j = 0; j < SUM_AT_ONCE; ++j) {
            if (k0 + j >= p.top_k || expert[j] < 0) continue;
            y[0] = fmaf(weight[j], v[j].x, y[0]), y[1] = fmaf(weight[j], v[j].y, y[1]);
            y[2] = fmaf(weight[j], v[j].z, y[2]), y[3] = fmaf(weight[j], v[j].w, y[3]);
        }
    }
    bf16 *to = (bf16 *)p.y + t * p.ldy + column;
#pragma unroll
    for (int j = 0; j < SUM_COLUMNS; ++j)
        to[j] = __float2bfloat16(y[j] + (p.accumulate ? __bfloat162float(to[j]) : 0.f));
}

/* Leaves `n_counters` of the call's counters as zeros. */
template <class T>
static __global__ void __launch_bounds__(SUM_THREADS, 8) /* not 32, which leaves loads too few registers */
    few_sum_kernel(const __grid_constant__ moei_few_args p, const T *rows, int n_counters) {
    const int64_t i = (int64_t)blockIdx.x * SUM_THREADS + threadIdx.x, t = i * SUM_COLUMNS / p.d,
                  column = i * SUM_COLUMNS % p.d;
    let_next_start();
    await_earlier();
    for (int c = (int)i; c < n_counters; c += (int)(gridDim.x * SUM_THREADS)) p.drawn[c] = 0;
    if (t < p.n_tokens) sum_choices(p, rows, t, column);
}

template <class T>
static cudaError_t launch_few_sum(const moei_team *team, const moei_few_args &args, const T *rows,
                                  int n_counters) {
    const int64_t threads = args.n_tokens * args.d / SUM_COLUMNS;
    return launch_early(few_sum_kernel<T>, dim3((unsigned)ceil_div(threads, SUM_THREADS)), SUM_THREADS, 0,
                        stream_of(team), args, rows, n_counters);
}

} // namespace moei
#endif
