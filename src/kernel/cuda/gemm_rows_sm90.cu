/* gemm_rows_sm90.cu: grouped product over ragged rows, C[r] = A[a_row[r]] B_g, bf16 with f32 sums.
 * A tile [TILE_M, 64] gathered by index or contiguous; B tile [64, TILE_N] of group g from its matrix.
 * Source: SonicMoE (Guo et al. 2025), gather fused into the load and activation into the epilogue.
 */
#include "kernel/cuda/epilogue.cuh"
#include "kernel/cuda/tensor_map.cuh"

namespace moei {

enum Epilogue {
    EPI_STORE,
    EPI_STORE_PLUS,
    EPI_STORE_WIDE,
    EPI_ACT,
    EPI_ACT_GATED,
    EPI_ACT_GRAD,
    EPI_ACT_GRAD_GATED
};

struct RowsArgs {
    Offsets offset;
    int n_groups, n_tiles_n, k_blocks, k;
    const bf16 *a;
    int64_t lda;
    const int *a_row;
    moei_rows_plus plus; /* EPI_STORE_PLUS */
    EpilogueArgs e;
};

template <int EPI> constexpr bool TWO_HALVES = EPI == EPI_ACT_GATED; /* the B tile is gate and up columns */
/* Halves of Z that the epilogue reads, and the stages they come in. */
template <int EPI> constexpr int Z_HALVES = EPI == EPI_ACT_GRAD_GATED ? 2 : EPI == EPI_ACT_GRAD ? 1 : 0;
/* Pieces of an epilogue that are done beside the next tile's products. */
template <class S, int EPI>
constexpr int PIECES = S::PINGPONG || (EPI != EPI_ACT && EPI != EPI_ACT_GATED)
                           ? 0
                           : ActLines<S, EPI == EPI_ACT_GATED>::PIECES;
template <class S, int EPI> constexpr int Z_STAGES = Z_HALVES<EPI> ? S::TILE_N / LINE : 0;

/* Half `half` of a B tile, to both blocks of the pair or to this one. */
template <class S, bool B_TRANS, bool GATED, bool TO_PAIR>
__device__ __forceinline__ void load_b(const CUtensorMap *map, uint32_t dst, uint32_t bar, const Tile &tile,
                                       int kb, int half, int n) {
    constexpr int HEIGHT = (B_TRANS ? S::TILE_N : TILE_K) / PAIR;
    const auto load = [&](uint32_t to, int x, int y) {
        if (TO_PAIR)
            tma_load_pair(to, map, bar, x, y, tile.group);
        else
            tma_load_box(to, map, bar, x, y, tile.group);
    };
    dst += half * HEIGHT * 128;
    if constexpr (B_TRANS) {
        load(dst, kb * TILE_K, tile.column + half * HEIGHT);
    } else {
#pragma unroll
        for (int block = 0; block < S::TILE_N / 64; ++block) {
            const bool up = GATED && block >= S::TILE_N / 128;
            const int column = tile.column + block * 64 + (up ? n - S::TILE_N / 2 : 0);
            load(dst + block * 8192, column, kb * TILE_K + half * HEIGHT);
        }
    }
}

/* Line `line` of the Z that goes with a tile: 64 columns, or nothing where the tile has none. */
template <class S, int HALVES>
__device__ __forceinline__ void load_z(const CUtensorMap *map, uint32_t dst, uint32_t bar, const Tile &tile,
                                       int line, int n) {
    const int column = tile.column + line * LINE;
    const bool any = tile.live && column < n;
    mbar_arrive_expect(bar, any ? HALVES * S::TILE_M * LINE * 2 : 0);
    if (!any) return;
#pragma unroll
    for (int half = 0; half < HALVES; ++half)
        tma_load_ragged(dst + half * S::TILE_M * LINE * 2, map, bar, column, half, tile.row, tile.row_end);
}

/* Contiguous rows: one thread drives the copy engine. */
template <class S, bool B_TRANS, int EPI>
__device__ __forceinline__ void
load_tiles(const RowsArgs &p, const CUtensorMap *map_a, const CUtensorMap *map_b, const CUtensorMap *map_z,
           const Pipeline<S> &pipe, RowTiles<true> tiles, int first, int step) {
    Ring<S::STAGES> ring;
    for (int u = first, total = tiles.count(); u < total; u += step) {
        const Tile tile = tiles.at(u);
        const uint32_t bytes = tile.live ? S::STAGE_BYTES : tile.apart ? 0 : S::B_BYTES;
#pragma unroll 1
        for (int kb = 0; kb < p.k_blocks; ++kb, ring.next()) {
            mbar_wait(pipe.empty_at(ring.stage), ring.phase ^ 1);
            const uint32_t bar = pipe.full_at(ring.stage);
            mbar_arrive_expect(bar, bytes);
            const uint32_t to = pipe.b(ring.stage);
            if (!tile.apart) {
                load_b<S, B_TRANS, TWO_HALVES<EPI>, true>(map_b, to, bar, tile, kb, tiles.rank, p.e.n);
            } else if (tile.live) {
#pragma unroll 1
                for (int half = 0; half < PAIR; ++half)
                    load_b<S, B_TRANS, TWO_HALVES<EPI>, false>(map_b, to, bar, tile, kb, half, p.e.n);
            }
            if (tile.live) tma_load(pipe.a(ring.stage), map_a, bar, kb * TILE_K, tile.row);
        }
#pragma unroll 1
        for (int line = 0; line < Z_STAGES<S, EPI>; ++line, ring.next()) {
            mbar_wait(pipe.empty_at(ring.stage), ring.phase ^ 1);
            load_z<S, Z_HALVES<EPI>>(map_z, pipe.a(ring.stage), pipe.full_at(ring.stage), tile, line, p.e.n);
        }
    }
}

/* Rows by index: each of 128 threads copies one 16-byte column of TILE_M/16 rows. */
template <class S, bool B_TRANS, int EPI>
__device__ __forceinline__ void gather_tiles(const RowsArgs &p, const CUtensorMap *map_b,
                                             const CUtensorMap *map_z, const Pipeline<S> &pipe,
                                             RowTiles<false> tiles, int first, int step) {
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
                load_b<S, B_TRANS, TWO_HALVES<EPI>, true>(map_b, pipe.b(ring.stage), pipe.full_at(ring.stage),
                                                          tile, kb, tiles.rank, p.e.n);
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
#pragma unroll 1
        for (int line = 0; line < Z_STAGES<S, EPI>; ++line, ring.next()) {
            mbar_wait(pipe.empty_at(ring.stage), ring.phase ^ 1);
            if (threadIdx.x == 0)
                load_z<S, Z_HALVES<EPI>>(map_z, pipe.a(ring.stage), pipe.full_at(ring.stage), tile, line,
                                         p.e.n);
            __syncwarp();
            cp_async_arrive(pipe.full_at(ring.stage));
        }
    }
}

/* The bias of the tile's columns, a pair a lane. Volatile: all at once would not fit beside the sums. */
template <class S, bool TWO>
__device__ __forceinline__ void add_bias(float (&acc)[S::BLOCKS_M][S::TILE_N / 2], const EpilogueArgs &e,
                                         const Tile &tile) {
    const bf16 *bias = e.bias + (int64_t)tile.group * (TWO ? 2 * e.n : e.n);
#pragma unroll
    for (int j = 0; j < S::TILE_N / 8; ++j) {
        const bool up = TWO && j >= S::TILE_N / 16;
        const int column = tile.column + 8 * j - (up ? S::TILE_N / 2 : 0), lane = (threadIdx.x & 3) * 2;
        if (column >= e.n) continue;
        const uint32_t pair = *(const volatile uint32_t *)(bias + (up ? e.n : 0) + column + lane);
#pragma unroll
        for (int m = 0; m < S::BLOCKS_M; ++m)
#pragma unroll
            for (int i = 0; i < 4; ++i) acc[m][4 * j + i] += i % 2 ? bf16_high(pair) : bf16_low(pair);
    }
}

/* factor[r] vector[group], added to a tile's sums. Both come while its last product runs: a lane asks for two
 * columns of each 64, which the others get from it, since one by one they would wait for L2 24 times. */
template <class S> struct PlusTerm {
    static constexpr int LINES = S::TILE_N / LINE;
    float factor[S::BLOCKS_M][2];
    float2 own[LINES];

    __device__ __forceinline__ void begin(const moei_rows_plus &plus, const Tile &tile, RowSpan span, int n) {
        const int lane = threadIdx.x & 31;
#pragma unroll
        for (int m = 0; m < S::BLOCKS_M; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int r = span.row + 64 * m + (lane >> 2) + 8 * half;
                factor[m][half] = r < span.row_end ? __ldg(plus.factor + r) : 0.f;
            }
#pragma unroll
        for (int i = 0; i < LINES; ++i) {
            const int column = tile.column + i * LINE + 2 * lane;
            const float *from = plus.vector + (int64_t)tile.group * n + column;
            own[i] = column < n ? __ldg((const float2 *)from) : make_float2(0.f, 0.f);
        }
    }
    __device__ __forceinline__ void add(float (&acc)[S::BLOCKS_M][S::TILE_N / 2]) const {
        const int quarter = threadIdx.x & 3;
#pragma unroll
        for (int j = 0; j < S::TILE_N / 8; ++j) {
            const float2 from = own[j / 8];
            const float v[2] = {__shfl_sync(~0u, from.x, j % 8 * 4 + quarter),
                                __shfl_sync(~0u, from.y, j % 8 * 4 + quarter)};
#pragma unroll
            for (int m = 0; m < S::BLOCKS_M; ++m)
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    acc[m][4 * j + i] = fmaf(factor[m][i / 2], v[i % 2], acc[m][4 * j + i]);
        }
    }
};

template <class S, bool GATHER, bool B_TRANS, int EPI>
__device__ __forceinline__ void compute_tiles(const RowsArgs &p, const Pipeline<S> &pipe, uint32_t stage,
                                              RowTiles<!GATHER> tiles, int first, int step,
                                              const OutMaps &maps) {
    constexpr int M = S::BLOCKS_M, N = S::TILE_N, pieces = PIECES<S, EPI>;
    const int n_stages = p.k_blocks + Z_STAGES<S, EPI>; /* of a tile */
    const int group = threadIdx.x / 128 - 1, warp = (threadIdx.x / 32) % 4;
    const int row_in_tile = (S::PINGPONG ? 0 : group * S::WG_M) + warp * 16;
    Ring<S::STAGES> ring;
    ActLines<S, TWO_HALVES<EPI>> before = {stage, p.e, maps}; /* the tile before this one */
    if (S::PINGPONG && group == 1) {
        ring.skip(n_stages);
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
                ActGrad<S, EPI == EPI_ACT_GRAD_GATED> grad = {stage,       span, tile.column,
                                                              row_in_tile, p.e,  maps};
                multiply<S, false, !B_TRANS, GATHER>(
                    acc, pipe, ring, p.k_blocks, a_offset,
                    [&] {
                        grad.begin();
                        grad.await(pipe, ring);
                        pass_turn<S>(group);
                    },
                    [](int) {});
                grad.run(acc, pipe, ring);
            } else if constexpr (EPI == EPI_STORE_PLUS) {
                PlusTerm<S> term;
                multiply<S, false, !B_TRANS, GATHER>(
                    acc, pipe, ring, p.k_blocks, a_offset,
                    [&] {
                        term.begin(p.plus, tile, span, p.e.n);
                        pass_turn<S>(group);
                    },
                    [](int) {});
                term.add(acc);
                tma_store_wait<0>();
                epilogue_store<M, N, false>(acc, stage, span, tile.column, p.e, maps);
            } else {
                multiply<S, false, !B_TRANS, GATHER, pieces>(
                    acc, pipe, ring, p.k_blocks, a_offset, [group] { pass_turn<S>(group); },
                    [&before](int i) { before.piece(i); });
                if (p.e.bias) add_bias<S, TWO_HALVES<EPI>>(acc, p.e, tile);
                /* The last line of the tile before may be the first of this one. */
                if (pieces == 0) tma_store_wait<0>();
                if constexpr (EPI == EPI_STORE || EPI == EPI_STORE_WIDE) {
                    epilogue_store<M, N, EPI == EPI_STORE_WIDE>(acc, stage, span, tile.column, p.e, maps);
                } else if constexpr (S::PINGPONG) {
                    ActLines<S, TWO_HALVES<EPI>> lines = {stage, p.e, maps};
                    lines.keep(acc, span, tile.column);
                    lines.run();
                } else {
                    before.keep(acc, span, tile.column);
                }
            }
        } else {
            await_turn<S>(group);
            pass_by(pipe, ring, n_stages);
            pass_turn<S>(group);
        }
        if (S::PINGPONG) ring.skip(n_stages);
    }
    if (pieces > 0) before.run();
    tma_store_wait<0>();
}

template <class S, bool GATHER, bool B_TRANS, int EPI>
__global__ void __cluster_dims__(PAIR, 1, 1) __launch_bounds__(THREADS, 1)
    gemm_rows_kernel(const __grid_constant__ RowsArgs p, const __grid_constant__ CUtensorMap map_a,
                     const __grid_constant__ CUtensorMap map_b, const __grid_constant__ CUtensorMap map_z,
                     const __grid_constant__ OutMaps maps) {
    typedef Shared<S> Layout;
    extern __shared__ __align__(1024) uint8_t raw[];
    const uint32_t base = smem_address(raw);
    uint32_t *first = (uint32_t *)(raw + Layout::FIRST);
    const Pipeline<S> pipe = {base, base + Layout::FULL, base + Layout::EMPTY};
    if (threadIdx.x == 0) pipe.init(GATHER ? LOADERS + 1 : 1);
    await_earlier();
    let_next_start();
    if (threadIdx.x / 32 == 1) count_row_tiles(p.offset, p.n_groups, S::TILE_M, !GATHER, first);
    __syncthreads();
    cluster_sync();

    const int rank = (int)cluster_rank(), pair = blockIdx.x / PAIR, step = gridDim.x / PAIR;
    constexpr int TILE_COLUMNS = TWO_HALVES<EPI> ? S::TILE_N / 2 : S::TILE_N;
    const RowTiles<!GATHER> tiles = {p.offset, first, p.n_groups, p.n_tiles_n, S::TILE_M, TILE_COLUMNS, rank};
    if (threadIdx.x < 128) {
        registers_lower<GATHER ? 56 : 40>();
        if constexpr (GATHER)
            gather_tiles<S, B_TRANS, EPI>(p, &map_b, &map_z, pipe, tiles, pair, step);
        else if (threadIdx.x == 0)
            load_tiles<S, B_TRANS, EPI>(p, &map_a, &map_b, &map_z, pipe, tiles, pair, step);
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

static int64_t parts_of(int64_t n) {
    return ceil_div(n, DWEIGHT_COLUMNS);
}

template <int EPI> static EpilogueArgs epilogue_of(const moe_gemm_rows_args *args, int n) {
    EpilogueArgs e = {};
    e.accumulate = args->accumulate;
    e.keep_z = EPI > EPI_STORE_WIDE && args->c;
    e.n = n;
    e.act = fast_act_of(args->act, args->act_numbers);
    e.bias = (const bf16 *)args->bias;
    if (EPI < EPI_ACT_GRAD) return e;
    e.row_weight = (const float *)args->row_weight;
    e.n_parts = (int)parts_of(n);
    /* The only part is the sum. */
    if (args->dweight) e.dweight_part = (float *)(e.n_parts > 1 ? args->dweight_part : args->dweight);
    return e;
}

template <int EPI>
static cudaError_t maps_of(const moei_team *team, const moe_gemm_rows_args *args, int n, OutMaps *maps) {
    if (EPI >= EPI_ACT_GRAD) {
        const cudaError_t error = make_ragged_map(team, &maps->out, args->wa, n, 1, args->ldwa, 16, false);
        return error ? error
                     : make_ragged_map(team, &maps->z, args->dz, n, Z_HALVES<EPI>, args->ldz, 16, false);
    }
    if (EPI <= EPI_STORE_WIDE)
        return make_ragged_map(team, &maps->out, args->c, n, 1, args->ldc, 16, EPI == EPI_STORE_WIDE);
    const cudaError_t error = make_ragged_map(team, &maps->out, args->h, n, 1, args->ldh, 16, false);
    if (error || !args->c) return error;
    return make_ragged_map(team, &maps->z, args->c, n, EPI == EPI_ACT_GATED ? 2 : 1, args->ldc, 16, false);
}

template <class S, bool GATHER, bool B_TRANS, int EPI>
static cudaError_t launch(const moei_team *team, const moe_gemm_rows_args *args,
                          const moei_rows_plus &plus = {}) {
    constexpr int TILE_COLUMNS = TWO_HALVES<EPI> ? S::TILE_N / 2 : S::TILE_N;
    const int columns = (int)args->n, n = TWO_HALVES<EPI> ? columns / 2 : columns, k = (int)args->k;
    const RowsArgs p = {
        {args->offset, (int)args->n_rows},
        args->n_groups,
        (int)ceil_div(n, TILE_COLUMNS),
        (int)ceil_div(k, TILE_K),
        k,
        (const bf16 *)args->a,
        args->lda,
        args->a_row,
        plus,
        epilogue_of<EPI>(args, n)
    };
    CUtensorMap map_a = {}, map_b, map_z = {};
    OutMaps maps = {};
    cudaError_t error =
        B_TRANS ? make_map(team, &map_b, args->b, k, columns, args->n_groups, k, S::TILE_N / PAIR, true)
                : make_map(team, &map_b, args->b, columns, k, args->n_groups, columns, TILE_K / PAIR, true);
    if (!error && !GATHER)
        error = make_map(team, &map_a, args->a, k, args->n_rows, 1, args->lda, S::TILE_M, false);
    if (!error && Z_HALVES<EPI>)
        error = make_ragged_map(team, &map_z, args->z, n, Z_HALVES<EPI>, args->ldz, S::TILE_M, false);
    if (!error) error = maps_of<EPI>(team, args, n, &maps);
    int n_sm = 0;
    if (!error) error = multiprocessors(&n_sm);
    if (error) return error;
    auto *kernel = gemm_rows_kernel<S, GATHER, B_TRANS, EPI>;
    /* The limit is the function's, of all host threads: no less than another's call may need. */
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 Shared<S>::bytes(MOEI_CUDA_GROUPS_MAX));
    if (error) return error;
    return launch_early(kernel, dim3((unsigned)(n_sm / PAIR * PAIR)), THREADS,
                        Shared<S>::bytes(args->n_groups), stream_of(team), p, map_a, map_b, map_z, maps);
}

/* A cooperative tile's store is time lost; ping-pong hides it, but reads more. Equal at k 4096; where the sum
 * is shorter the tile is taken that wastes fewer columns, 192 or 256. */
static bool pingpong_is_faster(const moe_gemm_rows_args *args) {
    return args->k <= 2048 && 15 * 192 * ceil_div(args->n, 192) <= 16 * 256 * ceil_div(args->n, 256);
}

static cudaError_t launch_store(const moei_team *team, const moe_gemm_rows_args *args,
                                moei_schedule schedule) {
    const bool pingpong =
        schedule == MOEI_SCHEDULE_PINGPONG || (schedule == MOEI_SCHEDULE_AUTO && pingpong_is_faster(args));
    if (args->c_wide) {
        if (args->a_row || !args->b_trans) return cudaErrorNotSupported;
        return launch<PingPong128, false, true, EPI_STORE_WIDE>(team, args);
    }
    if (args->a_row)
        return args->b_trans ? launch<Cooperative256, true, true, EPI_STORE>(team, args)
                             : launch<Cooperative256, true, false, EPI_STORE>(team, args);
    if (args->b_trans)
        return pingpong ? launch<PingPong192, false, true, EPI_STORE>(team, args)
                        : launch<Cooperative256, false, true, EPI_STORE>(team, args);
    return pingpong ? launch<PingPong192, false, false, EPI_STORE>(team, args)
                    : launch<Cooperative256, false, false, EPI_STORE>(team, args);
}

static cudaError_t launch_act(const moei_team *team, const moe_gemm_rows_args *args, moei_schedule schedule) {
    const bool gated = moe_act_gated(args->act);
    const int64_t n = gated ? args->n / 2 : args->n;
    const bool narrow = schedule == MOEI_SCHEDULE_PINGPONG || n <= (gated ? 64 : 128);
    if (!args->a_row)
        return gated ? launch<Cooperative256, false, false, EPI_ACT_GATED>(team, args)
                     : launch<Cooperative256, false, false, EPI_ACT>(team, args);
    if (gated)
        return narrow ? launch<PingPong128, true, false, EPI_ACT_GATED>(team, args)
                      : launch<Cooperative256, true, false, EPI_ACT_GATED>(team, args);
    return narrow ? launch<PingPong128, true, false, EPI_ACT>(team, args)
                  : launch<Cooperative256, true, false, EPI_ACT>(team, args);
}

static cudaError_t launch_act_grad(const moei_team *team, const moe_gemm_rows_args *args,
                                   moei_schedule schedule) {
    const bool gated = moe_act_gated(args->act);
    const bool narrow = schedule == MOEI_SCHEDULE_PINGPONG || args->n <= 128;
    if (!args->a_row)
        return gated ? launch<Cooperative256, false, true, EPI_ACT_GRAD_GATED>(team, args)
                     : launch<PingPong128, false, true, EPI_ACT_GRAD>(team, args);
    if (!gated) return launch<PingPong128, true, true, EPI_ACT_GRAD>(team, args);
    return narrow ? launch<PingPong128, true, true, EPI_ACT_GRAD_GATED>(team, args)
                  : launch<Cooperative256, true, true, EPI_ACT_GRAD_GATED>(team, args);
}

/* What every tile asks: bf16, 16-byte pieces, dense weights. */
static bool fits(const moe_gemm_rows_args *a) {
    const bool dense =
        a->ldb == (a->b_trans ? a->k : a->n) && (a->n_groups == 1 || a->b_group == a->n * a->k);
    return a->dtype == MOE_BF16 && !a->b_packed && dense && a->n_groups >= 1 &&
           a->n_groups <= MOEI_CUDA_GROUPS_MAX && a->n_rows > 0 && a->n_rows < RAGGED_ROWS / 2 && a->k > 0 &&
           a->n > 0 && a->n % 8 == 0 && a->k % 8 == 0 && a->lda % 8 == 0 && aligned16(a->a) &&
           aligned16(a->b) && aligned16(a->bias);
}

static bool act_fits(const moe_gemm_rows_args *a) {
    return a->act != MOE_ACT_NONE && !a->b_trans && (!moe_act_gated(a->act) || a->n % 16 == 0) &&
           a->ldc % 8 == 0 && a->ldh % 8 == 0 && aligned16(a->c) && aligned16(a->h);
}

static bool act_grad_fits(const moe_gemm_rows_args *a) {
    return a->act != MOE_ACT_NONE && a->b_trans && a->ldz % 8 == 0 && a->ldwa % 8 == 0 && aligned16(a->z) &&
           aligned16(a->dz) && aligned16(a->wa);
}

} // namespace moei

using namespace moei;

int moei_cuda_gemm_rows(const moei_team *team, const moe_gemm_rows_args *args, moei_schedule schedule) {
    if (!fits(args)) return cudaErrorNotSupported;
    switch (args->epilogue) {
    case MOE_EPI_STORE:
        if (args->ldc % 8 || !aligned16(args->c)) return cudaErrorNotSupported;
        return launch_store(team, args, schedule);
    case MOE_EPI_ACT:
        return act_fits(args) ? launch_act(team, args, schedule) : cudaErrorNotSupported;
    case MOE_EPI_ACT_GRAD:
        break;
    }
    if (!act_grad_fits(args)) return cudaErrorNotSupported;
    const cudaError_t error = launch_act_grad(team, args, schedule);
    const int64_t parts = parts_of(args->n);
    if (error || !args->dweight || parts == 1) return error;
    moei_cuda_sum_dweight(team, args, parts);
    return cudaPeekAtLastError();
}

extern "C" bool moei_gemm_rows_plus__sm90(const moei_team *team, const moe_gemm_rows_args *args,
                                          const moei_rows_plus *plus) {
    if (!fits(args) || args->epilogue != MOE_EPI_STORE || args->a_row || !args->b_trans || args->c_wide ||
        args->accumulate || args->bias || args->ldc % 8 || !aligned16(args->c))
        return false;
    const cudaError_t error = pingpong_is_faster(args)
                                  ? launch<PingPong192, false, true, EPI_STORE_PLUS>(team, args, *plus)
                                  : launch<Cooperative256, false, true, EPI_STORE_PLUS>(team, args, *plus);
    return error != cudaErrorNotSupported;
}

extern "C" void moei_gemm_rows__sm90(const moei_team *team, const moe_gemm_rows_args *args) {
    if (moei_cuda_gemm_rows(team, args, MOEI_SCHEDULE_AUTO) == cudaErrorNotSupported)
        moei_gemm_rows__cuda(team, args);
}
