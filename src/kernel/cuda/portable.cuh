/* portable.cuh: what CUDA kernels of all families share: numbers of any dtype as f32, launches, tiles of
 * ragged rows, sums over a warp. A kernel gets the same argument struct as on the CPU, with device pointers;
 * team->stream is where it queues.
 */
#ifndef MOEI_PORTABLE_CUH
#define MOEI_PORTABLE_CUH

#include "kernel/cuda/early.cuh"
#include "kernel/kernel_list.h"

#include <cuda_bf16.h>
#include <cuda_runtime.h>

namespace moei {

__host__ __device__ __forceinline__ int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

typedef __nv_bfloat16 bf16;

/* Element i of an array of T, as f32 and back (to nearest, ties to even). */
template <class T> __device__ __forceinline__ float load(const void *from, int64_t i) {
    return (float)((const T *)from)[i];
}
template <class T> __device__ __forceinline__ void store(void *to, int64_t i, float value) {
    ((T *)to)[i] = (T)value;
}
/* Two bf16 numbers as a word, the first in its lower half, and back. */
__device__ __forceinline__ uint32_t bf16_pack(float low, float high) {
    __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    return *(const uint32_t *)&v;
}
__device__ __forceinline__ float bf16_low(uint32_t pair) {
    return __uint_as_float(pair << 16);
}
__device__ __forceinline__ float bf16_high(uint32_t pair) {
    return __uint_as_float(pair & 0xFFFF0000u);
}
/* Whether 16 bytes may be moved at once from there. */
__host__ __device__ __forceinline__ bool aligned16(const void *pointer) {
    return ((uintptr_t)pointer & 15) == 0;
}

static inline cudaStream_t stream_of(const moei_team *team) {
    return (cudaStream_t)team->stream;
}

/* It goes first where smaller kernels are queued beside it; not early: its blocks would wait on the
 * multiprocessors that are left to those. */
static inline Launch &urgent(const moei_team *team, Launch &launch) {
    if (team->spare > 0) launch.add(cudaLaunchAttributePriority).priority = team->urgency;
    return launch;
}

/* Rows [first, end) of group g, of at most `rows` each. */
struct RowTile {
    int32_t group;
    int64_t first, end;
};

/* Sum of v over this lane and those below it. */
__device__ __forceinline__ int warp_prefix(int v) {
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        const int below = __shfl_up_sync(~0u, v, d);
        if ((int)(threadIdx.x & 31) >= d) v += below;
    }
    return v;
}

/* Row tile number `tile` of all groups, found by one warp; group -1: there are fewer. offset NULL: one
 * group of n_rows rows. Every lane counts the tiles of as many groups; one lane's are then looked at. */
__device__ __forceinline__ RowTile find_row_tile(const int64_t *offset, int32_t n_groups, int64_t n_rows,
                                                 int64_t tile, int rows) {
    if (!offset) return {tile * rows < n_rows ? 0 : -1, tile * rows, n_rows};
    const int lane = threadIdx.x & 31;
    int32_t first = 0, span = n_groups;
    int rest = (int)tile;
    while (true) {
        const int32_t each = (span + 31) / 32, low = first + lane * each,
                      high = min(low + each, first + span);
        int own = 0;
#pragma unroll 4
        for (int32_t g = low; g < high; ++g) own += (int)ceil_div(offset[g + 1] - offset[g], rows);
        const int upto = warp_prefix(own);
        const unsigned past = __ballot_sync(~0u, upto > rest);
        if (!past) return {-1, 0, 0};
        const int at = __ffs(past) - 1;
        rest -= __shfl_sync(~0u, upto - own, at);
        first = __shfl_sync(~0u, low, at);
        if (each == 1) return {first, offset[first] + (int64_t)rest * rows, offset[first + 1]};
        span = __shfl_sync(~0u, high - low, at);
    }
}

/* Row tiles of a grouped product that may be found: none of them is empty. */
static inline int64_t row_tiles_most(const moe_gemm_rows_args *args, int rows) {
    const int64_t tiles = ceil_div(args->n_rows, rows) + (args->offset ? args->n_groups : 0);
    return tiles < args->n_rows ? tiles : args->n_rows;
}

/* Sum over the 32 lanes, the same bits in each, every time. */
template <class V> __device__ __forceinline__ V warp_sum(V v) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(~0u, v, d);
    return v;
}

} // namespace moei

#endif
