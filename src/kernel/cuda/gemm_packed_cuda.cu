/* gemm_packed_cuda.cu: grouped product of few rows with packed weights (kernel/packed.h), any GPU from sm_80.
 * C[r, :] = A[a_row[r], :] B_g, then the epilogue; formulas: moekit/op.h. A block has up to ROWS rows of one
 * group and 32 columns of B (gated: 32 gates and their ups); its eight warps share the words of the sum, a
 * lane reads 16 bytes at a time, four columns. Codes are summed against A as numbers, by tensor cores where A
 * is bf16 and one by one where it is f32, then scaled: a word's sum or four words', then warps in order, so a
 * row has the same bits whatever stands beside it.
 * Meant for decoding: every ROWS rows read their expert's weights once more.
 */
#include "kernel/cuda/mma.cuh"
#include "kernel/cuda/portable.cuh"
#include "kernel/packed.h"

#include <cuda_fp16.h>

namespace moei {

enum { THREADS = 256, WARPS = THREADS / 32, COLS = 32, LANE_COLS = 4 };
enum { WORDS = WARPS * 4 }; /* rows of words that a block reads at once */
enum { DEPTH = 1024 };      /* steps of the sum whose A is in shared memory */

/* The ways from a word to numbers. A table's are exact in bf16, or take two of them each. */
enum Codes { BYTES, INTEGERS, TABLE, SPLIT_TABLE };

struct PackedArgs {
    moe_gemm_rows_args p;
    const unsigned char *data;
    int64_t group_bytes, panel_bytes, block_bytes, run_panels;
    int32_t group, column_tiles, span, across; /* tiles of columns, how many a block has, blocks of them */
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

template <> struct Word<SPLIT_TABLE> : Word<TABLE> {};

/* What a lane reads for four columns: a row of words and the scales of its block, as they are in memory. */
struct Fetched {
    uint4 words;
    uint2 scales;
};
/* Where a lane reads next: a block's warps read WORDS rows of words at once, which are whole blocks of
 * scales, so that from one such step to the next both move as far. */
struct Source {
    const unsigned char *words;
    int scales; /* so many bytes before them */

    __device__ __forceinline__ Fetched fetch(bool any, bool exponents, int64_t shift) const {
        Fetched got = {make_uint4(0, 0, 0, 0), make_uint2(0, 0)};
        if (!any) return got;
        got.words = __ldcs((const uint4 *)(words + shift));
        if (exponents)
            got.scales.x = __ldg((const uint32_t *)(words + shift - scales));
        else
            got.scales = __ldg((const uint2 *)(words + shift - scales));
        return got;
    }
};
static_assert(WORDS % (MOEI_GROUP_MAX / 4) == 0, "a step is whole blocks of scales");
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

/* The rows' steps of the sum; 32 bytes more than a power of two a row keep rows out of each other's banks. */
template <class T, int ROWS> struct PackedShared {
    enum { PITCH = DEPTH + 64 / (int)sizeof(T) };
    alignas(16) T a[ROWS][PITCH];
    float part[2][WARPS][ROWS][COLS];
    float table[MOEI_CODES];
    uint32_t pair[2][256]; /* both numbers of a byte of codes, in bf16, and what is left of them */
};

/* Eight numbers of A, those that exist. */
template <class T> __device__ __forceinline__ void load_eight(const T *from, int64_t left, T (&x)[8]) {
    if (left >= 8 && ((uintptr_t)from & 15) == 0) {
#pragma unroll
        for (int i = 0; i < (int)sizeof x / 16; ++i) ((uint4 *)x)[i] = __ldg((const uint4 *)from + i);
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = i < left ? from[i] : T(0.f);
}

/* How the sums are made: of f32 by FMA, of bf16 by the tensor cores. */
template <class T, int CODES, int ROWS> struct Sums;

template <int CODES, int ROWS> struct Sums<float, CODES, ROWS> {
    enum { PER = Word<CODES>::PER };
    float acc[ROWS][LANE_COLS] = {};

    /* Word rows are eight lanes', columns their quads. */
    static __device__ __forceinline__ int word_of(int lane) { return lane >> 3; }
    static __device__ __forceinline__ int quad_of(int lane) { return lane & 7; }
    static __device__ __forceinline__ void arrange(const float (&x)[8], float (&y)[8]) {
#pragma unroll
        for (int i = 0; i < 8; ++i) y[i] = x[i] * Word<CODES>::factor(i % PER);
    }
    /* += one row of words, of four columns, against A from step k on. */
    __device__ __forceinline__ void add(const PackedShared<float, ROWS> &s, const Fetched &got,
                                        bool exponents, int k, int rows) {
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
    /* Lanes of the same columns. */
    __device__ __forceinline__ void put_part(float (*part)[ROWS][COLS]) {
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
};

__device__ __forceinline__ uint32_t as_word(__nv_bfloat162 pair) {
    return *(uint32_t *)&pair;
}

/* A word's numbers by twos in bf16, exactly. Of four bits, numbers i and i + 4 stand together; of 2^7 plus
 * such a number all bits fit. */
template <int CODES>
__device__ __forceinline__ void read_pairs(uint32_t word, const uint32_t *pair,
                                           uint32_t (&two)[Word<CODES>::PER / 2]) {
    if constexpr (CODES == BYTES) {
        float number[4];
        Word<BYTES>::read(word, NULL, number);
#pragma unroll
        for (int i = 0; i < 2; ++i) two[i] = as_word(__floats2bfloat162_rn(number[2 * i], number[2 * i + 1]));
    } else if constexpr (CODES == INTEGERS) {
        const __nv_bfloat162 zero = __float2bfloat162_rn(136.f);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            uint32_t raised; /* (word >> 4 i & 000f000f) | 43004300, in one step */
            asm("lop3.b32 %0, %1, %2, %3, 0xea;"
                : "=r"(raised)
                : "r"(word >> 4 * i), "r"(0x000f000fu), "r"(0x43004300u));
            two[i] = as_word(__hsub2(*(const __nv_bfloat162 *)&raised, zero));
        }
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) two[i] = pair[word >> 8 * i & 255];
    }
}

/* The weights are mma16816's tile of 16: four columns of eight lanes each, two tiles; the rows of A, eight,
 * the other one. The four lanes of a column have four rows of words, whose steps stand for those of the tile.
 */
template <int CODES, int ROWS> struct Sums<bf16, CODES, ROWS> {
    static_assert(ROWS == 8, "a tile");
    enum { PER = Word<CODES>::PER, PAIRS = PER / 2 };
    float acc[2][4] = {};

    static __device__ __forceinline__ int word_of(int lane) { return lane & 3; }
    static __device__ __forceinline__ int quad_of(int lane) { return lane >> 2; }
    static __device__ __forceinline__ void arrange(const bf16 (&x)[8], bf16 (&y)[8]) {
#pragma unroll
        for (int i = 0; i < 8; ++i) y[CODES == INTEGERS ? i % 4 * 2 + i / 4 : i] = x[i];
    }
    __device__ __forceinline__ void add(const PackedShared<bf16, ROWS> &s, const Fetched &got, bool exponents,
                                        int k, int) {
        const uint32_t word[LANE_COLS] = {got.words.x, got.words.y, got.words.z, got.words.w};
        float scale[LANE_COLS], sum[2][4] = {};
        uint32_t a[PAIRS];
        read_scales(exponents, got.scales, scale);
#pragma unroll
        for (int i = 0; i < PAIRS; i += 2)
            *(uint2 *)(a + i) = *(const uint2 *)&s.a[(threadIdx.x & 31) >> 2][k + 2 * i];
#pragma unroll
        for (int part = 0; part < (CODES == SPLIT_TABLE ? 2 : 1); ++part)
#pragma unroll
            for (int tile = 0; tile < 2; ++tile) {
                uint32_t low[PAIRS], high[PAIRS];
                read_pairs<CODES>(word[2 * tile], s.pair[part], low);
                read_pairs<CODES>(word[2 * tile + 1], s.pair[part], high);
#pragma unroll
                for (int i = 0; i < PAIRS; i += 2)
                    mma16816(sum[tile], low[i], high[i], low[i + 1], high[i + 1], a[i], a[i + 1]);
            }
#pragma unroll
        for (int i = 0; i < 8; ++i)
            acc[i / 4][i % 4] = fmaf(sum[i / 4][i % 4], scale[i / 2], acc[i / 4][i % 4]);
    }
    __device__ __forceinline__ void put_part(float (*part)[ROWS][COLS]) {
        const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
        for (int i = 0; i < 8; ++i)
            part[warp][2 * (lane & 3) + i % 2][(lane >> 2) * LANE_COLS + i / 2] = acc[i / 4][i % 4];
    }
};

/* A's steps k0 .. k0+DEPTH of the tile's rows, zeros past the sum. */
template <class T, int CODES, int ROWS>
__device__ __forceinline__ void put_rows(const moe_gemm_rows_args &p, const RowTile &tile, int64_t k0,
                                         PackedShared<T, ROWS> &s) {
#pragma unroll
    for (int at = threadIdx.x * 8; at < ROWS * DEPTH; at += THREADS * 8) {
        const int64_t r = tile.first + at / DEPTH, k = k0 + at % DEPTH;
        alignas(16) T x[8] = {}, y[8];
        if (r < tile.end) load_eight((const T *)p.a + (p.a_row ? p.a_row[r] : r) * p.lda + k, p.k - k, x);
        Sums<T, CODES, ROWS>::arrange(x, y);
        uint4 *to = (uint4 *)&s.a[at / DEPTH][at % DEPTH];
#pragma unroll
        for (int i = 0; i < (int)sizeof y / 16; ++i) to[i] = ((const uint4 *)y)[i];
    }
}

/* Numbers by code; by byte of codes in bf16, with what that leaves. */
template <class T, int ROWS>
__device__ __forceinline__ void put_table(const PackedArgs &args, PackedShared<T, ROWS> &s) {
    const int byte = threadIdx.x;
    if (byte < MOEI_CODES) s.table[byte] = args.value[byte];
    static_assert(THREADS == 256, "a thread a byte");
    const float low = args.value[byte & 15], high = args.value[byte >> 4];
    const __nv_bfloat162 near = __floats2bfloat162_rn(low, high);
    s.pair[0][byte] = as_word(near);
    s.pair[1][byte] = as_word(__floats2bfloat162_rn(low - __low2float(near), high - __high2float(near)));
}

template <int ROWS>
__device__ __forceinline__ float whole_sum(const float (*part)[ROWS][COLS], int r, int c) {
    float sum = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) sum += part[w][r][c];
    return sum;
}

template <class T, class C, int ROWS>
__device__ __forceinline__ void finish(const PackedArgs &args, const RowTile &tile, int column_tile,
                                       const PackedShared<T, ROWS> &s) {
    const moe_gemm_rows_args &p = args.p;
    const int64_t width = args.gated ? p.n / 2 : p.n;
    for (int i = threadIdx.x; i < ROWS * COLS; i += THREADS) {
        const int64_t r = tile.first + i / COLS, j = (int64_t)column_tile * COLS + i % COLS;
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

/* Words are asked for a batch ahead of their use, the first ones before A is fetched, those of the next tile
 * of columns before this one is finished. */
template <class T, class C, int CODES, bool GATED, int ROWS>
__global__ void __launch_bounds__(THREADS, sizeof(T) == 2 && !GATED ? 3 : 2)
    gemm_packed_kernel(const __grid_constant__ PackedArgs args) {
    typedef Sums<T, CODES, ROWS> Sum;
    enum { PER = Word<CODES>::PER, FLIGHT = GATED ? 2 : 4, BATCH = FLIGHT * WORDS, CHUNK = DEPTH / PER };
    static_assert(CHUNK % BATCH == 0, "A is replaced between batches");
    __shared__ PackedShared<T, ROWS> s;
    const moe_gemm_rows_args &p = args.p;
    const bool exponents = CODES == TABLE && args.exponents;
    const unsigned across = (unsigned)args.across;
    const RowTile tile = find_row_tile(p.offset, p.n_groups, p.n_rows, blockIdx.x / across, ROWS);
    if (tile.group < 0) return;
    const int lane = threadIdx.x & 31, words = (int)ceil_div(p.k, PER);
    const int own = (threadIdx.x >> 5) * 4 + Sum::word_of(lane), quad = Sum::quad_of(lane) * LANE_COLS;
    const int rows = (int)min((int64_t)ROWS, tile.end - tile.first);
    const int begin = (int)(blockIdx.x % across) * args.span, end = min(begin + args.span, args.column_tiles);
    const int64_t second = args.run_panels * args.panel_bytes;
    const int scale_bytes = exponents ? 1 : 2, group_words = args.group / PER,
              word_at = MOEI_PANEL * scale_bytes + own % group_words * (4 * MOEI_PANEL);
    const unsigned char *lane_data =
        args.data + tile.group * args.group_bytes + own / group_words * args.block_bytes + word_at;
    const int64_t step_bytes = WORDS / group_words * args.block_bytes;
    Source source;
    Fetched gates[FLIGHT], ups[GATED ? FLIGHT : 1];
    const auto open = [&](int at) {
        const int column = at % 2 * COLS + quad;
        source = {lane_data + (int64_t)(at / 2) * args.panel_bytes + 4 * column,
                  word_at + (4 - scale_bytes) * column};
    };
    /* Rows of words `first` and on. Those of four that stand beside the last one are in memory too. */
    const auto fetch = [&](int first) {
#pragma unroll
        for (int i = 0; i < FLIGHT; ++i) {
            const bool any = first + i * WORDS + (own & ~3) < words;
            gates[i] = source.fetch(any, exponents, 0);
            if (GATED) ups[i] = source.fetch(any, exponents, second);
            source.words += step_bytes;
        }
    };
    open(begin);
    fetch(0);
    put_table(args, s);
    for (int at = begin; at < end; ++at) {
        Sum sum, up;
        for (int first = 0; first < words; first += BATCH) {
            if (first % CHUNK == 0 && (at == begin || words > CHUNK)) {
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
            const bool last = first + BATCH >= words;
            if (last && at + 1 < end) open(at + 1);
            if (!last || at + 1 < end) fetch(last ? 0 : first + BATCH);
#pragma unroll
            for (int i = 0; i < FLIGHT; ++i) { /* past the last word A or the scales are zero */
                const int k = (first % CHUNK + i * WORDS + own) * PER;
                sum.add(s, gate[i], exponents, k, rows);
                if constexpr (GATED) up.add(s, other[i], exponents, k, rows);
            }
        }
        sum.put_part(s.part[0]);
        if constexpr (GATED) up.put_part(s.part[1]);
        __syncthreads();
        finish<T, C>(args, tile, at, s);
        __syncthreads(); /* before the sums of the next tile */
    }
}

/* Rows of a block: of one or two tokens no expert has more than two. */
enum { FEW = 2, MORE = 4, FEW_ROWS = 16, TILE = 8 };
enum { BLOCKS = 2400 }; /* few of them wait: one that begins finds its rows and fetches A first */
template <class T, class C, int CODES, bool GATED, int ROWS>
static void launch_rows(PackedArgs args, cudaStream_t stream) {
    const moe_gemm_rows_args &p = args.p;
    int64_t tiles = ceil_div(p.n_rows, ROWS) + (p.offset ? p.n_groups : 0);
    if (tiles > p.n_rows) tiles = p.n_rows; /* no tile is empty */
    args.column_tiles = (int32_t)ceil_div(GATED ? p.n / 2 : p.n, COLS);
    args.span = (int32_t)ceil_div(args.column_tiles * tiles, BLOCKS);
    if (args.span > args.column_tiles) args.span = args.column_tiles;
    args.across = (int32_t)ceil_div(args.column_tiles, args.span);
    /* In one dimension, those of a row tile side by side: the other two of a grid end at 65535. */
    const unsigned blocks = (unsigned)(args.across * tiles);
    gemm_packed_kernel<T, C, CODES, GATED, ROWS><<<blocks, THREADS, 0, stream>>>(args);
}
template <class T, class C, int CODES, bool GATED>
static void launch_gated(const PackedArgs &args, cudaStream_t stream) {
    if constexpr (std::is_same<T, bf16>::value) {
        launch_rows<T, C, CODES, GATED, TILE>(args, stream);
    } else {
        if (args.p.n_rows <= FEW_ROWS) return launch_rows<T, C, CODES, GATED, FEW>(args, stream);
        launch_rows<T, C, CODES, GATED, MORE>(args, stream);
    }
}

template <class T, class C, int CODES> static void launch_codes(const PackedArgs &args, cudaStream_t stream) {
    if (args.gated) return launch_gated<T, T, CODES, true>(args, stream);
    launch_gated<T, C, CODES, false>(args, stream);
}

template <class T, class C> static void launch(const PackedArgs &args, Codes codes, cudaStream_t stream) {
    if (codes == BYTES) return launch_codes<T, C, BYTES>(args, stream);
    if (codes == INTEGERS) return launch_codes<T, C, INTEGERS>(args, stream);
    if constexpr (std::is_same<T, bf16>::value) /* f32 has one way for both tables */
        if (codes == SPLIT_TABLE) return launch_codes<T, C, SPLIT_TABLE>(args, stream);
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
    const Codes codes = format->bits == 8          ? BYTES
                        : format->value[0] == -8.f ? INTEGERS
                        : format->exponents        ? TABLE
                                                   : SPLIT_TABLE; /* nf4's are no numbers of bf16 */
    if (args->dtype == MOE_F32) return launch<float, float>(told, codes, stream_of(team));
    if (args->c_wide) return launch<bf16, float>(told, codes, stream_of(team));
    launch<bf16, bf16>(told, codes, stream_of(team));
}
