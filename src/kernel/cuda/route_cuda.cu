/* route_cuda.cu: scores, the K best, weights, and their gradient, for any NVIDIA GPU from sm_80.
 * logits[T,E] -> prob, lse, expert, weight; drow_weight, aux and z losses -> dlogits[T,E]. One warp a token;
 * lane l has experts l, l + 32, ..., but where it says so. Formulas: route/weight.c and
 * route/score_function.c, here in f32.
 * Order: higher first, then the lower expert. A token with a bad logit is left out and told in p.fault.
 */
#include "kernel/cuda/left_out.cuh"

#include <float.h>

namespace moei {

enum { THREADS = 128, WARPS = THREADS / 32 };
enum { SELECTORS = 2 }; /* tokens of a block that selects: the ranks of up to 6144 experts each in 48 KB */

__device__ __forceinline__ float score_of(moei_router_score score, float logit, float lse) {
    if (score == MOEI_ROUTER_SOFTMAX) return expf(logit - lse);
    if (score == MOEI_ROUTER_SIGMOID) return 1.f / (1.f + expf(-logit));
    return sqrtf(fmaxf(logit, 0.f) + log1pf(expf(-fabsf(logit))));
}

/* One token's numbers as a warp sees them. */
struct Token {
    const moei_router_args &p;
    int64_t t;
    int lane;
    float lse;
    float *rank; /* what is ranked, of each expert; only where experts are selected */

    __device__ float logit(int e) const { return p.logits[t * p.n_experts + e]; }
    /* Of softmax, prob holds the score itself; the gradient has no logits then. */
    __device__ float score(int e) const {
        float s =
            p.score == MOEI_ROUTER_SOFTMAX ? p.prob[t * p.n_experts + e] : score_of(p.score, logit(e), lse);
        if (p.bias_in_weights) s += p.selection_bias[e];
        return s;
    }
    __device__ void keep_ranks() const {
        for (int e = lane; e < p.n_experts; e += 32) {
            const float z = p.rank_logits ? logit(e) : score(e);
            rank[e] = z + (p.selection_bias && !p.bias_in_weights ? p.selection_bias[e] : 0.f);
        }
        __syncwarp();
    }
};

struct Best {
    float z;
    int e; /* -1: none */
};

__device__ __forceinline__ bool before(float z, int e, float than_z, int than_e) {
    return z > than_z || (z == than_z && e < than_e);
}

/* The best of experts [low, high) after `last` (e -1: from the start) among the kept groups. */
static __device__ Best next_best(const Token &token, int low, int high, const Best &last, uint64_t kept,
                                 int group_size) {
    Best best = {0.f, -1};
    for (int e = low + token.lane; e < high; e += 32) {
        if (group_size > 0 && !(kept >> (e / group_size) & 1)) continue;
        const float z = token.rank[e];
        if (last.e >= 0 && !before(last.z, last.e, z, e)) continue;
        if (best.e < 0 || before(z, e, best.z, best.e)) best = {z, e};
    }
#pragma unroll
    for (int d = 16; d > 0; d /= 2) {
        const float z = __shfl_xor_sync(~0u, best.z, d);
        const int e = __shfl_xor_sync(~0u, best.e, d);
        if (e >= 0 && (best.e < 0 || before(z, e, best.z, best.e))) best = {z, e};
    }
    return best;
}

/* Bit g: group g is kept. A group counts by the sum of its best. */
static __device__ uint64_t keep_groups(const Token &token) {
    const moei_router_args &p = token.p;
    const int size = p.n_experts / p.n_groups;
    float own = 0.f, own_high = 0.f; /* scores of groups lane and lane + 32 */
    for (int g = 0; g < p.n_groups; ++g) {
        Best last = {0.f, -1};
        float sum = 0.f;
        for (int i = 0; i < p.group_best; ++i) {
            last = next_best(token, g * size, (g + 1) * size, last, 0, 0);
            if (last.e < 0) break;
            sum += last.z;
        }
        if (g % 32 == token.lane) (g < 32 ? own : own_high) = sum;
    }
    uint64_t kept = 0;
    for (int i = 0; i < p.group_top_k; ++i) {
        Best best = {0.f, -1};
        for (int g = 0; g < p.n_groups; ++g) {
            const float z = __shfl_sync(~0u, g < 32 ? own : own_high, g % 32);
            if (!(kept >> g & 1) && (best.e < 0 || z > best.z)) best = {z, g};
        }
        kept |= 1ull << best.e;
    }
    return kept;
}

static __device__ void leave_row_out(const Token &token, float lse) {
    leave_out(token.p, token.t, lse, token.lane, 32);
    if (token.lane == 0 && token.p.entropy) token.p.entropy[token.t] = 0.f;
}

/* lse and entropy of the row; false where a logit or bias is bad. */
static __device__ bool score_row(Token &token) {
    const moei_router_args &p = token.p;
    float max = -FLT_MAX, sum = 0.f, below = 0.f, total = 0.f;
    bool finite = true;
    for (int e = token.lane; e < p.n_experts; e += 32) {
        const float l = token.logit(e);
        finite &= fabsf(l) <= FLT_MAX && (!p.selection_bias || fabsf(p.selection_bias[e]) <= FLT_MAX);
        max = fmaxf(max, l);
    }
    if (!__all_sync(~0u, finite)) return false;
#pragma unroll
    for (int d = 16; d > 0; d /= 2) max = fmaxf(max, __shfl_xor_sync(~0u, max, d));
    for (int e = token.lane; e < p.n_experts; e += 32) {
        const float depth = max - token.logit(e), y = expf(-depth);
        sum += y;
        below = fmaf(y, depth, below);
    }
    sum = warp_sum(sum);
    below = warp_sum(below);
    token.lse = max + logf(sum);
    if (token.lane == 0) {
        p.lse[token.t] = token.lse;
        if (p.entropy) p.entropy[token.t] = logf(sum) + below / sum;
    }
    for (int e = token.lane; e < p.n_experts; e += 32) {
        const float s = score_of(p.score, token.logit(e), token.lse);
        p.prob[token.t * p.n_experts + e] = s;
        total += s + (p.bias_in_weights ? p.selection_bias[e] : 0.f);
    }
    if (p.score == MOEI_ROUTER_SOFTMAX) return true;
    total = p.normalise_prob ? warp_sum(total) : 1.f;
    for (int e = token.lane; e < p.n_experts; e += 32)
        p.prob[token.t * p.n_experts + e] = token.score(e) / total;
    return true;
}

/* Takes a recorded selection; false where it is none. */
static __device__ bool replay(const Token &token) {
    const moei_router_args &p = token.p;
    bool right = true;
    for (int k = token.lane; k < p.top_k; k += 32) {
        const int32_t e = p.replay_expert[token.t * p.top_k + k];
        right &= e >= -1 && e < p.n_experts;
        for (int i = 0; i < k && e >= 0; ++i) right &= p.replay_expert[token.t * p.top_k + i] != e;
        p.expert[token.t * p.top_k + k] = e;
    }
    return __all_sync(~0u, right);
}

static __device__ void select(const Token &token) {
    const moei_router_args &p = token.p;
    const int group_size = p.group_top_k > 0 ? p.n_experts / p.n_groups : 0;
    token.keep_ranks();
    const uint64_t kept = group_size > 0 ? keep_groups(token) : 0;
    Best last = {0.f, -1};
    for (int k = 0; k < p.top_k; ++k) {
        if (k == 0 || last.e >= 0) last = next_best(token, 0, p.n_experts, last, kept, group_size);
        if (token.lane == 0) p.expert[token.t * p.top_k + k] = last.e;
    }
    __syncwarp();
}

__device__ __forceinline__ bool over_chosen(const moei_router_args &p) {
    return p.score == MOEI_ROUTER_SOFTMAX && !p.score_before_topk;
}

static __device__ void weigh(const Token &token) {
    const moei_router_args &p = token.p;
    const int32_t *expert = p.expert + token.t * p.top_k;
    float max = -FLT_MAX, sum = 0.f;
    for (int k = 0; k < p.top_k && over_chosen(p); ++k)
        if (expert[k] >= 0) max = fmaxf(max, token.logit(expert[k]));
    for (int k = 0; k < p.top_k; ++k) {
        if (expert[k] < 0) continue;
        sum += over_chosen(p) ? expf(token.logit(expert[k]) - max) : token.score(expert[k]);
    }
    const bool divides = over_chosen(p) || p.norm_topk_prob;
    const float by = divides ? sum + (over_chosen(p) ? 0.f : (float)p.norm_eps) : 1.f;
    for (int k = token.lane; k < p.top_k; k += 32) {
        float w = 0.f;
        if (expert[k] >= 0) w = over_chosen(p) ? expf(token.logit(expert[k]) - max) : token.score(expert[k]);
        p.weight[token.t * p.top_k + k] = expert[k] < 0 ? 0.f : (float)p.scale * (w / by);
    }
}

static __global__ void __launch_bounds__(SELECTORS * 32) router_kernel(const moei_router_args p) {
    extern __shared__ float ranks[];
    const int warp = threadIdx.x / 32;
    Token token = {p, (int64_t)blockIdx.x * SELECTORS + warp, (int)threadIdx.x & 31, 0.f,
                   ranks + warp * p.n_experts};
    if (token.t >= p.n_tokens) return;
    if (p.mask && !p.mask[token.t]) return leave_row_out(token, 0.f);
    if (!score_row(token)) {
        if (token.lane == 0) tell(p, token.t, MOEI_FAULT_LOGIT);
        return leave_row_out(token, NAN);
    }
    __syncwarp();
    if (!p.replay_expert) {
        select(token);
    } else if (!replay(token)) {
        if (token.lane == 0) tell(p, token.t, MOEI_FAULT_REPLAY);
        __syncwarp();
        return leave_row_out(token, NAN);
    }
    __syncwarp();
    if (!p.replay_weight) return weigh(token);
    for (int k = token.lane; k < p.top_k; k += 32) {
        const int64_t slot = token.t * p.top_k + k;
        p.weight[slot] = p.expert[slot] < 0 ? 0.f : p.replay_weight[slot];
    }
}

/* d objective / d weight of a slot, 0 where it has no row. */
__device__ __forceinline__ float weight_gradient(const moei_router_args &p, int64_t slot) {
    const int32_t r = p.row_of[slot];
    return r < 0 ? 0.f : p.drow_weight[r];
}

/* The share that was scaled to the slot's weight; scaled by 0 it has no gradient either. */
__device__ __forceinline__ float share_of(const moei_router_args &p, int64_t slot) {
    return p.scale == 0 ? 0.f : p.weight[slot] / (float)p.scale;
}

/* What the weights ask, at the chosen: of their scores, or over the chosen of the logits themselves. */
__device__ __forceinline__ float chosen_gradient(const Token &token, int k, float sum, float mean) {
    const moei_router_args &p = token.p;
    const int64_t slot = token.t * p.top_k + k;
    const float v = (float)p.scale * weight_gradient(p, slot);
    if (over_chosen(p)) return share_of(p, slot) * (v - mean);
    return p.norm_topk_prob ? v / sum - mean / (sum * sum) : v;
}

/* sum of the chosen scores (and norm_eps), and of score times gradient. */
static __device__ void chosen_sums(const Token &token, float *sum, float *mean) {
    const moei_router_args &p = token.p;
    *sum = (float)p.norm_eps;
    *mean = 0.f;
    for (int k = 0; k < p.top_k; ++k) {
        const int64_t slot = token.t * p.top_k + k;
        const int32_t e = p.expert[slot];
        if (e < 0) continue;
        const float w = over_chosen(p) ? share_of(p, slot) : token.score(e);
        *sum += w;
        *mean = fmaf(w * (float)p.scale, weight_gradient(p, slot), *mean);
    }
}

/* d objective / d score of expert e from weights and the balance loss. */
struct ScoreGradient {
    float sum, mean;           /* over the chosen */
    float prob_sum, prob_mean; /* over all, of the balance loss */
};

static __device__ float score_gradient(const Token &token, const ScoreGradient &s, int e) {
    const moei_router_args &p = token.p;
    float ds = 0.f;
    for (int k = 0; k < p.top_k && !over_chosen(p) && !p.replay_weight; ++k)
        if (p.expert[token.t * p.top_k + k] == e) ds = chosen_gradient(token, k, s.sum, s.mean);
    if (!p.aux_grad) return ds;
    const float u = (float)p.aux_grad[e];
    return ds + (p.normalise_prob ? u / s.prob_sum - s.prob_mean / (s.prob_sum * s.prob_sum) : u);
}

/* ds through the score function to the logit. */
__device__ __forceinline__ float through_score(const Token &token, int e, float ds, float softmax_mean) {
    const moei_router_args &p = token.p;
    if (p.score == MOEI_ROUTER_SOFTMAX) return p.prob[token.t * p.n_experts + e] * (ds - softmax_mean);
    const float sigmoid = 1.f / (1.f + expf(-token.logit(e)));
    if (p.score == MOEI_ROUTER_SIGMOID) return ds * sigmoid * (1.f - sigmoid);
    const float root = score_of(MOEI_ROUTER_SQRTSOFTPLUS, token.logit(e), 0.f);
    return root > 0.f ? ds * sigmoid / (2.f * root) : 0.f;
}

/* dlogits of expert e of token t, in one number or two. */
__device__ __forceinline__ void put_dlogit(const moei_router_args &p, int64_t t, int e, float value) {
    if (!p.dlogits_pairs) {
        p.dlogits[t * p.n_experts + e] = value;
        return;
    }
    bf16 *pair = (bf16 *)p.dlogits_pairs + t * 2 * p.n_experts + e;
    const bf16 high = __float2bfloat16(value);
    pair[0] = high;
    pair[p.n_experts] = __float2bfloat16(value - __bfloat162float(high));
}

static __global__ void __launch_bounds__(THREADS) router_grad_kernel(const moei_router_args p) {
    Token token = {p, (int64_t)blockIdx.x * WARPS + threadIdx.x / 32, (int)threadIdx.x & 31, 0.f, NULL};
    if (token.t >= p.n_tokens) return;
    if ((p.mask && !p.mask[token.t]) || isnan(p.lse[token.t])) {
        for (int e = token.lane; e < p.n_experts; e += 32) put_dlogit(p, token.t, e, 0.f);
        return;
    }
    ScoreGradient s = {0.f, 0.f, 0.f, 0.f};
    float softmax_mean = 0.f;
    token.lse = p.lse[token.t];
    chosen_sums(token, &s.sum, &s.mean);
    if (p.aux_grad && p.normalise_prob) {
        for (int e = token.lane; e < p.n_experts; e += 32) {
            s.prob_sum += token.score(e);
            s.prob_mean = fmaf((float)p.aux_grad[e], token.score(e), s.prob_mean);
        }
        s.prob_sum = warp_sum(s.prob_sum);
        s.prob_mean = warp_sum(s.prob_mean);
    }
    if (p.score == MOEI_ROUTER_SOFTMAX) {
        for (int e = token.lane; e < p.n_experts; e += 32)
            softmax_mean = fmaf(score_gradient(token, s, e), p.prob[token.t * p.n_experts + e], softmax_mean);
        softmax_mean = warp_sum(softmax_mean);
    }
    const float z = p.z_grad ? (float)*p.z_grad * token.lse : 0.f;
    for (int e = token.lane; e < p.n_experts; e += 32) {
        float d = through_score(token, e, score_gradient(token, s, e), softmax_mean);
        if (p.z_grad)
            d += z * (p.score == MOEI_ROUTER_SOFTMAX ? p.prob[token.t * p.n_experts + e]
                                                     : expf(token.logit(e) - token.lse));
        for (int k = 0; k < p.top_k && over_chosen(p) && !p.replay_weight; ++k)
            if (p.expert[token.t * p.top_k + k] == e) d += chosen_gradient(token, k, s.sum, s.mean);
        put_dlogit(p, token.t, e, d);
    }
}

/* V experts side by side: what is loaded and stored at once. */
template <int V> struct Experts {
    static_assert(V == 1 || V == 4, "one number, or four that are loaded at once");
    __align__(16) float prob[V];
    float aux[V];
    __device__ __forceinline__ void fetch(const moei_router_args &p, const float *from, int e) {
#pragma unroll
        for (int i = 0; i < V; ++i) {
            prob[i] = 0.f;
            aux[i] = e < p.n_experts && p.aux_grad ? (float)p.aux_grad[e + i] : 0.f;
        }
        if (e >= p.n_experts) return;
        if constexpr (V == 4)
            *(float4 *)prob = *(const float4 *)(from + e);
        else
            prob[0] = from[e];
    }
};
template <int V>
__device__ __forceinline__ void put_dlogits(const moei_router_args &p, int64_t t, int e,
                                            const float (&v)[V]) {
    if constexpr (V == 1) {
        put_dlogit(p, t, e, v[0]);
    } else if (!p.dlogits_pairs) {
        *(float4 *)(p.dlogits + t * p.n_experts + e) = *(const float4 *)v;
    } else {
        uint32_t high[V / 2], low[V / 2];
#pragma unroll
        for (int i = 0; i < V / 2; ++i) {
            high[i] = bf16_pack(v[2 * i], v[2 * i + 1]);
            low[i] = bf16_pack(v[2 * i] - bf16_low(high[i]), v[2 * i + 1] - bf16_high(high[i]));
        }
        bf16 *pair = (bf16 *)p.dlogits_pairs + t * 2 * p.n_experts + e;
        *(uint2 *)pair = make_uint2(high[0], high[1]);
        *(uint2 *)(pair + p.n_experts) = make_uint2(low[0], low[1]);
    }
}

/* The same for plain softmax, up to 32 choices: lane k has the k-th, and all lanes V experts each at a time.
 * What does not follow from something else is asked for at once: a token waits for memory twice. What forward
 * wrote is asked for before the kernels ahead have ended; without losses the scores are not asked for at all
 * where the choices alone have gradients. */
template <int V>
__global__ void __launch_bounds__(THREADS)
    softmax_grad_kernel(const __grid_constant__ moei_router_args p, bool chosen_only) {
    const int64_t t = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    const int lane = (int)threadIdx.x & 31, first = V * lane;
    const bool has_losses = p.aux_grad || p.z_grad;
    let_next_start();
    if (t >= p.n_tokens) return;
    if (has_losses) await_earlier();
    const float *prob = p.prob + t * p.n_experts, lse = p.lse[t];
    const int64_t slot = t * p.top_k + lane;
    const bool chooses = lane < p.top_k;
    const int expert = chooses ? p.expert[slot] : -1, row = chooses ? p.row_of[slot] : -1;
    const float share = chooses && over_chosen(p) ? share_of(p, slot) : 0.f;
    const bool at_once = p.n_experts <= 32 * V;
    Experts<V> here;
    here.fetch(p, prob, chosen_only ? p.n_experts : first);
    const bool left_out = (p.mask && !p.mask[t]) || isnan(lse);
    const int own = left_out ? -1 : expert;
    if (!has_losses) await_earlier();
    const float v = own >= 0 && row >= 0 ? (float)p.scale * p.drow_weight[row] : 0.f;
    const float score = own >= 0 && !chosen_only ? prob[own] : 0.f;
    float chosen = 0.f; /* of the logit where over_chosen, else of the score */
    if (over_chosen(p)) {
        const float kept = own >= 0 ? share : 0.f;
        chosen = kept * (v - warp_sum(kept * v));
    } else if (p.norm_topk_prob) {
        const float sum = warp_sum(score) + (float)p.norm_eps, mean = warp_sum(score * v);
        chosen = own >= 0 ? v / sum - mean / (sum * sum) : 0.f;
    } else {
        chosen = v;
    }
    float mean = over_chosen(p) ? 0.f : score * chosen;
    for (int e0 = 0; e0 < p.n_experts && p.aux_grad; e0 += 32 * V) {
        if (!at_once) here.fetch(p, prob, e0 + first);
#pragma unroll
        for (int i = 0; i < V; ++i) mean = fmaf(here.aux[i], here.prob[i], mean);
    }
    const float all = (p.z_grad ? (float)*p.z_grad * lse : 0.f) - warp_sum(mean);
    const float own_all = all + (p.aux_grad && own >= 0 ? (float)p.aux_grad[own] : 0.f);
    const float own_dlogit = over_chosen(p) ? fmaf(score, own_all, chosen) : score * (own_all + chosen);
    if (p.row_factor && own >= 0 && row >= 0) p.row_factor[row] = own_dlogit;
    for (int e0 = 0; e0 < p.n_experts; e0 += 32 * V) {
        const int e = e0 + first;
        __align__(16) float dlogit[V];
        if (!at_once && !chosen_only) here.fetch(p, prob, e);
#pragma unroll
        for (int i = 0; i < V; ++i) dlogit[i] = left_out ? 0.f : here.prob[i] * (all + here.aux[i]);
        for (uint32_t rest = __ballot_sync(~0u, own >= e0 && own < e0 + 32 * V); rest; rest &= rest - 1) {
            const int k = __ffs((int)rest) - 1, at = __shfl_sync(~0u, own, k) - e;
            const float value = __shfl_sync(~0u, own_dlogit, k);
#pragma unroll
            for (int i = 0; i < V; ++i) dlogit[i] = at == i ? value : dlogit[i];
        }
        if (e < p.n_experts) put_dlogits<V>(p, t, e, dlogit);
    }
}

static bool is_plain_softmax(const moei_router_args *a) {
    return a->score == MOEI_ROUTER_SOFTMAX && a->top_k <= MOEI_SOFTMAX_CHOICES && !a->replay_weight &&
           !a->bias_in_weights;
}

/* count of expert e times E / (selections * tokens), and 2 z / tokens; 0 without tokens. */
static __global__ void balance_kernel(const moei_balance_args p) {
    __shared__ unsigned long long total;
    unsigned long long own = 0;
    if (threadIdx.x == 0) {
        total = 0;
        *p.z_grad = *p.n_valid > 0 ? 2 * p.z / (double)*p.n_valid : 0;
    }
    __syncthreads();
    for (int32_t e = threadIdx.x; e < p.n_experts; e += blockDim.x) own += (unsigned long long)p.routed[e];
    atomicAdd(&total, own);
    __syncthreads();
    for (int32_t e = threadIdx.x; e < p.n_experts; e += blockDim.x)
        p.aux_grad[e] =
            total > 0 ? p.aux * p.n_experts * (double)p.routed[e] / ((double)total * (double)*p.n_valid) : 0;
}

} // namespace moei

using namespace moei;

extern "C" void moei_router__cuda(const moei_team *team, const moei_router_args *args) {
    const unsigned blocks = (unsigned)ceil_div(args->n_tokens, SELECTORS);
    const size_t ranks = SELECTORS * (size_t)args->n_experts * sizeof(float);
    if (blocks > 0) router_kernel<<<blocks, SELECTORS * 32, ranks, stream_of(team)>>>(*args);
}

extern "C" void moei_router_grad__cuda(const moei_team *team, const moei_router_args *args) {
    if (args->n_tokens == 0) return;
    const dim3 blocks((unsigned)ceil_div(args->n_tokens, WARPS));
    if (!is_plain_softmax(args)) {
        router_grad_kernel<<<blocks, THREADS, 0, stream_of(team)>>>(*args);
        return;
    }
    auto *kernel = args->n_experts % 4 == 0 ? softmax_grad_kernel<4> : softmax_grad_kernel<1>;
    Launch(blocks, THREADS, 0, stream_of(team))
        .early_where_built(kernel)(kernel, *args, moei_router_chosen_only(args));
}

extern "C" void moei_balance_grad__cuda(const moei_team *team, const moei_balance_args *args) {
    balance_kernel<<<1, 256, 0, stream_of(team)>>>(*args);
}
