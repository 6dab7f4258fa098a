/* left_out.cuh: what every router writes for a token that it does not route, and how the host learns why.
 * expert[T,K] = -1, weight[T,K] = prob[T,E] = 0, lse[T]. Source: moei_fault of core/memory.h.
 */
#ifndef MOEI_LEFT_OUT_CUH
#define MOEI_LEFT_OUT_CUH

#include "kernel/cuda/portable.cuh"

namespace moei {

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
