/* gemm_rows_cuda.cu: grouped product over ragged rows, f32, for any NVIDIA GPU from sm_80: FMA in registers.
 * C[r, :] = A[a_row[r], :] B_g, then the epilogue; formulas: moekit/op.h. k ascending in one accumulator.
 * A block has a tile of 128 rows of one group and 128 columns of B, a thread 8 x 8 of it; the next slices of
 * A and B wait in registers while this one is multiplied. Source: CUTLASS's SIMT product, in our own words.
 * bf16 is multiplied by tensor cores: gemm_rows_mma_cuda.cu.
 */
#include "kernel/cuda/act_exact.cuh"
#include "kernel/cuda/cuda_kernel.h"

namespace moei {

enum { ROWS = 128, COLS = 128, DEPTH = 16, THREADS = 256, PITCH = ROWS + 4, HALF = COLS / 2 };

struct RowsCall : moe_gemm_rows_args {
    ActRule rule;
};

/* B column of tile column c. Gated ACT: 64 gate columns and the 64 up columns that go with them. */
template <int EPI> __device__ __forceinline__ int64_t column_of(const RowsCall &p, int c, bool *inside) {
    if (EPI == MOE_EPI_ACT && p.rule.gated) {
        const int64_t j = (int64_t)blockIdx.y * HALF + (c & (HALF - 1));
        *inside = j < p.n / 2;
        return c < HALF ? j : p.n / 2 + j;
    }
    const int64_t j = (int64_t)blockIdx.y * COLS + c;
    *inside = j < p.n;
    return j;
}

/* What a thread loads of a slice: 8 numbers of A and 8 of B. */
struct Slice {
    float a[8], b[8];
};

template <int EPI> struct Source {
    const float *a[8]; /* rows of A, NULL past the end; column thread % 16 of the slice */
    const float *b[8];
    int64_t b_step; /* from one k to the next */

    __device__ void open(const RowsCall &p, const RowTile &tile) {
        const float *group = (const float *)p.b + tile.group * p.b_group;
        const int thread = threadIdx.x, k = thread % DEPTH;
        b_step = p.b_trans ? 1 : p.ldb;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const int64_t r = tile.first + thread / DEPTH + i * (THREADS / DEPTH);
            a[i] = NULL;
            if (r < tile.end) a[i] = (const float *)p.a + (p.a_row ? p.a_row[r] : r) * p.lda + k;
            bool inside;
            const int c = p.b_trans ? thread / DEPTH + i * (THREADS / DEPTH) : thread % COLS;
            const int64_t j = column_of<EPI>(p, c, &inside);
            b[i] = NULL;
            if (!inside) continue;
            b[i] = p.b_trans ? group + j * p.ldb + k : group + (int64_t)(thread / COLS + 2 * i) * p.ldb + j;
        }
    }
    __device__ void load(const RowsCall &p, int64_t k0, Slice &s) const {
        const int k = threadIdx.x % DEPTH;
        const bool a_in = k0 + k < p.k;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const bool b_in = p.b_trans ? a_in : k0 + (int)threadIdx.x / COLS + 2 * i < p.k;
            s.a[i] = a_in && a[i] ? __ldg(a[i] + k0) : 0.f;
            s.b[i] = b_in && b[i] ? __ldg(b[i] + k0 * b_step) : 0.f;
        }
    }
};

__device__ __forceinline__ void store_slice(bool b_trans, const Slice &s, float (*a)[PITCH],
                                            float (*b)[PITCH]) {
    const int thread = threadIdx.x, k = thread % DEPTH, row = thread / DEPTH;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        a[k][row + i * (THREADS / DEPTH)] = s.a[i];
        if (b_trans)
            b[k][row + i * (THREADS / DEPTH)] = s.b[i];
        else
            b[thread / COLS + 2 * i][thread % COLS] = s.b[i];
    }
}

/* A thread's rows and columns: four here, four 64 further on. */
__device__ __forceinline__ int part(int at, int i) {
    return at * 4 + (i & 3) + (i >> 2) * 64;
}

__device__ __forceinline__ void multiply_slice(const float (*a)[PITCH], const float (*b)[PITCH],
                                               float (&acc)[8][8]) {
    const int across = threadIdx.x % 16, down = threadIdx.x / 16;
#pragma unroll
    for (int k = 0; k < DEPTH; ++k) {
        float row[8], col[8];
        *(float4 *)row = *(const float4 *)&a[k][down * 4];
        *(float4 *)(row + 4) = *(const float4 *)&a[k][down * 4 + 64];
        *(float4 *)col = *(const float4 *)&b[k][across * 4];
        *(float4 *)(col + 4) = *(const float4 *)&b[k][across * 4 + 64];
#pragma unroll
        for (int i = 0; i < 8; ++i)
#pragma unroll
            for (int j = 0; j < 8; ++j) acc[i][j] = fmaf(row[i], col[j], acc[i][j]);
    }
}

__device__ __forceinline__ void store_rows(const RowsCall &p, const RowTile &tile, float (&acc)[8][8]) {
    const int across = threadIdx.x % 16, down = threadIdx.x / 16;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const int64_t r = tile.first + part(down, i);
        if (r >= tile.end) break;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            bool inside;
            const int64_t col = column_of<MOE_EPI_STORE>(p, part(across, j), &inside);
            if (!inside) continue;
            const float bias = p.bias ? ((const float *)p.bias)[tile.group * p.n + col] : 0.f;
            const float before = p.accumulate ? ((const float *)p.c)[r * p.ldc + col] : 0.f;
            ((float *)p.c)[r * p.ldc + col] = before + (acc[i][j] + bias);
        }
    }
}

/* Z = product + bias, kept where asked; H = act(Z). */
__device__ __forceinline__ void act_rows(const RowsCall &p, const RowTile &tile, float (&acc)[8][8]) {
    const int across = threadIdx.x % 16, down = threadIdx.x / 16;
    const bool gated = p.rule.gated;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const int64_t r = tile.first + part(down, i);
        if (r >= tile.end) break;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            bool inside;
            const int64_t col = column_of<MOE_EPI_ACT>(p, part(across, j), &inside);
            if (!inside) continue;
            acc[i][j] += p.bias ? ((const float *)p.bias)[tile.group * p.n + col] : 0.f;
            if (p.c) ((float *)p.c)[r * p.ldc + col] = acc[i][j];
            if (!gated) ((float *)p.h)[r * p.ldh + col] = act_point(p.rule, acc[i][j], 0.f).value;
        }
#pragma unroll
        for (int j = 0; gated && j < 4; ++j) {
            bool inside;
            const int64_t col = column_of<MOE_EPI_ACT>(p, part(across, j), &inside);
            if (inside) ((float *)p.h)[r * p.ldh + col] = act_point(p.rule, acc[i][j], acc[i][j + 4]).value;
        }
    }
}

/* The product is dA': dZ = w act'(Z) dA', wA = w act(Z), and 64 columns' share of <dA', act(Z)>. */
__device__ __forceinline__ void act_grad_rows(const RowsCall &p, const RowTile &tile, float (&acc)[8][8]) {
    const int across = threadIdx.x % 16, down = threadIdx.x / 16;
    const bool gated = p.rule.gated;
    const int64_t parts = ceil_div(p.n, MOEI_DWEIGHT_COLS);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const int64_t r = tile.first + part(down, i);
        const bool real = r < tile.end;
        const float w = real && p.row_weight ? ((const float *)p.row_weight)[r] : 1.f;
        float dot[2] = {0.f, 0.f};
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            bool inside;
            const int64_t col = column_of<MOE_EPI_ACT_GRAD>(p, part(across, j), &inside);
            if (!inside || !real) continue;
            const int64_t at = r * p.ldz + col;
            const float gate = ((const float *)p.z)[at], up = gated ? ((const float *)p.z)[at + p.n] : 0.f;
            const ActPoint point = act_point(p.rule, gate, up);
            const float through = w * acc[i][j];
            ((float *)p.dz)[at] = through * point.d_gate;
            if (gated) ((float *)p.dz)[at + p.n] = through * point.d_up;
            ((float *)p.wa)[r * p.ldwa + col] = w * point.value;
            dot[j >> 2] = fmaf(acc[i][j], point.value, dot[j >> 2]);
        }
        if (!p.dweight) continue;
#pragma unroll
        for (int d = 8; d > 0; d /= 2) {
            dot[0] += __shfl_xor_sync(~0u, dot[0], d);
            dot[1] += __shfl_xor_sync(~0u, dot[1], d);
        }
        float *out = (float *)p.dweight_part + r * parts + 2 * (int64_t)blockIdx.y;
        if (across == 0 && real) out[0] = dot[0];
        if (across == 0 && real && 2 * (int64_t)blockIdx.y + 1 < parts) out[1] = dot[1];
    }
}

template <int EPI> __global__ void __launch_bounds__(THREADS) gemm_rows_kernel(const RowsCall p) {
    __shared__ float a[2][DEPTH][PITCH], b[2][DEPTH][PITCH];
    const RowTile tile = find_row_tile(p.offset, p.n_groups, p.n_rows, blockIdx.x, ROWS);
    if (tile.group < 0) return;
    float acc[8][8] = {};
    Source<EPI> source;
    Slice slice;
    source.open(p, tile);
    source.load(p, 0, slice);
    store_slice(p.b_trans, slice, a[0], b[0]);
    __syncthreads();
    int now = 0;
    for (int64_t k0 = DEPTH; k0 < p.k; k0 += DEPTH, now ^= 1) {
        source.load(p, k0, slice);
        multiply_slice(a[now], b[now], acc);
        store_slice(p.b_trans, slice, a[now ^ 1], b[now ^ 1]);
        __syncthreads();
    }
    multiply_slice(a[now], b[now], acc);
    if (EPI == MOE_EPI_STORE) store_rows(p, tile, acc);
    if (EPI == MOE_EPI_ACT) act_rows(p, tile, acc);
    if (EPI == MOE_EPI_ACT_GRAD) act_grad_rows(p, tile, acc);
}

/* dweight[r] = the sum of its parts, first to last. */
static __global__ void dweight_kernel(const moe_gemm_rows_args p, int64_t parts) {
    const int64_t begin = p.offset ? p.offset[0] : 0, end = p.offset ? p.offset[p.n_groups] : p.n_rows;
    const int64_t r = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    let_next_start();
    await_earlier();
    if (r < begin || r >= end) return;
    float sum = 0.f;
    for (int64_t i = 0; i < parts; ++i) sum += ((const float *)p.dweight_part)[r * parts + i];
    ((float *)p.dweight)[r] = sum;
}
static void sum_dweight(const moe_gemm_rows_args *args, int64_t parts, cudaStream_t stream) {
    Launch(dim3((unsigned)ceil_div(args->n_rows, 256)), 256, 0, stream)
        .early_where_built(dweight_kernel)(dweight_kernel, *args, parts);
}

static void launch(const moe_gemm_rows_args *args, cudaStream_t stream) {
    const RowsCall call = {*args, act_rule_of(args->act, args->act_numbers)};
    const bool pairs = args->epilogue == MOE_EPI_ACT && call.rule.gated;
    const dim3 grid((unsigned)row_tiles_most(args, ROWS),
                    (unsigned)(pairs ? ceil_div(args->n / 2, HALF) : ceil_div(args->n, COLS)));
    if (args->epilogue == MOE_EPI_STORE) gemm_rows_kernel<MOE_EPI_STORE><<<grid, THREADS, 0, stream>>>(call);
    if (args->epilogue == MOE_EPI_ACT) gemm_rows_kernel<MOE_EPI_ACT><<<grid, THREADS, 0, stream>>>(call);
    if (args->epilogue != MOE_EPI_ACT_GRAD) return;
    gemm_rows_kernel<MOE_EPI_ACT_GRAD><<<grid, THREADS, 0, stream>>>(call);
    if (args->dweight) sum_dweight(args, ceil_div(args->n, MOEI_DWEIGHT_COLS), stream);
}

} // namespace moei

extern "C" void moei_gemm_rows__cuda(const moei_team *team, const moe_gemm_rows_args *args) {
    using namespace moei;
    if (args->n_rows == 0 || args->n == 0) return;
    if (args->dtype == MOE_BF16) return moei_cuda_gemm_rows_mma(team, args);
    launch(args, stream_of(team));
}

void moei_cuda_sum_dweight(const moei_team *team, const moe_gemm_rows_args *args, int64_t parts) {
    moei::sum_dweight(args, parts, moei::stream_of(team));
}
