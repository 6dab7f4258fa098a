/* route_few_sm90.cu: the router for up to 16 tokens: logits[T,E] = x gate^T, softmax, exact top-k. One
 * cluster: a block has every eighth sixteen of experts, its warps share the sum over d; then a block has
 * every eighth token, for which 128 threads count how many experts come before theirs. It may start before
 * the kernel ahead of it has ended, and asks for the gate in L2 meanwhile. Source: docs/kernels-cuda.md,
 * few tokens.
 */
#include "kernel/cuda/cuda_kernel.h"
#include "kernel/cuda/early.cuh"
#include "kernel/cuda/select.cuh"
#include "kernel/cuda/sm90.cuh"

namespace moei {

enum { ROUTE_RANKS = 8, ROUTE_WARPS = 16, ROUTE_THREADS = 32 * ROUTE_WARPS, ROUTE_EXPERTS = 256 };
enum { OWN_EXPERTS = ROUTE_EXPERTS / ROUTE_RANKS, STEP_K = 32 }; /* a warp's step */
enum { SELECTORS = 128, SELECTED = ROUTE_THREADS / SELECTORS };  /* threads a token, tokens at once */
static_assert(MOEI_CUDA_ROUTE_FEW <= ROUTE_RANKS * SELECTED, "each token has threads");

template <int TILES> struct RouteShared {
    float part[ROUTE_WARPS][TILES][32][4]; /* results of 16 experts x 8 tokens as mma has them */
    float own[TILES * 8][OWN_EXPERTS];
    uint32_t count[ROUTE_EXPERTS];
    alignas(16) uint32_t key[SELECTED][ROUTE_EXPERTS];
    float logit[SELECTED][ROUTE_EXPERTS];
    int32_t chosen[SELECTED][32];
};

__device__ __forceinline__ uint4 load_row(const void *matrix, int64_t row, int64_t ld, int64_t k,
                                          bool valid) {
    return valid ? __ldg((const uint4 *)((const bf16 *)matrix + row * ld + k)) : make_uint4(0, 0, 0, 0);
}

/* The warp's share of the sums of 16 experts from `first` on, all tokens. Which steps stand beside each other
 * in a product is the same for both operands, and else does not matter: a lane has eight of a row. */
template <int TILES>
__device__ __forceinline__ void multiply_gate(const moei_router_args &p, int first, float (&acc)[TILES][4]) {
    enum { AHEAD = 4 / TILES };
    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, row = lane >> 2;
    for (int64_t k0 = warp * STEP_K; k0 < p.d; k0 += AHEAD * ROUTE_WARPS * STEP_K) {
        uint4 low[AHEAD], high[AHEAD], x[AHEAD][TILES];
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            const int64_t k = k0 + i * ROUTE_WARPS * STEP_K + (lane & 3) * 8;
            low[i] = load_row(p.gate, first + row, p.d, k, k < p.d && first + row < p.n_experts);
            high[i] = load_row(p.gate, first + row + 8, p.d, k, k < p.d && first + row + 8 < p.n_experts);
#pragma unroll
            for (int t = 0; t < TILES; ++t)
                x[i][t] = load_row(p.x, t * 8 + row, p.ldx, k, k < p.d && t * 8 + row < p.n_tokens);
        }
#pragma unroll
        for (int i = 0; i < AHEAD; ++i)
#pragma unroll
            for (int t = 0; t < TILES; ++t) {
                mma16816(acc[t], low[i].x, high[i].x, low[i].y, high[i].y, x[i][t].x, x[i][t].y);
                mma16816(acc[t], low[i].z, high[i].z, low[i].w, high[i].w, x[i][t].z, x[i][t].w);
            }
    }
}

/* Logits of the block's experts -> s.own, the warps' shares in order. */
template <int TILES>
__device__ __forceinline__ void make_logits(const moei_router_args &p, RouteShared<TILES> &s, int rank) {
    for (int j = 0; j < OWN_EXPERTS / 16; ++j) {
        const int first = (j * ROUTE_RANKS + rank) * 16;
        if (first >= p.n_experts) return;
        float acc[TILES][4] = {};
        multiply_gate<TILES>(p, first, acc);
#pragma unroll
        for (int t = 0; t < TILES; ++t)
            *(float4 *)s.part[threadIdx.x / 32][t][threadIdx.x & 31] =
                make_float4(acc[t][0], acc[t][1], acc[t][2], acc[t][3]);
        __syncthreads();
        for (int i = threadIdx.x; i < TILES * 128; i += ROUTE_THREADS) {
            const int tile = i / 128, lane = i % 128 / 4, at = i % 4;
            float sum = 0;
#pragma unroll
            for (int w = 0; w < ROUTE_WARPS; ++w) sum += s.part[w][tile][lane][at];
            s.own[tile * 8 + lane % 4 * 2 + at % 2][j * 16 + lane / 4 + at / 2 * 8] = sum;
        }
        __syncthreads();
    }
}

/* Experts and weights of a token whose logits and keys are in place, by SELECTORS threads. */
template <int TILES>
__device__ __forceinline__ void select_token(const moei_router_args &p, RouteShared<TILES> &s, int slot,
                                             int64_t token) {
    const int thread = threadIdx.x % SELECTORS, lane = threadIdx.x & 31;
    const uint32_t *key = s.key[slot];
    const float *logit = s.logit[slot];
    uint32_t best = 0;
    bool finite = true;
    for (int e = lane; e < p.n_experts; e += 32) {
        best = max(best, key[e]);
        finite &= fabsf(logit[e]) < INFINITY;
    }
    const float top = key_score(__reduce_max_sync(~0u, best));
    float sum = 0;
    for (int e = lane; e < p.n_experts; e += 32) sum += __expf(logit[e] - top);
    sum = warp_sum(sum);
    finite = __all_sync(~0u, finite);
    for (int e = thread; e < p.n_experts; e += SELECTORS) {
        const uint32_t own = key[e];
        int before = 0;
#pragma unroll 8
        for (int i = 0; i < p.n_experts; i += 4) { /* keys past the last expert are 0 */
            const uint4 k = *(const uint4 *)(key + i);
            before += (k.x > own || (k.x == own && i < e)) + (k.y > own || (k.y == own && i + 1 < e)) +
                      (k.z > own || (k.z == own && i + 2 < e)) + (k.w > own || (k.w == own && i + 3 < e));
        }
        if (before < p.top_k) s.chosen[slot][before] = e;
    }
    named_barrier(1 + slot, SELECTORS);
    const bool masked = p.mask && !p.mask[token], good = finite && !masked;
    if (good)
        for (int e = thread; p.prob && e < p.n_experts; e += SELECTORS)
            p.prob[token * p.n_experts + e] = __expf(logit[e] - top) * (1.f / sum);
    if (thread >= 32) return;
    if (!good) {
        leave_out(p, token, masked ? 0.f : NAN, lane, 32);
        if (!masked && lane == 0) tell(p, token, MOEI_FAULT_LOGIT);
        return;
    }
    const bool mine = lane < p.top_k;
    const int expert = mine ? s.chosen[slot][lane] : 0;
    const float own = mine ? __expf(logit[expert] - top) : 0, chosen = warp_sum(own);
    if (mine) {
        p.expert[token * p.top_k + lane] = expert;
        p.weight[token * p.top_k + lane] = (float)p.scale * own / weight_divisor(p, sum, chosen);
        if (p.tile_count) atomicAdd(at_rank(s.count + expert, 0), 1);
    }
    if (lane == 0) p.lse[token] = top + __logf(sum);
}

template <int TILES>
__global__ void __cluster_dims__(ROUTE_RANKS, 1, 1)
    __launch_bounds__(ROUTE_THREADS, 2) /* beside the experts' first blocks */
    route_few_kernel(const __grid_constant__ moei_router_args p) {
    __shared__ RouteShared<TILES> s;
    const int thread = threadIdx.x, slot = thread / SELECTORS, rank = (int)cluster_rank();
    const int token = slot * ROUTE_RANKS + rank, padded = (p.n_experts + 3) / 4 * 4;
    let_next_start();
    for (int j = 0; j < OWN_EXPERTS / 16; ++j) {
        const int expert = (j * ROUTE_RANKS + rank) * 16 + thread / 32;
        const char *row = (const char *)p.gate + (int64_t)expert * p.d * 2;
        for (int64_t at = thread % 32 * 128; expert < p.n_experts && at < 2 * p.d; at += 32 * 128)
            prefetch_line(row + at);
    }
    if (thread < ROUTE_EXPERTS) s.count[thread] = 0;
    await_earlier();
    make_logits<TILES>(p, s, rank);
    cluster_sync();
    if (token < p.n_tokens) {
        for (int e = thread % SELECTORS; e < padded; e += SELECTORS) {
            const float logit =
                e < p.n_experts
                    ? load_of_rank(smem_address(&s.own[token][e / 16 / ROUTE_RANKS * 16 + e % 16]),
                                   (uint32_t)(e / 16 % ROUTE_RANKS))
                    : 0;
            s.logit[slot][e] = logit, s.key[slot][e] = e < p.n_experts ? key_of(logit) : 0;
            if (p.logits && e < p.n_experts) p.logits[(int64_t)token * p.n_experts + e] = logit;
        }
    }
    __syncwarp();
    cluster_arrive(); /* what others have here is read */
    if (token < p.n_tokens) {
        named_barrier(1 + slot, SELECTORS);
        select_token<TILES>(p, s, slot, token);
    }
    __syncwarp();
    cluster_wait();
    if (!p.tile_count) return;
    cluster_sync(); /* all have counted */
    if (rank == 0 && thread < padded) p.tile_count[thread] = (uint8_t)s.count[thread];
}

} // namespace moei

int moei_cuda_route_few(const moei_team *team, const moei_router_args *args) {
    using namespace moei;
    if (args->n_tokens > MOEI_CUDA_ROUTE_FEW || !moei_cuda_route_fits(args)) return cudaErrorNotSupported;
    const auto kernel = args->n_tokens <= 8 ? route_few_kernel<1> : route_few_kernel<2>;
    return launch_early(kernel, dim3(ROUTE_RANKS), ROUTE_THREADS, 0, stream_of(team), *args);
}
