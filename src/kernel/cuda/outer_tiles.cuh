/* outer_tiles.cuh: which pair of blocks computes which tiles of gemm_outer_sm90.cu. A round gives each pair
 * one tile. If groups are even, tiles are dealt in order. If not, tiles of the largest groups come first, and
 * each round is dealt forward or backward, whichever gives more to the pairs that have less. Every warp finds
 * its tiles itself. Neighbouring pairs get neighbouring tiles, because these share operands in L2: dealing
 * pairs out one by one costs a quarter of the speed.
 */
#ifndef MOEI_OUTER_TILES_CUH
#define MOEI_OUTER_TILES_CUH

#include "kernel/cuda/epilogue.cuh"

namespace moei {

enum { TILE_COST = 3 };             /* blocks of the sum that take as long as a tile's epilogue */
enum { PAIRS_A_LANE = 3 };          /* of blocks: 96 at most */
enum { UNEVEN = 5, UNEVEN_OF = 4 }; /* where the largest group has so many times the mean */
enum { TURNED_ROUNDS = 512 };       /* later ones all go forward */

/* One product. Products 0 to ASIDE - 1 are over the same groups. */
enum { ASIDE = 2, OUTER_JOBS = 3 };
struct OuterJob {
    int pairs_m, n_tiles_n;
    const bf16 *a;
    int64_t lda;
    const int *a_row;
    bool trans, wide;
    EpilogueArgs e;
};
struct OuterGroups {
    Offsets offset;
    int count, tiles; /* groups, tiles of each by all products over them */
};
struct OuterArgs {
    OuterGroups of[2]; /* of the first products, of the one aside */
    OuterJob job[OUTER_JOBS];
};
struct OuterMaps {
    CUtensorMap a[OUTER_JOBS]; /* of contiguous rows */
    CUtensorMap b[OUTER_JOBS];
    OutMaps out[OUTER_JOBS];
};

struct OuterTile {
    int job, group, m, n, row, row_end;
    __device__ __forceinline__ int k_blocks() const { return (row_end - row + TILE_K - 1) / TILE_K; }
};

/* The number that all of a warp have, told to the compiler: what it need not take for divergent stays in
 * uniform registers, and loops over stages take a tenth less. */
__device__ __forceinline__ int uniform(int v) {
    return __shfl_sync(~0u, v, 0);
}

/* In shared memory, where groups are uneven: those of the first products by their rows, most first, and the
 * rounds that go backward. */
struct TileOrder {
    uint16_t group[MOEI_CUDA_GROUPS_MAX], blocks[MOEI_CUDA_GROUPS_MAX]; /* of the sum */
    uint32_t backward[TURNED_ROUNDS / 32];
};

/* Tiles are numbered from 0: those aside, then by groups. */
struct TileCount {
    int pairs, aside, total;
    __device__ __forceinline__ explicit TileCount(const OuterArgs &p)
        : pairs((int)(gridDim.x / PAIR)), aside(p.of[1].count * p.of[1].tiles),
          total(aside + p.of[0].count * p.of[0].tiles) {}
};

/* All threads of the block; `rows` is room for as many numbers. True: uneven, and in order. */
__device__ __forceinline__ bool order_groups(const OuterGroups &of, TileOrder &to, int *rows) {
    const int padded = (of.count + 3) / 4 * 4, total = of.offset[of.count];
    bool large = false;
    for (int g = threadIdx.x; g < padded; g += THREADS) {
        rows[g] = g < of.count ? of.offset[g + 1] - of.offset[g] : -1;
        large |= (int64_t)rows[g] * of.count * UNEVEN_OF > (int64_t)total * UNEVEN;
    }
    if (!__syncthreads_or(large)) return false;
    for (int g = threadIdx.x; g < of.count; g += THREADS) {
        const int own = rows[g];
        int rank = 0;
        for (int i = 0; i < padded; i += 4) {
            const int4 four = *(const int4 *)(rows + i);
            rank += (four.x > own || (four.x == own && i < g)) +
                    (four.y > own || (four.y == own && i + 1 < g)) +
                    (four.z > own || (four.z == own && i + 2 < g)) +
                    (four.w > own || (four.w == own && i + 3 < g));
        }
        to.group[rank] = (uint16_t)g;
        to.blocks[rank] = (uint16_t)min((own + TILE_K - 1) / TILE_K, 0xffff);
    }
    __syncthreads();
    return true;
}

__device__ __forceinline__ int tile_cost(const OuterArgs &p, const TileOrder &order, const TileCount &n,
                                         int u) {
    if (u >= n.total) return 0;
    if (u >= n.aside) return order.blocks[(u - n.aside) / p.of[0].tiles] + TILE_COST;
    const int g = u / p.of[1].tiles;
    return (p.of[1].offset[g + 1] - p.of[1].offset[g] + TILE_K - 1) / TILE_K + TILE_COST;
}

/* One warp. A lane stands for a few pairs and knows what they have to do so far, in blocks of the sum; a
 * round goes backward where that gives the less to those who have more. */
__device__ __forceinline__ void turn_rounds(const OuterArgs &p, TileOrder &order) {
    const int lane = threadIdx.x & 31;
    const TileCount n(p);
    int load[PAIRS_A_LANE] = {0};
    uint32_t bits = 0;
    for (int round = 0; round < TURNED_ROUNDS && round * n.pairs < n.total; ++round) {
        int ahead[PAIRS_A_LANE], back[PAIRS_A_LANE];
        float gain = 0;
#pragma unroll
        for (int i = 0; i < PAIRS_A_LANE; ++i) {
            const int at = lane + 32 * i, first = round * n.pairs;
            ahead[i] = at < n.pairs ? tile_cost(p, order, n, first + at) : 0;
            back[i] = at < n.pairs ? tile_cost(p, order, n, first + n.pairs - 1 - at) : 0;
            gain += (float)load[i] * (float)(ahead[i] - back[i]);
        }
#pragma unroll
        for (int step = 16; step > 0; step /= 2) gain += __shfl_xor_sync(~0u, gain, step);
#pragma unroll
        for (int i = 0; i < PAIRS_A_LANE; ++i) load[i] += gain > 0 ? back[i] : ahead[i];
        bits |= (uint32_t)(gain > 0) << (round & 31);
        if ((round & 31) == 31 || (round + 1) * n.pairs >= n.total) {
            order.backward[round / 32] = bits;
            bits = 0;
        }
    }
}

/* The tiles of one pair of blocks, one after another; each warp walks by itself. */
struct TileWalk {
    const OuterArgs &p;
    const TileOrder &order;
    const int uneven, rank, pair;
    int round = 0;

    __device__ __forceinline__ TileWalk(const OuterArgs &p_, const TileOrder &order_, bool uneven_)
        : p(p_), order(order_), uneven(uniform(uneven_)), rank((int)cluster_rank()),
          pair((int)(blockIdx.x / PAIR)) {}

    template <class S> __device__ __forceinline__ bool next(OuterTile &tile) {
        const TileCount n(p);
        while (round * n.pairs < n.total) {
            const uint32_t bits = uneven && round < TURNED_ROUNDS ? order.backward[round / 32] : 0;
            const bool back = uniform((int)(bits >> (round & 31) & 1)) != 0;
            const int u = round * n.pairs + (back ? n.pairs - 1 - pair : pair);
            ++round;
            if (u >= n.total) continue;
            tile = at<S>(n, u);
            return true;
        }
        return false;
    }
    /* Bands of rows of tiles: what is computed at a time shares its operands in L2. */
    template <class S> __device__ __forceinline__ OuterTile at(const TileCount &n, int u) const {
        const bool is_aside = u < n.aside;
        const int tiles = is_aside ? p.of[1].tiles : p.of[0].tiles, v = is_aside ? u : u - n.aside;
        const int index = v / tiles, group = uniform(!is_aside && uneven ? order.group[index] : index);
        const Offsets offset = is_aside ? p.of[1].offset : p.of[0].offset;
        int local = v - index * tiles, j = is_aside ? ASIDE : 0;
        for (; j < ASIDE - 1 && local >= p.job[j].pairs_m * p.job[j].n_tiles_n; ++j)
            local -= p.job[j].pairs_m * p.job[j].n_tiles_n;
        const OuterJob &job = p.job[j];
        const int band = local / (BAND * job.n_tiles_n), inside = local - band * BAND * job.n_tiles_n;
        const int height = min((int)BAND, job.pairs_m - band * BAND), m = band * BAND + inside % height;
        return {j,
                group,
                (m * PAIR + rank) * S::TILE_M,
                inside / height * S::TILE_N,
                uniform(offset[group]),
                uniform(offset[group + 1])};
    }
};

} // namespace moei
#endif
