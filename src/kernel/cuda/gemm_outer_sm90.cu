/* gemm_outer_sm90.cu: grouped product over a ragged sum, C_g[m, n] = sum_r A[a_row[r], m] B[r, n], bf16.
 * Both operands have the sum along their rows, so wgmma reads them MN-major. Rows of A come by index.
 * Source: SonicMoE (Guo et al. 2025), gather along the reduction.
 */
#include "kernel/cuda/epilogue.cuh"
#include "kernel/cuda/tensor_map.cuh"

namespace moei {

struct OuterArgs {
    const int *offset;
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
    return {group, (pair * PAIR + rank) * tile_m, inside / height * tile_n, __ldg(p.offset + group),
            __ldg(p.offset + group + 1)};
}

/* The last rows of a group: what lies past them in B belongs to another, so it is masked too. */
template <class S>
__device__ __forceinline__ void copy_b_tail(const OuterArgs &p, uint32_t dst, const OuterTile &tile, int k0) {
    constexpr int CHUNKS = S::TILE_N / 8;
    for (int i = threadIdx.x; i < TILE_K * CHUNKS; i += 128) {
        const int row = i / CHUNKS, chunk = i % CHUNKS;
        const bool valid = k0 + row < tile.row_end && tile.n + chunk * 8 < p.e.n;
        const bf16 *src = valid ? p.b + (k0 + row) * p.ldb + tile.n + chunk * 8 : p.b;
        cp_async16(dst + (chunk >> 3) * 8192 + row * 128 + (((chunk & 7) ^ (row & 7)) << 4), src, valid);
    }
}

/* A warp copies 16 of the 64 rows of a stage, two at a time; lane j < 16 knows the index of the j-th. */
template <class S>
__device__ __forceinline__ void gather_outer(const OuterArgs &p, const CUtensorMap *map_b,
                                             const Pipeline<S> &pipe, int rank, int first, int step) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, chunk = lane & 15;
    const int row0 = 2 * warp + (lane >> 4), my_row = 2 * warp + (lane & 1) + 8 * ((lane & 15) >> 1);
    const uint32_t to = (chunk >> 3) * 8192 + row0 * 128 + (((chunk & 7) ^ (row0 & 7)) << 4);
    const int total = p.n_groups * p.pairs_m * p.n_tiles_n;
    Ring<S::STAGES> ring;
    for (int u = first; u < total; u += step) {
        const OuterTile tile = outer_tile(p, u, S::TILE_M, S::TILE_N, rank);
        const int k_blocks = tile.k_blocks(), last = tile.row_end - 1;
        const bool columns_valid = tile.m + chunk * 8 < p.e.m;
        const bf16 *a = p.a + (columns_valid ? tile.m + chunk * 8 : 0);
        int next = 0;
        if (k_blocks > 0) {
            const int row = min(tile.row + my_row, last);
            next = p.a_row ? __ldg(p.a_row + row) : row;
        }
#pragma unroll 1
        for (int kb = 0; kb < k_blocks; ++kb, ring.next()) {
            const int k0 = tile.row + kb * TILE_K, index = next;
            const bool tail = k0 + TILE_K > tile.row_end;
            const int row = min(k0 + TILE_K + my_row, last);
            next = p.a_row ? __ldg(p.a_row + row) : row;
            mbar_wait(pipe.empty_at(ring.stage), ring.phase ^ 1);
            if (threadIdx.x == 0) {
                const uint32_t bar = pipe.full_at(ring.stage);
                mbar_arrive_expect(bar, tail ? 0 : S::B_BYTES);
                for (int block = 0; block < S::TILE_N / 64 && !tail; ++block)
                    tma_load_pair(pipe.b(ring.stage) + block * 8192 + rank * (TILE_K / PAIR) * 128, map_b,
                                  bar, tile.n + block * 64, k0 + rank * (TILE_K / PAIR), 0);
            }
            __syncwarp();
            if (tail) copy_b_tail<S>(p, pipe.b(ring.stage), tile, k0);
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const int64_t from = __shfl_sync(~0u, index, 2 * i + (lane >> 4));
                const bool valid = columns_valid && k0 + row0 + 8 * i < tile.row_end;
                cp_async16(pipe.a(ring.stage) + to + i * 1024, a + from * p.lda, valid);
            }
            cp_async_arrive(pipe.full_at(ring.stage));
        }
    }
}

template <class S, bool TRANS>
__device__ __forceinline__ void compute_outer(const OuterArgs &p, const Pipeline<S> &pipe, uint32_t store,
                                              int rank, int first, int step) {
    const int group = threadIdx.x / 128 - 1, warp = (threadIdx.x / 32) % 4;
    const int total = p.n_groups * p.pairs_m * p.n_tiles_n;
    Ring<S::STAGES> ring;
    for (int u = first; u < total; u += step) {
        const OuterTile tile = outer_tile(p, u, S::TILE_M, S::TILE_N, rank);
        const int k_blocks = tile.k_blocks();
        float acc[1][S::TILE_N / 2];
        if (k_blocks == 0)
#pragma unroll
            for (int i = 0; i < S::TILE_N / 2; ++i) acc[0][i] = 0;
        multiply<S, true, true, true>(acc, pipe, ring, k_blocks, group * 8192, [] {});
        bf16 *c = p.e.c + (int64_t)tile.group * p.e.m * p.e.n;
        if constexpr (TRANS) {
            epilogue_store_transposed<S::TILE_N>(acc, store + group * 4 * LINE_BYTES, 1 + group,
                                                 tile.m + group * 64, tile.n, p.e, c);
        } else {
            EpilogueArgs e = p.e;
            e.c = c;
            epilogue_store<1, S::TILE_N>(acc, store + (group * 4 + warp) * LINE_BYTES,
                                         {tile.m + group * 64 + warp * 16, p.e.m}, tile.n, e);
        }
    }
}

template <class S, bool TRANS>
__global__ void __cluster_dims__(PAIR, 1, 1) __launch_bounds__(THREADS, 1)
    gemm_outer_kernel(const __grid_constant__ OuterArgs p, const __grid_constant__ CUtensorMap map_b) {
    typedef Shared<S, LINE_BYTES> Layout;
    extern __shared__ uint8_t raw[];
    const uint32_t base = (smem_address(raw) + 1023) & ~1023u;
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
        compute_outer<S, TRANS>(p, pipe, base + Layout::STORE, rank, pair, step);
    }
    __syncwarp();
    cluster_sync(); /* the other block may still write here */
}

typedef Shape<false, 64, 256, 4> Outer256;
typedef Shape<false, 64, 128, 4> Outer128; /* narrow experts */

template <class S, bool TRANS>
static cudaError_t launch(const moei_cuda_gemm_outer_args *args, moei_stream stream) {
    const int m = (int)args->m, n = (int)args->n;
    OuterArgs p = {};
    p.offset = args->offset;
    p.n_groups = args->n_groups;
    p.pairs_m = (m + PAIR * S::TILE_M - 1) / (PAIR * S::TILE_M);
    p.n_tiles_n = (n + S::TILE_N - 1) / S::TILE_N;
    p.a = (const bf16 *)args->a;
    p.b = (const bf16 *)args->b;
    p.lda = args->lda;
    p.ldb = args->ldb;
    p.a_row = args->a_row;
    p.e.c = (bf16 *)args->c;
    p.e.ldc = TRANS ? m : n;
    p.e.accumulate = args->accumulate;
    p.e.m = m;
    p.e.n = n;
    CUtensorMap map_b;
    cudaError_t error = make_map(&map_b, args->b, n, args->max_rows, 1, args->ldb, TILE_K / PAIR, true);
    int n_sm = 0;
    if (!error) error = multiprocessors(&n_sm);
    if (error) return error;
    auto *kernel = gemm_outer_kernel<S, TRANS>;
    const int bytes = Shared<S, LINE_BYTES>::bytes(0);
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error) return error;
    kernel<<<(n_sm - args->free_sms) / PAIR * PAIR, THREADS, bytes, stream>>>(p, map_b);
    return cudaGetLastError();
}

} // namespace moei

using namespace moei;

int moei_cuda_gemm_outer(const moei_cuda_gemm_outer_args *args, moei_stream stream) {
    if (args->n <= 128)
        return args->c_trans ? launch<Outer128, true>(args, stream) : launch<Outer128, false>(args, stream);
    return args->c_trans ? launch<Outer256, true>(args, stream) : launch<Outer256, false>(args, stream);
}
