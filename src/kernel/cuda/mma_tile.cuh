/* mma_tile.cuh: one tile [128, 128] of a bf16 product on the tensor cores of any GPU from sm_80: what the
 * grouped products over rows and over a ragged sum share. C = A B with f32 sums, the sum's steps ascending.
 * Source: CUTLASS 2 (multistage mainloop of cp.async, ldmatrix and mma.sync), in our own words.
 *
 * 32 steps of the sum are a stage: three stages of A and B wait in shared memory, while fragments of the next
 * 16 steps come into registers behind the products of these. Four warps have 64 x 64 of the tile each, in a
 * square. Afterwards a warp lays its part down in shared memory, half by half, and takes it up again in rows,
 * eight columns a lane, for the epilogue: shared memory is 48 KB, so that two blocks fit everywhere.
 */
#ifndef MOEI_MMA_TILE_CUH
#define MOEI_MMA_TILE_CUH

#include "kernel/cuda/mma.cuh"
#include "kernel/cuda/portable.cuh"

namespace moei {

enum { TILE = 128, DEPTH = 32, STAGES = 3, THREADS = 128, WARP_TILE = 64 };
enum { OPERAND_BYTES = TILE * DEPTH * 2, STAGE_BYTES = 2 * OPERAND_BYTES, RING_BYTES = STAGES * STAGE_BYTES };
enum { EIGHT = 8 };      /* numbers of 16 bytes, which are moved together */
enum { SLAB_ROWS = 32 }; /* of a warp's part that are in shared memory at once */
enum { LINES = 4 };      /* pieces of 16 bytes of an operand that a thread loads for a stage */
static_assert(LINES * THREADS * 16 == OPERAND_BYTES, "every thread loads as much");
static_assert(THREADS / 32 * SLAB_ROWS * WARP_TILE * 4 <= RING_BYTES, "slabs lie where the stages were");

/* 16 bytes, or zeros. ALIGNED: in the background; else one by one, the first `count` of eight numbers. */
template <bool ALIGNED>
__device__ __forceinline__ void load_piece(uint32_t to, const unsigned char *from, int count) {
    if (ALIGNED) return cp_async16(to, from, count > 0);
    const uint16_t *number = (const uint16_t *)from;
    uint32_t pair[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        pair[i] = 2 * i < count ? __ldg(number + 2 * i) : 0;
        if (2 * i + 1 < count) pair[i] |= (uint32_t)__ldg(number + 2 * i + 1) << 16;
    }
    shared_store16(to, pair);
}

/* An operand whose memory goes on along the sum: lines are rows of A, or columns of a transposed B. In shared
 * memory a line has 64 bytes; its four pieces are turned by the line, so that neither copies nor ldmatrix
 * meet in a bank. Zeros stand past the end of the sum. */
template <bool ALIGNED> struct AlongSum {
    const unsigned char *from[LINES];
    int left; /* numbers of the sum from this thread's piece on */
    uint32_t to;

    /* line_at(i): where line i of the tile begins; beyond the last one any other, which is not stored. */
    template <class LineAt> __device__ __forceinline__ AlongSum(int64_t length, const LineAt &line_at) {
        const int own = threadIdx.x / 4, piece = threadIdx.x & 3;
        left = (int)length - piece * EIGHT;
        to = own * 64 + ((piece ^ (own >> 1 & 3)) << 4);
#pragma unroll
        for (int i = 0; i < LINES; ++i)
            from[i] = (const unsigned char *)(line_at(own + i * (THREADS / 4)) + piece * EIGHT);
    }
    /* The next stage; called for one after another. */
    __device__ __forceinline__ void load(uint32_t stage) {
#pragma unroll
        for (int i = 0; i < LINES; ++i) {
            load_piece<ALIGNED>(stage + to + i * (THREADS / 4) * 64, from[i], left);
            from[i] += DEPTH * sizeof(bf16);
        }
        left -= DEPTH;
    }
    /* Address of this lane's row of the four matrices of 16 lines from `line` on, 16 steps; mn and k are 1
     * where it has one of the second eight. */
    static __device__ __forceinline__ uint32_t lane_address(int line, int mn, int k) {
        const int low = threadIdx.x & 7;
        return (line + low + 8 * mn) * 64 + ((k ^ (low >> 1)) << 4);
    }
    static __device__ __forceinline__ void fragment(uint32_t (&v)[4], uint32_t lane, int block, int k16) {
        ldmatrix(v, (lane ^ (uint32_t)k16 << 5) + block * 16 * 64);
    }
};

/* One whose memory goes on across it: lines are the steps of the sum, rows of B, or of both where the sum is
 * over rows, perhaps by index; less than 4 GiB from line to line. In shared memory a line has 256 bytes; its
 * pieces are turned likewise. */
template <bool ALIGNED> struct AcrossSum {
    const unsigned char *from;
    const int32_t *row;
    uint32_t pitch;        /* bytes */
    int first, end, count; /* count: numbers of this thread's piece that exist; whole ones where ALIGNED */
    int next[LINES];       /* its lines of the next stage, found a stage ahead; -1: none */
    uint32_t to;

    /* Lines begin .. last - 1, or row[..] of them. column: this thread's first, of `width`. */
    __device__ __forceinline__ AcrossSum(const void *base, int64_t ld, const int32_t *rows, int64_t begin,
                                         int64_t last, int64_t column, int64_t width) {
        const int own = threadIdx.x / 16, piece = threadIdx.x & 15;
        count = (int)max((int64_t)0, min((int64_t)EIGHT, width - column));
        from = (const unsigned char *)((const bf16 *)base + (count > 0 ? column : 0));
        row = rows, pitch = (uint32_t)(ld * (int64_t)sizeof(bf16));
        first = (int)begin + own, end = (int)last;
        to = own * 256 + ((piece ^ own) << 4);
        if (ALIGNED) count = EIGHT; /* what lies past the last column is not stored */
        find();
    }
    static __device__ __forceinline__ int own_piece() { return threadIdx.x & 15; }
    __device__ __forceinline__ void find() {
#pragma unroll
        for (int i = 0; i < LINES; ++i) {
            const int line = first + i * (THREADS / 16);
            next[i] = line >= end ? -1 : row ? __ldg(row + line) : line;
        }
        first += DEPTH;
    }
    __device__ __forceinline__ void load(uint32_t stage) {
#pragma unroll
        for (int i = 0; i < LINES; ++i)
            load_piece<ALIGNED>(stage + to + i * (THREADS / 16) * 256,
                                from + (uint64_t)(uint32_t)max(next[i], 0) * pitch, next[i] < 0 ? 0 : count);
        find();
    }
    static __device__ __forceinline__ uint32_t lane_address(int line, int mn, int k) {
        const int low = threadIdx.x & 7;
        return (low + 8 * k) * 256 + (((line / 8 + mn) ^ low) << 4);
    }
    static __device__ __forceinline__ void fragment(uint32_t (&v)[4], uint32_t lane, int block, int k16) {
        ldmatrix_transposed(v, (lane ^ (uint32_t)block << 5) + k16 * 16 * 256);
    }
};

/* A warp's part of the tile: block i of 16 rows, j of 8 columns, as mma16816 leaves it. */
typedef float Part[4][8][4];

struct Fragments {
    uint32_t a[4][4], b[4][4]; /* blocks of 16 rows; of 16 columns */

    __device__ __forceinline__ void multiply(Part &acc) const {
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 8; ++j)
                mma16816(acc[i][j], a[i][0], a[i][1], a[i][2], a[i][3], b[j / 2][j % 2 * 2],
                         b[j / 2][j % 2 * 2 + 1]);
    }
};

/* acc = the sum of `length` steps of A and B. */
template <class A, class B>
__device__ __forceinline__ void multiply_tile(Part &acc, A &a, B &b, uint32_t ring, int64_t length) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, middle = lane >> 3 & 1, high = lane >> 4;
    const uint32_t lane_a = A::lane_address(warp / 2 * WARP_TILE, middle, high),
                   lane_b = B::lane_address(warp % 2 * WARP_TILE, high, middle) + OPERAND_BYTES;
    const int stages = (int)ceil_div(length, DEPTH);
    const auto load_stage = [&](int stage) {
        const uint32_t to = ring + stage % STAGES * STAGE_BYTES;
        if (stage < stages) {
            a.load(to);
            b.load(to + OPERAND_BYTES);
        }
        cp_async_commit();
    };
    const auto load_fragments = [&](Fragments &f, int stage, int k16) {
        const uint32_t from = ring + stage % STAGES * STAGE_BYTES;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            A::fragment(f.a[i], from + lane_a, i, k16);
            B::fragment(f.b[i], from + lane_b, i, k16);
        }
    };
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j)
#pragma unroll
            for (int x = 0; x < 4; ++x) acc[i][j][x] = 0.f;
    for (int stage = 0; stage < STAGES - 1; ++stage) load_stage(stage);
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    Fragments now, next;
    load_fragments(now, 0, 0);
#pragma unroll 1
    for (int stage = 0; stage < stages; ++stage) {
        load_fragments(next, stage, 1);
        load_stage(stage + STAGES - 1); /* over the stage whose last fragments came before the barrier */
        now.multiply(acc);
        cp_async_wait<STAGES - 2>();
        __syncthreads();
        load_fragments(now, stage + 1, 0);
        next.multiply(acc);
    }
    cp_async_wait<0>();
    __syncthreads();
}

/* Eight numbers of a row, beside each other; `n` of them exist (0 or fewer: none). */
struct Eight {
    float v[EIGHT];
};
__device__ __forceinline__ Eight read_eight(const float *from, int n) {
    Eight x = {};
    if (n >= EIGHT && aligned16(from)) {
        *(float4 *)x.v = *(const float4 *)from;
        *(float4 *)(x.v + 4) = *(const float4 *)(from + 4);
        return x;
    }
#pragma unroll
    for (int i = 0; i < EIGHT; ++i)
        if (i < n) x.v[i] = from[i];
    return x;
}
__device__ __forceinline__ Eight read_eight(const bf16 *from, int n) {
    Eight x = {};
    if (n >= EIGHT && aligned16(from)) {
        const uint4 four = *(const uint4 *)from;
        const uint32_t pair[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int i = 0; i < EIGHT; ++i) x.v[i] = i % 2 ? bf16_high(pair[i / 2]) : bf16_low(pair[i / 2]);
        return x;
    }
#pragma unroll
    for (int i = 0; i < EIGHT; ++i)
        if (i < n) x.v[i] = __bfloat162float(from[i]);
    return x;
}
__device__ __forceinline__ void write_eight(float *to, int n, const Eight &x) {
    if (n >= EIGHT && aligned16(to)) {
        *(float4 *)to = *(const float4 *)x.v;
        *(float4 *)(to + 4) = *(const float4 *)(x.v + 4);
        return;
    }
#pragma unroll
    for (int i = 0; i < EIGHT; ++i)
        if (i < n) to[i] = x.v[i];
}
__device__ __forceinline__ void write_eight(bf16 *to, int n, const Eight &x) {
    if (n >= EIGHT && aligned16(to)) {
        *(uint4 *)to = make_uint4(bf16_pack(x.v[0], x.v[1]), bf16_pack(x.v[2], x.v[3]),
                                  bf16_pack(x.v[4], x.v[5]), bf16_pack(x.v[6], x.v[7]));
        return;
    }
#pragma unroll
    for (int i = 0; i < EIGHT; ++i)
        if (i < n) to[i] = __float2bfloat16(x.v[i]);
}

/* Half of a warp's part in shared memory: rows of eight eights, turned by the row. */
struct Slab {
    float *at;

    template <int HALF> __device__ __forceinline__ void put(const Part &acc) const {
        const int row = (threadIdx.x & 31) >> 2, column = (threadIdx.x & 3) * 2;
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                const float *v = acc[2 * HALF + i][j];
                float *to = at + (16 * i + row) * WARP_TILE + ((j ^ row) * EIGHT) + column;
                *(float2 *)to = make_float2(v[0], v[1]);
                *(float2 *)(to + 8 * WARP_TILE) = make_float2(v[2], v[3]);
            }
    }
    /* Eight `j` of row `row`. Lanes 4 to 7 of eight read its second half first: no two of them meet. */
    __device__ __forceinline__ Eight take(int row, int j) const {
        const float *from = at + row * WARP_TILE + (j ^ (row & 7)) * EIGHT;
        const bool turned = j & 4;
        const float4 first = *(const float4 *)(from + turned * 4),
                     second = *(const float4 *)(from + !turned * 4);
        Eight x;
        *(float4 *)x.v = turned ? second : first;
        *(float4 *)(x.v + 4) = turned ? first : second;
        return x;
    }
};

/* Calls run(row of the tile, slab, row of the slab) for this warp's rows, PER_ROW lanes a row. Comes after
 * multiply_tile, over its ring. */
template <int PER_ROW, class Run>
__device__ __forceinline__ void each_row(const Part &acc, unsigned char *ring, const Run &run) {
    const int warp = threadIdx.x / 32, first = (threadIdx.x & 31) / PER_ROW;
    const Slab slab = {(float *)ring + warp * SLAB_ROWS * WARP_TILE};
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
        if (half == 0)
            slab.put<0>(acc);
        else
            slab.put<1>(acc);
        __syncwarp();
#pragma unroll 1
        for (int r = first; r < SLAB_ROWS; r += 32 / PER_ROW)
            run(warp / 2 * WARP_TILE + half * SLAB_ROWS + r, slab, r);
        __syncwarp();
    }
}

/* Columns of the tile that begin a lane's eights where eight lanes share a row. */
__device__ __forceinline__ int own_column() {
    return threadIdx.x / 32 % 2 * WARP_TILE + (threadIdx.x & 7) * EIGHT;
}

/* C[row, column ..] (+)= tile (+ bias), for the tile's rows first .. end - 1 of C. columns: of C's row from
 * the lane's own on; bias: of them, or NULL. */
template <class C>
__device__ __forceinline__ void store_tile(const Part &acc, unsigned char *ring, C *c, int64_t ldc,
                                           int64_t first, int64_t end, int columns, bool accumulate,
                                           const bf16 *bias) {
    const Eight offset = bias ? read_eight(bias, columns) : Eight{};
    each_row<8>(acc, ring, [&](int row, const Slab &slab, int at) {
        if (first + row >= end) return;
        C *to = c + (first + row) * ldc;
        const Eight before = accumulate ? read_eight(to, columns) : Eight{};
        Eight x = slab.take(at, threadIdx.x & 7);
#pragma unroll
        for (int i = 0; i < EIGHT; ++i) x.v[i] = before.v[i] + (x.v[i] + offset.v[i]);
        write_eight(to, columns, x);
    });
}

} // namespace moei
#endif
