/* select.cuh: the experts and weights of a token from its logits: softmax, exact top-k.
 * A warp does two tokens at once. Source: DESIGN section 2.
 */
#ifndef MOEI_SELECT_CUH
#define MOEI_SELECT_CUH

#include "kernel/cuda/cuda_kernel.h"

#include <math.h>
#include <stdint.h>

namespace moei {

/* Orders as the floats do, -0 as 0; never 0, which stands for no candidate. */
__device__ __forceinline__ uint32_t key_of(float score) {
    const uint32_t bits = __float_as_uint(score + 0.f);
    return max(bits & 0x80000000u ? ~bits : bits | 0x80000000u, 1u);
}
__device__ __forceinline__ float key_score(uint32_t key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7FFFFFFFu : ~key);
}
__device__ __forceinline__ float warp_sum(float x) {
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
    return x;
}

/* Two tokens at a time, so that one's reductions overlap the other's. Lane l holds experts l, l + 32, ..;
 * of equal scores the lower expert wins. After the search lane k has the k-th choice. */
template <int N> struct Selection {
    static constexpr int PER_LANE = N / 32, TOKENS = 2;
    uint32_t key[TOKENS][PER_LANE];

    __device__ __forceinline__ uint32_t best(int t) const {
        uint32_t m = 0;
#pragma unroll
        for (int j = 0; j < PER_LANE; ++j) m = max(m, key[t][j]);
        return __reduce_max_sync(~0u, m);
    }
    /* The lowest expert with this key, which is no candidate any longer. */
    __device__ __forceinline__ uint32_t take(int t, uint32_t wanted) {
        const uint32_t lane = threadIdx.x & 31;
        uint32_t expert = ~0u;
#pragma unroll
        for (int j = 0; j < PER_LANE; ++j)
            if (key[t][j] == wanted) expert = min(expert, 32 * j + lane);
        expert = __reduce_min_sync(~0u, expert);
#pragma unroll
        for (int j = 0; j < PER_LANE; ++j)
            if (expert == 32 * j + lane) key[t][j] = 0;
        return expert;
    }
    /* logits: of the two tokens, `pitch` floats apart. count: rows per expert, or NULL. */
    __device__ __forceinline__ void run(const moei_cuda_route_args &p, const float *logits, int pitch,
                                        int64_t token, uint32_t *count) {
        const int lane = threadIdx.x & 31;
        float sum[TOKENS], max_logit[TOKENS];
        uint32_t chosen[TOKENS], chosen_key[TOKENS];
        bool finite[TOKENS];
#pragma unroll
        for (int t = 0; t < TOKENS; ++t) {
            float logit[PER_LANE];
            finite[t] = true, sum[t] = 0, chosen[t] = chosen_key[t] = 0;
#pragma unroll
            for (int j = 0; j < PER_LANE; ++j) {
                const bool valid = 32 * j + lane < p.n_experts;
                logit[j] = logits[t * pitch + 32 * j + lane];
                finite[t] &= !valid || fabsf(logit[j]) < INFINITY;
                key[t][j] = valid ? key_of(logit[j]) : 0;
            }
            max_logit[t] = key_score(best(t));
#pragma unroll
            for (int j = 0; j < PER_LANE; ++j) sum[t] += key[t][j] ? __expf(logit[j] - max_logit[t]) : 0;
            sum[t] = warp_sum(sum[t]);
            finite[t] = __all_sync(~0u, finite[t]);
        }
#pragma unroll 1
        for (int k = 0; k < p.top_k; ++k)
#pragma unroll
            for (int t = 0; t < TOKENS; ++t) {
                const uint32_t wanted = best(t), expert = take(t, wanted);
                if (lane == k) chosen[t] = expert, chosen_key[t] = wanted;
            }
#pragma unroll
        for (int t = 0; t < TOKENS; ++t) {
            const bool mine = lane < p.top_k;
            const float share = mine ? __expf(key_score(chosen_key[t]) - max_logit[t]) : 0;
            const float divisor = p.score_before_topk && !p.norm_topk_prob ? sum[t] : warp_sum(share);
            const int64_t to = token + t;
            if (to >= p.n_tokens) return;
            if (mine) {
                p.expert[to * p.top_k + lane] = (int32_t)chosen[t];
                p.weight[to * p.top_k + lane] = p.scale * share / divisor;
                if (count) atomicAdd(count + chosen[t], 1);
            }
            if (lane == 0) p.lse[to] = max_logit[t] + __logf(sum[t]);
            if (lane == 0 && !finite[t]) atomicMin(p.first_bad, (int)to);
        }
    }
};

} // namespace moei
#endif
