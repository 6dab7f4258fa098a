/* portable.cuh: what the portable CUDA kernels (sm_80 and newer) share: numbers of any dtype as f32,
 * launches. A kernel gets the same argument struct as on the CPU, with device pointers; team->stream is where
 * it queues.
 */
#ifndef MOEI_PORTABLE_CUH
#define MOEI_PORTABLE_CUH

#include "kernel/kernel_list.h"

#include <cuda_bf16.h>
#include <cuda_runtime.h>

namespace moei {

__host__ __device__ __forceinline__ int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

typedef __nv_bfloat16 bf16;

/* Element i of an array of T, as f32 and back (to nearest, ties to even). */
template <class T> __device__ __forceinline__ float load(const void *from, int64_t i) {
    return (float)((const T *)from)[i];
}
template <class T> __device__ __forceinline__ void store(void *to, int64_t i, float value) {
    ((T *)to)[i] = (T)value;
}
/* Two bf16 numbers as a word, the first in its lower half, and back. */
__device__ __forceinline__ uint32_t bf16_pack(float low, float high) {
    __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    return *(const uint32_t *)&v;
}
__device__ __forceinline__ float bf16_low(uint32_t pair) {
    return __uint_as_float(pair << 16);
}
__device__ __forceinline__ float bf16_high(uint32_t pair) {
    return __uint_as_float(pair & 0xFFFF0000u);
}
/* Whether 16 bytes may be moved at once from there. */
__host__ __device__ __forceinline__ bool aligned16(const void *pointer) {
    return ((uintptr_t)pointer & 15) == 0;
}

static inline cudaStream_t stream_of(const moei_team *team) {
    return (cudaStream_t)team->stream;
}

/* A launch on the team's stream that goes first where smaller kernels are queued beside it. `priority` is its
 * attribute and must last as long. */
static inline cudaLaunchConfig_t urgent_launch(const moei_team *team, dim3 grid, int threads, size_t shared,
                                               cudaLaunchAttribute *priority) {
    *priority = {};
    priority->id = cudaLaunchAttributePriority;
    priority->val.priority = team->urgency;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid, config.blockDim = dim3((unsigned)threads), config.dynamicSmemBytes = shared;
    config.stream = stream_of(team), config.attrs = priority, config.numAttrs = team->spare > 0;
    return config;
}

/* An activation of the products, in f32 (kernel/act.h has them in f64): limit is infinite where there is
 * none.
 */
struct ActRule {
    moei_curve curve;
    bool gated;
    float alpha, limit, offset;
};
static inline ActRule act_rule_of(moe_act act, moe_act_numbers numbers) {
    const moei_act_rule rule = moei_act_rule_for(act, numbers);
    return {rule.curve, rule.gated, (float)rule.alpha, rule.limit > 0 ? (float)rule.limit : INFINITY,
            (float)rule.offset};
}

/* v within `low` and `high`; NaN is NaN, which fminf and fmaxf would make a number. */
__device__ __forceinline__ float clamped(float v, float low, float high) {
    float above, within;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(above) : "f"(v), "f"(low));
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(within) : "f"(above), "f"(high));
    return within;
}

/* x sigmoid(y(x)) and its slope, `rise` being that of y. Past +-100 a sigmoid is 0 or 1 in f32. */
__device__ __forceinline__ float2 times_sigmoid(float x, float y, float rise) {
    const float s = 1.f / (1.f + expf(-clamped(y, -100.f, 100.f)));
    const float bend = fabsf(y) >= 100.f ? 0.f : x * s * (1.f - s) * rise;
    return make_float2(x * s, s + bend);
}
/* Value and slope of a curve. */
__device__ __forceinline__ float2 curve_at(moei_curve curve, float v, float alpha) {
    switch (curve) {
    case MOEI_CURVE_LINEAR:
        return make_float2(v, 1.f);
    case MOEI_CURVE_RELU:
        return make_float2(v <= 0.f ? 0.f : v, v > 0.f ? 1.f : 0.f);
    case MOEI_CURVE_LEAKY_RELU:
        return make_float2(v > 0.f ? v : 0.01f * v, v > 0.f ? 1.f : 0.01f);
    case MOEI_CURVE_RELU2: {
        const float half = v <= 0.f ? 0.f : v;
        return make_float2(half * half, half + half);
    }
    case MOEI_CURVE_GELU: {
        const float cdf = 0.5f * erfcf(-v * 0.70710678f), density = 0.39894228f * expf(-0.5f * v * v);
        return make_float2(v * cdf, density > 0.f ? fmaf(v, density, cdf) : cdf);
    }
    case MOEI_CURVE_GELU_TANH: { /* (1 + tanh(y)) / 2 is sigmoid(2 y) */
        const float c = 1.59576912f, cubic = 0.044715f, square = fminf(v * v, 1e4f);
        return times_sigmoid(v, c * v * fmaf(cubic, square, 1.f), c * fmaf(3.f * cubic, square, 1.f));
    }
    case MOEI_CURVE_SWISH:
        break;
    }
    return times_sigmoid(v, alpha * v, alpha);
}

struct ActPoint {
    float value, d_gate, d_up;
};
__device__ __forceinline__ ActPoint act_point(const ActRule &rule, float gate, float up) {
    if (!rule.gated) {
        const float2 f = curve_at(rule.curve, gate, rule.alpha);
        return {f.x, f.y, 0.f};
    }
    const float v = clamped(gate, -INFINITY, rule.limit), u = clamped(up, -rule.limit, rule.limit);
    const float2 f = curve_at(rule.curve, v, rule.alpha);
    const float factor = u + rule.offset;
    return {f.x * factor, gate > rule.limit ? 0.f : f.y * factor, fabsf(up) > rule.limit ? 0.f : f.x};
}

/* Rows [first, end) of group g, of at most `rows` each. */
struct RowTile {
    int32_t group;
    int64_t first, end;
};

/* Sum of v over this lane and those below it. */
__device__ __forceinline__ int warp_prefix(int v) {
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        const int below = __shfl_up_sync(~0u, v, d);
        if ((int)(threadIdx.x & 31) >= d) v += below;
    }
    return v;
}

/* Row tile number `tile` of all groups, found by one warp; group -1: there are fewer. offset NULL: one
 * group of n_rows rows. Every lane counts the tiles of as many groups; one lane's are then looked at. */
__device__ __forceinline__ RowTile find_row_tile(const int64_t *offset, int32_t n_groups, int64_t n_rows,
                                                 int64_t tile, int rows) {
    if (!offset) return {tile * rows < n_rows ? 0 : -1, tile * rows, n_rows};
    const int lane = threadIdx.x & 31;
    int32_t first = 0, span = n_groups;
    int rest = (int)tile;
    while (true) {
        const int32_t each = (span + 31) / 32, low = first + lane * each,
                      high = min(low + each, first + span);
        int own = 0;
#pragma unroll 4
        for (int32_t g = low; g < high; ++g) own += (int)ceil_div(offset[g + 1] - offset[g], rows);
        const int upto = warp_prefix(own);
        const unsigned past = __ballot_sync(~0u, upto > rest);
        if (!past) return {-1, 0, 0};
        const int at = __ffs(past) - 1;
        rest -= __shfl_sync(~0u, upto - own, at);
        first = __shfl_sync(~0u, low, at);
        if (each == 1) return {first, offset[first] + (int64_t)rest * rows, offset[first + 1]};
        span = __shfl_sync(~0u, high - low, at);
    }
}

/* Sum over the 32 lanes, the same bits in each, every time. */
template <class V> __device__ __forceinline__ V warp_sum(V v) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(~0u, v, d);
    return v;
}

/* What is left of a token that is masked or bad, its logit or its replayed choice: lse 0 or NaN, by which the
 * gradient knows. Lane `lane` of `lanes` that call this. */
__device__ __forceinline__ void leave_out(const moei_router_args &p, int64_t token, float lse, int lane,
                                          int lanes) {
    for (int e = lane; p.prob && e < p.n_experts; e += lanes) p.prob[token * p.n_experts + e] = 0.f;
    for (int k = lane; k < p.top_k; k += lanes) {
        p.expert[token * p.top_k + k] = -1;
        p.weight[token * p.top_k + k] = 0.f;
    }
    if (lane == 0) p.lse[token] = lse;
}

/* Tells the host what is wrong with a token. */
static __device__ void tell(const moei_router_args &p, int64_t t, moei_fault_kind what) {
    const uint64_t word =
        (uint64_t)p.layer << MOEI_FAULT_LAYER_BIT | (uint64_t)t << MOEI_FAULT_TOKEN_BIT | (uint64_t)what;
    atomicMin((unsigned long long *)&p.fault->first, (unsigned long long)word);
    __threadfence_system();
}

} // namespace moei

#endif
