/* gather_sum.cu: out[t] = sum_k weight[t,k] * rows[row_of[t,k]], bf16 rows, f32 sum, k ascending.
 * One thread, eight columns of one token: its K loads of 16 bytes are in flight together.
 * Source: SonicMoE (Guo et al. 2025), aggregation by gathering instead of scattering.
 */
#include "kernel/cuda/cuda_kernel.h"

#include <cuda_bf16.h>
#include <cuda_runtime.h>

namespace moei {

__device__ __forceinline__ void add_scaled(float (&sum)[8], uint4 v, float w) {
    const uint32_t pair[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        sum[2 * i] = fmaf(w, __uint_as_float(pair[i] << 16), sum[2 * i]);
        sum[2 * i + 1] = fmaf(w, __uint_as_float(pair[i] & 0xFFFF0000u), sum[2 * i + 1]);
    }
}

/* K rows at a time; k0 walks over top_k in steps of K. */
template <int K> __global__ void gather_sum_kernel(const __grid_constant__ moei_cuda_gather_sum_args p) {
    const int chunks = (int)(p.n / 8);
    const int64_t index = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, token = index / chunks;
    if (token >= p.n_tokens) return;
    const int64_t column = (index - token * chunks) * 8;
    const uint16_t *rows = (const uint16_t *)p.rows + column;
    float sum[8] = {0};
    uint4 *out = (uint4 *)((uint16_t *)p.out + token * p.n + column);
    if (p.accumulate) add_scaled(sum, *out, 1);
    for (int k0 = 0; k0 < p.top_k; k0 += K) {
        uint4 v[K];
        float w[K];
#pragma unroll
        for (int k = 0; k < K; ++k) {
            const int64_t slot = token * p.top_k + k0 + k;
            const int row = k0 + k < p.top_k ? __ldg(p.row_of + slot) : -1;
            w[k] = p.weight && row >= 0 ? __ldg(p.weight + slot) : 1.f;
            v[k] = row >= 0 ? __ldcs((const uint4 *)(rows + (int64_t)row * p.n)) : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int k = 0; k < K; ++k) add_scaled(sum, v[k], w[k]);
    }
    uint32_t packed[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const __nv_bfloat162 two = __floats2bfloat162_rn(sum[2 * i], sum[2 * i + 1]);
        packed[i] = *(const uint32_t *)&two;
    }
    *out = make_uint4(packed[0], packed[1], packed[2], packed[3]);
}

} // namespace moei

int moei_cuda_gather_sum(const moei_cuda_gather_sum_args *args, moei_stream stream) {
    const int64_t threads = args->n_tokens * (args->n / 8), blocks = (threads + 255) / 256;
    if (blocks == 0) return cudaSuccess;
    if (args->top_k <= 2)
        moei::gather_sum_kernel<2><<<(unsigned)blocks, 256, 0, stream>>>(*args);
    else if (args->top_k <= 4)
        moei::gather_sum_kernel<4><<<(unsigned)blocks, 256, 0, stream>>>(*args);
    else
        moei::gather_sum_kernel<8><<<(unsigned)blocks, 256, 0, stream>>>(*args);
    return cudaGetLastError();
}
