/* rows_cuda.cu: what moves and sums rows, for any NVIDIA GPU from sm_80: sums of columns, biases, a gate over
 * rows, dot products of rows, copies. Formulas: moekit/op.h, kernel/stage.h.
 * All are bound by memory; each sum has one order.
 */
#include "kernel/cuda/portable.cuh"

namespace moei {

enum { THREADS = 256, COLS = 32, LANES = THREADS / COLS };

/* Blocks that share a group's columns. */
__host__ __device__ __forceinline__ unsigned column_tiles(int64_t n) {
    return (unsigned)ceil_div(n, COLS);
}

/* 32 columns of a group a block: eight lanes take every eighth row, and their sums are added in order. */
template <class T> __global__ void colsum_kernel(const moe_colsum_args p) {
    __shared__ double part[LANES][COLS];
    const unsigned across = column_tiles(p.n);
    const int32_t g = (int32_t)(blockIdx.x / across);
    const int64_t begin = p.offset ? p.offset[g] : 0, end = p.offset ? p.offset[g + 1] : p.n_rows;
    const int lane = threadIdx.x / COLS, c = threadIdx.x % COLS;
    const int64_t j = (int64_t)(blockIdx.x % across) * COLS + c;
    double sum = 0;
    for (int64_t r = begin + lane; r < end && j < p.n; r += LANES) {
        const double w = p.row_weight ? (double)((const float *)p.row_weight)[r] : 1.0;
        sum = fma(w, (double)load<T>(p.a, (p.a_row ? p.a_row[r] : r) * p.lda + j), sum);
    }
    part[lane][c] = sum;
    __syncthreads();
    if (lane > 0 || j >= p.n) return;
    float *out = (float *)p.out + g * p.n + j;
    sum = p.accumulate ? (double)*out : 0;
    for (int i = 0; i < LANES; ++i) sum += part[i][c];
    *out = (float)sum;
}

template <class T> __global__ void add_bias_kernel(const moei_bias_args p) {
    const int64_t r = blockIdx.x, j = (int64_t)blockIdx.y * blockDim.x + threadIdx.x;
    if (j >= p.n || (p.mask && !p.mask[r])) return;
    store<T>(p.mat, r * p.ld + j, load<T>(p.mat, r * p.ld + j) + load<T>(p.bias, j));
}

template <class T> __global__ void bias_grad_kernel(const moei_bias_args p) {
    __shared__ double part[LANES][COLS];
    const int lane = threadIdx.x / COLS, c = threadIdx.x % COLS;
    const int64_t j = (int64_t)blockIdx.x * COLS + c;
    double sum = 0;
    for (int64_t r = lane; r < p.rows && j < p.n; r += LANES)
        if (!p.mask || p.mask[r]) sum += (double)load<T>(p.mat, r * p.ld + j);
    part[lane][c] = sum;
    __syncthreads();
    if (lane > 0 || j >= p.n) return;
    sum = (double)((const float *)p.bias)[j];
    for (int i = 0; i < LANES; ++i) sum += part[i][c];
    ((float *)p.bias)[j] = (float)sum;
}

static __global__ void sigmoid_kernel(const moei_sigmoid_gate_args p) {
    const int64_t r = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    float *gate = (float *)p.gate;
    if (r < p.rows) gate[r] = 1.f / (1.f + expf(-gate[r]));
}

template <class T> __global__ void scale_rows_kernel(const moei_sigmoid_gate_args p) {
    const int64_t r = blockIdx.x, j = (int64_t)blockIdx.y * blockDim.x + threadIdx.x;
    if (j < p.n) store<T>(p.y, r * p.ld + j, load<T>(p.y, r * p.ld + j) * ((const float *)p.gate)[r]);
}

static __global__ void sigmoid_grad_kernel(const moei_sigmoid_gate_args p) {
    const int64_t r = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (r >= p.rows) return;
    const float g = ((const float *)p.gate)[r];
    ((float *)p.dgate)[r] *= g * (1.f - g);
}

template <class T> __global__ void add_scaled_kernel(const moei_sigmoid_gate_args p) {
    const int64_t r = blockIdx.x, j = (int64_t)blockIdx.y * blockDim.x + threadIdx.x;
    if (j >= p.n) return;
    const int64_t at = r * p.ld + j;
    store<T>(p.y, at, fmaf(((const float *)p.dgate)[r], load<T>(p.weight, j), load<T>(p.y, at)));
}

/* A warp a row; the group is found by bisection where b has a row a group. */
template <class T> __global__ void row_dot_kernel(const moei_row_dot_args p) {
    const int64_t r = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x & 31;
    const int64_t rows = p.offset ? p.offset[p.n_groups] : p.n_rows;
    if (r >= rows) return;
    int32_t g = 0;
    for (int32_t past = p.n_groups; p.b_by_group && past - g > 1;) {
        const int32_t middle = (g + past) / 2;
        if (p.offset[middle] <= r)
            g = middle;
        else
            past = middle;
    }
    const int64_t a = (p.a_row ? p.a_row[r] : r) * p.lda;
    const int64_t b = (p.b_by_group ? g : p.b_row ? p.b_row[r] : r) * p.ldb;
    float sum = 0.f;
    for (int64_t j = lane; j < p.n; j += 32) sum = fmaf(load<T>(p.a, a + j), load<T>(p.b, b + j), sum);
    sum = warp_sum(sum);
    float *out = (float *)p.out + r;
    if (lane == 0) *out = (p.accumulate ? *out : 0.f) + sum;
}

template <class T> __global__ void copy_rows_kernel(const moei_copy_rows_args p) {
    const int64_t r = blockIdx.x, j = (int64_t)blockIdx.y * blockDim.x + threadIdx.x;
    if (j >= p.n) return;
    float value = 0.f;
    if (p.from && (!p.slot || p.slot[r] >= 0)) {
        const float w = p.weight ? ((const float *)p.weight)[r] : 1.f;
        value = w * load<T>(p.from, (p.row ? p.row[r] : r) * p.ld_from + j);
    }
    store<T>(p.to, r * p.ld_to + j, value);
}

/* The same without weights, in pieces of 16 bytes: n and ld of them. */
static __global__ void copy_pieces_kernel(const moei_copy_rows_args p) {
    const int64_t r = blockIdx.x, j = (int64_t)blockIdx.y * blockDim.x + threadIdx.x;
    if (j >= p.n) return;
    uint4 piece = make_uint4(0, 0, 0, 0);
    if (!p.slot || p.slot[r] >= 0)
        piece = __ldg((const uint4 *)p.from + (p.row ? p.row[r] : r) * p.ld_from + j);
    ((uint4 *)p.to)[r * p.ld_to + j] = piece;
}

template <class F, class T> __global__ void convert_kernel(const moei_convert_args p) {
    const int64_t r = blockIdx.x, j = (int64_t)blockIdx.y * blockDim.x + threadIdx.x;
    if (j >= p.n) return;
    const float before = p.accumulate ? load<T>(p.to, r * p.ld_to + j) : 0.f;
    store<T>(p.to, r * p.ld_to + j, before + load<F>(p.from, r * p.ld_from + j));
}

/* A block a row, and further ones across its columns. */
static dim3 by_row(int64_t rows, int64_t n) {
    return dim3((unsigned)rows, (unsigned)ceil_div(n, THREADS));
}

/* A block 32 columns of a group. In one dimension: the second ends at 65535, and groups do not. */
static dim3 by_columns(int64_t n, int32_t groups) {
    return dim3(column_tiles(n) * (unsigned)groups);
}

/* Queues the kernel of the arguments' dtype. */
template <class Args>
static void launch(void (*f32)(Args), void (*narrow)(Args), dim3 grid, const moei_team *team,
                   const Args *args) {
    if (grid.x == 0 || grid.y == 0) return;
    if (args->dtype == MOE_F32)
        f32<<<grid, THREADS, 0, stream_of(team)>>>(*args);
    else
        narrow<<<grid, THREADS, 0, stream_of(team)>>>(*args);
}

} // namespace moei

using namespace moei;

extern "C" void moei_colsum__cuda(const moei_team *team, const moe_colsum_args *args) {
    launch(colsum_kernel<float>, colsum_kernel<bf16>, by_columns(args->n, args->n_groups), team, args);
}

extern "C" void moei_add_bias__cuda(const moei_team *team, const moei_bias_args *args) {
    launch(add_bias_kernel<float>, add_bias_kernel<bf16>, by_row(args->rows, args->n), team, args);
}

extern "C" void moei_bias_grad__cuda(const moei_team *team, const moei_bias_args *args) {
    launch(bias_grad_kernel<float>, bias_grad_kernel<bf16>, by_columns(args->n, 1), team, args);
}

extern "C" void moei_sigmoid_gate__cuda(const moei_team *team, const moei_sigmoid_gate_args *args) {
    launch(sigmoid_kernel, sigmoid_kernel, dim3((unsigned)ceil_div(args->rows, THREADS)), team, args);
    launch(scale_rows_kernel<float>, scale_rows_kernel<bf16>, by_row(args->rows, args->n), team, args);
}

extern "C" void moei_sigmoid_gate_grad__cuda(const moei_team *team, const moei_sigmoid_gate_args *args) {
    launch(sigmoid_grad_kernel, sigmoid_grad_kernel, dim3((unsigned)ceil_div(args->rows, THREADS)), team,
           args);
    if (args->y)
        launch(add_scaled_kernel<float>, add_scaled_kernel<bf16>, by_row(args->rows, args->n), team, args);
}

extern "C" void moei_row_dot__cuda(const moei_team *team, const moei_row_dot_args *args) {
    const dim3 grid((unsigned)ceil_div(args->n_rows * 32, THREADS));
    launch(row_dot_kernel<float>, row_dot_kernel<bf16>, grid, team, args);
}

extern "C" void moei_copy_rows__cuda(const moei_team *team, const moei_copy_rows_args *args) {
    const int64_t of16 = 16 / (int64_t)moe_dtype_bytes(args->dtype);
    if (args->from && !args->weight && args->n % of16 == 0 && args->ld_from % of16 == 0 &&
        args->ld_to % of16 == 0 && aligned16(args->from) && aligned16(args->to)) {
        moei_copy_rows_args pieces = *args;
        pieces.n /= of16, pieces.ld_from /= of16, pieces.ld_to /= of16;
        launch(copy_pieces_kernel, copy_pieces_kernel, by_row(pieces.rows, pieces.n), team, &pieces);
        return;
    }
    launch(copy_rows_kernel<float>, copy_rows_kernel<bf16>, by_row(args->rows, args->n), team, args);
}

extern "C" void moei_convert__cuda(const moei_team *team, const moei_convert_args *args) {
    const dim3 grid = by_row(args->rows, args->n);
    if (args->from_dtype == MOE_F32)
        launch(convert_kernel<float, float>, convert_kernel<float, bf16>, grid, team, args);
    else
        launch(convert_kernel<bf16, float>, convert_kernel<bf16, bf16>, grid, team, args);
}
