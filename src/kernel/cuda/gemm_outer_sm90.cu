/* gemm_outer_sm90.cu: grouped product over a ragged sum, C_g[m, n] = sum_r A[a_row[r], m] B[r, n], bf16.
 * Both operands have the sum along their rows, so wgmma reads them MN-major. Rows of A come by index.
 * Source: SonicMoE (Guo et al. 2025), gather along the reduction.
 */
#include "kernel/cuda/epilogue.cuh"
#include "kernel/cuda/tensor_map.cuh"

namespace moei {

struct OuterArgs {
    Offsets offset;
    int n_groups, pairs_m, n_tiles_n;
    const bf16 *a, *b;
    int64_t lda, ldb;
    const int *a_row;
    EpilogueArgs e;
};

struct OuterTile {
    int group, m, n, row, row_end;
    __device__ __forceinline__ int k_blocks() const { return (row_end - row + TILE_K - 1) / TILE_K; }
};

__device__ __forceinline__ OuterTile outer_tile(const OuterArgs &p, int u, int tile_m, int tile_n, int rank) {
    const int per_group = p.pairs_m * p.n_tiles_n, group = u / per_group, local = u - group * per_group;
    const int band = local / (BAND * p.n_tiles_n), inside = local - band * BAND * p.n_tiles_n;
    const int height = min((int)BAND, p.pairs_m - band * BAND);
    const int pair = band * BAND + inside % height;
    return {group, (pair * PAIR + rank) * tile_m, inside / height * tile_n, p.offset[group],
            p.offset[group + 1]};
}

/* A warp copies 16 of the 64 rows of a stage, two at a time; lane j < 16 knows where the j-th starts. Indices
 * are fetched two stages ahead and turned into addresses before the stage is awaited: between its release and
 * its copies there is nothing else to do. */
template <class S>
__device__ __forceinline__ void gather_outer(const OuterArgs &p, const CUtensorMap *map_b,
                                             const Pipeline<S> &pipe, int rank, int first, int step) {
    constexpr int HALF = TILE_K / PAIR;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, chunk = lane & 15;
    const int row0 = 2 * warp + (lane >> 4), my_row = 2 * warp + (lane & 1) + 8 * ((lane & 15) >> 1);
    const uint32_t to = (chunk >> 3) * 8192 + row0 * 128 + (((chunk & 7) ^ (row0 & 7)) << 4);
    const int total = p.n_groups * p.pairs_m * p.n_tiles_n;
    const uint32_t lda16 = (uint32_t)(p.lda / 8); /* rows start at 16-byte pieces: 32 bits reach 64 GiB */
    Ring<S::STAGES> ring;
    for (int u = first; u < total; u += step) {
        const OuterTile tile = outer_tile(p, u, S::TILE_M, S::TILE_N, rank);
        const int k_blocks = tile.k_blocks(), last = tile.row_end - 1;
        const bool columns_valid = tile.m + chunk * 8 < p.e.m;
        const bf16 *a = p.a + (columns_valid ? tile.m + chunk * 8 : 0);
        const auto offset_at = [&](int k0) {
            const int row = min(k0 + my_row, last);
            return (uint32_t)(p.a_row ? __ldg(p.a_row + row) : row) * lda16;
        };
        if (k_blocks == 0) continue;
        uint32_t next = offset_at(tile.row), after = offset_at(tile.row + TILE_K);
#pragma unroll 2
        for (int kb = 0; kb < k_blocks; ++kb, ring.next()) {
            const int k0 = tile.row + kb * TILE_K;
            const uint32_t offset = next;
            const bf16 *from[8];
            next = after;
            after = offset_at(k0 + 2 * TILE_K);
#pragma unroll
            for (int i = 0; i < 8; ++i)
                from[i] = a + (int64_t)__shfl_sync(~0u, offset, 2 * i + (lane >> 4)) * 8;
            mbar_wait(pipe.empty_at(ring.stage), ring.phase ^ 1);
            if (threadIdx.x == 0) {
                const uint32_t bar = pipe.full_at(ring.stage), to_b = pipe.b(ring.stage) + rank * HALF * 128;
                mbar_arrive_expect(bar, S::B_BYTES);
#pragma unroll
                for (int block = 0; block < S::TILE_N / 64; ++block)
                    tma_load_pair_ragged(to_b + block * 8192, map_b, bar, tile.n + block * 64,
                                         k0 + rank * HALF, tile.row_end);
            }
            __syncwarp();
#pragma unroll
            for (int i = 0; i < 8; ++i)
                cp_async16(pipe.a(ring.stage) + to + i * 1024, from[i],
                           columns_valid && k0 + row0 + 8 * i < tile.row_end);
            cp_async_arrive(pipe.full_at(ring.stage));
        }
    }
}

template <class S, bool TRANS, bool WIDE>
__device__ __forceinline__ void compute_outer(const OuterArgs &p, const Pipeline<S> &pipe, uint32_t store,
                                              int rank, int first, int step, const OutMaps &maps) {
    const int group = threadIdx.x / 128 - 1, warp = (threadIdx.x / 32) % 4;
    const int total = p.n_groups * p.pairs_m * p.n_tiles_n;
    Ring<S::STAGES> ring;
    for (int u = first; u < total; u += step) {
        const OuterTile tile = outer_tile(p, u, S::TILE_M, S::TILE_N, rank);
        const int k_blocks = tile.k_blocks();
        if (k_blocks == 0 && p.e.accumulate) continue;
        float acc[1][S::TILE_N / 2];
        if (k_blocks == 0)
#pragma unroll
            for (int i = 0; i < S::TILE_N / 2; ++i) acc[0][i] = 0;
        multiply<S, true, true, true>(acc, pipe, ring, k_blocks, group * 8192, [] {});
        const int m = tile.m + group * 64, height = TRANS ? p.e.n : p.e.m, end = (tile.group + 1) * height;
        if constexpr (TRANS)
            epilogue_store_transposed<S::TILE_N, WIDE>(acc, store + group * 4 * WARP_BYTES, 1 + group,
                                                       {end - height + tile.n, end}, m, p.e.accumulate, maps);
        else
            epilogue_store<1, S::TILE_N, WIDE>(acc, store + (group * 4 + warp) * WARP_BYTES,
                                               {end - height + m + warp * 16, end}, tile.n, p.e, maps);
    }
    tma_store_wait<0>();
}

template <class S, bool TRANS, bool WIDE>
__global__ void __cluster_dims__(PAIR, 1, 1) __launch_bounds__(THREADS, 1)
    gemm_outer_kernel(const __grid_constant__ OuterArgs p, const __grid_constant__ CUtensorMap map_b,
                      const __grid_constant__ OutMaps maps) {
    typedef Shared<S> Layout;
    extern __shared__ __align__(1024) uint8_t raw[];
    const uint32_t base = smem_address(raw);
    const Pipeline<S> pipe = {base, base + Layout::FULL, base + Layout::EMPTY};
    if (threadIdx.x == 0) pipe.init(LOADERS + 1);
    __syncthreads();
    cluster_sync();
    const int rank = (int)cluster_rank(), pair = blockIdx.x / PAIR, step = gridDim.x / PAIR;
    if (threadIdx.x < 128) {
        registers_lower<56>();
        gather_outer<S>(p, &map_b, pipe, rank, pair, step);
    } else {
        registers_raise<224>();
        compute_outer<S, TRANS, WIDE>(p, pipe, base + Layout::STORE, rank, pair, step, maps);
    }
    __syncwarp();
    cluster_sync(); /* the other block may still write here */
}

typedef Shape<false, 64, 256, 4> Outer256;
typedef Shape<false, 64, 128, 4> Outer128; /* narrow experts */

/* C_g[m, n], or where TRANS [n, m], from A by index and B in order. */
struct OuterJob {
    const moe_gemm_outer_args *args;
    int m, n;
    const void *a, *b;
    int64_t lda, ldb;
    const int32_t *a_row;
};

template <class S, bool TRANS, bool WIDE>
static cudaError_t launch(const moei_team *team, const OuterJob &job) {
    const moe_gemm_outer_args *args = job.args;
    OuterArgs p = {};
    p.offset = {args->offset, (int)args->n_rows};
    p.n_groups = args->n_groups;
    p.pairs_m = (int)ceil_div(job.m, PAIR * S::TILE_M);
    p.n_tiles_n = (int)ceil_div(job.n, S::TILE_N);
    p.a = (const bf16 *)job.a;
    p.b = (const bf16 *)job.b;
    p.lda = job.lda;
    p.ldb = job.ldb;
    p.a_row = job.a_row;
    p.e.accumulate = args->accumulate;
    p.e.m = job.m;
    p.e.n = job.n;
    const int rows = TRANS ? (WIDE ? LINE / 2 : LINE) : 16;
    CUtensorMap map_b;
    OutMaps maps = {};
    cudaError_t error = make_ragged_map(team, &map_b, job.b, job.n, 0, job.ldb, TILE_K / PAIR, false);
    if (!error) error = make_ragged_map(team, &maps.out, args->c, args->n, 1, args->n, (uint32_t)rows, WIDE);
    int n_sm = 0;
    if (!error) error = multiprocessors(&n_sm);
    if (error) return error;
    auto *kernel = gemm_outer_kernel<S, TRANS, WIDE>;
    const int bytes = Shared<S>::bytes(0);
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error) return error;
    cudaLaunchAttribute urgent = {};
    urgent.id = cudaLaunchAttributePriority;
    urgent.val.priority = team->urgency;
    cudaLaunchConfig_t config = {};
    const int blocks = (n_sm - team->spare) / PAIR * PAIR;
    config.gridDim = dim3((unsigned)(blocks > PAIR ? blocks : PAIR));
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = (size_t)bytes;
    config.stream = stream_of(team);
    config.attrs = &urgent;
    config.numAttrs = team->spare > 0;
    return cudaLaunchKernelEx(&config, kernel, p, map_b, maps);
}

template <class S> static cudaError_t launch_as(const moei_team *team, const OuterJob &job, bool trans) {
    if (job.args->c_wide) return trans ? launch<S, true, true>(team, job) : launch<S, false, true>(team, job);
    return trans ? launch<S, true, false>(team, job) : launch<S, false, false>(team, job);
}

static bool fits(const moe_gemm_outer_args *a) {
    return a->dtype == MOE_BF16 && !(a->a_row && a->b_row) && a->n_rows > 0 && a->n_groups >= 1 && a->m > 0 &&
           a->n > 0 && a->m % 8 == 0 && a->n % 8 == 0 && a->lda % 8 == 0 && a->ldb % 8 == 0 &&
           a->ldc == a->n && (a->n_groups == 1 || a->c_group == a->m * a->n) &&
           a->n_groups * (a->m > a->n ? a->m : a->n) < RAGGED_ROWS / 2 && a->n_rows < RAGGED_ROWS / 2 &&
           aligned16(a->a) && aligned16(a->b) && aligned16(a->c);
}

} // namespace moei

using namespace moei;

int moei_cuda_gemm_outer(const moei_team *team, const moe_gemm_outer_args *args) {
    if (!fits(args)) return cudaErrorNotSupported;
    const bool trans = args->b_row != NULL; /* rows by index can only be A's, which is then B of the call */
    OuterJob job = {args, (int)args->m, (int)args->n, args->a, args->b, args->lda, args->ldb, args->a_row};
    if (trans) job = {args, (int)args->n, (int)args->m, args->b, args->a, args->ldb, args->lda, args->b_row};
    return job.n <= 128 ? launch_as<Outer128>(team, job, trans) : launch_as<Outer256>(team, job, trans);
}

extern "C" void moei_gemm_outer__sm90(const moei_team *team, const moe_gemm_outer_args *args) {
    if (moei_cuda_gemm_outer(team, args) == cudaErrorNotSupported) moei_gemm_outer__cuda(team, args);
}
