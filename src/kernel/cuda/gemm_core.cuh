/* gemm_core.cuh: what the grouped products on Hopper share: tile shapes, shared memory, the tile
 * scheduler, the pipeline between loading and computing warps, and the main loop.
 * Blocks work in pairs (clusters) on two tiles of rows beside each other, so that either loads half of
 * the B tile for both. Source: CUTLASS 3 (warp-specialised schedules), SonicMoE (Guo et al. 2025).
 */
#ifndef MOEI_GEMM_CORE_CUH
#define MOEI_GEMM_CORE_CUH

#include "kernel/cuda/cuda_kernel.h"
#include "kernel/cuda/portable.cuh"
#include "kernel/cuda/sm90.cuh"
#include "kernel/cuda/wgmma.cuh"

namespace moei {

enum { PAIR = 2 };    /* blocks of a cluster */
enum { TILE_K = 64 }; /* values of the sum in a stage: one 128-byte swizzle row */
enum { BAND = 8 };    /* pairs of row tiles that share their B tiles in L2 */
enum { WARP_BYTES = 4096 };
enum { THREADS = 384 }; /* warpgroup 0 loads, 1 and 2 compute */
enum { LOADERS = 128 }; /* threads that gather */

/* Cooperative: both computing warpgroups share a tile, WG_M rows each. Ping-pong: each has its own tile,
 * one computes while the other stores. */
template <bool PINGPONG_, int WG_M_, int TILE_N_, int STAGES_> struct Shape {
    static constexpr bool PINGPONG = PINGPONG_;
    static constexpr int WG_M = WG_M_, TILE_N = TILE_N_, STAGES = STAGES_;
    static constexpr int TILE_M = PINGPONG ? WG_M : 2 * WG_M;
    static constexpr int BLOCKS_M = WG_M / 64;
    static constexpr int A_BYTES = TILE_M * TILE_K * 2, B_BYTES = TILE_N * TILE_K * 2;
    static constexpr int STAGE_BYTES = A_BYTES + B_BYTES;
    static constexpr int CONSUMER_WARPS = PINGPONG ? 4 : 8; /* that read one stage */
};

/* Each computing warp has its own block of shared memory to turn accumulators into whole lines. */
template <class S> struct Shared {
    static constexpr int STORE = S::STAGES * S::STAGE_BYTES;
    static constexpr int FULL = STORE + 8 * WARP_BYTES;
    static constexpr int EMPTY = FULL + 8 * S::STAGES;
    static constexpr int FIRST = EMPTY + 8 * S::STAGES;
    static constexpr int bytes(int n_groups) { return FIRST + 4 * (n_groups + 1); }
    static_assert(bytes(MOEI_CUDA_GROUPS_MAX) <= 227 * 1024, "shared memory of a block");
};

/* Position in the ring of stages. */
template <int STAGES> struct Ring {
    int stage = 0;
    uint32_t phase = 0;
    __device__ __forceinline__ void next() {
        if (++stage == STAGES) {
            stage = 0;
            phase ^= 1;
        }
    }
    __device__ __forceinline__ void skip(int n) {
        stage += n;
        phase ^= (uint32_t)(stage / STAGES) & 1;
        stage %= STAGES;
    }
};

/* Where the rows of the groups begin and end; without offsets they are all one group's. */
struct Offsets {
    const int64_t *at; /* [n_groups + 1] or NULL */
    int rows;
    __device__ __forceinline__ int operator[](int g) const {
        return at ? (int)__ldg(at + g) : g > 0 ? rows : 0;
    }
};

/* Tiles of the ragged rows: pair u of tiles -> group, first row, first column. */
struct Tile {
    int group, row, row_end, column;
    bool live;  /* this block of the pair has a tile at all */
    bool apart; /* the pair has two columns of the same rows, so B is not shared */
};

/* How many pairs of tiles a column of them has, of a group or of all before it: those of two row tiles, and
 * in units of ALONE last row tiles without a second one, of which a pair does two columns at a time. */
enum { ALONE = 1 << 22 }; /* more than pairs of 2^29 rows and 512 groups */
__device__ __forceinline__ uint32_t row_pairs(int rows, int tile_m, bool by_columns) {
    const int left = rows % (PAIR * tile_m);
    if (by_columns && left > 0 && left <= tile_m) return (uint32_t)(rows / (PAIR * tile_m)) + ALONE;
    return (uint32_t)((rows + PAIR * tile_m - 1) / (PAIR * tile_m));
}
__device__ __forceinline__ int tiles_of(uint32_t pairs, int n_tiles_n) {
    return (int)(pairs % ALONE) * n_tiles_n + (int)(pairs / ALONE) * ((n_tiles_n + 1) / PAIR);
}

/* first[g] = row_pairs of all groups before g. Called by one whole warp. */
__device__ inline void count_row_tiles(const Offsets &offset, int n_groups, int tile_m, bool by_columns,
                                       uint32_t *first) {
    const int lane = threadIdx.x & 31;
    uint32_t before = 0;
    for (int base = 0; base < n_groups; base += 32) {
        const int g = base + lane;
        const uint32_t own = g < n_groups ? row_pairs(offset[g + 1] - offset[g], tile_m, by_columns) : 0;
        uint32_t sum = own;
        for (int step = 1; step < 32; step *= 2) {
            const uint32_t left = __shfl_up_sync(~0u, sum, step);
            if (lane >= step) sum += left;
        }
        if (g < n_groups) first[g] = before + sum - own;
        before += __shfl_sync(~0u, sum, 31);
    }
    if (lane == 0) first[n_groups] = before;
}

/* BY_COLUMNS: last row tiles alone are done two columns at a time. */
template <bool BY_COLUMNS> struct RowTiles {
    Offsets offset;
    const uint32_t *first;
    int n_groups, n_tiles_n, tile_m, tile_n, rank;
    int group = 0;
    __device__ __forceinline__ int before(int g) const {
        return BY_COLUMNS ? tiles_of(first[g], n_tiles_n) : (int)first[g] * n_tiles_n;
    }
    __device__ __forceinline__ int count() const { return before(n_groups); }
    /* u must not fall from call to call. */
    __device__ __forceinline__ Tile at(int u) {
        while (u >= before(group + 1)) ++group;
        const uint32_t own = first[group + 1] - first[group];
        const int pairs = (int)(BY_COLUMNS ? own % ALONE : own);
        const int local = u - before(group), beyond = local - pairs * n_tiles_n;
        const int end = offset[group + 1];
        if (BY_COLUMNS && beyond >= 0) {
            const int row = offset[group] + pairs * PAIR * tile_m, j = beyond * PAIR + rank;
            return {group, row, end, j * tile_n, j < n_tiles_n, true};
        }
        const int band = local / (BAND * n_tiles_n), inside = local - band * BAND * n_tiles_n;
        const int height = min((int)BAND, pairs - band * BAND);
        const int row = offset[group] + ((band * BAND + inside % height) * PAIR + rank) * tile_m;
        return {group, row, end, inside / height * tile_n, row < end, false};
    }
};

/* Computing warps give a stage back to both blocks, since either may fill half of it. */
__device__ __forceinline__ void release_stage(uint32_t empty) {
    const uint32_t lane = threadIdx.x & 31;
    if (lane < PAIR) mbar_arrive_at(empty, lane);
}

template <class S> struct Pipeline {
    uint32_t base, full, empty; /* shared-memory addresses */
    __device__ __forceinline__ uint32_t a(int stage) const { return base + stage * S::STAGE_BYTES; }
    __device__ __forceinline__ uint32_t b(int stage) const { return a(stage) + S::A_BYTES; }
    __device__ __forceinline__ uint32_t full_at(int stage) const { return full + 8 * stage; }
    __device__ __forceinline__ uint32_t empty_at(int stage) const { return empty + 8 * stage; }
    __device__ __forceinline__ void init(int loader_arrivals, int releases = PAIR * S::CONSUMER_WARPS) const {
        for (int s = 0; s < S::STAGES; ++s) {
            mbar_init(full_at(s), loader_arrivals);
            mbar_init(empty_at(s), releases);
        }
        mbar_init_done();
    }
};

/* acc = sum over k_blocks stages of A B for the rows of one warpgroup, which start `a_offset` bytes into
 * the A tile. One product stays in flight while the next stage is awaited; `issued` is called after the last,
 * and `beside(i)` for i < PIECES while every second one is under way, of short sums the rest at the end.
 * COPIED: a stage has data written by cp.async, which wgmma sees only past a fence. Here it waits for
 * nothing; in the loading warps it would wait for the copies of later stages. */
template <class S, bool A_MN, bool B_MN, bool COPIED, int PIECES = 0, class Issued, class Beside>
__device__ __forceinline__ void multiply(float (&acc)[S::BLOCKS_M][S::TILE_N / 2], const Pipeline<S> &pipe,
                                         Ring<S::STAGES> &ring, int k_blocks, int a_offset, Issued issued,
                                         Beside beside) {
    int previous = 0;
    const auto block = [&](int kb) {
        mbar_wait(pipe.full_at(ring.stage), ring.phase);
        if (COPIED) fence_async();
        const uint64_t a = matrix_descriptor(pipe.a(ring.stage) + a_offset, 8192);
        const uint64_t b = matrix_descriptor(pipe.b(ring.stage), 8192);
        wgmma_fence();
#pragma unroll
        for (int k16 = 0; k16 < TILE_K / 16; ++k16)
#pragma unroll
            for (int m = 0; m < S::BLOCKS_M; ++m)
                Wgmma<S::TILE_N, A_MN, B_MN>::mma(acc[m],
                                                  a + k16 * descriptor_step16<A_MN>() + m * (8192 >> 4),
                                                  b + k16 * descriptor_step16<B_MN>(), (kb | k16) != 0);
        wgmma_commit();
        wgmma_wait<1>();
        if (kb > 0) release_stage(pipe.empty_at(previous));
        previous = ring.stage;
        ring.next();
    };
#pragma unroll
    for (int kb = 0; kb < 2 * PIECES; ++kb) {
        if (kb < k_blocks) block(kb);
        if (kb % 2 == 0) beside(kb / 2);
    }
    for (int kb = 2 * PIECES; kb < k_blocks; ++kb) block(kb);
    issued();
    wgmma_wait<0>();
    if (k_blocks > 0) release_stage(pipe.empty_at(previous));
}

/* A tile without rows: its half of B is still loaded for the other block. */
template <class S>
__device__ __forceinline__ void pass_by(const Pipeline<S> &pipe, Ring<S::STAGES> &ring, int k_blocks) {
#pragma unroll 1
    for (int kb = 0; kb < k_blocks; ++kb, ring.next()) {
        mbar_wait(pipe.full_at(ring.stage), ring.phase);
        __syncwarp();
        release_stage(pipe.empty_at(ring.stage));
    }
}

/* Ping-pong: the warpgroups take turns. A turn ends when all stages of a tile have been awaited, those of Z
 * too; without that order a warpgroup would await a stage two phases ahead, which a phase bit cannot tell
 * from now. */
template <class S> __device__ __forceinline__ void await_turn(int group) {
    if (S::PINGPONG) named_barrier(1 + group, 256);
}
template <class S> __device__ __forceinline__ void pass_turn(int group) {
    if (S::PINGPONG) named_barrier_arrive(2 - group, 256);
}

} // namespace moei
#endif
