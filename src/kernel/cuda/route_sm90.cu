/* route_sm90.cu: the router in one kernel: logits[T,E] = x gate^T, softmax, exact top-k, rows per expert.
 * Blocks are persistent. A thread loads tiles of 64 tokens and the gate, one after another; two warpgroups
 * take turns, so that one multiplies while the other selects from the registers that its product left. Two
 * blocks are a cluster, and each loads half of the gate for both. If tokens are few, a cluster of eight
 * shares the sum over d. Source: select.cuh; CUTLASS 3 (ping-pong schedule).
 */
#include "kernel/cuda/cuda_kernel.h"
#include "kernel/cuda/gemm_core.cuh"
#include "kernel/cuda/select.cuh"
#include "kernel/cuda/tensor_map.cuh"

namespace moei {

enum { ROUTE_M = MOEI_ROUTE_TILE };                  /* tokens of a tile, whose rows are counted */
enum { SHARES = 8, SHARE_M = 2 * ROUTE_M };          /* blocks that share a sum over d, their tokens */
enum { SHARE_THREADS = 288, SHARE_SELECTORS = 256 }; /* eight warps multiply and select, one loads */

template <int N> using RouteShape = Shape<true, ROUTE_M, N, N == 256 ? 5 : N == 128 ? 9 : 12>;
template <int N> using ShareShape = Shape<false, ROUTE_M, N, 4>;

/* Of both warpgroups, whose turns may meet, the rows of each expert in a tile. */
template <int N> struct RouteLayout {
    typedef RouteShape<N> S;
    static constexpr int COUNT = S::STAGES * S::STAGE_BYTES;
    static constexpr int FULL = COUNT + 2 * N * 4;
    static constexpr int EMPTY = FULL + 8 * S::STAGES;
    static constexpr int BYTES = EMPTY + 8 * S::STAGES;
    static_assert(BYTES <= 227 * 1024, "shared memory of a block");
};

/* Of the blocks that share a sum: its part of the logits lies where the stages were. */
template <int N> struct ShareLayout {
    typedef ShareShape<N> S;
    static constexpr int PITCH = N + 8; /* in floats: neighbouring rows use other banks */
    static constexpr int SUMS = S::STAGES * S::STAGE_BYTES;
    static constexpr int COUNT = SUMS + SHARE_M / SHARES * PITCH * 4;
    static constexpr int FULL = COUNT + 2 * N * 4;
    static constexpr int EMPTY = FULL + 8 * S::STAGES;
    static constexpr int BYTES = EMPTY + 8 * S::STAGES;
    static_assert(SHARE_M * PITCH * 4 <= SUMS && BYTES <= 227 * 1024, "shared memory of a block");
};

/* acc: the warpgroup's 64 tokens, their sum over k_blocks stages. `release` gives a stage back. */
template <class S, class Release>
__device__ __forceinline__ void multiply_tokens(float (&acc)[S::TILE_N / 2], const Pipeline<S> &pipe,
                                                Ring<S::STAGES> &ring, int k_blocks, int a_offset,
                                                Release release) {
    for (int kb = 0; kb < k_blocks; ++kb, ring.next()) {
        mbar_wait(pipe.full_at(ring.stage), ring.phase);
        const uint64_t a = matrix_descriptor(pipe.a(ring.stage) + a_offset, 0),
                       b = matrix_descriptor(pipe.b(ring.stage), 0);
        wgmma_fence();
#pragma unroll
        for (int k16 = 0; k16 < TILE_K / 16; ++k16)
            Wgmma<S::TILE_N, false, false>::mma(acc, a + k16 * descriptor_step16<false>(),
                                                b + k16 * descriptor_step16<false>(), (kb | k16) != 0);
        wgmma_commit();
        wgmma_wait<0>();
        release(pipe.empty_at(ring.stage));
    }
}

/* Rows of each expert among the tokens of a tile, by `threads` threads, of which this is number `thread`. */
__device__ __forceinline__ void keep_counts(const moei_router_args &p, int64_t tile, uint32_t *count,
                                            int thread, int threads) {
    const int pitch = (p.n_experts + 3) / 4 * 4;
    for (int e = thread; e < pitch; e += threads) {
        if (p.tile_count && tile * ROUTE_M < p.n_tokens)
            p.tile_count[tile * pitch + e] = e < p.n_experts ? (uint8_t)count[e] : 0;
        count[e] = 0;
    }
}

/* A warp's 16 tokens: lane l has rows l/4 and l/4 + 8 of them. */
template <int N, int LENGTH>
__device__ __forceinline__ void select_rows(const moei_router_args &p, const float (&acc)[N / 2],
                                            int64_t token, uint32_t *count) {
    constexpr int PER_LANE = N / 4;
    float logit[PER_LANE], second[PER_LANE];
#pragma unroll
    for (int i = 0; i < PER_LANE; ++i) {
        logit[i] = acc[i / 2 * 4 + (i & 1)];
        second[i] = acc[i / 2 * 4 + 2 + (i & 1)];
    }
    token += (threadIdx.x & 31) >> 2;
#pragma unroll 1
    for (int half = 0; half < 2; ++half, token += 8) {
        RowSelection<N, LENGTH> selection;
        selection.run(p, logit, token, count);
#pragma unroll
        for (int i = 0; i < PER_LANE; ++i) logit[i] = second[i];
    }
}

/* Pairs of tiles: unit u is tiles 2u and 2u + 1, one of either block. */
struct RouteUnits {
    int first, step, count, k_blocks, rank;
};

template <int N, int LENGTH>
__device__ __forceinline__ void select_units(const moei_router_args &p, const Pipeline<RouteShape<N>> &pipe,
                                             uint32_t *counts, const RouteUnits &units) {
    typedef RouteShape<N> S;
    const int group = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 % 4;
    uint32_t *count = counts + group * N;
    Ring<S::STAGES> ring;
    if (group == 1) {
        ring.skip(units.k_blocks);
        pass_turn<S>(group);
    }
    for (int u = units.first + group * units.step; u < units.count; u += 2 * units.step) {
        const int64_t tile = (int64_t)u * PAIR + units.rank;
        float acc[N / 2];
        await_turn<S>(group); /* a barrier too: nobody counts before all is 0 again */
        multiply_tokens(acc, pipe, ring, units.k_blocks, 0, [](uint32_t empty) { release_stage(empty); });
        pass_turn<S>(group);
        select_rows<N, LENGTH>(p, acc, tile * ROUTE_M + warp * 16, count);
        named_barrier(3 + group, 128);
        keep_counts(p, tile, count, threadIdx.x % 128, 128);
        ring.skip(units.k_blocks);
    }
}

template <int N, int LENGTH>
__global__ void __cluster_dims__(PAIR, 1, 1) __launch_bounds__(THREADS, 1)
    route_kernel(const __grid_constant__ moei_router_args p, const __grid_constant__ CUtensorMap map_x,
                 const __grid_constant__ CUtensorMap map_gate) {
    typedef RouteLayout<N> Layout;
    typedef RouteShape<N> S;
    constexpr int HALF = N / PAIR;
    extern __shared__ __align__(1024) uint8_t raw[];
    const uint32_t base = smem_address(raw);
    uint32_t *counts = (uint32_t *)(raw + Layout::COUNT);
    const Pipeline<S> pipe = {base, base + Layout::FULL, base + Layout::EMPTY};
    const int thread = threadIdx.x, rank = (int)cluster_rank();
    const int64_t tokens_of_unit = PAIR * ROUTE_M;
    const RouteUnits units = {(int)(blockIdx.x / PAIR), (int)(gridDim.x / PAIR),
                              (int)((p.n_tokens + tokens_of_unit - 1) / tokens_of_unit),
                              (int)((p.d + TILE_K - 1) / TILE_K), rank};
    if (thread == 0) pipe.init(1);
    for (int i = thread; i < 2 * N; i += THREADS) counts[i] = 0;
    __syncthreads();
    cluster_sync();
    if (thread < 128) {
        registers_lower<40>();
        Ring<S::STAGES> ring;
        for (int u = units.first; u < units.count && thread == 0; u += units.step)
            for (int kb = 0; kb < units.k_blocks; ++kb, ring.next()) {
                const uint32_t full = pipe.full_at(ring.stage);
                mbar_wait(pipe.empty_at(ring.stage), ring.phase ^ 1);
                mbar_arrive_expect(full, S::STAGE_BYTES);
                tma_load(pipe.a(ring.stage), &map_x, full, kb * TILE_K, (u * PAIR + rank) * ROUTE_M);
                tma_load_pair(pipe.b(ring.stage) + rank * HALF * 128, &map_gate, full, kb * TILE_K,
                              rank * HALF, 0);
            }
    } else {
        registers_raise<232>();
        select_units<N, LENGTH>(p, pipe, counts, units);
    }
    __syncwarp();
    cluster_sync(); /* the other block may still write here */
}

/* Logits of the block's part of the sum -> shared memory, over the stages, which all have been read. */
template <int N> __device__ __forceinline__ void store_part(const float (&acc)[N / 2], float *part) {
    constexpr int PITCH = ShareLayout<N>::PITCH;
    const int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    float *row = part + (warp * 16 + (lane >> 2)) * PITCH + (lane & 3) * 2;
#pragma unroll
    for (int j = 0; j < N / 8; ++j)
#pragma unroll
        for (int half = 0; half < 2; ++half)
            *(float2 *)(row + half * 8 * PITCH + j * 8) =
                make_float2(acc[4 * j + 2 * half], acc[4 * j + 2 * half + 1]);
}

/* The block's part of the sum, k_blocks from `first` on, to shared memory. */
template <int N>
__device__ __forceinline__ void share_product(const CUtensorMap *map_x, const CUtensorMap *map_gate,
                                              const Pipeline<ShareShape<N>> &pipe, int64_t token, int first,
                                              int k_blocks, float *part) {
    typedef ShareShape<N> S;
    Ring<S::STAGES> ring;
    if (threadIdx.x < SHARE_SELECTORS) {
        float acc[N / 2] = {};
        multiply_tokens(acc, pipe, ring, k_blocks, threadIdx.x / 128 * 8192, [](uint32_t empty) {
            if ((threadIdx.x & 31) == 0) mbar_arrive(empty);
        });
        named_barrier(1, SHARE_SELECTORS);
        store_part<N>(acc, part);
        return;
    }
    for (int kb = 0; kb < k_blocks && threadIdx.x == SHARE_SELECTORS; ++kb, ring.next()) {
        const uint32_t full = pipe.full_at(ring.stage);
        mbar_wait(pipe.empty_at(ring.stage), ring.phase ^ 1);
        mbar_arrive_expect(full, S::STAGE_BYTES);
        tma_load(pipe.a(ring.stage), map_x, full, (first + kb) * TILE_K, (int)token);
        tma_load(pipe.b(ring.stage), map_gate, full, (first + kb) * TILE_K, 0);
    }
}

/* A cluster takes 128 tokens; each of its blocks multiplies a part of d and then selects for its share of the
 * tokens, whose logits it adds up in the order of blocks. The first one counts. */
template <int N>
__global__ void __cluster_dims__(SHARES, 1, 1) __launch_bounds__(SHARE_THREADS, 1)
    route_shared_kernel(const __grid_constant__ moei_router_args p, const __grid_constant__ CUtensorMap map_x,
                        const __grid_constant__ CUtensorMap map_gate) {
    typedef ShareLayout<N> Layout;
    extern __shared__ __align__(1024) uint8_t raw[];
    const uint32_t base = smem_address(raw);
    const Pipeline<ShareShape<N>> pipe = {base, base + Layout::FULL, base + Layout::EMPTY};
    float *part = (float *)raw, *logits = (float *)(raw + Layout::SUMS);
    uint32_t *counts = (uint32_t *)(raw + Layout::COUNT);
    const int rank = (int)cluster_rank(), thread = threadIdx.x, k_blocks = (int)((p.d + TILE_K - 1) / TILE_K);
    const int first = k_blocks * rank / SHARES, end = k_blocks * (rank + 1) / SHARES;
    const int64_t token = (int64_t)(blockIdx.x / SHARES) * SHARE_M;
    const int tokens = (int)min((int64_t)SHARE_M, p.n_tokens - token);
    const int each = (tokens + 2 * SHARES - 1) / (2 * SHARES) * 2, own = rank * each; /* even: two a warp */
    const int rows = min(each, tokens - own); /* maybe less than none */
    if (thread == 0) pipe.init(1, SHARE_SELECTORS / 32);
    for (int i = thread; i < 2 * N; i += SHARE_THREADS) counts[i] = 0;
    __syncthreads();
    cluster_sync();
    share_product<N>(&map_x, &map_gate, pipe, token, first, end - first, part);
    __syncwarp();
    cluster_sync();
    for (int i = thread; i < rows * N; i += SHARE_THREADS) {
        const int r = i / N, e = i % N;
        float sum = 0;
#pragma unroll
        for (int b = 0; b < SHARES; ++b)
            sum += load_of_rank(smem_address(part + (own + r) * Layout::PITCH + e), (uint32_t)b);
        logits[r * Layout::PITCH + e] = sum;
        if (p.logits && e < p.n_experts) p.logits[(token + own + r) * p.n_experts + e] = sum;
    }
    __syncthreads();
    Selection<N> selection;
    const int r = thread / 32 * selection.TOKENS;
    if (r < rows)
        selection.run(p, logits + r * Layout::PITCH, Layout::PITCH, token + own + r, rows - r,
                      at_rank(counts + (own + r) / ROUTE_M * N, 0));
    __syncwarp();
    cluster_sync(); /* all have counted, and read what others have here */
    for (int half = 0; half < 2 && rank == 0; ++half)
        keep_counts(p, token / ROUTE_M + half, counts + half * N, thread, SHARE_THREADS);
}

/* Boxes of x and of the gate. */
static cudaError_t route_maps(const moei_team *team, const moei_router_args *args, int x_rows, int gate_rows,
                              bool paired, CUtensorMap (&map)[2]) {
    const cudaError_t error =
        make_map(team, &map[0], args->x, args->d, args->n_tokens, 1, args->ldx, (uint32_t)x_rows, false);
    return error ? error
                 : make_map(team, &map[1], args->gate, args->d, args->n_experts, 1, args->d,
                            (uint32_t)gate_rows, paired);
}

template <int N, int LENGTH>
static cudaError_t launch_route(const moei_team *team, const moei_router_args *args) {
    CUtensorMap map[2];
    auto *kernel = route_kernel<N, LENGTH>;
    const int bytes = RouteLayout<N>::BYTES,
              units = (int)((args->n_tokens + 2 * ROUTE_M - 1) / (2 * ROUTE_M));
    int n_sm = 0;
    cudaError_t error = route_maps(team, args, ROUTE_M, N / PAIR, true, map);
    if (!error) error = multiprocessors(&n_sm);
    if (!error) error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error) return error;
    const int pairs = units < n_sm / PAIR ? units : n_sm / PAIR;
    kernel<<<(unsigned)(pairs * PAIR), THREADS, bytes, stream_of(team)>>>(*args, map[0], map[1]);
    return cudaPeekAtLastError();
}

template <int N> static cudaError_t launch_shared(const moei_team *team, const moei_router_args *args) {
    CUtensorMap map[2];
    auto *kernel = route_shared_kernel<N>;
    const int bytes = ShareLayout<N>::BYTES;
    cudaError_t error = route_maps(team, args, SHARE_M, N, false, map);
    if (!error) error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error) return error;
    const unsigned clusters = (unsigned)((args->n_tokens + SHARE_M - 1) / SHARE_M);
    kernel<<<clusters * SHARES, SHARE_THREADS, bytes, stream_of(team)>>>(*args, map[0], map[1]);
    return cudaPeekAtLastError();
}

/* Where tiles would leave most multiprocessors idle, clusters share them. */
template <int N> static cudaError_t launch(const moei_team *team, const moei_router_args *args) {
    enum { SHARED_TOKENS = 1024 };
    if (args->n_tokens <= SHARED_TOKENS) return launch_shared<N>(team, args);
    if (args->top_k <= 8) return launch_route<N, 8>(team, args);
    return args->top_k <= 16 ? launch_route<N, 16>(team, args) : launch_route<N, 32>(team, args);
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
    if (args->n_experts <= 64) return moei::launch<64>(team, args);
    return args->n_experts <= 128 ? moei::launch<128>(team, args) : moei::launch<256>(team, args);
}

/* After any failure the other kernels route: whoever reads the choices must find experts there. */
extern "C" bool moei_route__sm90(const moei_team *team, const moei_router_args *args) {
    const int error = moei_cuda_route_few(team, args);
    return (error == cudaErrorNotSupported ? moei_cuda_route(team, args) : error) == cudaSuccess;
}
