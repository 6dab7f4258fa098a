/* decode_sm90.cu: the layer for up to 8 tokens, where reading weights is all the time there is: router, then
 * gate and up with the activation, then down with the sum over experts. No plan, no sort: a block finds the
 * tokens of its expert among the T K choices. Weights are read once, 128 bytes of a row at a time, and not
 * through shared memory. A cluster shares one sum; its parts are added in the order of ranks, so bits do not
 * change. Source: performance.md section 5, after FlashInfer's two kernels for small batches.
 */
#include "kernel/cuda/cuda_kernel.h"
#include "kernel/cuda/select.cuh"
#include "kernel/cuda/sm90.cuh"

namespace moei {

enum { DECODE_TOKENS = MOEI_CUDA_DECODE_TOKENS, DECODE_CHOICES = MOEI_FEW_ROWS };
enum { DECODE_THREADS = 256, DECODE_WARPS = DECODE_THREADS / 32 };
enum { SLICE = 64 };                   /* columns of a block: 8 lanes of 16 bytes */
enum { STEP = DECODE_WARPS * 4 };      /* rows of weights a block reads at once */
enum { UP_SPLIT = 4, DOWN_SPLIT = 8 }; /* blocks of a cluster: each has a part of the sum */
enum { UP_ROWS = 4 }; /* tokens that share a read of the weights, where there is more than one */
enum { AHEAD = 4 };   /* reads in flight: 16 bytes each, times two where gated */

/* acc[0..7] += x * eight weights. */
__device__ __forceinline__ void add_product(float (&acc)[8], uint4 w, float x) {
    const uint32_t pair[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        acc[2 * i] = fmaf(x, bf16_low(pair[i]), acc[2 * i]);
        acc[2 * i + 1] = fmaf(x, bf16_high(pair[i]), acc[2 * i + 1]);
    }
}
__device__ __forceinline__ void prefetch_line(const bf16 *from) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
}
__device__ __forceinline__ uint4 load_once(const bf16 *from, bool valid) {
    return valid ? __ldcs((const uint4 *)from) : make_uint4(0, 0, 0, 0);
}

/* The block's sum of SLICE columns for ROWS vectors -> out[ROWS][SLICE], warps in order. `part` holds
 * DECODE_WARPS * ROWS * SLICE floats. */
template <int ROWS>
__device__ __forceinline__ void block_sum(float (&acc)[ROWS][8], float *part, float *out) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            acc[r][i] += __shfl_xor_sync(~0u, acc[r][i], 8);
            acc[r][i] += __shfl_xor_sync(~0u, acc[r][i], 16);
            if (lane < 8) part[(warp * ROWS + r) * SLICE + lane * 8 + i] = acc[r][i];
        }
    __syncthreads();
    for (int i = threadIdx.x; i < ROWS * SLICE; i += DECODE_THREADS) {
        float sum = 0;
        for (int w = 0; w < DECODE_WARPS; ++w) sum += part[w * ROWS * SLICE + i];
        out[i] = sum;
    }
    __syncthreads();
}
template <int RANKS> __device__ __forceinline__ float cluster_sum(const float *value) {
    float sum = 0;
#pragma unroll
    for (int rank = 0; rank < RANKS; ++rank) sum += load_of_rank(smem_address(value), rank);
    return sum;
}

template <int MAX_ROWS> struct UpShared {
    float part[DECODE_WARPS * MAX_ROWS * SLICE];
    float out[2][MAX_ROWS * SLICE];
    int choice[DECODE_CHOICES], n_rows;
};

/* The choices that name this block's expert, if its own is the first of them. Whole warp. */
template <int MAX_ROWS>
__device__ __forceinline__ void find_rows(const moei_few_args &p, int own, UpShared<MAX_ROWS> &s) {
    const int lane = threadIdx.x & 31, n = (int)p.n_tokens * p.top_k, expert = p.expert[own];
    int n_rows = 0;
    bool first = expert >= 0;
    for (int base = 0; base < n; base += 32) {
        const int at = base + lane;
        const bool same = at < n && p.expert[at] == expert;
        const uint32_t mask = __ballot_sync(~0u, same);
        if (same) s.choice[n_rows + __popc(mask & ((1u << lane) - 1))] = at;
        if (__any_sync(~0u, same && at < own)) first = false;
        n_rows += __popc(mask);
    }
    if (lane == 0) s.n_rows = first ? n_rows : 0;
}

/* The tokens of `rows` choices from r0 on, k0 .. k1, as floats; zeros up to the pitch. */
template <int MAX_ROWS>
__device__ __forceinline__ void put_tokens(const moei_few_args &p, const UpShared<MAX_ROWS> &s, float *x,
                                           int r0, int rows, int k0, int k1, int pitch) {
    for (int i = threadIdx.x; i < rows * pitch; i += DECODE_THREADS) {
        const int r = i / pitch, k = k0 + i % pitch;
        const bool valid = k < k1 && (MAX_ROWS == 1 || r0 + r < s.n_rows);
        const int64_t token = MAX_ROWS > 1 && valid ? s.choice[r0 + r] / p.top_k : 0;
        x[i] = valid ? __bfloat162float(((const bf16 *)p.x)[token * p.ldx + k]) : 0;
    }
}

/* Rows `r0` .. of the block's choices: their part of z in `out`. */
template <int ROWS, bool GATED, int MAX_ROWS>
__device__ __forceinline__ void up_part(const moei_few_args &p, UpShared<MAX_ROWS> &s, float *x, int r0,
                                        int k0, int k1, int pitch) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, column = (int)(blockIdx.x / UP_SPLIT) * SLICE;
    const int64_t width = GATED ? 2 * p.n : p.n, expert = p.expert[s.choice[0]],
                  col = column + (lane & 7) * 8;
    if (MAX_ROWS > 1) put_tokens(p, s, x, r0, ROWS, k0, k1, pitch);
    __syncthreads();
    float gate[ROWS][8] = {}, up[GATED ? ROWS : 1][8] = {};
    const bf16 *w = (const bf16 *)p.w1 + expert * p.d * width + col;
    for (int k = warp * 4 + (lane >> 3); k < k1 - k0; k += AHEAD * STEP) {
        uint4 g[AHEAD], u[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            const bool valid = k + i * STEP < k1 - k0 && col < p.n;
            const bf16 *from = w + (k0 + k + i * STEP) * width;
            g[i] = load_once(from, valid);
            u[i] = load_once(from + p.n, valid && GATED);
        }
#pragma unroll
        for (int i = 0; i < AHEAD; ++i)
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                const float xv = x[r * pitch + k + i * STEP];
                add_product(gate[r], g[i], xv);
                if (GATED) add_product(up[r], u[i], xv);
            }
    }
    block_sum<ROWS>(gate, s.part, s.out[0]);
    if constexpr (GATED) block_sum<ROWS>(up, s.part, s.out[1]);
}

struct UpCall : moei_few_args {
    ActRule rule;
};

template <int MAX_ROWS, bool GATED>
__global__ void __cluster_dims__(UP_SPLIT, 1, 1) __launch_bounds__(DECODE_THREADS, MAX_ROWS == 1 ? 3 : 2)
    decode_up_kernel(const __grid_constant__ UpCall p) {
    extern __shared__ float x[];
    __shared__ UpShared<MAX_ROWS> s;
    const int rank = (int)cluster_rank(), column = (int)(blockIdx.x / UP_SPLIT) * SLICE;
    const int k0 = (int)(p.d * rank / UP_SPLIT), k1 = (int)(p.d * (rank + 1) / UP_SPLIT);
    const int pitch = (k1 - k0 + AHEAD * STEP - 1) / (AHEAD * STEP) * (AHEAD * STEP);
    if (MAX_ROWS == 1) put_tokens(p, s, x, 0, 1, k0, k1, pitch); /* x was there before the router */
    await_earlier();
    let_next_start();
    if (MAX_ROWS > 1 && threadIdx.x < 32) find_rows(p, (int)blockIdx.y, s);
    if (MAX_ROWS == 1 && threadIdx.x == 0)
        s.choice[0] = (int)blockIdx.y, s.n_rows = p.expert[blockIdx.y] >= 0;
    __syncthreads();
    for (int r0 = 0; r0 < s.n_rows; r0 += MAX_ROWS) {
        const int rows = min(MAX_ROWS, s.n_rows - r0);
        if (rows == 1)
            up_part<1, GATED>(p, s, x, r0, k0, k1, pitch);
        else
            up_part<MAX_ROWS, GATED>(p, s, x, r0, k0, k1, pitch);
        cluster_sync();
        for (int i = threadIdx.x * UP_SPLIT + rank; i < rows * SLICE; i += DECODE_THREADS * UP_SPLIT) {
            const float g = cluster_sum<UP_SPLIT>(s.out[0] + i);
            const float u = GATED ? cluster_sum<UP_SPLIT>(s.out[1] + i) : 0;
            const int col = column + i % SLICE;
            if (col < p.n) p.h[s.choice[r0 + i / SLICE] * p.n + col] = act_point(p.rule, g, u).value;
        }
        cluster_sync(); /* the others have read */
    }
}

struct DownShared {
    int choice[DECODE_CHOICES],
        first[DECODE_CHOICES];                  /* expert[T, K], and whether it is the first of its kind */
    int expert[DECODE_CHOICES], n_experts;      /* those chosen, each once */
    int8_t slot[DECODE_CHOICES][DECODE_TOKENS]; /* of expert i in token t; -1: none */
    float out[DECODE_TOKENS * SLICE];
};
enum { CHUNK = AHEAD * STEP * 4 }; /* rows of weights whose factors are put together at a time */

/* Whole block. */
__device__ __forceinline__ void list_experts(const moei_few_args &p, DownShared &s) {
    const int n = (int)p.n_tokens * p.top_k, own = threadIdx.x;
    for (int i = threadIdx.x; i < DECODE_CHOICES * DECODE_TOKENS; i += DECODE_THREADS)
        (&s.slot[0][0])[i] = -1;
    if (threadIdx.x == 0) s.n_experts = 0;
    if (own < n) s.choice[own] = p.expert[own];
    __syncthreads();
    const int expert = own < n ? s.choice[own] : -1;
    int first = own, before = 0;
    for (int i = own - 1; i >= 0 && expert >= 0; --i)
        if (s.choice[i] == expert) first = i;
    if (own < n) s.first[own] = expert >= 0 && first == own;
    __syncthreads();
    if (expert >= 0) {
        for (int i = 0; i < first; ++i) before += s.first[i];
        s.expert[before] = expert;
        s.slot[before][own / p.top_k] = (int8_t)(own % p.top_k);
        atomicMax(&s.n_experts, before + 1);
    }
    __syncthreads();
}

template <int TOKENS>
__global__ void __cluster_dims__(DOWN_SPLIT, 1, 1) __launch_bounds__(DECODE_THREADS, 2)
    decode_down_kernel(const __grid_constant__ moei_few_args p) {
    __shared__ DownShared s;
    __shared__ float scratch[TOKENS * (CHUNK > DECODE_WARPS * SLICE ? CHUNK : DECODE_WARPS * SLICE)];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, rank = (int)cluster_rank();
    const int column = (int)(blockIdx.x / DOWN_SPLIT) * SLICE, col = column + (lane & 7) * 8;
    const bf16 *w2 = (const bf16 *)p.w2;
    list_experts(p, s);
    const int n = (int)p.n, total = s.n_experts * n;
    const int begin = (int)((int64_t)total * rank / DOWN_SPLIT),
              end = (int)((int64_t)total * (rank + 1) / DOWN_SPLIT);
    const auto prefetch = [&](int from) {
        for (int at = from + (int)threadIdx.x; at < min(from + CHUNK, end); at += DECODE_THREADS)
            prefetch_line(w2 + (s.expert[at / n] * p.n + at % n) * p.d + column);
    };
    prefetch(begin); /* while h is still being made */
    prefetch(begin + CHUNK);
    await_earlier(); /* the next kernel waits for this one's end: it may read y before it awaits anything */
    float acc[TOKENS][8] = {};
    for (int at = begin; at < end;) {
        const int e = at / n, k0 = at - e * n, length = min(min(end - at, n - k0), (int)CHUNK);
        prefetch(at + 2 * CHUNK);
        __syncthreads();
        for (int i = threadIdx.x; i < TOKENS * CHUNK; i += DECODE_THREADS) {
            const int t = i / CHUNK, k = i % CHUNK, slot = s.slot[e][t];
            const int choice = t * p.top_k + slot;
            const bool valid = k < length && t < p.n_tokens && slot >= 0;
            scratch[i] = valid ? p.weight[choice] * p.h[choice * p.n + k0 + k] : 0;
        }
        __syncthreads();
        const bf16 *w = w2 + (s.expert[e] * p.n + k0) * p.d + col;
        for (int k = warp * 4 + (lane >> 3); k < length; k += AHEAD * STEP) {
            uint4 v[AHEAD];
#pragma unroll
            for (int i = 0; i < AHEAD; ++i)
                v[i] = load_once(w + (k + i * STEP) * p.d, k + i * STEP < length && col < p.d);
#pragma unroll
            for (int i = 0; i < AHEAD; ++i)
#pragma unroll
                for (int t = 0; t < TOKENS; ++t) add_product(acc[t], v[i], scratch[t * CHUNK + k + i * STEP]);
        }
        at += length;
    }
    __syncthreads();
    block_sum<TOKENS>(acc, scratch, s.out);
    cluster_sync();
    for (int i = threadIdx.x * DOWN_SPLIT + rank; i < TOKENS * SLICE; i += DECODE_THREADS * DOWN_SPLIT) {
        const float sum = cluster_sum<DOWN_SPLIT>(s.out + i);
        const int t = i / SLICE, c = column + i % SLICE;
        bf16 *y = (bf16 *)p.y + t * p.ldy + c;
        if (t < p.n_tokens && c < p.d)
            *y = __float2bfloat16((p.accumulate ? __bfloat162float(*y) : 0.f) + sum);
    }
    cluster_sync(); /* the others have read */
}

/* Router: a cluster's warps share the experts; its first block selects. */
enum { ROUTE_RANKS = 8, ROUTE_EXPERTS = 256 };
template <int TOKENS>
__global__ void __cluster_dims__(ROUTE_RANKS, 1, 1) __launch_bounds__(512, 1)
    route_few_kernel(const __grid_constant__ moei_router_args p) {
    __shared__ float own[DECODE_TOKENS][ROUTE_EXPERTS / ROUTE_RANKS], logits[DECODE_TOKENS][ROUTE_EXPERTS];
    __shared__ uint32_t count[ROUTE_EXPERTS];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, n_warps = 16, rank = (int)cluster_rank();
    const int tokens = (int)p.n_tokens, each = (p.n_experts + ROUTE_RANKS - 1) / ROUTE_RANKS;
    let_next_start();
    for (int i = warp; i < each && rank * each + i < p.n_experts; i += n_warps) {
        const bf16 *gate = (const bf16 *)p.gate + (int64_t)(rank * each + i) * p.d;
        float sum[TOKENS] = {};
#pragma unroll(TOKENS == 1 ? 8 : 2)
        for (int64_t k = lane * 8; k < p.d; k += 256) {
            const uint4 g = __ldg((const uint4 *)(gate + k));
            const uint32_t gp[4] = {g.x, g.y, g.z, g.w};
#pragma unroll
            for (int t = 0; t < TOKENS; ++t) {
                const uint4 v = __ldg((const uint4 *)((const bf16 *)p.x + min(t, tokens - 1) * p.ldx + k));
                const uint32_t vp[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    sum[t] = fmaf(bf16_low(gp[j]), bf16_low(vp[j]), sum[t]);
                    sum[t] = fmaf(bf16_high(gp[j]), bf16_high(vp[j]), sum[t]);
                }
            }
        }
#pragma unroll
        for (int t = 0; t < TOKENS; ++t) {
            sum[t] = warp_sum(sum[t]);
            if (lane == 0) own[t][i] = sum[t];
        }
    }
    cluster_sync();
    if (rank == 0) {
        for (int i = threadIdx.x; i < tokens * p.n_experts; i += 512) {
            const int t = i / p.n_experts, e = i % p.n_experts;
            const float logit = load_of_rank(smem_address(&own[t][e % each]), (uint32_t)(e / each));
            logits[t][e] = logit;
            if (p.logits) p.logits[(int64_t)t * p.n_experts + e] = logit;
        }
        if (threadIdx.x < ROUTE_EXPERTS) count[threadIdx.x] = 0;
        __syncthreads();
        if (2 * warp < tokens) {
            Selection<ROUTE_EXPERTS> selection;
            selection.run(p, logits[2 * warp], ROUTE_EXPERTS, 2 * warp, tokens - 2 * warp, count);
        }
        __syncthreads();
        if (p.tile_count && (int)threadIdx.x < (p.n_experts + 3) / 4 * 4)
            p.tile_count[threadIdx.x] = (uint8_t)count[threadIdx.x];
    }
    cluster_sync(); /* the first has read */
}

/* Each kernel may start before the one ahead of it in the stream has ended. */
template <class Args>
static cudaError_t launch_early(void (*kernel)(Args), dim3 grid, int threads, int shared, cudaStream_t stream,
                                const Args &args) {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid, config.blockDim = dim3((unsigned)threads),
    config.dynamicSmemBytes = (size_t)shared;
    config.stream = stream, config.attrs = &attribute, config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, kernel, args);
}

template <int MAX_ROWS, bool GATED>
static cudaError_t launch_up(const moei_few_args *args, cudaStream_t stream) {
    const int part = (int)((args->d + UP_SPLIT - 1) / UP_SPLIT), block = AHEAD * STEP;
    const int shared = MAX_ROWS * (part + block) / block * block * (int)sizeof(float);
    const unsigned slices = (unsigned)((args->n + SLICE - 1) / SLICE);
    cudaError_t error = cudaFuncSetAttribute(decode_up_kernel<MAX_ROWS, GATED>,
                                             cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (error) return error;
    return launch_early(decode_up_kernel<MAX_ROWS, GATED>,
                        dim3(slices * UP_SPLIT, (unsigned)(args->n_tokens * args->top_k)), DECODE_THREADS,
                        shared, stream, UpCall{*args, act_rule_of(args->act, args->act_numbers)});
}

template <int TOKENS> static cudaError_t launch_down(const moei_few_args *args, cudaStream_t stream) {
    const unsigned slices = (unsigned)((args->d + SLICE - 1) / SLICE);
    return launch_early(decode_down_kernel<TOKENS>, dim3(slices * DOWN_SPLIT), DECODE_THREADS, 0, stream,
                        *args);
}

} // namespace moei

using namespace moei;

int moei_cuda_route_few(const moei_team *team, const moei_router_args *args) {
    const cudaStream_t stream = stream_of(team);
    if (args->n_tokens > DECODE_TOKENS || !moei_cuda_route_fits(args)) return cudaErrorNotSupported;
    if (args->n_tokens == 1)
        route_few_kernel<1><<<ROUTE_RANKS, 512, 0, stream>>>(*args);
    else
        route_few_kernel<DECODE_TOKENS><<<ROUTE_RANKS, 512, 0, stream>>>(*args);
    return cudaPeekAtLastError();
}

/* A part of a token's numbers is kept as f32 in shared memory: that bounds d. */
static bool few_fits(const moei_few_args *a) {
    return a->dtype == MOE_BF16 && a->act != MOE_ACT_NONE && a->n_tokens > 0 &&
           a->n_tokens <= DECODE_TOKENS && a->n_tokens * a->top_k <= DECODE_CHOICES && a->d % 8 == 0 &&
           a->d <= 32768 && a->n % 8 == 0 && aligned16(a->w1) && aligned16(a->w2);
}

int moei_cuda_decode(const moei_team *team, const moei_few_args *args) {
    const cudaStream_t stream = stream_of(team);
    if (!few_fits(args)) return cudaErrorNotSupported;
    const bool gated = moe_act_gated(args->act), one = args->n_tokens == 1;
    cudaError_t error =
        one ? (gated ? launch_up<1, true>(args, stream) : launch_up<1, false>(args, stream))
            : (gated ? launch_up<UP_ROWS, true>(args, stream) : launch_up<UP_ROWS, false>(args, stream));
    if (error) return error;
    if (one) return launch_down<1>(args, stream);
    if (args->n_tokens <= 4) return launch_down<4>(args, stream);
    return launch_down<DECODE_TOKENS>(args, stream);
}

extern "C" bool moei_few__sm90(const moei_team *team, const moei_few_args *args) {
    return moei_cuda_decode(team, args) != cudaErrorNotSupported;
}
