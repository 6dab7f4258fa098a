/* route_sm90.cu: router in one kernel: logits[T,E] = x gate^T, softmax, exact top-k, rows per expert.
 * A block takes 128 tokens: a loading warp streams x and the gate, two warpgroups multiply, then each of
 * their warps selects for one pair of tokens after another. Two blocks are a cluster: either loads half of
 * each tile of the gate for both, which halves what L2 must deliver of it. Source: DESIGN section 2.
 */
#include "kernel/cuda/cuda_kernel.h"
#include "kernel/cuda/gemm_core.cuh"
#include "kernel/cuda/select.cuh"
#include "kernel/cuda/tensor_map.cuh"

namespace moei {

enum { ROUTE_THREADS = 288, SELECTORS = 256, ROUTE_M = MOEI_ROUTE_TILE };

template <int N> struct RouteLayout {
    static constexpr int STAGES = N == 256 ? 4 : 3;
    static constexpr int STAGE_BYTES = (ROUTE_M + N) * TILE_K * 2;
    static constexpr int PITCH = N + 8; /* of logits in floats: neighbouring rows use other banks */
    static constexpr int LOGIT_BYTES = ROUTE_M * PITCH * 4;
    static constexpr int COUNT = STAGES * STAGE_BYTES > LOGIT_BYTES ? STAGES *STAGE_BYTES : LOGIT_BYTES;
    static constexpr int BARRIERS = COUNT + N * 4;
    static constexpr int BYTES = BARRIERS + 16 * STAGES;
};

template <int N>
__device__ __forceinline__ void stream_operands(const CUtensorMap *map_x, const CUtensorMap *map_gate,
                                                uint32_t base, uint32_t bars, int k_blocks, int rank) {
    typedef RouteLayout<N> Layout;
    constexpr int HALF = N / PAIR;
    Ring<Layout::STAGES> ring;
    for (int kb = 0; kb < k_blocks; ++kb, ring.next()) {
        const uint32_t full = bars + 16 * ring.stage, to = base + ring.stage * Layout::STAGE_BYTES;
        mbar_wait(full + 8, ring.phase ^ 1);
        mbar_arrive_expect(full, Layout::STAGE_BYTES);
        tma_load(to, map_x, full, kb * TILE_K, blockIdx.x * ROUTE_M);
        tma_load_pair(to + (ROUTE_M + rank * HALF) * 128, map_gate, full, kb * TILE_K, rank * HALF, 0);
    }
}

/* Logits of 64 tokens of the warpgroup -> shared memory, over the stages, which all have been read. */
template <int N>
__device__ __forceinline__ void compute_logits(uint32_t base, uint32_t bars, int k_blocks, float *logits) {
    typedef RouteLayout<N> Layout;
    const int group = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x & 31;
    float acc[N / 2];
    Ring<Layout::STAGES> ring;
    for (int kb = 0; kb < k_blocks; ++kb, ring.next()) {
        const uint32_t full = bars + 16 * ring.stage, at = base + ring.stage * Layout::STAGE_BYTES;
        mbar_wait(full, ring.phase);
        wgmma_fence();
#pragma unroll
        for (int k16 = 0; k16 < TILE_K / 16; ++k16)
            Wgmma<N, false, false>::mma(acc, matrix_descriptor(at + group * 8192 + k16 * 32, 0),
                                        matrix_descriptor(at + ROUTE_M * 128 + k16 * 32, 0), (kb | k16) != 0);
        wgmma_commit();
        wgmma_wait<0>();
        release_stage(full + 8);
    }
    named_barrier(1, SELECTORS);
    float *row = logits + (group * 64 + warp * 16 + (lane >> 2)) * Layout::PITCH + (lane & 3) * 2;
#pragma unroll
    for (int j = 0; j < N / 8; ++j)
#pragma unroll
        for (int half = 0; half < 2; ++half)
            *(float2 *)(row + half * 8 * Layout::PITCH + j * 8) =
                make_float2(acc[4 * j + 2 * half], acc[4 * j + 2 * half + 1]);
    named_barrier(1, SELECTORS);
}

/* What the block's tokens choose, their logits, and how many rows that makes. */
template <int N>
__device__ __forceinline__ void select_tokens(const moei_router_args &p, const float *logits,
                                              uint32_t *count) {
    typedef RouteLayout<N> Layout;
    const int64_t first = (int64_t)blockIdx.x * ROUTE_M;
    const int thread = threadIdx.x, pitch = (p.n_experts + 3) / 4 * 4;
    Selection<N> selection;
#pragma unroll 1
    for (int r = thread / 32 * selection.TOKENS; r < ROUTE_M; r += SELECTORS / 32 * selection.TOKENS)
        if (first + r < p.n_tokens)
            selection.run(p, logits + r * Layout::PITCH, Layout::PITCH, first + r, count);
    if (p.logits)
        for (int i = thread; i < ROUTE_M * p.n_experts; i += SELECTORS) {
            const int r = i / p.n_experts, e = i - r * p.n_experts;
            if (first + r < p.n_tokens)
                p.logits[(first + r) * p.n_experts + e] = logits[r * Layout::PITCH + e];
        }
    named_barrier(1, SELECTORS);
    if (p.tile_count && thread < pitch && first < p.n_tokens)
        p.tile_count[(int64_t)blockIdx.x * pitch + thread] =
            thread < p.n_experts ? (uint8_t)count[thread] : 0;
}

template <int N>
__global__ void __cluster_dims__(PAIR, 1, 1) __launch_bounds__(ROUTE_THREADS, N == 256 ? 1 : 2)
    route_kernel(const __grid_constant__ moei_router_args p, const __grid_constant__ CUtensorMap map_x,
                 const __grid_constant__ CUtensorMap map_gate) {
    typedef RouteLayout<N> Layout;
    extern __shared__ __align__(1024) uint8_t raw[];
    const uint32_t base = smem_address(raw), bars = base + Layout::BARRIERS;
    float *logits = (float *)raw;
    uint32_t *count = (uint32_t *)(raw + Layout::COUNT);
    const int k_blocks = (int)((p.d + TILE_K - 1) / TILE_K), thread = threadIdx.x;
    if (thread == 0) {
        for (int s = 0; s < Layout::STAGES; ++s) {
            mbar_init(bars + 16 * s, 1);
            mbar_init(bars + 16 * s + 8, PAIR * SELECTORS / 32);
        }
        mbar_init_done();
    }
    if (thread < N) count[thread] = 0;
    __syncthreads();
    cluster_sync();
    if (thread < SELECTORS) {
        compute_logits<N>(base, bars, k_blocks, logits);
        select_tokens<N>(p, logits, count);
    } else if (thread == SELECTORS) {
        stream_operands<N>(&map_x, &map_gate, base, bars, k_blocks, (int)cluster_rank());
    }
    __syncwarp();
    cluster_sync(); /* the other block may still write here */
}

template <int N> static cudaError_t launch_route(const moei_team *team, const moei_router_args *args) {
    CUtensorMap map_x, map_gate;
    cudaError_t error =
        make_map(team, &map_x, args->x, args->d, args->n_tokens, 1, args->ldx, ROUTE_M, false);
    if (!error)
        error = make_map(team, &map_gate, args->gate, args->d, args->n_experts, 1, args->d, N / PAIR, true);
    if (!error)
        error = cudaFuncSetAttribute(route_kernel<N>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     RouteLayout<N>::BYTES);
    if (error) return error;
    const unsigned blocks = (unsigned)((args->n_tokens + ROUTE_M - 1) / ROUTE_M);
    if (blocks == 0) return cudaSuccess;
    route_kernel<N><<<(blocks + 1) / PAIR * PAIR, ROUTE_THREADS, RouteLayout<N>::BYTES, stream_of(team)>>>(
        *args, map_x, map_gate);
    return cudaPeekAtLastError();
}

} // namespace moei

/* Plain softmax over bf16 products, chosen among all experts. */
bool moei_cuda_route_fits(const moei_router_args *a) {
    return a->dtype == MOE_BF16 && a->score == MOEI_ROUTER_SOFTMAX && a->group_top_k == 0 &&
           !a->selection_bias && !a->replay_expert && a->n_tokens > 0 && a->n_experts <= 256 &&
           a->top_k <= 32 && a->top_k <= a->n_experts && a->d % 8 == 0 && a->ldx % 8 == 0 &&
           moei::aligned16(a->x) && moei::aligned16(a->gate);
}

int moei_cuda_route(const moei_team *team, const moei_router_args *args) {
    if (!moei_cuda_route_fits(args)) return cudaErrorNotSupported;
    if (args->n_experts <= 64) return moei::launch_route<64>(team, args);
    return args->n_experts <= 128 ? moei::launch_route<128>(team, args) : moei::launch_route<256>(team, args);
}

/* After any failure the other kernels route: whoever reads the choices must find experts there. */
extern "C" bool moei_route__sm90(const moei_team *team, const moei_router_args *args) {
    const bool few = args->n_tokens <= MOEI_CUDA_DECODE_TOKENS;
    return (few ? moei_cuda_route_few(team, args) : moei_cuda_route(team, args)) == cudaSuccess;
}
