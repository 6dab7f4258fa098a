/* plan_cuda.cu: where each routed row stands, for any NVIDIA GPU from sm_80: a stable counting sort.
 * expert[T,K] -> offset[E+1], row_token, row_slot, row_weight[R], row_of[T,K]; run twice if a capacity drops
 * rows. Tiles of 1024 slots are counted, the counts are summed by expert and by tile, and each slot finds its
 * rank within its tile. So rows stand in the order of dispatch/plan.c, whichever block runs first.
 */
#include "kernel/cuda/cuda_kernel.h"
#include "kernel/cuda/portable.cuh"

namespace moei {

enum { TILE = MOEI_PLAN_TILE };

__device__ __forceinline__ int32_t *counts_of(const moei_plan_args &p) {
    return (int32_t *)p.tile_count;
}

/* The slot that stands at place i of the order: rank_major puts all first choices first. */
__device__ __forceinline__ int64_t slot_at(const moei_plan_args &p, int64_t i) {
    if (!p.rank_major) return i;
    return i % p.n_tokens * p.top_k + i / p.n_tokens;
}

/* Expert of the slot at place i, -1 where it is not routed or (kept_only) was dropped. */
__device__ __forceinline__ int32_t expert_at(const moei_plan_args &p, int64_t i, bool kept_only) {
    if (i >= p.n_tokens * p.top_k) return -1;
    const int64_t slot = slot_at(p, i);
    return kept_only && p.row_of[slot] < 0 ? -1 : p.expert[slot];
}

static __global__ void __launch_bounds__(TILE) count_kernel(const moei_plan_args p, bool kept_only) {
    extern __shared__ int32_t count[];
    for (int32_t e = threadIdx.x; e < p.n_experts; e += TILE) count[e] = 0;
    __syncthreads();
    const int32_t own = expert_at(p, (int64_t)blockIdx.x * TILE + threadIdx.x, kept_only);
    if (own >= 0) atomicAdd(&count[own], 1);
    __syncthreads();
    for (int32_t e = threadIdx.x; e < p.n_experts; e += TILE)
        counts_of(p)[(int64_t)blockIdx.x * p.n_experts + e] = count[e];
}

/* A thread an expert: its tiles' counts become the rows before each tile; `total` gets their sum. */
static __global__ void scan_tiles_kernel(const moei_plan_args p, int64_t n_tiles, int64_t *total) {
    const int32_t e = (int32_t)(blockIdx.x * blockDim.x + threadIdx.x);
    if (e >= p.n_experts) return;
    int32_t sum = 0;
    for (int64_t i = 0; i < n_tiles; ++i) {
        int32_t *at = counts_of(p) + i * p.n_experts + e;
        const int32_t own = *at;
        *at = sum;
        sum += own;
    }
    total[e] = sum;
}

/* offset[E + 1] from the rows of each expert; real tokens and the capacity they give. One block. */
static __global__ void __launch_bounds__(TILE)
    offsets_kernel(const moei_plan_args p, const int64_t *total, bool padded) {
    __shared__ int64_t chunk[TILE];
    __shared__ unsigned long long valid;
    const int thread = threadIdx.x;
    if (thread == 0) valid = 0;
    __syncthreads();
    int64_t own = 0;
    for (int64_t t = thread; t < p.n_tokens; t += TILE) own += !p.mask || p.mask[t];
    atomicAdd(&valid, (unsigned long long)own);
    __syncthreads();
    const int64_t capacity = p.capacity_of ? p.capacity_of[valid] : -1, n = p.n_tokens;
    const int64_t per_expert = capacity < n ? capacity : n;
    const int32_t each = (p.n_experts + TILE - 1) / TILE, first = thread * each;
    int64_t sum = 0;
    for (int32_t e = first; e < first + each && e < p.n_experts; ++e) sum += padded ? per_expert : total[e];
    chunk[thread] = sum;
    __syncthreads();
    for (int d = 1; d < TILE; d *= 2) {
        const int64_t below = thread >= d ? chunk[thread - d] : 0;
        __syncthreads();
        chunk[thread] += below;
        __syncthreads();
    }
    int64_t at = chunk[thread] - sum;
    for (int32_t e = first; e < first + each && e < p.n_experts; ++e) {
        p.offset[e] = at;
        at += padded ? per_expert : total[e];
    }
    if (thread == TILE - 1) p.offset[p.n_experts] = chunk[TILE - 1];
    if (thread == 0) *p.n_valid = (int64_t)valid;
    if (thread == 0) *p.capacity = capacity;
}

/* Every slot to its row: the rows before its expert, before its tile, before it in its tile. */
static __global__ void __launch_bounds__(TILE) scatter_kernel(const moei_plan_args p, bool kept_only) {
    __shared__ int32_t expert[TILE];
    const int64_t i = (int64_t)blockIdx.x * TILE + threadIdx.x;
    const int32_t own = expert_at(p, i, kept_only);
    expert[threadIdx.x] = own;
    __syncthreads();
    int32_t rank = 0;
    for (int j = 0; j < (int)threadIdx.x; ++j) rank += expert[j] == own;
    if (i >= p.n_tokens * p.top_k) return;
    const int64_t slot = slot_at(p, i);
    if (own < 0) {
        p.row_of[slot] = -1;
        return;
    }
    const int64_t r = p.offset[own] + counts_of(p)[(int64_t)blockIdx.x * p.n_experts + own] + rank;
    p.row_of[slot] = (int32_t)r;
    p.row_slot[r] = (int32_t)slot;
    p.row_token[r] = (int32_t)(slot / p.top_k);
    p.row_weight[r] = p.weight[slot];
}

__device__ __forceinline__ void clear_row(const moei_plan_args &p, int64_t r) {
    p.row_slot[r] = -1;
    p.row_token[r] = 0;
    p.row_weight[r] = 0.f;
}

/* Rows that no slot has: past an expert's own where padded, and past the last expert's. */
static __global__ void padding_kernel(const moei_plan_args p) {
    const int64_t end = p.offset[p.n_experts];
    for (int64_t r = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; r < p.n_rows;
         r += (int64_t)gridDim.x * blockDim.x) {
        if (r < end) {
            const int64_t per_expert = end / p.n_experts;
            if (!p.pad || r % per_expert < p.kept[r / per_expert]) continue;
        }
        clear_row(p, r);
    }
}

enum { INDEX_THREADS = 256, INDEX_EACH = 4 };

/* Where padded: rows that the index leaves may be any, so all are cleared before it. */
static __global__ void clear_rows_kernel(const moei_plan_args p) {
    const int64_t r = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (r < p.n_rows) clear_row(p, r);
}

/* A thread has a few slots, whose numbers are on their way together. Where not padded, rows past those of the
 * last expert are cleared too. */
static __global__ void __launch_bounds__(INDEX_THREADS) index_kernel(const moei_plan_args p) {
    const int64_t first = (int64_t)blockIdx.x * INDEX_THREADS * INDEX_EACH + threadIdx.x;
    const int64_t slots = p.n_tokens * p.top_k;
    let_next_start();
    int32_t row[INDEX_EACH];
    float weight[INDEX_EACH];
#pragma unroll
    for (int i = 0; i < INDEX_EACH; ++i) {
        const int64_t slot = first + i * INDEX_THREADS;
        row[i] = slot < slots ? p.row_of[slot] : -1;
        weight[i] = slot < slots ? p.weight[slot] : 0.f;
    }
#pragma unroll
    for (int i = 0; i < INDEX_EACH; ++i) {
        const uint32_t slot = (uint32_t)(first + i * INDEX_THREADS);
        if (row[i] < 0) continue;
        p.row_slot[row[i]] = (int32_t)slot;
        p.row_token[row[i]] = (int32_t)(slot / (uint32_t)p.top_k);
        p.row_weight[row[i]] = weight[i];
    }
    const int64_t step = (int64_t)gridDim.x * INDEX_THREADS,
                  own = (int64_t)blockIdx.x * INDEX_THREADS + threadIdx.x;
    for (int64_t r = p.offset[p.n_experts] + own; !p.pad && r < p.n_rows; r += step) clear_row(p, r);
}

/* Smaller key: larger weight, then the earlier slot. Weights are no NaN. */
__device__ __forceinline__ uint64_t drop_key(float weight, int32_t slot) {
    const uint32_t bits = __float_as_uint(weight + 0.f); /* -0 becomes 0 */
    const uint32_t ordered = bits & 0x80000000u ? bits : ~bits & 0x7FFFFFFFu;
    return (uint64_t)ordered << 32 | (uint32_t)slot;
}

/* A block an expert: the rows that exceed its capacity lose theirs. By weight, the last key kept is found
 * digit by digit (radix select); else the order they stand in tells. */
static __global__ void __launch_bounds__(256) drop_kernel(const moei_plan_args p) {
    __shared__ uint32_t histogram[256];
    __shared__ uint64_t prefix;
    __shared__ int64_t wanted;
    const int64_t begin = p.offset[blockIdx.x], n = p.offset[blockIdx.x + 1] - begin, capacity = *p.capacity;
    if (n <= capacity) return;
    if (!p.keep_heaviest || capacity <= 0) {
        for (int64_t i = capacity + threadIdx.x; i < n; i += 256) p.row_of[p.row_slot[begin + i]] = -1;
        return;
    }
    if (threadIdx.x == 0) {
        prefix = 0;
        wanted = capacity; /* which key of those that share the prefix */
    }
    for (int shift = 56; shift >= 0; shift -= 8) {
        histogram[threadIdx.x] = 0;
        __syncthreads();
        for (int64_t i = threadIdx.x; i < n; i += 256) {
            const uint64_t key = drop_key(p.row_weight[begin + i], p.row_slot[begin + i]);
            if (shift == 56 || (key ^ prefix) >> (shift + 8) == 0)
                atomicAdd(&histogram[key >> shift & 255], 1u);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            int digit = 0;
            while (wanted > (int64_t)histogram[digit]) wanted -= histogram[digit++];
            prefix |= (uint64_t)digit << shift;
        }
        __syncthreads();
    }
    for (int64_t i = threadIdx.x; i < n; i += 256)
        if (drop_key(p.row_weight[begin + i], p.row_slot[begin + i]) > prefix)
            p.row_of[p.row_slot[begin + i]] = -1;
}

/* kept[E] counts again after dropping; what the optimizer step reads. */
static __global__ void add_kept_kernel(const moei_plan_args p) {
    const int32_t e = (int32_t)(blockIdx.x * blockDim.x + threadIdx.x);
    if (e < p.n_experts) p.step_rows[e] += p.kept[e];
}

/* One counting sort; the rows of each expert go to `total`. */
static void sort_slots(const moei_plan_args *args, cudaStream_t stream, int64_t *total, bool kept_only,
                       bool padded) {
    const int64_t tiles = moei_plan_tiles(args->n_tokens * args->top_k);
    const unsigned experts = (unsigned)ceil_div(args->n_experts, 128);
    if (tiles > 0)
        count_kernel<<<(unsigned)tiles, TILE, (size_t)args->n_experts * sizeof(int32_t), stream>>>(*args,
                                                                                                   kept_only);
    scan_tiles_kernel<<<experts, 128, 0, stream>>>(*args, tiles, total);
    offsets_kernel<<<1, TILE, 0, stream>>>(*args, total, padded);
    if (tiles > 0) scatter_kernel<<<(unsigned)tiles, TILE, 0, stream>>>(*args, kept_only);
}

} // namespace moei

extern "C" void moei_plan__cuda(const moei_team *team, const moei_plan_args *args) {
    using namespace moei;
    const cudaStream_t stream = stream_of(team);
    const unsigned experts = (unsigned)args->n_experts;
    if (moei_cuda_plan_dropless(team, args)) return;
    sort_slots(args, stream, args->routed, false, false);
    if (args->capacity_of) {
        drop_kernel<<<experts, 256, 0, stream>>>(*args);
        sort_slots(args, stream, args->kept, true, args->pad);
    } else {
        cudaMemcpyAsync(args->kept, args->routed, experts * sizeof(int64_t), cudaMemcpyDeviceToDevice,
                        stream);
    }
    if (args->n_rows > 0)
        padding_kernel<<<(unsigned)(args->n_rows < 1 << 18 ? ceil_div(args->n_rows, 256) : 1024), 256, 0,
                         stream>>>(*args);
    if (args->step_rows) add_kept_kernel<<<(unsigned)ceil_div(args->n_experts, 128), 128, 0, stream>>>(*args);
}

extern "C" void moei_plan_index__cuda(const moei_team *team, const moei_plan_args *args) {
    using namespace moei;
    const int64_t slots = args->n_tokens * args->top_k;
    const int64_t blocks = ceil_div(slots, INDEX_THREADS * INDEX_EACH);
    if (args->pad && args->n_rows > 0)
        clear_rows_kernel<<<(unsigned)ceil_div(args->n_rows, 256), 256, 0, stream_of(team)>>>(*args);
    if (slots > 0) index_kernel<<<(unsigned)blocks, INDEX_THREADS, 0, stream_of(team)>>>(*args);
}
