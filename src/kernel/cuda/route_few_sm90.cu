/* route_few_sm90.cu: the router for up to 128 tokens: logits[T,E] = x gate^T, softmax, exact top-k. A cluster
 * has eight tokens. Its blocks divide the experts between them, 16 at a time in turn, and the warps of a
 * block share the sum over d. Each logit is sent to the block that has its token. There one warp picks the
 * best expert again and again, while another sums up the softmax. The kernel may start before the one ahead
 * of it has ended, and meanwhile prefetches the gate and the tokens into L2. Source: docs/kernels-cuda.md,
 * few tokens.
 */
#include "kernel/cuda/cuda_kernel.h"
#include "kernel/cuda/early.cuh"
#include "kernel/cuda/select.cuh"
#include "kernel/cuda/sm90.cuh"

namespace moei {

enum { ROUTE_RANKS = 8, ROUTE_WARPS = 16, ROUTE_THREADS = 32 * ROUTE_WARPS, ROUTE_EXPERTS = 256 };
enum { OWN_EXPERTS = ROUTE_EXPERTS / ROUTE_RANKS, STEP_K = 32 }; /* a warp's step */
enum { CHOOSER, SUMMER, MEET = 1 };                              /* warps that share a token; their barrier */

struct Softmax {
    float top, sum; /* the largest logit, of exp(logit - top) */
    bool finite;
};
struct RouteShared {
    float part[ROUTE_WARPS][32][4]; /* results of 16 experts x 8 tokens as mma has them */
    uint32_t count[ROUTE_EXPERTS];
    alignas(16) float logit[ROUTE_EXPERTS]; /* of the block's token */
    uint64_t sent;                          /* all of them are here */
    Softmax softmax;
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

/* Logits of the block's experts, the warps' shares in order, to the blocks that have the tokens. */
__device__ __forceinline__ void make_logits(const moei_router_args &p, RouteShared &s, int first_token,
                                            int rank) {
    for (int j = 0; j < OWN_EXPERTS / 16; ++j) {
        const int first = (j * ROUTE_RANKS + rank) * 16;
        if (first < p.n_experts) {
            float acc[4] = {};
            multiply_gate(p, first, first_token, acc);
            *(float4 *)s.part[threadIdx.x / 32][threadIdx.x & 31] =
                make_float4(acc[0], acc[1], acc[2], acc[3]);
        }
        if (j == 0) cluster_wait(); /* all wait for what is sent */
        __syncthreads();
        const int lane = threadIdx.x / 4, at = threadIdx.x % 4;
        const int expert = first + lane / 4 + at / 2 * 8, to = lane % 4 * 2 + at % 2;
        if (threadIdx.x < 128 && expert < p.n_experts && first_token + to < p.n_tokens) {
            float sum = 0;
#pragma unroll
            for (int w = 0; w < ROUTE_WARPS; ++w) sum += s.part[w][lane][at];
            send_to_rank(smem_address(&s.logit[expert]), sum, smem_address(&s.sent), (uint32_t)to);
        }
        if ((j + 1) * ROUTE_RANKS * 16 >= p.n_experts) return;
        __syncthreads();
    }
}

/* Of a token whose logits are in place; one warp. */
__device__ __forceinline__ Softmax sum_up(const moei_router_args &p, const RouteShared &s) {
    const int lane = threadIdx.x & 31;
    uint32_t best = 0;
    bool finite = true;
    for (int e = lane; e < p.n_experts; e += 32) {
        best = max(best, key_of(s.logit[e]));
        finite &= fabsf(s.logit[e]) < INFINITY;
    }
    const float top = key_score(__reduce_max_sync(~0u, best));
    float sum = 0;
    for (int e = lane; e < p.n_experts; e += 32) sum += __expf(s.logit[e] - top);
    return {top, warp_sum(sum), (bool)__all_sync(~0u, finite)};
}

/* The best experts in order, of equal ones the first; one warp, of which a lane has OWN experts in a row. It
 * sorts them once, then the best of 32 heads is taken again and again. */
template <int OWN> __device__ __forceinline__ void choose(const moei_router_args &p, RouteShared &s) {
    const int lane = threadIdx.x & 31;
    uint32_t key[OWN], expert[OWN];
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        expert[i] = lane * OWN + i;
        key[i] = lane * OWN + i < p.n_experts ? key_of(s.logit[lane * OWN + i]) : 0;
    }
#pragma unroll
    for (int last = OWN - 1; last > 0; --last)
#pragma unroll
        for (int i = 0; i < last; ++i) {
            const uint32_t k = key[i], e = expert[i];
            const bool swap = key[i + 1] > k; /* equal ones keep their order */
            key[i] = swap ? key[i + 1] : k, expert[i] = swap ? expert[i + 1] : e;
            key[i + 1] = swap ? k : key[i + 1], expert[i + 1] = swap ? e : expert[i + 1];
        }
    for (int k = 0; k < p.top_k; ++k) {
        const uint32_t best = __reduce_max_sync(~0u, key[0]);
        const bool taken = lane == __ffs((int)__ballot_sync(~0u, key[0] == best)) - 1;
        if (taken) s.chosen[k] = (int32_t)expert[0];
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            key[i] = !taken ? key[i] : i + 1 < OWN ? key[(i + 1) % OWN] : 0;
            expert[i] = taken ? expert[(i + 1) % OWN] : expert[i];
        }
    }
    __syncwarp();
}

/* Experts and weights of a token whose logits are in place. */
__device__ __forceinline__ void store_choices(const moei_router_args &p, RouteShared &s, int64_t token,
                                              bool masked) {
    const int lane = threadIdx.x & 31;
    const Softmax all = s.softmax;
    if (masked || !all.finite) {
        leave_out(p, token, masked ? 0.f : NAN, lane, 32);
        if (!masked && lane == 0) tell(p, token, MOEI_FAULT_LOGIT);
        return;
    }
    const bool mine = lane < p.top_k;
    const int expert = mine ? s.chosen[lane] : 0;
    const float own = mine ? __expf(s.logit[expert] - all.top) : 0, chosen = warp_sum(own);
    if (mine) {
        p.expert[token * p.top_k + lane] = expert;
        p.weight[token * p.top_k + lane] = (float)p.scale * own / weight_divisor(p, all.sum, chosen);
        if (p.tile_count) atomicAdd(at_rank(s.count + expert, 0), 1);
    }
    if (lane == 0) p.lse[token] = all.top + __logf(all.sum);
}
__device__ __forceinline__ void select_token(const moei_router_args &p, RouteShared &s, int64_t token) {
    const int warp = threadIdx.x / 32;
    const bool masked = p.mask && !p.mask[token];
    if (warp == CHOOSER) {
        if (p.n_experts <= 128)
            choose<4>(p, s);
        else
            choose<8>(p, s);
        named_barrier(MEET, 64);
        store_choices(p, s, token, masked);
    } else if (warp == SUMMER) {
        const Softmax all = sum_up(p, s);
        if ((threadIdx.x & 31) == 0) s.softmax = all;
        named_barrier_arrive(MEET, 64);
    } else if (p.prob) {
        const Softmax all = sum_up(p, s);
        for (int e = threadIdx.x - 64; all.finite && !masked && e < p.n_experts; e += ROUTE_THREADS - 64)
            p.prob[token * p.n_experts + e] = __expf(s.logit[e] - all.top) * (1.f / all.sum);
    }
}

static __global__ void __cluster_dims__(ROUTE_RANKS, 1, 1)
    __launch_bounds__(ROUTE_THREADS, 2) /* beside the experts' first blocks */
    route_few_kernel(const __grid_constant__ moei_router_args p) {
    __shared__ RouteShared s;
    const int thread = threadIdx.x, rank = (int)cluster_rank(), padded = (p.n_experts + 3) / 4 * 4;
    const int first_token = (int)(blockIdx.x / ROUTE_RANKS * ROUTE_RANKS), token = first_token + rank;
    const bool selects = (int)token < (int)p.n_tokens;
    const uint32_t sent = smem_address(&s.sent);
    let_next_start();
    if (thread == 0) {
        mbar_init(sent, 1);
        mbar_init_done();
        if (selects) mbar_arrive_expect(sent, (uint32_t)p.n_experts * sizeof(float));
    }
    if (thread < ROUTE_EXPERTS) s.count[thread] = 0;
    __syncwarp();
    cluster_arrive();
    for (int j = 0; j < OWN_EXPERTS / 16; ++j) {
        const int expert = (j * ROUTE_RANKS + rank) * 16 + thread / 32;
        const char *row = (const char *)p.gate + (int64_t)expert * p.d * 2;
        for (int64_t at = thread % 32 * 128; expert < p.n_experts && at < 2 * p.d; at += 32 * 128)
            prefetch_line(row + at);
    }
    for (int64_t at = thread * 128; selects && at < 2 * p.d; at += ROUTE_THREADS * 128)
        prefetch_line((const char *)p.x + (int64_t)token * p.ldx * 2 + at);
    await_earlier();
    make_logits(p, s, first_token, rank);
    if (selects) {
        mbar_wait_sent(sent, 0);
        if (p.logits && thread < p.n_experts) p.logits[token * p.n_experts + thread] = s.logit[thread];
        select_token(p, s, token);
    }
    if (!p.tile_count) return;
    __syncwarp();
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
