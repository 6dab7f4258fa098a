/* route_few_sm90.cu: the router for up to 128 tokens: logits[T,E] = x gate^T, softmax, exact top-k. A cluster
 * has eight tokens: a block every eighth sixteen of experts, whose sum over d its warps share; then a block
 * has one token, for which four threads an expert count how many come before it. It may start before the
 * kernel ahead of it has ended, and asks for the gate and tokens in L2 meanwhile. Source:
 * docs/kernels-cuda.md, few tokens.
 */
#include "kernel/cuda/cuda_kernel.h"
#include "kernel/cuda/early.cuh"
#include "kernel/cuda/select.cuh"
#include "kernel/cuda/sm90.cuh"

namespace moei {

enum { ROUTE_RANKS = 8, ROUTE_WARPS = 16, ROUTE_THREADS = 32 * ROUTE_WARPS, ROUTE_EXPERTS = 256 };
enum { OWN_EXPERTS = ROUTE_EXPERTS / ROUTE_RANKS, STEP_K = 32 };   /* a warp's step */
enum { COUNTERS = 4, COUNTED_AT_ONCE = ROUTE_THREADS / COUNTERS }; /* threads of an expert */

struct RouteShared {
    float part[ROUTE_WARPS][32][4]; /* results of 16 experts x 8 tokens as mma has them */
    float own[ROUTE_RANKS][OWN_EXPERTS];
    uint32_t count[ROUTE_EXPERTS];
    alignas(16) uint32_t key[ROUTE_EXPERTS]; /* of the block's token */
    float logit[ROUTE_EXPERTS];
    int32_t chosen[32];
};

__device__ __forceinline__ uint4 load_row(const void *matrix, int64_t row, int64_t ld, int64_t k,
                                          bool valid) {
    return valid ? __ldg((const uint4 *)((const bf16 *)matrix + row * ld + k)) : make_uint4(0, 0, 0, 0);
}

/* The warp's share of the sums of 16 experts from `first` on, of the cluster's tokens. Which steps stand
 * beside each other in a product is the same for both operands, and else does not matter: a lane has eight of
 * a row. */
__device__ __forceinline__ void multiply_gate(const moei_router_args &p, int first, int first_token,
                                              float (&acc)[4]) {
    enum { AHEAD = 4 };
    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, row = lane >> 2;
    const int64_t token = first_token + row;
    for (int64_t k0 = warp * STEP_K; k0 < p.d; k0 += AHEAD * ROUTE_WARPS * STEP_K) {
        uint4 low[AHEAD], high[AHEAD], x[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            const int64_t k = k0 + i * ROUTE_WARPS * STEP_K + (lane & 3) * 8;
            low[i] = load_row(p.gate, first + row, p.d, k, k < p.d && first + row < p.n_experts);
            high[i] = load_row(p.gate, first + row + 8, p.d, k, k < p.d && first + row + 8 < p.n_experts);
            x[i] = load_row(p.x, token, p.ldx, k, k < p.d && token < p.n_tokens);
        }
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            mma16816(acc, low[i].x, high[i].x, low[i].y, high[i].y, x[i].x, x[i].y);
            mma16816(acc, low[i].z, high[i].z, low[i].w, high[i].w, x[i].z, x[i].w);
        }
    }
}

/* Logits of the block's experts -> s.own, the warps' shares in order. */
__device__ __forceinline__ void make_logits(const moei_router_args &p, RouteShared &s, int first_token,
                                            int rank) {
    for (int j = 0; j < OWN_EXPERTS / 16; ++j) {
        const int first = (j * ROUTE_RANKS + rank) * 16;
        if (first >= p.n_experts) return;
        float acc[4] = {};
        multiply_gate(p, first, first_token, acc);
        *(float4 *)s.part[threadIdx.x / 32][threadIdx.x & 31] = make_float4(acc[0], acc[1], acc[2], acc[3]);
        __syncthreads();
        if (threadIdx.x < 128) {
            const int lane = threadIdx.x / 4, at = threadIdx.x % 4;
            float sum = 0;
#pragma unroll
            for (int w = 0; w < ROUTE_WARPS; ++w) sum += s.part[w][lane][at];
            s.own[lane % 4 * 2 + at % 2][j * 16 + lane / 4 + at / 2 * 8] = sum;
        }
        __syncthreads();
    }
}

/* Experts and weights of a token whose logits and keys are in place, by the whole block. */
__device__ __forceinline__ void select_token(const moei_router_args &p, RouteShared &s, int64_t token) {
    const int thread = threadIdx.x, lane = threadIdx.x & 31;
    const uint32_t *key = s.key;
    const float *logit = s.logit;
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
    for (int first = 0; first < p.n_experts; first += COUNTED_AT_ONCE) {
        const int e = first + thread / COUNTERS;
        const uint32_t own = key[min(e, p.n_experts - 1)];
        int before = 0;
#pragma unroll 4
        for (int i = thread % COUNTERS * 4; i < p.n_experts; i += COUNTERS * 4) { /* keys past the last: 0 */
            const uint4 k = *(const uint4 *)(key + i);
            before += (k.x > own || (k.x == own && i < e)) + (k.y > own || (k.y == own && i + 1 < e)) +
                      (k.z > own || (k.z == own && i + 2 < e)) + (k.w > own || (k.w == own && i + 3 < e));
        }
        before += __shfl_xor_sync(~0u, before, 1);
        before += __shfl_xor_sync(~0u, before, 2);
        if (thread % COUNTERS == 0 && e < p.n_experts && before < p.top_k) s.chosen[before] = e;
    }
    __syncthreads();
    const bool masked = p.mask && !p.mask[token], good = finite && !masked;
    if (good)
        for (int e = thread; p.prob && e < p.n_experts; e += ROUTE_THREADS)
            p.prob[token * p.n_experts + e] = __expf(logit[e] - top) * (1.f / sum);
    if (thread >= 32) return;
    if (!good) {
        leave_out(p, token, masked ? 0.f : NAN, lane, 32);
        if (!masked && lane == 0) tell(p, token, MOEI_FAULT_LOGIT);
        return;
    }
    const bool mine = lane < p.top_k;
    const int expert = mine ? s.chosen[lane] : 0;
    const float own = mine ? __expf(logit[expert] - top) : 0, chosen = warp_sum(own);
    if (mine) {
        p.expert[token * p.top_k + lane] = expert;
        p.weight[token * p.top_k + lane] = (float)p.scale * own / weight_divisor(p, sum, chosen);
        if (p.tile_count) atomicAdd(at_rank(s.count + expert, 0), 1);
    }
    if (lane == 0) p.lse[token] = top + __logf(sum);
}

static __global__ void __cluster_dims__(ROUTE_RANKS, 1, 1)
    __launch_bounds__(ROUTE_THREADS, 2) /* beside the experts' first blocks */
    route_few_kernel(const __grid_constant__ moei_router_args p) {
    __shared__ RouteShared s;
    const int thread = threadIdx.x, rank = (int)cluster_rank(), padded = (p.n_experts + 3) / 4 * 4;
    const int first_token = (int)(blockIdx.x / ROUTE_RANKS * ROUTE_RANKS), token = first_token + rank;
    const bool selects = (int)token < (int)p.n_tokens;
    let_next_start();
    for (int j = 0; j < OWN_EXPERTS / 16; ++j) {
        const int expert = (j * ROUTE_RANKS + rank) * 16 + thread / 32;
        const char *row = (const char *)p.gate + (int64_t)expert * p.d * 2;
        for (int64_t at = thread % 32 * 128; expert < p.n_experts && at < 2 * p.d; at += 32 * 128)
            prefetch_line(row + at);
    }
    for (int64_t at = thread * 128; selects && at < 2 * p.d; at += ROUTE_THREADS * 128)
        prefetch_line((const char *)p.x + (int64_t)token * p.ldx * 2 + at);
    if (thread < ROUTE_EXPERTS) s.count[thread] = 0;
    await_earlier();
    make_logits(p, s, first_token, rank);
    cluster_sync();
    for (int e = thread; selects && e < padded; e += ROUTE_THREADS) {
        const bool valid = e < p.n_experts;
        const float logit = valid
                                ? load_of_rank(smem_address(&s.own[rank][e / 16 / ROUTE_RANKS * 16 + e % 16]),
                                               (uint32_t)(e / 16 % ROUTE_RANKS))
                                : 0;
        s.logit[e] = logit, s.key[e] = valid ? key_of(logit) : 0;
        if (p.logits && valid) p.logits[token * p.n_experts + e] = logit;
    }
    __syncwarp();
    cluster_arrive(); /* what others have here is read */
    if (selects) {
        __syncthreads();
        select_token(p, s, token);
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
    const bool counts = args->tile_count && args->n_tokens > ROUTE_RANKS; /* of several clusters */
    if (counts || args->n_tokens > MOEI_FEW_TOKENS || !moei_cuda_route_fits(args))
        return cudaErrorNotSupported;
    const unsigned clusters = (unsigned)ceil_div(args->n_tokens, ROUTE_RANKS);
    return launch_early(route_few_kernel, dim3(clusters * ROUTE_RANKS), ROUTE_THREADS, 0, stream_of(team),
                        *args);
}
