/* select.cuh: the experts and weights of a token from its logits: softmax, exact top-k.
 * logits[E] of a token in shared memory, two tokens a warp, or in the registers of four lanes, eight tokens a
 * warp. Source: odd-even merge sort and bitonic merge: Batcher 1968.
 */
#ifndef MOEI_SELECT_CUH
#define MOEI_SELECT_CUH

#include "kernel/cuda/left_out.cuh"

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

/* What the chosen shares are divided by: sum: of all experts' shares, chosen: of the chosen ones. */
__device__ __forceinline__ float weight_divisor(const moei_router_args &p, float sum, float chosen) {
    if (!p.score_before_topk) return chosen;
    return p.norm_topk_prob ? chosen + (float)p.norm_eps * sum : sum;
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
    /* logits: of the two tokens, `pitch` floats apart; only the first where `tokens` is 1. count: rows per
     * expert. */
    __device__ __forceinline__ void run(const moei_router_args &p, const float *logits, int pitch,
                                        int64_t token, int tokens, uint32_t *count) {
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
            const float divisor = weight_divisor(p, sum[t], all);
            const int64_t to = token + t;
            const float inverse = 1.f / sum[t];
            if (t >= tokens) return;
            const bool masked = p.mask && !p.mask[to];
            if (masked || !finite[t]) {
                leave_out(p, to, masked ? 0.f : NAN, lane, 32);
                if (!masked && lane == 0) tell(p, to, MOEI_FAULT_LOGIT);
                continue;
            }
            if (mine) {
                p.expert[to * p.top_k + lane] = (int32_t)chosen[t];
                p.weight[to * p.top_k + lane] = (float)p.scale * own / divisor;
                atomicAdd(count + chosen[t], 1);
            }
#pragma unroll
            for (int j = 0; j < PER_LANE; ++j)
                if (p.prob && 32 * j + lane < p.n_experts)
                    p.prob[to * p.n_experts + 32 * j + lane] = share[t][j] * inverse;
            if (lane == 0) p.lse[to] = max_logit[t] + __logf(sum[t]);
        }
    }
};

/* A token's logits in the registers of four neighbouring lanes, as wgmma leaves rows: lane c of the four has
 * experts 8j + 2c and 8j + 2c + 1. A candidate is a word of 64 bits, score above and expert below, that grows
 * with the score and falls with the expert, so that one comparison orders them. LENGTH candidates are kept.
 */
template <int N, int LENGTH> struct RowSelection {
    static constexpr int PER_LANE = N / 4;
    int64_t best[LENGTH];

    static __device__ __forceinline__ int expert_at(int i) {
        return i / 2 * 8 + (threadIdx.x & 3) * 2 + (i & 1);
    }
    /* The bits of floats order as signed numbers do once those below the sign of a negative one are turned.
     */
    static __device__ __forceinline__ int64_t candidate(float logit, int expert) {
        const int bits = __float_as_int(logit + 0.f); /* -0 as 0 */
        return (int64_t)(bits ^ (bits >> 31 & 0x7FFFFFFF)) << 32 | (uint32_t)~expert;
    }
    static __device__ __forceinline__ float logit_of(int64_t candidate) {
        const int bits = (int)(candidate >> 32);
        return __int_as_float(bits ^ (bits >> 31 & 0x7FFFFFFF));
    }
    static __device__ __forceinline__ void order(int64_t &a, int64_t &b) {
        const int64_t was = a;
        const bool swap = b > a;
        a = swap ? b : a;
        b = swap ? was : b;
    }
    /* The COUNT numbers from FIRST on, by falling size. merge: every STEP-th of them; both halves are sorted.
     */
    template <int FIRST, int COUNT, int STEP>
    static __device__ __forceinline__ void merge_halves(int64_t (&v)[LENGTH]) {
        if constexpr (2 * STEP < COUNT) {
            merge_halves<FIRST, COUNT, 2 * STEP>(v);
            merge_halves<FIRST + STEP, COUNT, 2 * STEP>(v);
#pragma unroll
            for (int i = FIRST + STEP; i + STEP < FIRST + COUNT; i += 2 * STEP) order(v[i], v[i + STEP]);
        } else {
            order(v[FIRST], v[FIRST + STEP]);
        }
    }
    template <int FIRST, int COUNT> static __device__ __forceinline__ void sort(int64_t (&v)[LENGTH]) {
        if constexpr (COUNT > 1) {
            sort<FIRST, COUNT / 2>(v);
            sort<FIRST + COUNT / 2, COUNT / 2>(v);
            merge_halves<FIRST, COUNT, 1>(v);
        }
    }
    /* Both sorted: the best of them, sorted again. */
    __device__ __forceinline__ void merge(const int64_t (&other)[LENGTH]) {
#pragma unroll
        for (int i = 0; i < LENGTH; ++i) best[i] = max(best[i], other[LENGTH - 1 - i]);
#pragma unroll
        for (int step = LENGTH / 2; step > 0; step /= 2)
#pragma unroll
            for (int i = 0; i < LENGTH; ++i)
                if ((i & step) == 0) order(best[i], best[i + step]);
    }
    /* All four lanes have the token's best afterwards. */
    __device__ __forceinline__ void search(const float (&logit)[PER_LANE]) {
#pragma unroll
        for (int first = 0; first < PER_LANE; first += LENGTH) {
            int64_t next[LENGTH];
#pragma unroll
            for (int i = 0; i < LENGTH; ++i)
                next[i] = first + i < PER_LANE
                              ? candidate(logit[(first + i) % PER_LANE], expert_at(first + i))
                              : INT64_MIN;
            sort<0, LENGTH>(next);
            if (first > 0) {
                merge(next);
                continue;
            }
#pragma unroll
            for (int i = 0; i < LENGTH; ++i) best[i] = next[i];
        }
#pragma unroll
        for (int lanes = 1; lanes < 4; lanes *= 2) {
            int64_t others[LENGTH];
#pragma unroll
            for (int i = 0; i < LENGTH; ++i) others[i] = __shfl_xor_sync(~0u, best[i], lanes);
            merge(others);
        }
    }
    static __device__ __forceinline__ float sum_of_four(float v) {
        v += __shfl_xor_sync(~0u, v, 1);
        return v + __shfl_xor_sync(~0u, v, 2);
    }
    /* to[n] in pairs, as a lane has them. */
    static __device__ __forceinline__ void store_row(float *to, int n, const float (&v)[PER_LANE], float by) {
        if (n % 2 == 0)
#pragma unroll
            for (int i = 0; i < PER_LANE; i += 2) {
                if (expert_at(i) < n) *(float2 *)(to + expert_at(i)) = make_float2(v[i] * by, v[i + 1] * by);
            }
        else
#pragma unroll
            for (int i = 0; i < PER_LANE; ++i)
                if (expert_at(i) < n) to[expert_at(i)] = v[i] * by;
    }
    /* Lane c has every fourth choice, the c-th first. */
    __device__ __forceinline__ void keep_choices(const moei_router_args &p, int64_t token, bool good,
                                                 float sum, uint32_t *count) const {
        const int c = threadIdx.x & 3;
        const float top = logit_of(best[0]);
        float share[LENGTH / 4], all = 0;
        int expert[LENGTH / 4];
#pragma unroll
        for (int i = 0; i < LENGTH / 4; ++i) {
            int64_t own = best[4 * i];
#pragma unroll
            for (int j = 1; j < 4; ++j) own = c == j ? best[4 * i + j] : own;
            expert[i] = (int)~(uint32_t)own;
            share[i] = 4 * i + c < p.top_k ? __expf(logit_of(own) - top) : 0;
            all += share[i];
        }
        const float factor = (float)p.scale / weight_divisor(p, sum, sum_of_four(all));
#pragma unroll
        for (int i = 0; i < LENGTH / 4; ++i) {
            const int k = 4 * i + c;
            if (k >= p.top_k || !good) continue;
            p.expert[token * p.top_k + k] = expert[i];
            p.weight[token * p.top_k + k] = share[i] * factor;
            atomicAdd(count + expert[i], 1);
        }
        if (c == 0 && good) p.lse[token] = top + __logf(sum);
    }
    /* Whole warp. logit: gone afterwards. count: rows per expert. */
    __device__ __forceinline__ void run(const moei_router_args &p, float (&logit)[PER_LANE], int64_t token,
                                        uint32_t *count) {
        const int n = p.n_experts, lane = threadIdx.x & 31;
        const bool inside = token < p.n_tokens, masked = inside && p.mask && !p.mask[token];
        bool finite = true;
        if (p.logits && inside) store_row(p.logits + token * n, n, logit, 1.f);
#pragma unroll
        for (int i = 0; i < PER_LANE; ++i) finite &= fabsf(logit[i]) < INFINITY; /* past the last expert: 0 */
        finite = (__ballot_sync(~0u, finite) >> (lane & ~3) & 15) == 15;
        if (n < N)
#pragma unroll
            for (int i = 0; i < PER_LANE; ++i) logit[i] = expert_at(i) < n ? logit[i] : -INFINITY;
        search(logit);
        float sum = 0;
        const float top = logit_of(best[0]);
#pragma unroll
        for (int i = 0; i < PER_LANE; ++i) sum += logit[i] = __expf(logit[i] - top);
        sum = sum_of_four(sum);
        const bool good = inside && finite && !masked;
        keep_choices(p, token, good, sum, count);
        if (good && p.prob) store_row(p.prob + token * n, n, logit, 1.f / sum);
        if (!inside || good) return;
        leave_out(p, token, masked ? 0.f : NAN, lane & 3, 4);
        if (!masked && (lane & 3) == 0) tell(p, token, MOEI_FAULT_LOGIT);
    }
};

} // namespace moei
#endif
