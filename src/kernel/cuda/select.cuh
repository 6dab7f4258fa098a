/* select.cuh: the experts and weights of a token from its logits: softmax, exact top-k.
 * A warp does two tokens at once. Source: DESIGN section 2.
 */
#ifndef MOEI_SELECT_CUH
#define MOEI_SELECT_CUH

#include "kernel/cuda/portable.cuh"

#include <math.h>

namespace moei {

/* Orders as the floats do, -0 as 0; never 0, which stands for no candidate. */
__device__ __forceinline__ uint32_t key_of(float score) {
    const uint32_t bits = __float_as_uint(score + 0.f);
    return max(bits & 0x80000000u ? ~bits : bits | 0x80000000u, 1u);
}
__device__ __forceinline__ float key_score(uint32_t key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7FFFFFFFu : ~key);
}

/* Two tokens at a time, so that one's reductions overlap the other's. Lane l has experts l, l + 32, ..; it
 * sorts them once, and each choice is then the best of 32 heads. Of equal scores the lower expert wins. After
 * the search lane k has the k-th choice. */
template <int N> struct Selection {
    static constexpr int PER_LANE = N / 32, TOKENS = 2;
    uint32_t key[TOKENS][PER_LANE], expert[TOKENS][PER_LANE];

    /* By falling key. Neighbours change places only if they must, so equal ones keep their order. */
    __device__ __forceinline__ void sort(int t) {
#pragma unroll
        for (int last = PER_LANE - 1; last > 0; --last)
#pragma unroll
            for (int j = 0; j < last; ++j) {
                const uint32_t k = key[t][j], e = expert[t][j];
                const bool swap = key[t][j + 1] > k;
                key[t][j] = swap ? key[t][j + 1] : k, expert[t][j] = swap ? expert[t][j + 1] : e;
                key[t][j + 1] = swap ? k : key[t][j + 1], expert[t][j + 1] = swap ? e : expert[t][j + 1];
            }
    }
    __device__ __forceinline__ uint32_t best(int t) const {
        return __reduce_max_sync(~0u, key[t][0]);
    }
    /* The lowest expert with the best key; it leaves its lane's list. */
    __device__ __forceinline__ uint32_t take(int t, uint32_t wanted) {
        const uint32_t chosen = __reduce_min_sync(~0u, key[t][0] == wanted ? expert[t][0] : ~0u);
        if (expert[t][0] == chosen) {
#pragma unroll
            for (int j = 0; j + 1 < PER_LANE; ++j) key[t][j] = key[t][j + 1], expert[t][j] = expert[t][j + 1];
            key[t][PER_LANE - 1] = 0;
        }
        return chosen;
    }
    /* What is left of a token that is masked or has a bad logit: lse 0 or NaN, by which the gradient knows.
     */
    __device__ __forceinline__ void leave_out(const moei_router_args &p, int64_t token, bool masked) const {
        const int lane = threadIdx.x & 31;
        for (int e = lane; p.prob && e < p.n_experts; e += 32) p.prob[token * p.n_experts + e] = 0.f;
        if (lane < p.top_k) {
            p.expert[token * p.top_k + lane] = -1;
            p.weight[token * p.top_k + lane] = 0.f;
        }
        if (lane != 0) return;
        p.lse[token] = masked ? 0.f : NAN;
        if (!masked) tell(p, token, MOEI_FAULT_LOGIT);
    }
    /* logits: of the two tokens, `pitch` floats apart. count: rows per expert, or NULL. */
    __device__ __forceinline__ void run(const moei_router_args &p, const float *logits, int pitch,
                                        int64_t token, uint32_t *count) {
        const int lane = threadIdx.x & 31;
        float sum[TOKENS], max_logit[TOKENS], share[TOKENS][PER_LANE];
        uint32_t chosen[TOKENS], chosen_key[TOKENS];
        bool finite[TOKENS];
#pragma unroll
        for (int t = 0; t < TOKENS; ++t) {
            float logit[PER_LANE];
            finite[t] = true, chosen[t] = chosen_key[t] = 0;
#pragma unroll
            for (int j = 0; j < PER_LANE; ++j) {
                const bool valid = 32 * j + lane < p.n_experts;
                logit[j] = logits[t * pitch + 32 * j + lane];
                finite[t] &= !valid || fabsf(logit[j]) < INFINITY;
                key[t][j] = valid ? key_of(logit[j]) : 0, expert[t][j] = 32 * j + lane;
            }
            float sum_t = 0;
            sort(t);
            max_logit[t] = key_score(best(t));
#pragma unroll
            for (int j = 0; j < PER_LANE; ++j) {
                share[t][j] = 32 * j + lane < p.n_experts ? __expf(logit[j] - max_logit[t]) : 0;
                sum_t += share[t][j];
            }
            sum[t] = warp_sum(sum_t);
            finite[t] = __all_sync(~0u, finite[t]);
        }
#pragma unroll 1
        for (int k = 0; k < p.top_k; ++k)
#pragma unroll
            for (int t = 0; t < TOKENS; ++t) {
                const uint32_t wanted = best(t), taken = take(t, wanted);
                if (lane == k) chosen[t] = taken, chosen_key[t] = wanted;
            }
#pragma unroll
        for (int t = 0; t < TOKENS; ++t) {
            const bool mine = lane < p.top_k;
            const float own = mine ? __expf(key_score(chosen_key[t]) - max_logit[t]) : 0, all = warp_sum(own);
            const float eps = p.score_before_topk ? (float)p.norm_eps * sum[t] : 0;
            const float divisor = p.score_before_topk && !p.norm_topk_prob ? sum[t] : all + eps;
            const int64_t to = token + t;
            const float inverse = 1.f / sum[t];
            if (to >= p.n_tokens) return;
            const bool masked = p.mask && !p.mask[to];
            if (masked || !finite[t]) {
                leave_out(p, to, masked);
                continue;
            }
            if (mine) {
                p.expert[to * p.top_k + lane] = (int32_t)chosen[t];
                p.weight[to * p.top_k + lane] = (float)p.scale * own / divisor;
                if (count) atomicAdd(count + chosen[t], 1);
            }
#pragma unroll
            for (int j = 0; j < PER_LANE; ++j)
                if (p.prob && 32 * j + lane < p.n_experts)
                    p.prob[to * p.n_experts + 32 * j + lane] = share[t][j] * inverse;
            if (lane == 0) p.lse[to] = max_logit[t] + __logf(sum[t]);
        }
    }
};

} // namespace moei
#endif
