/* gate_grad_cuda.cu: the backward of the gate on tensor cores, bf16 with f32 sums, for any NVIDIA GPU from
 * sm_80: dgate[E,d] += dlogits^T x, and dx[t] (+)= dlogits[t] gate + sum_k rows[row_of[t,k]]. Each number of
 * dlogits[T,E] is kept as the sum of two bf16 numbers, which holds 16 of its 24 bits.
 * dgate: a product over 2E rows, for chunks of tokens side by side, whose parts are then added in order.
 * dx: a warp multiplies 16 tokens by 128 columns while the first of their rows arrive. If the product that
 * made the rows has already added the part of dlogits, it only sums rows.
 */
#include "kernel/cuda/mma.cuh"
#include "kernel/cuda/portable.cuh"

namespace moei {

enum { THREADS = 256, TOKENS = MOEI_GATE_TOKENS, TILE_PIECES = MOEI_GATE_STEP * MOEI_GATE_COLUMNS / 8 };
/* Warps of a block, by tokens and by columns: they share the gate's tiles and dlogits in L1. */
enum { WARPS = THREADS / 32, WARPS_COLUMNS = 2, WARPS_TOKENS = WARPS / WARPS_COLUMNS };
enum {
    STEP_ROWS = 16, /* pieces of rows that a warp asks for in a step */
    RING = 2,       /* steps on their way: more are no faster, and 99 KB are all that some GPUs have */
    ROWS_MOST = 8   /* of a token at a time */
};

struct GateParts {
    bf16 *pairs;     /* [T, 2E]: high parts, low parts of dlogits */
    uint4 *gate;     /* [columns / 128, experts / 16] tiles, in the order in which lanes multiply them */
    uint4 *dlogits;  /* [tokens / 16, experts / 16] tiles, likewise */
    float *part;     /* [chunks, 2E, d] */
    int64_t *offset; /* [chunks + 1] tokens of a chunk */
    int64_t chunks;
};

static GateParts parts_of(const moei_gate_grad_args *a) {
    const moei_gate_grad_scratch at = moei_gate_grad_carve(a->n_tokens, a->n_experts, a->d);
    char *base = (char *)a->scratch;
    return {(bf16 *)base,
            (uint4 *)(base + at.gate),
            (uint4 *)(base + at.dlogits),
            (float *)(base + at.part),
            (int64_t *)(base + at.offset),
            at.chunks};
}

__host__ __device__ __forceinline__ int steps_of(const moei_gate_grad_args &p) {
    return (int)ceil_div(p.n_experts, MOEI_GATE_STEP);
}

/* Two experts of a column. */
__device__ __forceinline__ uint32_t gate_pair(const moei_gate_grad_args &p, int64_t e, int64_t column) {
    const uint16_t *gate = (const uint16_t *)p.gate + e * p.d + column;
    return e < p.n_experts && column < p.d ? gate[0] | (uint32_t)gate[p.d] << 16 : 0;
}

/* The gate of 64 columns less its experts' mean. What all experts share adds nothing to a token whose dlogits
 * add up to 0, but in each of its rows it would be rounded. */
__device__ __forceinline__ void centre_columns(const moei_gate_grad_args &p, int64_t block) {
    __shared__ float2 part[WARPS][32];
    const int pair = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const int64_t column = block * 64 + 2 * pair;
    const uint16_t *gate = (const uint16_t *)p.gate + column;
    float2 mean = make_float2(0.f, 0.f);
#pragma unroll 8
    for (int e = warp; e < p.n_experts && column < p.d; e += WARPS) {
        const uint32_t two = *(const uint32_t *)(gate + e * p.d);
        mean.x += bf16_low(two), mean.y += bf16_high(two);
    }
    part[warp][pair] = mean;
    __syncthreads();
    mean = make_float2(0.f, 0.f);
#pragma unroll
    for (int i = 0; i < WARPS; ++i) mean.x += part[i][pair].x, mean.y += part[i][pair].y;
    mean.x /= (float)p.n_experts, mean.y /= (float)p.n_experts;
    await_earlier();
#pragma unroll 8
    for (int e = warp; e < p.n_experts && column < p.d; e += WARPS) {
        const uint32_t two = *(const uint32_t *)(gate + e * p.d);
        *(float2 *)(p.vector + e * p.d + column) =
            make_float2(bf16_low(two) - mean.x, bf16_high(two) - mean.y);
    }
}

/* A piece a thread of the gate's tiles, zeros past its ends, and where the chunks begin; the first blocks,
 * where it is wanted, centre the gate. In a product of 16 experts by 8 columns lane (g, q) has experts 2q, 2q
 * + 1, 2q + 8, 2q + 9 of column g, and of the sums columns 2q and the next. Which experts and columns these
 * are is free: here 4q to 4q + 3, so that a lane reads them of dlogits at once, and of four products side by
 * side the columns 8q to 8q + 7. */
static __global__ void __launch_bounds__(THREADS)
    prepare_kernel(const __grid_constant__ moei_gate_grad_args p, const GateParts to, unsigned centring) {
    let_next_start();
    if (blockIdx.x < centring) return centre_columns(p, blockIdx.x);
    const int64_t i = (int64_t)(blockIdx.x - centring) * THREADS + threadIdx.x, tile = i / TILE_PIECES;
    const int64_t chunk = ceil_div(p.n_tokens, to.chunks), steps = steps_of(p);
    await_earlier();
    if (i <= to.chunks) to.offset[i] = i * chunk < p.n_tokens ? i * chunk : p.n_tokens;
    const int lane = (int)(i % 32), g = lane / 4, q = lane % 4, piece = (int)(i % TILE_PIECES) / 32;
    const int64_t e = tile % steps * MOEI_GATE_STEP + 4 * q;
    const int64_t column =
        tile / steps * MOEI_GATE_COLUMNS + piece / 2 * 32 + g / 2 * 8 + piece % 2 * 4 + g % 2;
    if (tile >= steps * ceil_div(p.d, MOEI_GATE_COLUMNS)) return;
    to.gate[i] = make_uint4(gate_pair(p, e, column), gate_pair(p, e + 2, column), gate_pair(p, e, column + 2),
                            gate_pair(p, e + 2, column + 2));
}

/* dlogits as lanes multiply them: of 16 tokens by 16 experts lane (g, q) has experts 4q to 4q + 3 of tokens g
 * and g + 8, high parts and low ones a piece each; zeros past the last token and expert. */
static __global__ void __launch_bounds__(THREADS)
    arrange_kernel(const moei_gate_grad_args p, const GateParts to) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, tile = i / 64, steps = steps_of(p);
    const int lane = (int)(i % 32), part = (int)(i / 32 % 2);
    const int64_t token = tile / steps * 16 + lane / 4, e = tile % steps * MOEI_GATE_STEP + 4 * (lane % 4);
    if (tile >= steps * ceil_div(p.n_tokens, TOKENS)) return;
    uint2 v[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const bool any = e < p.n_experts && token + 8 * half < p.n_tokens;
        const bf16 *from = to.pairs + ((token + 8 * half) * 2 + part) * p.n_experts + e;
        v[half] = any ? *(const uint2 *)from : make_uint2(0, 0);
    }
    to.dlogits[i] = make_uint4(v[0].x, v[1].x, v[0].y, v[1].y);
}

/* What lane (g, q) has of its warp's 16 tokens by 128 columns: of token g + 8 `half` columns 8q to 8q + 7 of
 * each `part` of 32. */
struct Sums {
    float v[4][4][4]; /* part, product, two columns of each half */

    __device__ __forceinline__ float *at(int half, int part, int i) {
        return &v[part][i / 2][half * 2 + i % 2];
    }
    __device__ __forceinline__ void add(int half, int part, const uint4 &eight) {
        const uint32_t two[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
        for (int i = 0; i < 8; ++i)
            *at(half, part, i) += i % 2 ? bf16_high(two[i / 2]) : bf16_low(two[i / 2]);
    }
    __device__ __forceinline__ uint4 rounded(int half, int part) {
        uint32_t two[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) two[i] = bf16_pack(*at(half, part, 2 * i), *at(half, part, 2 * i + 1));
        return make_uint4(two[0], two[1], two[2], two[3]);
    }
};

/* sums += dlogits gate: high parts, then low ones, of 16 experts at a time. */
__device__ __forceinline__ void multiply_gate_tiles(const uint4 *dlogits, const uint4 *gate, int steps,
                                                    Sums &sums) {
#pragma unroll 1
    for (int step = 0; step < steps; ++step, gate += TILE_PIECES, dlogits += 64) {
        const uint4 a[2] = {__ldg(dlogits), __ldg(dlogits + 32)};
        uint4 b[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) b[i] = __ldg(gate + 32 * i);
#pragma unroll
        for (int i = 0; i < 32; ++i) {
            const uint4 of = a[i / 16], two = b[i % 16 / 2];
            mma16816(sums.v[i % 16 / 4][i % 4], of.x, of.y, of.z, of.w, i % 2 ? two.z : two.x,
                     i % 2 ? two.w : two.y);
        }
    }
}

/* Shared memory of a warp: the numbers of its tokens' rows, eight tokens side by side, and 256 bytes each of
 * a few of these rows. Their 16 pieces stand turned by the token, so that eight lanes read from all banks. */
struct SumShared {
    uint4 piece[RING][STEP_ROWS][16];
    int row[TOKENS * ROWS_MOST];
};
static_assert(WARPS * sizeof(SumShared) <= 99 * 1024, "what any GPU from sm_80 gives a block");

/* Step s: two rows of eight tokens, half a warp asking for the 256 bytes of each. */
__device__ __forceinline__ void fetch_rows(const moei_gate_grad_args &p, SumShared &shared, int64_t column,
                                           int s, int slot) {
    const int lane = (int)threadIdx.x % 32, own = lane % 16, odd = lane / 16;
    const bool any = column + 8 * own < p.d;
    const uint16_t *from = (const uint16_t *)p.rows + column + 8 * own;
    const uint32_t to = smem_address(shared.piece[slot][odd]) + (own ^ odd << 2) * 16;
    const int *rows = shared.row + s * STEP_ROWS + odd;
    int row[STEP_ROWS / 2];
#pragma unroll
    for (int i = 0; i < STEP_ROWS / 2; ++i) row[i] = rows[2 * i];
#pragma unroll
    for (int i = 0; i < STEP_ROWS / 2; ++i)
        cp_async16((to ^ i % 4 * 16) + i * 512, from + row[i] * p.ld_rows, any && row[i] >= 0);
}

__device__ __forceinline__ void add_rows(Sums &sums, const SumShared &shared, int half, int slot) {
    const int lane = (int)threadIdx.x % 32, g = lane / 4;
    const uint32_t from = smem_address(shared.piece[slot][g]) + (lane % 4 ^ ((g & 1) << 2 | g >> 1)) * 16;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        uint4 eight;
        shared_load(eight, (from ^ i % 2 * 64) + i / 2 % 2 * 128 + i / 4 * 2048);
        sums.add(half, i % 4, eight);
    }
}

/* K rows of each token at a time, of the first eight tokens before those of the others; the first ones come
 * while it multiplies. */
template <int K>
__global__ void __launch_bounds__(THREADS, 2)
    sum_kernel(const moei_gate_grad_args p, const GateParts parts, int column_blocks, int steps) {
    static_assert(K % 2 == 0 && K <= ROWS_MOST, "a step has rows of the same eight tokens");
    extern __shared__ __align__(256) uint8_t raw[];
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    SumShared &shared = ((SumShared *)raw)[warp];
    const int64_t tile = (int64_t)(blockIdx.x / column_blocks) * WARPS_TOKENS + warp / WARPS_COLUMNS;
    const int64_t block = (int64_t)(blockIdx.x % column_blocks) * WARPS_COLUMNS + warp % WARPS_COLUMNS;
    const int64_t column = block * MOEI_GATE_COLUMNS;
    if (column >= p.d || tile * TOKENS >= p.n_tokens) return;
    Sums sums = {};
    int k0 = 0;
    do {
        for (int i = lane; i < TOKENS * K; i += 32) {
            const int64_t token = tile * TOKENS + i / K;
            const bool any = k0 + i % K < p.top_k && token < p.n_tokens;
            shared.row[(i / K / 8 * K + i % K) * 8 + i / K % 8] =
                any ? __ldg(p.row_of + token * p.top_k + k0 + i % K) : -1;
        }
        __syncwarp();
#pragma unroll 1
        for (int s = 0; s < RING; ++s) {
            if (s < K) fetch_rows(p, shared, column, s, s);
            cp_async_commit();
        }
        if (k0 == 0)
            multiply_gate_tiles(parts.dlogits + tile * steps * 64 + lane,
                                parts.gate + block * steps * TILE_PIECES + lane, steps, sums);
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll 1
            for (int s = half * K / 2; s < (half + 1) * K / 2; ++s) {
                cp_async_wait<RING - 1>();
                __syncwarp();
                add_rows(sums, shared, half, s % RING);
                __syncwarp();
                if (s + RING < K) fetch_rows(p, shared, column, s + RING, s % RING);
                cp_async_commit();
            }
    } while ((k0 += K) < p.top_k);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const int64_t token = tile * TOKENS + lane / 4 + i / 4 * 8, at = column + i % 4 * 32 + lane % 4 * 8;
        if (token >= p.n_tokens || at >= p.d) continue;
        uint4 *out = (uint4 *)((uint16_t *)p.dx + token * p.ld_dx + at);
        if (p.accumulate) sums.add(i / 4, i % 4, *out);
        *out = sums.rounded(i / 4, i % 4);
    }
}

/* dgate += parts, first chunk to last, high then low; four columns of an expert a thread. */
static __global__ void __launch_bounds__(THREADS)
    sum_chunks_kernel(const moei_gate_grad_args p, const float *part, int64_t chunks) {
    const int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * 4, size = p.n_experts * p.d;
    if (i >= size) return;
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 8
    for (int64_t c = 0; c < 2 * chunks; ++c) {
        const float4 own = *(const float4 *)(part + c * size + i);
        sum.x += own.x, sum.y += own.y, sum.z += own.z, sum.w += own.w;
    }
    float4 *out = (float4 *)(p.dgate + i), before = *out;
    *out = make_float4(before.x + sum.x, before.y + sum.y, before.z + sum.z, before.w + sum.w);
}

} // namespace moei

extern "C" void moei_gate_grad__cuda(const moei_team *team, const moei_gate_grad_args *args,
                                     moe_gemm_outer_args *product) {
    using namespace moei;
    const GateParts parts = parts_of(args);
    const int64_t pieces = steps_of(*args) * ceil_div(args->d, MOEI_GATE_COLUMNS) * TILE_PIECES;
    const int64_t most = parts.chunks + 1;
    const unsigned blocks = (unsigned)ceil_div(pieces > most ? pieces : most, THREADS);
    const unsigned centring = args->vector ? (unsigned)ceil_div(args->d, 64) : 0;
    Launch(dim3(centring + blocks), THREADS, 0, stream_of(team))
        .early_where_built(prepare_kernel)(prepare_kernel, *args, parts, centring);
    *product = {};
    product->dtype = MOE_BF16, product->n_groups = (int32_t)parts.chunks, product->offset = parts.offset;
    product->n_rows = args->n_tokens, product->m = product->lda = 2 * args->n_experts;
    product->n = product->ldc = args->d, product->c_group = product->m * product->n;
    product->a = parts.pairs, product->b = args->x, product->ldb = args->ldx;
    product->c = parts.part, product->c_wide = true;
}

extern "C" void moei_gate_grad_sum__cuda(const moei_team *team, const moei_gate_grad_args *args) {
    using namespace moei;
    const int64_t column_blocks = ceil_div(args->d, MOEI_GATE_COLUMNS * WARPS_COLUMNS);
    const int64_t blocks = column_blocks * ceil_div(args->n_tokens, TOKENS * WARPS_TOKENS);
    const int64_t pieces = steps_of(*args) * ceil_div(args->n_tokens, TOKENS) * 64;
    const GateParts parts = parts_of(args);
    auto *kernel = args->top_k <= 2 ? sum_kernel<2> : args->top_k <= 4 ? sum_kernel<4> : sum_kernel<8>;
    if (!args->in_rows)
        arrange_kernel<<<(unsigned)ceil_div(pieces, THREADS), THREADS, 0, stream_of(team)>>>(*args, parts);
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         (int)(WARPS * sizeof(SumShared)));
    kernel<<<(unsigned)blocks, THREADS, WARPS * sizeof(SumShared), stream_of(team)>>>(
        *args, parts, (int)column_blocks, args->in_rows ? 0 : steps_of(*args));
}

extern "C" void moei_gate_grad_end__cuda(const moei_team *team, const moei_gate_grad_args *args) {
    using namespace moei;
    const GateParts parts = parts_of(args);
    const unsigned blocks = (unsigned)ceil_div(args->n_experts * args->d, 4 * THREADS);
    Launch launch(dim3(blocks), THREADS, 0, stream_of(team));
    urgent(team, launch)(sum_chunks_kernel, *args, (const float *)parts.part, parts.chunks);
}
