/* plan_dropless_cuda.cu: the plan if nothing is dropped, for any NVIDIA GPU from sm_80, up to 256 experts and
 * 32 choices a token: scan and scatter in one kernel, expert[T,K] -> offset[E+1], row_token, row_slot,
 * row_weight[R], row_of[T,K]. A block takes 128 tokens. It sums the tiles' counts itself, so no block waits
 * for another; a token's rank inside the block is a population count of those before it. Rows are first put
 * in order in shared memory, so that those of an expert are stored side by side. The counts that all blocks
 * together read grow with the square of the tokens; that limits their number.
 */
#include "kernel/cuda/cuda_kernel.h"
#include "kernel/cuda/portable.cuh"

namespace moei {

enum { PLAN_THREADS = 512, PLAN_EXPERTS = 256, PLAN_CHOICES = 32 };
enum { PLAN_TOKENS = 2 * MOEI_ROUTE_TILE, PLAN_WORDS = PLAN_TOKENS / 32 };
enum { PLAN_EACH = PLAN_TOKENS * PLAN_CHOICES / PLAN_THREADS }; /* choices of a thread at most */
enum { PLAN_BATCH = 12 };                                       /* loads of a thread in flight */
/* 131072 tokens: of 256 experts all blocks then read 512 MiB of counts from L2, some 100 us. */
enum { PLAN_TILES = 2048 };
enum { COUNT_THREADS = 256 };
static_assert((int)COUNT_THREADS == (int)PLAN_EXPERTS, "a thread an expert");

/* What the router's kernel counts too, where it did the routing. */
static __global__ void __launch_bounds__(COUNT_THREADS) count_tile_kernel(const moei_plan_args p) {
    __shared__ uint32_t count[PLAN_EXPERTS];
    const int64_t first = (int64_t)blockIdx.x * MOEI_ROUTE_TILE * p.top_k;
    const int64_t end = min(first + (int64_t)MOEI_ROUTE_TILE * p.top_k, p.n_tokens * p.top_k);
    const int pitch = (p.n_experts + 3) / 4 * 4;
    count[threadIdx.x] = 0;
    __syncthreads();
    for (int64_t i = first + threadIdx.x; i < end; i += COUNT_THREADS)
        if (p.expert[i] >= 0) atomicAdd(count + p.expert[i], 1);
    __syncthreads();
    if ((int)threadIdx.x < pitch)
        ((uint8_t *)p.tile_count)[(int64_t)blockIdx.x * pitch + threadIdx.x] = (uint8_t)count[threadIdx.x];
}

struct PlanShared {
    __align__(16) int total[PLAN_EXPERTS];     /* rows of e, in all */
    int before[PLAN_EXPERTS];                  /* of blocks before this one */
    int first[PLAN_EXPERTS];                   /* of the block's own; then where they begin in `row` */
    int start[PLAN_EXPERTS];                   /* where e's rows begin among all */
    uint32_t member[PLAN_EXPERTS][PLAN_WORDS]; /* bit t: token t of the block chose e */
    uint2 row[PLAN_TOKENS * PLAN_CHOICES];     /* the block's own, in order: choice and expert, weight */
    int rows, own_rows, valid;
};

/* Four counts of 8 bits a word; summed as 16 bits, which hold those of 1023 tiles. */
__device__ __forceinline__ void sum_tiles(const moei_plan_args &p, PlanShared &s) {
    const int words = (p.n_experts + 3) / 4, lanes = PLAN_THREADS / words, word = threadIdx.x % words;
    const int lane = threadIdx.x / words, n_tiles = (int)ceil_div(p.n_tokens, MOEI_ROUTE_TILE);
    const uint32_t *counts = (const uint32_t *)p.tile_count + word;
    if (lane >= lanes) return;
    uint32_t sum[2] = {0}, before[2] = {0}, own[2] = {0};
    for (int first = lane; first < n_tiles; first += PLAN_BATCH * lanes) {
        uint32_t four[PLAN_BATCH];
#pragma unroll
        for (int b = 0; b < PLAN_BATCH; ++b) {
            const int tile = first + b * lanes;
            four[b] = tile < n_tiles ? __ldg(counts + (int64_t)tile * words) : 0;
        }
#pragma unroll
        for (int b = 0; b < PLAN_BATCH; ++b) {
            const int block = (first + b * lanes) / 2;
#pragma unroll
            for (int odd = 0; odd < 2; ++odd) {
                const uint32_t two = four[b] >> (8 * odd) & 0x00FF00FFu;
                sum[odd] += two;
                before[odd] += block < (int)blockIdx.x ? two : 0;
                own[odd] += block == (int)blockIdx.x ? two : 0;
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int shift = 8 * (i & 2), e = 4 * word + i;
        atomicAdd(&s.total[e], (int)(sum[i & 1] >> shift & 0xFFFF));
        atomicAdd(&s.before[e], (int)(before[i & 1] >> shift & 0xFFFF));
        if (own[0] | own[1]) atomicAdd(&s.first[e], (int)(own[i & 1] >> shift & 0xFFFF));
    }
}

/* v: eight numbers of each lane -> sums of those before them; the sum of all. Whole warp. */
__device__ __forceinline__ int scan_warp(int (&v)[8]) {
    const int lane = threadIdx.x & 31;
    int own = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) own += v[i];
    int upto = own;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const int left = __shfl_up_sync(~0u, upto, step);
        if (lane >= step) upto += left;
    }
    int run = upto - own;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const int next = run + v[i];
        v[i] = run, run = next;
    }
    return __shfl_sync(~0u, upto, 31);
}

/* Where the rows of each expert begin: warp 0 of all, warp 1 of the block's own. */
__device__ __forceinline__ void scan_experts(PlanShared &s) {
    static_assert(PLAN_EXPERTS == 32 * 8, "eight experts a lane");
    const int warp = threadIdx.x / 32, e0 = (threadIdx.x & 31) * 8;
    __align__(16) int v[8];
    if (warp > 1) return;
    const int *from = warp == 0 ? s.total : s.first;
#pragma unroll
    for (int i = 0; i < 8; i += 4) *(int4 *)&v[i] = *(const int4 *)&from[e0 + i];
    (warp == 0 ? s.rows : s.own_rows) = scan_warp(v);
    int *to = warp == 0 ? s.start : s.first;
#pragma unroll
    for (int i = 0; i < 8; i += 4) *(int4 *)&to[e0 + i] = *(const int4 *)&v[i];
}

/* Counts that are nobody's tile: of experts, for the step, of real tokens. */
__device__ __forceinline__ void keep_totals(const moei_plan_args &p, PlanShared &s) {
    const int thread = threadIdx.x;
    if (thread < p.n_experts) {
        p.routed[thread] = p.kept[thread] = s.total[thread];
        if (p.step_rows) p.step_rows[thread] += s.total[thread];
        p.offset[thread + 1] = s.start[thread] + s.total[thread];
    }
    int real = 0;
    for (int64_t t = thread; p.mask && t < p.n_tokens; t += PLAN_THREADS) real += p.mask[t] != 0;
    atomicAdd(&s.valid, real);
    __syncthreads();
    if (thread != 0) return;
    p.offset[0] = 0;
    *p.n_valid = p.mask ? s.valid : p.n_tokens;
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

/* The last block has no tokens: it keeps the totals. */
static __global__ void __launch_bounds__(PLAN_THREADS)
    plan_dropless_kernel(const __grid_constant__ moei_plan_args p) {
    __shared__ PlanShared s;
    const int thread = threadIdx.x;
    const int64_t first_token = (int64_t)blockIdx.x * PLAN_TOKENS, first = first_token * p.top_k;
    const int slots = (int)max(min((int64_t)PLAN_TOKENS * p.top_k, p.n_tokens * p.top_k - first), (int64_t)0);
    int expert[PLAN_EACH];
    float weight[PLAN_EACH];
#pragma unroll
    for (int i = 0; i < PLAN_EACH; ++i) {
        const int at = i * PLAN_THREADS + thread;
        expert[i] = at < slots ? __ldg(p.expert + first + at) : -1;
        weight[i] = at < slots ? __ldg(p.weight + first + at) : 0;
    }
    if (thread == 0) s.valid = 0;
    for (int e = thread; e < PLAN_EXPERTS; e += PLAN_THREADS) {
        s.before[e] = s.total[e] = s.first[e] = 0;
        for (int word = 0; word < PLAN_WORDS; ++word) s.member[e][word] = 0;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < PLAN_EACH; ++i) {
        const int t = (i * PLAN_THREADS + thread) / p.top_k;
        if (expert[i] >= 0) atomicOr(&s.member[expert[i]][t / 32], 1u << (t & 31));
    }
    sum_tiles(p, s);
    __syncthreads();
    scan_experts(s);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < PLAN_EACH; ++i) {
        const int at = i * PLAN_THREADS + thread, t = at / p.top_k, e = expert[i];
        int row = -1;
        if (e >= 0) {
            int rank = __popc(s.member[e][t / 32] & ((1u << (t & 31)) - 1));
            for (int word = 0; word < t / 32; ++word) rank += __popc(s.member[e][word]);
            s.row[s.first[e] + rank] = make_uint2((uint32_t)(at << 8 | e), __float_as_uint(weight[i]));
            row = s.start[e] + s.before[e] + rank;
        }
        if (at < slots) p.row_of[first + at] = row;
    }
    __syncthreads();
    for (int i = thread; i < s.own_rows; i += PLAN_THREADS) {
        const uint2 own = s.row[i];
        const int e = (int)(own.x & 255), at = (int)(own.x >> 8),
                  row = s.start[e] + s.before[e] + i - s.first[e];
        p.row_token[row] = (int)first_token + at / p.top_k;
        p.row_slot[row] = (int)first + at;
        p.row_weight[row] = __uint_as_float(own.y);
    }
    pad_rows(p, s.rows);
    if (blockIdx.x == gridDim.x - 1) keep_totals(p, s);
}

} // namespace moei

bool moei_cuda_plan_dropless(const moei_team *team, const moei_plan_args *args) {
    using namespace moei;
    const cudaStream_t stream = stream_of(team);
    const int64_t n_tiles = moei_route_tiles(args->n_tokens);
    if (args->capacity_of || args->rank_major || args->n_experts > PLAN_EXPERTS ||
        args->top_k > PLAN_CHOICES || n_tiles > PLAN_TILES)
        return false;
    if (!args->counted && n_tiles > 0)
        count_tile_kernel<<<(unsigned)n_tiles, COUNT_THREADS, 0, stream>>>(*args);
    const unsigned blocks = (unsigned)ceil_div(args->n_tokens, PLAN_TOKENS) + 1;
    plan_dropless_kernel<<<blocks, PLAN_THREADS, 0, stream>>>(*args);
    return true;
}
