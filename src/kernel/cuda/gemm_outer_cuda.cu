/* gemm_outer_cuda.cu: grouped product over a ragged sum, f32, for any NVIDIA GPU from sm_80: FMA in
 * registers. C_g[m, n] (+)= sum over the rows r of group g of A[a_row[r], m] B[b_row[r], n], r ascending;
 * moekit/op.h. A block has 64 x 64 of one group, a thread 4 x 4 of it. bf16 is multiplied by tensor cores:
 * gemm_outer_mma_cuda.cu.
 */
#include "kernel/cuda/cuda_kernel.h"
#include "kernel/cuda/portable.cuh"

namespace moei {

enum { SIDE = 64, DEPTH = 32, THREADS = 256, PER_THREAD = SIDE * DEPTH / THREADS };

__device__ __forceinline__ void load_slice(const void *from, int64_t ld, const int32_t *row, int64_t first,
                                           int64_t end, int64_t column, int64_t columns, float *to) {
    const int64_t j = column + threadIdx.x % SIDE;
#pragma unroll
    for (int i = 0; i < PER_THREAD; ++i) {
        const int64_t r = first + threadIdx.x / SIDE + i * (THREADS / SIDE);
        to[i] = 0.f;
        if (r < end && j < columns) to[i] = __ldg((const float *)from + (row ? row[r] : r) * ld + j);
    }
}

__device__ __forceinline__ void store_slice(const float *from, float (*to)[SIDE]) {
#pragma unroll
    for (int i = 0; i < PER_THREAD; ++i)
        to[threadIdx.x / SIDE + i * (THREADS / SIDE)][threadIdx.x % SIDE] = from[i];
}

static __global__ void __launch_bounds__(THREADS)
    gemm_outer_kernel(const moe_gemm_outer_args p, unsigned tiles_m, unsigned tiles_n) {
    __shared__ float a[2][DEPTH][SIDE], b[2][DEPTH][SIDE];
    const unsigned tile = blockIdx.x / tiles_m;
    const int64_t m0 = (int64_t)(blockIdx.x % tiles_m) * SIDE, n0 = (int64_t)(tile % tiles_n) * SIDE;
    const int64_t g = tile / tiles_n;
    const int64_t begin = p.offset ? p.offset[g] : 0, end = p.offset ? p.offset[g + 1] : p.n_rows;
    const int across = threadIdx.x % 16, down = threadIdx.x / 16;
    float acc[4][4] = {}, next_a[PER_THREAD], next_b[PER_THREAD];
    int now = 0;
    load_slice(p.a, p.lda, p.a_row, begin, end, m0, p.m, next_a);
    load_slice(p.b, p.ldb, p.b_row, begin, end, n0, p.n, next_b);
    for (int64_t r = begin; r < end; r += DEPTH, now ^= 1) {
        store_slice(next_a, a[now]);
        store_slice(next_b, b[now]);
        __syncthreads();
        load_slice(p.a, p.lda, p.a_row, r + DEPTH, end, m0, p.m, next_a);
        load_slice(p.b, p.ldb, p.b_row, r + DEPTH, end, n0, p.n, next_b);
#pragma unroll
        for (int k = 0; k < DEPTH; ++k) {
            const float4 row = *(const float4 *)&a[now][k][down * 4],
                         col = *(const float4 *)&b[now][k][across * 4];
            const float rows[4] = {row.x, row.y, row.z, row.w}, cols[4] = {col.x, col.y, col.z, col.w};
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) acc[i][j] = fmaf(rows[i], cols[j], acc[i][j]);
        }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int64_t m = m0 + down * 4 + i, n = n0 + across * 4 + j;
            if (m >= p.m || n >= p.n) continue;
            const int64_t at = g * p.c_group + m * p.ldc + n;
            ((float *)p.c)[at] = (p.accumulate ? ((float *)p.c)[at] : 0.f) + acc[i][j];
        }
}

} // namespace moei

extern "C" void moei_gemm_outer__cuda(const moei_team *team, const moe_gemm_outer_args *args) {
    using namespace moei;
    const unsigned tiles_m = (unsigned)ceil_div(args->m, SIDE), tiles_n = (unsigned)ceil_div(args->n, SIDE);
    if (args->n_groups == 0 || args->m == 0 || args->n == 0) return;
    if (args->dtype == MOE_BF16) return moei_cuda_gemm_outer_mma(team, args);
    /* In one dimension: the other two of a grid end at 65535, and groups do not. */
    const unsigned blocks = tiles_m * tiles_n * (unsigned)args->n_groups;
    gemm_outer_kernel<<<blocks, THREADS, 0, stream_of(team)>>>(*args, tiles_m, tiles_n);
}
