/* gemm_rows_sm90.cu: grouped product over ragged rows, C[r] = A[a_row[r]] B_g, bf16 with f32 sums.
 * A tile [TILE_M, 64] gathered by index or contiguous; B tile [64, TILE_N] of group g from its matrix.
 * Source: SonicMoE (Guo et al. 2025), gather fused into the load and activation into the epilogue.
 */
#include "kernel/cuda/epilogue.cuh"
#include "kernel/cuda/tensor_map.cuh"

namespace moei {

enum Epilogue { EPI_STORE, EPI_ACT, EPI_ACT_GATED, EPI_ACT_GRAD, EPI_ACT_GRAD_GATED };

struct RowsArgs {
    const int *offset;
    int n_groups, n_tiles_n, k_blocks, k;
    const bf16 *a;
    int64_t lda;
    const int *a_row;
    EpilogueArgs e;
};

template <int EPI> constexpr bool TWO_HALVES = EPI == EPI_ACT_GATED; /* the B tile is gate and up columns */

/* This block's half of a B tile, to both blocks. */
template <class S, bool B_TRANS, bool GATED>
__device__ __forceinline__ void load_b(const CUtensorMap *map, uint32_t dst, uint32_t bar, const Tile &tile,
                                       int kb, int rank, int n) {
    if (B_TRANS) {
        constexpr int HALF = S::TILE_N / PAIR;
        tma_load_pair(dst + rank * HALF * 128, map, bar, kb * TILE_K, tile.column + rank * HALF, tile.group);
        return;
    }
    constexpr int HALF = TILE_K / PAIR;
#pragma unroll
    for (int block = 0; block < S::TILE_N / 64; ++block) {
        const bool up = GATED && block >= S::TILE_N / 128;
        const int column = tile.column + block * 64 + (up ? n - S::TILE_N / 2 : 0);
        tma_load_pair(dst + block * 8192 + rank * HALF * 128, map, bar, column, kb * TILE_K + rank * HALF,
                      tile.group);
    }
}

/* Contiguous rows: one thread drives the copy engine. */
template <class S, bool B_TRANS, bool GATED>
__device__ __forceinline__ void load_tiles(const RowsArgs &p, const CUtensorMap *map_a,
                                           const CUtensorMap *map_b, const Pipeline<S> &pipe, RowTiles tiles,
                                           int first, int step) {
    Ring<S::STAGES> ring;
    for (int u = first, total = tiles.count(); u < total; u += step) {
        const Tile tile = tiles.at(u);
        const uint32_t bytes = tile.live ? S::STAGE_BYTES : S::B_BYTES;
#pragma unroll 1
        for (int kb = 0; kb < p.k_blocks; ++kb, ring.next()) {
            mbar_wait(pipe.empty_at(ring.stage), ring.phase ^ 1);
            const uint32_t bar = pipe.full_at(ring.stage);
            mbar_arrive_expect(bar, bytes);
            load_b<S, B_TRANS, GATED>(map_b, pipe.b(ring.stage), bar, tile, kb, tiles.rank, p.e.n);
            if (tile.live) tma_load(pipe.a(ring.stage), map_a, bar, kb * TILE_K, tile.row);
        }
    }
}

/* Rows by index: each of 128 threads copies one 16-byte column of TILE_M/16 rows. */
template <class S, bool B_TRANS, bool GATED>
__device__ __forceinline__ void gather_tiles(const RowsArgs &p, const CUtensorMap *map_b,
                                             const Pipeline<S> &pipe, RowTiles tiles, int first, int step) {
    constexpr int N_ROWS = S::TILE_M / 16;
    const int chunk = threadIdx.x & 7, row0 = threadIdx.x >> 3;
    const uint32_t to = row0 * 128 + ((chunk ^ (row0 & 7)) << 4);
    Ring<S::STAGES> ring;
    for (int u = first, total = tiles.count(); u < total; u += step) {
        const Tile tile = tiles.at(u);
        const bf16 *src[N_ROWS];
#pragma unroll
        for (int i = 0; i < N_ROWS; ++i) {
            const int row = min(tile.row + row0 + 16 * i, tile.row_end - 1);
            src[i] = p.a + (int64_t)__ldg(p.a_row + row) * p.lda + chunk * 8;
        }
#pragma unroll 1
        for (int kb = 0; kb < p.k_blocks; ++kb, ring.next()) {
            mbar_wait(pipe.empty_at(ring.stage), ring.phase ^ 1);
            if (threadIdx.x == 0) {
                mbar_arrive_expect(pipe.full_at(ring.stage), S::B_BYTES);
                load_b<S, B_TRANS, GATED>(map_b, pipe.b(ring.stage), pipe.full_at(ring.stage), tile, kb,
                                          tiles.rank, p.e.n);
            }
            __syncwarp();
            if (tile.live) {
                const bool valid = kb * TILE_K + chunk * 8 < p.k;
#pragma unroll
                for (int i = 0; i < N_ROWS; ++i)
                    cp_async16(pipe.a(ring.stage) + to + i * 2048, src[i] + (valid ? kb * TILE_K : 0), valid);
            }
            cp_async_arrive(pipe.full_at(ring.stage));
        }
    }
}

/* Ping-pong: the warpgroups take turns. A turn ends when all stages of a tile have been awaited; without that
 * order a warpgroup would await a stage two phases ahead, which a phase bit cannot tell from now. */
template <class S> __device__ __forceinline__ void await_turn(int group) {
    if (S::PINGPONG) named_barrier(1 + group, 256);
}
template <class S> __device__ __forceinline__ void pass_turn(int group) {
    if (S::PINGPONG) named_barrier_arrive(2 - group, 256);
}

template <class S, bool GATHER, bool B_TRANS, int EPI>
__device__ __forceinline__ void compute_tiles(const RowsArgs &p, const Pipeline<S> &pipe, uint32_t stage,
                                              RowTiles tiles, int first, int step, const OutMaps &maps) {
    constexpr int M = S::BLOCKS_M, N = S::TILE_N;
    const int group = threadIdx.x / 128 - 1, warp = (threadIdx.x / 32) % 4;
    const int row_in_tile = (S::PINGPONG ? 0 : group * S::WG_M) + warp * 16;
    Ring<S::STAGES> ring;
    if (S::PINGPONG && group == 1) {
        ring.skip(p.k_blocks);
        first += step;
        pass_turn<S>(group);
    }
    for (int u = first, total = tiles.count(); u < total; u += S::PINGPONG ? 2 * step : step) {
        const Tile tile = tiles.at(u);
        if (tile.live) {
            float acc[M][N / 2];
            const int a_offset = S::PINGPONG ? 0 : group * S::WG_M * 128;
            const RowSpan span = {tile.row + row_in_tile, tile.row_end};
            await_turn<S>(group);
            if constexpr (EPI == EPI_ACT_GRAD || EPI == EPI_ACT_GRAD_GATED) {
                ActGrad<M, N, EPI == EPI_ACT_GRAD_GATED> grad = {stage, span, tile.column, p.e};
                multiply<S, false, !B_TRANS, GATHER>(acc, pipe, ring, p.k_blocks, a_offset, [group, &grad] {
                    pass_turn<S>(group);
                    grad.begin();
                });
                grad.run(acc);
            } else {
                multiply<S, false, !B_TRANS, GATHER>(acc, pipe, ring, p.k_blocks, a_offset,
                                                     [group] { pass_turn<S>(group); });
                if constexpr (EPI == EPI_STORE)
                    epilogue_store<M, N>(acc, stage, span, tile.column, p.e, maps);
                else
                    epilogue_act<M, N, EPI == EPI_ACT_GATED>(acc, stage, span, tile.column, p.e, maps);
            }
        } else {
            await_turn<S>(group);
            pass_by(pipe, ring, p.k_blocks);
            pass_turn<S>(group);
        }
        if (S::PINGPONG) ring.skip(p.k_blocks);
    }
    tma_store_wait<0>();
}

template <class S, bool GATHER, bool B_TRANS, int EPI>
__global__ void __cluster_dims__(PAIR, 1, 1) __launch_bounds__(THREADS, 1)
    gemm_rows_kernel(const __grid_constant__ RowsArgs p, const __grid_constant__ CUtensorMap map_a,
                     const __grid_constant__ CUtensorMap map_b, const __grid_constant__ OutMaps maps) {
    typedef Shared<S> Layout;
    extern __shared__ __align__(1024) uint8_t raw[];
    const uint32_t base = smem_address(raw);
    int *first = (int *)(raw + Layout::FIRST);
    const Pipeline<S> pipe = {base, base + Layout::FULL, base + Layout::EMPTY};
    if (threadIdx.x == 0) pipe.init(GATHER ? LOADERS + 1 : 1);
    if (threadIdx.x / 32 == 1) count_row_tiles(p.offset, p.n_groups, S::TILE_M, first);
    __syncthreads();
    cluster_sync();

    const int rank = (int)cluster_rank(), pair = blockIdx.x / PAIR, step = gridDim.x / PAIR;
    constexpr int TILE_COLUMNS = TWO_HALVES<EPI> ? S::TILE_N / 2 : S::TILE_N;
    const RowTiles tiles = {p.offset, first, p.n_groups, p.n_tiles_n, S::TILE_M, TILE_COLUMNS, rank};
    if (threadIdx.x < 128) {
        registers_lower<GATHER ? 56 : 40>();
        if constexpr (GATHER)
            gather_tiles<S, B_TRANS, TWO_HALVES<EPI>>(p, &map_b, pipe, tiles, pair, step);
        else if (threadIdx.x == 0)
            load_tiles<S, B_TRANS, TWO_HALVES<EPI>>(p, &map_a, &map_b, pipe, tiles, pair, step);
    } else {
        registers_raise<GATHER ? 224 : 232>();
        const uint32_t stage = base + Layout::STORE + (threadIdx.x / 32 - 4) * WARP_BYTES;
        compute_tiles<S, GATHER, B_TRANS, EPI>(p, pipe, stage, tiles, pair, step, maps);
    }
    __syncwarp();
    cluster_sync(); /* the other block may still write here */
}

typedef Shape<false, 64, 256, 4> Cooperative256;
typedef Shape<true, 128, 192, 4> PingPong192;
typedef Shape<true, 128, 128, 6> PingPong128;

template <class S, bool GATHER, bool B_TRANS, int EPI>
static cudaError_t launch(const moei_cuda_gemm_rows_args *args, moei_stream stream) {
    constexpr int TILE_COLUMNS = TWO_HALVES<EPI> ? S::TILE_N / 2 : S::TILE_N;
    const int n = (int)args->n, k = (int)args->k, n_tiles = (n + TILE_COLUMNS - 1) / TILE_COLUMNS;
    RowsArgs p = {
        args->offset,
        args->n_groups,
        n_tiles,
        (k + TILE_K - 1) / TILE_K,
        k,
        (const bf16 *)args->a,
        args->lda,
        args->a_row,
        {args->accumulate, args->z != NULL, 0, n, args->act, (bf16 *)args->z, (bf16 *)args->dz,
                 (bf16 *)args->h, args->ldz, args->ldh, args->row_weight, args->dweight_part,
                 (int)moei_cuda_dweight_parts(n)}
    };
    const int columns = TWO_HALVES<EPI> ? 2 * n : n;
    CUtensorMap map_a = {}, map_b;
    cudaError_t error =
        B_TRANS ? make_map(&map_b, args->b, k, columns, args->n_groups, k, S::TILE_N / PAIR, true)
                : make_map(&map_b, args->b, columns, k, args->n_groups, columns, TILE_K / PAIR, true);
    if (!error && !GATHER)
        error = make_map(&map_a, args->a, k, args->max_rows, 1, args->lda, S::TILE_M, false);
    OutMaps maps = {};
    if (!error && EPI < EPI_ACT_GRAD) {
        const bool store = EPI == EPI_STORE;
        error =
            make_ragged_map(&maps.out, store ? args->c : args->h, n, 1, store ? args->ldc : args->ldh, 16);
        if (!error && !store && args->z)
            error = make_ragged_map(&maps.z, args->z, n, EPI == EPI_ACT_GATED ? 2 : 1, args->ldz, 16);
    }
    int n_sm = 0;
    if (!error) error = multiprocessors(&n_sm);
    if (error) return error;
    auto *kernel = gemm_rows_kernel<S, GATHER, B_TRANS, EPI>;
    const int bytes = Shared<S>::bytes(args->n_groups);
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error) return error;
    kernel<<<n_sm / PAIR * PAIR, THREADS, bytes, stream>>>(p, map_a, map_b, maps);
    return cudaGetLastError();
}

} // namespace moei

using namespace moei;

int64_t moei_cuda_dweight_parts(int64_t n) {
    return (n + DWEIGHT_COLUMNS - 1) / DWEIGHT_COLUMNS;
}

static cudaError_t launch_store(const moei_cuda_gemm_rows_args *args, moei_stream stream) {
    const bool pingpong = args->schedule == MOEI_SCHEDULE_PINGPONG ||
                          (args->schedule == MOEI_SCHEDULE_AUTO && args->k < 1024 && args->n % 192 == 0);
    if (args->a_row)
        return args->b_trans ? launch<Cooperative256, true, true, EPI_STORE>(args, stream)
                             : launch<Cooperative256, true, false, EPI_STORE>(args, stream);
    if (args->b_trans)
        return pingpong ? launch<PingPong192, false, true, EPI_STORE>(args, stream)
                        : launch<Cooperative256, false, true, EPI_STORE>(args, stream);
    return pingpong ? launch<PingPong192, false, false, EPI_STORE>(args, stream)
                    : launch<Cooperative256, false, false, EPI_STORE>(args, stream);
}

static cudaError_t launch_act(const moei_cuda_gemm_rows_args *args, moei_stream stream) {
    if (!args->a_row || args->b_trans) return cudaErrorNotSupported;
    const bool narrow = args->schedule == MOEI_SCHEDULE_PINGPONG || args->n <= 64;
    if (args->act == MOE_ACT_SWIGLU)
        return narrow ? launch<PingPong128, true, false, EPI_ACT_GATED>(args, stream)
                      : launch<Cooperative256, true, false, EPI_ACT_GATED>(args, stream);
    return narrow || args->n <= 128 ? launch<PingPong128, true, false, EPI_ACT>(args, stream)
                                    : launch<Cooperative256, true, false, EPI_ACT>(args, stream);
}

static cudaError_t launch_act_grad(const moei_cuda_gemm_rows_args *args, moei_stream stream) {
    if (!args->a_row || !args->b_trans) return cudaErrorNotSupported;
    const bool narrow = args->schedule == MOEI_SCHEDULE_PINGPONG || args->n <= 128;
    if (args->act == MOE_ACT_SWIGLU)
        return narrow ? launch<PingPong128, true, true, EPI_ACT_GRAD_GATED>(args, stream)
                      : launch<Cooperative256, true, true, EPI_ACT_GRAD_GATED>(args, stream);
    return launch<PingPong128, true, true, EPI_ACT_GRAD>(args, stream);
}

int moei_cuda_gemm_rows(const moei_cuda_gemm_rows_args *args, moei_stream stream) {
    switch (args->epilogue) {
    case MOE_EPI_STORE:
        return launch_store(args, stream);
    case MOE_EPI_ACT:
        return launch_act(args, stream);
    case MOE_EPI_ACT_GRAD:
        return launch_act_grad(args, stream);
    }
    return cudaErrorInvalidValue;
}
