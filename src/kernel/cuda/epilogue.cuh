/* epilogue.cuh: what follows a grouped product, from accumulators [WG_M, TILE_N] to memory.
 * A warp holds rows 16w..16w+15 of each block of 64; lane l has rows l/4 and l/4+8, columns 8j + 2(l%4) and
 * the next: acc[4j .. 4j+3]. Formulas: moekit/op.h.
 * A warp puts lines of 16 rows by 64 columns together in shared memory of its own, two in turn; the copy
 * engine takes them to memory while the warp goes on, and leaves out what lies past the end of a group.
 */
#ifndef MOEI_EPILOGUE_CUH
#define MOEI_EPILOGUE_CUH

#include "kernel/cuda/act_fast.cuh"
#include "kernel/cuda/cuda_kernel.h"
#include "kernel/cuda/gemm_core.cuh"

namespace moei {

enum { LINE = 64, LINE_BYTES = 16 * LINE * 2 };
static_assert(2 * LINE_BYTES <= WARP_BYTES, "a warp's shared memory");

/* The epilogue's half of a launcher's arguments. */
struct EpilogueArgs {
    bool accumulate, keep_z;
    int m, n; /* rows (outer product only) and columns; of H where gated */
    FastAct act;
    const bf16 *bias;        /* of n columns, or where gated 2n, a group; NULL: none */
    const float *row_weight; /* this and what follows: gradient only */
    float *dweight_part;
    int n_parts;
};
/* Where the copy engine stores: C, H or the weighted A, and Z or dZ with its two halves. */
struct OutMaps {
    CUtensorMap out, z;
};

enum { DWEIGHT_COLUMNS = 128 }; /* dweight is summed in parts of so many columns, whatever the tile */

/* Where a warp's 16 rows go. */
struct RowSpan {
    int row, row_end; /* first row of the 16, end of the group */
};

/* Four 8x8 blocks, which a warp reads and writes together: 16 columns of a line. */
struct Block16 {
    uint32_t v[4];
};
__device__ __forceinline__ Block16 block_of(const float *acc) {
    return {
        {bf16_pack(acc[0], acc[1]), bf16_pack(acc[2], acc[3]), bf16_pack(acc[4], acc[5]),
         bf16_pack(acc[6], acc[7])}
    };
}

/* 64 columns, `block(b)` being 16 of them, as one line with the 128-byte swizzle. */
template <class Blocks> __device__ __forceinline__ void stage_line(uint32_t stage, const Blocks &block) {
    const int lane = threadIdx.x & 31, row = lane & 15;
    const uint32_t to = stage + row * 128 + (((lane >> 4) ^ (row & 7)) << 4);
#pragma unroll
    for (int b = 0; b < LINE / 16; ++b) stmatrix(to ^ b << 5, block(b).v);
}

/* 32 columns in f32, likewise. */
__device__ __forceinline__ void stage_wide_line(uint32_t stage, const float *acc) {
    const int lane = threadIdx.x & 31, row = lane >> 2, quarter = lane & 3;
#pragma unroll
    for (int j = 0; j < LINE / 16; ++j)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int chunk = (2 * j + (quarter >> 1)) ^ row;
            shared_store8(stage + (row + 8 * half) * 128 + (chunk << 4) + (quarter & 1) * 8,
                          acc[4 * j + 2 * half], acc[4 * j + 2 * half + 1]);
        }
}

/* What `put` writes to a line in shared memory -> rows `span`, columns column.. of the map's half. Takes the
 * two lines in turn. */
template <class Put>
__device__ __forceinline__ void send_line(uint32_t &stage, const Put &put, const CUtensorMap *map, bool add,
                                          RowSpan span, int column, int half) {
    const bool leader = (threadIdx.x & 31) == 0;
    if (leader) tma_store_wait<1>();
    __syncwarp();
    put(stage);
    fence_async();
    __syncwarp();
    if (leader) {
        if (add)
            tma_add_ragged(map, stage, column, half, span.row, span.row_end);
        else
            tma_store_ragged(map, stage, column, half, span.row, span.row_end);
        tma_store_commit();
    }
    stage ^= LINE_BYTES;
}

template <int M, int N, bool WIDE>
__device__ __forceinline__ void epilogue_store(const float (&acc)[M][N / 2], uint32_t stage, RowSpan span,
                                               int column, const EpilogueArgs &e, const OutMaps &maps) {
    constexpr int COLUMNS = WIDE ? LINE / 2 : LINE;
#pragma unroll
    for (int m = 0; m < M; ++m) {
        const RowSpan block = {span.row + 64 * m, span.row_end};
        if (block.row >= block.row_end) return;
#pragma unroll
        for (int c = 0; c < N / COLUMNS; ++c)
            if (column + c * COLUMNS < e.n)
                send_line(
                    stage,
                    [&](uint32_t to) {
                        const float *line = acc[m] + c * COLUMNS / 2;
                        if constexpr (WIDE)
                            stage_wide_line(to, line);
                        else
                            stage_line(to, [&](int b) { return block_of(line + 8 * b); });
                    },
                    &maps.out, e.accumulate, block, column + c * COLUMNS, 0);
    }
}

/* Z of a finished tile, and H = act(Z), line by line: a piece of work each, to be done beside the products of
 * the next tile. Z waits in bf16, as it is stored, in half of the registers it was summed in. Gated: the tile
 * holds N/2 gate columns, then the N/2 up columns they go with. */
template <class S, bool GATED> struct ActLines {
    static constexpr int M = S::BLOCKS_M, N = S::TILE_N, WIDTH = GATED ? N / 2 : N, PARTS = GATED ? 3 : 2;
    static constexpr int PIECES = M * WIDTH / LINE * PARTS;
    uint32_t stage;
    const EpilogueArgs &e;
    const OutMaps &maps;
    RowSpan span = {0, 0};
    int column = 0;
    uint32_t z[M][N / 4];

    __device__ __forceinline__ void keep(const float (&acc)[M][N / 2], RowSpan span_, int column_) {
        span = span_, column = column_;
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int i = 0; i < N / 4; ++i) z[m][i] = bf16_pack(acc[m][2 * i], acc[m][2 * i + 1]);
    }
    static __device__ __forceinline__ Block16 block_at(const uint32_t *line, int b) {
        return {
            {line[4 * b], line[4 * b + 1], line[4 * b + 2], line[4 * b + 3]}
        };
    }
    template <bool COMMON>
    __device__ __forceinline__ Block16 act_at(const uint32_t *gate, const uint32_t *up, int b) const {
        Block16 h;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const uint32_t g = gate[4 * b + i], u = up[4 * b + i];
            h.v[i] = bf16_pack(fast_point<GATED, COMMON>(e.act, bf16_low(g), bf16_low(u)).value,
                               fast_point<GATED, COMMON>(e.act, bf16_high(g), bf16_high(u)).value);
        }
        return h;
    }
    /* Piece i: H of a line, its gate, its up. */
    __device__ __forceinline__ void piece(int i) {
        const int m = i / PARTS / (WIDTH / LINE), c = i / PARTS % (WIDTH / LINE), part = i % PARTS;
        const RowSpan block = {span.row + 64 * m, span.row_end};
        const int at = column + c * LINE;
        if (block.row >= block.row_end || at >= e.n || (part > 0 && !e.keep_z)) return;
        const uint32_t *gate = z[m] + c * LINE / 4, *up = gate + (GATED ? WIDTH / 4 : 0);
        const auto put = [&](uint32_t to) {
            if (part > 0)
                stage_line(to, [&](int b) { return block_at(part == 1 ? gate : up, b); });
            else
                by_path(e.act, [&](auto common) {
                    stage_line(to, [&](int b) { return act_at<common.value>(gate, up, b); });
                });
        };
        send_line(stage, put, part > 0 ? &maps.z : &maps.out, false, block, at, part == 2);
    }
    __device__ __forceinline__ void run() {
#pragma unroll
        for (int i = 0; i < PIECES; ++i) piece(i);
        span = {0, 0};
    }
};

/* Z comes through the ring of stages, 64 columns of the tile's rows in one: gate, then up, both lines of 128
 * bytes. dZ is written over it there, and the copy engine takes it away before the stage is given back. */
template <class S, bool GATED> struct ActGrad {
    static constexpr int M = S::BLOCKS_M, UP = S::TILE_M * 2 * LINE;
    static_assert(2 * UP <= S::STAGE_BYTES, "a stage holds 64 columns of Z");
    static_assert(!S::PINGPONG || S::TILE_N / LINE < S::STAGES, "the last product keeps a stage meanwhile");
    uint32_t stage; /* this warp's lines of weighted A, in turn */
    const RowSpan span;
    const int column, row_in_tile;
    const EpilogueArgs &e;
    const OutMaps &maps;
    float w[M][2], dot[M][2];

    /* What memory is asked for while the product is still running. */
    __device__ __forceinline__ void begin() {
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int r = span.row + 64 * m + ((threadIdx.x & 31) >> 2) + 8 * half;
                w[m][half] = e.row_weight && r < span.row_end ? __ldg(e.row_weight + r) : 1.f;
                dot[m][half] = 0;
            }
    }
    /* Z's stages are of the turn too. Where there are no turns they may be the very ones that the last
     * products still keep. */
    __device__ __forceinline__ void await(const Pipeline<S> &pipe, Ring<S::STAGES> ring) const {
        if constexpr (S::PINGPONG)
#pragma unroll
            for (int c = 0; c < S::TILE_N / LINE; ++c, ring.next())
                mbar_wait(pipe.full_at(ring.stage), ring.phase);
    }
    /* dA' = da of 16 columns -> dZ over gate and up, weight * A; <dA', A> is added to dot. */
    template <bool COMMON>
    __device__ __forceinline__ void grad(const float *da, int m, Block16 &gate, Block16 &up, Block16 &wa) {
#pragma unroll
        for (int i = 0; i < 4; ++i) { /* block: columns 8 (i / 2), rows 8 (i % 2) */
            const int half = i & 1;
            const float g[2] = {bf16_low(gate.v[i]), bf16_high(gate.v[i])};
            const float u[2] = {bf16_low(up.v[i]), bf16_high(up.v[i])};
            float a[2], dg[2], du[2];
#pragma unroll
            for (int x = 0; x < 2; ++x) {
                const float d = da[2 * i + x], wd = w[m][half] * d;
                const ActPoint act = fast_point<GATED, COMMON>(e.act, g[x], u[x]);
                a[x] = act.value, dg[x] = wd * act.d_gate, du[x] = wd * act.d_up;
                dot[m][half] = fmaf(d, a[x], dot[m][half]);
            }
            gate.v[i] = bf16_pack(dg[0], dg[1]);
            if (GATED) up.v[i] = bf16_pack(du[0], du[1]);
            wa.v[i] = bf16_pack(w[m][half] * a[0], w[m][half] * a[1]);
        }
    }
    /* A line of 16 rows: Z at `z`, columns `at` and on. */
    template <bool COMMON> __device__ __forceinline__ void line(uint32_t z, const float *da, int m, int at) {
        const int lane = threadIdx.x & 31, row = lane & 15;
        const uint32_t to = row * 128 + (((lane >> 4) ^ (row & 7)) << 4);
#pragma unroll
        for (int b = 0; b < LINE / 16; ++b) {
            const uint32_t piece = to ^ b << 5;
            Block16 gate, up = {}, wa;
            ldmatrix(gate.v, z + piece);
            if (GATED) ldmatrix(up.v, z + UP + piece);
            grad<COMMON>(da + 8 * b, m, gate, up, wa);
            stmatrix(z + piece, gate.v);
            if (GATED) stmatrix(z + UP + piece, up.v);
            stmatrix(stage + piece, wa.v);
        }
        fence_async();
        __syncwarp();
        if (lane == 0) {
            const int first = span.row + 64 * m;
            tma_store_ragged(&maps.z, z, at, 0, first, span.row_end);
            if (GATED) tma_store_ragged(&maps.z, z + UP, at, 1, first, span.row_end);
            tma_store_ragged(&maps.out, stage, at, 0, first, span.row_end);
        }
    }
    __device__ __forceinline__ void keep_dweight(int m, int part) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float sum = dot[m][half];
            sum += __shfl_xor_sync(~0u, sum, 1);
            sum += __shfl_xor_sync(~0u, sum, 2);
            const int to = span.row + 64 * m + ((threadIdx.x & 31) >> 2) + 8 * half;
            if (e.dweight_part && (threadIdx.x & 3) == 0 && to < span.row_end && part < e.n_parts)
                e.dweight_part[(int64_t)to * e.n_parts + part] = sum;
            dot[m][half] = 0;
        }
    }
    /* A stage is given back one line later, when its stores have read it. */
    __device__ __forceinline__ void run(const float (&acc)[M][S::TILE_N / 2], const Pipeline<S> &pipe,
                                        Ring<S::STAGES> &ring) {
        const bool leader = (threadIdx.x & 31) == 0;
        int previous = 0;
#pragma unroll
        for (int c = 0; c < S::TILE_N / LINE; ++c) {
            const int at = column + c * LINE;
            mbar_wait(pipe.full_at(ring.stage), ring.phase);
#pragma unroll
            for (int m = 0; m < M; ++m) {
                if (span.row + 64 * m < span.row_end && at < e.n)
                    by_path(e.act, [&](auto common) {
                        this->template line<common.value>(pipe.a(ring.stage) + (row_in_tile + 64 * m) * 128,
                                                          acc[m] + c * LINE / 2, m, at);
                    });
                stage ^= LINE_BYTES;
                if (leader) tma_store_commit(), tma_store_wait<1>();
                __syncwarp();
                if (m == 0 && c > 0) release_stage(pipe.empty_at(previous));
                if ((c + 1) % (DWEIGHT_COLUMNS / LINE) == 0) keep_dweight(m, at / DWEIGHT_COLUMNS);
            }
            previous = ring.stage;
            ring.next();
        }
        if (leader) tma_store_wait<0>();
        __syncwarp();
        release_stage(pipe.empty_at(previous));
    }
};

/* A warp's share of 64 columns, turned: rows of 64 in bf16. */
__device__ __forceinline__ void stage_turned(uint32_t stage, const float *acc, int warp) {
    const int lane = threadIdx.x & 31, row = (lane & 7) + (lane >> 4) * 8;
    const uint32_t to = stage + row * 128 + (((warp * 2 + (lane >> 3 & 1)) ^ (row & 7)) << 4);
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
        const float *a = acc + 4 * j;
        const uint32_t v[4] = {bf16_pack(a[0], a[1]), bf16_pack(a[2], a[3]), bf16_pack(a[4], a[5]),
                               bf16_pack(a[6], a[7])};
        stmatrix_transposed(to + j * 8 * 128, v);
    }
}

/* 32 columns in f32, turned: two blocks of 32 rows of 32. */
__device__ __forceinline__ void stage_turned_wide(uint32_t stage, const float *acc, int warp) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int m = (warp & 1) * 16 + (lane >> 2) + 8 * (i >> 1), low = 2 * (lane & 3) + (i & 1);
            const uint32_t block = stage + (warp >> 1) * 2 * LINE_BYTES;
            shared_store4(block + (8 * j + low) * 128 + (((m >> 2) ^ low) << 4) + (m & 3) * 4,
                          acc[4 * j + i]);
        }
}

/* C transposed: the tile's columns are rows of C, which end at row_end. A warpgroup puts 64 by 64 together
 * (in f32 32 by 64), in two blocks of shared memory in turn; its first thread drives the copy engine. */
template <int N, bool WIDE>
__device__ __forceinline__ void epilogue_store_transposed(const float (&acc)[1][N / 2], uint32_t stage,
                                                          int barrier, RowSpan span, int column, bool add,
                                                          const OutMaps &maps) {
    constexpr int ROWS = WIDE ? LINE / 2 : LINE;
    const int thread = threadIdx.x & 127, warp = thread >> 5;
#pragma unroll
    for (int n = 0; n < N; n += ROWS) {
        if (span.row + n >= span.row_end) return;
        if (thread == 0) tma_store_wait<1>();
        named_barrier(barrier, 128);
        if constexpr (WIDE)
            stage_turned_wide(stage, acc[0] + n / 2, warp);
        else
            stage_turned(stage, acc[0] + n / 2, warp);
        fence_async();
        named_barrier(barrier, 128);
        if (thread == 0) {
#pragma unroll
            for (int half = 0; half < (WIDE ? 2 : 1); ++half) {
                const uint32_t from = stage + half * 2 * LINE_BYTES;
                if (add)
                    tma_add_ragged(&maps.out, from, column + half * ROWS, 0, span.row + n, span.row_end);
                else
                    tma_store_ragged(&maps.out, from, column + half * ROWS, 0, span.row + n, span.row_end);
            }
            tma_store_commit();
        }
        stage ^= 4 * LINE_BYTES;
    }
}

} // namespace moei
#endif
