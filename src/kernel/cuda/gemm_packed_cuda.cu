/* gemm_packed_cuda.cu: grouped product of few rows with packed weights (kernel/packed.h), any GPU from sm_80.
 * C[r, :] = A[a_row[r], :] B_g, then the epilogue; formulas: moekit/op.h. A block has up to ROWS rows of one
 * group and 32 columns of B (gated: 32 gates and their ups); its eight warps share the words of the sum, a
 * lane reads 16 bytes at a time, four columns. Codes are summed against A as numbers, then scaled: a word's
 * sum, then a lane's, then lanes and warps in order, so a row has the same bits whatever stands beside it.
 * Meant for decoding: every ROWS rows read their expert's weights once more.
 */
#include "kernel/cuda/portable.cuh"

extern "C" {
#include "kernel/packed.h"
}

#include <cuda_fp16.h>

namespace moei {

enum { THREADS = 256, WARPS = THREADS / 32, COLS = 32, LANE_COLS = 4 };
enum { WORDS = WARPS * 4 }; /* rows of words that a block reads at once */
enum { DEPTH = 1024 };      /* steps of the sum whose A is in shared memory */

/* The three ways from a word to numbers. */
enum Codes { BYTES, INTEGERS, TABLE };

struct PackedArgs {
    moe_gemm_rows_args p;
    const unsigned char *data;
    int64_t group_bytes, panel_bytes, block_bytes, run_panels;
    int32_t group;
    bool exponents, gated;
    float value[MOEI_CODES];
};

template <int CODES> struct Word;

/* A byte in the mantissa of 2^23 is a whole number; of four bits likewise, a power of 16 times it, which A is
 * divided by. */
template <> struct Word<BYTES> {
    enum { PER = 4 };
    static __device__ __forceinline__ float factor(int) { return 1.f; }
    static __device__ __forceinline__ void read(uint32_t word, const float *, float (&number)[PER]) {
        const uint32_t code = word ^ 0x80808080u;
#pragma unroll
        for (int i = 0; i < PER; ++i)
            number[i] = __uint_as_float(__byte_perm(code, 0x4b000000u, 0x7650 + i)) - 8388736.f;
    }
};
template <> struct Word<INTEGERS> {
    enum { PER = 8, LOW = 5 };
    static __device__ __forceinline__ float factor(int i) {
        return __uint_as_float((uint32_t)(127 - 4 * (i < LOW ? i : i - LOW)) << 23);
    }
    static __device__ __forceinline__ void read(uint32_t word, const float *, float (&number)[PER]) {
        const uint32_t high = word >> 4 * LOW;
#pragma unroll
        for (int i = 0; i < PER; ++i) {
            const int at = i < LOW ? 4 * i : 4 * (i - LOW);
            const uint32_t code = ((i < LOW ? word : high) & (15u << at)) | 0x4b000000u;
            number[i] = __uint_as_float(code) - (8388608.f + (float)(8 << at));
        }
    }
};
template <> struct Word<TABLE> {
    enum { PER = 8 };
    static __device__ __forceinline__ float factor(int) { return 1.f; }
    static __device__ __forceinline__ void read(uint32_t word, const float *table, float (&number)[PER]) {
#pragma unroll
        for (int i = 0; i < PER; ++i) number[i] = table[word >> 4 * i & 15];
    }
};

/* Four scales of a block of packed weights. */
__device__ __forceinline__ void read_scales(bool exponents, const unsigned char *block, int column,
                                            float (&scale)[LANE_COLS]) {
    if (exponents) {
        const uint32_t four = __ldg((const uint32_t *)(block + column));
#pragma unroll
        for (int c = 0; c < LANE_COLS; ++c) scale[c] = __uint_as_float((four >> 8 * c & 255) << 23);
        return;
    }
    const uint2 four = __ldg((const uint2 *)(block + 2 * column));
    const __half2 low = *(const __half2 *)&four.x, high = *(const __half2 *)&four.y;
    scale[0] = __low2float(low), scale[1] = __high2float(low);
    scale[2] = __low2float(high), scale[3] = __high2float(high);
}

template <int ROWS> struct PackedShared {
    alignas(16) float a[ROWS][DEPTH];
    float part[2][WARPS][ROWS][COLS];
    float table[MOEI_CODES];
};

/* A's steps k0 .. k0+DEPTH of the tile's rows, zeros past the sum, divided as the codes want it. */
template <class T, int CODES, int ROWS>
__device__ __forceinline__ void put_rows(const moe_gemm_rows_args &p, const RowTile &tile, int64_t k0,
                                         PackedShared<ROWS> &s) {
    for (int i = threadIdx.x; i < ROWS * DEPTH; i += THREADS) {
        const int64_t r = tile.first + i / DEPTH, k = k0 + i % DEPTH;
        float x = 0.f;
        if (r < tile.end && k < p.k) x = load<T>(p.a, (p.a_row ? p.a_row[r] : r) * p.lda + k);
        s.a[i / DEPTH][i % DEPTH] = x * Word<CODES>::factor(i % Word<CODES>::PER);
    }
}

/* acc += one row of words, of four columns, against A from step k on. */
template <int CODES, int ROWS>
__device__ __forceinline__ void add_words(const PackedShared<ROWS> &s, uint4 words,
                                          const float (&scale)[LANE_COLS], int k, int rows,
                                          float (&acc)[ROWS][LANE_COLS]) {
    enum { PER = Word<CODES>::PER };
    const uint32_t word[LANE_COLS] = {words.x, words.y, words.z, words.w};
    float number[LANE_COLS][PER];
#pragma unroll
    for (int c = 0; c < LANE_COLS; ++c) Word<CODES>::read(word[c], s.table, number[c]);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        if (r >= rows) break;
        float a[PER];
#pragma unroll
        for (int i = 0; i < PER; i += 4) *(float4 *)(a + i) = *(const float4 *)&s.a[r][k + i];
#pragma unroll
        for (int c = 0; c < LANE_COLS; ++c) {
            float sum = 0.f;
#pragma unroll
            for (int i = 0; i < PER; ++i) sum = fmaf(a[i], number[c][i], sum);
            acc[r][c] = fmaf(sum, scale[c], acc[r][c]);
        }
    }
}

/* Lanes of the same columns, then the warps in order. */
template <int ROWS>
__device__ __forceinline__ void put_part(float (&acc)[ROWS][LANE_COLS], float (*part)[ROWS][COLS]) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
        for (int c = 0; c < LANE_COLS; ++c) {
            acc[r][c] += __shfl_xor_sync(~0u, acc[r][c], 8);
            acc[r][c] += __shfl_xor_sync(~0u, acc[r][c], 16);
            if (lane < 8) part[warp][r][lane * LANE_COLS + c] = acc[r][c];
        }
}
template <int ROWS>
__device__ __forceinline__ float whole_sum(const float (*part)[ROWS][COLS], int r, int c) {
    float sum = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) sum += part[w][r][c];
    return sum;
}

template <class T, class C, int ROWS>
__device__ __forceinline__ void finish(const PackedArgs &args, const RowTile &tile,
                                       const PackedShared<ROWS> &s) {
    const moe_gemm_rows_args &p = args.p;
    const int64_t width = args.gated ? p.n / 2 : p.n;
    for (int i = threadIdx.x; i < ROWS * COLS; i += THREADS) {
        const int64_t r = tile.first + i / COLS, j = (int64_t)blockIdx.x * COLS + i % COLS;
        if (r >= tile.end || j >= width) continue;
        const int64_t bias = tile.group * p.n + j;
        const float z = whole_sum(s.part[0], i / COLS, i % COLS) + (p.bias ? load<T>(p.bias, bias) : 0.f);
        if (p.epilogue == MOE_EPI_STORE) {
            store<C>(p.c, r * p.ldc + j, z + (p.accumulate ? load<C>(p.c, r * p.ldc + j) : 0.f));
            continue;
        }
        float up = 0.f;
        if (args.gated)
            up = whole_sum(s.part[1], i / COLS, i % COLS) + (p.bias ? load<T>(p.bias, bias + width) : 0.f);
        if (p.c) store<T>(p.c, r * p.ldc + j, z);
        if (p.c && args.gated) store<T>(p.c, r * p.ldc + width + j, up);
        store<T>(p.h, r * p.ldh + j, act_point(p.act, z, up).value);
    }
}

template <class T, class C, int CODES, bool GATED, int ROWS>
__global__ void __launch_bounds__(THREADS) gemm_packed_kernel(const __grid_constant__ PackedArgs args) {
    enum { PER = Word<CODES>::PER, FLIGHT = 4 };
    __shared__ PackedShared<ROWS> s;
    const moe_gemm_rows_args &p = args.p;
    const RowTile tile = find_row_tile(p.offset, p.n_groups, p.n_rows, blockIdx.y, ROWS);
    if (tile.group < 0) return;
    const int lane = threadIdx.x & 31, column = (int)(blockIdx.x % 2) * COLS + (lane & 7) * LANE_COLS;
    const int word0 = (threadIdx.x >> 5) * 4 + (lane >> 3),
              rows = (int)min((int64_t)ROWS, tile.end - tile.first);
    const int group_words = args.group / PER, scale_bytes = MOEI_PANEL * (args.exponents ? 1 : 2);
    const unsigned char *panel =
        args.data + tile.group * args.group_bytes + (int64_t)(blockIdx.x / 2) * args.panel_bytes;
    const int64_t second = args.run_panels * args.panel_bytes;
    if (threadIdx.x < MOEI_CODES) s.table[threadIdx.x] = args.value[threadIdx.x];
    float acc[ROWS][LANE_COLS] = {}, up[GATED ? ROWS : 1][LANE_COLS] = {};
    for (int64_t k0 = 0; k0 < p.k; k0 += DEPTH) {
        const int words = (int)ceil_div(min((int64_t)DEPTH, p.k - k0), PER);
        __syncthreads();
        put_rows<T, CODES>(p, tile, k0, s);
        __syncthreads();
        for (int first = word0; first < words; first += FLIGHT * WORDS) {
            uint4 gates[FLIGHT], ups[GATED ? FLIGHT : 1];
            const unsigned char *block[FLIGHT];
#pragma unroll
            for (int i = 0; i < FLIGHT; ++i) {
                const int word = first + i * WORDS, whole = (int)(k0 / PER) + word;
                block[i] = panel + (int64_t)(whole / group_words) * args.block_bytes;
                const unsigned char *at =
                    block[i] + scale_bytes + (whole % group_words * MOEI_PANEL + column) * 4;
                gates[i] = word < words ? __ldcs((const uint4 *)at) : make_uint4(0, 0, 0, 0);
                if (GATED)
                    ups[i] = word < words ? __ldcs((const uint4 *)(at + second)) : make_uint4(0, 0, 0, 0);
            }
#pragma unroll
            for (int i = 0; i < FLIGHT; ++i) {
                const int word = first + i * WORDS;
                if (word >= words) break;
                float scale[LANE_COLS];
                read_scales(args.exponents, block[i], column, scale);
                add_words<CODES>(s, gates[i], scale, word * PER, rows, acc);
                if constexpr (GATED) {
                    read_scales(args.exponents, block[i] + second, column, scale);
                    add_words<CODES>(s, ups[i], scale, word * PER, rows, up);
                }
            }
        }
    }
    put_part(acc, s.part[0]);
    if constexpr (GATED) put_part(up, s.part[1]);
    __syncthreads();
    finish<T, C>(args, tile, s);
}

/* Rows of a block: of one or two tokens no expert has more than two. */
enum { FEW = 2, MORE = 4, FEW_ROWS = 16 };
template <class T, class C, int CODES, bool GATED>
static void launch_rows(const PackedArgs &args, cudaStream_t stream) {
    const moe_gemm_rows_args &p = args.p;
    const int64_t width = GATED ? p.n / 2 : p.n;
    const int rows = p.n_rows <= FEW_ROWS ? FEW : MORE;
    int64_t tiles = ceil_div(p.n_rows, rows) + (p.offset ? p.n_groups : 0);
    if (tiles > p.n_rows) tiles = p.n_rows; /* no tile is empty */
    const dim3 grid((unsigned)ceil_div(width, COLS), (unsigned)tiles);
    if (rows == FEW)
        gemm_packed_kernel<T, C, CODES, GATED, FEW><<<grid, THREADS, 0, stream>>>(args);
    else
        gemm_packed_kernel<T, C, CODES, GATED, MORE><<<grid, THREADS, 0, stream>>>(args);
}

template <class T, class C, int CODES> static void launch_codes(const PackedArgs &args, cudaStream_t stream) {
    if (args.gated) return launch_rows<T, T, CODES, true>(args, stream);
    launch_rows<T, C, CODES, false>(args, stream);
}

template <class T, class C> static void launch(const PackedArgs &args, Codes codes, cudaStream_t stream) {
    if (codes == BYTES) return launch_codes<T, C, BYTES>(args, stream);
    if (codes == INTEGERS) return launch_codes<T, C, INTEGERS>(args, stream);
    launch_codes<T, C, TABLE>(args, stream);
}

} // namespace moei

extern "C" void moei_gemm_packed__cuda(const moei_team *team, const moe_gemm_rows_args *args) {
    using namespace moei;
    if (args->n_rows == 0 || args->n == 0) return;
    const moe_packed *packed = args->b_packed;
    const moei_packed_format *format = packed->format;
    PackedArgs told;
    told.p = *args;
    told.data = packed->data;
    told.group_bytes = packed->group_bytes;
    told.panel_bytes = packed->panel_bytes;
    told.block_bytes = packed->block_bytes;
    told.run_panels = packed->run_panels;
    told.group = packed->group;
    told.exponents = format->exponents;
    told.gated = packed->n_runs == 2;
    memcpy(told.value, format->value, sizeof told.value);
    const Codes codes = format->bits == 8 ? BYTES : format->value[0] == -8.f ? INTEGERS : TABLE;
    if (args->dtype == MOE_F32) return launch<float, float>(told, codes, stream_of(team));
    if (args->c_wide) return launch<bf16, float>(told, codes, stream_of(team));
    launch<bf16, bf16>(told, codes, stream_of(team));
}
