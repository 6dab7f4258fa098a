/* gemm_packed_cuda.cu: grouped product of few rows with packed weights (kernel/packed.h), any GPU from sm_80,
 * for f32; gemm_packed_mma_cuda.cu has bf16. C[r, :] = A[a_row[r], :] B_g, then the epilogue; formulas:
 * moekit/op.h. A block has up to ROWS rows of one group and 32 columns of B (gated: 32 gates and their ups).
 * Its eight warps share the words of the sum; a lane reads 16 bytes at a time, four columns. Codes are
 * multiplied one by one, since tensor cores round f32 to tf32. A word's sum is scaled, then the warps' sums
 * are added in order, so a row has the same bits whatever stands beside it.
 * For decoding: every ROWS rows read their expert's weights once more.
 */
#include "kernel/cuda/act_exact.cuh"
#include "kernel/cuda/cuda_kernel.h"
#include "kernel/cuda/packed_units.cuh"

namespace moei {

enum { THREADS = 256, WARPS = THREADS / 32, COLS = 32, LANE_COLS = 4 };
enum { WORDS = WARPS * 4 }; /* rows of words that a block reads at once */
enum { DEPTH = 1024 };      /* steps of the sum whose A is in shared memory */

struct PackedArgs {
    moe_gemm_rows_args p;
    PackedB b;
    int32_t group, column_tiles, span, across; /* tiles of columns, how many a block has, blocks of them */
    bool exponents, gated;
    ActRule rule;
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
    if (exponents)
        read_scales(four.x, scale);
    else
        read_scales(four, scale);
}

/* The rows' steps of the sum; 32 bytes more than a power of two a row keep rows out of each other's banks. */
template <int ROWS> struct PackedShared {
    enum { PITCH = DEPTH + 16 };
    alignas(16) float a[ROWS][PITCH];
    float part[2][WARPS][ROWS][COLS];
    float table[MOEI_CODES];
};

/* Eight numbers of A, those that exist. */
__device__ __forceinline__ void load_eight(const float *from, int64_t left, float (&x)[8]) {
    if (left >= 8 && aligned16(from)) {
#pragma unroll
        for (int i = 0; i < 2; ++i) ((uint4 *)x)[i] = __ldg((const uint4 *)from + i);
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = i < left ? from[i] : 0.f;
}

template <int CODES, int ROWS> struct Sums {
    enum { PER = Word<CODES>::PER };
    float acc[ROWS][LANE_COLS] = {};

    static __device__ __forceinline__ void arrange(const float (&x)[8], float (&y)[8]) {
#pragma unroll
        for (int i = 0; i < 8; ++i) y[i] = x[i] * Word<CODES>::factor(i % PER);
    }
    /* += one row of words, of four columns, against A from step k on. */
    __device__ __forceinline__ void add(const PackedShared<ROWS> &s, const Fetched &got, bool exponents,
                                        int k, int rows) {
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

/* A's steps k0 .. k0+DEPTH of the tile's rows, zeros past the sum. */
template <int CODES, int ROWS>
__device__ __forceinline__ void put_rows(const moe_gemm_rows_args &p, const RowTile &tile, int64_t k0,
                                         PackedShared<ROWS> &s) {
#pragma unroll
    for (int at = threadIdx.x * 8; at < ROWS * DEPTH; at += THREADS * 8) {
        const int64_t r = tile.first + at / DEPTH, k = k0 + at % DEPTH;
        float x[8] = {}, y[8];
        if (r < tile.end) load_eight((const float *)p.a + (p.a_row ? p.a_row[r] : r) * p.lda + k, p.k - k, x);
        Sums<CODES, ROWS>::arrange(x, y);
        float *to = &s.a[at / DEPTH][at % DEPTH];
        *(float4 *)to = make_float4(y[0], y[1], y[2], y[3]);
        *(float4 *)(to + 4) = make_float4(y[4], y[5], y[6], y[7]);
    }
}

template <int ROWS>
__device__ __forceinline__ float whole_sum(const float (*part)[ROWS][COLS], int r, int c) {
    float sum = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) sum += part[w][r][c];
    return sum;
}

template <int ROWS>
__device__ __forceinline__ void finish(const PackedArgs &args, const RowTile &tile, int column_tile,
                                       const PackedShared<ROWS> &s) {
    const moe_gemm_rows_args &p = args.p;
    const int64_t width = args.gated ? p.n / 2 : p.n;
    for (int i = threadIdx.x; i < ROWS * COLS; i += THREADS) {
        const int64_t r = tile.first + i / COLS, j = (int64_t)column_tile * COLS + i % COLS;
        if (r >= tile.end || j >= width) continue;
        const int64_t bias = tile.group * p.n + j;
        const float z = whole_sum(s.part[0], i / COLS, i % COLS) + (p.bias ? load<float>(p.bias, bias) : 0.f);
        if (p.epilogue == MOE_EPI_STORE) {
            store<float>(p.c, r * p.ldc + j, z + (p.accumulate ? load<float>(p.c, r * p.ldc + j) : 0.f));
            continue;
        }
        float up = 0.f;
        if (args.gated)
            up =
                whole_sum(s.part[1], i / COLS, i % COLS) + (p.bias ? load<float>(p.bias, bias + width) : 0.f);
        if (p.c) store<float>(p.c, r * p.ldc + j, z);
        if (p.c && args.gated) store<float>(p.c, r * p.ldc + width + j, up);
        store<float>(p.h, r * p.ldh + j, act_point(args.rule, z, up).value);
    }
}

/* Words are asked for a batch ahead of their use, the first ones before A is fetched, those of the next tile
 * of columns before this one is finished. */
template <int CODES, bool GATED, int ROWS>
__global__ void __launch_bounds__(THREADS, 2) gemm_packed_kernel(const __grid_constant__ PackedArgs args) {
    typedef Sums<CODES, ROWS> Sum;
    enum { PER = Word<CODES>::PER, FLIGHT = GATED ? 2 : 4, BATCH = FLIGHT * WORDS, CHUNK = DEPTH / PER };
    static_assert(CHUNK % BATCH == 0, "A is replaced between batches");
    __shared__ PackedShared<ROWS> s;
    const moe_gemm_rows_args &p = args.p;
    const bool exponents = CODES == TABLE && args.exponents;
    const unsigned across = (unsigned)args.across;
    const RowTile tile = find_row_tile(p.offset, p.n_groups, p.n_rows, blockIdx.x / across, ROWS);
    if (tile.group < 0) return;
    const int lane = threadIdx.x & 31, words = (int)ceil_div(p.k, PER);
    /* Eight lanes read a row of words, four columns each. */
    const int own = (threadIdx.x >> 5) * 4 + (lane >> 3), quad = (lane & 7) * LANE_COLS;
    const int rows = (int)min((int64_t)ROWS, tile.end - tile.first);
    const int begin = (int)(blockIdx.x % across) * args.span, end = min(begin + args.span, args.column_tiles);
    const int64_t second = args.b.second;
    const int scale_bytes = exponents ? 1 : 2, group_words = args.group / PER,
              word_at = MOEI_PANEL * scale_bytes + own % group_words * (4 * MOEI_PANEL);
    const unsigned char *lane_data =
        args.b.data + tile.group * args.b.group_bytes + own / group_words * args.b.block_bytes + word_at;
    const int64_t step_bytes = WORDS / group_words * args.b.block_bytes;
    Source source;
    Fetched gates[FLIGHT], ups[GATED ? FLIGHT : 1];
    const auto open = [&](int at) {
        const int column = at % 2 * COLS + quad;
        source = {lane_data + (int64_t)(at / 2) * args.b.panel_bytes + 4 * column,
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
    if (threadIdx.x < MOEI_CODES) s.table[threadIdx.x] = args.b.value[threadIdx.x];
    for (int at = begin; at < end; ++at) {
        Sum sum, up;
        for (int first = 0; first < words; first += BATCH) {
            if (first % CHUNK == 0 && (at == begin || words > CHUNK)) {
                __syncthreads();
                put_rows<CODES>(p, tile, (int64_t)first * PER, s);
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
        finish(args, tile, at, s);
        __syncthreads(); /* before the sums of the next tile */
    }
}

/* Rows of a block: of one or two tokens no expert has more than two. */
enum { FEW = 2, MORE = 4, FEW_ROWS = 16 };
enum { BLOCKS = 2400 }; /* few of them wait: one that begins finds its rows and fetches A first */
template <int CODES, bool GATED, int ROWS> static void launch_rows(PackedArgs args, cudaStream_t stream) {
    const moe_gemm_rows_args &p = args.p;
    const int64_t tiles = row_tiles_most(&p, ROWS);
    args.column_tiles = (int32_t)ceil_div(args.b.width, COLS);
    args.span = (int32_t)ceil_div(args.column_tiles * tiles, BLOCKS);
    if (args.span > args.column_tiles) args.span = args.column_tiles;
    args.across = (int32_t)ceil_div(args.column_tiles, args.span);
    /* In one dimension, those of a row tile side by side: the other two of a grid end at 65535. */
    const unsigned blocks = (unsigned)(args.across * tiles);
    gemm_packed_kernel<CODES, GATED, ROWS><<<blocks, THREADS, 0, stream>>>(args);
}
template <int CODES, bool GATED> static void launch_gated(const PackedArgs &args, cudaStream_t stream) {
    if (args.p.n_rows <= FEW_ROWS) return launch_rows<CODES, GATED, FEW>(args, stream);
    launch_rows<CODES, GATED, MORE>(args, stream);
}
template <int CODES> static void launch(const PackedArgs &args, cudaStream_t stream) {
    if (args.gated) return launch_gated<CODES, true>(args, stream);
    launch_gated<CODES, false>(args, stream);
}

} // namespace moei

extern "C" void moei_gemm_packed__cuda(const moei_team *team, const moe_gemm_rows_args *args) {
    using namespace moei;
    if (args->n_rows == 0 || args->n == 0) return;
    if (args->dtype == MOE_BF16) return moei_cuda_gemm_packed_mma(team, args);
    const moe_packed *packed = args->b_packed;
    PackedArgs told = {};
    told.p = *args, told.b = packed_b_of(packed), told.group = packed->group;
    told.exponents = packed->format->exponents, told.gated = packed->n_runs == 2;
    told.rule = act_rule_of(args->act, args->act_numbers);
    if (told.b.codes == BYTES) return launch<BYTES>(told, stream_of(team));
    if (told.b.codes == INTEGERS) return launch<INTEGERS>(told, stream_of(team));
    launch<TABLE>(told, stream_of(team));
}
