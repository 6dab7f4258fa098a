/* gemm_outer_sm90.cu: grouped products over a ragged sum, C_g[m, n] = sum_r A[a_row[r], m] B[r, n], bf16;
 * those over the same groups, and one over others, in one launch. Both operands have the sum along their
 * rows, so wgmma reads them MN-major. Rows of A come by index or as they lie. Who computes which tile:
 * outer_tiles.cuh.
 * Source: SonicMoE (Guo et al. 2025), gather along the reduction.
 */
#include "kernel/cuda/outer_tiles.cuh"
#include "kernel/cuda/tensor_map.cuh"

namespace moei {

/* This block's half of a B tile, 64 columns a box, to both blocks of the pair. */
template <class S>
__device__ __forceinline__ void load_outer_b(const CUtensorMap *map, const Pipeline<S> &pipe, int stage,
                                             const OuterTile &tile, int k0, int rank) {
    constexpr int HALF = TILE_K / PAIR;
    const uint32_t to = pipe.b(stage) + rank * HALF * 128;
#pragma unroll
    for (int block = 0; block < S::TILE_N / 64; ++block)
        tma_load_pair_ragged(to + block * 8192, map, pipe.full_at(stage), tile.n + block * 64,
                             k0 + rank * HALF, tile.row_end);
}

/* Contiguous rows of A: one thread of a warp drives the copy engine. Its writes to shared memory cost the
 * tensor cores nothing, while each of those by cp.async takes a clock from them. */
template <class S>
__device__ __forceinline__ void load_outer(const OuterMaps &maps, const Pipeline<S> &pipe, TileWalk walk) {
    Ring<S::STAGES> ring;
    OuterTile tile;
    while (walk.next<S>(tile)) {
        const CUtensorMap *map_a = &maps.a[tile.job], *map_b = &maps.b[tile.job];
        const int k_blocks = tile.k_blocks();
        for (int kb = 0; kb < k_blocks; ++kb, ring.next()) {
            const int k0 = tile.row + kb * TILE_K;
            mbar_wait(pipe.empty_at(ring.stage), ring.phase ^ 1);
            if (threadIdx.x == 0) {
                mbar_arrive_expect(pipe.full_at(ring.stage), S::STAGE_BYTES);
                load_outer_b<S>(map_b, pipe, ring.stage, tile, k0, walk.rank);
#pragma unroll
                for (int block = 0; block < S::TILE_M / 64; ++block)
                    tma_load_ragged_box(pipe.a(ring.stage) + block * 8192, map_a, pipe.full_at(ring.stage),
                                        tile.m + block * 64, k0, tile.row_end);
            }
            __syncwarp();
        }
    }
}

/* Rows of A by index. A warp copies 16 of the 64 rows of a stage, two at a time; lane j < 16 knows where the
 * j-th starts. Indices are fetched two stages ahead and turned into addresses before the stage is awaited:
 * between its release and its copies there is nothing else to do. */
template <class S>
__device__ __forceinline__ void gather_outer(const OuterArgs &p, const OuterMaps &maps,
                                             const Pipeline<S> &pipe, TileWalk walk) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, chunk = lane & 15;
    const int row0 = 2 * warp + (lane >> 4), my_row = 2 * warp + (lane & 1) + 8 * ((lane & 15) >> 1);
    const uint32_t to = (chunk >> 3) * 8192 + row0 * 128 + (((chunk & 7) ^ (row0 & 7)) << 4);
    Ring<S::STAGES> ring;
    OuterTile tile;
    while (walk.next<S>(tile)) {
        const OuterJob &job = p.job[tile.job];
        const CUtensorMap *map_b = &maps.b[tile.job];
        const uint32_t pitch = 2 * (uint32_t)job.lda; /* bytes from one row to the next: LONGEST_ROW */
        const int k_blocks = tile.k_blocks(), last = tile.row_end - 1;
        const bool columns_valid = tile.m + chunk * 8 < job.e.m;
        const char *a = (const char *)(job.a + (columns_valid ? tile.m + chunk * 8 : 0));
        const int *a_row = job.a_row;
        const auto row_at = [&](int k0) {
            const int row = min(k0 + my_row, last);
            return (uint32_t)(a_row ? __ldg(a_row + row) : row);
        };
        if (k_blocks == 0) continue;
        uint32_t next = row_at(tile.row), after = row_at(tile.row + TILE_K);
#pragma unroll 2
        for (int kb = 0; kb < k_blocks; ++kb, ring.next()) {
            const int k0 = tile.row + kb * TILE_K;
            const uint32_t row = next;
            const char *from[8];
            next = after;
            after = row_at(k0 + 2 * TILE_K);
#pragma unroll
            for (int i = 0; i < 8; ++i)
                from[i] = a + (uint64_t)__shfl_sync(~0u, row, 2 * i + (lane >> 4)) * pitch;
            mbar_wait(pipe.empty_at(ring.stage), ring.phase ^ 1);
            if (threadIdx.x == 0) {
                mbar_arrive_expect(pipe.full_at(ring.stage), S::B_BYTES);
                load_outer_b<S>(map_b, pipe, ring.stage, tile, k0, walk.rank);
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

/* Every form a product may have is a branch of its own: its accumulators stay in registers. */
template <class S>
__device__ __forceinline__ void store_outer(const float (&acc)[1][S::TILE_N / 2], const OuterJob &job,
                                            const OuterTile &tile, uint32_t store, const OutMaps &maps) {
    const int group = threadIdx.x / 128 - 1, warp = (threadIdx.x / 32) % 4;
    const int m = tile.m + group * 64, height = job.trans ? job.e.n : job.e.m;
    const int end = (tile.group + 1) * height, first = end - height + (job.trans ? tile.n : m + warp * 16);
    const uint32_t own = store + (group * 4 + (job.trans ? 0 : warp)) * WARP_BYTES;
    if (job.trans && job.wide)
        epilogue_store_transposed<S::TILE_N, true>(acc, own, 1 + group, {first, end}, m, job.e.accumulate,
                                                   maps);
    else if (job.trans)
        epilogue_store_transposed<S::TILE_N, false>(acc, own, 1 + group, {first, end}, m, job.e.accumulate,
                                                    maps);
    else if (job.wide)
        epilogue_store<1, S::TILE_N, true>(acc, own, {first, end}, tile.n, job.e, maps);
    else
        epilogue_store<1, S::TILE_N, false>(acc, own, {first, end}, tile.n, job.e, maps);
}

template <class S, bool GATHER>
__device__ __forceinline__ void compute_outer(const OuterArgs &p, const OuterMaps &maps,
                                              const Pipeline<S> &pipe, uint32_t store, TileWalk walk) {
    const int group = threadIdx.x / 128 - 1;
    Ring<S::STAGES> ring;
    OuterTile tile;
    while (walk.next<S>(tile)) {
        const OuterJob &job = p.job[tile.job];
        const int k_blocks = tile.k_blocks();
        if (k_blocks == 0 && job.e.accumulate) continue;
        float acc[1][S::TILE_N / 2];
        if (k_blocks == 0)
#pragma unroll
            for (int i = 0; i < S::TILE_N / 2; ++i) acc[0][i] = 0;
        else
            multiply<S, true, true, GATHER>(
                acc, pipe, ring, k_blocks, group * 8192, [] {}, [](int) {});
        /* Whose lines these are and which come first is another matter in every tile, and a group without
         * rows has no product behind which the copy engine would be done with the tile before. */
        tma_store_wait<0>();
        named_barrier(1 + group, 128);
        store_outer<S>(acc, job, tile, store, maps.out[tile.job]);
    }
    tma_store_wait<0>();
}

template <class S, bool GATHER>
__global__ void __cluster_dims__(PAIR, 1, 1) __launch_bounds__(THREADS, 1)
    gemm_outer_kernel(const __grid_constant__ OuterArgs p, const __grid_constant__ OuterMaps maps) {
    typedef Shared<S> Layout;
    extern __shared__ __align__(1024) uint8_t raw[];
    const uint32_t base = smem_address(raw);
    const Pipeline<S> pipe = {base, base + Layout::FULL, base + Layout::EMPTY};
    TileOrder &order = *(TileOrder *)(raw + Layout::FIRST);
    if (threadIdx.x == 0) pipe.init(GATHER ? LOADERS + 1 : 1);
    const bool uneven = order_groups(p.of[0], order, (int *)(raw + Layout::STORE));
    if (uneven && threadIdx.x < 32) turn_rounds(p, order);
    __syncthreads();
    cluster_sync();
    const TileWalk walk(p, order, uneven);
    if (threadIdx.x < LOADERS) {
        registers_lower<56>();
        if constexpr (GATHER)
            gather_outer<S>(p, maps, pipe, walk);
        else if (threadIdx.x < 32)
            load_outer<S>(maps, pipe, walk);
    } else {
        registers_raise<224>();
        compute_outer<S, GATHER>(p, maps, pipe, base + Layout::STORE, walk);
    }
    __syncwarp();
    cluster_sync(); /* the other block may still write here */
}

typedef Shape<false, 64, 256, 4> Outer256;
typedef Shape<false, 64, 128, 4> Outer128; /* narrow experts */

enum { LONGEST_ROW = 1 << 30 }; /* numbers from one row to the next, of what may be gathered */

static bool fits(const moe_gemm_outer_args *a) {
    return a->dtype == MOE_BF16 && !(a->a_row && a->b_row) && a->n_rows > 0 && a->n_groups >= 1 &&
           a->n_groups <= MOEI_CUDA_GROUPS_MAX && a->m > 0 && a->n > 0 && a->m % 8 == 0 && a->n % 8 == 0 &&
           a->lda % 8 == 0 && a->ldb % 8 == 0 && a->lda <= LONGEST_ROW && a->ldb <= LONGEST_ROW &&
           a->ldc == a->n && (a->n_groups == 1 || a->c_group == a->m * a->n) &&
           a->n_groups * (a->m > a->n ? a->m : a->n) < RAGGED_ROWS / 2 && a->n_rows < RAGGED_ROWS / 2 &&
           aligned16(a->a) && aligned16(a->b) && aligned16(a->c);
}

/* Rows by index can only be A's: where they are those of B, the product is the transpose. */
template <class S>
static cudaError_t describe(const moei_team *team, const moe_gemm_outer_args *args, int index, OuterJob *job,
                            OuterMaps *maps) {
    const bool trans = args->b_row != NULL;
    const int m = (int)(trans ? args->n : args->m), n = (int)(trans ? args->m : args->n);
    const void *b = trans ? args->a : args->b;
    const int64_t ldb = trans ? args->lda : args->ldb;
    job->pairs_m = (int)ceil_div(m, PAIR * S::TILE_M);
    job->n_tiles_n = (int)ceil_div(n, S::TILE_N);
    job->a = (const bf16 *)(trans ? args->b : args->a);
    job->lda = trans ? args->ldb : args->lda;
    job->a_row = trans ? args->b_row : args->a_row;
    job->trans = trans;
    job->wide = args->c_wide;
    job->e.accumulate = args->accumulate;
    job->e.m = m;
    job->e.n = n;
    const int rows = !trans ? 16 : args->c_wide ? LINE / 2 : LINE;
    cudaError_t error = make_ragged_map(team, &maps->b[index], b, n, 0, ldb, TILE_K / PAIR, false);
    if (!error && !job->a_row)
        error = make_ragged_map(team, &maps->a[index], job->a, m, 0, job->lda, TILE_K, false);
    return error ? error
                 : make_ragged_map(team, &maps->out[index].out, args->c, args->n, 1, args->n, (uint32_t)rows,
                                   args->c_wide);
}

template <class S, bool GATHER>
static cudaError_t launch(const moei_team *team, const moei_gemm_outers_args *args) {
    OuterArgs p = {};
    OuterMaps maps = {};
    cudaError_t error = cudaSuccess;
    p.of[0] = {
        {args->product->offset, (int)args->product->n_rows},
        args->product->n_groups, 0
    };
    for (int i = 0; i < args->n_products && !error; ++i)
        error = describe<S>(team, &args->product[i], i, &p.job[i], &maps);
    for (int i = 0; i < args->n_products; ++i) p.of[0].tiles += p.job[i].pairs_m * p.job[i].n_tiles_n;
    if (args->aside && !error) {
        error = describe<S>(team, args->aside, ASIDE, &p.job[ASIDE], &maps);
        p.of[1] = {
            {args->aside->offset, (int)args->aside->n_rows},
            args->aside->n_groups,
            p.job[ASIDE].pairs_m * p.job[ASIDE].n_tiles_n
        };
    }
    int n_sm = 0;
    if (!error) error = multiprocessors(&n_sm);
    if (error) return error;
    auto *kernel = gemm_outer_kernel<S, GATHER>;
    const int bytes = Shared<S>::FIRST + (int)sizeof(TileOrder);
    static_assert(Shared<S>::FIRST + sizeof(TileOrder) <= 227 * 1024, "shared memory of a block");
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error) return error;
    const int pairs = min((n_sm - team->spare) / PAIR, 32 * (int)PAIRS_A_LANE);
    Launch launch(dim3((unsigned)(PAIR * (pairs > 0 ? pairs : 1))), THREADS, bytes, stream_of(team));
    return urgent(team, launch)(kernel, p, maps);
}

static bool narrow(const moe_gemm_outer_args *a) {
    return (a->b_row ? a->m : a->n) <= 128;
}

/* Bytes that the products of a group of mean size read, side by side: less than half of an H100's L2. */
enum { SMALL_GROUP = 24 << 20 };
static bool small_groups(const moei_gemm_outers_args *args) {
    int64_t columns = 0;
    for (int i = 0; i < args->n_products; ++i) columns += args->product[i].m + args->product[i].n;
    return args->product->n_rows / args->product->n_groups * columns * 2 <= SMALL_GROUP;
}

/* Whether no row of a launch's products comes by index. */
static bool contiguous(const moei_gemm_outers_args *args) {
    bool by_index = args->aside && (args->aside->a_row || args->aside->b_row);
    for (int i = 0; i < args->n_products; ++i) by_index |= args->product[i].a_row || args->product[i].b_row;
    return !by_index;
}

static cudaError_t launch_as(const moei_team *team, const moei_gemm_outers_args *args) {
    if (narrow(args->product)) return launch<Outer128, true>(team, args);
    return contiguous(args) ? launch<Outer256, false>(team, args) : launch<Outer256, true>(team, args);
}

static bool fits_and_maps(const moei_team *team, const moe_gemm_outer_args *args) {
    OuterJob job;
    OuterMaps maps;
    return fits(args) && !describe<Outer256>(team, args, 0, &job, &maps);
}

/* Whether all can be queued, asked before the first of them is. */
static bool takes_all(const moei_team *team, const moei_gemm_outers_args *args) {
    const moe_gemm_outer_args *first = args->product;
    for (int i = 0; i < args->n_products; ++i)
        if (!fits_and_maps(team, &first[i]) || first[i].offset != first->offset ||
            first[i].n_groups != first->n_groups || first[i].n_rows != first->n_rows)
            return false;
    return args->n_products >= 1 && args->n_products <= ASIDE &&
           (!args->aside || fits_and_maps(team, args->aside));
}

} // namespace moei

using namespace moei;

/* One launch has tiles of one width. Products of large groups come one by one: side by side they would drive
 * out of L2 what the tiles of each share. */
int moei_cuda_gemm_outers(const moei_team *team, const moei_gemm_outers_args *args) {
    if (!takes_all(team, args)) return cudaErrorNotSupported;
    moe_gemm_outer_args product[ASIDE];
    moei_gemm_outers_args some = {product, 0, args->aside};
    cudaError_t error = cudaSuccess;
    for (int i = 0; i < args->n_products && !error; ++i) {
        product[some.n_products++] = args->product[i];
        const bool last = i + 1 == args->n_products;
        if (!last && small_groups(args) && narrow(&product[0]) == narrow(&args->product[i + 1])) continue;
        if (some.aside && narrow(some.aside) != narrow(product)) {
            const moei_gemm_outers_args alone = {some.aside, 1, NULL};
            error = launch_as(team, &alone);
            some.aside = NULL;
        }
        if (!error) error = launch_as(team, &some);
        some = {product, 0, NULL};
    }
    return error;
}

int moei_cuda_gemm_outer(const moei_team *team, const moe_gemm_outer_args *args) {
    const moei_gemm_outers_args one = {args, 1, NULL};
    return moei_cuda_gemm_outers(team, &one);
}

extern "C" void moei_gemm_outer__sm90(const moei_team *team, const moe_gemm_outer_args *args) {
    if (moei_cuda_gemm_outer(team, args) == cudaErrorNotSupported) moei_gemm_outer__cuda(team, args);
}

extern "C" bool moei_gemm_outers__sm90(const moei_team *team, const moei_gemm_outers_args *args) {
    return moei_cuda_gemm_outers(team, args) != cudaErrorNotSupported;
}
