/* packed_units.cuh: products of a few bf16 rows with packed weights (kernel/packed.h) on tensor cores, on any
 * GPU from sm_80. A unit is a panel of 64 columns (gated: a panel of gates and one of ups) times up to TILE
 * rows. The warps of a block share its sum, 32 steps at a time in turn, and meet once at its end. Each warp
 * loads its codes, scales and rows STAGES such steps ahead, also across the end of the unit. Codes become
 * bf16 two at a time, exactly except for nf4, whose 16 numbers are rounded; the sum of 32 steps is scaled.
 * The warps' shares are added in one order, so a row has the same bits whatever stands beside it. Source:
 * Frantar et al. 2024, Marlin (codes in the order in which mma wants them, deep pipelines of loads);
 * docs/kernels-cuda.md, packed weights.
 */
#ifndef MOEI_PACKED_UNITS_CUH
#define MOEI_PACKED_UNITS_CUH

#include "kernel/cuda/mma.cuh"
#include "kernel/cuda/portable.cuh"
#include "kernel/packed.h"

#include <cuda_fp16.h>
#include <stddef.h>

namespace moei {

enum { PANEL = MOEI_PANEL, TILE = 8, STEP = 32 };

/* The ways from a word to numbers of bf16: signed bytes; four bits that are whole numbers from -8 on; four
 * bits by a table, scaled by f16 or by powers of two. */
enum Codes { BYTES, INTEGERS, TABLE, TABLE_EXPONENTS };

struct PackedB {
    const unsigned char *data;
    int64_t group_bytes, panel_bytes, block_bytes, second; /* second: from a panel to that of the ups */
    int32_t k, width, panels, group_bits;                  /* width, panels: of a run; 2^bits steps of 32 */
    Codes codes;
    float value[MOEI_CODES];
};
static inline PackedB packed_b_of(const moe_packed *p) {
    const moei_packed_format *format = p->format;
    PackedB b = {};
    b.data = p->data, b.group_bytes = p->group_bytes, b.panel_bytes = p->panel_bytes;
    b.block_bytes = p->block_bytes, b.second = p->run_panels * p->panel_bytes;
    b.k = (int32_t)p->k, b.width = (int32_t)(p->n / p->n_runs), b.panels = (int32_t)p->run_panels;
    while (STEP << b.group_bits < p->group) ++b.group_bits;
    b.codes = format->bits == 8          ? BYTES
              : format->value[0] == -8.f ? INTEGERS
              : format->exponents        ? TABLE_EXPONENTS
                                         : TABLE;
    memcpy(b.value, format->value, sizeof b.value);
    return b;
}

template <int CODES> struct Way {
    enum { WORDS = CODES == BYTES ? 4 : 2, STEP_BYTES = WORDS * 512 };
    enum { SCALE_BYTES = CODES == TABLE_EXPONENTS ? 1 : 2, BY_TABLE = CODES >= TABLE };
    /* Of four columns. */
    typedef typename std::conditional<CODES == TABLE_EXPONENTS, uint32_t, uint2>::type Scales;
};

/* A warp's step in shared memory: as in memory, but that pieces of 16 bytes of a row of words are turned by
 * the row. Eight lanes copy 128 bytes in a row, else L2 would be asked for each 32 of them by themselves. Of
 * what is there lane l reads octet l%4 of the 32 steps, of columns 4(l/4) to 4(l/4)+3 and those 32 beyond,
 * and of row l/4. */
template <int CODES> struct Stage {
    /* Of a row of words; rows of an octet. */
    enum { PIECES = PANEL / 4, OCTET_ROWS = CODES == BYTES ? 2 : 1 };
    uint4 code[Way<CODES>::WORDS * 32], row[32];
    typename Way<CODES>::Scales scale[PANEL / 4];

    static __device__ __forceinline__ int place(int row, int piece) {
        return row * PIECES + (piece ^ row / OCTET_ROWS * 2);
    }
};

/* Both numbers of a byte of codes, in bf16, once for each lane: so 32 lanes look up in 32 banks. */
enum { TABLE_ROW = 32 * 4 };
template <bool BY_TABLE> struct LaneTable {
    enum { PIECES = TABLE_ROW / 16 };
    uint4 pair[256][PIECES];
    __device__ __forceinline__ void put(const float (&value)[MOEI_CODES]) {
        for (int i = threadIdx.x; i < 256 * PIECES; i += blockDim.x) {
            const uint32_t two = bf16_pack(value[i / PIECES & 15], value[i / PIECES >> 4]);
            pair[0][i] = make_uint4(two, two, two, two);
        }
    }
};
template <> struct LaneTable<false> {
    __device__ __forceinline__ void put(const float (&)[MOEI_CODES]) {}
};

template <int CODES, int WARPS, int STAGES> struct UnitShared;

/* Addresses in shared memory of what a lane has of its warp's first stage; of the others they are a constant
 * away. Hidden from the compiler, which would compute them anew in every step. */
template <int CODES> struct Places {
    enum { WORDS = Way<CODES>::WORDS, STAGE = sizeof(Stage<CODES>) };
    /* From the words and scales of four columns to those 32 beyond; to words of an octet's last four steps.
     */
    enum { HALF_WORDS = PANEL * 2, HALF_SCALES = PANEL / 2 * Way<CODES>::SCALE_BYTES, SECOND = PANEL * 4 };
    uint32_t words, row, scale, table; /* that it reads */
    uint32_t piece[WORDS];             /* that it copies codes to */
    int lane;

    template <int WARPS, int STAGES>
    __device__ __forceinline__ Places(const UnitShared<CODES, WARPS, STAGES> &s) {
        const Stage<CODES> &stage = s.stage[threadIdx.x / 32][0];
        lane = threadIdx.x & 31;
        words = smem_address(&stage.code[stage.place((lane & 3) * stage.OCTET_ROWS, lane >> 2)]);
        row = smem_address(&stage.row[lane]), scale = smem_address(&stage.scale[lane >> 2]);
        table = smem_address(&s.table) + lane * 4;
#pragma unroll
        for (int i = 0; i < WORDS; ++i) {
            piece[i] = smem_address(&stage.code[stage.place(2 * i + lane / 16, lane % 16)]);
            asm volatile("" : "+r"(piece[i]));
        }
        asm volatile("" : "+r"(words), "+r"(row), "+r"(scale), "+r"(table), "+r"(lane));
    }
    /* That it copies scales to: as far into them as the lane's octet into the rows. */
    __device__ __forceinline__ uint32_t piece_of_scales() const {
        return row + (uint32_t)(offsetof(Stage<CODES>, scale) - offsetof(Stage<CODES>, row));
    }
};

/* Where a lane copies from. The warps that share a sum have every SHARES'th step, whole blocks apart. */
template <int CODES, int SHARES> struct Walk {
    int64_t first, stride; /* bytes, of codes */
    int back, k, steps;    /* from codes back to their scales; the octet's first step; steps of this warp */

    __device__ __forceinline__ Walk(const PackedB &b) {
        const int lane = threadIdx.x & 31, own = threadIdx.x / 32 % SHARES, total = (b.k + STEP - 1) / STEP;
        const int inside = own & ((1 << b.group_bits) - 1); /* its block */
        back = PANEL * Way<CODES>::SCALE_BYTES + inside * Way<CODES>::STEP_BYTES;
        first = (own >> b.group_bits) * b.block_bytes + back + lane * 16;
        stride = (SHARES >> b.group_bits) * b.block_bytes;
        k = own * STEP + (lane & 3) * 8, steps = (total - own + SHARES - 1) / SHARES;
        /* Computed where it stands, before choices are awaited. */
        asm volatile("" : "+l"(first), "+l"(stride), "+r"(back), "+r"(k), "+r"(steps));
    }
    __device__ __forceinline__ void ask_codes(const Places<CODES> &places, int stage,
                                              const unsigned char *codes) const {
        const uint32_t at = stage * places.STAGE;
#pragma unroll
        for (int i = 0; i < Way<CODES>::WORDS; ++i) cp_async16(places.piece[i] + at, codes + i * 512, true);
        if (places.lane < PANEL * Way<CODES>::SCALE_BYTES / 16)
            cp_async16(places.piece_of_scales() + at, codes - back, true);
    }
};
static_assert(MOEI_GROUP_MAX / STEP <= 4, "shares of a sum are whole blocks apart");

/* Asks for eight numbers, of which `left` exist. whole: they begin where 16 bytes may be moved at once, and
 * all exist or none. */
__device__ __forceinline__ void ask_octet(uint32_t to, const bf16 *from, int left, bool whole) {
    if (whole) return cp_async16(to, from, left > 0);
#pragma unroll 1
    for (int i = 0; i < 8; i += 2)
        shared_store(to + 2 * i,
                     bf16_pack(i < left ? (float)from[i] : 0.f, i + 1 < left ? (float)from[i + 1] : 0.f));
}

/* An octet's numbers by twos: 0 1, 2 3, .., but INTEGERS i and i + 4, and 136 too large, that is 2^7 plus
 * four bits. */
template <int CODES>
__device__ __forceinline__ void read_octet(uint32_t word, uint32_t second, uint32_t table,
                                           uint32_t (&two)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if constexpr (CODES == BYTES) { /* a byte in the mantissa of 2^23 is a whole number */
            const uint32_t code = (i < 2 ? word : second) ^ 0x80808080u;
            float number[2];
#pragma unroll
            for (int j = 0; j < 2; ++j)
                number[j] =
                    __uint_as_float(__byte_perm(code, 0x4b000000u, 0x7650 + i % 2 * 2 + j)) - 8388736.f;
            two[i] = bf16_pack(number[0], number[1]);
        } else if constexpr (CODES == INTEGERS) { /* (word >> 4 i & 000f000f) | 43004300 */
            asm("lop3.b32 %0, %1, %2, %3, 0xea;"
                : "=r"(two[i])
                : "r"(word >> 4 * i), "r"(0x000f000fu), "r"(0x43004300u));
        } else {
            shared_load(two[i], table + __byte_perm(word, 0, 0x4440 + i) * TABLE_ROW);
        }
    }
}

/* Scales of four columns: e8m0, f16. */
__device__ __forceinline__ void read_scales(uint32_t four, float (&scale)[4]) {
#pragma unroll
    for (int c = 0; c < 4; ++c) scale[c] = __uint_as_float((four >> 8 * c & 255) << 23);
}
__device__ __forceinline__ void read_scales(uint2 four, float (&scale)[4]) {
    const __half2 low = *(const __half2 *)&four.x, high = *(const __half2 *)&four.y;
    scale[0] = __low2float(low), scale[1] = __high2float(low);
    scale[2] = __low2float(high), scale[3] = __high2float(high);
}

/* Sums of a panel's columns: lane l has of [i] columns 4(l/4) + 2(i%2) + 32(i/2), and the next, and of either
 * rows 2(l%4) and the next. */
typedef float UnitSums[4][4];

/* An octet of a row as codes stand beside it, and what numbers that are 136 too large add to its sums. */
template <int CODES> __device__ __forceinline__ void turn_rows(uint32_t (&row)[4], float (&start)[4]) {
    if (CODES != INTEGERS) return;
    const uint32_t less = 0xc308c308u, x = row[0], y = row[1]; /* -136 */
    row[0] = __byte_perm(x, row[2], 0x5410), row[1] = __byte_perm(x, row[2], 0x7632);
    row[2] = __byte_perm(y, row[3], 0x5410), row[3] = __byte_perm(y, row[3], 0x7632);
    mma16816(start, less, less, less, less, row[0], row[1]);
    mma16816(start, less, less, less, less, row[2], row[3]);
}

/* sums += a step. Weights are mma16816's tile of 16, rows the other one; which steps stand beside each other
 * there is the same for both, and else does not matter. */
template <int CODES>
__device__ __forceinline__ void add_step(UnitSums &sums, const Places<CODES> &places, int stage) {
    const uint32_t at = stage * places.STAGE;
    uint4 x;
    shared_load(x, places.row + at);
    uint32_t row[4] = {x.x, x.y, x.z, x.w};
    float start[4] = {};
    turn_rows<CODES>(row, start);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        uint4 four, more = {};
        shared_load(four, places.words + at + half * places.HALF_WORDS);
        if (CODES == BYTES) shared_load(more, places.words + at + half * places.HALF_WORDS + places.SECOND);
        const uint32_t word[4] = {four.x, four.y, four.z, four.w},
                       second[4] = {more.x, more.y, more.z, more.w};
        typename Way<CODES>::Scales scales;
        float scale[4];
        shared_load(scales, places.scale + at + half * places.HALF_SCALES);
        read_scales(scales, scale);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float sum[4] = {start[0], start[1], start[2], start[3]};
            uint32_t low[4], high[4];
            read_octet<CODES>(word[2 * i], second[2 * i], places.table, low);
            read_octet<CODES>(word[2 * i + 1], second[2 * i + 1], places.table, high);
            mma16816(sum, low[0], high[0], low[1], high[1], row[0], row[1]);
            mma16816(sum, low[2], high[2], low[3], high[3], row[2], row[3]);
#pragma unroll
            for (int j = 0; j < 4; ++j)
                sums[2 * half + i][j] = fmaf(sum[j], scale[2 * i + j / 2], sums[2 * half + i][j]);
        }
    }
}

/* Shares of a unit's sums, by warp. */
typedef float UnitParts[TILE][PANEL];
__device__ __forceinline__ void put_part(UnitParts &part, const UnitSums &sums, int rows) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int odd = 0; odd < 2; ++odd)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float *a = sums[2 * half] + odd, *b = sums[2 * half + 1] + odd;
            const int row = 2 * (lane & 3) + odd;
            if (row < rows)
                *(float4 *)&part[row][32 * half + (lane >> 2) * 4] = make_float4(a[0], a[2], b[0], b[2]);
        }
}
template <int SHARES> __device__ __forceinline__ float whole_sum(const UnitParts *part, int row, int column) {
    float sum = 0.f;
#pragma unroll
    for (int w = 0; w < SHARES; ++w) sum += part[w][row][column];
    return sum;
}

/* A unit as a lane sees it. */
struct PackedUnit {
    int64_t panel; /* where it begins in the weights, bytes */
    const bf16 *row;
    int rows; /* 0: there are no more units */
};
template <int CODES, int WARPS, int STAGES> struct UnitShared {
    Stage<CODES> stage[WARPS][STAGES];
    UnitParts part[2][WARPS];
    LaneTable<Way<CODES>::BY_TABLE> table;
};

/* All units of a block, one after the other; gated the first half of the warps has the gates' panel. Whole
 * block. Units has:
 *   open(turn)   -> PackedUnit; asked a turn before it is multiplied
 *   await()      until rows may be read
 *   start(turn), stop(turn)   around its product; what threads tell each other in `stop` is there in the next
 *                             turn
 *   finish(turn, parts)       by all threads, while others may have begun the next turn
 *   whole        rows are made of 16-byte pieces */
template <int CODES, int SHARES, int WARPS, int STAGES, class Units>
__device__ __forceinline__ void multiply_packed_units(const PackedB &b, UnitShared<CODES, WARPS, STAGES> &s,
                                                      const Walk<CODES, SHARES> &walk,
                                                      const Places<CODES> &places, Units &units) {
    const int warp = threadIdx.x / 32;
    const int64_t first = walk.first + warp / SHARES * b.second;
    PackedUnit unit = units.open(0);
    const unsigned char *codes = b.data + unit.panel + first;
    const bf16 *row = unit.row + walk.k;
    int left = b.k - walk.k, rows = unit.rows;
    int asked = rows > 0 ? walk.steps : 0; /* steps that are still to be asked for */
    /* What stands in other rows adds to nothing that is stored. */
    const auto ask_row = [&](int i) {
        if (places.lane < 4 * rows) ask_octet(places.row + i * places.STAGE, row, left, units.whole);
        row += SHARES * STEP, left -= SHARES * STEP;
    };
#pragma unroll
    for (int i = 0; i < STAGES; ++i, codes += walk.stride)
        if (i < asked) walk.ask_codes(places, i, codes);
    units.await();
#pragma unroll
    for (int i = 0; i < STAGES; ++i) {
        if (i < asked) ask_row(i);
        cp_async_commit();
    }
    asked -= STAGES;
    for (int turn = 0; unit.rows > 0; ++turn) {
        const PackedUnit next = units.open(turn + 1);
        UnitSums sums = {};
        units.start(turn);
        for (int at = 0, last = 0; !last; at += STAGES) {
            last = at + STAGES >= walk.steps;
            if (last) {
                codes = b.data + next.panel + first, row = next.row + walk.k, left = b.k - walk.k,
                rows = next.rows;
                asked = rows > 0 ? walk.steps : 0;
            }
#pragma unroll
            for (int i = 0; i < STAGES; ++i, codes += walk.stride) {
                cp_async_wait<STAGES - 1>();
                __syncwarp();
                if (at + i < walk.steps) add_step<CODES>(sums, places, i);
                __syncwarp();
                if (i < asked) {
                    walk.ask_codes(places, i, codes);
                    ask_row(i);
                }
                cp_async_commit();
            }
            asked -= STAGES;
        }
        put_part(s.part[turn % 2][warp], sums, unit.rows);
        units.stop(turn);
        __syncthreads();
        units.finish(turn, s.part[turn % 2]);
        unit = next;
    }
}

} // namespace moei

#endif
