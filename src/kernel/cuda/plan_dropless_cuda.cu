/* plan_dropless_cuda.cu: the plan where nothing is dropped, for any NVIDIA GPU from sm_80 and up to 256
 * experts: scan and scatter in one kernel, expert[T,K] -> offset[E+1], row_token, row_slot, row_weight[R],
 * row_of[T,K]. A block takes one tile of 128 tokens. It sums the tiles' counts itself, so no block waits for
 * another; inside a tile a token's rank is a population count of those before it. What all blocks read grows
 * with the square of the tokens, which bounds them.
 */
#include "kernel/cuda/cuda_kernel.h"
#include "kernel/cuda/portable.cuh"

namespace moei {

enum { PLAN_THREADS = 256, PLAN_EXPERTS = 256, PLAN_TILE = MOEI_ROUTE_TILE };
enum { PLAN_BATCH = 8 }; /* loads of a thread in flight */
/* 131072 tokens: of 256 experts all blocks then read 256 MiB of counts from L2, some 50 us. */
enum { PLAN_TILES = 1024 };

/* What the router's kernel counts too, where it did the routing. */
static __global__ void __launch_bounds__(PLAN_THREADS) count_tile_kernel(const moei_plan_args p) {
    __shared__ uint32_t count[PLAN_EXPERTS];
    const int64_t first = (int64_t)blockIdx.x * PLAN_TILE * p.top_k;
    const int64_t end = min(first + (int64_t)PLAN_TILE * p.top_k, p.n_tokens * p.top_k);
    const int pitch = (p.n_experts + 3) / 4 * 4;
    count[threadIdx.x] = 0;
    __syncthreads();
    for (int64_t i = first + threadIdx.x; i < end; i += PLAN_THREADS)
        if (p.expert[i] >= 0) atomicAdd(count + p.expert[i], 1);
    __syncthreads();
    if ((int)threadIdx.x < pitch)
        ((uint8_t *)p.tile_count)[(int64_t)blockIdx.x * pitch + threadIdx.x] = (uint8_t)count[threadIdx.x];
}

/* before[e]: rows of e in the tiles before this one. total[e]: in all. Four experts a word. */
__device__ __forceinline__ void sum_tiles(const moei_plan_args &p, int *before, int *total) {
    const int words = (p.n_experts + 3) / 4, lanes = PLAN_THREADS / words, word = threadIdx.x % words;
    const int lane = threadIdx.x / words, n_tiles = (int)ceil_div(p.n_tokens, PLAN_TILE);
    int sum[4] = {0}, sum_before[4] = {0};
    if (lane >= lanes) return;
    for (int first = lane; first < n_tiles; first += PLAN_BATCH * lanes) {
        uint32_t four[PLAN_BATCH];
#pragma unroll
        for (int b = 0; b < PLAN_BATCH; ++b) {
            const int tile = first + b * lanes;
            four[b] =
                tile < n_tiles ? __ldg((const uint32_t *)p.tile_count + (int64_t)tile * words + word) : 0;
        }
#pragma unroll
        for (int b = 0; b < PLAN_BATCH; ++b)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int count = (int)(four[b] >> (8 * i) & 255);
                sum[i] += count;
                sum_before[i] += first + b * lanes < (int)blockIdx.x ? count : 0;
            }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        atomicAdd(total + 4 * word + i, sum[i]);
        atomicAdd(before + 4 * word + i, sum_before[i]);
    }
}

/* before[e] += total[0] + .. + total[e-1], where e's rows start; *rows: of all. The first block keeps the
 * offsets. */
__device__ __forceinline__ void scan_experts(const moei_plan_args &p, const int *total, int *before,
                                             int *rows) {
    if (threadIdx.x >= 32) return;
    const int lane = threadIdx.x;
    int carry = 0;
    for (int base = 0; base < p.n_experts; base += 32) {
        const int own = total[base + lane];
        int sum = own;
        for (int step = 1; step < 32; step *= 2) {
            const int left = __shfl_up_sync(~0u, sum, step);
            if (lane >= step) sum += left;
        }
        before[base + lane] += carry + sum - own;
        if (blockIdx.x == 0 && base + lane < p.n_experts) p.offset[base + lane + 1] = carry + sum;
        carry += __shfl_sync(~0u, sum, 31);
    }
    if (lane != 0) return;
    *rows = carry;
    if (blockIdx.x == 0) p.offset[0] = 0;
}

/* Counts that are nobody's tile: of experts, for the step, of real tokens. */
__device__ __forceinline__ void keep_totals(const moei_plan_args &p, const int *total, int *valid) {
    const int thread = threadIdx.x;
    if (thread < p.n_experts) {
        p.routed[thread] = p.kept[thread] = total[thread];
        if (p.step_rows) p.step_rows[thread] += total[thread];
    }
    int real = 0;
    for (int64_t first = thread; p.mask && first < p.n_tokens; first += PLAN_BATCH * PLAN_THREADS)
#pragma unroll
        for (int b = 0; b < PLAN_BATCH; ++b) {
            const int64_t t = first + b * PLAN_THREADS;
            real += t < p.n_tokens && p.mask[t] != 0;
        }
    atomicAdd(valid, real);
    __syncthreads();
    if (thread != 0) return;
    *p.n_valid = p.mask ? *valid : p.n_tokens;
    *p.capacity = -1;
}

/* Rows that masked tokens leave over, past those of all experts. */
__device__ __forceinline__ void pad_rows(const moei_plan_args &p, int rows) {
    for (int64_t r = rows + (int64_t)blockIdx.x * PLAN_THREADS + threadIdx.x; r < p.n_rows;
         r += (int64_t)gridDim.x * PLAN_THREADS) {
        p.row_slot[r] = -1;
        p.row_token[r] = 0;
        p.row_weight[r] = 0.f;
    }
}

static __global__ void __launch_bounds__(PLAN_THREADS)
    plan_dropless_kernel(const __grid_constant__ moei_plan_args p) {
    __shared__ int before[PLAN_EXPERTS], total[PLAN_EXPERTS], rows, valid;
    __shared__ uint32_t member[PLAN_EXPERTS][PLAN_TILE / 32]; /* bit t: token t of the tile chose e */
    const int64_t first = (int64_t)blockIdx.x * PLAN_TILE * p.top_k;
    const int slots = (int)min((int64_t)PLAN_TILE * p.top_k, p.n_tokens * p.top_k - first);
    if (threadIdx.x == 0) valid = 0;
    for (int e = threadIdx.x; e < PLAN_EXPERTS; e += PLAN_THREADS) {
        before[e] = total[e] = 0;
        for (int i = 0; i < PLAN_TILE / 32; ++i) member[e][i] = 0;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < slots; i += PLAN_THREADS) {
        const int t = i / p.top_k, e = p.expert[first + i];
        if (e >= 0) atomicOr(&member[e][t / 32], 1u << (t & 31));
    }
    sum_tiles(p, before, total);
    __syncthreads();
    scan_experts(p, total, before, &rows);
    __syncthreads();
    for (int base = threadIdx.x; base < slots; base += PLAN_BATCH * PLAN_THREADS) {
        int expert[PLAN_BATCH];
        float weight[PLAN_BATCH];
#pragma unroll
        for (int b = 0; b < PLAN_BATCH; ++b) {
            const int i = base + b * PLAN_THREADS;
            expert[b] = i < slots ? p.expert[first + i] : -1;
            weight[b] = i < slots ? p.weight[first + i] : 0;
        }
#pragma unroll
        for (int b = 0; b < PLAN_BATCH; ++b) {
            const int i = base + b * PLAN_THREADS, t = i / p.top_k, e = expert[b];
            if (i >= slots) break;
            int row = -1;
            if (e >= 0) {
                row = before[e] + __popc(member[e][t / 32] & ((1u << (t & 31)) - 1));
                for (int word = 0; word < t / 32; ++word) row += __popc(member[e][word]);
                p.row_token[row] = (int)(blockIdx.x * PLAN_TILE) + t;
                p.row_slot[row] = (int)first + i;
                p.row_weight[row] = weight[b];
            }
            p.row_of[first + i] = row;
        }
    }
    pad_rows(p, rows);
    if (blockIdx.x == 0) keep_totals(p, total, &valid);
}

} // namespace moei

bool moei_cuda_plan_dropless(const moei_team *team, const moei_plan_args *args) {
    using namespace moei;
    const cudaStream_t stream = stream_of(team);
    const int64_t n_tiles = moei_route_tiles(args->n_tokens);
    if (args->capacity_of || args->rank_major || args->n_experts > PLAN_EXPERTS || n_tiles > PLAN_TILES)
        return false;
    const unsigned tiles = (unsigned)n_tiles;
    if (!args->counted && tiles > 0) count_tile_kernel<<<tiles, PLAN_THREADS, 0, stream>>>(*args);
    plan_dropless_kernel<<<tiles ? tiles : 1, PLAN_THREADS, 0, stream>>>(*args);
    return true;
}
