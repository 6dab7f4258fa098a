/* epilogue.cuh: what follows a grouped product, from accumulators [WG_M, TILE_N] to memory.
 * A warp holds rows 16w..16w+15 of each block of 64; lane l has rows l/4 and l/4+8, columns 8j + 2(l%4) and
 * the next: acc[4j .. 4j+3]. Lines are put together in the warp's own shared memory. Formulas: moekit/op.h.
 * The walk over a tile takes its accumulators from the front and moves the rest down: free where the walk is
 * unrolled, and dH, whose code would be 50 KB, can stay a loop (a loop cannot index registers).
 */
#ifndef MOEI_EPILOGUE_CUH
#define MOEI_EPILOGUE_CUH

#include "kernel/cuda/cuda_kernel.h"
#include "kernel/cuda/gemm_core.cuh"

namespace moei {

enum { LINE = 64, LINE_PITCH = 144, LINE_BYTES = 16 * LINE_PITCH };    /* 16 rows of 64 values, padded */
enum { STRIP = 32, STRIP_PITCH = 80, STRIP_BYTES = 16 * STRIP_PITCH }; /* 16 rows of 32 */

/* The epilogue's half of a launcher's arguments. */
struct EpilogueArgs {
    bf16 *c;
    int64_t ldc;
    bool accumulate;
    int m, n; /* rows (outer product only) and columns; of H where gated */
    int act;
    bf16 *z, *dz, *h;
    int64_t ldz, ldh;
    const float *row_weight;
    float *dweight_part;
    int n_parts;
};

enum { DWEIGHT_COLUMNS = 128 }; /* dweight is summed in parts of so many columns, whatever the tile */

/* Where a warp's 16 rows go. */
struct RowSpan {
    int row, row_end; /* first row of the 16, end of the group */
};

__device__ __forceinline__ uint4 add_bf16(uint4 a, uint4 b) {
    uint32_t x[4] = {a.x, a.y, a.z, a.w}, y[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < 4; ++i)
        x[i] = bf16_pack(bf16_low(x[i]) + bf16_low(y[i]), bf16_high(x[i]) + bf16_high(y[i]));
    return make_uint4(x[0], x[1], x[2], x[3]);
}

/* The warp's line -> out[row .., column ..], rows and columns past the end left out. */
__device__ __forceinline__ void flush_line(uint32_t stage, bf16 *out, int64_t ld, RowSpan span, int column,
                                           int n, bool accumulate) {
    const int lane = threadIdx.x & 31, part = lane & 7;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int r = i * 4 + (lane >> 3), row = span.row + r, col = column + part * 8;
        uint4 v = shared_load16(stage + r * LINE_PITCH + part * 16);
        if (row < span.row_end && col < n) {
            uint4 *to = (uint4 *)(out + row * ld + col);
            *to = accumulate ? add_bf16(v, *to) : v;
        }
    }
    __syncwarp();
}

/* 64 columns of accumulators, 4 values a lane for each 8, as one line. */
__device__ __forceinline__ void stage_line(uint32_t stage, const float *acc) {
    const int lane = threadIdx.x & 31;
    const uint32_t to = stage + ((lane & 7) + (lane & 8)) * LINE_PITCH + (lane >> 4) * 16;
#pragma unroll
    for (int j = 0; j < LINE / 8; j += 2) {
        const uint32_t v[4] = {
            bf16_pack(acc[4 * j], acc[4 * j + 1]), bf16_pack(acc[4 * j + 2], acc[4 * j + 3]),
            bf16_pack(acc[4 * j + 4], acc[4 * j + 5]), bf16_pack(acc[4 * j + 6], acc[4 * j + 7])};
        stmatrix(to + j * 16, v);
    }
}

/* The accumulators move down by BY, or by a block of 64 rows. */
template <int BY, int M, int L> __device__ __forceinline__ void shift(float (&acc)[M][L]) {
#pragma unroll
    for (int i = 0; i + BY < L; ++i) acc[0][i] = acc[0][i + BY];
}
template <int M, int L> __device__ __forceinline__ void shift_block(float (&acc)[M][L]) {
#pragma unroll
    for (int m = 0; m + 1 < M; ++m)
#pragma unroll
        for (int i = 0; i < L; ++i) acc[m][i] = acc[m + 1][i];
}

template <int M, int N>
__device__ __forceinline__ void epilogue_store(float (&acc)[M][N / 2], uint32_t stage, RowSpan span,
                                               int column, const EpilogueArgs &e) {
#pragma unroll
    for (int m = 0; m < M; ++m) {
        const RowSpan block = {span.row + 64 * m, span.row_end};
#pragma unroll
        for (int c = 0; c < N / LINE; ++c) {
            stage_line(stage, acc[0]);
            flush_line(stage, e.c, e.ldc, block, column + c * LINE, e.n, e.accumulate);
            shift<LINE / 2>(acc);
        }
        shift_block(acc);
    }
}

__device__ __forceinline__ float sigmoid(float x) {
    float t;
    asm("tanh.approx.f32 %0, %1;" : "=f"(t) : "f"(0.5f * x));
    return fmaf(0.5f, t, 0.5f);
}
__device__ __forceinline__ float normal_cdf(float x) {
    return 0.5f * (1 + erff(x * 0.70710678f));
}

__device__ __forceinline__ float act_value(int act, float z) {
    return act == MOE_ACT_GELU ? z * normal_cdf(z) : fmaxf(z, 0);
}
__device__ __forceinline__ float act_slope(int act, float z) {
    if (act == MOE_ACT_GELU) return normal_cdf(z) + z * 0.39894228f * __expf(-0.5f * z * z);
    return z > 0 ? 1.f : 0.f;
}

/* Z, and H = act(Z). Gated: the tile holds N/2 gate columns, then the N/2 up columns they go with. */
template <int M, int N, bool GATED>
__device__ __forceinline__ void epilogue_act(float (&acc)[M][N / 2], uint32_t stage, RowSpan span, int column,
                                             const EpilogueArgs &e) {
    constexpr int WIDTH = GATED ? N / 2 : N;
#pragma unroll
    for (int m = 0; m < M; ++m) {
        const RowSpan block = {span.row + 64 * m, span.row_end};
#pragma unroll
        for (int c = 0; c < WIDTH / LINE; ++c) {
            float *gate = acc[0], *up = acc[0] + WIDTH / 2 % (N / 2);
            if (e.z) {
                stage_line(stage, gate);
                flush_line(stage, e.z, e.ldz, block, column + c * LINE, e.n, false);
                if (GATED) {
                    stage_line(stage, up);
                    flush_line(stage, e.z + e.n, e.ldz, block, column + c * LINE, e.n, false);
                }
            }
#pragma unroll
            for (int i = 0; i < LINE / 2; ++i)
                gate[i] = GATED ? gate[i] * sigmoid(gate[i]) * up[i] : act_value(e.act, gate[i]);
            stage_line(stage, gate);
            flush_line(stage, e.h, e.ldh, block, column + c * LINE, e.n, false);
            shift<LINE / 2>(acc);
        }
        shift_block(acc);
    }
}

/* 16 rows of 32 saved pre-activations, two 16-byte pieces a lane. */
struct Strip {
    uint4 gate[2], up[2];
};
template <bool GATED>
__device__ __forceinline__ Strip load_strip(RowSpan span, int column, const EpilogueArgs &e) {
    const int lane = threadIdx.x & 31;
    Strip s;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int row = span.row + i * 8 + (lane >> 2), col = column + (lane & 3) * 8;
        const bool valid = row < span.row_end && col < e.n;
        const bf16 *z = e.z + row * e.ldz + col;
        s.gate[i] = valid ? *(const uint4 *)z : make_uint4(0, 0, 0, 0);
        if (GATED) s.up[i] = valid ? *(const uint4 *)(z + e.n) : make_uint4(0, 0, 0, 0);
    }
    return s;
}
template <bool GATED> __device__ __forceinline__ void put_strip(uint32_t stage, const Strip &s) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const uint32_t to = stage + (i * 8 + (lane >> 2)) * STRIP_PITCH + (lane & 3) * 16;
        shared_store16(to, s.gate[i]);
        if (GATED) shared_store16(to + STRIP_BYTES, s.up[i]);
    }
    __syncwarp();
}
template <bool GATED>
__device__ __forceinline__ void flush_strip(uint32_t stage, RowSpan span, int column, const EpilogueArgs &e) {
    const int lane = threadIdx.x & 31;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int r = i * 8 + (lane >> 2), row = span.row + r, col = column + (lane & 3) * 8;
        const uint32_t from = stage + r * STRIP_PITCH + (lane & 3) * 16;
        if (row < span.row_end && col < e.n) {
            *(uint4 *)(e.dz + row * e.ldz + col) = shared_load16(from);
            if (GATED) *(uint4 *)(e.dz + row * e.ldz + e.n + col) = shared_load16(from + STRIP_BYTES);
            *(uint4 *)(e.h + row * e.ldh + col) = shared_load16(from + 2 * STRIP_BYTES);
        }
    }
    __syncwarp();
}

/* dA' = da, Z in shared memory -> dZ over it, weight * A beside it; returns <dA', A> of the pair. */
template <bool GATED>
__device__ __forceinline__ float act_grad_pair(uint32_t at, const float *da, float w, int act) {
    const uint32_t z = shared_load4(at);
    const float g[2] = {bf16_low(z), bf16_high(z)};
    float dot = 0, dg[2], du[2], wa[2];
    const uint32_t zu = GATED ? shared_load4(at + STRIP_BYTES) : 0;
    const float u[2] = {bf16_low(zu), bf16_high(zu)};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const float wda = w * da[i];
        float a;
        if (GATED) {
            const float s = sigmoid(g[i]), silu = g[i] * s;
            a = silu * u[i];
            du[i] = wda * silu;
            dg[i] = wda * u[i] * fmaf(silu, 1 - s, s);
        } else {
            a = act_value(act, g[i]);
            dg[i] = wda * act_slope(act, g[i]);
        }
        wa[i] = w * a;
        dot = fmaf(da[i], a, dot);
    }
    shared_store4(at, bf16_pack(dg[0], dg[1]));
    if (GATED) shared_store4(at + STRIP_BYTES, bf16_pack(du[0], du[1]));
    shared_store4(at + 2 * STRIP_BYTES, bf16_pack(wa[0], wa[1]));
    return dot;
}

/* Walks over a warp's strips: N / STRIP of them for each block of 64 rows. Loads are two strips ahead, so
 * that both halves of a 128-byte line of Z are read before dZ is written over either: a read that meets a
 * line half written waits for microseconds (dH took 0.81 instead of 0.49 ms). */
template <int M, int N, bool GATED> struct ActGrad {
    static constexpr int STRIPS = N / STRIP;
    float (&acc)[M][N / 2];
    const uint32_t stage;
    const RowSpan span;
    const int column;
    const EpilogueArgs &e;
    float w[2], dot[2];

    __device__ __forceinline__ Strip load(int q) const {
        const int row =
            q < M * STRIPS ? span.row + q / STRIPS * 64 : span.row_end; /* past the last: nothing */
        return load_strip<GATED>({row, span.row_end}, column + q % STRIPS * STRIP, e);
    }
    __device__ __forceinline__ void begin_block(int row) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int r = row + 8 * half;
            w[half] = e.row_weight && r < span.row_end ? e.row_weight[r] : 1.f;
            dot[half] = 0;
        }
    }
    __device__ __forceinline__ void keep_dweight(int row, int part) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            dot[half] += __shfl_xor_sync(~0u, dot[half], 1);
            dot[half] += __shfl_xor_sync(~0u, dot[half], 2);
            const int to = row + 8 * half;
            if (e.dweight_part && (threadIdx.x & 3) == 0 && to < span.row_end && part < e.n_parts)
                e.dweight_part[(int64_t)to * e.n_parts + part] = dot[half];
            dot[half] = 0;
        }
    }
    __device__ __forceinline__ void step(int q, Strip &strip) {
        const int lane = threadIdx.x & 31, c = q % STRIPS, first = span.row + q / STRIPS * 64;
        const int row = first + (lane >> 2);
        const uint32_t at = stage + (lane >> 2) * STRIP_PITCH + (lane & 3) * 4;
        put_strip<GATED>(stage, strip);
        strip = load(q + 2);
        if (c == 0) begin_block(row);
#pragma unroll
        for (int j = 0; j < STRIP / 8; ++j)
#pragma unroll
            for (int half = 0; half < 2; ++half)
                dot[half] += act_grad_pair<GATED>(at + 8 * half * STRIP_PITCH + j * 16,
                                                  acc[0] + j * 4 + 2 * half, w[half], e.act);
        flush_strip<GATED>(stage, {first, span.row_end}, column + c * STRIP, e);
        shift<STRIP / 2>(acc);
        if ((c + 1) % (DWEIGHT_COLUMNS / STRIP) == 0)
            keep_dweight(row, (column + c * STRIP) / DWEIGHT_COLUMNS);
        if (c + 1 == STRIPS) shift_block(acc);
    }
};

template <int M, int N, bool GATED>
__device__ __forceinline__ void epilogue_act_grad(float (&acc)[M][N / 2], uint32_t stage, RowSpan span,
                                                  int column, const EpilogueArgs &e) {
    ActGrad<M, N, GATED> walk = {
        acc, stage, span, column, e, {1, 1},
             {0, 0}
    };
    Strip even = walk.load(0), odd = walk.load(1);
#pragma unroll 1
    for (int q = 0; q < M * N / STRIP; q += 2) {
        walk.step(q, even);
        walk.step(q + 1, odd);
    }
}

/* C transposed: the tile's columns are rows of C. The warpgroup puts 64 of them together. */
template <int N>
__device__ __forceinline__ void epilogue_store_transposed(float (&acc)[1][N / 2], uint32_t group_stage,
                                                          int barrier, int row, int column,
                                                          const EpilogueArgs &e, bf16 *c) {
    const int lane = threadIdx.x & 31, thread = threadIdx.x & 127, warp = thread >> 5;
#pragma unroll
    for (int j0 = 0; j0 < N / 8; j0 += 8) {
        const uint32_t to =
            group_stage + ((lane & 7) + (lane >> 4) * 8) * LINE_PITCH + warp * 32 + (lane & 8) * 2;
#pragma unroll
        for (int j = 0; j < 8; j += 2) {
            const float *a = acc[0] + 4 * j;
            const uint32_t v[4] = {bf16_pack(a[0], a[1]), bf16_pack(a[2], a[3]), bf16_pack(a[4], a[5]),
                                   bf16_pack(a[6], a[7])};
            stmatrix_transposed(to + j * 8 * LINE_PITCH, v);
        }
        named_barrier(barrier, 128);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int r = i * 16 + (thread >> 3), c_row = column + j0 * 8 + r, c_col = row + (thread & 7) * 8;
            uint4 v = shared_load16(group_stage + r * LINE_PITCH + (thread & 7) * 16);
            if (c_row < e.n && c_col < e.m) {
                uint4 *at = (uint4 *)(c + c_row * e.ldc + c_col);
                *at = e.accumulate ? add_bf16(v, *at) : v;
            }
        }
        shift<LINE / 2>(acc);
        named_barrier(barrier, 128);
    }
}

} // namespace moei
#endif
