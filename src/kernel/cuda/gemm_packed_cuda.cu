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
    ActRule rule;
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

/* What a lane reads for four columns: a row of words and the scales of its block, as they are in memory. */
struct Fetched {
    uint4 words;
    uint2 scales;
};
struct Source {
    const unsigned char *panel; /* at the lane's columns */
    int64_t block_bytes;
    int group_words, scale_bytes, scale_at;
    bool exponents;

    __device__ __forceinline__ Fetched fetch(int word, int words, int64_t shift) const {
        Fetched got = {make_uint4(0, 0, 0, 0), make_uint2(0, 0)};
        if (word >= words) return got;
        const unsigned char *block = panel + shift + (int64_t)(word / group_words) * block_bytes;
        const unsigned char *scales = block + scale_at;
        got.words = __ldcs((const uint4 *)(block + scale_bytes + word % group_words * (4 * MOEI_PANEL)));
        if (exponents)
            got.scales.x = __ldg((const uint32_t *)scales);
        else
            got.scales = __ldg((const uint2 *)scales);
        return got;
    }
};
__device__ __forceinline__ void read_scales(bool exponents, uint2 four, float (&scale)[LANE_COLS]) {
    if (exponents) {
#pragma unroll
        for (int c = 0; c < LANE_COLS; ++c) scale[c] = __uint_as_float((four.x >> 8 * c & 255) << 23);
        return;
    }
    const __half2 low = *(const __half2 *)&four.x, high = *(const __half2 *)&four.y;
    scale[0] = __low2float(low), scale[1] = __high2float(low);
    scale[2] = __low2float(high), scale[3] = __high2float(high);
}

template <int ROWS> struct PackedShared {
    alignas(16) float a[ROWS][DEPTH];
    float part[2][WARPS][ROWS][COLS];
    float table[MOEI_CODES];
};

/* Eight numbers of A as floats, those that exist. */
template <class T> __device__ __forceinline__ void load_eight(const T *from, int64_t left, float (&x)[8]) {
    if (left >= 8 && ((uintptr_t)from & 15) == 0) {
        alignas(16) T eight[8];
#pragma unroll
        for (int i = 0; i < (int)sizeof eight / 16; ++i) ((uint4 *)eight)[i] = __ldg((const uint4 *)from + i);
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] = as_float(eight[i]);
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = i < left ? as_float(from[i]) : 0.f;
}

/* A's steps k0 .. k0+DEPTH of the tile's rows, zeros past the sum, divided as the codes want it. */
template <class T, int CODES, int ROWS>
__device__ __forceinline__ void put_rows(const moe_gemm_rows_args &p, const RowTile &tile, int64_t k0,
                                         PackedShared<ROWS> &s) {
#pragma unroll
    for (int at = threadIdx.x * 8; at < ROWS * DEPTH; at += THREADS * 8) {
        const int64_t r = tile.first + at / DEPTH, k = k0 + at % DEPTH;
        float x[8] = {};
        if (r < tile.end) load_eight((const T *)p.a + (p.a_row ? p.a_row[r] : r) * p.lda + k, p.k - k, x);
#pragma unroll
        for (int i = 0; i < 8; ++i)
            s.a[at / DEPTH][at % DEPTH + i] = x[i] * Word<CODES>::factor(i % Word<CODES>::PER);
    }
}

/* acc += one row of words, of four columns, against A from step k on. */
template <int CODES, int ROWS>
__device__ __forceinline__ void add_words(const PackedShared<ROWS> &s, const Fetched &got, bool exponents,
                                          int k, int rows, float (&acc)[ROWS][LANE_COLS]) {
    enum { PER = Word<CODES>::PER };
    const uint32_t word[LANE_COLS] = {got.words.x, got.words.y, got.words.z, got.words.w};
    float number[LANE_COLS][PER], scale[LANE_COLS];
    read_scales(exponents, got.scales, scale);
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
        store<T>(p.h, r * p.ldh + j, act_point(args.rule, z, up).value);
    }
}

/* Words are asked for a batch ahead of their use, the first ones before A is fetched. */
template <class T, class C, int CODES, bool GATED, int ROWS>
__global__ void __launch_bounds__(THREADS, 2) gemm_packed_kernel(const __grid_constant__ PackedArgs args) {
    enum { PER = Word<CODES>::PER, FLIGHT = GATED ? 2 : 4, BATCH = FLIGHT * WORDS, CHUNK = DEPTH / PER };
    static_assert(CHUNK % BATCH == 0, "A is replaced between batches");
    __shared__ PackedShared<ROWS> s;
    const moe_gemm_rows_args &p = args.p;
    const RowTile tile = find_row_tile(p.offset, p.n_groups, p.n_rows, blockIdx.y, ROWS);
    if (tile.group < 0) return;
    const int lane = threadIdx.x & 31, column = (int)(blockIdx.x % 2) * COLS + (lane & 7) * LANE_COLS;
    const int own = (threadIdx.x >> 5) * 4 + (lane >> 3), words = (int)ceil_div(p.k, PER);
    const int rows = (int)min((int64_t)ROWS, tile.end - tile.first);
    const int64_t second = args.run_panels * args.panel_bytes;
    Source source;
    source.panel = args.data + tile.group * args.group_bytes + (int64_t)(blockIdx.x / 2) * args.panel_bytes;
    source.block_bytes = args.block_bytes, source.group_words = args.group / PER;
    source.exponents = args.exponents, source.scale_at = column * (args.exponents ? 1 : 2);
    source.scale_bytes = MOEI_PANEL * (args.exponents ? 1 : 2) + 4 * column;
    Fetched gates[FLIGHT], ups[GATED ? FLIGHT : 1];
    float acc[ROWS][LANE_COLS] = {}, up[GATED ? ROWS : 1][LANE_COLS] = {};
    const auto fetch = [&](int first) {
#pragma unroll
        for (int i = 0; i < FLIGHT; ++i) {
            gates[i] = source.fetch(first + i * WORDS + own, words, 0);
            if (GATED) ups[i] = source.fetch(first + i * WORDS + own, words, second);
        }
    };
    fetch(0);
    if (threadIdx.x < MOEI_CODES) s.table[threadIdx.x] = args.value[threadIdx.x];
    for (int first = 0; first < words; first += BATCH) {
        if (first % CHUNK == 0) {
            __syncthreads();
            put_rows<T, CODES>(p, tile, (int64_t)first * PER, s);
            __syncthreads();
        }
        Fetched gate[FLIGHT], other[GATED ? FLIGHT : 1];
#pragma unroll
        for (int i = 0; i < FLIGHT; ++i) {
            gate[i] = gates[i];
            if (GATED) other[i] = ups[i];
        }
        fetch(first + BATCH);
#pragma unroll
        for (int i = 0; i < FLIGHT; ++i) { /* past the last word scales are zero */
            const int k = (first % CHUNK + i * WORDS + own) * PER;
            add_words<CODES>(s, gate[i], args.exponents, k, rows, acc);
            if constexpr (GATED) add_words<CODES>(s, other[i], args.exponents, k, rows, up);
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
    told.rule = act_rule_of(args->act, args->act_numbers);
    memcpy(told.value, format->value, sizeof told.value);
    const Codes codes = format->bits == 8 ? BYTES : format->value[0] == -8.f ? INTEGERS : TABLE;
    if (args->dtype == MOE_F32) return launch<float, float>(told, codes, stream_of(team));
    if (args->c_wide) return launch<bf16, float>(told, codes, stream_of(team));
    launch<bf16, bf16>(told, codes, stream_of(team));
}
